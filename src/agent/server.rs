//! The PostgreSQL server process: with which arguments it starts, and how it stops.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;
use tokio::process::Command;
use tokio::time::timeout;
use tracing::{info, warn};

use super::backup::{ARCHIVE_COMMAND, archives, has_archive_library};
use super::binaries::Binaries;
use super::configuration::{Configuration, run_directory};
use super::data::{self, DataDirectory};
use super::leadership::WritePermit;
use super::mounts;
use super::place::Place;
use super::processes::{Process, Processes, end_container};
use super::settings;
use crate::invariants::Invariant;
use crate::names;

/// How long a server may take to end at once. PostgreSQL needs milliseconds for it; the Lease leaves a third of its duration, which
/// is 1.3 s at the least.
pub const IMMEDIATE_LIMIT: Duration = Duration::from_millis(800);

/// How much WAL the slots may keep, its value if nobody set it, and the share of the volume that pgset gives it then.
const SLOT_LIMIT: &str = "max_slot_wal_keep_size";
const UNLIMITED: &str = "-1";
const SLOT_SHARE: u64 = 4;

/// How much WAL a server keeps beyond its last checkpoint, its value if nobody set it, and what pgset gives it then: a share of the
/// volume, and no more than so many megabytes.
const KEPT: &str = "wal_keep_size";
const NOTHING: &str = "0";
const KEPT_SHARE: u64 = 16;
const KEPT_LIMIT: u64 = 512;
const MEGABYTE: u64 = 1_048_576;

/// Why a server can't be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program could not be run.
    #[error("failed to run {program}")]
    Run {
        /// Which one.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// PostgreSQL does not accept its own configuration.
    #[error("PostgreSQL refuses its configuration: {0}")]
    Refused(String),
    /// It would accept writes.
    #[error("{} has no standby.signal: a server that is started there would accept writes without the Lease", .0.display())]
    NoStandby(PathBuf),
    /// A file of the agent's own.
    #[error("failed to write {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// What the server's settings will be, by its own account, and what has to be said on its command line besides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The user's file of access rules.
    access_file: PathBuf,
    /// Where the local socket is.
    pub socket_directory: PathBuf,
    /// The data directory and the port by the user's files, arguments and environment.
    data_directory: PathBuf,
    port: String,
    /// `-c` values without which the member could not replicate.
    overrides: Vec<String>,
    /// `-c` values in front of the user's own arguments, which may say otherwise.
    defaults: Vec<String>,
    /// The archive is left to pgset: there is no command of the user's own.
    pub archives: bool,
}

// === impl Settings ===

