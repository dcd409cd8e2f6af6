//! One moment of a member: what it remembers, what has happened, and what follows from that. Pure: no I/O, no clock. The agent's main loop
//! turns what it meets into events and does what the effects say; the model in `tests/model` does the same with members that it made up.

use std::collections::BTreeMap;

use super::candidate::{Mandate, Standing};
use super::epoch::Epoch;
use super::lease_record::HolderIdentity;
use super::lineage::Database;
use super::order::{Order, Refusal, Streaming, successor_at_stop};
use super::recovered;
use super::state::commits::Commits;
use super::state::{HOOK_LIMIT, Pause, Starts, State, Time, WayBack};
use super::vote::{Answer, Ballot, Quorum, Record, Version};
use super::{Action, DataState, Lease, Observation, PostgresState, Waiting, decide};

/// What a member sees when it looks around.
#[derive(Clone, Debug)]
pub struct Facts {
    /// This member.
    pub me: HolderIdentity,
    /// Whose the Lease is, with time already judged.
    pub lease: Lease,
    /// The Lease as it was read last.
    pub seen: Option<Seen>,
    /// What is on the data volume.
    pub data: DataState,
    /// What PostgreSQL does.
    pub server: PostgresState,
    /// This member has the set's first ordinal.
    pub first: bool,
    /// The vote that it has given last.
    pub voted: Option<Version>,
    /// It has promised the master, which the API server can't hear, not to stand for now.
    pub gave_leave: bool,
    /// `pgset.dev/failover` is not manual.
    pub fails_over: bool,
    /// The order that stands, `pgset.dev/switchover`.
    pub order: Option<Order>,
    /// What this member's commits would wait for.
    pub quorum: Quorum,
    /// Bytes that may be lost where commits wait for nobody, `pgset.dev/maximum-lag`.
    pub maximum_lag: u64,
    /// The timeline that a promotion would begin.
    pub next_timeline: u32,
}

/// The Lease as it was read last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which state of it.
    pub version: Version,
    /// Who holds it.
    pub holder: Option<String>,
    /// Who may stand, and what commits wait for.
    pub record: Record,
    /// Which life of its container its holder is.
    pub instance: Option<String>,
    /// To whom the last master handed over.
    pub successor: Option<String>,
    /// The last order that was seen to.
    pub order_done: Option<String>,
}

/// What happens to a member.
#[derive(Clone, Debug)]
pub enum Event {
    /// It looks around: at its pace, and when something has changed.
    Looked(Box<Facts>),
    /// Another member asks for its vote, by this number.
    Asked(u64, Ballot),
    /// The others have answered its own ballot.
    Answered(BTreeMap<String, Answer>),
    /// What it ran has ended by itself.
    Ended(Ended),
    /// Somebody else started a server on this member's data, and it was stopped: he wanted a restart.
    OthersStarted,
    /// What an effect asked for has failed.
    Failed {
        /// It was a start as the master.
        is_start_of_master: bool,
    },
    /// Its server accepts writes by a leadership that has just begun.
    Leads,
    /// It is a replica, and streams from the master by now.
    Streams,
    /// As the master it meets an order that nobody has seen to.
    Ordered {
        /// The order.
        order: Order,
        /// The other members that the set should have.
        others: Vec<String>,
        /// Who streams from it, the best first.
        streaming: Vec<Streaming>,
    },
    /// It has stopped for the sake of its successor, and given the Lease back.
    HandedOver,
    /// As the master it has a database beside its own that the set's owner has accepted, while the set is this.
    Accepted {
        /// The one that was recovered.
        recovered: Database,
        /// The set's.
        set: Database,
    },
}

/// What a member knows when it is asked to end.
#[derive(Clone, Debug)]
pub struct Stopping {
    /// What PostgreSQL does.
    pub server: PostgresState,
    /// It leads.
    pub leads: bool,
    /// The set's name.
    pub set: String,
    /// This member.
    pub me: String,
    /// Who streams from it and stays, the best first.
    pub streaming: Vec<Streaming>,
}

/// How what a member ran has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// PostgreSQL, with success: somebody stopped it.
    ServerStopped,
    /// PostgreSQL, by a crash or an error.
    ServerFailed {
        /// It was a master that had not accepted writes yet.
        was_starting_as_master: bool,
    },
    /// The database was made.
    Bootstrapped,
    /// It was not.
    BootstrapFailed,
    /// The data was copied.
    Cloned,
    /// It was not.
    CloneFailed,
    /// The data was rewound.
    Rewound,
    /// It can't be, and why.
    RewindImpossible(String),
    /// The rewind was broken off.
    RewindFailed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answer the candidate that asked by this number; with nothing, as time has run out.
    Answer {
        /// The number.
        number: u64,
        /// What it hears.
        answer: Option<Answer>,
    },
    /// Promise a candidate to receive no WAL while the Lease stands at that version, and stop receiving it.
    Promise(Version),
    /// Take the role label off the pod: at once, or unless it is right again in a moment.
    TakeLabelOff {
        /// It can still be read.
        soon: bool,
    },
    /// Do this.
    Act(Decision),
    /// End the server processes that are left.
    EndLeftovers,
    /// End the container, and with it all that the entry point started.
    EndContainer,
    /// The database does not start as a member's: run it as before the annotation, if no other member may have it.
    GiveUpStarting,
    /// Stop cleanly, and name this member as the next master.
    HandOver {
        /// Who.
        to: String,
    },
    /// Stop cleanly, and let the Lease say that the set goes on from this database, which is beside the master's own.
    GoOnFrom(Database),
    /// Say that an order is not followed, and why.
    RefuseOrder {
        /// The order.
        order: Order,
        /// Why.
        why: Refusal,
    },
}

