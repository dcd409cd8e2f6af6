//! A trial restore, in a pod of its own: the newest backup is brought, PostgreSQL repeats all WAL behind it, and what came of it is read through.
//!
//! It is the only process of a Job that the set's owner asks for (`pgset backup verify`). Its pod has the set's image and the credentials of the
//! store, no token of any account, and a volume of its own.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::arguments::{self, UnknownCommand};
use super::binaries::{self, Binaries};
use super::configuration::run_directory;
use super::processes::{Process, Processes};
use super::recovery::{self, Programs, bring_base, follow, private_server};
use super::{privileges, server, sql};
use crate::archiver::note_verification;
use crate::backup::index::FORMAT;
use crate::backup::verification::Verification;
use crate::errors::with_causes;
use crate::names;
use crate::set::backup::{Location, Restore, Target};

/// Where the kubelet reads what a container says at its end.
const LAST_WORDS: &str = "/dev/termination-log";
/// How long a server may take to start that was stopped cleanly.
const START_LIMIT: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The flags of `pgset verify`, written by `pgset backup verify`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Where the backups are.
    #[arg(long, value_parser = location)]
    pub from: Location,
    /// What is asked of the restored database, which one.
    #[arg(long)]
    pub query: Option<String>,
    /// The database that is asked.
    #[arg(long, default_value = sql::DATABASE)]
    pub database: String,
    /// Where the database is restored: a directory of a volume of its own.
    #[arg(long)]
    pub directory: PathBuf,
    /// The command and arguments of the set's container.
    #[arg(last = true)]
    pub argv: Vec<String>,
}

fn location(text: &str) -> Result<Location, String> {
    Location::try_from(text.to_owned())
}

/// How a trial restore ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The backup is one.
    Good,
    /// It is none.
    Bad,
    /// There is none yet, or the store does not answer: worth another try.
    NotNow,
}

/// Why nothing could be tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user.
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
    /// The programs.
    #[error(transparent)]
    Binaries(#[from] binaries::Missing),
    /// The set's command.
    #[error(transparent)]
    Command(#[from] UnknownCommand),
    /// The operating system.
    #[error("failed to start")]
    Start(#[source] io::Error),
}

/// Why a trial restore failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// It was not restored.
    #[error(transparent)]
    Recovery(#[from] recovery::Error),
    /// A program found something, or could not be run.
    #[error("{program}: {why}")]
    Program {
        /// Which one.
        program: &'static str,
        /// What it said.
        why: String,
    },
    /// The restored server.
    #[error("the restored server does not start within {} s", START_LIMIT.as_secs())]
    Start,
    /// Somebody ends the pod.
    #[error("the pod was stopped")]
    Stopped,
}

impl Failure {
    fn is_not_now(&self) -> bool {
        matches!(self, Self::Recovery(recovery::Error::NotNow(_)) | Self::Stopped)
    }
}

/// Tries the newest backup, and notes in the store and as the container's last words what came of it.
pub fn run(flags: &Flags) -> Result<Ending, Error> {
    let home = privileges::settle(&flags.directory)?;
    let binaries = Binaries::find(home)?;
    let arguments = arguments::parse(&flags.argv)?.others;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    runtime.block_on(async {
        let processes = Processes::default();
        tokio::spawn(processes.clone().reap_orphans());
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::Start)?;
        let programs = Programs { binaries: &binaries, processes: &processes, arguments: &arguments };
        let mut found = Verification {
            format: FORMAT,
            started: Timestamp::now(),
            seconds: 0,
            backup: None,
            restorable_to: None,
            answer: None,
            left_out: Vec::new(),
            failed: None,
        };
        let since = Instant::now();
        let outcome = tokio::select! {
            outcome = verify(flags, programs, &mut found) => outcome,
            _ = terminate.recv() => Err(Failure::Stopped),
        };
        found.seconds = since.elapsed().as_secs();
        let is_not_now = outcome.as_ref().is_err_and(Failure::is_not_now);
        if let Err(why) = &outcome {
            error!(error = with_causes(why), "the trial restore failed");
            found.failed = Some(with_causes(why));
            found.restorable_to = None;
        }
        let found = found.cut();
        info!("{}", found.in_words());
        if let Err(error) = fs::write(LAST_WORDS, serde_json::to_vec(&found).unwrap_or_default()) {
            warn!(%error, "failed to write the container's last words");
        }
        if is_not_now {
            return Ok(Ending::NotNow);
        }
        let credentials = Path::new(names::pod::ACCESS_PATH).join(names::pod::BACKUP_CREDENTIALS);
        if let Err(why) = note_verification(&flags.from, &credentials, &found).await {
            error!(error = with_causes(&why), "what was found could not be noted in the store");
            return Ok(Ending::NotNow);
        }
        Ok(if found.failed.is_none() { Ending::Good } else { Ending::Bad })
    })
}

async fn verify(flags: &Flags, programs: Programs<'_>, found: &mut Verification) -> Result<(), Failure> {
    let directory = &flags.directory;
    let restore = Restore { from: flags.from.clone(), target: Target::Latest };
    empty(directory).map_err(|source| recovery::Error::Write { path: directory.clone(), source })?;
    let base = bring_base(programs, &restore, directory).await?;
    found.backup = Some(base.id.clone());
    // Before recovery changes the files that the list is of.
    check(programs, "pg_verifybackup", [directory.as_os_str()], found).await?;
    found.restorable_to = follow(programs, &restore, &base, directory).await?;
    let (mut server, socket) = start(programs, directory).await?;
    let outcome = read_through(flags, programs, &socket, found).await;
    server.signal(Signal::SIGINT);
    let _ = server.wait().await;
    outcome
}

/// A try before this one in the same pod may have left something.
fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        let path = entry.path();
        if entry.file_type()?.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    Ok(())
}

