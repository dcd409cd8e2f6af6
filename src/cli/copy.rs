//! `pgset copy`.

use super::Outcome;

/// The flags of `pgset copy`.
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Runs the command.
pub fn run(_arguments: &Arguments) -> Outcome {
    Err("not written yet".into())
}
