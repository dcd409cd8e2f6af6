//! Holding the set's Lease: watch it, take it by compare-and-swap, renew it, give it back.
//!
//! The task publishes what [`election::decide`](crate::election::decide) wants to know. The moment at which this member must have
//! stopped writing is part of that, so that the main loop fences by its own timer even while a renewal hangs. A renewal counts only once
//! the fencer knows of it, whose deadline comes a little later: without a fencer nobody leads.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::fencer::Moment;
use super::fencing;
use crate::election::claim::{self, Candidate, Claim, Progress, Times};
use crate::election::lineage::Database;
use crate::election::{Lease, Lsn, Master};

/// How soon a Lease that can't be read is asked for again: the controller makes it and the Role within a second of the set.
const RETRY: Duration = Duration::from_millis(300);

/// What the task last knew. `None` in `fence_at` means that this member does not lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    lease: Lease,
    fence_at: Option<Instant>,
    trouble: Option<Trouble>,
}

/// The Lease can't serve its purpose, and time alone won't mend that: the API server says that there is none or that this member may not
/// use it, or something else holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// When it was first seen.
    pub since: Instant,
    /// What it is, and what to do about it.
    pub why: String,
}

impl View {
    /// The Lease as it is at `now`: leadership ends by itself at the fence, whether the task got round to saying so or not.
    #[must_use]
    pub fn at(&self, now: Instant) -> Lease {
        match self.fence_at {
            Some(fence_at) if now >= fence_at => Lease::Unknown,
            _ => self.lease.clone(),
        }
    }

    /// When this member must have stopped writing, if it leads.
    #[must_use]
    pub fn fence_at(&self) -> Option<Instant> {
        self.fence_at
    }

    /// What keeps the Lease from serving its purpose.
    #[must_use]
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }
}

enum Command {
    Take,
    Announce(Master),
    Release(Option<Database>, oneshot::Sender<()>),
}

/// The main loop's end of the task.
#[derive(Debug)]
pub struct Handle {
    view: watch::Receiver<View>,
    commands: mpsc::Sender<Command>,
    fencer: fencing::Handle,
    progress: watch::Sender<Progress>,
}

impl Handle {
    /// What is known now.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// What is known, for others who go by it.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Completes when something about the Lease changed. Cancel-safe. Pends for ever once the task has ended.
    pub async fn changed(&mut self) {
        if self.view.changed().await.is_err() {
            futures::future::pending::<()>().await;
        }
    }

    /// Asks for the Lease; the outcome is seen in the view.
    pub async fn take(&self) {
        let _ = self.commands.send(Command::Take).await;
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
        self.progress.send_replace(progress);
    }

    /// Where the announced master's timeline branched off, as it was last noted.
    #[must_use]
    pub fn begins(&self) -> Option<Lsn> {
        self.progress.borrow().begins
    }

