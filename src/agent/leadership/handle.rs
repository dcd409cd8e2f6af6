//! The rest of the agent's end of the keeper of the Lease.

use std::future::pending;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::view::LeaseSnapshot;
use crate::agent::fencing;
use crate::backup::in_place::Told as Recovery;
use crate::backup::summary::Summary;
use crate::election::epoch::Epoch;
use crate::election::lease_record::{LastWord, Progress, Taking, Told};
use crate::election::vote::Version;
use crate::election::{Lease, Lsn, Master, members};

/// The leave to start a server that accepts writes, or to let one accept them: this member leads at this moment. Nobody else makes one.
#[derive(Debug)]
pub struct WritePermit(());

pub(super) enum Command {
    Take(Version, Taking),
    Announce(Master),
    /// What is to be told can't wait for the next renewal.
    Renew,
    /// The life of this holder's container that this is the word of has ended.
    HolderHasEnded(String, String),
    Release(Option<LastWord>, oneshot::Sender<()>),
}

/// The main loop's end of the task.
#[derive(Debug)]
pub struct Handle {
    pub(super) view: watch::Receiver<LeaseSnapshot>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) fencer: fencing::Handle,
    pub(super) noted: watch::Sender<Noted>,
    pub(super) told: watch::Sender<Option<Told>>,
}

/// What an announced master adds to its next renewal.
#[derive(Debug, Default)]
pub(super) struct Noted {
    pub(super) progress: Progress,
    pub(super) members: Vec<members::Seen>,
    pub(super) backups: Option<Summary>,
    pub(super) recovery: Option<Recovery>,
}

impl Handle {
    /// What is known now.
    #[must_use]
    pub fn view(&self) -> LeaseSnapshot {
        self.view.borrow().clone()
    }

    /// To look at it from elsewhere.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<LeaseSnapshot> {
        self.view.clone()
    }

    /// Completes when whoever leads has to stop writing: renewals move that moment also while this waits, and what ends a leadership before
    /// it does not. Pends for a member that does not lead. Cancel-safe.
    pub fn fence_strikes(&self) -> impl Future<Output = ()> + use<> {
        let mut view = self.view.clone();
        async move {
            let mut fence_at = None;
            loop {
                fence_at = view.borrow_and_update().fence_at.or(fence_at);
                let strikes = async {
                    match fence_at {
                        Some(fence_at) => sleep_until(fence_at).await,
                        None => pending().await,
                    }
                };
                tokio::select! {
                    () = strikes => return,
                    Ok(()) = view.changed() => {}
                }
            }
        }
    }

    /// Completes when something about the Lease changed. Cancel-safe. Pends for ever once the task has ended.
    pub async fn changed(&mut self) {
        if self.view.changed().await.is_err() {
            pending::<()>().await;
        }
    }

    /// Asks for the Lease as it stands at that version, and at no other; the outcome is seen in the view.
    pub async fn take(&self, version: Version, taking: Taking) {
        // What an earlier leadership has told is not true of the next one.
        self.told.send_replace(None);
        let _ = self.commands.send(Command::Take(version, taking)).await;
    }

    /// Records who may stand and what commits wait for, at once if that is not what the Lease says. The outcome is seen in the view.
    pub async fn tell(&self, told: Told) {
        let changed = self.told.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&told);
            *before = Some(told);
            changed
        });
        if changed {
            let _ = self.commands.send(Command::Renew).await;
        }
    }

    /// What was told last.
    #[must_use]
    pub fn told(&self) -> Option<Told> {
        self.told.borrow().clone()
    }

    /// Leave to write, if this member still leads as it did when it decided to.
    #[must_use]
    pub fn permit(&self, decided_in: Option<&Epoch>) -> Option<WritePermit> {
        (self.leads() && self.epoch().as_ref() == decided_in).then_some(WritePermit(()))
    }

    /// The leadership that this member has now; absent also where it leads on without having read the Lease.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.view.borrow().epoch(Instant::now())
    }

    /// Whether this member leads now.
    #[must_use]
    pub fn leads(&self) -> bool {
        matches!(self.view.borrow().at(Instant::now()), Lease::Held { .. })
    }

    /// Completes when this member does not lead, or no longer: renewals move that moment. Cancel-safe.
    pub async fn fenced(&self) {
        let leads = self.view.borrow().fence_at.is_some();
        if leads {
            self.fence_strikes().await;
        }
    }

    /// The kubelet says that the container of this holder has ended: the life of it that this is the word of.
    pub async fn holder_has_ended(&self, holder: String, instance: String) {
        let _ = self.commands.send(Command::HolderHasEnded(holder, instance)).await;
    }

    /// Tells the others where the master answers, now and with every renewal.
    pub async fn announce(&self, master: Master) {
        let _ = self.commands.send(Command::Announce(master)).await;
    }

    /// Nothing of this member's may write now: if it does not lead either, there is nothing to fence.
    pub fn stand_down(&self) {
        if self.view.borrow().fence_at.is_none() {
            self.fencer.stand();
        }
    }

    /// How far the announced master has come: goes along with the next renewal.
    pub fn note(&self, progress: Progress) {
        self.noted.send_modify(|noted| noted.progress = progress);
    }

    /// What the announced master knows of the other members: goes along with the next renewal.
    pub fn note_members(&self, members: Vec<members::Seen>) {
        self.noted.send_modify(|noted| noted.members = members);
    }

    /// What the announced master knows of the set's backups: goes along with the next renewal.
    pub fn note_backups(&self, backups: Option<Summary>) {
        self.noted.send_if_modified(|noted| {
            let is_news = noted.backups != backups;
            noted.backups = backups;
            is_news
        });
    }

    /// What the announced master knows of a recovery in place: goes along with the next renewal.
    pub fn note_recovery(&self, recovery: Option<Recovery>) {
        self.noted.send_if_modified(|noted| {
            let is_news = noted.recovery != recovery;
            noted.recovery = recovery;
            is_news
        });
    }

    /// Where the announced master's timeline branched off, as it was last noted.
    #[must_use]
    pub fn begins(&self) -> Option<Lsn> {
        self.noted.borrow().progress.begins
    }

    /// Gives the Lease back, if it is held, with what is to be known of the database from now on. PostgreSQL must have stopped before.
    pub async fn release(&self, last_word: Option<LastWord>) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Release(last_word, done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}
