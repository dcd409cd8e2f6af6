//! `pgset backup`: what backups a set has, one more now or one less, and whether the newest can be restored.

mod job;
mod verify;

use std::{
    fmt::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use k8s_openapi::{api::coordination::v1::Lease as LeaseObject, jiff::Timestamp};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use super::{
    FAILURE,
    cluster::{self, Cluster, Connection, Unread, text},
    set_name::SetName,
    status::told::{ago, bytes, plain, seconds},
};
use crate::{
    backup::{
        due,
        keep::{Kept, Standing, may_go},
        summary::{self, Summary, Told},
    },
    names::{self, annotation},
};

/// It could not be told, or not be ordered.
const UNTOLD: u8 = 2;
/// How often it is looked whether a backup is complete.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The flags of `pgset backup`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What is told is what the set's master writes on its Lease; docs/backup.md explains it, and how a set is restored.

Exit codes: 0 done, 1 no backups are asked for, none was made in time, or it can't be restored, 2 it could not be told or ordered.

Examples:
  pgset backup list sts/postgres -n shop    the newest backups, and how the archive is
  pgset backup now sts/postgres --wait      one more, and wait until it is complete
  pgset backup delete sts/postgres 20261130T030000Z-postgres-1
  pgset backup verify sts/postgres --wait   restore the newest in a Job, and say up to when it goes
  pgset backup verify sts/postgres --schedule '0 5 * * 0' --query 'select count(*) from orders'")]
pub struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Say which backups there are, and how the archive is
    List(List),
    /// Make a base backup now
    Now(Now),
    /// Let a base backup go before its time
    Delete(Delete),
    /// Restore the newest backup in a pod of its own, and say whether it is one
    Verify(verify::Verify),
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The set: sts/NAME
    #[arg(value_name = "sts/NAME")]
    set: SetName,
    /// The namespace [default: the one of the context]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    which: Which,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct Now {
    #[command(flatten)]
    which: Which,
    /// Wait until it is complete
    #[arg(short, long)]
    wait: bool,
    /// For how long to wait; the backup goes on after that
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,
}

#[derive(Debug, clap::Args)]
struct Delete {
    #[command(flatten)]
    which: Which,
    /// The base backup, as `pgset backup list` tells it
    #[arg(value_name = "BACKUP")]
    id: String,
    /// For how long to wait until it is gone; the order stands after that
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout: u32,
}

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A row for each backup
    Table,
    /// One JSON object
    Json,
}

type Error = Box<dyn std::error::Error>;

/// A set, and the way to it.
pub(super) struct Place {
    cluster: Cluster,
    namespace: String,
    name: String,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> ExitCode {
    let outcome = super::install_crypto_provider().map_err(Error::from).and_then(|()| {
        cluster::block_on(async {
            match &arguments.task {
                Task::List(list) => list.tell().await,
                Task::Now(now) => now.order().await,
                Task::Delete(delete) => delete.order().await,
                Task::Verify(verify) => verify.order().await,
            }
        })?
    });
    ended(outcome)
}

/// Done, or why not; or why it could not be told.
pub(super) type Outcome = Result<Result<(), String>, Error>;

/// Tells why it was not done, and how the program ends.
pub(super) fn ended(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(why)) => {
            eprintln!("pgset: {why}");
            ExitCode::from(FAILURE)
        }
        Err(why) => super::failed(why.as_ref(), UNTOLD),
    }
}

// === impl Place ===

impl Place {
    pub(super) async fn of(which: &Which) -> Result<Self, Error> {
        let cluster = Cluster::connect(&which.connection).await?;
        let namespace = which.namespace.clone().unwrap_or_else(|| cluster.namespace().to_owned());
        let SetName(name) = which.set.clone();
        Ok(Self { cluster, namespace, name })
    }

    pub(super) fn path(&self) -> String {
        format!("/apis/apps/v1/namespaces/{}/statefulsets/{}", self.namespace, self.name)
    }

    /// The set, if it has backups.
    pub(super) async fn set(&self) -> Result<Result<Value, String>, Error> {
        let title = format!("StatefulSet {}/{}", self.namespace, self.name);
        match self.cluster.get(&self.path()).await {
            Ok(object) if text(&object, &pointer(annotation::BACKUP)).is_empty() => Ok(Err(format!(
                "{title}: no backups are asked for; write {}: s3://BUCKET/PREFIX on it (docs/backup.md)",
                annotation::BACKUP
            ))),
            Ok(object) => Ok(Ok(object)),
            Err(Unread::Absent) => Err(format!("there is no {title}; name its namespace by -n").into()),
            Err(why) => {
                Err(format!("failed to read {title}, which takes the right to get statefulsets.apps: {why}").into())
            }
        }
    }

