//! Holding the set's Lease: watch it, take it by compare-and-swap, renew it, give it back.
//!
//! The task publishes what [`election::decide`](crate::election::decide) wants to know. The moment at which this member must have
//! stopped writing is part of that, so that the main loop fences by its own timer even while a renewal hangs. A renewal counts only once
//! the fencer knows of it, whose deadline comes a little later: without a fencer nobody leads.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::electorate::Electorate;
use super::fencer::Moment;
use super::fencing;
use super::notes::Leadership;
use super::promises::Promises;
use crate::election::claim::{self, Candidate, Claim, LastWord, Progress, Taking, Times, Told};
use crate::election::epoch::Epoch;
use crate::election::members;
use crate::election::sight::{self, Sight};
use crate::election::vote::{Record, Version};
use crate::election::{Lease, Lsn, Master, leave};

/// How soon a Lease that can't be read is asked for again: the controller makes it and the Role within a second of the set.
const RETRY: Duration = Duration::from_millis(300);
/// How soon an interrupted watch is taken up again. After an outage of the API server the members must not be blind for long.
const WATCH_RETRY: Duration = Duration::from_secs(2);

/// What the task last knew. `None` in `fence_at` means that this member does not lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    lease: Lease,
    fence_at: Option<Instant>,
    trouble: Option<Trouble>,
    seen: Option<Seen>,
    by_leave: bool,
}

/// The Lease as it was read last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which state of it.
    pub version: Version,
    /// Who holds it.
    pub holder: Option<String>,
    /// Who may stand, and what commits wait for.
    pub record: Record,
    /// To whom the last master handed over.
    pub successor: Option<String>,
    /// The last order that was seen to.
    pub order_done: Option<String>,
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

    /// The Lease as it was read last; while this member leads, as it wrote it.
    #[must_use]
    pub fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// The leadership that this member has at `now`.
    #[must_use]
    pub fn epoch(&self, now: Instant) -> Option<Epoch> {
        let seen = self.seen.as_ref().filter(|_| matches!(self.at(now), Lease::Mine { .. }))?;
        Some(Epoch::new(&seen.version, seen.record.epoch))
    }

    /// It leads by the leave of the other members: the API server does not answer.
    #[must_use]
    pub fn is_by_leave(&self) -> bool {
        self.by_leave
    }

    /// What keeps the Lease from serving its purpose.
    #[must_use]
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }
}

/// The leave to start a server that accepts writes, or to let one accept them: this member leads at this moment. Nobody else makes one.
#[derive(Debug)]
pub struct WritePermit(());

enum Command {
    Take(Version, Taking),
    Announce(Master),
    /// What is to be told can't wait for the next renewal.
    Renew,
    Release(Option<LastWord>, oneshot::Sender<()>),
}

/// The main loop's end of the task.
#[derive(Debug)]
pub struct Handle {
    view: watch::Receiver<View>,
    commands: mpsc::Sender<Command>,
    fencer: fencing::Handle,
    noted: watch::Sender<Noted>,
    told: watch::Sender<Option<Told>>,
}

/// What an announced master adds to its next renewal.
#[derive(Debug, Default)]
struct Noted {
    progress: Progress,
    members: Vec<members::Seen>,
}

impl Handle {
    /// What is known now.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// To look at it from elsewhere.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Completes when something about the Lease changed. Cancel-safe. Pends for ever once the task has ended.
    pub async fn changed(&mut self) {
        if self.view.changed().await.is_err() {
            futures::future::pending::<()>().await;
        }
    }