impl Settings {
    /// Asks PostgreSQL itself, which knows every file and argument of the user's.
    pub async fn ask(binaries: &Binaries, processes: &Processes, data: &Path, arguments: &[String]) -> Result<Self> {
        const NAMES: [&str; 12] = [
            "data_directory",
            "port",
            "hba_file",
            "unix_socket_directories",
            "listen_addresses",
            "wal_level",
            "max_wal_senders",
            "max_replication_slots",
            SLOT_LIMIT,
            KEPT,
            "archive_mode",
            "archive_command",
        ];
        let questions = NAMES.map(|name| async move {
            let mut command = binaries.command("postgres");
            command.arg("-D").arg(data).args(arguments).args(["-C", name]);
            let output =
                processes.output(&mut command).await.map_err(|source| Error::Run { program: "postgres", source })?;
            if !output.status.success() {
                return Err(Error::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
            }
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        });
        let library = has_archive_library(binaries, processes, data, arguments);
        let (answers, has_library) = tokio::join!(futures::future::try_join_all(questions), library);
        let answers = answers?;
        let answer = |name: &str| {
            NAMES.iter().position(|known| *known == name).and_then(|at| answers.get(at)).map_or("", String::as_str)
        };
        let socket_directory =
            answer("unix_socket_directories").split(',').next().unwrap_or_default().trim().trim_matches('"');
        let archives = archives(answer) && !has_library;
        let mut defaults = defaults(answer(SLOT_LIMIT), answer(KEPT), volume_size(&data.join("pg_wal")));
        if archives {
            defaults.extend(["archive_mode=always".to_owned(), format!("archive_command={ARCHIVE_COMMAND}")]);
        }
        Ok(Self {
            archives,
            data_directory: PathBuf::from(answer("data_directory")),
            port: answer("port").to_owned(),
            access_file: PathBuf::from(answer("hba_file")),
            socket_directory: PathBuf::from(if socket_directory.is_empty() { "/tmp" } else { socket_directory }),
            overrides: overrides(answer),
            defaults,
        })
    }

    /// Refuses files that say another place or port than the set has: the command line overrules them, and clients would find nothing. What
    /// was served so before goes on.
    fn check(&self, place: &Place, port: u16) -> Result<()> {
        let is_served = data::is_marked_member(&place.directory);
        let refuse = |why: String| {
            warn!("{why}");
            if is_served { Ok(()) } else { Err(Error::Refused(why)) }
        };
        let is_place = |path: &Path| mounts::resolved(path).ok() == mounts::resolved(&place.directory).ok();
        if !place.is_apart() && !is_place(&self.data_directory) {
            let (found, pgdata) = (self.data_directory.display(), place.directory.display());
            refuse(format!(
                "it says data_directory = {found}, but PGDATA is {pgdata}: take data_directory out of the file, or write that directory as \
                 PGDATA under env of the container"
            ))?;
        }
        // Without a word it is 5432, which the container's port may overrule.
        if self.port != port.to_string() && self.port != names::pod::POSTGRES_PORT.to_string() {
            let found = &self.port;
            refuse(format!(
                "it says port = {found}, but the container's port is {port}: write containerPort: {found}"
            ))?;
        }
        Ok(())
    }

    /// Writes the file of access rules that the server reads: ours in front of a copy of the user's. Returns whether it changed.
    pub fn write_access_rules(&self, replication_user: &str) -> Result<bool> {
        let path = access_file();
        let own = fs::read_to_string(&self.access_file)
            .map_err(|source| Error::Run { program: "a look at pg_hba.conf", source })?;
        settings::write(&path, &(settings::access_rules(replication_user) + &own))
            .map_err(|source| Error::Write { path, source })
    }

    /// When the user's file of access rules last changed.
    #[must_use]
    pub fn access_rules_changed_at(&self) -> Option<SystemTime> {
        fs::metadata(&self.access_file).and_then(|found| found.modified()).ok()
    }
}

fn access_file() -> PathBuf {
    run_directory().join("pg_hba.conf")
}

/// Values that would keep a member from replicating, put right; a value that merely differs from what we would choose is the user's.
fn overrides<'a>(answer: impl Fn(&str) -> &'a str) -> Vec<String> {
    let mut found = Vec::new();
    let mut set = |name: &str, value: &str| {
        info!(
            setting = name,
            was = answer(name),
            now = value,
            "a setting that replication needs is put right on the command line"
        );
        found.push(format!("{name}={value}"));
    };
    if answer("listen_addresses") == "localhost" {
        set("listen_addresses", "*");
    }
    if answer("wal_level") == "minimal" {
        set("wal_level", "replica");
    }
    for name in ["max_wal_senders", "max_replication_slots"] {
        if answer(name).parse().is_ok_and(|number: u32| number < 4) {
            set(name, "10");
        }
    }
    found
}

