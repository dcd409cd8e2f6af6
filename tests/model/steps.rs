//! What can happen: steps of the members, of PostgreSQL, of time, and faults.

use stateright::{Model, Property};

use crate::rules::Election;
use crate::world::*;

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
    /// A master looks after its replicas: it tells the keeper what the Lease is to say, and does what that says by now.
    Keeps(Pod),
    Notes(Pod),
    /// The kubelet has reported the end of the container that holds the Lease.
    HearsEnd(Pod),
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
    /// Another number of replicas is to confirm a commit.
    Rewrites,
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
                | Self::Rewrites
                | Self::HearsOldNews { .. }
        )
    }
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
        if left.rewrites > 0 {
            steps.push(Step::Rewrites);
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
        if member.server == PostgresState::Master {
            steps.push(Step::Keeps(pod));
        }
        if left.ends > 0 && !member.holds {
            steps.push(Step::HearsEnd(pod));
        }
        if member.is_announced {
            steps.extend((!self.rules.notes_before_it_records).then_some(Step::Notes(pod)));
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
    }

    fn server_steps(world: &World, pod: Pod, steps: &mut Vec<Step>) {
        match world.members[pod].server {
            PostgresState::Off => {}
            PostgresState::Master => {
                steps.extend((world.left.writes > 0).then_some(Step::Writes(pod)));
                steps.push(Step::Acknowledges(pod));
            }
            PostgresState::Standby => steps.push(Step::Receives(pod)),
        }
    }

    /// Nothing that was acknowledged is missing on a master that leads by the Lease.
    fn has_all(&self, world: &World) -> bool {
        let leads =
            |pod: &Pod| world.members[*pod].server == PostgresState::Master && world.lease().holder == Some(*pod);
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
