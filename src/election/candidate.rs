//! What a replica does when the set has no master: it stops receiving, asks the others, and leads if their answers allow it. Pure.

use std::collections::BTreeMap;

use super::lease_record::Taking;
use super::lineage::{Database, Reached};
use super::vote::{Answer, Ballot, Position, Quorum, Record, Refusal, Verdict, Version, has_everything, tally};
use super::{Action, DataState, Lease, Observation, PostgresState, Waiting};

/// What a member knows of its chances to lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// This member.
    pub me: String,
    /// On whose word it leads.
    pub mandate: Mandate,
    /// The state of the Lease that all this is about.
    pub version: Option<Version>,
    /// What the Lease records.
    pub record: Record,
    /// The vote that this member has given last.
    pub voted: Option<Version>,
    /// It has promised the master, which the API server can't hear, not to stand for now.
    pub gave_leave: bool,
    /// The Lease names this very pod as its last holder.
    pub is_last_holder: bool,
    /// Its server has failed to start as the master too often, lately.
    pub fails_to_start: bool,
    /// To whom the last master handed over, as long as that one is let go first; not this member.
    pub successor: Option<String>,
    /// What the others answered.
    pub votes: Votes,
    /// What this member's commits would wait for.
    pub quorum: Quorum,
    /// Bytes that may be lost where commits wait for nobody, `pgset.dev/maximum-lag`.
    pub maximum_lag: u64,
    /// The timeline that a promotion would begin.
    pub next_timeline: u32,
}

/// On whose word a replica leads a set without a master.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mandate {
    /// Nobody's: `pgset.dev/failover` is manual, and no order names it.
    #[default]
    None,
    /// The votes', or a person's who leaves it to them whether it may.
    Votes,
    /// A person's, by whom what it lacks is given up.
    AcceptsLoss,
}

/// The answers to a ballot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Votes {
    /// Nobody was asked.
    #[default]
    None,
    /// The others are being asked.
    Pending(Ballot),
    /// They have answered.
    Counted(Ballot, BTreeMap<String, Answer>),
}

// === impl Standing ===

impl Standing {
    /// It has promised to receive nothing while the Lease stands as it does.
    #[must_use]
    pub fn has_voted(&self) -> bool {
        self.voted.is_some() && self.voted == self.version
    }

    /// A replica of this set may become its master, by what is known without asking anybody.
    #[must_use]
    pub fn may_stand(&self) -> bool {
        self.why_not().is_none()
    }

    /// Its server does not start, and somebody else may lead.
    #[must_use]
    pub fn lets_others_go_first(&self) -> bool {
        self.fails_to_start && self.record.voters.iter().any(|voter| *voter != self.me)
    }

    fn why_not(&self) -> Option<Waiting> {
        // A master of an older revision keeps no record: its replicas know no promise, and nobody may lead on by leave.
        let is_unrecorded = self.record.voters.is_empty() && self.mandate == Mandate::AcceptsLoss;
        if self.gave_leave || !self.record.voters.contains(&self.me) && !is_unrecorded {
            // Whom no master would have to ask may not lead beside one, whatever a person gives up.
            Some(Waiting::ForMaster)
        } else if self.mandate == Mandate::None {
            Some(Waiting::ForFailover)
        } else {
            None
        }
    }

    /// How this member would take the Lease to lead as it did, or as it was elected to.
    #[must_use]
    pub fn taking(&self) -> Taking {
        Taking { begins: None, quorum: self.quorum.clone() }
    }

    /// How this replica would take the Lease, with where its promotion begins: on a timeline of a number that the Lease has never had.
    /// Another member may have been promoted to that one, and nobody has heard of it.
    fn promotion(&self, set: &Database, from: Position) -> Taking {
        let newest = set.reached.map_or(0, |reached| reached.timeline).max(from.timeline);
        let begins = Reached {
            timeline: self.next_timeline.max(newest.saturating_add(1)),
            begins: Some(from.at),
            flushed: Some(from.at),
            stopped_at: None,
        };
        Taking { begins: Some(begins), ..self.taking() }
    }

    /// It was elected, and has not led: it died before it was promoted, or the answer to its request was lost. Nobody has taken the Lease
    /// since, and nobody follows a holder that was not announced.
    fn was_elected(&self, set: &Database, position: Position) -> bool {
        self.is_last_holder
            && set.reached.is_some_and(|reached| {
                let is_as_it_was = reached.begins == Some(position.at) && reached.flushed <= reached.begins;
                position.timeline < reached.timeline && reached.stopped_at.is_none() && is_as_it_was
            })
    }
}

