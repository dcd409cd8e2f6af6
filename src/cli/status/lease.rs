//! What a set's Lease says. Whoever may write Leases may have written it, so that what makes no sense is as if it were not there.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::{
    backup::{
        in_place::Told,
        summary::{self, Summary},
    },
    election::{
        lease_record::{HolderIdentity, LeaseRecord},
        lineage::Database,
        members::{self, Seen},
    },
    names,
    set::Set,
};

/// Leadership of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// Who holds the Lease.
    pub holder: Holder,
    /// The number of this leadership.
    pub epoch: Option<i32>,
    /// When it began, by its holder's clock.
    pub since: Option<Timestamp>,
    /// When the Lease was last renewed, by its holder's clock.
    pub renewed: Option<Timestamp>,
    /// How long ago that was.
    pub age: Option<Duration>,
    /// How long the Lease is good after a renewal.
    pub duration: Duration,
    /// Its holder has not renewed it for as long as it is good.
    pub is_silent: bool,
    /// Its holder accepts connections.
    pub is_announced: bool,
    /// What the set is and has reached, by the last word of a master.
    pub database: Option<Database>,
    /// What the master knows of the others. An old word is none.
    pub seen: Option<Vec<Seen>>,
    /// Why an order was refused, with its text before it.
    pub order_refused: Option<String>,
    /// What the master tells of the set's backups.
    pub backups: Option<Summary>,
    /// What the master tells of a recovery in place.
    pub recovery: Option<Told>,
}

/// Who holds a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// A pod of the set.
    Member(HolderIdentity),
    /// Something that is no member of it.
    Stranger(String),
}

// === impl Leadership ===

impl Leadership {
    /// Reads a Lease as it was at `now`. `heard` is how long ago a renewal was witnessed, by one clock: it counts for more than the times
    /// that its holder wrote.
    pub fn read(lease: &Value, set: &Set, now: Timestamp, heard: Option<Duration>) -> Self {
        let lease: LeaseObject = serde_json::from_value(lease.clone()).unwrap_or_default();
        let claim = LeaseRecord::read(&lease, Duration::from_secs(set.lease_seconds.into()));
        let spec = lease.spec.as_ref();
        let holder = holder(claim.holder, set);
        let renewed = spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
        let age = heard.or_else(|| renewed.map(|renewed| since(renewed, now)));
        let is_silent = holder != Holder::Nobody && age.is_some_and(|age| age >= claim.duration);
        let is_announced = matches!(holder, Holder::Member(_)) && claim.master.is_some();
        Self {
            epoch: spec.and_then(|spec| spec.lease_transitions),
            since: spec.and_then(|spec| spec.acquire_time.as_ref()).map(|time| time.0),
            renewed,
            age,
            duration: claim.duration,
            is_silent,
            is_announced,
            database: claim.set,
            order_refused: claim.order_refused,
            backups: summary::read(&lease),
            recovery: Told::read(&lease),
            seen: members::read(&lease).filter(|_| is_announced && !is_silent),
            holder,
        }
    }

    /// The member that leads, if one does that can be heard and accepts writes.
    pub fn master(&self) -> Option<&HolderIdentity> {
        match &self.holder {
            Holder::Member(candidate) if self.is_announced && !self.is_silent => Some(candidate),
            _ => None,
        }
    }
}

fn holder(identity: Option<String>, set: &Set) -> Holder {
    let Some(identity) = identity else { return Holder::Nobody };
    let is_member = |candidate: &HolderIdentity| names::ordinal(&candidate.pod, &set.name).is_some();
    match HolderIdentity::parse(&identity).filter(is_member) {
        Some(candidate) => Holder::Member(candidate),
        None => Holder::Stranger(identity),
    }
}

/// How long ago something was; what lies ahead is now, as clocks differ.
pub fn since(then: Timestamp, now: Timestamp) -> Duration {
    let milliseconds = now.as_millisecond().saturating_sub(then.as_millisecond());
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}
