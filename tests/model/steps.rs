//! What can happen: steps of the members, of PostgreSQL, of time, and faults.

use stateright::{Model, Property};

use crate::rules::Election;
use crate::words;
use crate::world::*;
use pgset::election::claim::LastWord;
use pgset::election::{Action, Waiting};

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    // Time.
    /// A leadership grows older by a phase.
    Ages(Pod),
    /// A member has waited for the whole duration, and a look at the API server says the same as before.
    IsSilent(Pod),
    LeaveEnds(Pod),
    // The agent.
    Reads(Pod),
    Turns(Pod),
    TurnsUnanswered(Pod),
    Renews(Pod),
    RenewsUnanswered(Pod),
    /// The keeper notices that its fence has struck.
    GivesUp(Pod),
    Enables(Pod),
    Notes(Pod),
    Answers {
        candidate: Pod,
        pod: Pod,
    },
    AsksForLeave(Pod),
    Confirms {
        master: Pod,
        pod: Pod,
    },
    LeadsOn(Pod),
    StopsAsking(Pod),
    HushesReceiver(Pod),
    /// A clean stop; the replicas that stream get the last of it, or none do. Then the Lease is given back.
    HandsOver {
        pod: Pod,
        delivered: bool,
    },
    /// A former master's data is replaced by a copy: what this version leaves to a person.
    IsRebuilt(Pod),
    // PostgreSQL.
    Writes(Pod),
    Acknowledges(Pod),
    Receives(Pod),
    // Faults, and their ends.
    IsCutOff(Pod),
    Reconnects(Pod),
    AgentStops(Pod),
    Freezes(Pod),
    Goes(Pod),
    /// The fencer of a node that has thawed gets its turn.
    FencerStrikes(Pod),
    Crashes(Pod),
    Restarts(Pod),
    Shrinks,
    Grows,
    HearsOldNews {
        pod: Pod,
        version: Version,
    },
}

/// Faults are what a set has to survive; all else it does by itself.
impl Step {
    pub fn is_fault(self) -> bool {
        matches!(
            self,
            Self::TurnsUnanswered(_)
                | Self::RenewsUnanswered(_)
                | Self::HandsOver { .. }
                | Self::IsCutOff(_)
                | Self::AgentStops(_)
                | Self::Freezes(_)
                | Self::Crashes(_)
                | Self::Shrinks
                | Self::Grows
                | Self::HearsOldNews { .. }
        )
    }
}

fn spend(left: &mut u8) -> Option<()> {
    *left = left.checked_sub(1)?;
    Some(())
}

impl Election {
    /// Everything that might happen; what can't changes nothing.
    pub fn steps(&self, world: &World, steps: &mut Vec<Step>) {
        let left = &world.left;
        for pod in 0..self.setup.members {
            let member = &world.members[pod];
            if member.life == Life::Gone {
                continue;
            }
            let is_hit = has(self.setup.hit, pod);
            if member.age.is_some_and(|age| age < Age::Killed) {
                steps.push(Step::Ages(pod));
            }
            if member.leave.is_some() {
                steps.push(Step::LeaveEnds(pod));
            }
            if !world.reaches(pod) {
                steps.push(Step::Reconnects(pod));
            } else if is_hit && left.outages > 0 {
                steps.push(Step::IsCutOff(pod));
            }
            if member.life.acts() {
                self.agent_steps(world, pod, steps);
            }
            if member.life.serves() {
                Self::server_steps(world, pod, steps);
            }
            match member.life {
                Life::AgentFrozen | Life::Frozen => steps.push(Step::Goes(pod)),
                Life::Thawed => steps.push(Step::FencerStrikes(pod)),
                Life::Down => steps.push(Step::Restarts(pod)),
                Life::Runs | Life::Gone => {}
            }
            if is_hit && member.life == Life::Runs {
                steps.extend((left.stops > 0).then_some(Step::AgentStops(pod)));
                steps.extend((left.freezes > 0).then_some(Step::Freezes(pod)));
                steps.extend((left.crashes > 0).then_some(Step::Crashes(pod)));
            }
        }
        if left.scalings > 0 {
            steps.extend([Step::Shrinks, Step::Grows]);
        }
    }

