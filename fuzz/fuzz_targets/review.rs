//! The webhook, fed with anything.
#![no_main]

#[path = "../bodies/review.rs"]
mod review;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| review::run(bytes));
