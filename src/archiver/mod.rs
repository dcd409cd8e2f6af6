//! The archiver: a process beside the agent of a set with backups. It brings the WAL to the store, and in its turn a base backup.
//!
//! It is a process of its own so that neither its memory nor a store that hangs is the agent's: what stops PostgreSQL in time never waits for it.

pub mod assignment;
mod base;
mod claim;
mod expire;
mod gap;
mod packed;
mod programs;
mod push;
mod queue;
mod restore;
mod socket;
mod store;
mod verification;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use self::claim::Claims;
use self::gap::{Fate, Gaps};
use self::queue::Queue;
pub use self::restore::{Error as RestoreError, Restored, fetch_segment, restore_base};
pub use self::socket::archive_command;
use self::store::{Created, Credentials, Store};
pub use self::verification::note_verification;
use crate::backup::assignment::{Assignment, Role};
use crate::backup::due::due;
use crate::backup::index::{FORMAT, Index, Owner};
use crate::backup::layout::{BACKUPS, INDEX, OWNER};
use crate::backup::report::{Report, Running};
use crate::backup::wal::WalFile;
use crate::election::SystemIdentifier;
use crate::errors::with_causes;
use crate::set::backup::{Backup, Location};

/// In the agent's run directory: PostgreSQL is stopping, and what is not archived at once is left to the others.
pub const STOPPING: &str = "postgres-stops";

/// How often the assignment is read, and what is told written.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the base backups in the store are looked at.
const LIST_EVERY: Duration = Duration::from_secs(60);
/// How long a backup that failed is let be, at first and at last.
const TRY_AGAIN: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(900)];
/// A master leaves a backup to its replicas for so long, and each of them to the one before it.
const LEAVES_IT_TO_REPLICAS: Duration = Duration::from_secs(20);

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
            own(&store, &assignment, system).await?;
            let opened = Opened { store: store.clone(), location: backup.location.clone(), credentials, system };
            *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
            store
        };
        Ok(Some(Turn { store, backup, assignment, system }))
    }

    /// Makes the base backups that are due in this member's turn, and tells how everything is.
    async fn make_backups(&self) {
        let mut report = Report::default();
        let mut claims = Claims::default();
        let (mut listed_at, mut pause, mut quiet_until) = (None::<Instant>, TRY_AGAIN[0], Instant::now());
        let mut was_away = false;
        let mut due_since: Option<(String, Instant)> = None;
        loop {
            sleep(LOOK_EVERY).await;
            self.tell(&mut report);
            let is_away = report.trouble.is_some();
            if was_away && !is_away {
                // What failed with the WAL is worth another try.
                quiet_until = Instant::now();
            }
            was_away = is_away;
            let is_stale = listed_at.is_none_or(|at| at.elapsed() >= LIST_EVERY);
            let due = self.due(&report.backups);
            let is_new = due.as_ref().is_some_and(|due| due_since.as_ref().is_none_or(|(known, _)| known != due));
            if is_new {
                due_since = due.clone().map(|due| (due, Instant::now()));
                // An order does not wait because an earlier backup failed.
                quiet_until = Instant::now();
            }
            if !is_stale && !is_new && due.is_none() || Instant::now() < quiet_until {
                continue;
            }
            match self.turn(&mut report, &mut claims, due_since.as_ref()).await {
                Ok(is_made) => {
                    listed_at = (!is_made).then(Instant::now);
                    // Where nothing is missing, what failed is over, whoever made up for it.
                    if is_made || self.due(&report.backups).is_none() {
                        (report.failed, pause) = (None, TRY_AGAIN[0]);
                    }
                }
                Err(why) => {
                    warn!(error = why, "no base backup");
                    report.failed = Some((why, Timestamp::now()));
                    quiet_until = Instant::now() + pause;
                    pause = (pause * 2).min(TRY_AGAIN[1]);
                }
            }
        }
    }

    /// What a base backup is due for.
    fn due(&self, backups: &[Index]) -> Option<String> {
        let assignment = self.assignment.borrow();
        let backup = assignment.as_ref()?.backup.as_ref()?;
        due(backup, backups, self.gaps.gap().as_ref(), Timestamp::now())
    }

    /// Looks at what is there, and makes a base backup if one is due and it is this member's turn. Returns whether it made one.
    async fn turn(
        &self,
        report: &mut Report,
        claims: &mut Claims,
        due_since: Option<&(String, Instant)>,
    ) -> Result<bool, String> {
        // A member that is about to be something has nothing to back up.
        if self.assignment.borrow().as_ref().is_none_or(|assignment| assignment.role == Role::None) {
            return Ok(false);
        }
        let Some(opened) = self.open().await? else { return Ok(false) };
        let Turn { store, backup, assignment, system } = &opened;
        report.backups = backups(store).await?;
        report.verified = verification::newest(store).await.map_err(|why| with_causes(&why))?;
        self.gaps.close(&report.backups);
        let Some(due) = self.due(&report.backups) else { return Ok(false) };
        let waited = due_since.filter(|(known, _)| *known == due).map_or(Duration::ZERO, |(_, since)| since.elapsed());
        if waited < leaves_it_for(assignment) {
            return Ok(false);
        }
        let told = |error: store::Error| with_causes(&error);
        let Some(mut claim) = claims.claim(store, &due, &assignment.pod).await.map_err(told)? else { return Ok(false) };
        let progress = base::Progress::default();
        let expected = base::expected_size(&assignment.data_directory).await;
        let mut running = Running { id: due.clone(), since: Timestamp::now(), read: 0, expected };
        let outcome = {
            let mut work = std::pin::pin!(base::back_up(store, assignment, *system, &due, expected, &progress));
            let mut keep = std::pin::pin!(claim.keep());
            loop {
                running.read = progress.read.load(Ordering::Relaxed);
                report.running = Some(running.clone());
                self.tell(report);
                tokio::select! {
                    outcome = &mut work => break outcome,
                    never = &mut keep => never,
                    () = sleep(LOOK_EVERY) => {}
                }
            }
        };
        report.running = None;
        claim.release().await;
        outcome.map_err(|why| with_causes(&why))?;
        report.backups = backups(store).await?;
        self.gaps.close(&report.backups);
        if let Err(why) = expire::sweep(store, &report.backups, backup.keep).await {
            warn!(error = with_causes(&why), "what nobody needs any more was not deleted");
        }
        Ok(true)
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
        report.gap = self.gaps.gap();
        if let Err(error) = assignment::write_report(&self.run, report) {
            warn!(%error, "failed to tell how the archive is");
        }
    }
}

