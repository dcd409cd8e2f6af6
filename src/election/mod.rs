//! Who is the master: from what a member observes to what it does next. Pure: no I/O, no clock, so that it can be model-checked.

pub mod anew;
pub mod candidate;
pub mod epoch;
pub mod lease_record;
pub mod leave;
pub mod lineage;
pub mod members;
pub mod order;
pub mod promise;
pub mod quorum;
pub mod recovered;
pub mod sight;
pub mod state;
pub mod step;
#[cfg(test)]
mod tests;
pub mod vote;
pub mod way_out;

use std::fmt;

use serde::{Deserialize, Serialize};

use candidate::Standing;
use lease_record::Taking;
use lineage::{Database, Divergence, Lineage};
use vote::{Ballot, Position, Verdict, Version};

/// All that a member's next step depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What is known of the set's Lease.
    pub lease: Lease,
    /// What is on this member's data volume.
    pub data: DataState,
    /// What this member's PostgreSQL does now.
    pub server: PostgresState,
    /// This member has the set's first ordinal. It breaks the tie at the very first bootstrap and means nothing after.
    pub first: bool,
    /// What this member knows of its chances to lead a set whose master is gone.
    pub standing: Standing,
}

/// What is known of the set's Lease, with time already judged: by the holder's own renew deadline, or by observed silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Not read yet, or not made yet.
    Unknown,
    /// Nobody holds it: released, never held, or its holder was silent for the whole duration.
    Vacant {
        /// The database that the set is known to be, if it ever had a master.
        set: Option<Database>,
    },
    /// This member holds it, and its last renewal is recent enough to accept writes.
    Held {
        /// The database that the set is known to be, if it ever had a master.
        set: Option<Database>,
    },
    /// An earlier pod of this member's own name holds it: it may still be running somewhere.
    HeldByPreviousPod,
    /// Another member holds it.
    HeldByOther {
        /// Where its PostgreSQL answers; absent while it is starting.
        master: Option<Master>,
    },
}

/// PostgreSQL's identifier of a database cluster: equal on a master and all that were cloned from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A master, as its Lease describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// Its pod.
    pub pod: String,
    /// Its pod's address.
    pub address: String,
    /// PostgreSQL's port.
    pub port: u16,
    /// The database cluster.
    pub system: SystemIdentifier,
    /// The timeline that it writes.
    pub timeline: u32,
    /// From where on it has its WAL, as far as it said.
    pub oldest_wal: Option<Lsn>,
    /// Where its timeline branched off from the one before.
    pub begins: Option<Lsn>,
}

// === impl Master ===

impl Master {
    /// Whether this is the same server, with the same history.
    fn is_still(&self, now: &Self) -> bool {
        (&self.address, self.port, self.system, self.timeline) == (&now.address, now.port, now.system, now.timeline)
    }
}

/// A position in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl std::str::FromStr for Lsn {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').unwrap_or(("", text));
        Ok(Self(u64::from(u32::from_str_radix(high, 16)?) << 32 | u64::from(u32::from_str_radix(low, 16)?)))
    }
}

/// What is on a member's data volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataState {
    /// Nothing.
    Empty,
    /// A whole database cluster.
    Cluster {
        /// Which one.
        system: SystemIdentifier,
        /// `standby.signal` is there: it was a replica when it stopped.
        standby: bool,
        /// Where it stands in the database's history.
        lineage: Lineage,
    },
    /// A former master's database whose rewind was broken off: no server can use it any more.
    HalfRewound {
        /// Which one it was.
        system: SystemIdentifier,
    },
    /// Something that no server should be started on, and why.
    Unusable(String),
}

