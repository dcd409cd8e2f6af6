//! The keeper of the Lease, as the model has it: what it has seen, takes, renews and gives back. Each function stands for one of
//! `src/agent/leadership.rs`, named in its first line, or of `src/agent/member/record.rs`, which tells it what to write.

use std::time::Duration;

use pgset::election::Lease;
use pgset::election::lease_record::{LastWord, Taking};
use pgset::election::sight::{self, Sight};
use pgset::election::state::commits::{Commits, Evidence, Setting};
use pgset::election::step::{Event, step};
use pgset::election::vote;

use crate::agent::{NOW, READ, TIME};
use crate::rules::Election;
use crate::words;
use crate::world::*;

impl Election {
    /// `Keeper::classify`.
    pub fn classify(&self, world: &World, pod: Pod) -> Lease {
        let member = &world.members[pod];
        let lease_record = member.seen.map(|seen| words::lease_record(world.row(seen)));
        let promises = Self::promises(world, pod);
        let leave = promises.leave(NOW).filter(|_| self.rules.leave_excludes_votes);
        let earlier = member.noted_leadership.map(|noted| words::lineage_of(noted.master));
        let ended = self.ended(world, pod);
        sight::classify(&Sight {
            me: &words::candidate(pod),
            lease_record: lease_record.as_ref(),
            holds: member.holds,
            earlier,
            leave: leave.map(|leave| leave.master.as_ref()),
            is_reserved: false,
            is_silent: member.is_silent,
            ended: ended.as_deref(),
        })
    }

    /// The word of the life that the kubelet has said is over, if it is the holder's.
    fn ended(&self, world: &World, pod: Pod) -> Option<String> {
        let member = &world.members[pod];
        let row = world.row(member.seen?);
        let (holder, life) = member.ended.filter(|(holder, _)| row.holder == Some(*holder))?;
        let life = if self.rules.ends_are_of_a_life { life } else { row.instance? };
        Some(words::instance(holder, life))
    }

    /// `Member::look_after_lost_master`, when the kubelet has reported the end of the life that holds the Lease.
    pub fn hear_end(&self, world: &mut World, pod: Pod) -> Option<()> {
        let member = &world.members[pod];
        let row = world.row(member.seen?);
        let (holder, life) = (row.holder.filter(|holder| *holder != pod)?, row.instance?);
        let is_over = world.members[holder].lives != life;
        // Whoever may lead by a leave that this member gave in an earlier life does so for less than a Lease.
        let remembers = member.leave.is_some() || !world.members.iter().any(|master| master.was_confirmed_by(pod));
        (is_over && (remembers || !self.rules.remembers_leaves) && world.reaches(pod)).then_some(())?;
        world.members[pod].ended = Some((holder, life));
        Some(())
    }

