//! How a former master comes back: its data is rewound to where it left the set's history, and goes on from there as a standby.
//!
//! Everything that can fail is tried before anything is changed (`pg_rewind --dry-run`), so that a rewind that is not possible leaves the
//! database whole. From the first change on the data is no server's, by the name of its directory, until it is whole again; broken off
//! in between, it is cloned anew.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use super::binaries::Binaries;
use super::data::{self, DataDirectory};
use super::processes::Processes;
use super::provisioner::{Error, SINGLE_USER_SETTINGS, reserve_slot, succeeded, write_following};
use super::{nss_wrapper, postmasters, server, settings, sql, synchronous};
use crate::election::lineage::{Branch, Lineage, branches, history_file};
use crate::election::{DataState, Lsn, Master, SystemIdentifier};
use crate::errors::with_causes;
use crate::names;

type Result<T, E = Error> = std::result::Result<T, E>;

/// The checkpoint that ends a recovery would throw away the WAL from which the rewind finds where the two parted.
const KEEPS_WAL: [&str; 2] = ["-c", "wal_keep_size=2147483647"];

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// What a rewind needs to know.
#[derive(Debug)]
pub struct Rewind<'a> {
    /// The image's programs.
    pub binaries: &'a Binaries,
    /// All child processes.
    pub processes: &'a Processes,
    /// The data directory.
    pub data: &'a DataDirectory,
    /// The user's arguments of the server.
    pub arguments: &'a [String],
    /// Whom the data is to follow.
    pub master: &'a Master,
    /// How the master is reached meanwhile, under the name of no replica.
    pub source: String,
    /// How it is reached from then on.
    pub following: String,
    /// This member's slot there.
    pub slot: String,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The data goes on from the master's.
    Rewound(Distance),
    /// It can't be done, and why. The data is as it was.
    Impossible(String),
}

/// How far the data of a former master had gone on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distance {
    /// The timeline that it was on.
    pub timeline: u32,
    /// The master's.
    pub masters: u32,
    /// Up to where they have one history, if that can be told.
    pub common: Option<Branch>,
    /// Where it ended.
    pub end: Option<Lsn>,
}

/// What the master says before anything is done.
#[derive(Debug)]
struct Source {
    history: Vec<Branch>,
    holds_members: bool,
    oldest_wal: Option<Lsn>,
}

// === impl Distance ===

impl Distance {
    /// It had written so many bytes of WAL on its own, if that can be told.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        Some(self.end?.0.saturating_sub(self.common?.left_at.0))
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeline, masters, common, .. } = self;
        match (self.bytes(), common) {
            (Some(0), _) => write!(f, "it had nothing that timeline {masters} lacks"),
            (Some(bytes), Some(common)) => write!(
                f,
                "it had left the set's history, which went on on timeline {masters}, at {} of timeline {}, and had written {bytes} bytes \
                 of WAL of its own on timeline {timeline}",
                common.left_at, common.timeline
            ),
            _ => write!(f, "it was on timeline {timeline}, the set went on on timeline {masters}"),
        }
    }
}

// === impl Rewind ===

