//! What a member can't take over, and when the image goes on with it as before.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::Member;
use super::postgres::Postgres;
use crate::agent::as_before::{self, Content, Kind, Refusal};
use crate::election::step::Decision;
use crate::election::{Action, Lease, SystemIdentifier, Waiting};
use crate::errors::with_causes;

/// So long nobody has led whom a member without data could be cloned from, though the Lease was free: a restart in place takes less.
const LOST_FOR_GOOD: Duration = Duration::from_secs(10);

impl Member {
    /// Why the image has to run the database as before, if it has to: only ever while no server of the agent's runs.
    pub(super) fn refused(&mut self) -> Option<Refusal> {
        if !matches!(self.postgres, Postgres::Stopped) || self.state.lets_be(Instant::now()) {
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
    pub(super) fn note_another_database(&mut self, decision: &Decision) {
        let (Lease::Vacant { set } | Lease::Held { set }) = &decision.ground.lease else { return };
        if let Action::Wait(waiting @ Waiting::OtherDatabase { .. })
        | Action::ReleaseLease(waiting @ Waiting::OtherDatabase { .. }) = &decision.action
        {
            self.refuse(Kind::OtherDatabase, self.in_words(waiting), set.map(|set| set.system));
        }
    }

    /// A database that ran before does not start as a member.
    pub(super) fn give_up_starting(&mut self) {
        if let Lease::Held { set } = self.leadership.view().at(Instant::now()) {
            self.refuse(Kind::FirstStart, self.last_failure.clone(), set.map(|set| set.system));
        }
    }

    /// This data is a member's from now on, and so is every copy of it.
    pub(super) fn note_served(&mut self) {
        if self.found.content == Content::Member {
            return;
        }
        self.found.content = Content::Member;
        let data = self.provisioner.data.clone();
        tokio::task::spawn_blocking(move || {
            data.mark_member().map_err(|why| warn!(error = with_causes(&why), "the data is not marked as a member's"))
        });
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
        | Waiting::ForPodTermination => false,
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
}
