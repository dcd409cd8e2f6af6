//! The election, checked: every order of events to a stated size, and random ones beyond it.
//!
//! What runs is the code of `src/election`, on real Leases; `agent.rs` stands for what the agent does around it. docs/failover.md says
//! what is looked at, and how far.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a test may stop where it fails
#![allow(clippy::struct_excessive_bools)] // states and rules are many yeses and noes

mod agent;
mod chance;
mod events;
mod keeper;
#[path = "../support/chance.rs"]
mod numbers;
mod rules;
mod steps;
mod words;
mod world;

use std::io::Write as _;

use chance::Run;
use numbers::Chance;
use rules::{Election, Rules, Setup, Start};
use stateright::{Checker, HasDiscoveries, Model};
use steps::{ANOTHER_LEADS, NOTHING_LOST, ONE_MASTER, Step, TOLD_APART};
use world::{Budget, Pods, only};

const NOTHING: Budget = Budget {
    writes: 0,
    crashes: 0,
    stops: 0,
    freezes: 0,
    outages: 0,
    unanswered: 0,
    handovers: 0,
    scalings: 0,
    late_events: 0,
    rewrites: 0,
    ends: 0,
};

/// Two members whose commits wait for nobody.
fn two(budget: Budget) -> Setup {
    Setup { start: Start::Well, members: 2, confirm: 0, maximum_lag: 1, budget, epochs: 3, hit: Pods::MAX, after: &[] }
}

/// Three members, one of which confirms each commit.
fn three(start: Start, budget: Budget) -> Setup {
    Setup { start, members: 3, confirm: 1, maximum_lag: 1, budget, epochs: 3, hit: Pods::MAX, after: &[] }
}

/// Past the test runner, which keeps what tests print to itself.
fn say(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

fn number(key: &str) -> Option<u64> {
    std::env::var(key).ok()?.parse().ok()
}

/// One more of what makes an exploration large: `PGSET_MODEL_SOAK=1` asks for it.
fn soak() -> u8 {
    u8::from(number("PGSET_MODEL_SOAK").is_some())
}

/// Looks at every state that can be reached; `depth`: by so many steps, where all would be too many.
fn holds(name: &str, setup: Setup, depth: Option<usize>) {
    let builder = Election { rules: Rules::ALL, setup }.checker().threads(2);
    let builder = if let Some(depth) = depth { builder.target_max_depth(depth) } else { builder };
    let checker = builder.spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    say(&format!("model: {name}: {states} states, to a depth of {depth} steps"));
    for (property, path) in checker.discoveries() {
        assert_eq!(property, ANOTHER_LEADS, "{}", path_of(path));
    }
    assert!(checker.discovery(ANOTHER_LEADS).is_some(), "{name}: the model checks nothing");
}

/// After so many states what a rule prevents has been found, or is not to be found.
const AT_LATEST: usize = 3_000_000;

/// Without a rule, the property does not hold.
fn breaks(without: impl FnOnce(&mut Rules), setup: Setup, property: &'static str) {
    let mut rules = Rules::ALL;
    without(&mut rules);
    let builder = Election { rules, setup }.checker().threads(2).finish_when(HasDiscoveries::AnyFailures);
    let checker = builder.target_state_count(AT_LATEST).spawn_bfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| {
        let found: Vec<_> = checker.discoveries().into_keys().collect();
        panic!("{} states, and only {found:?}", checker.unique_state_count())
    });
    say(&format!("model: {property}: broken after {} states by\n{}", checker.unique_state_count(), path_of(path)));
}

fn path_of(path: stateright::Path<world::World, steps::Step>) -> String {
    let steps: Vec<String> = path.into_actions().iter().map(|step| format!("  {step:?}")).collect();
    steps.join("\n")
}

mod every_order_of_events {
    use super::*;

    #[test]
    fn of_two_members_and_crashes() {
        let setup = Setup { epochs: 2 + soak(), ..two(Budget { writes: 2, crashes: 1, ..NOTHING }) };
        holds("two members, 2 writes, 1 crash", setup, None);
    }

