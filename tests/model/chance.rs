//! Random runs beyond what can be explored: longer, with more faults, all of them printed by one number from which they run again.
//!
//! `PGSET_MODEL_RUNS=100000 cargo test --profile quick --test model` runs more; `PGSET_MODEL_SEED` runs one again and prints its steps.

use std::fmt::Write as _;

use stateright::Model;

use crate::numbers::Chance;
use crate::rules::{Election, Setup, Start};
use crate::steps::Step;
use crate::world::{Age, Budget, Life, Pods, PostgresState, World};
use pgset::election::Action;

/// What a run has come to.
pub struct Run {
    pub world: World,
    pub steps: Vec<Step>,
    /// The property that does not hold.
    pub broken: Option<&'static str>,
}

/// A set and its faults by chance.
pub fn setup(chance: &mut Chance) -> Setup {
    let members = 2 + chance.below(2);
    let confirm = u8::try_from(chance.below(members)).unwrap();
    let mut some = |most: usize| u8::try_from(chance.below(most + 1)).unwrap();
    let budget = Budget {
        writes: 1 + some(4),
        crashes: some(3),
        stops: some(2),
        freezes: some(2),
        outages: some(3),
        unanswered: some(2),
        handovers: some(2),
        scalings: some(2),
        late_events: some(2),
        rewrites: if members > 2 { some(2) } else { 0 },
        ends: some(2),
    };
    Setup { start: Start::Well, members, confirm, maximum_lag: some(2), budget, epochs: 9, hit: Pods::MAX, after: &[] }
}

/// Goes on for so many steps; `with_faults`: whatever may happen, else only what the set does by itself.
pub fn go_on(model: &Election, run: &mut Run, chance: &mut Chance, steps: usize, with_faults: bool) {
    let mut properties = model.properties();
    properties.retain(|property| property.expectation.discovery_is_failure());
    let mut possible = Vec::new();
    for _ in 0..steps {
        possible.clear();
        model.steps(&run.world, &mut possible);
        if !with_faults {
            possible.retain(|step| !step.is_fault());
        }
        let next = loop {
            if possible.is_empty() {
                return;
            }
            let step = possible.swap_remove(chance.below(possible.len()));
            // Time passes slowly beside all else, and faults are rarer than what goes right.
            let is_rare = step.is_fault()
                || matches!(
                    step,
                    Step::Ages(_) | Step::HearsEnd(_) | Step::LeaveEnds(_) | Step::Goes(_) | Step::Reconnects(_)
                );
            if is_rare && with_faults && chance.below(4) > 0 {
                continue;
            }
            if let Some(world) = model.happen(&run.world, step).filter(|world| model.within_boundary(world)) {
                break (step, world);
            }
        };
        run.steps.push(next.0);
        run.world = next.1;
        run.broken =
            properties.iter().find(|property| !(property.condition)(model, &run.world)).map(|property| property.name);
        if run.broken.is_some() {
            return;
        }
    }
}

/// Every fault ends: the API server is there, everybody runs.
pub fn heal(model: &Election, run: &mut Run) {
    let healing = |pod| [Step::Reconnects(pod), Step::Goes(pod), Step::FencerStrikes(pod), Step::Restarts(pod)];
    for step in (0..model.setup.members).flat_map(healing) {
        let mut possible = Vec::new();
        model.steps(&run.world, &mut possible);
        if possible.contains(&step)
            && let Some(world) = model.happen(&run.world, step)
        {
            run.steps.push(step);
            run.world = world;
        }
    }
}

/// Somebody leads and accepts writes.
pub fn is_led(world: &World) -> bool {
    let leads = |pod: &usize| {
        let member = &world.members[*pod];
        world.lease().holder == Some(*pod) && member.server == PostgresState::Master && member.age == Some(Age::Fresh)
    };
    (0..world.members.len()).any(|pod| leads(&pod) && world.members[pod].life == Life::Runs)
}

/// Goes on without faults until somebody leads.
pub fn settle(model: &Election, run: &mut Run, chance: &mut Chance, steps: usize) {
    for _ in 0..steps / 10 {
        if is_led(&run.world) || run.broken.is_some() {
            return;
        }
        go_on(model, run, chance, 10, false);
    }
}

/// Nobody leads for a reason: a member that has what the set has come to was scaled away, or the copies at hand may lack what was
/// acknowledged.
pub fn waits_for_what_is_gone(model: &Election, world: &World) -> bool {
    let is_gone = (0..model.setup.members).any(|pod| world.members[pod].life == Life::Gone);
    let waits = |pod| matches!(model.next(world, pod), Action::Wait(_));
    is_gone && (0..model.setup.members).filter(|pod| world.members[*pod].life != Life::Gone).all(waits)
}

pub fn told(run: &Run) -> String {
    let mut text = String::new();
    for step in &run.steps {
        writeln!(text, "  {step:?}").unwrap();
    }
    writeln!(text, "{:?}\n{:#?}", run.world.lease(), run.world.members).unwrap();
    text
}
