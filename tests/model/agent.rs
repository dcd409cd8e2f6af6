//! What the agent does around the pure rules: the main loop, and the answers to other members. Each function stands for one of
//! `src/agent`, named in its first line.

use std::time::Duration;

use pgset::election::candidate::Votes;
use pgset::election::leave;
use pgset::election::promise::{self, Attempt, Promises};
use pgset::election::state::State;
use pgset::election::state::candidacy::Candidacy;
use pgset::election::state::commits::Commits;
use pgset::election::step::{Effect, Event, Facts, step};
use pgset::election::vote;
use pgset::election::{Action, DataState, Lease, PostgresState as Does};

use crate::rules::Election;
use crate::words;
use crate::world::*;

/// The time of promises: a leave lasts until something ends it.
pub const NOW: u8 = 0;
const LATER: u8 = 1;
/// The time of what a member remembers, and when the processes of its server have read a setting that changed before.
pub const TIME: Duration = Duration::ZERO;
pub const READ: Duration = Duration::from_secs(1);

impl Election {
    pub fn promises(world: &World, pod: Pod) -> Promises<u8> {
        let member = &world.members[pod];
        let holder = words::candidate(pod).to_string();
        let attempt = Some(u32::from(member.noted_epoch)).filter(|epoch| *epoch > 0);
        let attempt = attempt.map(|epoch| Attempt { lease: "uid".to_owned(), holder, epoch });
        let mut promises = Promises::new(None, attempt);
        promises.leave =
            member.leave.map(|leave| promise::Leave { until: LATER, master: leave.master.map(words::master) });
        promises.vote = member.voted.map(words::version);
        promises
    }

    /// What it remembers beside that.
    pub fn state(world: &World, pod: Pod) -> State<Duration> {
        let member = &world.members[pod];
        let votes = member
            .ballot
            .map_or(Votes::None, |ballot| Votes::Counted(Self::question(&ballot), words::answers(&ballot)));
        let mut state = State::default();
        state.candidacy = Candidacy::with_votes(votes, TIME);
        if let Some((quorum, to)) = member.catch_up {
            state.commits = Commits::with_catch_up(words::quorum(quorum), TIME, to.map(words::lsn));
        }
        state
    }

    fn question(ballot: &Ballot) -> vote::Ballot {
        let Ballot { version, timeline, at, .. } = *ballot;
        vote::Ballot { version: words::version(version), position: words::position(timeline, at) }
    }

    /// `Member::look`.
    fn facts(&self, world: &World, pod: Pod) -> Facts {
        let member = &world.members[pod];
        let mut lease = self.view(world, pod);
        if !self.rules.reads_before_it_writes
            && let Lease::Vacant { set: Some(set) } | Lease::Held { set: Some(set) } = &mut lease
            && !member.standby
        {
            set.reached = None;
        }
        let mut seen = member.seen.map(|seen| words::seen(world.row(seen), seen));
        if let Some(seen) = &mut seen {
            if !self.rules.needs_a_quorum {
                seen.record.quorum = vote::Quorum::default();
            }
            if !self.rules.elected_stays_elected {
                seen.holder = None;
            }
        }
        let server = match member.server {
            PostgresState::Off => Does::Stopped,
            PostgresState::Master => Does::Master,
            PostgresState::Standby => Does::Replica {
                follows: member.follows.map(words::master),
                stalled_lsn: None,
                receives: self.rules.voters_stop_receiving && (member.follows.is_some() || member.receiver.is_some()),
                position: Some(words::position(world.timeline(member.wal), member.wal.len)),
            },
        };
        let lineage = words::lineage(world, member.wal, member.stopped_at);
        Facts {
            me: words::candidate(pod),
            lease,
            seen,
            data: DataState::Cluster { system: words::system(), standby: member.standby, lineage },
            server,
            first: pod == 0,
            voted: member.voted.map(words::version),
            gave_leave: member.leave.is_some() && self.rules.leave_excludes_votes,
            fails_over: true,
            order: None,
            quorum: words::quorum(Self::quorum_of(world, pod)),
            maximum_lag: u64::from(self.setup.maximum_lag),
            next_timeline: u32::from(member.knows.max(world.timeline(member.wal))) + 1,
        }
    }

