//! Who is the master: from what a member observes to what it does next. Pure: no I/O, no clock, so that it can be model-checked.

pub mod claim;
pub mod lineage;
pub mod members;
#[cfg(test)]
mod tests;
pub mod way_out;

use std::fmt;

use lineage::{Database, Divergence, Lineage};

/// All that a member's next step depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What is known of the set's Lease.
    pub lease: Lease,
    /// What is on this member's data volume.
    pub data: Data,
    /// What this member's PostgreSQL does now.
    pub server: Server,
    /// This member has the set's first ordinal. It breaks the tie at the very first bootstrap and means nothing after.
    pub first: bool,
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
    Mine {
        /// The database that the set is known to be, if it ever had a master.
        set: Option<Database>,
    },
    /// An earlier pod of this member's own name holds it: it may still be running somewhere.
    Predecessor,
    /// Another member holds it.
    Other {
        /// Where its PostgreSQL answers; absent while it is starting.
        master: Option<Master>,
    },
}

/// PostgreSQL's identifier of a database cluster: equal on a master and all that were cloned from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A master, as its Lease describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// A position in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
pub enum Data {
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
    /// Something that no server should be started on, and why.
    Unusable(String),
}

/// What a member's PostgreSQL does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// Not running.
    Stopped,
    /// Stopped by somebody else's order (`pg_ctl stop` in a `preStop` hook): the pod is about to end.
    StoppedByOthers,
    /// A new database cluster is being made.
    Bootstrapping,
    /// The data is being copied from a master.
    Cloning {
        /// Which one.
        from: Master,
    },
    /// Running, or starting, and accepts writes or will.
    Master,
    /// Running, and accepts writes though it was started as a standby: somebody promoted it by hand.
    Promoted,
    /// Running, or starting, as a standby.
    Replica {
        /// The master that it is set to follow.
        follows: Master,
        /// How far it has come, if it does not stream and has no archive to get its WAL from.
        stuck_at: Option<Lsn>,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// All is as it should be.
    Stay,
    /// Nothing can be done before something else changes.
    Wait(Waiting),
    /// Ask for the Lease.
    TakeLease,
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
    /// Copy the data from the master again, and keep the old data until the new copy streams.
    CloneAnew(Master),
    /// Start PostgreSQL as a standby of the master.
    StartReplica(Master),
    /// Let the running standby follow another master.
    Follow(Master),
    /// Stop PostgreSQL, or the making of it, at once: somebody else may become the master.
    Fence,
    /// Break off the copying: its master is gone.
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
    /// The master is starting.
    ForMasterToStart,
    /// The first member makes the database, and this is another one.
    ForFirstMember,
    /// The pod is about to end.
    ForTheEnd,
    /// The data belongs to another database than the set's.
    OtherDatabase {
        /// What the data says.
        found: SystemIdentifier,
        /// What the set is.
        expected: SystemIdentifier,
    },
    /// The set has a database already, and this member, which should lead, has lost its own copy.
    DataLost,
    /// The data was written as a master's while another member leads: it has to be rewound or cloned anew.
    FormerMaster,
    /// The data was a master's, but does not go on from where the set has come to.
    Diverged(Divergence),
    /// The data can't be used.
    Unusable(String),
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
            Self::ForMasterToStart => write!(f, "waiting for the master to accept connections"),
            Self::ForFirstMember => {
                write!(f, "waiting for the first member of the set, which makes the database or brings it along")
            }
            Self::ForTheEnd => {
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
            Self::FormerMaster => write!(
                f,
                "this data was written by a master while another member leads now: this version neither rewinds nor replaces it; \
                 move the data directory off the volume to let this member be cloned; nothing was touched"
            ),
            Self::Unusable(why) => write!(f, "the data directory can't be used: {why}"),
        }
    }
}