/// What a member's PostgreSQL does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostgresState {
    /// Not running.
    Stopped,
    /// Stopped by somebody else's order (`pg_ctl stop` in a `preStop` hook): the pod is about to end.
    StoppedExternally,
    /// A new database cluster is being made.
    Bootstrapping,
    /// The data is being copied from a master.
    Cloning {
        /// Which one.
        from: Master,
    },
    /// The data, a former master's, is being rewound to go on from a master's.
    Rewinding {
        /// Which one.
        from: Master,
    },
    /// Running, or starting, and accepts writes or will.
    Master,
    /// Running, and accepts writes though it was started as a standby: somebody promoted it by hand.
    Promoted,
    /// Running, or starting, as a standby.
    Replica {
        /// The master that it is set to follow; absent while it follows nobody.
        follows: Option<Master>,
        /// How far it has come, if it does not stream and has no archive to get its WAL from.
        stalled_lsn: Option<Lsn>,
        /// Whether it may receive WAL from anybody.
        receives: bool,
        /// What it has; absent while that is not known, or not all of it is read yet.
        position: Option<Position>,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// All is as it should be.
    Stay,
    /// Nothing can be done before something else changes.
    Wait(Waiting),
    /// Ask for the Lease, as it was seen and not otherwise.
    TakeLease(Taking),
    /// Promise to receive no WAL while the Lease stands at that version, and stop receiving it.
    Promise(Version),
    /// Ask the other members for their votes.
    AskForVotes(Ballot),
    /// Start PostgreSQL as a standby that follows nobody: there is no master, and this member may become it.
    StartStandby,
    /// Let the running standby become the master, on a timeline of at least this number.
    Promote(u32),
    /// Give the Lease back: this member can't be the master.
    ReleaseLease(Waiting),
    /// Give the Lease back with the name of the database that the set is: this member can't be the master, and whoever was may be.
    NameDatabase(Database),
    /// Make a new database cluster.
    Bootstrap,
    /// Start PostgreSQL as the master.
    StartMaster,
    /// Copy the data from the master.
    Clone(Master),
    /// Rewind the data, a former master's, to where it left the history of the present master's.
    Rewind(Master),
    /// Copy the data from the master again, and keep the old data until the new copy streams.
    Reinitialize(Master),
    /// Start PostgreSQL as a standby of the master.
    StartReplica(Master),
    /// Let the running standby follow another master.
    Follow(Master),
    /// Stop PostgreSQL, or the making of it, at once: somebody else may become the master.
    Fence,
    /// Break off the copying, or the rewinding: its master is gone.
    AbandonClone,
}

/// Why a member waits; every reason says what would end it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The Lease is not known.
    ForLease,
    /// An earlier pod of this name holds the Lease.
    ForPredecessor,
    /// There is no master, and this member can't be one.
    ForMaster,
    /// There is no master, and a person is to say who leads next.
    ForFailover,
    /// There is no master, and this member may not lead yet.
    ForVotes(Verdict),
    /// The last master has handed over to another member.
    ForSuccessor(String),
    /// The master is starting.
    ForMasterToStart,
    /// The first member makes the database, and this is another one.
    ForFirstMember,
    /// The pod is about to end.
    ForPodTermination,
    /// The data belongs to another database than the set's.
    OtherDatabase {
        /// What the data says.
        found: SystemIdentifier,
        /// What the set is.
        expected: SystemIdentifier,
    },
    /// The set has a database already, and this member, which should lead, has lost its own copy.
    DataLost,
    /// The rewind of the data was broken off, and there is no master to clone from.
    HalfRewound,
    /// The data was a master's, but does not go on from where the set has come to.
    Diverged(Divergence),
    /// The data can't be used.
    Unusable(String),
    /// PostgreSQL does not start on this data, and another member may lead.
    DoesNotStart,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForLease => write!(
                f,
                "waiting for the set's Lease: pgset's controller makes it, and the Role lets this member read it"
            ),
            Self::ForPredecessor => {
                write!(f, "an earlier pod of this name holds the Lease: waiting until it releases it or it expires")
            }
            Self::ForMaster => {
                write!(f, "the set has no master now, and this member was a replica: waiting for the master to return")
            }
            Self::ForFailover => write!(
                f,
                "the set has no master now, and pgset.dev/failover is manual: waiting for the master to return, or for an order (pgset.dev/switchover)"
            ),
            Self::ForVotes(why) => write!(f, "the set has no master now, and this member does not lead yet: {why}"),
            Self::ForSuccessor(pod) => write!(f, "the last master has handed over to {pod}: waiting for it to lead"),
            Self::ForMasterToStart => write!(f, "waiting for the master to accept connections"),
            Self::ForFirstMember => {
                write!(f, "waiting for the first member of the set, which makes the database or brings it along")
            }
            Self::ForPodTermination => {
                write!(f, "PostgreSQL was stopped from outside (a preStop hook?): waiting for the end of the pod")
            }
            Self::OtherDatabase { found, expected } => write!(
                f,
                "the data directory belongs to another database (system identifier {found}, the set's is {expected}): \
                 move it off the volume to let this member be cloned; nothing was touched"
            ),
            Self::DataLost => write!(
                f,
                "the set has a database, but this member's data directory is empty: it will be cloned when there is a master, \
                 and never made anew; restore the volume if this was the only copy"
            ),
            Self::Diverged(how) => write!(f, "{how}: it does not lead with that; nothing was touched"),
            Self::HalfRewound => write!(
                f,
                "the rewind of this data, a former master's, was broken off: it will be cloned anew when there is a master"
            ),
            Self::Unusable(why) => write!(f, "the data directory can't be used: {why}"),
            Self::DoesNotStart => write!(
                f,
                "PostgreSQL does not start as the master on this data (its log says why): another member may lead, and this one tries \
                 again from time to time"
            ),
        }
    }
}