    /// What a member would do next.
    pub fn next(&self, world: &World, pod: Pod) -> Action {
        let effects = step(&mut Self::state(world, pod), Event::Looked(Box::new(self.facts(world, pod))), TIME);
        let action = |effect| if let Effect::Act(decision) = effect { Some(decision.action) } else { None };
        effects.into_iter().find_map(action).unwrap_or(Action::Stay)
    }

    /// `Member::promise`.
    fn promise(&self, world: &mut World, pod: Pod, version: Version) {
        let mut promises = Self::promises(world, pod);
        if self.rules.leave_excludes_votes && !promises.vote(&words::version(version), NOW) {
            return;
        }
        let member = &mut world.members[pod];
        member.voted = Some(version);
        if self.rules.votes_are_noted {
            member.noted_vote = Some(version);
        }
        if self.rules.voters_stop_receiving {
            member.follows = None;
        }
    }

    /// A turn of a member that was asked for its vote.
    pub fn answer(&self, world: &mut World, candidate: Pod, pod: Pod) {
        let Some(ballot) = world.members[candidate].ballot else { return };
        let mut state = Self::state(world, pod);
        let _ = step(&mut state, Event::Asked(candidate as u64, Self::question(&ballot)), TIME);
        self.look(world, pod, &mut state, true);
    }

    /// Whom a master asks for leave, and in which epoch: `Keeper::renew`, `Keeper::lead_on_unread`.
    pub fn electors(world: &World, pod: Pod) -> Option<(u8, Pods)> {
        let member = &world.members[pod];
        let (epoch, voters) = match member.seen {
            Some(seen) if member.holds => {
                let told = member.told.map_or(0, |(voters, _)| voters);
                (world.row(seen).epoch, world.row(seen).voters | told)
            }
            Some(_) => return None,
            None => member.noted_leadership.map(|noted| (noted.epoch, noted.voters))?,
        };
        has(voters, pod).then_some((epoch, voters & !only(pod)))
    }

    /// `Responder::leave`.
    pub fn confirm(&self, world: &mut World, master: Pod, pod: Pod) {
        let Some((epoch, _)) = Self::electors(world, master) else { return };
        let member = world.members[master];
        let described = member.is_announced.then(|| Self::describe(world, master));
        let request = leave::Request {
            holder: words::candidate(master),
            epoch: u32::from(epoch),
            master: described.map(words::master),
        };
        let claim = world.members[pod].seen.map(|seen| (words::version(seen), words::lease_record(world.row(seen))));
        let read = claim.as_ref().map(|(version, claim)| leave::Read {
            version,
            holder: claim.holder.as_deref(),
            epoch: claim.record.epoch,
        });
        let mut promises = Self::promises(world, pod);
        if !self.rules.leave_excludes_votes {
            promises.vote = None;
        }
        let confirmed = promises.answer_leave(&request, read, LATER) == leave::Answer::Confirmed;
        if confirmed {
            world.members[pod].leave = Some(Leave { to: master, master: described });
            if let Some(asking) = world.members[master].asking.as_mut() {
                *asking |= only(pod);
            }
        }
    }

    /// One turn of the main loop.
    pub fn turn(&self, world: &mut World, pod: Pod, is_answered: bool) {
        let mut state = Self::state(world, pod);
        self.look(world, pod, &mut state, is_answered);
    }

    /// `Member::turn`, and the effects.
    fn look(&self, world: &mut World, pod: Pod, state: &mut State<Duration>, is_answered: bool) {
        let facts = self.facts(world, pod);
        for effect in step(state, Event::Looked(Box::new(facts)), TIME) {
            match effect {
                Effect::Answer { number, answer } => {
                    let said = answer.as_ref().and_then(words::said);
                    let candidate = usize::try_from(number).unwrap();
                    if let (Some(said), Some(ballot)) = (said, world.members[candidate].ballot.as_mut()) {
                        ballot.answers[pod] = Some(said);
                    }
                }
                Effect::Promise(version) => {
                    if let Some(seen) = world.members[pod].seen.filter(|seen| words::version(*seen) == version) {
                        self.promise(world, pod, seen);
                    }
                }
                Effect::Act(decision) => self.act(world, pod, decision.action, is_answered),
                _ => {}
            }
        }
    }

