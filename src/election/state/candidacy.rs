//! What a member remembers while the set has no master: its own votes, and the candidates that wait for its vote. Pure.

use std::collections::BTreeMap;
use std::mem::take;
use std::time::Duration;

use super::Time;
use crate::election::candidate::{Copy, Response, Voter, Votes, respond};
use crate::election::step::{Effect, Facts};
use crate::election::vote::{Answer, Ballot, Version};
use crate::election::{Lease, Master, Observation};

/// So many looks in a row have to find no receiver: one may have been asked for, by the old settings, and not be seen yet.
const LOOKS: u32 = 2;
/// After so long a candidate that may not lead asks again: somebody may have come back.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// So long a voter keeps a candidate waiting while its receiver ends; the candidate waits a little longer.
const ANSWER_WITHIN: Duration = Duration::from_millis(700);
/// So long whoever was handed the set is let go first. It streams, and needs some tens of milliseconds.
const SUCCESSOR_GOES_FIRST: Duration = Duration::from_secs(3);

/// What a member remembers while the set has no master.
#[derive(Clone, Debug)]
pub struct Candidacy<T> {
    waiting: Vec<Asked<T>>,
    votes: Votes,
    counted_at: Option<T>,
    handed_over: Option<(Version, T)>,
    quiet: u32,
}

/// A candidate that waits for this member's vote.
#[derive(Clone, Debug)]
struct Asked<T> {
    number: u64,
    ballot: Ballot,
    until: T,
}

impl<T> Default for Candidacy<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), votes: Votes::None, counted_at: None, handed_over: None, quiet: 0 }
    }
}

impl<T: Time> Candidacy<T> {
    /// A member in the middle of an election, with these votes.
    #[must_use]
    pub fn with_votes(votes: Votes, now: T) -> Self {
        Self { votes, counted_at: Some(now), ..Self::default() }
    }

    /// Somebody waits for this member's vote.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether what this replica has makes a difference now. It costs a question to PostgreSQL.
    #[must_use]
    pub fn needs_position(&self, lease: &Lease, follows: Option<&Master>, voted: Option<&Version>) -> bool {
        let is_for_itself = match lease {
            Lease::Vacant { .. } | Lease::Held { .. } => true,
            Lease::HeldByOther { master: Some(master) } => follows != Some(master),
            Lease::HeldByOther { master: None } | Lease::HeldByPreviousPod | Lease::Unknown => false,
        };
        is_for_itself || self.is_asked() || voted.is_some()
    }

    /// Whether this replica may still receive, when a look has found that.
    pub fn may_receive(&mut self, has_receiver: bool) -> bool {
        self.quiet = if has_receiver { 0 } else { self.quiet.saturating_add(1) };
        self.quiet < LOOKS
    }

    pub(in crate::election) fn note_asked(&mut self, number: u64, ballot: Ballot, now: T) {
        self.waiting.push(Asked { number, ballot, until: now.after(ANSWER_WITHIN) });
    }

    pub(in crate::election) fn ask(&mut self, ballot: Ballot) {
        self.votes = Votes::Pending(ballot);
    }

    pub(in crate::election) fn note_answers(&mut self, answers: BTreeMap<String, Answer>, now: T) {
        self.counted_at = Some(now);
        if let Votes::Pending(ballot) = &self.votes {
            self.votes = Votes::Counted(ballot.clone(), answers);
        }
    }

    pub(in crate::election) fn votes(&mut self, now: T) -> Votes {
        let is_over = self.counted_at.is_none_or(|at| now >= at.after(ASK_AGAIN));
        if matches!(self.votes, Votes::Counted(..)) && is_over {
            self.votes = Votes::None;
        }
        self.votes.clone()
    }

    /// To whom the last master handed over, while that one is let go first.
    pub(in crate::election) fn successor(&mut self, facts: &Facts, now: T) -> Option<String> {
        let seen = facts.seen.as_ref().filter(|seen| seen.holder.is_none())?;
        let successor = seen.successor.clone().filter(|successor| *successor != facts.me.pod)?;
        if self.handed_over.as_ref().is_none_or(|(version, _)| *version != seen.version) {
            self.handed_over = Some((seen.version.clone(), now));
        }
        let since = self.handed_over.as_ref().map(|(_, since)| *since)?;
        (now < since.after(SUCCESSOR_GOES_FIRST)).then_some(successor)
    }

    /// Answers those that wait for this member's vote, as far as that can be done now.
    pub(in crate::election) fn answer(&mut self, observation: &Observation, now: T) -> Vec<Effect> {
        let standing = &observation.standing;
        let voter = Voter {
            version: standing.version.as_ref(),
            is_vacant: matches!(observation.lease, Lease::Vacant { .. }),
            voted: standing.voted.as_ref(),
            gave_leave: standing.gave_leave,
            copy: Copy::of(observation, !standing.fails_to_start),
        };
        let (mut effects, mut promise) = (Vec::new(), None);
        for asked in take(&mut self.waiting) {
            let Asked { number, ballot, until } = &asked;
            match respond(ballot, &voter) {
                Response::Promise if now < *until => {
                    promise = Some(ballot.version.clone());
                    self.waiting.push(asked);
                }
                // Another look may be enough.
                Response::Answer(Answer::Refused(_)) if now < *until => self.waiting.push(asked),
                Response::Answer(answer) => effects.push(Effect::Answer { number: *number, answer: Some(answer) }),
                Response::Promise => effects.push(Effect::Answer { number: *number, answer: None }),
            }
        }
        effects.extend(promise.map(Effect::Promise));
        effects
    }
}
