//! A database is made of another set's backups: a base backup is brought, and PostgreSQL repeats what followed, up to the moment that was asked for.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nix::sys::signal::Signal;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::binaries::Binaries;
use super::configuration::run_directory;
use super::data::Origin;
use super::events::{Reason, Teller};
use super::kubernetes::Wishes;
use super::processes::Processes;
use super::provisioner::{self, Provisioner};
use super::status::StatusHandle;
use super::{server, settings};
use crate::errors::with_causes;
use crate::names;
use crate::set::backup::{Location, Restore, Target};

/// How often it is looked whether PostgreSQL has come to the moment.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// When a restore that failed is tried again, at first and at last.
const TRY_AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];
/// What the base backup's own set left in its settings, and what recovery needed.
const FORGOTTEN: [&str; 11] = [
    "primary_conninfo",
    "primary_slot_name",
    "synchronous_standby_names",
    "archive_timeout",
    "summarize_wal",
    RESTORE_COMMAND,
    "recovery_target_timeline",
    "recovery_target_action",
    "recovery_target_time",
    "recovery_target_lsn",
    "recovery_target_name",
];
/// What begins the names of what an agent keeps beside or in a data directory.
const AGENTS_OWN: &str = ".pgset-";
/// So many lines of PostgreSQL's log are looked through for why it ended.
const LAST_LINES: usize = 20;

/// Why no database was restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base backup.
    #[error("{0}")]
    Base(String),
    /// The base backup, which may be there later.
    #[error("{0}")]
    NotNow(String),
    /// PostgreSQL.
    #[error("PostgreSQL did not come to {target}: {reason}")]
    Recovery {
        /// The moment.
        target: String,
        /// Its last words.
        reason: String,
    },
    /// A file.
    #[error("failed to write {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A program.
    #[error("failed to run {program}")]
    Run {
        /// Which one.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// What the archiver says of a base backup that it has brought.
#[derive(Deserialize)]
pub(super) struct Restored {
    /// Which one it is.
    pub(super) id: String,
    /// How PostgreSQL goes on from it.
    pub(super) settings: Vec<(String, String)>,
}

/// What a recovery runs.
#[derive(Clone, Copy)]
pub(super) struct Programs<'a> {
    /// The image's programs.
    pub(super) binaries: &'a Binaries,
    /// All child processes.
    pub(super) processes: &'a Processes,
    /// What the user asked of the server.
    pub(super) arguments: &'a [String],
}

/// How the archiver's process ends where there is nothing to restore yet, or the store does not answer (`EX_TEMPFAIL`).
pub const NOT_NOW: u8 = 75;
/// How PostgreSQL's `restore_command` ends where the store does not answer. Above 128 recovery ends as well, where it would take less for the end of the
/// history.
pub const AWAY: u8 = 201;

/// How PostgreSQL fetches a file of the WAL, without where from.
const FETCH: &str = "/pgset/pgset archiver fetch";
const RESTORE_COMMAND: &str = "restore_command";

// === impl Provisioner ===

impl Provisioner {
    /// Tells a replica where it finds WAL that its master has no more, or takes that back.
    pub fn write_store(&self, store: Option<&Location>) -> Result<(), provisioner::Error> {
        let path = self.data.path().join(settings::AUTO_FILE);
        let old = fs::read_to_string(&path).unwrap_or_default();
        let new = match store {
            Some(store) => {
                settings::with_settings(&old, &[(RESTORE_COMMAND, &format!("{FETCH} --standby --from {store} %f %p"))])
            }
            None => without_store(&old),
        };
        settings::write(&path, &new).map(drop).map_err(|source| provisioner::Error::Write { path, source })
    }

