//! What a member has promised: to a candidate, to receive nothing while the Lease stands as it does; to the master, not to stand for a
//! while. Never both: whoever has given one refuses the other. Pure: the time is an argument.

use serde::{Deserialize, Serialize};

use super::Master;
use super::leave::{self, Known};
use super::vote::Version;

/// The promises of one member; `T` is its time.
#[derive(Clone, Debug)]
pub struct Promises<T> {
    /// The version of the Lease while which nothing is received.
    pub vote: Option<Version>,
    /// The leave that a master was given last.
    pub leave: Option<Leave<T>>,
    attempt: Option<Attempt>,
}

/// A leadership that a member took, or tried to take: it may hold the Lease and not know it yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The Lease's UID.
    pub lease: String,
    /// The member, as it would hold it.
    pub holder: String,
    /// In which epoch.
    pub epoch: u32,
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
        Self { vote: None, leave: None, attempt: None }
    }
}

impl<T: Copy + Ord> Promises<T> {
    /// With what an earlier life had promised a candidate, and the last leadership that it tried to take.
    #[must_use]
    pub fn new(vote: Option<Version>, attempt: Option<Attempt>) -> Self {
        Self { vote, leave: None, attempt }
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

    /// A promise that could not be noted is none.
    pub fn take_back(&mut self, version: &Version) {
        if self.vote.as_ref() == Some(version) {
            self.vote = None;
        }
    }

    /// This member is about to take the Lease, and has noted that.
    pub fn attempt(&mut self, attempt: Attempt) {
        self.attempt = Some(attempt);
    }

    /// What this member knows of who leads, if it has read the Lease so.
    fn known<'a>(&'a self, read: Option<leave::Read<'a>>) -> Known<'a> {
        let own = self.attempt.as_ref();
        match (read, own) {
            (Some(read), Some(own)) if own.lease == read.version.lease() && own.epoch > read.epoch => {
                Known::attempted(own)
            }
            (Some(leave::Read { holder, epoch, .. }), _) => Known::Lease { holder, epoch },
            (None, Some(own)) => Known::attempted(own),
            (None, None) => Known::Nothing,
        }
    }

    /// The Lease stands so now: a promise about another version of it is over.
    pub fn see(&mut self, version: &Version) {
        if self.vote.as_ref().is_some_and(|promised| promised != version) {
            self.vote = None;
        }
    }

    /// Answers a master that asks for leave, and gives it until then if it is confirmed. `read`: the Lease as this member has read it.
    pub fn answer_leave(&mut self, request: &leave::Request, read: Option<leave::Read<'_>>, until: T) -> leave::Answer {
        let answer = leave::answer(request, self.known(read), self.vote.is_some());
        if answer == leave::Answer::Confirmed {
            self.leave = Some(Leave { until, master: request.master.clone() });
        }
        answer
    }

    /// What a master was promised, while that lasts.
    #[must_use]
    pub fn leave(&self, now: T) -> Option<&Leave<T>> {
        self.leave.as_ref().filter(|leave| now < leave.until)
    }
}
