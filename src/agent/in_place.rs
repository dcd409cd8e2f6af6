//! Keeps a recovery in place going beside the member: restores a moment beside the set's data, lets people look at it, and makes it a database that
//! the master can go on from. That the set does so is the [member](super::member)'s part.

mod promote;
mod restore;
mod show;
mod told;
mod work;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nix::sys::statvfs::statvfs;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use self::show::End;
use super::data;
use super::events::{Reason, Teller};
use super::kubernetes::Wishes;
use super::leadership::LeaseSnapshot;
use super::notes::Notes;
use super::postmasters;
use super::provisioner::{self, Provisioner};
use super::recovery::{self, Programs};
use super::status::StatusHandle;
use crate::backup::in_place::{Journal, Next, Role, Stage, next};
use crate::backup::limit::LEFT_FREE;
use crate::election::lineage::Database;
use crate::election::recovered::goes_on_from;
use crate::election::{Lease, recovered};
use crate::errors::with_causes;
use crate::set::backup::Location;
use crate::set::recovery::{Recovery, RecoveryOrder};

/// How often it looks whether something has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// When what failed is tried again, at first and at last. The WAL up to a moment that has just passed is archived within seconds.
const TRY_AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];
/// In the run directory: how far a base backup has come.
const PROGRESS: &str = "recovery-progress";

/// What was accepted and is ready for the master to go on from, whoever holds it. As long as the member has it, nothing is done to it here; as long as
/// it is worked on here, the member has it not.
pub type Accepted = Arc<Mutex<Option<Ready>>>;

/// A database that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// By which order.
    pub recovery: Recovery,
    /// The database.
    pub database: Database,
}

/// Why it does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Data(#[from] data::Error),
    #[error(transparent)]
    Provisioner(#[from] provisioner::Error),
    #[error(transparent)]
    Recovery(#[from] recovery::Error),
    #[error("backups are not asked for (pgset.dev/backup), and there is nothing to recover from")]
    NoBackups,
    #[error("{0} has not come yet")]
    Future(Timestamp),
    #[error(
        "less than a tenth of the volume was free: what was restored beside the data was removed, so that the set goes on"
    )]
    NoRoom,
    #[error(transparent)]
    Unfit(#[from] recovered::Unfit),
    #[error("somebody promoted what was restored: it may be anything by now, and is restored again")]
    Promoted,
    #[error("the task ended")]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    /// Another try comes to the same.
    fn is_final(&self) -> bool {
        matches!(self, Self::Future(_) | Self::NoRoom | Self::Unfit(_))
    }
}

/// A server that people look at.
struct Shown {
    task: JoinHandle<Result<End, recovery::Error>>,
    stop: Option<oneshot::Sender<()>>,
    can_be_seen: watch::Receiver<bool>,
}

/// The keeper of a recovery in place.
pub struct Keeper {
    provisioner: Provisioner,
    wishes: watch::Receiver<Option<Wishes>>,
    lease: watch::Receiver<LeaseSnapshot>,
    teller: Teller,
    status_handle: StatusHandle,
    notes: Notes,
    accepted: Accepted,
    journal: Option<Journal>,
    shown: Option<Shown>,
    /// Why the order that stands is not followed, and never will be.
    refused: Option<(RecoveryOrder, String)>,
    trouble: Option<String>,
    try_at: Instant,
    pause: Duration,
    kept: Option<(u64, Instant)>,
}

// === impl Keeper ===

impl Keeper {
    /// Of a member, with what an earlier life of its container has noted.
    #[must_use]
    pub fn new(
        provisioner: &Provisioner,
        wishes: &watch::Receiver<Option<Wishes>>,
        lease: watch::Receiver<LeaseSnapshot>,
        teller: &Teller,
        status_handle: &StatusHandle,
        notes: &Notes,
    ) -> Self {
        let journal = notes.recovery();
        let is_there = provisioner.data.recovered().path().exists();
        Self {
            provisioner: provisioner.clone(),
            wishes: wishes.clone(),
            lease,
            teller: teller.clone(),
            status_handle: status_handle.clone(),
            notes: notes.clone(),
            accepted: Arc::new(Mutex::new(journal.as_ref().and_then(ready).filter(|_| is_there))),
            journal,
            shown: None,
            refused: None,
            trouble: None,
            try_at: Instant::now(),
            pause: TRY_AGAIN_AFTER[0],
            kept: None,
        }
    }