/// What to do next, and on what ground. Whoever does it when the ground has gone does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// What it was decided by.
    pub ground: Box<Observation>,
}

// === impl Decision ===

impl Decision {
    /// The state of the Lease that it was decided by.
    #[must_use]
    pub fn version(&self) -> Option<&Version> {
        self.ground.standing.version.as_ref()
    }

    /// The leadership that it was decided by; absent where this member did not lead, or leads on without having read the Lease.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        let Standing { version, record, .. } = &self.ground.standing;
        let version = version.as_ref().filter(|_| matches!(self.ground.lease, Lease::Held { .. }))?;
        Some(Epoch::new(version, record.epoch))
    }
}

/// How a member ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// What makes its database ends with the container only; the Lease runs out.
    Leave,
    /// Break off the copying, or the rewinding.
    BreakOff,
    /// Stop the standby.
    StopStandby,
    /// Stop the master, and say how far it has come and who is next.
    StopMaster {
        /// Who can take over, if anybody.
        successor: Option<String>,
    },
    /// PostgreSQL has been stopped before: say how far it has come.
    SayHowFar,
    /// Nothing runs.
    Nothing,
}

/// What follows from an event.
#[must_use]
pub fn step<T: Time>(state: &mut State<T>, event: Event, now: T) -> Vec<Effect> {
    match event {
        Event::Looked(facts) => look(state, *facts, now),
        Event::Asked(number, ballot) => {
            state.candidacy.note_asked(number, ballot, now);
            Vec::new()
        }
        Event::Answered(answers) => {
            state.candidacy.note_answers(answers, now);
            Vec::new()
        }
        Event::Ended(ended) => end(state, ended, now),
        Event::OthersStarted => {
            state.let_be_until = None;
            Vec::new()
        }
        Event::Failed { is_start_of_master } => {
            state.pause.begin(now);
            note_start(state, is_start_of_master, now)
        }
        Event::Leads => {
            state.pause = Pause::default();
            state.starts = Starts::default();
            // What was seen in an earlier leadership is not true of this one.
            state.commits = Commits::default();
            Vec::new()
        }
        Event::Streams => {
            state.pause = Pause::default();
            state.way_back = WayBack::default();
            Vec::new()
        }
        Event::Ordered { order, others, streaming } => {
            state.handover.follow(order, &others, &streaming, now).into_iter().collect()
        }
        Event::HandedOver => {
            state.handover.note_handed_over(now);
            Vec::new()
        }
        Event::Accepted { recovered, set } => {
            recovered::goes_on_from(&recovered, &set).map(Effect::GoOnFrom).into_iter().collect()
        }
    }
}

/// The candidates hear first: what this member does next may take its time.
fn look<T: Time>(state: &mut State<T>, facts: Facts, now: T) -> Vec<Effect> {
    let order = unseen_order(state, &facts);
    let observation = observe(state, facts, order.as_ref(), now);
    let mut effects = state.candidacy.answer(&observation, now);
    let action = decide(&observation);
    match &action {
        Action::TakeLease(_) => state.handover.note_taking(order.as_ref(), &observation.standing.me),
        Action::AskForVotes(ballot) => state.candidacy.ask(ballot.clone()),
        _ => {}
    }
    effects.extend(stale_label(&action, &observation.server));
    effects.push(Effect::Act(Decision { action, ground: Box::new(observation) }));
    effects
}

/// The order that stands and that nobody has seen to.
fn unseen_order<T: Time>(state: &mut State<T>, facts: &Facts) -> Option<Order> {
    state.handover.forget_old(facts.order.as_ref());
    let recorded = facts.seen.as_ref().and_then(|seen| seen.order_done.as_ref());
    state.handover.order(facts.order.as_ref(), recorded)
}

