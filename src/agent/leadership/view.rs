//! What the keeper of the Lease tells the rest of the agent.

use tokio::time::Instant;

use crate::election::Lease;
use crate::election::epoch::Epoch;
use crate::election::step::Seen;

/// What the task last knew. `None` in `fence_at` means that this member does not lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseSnapshot {
    pub(super) lease: Lease,
    pub(super) fence_at: Option<Instant>,
    pub(super) trouble: Option<Trouble>,
    pub(super) seen: Option<Seen>,
    pub(super) by_leave: bool,
}

/// The Lease can't serve its purpose, and time alone won't mend that: the API server says that there is none or that this member may not
/// use it, or something else holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// When it was first seen.
    pub since: Instant,
    /// What it is, and what to do about it.
    pub why: String,
}

impl LeaseSnapshot {
    /// The Lease as it is at `now`: leadership ends by itself at the fence, whether the task got round to saying so or not.
    #[must_use]
    pub fn at(&self, now: Instant) -> Lease {
        match self.fence_at {
            Some(fence_at) if now >= fence_at => Lease::Unknown,
            _ => self.lease.clone(),
        }
    }

    /// The Lease as it was read last; while this member leads, as it wrote it.
    #[must_use]
    pub fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// The leadership that this member has at `now`.
    #[must_use]
    pub fn epoch(&self, now: Instant) -> Option<Epoch> {
        let seen = self.seen.as_ref().filter(|_| matches!(self.at(now), Lease::Held { .. }))?;
        Some(Epoch::new(&seen.version, seen.record.epoch))
    }

    /// It leads by the leave of the other members: the API server does not answer.
    #[must_use]
    pub fn is_by_leave(&self) -> bool {
        self.by_leave
    }

    /// What keeps the Lease from serving its purpose.
    #[must_use]
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }
}