    /// Gives the Lease back, if it is held, with what is to be known of the database from now on. PostgreSQL must have stopped before.
    pub async fn release(&self, last_word: Option<Database>) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Release(last_word, done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

/// Starts the task for the Lease `name`.
pub fn start(
    client: Client,
    namespace: &str,
    name: String,
    me: Candidate,
    times: Times,
    fencer: fencing::Handle,
) -> (Handle, tokio::task::JoinHandle<()>) {
    let (commands, inbox) = mpsc::channel(4);
    let (note, progress) = watch::channel(Progress::default());
    let (publish, view) = watch::channel(View { lease: Lease::Unknown, fence_at: None, trouble: None });
    let keeper = Keeper::new(Api::namespaced(client, namespace), name, me, times, progress, fencer.clone(), publish);
    (Handle { view, commands, fencer, progress: note }, tokio::spawn(keeper.run(inbox)))
}

struct Held {
    fence_at: Instant,
    renew_at: Instant,
}

/// When a request was sent, by the clock of this process and by the one that the fencer goes by.
#[derive(Clone, Copy)]
struct Sent {
    at: Instant,
    moment: Moment,
}

impl Sent {
    fn now() -> Self {
        Self { at: Instant::now(), moment: Moment::now() }
    }
}

struct Keeper {
    api: Api<LeaseObject>,
    name: String,
    me: Candidate,
    identity: String,
    times: Times,
    seen: Option<LeaseObject>,
    observed_at: Instant,
    reserved_until: Option<Instant>,
    held: Option<Held>,
    master: Option<Master>,
    progress: watch::Receiver<Progress>,
    trouble: Option<Trouble>,
    fencer: fencing::Handle,
    publish: watch::Sender<View>,
}

// === impl Keeper ===

impl Keeper {
    fn new(
        api: Api<LeaseObject>,
        name: String,
        me: Candidate,
        times: Times,
        progress: watch::Receiver<Progress>,
        fencer: fencing::Handle,
        publish: watch::Sender<View>,
    ) -> Self {
        Self {
            api,
            identity: me.to_string(),
            name,
            me,
            times,
            seen: None,
            observed_at: Instant::now(),
            reserved_until: None,
            held: None,
            master: None,
            progress,
            trouble: None,
            fencer,
            publish,
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        self.wait_until_readable(&mut inbox).await;
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let events = watcher(self.api.clone(), config).default_backoff().applied_objects();
        let mut events = std::pin::pin!(events);
        loop {
            self.publish();
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Take) => self.take().await,
                    Some(Command::Announce(master)) => {
                        // That the master answers is news for all; anything else goes along with the next renewal.
                        let news = self.master.is_none();
                        self.master = Some(master);
                        if news {
                            self.renew().await;
                        }
                    }
                    Some(Command::Release(last_word, done)) => {
                        self.release(last_word).await;
                        let _ = done.send(());
                    }
                    None => return,
                },
                event = events.next() => match event {
                    Some(Ok(lease)) => self.observe(lease),
                    Some(Err(error)) => debug!(%error, "the watch of the Lease was interrupted"),
                    None => return,
                },
                () = self.next_deadline() => if self.held.is_some() {
                    self.renew().await;
                },
            }
        }
    }

    async fn wait_until_readable(&mut self, inbox: &mut mpsc::Receiver<Command>) {
        let mut told = false;
        loop {
            let Some(answer) = while_nothing_is_held(inbox, self.read()).await else { return };
            let trouble = match answer {
                Ok(Ok(Some(lease))) => {
                    self.trouble = None;
                    return self.observe(lease);
                }
                Ok(Ok(None)) => {
                    Some(format!("there is no Lease {}: pgset's controller makes it, is it running?", self.name))
                }
                Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => Some(self.forbidden("read", &status)),
                _ => None,
            };
            if let Some(why) = trouble.as_ref().filter(|_| !told) {
                info!(lease = %self.name, "waiting for the Lease: {why}");
                told = true;
            }
            self.set_trouble(trouble);
            self.publish();
            if while_nothing_is_held(inbox, sleep(RETRY)).await.is_none() {
                return;
            }
        }
    }

    async fn read(&self) -> Result<kube::Result<Option<LeaseObject>>, Elapsed> {
        timeout(self.times.request_timeout(), self.api.get_opt(&self.name)).await
    }

    fn forbidden(&self, what: &str, status: &kube::core::Status) -> String {
        format!(
            "the API server does not let this member {what} the Lease {} ({}): see the Role and its binding",
            self.name, status.message
        )
    }

    /// What was seen before stays the same trouble.
    fn set_trouble(&mut self, why: Option<String>) {
        self.trouble = why.map(|why| match self.trouble.take() {
            Some(Trouble { since, .. }) => Trouble { since, why },
            None => Trouble { since: Instant::now(), why },
        });
    }

    /// A holder that is no member of a set never gives the Lease to one.
    fn look_for_trouble(&mut self) {
        match (self.judge(), self.claim().and_then(|claim| claim.holder)) {
            (Lease::Other { .. }, Some(holder)) if Candidate::parse(&holder).is_none() => {
                let why = format!(
                    "the Lease {} is held by {holder:?}, which is no member of a set: give that another Lease",
                    self.name
                );
                self.set_trouble(Some(why));
            }
            (Lease::Mine { .. } | Lease::Other { .. } | Lease::Predecessor, _) => self.trouble = None,
            // Whether it can be taken is known only by trying.
            (Lease::Vacant { .. } | Lease::Unknown, _) => {}
        }
    }