/// Values that a member needs where the user has none of his own. Without hint bits in the WAL a former master can't be rewound, only cloned.
/// It takes a restart, so it is on from the first day. A slot would keep WAL for a member that never comes until the disk is full, and the
/// master with it; beyond a share of the volume the member is cloned anew instead. And a former master is rewound by its WAL from the last
/// checkpoint that it has in common with the others, which its own next one would throw away.
fn defaults(slot_limit: &str, kept: &str, volume: Option<u64>) -> Vec<String> {
    let mut found = vec!["wal_log_hints=on".to_owned(), "hot_standby=on".to_owned()];
    if let Some(size) = volume.filter(|_| slot_limit == UNLIMITED) {
        let megabytes = (size / SLOT_SHARE / MEGABYTE).clamp(1, u64::from(i32::MAX.unsigned_abs()));
        info!(setting = SLOT_LIMIT, megabytes, "replication slots keep at most so much WAL, a quarter of the volume");
        found.push(format!("{SLOT_LIMIT}={megabytes}"));
    }
    if let Some(size) = volume.filter(|_| kept == NOTHING) {
        // Slots may not keep less than this.
        let limit = slot_limit.parse().unwrap_or(KEPT_LIMIT);
        found.push(format!("{KEPT}={}", (size / KEPT_SHARE / MEGABYTE).min(KEPT_LIMIT).min(limit)));
    }
    found
}

/// The size of the volume that a path is on; absent where the file system does not tell it.
fn volume_size(path: &Path) -> Option<u64> {
    let found = statvfs(path).ok()?;
    Some(found.blocks().saturating_mul(found.fragment_size())).filter(|size| *size > 0)
}

/// The argument by which a server stays in a directory: `-D` alone gives way to what a file of the user's says.
pub(super) fn data_directory(directory: &Path) -> String {
    format!("data_directory={}", directory.display())
}

/// A running, or starting, server.
#[derive(Debug)]
pub struct Server {
    process: Process,
    pid_file: PathBuf,
    /// Its settings.
    pub settings: Settings,
    /// It is to read its files again once it can hear of it.
    reload_due: AtomicBool,
}

/// All that has to be asked before a server starts. It takes its time, and leadership may end meanwhile.
pub struct Ready {
    settings: Settings,
    command: Command,
    pid_file: PathBuf,
    processes: Processes,
}

// === impl Ready ===

impl Ready {
    /// Asks PostgreSQL for its settings, and writes the files that the server reads.
    pub async fn ask(
        configuration: &Configuration,
        data: &DataDirectory,
        binaries: &Binaries,
        processes: &Processes,
    ) -> Result<Self> {
        let settings = Settings::ask(binaries, processes, data.path(), &configuration.server.others).await?;
        settings.check(&configuration.place, configuration.port)?;
        settings.write_access_rules(&configuration.replication_user)?;
        let mut command = binaries.command("postgres");
        command
            .arg("-D")
            .arg(data.path())
            .args(settings.defaults.iter().flat_map(|setting| ["-c", setting]))
            .args(&configuration.server.others)
            .args(["-c", &data_directory(data.path())])
            .arg("-c")
            .arg(format!("hba_file={}", access_file().display()))
            .arg("-c")
            .arg(format!("port={}", configuration.port))
            .args(settings.overrides.iter().flat_map(|setting| ["-c", setting]))
            .stdin(Stdio::null());
        Ok(Self { settings, command, pid_file: data.pid_file(), processes: processes.clone() })
    }

    fn start(mut self) -> Result<Server> {
        note_stopping(false);
        let started = self.processes.start(&mut self.command);
        let process = started.map_err(|source| Error::Run { program: "postgres", source })?;
        Ok(Server { process, pid_file: self.pid_file, settings: self.settings, reload_due: AtomicBool::default() })
    }
}

/// How a server stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended, everything is written.
    Fast,
    /// At once: recovery follows at the next start.
    Immediate,
}

// === impl Server ===

impl Server {
    /// Starts a standby on a data directory.
    pub fn start_standby(ready: Ready, data: &DataDirectory) -> Result<Self> {
        let path = data.path();
        if !Invariant::StandbyHasSignal.holds(!data.is_promoted(), || path.display().to_string()) {
            return Err(Error::NoStandby(path.to_owned()));
        }
        ready.start()
    }

