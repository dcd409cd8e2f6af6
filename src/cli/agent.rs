//! `pgset agent`.

use super::Outcome;

/// The flags of `pgset agent`.
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Runs the command.
pub fn run(_arguments: Arguments) -> Outcome {
    Err("not written yet".into())
}