    fn agent_steps(&self, world: &World, pod: Pod, steps: &mut Vec<Step>) {
        let (member, left) = (&world.members[pod], &world.left);
        if world.reaches(pod) {
            if !member.holds && member.seen != Some(world.now) || member.seen.is_none() {
                steps.push(Step::Reads(pod));
            }
            if !member.holds && !member.is_silent && member.seen == Some(world.now) {
                steps.push(Step::IsSilent(pod));
            }
        }
        steps.push(Step::Turns(pod));
        if left.unanswered > 0 {
            steps.push(Step::TurnsUnanswered(pod));
        }
        if left.late_events > 0 && !member.holds {
            let seen = member.seen.unwrap_or(0);
            steps.extend((0..seen).map(|version| Step::HearsOldNews { pod, version }));
        }
        if member.holds {
            if world.reaches(pod) && self.has_news(world, pod) {
                steps.push(Step::Renews(pod));
                steps.extend((left.unanswered > 0).then_some(Step::RenewsUnanswered(pod)));
            }
            if member.age != Some(Age::Fresh) {
                steps.push(Step::GivesUp(pod));
            }
        }
        if member.is_announced {
            steps.extend([Step::Enables(pod), Step::Notes(pod)]);
            steps.extend(
                (left.handovers > 0)
                    .then_some([true, false])
                    .into_iter()
                    .flatten()
                    .map(|delivered| Step::HandsOver { pod, delivered }),
            );
        }
        if member.ballot.is_some() {
            steps.extend(
                (0..self.setup.members)
                    .filter(|other| *other != pod)
                    .map(|other| Step::Answers { candidate: pod, pod: other }),
            );
        }
        match member.asking {
            None if !world.reaches(pod) => steps.push(Step::AsksForLeave(pod)),
            None => {}
            Some(_) => {
                steps.extend(
                    (0..self.setup.members)
                        .filter(|other| *other != pod)
                        .map(|other| Step::Confirms { master: pod, pod: other }),
                );
                steps.extend([Step::LeadsOn(pod), Step::StopsAsking(pod)]);
            }
        }
        if member.receiver.is_some() && member.follows.is_none() {
            steps.push(Step::HushesReceiver(pod));
        }
        if left.rebuilds > 0 && member.server == Server::Off {
            steps.push(Step::IsRebuilt(pod));
        }
    }

    fn server_steps(world: &World, pod: Pod, steps: &mut Vec<Step>) {
        match world.members[pod].server {
            Server::Off => {}
            Server::Master => {
                steps.extend((world.left.writes > 0).then_some(Step::Writes(pod)));
                steps.push(Step::Acknowledges(pod));
            }
            Server::Standby => steps.push(Step::Receives(pod)),
        }
    }

    /// What happens, or nothing if it can't.
    pub fn happen(&self, before: &World, step: Step) -> Option<World> {
        if before.wrong.is_some() {
            return None;
        }
        let mut world = before.clone();
        self.step(&mut world, step)?;
        Self::settle(&mut world);
        world.tidy();
        (world != *before).then_some(world)
    }

    fn step(&self, world: &mut World, step: Step) -> Option<()> {
        match step {
            Step::Ages(pod) => self.age(world, pod)?,
            Step::IsSilent(pod) => self.fall_silent(world, pod)?,
            Step::LeaveEnds(pod) => Self::end_leave(world, pod)?,
            Step::Reads(pod) => Self::read(world, pod),
            Step::Turns(pod) => drop(self.turn(world, pod, true)),
            Step::TurnsUnanswered(pod) => {
                spend(&mut world.left.unanswered)?;
                let now = world.rows.len();
                self.turn(world, pod, false);
                (world.rows.len() > now).then_some(())?;
            }
            Step::Renews(pod) => self.renew_in_order(world, pod, true)?,
            Step::RenewsUnanswered(pod) => {
                spend(&mut world.left.unanswered)?;
                self.renew_in_order(world, pod, false)?;
            }
            Step::GivesUp(pod) => Self::lose(&mut world.members[pod]),
            Step::Enables(pod) => self.enable(world, pod),
            Step::Notes(pod) => Self::note_leadership(world, pod),
            Step::Answers { candidate, pod } => {
                let electors = world.members[candidate].seen.map(|seen| world.row(seen).voters)?;
                let may = has(electors, pod) && world.members[pod].life.acts();
                may.then(|| self.answer(world, candidate, pod))?;
            }
            Step::AsksForLeave(pod) => self.ask_for_leave(world, pod)?,
            Step::Confirms { master, pod } => {
                let (_, electors) = self.electors(world, master)?;
                (has(electors, pod) && world.members[pod].life.acts()).then(|| self.confirm(world, master, pod))?;
            }
            Step::LeadsOn(pod) => self.lead_on(world, pod)?,
            Step::StopsAsking(pod) => world.members[pod].asking = None,
            Step::HushesReceiver(pod) => world.members[pod].receiver = None,
            Step::HandsOver { pod, delivered } => self.hand_over(world, pod, delivered)?,
            Step::IsRebuilt(pod) => self.rebuild(world, pod)?,
            Step::Writes(pod) => self.write(world, pod)?,
            Step::Acknowledges(pod) => Self::acknowledge(world, pod)?,
            Step::Receives(pod) => Self::receive(world, pod)?,
            fault => Self::fault(world, fault, self.rules.goes_forward)?,
        }
        Some(())
    }