    /// While this member leads, its own renewals are the truth, and a conflict among them is what ends it: a watch may lag behind.
    fn observe(&mut self, lease: LeaseObject) {
        if self.held.is_some() {
            return;
        }
        if self.seen.as_ref().and_then(|seen| seen.metadata.resource_version.as_ref())
            != lease.metadata.resource_version.as_ref()
        {
            if self.seen.as_ref().is_some_and(|seen| seen.metadata.uid != lease.metadata.uid) {
                // Somebody deleted it, and who held it may lead on: it is his to take again for as long as he had it.
                let held = self.claim().filter(|claim| claim.holder.is_some());
                self.reserved_until = held.map(|claim| self.observed_at + claim.duration);
            }
            self.observed_at = Instant::now();
            self.seen = Some(lease);
        }
    }

    fn claim(&self) -> Option<Claim> {
        self.seen.as_ref().map(|lease| Claim::read(lease, self.times.duration))
    }

    /// Another holder's silence ends here, or this member's own renewal is due.
    async fn next_deadline(&self) {
        let deadline = match (&self.held, self.claim()) {
            (Some(held), _) => Some(held.renew_at),
            (None, Some(claim)) if claim.holder.is_some() => {
                let expiry = self.observed_at + claim.duration;
                (expiry > Instant::now()).then_some(expiry)
            }
            (None, Some(_)) => self.reserved_until.filter(|until| *until > Instant::now()),
            _ => None,
        };
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => futures::future::pending().await,
        }
    }

    fn publish(&mut self) {
        if self.held.as_ref().is_some_and(|held| Instant::now() >= held.fence_at) {
            warn!("the Lease could not be renewed in time: this member leads no longer");
            self.held = None;
            self.master = None;
            self.observed_at = Instant::now();
        }
        self.look_for_trouble();
        let fence_at = self.held.as_ref().map(|held| held.fence_at);
        let view = View { lease: self.judge(), fence_at, trouble: self.trouble.clone() };
        self.publish.send_if_modified(|published| {
            let changed = *published != view;
            *published = view;
            changed
        });
    }

    fn judge(&self) -> Lease {
        let Some(claim) = self.claim() else { return Lease::Unknown };
        if self.held.is_some() {
            return Lease::Mine { set: claim.set };
        }
        match claim.holder.as_deref() {
            None if self.reserved_until.is_some_and(|until| Instant::now() < until) => Lease::Unknown,
            None => Lease::Vacant { set: claim.set },
            // This container's earlier life held it. All of its processes are gone with it.
            Some(holder) if holder == self.identity => Lease::Vacant { set: claim.set },
            Some(_) if self.observed_at.elapsed() >= claim.duration => Lease::Vacant { set: claim.set },
            Some(holder) => match Candidate::parse(holder) {
                Some(candidate) if candidate.pod == self.me.pod => Lease::Predecessor,
                _ => Lease::Other { master: claim.master },
            },
        }
    }

    /// The master, once it accepts connections, and how far it has come.
    fn announced(&self) -> Option<(&Master, Progress)> {
        let progress = *self.progress.borrow();
        self.master.as_ref().map(|master| (master, progress))
    }

    async fn take(&mut self) {
        if self.held.is_some() || !matches!(self.judge(), Lease::Vacant { .. }) {
            return;
        }
        let Some(seen) = self.seen.clone() else { return };
        if !self.fencer.is_there() {
            warn!(lease = %self.name, "the Lease is not taken: there is no fencer yet");
            return sleep(RETRY).await;
        }
        let sent = Sent::now();
        let wanted = claim::acquired(&seen, &self.identity, self.times, Timestamp::now());
        match self.replace(&wanted).await {
            Ok(lease) => {
                info!(lease = %self.name, "this member leads");
                self.hold(lease, sent);
            }
            Err(Refused::Conflict) => self.reread().await,
            Err(Refused::Forbidden(why)) => {
                debug!(lease = %self.name, why, "the Lease could not be taken, trying again");
                self.set_trouble(Some(why));
                sleep(RETRY).await;
            }
            Err(Refused::Failed(why)) => {
                warn!(lease = %self.name, why, "the Lease could not be taken, trying again");
                sleep(RETRY).await;
            }
        }
    }

    /// Without a fencer that knows of it, the Lease is held no longer than it was before.
    fn hold(&mut self, lease: LeaseObject, sent: Sent) {
        self.seen = Some(lease);
        self.observed_at = sent.at;
        let held = if self.fencer.kill_at(sent.moment.after(self.times.kill_after())) {
            Held { fence_at: sent.at + self.times.fence_after(), renew_at: sent.at + self.times.renew_every() }
        } else {
            let fence_at = self.held.as_ref().map_or(sent.at, |held| held.fence_at);
            Held { fence_at, renew_at: Instant::now() + RETRY }
        };
        self.held = Some(held);
    }

    async fn renew(&mut self) {
        let Some(seen) = self.seen.clone().filter(|_| self.held.is_some()) else { return };
        let sent = Sent::now();
        let wanted = claim::renewed(&seen, self.announced(), self.times, Timestamp::now());
        match self.replace(&wanted).await {
            Ok(lease) => self.hold(lease, sent),
            Err(Refused::Conflict) => self.settle_conflict(sent).await,
            Err(Refused::Forbidden(why) | Refused::Failed(why)) => {
                warn!(lease = %self.name, why, "the Lease could not be renewed, trying again");
                if let Some(held) = self.held.as_mut() {
                    held.renew_at = Instant::now() + RETRY;
                }
            }
        }
    }

    /// Somebody else wrote the Lease. An annotation by hand or a Lease made anew is no loss of it; another holder is.
    async fn settle_conflict(&mut self, sent: Sent) {
        let Ok(Ok(Some(lease))) = timeout(self.times.request_timeout(), self.api.get_opt(&self.name)).await else {
            if let Some(held) = self.held.as_mut() {
                held.renew_at = Instant::now() + RETRY;
            }
            return;
        };
        let holder = Claim::read(&lease, self.times.duration).holder;
        if holder.as_deref().is_some_and(|holder| holder != self.identity) {
            warn!(lease = %self.name, holder, "another member leads now");
            self.held = None;
            self.master = None;
            self.seen = Some(lease);
            self.observed_at = Instant::now();
            return;
        }
        let mine = claim::acquired(&lease, &self.identity, self.times, Timestamp::now());
        let wanted = claim::renewed(&mine, self.announced(), self.times, Timestamp::now());
        if let Ok(lease) = self.replace(&wanted).await {
            self.hold(lease, sent);
        } else if let Some(held) = self.held.as_mut() {
            held.renew_at = Instant::now() + RETRY;
        }
    }

    async fn release(&mut self, last_word: Option<Database>) {
        let Some(seen) = self.seen.clone().filter(|_| self.held.take().is_some()) else { return };
        self.master = None;
        if let Ok(lease) = self.replace(&claim::released(&seen, last_word, Timestamp::now())).await {
            info!(lease = %self.name, "the Lease is released");
            self.seen = Some(lease);
            self.observed_at = Instant::now();
        } else {
            warn!(lease = %self.name, "the Lease could not be released: it expires by itself");
        }
        self.fencer.stand();
    }

    async fn reread(&mut self) {
        if let Ok(Ok(Some(lease))) = timeout(self.times.request_timeout(), self.api.get_opt(&self.name)).await {
            self.observe(lease);
        }
    }

    async fn replace(&self, lease: &LeaseObject) -> Result<LeaseObject, Refused> {
        match timeout(self.times.request_timeout(), self.api.replace(&self.name, &PostParams::default(), lease)).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_not_found() => {
                Err(Refused::Conflict)
            }
            Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => {
                Err(Refused::Forbidden(self.forbidden("write", &status)))
            }
            Ok(Err(error)) => Err(Refused::Failed(error.to_string())),
            Err(_) => Err(Refused::Failed(format!("no answer within {:?}", self.times.request_timeout()))),
        }
    }
}

/// What has no Lease yet has none to give back, and so keeps nobody from ending. Absent once nobody asks any more.
async fn while_nothing_is_held<T>(inbox: &mut mpsc::Receiver<Command>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Some(done),
            command = inbox.recv() => match command? {
                Command::Release(_, done) => {
                    let _ = done.send(());
                }
                // The view says that the Lease is not known: whoever asks for it all the same asks again.
                Command::Take | Command::Announce(_) => {}
            },
        }
    }
}

enum Refused {
    /// The Lease is not as it was seen.
    Conflict,
    /// This member may not write it.
    Forbidden(String),
    /// No answer, or another one.
    Failed(String),
}

#[cfg(test)]
#[path = "leadership_tests.rs"]
mod tests;