/// From what a member observes to what it does next.
///
/// A member whose data was a master's, and goes on from where the set has come to, leads again; a replica leads by the rules of
/// [`candidate`]. (The first member takes a Lease that knows no database for long enough to name it.) `Lease::Held` is the only state in
/// which a server may accept writes, so every other one fences it, and a server that was promoted by anybody else is fenced in all.
#[must_use]
pub fn decide(observation: &Observation) -> Action {
    let Observation { lease, data, server, first, standing } = observation;
    match server {
        PostgresState::Master | PostgresState::Bootstrapping => match lease {
            Lease::Held { .. } => Action::Stay,
            _ => Action::Fence,
        },
        // What it wrote is no part of the set's history, not even if nobody else leads.
        PostgresState::Promoted => Action::Fence,
        PostgresState::Replica { follows, stalled_lsn, receives, position } => {
            let replica = Replica {
                follows: follows.as_ref(),
                stalled_lsn: *stalled_lsn,
                receives: *receives,
                position: *position,
            };
            decide_replica(lease, data, &replica, standing)
        }
        PostgresState::Cloning { from } => match lease {
            Lease::HeldByOther { master: Some(master) }
                if master.address != from.address || master.system != from.system =>
            {
                Action::AbandonClone
            }
            _ => Action::Stay,
        },
        PostgresState::Rewinding { from } => match lease {
            Lease::HeldByOther { master: Some(master) } if !from.is_still(master) => Action::AbandonClone,
            _ => Action::Stay,
        },
        PostgresState::StoppedExternally => Action::Wait(Waiting::ForPodTermination),
        PostgresState::Stopped => decide_stopped(lease, data, *first, standing),
    }
}

/// A running standby.
struct Replica<'a> {
    follows: Option<&'a Master>,
    stalled_lsn: Option<Lsn>,
    receives: bool,
    position: Option<Position>,
}

/// Only data that is known to be a copy of the master's is ever replaced by another one.
fn decide_replica(lease: &Lease, data: &DataState, replica: &Replica<'_>, standing: &Standing) -> Action {
    match (lease, data) {
        (Lease::HeldByOther { master: Some(master) }, DataState::Cluster { system, .. })
            if *system != master.system =>
        {
            Action::Wait(other_database(*system, master.system))
        }
        // It has promised to receive nothing while the Lease stands so: whoever it names may be a master that was frozen.
        (Lease::HeldByOther { .. }, _) if standing.has_voted() => Action::Stay,
        (Lease::HeldByOther { master: Some(master) }, DataState::Cluster { .. })
            if is_stranded(replica.stalled_lsn, master) =>
        {
            Action::Reinitialize(master.clone())
        }
        (Lease::HeldByOther { master: Some(master) }, DataState::Cluster { .. })
            if has_left(replica.position, master) =>
        {
            Action::Reinitialize(master.clone())
        }
        (Lease::HeldByOther { master: Some(master) }, _) if replica.follows != Some(master) => {
            Action::Follow(master.clone())
        }
        (Lease::Held { set: Some(set) }, DataState::Cluster { .. }) => {
            Action::Promote(set.reached.map_or(0, |reached| reached.timeline))
        }
        (Lease::Held { .. }, _) => Action::ReleaseLease(Waiting::ForMaster),
        (Lease::Vacant { set: Some(set) }, DataState::Cluster { system, .. }) if *system == set.system => {
            candidate::decide(set, standing, replica.receives, replica.position)
        }
        _ => Action::Stay,
    }
}

/// It has WAL of an earlier timeline that the master's did not go on from.
fn has_left(position: Option<Position>, master: &Master) -> bool {
    matches!((position, master.begins), (Some(position), Some(begins)) if position.timeline < master.timeline && position.at > begins)
}

/// The master has thrown away WAL that the replica needs: it would wait for it for ever.
fn is_stranded(stalled_lsn: Option<Lsn>, master: &Master) -> bool {
    matches!((stalled_lsn, master.oldest_wal), (Some(replica), Some(oldest)) if replica < oldest)
}

