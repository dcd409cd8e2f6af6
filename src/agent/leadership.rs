//! Holding the set's Lease: watch it, take it by compare-and-swap, renew it, give it back.
//!
//! The task publishes what [`election::decide`](crate::election::decide) wants to know. The moment at which this member must have
//! stopped writing is part of that, so that the main loop fences by its own timer even while a renewal hangs. A renewal counts only once
//! the fencer knows of it, whose deadline comes a little later: without a fencer nobody leads.

mod handle;
mod hold;
mod unread;
mod view;

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use self::handle::{Command, Noted};
pub use self::handle::{Handle, WritePermit};
pub use self::view::{LeaseSnapshot, Trouble};
use super::electorate::Electorate;
use super::fencer::Moment;
use super::fencing;
use super::notes::Leadership;
use super::promises::Promises;
use crate::backup::summary;
use crate::election::lease_record::{self, HolderIdentity, LeaseRecord, LeaseTimings, Told};
use crate::election::members;
use crate::election::sight::{self, Sight};
use crate::election::step::Seen;
use crate::election::{Lease, Master};

/// How soon a Lease that can't be read is asked for again: the controller makes it and the Role within a second of the set.
const RETRY: Duration = Duration::from_millis(300);
/// How soon an interrupted watch is taken up again. After an outage of the API server the members must not be blind for long.
const WATCH_RETRY: Duration = Duration::from_secs(2);

/// What the task works with.
pub struct Parts {
    /// The API server.
    pub client: Client,
    /// The set's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// This member.
    pub me: HolderIdentity,
    /// The Lease's times.
    pub times: LeaseTimings,
    /// Whoever ends PostgreSQL if nothing else does.
    pub fencer: fencing::Handle,
    /// Which life of its container this is.
    pub instance: Option<String>,
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
    let nothing = LeaseSnapshot { lease: Lease::Unknown, fence_at: None, trouble: None, seen: None, by_leave: false };
    let (publish, view) = watch::channel(nothing);
    let fencer = parts.fencer.clone();
    let elector = LeaderElector::new(parts, noted, told, publish);
    (Handle { view, commands, fencer, noted: note, told: tell }, tokio::spawn(elector.run(inbox)))
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

struct LeaderElector {
    api: Api<LeaseObject>,
    name: String,
    me: HolderIdentity,
    identity: String,
    times: LeaseTimings,
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
    /// The word of this life, for the Lease.
    instance: Option<String>,
    /// A holder, and the life of its container that has ended, by the kubelet.
    ended: Option<(String, String)>,
    fencer: fencing::Handle,
    promises: Promises,
    electorate: Electorate,
    earlier: Option<Leadership>,
    publish: watch::Sender<LeaseSnapshot>,
}

// === impl LeaderElector ===

impl LeaderElector {
    fn new(
        parts: Parts,
        noted: watch::Receiver<Noted>,
        told: watch::Receiver<Option<Told>>,
        publish: watch::Sender<LeaseSnapshot>,
    ) -> Self {
        let Parts { client, namespace, name, me, times, fencer, instance, promises, electorate, earlier } = parts;
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
            instance,
            ended: None,
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
            Command::HolderHasEnded(holder, instance) => self.ended = Some((holder, instance)),
            Command::Release(last_word, done) => {
                self.release(last_word).await;
                let _ = done.send(());
            }
        }
    }

    /// The holder is past its time as far as this member has heard. A watch that hangs would say the same of a holder that is well.
    async fn look_at_silence(&mut self) {
        let before = self.seen.as_ref().and_then(lease_record::version);
        if let Ok(Ok(Some(lease))) = self.read().await {
            self.is_silent = before.is_some() && lease_record::version(&lease) == before;
            self.observe(lease);
        } else {
            sleep(RETRY).await;
        }
    }

    fn lose(&mut self) {
        self.held = None;
        self.master = None;
        self.by_leave = false;
        self.earlier = None;
    }

