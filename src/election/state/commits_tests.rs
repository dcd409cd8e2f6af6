use std::time::Duration;

use super::*;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn asks(names: &[&str], confirm: u32) -> Quorum {
    Quorum { names: names.iter().map(|&name| name.to_owned()).collect(), confirm }
}

/// Whether the Lease may say what the server does by now, with replicas that are that far.
fn may_be_recorded(
    commits: &mut Commits<Duration>,
    on_server: &Quorum,
    flushed: u64,
    replicas: [u64; 2],
    seconds: u64,
) -> bool {
    let [one, two] = replicas.map(Lsn);
    let replicas = vec![("db-1".to_owned(), one), ("db-2".to_owned(), two)];
    let evidence = Evidence { flushed: Lsn(flushed), replicas };
    let recorded = Quorum::default();
    let setting = Setting { recorded: &recorded, on_server, wanted: on_server, evidence: Some(&evidence) };
    commits.record(&setting, at(seconds)).0 == *on_server
}

#[test]
fn the_lease_says_that_commits_wait_when_enough_have_what_there_was_when_all_had_heard_of_it() {
    let (mut commits, one) = (Commits::default(), asks(&["db-1"], 1));
    let mut look = |quorum, flushed, at, seconds| may_be_recorded(&mut commits, quorum, flushed, [at, 1000], seconds);
    assert!(!look(&one, 100, 100, 0), "a commit may just be confirmed by another one");
    assert!(!look(&one, 200, 150, 1));
    assert!(!look(&one, 300, 199, 2));
    assert!(look(&one, 400, 200, 3));
    assert!(look(&one, 500, 200, 4), "it stays so");
    assert!(!look(&asks(&["db-1", "db-2"], 2), 500, 500, 5), "another list begins anew");
}

#[test]
fn a_second_change_to_the_same_list_is_looked_at_anew() {
    let (mut commits, two) = (Commits::default(), asks(&["db-1", "db-2"], 2));
    may_be_recorded(&mut commits, &two, 100, [100, 100], 0);
    assert!(may_be_recorded(&mut commits, &two, 100, [100, 100], 1));
    // Meanwhile one of them confirmed alone, and the other is behind.
    commits.note_change();
    assert!(!may_be_recorded(&mut commits, &two, 300, [300, 200], 10));
    assert!(!may_be_recorded(&mut commits, &two, 300, [300, 200], 11));
    assert!(may_be_recorded(&mut commits, &two, 300, [300, 300], 12));
}

#[test]
fn without_evidence_the_lease_promises_nothing() {
    let (recorded, one) = (Quorum::default(), asks(&["db-1"], 1));
    let setting = Setting { recorded: &recorded, on_server: &one, wanted: &one, evidence: None };
    assert_eq!(Commits::default().record(&setting, at(99)), (recorded.clone(), true));
}

/// What is asked for at these seconds, with so many replicas that stream, where two are wanted.
fn asked(is_strict: bool, story: &[(u64, u32)]) -> Vec<u32> {
    let mut commits = Commits::default();
    let ask = |(seconds, streaming): &(u64, u32)| commits.confirmations(2, is_strict, *streaming, at(*seconds));
    story.iter().map(ask).collect()
}

#[test]
fn commits_wait_for_all_that_are_wanted_where_that_is_strict() {
    assert_eq!(asked(true, &[(0, 2), (1, 0), (99, 0), (999, 1)]), [2, 2, 2, 2]);
}

#[test]
fn commits_go_on_with_those_that_stream_when_the_others_have_been_away_for_long() {
    assert_eq!(asked(false, &[(0, 2), (1, 1), (10, 1), (11, 1)]), [2, 2, 2, 1]);
    assert_eq!(asked(false, &[(0, 2), (1, 0), (11, 0), (12, 0)]), [2, 2, 0, 0]);
    assert_eq!(asked(false, &[(0, 2), (1, 0), (11, 1)]), [2, 2, 1], "as many as stream then");
    assert_eq!(asked(false, &[(0, 1), (10, 1), (11, 0), (20, 0), (21, 0)]), [2, 1, 1, 1, 0], "each has its time");
}

#[test]
fn a_replica_that_restarts_costs_no_confirmation() {
    assert_eq!(asked(false, &[(0, 2), (1, 1), (9, 2), (10, 1), (19, 1)]), [2, 2, 2, 2, 2]);
}

#[test]
fn commits_wait_again_as_soon_as_the_replicas_stream() {
    assert_eq!(asked(false, &[(0, 0), (10, 0), (11, 1), (12, 2), (13, 1)]), [2, 0, 1, 2, 2]);
}

#[test]
fn a_set_that_becomes_strict_again_waits_at_once_and_a_smaller_wish_is_met_at_once() {
    let mut commits = Commits::default();
    commits.confirmations(2, false, 0, at(0));
    assert_eq!(commits.confirmations(2, false, 0, at(10)), 0);
    assert_eq!(commits.confirmations(2, true, 0, at(10)), 2);
    assert_eq!(commits.confirmations(1, false, 1, at(10)), 1);
}
