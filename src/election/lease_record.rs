//! What a Lease says, and what to write into it to take, keep or release it. Pure: the time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease as LeaseObject, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::lineage::{Database, Reached};
use super::vote::{Quorum, Record, Version};
use super::{Lsn, Master, SystemIdentifier};
use crate::names;

/// One incarnation of a member: a pod of the same name made anew is another candidate, because the earlier one may still run on a
/// node that nobody hears of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderIdentity {
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
}

impl fmt::Display for HolderIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pod, self.uid)
    }
}

impl HolderIdentity {
    /// From `holderIdentity`; absent if empty or written by a stranger.
    #[must_use]
    pub fn parse(identity: &str) -> Option<Self> {
        let (pod, uid) = identity.split_once('/')?;
        Some(Self { pod: pod.to_owned(), uid: uid.to_owned() })
    }
}

/// The times of a Lease, all from one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimings {
    /// How long the Lease is good after a renewal; candidates wait for as long a silence.
    pub duration: Duration,
}

impl LeaseTimings {
    /// Times of a Lease of so many seconds.
    #[must_use]
    pub fn of_seconds(seconds: u32) -> Self {
        Self { duration: Duration::from_secs(u64::from(seconds)) }
    }

    /// How often the holder renews: three tries fit into one duration.
    #[must_use]
    pub fn renew_every(self) -> Duration {
        self.duration / 3
    }

    /// After so long without a renewal the holder stops PostgreSQL. The last third of the duration is what the stop may take
    /// before anyone else may lead; counted from the start of the last successful request, on the monotonic clock.
    #[must_use]
    pub fn fence_after(self) -> Duration {
        self.duration * 2 / 3
    }

    /// After so long without a renewal the fencer kills all that may write, whatever became of the agent: five sixths, half-way between
    /// the agent's own fence and the moment when another may lead. With the shortest Lease, of 4 s: the agent stops PostgreSQL after
    /// 2.67 s, the fencer kills after 3.33 s, and 0.67 s are left for the kernel to end the processes. With 6 s: 4, 5 and 1 s. Counted,
    /// as the fence is, from before the last successful request; another counts the whole duration from when he saw its outcome.
    #[must_use]
    pub fn kill_after(self) -> Duration {
        self.duration * 5 / 6
    }

    /// How long one renewal may take, so that a lost request leaves time for another before the fence.
    #[must_use]
    pub fn request_timeout(self) -> Duration {
        self.duration / 6
    }

    /// How long an answer of the API server is awaited before the other members are asked for their leave as well. It needs milliseconds.
    #[must_use]
    pub fn patience(self) -> Duration {
        self.duration / 12
    }

    /// How often who leads by leave of the others asks them again: a moment in which one of them is not heard may last for as long.
    #[must_use]
    pub fn ask_every(self) -> Duration {
        self.duration / 4
    }
}

/// What a Lease says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Who holds it; absent if nobody does.
    pub holder: Option<String>,
    /// How long it is good after a renewal, by its holder's own word.
    pub duration: Duration,
    /// The master, once it accepts connections.
    pub master: Option<Master>,
    /// The database that the set is, once it had a master.
    pub set: Option<Database>,
    /// Who may stand, and what commits wait for.
    pub record: Record,
    /// Which life of its container the holder is, by the word that the kubelet tells at its end.
    pub instance: Option<String>,
    /// To whom the last master handed over.
    pub successor: Option<String>,
    /// The last order that was seen to.
    pub order_done: Option<String>,
    /// Why an order was refused, as [`order::refused`](super::order::refused) writes it.
    pub order_refused: Option<String>,
}

/// What a master records with its renewals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Who may stand.
    pub voters: BTreeSet<String>,
    /// What commits wait for.
    pub quorum: Quorum,
    /// The last order that was seen to.
    pub order_done: Option<String>,
    /// Why it was refused, if it was.
    pub order_refused: Option<String>,
}

/// What a master adds to the renewals of its Lease: how far it has come on its timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Where its timeline branched off from the one before.
    pub begins: Option<Lsn>,
    /// What it has on its disk.
    pub flushed: Option<Lsn>,
}

