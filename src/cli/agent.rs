//! `pgset agent`: the first process of a member's PostgreSQL container.

use std::os::unix::process::ExitStatusExt;

use super::CommandResult;
use crate::agent;

/// The flags of `pgset agent`, written by the webhook.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    flags: agent::Flags,
}

/// Runs a member until SIGTERM.
pub fn run(Arguments { flags }: Arguments) -> CommandResult {
    super::start_logging();
    super::install_crypto_provider()?;
    match agent::run(flags)? {
        agent::Ending::Stopped => Ok(()),
        // As a shell would say it, and as the kubelet would have heard it from the image itself.
        agent::Ending::Image(status) => {
            std::process::exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
        }
    }
}
