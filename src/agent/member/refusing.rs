//! What a member can't take over, and when the image goes on with it as before.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::Member;
use super::state::State;
use crate::agent::as_before::{self, Content, Kind, Refusal};
use crate::election::{Action, Lease, SystemIdentifier, Waiting};
use crate::errors::with_causes;

/// So often a database may fail to start before it is run as before the annotation, or another member may lead: what fails by chance does
/// not fail three times.
const STARTS: u32 = 3;
/// So long the others are let lead then, before one more start is tried: an election takes a second or two, and what a person mends may be
/// mended at any time.
const TRIES_AGAIN: Duration = Duration::from_secs(30);
/// So long nobody has led whom a member without data could be cloned from, though the Lease was free: a restart in place takes less.
const LOST_FOR_GOOD: Duration = Duration::from_secs(10);

impl Member {
    /// Why the image has to run the database as before, if it has to: only ever while no server of the agent's runs.
    pub(super) fn refused(&mut self) -> Option<Refusal> {
        if !matches!(self.state, State::Stopped) {
            return None;
        }
        let view = self.leadership.view();
        let trouble =
            view.trouble().filter(|trouble| as_before::is_due(self.found, Kind::Lease, trouble.since.elapsed(), None));
        let trouble = trouble.map(|trouble| Refusal { kind: Kind::Lease, why: trouble.why.clone() });
        self.refusal.take().or(trouble)
    }

    fn refuse(&mut self, kind: Kind, why: String, set: Option<SystemIdentifier>) {
        if as_before::is_due(self.found, kind, Duration::ZERO, set) {
            self.refusal = Some(Refusal { kind, why });
        }
    }

    /// The Lease of an earlier set of this name outlived it; as long as nobody leads, the database here is in nobody's way.
    pub(super) fn note_another_database(&mut self, lease: &Lease, action: &Action) {
        let (Lease::Vacant { set } | Lease::Mine { set }) = lease else { return };
        if let Action::Wait(waiting @ Waiting::OtherDatabase { .. })
        | Action::ReleaseLease(waiting @ Waiting::OtherDatabase { .. }) = action
        {
            self.refuse(Kind::OtherDatabase, self.in_words(waiting), set.map(|set| set.system));
        }
    }

    /// A database that ran before does not start as a member.
    pub(super) fn note_failed_start(&mut self, why: String) {
        self.starts.failed(Instant::now());
        if self.starts.are_failing(Instant::now())
            && let Lease::Mine { set } = self.leadership.view().at(Instant::now())
        {
            self.refuse(Kind::FirstStart, why, set.map(|set| set.system));
        }
    }

    /// This data is a member's from now on, and so is every copy of it.
    pub(super) fn note_served(&mut self) {
        if self.found.content == Content::Member {
            return;
        }
        self.found.content = Content::Member;
        let data = self.midwife.data.clone();
        tokio::task::spawn_blocking(move || {
            data.mark_member().map_err(|why| warn!(error = with_causes(&why), "the data is not marked as a member's"))
        });
    }
}

/// The starts as the master that failed in a row.
#[derive(Debug, Default)]
pub(super) struct Starts {
    failed: u32,
    last: Option<Instant>,
}

// === impl Starts ===

impl Starts {
    fn failed(&mut self, now: Instant) {
        (self.failed, self.last) = (self.failed.saturating_add(1), Some(now));
    }

    /// Too many, and the last one not long ago.
    pub(super) fn are_failing(&self, now: Instant) -> bool {
        self.failed >= STARTS && self.last.is_some_and(|last| now.saturating_duration_since(last) < TRIES_AGAIN)
    }
}

/// How long a member waits before a person has to hear why: without data it waits whenever the master restarts.
pub(super) fn patience(waiting: &Waiting) -> Duration {
    let is_brief =
        matches!(waiting, Waiting::DataLost | Waiting::HalfRewound | Waiting::ForFailover | Waiting::ForVotes(_));
    if is_brief { LOST_FOR_GOOD } else { Duration::ZERO }
}

/// What a person has to decide on, and so should hear of.
pub(super) fn is_refusal(waiting: &Waiting) -> bool {
    match waiting {
        Waiting::OtherDatabase { .. }
        | Waiting::DataLost
        | Waiting::HalfRewound
        | Waiting::Diverged(_)
        | Waiting::ForFailover
        | Waiting::ForVotes(_)
        | Waiting::DoesNotStart
        | Waiting::Unusable(_) => true,
        Waiting::ForLease
        | Waiting::ForPredecessor
        | Waiting::ForMaster
        | Waiting::ForSuccessor(_)
        | Waiting::ForMasterToStart
        | Waiting::ForFirstMember
        | Waiting::ForTheEnd => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_without_data_is_no_news_while_the_master_restarts() {
        assert!(is_refusal(&Waiting::DataLost) && patience(&Waiting::DataLost) >= Duration::from_secs(10));
        assert_eq!(patience(&Waiting::Unusable(String::new())), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn after_three_failed_starts_others_go_first_and_then_one_more_is_tried_at_a_time() {
        let mut starts = Starts::default();
        for _ in 0..3 {
            assert!(!starts.are_failing(Instant::now()));
            starts.failed(Instant::now());
        }
        assert!(starts.are_failing(Instant::now()));
        tokio::time::sleep(TRIES_AGAIN).await;
        assert!(!starts.are_failing(Instant::now()), "a person may have mended it");
        starts.failed(Instant::now());
        assert!(starts.are_failing(Instant::now()));
    }
}
