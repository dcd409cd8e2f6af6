//! The keeper of the Lease, as the model has it: what it has seen, takes, renews and gives back. Each function stands for one of
//! `src/agent/leadership.rs`, named in its first line, or of `src/agent/member/record.rs`, which tells it what to write.

use pgset::election::Lease;
use pgset::election::claim::{LastWord, Taking};
use pgset::election::quorum::{QuorumStep, quorum_step};
use pgset::election::sight::{self, Sight};
use pgset::election::vote;

use crate::agent::NOW;
use crate::rules::Election;
use crate::words;
use crate::world::*;

impl Election {
    /// `Keeper::judge`.
    pub fn judge(&self, world: &World, pod: Pod) -> Lease {
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
            ended: None,
        })
    }

    /// `View::at`: leadership ends by itself at the fence.
    pub fn view(&self, world: &World, pod: Pod) -> Lease {
        let member = &world.members[pod];
        if member.holds && member.age != Some(Age::Fresh) { Lease::Unknown } else { self.judge(world, pod) }
    }

    pub fn leads(world: &World, pod: Pod) -> bool {
        let member = &world.members[pod];
        member.holds && member.age == Some(Age::Fresh)
    }

    /// `Keeper::hear`.
    pub fn hear(&self, world: &mut World, pod: Pod, version: Version) {
        let object = |version| words::object_at(world.row(version), version);
        let is_older = |seen| sight::is_older(&object(version), &object(seen));
        if !(self.rules.goes_forward && world.members[pod].seen.is_some_and(is_older)) {
            Self::observe(world, pod, version);
        }
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
    pub fn forget_vote(member: &mut Member) {
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
    pub fn hold(world: &mut World, pod: Pod) {
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
    pub fn replace(world: &mut World, base: Version, row: Row) -> bool {
        if base != world.now {
            return false;
        }
        world.rows.push(row);
        world.now = u8::try_from(world.rows.len() - 1).unwrap();
        true
    }

    /// `Keeper::take`, by the version that was decided about.
    pub fn take(&self, world: &mut World, pod: Pod, taking: &Taking, is_answered: bool) {
        if world.members[pod].holds || !matches!(self.judge(world, pod), Lease::Vacant { .. }) || !world.reaches(pod) {
            return;
        }
        let Some(seen) = world.members[pod].seen else { return };
        let base = if self.rules.takes_what_it_saw { seen } else { world.now };
        let branch = world.lease().branch;
        let mut taking = taking.clone();
        if let Some(begins) = taking.begins.as_mut().filter(|_| !self.rules.numbers_are_new) {
            let Member { wal, knows, .. } = world.members[pod];
            begins.timeline = u32::from(knows.max(world.timeline(wal))) + 1;
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
    pub fn judge_taking(&self, world: &mut World, pod: Pod, base: Version) {
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

    pub fn describe(world: &World, pod: Pod) -> Described {
        let wal = world.members[pod].wal;
        let branch = world.branch(wal.branch);
        Described { pod, timeline: branch.timeline, begins: (branch.timeline > 1).then_some(branch.at) }
    }

    /// `Member::keep_record`: what is to be told, and whether the server may do what is wanted.
    pub fn record_due(&self, world: &World, pod: Pod) -> (Pods, Quorum, bool) {
        let member = &world.members[pod];
        let seen = world.row(member.seen.unwrap_or(world.now));
        let wanted = self.quorum_of(world, pod);
        let have = |replica: &Pod| {
            let wal = world.members[*replica].wal;
            wal.len >= member.names_since && world.has_of(wal, member.wal.branch) > 0
        };
        let enough = usize::from(member.names.confirm);
        let are_caught_up =
            !self.rules.narrows_when_caught_up || each(member.names.names).filter(have).count() >= enough;
        let names = words::quorum(member.names);
        let step = quorum_step(&words::quorum(seen.quorum), &names, &words::quorum(wanted), are_caught_up);
        let (quorum, may_enable) = match step {
            QuorumStep::Record(quorum) => (words::small_quorum(&quorum), false),
            QuorumStep::Enable | QuorumStep::CatchUp => (seen.quorum, true),
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
        let is_up = member.server == Server::Master && Self::leads(world, pod) || member.is_announced;
        world.members[pod].is_announced = is_up;
        let announced = is_up.then(|| (Self::describe(world, pod), member.wal.len));
        let told = is_up.then(|| self.record_due(world, pod));
        let told = told.map(|(voters, quorum, _)| words::told(voters, &words::quorum(quorum)));
        let branch = if is_up { member.wal.branch } else { world.lease().branch };
        let mut base = seen;
        let mut held = words::object(world.row(seen));
        if seen != world.now {
            base = world.now;
            let now = words::object(world.lease());
            let before = if self.rules.notices_another_epoch { &held } else { &now };
            if sight::is_lost(&words::candidate(pod), before, &now) {
                Self::lose(&mut world.members[pod]);
                return Self::read(world, pod);
            }
            let quorum = match &told {
                Some(told) => told.quorum.clone(),
                None if self.rules.conflicts_keep_the_quorum => words::quorum(world.lease().quorum),
                None => vote::Quorum::default(),
            };
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
        if !Self::leads(world, pod) || member.by_leave_of != 0 || seen != world.now {
            return true;
        }
        if member.server != Server::Master {
            return false;
        }
        let (voters, quorum, _) = self.record_due(world, pod);
        let row = world.row(seen);
        !member.is_announced
            || self.setup.confirm == 0 && row.flushed != Some(member.wal.len)
            || row.voters != voters
            || row.quorum != quorum
    }

    /// `Member::keep_members`: the server does what the Lease says by now.
    pub fn enable(&self, world: &mut World, pod: Pod) {
        let (_, _, may_enable) = self.record_due(world, pod);
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
}
