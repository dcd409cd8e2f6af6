//! The injection, fed with anything.
#![no_main]

#[path = "../bodies/injection.rs"]
mod injection;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| injection::run(bytes));
