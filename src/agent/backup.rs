//! Keeps the archiver at work: tells it what this member is, starts it where backups are wanted, and tells people what it says.

use std::fs;
use std::future::pending;
use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::binaries::Binaries;
use super::configuration::{Configuration, run_directory};
use super::events::{Reason, Teller};
use super::kubernetes::Wishes;
use super::leadership::LeaseSnapshot;
use super::member::Parts;
use super::notes::{Notes, Wanted};
use super::processes::{Process, Processes};
use super::provisioner::{self, Provisioner};
use super::status::StatusHandle;
use super::{settings, sql};
use crate::archiver::assignment;
use crate::backup::assignment::{Assignment, Role};
use crate::backup::parent::INCREMENTAL_SINCE;
use crate::backup::report::Report;
use crate::backup::summary::gap_in_words;
use crate::election::{Lease, Master, SystemIdentifier};
use crate::errors::with_causes;
use crate::names;
use crate::set::backup::Backup;

/// How often it looks whether something has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// An archiver that ends is started again, but not at once.
const START_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// What goes wrong with the WAL is worth an Event when it has lasted so long, and again after so long.
const TROUBLE_LASTS: Duration = Duration::from_secs(60);
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// What PostgreSQL's archive is called as, by its `archive_command`. A set without backups is not to wait for a program to start, least of all at
/// the end of a server, for which whoever leads next waits.
pub const ARCHIVE_COMMAND: &str = "test -e /pgset/run/no-backups || exec /pgset/pgset archiver push %p";

/// The keeper of the archiver.
pub struct Keeper {
    provisioner: Provisioner,
    wishes: watch::Receiver<Option<Wishes>>,
    status_handle: StatusHandle,
    lease: watch::Receiver<LeaseSnapshot>,
    teller: Teller,
    notes: Notes,
    noted: Option<Wanted>,
    told: Option<Assignment>,
    process: Option<Process>,
    start_at: Instant,
    told_trouble_at: Option<Instant>,
    told_backup: Option<String>,
}

/// What PostgreSQL is told for the sake of backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveSettings {
    /// After so long what was written is archived.
    pub timeout: Duration,
    /// It notes which blocks change, for backups that hold no others.
    pub summaries: bool,
}

// === impl ArchiveSettings ===

impl ArchiveSettings {
    /// What a set's backups need.
    #[must_use]
    pub fn of(backup: &Backup) -> Self {
        Self { timeout: backup.archive_timeout, summaries: !backup.full_every.is_zero() }
    }
}

// === impl Keeper ===

impl Keeper {
    /// Of a member, beside it.
    #[must_use]
    pub fn of(parts: &Parts) -> Self {
        Self {
            provisioner: parts.provisioner.clone(),
            wishes: parts.set.clone(),
            status_handle: parts.status_handle.clone(),
            lease: parts.leadership.watch(),
            teller: parts.teller.clone(),
            noted: parts.notes.backup(),
            notes: parts.notes.clone(),
            told: None,
            process: None,
            start_at: Instant::now(),
            told_trouble_at: None,
            told_backup: None,
        }
    }

