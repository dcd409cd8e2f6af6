//! The archiver: a process beside the agent of a set with backups. It brings the WAL to the store, and in its turn a base backup.
//!
//! It is a process of its own so that neither its memory nor a store that hangs is the agent's: what stops PostgreSQL in time never waits for it.

pub mod assignment;
mod base;
mod claim;
mod expire;
mod packed;
mod programs;
mod push;
mod queue;
mod restore;
mod socket;
mod store;

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
use self::queue::Queue;
pub use self::restore::{Restored, fetch_segment, restore_base};
pub use self::socket::archive_command;
use self::store::{Created, Credentials, Store};
use crate::backup::assignment::{Assignment, Role};
use crate::backup::index::{FORMAT, Index, Owner};
use crate::backup::layout::{BACKUPS, INDEX, OWNER};
use crate::backup::report::{Report, Running};
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
/// What a set needs its first backup for is all of its backups; it is not waited for with the schedule.
const FIRST: &str = "first";

/// An archiver.
struct Archiver {
    run: PathBuf,
    credentials: PathBuf,
    assignment: watch::Receiver<Option<Assignment>>,
    queue: Arc<Queue>,
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

async fn work(run: &Path, credentials: &Path) -> std::io::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (publish, assignment) = watch::channel(assignment::read(run));
    let Some(first) = assignment.borrow().clone() else { return Err(std::io::Error::other("there is no assignment")) };
    let archiver = Arc::new(Archiver {
        run: run.to_owned(),
        credentials: credentials.to_owned(),
        assignment,
        queue: Queue::new(&first.data_directory),
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
    async fn push(&self, file: crate::backup::wal::WalFile) -> Result<(), String> {
        let Some(opened) = self.open().await? else { return Ok(()) };
        let is_master = opened.assignment.role == Role::Master;
        self.queue.push(&opened.store, file, is_master).await.map(drop)
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
        let mut due_since: Option<(String, Instant)> = None;
        loop {
            sleep(LOOK_EVERY).await;
            self.tell(&mut report);
            let is_stale = listed_at.is_none_or(|at| at.elapsed() >= LIST_EVERY);
            let due = self.due(&report.backups);
            let is_new = due.as_ref().is_some_and(|due| due_since.as_ref().is_none_or(|(known, _)| known != due));
            if is_new {
                due_since = due.clone().map(|due| (due, Instant::now()));
            }
            if !is_stale && !is_new && due.is_none() || Instant::now() < quiet_until {
                continue;
            }
            match self.turn(&mut report, &mut claims, due_since.as_ref()).await {
                Ok(true) => {
                    (listed_at, pause) = (None, TRY_AGAIN[0]);
                    report.failed = None;
                }
                Ok(false) => listed_at = Some(Instant::now()),
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
        due(backup, backups, Timestamp::now())
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
        let Some(due) = due(backup, &report.backups, Timestamp::now()) else { return Ok(false) };
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
        if let Err(error) = assignment::write_report(&self.run, report) {
            warn!(%error, "failed to tell how the archive is");
        }
    }
}

/// The one who makes a base backup is a replica, if one can: the first to be here.
fn leaves_it_for(assignment: &Assignment) -> Duration {
    if assignment.role == Role::Master && assignment.members > 1 { LEAVES_IT_TO_REPLICAS } else { Duration::ZERO }
}

/// What a base backup is due for: an order, the first one of all, or a time of the schedule.
fn due(backup: &Backup, backups: &[Index], now: Timestamp) -> Option<String> {
    let is_done = |due: &str| backups.iter().any(|backup| backup.due == due);
    let order = backup.order.as_ref().map(|order| format!("now-{}", order.replace(':', "-")));
    if backups.is_empty() {
        return Some(order.unwrap_or_else(|| FIRST.to_owned()));
    }
    order.filter(|order| !is_done(order)).or_else(|| {
        let at = backup.schedule.last_due(now)?;
        let is_made = backups.iter().any(|backup| backup.started >= at);
        (!is_made).then(|| at.strftime("%Y%m%dT%H%M%SZ").to_string())
    })
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

    fn wanted(order: Option<&str>) -> Backup {
        let mut backup = assignment::tests::assignment(Some("s3://bucket/db")).backup.unwrap();
        backup.order = order.map(str::to_owned);
        backup
    }

    fn made(due: &str, started: &str) -> Index {
        let at: Timestamp = started.parse().unwrap();
        Index {
            format: FORMAT,
            id: due.into(),
            pod: String::new(),
            due: due.into(),
            system: SystemIdentifier(1),
            version: String::new(),
            started: at,
            ended: at,
            timeline: 1,
            begins: crate::election::Lsn(0),
            ends: crate::election::Lsn(1),
            segment_size: 16 << 20,
            size: 0,
            stored: 0,
            sha256: String::new(),
        }
    }

    #[test]
    fn a_backup_is_due_at_first_by_order_and_by_schedule() {
        let now = "2026-11-30T15:00:00Z".parse().unwrap();
        assert_eq!(due(&wanted(None), &[], now).as_deref(), Some(FIRST));
        let made_today = made(FIRST, "2026-11-30T03:00:01Z");
        assert_eq!(due(&wanted(None), std::slice::from_ref(&made_today), now), None);
        assert_eq!(
            due(&wanted(None), &[made(FIRST, "2026-11-29T12:00:00Z")], now).as_deref(),
            Some("20261130T030000Z")
        );
        let order = wanted(Some("2026-11-30T14:00:00Z"));
        let done = "now-2026-11-30T14-00-00Z";
        assert_eq!(due(&order, std::slice::from_ref(&made_today), now).as_deref(), Some(done));
        assert_eq!(
            due(&order, &[made_today, made(done, "2026-11-30T14:00:00Z")], now),
            None,
            "an order is followed once"
        );
    }

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
