//! What this member has promised, shared between all that ask for it and promise more. What may be promised is
//! [`election::promise`](crate::election::promise)'s word.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::election::leave;
use crate::election::promise::{self, Attempt, Leave};
use crate::election::vote::Version;

/// The promises, shared between the keeper of the Lease, the main loop, and whoever answers the other members.
#[derive(Clone, Debug, Default)]
pub struct Promises(Arc<Mutex<promise::Promises<Instant>>>);

// === impl Promises ===

impl Promises {
    /// With what an earlier life of this container had promised, and tried.
    #[must_use]
    pub fn new(vote: Option<Version>, attempt: Option<Attempt>) -> Self {
        Self(Arc::new(Mutex::new(promise::Promises::new(vote, attempt))))
    }

    fn given(&self) -> MutexGuard<'_, promise::Promises<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises to receive nothing while the Lease stands at that version; refused while a master has this member's leave.
    #[must_use]
    pub fn vote(&self, version: &Version, now: Instant) -> bool {
        self.given().vote(version, now)
    }

    /// A promise that could not be noted is none.
    pub fn take_back(&self, version: &Version) {
        self.given().take_back(version);
    }

    /// This member is about to take the Lease, and has noted that.
    pub fn attempt(&self, attempt: Attempt) {
        self.given().attempt(attempt);
    }

    /// The version of the Lease while which nothing is received.
    #[must_use]
    pub fn voted(&self) -> Option<Version> {
        self.given().vote.clone()
    }

    /// The Lease stands so now: a promise about another version of it is over.
    pub fn see(&self, version: &Version) {
        self.given().see(version);
    }

    /// Answers a master that asks for leave, and gives it until then if it is confirmed. `read`: the Lease as this member has read it.
    pub fn answer_leave(
        &self,
        request: &leave::Request,
        read: Option<leave::Read<'_>>,
        until: Instant,
    ) -> leave::Answer {
        self.given().answer_leave(request, read, until)
    }

    /// What a master was promised, while that lasts.
    #[must_use]
    pub fn leave(&self, now: Instant) -> Option<Leave<Instant>> {
        self.given().leave(now).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::election::lease_record::HolderIdentity;

    fn version(number: &str) -> Version {
        Version::new("uid", number)
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_promises_a_candidate_or_the_master_and_never_both() {
        let (promises, now) = (Promises::default(), Instant::now());
        let holder = HolderIdentity { pod: "db-0".into(), uid: "a".into() };
        let request = leave::Request { holder, epoch: 1, master: None };
        let ask = |until| promises.answer_leave(&request, None, until);
        assert_eq!(ask(now + Duration::from_secs(6)), leave::Answer::Confirmed);
        assert!(!promises.vote(&version("7"), now));
        let later = now + Duration::from_secs(6);
        assert!(promises.vote(&version("7"), later), "its promise to the master is over");
        assert_eq!(ask(later + Duration::from_secs(6)), leave::Answer::Refused);
    }

    #[test]
    fn a_vote_is_over_when_the_lease_has_changed() {
        let promises = Promises::new(Some(version("7")), None);
        promises.see(&version("7"));
        assert_eq!(promises.voted(), Some(version("7")));
        promises.see(&version("8"));
        assert_eq!(promises.voted(), None);
    }
}
