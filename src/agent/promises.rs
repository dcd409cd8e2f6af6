//! What this member has promised: to a candidate, to receive nothing while the Lease stands as it does; to the master, not to stand for a
//! while. Never both: whoever has given one refuses the other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::election::Master;
use crate::election::vote::Version;

/// The promises, shared between the keeper of the Lease, the main loop, and whoever answers the other members.
#[derive(Clone, Debug, Default)]
pub struct Promises(Arc<Mutex<Given>>);

#[derive(Debug, Default)]
struct Given {
    vote: Option<Version>,
    leave: Option<Leave>,
}

/// What a master was promised.
#[derive(Clone, Debug)]
pub struct Leave {
    /// This member does not stand before then.
    pub until: Instant,
    /// The master, as it described itself.
    pub master: Option<Master>,
}

// === impl Promises ===

impl Promises {
    /// With what an earlier life of this container had promised.
    #[must_use]
    pub fn new(vote: Option<Version>) -> Self {
        Self(Arc::new(Mutex::new(Given { vote, leave: None })))
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises to receive nothing while the Lease stands at that version; refused while a master has this member's leave.
    #[must_use]
    pub fn vote(&self, version: &Version, now: Instant) -> bool {
        let mut given = self.given();
        if given.leave.as_ref().is_some_and(|leave| now < leave.until) {
            return false;
        }
        given.vote = Some(version.clone());
        true
    }

    /// The version of the Lease while which nothing is received.
    #[must_use]
    pub fn voted(&self) -> Option<Version> {
        self.given().vote.clone()
    }

    /// The Lease stands so now: a promise about another version of it is over.
    pub fn see(&self, version: &Version) {
        let mut given = self.given();
        if given.vote.as_ref().is_some_and(|promised| promised != version) {
            given.vote = None;
        }
    }

    /// Gives a master leave until then, if `agrees` says so of whether this member has voted.
    pub fn give_leave(&self, until: Instant, master: Option<Master>, agrees: impl FnOnce(bool) -> bool) -> bool {
        let mut given = self.given();
        let given_now = agrees(given.vote.is_some());
        if given_now {
            given.leave = Some(Leave { until, master });
        }
        given_now
    }

    /// What a master was promised, while that lasts.
    #[must_use]
    pub fn leave(&self, now: Instant) -> Option<Leave> {
        self.given().leave.clone().filter(|leave| now < leave.until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn version(number: &str) -> Version {
        Version::new("uid", number)
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_promises_a_candidate_or_the_master_and_never_both() {
        let (promises, now) = (Promises::default(), Instant::now());
        assert!(promises.give_leave(now + Duration::from_secs(6), None, |voted| !voted));
        assert!(!promises.vote(&version("7"), now));
        let later = now + Duration::from_secs(6);
        assert!(promises.vote(&version("7"), later), "its promise to the master is over");
        assert!(!promises.give_leave(later + Duration::from_secs(6), None, |voted| !voted));
    }

    #[test]
    fn a_vote_is_over_when_the_lease_has_changed() {
        let promises = Promises::new(Some(version("7")));
        promises.see(&version("7"));
        assert_eq!(promises.voted(), Some(version("7")));
        promises.see(&version("8"));
        assert_eq!(promises.voted(), None);
    }
}
