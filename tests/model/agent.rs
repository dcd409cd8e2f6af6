//! What the agent does around the pure rules: the keeper of the Lease, the main loop, the answers to other members. Each function stands
//! for one of `src/agent`, named in its first line.

use pgset::election::candidate::{Copy, Response, Standing, Voter, Votes, respond};
use pgset::election::claim::{LastWord, Taking};
use pgset::election::leave::{self, Known};
use pgset::election::promise::Promises;
use pgset::election::quorum::{QuorumStep, quorum_step};
use pgset::election::sight::{self, Sight};
use pgset::election::vote;
use pgset::election::{self, Action, Data, Lease, Observation, Server as Does};

use crate::rules::Election;
use crate::words;
use crate::world::*;

/// The time of promises: a leave lasts until something ends it.
const NOW: u8 = 0;
const LATER: u8 = 1;

impl Election {
    fn promises(world: &World, pod: Pod) -> Promises<u8> {
        let member = &world.members[pod];
        let mut promises = Promises::new(None);
        if let Some(leave) = member.leave {
            let _ = promises.give_leave(LATER, leave.master.map(words::master), |_| true);
        }
        promises.vote = member.voted.map(words::version);
        promises
    }

    /// `Keeper::judge`.
    fn judge(&self, world: &World, pod: Pod) -> Lease {
        let member = &world.members[pod];
        let claim = member.seen.map(|seen| words::claim(world.row(seen)));
        let promises = Self::promises(world, pod);
        let leave = promises.leave(NOW).filter(|_| self.rules.leave_excludes_votes);
        let earlier = member.noted_leadership.map(|noted| words::lineage_of(noted.master));
        sight::judge(&Sight {
            me: &words::candidate(pod),
            claim: claim.as_ref(),
            holds: member.holds,
            earlier,
            leave: leave.map(|leave| leave.master.as_ref()),
            is_reserved: false,
            is_silent: member.is_silent,
        })
    }

    /// `View::at`: leadership ends by itself at the fence.
    pub fn view(&self, world: &World, pod: Pod) -> Lease {
        let member = &world.members[pod];
        if member.holds && member.age != Some(Age::Fresh) { Lease::Unknown } else { self.judge(world, pod) }
    }

    pub fn leads(&self, world: &World, pod: Pod) -> bool {
        let member = &world.members[pod];
        member.holds && member.age == Some(Age::Fresh)
    }

    /// `Keeper::observe`, and `Promises::see` in it.
    pub fn observe(world: &mut World, pod: Pod, version: Version) {
        let member = &mut world.members[pod];
        if member.holds || member.seen == Some(version) {
            return;
        }
        member.seen = Some(version);
        member.is_silent = false;
        let mut promises = Self::promises(world, pod);
        promises.see(&words::version(version));
        if promises.vote.is_none() {
            Self::forget_vote(&mut world.members[pod]);
        }
    }

    /// `Member::forget_old_vote`.
    fn forget_vote(member: &mut Member) {
        member.voted = None;
        member.noted_vote = None;
    }

    /// `Keeper::observe_first` where this member leads on unread, `observe` else.
    pub fn read(world: &mut World, pod: Pod) {
        let (now, Row { holder, epoch, .. }) = (world.now, *world.lease());
        let member = &mut world.members[pod];
        if member.holds && member.seen.is_none() {
            if holder == Some(pod) {
                member.seen = Some(now);
                member.epoch = epoch;
                return;
            }
            Self::lose(member);
        }
        Self::observe(world, pod, now);
    }

    /// `Keeper::lose`. The fencer's deadline stays.
    pub fn lose(member: &mut Member) {
        member.holds = false;
        member.is_announced = false;
        member.asking = None;
    }

    /// `Keeper::hold` and `Keeper::extend`.
    fn hold(world: &mut World, pod: Pod) {
        let epoch = world.lease().epoch;
        let now = world.now;
        let member = &mut world.members[pod];
        member.holds = true;
        member.epoch = epoch;
        member.seen = Some(now);
        member.is_silent = false;
        member.age = Some(Age::Fresh);
        member.by_leave_of = 0;
        member.asking = None;
        // Its own write is a new state of the Lease.
        if member.voted.is_some() {
            Self::forget_vote(member);
        }
    }