    #[test]
    fn of_two_members_that_confirm_and_crash() {
        let setup =
            Setup { confirm: 1, epochs: 2 + soak(), ..two(Budget { writes: 1 + soak(), crashes: 1, ..NOTHING }) };
        holds("two members that confirm, 1 write, 1 crash", setup, None);
    }

    #[test]
    fn of_two_members_agents_that_stop_and_nodes_that_freeze() {
        let setup = Setup { epochs: 2 + soak(), ..two(Budget { writes: 1, stops: soak(), freezes: 1, ..NOTHING }) };
        holds("two members, 1 write, 1 freeze", setup, None);
    }

    #[test]
    fn of_two_members_that_are_cut_off_and_requests_that_are_not_answered() {
        let budget = Budget { writes: soak(), outages: 1, unanswered: 1, ..NOTHING };
        holds("two members, 1 outage, 1 lost answer", two(budget), None);
    }

    #[test]
    fn of_two_members_and_containers_whose_end_the_kubelet_reports() {
        let budget = Budget { writes: soak(), crashes: 1, ends: 1, outages: 1, ..NOTHING };
        let setup = Setup { epochs: 2 + soak(), ..two(budget) };
        holds("two members, 1 crash that the kubelet reports, 1 outage", setup, None);
    }

    #[test]
    fn of_two_members_that_hand_over_and_come_back() {
        let budget = Budget { writes: soak(), handovers: 1, ..NOTHING };
        holds("two members, 1 handover", two(budget), None);
    }

    #[test]
    fn of_three_members_after_a_freeze() {
        let setup = three(Start::MasterFrozen, Budget { writes: 1, ..NOTHING });
        holds("three members, frozen master, 1 write", setup, Some(if soak() > 0 { 18 } else { 13 }));
    }
}

mod without_the_rule {
    use super::*;

    /// The second member promises and asks, the third promises and answers.
    const ELECTED: [Step; 4] = [
        Step::Turns(1),
        Step::Turns(1),
        Step::Answers { candidate: 1, pod: 2 },
        Step::Answers { candidate: 1, pod: 2 },
    ];

    #[test]
    fn that_voters_stop_receiving() {
        let setup = three(Start::MasterFrozen, Budget { writes: 1, ..NOTHING });
        breaks(|rules| rules.voters_stop_receiving = false, setup, NOTHING_LOST);
    }

    #[test]
    fn that_votes_are_noted() {
        let budget = Budget { writes: 1, crashes: 1, ..NOTHING };
        let setup = Setup { hit: only(2), after: &ELECTED, ..three(Start::MasterFrozen, budget) };
        breaks(|rules| rules.votes_are_noted = false, setup, NOTHING_LOST);
    }

    #[test]
    fn that_the_lease_is_taken_as_it_was_seen() {
        breaks(|rules| rules.takes_what_it_saw = false, two(NOTHING), ONE_MASTER);
    }

    #[test]
    fn that_all_are_asked_for_leave() {
        let setup = Setup { confirm: 0, ..three(Start::Well, Budget { outages: 1, ..NOTHING }) };
        breaks(|rules| rules.asks_all = false, setup, ONE_MASTER);
    }

    #[test]
    fn that_whoever_gave_leave_does_not_vote() {
        breaks(|rules| rules.leave_excludes_votes = false, two(Budget { outages: 1, ..NOTHING }), ONE_MASTER);
    }

    #[test]
    fn that_a_candidate_needs_a_quorum() {
        let setup = three(Start::Well, Budget { writes: 1, crashes: 1, ..NOTHING });
        breaks(|rules| rules.needs_a_quorum = false, setup, NOTHING_LOST);
    }

    #[test]
    fn that_the_fence_comes_first() {
        breaks(|rules| rules.fences_in_time = false, two(NOTHING), ONE_MASTER);
    }

    #[test]
    fn that_a_vacant_lease_is_read() {
        let setup = Setup { maximum_lag: 0, ..two(Budget { writes: 1, crashes: 2, ..NOTHING }) };
        breaks(|rules| rules.reads_before_it_writes = false, setup, NOTHING_LOST);
    }