    /// Makes the set's database of another set's backups. What stands in the way is told, and tried again until the set says otherwise: what is in a
    /// store, and who may read it, is put right elsewhere.
    pub async fn restore(
        self,
        mut wishes: watch::Receiver<Option<Wishes>>,
        teller: Teller,
        status_handle: StatusHandle,
    ) -> Result<(), provisioner::Error> {
        let mut pause = TRY_AGAIN_AFTER[0];
        loop {
            let wanted = wishes.borrow_and_update().as_ref().and_then(|wishes| wishes.restore.clone());
            let Some(restore) = wanted else { return self.bootstrap().await };
            let Err(why) = self.restore_once(&restore).await else { return Ok(()) };
            let why = with_causes(&why);
            warn!(error = why, "the database was not restored, trying again");
            teller.tell(Reason::RestoreFailed, &why);
            status_handle
                .update(|status| status.message = format!("the database was not restored, trying again: {why}"));
            tokio::select! {
                () = sleep(pause) => pause = TRY_AGAIN_AFTER[1].min(pause * 2),
                _ = wishes.changed() => pause = TRY_AGAIN_AFTER[0],
            }
        }
    }

    /// It appears in its place only when it is complete, on a timeline of its own.
    async fn restore_once(&self, restore: &Restore) -> Result<(), provisioner::Error> {
        let staging = self.data.new_staging()?;
        let programs = Programs {
            binaries: &self.binaries,
            processes: &self.processes,
            arguments: &self.configuration.server.others,
        };
        let restored = bring_base(programs, restore, &staging).await?;
        follow(programs, restore, &restored, &staging).await?;
        self.make_agent_role(&staging).await?;
        self.data.install(Origin::Bootstrap)?;
        info!("the restored database is complete");
        Ok(())
    }
}

/// Brings the WAL to a base backup: what is there afterwards is whole, was stopped cleanly, and is on a timeline of its own. Answers when the
/// last transaction was committed that it has.
pub(super) async fn follow(
    programs: Programs<'_>,
    restore: &Restore,
    restored: &Restored,
    directory: &Path,
) -> Result<Option<Timestamp>> {
    info!(backup = restored.id, target = %restore.target, "the base backup is here: PostgreSQL repeats what followed");
    prepare(restore, &restored.settings, directory)?;
    let last = recover(programs, &restore.target, directory, &[]).await?;
    forget(directory)?;
    Ok(last)
}

/// Writes the base backup that leads to a moment into an empty directory.
pub(super) async fn bring_base(programs: Programs<'_>, restore: &Restore, directory: &Path) -> Result<Restored> {
    bring(programs, restore, directory, &[]).await
}

/// The same, as the archiver is told besides.
pub(super) async fn bring(
    programs: Programs<'_>,
    restore: &Restore,
    directory: &Path,
    more: &[&OsStr],
) -> Result<Restored> {
    let mut command = Command::new(names::pod::AGENT_PATH);
    command.args(["archiver", "restore", "--from"]).arg(restore.from.to_string());
    command.arg("--to").arg(restore.target.to_string()).arg("--postgres").arg(programs.binaries.path("postgres"));
    command.args(more).arg(directory);
    let run = |source| Error::Run { program: "pgset archiver", source };
    let output = programs.processes.output(&mut command).await.map_err(run)?;
    let words = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let reason = words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
        let reason = reason.trim_start_matches("pgset: ").to_owned();
        let is_not_now = output.status.code() == Some(NOT_NOW.into());
        return Err(if is_not_now { Error::NotNow(reason) } else { Error::Base(reason) });
    }
    serde_json::from_slice(&output.stdout).map_err(|error| Error::Base(error.to_string()))
}

/// Lets PostgreSQL recover in a directory from its next start on.
pub(super) fn prepare(restore: &Restore, target: &[(String, String)], directory: &Path) -> Result<()> {
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    };
    let entries = fs::read_dir(directory).map_err(write(directory))?;
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(AGENTS_OWN)) {
        let path = entry.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(write(&path))?;
    }
    for name in ["standby.signal", "postmaster.pid", "postmaster.opts"] {
        let _ = fs::remove_file(directory.join(name));
    }
    let fetch = format!("{FETCH} --from {} %f %p", restore.from);
    let path = directory.join(settings::AUTO_FILE);
    let text = without_forgotten(&path);
    let target = target.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let all: Vec<(&str, &str)> = target.chain([("restore_command", fetch.as_str())]).collect();
    settings::write(&path, &settings::with_settings(&text, &all)).map_err(write(&path))?;
    let signal = directory.join("recovery.signal");
    fs::File::create(&signal).map(drop).map_err(write(&signal))
}