    /// Goes on for as long as the member lives.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                changed = self.wishes.changed() => if changed.is_err() { pending::<()>().await },
                ended = ended(&mut self.process) => {
                    warn!(status = ended, "the archiver ended, and is started again");
                    self.process = None;
                    self.start_at = Instant::now() + START_AGAIN_AFTER;
                }
            }
            self.assign().await;
            self.keep_process();
            self.tell_people();
        }
    }

    /// What is wanted, by the set or by what this member knew of it last; absent if neither is known.
    async fn wanted(&mut self) -> Option<Wanted> {
        let known = self.wishes.borrow().as_ref().map(|wishes| Wanted { backup: wishes.backup.clone() });
        if let Some(wanted) = &known
            && self.noted.as_ref() != Some(wanted)
        {
            let (notes, new) = (self.notes.clone(), wanted.clone());
            match spawn_blocking(move || notes.write_backup(&new)).await {
                Ok(Ok(())) => self.noted.clone_from(&known),
                Ok(Err(why)) => warn!(error = with_causes(&why), "failed to note what is wanted of backups"),
                Err(why) => warn!(%why, "failed to note what is wanted of backups"),
            }
        }
        known.or_else(|| self.noted.clone())
    }

    async fn assign(&mut self) {
        let Some(Wanted { backup }) = self.wanted().await else { return };
        // Whoever says too early that no backup is wanted lets go what an earlier server has left to be archived.
        let Some(archives) = self.status_handle.current().archives else { return };
        let assignment = self.assignment(backup, archives);
        if self.told.as_ref() == Some(&assignment) {
            return;
        }
        match assignment::write(&run_directory(), &assignment) {
            Ok(()) => self.told = Some(assignment),
            Err(error) => warn!(%error, "failed to tell the archiver what to do"),
        }
    }

    fn assignment(&self, backup: Option<Backup>, archives: bool) -> Assignment {
        let Self { provisioner, wishes, status_handle, .. } = self;
        let status = status_handle.current();
        let configuration = &provisioner.configuration;
        let role = match status.role {
            "master" if status.ready => Role::Master,
            "replica" if status.ready => Role::Replica,
            _ => Role::None,
        };
        let backup = backup.filter(|_| archives);
        // The passwords are looked at, and a file is written with one: not where nobody asks for it.
        let (connection, master_connection) = match &backup {
            Some(_) => (provisioner.own_backup_connection().unwrap_or_default(), self.master_connection()),
            None => (String::new(), None),
        };
        Assignment {
            namespace: configuration.namespace.clone(),
            set: configuration.set.clone(),
            pod: configuration.me.pod.clone(),
            backup,
            role,
            system: status.system_identifier.as_ref().and_then(|text| text.parse().ok()).map(SystemIdentifier),
            members: wishes.borrow().as_ref().map_or(1, |wishes| wishes.members.count),
            data_directory: provisioner.data.path().to_owned(),
            binaries: provisioner.binaries.directory().to_owned(),
            connection,
            master_connection,
        }
    }

    fn master_connection(&self) -> Option<String> {
        let Lease::HeldByOther { master: Some(master) } = self.lease.borrow().at(Instant::now()) else { return None };
        let connection = self.provisioner.backup_connection(&master).ok()?;
        Some(format!("{connection} dbname={}", sql::DATABASE))
    }

    fn keep_process(&mut self) {
        let is_wanted = self.told.as_ref().is_some_and(|assignment| assignment.backup.is_some());
        if !is_wanted {
            if self.process.take().is_some() {
                info!("no backups are wanted any more: the archiver ends");
            }
            return;
        }
        if self.process.is_some() || Instant::now() < self.start_at {
            return;
        }
        // A backup that fails at its start must not be tried as fast as this loop turns.
        self.start_at = Instant::now() + START_AGAIN_AFTER;
        let mut command = Command::new(names::pod::AGENT_PATH);
        command.args(["archiver", "serve"]).stdin(std::process::Stdio::null());
        match self.provisioner.processes.start(&mut command) {
            Ok(process) => self.process = Some(process),
            Err(error) => warn!(%error, "failed to start the archiver"),
        }
    }

    fn tell_people(&mut self) {
        let wants = self.noted.as_ref().is_some_and(|noted| noted.backup.is_some());
        let status = self.status_handle.current();
        if wants && status.started && status.archives == Some(false) {
            let why = "backups are asked for (pgset.dev/backup), but the server has an archive_command or archive_library of its own, which pgset \
                       leaves as it is: take it out of the server's settings, and restart the members one by one, to let pgset archive";
            return self.teller.tell(Reason::BackupRefused, why);
        }
        if self.process.is_none() {
            if status.backup.is_some() {
                self.status_handle.update(|status| status.backup = None);
            }
            return;
        }
        let Some(report) = assignment::report(&run_directory()) else { return };
        self.tell_trouble(&report);
        if let Some((why, _)) = &report.failed {
            self.teller.tell(Reason::BackupFailed, &format!("no base backup was made, and it is tried again: {why}"));
        }
        let newest = report.backups.last().filter(|newest| newest.pod == self.provisioner.configuration.me.pod);
        if let Some(newest) = newest.filter(|newest| self.told_backup.as_ref() != Some(&newest.id)) {
            self.told_backup = Some(newest.id.clone());
            let text = format!(
                "the base backup {} is complete: {} bytes, {} of them stored",
                newest.id, newest.size, newest.stored
            );
            self.teller.tell(Reason::BackupComplete, &text);
        }
        self.tell_verification(&report, status.role == "master");
        self.status_handle.update(|status| status.backup = Some(Box::new(report)));
    }

    /// Whoever leads tells it: all members read it in the store.
    fn tell_verification(&self, report: &Report, leads: bool) {
        let Some(found) = report.verified.as_ref().filter(|found| leads && found.failed.is_some()) else { return };
        let backup = found.backup.as_deref().unwrap_or("the newest backup");
        let text = format!("the trial restore of {backup} at {} {}", found.started, found.in_words());
        self.teller.tell(Reason::VerificationFailed, &text);
    }

    fn tell_trouble(&mut self, report: &Report) {
        if let Some(alarm) = &report.alarm {
            return self.teller.tell(Reason::ArchiveAlarm, alarm);
        }
        if let Some(gap) = &report.gap {
            self.teller.tell(Reason::ArchiveGap, &gap_in_words(&gap.first));
        }
        let Some((why, since)) = &report.trouble else { return };
        let lasts = k8s_openapi::jiff::Timestamp::now().duration_since(*since).unsigned_abs();
        if lasts < TROUBLE_LASTS || self.told_trouble_at.is_some_and(|at| at.elapsed() < TELL_AGAIN_AFTER) {
            return;
        }
        self.told_trouble_at = Some(Instant::now());
        let left = report.left.map_or_else(
            || "without a limit".to_owned(),
            |left| format!("and {} MB more may, before it is let go", left >> 20),
        );
        let text = format!(
            "the WAL has not been archived since {since}: {} files wait on the volume, {left} (pgset.dev/archive-limit): {why}",
            report.waiting
        );
        self.teller.tell(Reason::ArchiveFailing, &text);
    }
}

