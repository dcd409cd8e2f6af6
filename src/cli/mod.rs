//! The command line: one file per command.

pub mod agent;
mod archiver;
mod backup;
mod check;
mod cluster;
pub mod copy;
pub mod eject;
mod explain;
pub mod inject;
pub mod install;
mod order;
mod recover;
pub mod serve;
mod set_name;
mod status;
mod uninstall;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::{Layer, Registry, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// A PostgreSQL master and its replicas from an annotated Kubernetes `StatefulSet`.
#[derive(Debug, Parser)]
#[command(name = "pgset", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the webhook, or the controller.
    Serve(serve::Arguments),
    /// Run PostgreSQL as a member of a set: the first process of its container.
    Agent(agent::Arguments),
    /// Bring WAL and base backups to a store, or back: what the agent and PostgreSQL run.
    #[command(hide = true)]
    Archiver(archiver::Arguments),
    /// Copy this program into a volume (the init container's job).
    Copy(copy::Arguments),
    /// Show what the webhook makes of manifests, without a cluster.
    Inject(inject::Arguments),
    /// Take the injection out of manifests again.
    Eject(eject::Arguments),
    /// Print the manifests that install pgset.
    Install(install::Arguments),
    /// Say whether pgset can be installed (--before), or whether all is well where it is.
    Check(check::Arguments),
    /// Say why a set was or wasn't injected, and what was added.
    Explain(explain::Arguments),
    /// Say who leads, what each member does, and what the set waits for.
    Status(status::Arguments),
    /// Let another member lead: the master hands over, and nothing is lost.
    Switchover(order::Switchover),
    /// Say who leads where nobody does.
    Failover(order::Failover),
    /// Say which backups a set has, or make one now.
    Backup(backup::Arguments),
    /// Restore a moment beside a set's data, look at it, and go on from it
    Recover(recover::Arguments),
    /// Print what is to be deleted to take pgset away, unless sets depend on it.
    Uninstall(uninstall::Arguments),
}

/// Parses the command line and runs the command; errors go to standard error with all their causes.
#[must_use]
pub fn main() -> ExitCode {
    // Neither is a command for people, and the fencer is to touch as little memory as it can.
    if let Some(code) = crate::agent::postgres_shim::answer(std::env::args_os())
        .or_else(|| crate::agent::fencer::answer(std::env::args_os()))
    {
        return code;
    }
    let result = match Arguments::parse().command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Agent(arguments) => agent::run(arguments),
        Command::Copy(arguments) => copy::run(&arguments),
        Command::Inject(arguments) => inject::run(&arguments),
        Command::Eject(arguments) => eject::run(&arguments),
        Command::Install(arguments) => install::run(&arguments),
        // These have exit codes of their own.
        Command::Archiver(arguments) => return archiver::run(arguments),
        Command::Check(arguments) => return check::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Status(arguments) => return status::run(&arguments),
        Command::Switchover(arguments) => return order::switch_over(&arguments),
        Command::Backup(arguments) => return backup::run(&arguments),
        Command::Recover(arguments) => return recover::run(&arguments),
        Command::Failover(arguments) => return order::fail_over(&arguments),
        Command::Uninstall(arguments) => uninstall::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref(), FAILURE),
    }
}

/// The exit code of a command that failed, or that found something wrong.
const FAILURE: u8 = 1;

/// Tells why a command ends, with all causes.
fn failed(why: &(dyn std::error::Error + 'static), code: u8) -> ExitCode {
    eprintln!("pgset: {}", crate::errors::with_causes(why));
    ExitCode::from(code)
}

/// What a command answers: any room's error, told once here.
pub type CommandResult = Result<(), Box<dyn std::error::Error>>;

/// Logs to standard error, at `info` unless `RUST_LOG` says otherwise.
pub fn start_logging() {
    start_logging_as(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false));
}

/// The same in a form of one's own. `RUST_LOG` is a level, or several by target: `debug`, `info,kube=debug`.
fn start_logging_as(form: impl Layer<Registry> + Send + Sync) {
    let wished = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()).map(|text| text.parse()).transpose();
    let filter = match &wished {
        Ok(Some(filter)) => Targets::clone(filter),
        Ok(None) | Err(_) => Targets::new().with_default(tracing::Level::INFO),
    };
    // An error means that somebody logs already.
    let _ = tracing_subscriber::registry().with(form.with_filter(filter)).try_init();
    if let Err(error) = wished {
        tracing::warn!("RUST_LOG is not understood ({error}), so `info` it is: write a level, or TARGET=LEVEL,...");
    }
}

/// rustls takes its cryptography from ring, in every part of this program.
pub fn install_crypto_provider() -> Result<(), &'static str> {
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "a crypto provider is installed already")
}
