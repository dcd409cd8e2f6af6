//! The PostgreSQL server process: with which arguments it starts, and how it stops.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use tokio::time::timeout;
use tracing::{info, warn};

use super::configuration::{Configuration, run_directory};
use super::data::DataDirectory;
use super::processes::{Process, Processes, end_container};
use super::programs::Programs;
use super::settings;

/// How long a server may take to end at once. PostgreSQL needs milliseconds for it; the Lease leaves a third of its duration, which
/// is 1.3 s at the least.
pub const IMMEDIATE_LIMIT: Duration = Duration::from_millis(800);

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
    /// `-c` values without which the member could not replicate.
    overrides: Vec<String>,
}

// === impl Settings ===

impl Settings {
    /// Asks PostgreSQL itself, which knows every file and argument of the user's.
    pub async fn ask(programs: &Programs, processes: &Processes, data: &Path, arguments: &[String]) -> Result<Self> {
        const NAMES: [&str; 6] = [
            "hba_file",
            "unix_socket_directories",
            "listen_addresses",
            "wal_level",
            "max_wal_senders",
            "max_replication_slots",
        ];
        let questions = NAMES.map(|name| async move {
            let mut command = programs.command("postgres");
            command.arg("-D").arg(data).args(arguments).args(["-C", name]);
            let output =
                processes.output(&mut command).await.map_err(|source| Error::Run { program: "postgres", source })?;
            if !output.status.success() {
                return Err(Error::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
            }
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        });
        let answers = futures::future::try_join_all(questions).await?;
        let answer = |name: &str| {
            NAMES.iter().position(|known| *known == name).and_then(|at| answers.get(at)).map_or("", String::as_str)
        };
        let socket_directory =
            answer("unix_socket_directories").split(',').next().unwrap_or_default().trim().trim_matches('"');
        Ok(Self {
            access_file: PathBuf::from(answer("hba_file")),
            socket_directory: PathBuf::from(if socket_directory.is_empty() { "/tmp" } else { socket_directory }),
            overrides: overrides(answer),
        })
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

/// A running, or starting, server.
#[derive(Debug)]
pub struct Server {
    process: Process,
    pid_file: PathBuf,
    /// Its settings.
    pub settings: Settings,
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
    /// Starts a server on a data directory.
    pub async fn start(
        configuration: &Configuration,
        data: &DataDirectory,
        programs: &Programs,
        processes: &Processes,
    ) -> Result<Self> {
        let settings = Settings::ask(programs, processes, data.path(), &configuration.server.others).await?;
        settings.write_access_rules(&configuration.replication_user)?;
        let mut command = programs.command("postgres");
        command
            .arg("-D")
            .arg(data.path())
            // Without hint bits in the WAL a former master can't be rewound, only cloned. It takes a restart, so it is on from the
            // first day, unless the user's arguments, which come after it, say otherwise.
            .args(["-c", "wal_log_hints=on", "-c", "hot_standby=on"])
            .args(&configuration.server.others)
            .arg("-c")
            .arg(format!("hba_file={}", access_file().display()))
            .arg("-c")
            .arg(format!("port={}", configuration.port))
            .args(settings.overrides.iter().flat_map(|setting| ["-c", setting]))
            .stdin(Stdio::null());
        let process = processes.start(&mut command).map_err(|source| Error::Run { program: "postgres", source })?;
        Ok(Self { process, pid_file: data.pid_file(), settings })
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
        fs::read_to_string(&self.pid_file)
            .is_ok_and(|text| text.lines().nth(7).is_some_and(|state| ["ready", "standby"].contains(&state.trim())))
    }

    /// Lets it read its files of settings again.
    pub fn reload(&self) {
        self.process.signal(Signal::SIGHUP);
    }

    /// Stops it and waits. An immediate stop that takes too long ends the agent itself, and with the first process of the container
    /// everything in it.
    pub async fn stop(&mut self, how: Stop) {
        match how {
            Stop::Fast => {
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn what_would_prevent_replication_is_put_right() {
        assert_eq!(
            overrides(answers(true)),
            ["listen_addresses=*", "wal_level=replica", "max_wal_senders=10", "max_replication_slots=10"]
        );
    }

    #[test]
    fn what_the_user_chose_and_works_is_left_alone() {
        assert_eq!(overrides(answers(false)), Vec::<String>::new());
    }
}
