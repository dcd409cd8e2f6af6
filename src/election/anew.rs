//! Why a member's data is not made to follow, but cloned anew.

use std::fmt;

use super::{DataState, Master};

/// Why a member's data is cloned anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anew {
    /// The master has thrown away WAL that the replica needs.
    WalGone,
    /// Two members have written one timeline.
    Collision {
        /// Which one.
        timeline: u32,
    },
    /// Its rewind was broken off.
    HalfRewound,
    /// No rewind helps it.
    Unrewindable(String),
}

// === impl Anew ===

impl Anew {
    /// Why data that [`super::decide`] has cloned anew from a master is.
    #[must_use]
    pub fn of(data: &DataState, master: &Master) -> Self {
        match data {
            DataState::HalfRewound { .. } => Self::HalfRewound,
            DataState::Cluster { lineage, .. } if lineage.unrewindable.is_some() => {
                Self::Unrewindable(lineage.unrewindable.clone().unwrap_or_default())
            }
            DataState::Cluster { standby: false, lineage, .. } if lineage.timeline == master.timeline => {
                Self::Collision { timeline: lineage.timeline }
            }
            _ => Self::WalGone,
        }
    }
}

impl fmt::Display for Anew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WalGone => write!(f, "the master has thrown away WAL that this replica needs"),
            Self::Collision { timeline } => write!(
                f,
                "this data was written as a master's on timeline {timeline}, which another member leads on now: what differs can't be told"
            ),
            Self::HalfRewound => write!(f, "the rewind of this data, a former master's, was broken off"),
            Self::Unrewindable(why) => write!(f, "this data, a former master's, can't be rewound: {why}"),
        }
    }
}