// === impl Provisioner ===

impl Provisioner {
    /// Writes after how long what was written is archived, and whether PostgreSQL notes what changes for backups, or takes both out again. Returns
    /// whether something changed.
    pub fn write_archive_settings(&self, wanted: Option<ArchiveSettings>) -> Result<bool, provisioner::Error> {
        const TIMEOUT: &str = "archive_timeout";
        const SUMMARIES: &str = "summarize_wal";
        let path = self.data.path().join(settings::AUTO_FILE);
        let old = fs::read_to_string(&path).unwrap_or_default();
        let timeout = wanted.map(|it| it.timeout.as_secs().to_string());
        // An older PostgreSQL would not start with it.
        let knows = self.data.major().is_some_and(|major| major >= INCREMENTAL_SINCE);
        let summaries = wanted.filter(|it| it.summaries && knows).map(|_| "on".to_owned());
        let new = [(TIMEOUT, timeout), (SUMMARIES, summaries)].iter().fold(old, |text, (name, value)| match value {
            Some(value) => settings::with_settings(&text, &[(name, value)]),
            None => settings::without_setting(&text, name),
        });
        settings::write(&path, &new).map_err(|source| provisioner::Error::Write { path, source })
    }

    /// How the archiver reaches this member's own server, for a base backup.
    pub fn own_backup_connection(&self) -> Result<String, provisioner::Error> {
        let Configuration { me, address, port, .. } = &self.configuration;
        self.backup_connection(&Master {
            pod: me.pod.clone(),
            address: address.clone(),
            port: *port,
            system: SystemIdentifier(0),
            timeline: 0,
            oldest_wal: None,
            begins: None,
        })
    }

    /// How the archiver reaches a server.
    pub fn backup_connection(&self, server: &Master) -> Result<String, provisioner::Error> {
        self.connection(server, &names::backup_application(&self.configuration.me.pod))
    }
}

async fn ended(process: &mut Option<Process>) -> String {
    match process {
        None => pending().await,
        Some(process) => process.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string()),
    }
}

/// Whether the archive is pgset's: by `archive_mode=on` alone a promoted standby would leave holes, and to change it takes a restart, so it is
/// `always` from the first day. A command of the user's own stays, also one that he has turned off.
pub(super) fn archives<'a>(answer: impl Fn(&str) -> &'a str) -> bool {
    ["", "(disabled)"].contains(&answer("archive_command"))
}

/// Whether a module of the user's own archives, which PostgreSQL has since 15; older ones refuse the question.
pub(super) async fn has_archive_library(
    binaries: &Binaries,
    processes: &Processes,
    data: &Path,
    arguments: &[String],
) -> bool {
    let mut command = binaries.command("postgres");
    command.arg("-D").arg(data).args(arguments).args(["-C", "archive_library"]);
    let output = processes.output(&mut command).await;
    output.is_ok_and(|output| output.status.success() && !output.stdout.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgresql_looks_for_the_files_where_the_agent_has_them() {
        let word = run_directory().join(assignment::NO_BACKUPS);
        assert!(ARCHIVE_COMMAND.contains(&format!("-e {} ||", word.display())));
        assert!(ARCHIVE_COMMAND.contains(names::pod::AGENT_PATH));
    }

    #[test]
    fn the_archive_is_pgsets_unless_the_user_has_one() {
        let is_ours = |command: &'static str| archives(move |_| command);
        assert!(is_ours("") && is_ours("(disabled)"));
        assert!(!is_ours("cp %p /archive/%f"));
    }
}
