//! `pgset switchover` and `pgset failover`: a person says who leads next.
//!
//! The [`plan`] is a pure function of what was read before, the [`course`] one of what is seen after; the edge writes the order between
//! the two, and takes it back where nothing came of it.

mod course;
mod edge;
mod loss;
mod plan;

use std::{process::ExitCode, time::Duration};

use k8s_openapi::jiff::Timestamp;

use self::{
    edge::Errand,
    plan::{Kind, Wish},
};
use super::{
    FAILURE,
    cluster::{self, Cluster, Connection},
    set_name::SetName,
};

/// It could not be told, or not be ordered.
const UNTOLD: u8 = 2;

/// The flags of both commands.
#[derive(Debug, clap::Args)]
struct Common {
    /// The set: sts/NAME
    #[arg(value_name = "sts/NAME")]
    set: SetName,
    /// The member that is to lead [default: the best]
    #[arg(long, value_name = "POD", value_parser = pod)]
    to: Option<String>,
    /// The namespace [default: the one of the context]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Wait until all other members follow, too
    #[arg(short, long)]
    wait: bool,
    /// For how long to wait; then the order is taken back
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout: u32,
    #[command(flatten)]
    connection: Connection,
}

/// The flags of `pgset switchover`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The master makes a checkpoint, stops, and names the member that leads from then on: nothing is lost. It hands over to a member only that streams
from it. Where no member leads: pgset failover. docs/failover.md says what may lead when, and which rights this takes.

Exit codes: 0 done, 1 refused, or not done in time, 2 it could not be ordered or told.

Examples:
  pgset switchover sts/postgres -n shop                      to the best replica
  pgset switchover sts/postgres --to postgres-1 --wait       to that one, and wait until all others follow")]
pub struct Switchover {
    #[command(flatten)]
    common: Common,
}

/// The flags of `pgset failover`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Where no member leads, and pgset.dev/failover is manual or members wait, this says who is to. Without --accept-loss the rules of every failover
hold: it leads if nothing is lost by that but what pgset.dev/maximum-lag allows. Where a member leads: pgset switchover.
docs/failover.md says what may lead when, and which rights this takes.

Exit codes: 0 done, 1 refused, or not done in time, 2 it could not be ordered or told.

Examples:
  pgset failover sts/postgres -n shop                          the best replica, if the rules allow it
  pgset failover sts/postgres --to postgres-1                  that one, if the rules allow it
  pgset failover sts/postgres --to postgres-1 --accept-loss    that one, and what it lacks is given up for good")]
pub struct Failover {
    #[command(flatten)]
    common: Common,
    /// Give up what that member lacks, for good; what is known of it is told first
    #[arg(long)]
    accept_loss: bool,
}

type Error = Box<dyn std::error::Error>;

/// Runs `pgset switchover`.
pub fn switch_over(arguments: &Switchover) -> ExitCode {
    run(&arguments.common, Kind::Switchover)
}

/// Runs `pgset failover`.
pub fn fail_over(arguments: &Failover) -> ExitCode {
    run(&arguments.common, Kind::Failover { accepts_loss: arguments.accept_loss })
}

fn run(common: &Common, kind: Kind) -> ExitCode {
    match order(common, kind) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(why)) => super::failed(&why, FAILURE),
        Err(why) => super::failed(why.as_ref(), UNTOLD),
    }
}

fn order(common: &Common, kind: Kind) -> Result<Result<(), edge::Undone>, Error> {
    super::install_crypto_provider()?;
    cluster::block_on(async {
        let cluster = Cluster::connect(&common.connection).await?;
        let namespace = common.namespace.clone().unwrap_or_else(|| cluster.namespace().to_owned());
        let SetName(name) = common.set.clone();
        let limit = Duration::from_secs(common.timeout.into());
        let errand = Errand { cluster: &cluster, namespace, name, limit, is_to_wait: common.wait };
        // The time tells one order from another, and people when it was given.
        let wish = Wish { kind, to: common.to.clone(), token: format!("{:.3}", Timestamp::now()) };
        Ok(errand.run(&wish).await?)
    })?
}

/// A pod's name, with its kind before it or without.
fn pod(text: &str) -> Result<String, &'static str> {
    let name = text.strip_prefix("pod/").unwrap_or(text);
    let is_name = !name.is_empty() && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    is_name.then(|| name.to_owned()).ok_or("a member is named by its pod, like postgres-1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_named_by_its_pod() {
        assert_eq!((pod("db-1").unwrap(), pod("pod/db-1").unwrap()), ("db-1".to_owned(), "db-1".to_owned()));
        for bad in ["", "db 1", "db-1 accept-loss", "../db"] {
            assert!(pod(bad).is_err(), "{bad}");
        }
    }
}
