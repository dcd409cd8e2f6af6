//! `pgset agent`: the first process of a member's PostgreSQL container.

use super::Outcome;
use crate::agent;

/// The flags of `pgset agent`, written by the webhook.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    flags: agent::Flags,
}

/// Runs a member until SIGTERM.
pub fn run(Arguments { flags }: Arguments) -> Outcome {
    super::start_logging();
    super::install_crypto_provider()?;
    Ok(agent::run(flags)?)
}