    /// Starts a server that accepts writes.
    pub fn start_master(ready: Ready, _permit: &WritePermit) -> Result<Self> {
        ready.start()
    }

    /// The number of its process.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.process.number()
    }

    /// Completes when the server has ended. Cancel-safe.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }

    /// It says itself that it accepts connections. Cheaper than asking, and it leaves no "starting up" in the server's log.
    #[must_use]
    pub fn accepts_connections(&self) -> bool {
        let accepts = state(&self.pid_file).is_some_and(|state| ["ready", "standby"].contains(&state.as_str()));
        if accepts && self.reload_due.swap(false, Ordering::Relaxed) {
            self.process.signal(Signal::SIGHUP);
        }
        accepts
    }

    /// Lets it read its files of settings again. One that has not come so far as to listen to signals would die of this one: it says in its
    /// pid file when it has.
    pub fn reload(&self) {
        if state(&self.pid_file).is_some() {
            self.process.signal(Signal::SIGHUP);
        } else {
            self.reload_due.store(true, Ordering::Relaxed);
        }
    }

    /// Stops it and waits. An immediate stop that takes too long ends the agent itself, and with the first process of the container
    /// everything in it.
    pub async fn stop(&mut self, how: Stop) {
        match how {
            Stop::Fast => {
                note_stopping(true);
                self.process.signal(Signal::SIGINT);
                let _ = self.process.wait().await;
            }
            Stop::Immediate => {
                self.process.signal(Signal::SIGQUIT);
                if timeout(IMMEDIATE_LIMIT, self.process.wait()).await.is_err() {
                    warn!("PostgreSQL did not stop at once: the whole container ends");
                    end_container();
                }
            }
        }
    }
}

/// What a server says of itself in its pid file.
fn state(pid_file: &Path) -> Option<String> {
    Some(fs::read_to_string(pid_file).ok()?.lines().nth(7)?.trim().to_owned())
}

/// Whether a server accepts connections, by its own account: of one in recovery, if it is to be looked at (`hot_standby`).
pub(super) fn is_ready(pid_file: &Path) -> bool {
    state(pid_file).as_deref() == Some("ready")
}

