//! The archiver: a process beside the agent of a set with backups. It brings the WAL to the store, and in its turn a base backup.
//!
//! It is a process of its own so that neither its memory nor a store that hangs is the agent's: what stops PostgreSQL in time never waits for it.

mod answer;
pub mod assignment;
mod base;
mod claim;
mod encryption;
mod expire;
mod gap;
mod incremental;
mod lines;
mod owner;
mod packed;
mod place;
mod programs;
mod push;
mod queue;
mod restore;
mod socket;
mod store;
mod turn;
mod verification;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, warn};

use self::gap::{Fate, Gaps};
pub use self::place::Place;
use self::queue::Queue;
pub use self::restore::{Error as RestoreError, Postgres, Restored, fetch_segment, restore_base};
pub use self::socket::archive_command;
use self::store::{Credentials, Store};
pub use self::verification::note_verification;
use crate::backup::assignment::{Assignment, Role};
use crate::backup::index::{FORMAT, Index};
use crate::backup::layout::{BACKUPS, INDEX};
use crate::backup::limit::is_tight;
use crate::backup::report::Report;
use crate::backup::wal::WalFile;
use crate::election::SystemIdentifier;
use crate::errors::with_causes;
use crate::set::backup::{Backup, Location};

/// In the agent's run directory: PostgreSQL is stopping, and what is not archived at once is left to the others.
pub const STOPPING: &str = "postgres-stops";

/// How often the assignment is read, and what is told written.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An archiver.
struct Archiver {
    run: PathBuf,
    credentials: PathBuf,
    assignment: watch::Receiver<Option<Assignment>>,
    queue: Arc<Queue>,
    gaps: Gaps,
    opened: Mutex<Option<Opened>>,
}

/// A store that is known to be this set's.
#[derive(Clone)]
struct Opened {
    store: Store,
    location: Location,
    credentials: Credentials,
    system: SystemIdentifier,
}

/// What a turn works with.
struct Turn {
    store: Store,
    backup: Backup,
    assignment: Assignment,
    system: SystemIdentifier,
}

/// Runs until it is killed.
#[must_use]
pub fn run(run: &Path, credentials: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.and_then(|runtime| runtime.block_on(work(run, credentials)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "the archiver ends");
            ExitCode::FAILURE
        }
    }
}

/// An error means that it was done before.
fn install_crypto_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

async fn work(run: &Path, credentials: &Path) -> std::io::Result<()> {
    install_crypto_provider();
    let (publish, assignment) = watch::channel(assignment::read(run));
    let Some(first) = assignment.borrow().clone() else { return Err(std::io::Error::other("there is no assignment")) };
    let archiver = Arc::new(Archiver {
        run: run.to_owned(),
        credentials: credentials.to_owned(),
        assignment,
        queue: Queue::new(&first.data_directory),
        gaps: Gaps::of(run),
        opened: Mutex::default(),
    });
    let listener = socket::listen(run)?;
    let follow = async {
        loop {
            sleep(LOOK_EVERY).await;
            publish.send_if_modified(|known| {
                let found = assignment::read(&archiver.run);
                let is_news = found.is_some() && *known != found;
                if is_news {
                    *known = found;
                }
                is_news
            });
        }
    };
    let serve = async {
        loop {
            let (stream, _) = listener.accept().await?;
            let archiver = archiver.clone();
            tokio::spawn(async move {
                let push = |file| async move { archiver.push(file).await };
                if let Err(error) = socket::answer(stream, push).await {
                    warn!(%error, "PostgreSQL did not hear the answer");
                }
            });
        }
    };
    tokio::select! {
        ended = serve => ended,
        () = follow => Ok(()),
        () = archiver.make_backups() => Ok(()),
    }
}

// === impl Archiver ===