    #[test]
    fn that_a_conflict_keeps_the_quorum() {
        let budget = Budget { writes: 1, crashes: 2, unanswered: 1, ..NOTHING };
        let after = &[
            Step::Writes(0),
            Step::Receives(2),
            Step::Acknowledges(0),
            Step::Crashes(0),
            Step::Restarts(0),
            Step::Reads(0),
            Step::Turns(0),
            Step::Ages(0),
            Step::RenewsUnanswered(0),
        ];
        let setup = Setup { hit: only(0), after, ..three(Start::Well, budget) };
        breaks(|rules| rules.conflicts_keep_the_quorum = false, setup, NOTHING_LOST);
    }

    #[test]
    fn that_another_epoch_is_noticed() {
        let setup =
            Setup { maximum_lag: 0, start: Start::MasterFrozen, ..two(Budget { writes: 1, handovers: 1, ..NOTHING }) };
        breaks(|rules| rules.notices_another_epoch = false, setup, NOTHING_LOST);
    }

    #[test]
    fn that_whoever_may_stand_is_noted_first() {
        let budget = Budget { crashes: 1, outages: 1, scalings: 1, ..NOTHING };
        let after = &[
            Step::Grows,
            Step::Restarts(2),
            Step::Keeps(0),
            Step::Renews(0),
            Step::Crashes(0),
            Step::IsCutOff(0),
            Step::Restarts(0),
        ];
        let setup = Setup { confirm: 0, hit: only(0), after, ..three(Start::OneToCome, budget) };
        breaks(|rules| rules.notes_before_it_records = false, setup, ONE_MASTER);
    }

    #[test]
    fn that_an_epoch_is_noted_before_it_begins() {
        let budget = Budget { crashes: 2, outages: 1, ..NOTHING };
        breaks(|rules| rules.notes_before_it_takes = false, two(budget), ONE_MASTER);
    }

    #[test]
    fn that_a_quorum_is_narrowed_when_it_has_caught_up() {
        let budget = Budget { writes: 1, crashes: 1, scalings: 1, ..NOTHING };
        let after = &[Step::Writes(0), Step::Receives(2), Step::Acknowledges(0), Step::Shrinks];
        let setup = Setup { hit: only(0), after, ..three(Start::Well, budget) };
        breaks(|rules| rules.narrows_when_caught_up = false, setup, NOTHING_LOST);
    }

    #[test]
    fn that_old_news_is_no_news() {
        let budget = Budget { writes: 1, freezes: 1, late_events: 1, ..NOTHING };
        let after = &[
            Step::Ages(0),
            Step::Renews(0),
            Step::Reads(1),
            Step::Reads(2),
            Step::Freezes(0),
            Step::Ages(0),
            Step::Ages(0),
            Step::IsSilent(1),
            Step::IsSilent(2),
            ELECTED[0],
            Step::HushesReceiver(1),
            ELECTED[1],
            ELECTED[2],
            Step::HushesReceiver(2),
            ELECTED[3],
        ];
        let setup = Setup { after, ..three(Start::Well, budget) };
        breaks(|rules| rules.goes_forward = false, setup, NOTHING_LOST);
    }

    #[test]
    fn that_what_was_told_ends_with_the_leadership() {
        let budget = Budget { writes: 1, crashes: 1, rewrites: 1, handovers: 1, ..NOTHING };
        let after = &[
            Step::HandsOver { pod: 0, delivered: true },
            Step::Rewrites,
            Step::Turns(0),
            Step::Turns(0),
            Step::Renews(0),
        ];
        let setup = Setup { confirm: 2, after, hit: only(0), ..three(Start::Well, budget) };
        breaks(|rules| rules.tells_anew = false, setup, NOTHING_LOST);
    }