    fn fault(world: &mut World, fault: Step, goes_forward: bool) -> Option<()> {
        match fault {
            Step::IsCutOff(pod) => {
                spend(&mut world.left.outages)?;
                world.cut_off |= only(pod);
            }
            Step::Reconnects(pod) => {
                world.cut_off &= !only(pod);
                world.members[pod].asking = None;
            }
            Step::AgentStops(pod) => {
                spend(&mut world.left.stops)?;
                world.members[pod].life = Life::AgentFrozen;
            }
            Step::Freezes(pod) => {
                spend(&mut world.left.freezes)?;
                world.members[pod].life = Life::Frozen;
            }
            Step::Goes(pod) => {
                let member = &mut world.members[pod];
                let is_late =
                    member.life == Life::Frozen && member.age == Some(Age::Killed) && member.server == Server::Master;
                member.life = if is_late { Life::Thawed } else { Life::Runs };
            }
            Step::FencerStrikes(pod) => {
                let member = &mut world.members[pod];
                if member.age == Some(Age::Killed) {
                    member.kill_server();
                }
                member.life = Life::Runs;
            }
            Step::Crashes(pod) => {
                spend(&mut world.left.crashes)?;
                world.members[pod].crash(Life::Down);
            }
            Step::Restarts(pod) => {
                let member = &mut world.members[pod];
                member.life = Life::Runs;
                member.voted = member.noted_vote;
            }
            Step::Shrinks => {
                spend(&mut world.left.scalings)?;
                let last = each(world.wanted).last().filter(|last| *last > 0)?;
                (world.members[last].server != Server::Master).then_some(())?;
                world.wanted &= !only(last);
                world.members[last].crash(Life::Gone);
            }
            Step::Grows => {
                spend(&mut world.left.scalings)?;
                let next = (0..MEMBERS).find(|pod| !has(world.wanted, *pod))?;
                world.wanted |= only(next);
                world.members[next].life = Life::Down;
            }
            Step::HearsOldNews { pod, version } => {
                spend(&mut world.left.late_events)?;
                (!goes_forward).then(|| Self::observe(world, pod, version))?;
            }
            _ => {}
        }
        Some(())
    }

    fn age(&self, world: &mut World, pod: Pod) -> Option<()> {
        let member = &mut world.members[pod];
        let older = match member.age? {
            Age::Fresh => Age::Fenced,
            Age::Fenced => Age::Killed,
            Age::Killed => return None,
        };
        member.age = Some(older);
        if older == Age::Killed && self.rules.fences_in_time && !matches!(member.life, Life::Frozen | Life::Thawed) {
            member.kill_server();
        }
        Some(())
    }

