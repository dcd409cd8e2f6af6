//! The `pgset` program: parse the command line, hand over.

use std::process::ExitCode;

/// A review is made of hundreds of small values, and the C library's allocator took a third of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pgset::cli::main()
}
