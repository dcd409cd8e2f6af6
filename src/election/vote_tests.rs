//! Each test is a sentence about who may lead after a master that is gone.

use proptest::prelude::*;

use super::*;
use crate::election::SystemIdentifier;

fn at(timeline: u32, at: u64) -> Position {
    Position { timeline, at: Lsn(at) }
}

fn set(reached: Reached) -> Database {
    Database { system: SystemIdentifier(7), reached: Some(reached) }
}

fn reached(timeline: u32, flushed: u64) -> Reached {
    Reached { timeline, begins: None, flushed: Some(Lsn(flushed)), stopped_at: None }
}

fn names(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(|&name| name.to_owned()).collect()
}

fn quorum(confirm: u32, of: &[&str]) -> Record {
    Record { epoch: 3, voters: names(&["db-0", "db-1", "db-2"]), quorum: Quorum { names: names(of), confirm } }
}

fn answers(of: &[(&str, Answer)]) -> BTreeMap<String, Answer> {
    of.iter().map(|(pod, answer)| ((*pod).to_owned(), answer.clone())).collect()
}

const NOT: Answer = Answer::Refused(Refusal::NotYet);

#[test]
fn whoever_has_more_goes_first() {
    let asked = |mine, other| {
        let given = answers(&[("db-2", Answer::Granted(other))]);
        tally("db-1", mine, &set(reached(1, 100)), &quorum(0, &[]), 50, &given)
    };
    assert_eq!(asked(at(1, 100), at(1, 101)), Verdict::Yield { to: "db-2".into() });
    assert_eq!(asked(at(1, 200), at(2, 150)), Verdict::Yield { to: "db-2".into() }, "a later timeline is more");
    assert_eq!(asked(at(1, 100), at(1, 100)), Verdict::Lead, "of equals the first to take the Lease leads");
}

#[test]
fn commits_that_wait_for_replicas_need_so_many_votes_that_one_of_them_has_confirmed() {
    let record = quorum(1, &["db-1", "db-2"]);
    let asked =
        |given: &[(&str, Answer)]| tally("db-1", at(1, 100), &set(reached(1, 100)), &record, u64::MAX, &answers(given));
    assert_eq!(asked(&[("db-2", Answer::Granted(at(1, 90)))]), Verdict::Lead);
    assert_eq!(asked(&[("db-2", NOT)]), Verdict::TooFewVotes { have: 1, need: 2 });
    assert_eq!(asked(&[]), Verdict::TooFewVotes { have: 1, need: 2 });
    assert_eq!(
        asked(&[("db-3", Answer::Granted(at(1, 90)))]),
        Verdict::TooFewVotes { have: 1, need: 2 },
        "one that does not confirm commits says nothing about them"
    );
}

#[test]
fn where_every_replica_confirms_one_vote_is_enough() {
    let record = quorum(2, &["db-1", "db-2"]);
    assert_eq!(tally("db-1", at(1, 1), &set(reached(1, 100)), &record, 0, &answers(&[])), Verdict::Lead);
}

#[test]
fn commits_that_wait_for_nobody_allow_a_bounded_loss() {
    let asked = |mine| tally("db-1", at(1, mine), &set(reached(1, 1000)), &quorum(0, &[]), 100, &answers(&[]));
    assert_eq!(asked(900), Verdict::Lead);
    assert_eq!(asked(899), Verdict::TooFarBehind { lag: 101, allowed: 100 });
}

#[test]
fn whoever_led_last_is_waited_for_unless_nothing_can_be_lost_without_it() {
    let given = answers(&[("db-0", Answer::Returns), ("db-2", Answer::Granted(at(1, 90)))]);
    let asked = |record: &Record| tally("db-1", at(1, 100), &set(reached(1, 100)), record, 0, &given);
    assert_eq!(asked(&quorum(0, &[])), Verdict::AwaitReturn { of: "db-0".into() });
    assert_eq!(asked(&quorum(1, &["db-1", "db-2"])), Verdict::Lead);
    assert_eq!(asked(&quorum(1, &["db-1", "db-2", "db-3"])), Verdict::AwaitReturn { of: "db-0".into() });
}