    /// Asks for the Lease as it stands at that version, and at no other; the outcome is seen in the view.
    pub async fn take(&self, version: Version, taking: Taking) {
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

    /// Leave to write, if this member leads now.
    #[must_use]
    pub fn permit(&self) -> Option<WritePermit> {
        self.leads().then_some(WritePermit(()))
    }

    /// Whether this member leads now.
    #[must_use]
    pub fn leads(&self) -> bool {
        matches!(self.view.borrow().at(Instant::now()), Lease::Mine { .. })
    }

    /// Completes when this member does not lead, or no longer: renewals move that moment. Cancel-safe.
    pub async fn fenced(&self) {
        loop {
            let fence_at = self.view.borrow().fence_at;
            match fence_at {
                Some(fence_at) if Instant::now() < fence_at => sleep_until(fence_at).await,
                _ => return,
            }
        }
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

/// What the task works with.
pub struct Parts {
    /// The API server.
    pub client: Client,
    /// The set's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// This member.
    pub me: Candidate,
    /// The Lease's times.
    pub times: Times,
    /// Whoever ends PostgreSQL if nothing else does.
    pub fencer: fencing::Handle,
    /// What this member has promised.
    pub promises: Promises,
    /// The other members.
    pub electorate: Electorate,
    /// The leadership that an earlier life of this container had.
    pub earlier: Option<Leadership>,
}

/// Starts the task.
pub fn start(parts: Parts) -> (Handle, tokio::task::JoinHandle<()>) {
    let (commands, inbox) = mpsc::channel(4);
    let (note, noted) = watch::channel(Noted::default());
    let (tell, told) = watch::channel(None);
    let nothing = View { lease: Lease::Unknown, fence_at: None, trouble: None, seen: None, by_leave: false };
    let (publish, view) = watch::channel(nothing);
    let fencer = parts.fencer.clone();
    let keeper = Keeper::new(parts, noted, told, publish);
    (Handle { view, commands, fencer, noted: note, told: tell }, tokio::spawn(keeper.run(inbox)))
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
    /// Its holder has been silent for the whole duration, and a look at the API server itself says the same.
    is_silent: bool,
    reserved_until: Option<Instant>,
    held: Option<Held>,
    by_leave: bool,
    master: Option<Master>,
    noted: watch::Receiver<Noted>,
    told: watch::Receiver<Option<Told>>,
    trouble: Option<Trouble>,
    fencer: fencing::Handle,
    promises: Promises,
    electorate: Electorate,
    earlier: Option<Leadership>,
    publish: watch::Sender<View>,
}

// === impl Keeper ===

impl Keeper {
    fn new(
        parts: Parts,
        noted: watch::Receiver<Noted>,
        told: watch::Receiver<Option<Told>>,
        publish: watch::Sender<View>,
    ) -> Self {
        let Parts { client, namespace, name, me, times, fencer, promises, electorate, earlier } = parts;
        let identity = me.to_string();
        Self {
            api: Api::namespaced(client, &namespace),
            name,
            me,
            times,
            seen: None,
            observed_at: Instant::now(),
            is_silent: false,
            reserved_until: None,
            held: None,
            by_leave: false,
            master: None,
            noted,
            told,
            trouble: None,
            fencer,
            promises,
            electorate,
            earlier: earlier.filter(|earlier| earlier.holder == identity),
            identity,
            publish,
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        self.wait_until_readable(&mut inbox).await;
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let events = watcher(self.api.clone(), config).backoff(Steady).applied_objects();
        let mut events = std::pin::pin!(events);
        loop {
            self.publish();
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                event = events.next() => match event {
                    Some(Ok(lease)) => self.hear(lease),
                    Some(Err(error)) => debug!(%error, "the watch of the Lease was interrupted"),
                    None => return,
                },
                () = self.next_deadline() => if self.held.is_some() {
                    self.renew().await;
                } else {
                    self.look_at_silence().await;
                },
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Take(version, taking) => self.take(&version, &taking).await,
            Command::Announce(master) => {
                // That the master answers is news for all; anything else goes along with the next renewal.
                let news = self.master.is_none();
                self.master = Some(master);
                if news {
                    self.renew().await;
                }
            }
            Command::Renew => self.renew().await,
            Command::Release(last_word, done) => {
                self.release(last_word).await;
                let _ = done.send(());
            }
        }
    }

    /// The holder is past its time as far as this member has heard. A watch that hangs would say the same of a holder that is well.
    async fn look_at_silence(&mut self) {
        let before = self.seen.as_ref().and_then(claim::version);
        if let Ok(Ok(Some(lease))) = self.read().await {
            self.is_silent = before.is_some() && claim::version(&lease) == before;
            self.observe(lease);
        } else {
            sleep(RETRY).await;
        }
    }

    async fn wait_until_readable(&mut self, inbox: &mut mpsc::Receiver<Command>) {
        let mut told = false;
        loop {
            let read = self.read();
            let answer = tokio::select! {
                answer = read => answer,
                command = inbox.recv() => match command {
                    Some(command) => {
                        self.obey_unread(command).await;
                        self.publish();
                        continue;
                    }
                    None => return,
                },
            };
            let trouble = match answer {
                Ok(Ok(Some(lease))) => {
                    self.trouble = None;
                    return self.observe_first(lease);
                }
                Ok(Ok(None)) => {
                    Some(format!("there is no Lease {}: pgset's controller makes it, is it running?", self.name))
                }
                Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => Some(self.forbidden("read", &status)),
                Ok(Err(_)) | Err(_) => {
                    self.lead_on_unread().await;
                    None
                }
            };
            if let Some(why) = trouble.as_ref().filter(|_| !told) {
                info!(lease = %self.name, "waiting for the Lease: {why}");
                told = true;
            }
            self.set_trouble(trouble);
            self.publish();
            let pause = sleep(RETRY);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    command = inbox.recv() => match command {
                        Some(command) => {
                            self.obey_unread(command).await;
                            self.publish();
                        }
                        None => return,
                    },
                }
            }
        }
    }

    /// What has no Lease yet has none to give back, and so keeps nobody from ending.
    async fn obey_unread(&mut self, command: Command) {
        match command {
            Command::Announce(master) => self.master = Some(master),
            Command::Release(last_word, done) => {
                self.release(last_word).await;
                let _ = done.send(());
            }
            // The view says that the Lease is not known: whoever asks for it all the same asks again.
            Command::Take(..) | Command::Renew => {}
        }
    }

    /// An earlier life of this container led, and the API server does not answer: while all the other members confirm that, it goes on.
    async fn lead_on_unread(&mut self) {
        let Some(earlier) = &self.earlier else { return };
        let is_due = self.held.as_ref().is_none_or(|held| Instant::now() >= held.renew_at);
        if !is_due || !self.fencer.is_there() {
            return;
        }
        let (epoch, voters) = (earlier.epoch, earlier.voters.clone());
        self.ask_leave(epoch, voters).await;
    }

    /// The first look at the Lease. Who has led on without it has to find itself in it.
    fn observe_first(&mut self, lease: LeaseObject) {
        if self.held.is_some() {
            let Claim { holder, record, .. } = Claim::read(&lease, self.times.duration);
            let epoch = self.earlier.as_ref().map_or(record.epoch, |earlier| earlier.epoch);
            if holder.as_deref() != Some(self.identity.as_str()) || record.epoch != epoch {
                warn!(lease = %self.name, ?holder, "another member leads now, or has led meanwhile");
                self.lose();
            } else if let Some(version) = claim::version(&lease) {
                self.promises.see(&version);
                self.seen = Some(lease);
                return;
            }
        }
        self.observe(lease);
    }

    fn lose(&mut self) {
        self.held = None;
        self.master = None;
        self.by_leave = false;
        self.earlier = None;
    }

    /// Asks every other member for leave to lead on. Without any other, nobody has to be asked.
    async fn ask_leave(&mut self, epoch: u32, voters: BTreeSet<String>) -> bool {
        if !voters.contains(&self.me.pod) {
            return false;
        }
        let others: Vec<String> = voters.into_iter().filter(|pod| *pod != self.me.pod).collect();
        let request = leave::Request { holder: self.me.clone(), epoch, master: self.master.clone() };
        let sent = Sent::now();
        let limit = self.times.request_timeout();
        let confirmed = timeout(limit, self.electorate.all_confirm(&request, &others)).await.unwrap_or(false);
        if confirmed {
            if !self.by_leave {
                warn!(lease = %self.name, ?others, "the API server does not answer: this member leads on, by leave of all others");
            }
            self.by_leave = true;
            self.extend(sent);
        }
        confirmed
    }

    fn read(&self) -> impl Future<Output = Result<kube::Result<Option<LeaseObject>>, Elapsed>> + use<> {
        let (api, name, limit) = (self.api.clone(), self.name.clone(), self.times.request_timeout());
        async move { timeout(limit, api.get_opt(&name)).await }
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

    /// What a watch tells. One that hung may deliver what was true before the last look at the API server.
    fn hear(&mut self, lease: LeaseObject) {
        if !self.seen.as_ref().is_some_and(|seen| sight::is_older(&lease, seen)) {
            self.observe(lease);
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
            self.is_silent = false;
            if let Some(version) = claim::version(&lease) {
                self.promises.see(&version);
            }
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
            (None, Some(claim)) if claim.holder.as_ref().is_some_and(|holder| *holder != self.identity) => {
                let leave = self.promises.leave(Instant::now()).map(|leave| leave.until);
                let expiry = (self.observed_at + claim.duration).max(leave.unwrap_or(self.observed_at));
                (!self.is_silent || expiry > Instant::now()).then_some(expiry)
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
            self.by_leave = false;
            self.master = None;
            self.observed_at = Instant::now();
        }
        self.look_for_trouble();
        let view = View {
            lease: self.judge(),
            fence_at: self.held.as_ref().map(|held| held.fence_at),
            trouble: self.trouble.clone(),
            seen: self.facts(),
            by_leave: self.by_leave,
        };
        self.publish.send_if_modified(|published| {
            let changed = *published != view;
            *published = view;
            changed
        });
    }

    fn facts(&self) -> Option<Seen> {
        let version = claim::version(self.seen.as_ref()?)?;
        let Claim { holder, record, successor, order_done, .. } = self.claim()?;
        Some(Seen { version, holder, record, successor, order_done })
    }

    fn judge(&self) -> Lease {
        let now = Instant::now();
        let (claim, leave) = (self.claim(), self.promises.leave(now));
        let lasts = |claim: &Claim| self.observed_at + claim.duration > now;
        sight::judge(&Sight {
            me: &self.me,
            claim: claim.as_ref(),
            holds: self.held.is_some(),
            earlier: self.earlier.as_ref().map(|earlier| earlier.database),
            leave: leave.as_ref().map(|leave| leave.master.as_ref()),
            is_reserved: self.reserved_until.is_some_and(|until| now < until),
            is_silent: self.is_silent && !claim.as_ref().is_some_and(lasts),
        })
    }

    /// The Lease as it is renewed now; with the master, once that accepts connections, and what it has noted.
    fn renewal(&self, held: &LeaseObject) -> LeaseObject {
        let noted = self.noted.borrow();
        let master = self.master.as_ref().map(|master| (master, noted.progress));
        let mut lease = claim::renewed(held, master, self.told.borrow().as_ref(), self.times, Timestamp::now());
        if master.is_some() {
            members::write(&mut lease, &noted.members);
        }
        lease
    }

    async fn take(&mut self, version: &Version, taking: &Taking) {
        if self.held.is_some() || !matches!(self.judge(), Lease::Vacant { .. }) {
            return;
        }
        // What was decided was decided about that state of the Lease.
        let Some(seen) = self.seen.clone().filter(|seen| claim::version(seen).as_ref() == Some(version)) else {
            return;
        };
        if !self.fencer.is_there() {
            warn!(lease = %self.name, "the Lease is not taken: there is no fencer yet");
            return sleep(RETRY).await;
        }
        let sent = Sent::now();
        let wanted = claim::acquired(&seen, &self.identity, taking, self.times, Timestamp::now());
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
        if self.by_leave {
            info!(lease = %self.name, "the API server answers again: this member leads by its Lease");
        }
        self.by_leave = false;
        self.seen = Some(lease);
        self.extend(sent);
    }

    fn extend(&mut self, sent: Sent) {
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
        let told = self.told.borrow().clone();
        let wanted = self.renewal(&seen);
        match self.replace(&wanted).await {
            Ok(lease) => self.hold(lease, sent),
            Err(Refused::Conflict) => self.settle_conflict(&seen, sent).await,
            Err(Refused::Forbidden(why)) => {
                warn!(lease = %self.name, why, "the Lease could not be renewed, trying again");
                self.renew_soon();
            }
            Err(Refused::Failed(why)) => {
                if !self.by_leave {
                    warn!(lease = %self.name, why, "the Lease could not be renewed, trying again");
                }
                let record = Claim::read(&seen, self.times.duration).record;
                let voters = record.voters.into_iter().chain(told.into_iter().flat_map(|told| told.voters)).collect();
                if !self.ask_leave(record.epoch, voters).await {
                    self.renew_soon();
                }
            }
        }
    }

    fn renew_soon(&mut self) {
        if let Some(held) = self.held.as_mut() {
            held.renew_at = Instant::now() + RETRY;
        }
    }

    /// Somebody else wrote the Lease.
    async fn settle_conflict(&mut self, held: &LeaseObject, sent: Sent) {
        let Ok(Ok(Some(lease))) = timeout(self.times.request_timeout(), self.api.get_opt(&self.name)).await else {
            return self.renew_soon();
        };
        if sight::is_lost(&self.me, held, &lease) {
            warn!(lease = %self.name, holder = Claim::read(&lease, self.times.duration).holder, "another member leads now, or has led meanwhile");
            self.lose();
            return self.observe(lease);
        }
        // Nobody took it, but what this member's commits wait for has to be said again, as careful as what stands there by now.
        let told = self.told.borrow().clone();
        let recorded = || Claim::read(&lease, self.times.duration).record.quorum;
        let taking = Taking { begins: None, quorum: told.as_ref().map_or_else(recorded, |told| told.quorum.clone()) };
        let mine = claim::acquired(&lease, &self.identity, &taking, self.times, Timestamp::now());
        let wanted = self.renewal(&mine);
        match self.replace(&wanted).await {
            Ok(lease) => self.hold(lease, sent),
            Err(_) => self.renew_soon(),
        }
    }

    async fn release(&mut self, last_word: Option<LastWord>) {
        let was_held = self.held.is_some();
        self.lose();
        let Some(seen) = self.seen.clone().filter(|_| was_held) else {
            return self.fencer.stand();
        };
        if let Ok(lease) = self.replace(&claim::released(&seen, last_word.as_ref(), Timestamp::now())).await {
            info!(lease = %self.name, "the Lease is released");
            self.observe(lease);
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

/// Always after the same pause.
struct Steady;

impl Iterator for Steady {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(WATCH_RETRY)
    }
}

impl Backoff for Steady {
    fn reset(&mut self) {}
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
