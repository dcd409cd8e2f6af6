//! Who leads after a master that is gone: what a candidate asks the others, what they promise, and what their answers allow. Pure.
//!
//! Two things keep what was acknowledged. The Lease is taken by compare-and-swap, so that one candidate at most leads. And whoever
//! answers a candidate has stopped its WAL receiver before and keeps it stopped for as long as the Lease stands at that very version:
//! a master that was frozen, and thaws, gets no acknowledgement from it any more. A promise is bound to the version and to nothing
//! else. When the Lease changes, either the candidate leads, or its compare-and-swap can only fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Lsn;
use super::lineage::{Database, Reached};

/// One state of the Lease: what is promised is promised about it alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version(String);

impl Version {
    /// Of an object's UID and resource version.
    #[must_use]
    pub fn new(uid: &str, resource_version: &str) -> Self {
        Self(format!("{uid}/{resource_version}"))
    }

    /// The Lease's UID: one that is made anew is another.
    #[must_use]
    pub fn lease(&self) -> &str {
        self.0.split_once('/').map_or(self.0.as_str(), |(uid, _)| uid)
    }

    /// As it is written into a file.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Version {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// How much of the database's history a member has on its disk. Ordered: a later timeline holds all of an earlier one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The timeline.
    pub timeline: u32,
    /// The end of its WAL.
    pub at: Lsn,
}

/// Who may stand and what a commit waits for, as the Lease records it. The record is never bolder than what the servers do: it is
/// widened before them, and narrowed after them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The number of the leadership: grows with every change of the holder.
    pub epoch: u32,
    /// The members that may stand. Nobody else does, and without any of them nothing is known.
    pub voters: BTreeSet<String>,
    /// The replicas of which some confirm each commit.
    pub quorum: Quorum,
}

/// The replicas that `synchronous_standby_names` lists, and how many of them confirm each commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    /// Who may confirm.
    pub names: BTreeSet<String>,
    /// How many must; 0 where commits wait for nobody.
    pub confirm: u32,
}

/// What a candidate asks the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ballot {
    /// The Lease that it is about to take.
    pub version: Version,
    /// What it has; its receiver is stopped.
    pub position: Position,
}

/// What a member answers a candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It receives nothing while the Lease stands at the ballot's version, and has this.
    Granted(Position),
    /// It led last, has all that there is, and is about to lead again.
    Returns,
    /// It promises nothing.
    Refused(Refusal),
}

/// Why a member promises nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// It sees another Lease, or one that is held.
    OtherLease,
    /// It has promised the master not to take part.
    PromisedToMaster,
    /// It has no copy that counts.
    NoData,
    /// What it has is not known yet, or its receiver has not stopped yet.
    NotYet,
}

/// What a candidate may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Take the Lease.
    Lead,
    /// Somebody has more.
    Yield {
        /// Who.
        to: String,
    },
    /// Whoever led last is about to return with all that there is.
    AwaitReturn {
        /// Who.
        of: String,
    },
    /// A commit may have been confirmed by members that did not answer.
    TooFewVotes {
        /// So many of those that confirm commits answered, with this one.
        have: u32,
        /// So many are needed.
        need: u32,
    },
    /// More could be lost than the user allows.
    TooFarBehind {
        /// Bytes behind the master's last word.
        lag: u64,
        /// `pgset.dev/maximum-lag`.
        allowed: u64,
    },
    /// What it has is not known to go on from where the set has come to.
    OtherHistory,
}

// === impl Quorum ===

impl Quorum {
    /// Without which nothing that was confirmed can be missed: any so many of `names` have one among them that confirmed.
    #[must_use]
    pub fn votes_needed(&self) -> u32 {
        let all = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        all.saturating_sub(self.confirm).saturating_add(1)
    }

    /// The quorum that is as careful as both: what is recorded while one is exchanged for the other.
    #[must_use]
    pub fn widest(&self, other: &Self) -> Self {
        let names: BTreeSet<String> = self.names.union(&other.names).cloned().collect();
        Self { names, confirm: self.confirm.min(other.confirm) }
    }
}

/// Whether this position holds all that a master wrote that stopped cleanly: the checkpoint of its stop is the last thing that it wrote.
#[must_use]
pub fn has_everything(position: Position, reached: &Reached) -> bool {
    position.timeline == reached.timeline && reached.stopped_at.is_some_and(|stop| position.at > stop)
}

/// What the answers allow a candidate to do. `mine` is its own position, with its receiver stopped.
#[must_use]
pub fn tally(
    me: &str,
    mine: Position,
    set: &Database,
    record: &Record,
    maximum_lag: u64,
    answers: &BTreeMap<String, Answer>,
) -> Verdict {
    let granted = || {
        answers.iter().filter_map(|(pod, answer)| match answer {
            Answer::Granted(position) => Some((pod, *position)),
            Answer::Returns | Answer::Refused(_) => None,
        })
    };
    let best = granted().max_by_key(|(_, position)| *position);
    if let Some((pod, _)) = best.filter(|(_, position)| *position > mine) {
        return Verdict::Yield { to: pod.clone() };
    }
    let returns = answers.iter().find(|(_, answer)| **answer == Answer::Returns);
    let returns = returns.map(|(pod, _)| Verdict::AwaitReturn { of: pod.clone() });
    let quorum = &record.quorum;
    if quorum.confirm > 0 {
        let voters = granted().map(|(pod, _)| pod.as_str()).chain([me]).filter(|pod| quorum.names.contains(*pod));
        let (have, need) = (u32::try_from(voters.count()).unwrap_or(u32::MAX), quorum.votes_needed());
        if have < need {
            return returns.unwrap_or(Verdict::TooFewVotes { have, need });
        }
        return match lag(mine, set.reached.as_ref()) {
            Some(_) => Verdict::Lead,
            None => Verdict::OtherHistory,
        };
    }
    if let Some(returns) = returns {
        return returns;
    }
    match lag(mine, set.reached.as_ref()) {
        Some(lag) if lag <= maximum_lag => Verdict::Lead,
        Some(lag) => Verdict::TooFarBehind { lag, allowed: maximum_lag },
        None => Verdict::OtherHistory,
    }
}

/// How many bytes of what the set has reached are missing here; absent where that can't be told.
fn lag(mine: Position, reached: Option<&Reached>) -> Option<u64> {
    // What 0.1.0 wrote last says nothing of it.
    let reached = reached?;
    let flushed = reached.flushed.max(reached.stopped_at);
    if mine.timeline == reached.timeline {
        return flushed.map(|flushed| flushed.0.saturating_sub(mine.at.0));
    }
    // A promotion that was begun and of which nobody heard: nothing is known to be written since.
    let (begins, flushed) = (reached.begins?, flushed?);
    (mine.timeline < reached.timeline && flushed <= begins && mine.at >= begins).then_some(0)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lead => write!(f, "this member may lead"),
            Self::Yield { to } => write!(f, "{to} has more"),
            Self::AwaitReturn { of } => write!(f, "{of}, which led last, is about to return with all that there is"),
            Self::TooFewVotes { have, need } => write!(
                f,
                "of the replicas that confirm commits {have} can be asked, and {need} must be, or a commit that was confirmed could be \
                 lost"
            ),
            Self::TooFarBehind { lag, allowed } => write!(
                f,
                "the best copy at hand is {lag} bytes behind the last word of the master, and pgset.dev/maximum-lag allows {allowed}"
            ),
            Self::OtherHistory => {
                write!(f, "the copies at hand are not known to go on from where the set's last master has come to")
            }
        }
    }
}

#[cfg(test)]
#[path = "vote_tests.rs"]
mod tests;