/// A server that stops gives its archive command the last segments, and waits. What a store that hangs does not take at once is archived by
/// the others, or at the next start.
fn note_stopping(stops: bool) {
    let path = run_directory().join(crate::archiver::STOPPING);
    let _ = if stops { fs::write(path, "") } else { fs::remove_file(path) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::place::Place;

    fn answers(minimal: bool) -> impl Fn(&str) -> &'static str {
        move |name| match name {
            "listen_addresses" => {
                if minimal {
                    "localhost"
                } else {
                    "10.0.0.1"
                }
            }
            "wal_level" => {
                if minimal {
                    "minimal"
                } else {
                    "logical"
                }
            }
            _ => {
                if minimal {
                    "0"
                } else {
                    "32"
                }
            }
        }
    }

    fn settings(data_directory: PathBuf, port: &str) -> Settings {
        Settings {
            access_file: PathBuf::new(),
            socket_directory: PathBuf::new(),
            data_directory,
            port: port.to_owned(),
            overrides: Vec::new(),
            defaults: Vec::new(),
            archives: false,
        }
    }

    fn told(directory: &Path, data_directory: &str, port: &str) -> Result<()> {
        let place = Place { directory: directory.join("data"), volume: None, members: None, searched: None };
        settings(directory.join(data_directory), port).check(&place, 5433)
    }

    #[test]
    fn a_file_that_says_another_place_or_port_is_refused_with_the_cure_unless_it_was_served_so() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        let refusal = |data_directory, port| told(folder.path(), data_directory, port).map_err(|why| why.to_string());
        assert_eq!(refusal("data", "5433"), Ok(()));
        assert_eq!(refusal("data", "5432"), Ok(()), "nothing was said");
        assert!(refusal("other", "5433").unwrap_err().contains("write that directory as PGDATA"));
        assert!(refusal("data", "5434").unwrap_err().contains("write containerPort: 5434"));
        fs::write(folder.path().join("data/.pgset-member"), "").unwrap();
        assert_eq!(refusal("other", "5434"), Ok(()));
    }

    #[test]
    fn what_would_prevent_replication_is_put_right() {
        assert_eq!(
            overrides(answers(true)),
            ["listen_addresses=*", "wal_level=replica", "max_wal_senders=10", "max_replication_slots=10"]
        );
    }

    #[test]
    fn slots_keep_a_quarter_of_the_volume_unless_the_user_says_otherwise() {
        let limit = |slot_limit, volume| {
            defaults(slot_limit, "64", volume).into_iter().find(|setting| setting.starts_with("max_slot"))
        };
        assert_eq!(limit("-1", Some(10 << 30)).as_deref(), Some("max_slot_wal_keep_size=2560"));
        assert_eq!(limit("1024", Some(10 << 30)), None);
        assert_eq!(limit("-1", Some(u64::MAX)).as_deref(), Some("max_slot_wal_keep_size=2147483647"));
        assert_eq!(limit("-1", None), None, "the file system does not tell its size");
        assert!(volume_size(Path::new("/")).is_some());
    }

    #[test]
    fn a_server_keeps_wal_for_a_rewind_unless_the_user_says_how_much() {
        let kept = |kept, volume| {
            defaults("-1", kept, volume).into_iter().find(|setting| setting.starts_with("wal_keep_size"))
        };
        assert_eq!(kept("0", Some(1 << 30)).as_deref(), Some("wal_keep_size=64"));
        assert_eq!(kept("0", Some(1 << 40)).as_deref(), Some("wal_keep_size=512"));
        assert_eq!(kept("16", Some(1 << 40)), None);
        assert!(defaults("16", "0", Some(1 << 40)).contains(&"wal_keep_size=16".to_owned()), "no more than slots do");
        assert_eq!(kept("0", None), None);
    }

    #[test]
    fn what_the_user_chose_and_works_is_left_alone() {
        assert_eq!(overrides(answers(false)), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_server_that_does_not_listen_to_signals_yet_is_told_later_to_read_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("postmaster.pid");
        let process = Processes::default().start(Command::new("sleep").arg("60")).unwrap();
        let settings = settings(directory.path().to_owned(), "5432");
        let mut server = Server { process, pid_file: pid_file.clone(), settings, reload_due: AtomicBool::default() };
        server.reload();
        assert!(!server.accepts_connections());
        assert!(timeout(Duration::from_millis(100), server.ended()).await.is_err(), "the signal would have ended it");
        fs::write(&pid_file, "1\n\n\n\n\n\n\nready\n").unwrap();
        assert!(server.accepts_connections());
        let ended = timeout(Duration::from_secs(5), server.ended()).await.expect("it gets the signal then").unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(1));
    }

    #[tokio::test]
    async fn no_standby_starts_where_it_would_accept_writes_and_that_counts_as_a_bug() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place { directory: directory.path().to_owned(), volume: None, members: None, searched: None };
        let data = DataDirectory::open(&place).unwrap();
        let ready = || Ready {
            settings: settings(place.directory.clone(), "5432"),
            command: Command::new("no such program"),
            pid_file: data.pid_file(),
            processes: Processes::default(),
        };
        let before = Invariant::StandbyHasSignal.count();
        assert!(
            matches!(Server::start_standby(ready(), &data), Err(Error::NoStandby(path)) if path == directory.path())
        );
        assert_eq!(Invariant::StandbyHasSignal.count(), before + 1);
        data.mark_standby().unwrap();
        assert!(matches!(Server::start_standby(ready(), &data), Err(Error::Run { .. })), "it is tried");
    }
}