#[test]
fn a_promotion_of_which_nobody_heard_is_gone_on_from_where_it_began() {
    let begun = Reached { timeline: 2, begins: Some(Lsn(100)), flushed: Some(Lsn(100)), stopped_at: None };
    let asked = |reached, mine| tally("db-1", mine, &set(reached), &quorum(0, &[]), 0, &answers(&[]));
    assert_eq!(asked(begun, at(1, 100)), Verdict::Lead);
    assert_eq!(asked(begun, at(1, 99)), Verdict::OtherHistory);
    let heard = Reached { flushed: Some(Lsn(101)), ..begun };
    assert_eq!(asked(heard, at(1, 100)), Verdict::OtherHistory, "it lacks what the second timeline has");
}

#[test]
fn a_record_that_knows_no_position_lets_nobody_lead_unseen() {
    let unknown = Database { system: SystemIdentifier(7), reached: None };
    assert_eq!(tally("db-1", at(1, 9), &unknown, &quorum(0, &[]), u64::MAX, &answers(&[])), Verdict::OtherHistory);
}

#[test]
fn all_of_a_master_that_stopped_cleanly_is_what_goes_beyond_its_last_checkpoint() {
    let stopped = Reached { stopped_at: Some(Lsn(100)), ..reached(1, 100) };
    assert!(has_everything(at(1, 101), &stopped));
    assert!(!has_everything(at(1, 100), &stopped), "the checkpoint itself is missing");
    assert!(!has_everything(at(2, 101), &stopped));
    assert!(!has_everything(at(1, 1000), &reached(1, 100)), "it did not stop cleanly");
}

proptest! {
    /// Every commit is on some `confirm` of the names; whoever leads by votes has at least what each of them had.
    #[test]
    fn nothing_confirmed_is_lost(
        (size, confirm, confirmed, reachable) in (1usize..6).prop_flat_map(|size| {
            (Just(size), 1..=size, proptest::sample::subsequence((0..size).collect::<Vec<_>>(), 1..=size),
             proptest::collection::vec(any::<bool>(), size))
        }),
    ) {
        prop_assume!(confirmed.len() >= confirm);
        let pods: Vec<String> = (1..=size).map(|ordinal| format!("db-{ordinal}")).collect();
        let record = Record {
            epoch: 1,
            voters: pods.iter().cloned().collect(),
            quorum: Quorum { names: pods.iter().cloned().collect(), confirm: u32::try_from(confirm).unwrap() },
        };
        // The commit ends at 200; whoever did not confirm it is at 100.
        let has = |at_index: usize| at(1, if confirmed.contains(&at_index) { 200 } else { 100 });
        for candidate in 0..size {
            let given: BTreeMap<String, Answer> = (0..size)
                .filter(|other| *other != candidate && reachable[*other])
                .map(|other| (pods[other].clone(), Answer::Granted(has(other))))
                .collect();
            let verdict = tally(&pods[candidate], has(candidate), &set(reached(1, 100)), &record, 0, &given);
            prop_assert!(verdict != Verdict::Lead || confirmed.contains(&candidate), "{verdict:?}");
        }
    }

    #[test]
    fn what_is_recorded_in_between_is_as_careful_as_both(a in quorums(), b in quorums()) {
        let between = a.widest(&b);
        prop_assert!(between.votes_needed() >= a.votes_needed().max(b.votes_needed()));
        prop_assert!(a.names.is_subset(&between.names) && b.names.is_subset(&between.names));
    }
}

fn quorums() -> impl Strategy<Value = Quorum> {
    (proptest::collection::btree_set("db-[1-5]", 0..5), 0u32..4)
        .prop_map(|(names, confirm)| Quorum { confirm: confirm.min(u32::try_from(names.len()).unwrap()), names })
}
