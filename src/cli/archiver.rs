//! `pgset archiver`: what the agent and PostgreSQL run of this program, beside the database. Not a command for people.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use serde_json::json;

use super::{FAILURE, failed};
use crate::{
    agent::{AWAY, NOT_NOW, verification},
    archiver::{self, Place, Postgres, RestoreError, archive_command, fetch_segment, restore_base},
    backup::{moment::Unreachable, wal::WalFile},
    names::pod,
    set::backup::{Location, Restore, Target},
};

/// `restore_command`'s exit code for what is not there, and for what can't be told: above 128 PostgreSQL's recovery ends, where it would take the
/// former for the end of the history.
const NOT_THERE: u8 = 1;
const UNTOLD: u8 = 200;

/// The flags of `pgset archiver`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Bring the WAL to the store, and in this member's turn a base backup.
    Serve,
    /// Hand a file of the WAL over (`archive_command`).
    Push {
        /// The file, as PostgreSQL names it by `%p`.
        path: String,
    },
    /// Bring a file of the WAL back (`restore_command`).
    Fetch {
        /// Where the backups are.
        #[arg(long, value_parser = location)]
        from: Location,
        /// For a standby, which goes on: what can't be told is as if it were not there, and is asked for again.
        #[arg(long)]
        standby: bool,
        /// The file, as PostgreSQL names it by `%f`.
        file: String,
        /// Where to, as PostgreSQL names it by `%p`.
        to: PathBuf,
    },
    /// Try the newest backup in a pod of its own.
    Verify(verification::Flags),
    /// Bring a base backup back.
    Restore {
        /// Where the backups are.
        #[arg(long, value_parser = location)]
        from: Location,
        /// Up to which moment.
        #[arg(long, value_parser = target)]
        to: Target,
        /// The image's PostgreSQL.
        #[arg(long)]
        postgres: PathBuf,
        /// The set's database is on the same volume: a tenth of it stays free.
        #[arg(long)]
        beside: bool,
        /// A file that says how far it has come.
        #[arg(long)]
        progress: Option<PathBuf>,
        /// An empty directory.
        directory: PathBuf,
    },
}

fn location(text: &str) -> Result<Location, String> {
    Location::try_from(text.to_owned())
}

fn target(text: &str) -> Result<Target, String> {
    Target::parse(text).ok_or_else(|| format!("{text:?} is no moment"))
}

/// Runs the command.
pub fn run(arguments: Arguments) -> ExitCode {
    let run = Path::new(pod::RUN_PATH).join("run");
    let credentials = Path::new(pod::ACCESS_PATH).join(pod::BACKUP_CREDENTIALS);
    match arguments.task {
        Task::Push { path } => archive_command(&run, &path),
        Task::Serve => {
            super::start_logging();
            archiver::run(&run, &credentials)
        }
        Task::Fetch { from, standby, file, to } => match fetch(&from, &credentials, &file, &to) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(NOT_THERE),
            Err(why) => {
                let is_away = matches!(why.downcast_ref(), Some(RestoreError::Store(_)));
                let code = if is_away { AWAY } else { UNTOLD };
                failed(why.as_ref(), if standby { NOT_THERE } else { code })
            }
        },
        Task::Verify(flags) => {
            super::start_logging();
            match verification::run(&flags) {
                Ok(verification::Ending::Good) => ExitCode::SUCCESS,
                Ok(verification::Ending::Bad) => ExitCode::FAILURE,
                Ok(verification::Ending::NotNow) => ExitCode::from(NOT_NOW),
                Err(why) => failed(&why, NOT_NOW),
            }
        }
        Task::Restore { from, to, postgres, beside, progress, directory } => {
            super::start_logging();
            let mut place = Place::new(&directory);
            (place.is_beside, place.progress) = (beside, progress);
            let restored = restore(&Restore { from, target: to }, &credentials, &postgres, &place);
            let code = |why: &Error| match why.downcast_ref() {
                Some(
                    RestoreError::Store(_)
                    | RestoreError::Unreachable(
                        Unreachable::NoBackup | Unreachable::LeftBehind(_) | Unreachable::InDoubt { .. },
                    ),
                ) => NOT_NOW,
                _ => FAILURE,
            };
            restored.map_or_else(|why| failed(why.as_ref(), code(&why)), |()| ExitCode::SUCCESS)
        }
    }
}

type Error = Box<dyn std::error::Error>;

fn fetch(from: &Location, credentials: &Path, file: &str, to: &Path) -> Result<bool, Error> {
    let file: WalFile = file.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(fetch_segment(from, credentials, file, to))?)
}

fn restore(restore: &Restore, credentials: &Path, postgres: &Path, place: &Place) -> Result<(), Error> {
    let output = Command::new(postgres).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().nth(2).unwrap_or_default();
    let postgres = Postgres { binaries: postgres.parent().unwrap_or(Path::new("/")), version };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let restored = runtime.block_on(restore_base(restore, credentials, &postgres, place))?;
    println!("{}", json!({ "id": restored.index.id, "settings": restored.settings }));
    Ok(())
}