impl LeaseRecord {
    /// Reads a Lease. `fallback` is the duration where the Lease names none.
    #[must_use]
    pub fn read(lease: &LeaseObject, fallback: Duration) -> Self {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|s| s.holder_identity.clone()).filter(|holder| !holder.is_empty());
        let duration = spec
            .and_then(|s| s.lease_duration_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(fallback, Duration::from_secs);
        let note = |key: &str| lease.metadata.annotations.as_ref().and_then(|notes| notes.get(key)).map(String::as_str);
        let system = note(names::lease::SYSTEM_IDENTIFIER).and_then(|text| text.parse().ok()).map(SystemIdentifier);
        let timeline = note(names::lease::TIMELINE).and_then(|text| text.parse().ok());
        let position = |key: &str| note(key).and_then(|text| text.parse().ok());
        let reached = timeline.map(|timeline| Reached {
            timeline,
            begins: position(names::lease::TIMELINE_BEGINS),
            flushed: position(names::lease::FLUSHED),
            stopped_at: position(names::lease::STOPPED_AT),
        });
        let set = system.map(|system| Database { system, reached });
        let master = holder.as_deref().and_then(HolderIdentity::parse).and_then(|candidate| {
            Some(Master {
                pod: candidate.pod,
                address: note(names::lease::ADDRESS)?.to_owned(),
                port: note(names::lease::PORT)?.parse().ok()?,
                system: system?,
                timeline: timeline?,
                oldest_wal: note(names::lease::OLDEST_WAL).and_then(|text| text.parse().ok()).map(Lsn),
                begins: position(names::lease::TIMELINE_BEGINS),
            })
        });
        let voters = note(names::lease::VOTERS).map(list).unwrap_or_default();
        let quorum = note(names::lease::QUORUM).map(|text| read_quorum(text, &voters)).unwrap_or_default();
        let epoch = spec.and_then(|s| s.lease_transitions).and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        Self {
            holder,
            duration,
            master,
            set,
            record: Record { epoch, voters, quorum },
            instance: note(names::lease::INSTANCE).map(str::to_owned),
            successor: note(names::lease::SUCCESSOR).map(str::to_owned),
            order_done: note(names::lease::ORDER_DONE).map(str::to_owned),
            order_refused: note(names::lease::ORDER_REFUSED).map(str::to_owned),
        }
    }
}

fn list(text: &str) -> BTreeSet<String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn quorum_note(quorum: &Quorum) -> String {
    let names: Vec<&str> = quorum.names.iter().map(String::as_str).collect();
    format!("{} of {}", quorum.confirm, names.join(","))
}

/// What can't be read may have meant anything: then it takes all of them, and one more that nobody is.
fn read_quorum(text: &str, voters: &BTreeSet<String>) -> Quorum {
    let known = || {
        let (confirm, names) = text.split_once(" of ")?;
        Some(Quorum { names: list(names), confirm: confirm.trim().parse().ok()? })
    };
    known().unwrap_or_else(|| {
        let names = voters.iter().cloned().chain([text.to_owned()]).collect();
        Quorum { names, confirm: 1 }
    })
}

/// Which state of the Lease this is.
#[must_use]
pub fn version(lease: &LeaseObject) -> Option<Version> {
    Some(Version::new(lease.metadata.uid.as_deref().unwrap_or_default(), lease.metadata.resource_version.as_deref()?))
}

/// What whoever takes the Lease is about to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taking {
    /// The timeline that its promotion begins, and where: from now on no older one leads by itself, not even if nobody ever hears of
    /// this promotion.
    pub begins: Option<Reached>,
    /// What its commits will wait for.
    pub quorum: Quorum,
}

/// The Lease as its new holder writes it: the old master's address goes, what the set is and has reached stays. That a master stopped
/// cleanly is over: the new holder may write from now on.
#[must_use]
pub fn acquired(
    seen: &LeaseObject,
    identity: &str,
    taking: &Taking,
    times: LeaseTimings,
    now: Timestamp,
) -> LeaseObject {
    let mut lease = seen.clone();
    let before = LeaseRecord::read(seen, times.duration);
    let notes: &mut BTreeMap<String, String> = lease.metadata.annotations.get_or_insert_default();
    for key in [
        names::lease::ADDRESS,
        names::lease::PORT,
        names::lease::OLDEST_WAL,
        names::lease::STOPPED_AT,
        names::lease::SUCCESSOR,
        names::lease::MEMBERS,
    ] {
        notes.remove(key);
    }
    // Until it is known what the servers do, the record is as careful as the old and the new. Where commits waited for nobody, no replica
    // is known to have what the new holder has: that is recorded when they have caught up.
    let quorum = match before.record.quorum.confirm {
        0 if before.record.voters.is_empty() && before.set.is_none() => taking.quorum.clone(),
        0 => before.record.quorum.clone(),
        _ => before.record.quorum.widest(&taking.quorum),
    };
    if quorum != before.record.quorum {
        notes.insert(names::lease::QUORUM.to_owned(), quorum_note(&quorum));
    }
    if let (Some(begins), Some(Database { system, .. })) = (taking.begins, before.set) {
        remember(&mut lease, Database { system, reached: Some(begins) });
    }
    let spec = lease.spec.get_or_insert_default();
    let same_holder = spec.holder_identity.as_deref() == Some(identity);
    if !same_holder {
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        spec.acquire_time = Some(MicroTime(now));
    }
    spec.holder_identity = Some(identity.to_owned());
    spec.lease_duration_seconds = i32::try_from(times.duration.as_secs()).ok();
    spec.renew_time = Some(MicroTime(now));
    lease
}