/// The settings without the word by which a replica takes WAL from the store: whoever starts, or follows another master, asks that one first. A
/// command of the user's own stays.
pub(super) fn without_store(settings: &str) -> String {
    match settings::setting(settings, RESTORE_COMMAND) {
        Some(command) if command.starts_with(FETCH) => settings::without_setting(settings, RESTORE_COMMAND),
        _ => settings.to_owned(),
    }
}

/// What a file of settings says besides.
fn without_forgotten(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    FORGOTTEN.iter().fold(text, |text, name| settings::without_setting(&text, name))
}

/// Takes those out again.
pub(super) fn forget(directory: &Path) -> Result<()> {
    let path = directory.join(settings::AUTO_FILE);
    settings::write(&path, &without_forgotten(&path)).map(drop).map_err(|source| Error::Write { path, source })
}

/// A server that nobody can connect to but by a socket of the run directory, and that archives nothing and waits for no replica.
pub(super) fn private_server(programs: Programs<'_>, directory: &Path) -> Result<(Command, PathBuf)> {
    let socket = run_directory().join("recovery");
    // Nobody but whoever may read the data directory as well.
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(&socket).map_err(|source| Error::Write { path: socket.clone(), source })?;
    let mut command = programs.binaries.command("postgres");
    command.arg("-D").arg(directory).args(programs.arguments);
    command.args(["-c", &server::data_directory(directory), "-c", "listen_addresses=", "-c", "archive_mode=off"]);
    command.args(["-c", "synchronous_standby_names=", "-c", "logging_collector=off"]);
    // Its words are read.
    command.args(["-c", "log_destination=stderr", "-c", "lc_messages=C", "-c", "timezone=UTC"]);
    command.arg("-c").arg(format!("unix_socket_directories={}", socket.display()));
    command.stdin(Stdio::null());
    Ok((command, socket))
}

/// Lets PostgreSQL recover where nobody can connect to it, up to its promotion, and stops it. Answers when the last transaction was committed
/// that it repeated.
pub(super) async fn recover(
    programs: Programs<'_>,
    target: &Target,
    directory: &Path,
    more: &[&str],
) -> Result<Option<Timestamp>> {
    let run = |source| Error::Run { program: "postgres", source };
    let (mut command, _) = private_server(programs, directory)?;
    // Nobody reads meanwhile, and the settings may be smaller than those of the set that the backup is of.
    command.args(["-c", "hot_standby=off"]).args(more.iter().flat_map(|setting| ["-c", setting]));
    command.stderr(Stdio::piped());
    let mut server = programs.processes.start(&mut command).map_err(run)?;
    let mut last_commit = None;
    let mut lines = server.take_errors().map(|errors| BufReader::new(errors).lines());
    let mut last = LastLines::default();
    let pid_file = directory.join("postmaster.pid");
    let mut is_stopping = false;
    loop {
        tokio::select! {
            line = next_line(&mut lines) => {
                eprintln!("{line}");
                last_commit = last_transaction(&line).or(last_commit);
                last.push(line);
            }
            ended = server.wait() => {
                let status = ended.map_err(run)?;
                if status.success() && is_stopping {
                    return Ok(last_commit);
                }
                let (reason, is_away) = last.words();
                let why = Error::Recovery {
                    target: target.to_string(),
                    reason: reason.unwrap_or_else(|| status.to_string()),
                };
                return Err(if is_away { Error::NotNow(why.to_string()) } else { why });
            }
            () = sleep(LOOK_EVERY), if !is_stopping => {
                if server::is_ready(&pid_file) && !directory.join("recovery.signal").exists() {
                    is_stopping = true;
                    server.signal(Signal::SIGINT);
                }
            }
        }
    }
}