    /// `View::at`: leadership ends by itself at the fence.
    pub fn view(&self, world: &World, pod: Pod) -> Lease {
        let member = &world.members[pod];
        if member.holds && member.age != Some(Age::Fresh) { Lease::Unknown } else { self.classify(world, pod) }
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
        if world.members[pod].holds || !matches!(self.classify(world, pod), Lease::Vacant { .. }) || !world.reaches(pod)
        {
            return;
        }
        let Some(seen) = world.members[pod].seen else { return };
        if self.rules.tells_anew {
            world.members[pod].told = None;
        }
        let base = if self.rules.takes_what_it_saw { seen } else { world.now };
        let branch = world.lease().branch;
        let mut taking = taking.clone();
        if let Some(begins) = taking.begins.as_mut().filter(|_| !self.rules.numbers_are_new) {
            let Member { wal, knows, .. } = world.members[pod];
            begins.timeline = u32::from(knows.max(world.timeline(wal))) + 1;
        }
        let lives = world.members[pod].lives;
        let row = words::row(&words::by(words::acquired(world.row(base), pod, &taking), pod, lives), branch);
        world.members[pod].taken_with = Some(words::small_quorum(&taking.quorum));
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

    /// `Member::look_after_master`: it leads from now on, if it did not yet, and keeps the record and the server in step.
    pub fn look_after_master(&self, world: &mut World, pod: Pod) -> Option<()> {
        let member = &mut world.members[pod];
        let leads = member.holds && member.age == Some(Age::Fresh);
        (member.server == PostgresState::Master && leads).then_some(())?;
        if !member.is_announced {
            member.is_announced = true;
            let mut state = Self::state(world, pod);
            let _ = step(&mut state, Event::Leads, TIME);
            let commits = if self.rules.catches_up_anew { state.commits } else { Self::state(world, pod).commits };
            Self::keep_commits(world, pod, &commits);
            world.members[pod].taken_with = None;
        }
        self.keep_members(world, pod);
        Some(())
    }

    /// What is remembered of what commits wait for.
    fn keep_commits(world: &mut World, pod: Pod, commits: &Commits<Duration>) {
        let catch_up = commits.catching_up();
        world.members[pod].catch_up =
            catch_up.map(|(quorum, to)| (words::small_quorum(quorum), to.map(|to| u8::try_from(to.0).unwrap())));
    }

    /// `Member::keep_members` and `Member::keep_record`.
    fn keep_members(&self, world: &mut World, pod: Pod) {
        let member = world.members[pod];
        let Some(seen) = member.seen.map(|seen| *world.row(seen)) else { return };
        let wanted = Self::quorum_of(world, pod);
        let replicas = (0..MEMBERS).filter(|replica| {
            let replica = &world.members[*replica];
            replica.receiver == Some(pod) && world.is_prefix(replica.wal, member.wal)
        });
        let replicas = replicas.map(|replica| (words::pod(replica), words::lsn(world.members[replica].wal.len)));
        let evidence = Evidence { flushed: words::lsn(member.wal.len), replicas: replicas.collect() };
        let (recorded, on_server, wishes) =
            (words::quorum(seen.quorum), words::quorum(member.names), words::quorum(wanted));
        let setting =
            Setting { recorded: &recorded, on_server: &on_server, wanted: &wishes, evidence: Some(&evidence) };
        let mut state = Self::state(world, pod);
        let (quorum, may_enable) = state.commits.record(&setting, READ);
        let quorum = if self.rules.narrows_when_caught_up || on_server != wishes { quorum } else { wishes.clone() };
        let changes = may_enable && on_server != wishes;
        if changes {
            state.commits.note_change();
        }
        Self::keep_commits(world, pod, &state.commits);
        if self.rules.notes_before_it_records {
            Self::note_leadership(world, pod);
        }
        let member = &mut world.members[pod];
        member.told = Some((world.wanted | only(pod), words::small_quorum(&quorum)));
        if changes {
            member.names = wanted;
        }
    }

    /// What `synchronous_standby_names` should be.
    pub fn quorum_of(world: &World, pod: Pod) -> Quorum {
        if world.confirm == 0 {
            return Quorum::default();
        }
        Quorum { names: world.wanted & !only(pod), confirm: world.confirm }
    }

    /// `Keeper::renew` with what the main loop has announced and told, and `Keeper::settle_conflict`.
    pub fn renew(&self, world: &mut World, pod: Pod, is_answered: bool) {
        let member = world.members[pod];
        let Some(seen) = member.seen.filter(|_| member.holds && world.reaches(pod)) else { return };
        let announced = member.is_announced.then(|| (Self::describe(world, pod), member.wal.len));
        let told = member.told.map(|(voters, quorum)| words::told(voters, &words::quorum(quorum)));
        let branch = if member.is_announced { member.wal.branch } else { world.lease().branch };
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
        let renewed = words::by(words::renewed(&held, announced, told.as_ref()), pod, member.lives);
        let row = words::row(&renewed, branch);
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
        let row = world.row(seen);
        row.instance != Some(member.lives)
            || member.is_announced
                && (!row.is_announced || self.setup.confirm == 0 && row.flushed != Some(member.wal.len))
            || member.told.is_some_and(|told| told != (row.voters, row.quorum))
    }

    /// `Member::note_leadership`.
    pub fn note_leadership(world: &mut World, pod: Pod) {
        let Some(seen) = world.members[pod].seen else { return };
        let (row, master) = (*world.row(seen), Self::describe(world, pod));
        let told = world.members[pod].told.map_or(0, |(voters, _)| voters);
        let voters = row.voters | told | world.wanted | only(pod);
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
            let lives = world.members[pod].lives;
            let row = words::row(&words::by(words::released(world.row(seen), last_word), pod, lives), branch);
            if Self::replace(world, seen, row) {
                Self::observe(world, pod, world.now);
            }
        }
        // `fencer.stand()`: nothing may write.
        world.members[pod].age = None;
    }
}
