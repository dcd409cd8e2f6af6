//! What a replica does when the set has no master: it stops receiving, asks the others, and leads if their answers allow it. Pure.

use std::collections::BTreeMap;

use super::claim::Taking;
use super::lineage::{Database, Reached};
use super::vote::{Answer, Ballot, Position, Quorum, Record, Refusal, Verdict, Version, has_everything, tally};
use super::{Action, Waiting};

/// What a member knows of its chances to lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// This member.
    pub me: String,
    /// Whether replicas lead by themselves, `pgset.dev/failover`.
    pub is_automatic: bool,
    /// The state of the Lease that all this is about.
    pub version: Option<Version>,
    /// What the Lease records.
    pub record: Record,
    /// The vote that this member has given last.
    pub voted: Option<Version>,
    /// It has promised the master, which the API server can't hear, not to stand for now.
    pub gave_leave: bool,
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
    /// A person has said that this member is to lead, and that what it lacks is given up.
    pub accepts_loss: bool,
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

    fn why_not(&self) -> Option<Waiting> {
        if self.accepts_loss {
            None
        } else if !self.record.voters.contains(&self.me) {
            // A master of an older revision keeps no record: its replicas know no promise.
            Some(Waiting::ForMaster)
        } else if !self.is_automatic {
            Some(Waiting::ForFailover)
        } else if self.gave_leave {
            Some(Waiting::ForMaster)
        } else {
            None
        }
    }

    /// How this member would take the Lease; `from` is where its promotion begins, if it is a replica.
    #[must_use]
    pub fn taking(&self, from: Option<Position>) -> Taking {
        let begins = from.map(|position| Reached {
            timeline: self.next_timeline.max(position.timeline + 1),
            begins: Some(position.at),
            flushed: Some(position.at),
            stopped_at: None,
        });
        Taking { begins, quorum: self.quorum.clone() }
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
    // The last master has stopped, and nothing is missing here: nobody has to be asked.
    if let (Some(position), Some(reached)) = (position, &set.reached)
        && has_everything(position, reached)
    {
        return Action::TakeLease(standing.taking(Some(position)));
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
                Verdict::Lead => Action::TakeLease(standing.taking(Some(position))),
                _ if standing.accepts_loss => Action::TakeLease(standing.taking(Some(position))),
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