    /// The API server stores what was built on a state of the Lease, if that is the present one.
    fn replace(world: &mut World, base: Version, row: Row) -> bool {
        if base != world.now {
            return false;
        }
        world.rows.push(row);
        world.now = u8::try_from(world.rows.len() - 1).unwrap();
        true
    }

    /// `Keeper::take`, by the version that was decided about.
    fn take(&self, world: &mut World, pod: Pod, taking: &Taking, is_answered: bool) {
        if world.members[pod].holds || !matches!(self.judge(world, pod), Lease::Vacant { .. }) || !world.reaches(pod) {
            return;
        }
        let Some(seen) = world.members[pod].seen else { return };
        let base = if self.rules.takes_what_it_saw { seen } else { world.now };
        let branch = world.lease().branch;
        let mut taking = taking.clone();
        if let Some(begins) = taking.begins.as_mut().filter(|_| self.rules.numbers_are_new) {
            begins.timeline = begins.timeline.max(u32::from(world.row(base).timeline) + 1);
        }
        let row = words::row(&words::acquired(world.row(base), pod, &taking), branch);
        if self.rules.notes_before_it_takes {
            world.members[pod].noted_epoch = row.epoch;
        }
        if !Self::replace(world, base, row) {
            return Self::read(world, pod);
        }
        self.judge_taking(world, pod, base);
        if is_answered {
            Self::hold(world, pod);
        }
    }

    /// What nobody in the model knows: whether this member should have taken the Lease.
    fn judge_taking(&self, world: &mut World, pod: Pod, base: Version) {
        let (before, wal) = (*world.row(base), world.members[pod].wal);
        let goes_on = world.has_of(wal, before.branch) > world.branch(before.branch).at || before.branch == 0;
        let is_told_apart = goes_on || world.timeline(wal) < before.timeline;
        if !is_told_apart {
            world.wrong = Some(Wrong::Mistaken);
        }
        if self.setup.confirm == 0 {
            let allowed = before.flushed.unwrap_or(0).saturating_sub(self.setup.maximum_lag);
            if world.first_missing(wal).is_some_and(|missing| missing < allowed) {
                world.wrong = Some(Wrong::LostMoreThanAllowed);
            }
            world.forget_missing(wal);
        }
    }

    fn describe(world: &World, pod: Pod) -> Described {
        let wal = world.members[pod].wal;
        let branch = world.branch(wal.branch);
        Described { pod, timeline: branch.timeline, begins: (branch.timeline > 1).then_some(branch.at) }
    }

    /// `Member::keep_record`: what is to be told, and whether the server may do what is wanted.
    fn to_tell(&self, world: &World, pod: Pod) -> (Pods, Quorum, bool) {
        let member = &world.members[pod];
        let seen = world.row(member.seen.unwrap_or(world.now));
        let wanted = self.quorum_of(world, pod);
        let step = quorum_step(&words::quorum(seen.quorum), &words::quorum(member.names), &words::quorum(wanted));
        let have = |replica: &Pod| {
            let wal = world.members[*replica].wal;
            wal.len >= member.names_since && world.has_of(wal, member.wal.branch) > 0
        };
        let is_caught_up = each(wanted.names).filter(have).count() >= usize::from(wanted.confirm);
        let (quorum, may_enable) = match step {
            QuorumStep::Record(_) if self.rules.narrows_when_caught_up && member.names == wanted && !is_caught_up => {
                (seen.quorum, true)
            }
            QuorumStep::Record(quorum) => (words::small_quorum(&quorum), false),
            QuorumStep::Enable => (seen.quorum, true),
            QuorumStep::Done => (wanted, true),
        };
        (world.wanted | only(pod), quorum, may_enable)
    }

    /// What `synchronous_standby_names` should be.
    pub fn quorum_of(&self, world: &World, pod: Pod) -> Quorum {
        if self.setup.confirm == 0 {
            return Quorum::default();
        }
        Quorum { names: world.wanted & !only(pod), confirm: self.setup.confirm }
    }