    /// The arithmetic: a holder counts from before it asked and another from when he saw the outcome, so that the holder's server is
    /// dead first. One that was not asked for leave has nothing to wait for but the Lease.
    fn fall_silent(&self, world: &mut World, pod: Pod) -> Option<()> {
        let holder = world.lease().holder.filter(|holder| *holder != pod)?;
        let (holder, member) = (world.members[holder], world.members[pod]);
        let was_not_asked = holder.by_leave_of != 0 && !has(holder.by_leave_of, pod);
        let is_over = holder.age.is_none_or(|age| age == Age::Killed) || was_not_asked;
        // Whom it has confirmed counted from before that; if it forgot that in a crash, it has begun to wait anew since.
        let confirmed =
            |master: &Member| has(master.by_leave_of, pod) && master.age.is_some_and(|age| age < Age::Killed);
        let may = !self.rules.leave_excludes_votes || member.leave.is_none() && !world.members.iter().any(confirmed);
        (may && (is_over || !self.rules.fences_in_time)).then(|| world.members[pod].is_silent = true)
    }

    fn end_leave(world: &mut World, pod: Pod) -> Option<()> {
        let master = world.members[world.members[pod].leave?.to];
        let leads_by_it = has(master.by_leave_of, pod) && master.age.is_some_and(|age| age < Age::Killed);
        (!leads_by_it && master.asking.is_none()).then(|| world.members[pod].leave = None)
    }

    fn ask_for_leave(&self, world: &mut World, pod: Pod) -> Option<()> {
        let is_due = !self.leads(world, pod) || world.members[pod].by_leave_of == 0;
        self.electors(world, pod).filter(|_| is_due)?;
        world.members[pod].asking = Some(0);
        Some(())
    }

    fn lead_on(&self, world: &mut World, pod: Pod) -> Option<()> {
        let (epoch, electors) = self.electors(world, pod)?;
        let confirmed = world.members[pod].asking?;
        let is_enough = if self.rules.asks_all {
            confirmed & electors == electors
        } else {
            // With this member, more than half of all.
            2 * ((confirmed & electors).count_ones() + 1) > electors.count_ones() + 1
        };
        is_enough.then_some(())?;
        let member = &mut world.members[pod];
        member.holds = true;
        member.epoch = epoch;
        member.age = Some(Age::Fresh);
        member.by_leave_of = confirmed;
        member.asking = None;
        Some(())
    }

    fn renew_in_order(&self, world: &mut World, pod: Pod, is_answered: bool) -> Option<()> {
        let member = world.members[pod];
        if self.rules.notes_before_it_records && member.is_announced {
            let noted = member.noted_leadership.map_or(0, |noted| noted.voters);
            (world.wanted & !noted == 0).then_some(())?;
        }
        self.renew(world, pod, is_answered);
        Some(())
    }

    fn hand_over(&self, world: &mut World, pod: Pod, delivered: bool) -> Option<()> {
        spend(&mut world.left.handovers)?;
        let member = world.members[pod];
        let may = member.server == Server::Master && self.leads(world, pod) && member.by_leave_of == 0;
        may.then_some(())?;
        let before = member.wal;
        let wal = Wal { len: before.len + 1, ..before };
        for other in 0..self.setup.members {
            let replica = world.members[other];
            if delivered
                && replica.receiver == Some(pod)
                && replica.life.serves()
                && world.is_prefix(replica.wal, before)
            {
                world.members[other].wal = wal;
            }
        }
        let member = &mut world.members[pod];
        member.kill_server();
        member.wal = wal;
        member.stopped_at = Some(before.len);
        let database =
            words::lineage(world, wal, Some(before.len)).stopped().map(|reached| words::database(Some(reached)));
        Self::release(world, pod, Some(&LastWord { database, ..LastWord::default() }));
        Some(())
    }

    fn rebuild(&self, world: &mut World, pod: Pod) -> Option<()> {
        let action = pgset::election::decide(&self.observation(world, pod));
        (action == Action::Wait(Waiting::FormerMaster)).then_some(())?;
        spend(&mut world.left.rebuilds)?;
        let master = world.members[pod].seen.and_then(|seen| world.row(seen).holder)?;
        Self::copy(world, pod, master);
        Some(())
    }

    fn write(&self, world: &mut World, pod: Pod) -> Option<()> {
        spend(&mut world.left.writes)?;
        let member = &mut world.members[pod];
        member.wal.len += 1;
        let (wal, epoch) = (member.wal, usize::from(member.epoch));
        if self.setup.confirm == 0 && world.lease().holder == Some(pod) {
            world.branches[usize::from(wal.branch)].acknowledged = wal.len;
        }
        match world.writers[epoch] {
            Some(other) if other != pod => world.wrong = Some(Wrong::TwoInOneEpoch),
            _ => world.writers[epoch] = Some(pod),
        }
        Some(())
    }