impl Archiver {
    async fn push(&self, file: WalFile) -> Result<(), String> {
        let since = self.queue.account().trouble.map(|(_, since)| since);
        // The volume is looked at only while the store does not take everything.
        let left = since.and_then(|_| self.left(self.queue.waiting().len()));
        let fate = self.gaps.fate(since, left, left.map_or(0, |_| self.segment_size()));
        let outcome = match fate {
            Fate::LetGo => Err("there is no more room for what waits".to_owned()),
            Fate::Kept | Fate::TriedOnce => self.try_to_push(file).await,
        };
        let Err(why) = outcome else { return Ok(()) };
        if fate == Fate::Kept {
            return Err(why);
        }
        warn!(%file, why, "let go: it can't be restored");
        // Of those that a replica lets go the master has its own.
        if self.assignment.borrow().as_ref().is_some_and(|it| it.role == Role::Master) {
            self.gaps.let_go(file);
        }
        Ok(())
    }

    async fn try_to_push(&self, file: WalFile) -> Result<(), String> {
        let is_known = self.assignment.borrow().as_ref().is_some_and(|it| it.system.is_some());
        let opened = self.open().await.inspect_err(|why| {
            if is_known {
                self.queue.failed(why);
            }
        });
        let Some(opened) = opened? else { return Ok(()) };
        let is_master = opened.assignment.role == Role::Master;
        self.queue.push(&opened.store, file, is_master).await.map(drop)
    }

    /// How many bytes of WAL more may wait, beside so many files.
    fn left(&self, files: usize) -> Option<u64> {
        let limit = self.assignment.borrow().as_ref()?.backup.as_ref()?.limit;
        gap::left(limit, self.queue.pg_wal(), files, self.segment_size())
    }

    fn segment_size(&self) -> u64 {
        base::segment_size(self.queue.pg_wal())
    }

    /// The store, if backups are wanted and the prefix is this set's. The credentials are read each time: they change when somebody changes
    /// the Secret.
    async fn open(&self) -> Result<Option<Turn>, String> {
        let Some(assignment) = self.assignment.borrow().clone() else {
            return Err("nothing is known of the set yet".into());
        };
        let Some(backup) = assignment.backup.clone() else { return Ok(None) };
        let Some(system) = assignment.system else { return Err("the set's database is not known yet".into()) };
        let credentials = Credentials::read(&self.credentials);
        let is_same = |opened: &&Opened| {
            (&opened.location, &opened.credentials, opened.system) == (&backup.location, &credentials, system)
        };
        let known = self
            .opened
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .filter(is_same)
            .map(|it| it.store.clone());
        let store = if let Some(store) = known {
            store
        } else {
            let store = Store::open(&backup.location, &credentials).map_err(|why| with_causes(&why))?;
            owner::take(&store, &assignment, system).await?;
            let opened = Opened { store: store.clone(), location: backup.location.clone(), credentials, system };
            *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
            store
        };
        Ok(Some(Turn { store, backup, assignment, system }))
    }

    fn tell(&self, report: &mut Report) {
        let account = self.queue.account();
        report.location = self
            .assignment
            .borrow()
            .as_ref()
            .and_then(|it| Some(it.backup.as_ref()?.location.to_string()))
            .unwrap_or_default();
        report.archived = account.archived.map(|(file, at)| (file.to_string(), at));
        report.trouble = account.trouble;
        report.alarm = account.alarm.map(|(_, why)| why);
        report.waiting = self.queue.waiting().len();
        report.left = self.left(report.waiting);
        report.tight = gap::room(self.queue.pg_wal()).is_some_and(|room| is_tight(report.tight, room));
        report.gap = self.gaps.gap();
        if let Err(error) = assignment::write_report(&self.run, report) {
            warn!(%error, "failed to tell how the archive is");
        }
    }
}

/// All complete base backups, the oldest first.
async fn backups(store: &Store) -> Result<Vec<Index>, String> {
    let told = |error: store::Error| with_causes(&error);
    let mut backups = Vec::new();
    for object in store.list(BACKUPS).await.map_err(told)? {
        if object.key.rsplit('/').next() != Some(INDEX) {
            continue;
        }
        let Some(text) = store.get(&object.key).await.map_err(told)? else { continue };
        match serde_json::from_slice::<Index>(&text) {
            Ok(index) if index.format == FORMAT => backups.push(index),
            Ok(index) => return Err(format!("{} is of a later pgset (format {})", object.key, index.format)),
            Err(error) => return Err(format!("{} can't be read: {error}", object.key)),
        }
    }
    backups.sort_by_key(|backup| backup.ended);
    Ok(backups)
}
