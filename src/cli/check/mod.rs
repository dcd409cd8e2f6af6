//! `pgset check`: whether pgset can be installed, and whether all is well where it is.
//!
//! The edge ([`snapshot`]) reads, the checks are pure functions of what was read, and the [`report`] is told.

mod backups;
mod basics;
mod certificates;
mod claims;
mod compare;
pub(super) mod installation;
mod leases;
mod orders;
mod report;
pub(super) mod routes;
pub(super) mod selector;
pub(super) mod sets;
pub(super) mod snapshot;

use std::{io::Write as _, process::ExitCode};

use self::report::{Id, Report, Verdict};
use super::cluster::{self, Cluster, Connection};

/// The flags of `pgset check`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 nothing failed, 1 something failed, 2 it could not be checked. docs/check.md explains each check."
)]
pub struct Arguments {
    /// Before pgset is installed: can it be?
    #[arg(long)]
    before: bool,
    /// Only the sets of this namespace; the canary is shown there too [default: all namespaces, and the namespace default]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A line for each check, with what was found and what to do
    Table,
    /// One JSON object
    Json,
}

/// It could not be checked.
const UNCHECKED: u8 = 2;

/// Runs the command.
pub fn run(arguments: &Arguments) -> ExitCode {
    match report(arguments).and_then(|report| print(&report, arguments.output).map(|()| report)) {
        Ok(report) if report.is_failed() => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => super::failed(error.as_ref(), UNCHECKED),
    }
}

type Error = Box<dyn std::error::Error>;

fn report(arguments: &Arguments) -> Result<Report, Error> {
    let Arguments { before: is_before, namespace, connection, .. } = arguments;
    super::install_crypto_provider()?;
    cluster::block_on(async {
        let cluster = Cluster::connect(connection).await?;
        let basics = snapshot::basics(&cluster).await?;
        let lines = if *is_before {
            basics::before(&basics, &snapshot::before(&cluster).await?)
        } else {
            let after = snapshot::after(&cluster, namespace.as_deref()).await?;
            all_after(&basics, &after)
        };
        Ok(Report { is_before: *is_before, lines })
    })?
}

fn all_after(basics: &snapshot::Basics, after: &snapshot::After) -> Vec<(Id, Verdict)> {
    let mut lines = basics::after(basics);
    lines.extend(installation::checks(after));
    lines.extend(certificates::checks(basics, after));
    lines.extend(sets::checks(after));
    lines.extend(routes::checks(after));
    lines.extend(leases::checks(after));
    lines.extend(orders::checks(basics, after));
    lines.extend(backups::checks(basics, after));
    lines.extend(claims::checks(after));
    lines
}

fn print(report: &Report, output: Output) -> Result<(), Error> {
    let text = match output {
        Output::Table => report.to_table(),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&report.to_json())?),
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
