//! Which data may lead: only such as goes on from where the set has come to. A promotion begins a timeline, and what an earlier master
//! wrote after that is no part of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Lsn, SystemIdentifier};

/// The database that a set is, as its Lease remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Which database cluster.
    pub system: SystemIdentifier,
    /// How far it has come; absent in a Lease that 0.1.0 wrote last.
    pub reached: Option<Reached>,
}

/// How far a set has come, by the last word of its master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The timeline.
    pub timeline: u32,
    /// Where it branched off from the one before; absent of the first one, or where that is not known.
    pub begins: Option<Lsn>,
    /// What the master had on its disk at least.
    pub flushed: Option<Lsn>,
    /// The position of the checkpoint with which the master stopped cleanly.
    pub stopped_at: Option<Lsn>,
}

/// Where a data directory stands in the history of its database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The timeline that it is on.
    pub timeline: u32,
    /// The position of the checkpoint with which its server stopped cleanly; absent if it did not, as then it goes further than that.
    pub stopped_at: Option<Lsn>,
    /// The timelines that it was on before, in their order.
    pub branches: Vec<Branch>,
    /// Why no rewind makes it go on from a master's history, once that was tried.
    pub unrewindable: Option<String>,
}

/// A timeline that was left for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The timeline.
    pub timeline: u32,
    /// Up to where it is part of the history.
    pub left_at: Lsn,
}

/// Why data does not go on from where the set has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// Another member was promoted since.
    OlderTimeline {
        /// The data's.
        found: u32,
        /// The set's.
        reached: u32,
    },
    /// Its history lacks what the set has reached: it was promoted apart from it.
    OtherHistory {
        /// The data's timeline.
        found: u32,
        /// The set's timeline.
        reached: u32,
    },
    /// It ends before that: an older copy.
    OlderCopy {
        /// Where it ends.
        found: Lsn,
        /// Where the set is.
        reached: Lsn,
    },
}

// === impl Reached ===

impl Reached {
    /// What whoever leads next must have.
    fn position(&self) -> Option<Lsn> {
        self.flushed.max(self.stopped_at)
    }
}

// === impl Lineage ===

impl Lineage {
    /// The position of a clean stop, as the Lease is to remember it.
    #[must_use]
    pub fn stopped(&self) -> Option<Reached> {
        let at = self.stopped_at?;
        Some(Reached { flushed: Some(at), stopped_at: Some(at), ..self.reached() })
    }

    /// The timeline alone, as the Lease is to remember it.
    #[must_use]
    pub fn reached(&self) -> Reached {
        Reached { timeline: self.timeline, begins: self.begins(self.timeline), flushed: None, stopped_at: None }
    }

    /// Whether this data has all of what the set has reached, as far as that can be told of a server that does not run.
    pub fn continues(&self, reached: &Reached) -> Result<(), Divergence> {
        let (found, timeline) = (self.timeline, reached.timeline);
        if found < timeline {
            return Err(Divergence::OlderTimeline { found, reached: timeline });
        }
        let elsewhere = Divergence::OtherHistory { found, reached: timeline };
        // Two members that are promoted apart from each other begin timelines of one number.
        if matches!((self.begins(timeline), reached.begins), (Some(here), Some(there)) if here != there) {
            return Err(elsewhere);
        }
        let position = reached.position();
        if found > timeline {
            let left_at = self.branches.iter().find(|branch| branch.timeline == timeline).map(|branch| branch.left_at);
            return match left_at {
                Some(left_at) if position.is_none_or(|position| left_at >= position) => Ok(()),
                _ => Err(elsewhere),
            };
        }
        match (self.stopped_at, position) {
            (Some(found), Some(reached)) if found < reached => Err(Divergence::OlderCopy { found, reached }),
            _ => Ok(()),
        }
    }

    /// Up to where this data and a master have one history; absent if that can't be told. `history` is the master's, up to and with
    /// `timeline`, on which it is.
    #[must_use]
    pub fn common_with(&self, history: &[Branch], timeline: u32) -> Option<Branch> {
        let ends = |branches: &[Branch], last| {
            let ends = branches.iter().map(|branch| (branch.timeline, branch.left_at));
            ends.chain([(last, Lsn(u64::MAX))]).collect::<Vec<_>>()
        };
        let mut common = None;
        for ((here, until), (there, theirs)) in
            ends(&self.branches, self.timeline).into_iter().zip(ends(history, timeline))
        {
            if here != there {
                break;
            }
            common = Some(Branch { timeline: here, left_at: until.min(theirs) });
            if until != theirs {
                break;
            }
        }
        common
    }

    /// Whether this data has nothing that a master lacks, with whom it has so much in common. A record that begins before they part is
    /// the same on both sides, and after a clean stop the checkpoint is the last one.
    #[must_use]
    pub fn ends_within(&self, common: &Branch) -> bool {
        common.timeline == self.timeline && self.stopped_at.is_some_and(|end| end < common.left_at)
    }

    /// Where a timeline of its history branched off.
    fn begins(&self, timeline: u32) -> Option<Lsn> {
        let before = if timeline == self.timeline {
            self.branches.last()
        } else {
            let at = self.branches.iter().position(|branch| branch.timeline == timeline)?;
            self.branches.get(at.checked_sub(1)?)
        };
        before.map(|branch| branch.left_at)
    }
}

/// The timelines in a file of history (`pg_wal/00000002.history`): a line each with the timeline, where it was left, and why.
#[must_use]
pub fn branches(history: &str) -> Vec<Branch> {
    let branch = |line: &str| {
        let mut words = line.split_whitespace();
        Some(Branch { timeline: words.next()?.parse().ok()?, left_at: words.next()?.parse().ok()? })
    };
    history.lines().filter_map(branch).collect()
}

/// The name of a timeline's file of history.
#[must_use]
pub fn history_file(timeline: u32) -> String {
    format!("{timeline:08X}.history")
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OlderTimeline { found, reached } => write!(
                f,
                "this data is a former master's: it is on timeline {found}, and the set went on on timeline {reached}, which another \
                 member has"
            ),
            Self::OtherHistory { found, reached } => write!(
                f,
                "this data (timeline {found}) was promoted apart from the set, and lacks some of what the set has on timeline {reached}"
            ),
            Self::OlderCopy { found, reached } => {
                write!(f, "this data is an older copy: it ends at {found}, and the set's master was at {reached}")
            }
        }
    }
}

#[cfg(test)]
#[path = "lineage_tests.rs"]
mod tests;