/// The Lease as its holder renews it.
#[must_use]
pub fn renewed(
    held: &LeaseObject,
    master: Option<(&Master, Progress)>,
    told: Option<&Told>,
    times: LeaseTimings,
    now: Timestamp,
) -> LeaseObject {
    let mut lease = held.clone();
    let spec = lease.spec.get_or_insert_default();
    spec.lease_duration_seconds = i32::try_from(times.duration.as_secs()).ok();
    spec.renew_time = Some(MicroTime(now));
    if let Some((master, Progress { begins, flushed })) = master {
        let Master { pod: _, address, port, system, timeline, oldest_wal, begins: _ } = master;
        let reached = Reached { timeline: *timeline, begins, flushed, stopped_at: None };
        remember(&mut lease, Database { system: *system, reached: Some(reached) });
        let notes: &mut BTreeMap<String, String> = lease.metadata.annotations.get_or_insert_default();
        notes.insert(names::lease::ADDRESS.to_owned(), address.clone());
        notes.insert(names::lease::PORT.to_owned(), port.to_string());
        if let Some(Lsn(oldest)) = oldest_wal {
            notes.insert(names::lease::OLDEST_WAL.to_owned(), oldest.to_string());
        }
    }
    if let Some(Told { voters, quorum, order_done, order_refused }) = told {
        let notes: &mut BTreeMap<String, String> = lease.metadata.annotations.get_or_insert_default();
        let voters: Vec<&str> = voters.iter().map(String::as_str).collect();
        notes.insert(names::lease::VOTERS.to_owned(), voters.join(","));
        notes.insert(names::lease::QUORUM.to_owned(), quorum_note(quorum));
        for (key, note) in [(names::lease::ORDER_DONE, order_done), (names::lease::ORDER_REFUSED, order_refused)] {
            if let Some(note) = note {
                notes.insert(key.to_owned(), note.clone());
            }
        }
    }
    lease
}

/// Whatever a member writes into the Lease says which life of its container holds it; one that the kubelet would tell nothing of says
/// so, lest an earlier life's end be taken for its own. That nobody holds it says nothing of a life.
#[must_use]
pub fn by(mut lease: LeaseObject, identity: &str, instance: Option<&str>) -> LeaseObject {
    let holds = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some(identity);
    let notes: &mut BTreeMap<String, String> = lease.metadata.annotations.get_or_insert_default();
    match instance.filter(|_| holds) {
        Some(instance) => notes.insert(names::lease::INSTANCE.to_owned(), instance.to_owned()),
        None => notes.remove(names::lease::INSTANCE),
    };
    lease
}

/// Notes which database the set is, and how far it has come.
fn remember(lease: &mut LeaseObject, database: Database) {
    let Database { system, reached } = database;
    let notes: &mut BTreeMap<String, String> = lease.metadata.annotations.get_or_insert_default();
    notes.insert(names::lease::SYSTEM_IDENTIFIER.to_owned(), system.to_string());
    let Some(Reached { timeline, begins, flushed, stopped_at }) = reached else { return };
    notes.insert(names::lease::TIMELINE.to_owned(), timeline.to_string());
    let positions = [
        (names::lease::TIMELINE_BEGINS, begins),
        (names::lease::FLUSHED, flushed),
        (names::lease::STOPPED_AT, stopped_at),
    ];
    for (key, position) in positions {
        match position {
            Some(position) => notes.insert(key.to_owned(), position.to_string()),
            // What was said of another timeline is not true of this one.
            None => notes.remove(key),
        };
    }
}

/// What a holder says as it gives the Lease back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastWord {
    /// What is known of the database from now on.
    pub database: Option<Database>,
    /// Who is to lead next; the others let it go first.
    pub successor: Option<String>,
    /// The order that this follows.
    pub order_done: Option<String>,
}

/// The Lease as its holder gives it back, with what is known of the database from now on.
#[must_use]
pub fn released(held: &LeaseObject, last_word: Option<&LastWord>, now: Timestamp) -> LeaseObject {
    let mut lease = held.clone();
    if let Some(LastWord { database, successor, order_done }) = last_word {
        if let Some(database) = database {
            remember(&mut lease, *database);
        }
        let notes: &mut BTreeMap<String, String> = lease.metadata.annotations.get_or_insert_default();
        for (key, value) in [(names::lease::SUCCESSOR, successor), (names::lease::ORDER_DONE, order_done)] {
            if let Some(value) = value {
                notes.insert(key.to_owned(), value.clone());
            }
        }
    }
    if let Some(notes) = lease.metadata.annotations.as_mut() {
        notes.remove(names::lease::ADDRESS);
        notes.remove(names::lease::MEMBERS);
    }
    let spec: &mut LeaseSpec = lease.spec.get_or_insert_default();
    spec.holder_identity = None;
    spec.renew_time = Some(MicroTime(now));
    lease
}