    /// `Member::act`.
    fn act(&self, world: &mut World, pod: Pod, action: Action, is_answered: bool) {
        match action {
            Action::TakeLease(taking) => return self.take(world, pod, &taking, is_answered),
            Action::Promise(_) => {
                if let Some(seen) = world.members[pod].seen {
                    self.promise(world, pod, seen);
                }
                return;
            }
            Action::ReleaseLease(_) => return Self::release(world, pod, None),
            Action::Promote(timeline) => return self.promote(world, pod, timeline),
            Action::Clone(master) | Action::Reinitialize(master) => {
                return Self::copy(world, pod, words::described(&master).pod);
            }
            Action::Rewind(master) => return Self::rewind(world, pod, words::described(&master).pod),
            _ => {}
        }
        let member = &mut world.members[pod];
        match action {
            Action::AskForVotes(ballot) => {
                let position = ballot.position;
                member.ballot = member.seen.map(|version| Ballot {
                    version,
                    timeline: u8::try_from(position.timeline).unwrap(),
                    at: u8::try_from(position.at.0).unwrap(),
                    answers: [None; MEMBERS],
                });
            }
            Action::StartStandby => Self::start(member, PostgresState::Standby, None),
            Action::StartReplica(master) => {
                Self::start(member, PostgresState::Standby, Some(words::described(&master)));
            }
            Action::Follow(master) => member.follows = Some(words::described(&master)),
            // `Server::start_master` asks for a permit.
            Action::StartMaster => {
                Self::start(member, PostgresState::Master, None);
                member.names = member.taken_with.unwrap_or(member.names);
            }
            Action::Fence => member.kill_server(),
            _ => {}
        }
    }

    fn start(member: &mut Member, server: PostgresState, follows: Option<Described>) {
        member.server = server;
        member.standby = server == PostgresState::Standby;
        member.follows = follows;
        member.stopped_at = None;
    }

    /// `Member::promote`, and what PostgreSQL does then: a branch of its own, which begins with a record of the end of recovery.
    fn promote(&self, world: &mut World, pod: Pod, number: u32) {
        let names = Self::quorum_of(world, pod);
        let Member { wal, knows, .. } = world.members[pod];
        let mut timeline = knows.max(world.timeline(wal)) + 1;
        if self.rules.numbers_are_new {
            timeline = timeline.max(u8::try_from(number).unwrap());
        }
        world.branches.push(Branch { timeline, parent: wal.branch, at: wal.len, acknowledged: 0 });
        let branch = u8::try_from(world.branches.len() - 1).unwrap();
        let member = &mut world.members[pod];
        member.kill_server();
        member.server = PostgresState::Master;
        member.standby = false;
        member.names = member.taken_with.unwrap_or(names);
        member.knows = timeline;
        member.wal = Wal { branch, len: wal.len + 1 };
    }

    /// `pg_rewind`, complete at once: what it takes for common stays as it is, the rest comes from the master.
    fn rewind(world: &mut World, pod: Pod, from: Pod) {
        let (here, there) = (world.members[pod].wal, world.members[from].wal);
        let common = words::parts_at(world, here, there);
        if common > 0 && world.branch_at(here, common - 1) != world.branch_at(there, common - 1) {
            world.wrong = Some(Wrong::Mistaken);
        }
        Self::copy(world, pod, from);
    }

    /// A copy of the master's data, complete at once.
    pub fn copy(world: &mut World, pod: Pod, from: Pod) {
        let master = world.members[from];
        if master.server != PostgresState::Master || !master.life.serves() {
            return;
        }
        let knows = world.timeline(master.wal);
        let member = &mut world.members[pod];
        member.kill_server();
        member.wal = master.wal;
        member.standby = true;
        member.stopped_at = None;
        member.knows = knows;
    }
}
