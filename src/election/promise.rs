//! What a member has promised: to a candidate, to receive nothing while the Lease stands as it does; to the master, not to stand for a
//! while. Never both: whoever has given one refuses the other. Pure: the time is an argument.

use super::Master;
use super::vote::Version;

/// The promises of one member; `T` is its time.
#[derive(Clone, Debug)]
pub struct Promises<T> {
    /// The version of the Lease while which nothing is received.
    pub vote: Option<Version>,
    leave: Option<Leave<T>>,
}

/// What a master was promised.
#[derive(Clone, Debug)]
pub struct Leave<T> {
    /// This member does not stand before then.
    pub until: T,
    /// The master, as it described itself.
    pub master: Option<Master>,
}

// === impl Promises ===

impl<T> Default for Promises<T> {
    fn default() -> Self {
        Self { vote: None, leave: None }
    }
}

impl<T: Copy + Ord> Promises<T> {
    /// With what an earlier life had promised a candidate.
    #[must_use]
    pub fn new(vote: Option<Version>) -> Self {
        Self { vote, leave: None }
    }

    /// Promises to receive nothing while the Lease stands at that version; refused while a master has this member's leave.
    #[must_use]
    pub fn vote(&mut self, version: &Version, now: T) -> bool {
        if self.leave(now).is_some() {
            return false;
        }
        self.vote = Some(version.clone());
        true
    }

    /// The Lease stands so now: a promise about another version of it is over.
    pub fn see(&mut self, version: &Version) {
        if self.vote.as_ref().is_some_and(|promised| promised != version) {
            self.vote = None;
        }
    }

    /// Gives a master leave until then, if `agrees` says so of whether this member has voted.
    pub fn give_leave(&mut self, until: T, master: Option<Master>, agrees: impl FnOnce(bool) -> bool) -> bool {
        let given_now = agrees(self.vote.is_some());
        if given_now {
            self.leave = Some(Leave { until, master });
        }
        given_now
    }

    /// What a master was promised, while that lasts.
    #[must_use]
    pub fn leave(&self, now: T) -> Option<&Leave<T>> {
        self.leave.as_ref().filter(|leave| now < leave.until)
    }
}