/// What its next step depends on, from what it sees and what it remembers.
fn observe<T: Time>(state: &mut State<T>, facts: Facts, order: Option<&Order>, now: T) -> Observation {
    let mandate = mandate(&facts, order);
    let held_by = facts.seen.as_ref().and_then(|seen| seen.holder.as_ref());
    let is_last_holder = held_by == Some(&facts.me.to_string());
    if held_by.is_some() && !is_last_holder {
        state.handover.goes_on();
    }
    let successor = state.candidacy.successor(&facts, now).or_else(|| state.handover.waits_for(now));
    let (version, record) = facts.seen.map(|seen| (seen.version, seen.record)).unzip();
    let standing = Standing {
        mandate,
        is_last_holder,
        successor,
        fails_to_start: state.starts.are_failing(now),
        votes: state.candidacy.votes(now),
        version,
        record: record.unwrap_or_default(),
        voted: facts.voted,
        gave_leave: facts.gave_leave,
        quorum: facts.quorum,
        maximum_lag: facts.maximum_lag,
        next_timeline: facts.next_timeline,
        me: facts.me.pod,
    };
    let server = match facts.server {
        PostgresState::Stopped if state.lets_be(now) => PostgresState::StoppedExternally,
        server => server,
    };
    Observation { lease: facts.lease, data: state.know(facts.data), server, first: facts.first, standing }
}

fn mandate(facts: &Facts, order: Option<&Order>) -> Mandate {
    match order.filter(|order| order.names(&facts.me.pod)) {
        // Of any member nobody can know what it lacks.
        Some(order) if order.accepts_loss && order.target.is_some() => Mandate::AcceptsLoss,
        Some(_) => Mandate::Votes,
        None if facts.fails_over => Mandate::Votes,
        None => Mandate::None,
    }
}

/// Whether a label that the pod may still have, from an earlier life of the container or from the template, is wrong for a member that is
/// about to do this. Nothing is known before the Lease is read: a master whose container starts anew keeps its label. A replica that waits
/// for a master can be read meanwhile.
fn stale_label(action: &Action, server: &PostgresState) -> Option<Effect> {
    match action {
        Action::Stay
        | Action::Wait(Waiting::ForLease)
        | Action::TakeLease(_)
        | Action::Promote(_)
        | Action::Bootstrap
        | Action::StartMaster
        | Action::Follow(_)
        | Action::AbandonClone => None,
        Action::Wait(_) | Action::Promise(_) | Action::AskForVotes(_) => {
            Some(Effect::TakeLabelOff { soon: matches!(server, PostgresState::Replica { .. }) })
        }
        Action::ReleaseLease(_)
        | Action::NameDatabase(_)
        | Action::Clone(_)
        | Action::Reinitialize(_)
        | Action::Rewind(_)
        | Action::StartReplica(_)
        | Action::StartStandby
        | Action::Fence => Some(Effect::TakeLabelOff { soon: false }),
    }
}

fn end<T: Time>(state: &mut State<T>, ended: Ended, now: T) -> Vec<Effect> {
    match ended {
        Ended::ServerStopped => {
            state.let_be_until = Some(now.after(HOOK_LIMIT));
            Vec::new()
        }
        Ended::ServerFailed { was_starting_as_master } => {
            state.way_back.note_end();
            state.pause.begin(now);
            let mut effects = vec![Effect::EndLeftovers];
            effects.extend(note_start(state, was_starting_as_master, now));
            effects
        }
        Ended::Bootstrapped | Ended::Cloned => {
            state.way_back = WayBack::default();
            state.pause = Pause::default();
            Vec::new()
        }
        // The entry point's temporary server may have outlived it, and would spoil the next attempt.
        Ended::BootstrapFailed => vec![Effect::EndContainer],
        Ended::Rewound => {
            state.way_back = WayBack::rewound();
            state.pause = Pause::default();
            Vec::new()
        }
        Ended::RewindImpossible(why) => {
            state.way_back = WayBack::impossible(why);
            Vec::new()
        }
        Ended::CloneFailed | Ended::RewindFailed => {
            state.pause.begin(now);
            Vec::new()
        }
    }
}

fn note_start<T: Time>(state: &mut State<T>, is_start_of_master: bool, now: T) -> Vec<Effect> {
    if !is_start_of_master {
        return Vec::new();
    }
    state.starts.note_failed(now);
    state.starts.are_failing(now).then_some(Effect::GiveUpStarting).into_iter().collect()
}

/// How a member ends that is asked to: after this it steps no more.
pub fn stop<T: Time>(state: &mut State<T>, stopping: &Stopping) -> End {
    let Stopping { server, leads, set, me, streaming } = stopping;
    match server {
        PostgresState::Bootstrapping => End::Leave,
        PostgresState::Cloning { .. } | PostgresState::Rewinding { .. } => End::BreakOff,
        PostgresState::Replica { .. } | PostgresState::Promoted => End::StopStandby,
        PostgresState::Master => {
            let successor = leads.then(|| successor_at_stop(set, me, streaming)).flatten();
            state.handover.note_successor(successor.clone());
            End::StopMaster { successor }
        }
        // A `preStop` hook of the user's.
        PostgresState::Stopped | PostgresState::StoppedExternally if *leads => End::SayHowFar,
        PostgresState::Stopped | PostgresState::StoppedExternally => End::Nothing,
    }
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