    /// What the member may go on from.
    #[must_use]
    pub fn accepted(&self) -> Accepted {
        self.accepted.clone()
    }

    /// Goes on for as long as the member lives.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                changed = self.wishes.changed() => if changed.is_err() { std::future::pending::<()>().await },
            }
            // Or the member is at it.
            if let Ok(mut accepted) = self.accepted.clone().try_lock_owned() {
                self.turn(&mut accepted).await;
                *accepted = self.journal.as_ref().and_then(ready);
            }
        }
    }

    async fn turn(&mut self, accepted: &mut OwnedMutexGuard<Option<Ready>>) {
        let order = self.order();
        if order.is_none() && self.journal.is_none() {
            // As ever.
            self.refused = None;
            return self.tell_nothing();
        }
        self.note_accepted().await;
        if self.refused.as_ref().is_some_and(|(refused, _)| Some(refused) != order.as_ref()) {
            self.refused = None;
        }
        let next = self.next();
        if !matches!(next, Next::Show | Next::Rest) {
            self.end_show().await;
        }
        let is_idle = matches!(next, Next::Rest | Next::Show | Next::HandOver(_) | Next::Refuse(_));
        let waits = Instant::now() < self.try_at && !matches!(next, Next::Remove | Next::Forget);
        if !is_idle && !waits || next == Next::Show {
            let outcome = self.act(next.clone(), waits, accepted).await;
            // While it waits what has failed is no better.
            if !waits || outcome.is_err() {
                self.note_outcome(order, outcome).await;
            }
        } else if let Next::HandOver(database) = &next {
            let outcome = self.check(database);
            self.note_outcome(order, outcome).await;
        }
        self.tell(&self.next()).await;
    }

    /// What is to be done next. What is refused for good is not tried again, and only removed.
    fn next(&self) -> Next {
        let order = self.order();
        let keeps = !self.provisioner.data.kept_before().is_empty();
        let wanted = next(order.as_ref(), self.journal.as_ref(), self.role(), keeps);
        match wanted {
            Next::Restore(_) | Next::Recover | Next::Show | Next::Finish | Next::HandOver(_)
                if self.refused.is_some() =>
            {
                if self.journal.is_some() {
                    Next::Remove
                } else {
                    Next::Rest
                }
            }
            wanted => wanted,
        }
    }

    fn order(&self) -> Option<RecoveryOrder> {
        self.wishes.borrow().as_ref()?.recovery.clone()
    }

    fn role(&self) -> Role {
        if self.wishes.borrow().is_none() {
            return Role::Unknown;
        }
        match self.lease.borrow().at(Instant::now()) {
            Lease::Held { .. } => Role::Leads,
            Lease::HeldByOther { .. } => Role::Follows,
            Lease::Unknown | Lease::Vacant { .. } | Lease::HeldByPreviousPod => Role::Unknown,
        }
    }

    async fn act(
        &mut self,
        next: Next,
        waits: bool,
        accepted: &mut OwnedMutexGuard<Option<Ready>>,
    ) -> Result<(), Error> {
        match next {
            Next::Restore(recovery) => self.restore(recovery).await,
            Next::Recover => self.recover().await,
            Next::Show => self.show(waits).await,
            Next::Finish => self.finish().await,
            Next::Remove => {
                **accepted = None;
                let was_accepted =
                    matches!(self.journal.as_ref().map(|it| &it.stage), Some(Stage::Finishing | Stage::Ready(_)));
                if was_accepted && self.role() == Role::Follows {
                    let why = "the recovery that was accepted did not happen: another member leads meanwhile, and order it there again";
                    self.teller.tell(Reason::RecoveryFailed, why);
                }
                info!("what was restored beside the data is removed");
                self.remove().await
            }
            Next::Forget => {
                info!("what was kept from before the recovery is let go");
                let data = self.provisioner.data.clone();
                spawn_blocking(move || data.forget_kept()).await??;
                self.provisioner.data.remove_released();
                self.note(None).await
            }
            Next::Rest | Next::HandOver(_) | Next::Refuse(_) => Ok(()),
        }
    }

    /// What the set has meanwhile may have gone beyond it.
    fn check(&self, database: &Database) -> Result<(), Error> {
        let Some(set) = self.set() else { return Ok(()) };
        Ok(goes_on_from(database, &set).map(drop)?)
    }

    /// The database that the set is, while this member leads it.
    fn set(&self) -> Option<Database> {
        match self.lease.borrow().at(Instant::now()) {
            Lease::Held { set } => set,
            _ => None,
        }
    }

    /// The member has put it in its place.
    async fn note_accepted(&mut self) {
        let Some(Journal { recovery, stage: Stage::Ready(database) }) = self.journal.clone() else { return };
        if self.provisioner.data.recovered().path().exists() {
            return;
        }
        let timeline = database.reached.map_or(0, |reached| reached.timeline);
        let note = format!(
            "the set goes on from {}, on timeline {timeline}; what it had before is kept until pgset recover --forget",
            recovery.target
        );
        self.teller.tell(Reason::RecoveryAccepted, &note);
        let outcome = self.note(Some(Journal { recovery, stage: Stage::Accepted })).await;
        self.note_outcome(self.order(), outcome).await;
        self.kept = None;
    }

    async fn remove(&mut self) -> Result<(), Error> {
        let recovered = self.provisioner.data.recovered();
        postmasters::end_all(recovered.path()).await.map_err(provisioner::Error::from)?;
        // A directory that is gone while it is noted as ready was put in its place.
        if let Some(Journal { recovery, .. }) = self.journal.clone() {
            self.note(Some(Journal { recovery, stage: Stage::Restoring })).await?;
        }
        self.remove_directory().await?;
        self.note(None).await
    }

    async fn remove_directory(&self) -> Result<(), Error> {
        let data = self.provisioner.data.clone();
        spawn_blocking(move || data.remove_recovered()).await??;
        self.provisioner.data.remove_released();
        Ok(())
    }

    async fn note(&mut self, journal: Option<Journal>) -> Result<(), Error> {
        let (notes, new) = (self.notes.clone(), journal.clone());
        spawn_blocking(move || notes.write_recovery(new.as_ref())).await??;
        self.journal = journal;
        Ok(())
    }

    async fn note_outcome(&mut self, order: Option<RecoveryOrder>, outcome: Result<(), Error>) {
        let Err(why) = outcome else {
            if self.shown.as_ref().is_none_or(|shown| *shown.can_be_seen.borrow()) {
                (self.trouble, self.pause) = (None, TRY_AGAIN_AFTER[0]);
            }
            return;
        };
        let text = with_causes(&why);
        warn!(error = text, "the recovery in place does not go on");
        self.teller.tell(Reason::RecoveryFailed, &text);
        if why.is_final() {
            self.refused = order.map(|order| (order, text.clone()));
            if let Err(why) = self.remove().await {
                warn!(error = with_causes(&why), "what was restored beside the data is not removed yet");
            }
        }
        self.trouble = Some(text);
        self.try_at = Instant::now() + self.pause;
        self.pause = TRY_AGAIN_AFTER[1].min(self.pause * 2);
    }

    fn location(&self) -> Option<Location> {
        Some(self.wishes.borrow().as_ref()?.backup.as_ref()?.location.clone())
    }

    /// Whether what stays free for the set's own server, and its WAL that waits for the store, is free. A volume that has not said so to the kernel is
    /// believed to have some.
    fn has_room(&self) -> bool {
        let Ok(volume) = statvfs(self.provisioner.data.path()) else { return true };
        volume.blocks() == 0 || volume.blocks_available() >= volume.blocks() / LEFT_FREE
    }
}

fn ready(journal: &Journal) -> Option<Ready> {
    match journal.stage {
        Stage::Ready(database) => Some(Ready { recovery: journal.recovery.clone(), database }),
        _ => None,
    }
}

fn programs(provisioner: &Provisioner) -> Programs<'_> {
    let Provisioner { binaries, processes, configuration, .. } = provisioner;
    Programs { binaries, processes, arguments: &configuration.server.others }
}
