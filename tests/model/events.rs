//! What comes of each step.

use pgset::election::lease_record::LastWord;

use crate::rules::Election;
use crate::steps::Step;
use crate::words;
use crate::world::*;

fn spend(left: &mut u8) -> Option<()> {
    *left = left.checked_sub(1)?;
    Some(())
}

impl Election {
    /// What happens, or nothing if it can't.
    pub fn happen(&self, before: &World, step: Step) -> Option<World> {
        if before.wrong.is_some() {
            return None;
        }
        let mut world = before.clone();
        self.step(&mut world, step)?;
        Self::settle(&mut world);
        world.tidy(&self.rules);
        (world != *before).then_some(world)
    }

    fn step(&self, world: &mut World, step: Step) -> Option<()> {
        match step {
            Step::Ages(pod) => self.age(world, pod)?,
            Step::IsSilent(pod) => self.fall_silent(world, pod)?,
            Step::LeaveEnds(pod) => Self::end_leave(world, pod)?,
            Step::Reads(pod) => Self::read(world, pod),
            Step::Turns(pod) => self.turn(world, pod, true),
            Step::TurnsUnanswered(pod) => {
                spend(&mut world.left.unanswered)?;
                let now = world.rows.len();
                self.turn(world, pod, false);
                (world.rows.len() > now).then_some(())?;
            }
            Step::Renews(pod) => self.renew(world, pod, true),
            Step::RenewsUnanswered(pod) => {
                spend(&mut world.left.unanswered)?;
                self.renew(world, pod, false);
            }
            Step::GivesUp(pod) => Self::lose(&mut world.members[pod]),
            Step::Keeps(pod) => self.look_after_master(world, pod)?,
            Step::HearsEnd(pod) => {
                spend(&mut world.left.ends)?;
                self.hear_end(world, pod)?;
            }
            Step::Notes(pod) => Self::note_leadership(world, pod),
            Step::Answers { candidate, pod } => {
                let electors = world.members[candidate].seen.map(|seen| world.row(seen).voters)?;
                let may = has(electors, pod) && world.members[pod].life.acts();
                may.then(|| self.answer(world, candidate, pod))?;
            }
            Step::AsksForLeave(pod) => Self::ask_for_leave(world, pod)?,
            Step::Confirms { master, pod } => {
                let (_, electors) = Self::electors(world, master)?;
                (has(electors, pod) && world.members[pod].life.acts()).then(|| self.confirm(world, master, pod))?;
            }
            Step::LeadsOn(pod) => self.lead_on(world, pod)?,
            Step::StopsAsking(pod) => world.members[pod].asking = None,
            Step::HushesReceiver(pod) => world.members[pod].receiver = None,
            Step::HandsOver { pod, delivered } => self.hand_over(world, pod, delivered)?,
            Step::Writes(pod) => self.write(world, pod)?,
            Step::Acknowledges(pod) => Self::acknowledge(world, pod)?,
            Step::Receives(pod) => Self::receive(world, pod)?,
            fault => self.fault(world, fault)?,
        }
        Some(())
    }

    fn fault(&self, world: &mut World, fault: Step) -> Option<()> {
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
                let is_late = member.life == Life::Frozen
                    && member.age == Some(Age::Killed)
                    && member.server == PostgresState::Master;
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
                (world.members[last].server != PostgresState::Master).then_some(())?;
                world.wanted &= !only(last);
                world.members[last].crash(Life::Gone);
            }
            Step::Grows => {
                spend(&mut world.left.scalings)?;
                let next = (0..MEMBERS).find(|pod| !has(world.wanted, *pod))?;
                world.wanted |= only(next);
                world.members[next].life = Life::Down;
            }
            Step::Rewrites => {
                spend(&mut world.left.rewrites)?;
                world.confirm = match world.confirm {
                    1 => 2,
                    2 => 1,
                    _ => return None,
                };
            }
            Step::HearsOldNews { pod, version } => {
                spend(&mut world.left.late_events)?;
                self.hear(world, pod, version);
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
        let confirmed = world.members.iter().any(|master| master.was_confirmed_by(pod));
        let may = !self.rules.leave_excludes_votes || member.leave.is_none() && !confirmed;
        (may && (is_over || !self.rules.fences_in_time)).then(|| world.members[pod].is_silent = true)
    }

    fn end_leave(world: &mut World, pod: Pod) -> Option<()> {
        let master = world.members[world.members[pod].leave?.to];
        (!master.leads_by_leave_of(pod) && master.asking.is_none()).then(|| world.members[pod].leave = None)
    }

    fn ask_for_leave(world: &mut World, pod: Pod) -> Option<()> {
        let is_due = !Self::leads(world, pod) || world.members[pod].by_leave_of == 0;
        Self::electors(world, pod).filter(|_| is_due)?;
        world.members[pod].asking = Some(0);
        Some(())
    }

    fn lead_on(&self, world: &mut World, pod: Pod) -> Option<()> {
        let (epoch, electors) = Self::electors(world, pod)?;
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

    fn hand_over(&self, world: &mut World, pod: Pod, delivered: bool) -> Option<()> {
        spend(&mut world.left.handovers)?;
        let member = world.members[pod];
        let may = member.server == PostgresState::Master && Self::leads(world, pod) && member.by_leave_of == 0;
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
        (master.server == PostgresState::Master && master.life.serves()).then_some(())?;
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
            let sends = world.members[from].server == PostgresState::Master;
            let is_told = member.follows.is_none_or(|follows| follows.pod == from);
            if !sends || !is_told || member.server != PostgresState::Standby {
                world.members[pod].receiver = None;
            }
        }
    }
}