    /// `Keeper::renew` with what the main loop has announced and told, and `Keeper::settle_conflict`.
    pub fn renew(&self, world: &mut World, pod: Pod, is_answered: bool) {
        let member = world.members[pod];
        let Some(seen) = member.seen.filter(|_| member.holds && world.reaches(pod)) else { return };
        let announces = member.server == Server::Master && self.leads(world, pod) || member.is_announced;
        world.members[pod].is_announced = announces;
        let announced = announces.then(|| (Self::describe(world, pod), member.wal.len));
        let told = announces.then(|| self.to_tell(world, pod));
        let told = told.map(|(voters, quorum, _)| words::told(voters, &words::quorum(quorum)));
        let branch = if announces { member.wal.branch } else { world.lease().branch };
        let mut base = seen;
        let mut held = words::object(world.row(seen));
        if seen != world.now {
            base = world.now;
            let now = words::object(world.lease());
            let epochs = self.rules.notices_another_epoch && world.lease().epoch != member.epoch;
            if sight::is_lost(&words::candidate(pod), &now) || epochs {
                Self::lose(&mut world.members[pod]);
                return Self::read(world, pod);
            }
            let quorum = told.as_ref().map(|told| told.quorum.clone()).unwrap_or_default();
            held = words::acquired(world.lease(), pod, &Taking { begins: None, quorum });
        }
        if base != seen {
            self.judge_taking(world, pod, base);
        }
        let row = words::row(&words::renewed(&held, announced, told.as_ref()), branch);
        if Self::replace(world, base, row) && is_answered {
            Self::hold(world, pod);
        }
    }

    /// Whether a renewal would say anything new.
    pub fn has_news(&self, world: &World, pod: Pod) -> bool {
        let member = &world.members[pod];
        let Some(seen) = member.seen else { return false };
        if !self.leads(world, pod) || member.by_leave_of != 0 || seen != world.now {
            return true;
        }
        if member.server != Server::Master {
            return false;
        }
        let (voters, quorum, _) = self.to_tell(world, pod);
        let row = world.row(seen);
        !member.is_announced
            || self.setup.confirm == 0 && row.flushed != Some(member.wal.len)
            || row.voters != voters
            || row.quorum != quorum
    }

    /// `Member::keep_members`: the server does what the Lease says by now.
    pub fn enable(&self, world: &mut World, pod: Pod) {
        let (_, _, may_enable) = self.to_tell(world, pod);
        let wanted = self.quorum_of(world, pod);
        let member = &mut world.members[pod];
        if may_enable && member.names != wanted {
            member.names = wanted;
            member.names_since = member.wal.len;
        }
    }

    /// `Member::note_leadership`.
    pub fn note_leadership(world: &mut World, pod: Pod) {
        let Some(seen) = world.members[pod].seen else { return };
        let (row, master) = (*world.row(seen), Self::describe(world, pod));
        let voters = row.voters | world.wanted | only(pod);
        world.members[pod].noted_leadership = Some(Leadership { epoch: row.epoch, voters, master });
        world.members[pod].noted_epoch = row.epoch;
    }

    /// `Member::release` and `Keeper::release`.
    pub fn release(world: &mut World, pod: Pod, last_word: Option<&LastWord>) {
        let member = &mut world.members[pod];
        member.noted_leadership = None;
        let held = member.seen.filter(|_| member.holds);
        Self::lose(member);
        let Some(seen) = held else { return };
        if world.reaches(pod) {
            let branch = if last_word.is_some() { world.members[pod].wal.branch } else { world.lease().branch };
            let row = words::row(&words::released(world.row(seen), last_word), branch);
            if Self::replace(world, seen, row) {
                Self::observe(world, pod, world.now);
            }
        }
        // `fencer.stand()`: nothing may write.
        world.members[pod].age = None;
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
            is_automatic: true,
            version: member.seen.map(words::version),
            record,
            voted: member.voted.map(words::version),
            gave_leave: member.leave.is_some() && self.rules.leave_excludes_votes,
            successor: None,
            votes,
            quorum: words::quorum(self.quorum_of(world, pod)),
            maximum_lag: u64::from(self.setup.maximum_lag),
            next_timeline: u32::from(member.knows.max(world.timeline(member.wal))) + 1,
            accepts_loss: false,
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
        let voter = Voter {
            version: seen.as_ref(),
            is_vacant: matches!(observation.lease, Lease::Vacant { .. }),
            voted: voted.as_ref(),
            gave_leave: world.members[pod].leave.is_some() && self.rules.leave_excludes_votes,
            copy: Copy::of(&observation, true),
        };
        match respond(&Self::question(&ballot), &voter) {
            Response::Promise => self.promise(world, pod, ballot.version),
            Response::Answer(answer) => {
                if let (Some(said), Some(ballot)) = (words::said(&answer), world.members[candidate].ballot.as_mut()) {
                    ballot.answers[pod] = Some(said);
                }
            }
        }
    }