    #[test]
    fn that_catching_up_ends_with_the_leadership() {
        let budget = Budget { writes: 1, crashes: 1, rewrites: 3, handovers: 2, ..NOTHING };
        let after = &[
            // Two replicas are to confirm, and have come far enough; before the Lease says so, the leadership ends.
            Step::Rewrites,
            Step::Keeps(0),
            Step::Keeps(0),
            Step::Keeps(0),
            Step::HandsOver { pod: 0, delivered: false },
            // In the next one a single replica confirms a commit.
            Step::Rewrites,
            Step::Turns(0),
            Step::Turns(0),
            Step::Writes(0),
            Step::Receives(1),
            Step::Receives(1),
            Step::Acknowledges(0),
            Step::HandsOver { pod: 0, delivered: true },
            // And then two are to, one of which lacks it.
            Step::Rewrites,
            Step::Turns(0),
            Step::Turns(0),
            Step::Receives(1),
            Step::Receives(2),
            Step::Keeps(0),
        ];
        let setup = Setup { epochs: 4, after, hit: only(0), ..three(Start::Well, budget) };
        breaks(|rules| rules.catches_up_anew = false, setup, NOTHING_LOST);
    }

    #[test]
    fn that_the_kubelets_word_is_not_taken_by_who_may_have_given_leave() {
        let budget = Budget { crashes: 2, outages: 1, ends: 1, ..NOTHING };
        breaks(|rules| rules.remembers_leaves = false, two(budget), ONE_MASTER);
    }

    #[test]
    fn that_the_kubelets_word_is_about_one_life() {
        let budget = Budget { crashes: 1, ends: 1, ..NOTHING };
        breaks(|rules| rules.ends_are_of_a_life = false, two(budget), ONE_MASTER);
    }

    #[test]
    fn that_timelines_have_new_numbers() {
        let setup = Setup { confirm: 0, epochs: 4, ..three(Start::MasterLost, Budget { crashes: 2, ..NOTHING }) };
        breaks(|rules| rules.numbers_are_new = false, setup, TOLD_APART);
    }
}

mod by_chance {
    use super::*;

    /// Steps with faults, and the most that a set may need to get over them.
    const STORM: usize = 120;
    const CALM: usize = 600;

    fn run(seed: u64, rules: Rules) -> (Election, Run) {
        let mut chance = Chance::of(seed);
        let model = Election { rules, setup: chance::setup(&mut chance) };
        let mut run = Run { world: model.begin(), steps: Vec::new(), broken: None };
        chance::go_on(&model, &mut run, &mut chance, STORM, true);
        if run.broken.is_none() {
            chance::heal(&model, &mut run);
            chance::settle(&model, &mut run, &mut chance, CALM);
        }
        (model, run)
    }

    /// Nothing that must not happen happens; and when the faults are over, somebody leads, or a member says for what it waits.
    fn is_well(seed: u64, rules: Rules) -> Result<Run, String> {
        let (model, run) = run(seed, rules);
        if let Some(property) = run.broken {
            return Err(format!("{property}: PGSET_MODEL_SEED={seed}\n{:?}\n{}", model.setup, chance::told(&run)));
        }
        if chance::is_led(&run.world) || chance::waits_for_what_is_gone(&model, &run.world) {
            return Ok(run);
        }
        Err(format!("nobody leads: PGSET_MODEL_SEED={seed}\n{:?}\n{}", model.setup, chance::told(&run)))
    }

    #[test]
    fn no_rule_is_broken_and_somebody_leads_in_the_end() {
        let one = number("PGSET_MODEL_SEED");
        let first = one.unwrap_or_else(|| {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs())
        });
        let runs = if one.is_some() { 1 } else { number("PGSET_MODEL_RUNS").unwrap_or(3000) };
        say(&format!("PGSET_MODEL_SEED={first} PGSET_MODEL_RUNS={runs}"));
        let mut epochs = 0;
        for seed in (0..runs).map(|run| first.wrapping_add(run)) {
            match is_well(seed, Rules::ALL) {
                Ok(run) => {
                    epochs += u64::from(run.world.lease().epoch - 1);
                    if one.is_some() {
                        say(&chance::told(&run));
                    }
                }
                Err(why) => panic!("{why}"),
            }
        }
        say(&format!("model: {runs} runs by chance, {epochs} changes of leadership"));
        assert!(one.is_some() || epochs > runs / 4, "the model checks nothing");
    }

    #[test]
    fn without_the_rule_that_the_elected_stays_elected_a_set_stands_still() {
        let rules = Rules { elected_stays_elected: false, ..Rules::ALL };
        assert!((0..400).any(|seed| is_well(seed, rules).is_err_and(|why| why.starts_with("nobody leads"))));
    }
}