async fn start(programs: Programs<'_>, directory: &Path) -> Result<(Process, PathBuf), Failure> {
    let failed = |source| Failure::Recovery(recovery::Error::Run { program: "postgres", source });
    let (mut command, socket) = private_server(programs, directory)?;
    let rules = run_directory().join("verification_hba.conf");
    fs::write(&rules, "local all all trust\n")
        .map_err(|source| recovery::Error::Write { path: rules.clone(), source })?;
    command.arg("-c").arg(format!("hba_file={}", rules.display()));
    let mut server = programs.processes.start(&mut command).map_err(failed)?;
    let since = Instant::now();
    while !server::is_ready(&directory.join("postmaster.pid")) {
        if since.elapsed() > START_LIMIT {
            return Err(Failure::Start);
        }
        tokio::select! {
            ended = server.wait() => {
                let why = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                return Err(Failure::Program { program: "postgres", why });
            }
            () = sleep(LOOK_EVERY) => {}
        }
    }
    Ok((server, socket))
}

/// All tables and indexes of all databases, and the user's query.
async fn read_through(
    flags: &Flags,
    programs: Programs<'_>,
    socket: &Path,
    found: &mut Verification,
) -> Result<(), Failure> {
    let socket = socket.as_os_str();
    let reach = ["--no-password", "--username", names::role::AGENT, "--host"].map(OsStr::new);
    let all = ["--all", "--install-missing"].map(OsStr::new);
    check(programs, "pg_amcheck", all.into_iter().chain(reach).chain([socket]), found).await?;
    let Some(query) = &flags.query else { return Ok(()) };
    let mut command = programs.binaries.command("psql");
    command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
    command.args(["--dbname", &flags.database, "--command", query]).args(reach).arg(socket);
    let output = programs.processes.output(&mut command).await;
    let output = output.map_err(|source| recovery::Error::Run { program: "psql", source })?;
    if !output.status.success() {
        return Err(Failure::Program { program: "the query", why: last_line(&output.stderr) });
    }
    found.answer = Some(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned());
    Ok(())
}

/// Runs one of the image's programs that finds faults; one that it lacks is noted as left out.
async fn check<'a>(
    programs: Programs<'_>,
    program: &'static str,
    arguments: impl IntoIterator<Item = &'a OsStr>,
    found: &mut Verification,
) -> Result<(), Failure> {
    if !programs.binaries.path(program).is_file() {
        found.left_out.push(program.to_owned());
        return Ok(());
    }
    let mut command = programs.binaries.command(program);
    command.args(arguments);
    let output = programs.processes.output(&mut command).await;
    let output = output.map_err(|source| recovery::Error::Run { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    // What it finds is on its output, what keeps it from looking on the other.
    let finding =
        String::from_utf8_lossy(&output.stdout).lines().find(|line| !line.trim().is_empty()).map(str::to_owned);
    Err(Failure::Program { program, why: finding.unwrap_or_else(|| last_line(&output.stderr)) })
}

fn last_line(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing").trim().to_owned()
}