/// From what a member observes to what it does next.
///
/// Only a member whose data was a master's, and goes on from where the set has come to, leads: this version promotes no replica. (The
/// first one takes a Lease that knows no database for long enough to name it.) `Lease::Mine` is the only state in which a server may
/// accept writes, so every other one fences it, and a server
/// that was promoted by anybody else is fenced in all.
#[must_use]
pub fn decide(observation: &Observation) -> Action {
    let Observation { lease, data, server, first } = observation;
    match server {
        Server::Master | Server::Bootstrapping => match lease {
            Lease::Mine { .. } => Action::Stay,
            _ => Action::Fence,
        },
        // What it wrote is no part of the set's history, not even if nobody else leads.
        Server::Promoted => Action::Fence,
        Server::Replica { follows, stuck_at } => decide_replica(lease, data, follows, *stuck_at),
        Server::Cloning { from } => match lease {
            Lease::Other { master: Some(master) } if master.address != from.address || master.system != from.system => {
                Action::AbandonClone
            }
            _ => Action::Stay,
        },
        Server::StoppedByOthers => Action::Wait(Waiting::ForTheEnd),
        Server::Stopped => decide_stopped(lease, data, *first),
    }
}

/// Only data that is known to be a copy of the master's is ever replaced by another one.
fn decide_replica(lease: &Lease, data: &Data, follows: &Master, stuck_at: Option<Lsn>) -> Action {
    match (lease, data) {
        (Lease::Other { master: Some(master) }, Data::Cluster { system, .. }) if *system != master.system => {
            Action::Wait(other_database(*system, master.system))
        }
        (Lease::Other { master: Some(master) }, Data::Cluster { .. }) if is_stranded(stuck_at, master) => {
            Action::CloneAnew(master.clone())
        }
        (Lease::Other { master: Some(master) }, _) if follows != master => Action::Follow(master.clone()),
        (Lease::Mine { .. }, _) => Action::ReleaseLease(Waiting::ForMaster),
        _ => Action::Stay,
    }
}

/// The master has thrown away WAL that the replica needs: it would wait for it for ever.
fn is_stranded(stuck_at: Option<Lsn>, master: &Master) -> bool {
    matches!((stuck_at, master.oldest_wal), (Some(replica), Some(oldest)) if replica < oldest)
}

fn decide_stopped(lease: &Lease, data: &Data, first: bool) -> Action {
    match (lease, data) {
        (Lease::Unknown, _) => Action::Wait(Waiting::ForLease),
        (Lease::Mine { .. }, Data::Unusable(why)) => Action::ReleaseLease(Waiting::Unusable(why.clone())),
        (_, Data::Unusable(why)) => Action::Wait(Waiting::Unusable(why.clone())),
        (Lease::Predecessor, _) => Action::Wait(Waiting::ForPredecessor),

        (Lease::Mine { set: None }, Data::Empty) => Action::Bootstrap,
        (Lease::Mine { set: Some(_) }, Data::Empty) => Action::ReleaseLease(Waiting::DataLost),
        (Lease::Mine { set: None }, Data::Cluster { system, standby: true, lineage }) => {
            Action::NameDatabase(Database { system: *system, reached: Some(lineage.reached()) })
        }
        (Lease::Mine { set }, Data::Cluster { system, standby, lineage }) => {
            match why_not_lead(*system, *standby, lineage, *set) {
                Some(waiting) => Action::ReleaseLease(waiting),
                None => Action::StartMaster,
            }
        }

        // The first member's word is which database the set is: it makes one, brings one along, or, as a replica of it, names it.
        (Lease::Vacant { set: None }, _) if first => Action::TakeLease,
        (Lease::Vacant { set: None }, _) => Action::Wait(Waiting::ForFirstMember),
        (Lease::Vacant { set: Some(_) }, Data::Empty) => Action::Wait(Waiting::DataLost),
        (Lease::Vacant { set }, Data::Cluster { system, standby, lineage }) => {
            match why_not_lead(*system, *standby, lineage, *set) {
                Some(waiting) => Action::Wait(waiting),
                None => Action::TakeLease,
            }
        }

        (Lease::Other { master: None }, _) => Action::Wait(Waiting::ForMasterToStart),
        (Lease::Other { master: Some(master) }, Data::Empty) => Action::Clone(master.clone()),
        (Lease::Other { master: Some(master) }, Data::Cluster { system, standby, .. }) => {
            if *system != master.system {
                Action::Wait(other_database(*system, master.system))
            } else if *standby {
                Action::StartReplica(master.clone())
            } else {
                Action::Wait(Waiting::FormerMaster)
            }
        }
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
