//! A replica that lacks WAL which its master no longer has: where the set has backups it takes that from the store, and is not cloned anew.

use std::time::Duration;

use tokio::time::Instant;

use crate::agent::sql::ReplicaFacts;
use crate::election::Lsn;

/// A replica that has come no further for so long has found nothing in the store: it is cloned.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of a replica that takes WAL from the store, or did.
#[derive(Debug, Default)]
pub(super) struct FromStore {
    /// How far it had come, and when that was seen first.
    trying: Option<(Option<Lsn>, Instant)>,
    gave_up: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Leave,
    /// It is told where the store is.
    Begin,
    /// It is on its way.
    Wait,
    /// It has what it lacked, or did not find it: the store is forgotten.
    End,
}

// === impl FromStore ===

impl FromStore {
    /// By what it says of itself, the oldest WAL that its master has, and whether there is a store to take any from.
    pub(super) fn step(&mut self, facts: &ReplicaFacts, oldest: Option<Lsn>, has_store: bool, now: Instant) -> Step {
        if facts.streaming_timeline.is_some() {
            self.gave_up = false;
            return if self.trying.take().is_some() { Step::End } else { Step::Leave };
        }
        let Some((position, since)) = &mut self.trying else {
            let is_stranded = matches!((facts.stalled_lsn(), oldest), (Some(at), Some(oldest)) if at < oldest);
            if !is_stranded || !has_store || self.gave_up {
                return Step::Leave;
            }
            self.trying = Some((facts.replayed, now));
            return Step::Begin;
        };
        if facts.replayed > *position {
            (*position, *since) = (facts.replayed, now);
        }
        if has_store && now.duration_since(*since) < PATIENCE {
            return Step::Wait;
        }
        (self.trying, self.gave_up) = (None, true);
        Step::End
    }

    /// Whether nothing is left to be tried before a clone. Asked for at every look: what the Lease says of the master's oldest WAL may change
    /// before the next one.
    pub(super) fn is_tried(&self, has_store: bool) -> bool {
        !has_store || self.gave_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranded(replayed: u64) -> ReplicaFacts {
        ReplicaFacts { received: Some(Lsn(10)), replayed: Some(Lsn(replayed)), ..ReplicaFacts::default() }
    }

    fn trying(replayed: u64) -> ReplicaFacts {
        ReplicaFacts { has_archive: true, ..stranded(replayed) }
    }

    const OLDEST: Option<Lsn> = Some(Lsn(20));

    #[tokio::test(start_paused = true)]
    async fn a_replica_takes_what_it_lacks_and_then_streams() {
        let (mut from_store, now) = (FromStore::default(), Instant::now());
        assert_eq!(from_store.step(&stranded(10), Some(Lsn(5)), true, now), Step::Leave, "its master has all of it");
        assert!(!from_store.is_tried(true) && from_store.is_tried(false));
        assert_eq!(from_store.step(&stranded(10), OLDEST, true, now), Step::Begin);
        assert_eq!(from_store.step(&trying(15), OLDEST, true, now + PATIENCE / 2), Step::Wait);
        assert_eq!(from_store.step(&trying(20), OLDEST, true, now + PATIENCE), Step::Wait, "it has come further");
        let streams = ReplicaFacts { streaming_timeline: Some(1), ..trying(20) };
        assert_eq!(from_store.step(&streams, OLDEST, true, now + PATIENCE), Step::End);
        assert_eq!(from_store.step(&streams, OLDEST, true, now + PATIENCE), Step::Leave);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_finds_nothing_there_is_cloned_after_a_while() {
        let (mut from_store, now) = (FromStore::default(), Instant::now());
        assert_eq!(from_store.step(&stranded(10), OLDEST, false, now), Step::Leave, "there is no store");
        assert_eq!(from_store.step(&stranded(10), OLDEST, true, now), Step::Begin);
        assert_eq!(from_store.step(&trying(10), OLDEST, true, now + PATIENCE), Step::End);
        assert!(from_store.is_tried(true));
        assert_eq!(from_store.step(&stranded(10), OLDEST, true, now + PATIENCE), Step::Leave, "once");
    }
}