/// What a server said last.
#[derive(Default)]
pub(super) struct LastLines(VecDeque<String>);

impl LastLines {
    pub(super) fn push(&mut self, line: String) {
        self.0.push_back(line);
        if self.0.len() > LAST_LINES {
            self.0.pop_front();
        }
    }

    /// Why it ended, and whether only because the store did not answer. What it says itself is how `restore_command` ended, and not why.
    pub(super) fn words(&self) -> (Option<String>, bool) {
        let Self(lines) = self;
        let fatal = lines.iter().rfind(|line| line.contains("FATAL:")).or(lines.back());
        let cause = lines.iter().rev().find_map(|line| line.strip_prefix("pgset: "));
        let is_away = fatal.is_some_and(|line| line.ends_with(&format!("exit code {AWAY}")));
        let words = fatal.map(|fatal| cause.map_or_else(|| fatal.clone(), |cause| format!("{fatal}: {cause}")));
        (words, is_away)
    }
}

/// When the last transaction was committed that recovery has repeated, as PostgreSQL says at its end (`FinishWalRecovery`, `PerformWalRecovery`).
fn last_transaction(line: &str) -> Option<Timestamp> {
    let (_, time) = line.split_once("last completed transaction was at log time ")?;
    time.trim().parse().ok()
}

pub(super) async fn next_line(lines: &mut Option<tokio::io::Lines<BufReader<tokio::process::ChildStderr>>>) -> String {
    if let Some(known) = lines
        && let Ok(Some(line)) = known.next_line().await
    {
        return line;
    }
    *lines = None;
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_commit_is_read_from_postgresqls_words() {
        let line = "2026-11-30 18:47:00 UTC [32] LOG:  last completed transaction was at log time 2026-11-30 18:46:59.123456+00";
        assert_eq!(last_transaction(line), "2026-11-30T18:46:59.123456Z".parse().ok());
        assert_eq!(last_transaction("LOG:  redo done at 0/3000028"), None);
    }

    #[test]
    fn a_recovery_that_the_store_broke_off_says_why_and_is_no_word_about_the_backup() {
        let ended = |lines: &[&str]| LastLines(lines.iter().map(|line| (*line).to_owned()).collect()).words();
        let away =
            "FATAL:  could not restore file \"00000002.history\" from archive: child process exited with exit code 201";
        let damaged = away.replace("201", "200");
        assert_eq!(ended(&["pgset: no route", away, "LOG:  shut down"]), (Some(format!("{away}: no route")), true));
        assert_eq!(ended(&["pgset: bad", &damaged]), (Some(format!("{damaged}: bad")), false));
        assert_eq!(ended(&["LOG:  x"]), (Some("LOG:  x".into()), false));
        assert_eq!(ended(&[]), (None, false));
    }

    #[test]
    fn what_the_backups_own_set_left_is_taken_out_and_recovery_is_put_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(settings::AUTO_FILE);
        fs::write(&path, "work_mem = '8MB'\nprimary_conninfo = 'host=db-0'\nsynchronous_standby_names = 'ANY 1 (x)'\n")
            .unwrap();
        for name in ["standby.signal", "postmaster.pid", ".pgset-leadership"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let restore = Restore { from: Location::parse("s3://bucket/db").unwrap(), target: Target::Latest };
        let target = [("recovery_target_timeline".to_owned(), "latest".to_owned())];
        prepare(&restore, &target, directory.path()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "work_mem = '8MB'\nrecovery_target_timeline = 'latest'\n\
             restore_command = '/pgset/pgset archiver fetch --from s3://bucket/db %f %p'\n"
        );
        let mut left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["postgresql.auto.conf", "recovery.signal"]);
        forget(directory.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "work_mem = '8MB'\n");
    }
}