impl Rewind<'_> {
    /// Rewinds the data of a stopped former master.
    pub async fn perform(&self) -> Result<Outcome> {
        let source = self.ask().await?;
        reserve_slot(self.binaries, self.processes, &self.source, &self.slot).await?;
        let lineage = self.stopped().await?;
        let common = lineage.common_with(&source.history, self.master.timeline);
        let is_part = common.is_some_and(|common| lineage.ends_within(&common));
        let end = common.filter(|_| is_part).map(|common| common.left_at).or(lineage.stopped_at);
        let distance = Distance { timeline: lineage.timeline, masters: self.master.timeline, common, end };
        if is_part {
            info!(master = %self.master.pod, "this former master's data is a part of the master's history: it follows");
            self.follow(self.data.path())?;
            self.data.mark_standby()?;
            return Ok(Outcome::Rewound(distance));
        }
        if source.holds_members {
            // pg_rewind would copy them, this member's own data too.
            return Ok(Outcome::Impossible(format!(
                "the data directory of {} holds other databases' directories; {distance}",
                self.master.pod
            )));
        }
        if let Some(oldest) = source.oldest_wal.filter(|oldest| common.is_some_and(|common| common.left_at < *oldest)) {
            return Ok(Outcome::Impossible(format!("{} has WAL from {oldest} on only; {distance}", self.master.pod)));
        }
        self.rewind(distance).await
    }

    async fn rewind(&self, distance: Distance) -> Result<Outcome> {
        let lifted = self.data.lift()?;
        if let Err(why) = self.try_out(&lifted).await {
            self.data.put_back()?;
            // Or the master has gone meanwhile.
            self.ask().await?;
            return Ok(Outcome::Impossible(format!("{}; {distance}", with_causes(&why))));
        }
        info!(master = %self.master.pod, "rewinding this former master's data: {distance}");
        let started = std::time::Instant::now();
        let kept = self.data.keep_diverged(&lifted, distance.common);
        let directory = self.data.begin_rewind()?;
        self.pg_rewind(&directory, &[]).await?;
        kept.give_back(&directory)?;
        if let Some(common) = distance.common.filter(|common| !data::has_wal_after(&directory, common)) {
            let why = format!("has thrown away its WAL from {} on meanwhile", common.left_at);
            return Err(Error::NotYet { pod: self.master.pod.clone(), why });
        }
        self.follow(&directory)?;
        self.data.end_rewind()?;
        info!(seconds = started.elapsed().as_secs_f32(), "rewound");
        Ok(Outcome::Rewound(distance))
    }

    /// `pg_rewind` goes by the control file of the master, which says what the last checkpoint was: until there is one on its new timeline
    /// it would find nothing to do.
    async fn ask(&self) -> Result<Source> {
        let mut command = self.binaries.command("psql");
        command.args(["--no-psqlrc", "--no-password", "--quiet", "--tuples-only", "--no-align", "-d"]);
        command.arg(self.in_database()).arg("--command").arg(question(self.master.timeline));
        let output =
            self.processes.output(&mut command).await.map_err(|source| Error::Run { program: "psql", source })?;
        succeeded("psql: a look at the master", &output)?;
        let answer = String::from_utf8_lossy(&output.stdout);
        self.understand(&answer).map_err(|why| Error::NotYet { pod: self.master.pod.clone(), why })
    }

    fn understand(&self, answer: &str) -> Result<Source, String> {
        let (first, history) = answer.split_once('\n').unwrap_or((answer, ""));
        let fields: Vec<&str> = first.split('|').collect();
        let &[timeline, in_recovery, system, holds_members, oldest_wal, segment_size] = fields.as_slice() else {
            return Err(format!("answers {first:?}"));
        };
        let Master { timeline: expected, system: ours, .. } = self.master;
        if in_recovery == "t" {
            return Err("is not a master yet".to_owned());
        }
        if system.parse::<i64>().ok().map(|system| SystemIdentifier(u64::from_ne_bytes(system.to_ne_bytes())))
            != Some(*ours)
        {
            return Err(format!("is of another database, {system}"));
        }
        if timeline.parse() != Ok(*expected) {
            return Err(format!(
                "has not finished the checkpoint after its promotion: its last one is of timeline {timeline}, and it is on {expected}"
            ));
        }
        Ok(Source {
            history: branches(history),
            holds_members: holds_members == "t",
            oldest_wal: sql::start_of_segment(oldest_wal, segment_size),
        })
    }

    fn in_database(&self) -> String {
        format!("{} dbname={}", self.source, sql::DATABASE)
    }

    /// The data of a server that has stopped cleanly; of one that has not, after it has recovered, with the user's own settings.
    async fn stopped(&self) -> Result<Lineage> {
        let lineage = self.look().await?;
        if lineage.stopped_at.is_some() {
            return Ok(lineage);
        }
        postmasters::end_all(self.data.path()).await?;
        self.data.remove_stale_pid_file()?;
        info!("this former master did not stop cleanly: recovering its data before it is rewound");
        let mut command = self.binaries.command("postgres");
        nss_wrapper::lend(&mut command).map_err(|source| Error::Run { program: "postgres --single", source })?;
        command.arg("--single").arg("-D").arg(self.data.path()).args(self.arguments);
        command.args(["-c", &server::data_directory(self.data.path())]);
        command.args(SINGLE_USER_SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        command.args(KEEPS_WAL).arg("template1");
        self.run("postgres --single", &mut command).await?;
        self.look().await
    }

    async fn look(&self) -> Result<Lineage> {
        match self.data.inspect(self.binaries, self.processes).await {
            DataState::Cluster { system, standby: false, lineage } if system == self.master.system => Ok(lineage),
            _ => Err(Error::DataChanged),
        }
    }

    /// Twice: what fails by chance does not fail two times.
    async fn try_out(&self, directory: &Path) -> Result<()> {
        if let Err(why) = self.pg_rewind(directory, &["--dry-run"]).await {
            warn!(error = with_causes(&why), "this former master's data can't be rewound, trying once more");
            sleep(PAUSE).await;
            return self.pg_rewind(directory, &["--dry-run"]).await;
        }
        Ok(())
    }

    async fn pg_rewind(&self, directory: &Path, more: &[&str]) -> Result<()> {
        let mut command = self.binaries.command("pg_rewind");
        nss_wrapper::lend(&mut command).map_err(|source| Error::Run { program: "pg_rewind", source })?;
        command.env("LC_ALL", "C").args(more).arg("-D").arg(directory);
        command.arg(format!("--source-server={}", self.in_database()));
        if self.has_archive(directory).await {
            command.arg("--restore-target-wal");
        }
        self.run("pg_rewind", &mut command).await
    }

    /// As `pg_rewind` itself asks for it.
    async fn has_archive(&self, directory: &Path) -> bool {
        let mut command = self.binaries.command("postgres");
        command.arg("-D").arg(directory).args(["-C", "restore_command"]);
        let output = self.processes.output(&mut command).await;
        output.is_ok_and(|output| output.status.success() && !output.stdout.trim_ascii().is_empty())
    }

    /// What came from the master's own settings: whom it followed, and who confirms its commits.
    fn follow(&self, directory: &Path) -> Result<()> {
        let path = directory.join(settings::AUTO_FILE);
        let text = fs::read_to_string(&path).unwrap_or_default();
        settings::write(&path, &settings::without_setting(&text, synchronous::SETTING))
            .map_err(|source| Error::Write { path, source })?;
        write_following(directory, &self.following, &self.slot)
    }

    async fn run(&self, program: &'static str, command: &mut tokio::process::Command) -> Result<()> {
        let output = self.processes.output(command).await.map_err(|source| Error::Run { program, source })?;
        succeeded(program, &output)
    }
}

/// A row with what is asked, and below it the history of the master's timeline. The first one has none.
fn question(timeline: u32) -> String {
    format!(
        "SELECT timeline_id, pg_is_in_recovery(), system_identifier, \
                EXISTS (SELECT FROM pg_ls_dir('.', true, false) AS name WHERE starts_with(name, '{}')), \
                (SELECT '00000000' || min(substr(name, 9) COLLATE \"C\") FROM pg_ls_dir('pg_wal', true, false) AS name \
                 WHERE name ~ '^[0-9A-F]{{24}}$'), \
                (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size') \
         FROM pg_control_checkpoint(), pg_control_system(); \
         SELECT encode(pg_read_binary_file('pg_wal/{}', 0, 1048576, true), 'escape')",
        names::pod::MEMBERS_DIRECTORY,
        history_file(timeline)
    )
}

#[cfg(test)]
#[path = "rewind_tests.rs"]
mod tests;