/// What a running replica does while nobody leads the set that it is a copy of.
#[must_use]
pub fn decide(set: &Database, standing: &Standing, receives: bool, position: Option<Position>) -> Action {
    if let Some(waiting) = standing.why_not() {
        return Action::Wait(waiting);
    }
    if let Some(pod) = &standing.successor {
        return Action::Wait(Waiting::ForSuccessor(pod.clone()));
    }
    let Some(version) = &standing.version else { return Action::Stay };
    if position.is_some_and(|position| !receives && standing.was_elected(set, position)) {
        return Action::TakeLease(standing.taking());
    }
    // The last master has stopped, and nothing is missing here: nobody has to be asked.
    if let (Some(position), Some(reached)) = (position, &set.reached)
        && has_everything(position, reached)
    {
        return Action::TakeLease(standing.promotion(set, position));
    }
    if !standing.has_voted() {
        return Action::Promise(version.clone());
    }
    let Some(position) = position.filter(|_| !receives) else { return Action::Stay };
    let ballot = Ballot { version: version.clone(), position };
    match &standing.votes {
        Votes::Pending(asked) if *asked == ballot => Action::Stay,
        Votes::Counted(asked, answers) if *asked == ballot => {
            match tally(&standing.me, position, set, &standing.record, standing.maximum_lag, answers) {
                Verdict::Lead => Action::TakeLease(standing.promotion(set, position)),
                _ if standing.mandate == Mandate::AcceptsLoss => Action::TakeLease(standing.promotion(set, position)),
                verdict => Action::Wait(Waiting::ForVotes(verdict)),
            }
        }
        _ => Action::AskForVotes(ballot),
    }
}

/// What a member has to do before it can answer a ballot, or its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Promise it, stop receiving, and look again.
    Promise,
    /// This.
    Answer(Answer),
}

/// What a member knows when it is asked for its vote.
#[derive(Clone, Copy, Debug)]
pub struct Voter<'a> {
    /// The state of the Lease that it sees.
    pub version: Option<&'a Version>,
    /// Nobody holds it, as far as this member can tell.
    pub is_vacant: bool,
    /// The vote that it has given last.
    pub voted: Option<&'a Version>,
    /// It has promised the master not to take part.
    pub gave_leave: bool,
    /// What it is.
    pub copy: Copy,
}

/// What a member that is asked for its vote has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// A standby that runs.
    Standby {
        /// It may receive WAL.
        receives: bool,
        /// What it has, if that is known.
        position: Option<Position>,
    },
    /// The data of the last master, which goes on from where the set has come to, and starts.
    OfTheMaster,
    /// Nothing that counts.
    None,
}

// === impl Copy ===

impl Copy {
    /// Of a member that observes this; `starts`: as far as it has tried, its server starts.
    #[must_use]
    pub fn of(observation: &Observation, starts: bool) -> Self {
        let set = match &observation.lease {
            Lease::Vacant { set } | Lease::Held { set } => *set,
            Lease::Unknown | Lease::HeldByPreviousPod | Lease::HeldByOther { .. } => None,
        };
        match (&observation.server, &observation.data, set) {
            (PostgresState::Replica { receives, position, .. }, ..) => {
                Self::Standby { receives: *receives, position: *position }
            }
            (PostgresState::Stopped, DataState::Cluster { system, standby: false, lineage }, Some(set))
                if *system == set.system
                    && starts
                    && set.reached.is_none_or(|reached| lineage.continues(&reached).is_ok()) =>
            {
                Self::OfTheMaster
            }
            _ => Self::None,
        }
    }
}

/// What a member answers a candidate.
#[must_use]
pub fn respond(ballot: &Ballot, voter: &Voter<'_>) -> Response {
    let refuse = |why| Response::Answer(Answer::Refused(why));
    if voter.version != Some(&ballot.version) || !voter.is_vacant {
        return refuse(Refusal::OtherLease);
    }
    if voter.gave_leave {
        return refuse(Refusal::PromisedToMaster);
    }
    match voter.copy {
        Copy::OfTheMaster => Response::Answer(Answer::Returns),
        Copy::None => refuse(Refusal::NoData),
        Copy::Standby { .. } if voter.voted != Some(&ballot.version) => Response::Promise,
        Copy::Standby { receives: false, position: Some(position) } => Response::Answer(Answer::Granted(position)),
        Copy::Standby { .. } => refuse(Refusal::NotYet),
    }
}

#[cfg(test)]
#[path = "candidate_tests.rs"]
mod tests;
