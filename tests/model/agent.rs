//! What the agent does around the pure rules: the main loop, and the answers to other members. Each function stands for one of
//! `src/agent`, named in its first line.

use pgset::election::candidate::{Copy, Mandate, Response, Standing, Voter, Votes, respond};
use pgset::election::leave;
use pgset::election::promise::{self, Attempt, Promises};
use pgset::election::vote;
use pgset::election::{self, Action, Data, Lease, Observation, Server as Does};

use crate::rules::Election;
use crate::words;
use crate::world::*;

/// The time of promises: a leave lasts until something ends it.
pub const NOW: u8 = 0;
const LATER: u8 = 1;

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

    /// `Member::standing`.
    fn standing(&self, world: &World, pod: Pod) -> Standing {
        let member = &world.members[pod];
        let seen = member.seen.map(|seen| world.row(seen));
        let mut record = seen.map(words::record).unwrap_or_default();
        if !self.rules.needs_a_quorum {
            record.quorum = vote::Quorum::default();
        }
        let votes = member
            .ballot
            .map_or(Votes::None, |ballot| Votes::Counted(Self::question(&ballot), words::answers(&ballot)));
        Standing {
            me: words::pod(pod),
            mandate: Mandate::Votes,
            version: member.seen.map(words::version),
            record,
            voted: member.voted.map(words::version),
            gave_leave: member.leave.is_some() && self.rules.leave_excludes_votes,
            fails_to_start: false,
            is_last_holder: self.rules.elected_stays_elected && seen.is_some_and(|row| row.holder == Some(pod)),
            successor: None,
            votes,
            quorum: words::quorum(self.quorum_of(world, pod)),
            maximum_lag: u64::from(self.setup.maximum_lag),
            next_timeline: u32::from(member.knows.max(world.timeline(member.wal))) + 1,
        }
    }

    fn question(ballot: &Ballot) -> vote::Ballot {
        let Ballot { version, timeline, at, .. } = *ballot;
        vote::Ballot { version: words::version(version), position: words::position(timeline, at) }
    }

    /// `Member::observe`.
    pub fn observation(&self, world: &World, pod: Pod) -> Observation {
        let member = &world.members[pod];
        let mut lease = self.view(world, pod);
        if !self.rules.reads_before_it_writes
            && let Lease::Vacant { set: Some(set) } | Lease::Mine { set: Some(set) } = &mut lease
            && !member.standby
        {
            set.reached = None;
        }
        let server = match member.server {
            Server::Off => Does::Stopped,
            Server::Master => Does::Master,
            Server::Standby => Does::Replica {
                follows: member.follows.map(words::master),
                stuck_at: None,
                receives: self.rules.voters_stop_receiving && (member.follows.is_some() || member.receiver.is_some()),
                position: Some(words::position(world.timeline(member.wal), member.wal.len)),
            },
        };
        let lineage = words::lineage(world, member.wal, member.stopped_at);
        let data = Data::Cluster { system: words::system(), standby: member.standby, lineage };
        Observation { lease, data, server, first: pod == 0, standing: self.standing(world, pod) }
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

    /// `Member::answer_ballots`. Absent: nothing that the candidate would hear.
    pub fn answer(&self, world: &mut World, candidate: Pod, pod: Pod) {
        let Some(ballot) = world.members[candidate].ballot else { return };
        let observation = self.observation(world, pod);
        let (seen, voted) = (world.members[pod].seen.map(words::version), world.members[pod].voted.map(words::version));
        let asked = Voter {
            version: seen.as_ref(),
            is_vacant: matches!(observation.lease, Lease::Vacant { .. }),
            voted: voted.as_ref(),
            gave_leave: world.members[pod].leave.is_some() && self.rules.leave_excludes_votes,
            copy: Copy::of(&observation, true),
        };
        match respond(&Self::question(&ballot), &asked) {
            Response::Promise => self.promise(world, pod, ballot.version),
            Response::Answer(answer) => {
                if let (Some(said), Some(ballot)) = (words::said(&answer), world.members[candidate].ballot.as_mut()) {
                    ballot.answers[pod] = Some(said);
                }
            }
        }
    }

    /// Whom a master asks for leave, and in which epoch: `Keeper::renew`, `Keeper::lead_on_unread`.
    pub fn electors(world: &World, pod: Pod) -> Option<(u8, Pods)> {
        let member = &world.members[pod];
        let (epoch, voters) = match member.seen {
            Some(seen) if member.holds => {
                let told = if member.is_announced { world.wanted | only(pod) } else { 0 };
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
        let claim = world.members[pod].seen.map(|seen| (words::version(seen), words::claim(world.row(seen))));
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
    pub fn turn(&self, world: &mut World, pod: Pod, is_answered: bool) -> Action {
        let observation = self.observation(world, pod);
        let action = election::decide(&observation);
        self.act(world, pod, action.clone(), is_answered);
        action
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
            Action::Clone(master) | Action::CloneAnew(master) => {
                return Self::copy(world, pod, words::described(&master).pod);
            }
            Action::Rewind(master) => return Self::rewind(world, pod, words::described(&master).pod),
            _ => {}
        }
        let wanted = self.quorum_of(world, pod);
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
            Action::StartStandby => Self::start(member, Server::Standby, None),
            Action::StartReplica(master) => Self::start(member, Server::Standby, Some(words::described(&master))),
            Action::Follow(master) => member.follows = Some(words::described(&master)),
            // `Server::start_master` asks for a permit.
            Action::StartMaster => {
                Self::start(member, Server::Master, None);
                member.names = wanted;
                member.names_since = member.wal.len;
            }
            Action::Fence => member.kill_server(),
            _ => {}
        }
    }

    fn start(member: &mut Member, server: Server, follows: Option<Described>) {
        member.server = server;
        member.standby = server == Server::Standby;
        member.follows = follows;
        member.stopped_at = None;
    }

    /// `Member::promote`, and what PostgreSQL does then: a branch of its own, which begins with a record of the end of recovery.
    fn promote(&self, world: &mut World, pod: Pod, number: u32) {
        let names = self.quorum_of(world, pod);
        let Member { wal, knows, .. } = world.members[pod];
        let mut timeline = knows.max(world.timeline(wal)) + 1;
        if self.rules.numbers_are_new {
            timeline = timeline.max(u8::try_from(number).unwrap());
        }
        world.branches.push(Branch { timeline, parent: wal.branch, at: wal.len, acknowledged: 0 });
        let branch = u8::try_from(world.branches.len() - 1).unwrap();
        let member = &mut world.members[pod];
        member.kill_server();
        member.server = Server::Master;
        member.standby = false;
        member.names = names;
        member.knows = timeline;
        member.names_since = wal.len + 1;
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
        if master.server != Server::Master || !master.life.serves() {
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
