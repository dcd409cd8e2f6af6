//! The `pgset` program: parse the command line, hand over.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgset::cli::main()
}