fn decide_stopped(lease: &Lease, data: &DataState, first: bool, standing: &Standing) -> Action {
    match (lease, data) {
        (Lease::Unknown, _) => Action::Wait(Waiting::ForLease),
        (Lease::Held { .. }, DataState::Unusable(why)) => Action::ReleaseLease(Waiting::Unusable(why.clone())),
        (_, DataState::Unusable(why)) => Action::Wait(Waiting::Unusable(why.clone())),
        (Lease::HeldByPreviousPod, _) => Action::Wait(Waiting::ForPredecessor),
        (lease, DataState::HalfRewound { system }) => decide_half_rewound(lease, *system),

        (Lease::Held { set: None }, DataState::Empty) => Action::Bootstrap,
        (Lease::Held { set: Some(_) }, DataState::Empty) => Action::ReleaseLease(Waiting::DataLost),
        (Lease::Held { set: None }, DataState::Cluster { system, standby: true, lineage }) => {
            Action::NameDatabase(Database { system: *system, reached: Some(lineage.reached()) })
        }
        // It was elected, and died before it was promoted.
        (Lease::Held { set: Some(set) }, DataState::Cluster { system, standby: true, .. })
            if *system == set.system && standing.may_stand() =>
        {
            Action::StartStandby
        }
        (Lease::Held { set }, DataState::Cluster { system, standby, lineage }) => {
            match why_not_lead(*system, *standby, lineage, *set) {
                Some(waiting) => Action::ReleaseLease(waiting),
                None if standing.lets_others_go_first() => Action::ReleaseLease(Waiting::DoesNotStart),
                None => Action::StartMaster,
            }
        }

        // The first member's word is which database the set is: it makes one, brings one along, or, as a replica of it, names it.
        (Lease::Vacant { set: None }, _) if first => Action::TakeLease(standing.taking()),
        (Lease::Vacant { set: None }, _) => Action::Wait(Waiting::ForFirstMember),
        (Lease::Vacant { set: Some(_) }, DataState::Empty) => Action::Wait(Waiting::DataLost),
        // Only a running one knows how far it has come, and whether it may lead.
        (Lease::Vacant { set: Some(set) }, DataState::Cluster { system, standby: true, .. })
            if *system == set.system && standing.may_stand() =>
        {
            Action::StartStandby
        }
        (Lease::Vacant { set }, DataState::Cluster { system, standby, lineage }) => {
            match why_not_lead(*system, *standby, lineage, *set) {
                Some(waiting) => Action::Wait(waiting),
                None if standing.gave_leave => Action::Wait(Waiting::ForMaster),
                None if standing.lets_others_go_first() => Action::Wait(Waiting::DoesNotStart),
                None => match &standing.successor {
                    Some(pod) => Action::Wait(Waiting::ForSuccessor(pod.clone())),
                    None => Action::TakeLease(standing.taking()),
                },
            }
        }

        (Lease::HeldByOther { master: None }, _) => Action::Wait(Waiting::ForMasterToStart),
        (Lease::HeldByOther { master: Some(master) }, DataState::Empty) => Action::Clone(master.clone()),
        (Lease::HeldByOther { master: Some(master) }, DataState::Cluster { system, .. })
            if *system != master.system =>
        {
            Action::Wait(other_database(*system, master.system))
        }
        (Lease::HeldByOther { master: Some(master) }, DataState::Cluster { standby, lineage, .. }) => {
            // It has promised to receive nothing while the Lease stands so.
            if *standby && standing.has_voted() { Action::StartStandby } else { come_back(*standby, lineage, master) }
        }
    }
}

/// Data of the set's database, while another member leads.
fn come_back(standby: bool, lineage: &Lineage, master: &Master) -> Action {
    // A timeline is written by one member alone. Two that wrote one can't be told apart by their histories, which is all that pg_rewind
    // looks at: it would say that there is nothing to rewind.
    let collides = !standby && lineage.timeline == master.timeline;
    if collides || lineage.unrewindable.is_some() {
        Action::Reinitialize(master.clone())
    } else if standby {
        Action::StartReplica(master.clone())
    } else {
        Action::Rewind(master.clone())
    }
}

fn decide_half_rewound(lease: &Lease, system: SystemIdentifier) -> Action {
    match lease {
        Lease::HeldByOther { master: Some(master) } if system == master.system => Action::Reinitialize(master.clone()),
        Lease::HeldByOther { master: Some(master) } => Action::Wait(other_database(system, master.system)),
        Lease::HeldByOther { master: None } => Action::Wait(Waiting::ForMasterToStart),
        Lease::Held { .. } => Action::ReleaseLease(Waiting::HalfRewound),
        Lease::Unknown | Lease::HeldByPreviousPod | Lease::Vacant { .. } => Action::Wait(Waiting::HalfRewound),
    }
}

/// Why this member can't be the master of the set with its data.
fn why_not_lead(system: SystemIdentifier, standby: bool, lineage: &Lineage, set: Option<Database>) -> Option<Waiting> {
    match set {
        Some(Database { system: expected, .. }) if expected != system => Some(other_database(system, expected)),
        _ if standby => Some(Waiting::ForMaster),
        Some(Database { reached: Some(reached), .. }) => lineage.continues(&reached).err().map(Waiting::Diverged),
        _ => None,
    }
}

fn other_database(found: SystemIdentifier, expected: SystemIdentifier) -> Waiting {
    Waiting::OtherDatabase { found, expected }
}