    /// Enough of the replicas that the server waits for have all that it has written.
    fn acknowledge(world: &mut World, pod: Pod) -> Option<()> {
        let member = world.members[pod];
        let Quorum { names, confirm } = member.names;
        let have = |replica: &Pod| world.is_prefix(member.wal, world.members[*replica].wal);
        let confirmed = each(names).filter(have).count();
        (confirm > 0 && confirmed >= usize::from(confirm)).then_some(())?;
        let acknowledged = &mut world.branches[usize::from(member.wal.branch)].acknowledged;
        *acknowledged = member.wal.len.max(*acknowledged);
        Some(())
    }

    /// A standby connects, or gets the next record. PostgreSQL goes by numbers alone.
    fn receive(world: &mut World, pod: Pod) -> Option<()> {
        let member = world.members[pod];
        let from = member.receiver.or(member.follows.map(|follows| follows.pod))?;
        let master = world.members[from];
        (master.server == Server::Master && master.life.serves()).then_some(())?;
        let lineage = words::lineage(world, master.wal, None);
        let (timeline, end) = (world.timeline(member.wal), words::lsn(member.wal.len));
        let reaches = if u32::from(timeline) == lineage.timeline {
            words::lsn(master.wal.len) >= end
        } else {
            lineage.branches.iter().any(|branch| branch.timeline == u32::from(timeline) && branch.left_at >= end)
        };
        reaches.then_some(())?;
        if !world.is_prefix(member.wal, master.wal) {
            world.wrong = Some(Wrong::Mistaken);
            return Some(());
        }
        let knows = world.timeline(master.wal).max(member.knows);
        let wal = if member.wal.len < master.wal.len {
            Wal { branch: world.branch_at(master.wal, member.wal.len), len: member.wal.len + 1 }
        } else {
            member.wal
        };
        let member = &mut world.members[pod];
        member.receiver = Some(from);
        member.knows = knows;
        member.wal = wal;
        Some(())
    }

    /// A receiver ends with its sender, and is another one where it is told to follow another member.
    fn settle(world: &mut World) {
        for pod in 0..MEMBERS {
            let member = &world.members[pod];
            let Some(from) = member.receiver else { continue };
            let sends = world.members[from].server == Server::Master;
            let is_told = member.follows.is_none_or(|follows| follows.pod == from);
            if !sends || !is_told || member.server != Server::Standby {
                world.members[pod].receiver = None;
            }
        }
    }

    /// Nothing that was acknowledged is missing on a master that leads by the Lease.
    fn has_all(&self, world: &World) -> bool {
        let leads = |pod: &Pod| world.members[*pod].server == Server::Master && world.lease().holder == Some(*pod);
        self.setup.confirm == 0
            || (0..self.setup.members).filter(leads).all(|pod| world.first_missing(world.members[pod].wal).is_none())
    }
}

impl Model for Election {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![self.begin()]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        self.steps(world, steps);
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        self.happen(before, step)
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.lease().epoch <= self.setup.epochs
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_MASTER, |_, world: &World| {
                world.members.iter().filter(|member| member.writes()).count() <= 1
            }),
            Property::always(ONE_AN_EPOCH, |_, world: &World| world.wrong != Some(Wrong::TwoInOneEpoch)),
            Property::always(NOTHING_LOST, |model: &Self, world: &World| {
                model.has_all(world) && world.wrong != Some(Wrong::LostMoreThanAllowed)
            }),
            Property::sometimes(ANOTHER_LEADS, |_, world: &World| {
                world.lease().epoch > 1 && world.members.iter().any(|member| member.writes() && member.is_announced)
            }),
            Property::always(TOLD_APART, |_, world: &World| world.wrong != Some(Wrong::Mistaken)),
        ]
    }
}

pub const ONE_MASTER: &str = "one member at most accepts writes";
pub const ONE_AN_EPOCH: &str = "one member at most has written in an epoch";
pub const NOTHING_LOST: &str = "no master lacks what was acknowledged, or more than is allowed";
pub const TOLD_APART: &str = "two histories with one timeline number are told apart";
/// Or the model would check nothing.
pub const ANOTHER_LEADS: &str = "another leadership follows the first one";
