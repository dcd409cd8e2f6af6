//! The command line: one file per command.

pub mod agent;
pub mod copy;
pub mod eject;
pub mod inject;
pub mod install;
pub mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A PostgreSQL master and its replicas from an annotated Kubernetes `StatefulSet`.
#[derive(Debug, Parser)]
#[command(name = "pgset", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the webhook and the controller.
    Serve(serve::Arguments),
    /// Run PostgreSQL as a member of a set: the first process of its container.
    Agent(agent::Arguments),
    /// Copy this program into a volume (the init container's job).
    Copy(copy::Arguments),
    /// Show what the webhook makes of manifests, without a cluster.
    Inject(inject::Arguments),
    /// Take the injection out of manifests again.
    Eject(eject::Arguments),
    /// Print the manifests that install pgset.
    Install(install::Arguments),
}

/// Parses the command line and runs the command; errors go to standard error with all their causes.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Agent(arguments) => agent::run(arguments),
        Command::Copy(arguments) => copy::run(&arguments),
        Command::Inject(arguments) => inject::run(&arguments),
        Command::Eject(arguments) => eject::run(&arguments),
        Command::Install(arguments) => install::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pgset: {}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// What a command answers: any room's error, told once here.
pub type Outcome = Result<(), Box<dyn std::error::Error>>;

/// An error and what caused it, on one line.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