/// The one who makes a base backup is a replica, if one can: the first to be here.
fn leaves_it_for(assignment: &Assignment) -> Duration {
    if assignment.role == Role::Master && assignment.members > 1 { LEAVES_IT_TO_REPLICAS } else { Duration::ZERO }
}

/// Takes a prefix that is nobody's, and refuses one that is somebody else's.
async fn own(store: &Store, assignment: &Assignment, system: SystemIdentifier) -> Result<(), String> {
    let told = |error: store::Error| with_causes(&error);
    let me = Owner { format: FORMAT, namespace: assignment.namespace.clone(), set: assignment.set.clone(), system };
    let found = if let Some(found) = store.get(OWNER).await.map_err(told)? {
        found
    } else {
        let content = serde_json::to_vec_pretty(&me).map_err(|error| error.to_string())?;
        if store.create(OWNER, content).await.map_err(told)? == Created::Yes {
            info!("this prefix is the set's from now on");
            return Ok(());
        }
        store.get(OWNER).await.map_err(told)?.unwrap_or_default()
    };
    match serde_json::from_slice::<Owner>(&found) {
        Ok(owner) if owner == me => Ok(()),
        Ok(Owner { namespace, set, system, .. }) => Err(format!(
            "the prefix belongs to the database {system} of the set {namespace}/{set} (its {OWNER} says so): give this set one of its own (pgset.dev/backup)"
        )),
        Err(error) => Err(format!(
            "{OWNER} in the store can't be read ({error}): give this set a prefix of its own (pgset.dev/backup)"
        )),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_prefix_is_of_the_first_set_that_writes_there() {
        let store = Store::in_memory();
        let mine = assignment::tests::assignment(Some("s3://bucket/db"));
        own(&store, &mine, SystemIdentifier(1)).await.unwrap();
        own(&store, &mine, SystemIdentifier(1)).await.unwrap();
        let why = own(&store, &mine, SystemIdentifier(2)).await.unwrap_err();
        assert!(why.contains("shop/db"), "a database made anew is another one: {why}");
        let other = Assignment { set: "other".into(), ..mine };
        assert!(own(&store, &other, SystemIdentifier(1)).await.is_err());
    }
}