    /// Gives the set's members an order, and takes another one back.
    pub(super) async fn order(&self, key: &str, value: &str, taken_back: Option<&str>) -> Result<(), Error> {
        let mut values = Map::from_iter([(key.to_owned(), json!(value))]);
        values.extend(taken_back.map(|key| (key.to_owned(), Value::Null)));
        let written = self.cluster.merge(&self.path(), &json!({"metadata": {"annotations": values}})).await;
        written
            .map_err(|why| format!("failed to write {key}, which takes the right to patch statefulsets.apps: {why}"))?;
        println!("ordered: {key} {value:?}");
        Ok(())
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// As the command line names it.
    pub(super) fn arguments(&self) -> String {
        format!("sts/{} -n {}", self.name, self.namespace)
    }

    /// What keeps an order from being followed, as far as the master tells.
    async fn trouble(&self) -> Result<String, Error> {
        let trouble = self.summary().await?.and_then(|summary| summary.trouble);
        Ok(trouble.unwrap_or_else(|| "the log of the members says more".to_owned()))
    }

    async fn summary(&self) -> Result<Option<Summary>, Error> {
        Ok(self.lease().await?.as_ref().and_then(summary::read))
    }

    pub(super) async fn lease(&self) -> Result<Option<LeaseObject>, Error> {
        let lease = names::leader(&self.name);
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases/{lease}", self.namespace);
        match self.cluster.get(&path).await {
            Ok(found) => Ok(Some(serde_json::from_value(found)?)),
            Err(Unread::Absent) => Ok(None),
            Err(why) => {
                Err(format!("failed to read the Lease {lease}, which takes the right to get leases: {why}").into())
            }
        }
    }
}

pub(super) fn pointer(key: &str) -> String {
    format!("/metadata/annotations/{}", key.replace('/', "~1"))
}

// === impl List ===

impl List {
    async fn tell(&self) -> Result<Result<(), String>, Error> {
        let place = Place::of(&self.which).await?;
        if let Err(why) = place.set().await? {
            return Ok(Err(why));
        }
        let Some(summary) = place.summary().await? else {
            return Ok(Err(format!("{}: its master has not told anything of its backups yet", place.name)));
        };
        match self.output {
            Output::Table => print!("{}", in_words(&summary, Timestamp::now())),
            Output::Json => println!("{}", serde_json::to_string_pretty(&summary)?),
        }
        Ok(Ok(()))
    }
}

// === impl Now ===

impl Now {
    async fn order(&self) -> Result<Result<(), String>, Error> {
        let place = Place::of(&self.which).await?;
        if let Err(why) = place.set().await? {
            return Ok(Err(why));
        }
        // The time tells one order from another, and people when it was given.
        let order = format!("{:.3}", Timestamp::now());
        place.order(annotation::BACKUP_NOW, &order, None).await?;
        if !self.wait {
            return Ok(Ok(()));
        }
        let since = Instant::now();
        let asked_at: Timestamp = order.parse()?;
        let mut told_trouble = None;
        while since.elapsed() < Duration::from_secs(self.timeout.into()) {
            let summary = place.summary().await?.unwrap_or_default();
            if let Some(made) = summary.backups.iter().rev().find(|backup| backup.ended >= asked_at) {
                println!(
                    "{} is complete: {} of {}, in {} s",
                    made.id,
                    bytes(made.stored),
                    bytes(made.size),
                    made.seconds
                );
                return Ok(Ok(()));
            }
            // Whoever waits hears at once what it waits for.
            if let Some(trouble) = summary.trouble.filter(|_| told_trouble != Some(summary.trouble_since)) {
                eprintln!("pgset: not yet, and tried again: {}", plain(&trouble));
                told_trouble = Some(summary.trouble_since);
            }
            sleep(LOOK_EVERY).await;
        }
        let why = place.trouble().await?;
        Ok(Err(format!("no backup was complete within {} s, and it goes on: {why}", self.timeout)))
    }
}

// === impl Delete ===

impl Delete {
    async fn order(&self) -> Result<Result<(), String>, Error> {
        let place = Place::of(&self.which).await?;
        let set = match place.set().await? {
            Ok(set) => set,
            Err(why) => return Ok(Err(why)),
        };
        let summary = place.summary().await?.unwrap_or_default();
        // What the store has of its WAL only its members see, who refuse by themselves.
        let all = summary.backups.iter().map(|it| Standing { id: &it.id, parent: it.parent.as_deref(), has_wal: true });
        let has_more = summary.count > summary.backups.len();
        match may_go(all, &self.id) {
            Ok(()) => {}
            // Only the newest are told.
            Err(Kept::Absent(_)) if has_more => {}
            Err(why) => return Ok(Err(why.to_string())),
        }
        // The order by which it was made is taken back, or it would be made again.
        let order = text(&set, &pointer(annotation::BACKUP_NOW));
        let is_of_order = |backup: &&Told| backup.id == self.id && backup.due == due::by_order(order);
        let made_by = summary.backups.iter().find(is_of_order).map(|_| annotation::BACKUP_NOW);
        place.order(annotation::BACKUP_DELETE, &self.id, made_by).await?;
        let is_there = |summary: &Summary| summary.backups.iter().any(|backup| backup.id == self.id);
        if !is_there(&summary) {
            println!(
                "{} is not among the newest, which are told: the log of the set's master says what becomes of it",
                self.id
            );
            return Ok(Ok(()));
        }
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(self.timeout.into()) {
            // One that has just begun has not looked yet.
            if place.summary().await?.is_some_and(|summary| summary.count > 0 && !is_there(&summary)) {
                println!("{} is deleted", self.id);
                return Ok(Ok(()));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(Err(format!("{} is still there after {} s: {}", self.id, self.timeout, place.trouble().await?)))
    }
}

/// For people.
fn in_words(summary: &Summary, now: Timestamp) -> String {
    let ago = |then: Timestamp| ago(then, now);
    let untold = summary.count.saturating_sub(summary.backups.len());
    let untold = if untold == 0 { String::new() } else { format!(", of which the {untold} older ones are not listed") };
    let mut text = format!("{}: {} base backups{untold}\n", plain(&summary.location), summary.count);
    let rows: Vec<[String; 7]> =
        std::iter::once(["BACKUP", "KIND", "COMPLETE", "TOOK", "TIMELINE", "READ", "STORED"].map(str::to_owned))
            .chain(summary.backups.iter().map(|backup| {
                [
                    plain(&backup.id),
                    if backup.parent.is_some() { "changes" } else { "full" }.to_owned(),
                    format!("{} ago", ago(backup.ended)),
                    seconds(Duration::from_secs(backup.seconds)),
                    backup.timeline.to_string(),
                    bytes(backup.size),
                    bytes(backup.stored),
                ]
            }))
            .collect();
    let width = |column: usize| rows.iter().map(|row| row.get(column).map_or(0, String::len)).max().unwrap_or(0);
    if summary.count > 0 {
        text.push('\n');
        for row in &rows {
            let cells: Vec<String> =
                row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column))).collect();
            // Writing to a string can't fail.
            let _ = writeln!(text, "{}", cells.join("  ").trim_end());
        }
        text.push('\n');
    }
    let archived = match (&summary.archived, summary.archived_at) {
        (Some(file), Some(at)) => format!("up to {}, {} ago", plain(file), ago(at)),
        _ => "nothing was archived since the master's archiver began".to_owned(),
    };
    let _ = writeln!(text, "  archived  {archived}");
    let _ = writeln!(text, "  waiting   {} files of the WAL", summary.waiting);
    let verified =
        summary.verified.as_ref().map(|found| format!("{} ago: {}", ago(found.started), plain(&found.in_words())));
    let _ =
        writeln!(text, "  verified  {}", verified.as_deref().unwrap_or("never: pgset backup verify tries a restore"));
    if let Some(trouble) = &summary.trouble {
        let since = summary.trouble_since.map(|since| format!("for {}: ", ago(since))).unwrap_or_default();
        let _ = writeln!(text, "  trouble   {since}{}", plain(trouble));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_and_what_goes_wrong_are_told_in_words() {
        let now: Timestamp = "2026-11-30T15:00:00Z".parse().unwrap();
        let told = |id: &str| Told {
            id: id.into(),
            ended: "2026-11-30T03:00:41Z".parse().unwrap(),
            seconds: 41,
            timeline: 2,
            size: 1 << 30,
            stored: 200 << 20,
            due: String::new(),
            parent: None,
        };
        let summary = Summary {
            location: "s3://bucket/db".into(),
            archived: Some("000000020000000000000007".into()),
            archived_at: "2026-11-30T14:59:30Z".parse().ok(),
            waiting: 3,
            trouble: Some("no route\nto host".into()),
            trouble_since: "2026-11-30T14:59:00Z".parse().ok(),
            count: 1,
            backups: vec![told("20261130T030000Z-db-1")],
            verified: None,
        };
        let text = in_words(&summary, now);
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines[2], "BACKUP                 KIND  COMPLETE    TOOK  TIMELINE  READ    STORED");
        assert_eq!(lines[3], "20261130T030000Z-db-1  full  11h59m ago  41 s  2         1.0 GB  200 MB", "{text}");
        assert!(
            lines.last().is_some_and(|line| line.contains("trouble") && line.ends_with(": no route to host")),
            "{text}"
        );
    }
}