    /// Whom a master asks for leave, and in which epoch: `Keeper::renew`, `Keeper::lead_on_unread`.
    pub fn electors(&self, world: &World, pod: Pod) -> Option<(u8, Pods)> {
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
        let Some((epoch, _)) = self.electors(world, master) else { return };
        let member = world.members[master];
        let described = member.is_announced.then(|| Self::describe(world, master));
        let request = leave::Request {
            holder: words::candidate(master),
            epoch: u32::from(epoch),
            master: described.map(words::master),
        };
        let claim = world.members[pod].seen.map(|seen| words::claim(world.row(seen)));
        let earlier = Some(world.members[pod].noted_epoch).filter(|epoch| *epoch > 0);
        let me = words::candidate(pod).to_string();
        let known = match (&claim, earlier) {
            (Some(claim), _) => Known::Lease { holder: claim.holder.as_deref(), epoch: claim.record.epoch },
            (None, Some(epoch)) => Known::Lease { holder: Some(&me), epoch: u32::from(epoch) },
            (None, None) => Known::Nothing,
        };
        let mut promises = Self::promises(world, pod);
        let confirmed = promises.give_leave(LATER, request.master.clone(), |has_voted| {
            let has_voted = has_voted && self.rules.leave_excludes_votes;
            leave::answer(&request, known, has_voted) == leave::Answer::Confirmed
        });
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
            Action::Promise(_) | Action::AskForVotes(_) | Action::Wait(_)
                if self.rules.elected_stays_elected && self.was_elected(world, pod) =>
            {
                let taking = Taking { begins: None, quorum: words::quorum(self.quorum_of(world, pod)) };
                return self.take(world, pod, &taking, is_answered);
            }
            Action::TakeLease(taking) => return self.take(world, pod, &taking, is_answered),
            Action::Promise(_) => {
                if let Some(seen) = world.members[pod].seen {
                    self.promise(world, pod, seen);
                }
                return;
            }
            Action::ReleaseLease(_) => return Self::release(world, pod, None),
            Action::Promote => return self.promote(world, pod),
            Action::Clone(master) | Action::CloneAnew(master) => {
                return Self::copy(world, pod, words::described(&master).pod);
            }
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

    /// The Lease says that this member was the last to take it, and has not announced itself since: its promotion begins where it is.
    fn was_elected(&self, world: &World, pod: Pod) -> bool {
        let member = &world.members[pod];
        let Some(row) = member.seen.map(|seen| world.row(seen)) else { return false };
        let timeline = world.timeline(member.wal);
        member.server == Server::Standby
            && matches!(self.view(world, pod), Lease::Vacant { .. })
            && row.holder == Some(pod)
            && timeline < row.timeline
            && row.begins == Some(member.wal.len)
            && row.flushed <= row.begins
    }

    fn start(member: &mut Member, server: Server, follows: Option<Described>) {
        member.server = server;
        member.standby = server == Server::Standby;
        member.follows = follows;
        member.stopped_at = None;
    }

    /// `Member::promote`, and what PostgreSQL does then: a branch of its own, which begins with a record of the end of recovery.
    fn promote(&self, world: &mut World, pod: Pod) {
        let names = self.quorum_of(world, pod);
        let Member { wal, knows, .. } = world.members[pod];
        let mut timeline = knows.max(world.timeline(wal)) + 1;
        if self.rules.numbers_are_new {
            timeline = timeline.max(world.members[pod].seen.map_or(0, |seen| world.row(seen).timeline));
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
