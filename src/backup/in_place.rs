//! A recovery in place: a moment is restored beside a set's data, looked at, and becomes the set's data by an order of its owner. What is to be
//! done next, and what is told of it. Pure.

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::summary::in_short;
use crate::election::lineage::Database;
use crate::names::lease::RECOVERY;
use crate::set::recovery::{Recovery, RecoveryOrder};

/// What is noted on the volume of a recovery, beside the directory that it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// Which one.
    pub recovery: Recovery,
    /// How far it has come.
    pub stage: Stage,
}

/// How far a recovery has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The base backup is being brought: half of one is nothing.
    Restoring,
    /// It is there, and PostgreSQL repeats the WAL on it where nobody can connect.
    Restored,
    /// It has come to the moment, on a timeline of its own: as a standby of nobody it can be looked at. A promotion from here on is not the agent's.
    Recovered {
        /// When the last commit was made that it has.
        last_commit: Option<Timestamp>,
    },
    /// It was accepted, and is made what a master can go on from.
    Finishing,
    /// It is that.
    Ready(Database),
    /// The set goes on from it.
    Accepted,
}

/// What a member is to the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads.
    Leads,
    /// Another member does.
    Follows,
    /// Neither is known.
    Unknown,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Rest,
    /// End what runs, and remove what is beside the data: nobody wants it any more, or it can't be used.
    Remove,
    /// Restore the base backup, from the beginning.
    Restore(Recovery),
    /// Let PostgreSQL repeat the WAL.
    Recover,
    /// Let people look.
    Show,
    /// Make it a database that a master can go on from.
    Finish,
    /// Let the master go on from it.
    HandOver(Database),
    /// Remove what the set had before.
    Forget,
    /// Do nothing, and say why.
    Refuse(Refused),
}

/// Why an order is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is nothing to accept.
    NothingReady,
    /// What was kept of the last one takes its room.
    NotForgotten,
}

impl Refused {
    /// For people.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::NothingReady => {
                "the member that leads has no such recovery that is ready: order it (pgset recover --to), and accept it when it is"
            }
            Self::NotForgotten => {
                "the data from before the last recovery is still kept: let it go first (pgset recover --forget)"
            }
        }
    }
}

/// What is to be done, by what is ordered, what is noted on the volume, and what this member is. `keeps`: the data from before a recovery is there.
#[must_use]
pub fn next(order: Option<&RecoveryOrder>, journal: Option<&Journal>, role: Role, keeps: bool) -> Next {
    let Some(Journal { recovery, stage }) = journal.filter(|journal| journal.stage != Stage::Accepted) else {
        let done = journal.map(|journal| &journal.recovery);
        return match order {
            // By whoever has it: the member that led then may be a replica by now.
            Some(RecoveryOrder::Forget { at }) if done.map_or(keeps, |done| done.at < *at) => Next::Forget,
            _ if role != Role::Leads => Next::Rest,
            Some(RecoveryOrder::To(wanted) | RecoveryOrder::Accept(wanted)) if done == Some(wanted) => Next::Rest,
            Some(RecoveryOrder::To(_)) if keeps => Next::Refuse(Refused::NotForgotten),
            Some(RecoveryOrder::To(wanted)) => Next::Restore(wanted.clone()),
            Some(RecoveryOrder::Accept(_)) => Next::Refuse(Refused::NothingReady),
            Some(RecoveryOrder::Forget { .. }) | None => Next::Rest,
        };
    };
    let is_about = |wanted: &Recovery| wanted == recovery;
    match (order, stage, role) {
        // Whoever is about to lead, or has just lost the API server, begins nothing and throws nothing away: the Lease may say already that the set
        // goes on from this.
        (_, _, Role::Unknown) => Next::Rest,
        (Some(RecoveryOrder::To(wanted) | RecoveryOrder::Accept(wanted)), _, _) if !is_about(wanted) => Next::Remove,
        // The member that leads now has its own. What was accepted, and then not, is not what was looked at any more.
        (_, _, Role::Follows)
        | (None | Some(RecoveryOrder::Forget { .. }), _, _)
        | (Some(RecoveryOrder::To(_)), Stage::Finishing | Stage::Ready(_), _) => Next::Remove,
        (Some(_), Stage::Restoring, _) => Next::Restore(recovery.clone()),
        (Some(_), Stage::Restored, _) => Next::Recover,
        (Some(RecoveryOrder::To(_)), Stage::Recovered { .. }, _) => Next::Show,
        (Some(RecoveryOrder::Accept(_)), Stage::Recovered { .. } | Stage::Finishing, _) => Next::Finish,
        (Some(RecoveryOrder::Accept(_)), Stage::Ready(database), _) => Next::HandOver(*database),
        (Some(_), Stage::Accepted, _) => Next::Rest,
    }
}

/// What is told of a recovery on the set's Lease, for people and programs that look at the set. Nothing is decided by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Told {
    /// The member that does it.
    pub pod: String,
    /// The order that it is about.
    pub order: String,
    /// How far it has come.
    pub state: State,
    /// Bytes of the base backup that have come, while it is brought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub brought: Option<u64>,
    /// Bytes that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The last commit that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_commit: Option<Timestamp>,
    /// Why it does not go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Bytes of what is kept from before a recovery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<u64>,
}

/// How far a recovery has come, in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// There is none.
    #[default]
    None,
    /// The base backup is being brought.
    Restoring,
    /// PostgreSQL repeats the WAL.
    Replaying,
    /// It can be looked at, and accepted.
    Ready,
    /// It was accepted, and the set is about to go on from it.
    Accepting,
    /// The set goes on from it.
    Accepted,
    /// It does not go on by itself.
    Refused,
}

// === impl Told ===

impl Told {
    /// There is nothing to tell.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.state == State::None && self.kept.is_none() && self.trouble.is_none() && self.order.is_empty()
    }

    /// With its text as short as it may be.
    #[must_use]
    pub fn cut(mut self) -> Self {
        if let Some(text) = &mut self.trouble {
            *text = in_short(text);
        }
        self
    }

    /// Tells it on a Lease. What another member keeps stays told until there is something to tell.
    pub fn write(&self, lease: &mut LeaseObject) {
        let keeps = |told: Self| told.kept.is_some() && told.pod != self.pod;
        if self.is_nothing() && Self::read(lease).is_some_and(keeps) {
            return;
        }
        let notes = lease.metadata.annotations.get_or_insert_default();
        match serde_json::to_string(self) {
            Ok(text) if !self.is_nothing() => notes.insert(RECOVERY.to_owned(), text),
            _ => notes.remove(RECOVERY),
        };
    }

    /// What a Lease says. Anybody who may write Leases may have written it: what makes no sense is as if it were not there.
    #[must_use]
    pub fn read(lease: &LeaseObject) -> Option<Self> {
        serde_json::from_str(lease.metadata.annotations.as_ref()?.get(RECOVERY)?).ok()
    }
}

#[cfg(test)]
#[path = "in_place_tests.rs"]
mod tests;
