//! To take the Lease, renew it, and give it back.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::{Held, LeaderElector, RETRY, Sent, forbidden};
use crate::election::Lease;
use crate::election::lease_record::{self, LastWord, LeaseRecord, Taking};
use crate::election::sight;
use crate::election::vote::Version;
use crate::invariants::Invariant;

enum Refused {
    /// The Lease is not as it was seen.
    Conflict,
    /// This member may not write it.
    Forbidden(String),
    /// No answer, or another one.
    Failed(String),
}

impl LeaderElector {
    pub(super) async fn take(&mut self, version: &Version, taking: &Taking) {
        if self.held.is_some() || !matches!(self.classify(), Lease::Vacant { .. }) {
            return;
        }
        // What was decided was decided about that state of the Lease.
        let Some(seen) = self.seen.clone().filter(|seen| lease_record::version(seen).as_ref() == Some(version)) else {
            return;
        };
        if !self.fencer.is_there() {
            warn!(lease = %self.name, "the Lease is not taken: there is no fencer yet");
            return sleep(RETRY).await;
        }
        let sent = Sent::now();
        let wanted = lease_record::acquired(&seen, &self.identity, taking, self.times, Timestamp::now());
        match self.replace(&wanted).await {
            Ok(lease) => {
                info!(lease = %self.name, "this member leads");
                self.hold(lease, &wanted, sent);
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
    fn hold(&mut self, lease: LeaseObject, wanted: &LeaseObject, sent: Sent) {
        let word = |lease: &LeaseObject| {
            let LeaseRecord { holder, record, .. } = LeaseRecord::read(lease, self.times.duration);
            (holder, record.epoch)
        };
        let (stored, written) = (word(&lease), word(wanted));
        if !Invariant::LeaseIsAsWritten.holds(stored == written, || format!("{stored:?} instead of {written:?}")) {
            self.lose();
            return self.observe(lease);
        }
        if self.by_leave {
            info!(lease = %self.name, "the API server answers again: this member leads by its Lease");
        }
        self.by_leave = false;
        self.seen = Some(lease);
        self.extend(sent);
    }

    pub(super) fn extend(&mut self, sent: Sent) {
        self.observed_at = sent.at;
        let held = if self.fencer.kill_at(sent.moment.after(self.times.kill_after())) {
            let next = if self.by_leave { self.times.ask_every() } else { self.times.renew_every() };
            Held { fence_at: sent.at + self.times.fence_after(), renew_at: sent.at + next }
        } else {
            let fence_at = self.held.as_ref().map_or(sent.at, |held| held.fence_at);
            Held { fence_at, renew_at: Instant::now() + RETRY }
        };
        self.held = Some(held);
    }

    pub(super) async fn renew(&mut self) {
        let Some(seen) = self.seen.clone().filter(|_| self.held.is_some()) else { return };
        let sent = Sent::now();
        let wanted = self.renewal(&seen);
        let renewal = self.replace(&wanted);
        let confirmation = self.leave_of_recorded(&seen);
        let is_away = |answer: &Result<_, _>| matches!(answer, Err(Refused::Failed(_)));
        let (answer, leads_on) = self.answer_or_leave(renewal, confirmation, is_away).await;
        match answer {
            Ok(lease) => self.hold(lease, &wanted, sent),
            Err(Refused::Conflict) => self.settle_conflict(&seen, sent).await,
            Err(Refused::Failed(_)) if leads_on => {}
            Err(Refused::Forbidden(why) | Refused::Failed(why)) => {
                warn!(lease = %self.name, why, "the Lease could not be renewed, trying again");
                self.renew_soon();
            }
        }
    }

    /// The leave of those whom the Lease records, and of those whom it does not yet.
    fn leave_of_recorded(&self, seen: &LeaseObject) -> impl Future<Output = Sent> + use<> {
        let record = LeaseRecord::read(seen, self.times.duration).record;
        let told = self.told.borrow();
        let voters = record.voters.into_iter().chain(told.iter().flat_map(|told| told.voters.clone())).collect();
        let patience = if self.by_leave { Duration::ZERO } else { self.times.patience() };
        self.leave(patience, record.epoch, voters)
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
            warn!(lease = %self.name, holder = LeaseRecord::read(&lease, self.times.duration).holder, "another member leads now, or has led meanwhile");
            self.lose();
            return self.observe(lease);
        }
        // Nobody took it, but what this member's commits wait for has to be said again, as careful as what stands there by now.
        let told = self.told.borrow().clone();
        let recorded = || LeaseRecord::read(&lease, self.times.duration).record.quorum;
        let taking = Taking { begins: None, quorum: told.as_ref().map_or_else(recorded, |told| told.quorum.clone()) };
        let mine = lease_record::acquired(&lease, &self.identity, &taking, self.times, Timestamp::now());
        let wanted = self.renewal(&mine);
        match self.replace(&wanted).await {
            Ok(lease) => self.hold(lease, &wanted, sent),
            Err(_) => self.renew_soon(),
        }
    }

    pub(super) async fn release(&mut self, last_word: Option<LastWord>) {
        let was_held = self.held.is_some();
        self.lose();
        let Some(seen) = self.seen.clone().filter(|_| was_held) else {
            return self.fencer.stand();
        };
        if let Ok(lease) = self.replace(&lease_record::released(&seen, last_word.as_ref(), Timestamp::now())).await {
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

    fn replace(&self, lease: &LeaseObject) -> impl Future<Output = Result<LeaseObject, Refused>> + use<> {
        let lease = lease_record::by(lease.clone(), &self.identity, self.instance.as_deref());
        let (api, name, limit) = (self.api.clone(), self.name.clone(), self.times.request_timeout());
        async move {
            match timeout(limit, api.replace(&name, &PostParams::default(), &lease)).await {
                Ok(Ok(lease)) => Ok(lease),
                Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_not_found() => {
                    Err(Refused::Conflict)
                }
                Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => {
                    Err(Refused::Forbidden(forbidden("write", &name, &status)))
                }
                Ok(Err(error)) => Err(Refused::Failed(error.to_string())),
                Err(_) => Err(Refused::Failed(format!("no answer within {limit:?}"))),
            }
        }
    }
}