    fn read(&self) -> impl Future<Output = Result<kube::Result<Option<LeaseObject>>, Elapsed>> + use<> {
        let (api, name, limit) = (self.api.clone(), self.name.clone(), self.times.request_timeout());
        async move { timeout(limit, api.get_opt(&name)).await }
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
        match (self.classify(), self.lease_record().and_then(|lease_record| lease_record.holder)) {
            (Lease::HeldByOther { .. }, Some(holder)) if HolderIdentity::parse(&holder).is_none() => {
                let why = format!(
                    "the Lease {} is held by {holder:?}, which is no member of a set: give that another Lease",
                    self.name
                );
                self.set_trouble(Some(why));
            }
            (Lease::Held { .. } | Lease::HeldByOther { .. } | Lease::HeldByPreviousPod, _) => self.trouble = None,
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
                let held = self.lease_record().filter(|lease_record| lease_record.holder.is_some());
                self.reserved_until = held.map(|lease_record| self.observed_at + lease_record.duration);
            }
            self.observed_at = Instant::now();
            self.is_silent = false;
            if let Some(version) = lease_record::version(&lease) {
                self.promises.see(&version);
            }
            self.seen = Some(lease);
        }
    }

    fn lease_record(&self) -> Option<LeaseRecord> {
        self.seen.as_ref().map(|lease| LeaseRecord::read(lease, self.times.duration))
    }

    /// Another holder's silence ends here, or this member's own renewal is due.
    async fn next_deadline(&self) {
        let deadline = match (&self.held, self.lease_record()) {
            (Some(held), _) => Some(held.renew_at),
            (None, Some(lease_record))
                if lease_record.holder.as_ref().is_some_and(|holder| *holder != self.identity) =>
            {
                let leave = self.promises.leave(Instant::now()).map(|leave| leave.until);
                let expiry = (self.observed_at + lease_record.duration).max(leave.unwrap_or(self.observed_at));
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
        let view = LeaseSnapshot {
            lease: self.classify(),
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
        let version = lease_record::version(self.seen.as_ref()?)?;
        let LeaseRecord { holder, record, instance, successor, order_done, .. } = self.lease_record()?;
        Some(Seen { version, holder, record, instance, successor, order_done })
    }

    fn classify(&self) -> Lease {
        let now = Instant::now();
        let (lease_record, leave) = (self.lease_record(), self.promises.leave(now));
        let is_holder =
            |ended: &String| lease_record.as_ref().and_then(|lease_record| lease_record.holder.as_ref()) == Some(ended);
        let lasts = |lease_record: &LeaseRecord| self.observed_at + lease_record.duration > now;
        sight::classify(&Sight {
            me: &self.me,
            lease_record: lease_record.as_ref(),
            holds: self.held.is_some(),
            earlier: self.earlier.as_ref().map(|earlier| earlier.database),
            leave: leave.as_ref().map(|leave| leave.master.as_ref()),
            is_reserved: self.reserved_until.is_some_and(|until| now < until),
            is_silent: self.is_silent && !lease_record.as_ref().is_some_and(lasts),
            ended: self.ended.as_ref().filter(|(holder, _)| is_holder(holder)).map(|(_, instance)| instance.as_str()),
        })
    }

    /// The Lease as it is renewed now; with the master, once that accepts connections, and what it has noted.
    fn renewal(&self, held: &LeaseObject) -> LeaseObject {
        let noted = self.noted.borrow();
        let master = self.master.as_ref().map(|master| (master, noted.progress));
        let mut lease = lease_record::renewed(held, master, self.told.borrow().as_ref(), self.times, Timestamp::now());
        if master.is_some() {
            members::write(&mut lease, &noted.members);
            summary::write(&mut lease, noted.backups.as_ref());
            noted.recovery.iter().for_each(|recovery| recovery.write(&mut lease));
        }
        lease
    }
}

fn forbidden(what: &str, lease: &str, status: &kube::core::Status) -> String {
    let message = &status.message;
    format!(
        "the API server does not let this member {what} the Lease {lease} ({message}): see the Role and its binding"
    )
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

#[cfg(test)]
#[path = "leadership_tests.rs"]
pub mod tests;
