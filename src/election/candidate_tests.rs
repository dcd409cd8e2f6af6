//! Each test is a sentence about what a replica does when the set has no master.

use std::collections::BTreeSet;

use super::*;
use crate::election::{Lsn, SystemIdentifier};

fn version(number: u32) -> Version {
    Version::new("uid", &number.to_string())
}

fn at(at: u64) -> Position {
    Position { timeline: 1, at: Lsn(at) }
}

fn set(flushed: u64, stopped_at: Option<u64>) -> Database {
    let reached = Reached { timeline: 1, begins: None, flushed: Some(Lsn(flushed)), stopped_at: stopped_at.map(Lsn) };
    Database { system: SystemIdentifier(7), reached: Some(reached) }
}

fn standing() -> Standing {
    let voters: BTreeSet<String> = ["db-0", "db-1", "db-2"].map(str::to_owned).into();
    Standing {
        me: "db-1".into(),
        mandate: Mandate::Votes,
        version: Some(version(5)),
        record: Record { epoch: 2, voters, quorum: Quorum::default() },
        next_timeline: 2,
        ..Standing::default()
    }
}

fn voted() -> Standing {
    Standing { voted: Some(version(5)), ..standing() }
}

fn counted(position: Position, answers: &[(&str, Answer)]) -> Votes {
    let answers = answers.iter().map(|(pod, answer)| ((*pod).to_owned(), answer.clone())).collect();
    Votes::Counted(Ballot { version: version(5), position }, answers)
}

#[test]
fn a_candidate_stops_receiving_then_asks_then_leads() {
    let set = set(100, None);
    assert_eq!(decide(&set, &standing(), true, Some(at(100))), Action::Promise(version(5)));
    assert_eq!(decide(&set, &voted(), true, Some(at(100))), Action::Stay, "its receiver still runs");
    assert_eq!(decide(&set, &voted(), false, None), Action::Stay, "it does not know yet what it has");
    let ballot = Ballot { version: version(5), position: at(100) };
    assert_eq!(decide(&set, &voted(), false, Some(at(100))), Action::AskForVotes(ballot.clone()));
    let pending = Standing { votes: Votes::Pending(ballot), ..voted() };
    assert_eq!(decide(&set, &pending, false, Some(at(100))), Action::Stay);
    let elected = Standing { votes: counted(at(100), &[("db-2", Answer::Granted(at(100)))]), ..voted() };
    let Action::TakeLease(taking) = decide(&set, &elected, false, Some(at(100))) else { panic!() };
    let begins = taking.begins.unwrap();
    assert_eq!((begins.timeline, begins.begins, begins.flushed), (2, Some(Lsn(100)), Some(Lsn(100))));
}

#[test]
fn votes_count_for_the_lease_and_the_position_that_they_were_given_for() {
    let stale =
        Standing { votes: counted(at(100), &[]), version: Some(version(6)), voted: Some(version(6)), ..voted() };
    assert!(matches!(decide(&set(100, None), &stale, false, Some(at(100))), Action::AskForVotes(_)));
    let moved = Standing { votes: counted(at(100), &[]), ..voted() };
    assert!(matches!(decide(&set(100, None), &moved, false, Some(at(101))), Action::AskForVotes(_)));
}

#[test]
fn after_a_clean_stop_whoever_has_everything_leads_without_asking() {
    assert!(matches!(decide(&set(100, Some(100)), &standing(), true, Some(at(101))), Action::TakeLease(_)));
    assert_eq!(decide(&set(100, Some(100)), &standing(), true, Some(at(100))), Action::Promise(version(5)));
}

#[test]
fn the_member_that_was_handed_the_set_goes_first() {
    let waits = Standing { successor: Some("db-2".into()), ..standing() };
    let action = decide(&set(100, Some(100)), &waits, true, Some(at(101)));
    assert_eq!(action, Action::Wait(Waiting::ForSuccessor("db-2".into())));
}

#[test]
fn nobody_stands_who_may_not() {
    let decided = |standing: &Standing| decide(&set(100, Some(100)), standing, true, Some(at(101)));
    let stranger = Standing { me: "db-7".into(), ..standing() };
    assert_eq!(decided(&stranger), Action::Wait(Waiting::ForMaster));
    let manual = Standing { mandate: Mandate::None, ..standing() };
    assert_eq!(decided(&manual), Action::Wait(Waiting::ForFailover));
    let on_leave = Standing { gave_leave: true, ..standing() };
    assert_eq!(decided(&on_leave), Action::Wait(Waiting::ForMaster));
}

#[test]
fn a_person_may_give_up_what_a_member_lacks() {
    let votes = counted(at(10), &[]);
    let behind = Standing { votes, maximum_lag: 5, ..voted() };
    let verdict = Verdict::TooFarBehind { lag: 90, allowed: 5 };
    assert_eq!(decide(&set(100, None), &behind, false, Some(at(10))), Action::Wait(Waiting::ForVotes(verdict)));
    let ordered = Standing { mandate: Mandate::AcceptsLoss, ..behind };
    assert!(matches!(decide(&set(100, None), &ordered, false, Some(at(10))), Action::TakeLease(_)));
}

#[test]
fn nobody_leads_beside_a_master_that_would_not_have_to_ask_it_whatever_is_given_up() {
    let votes = counted(at(10), &[]);
    let ordered = Standing { votes, mandate: Mandate::AcceptsLoss, ..voted() };
    let decided = |standing: &Standing| decide(&set(100, None), standing, false, Some(at(10)));
    let stranger = Standing { me: "db-7".into(), ..ordered.clone() };
    assert_eq!(decided(&stranger), Action::Wait(Waiting::ForMaster));
    let on_leave = Standing { gave_leave: true, ..ordered.clone() };
    assert_eq!(decided(&on_leave), Action::Wait(Waiting::ForMaster));
    // A master of an older revision records nobody, and asks nobody: it stops.
    let unrecorded = Standing { me: "db-7".into(), record: Record::default(), ..ordered };
    assert!(matches!(decided(&unrecorded), Action::TakeLease(_)));
}

fn elected() -> (Database, Standing) {
    let reached = Reached { timeline: 2, begins: Some(Lsn(100)), flushed: Some(Lsn(100)), stopped_at: None };
    let standing = Standing { is_last_holder: true, version: Some(version(6)), ..standing() };
    (Database { system: SystemIdentifier(7), reached: Some(reached) }, standing)
}

#[test]
fn whoever_was_elected_and_died_before_it_was_promoted_leads_by_that_election() {
    let (set, standing) = elected();
    let Action::TakeLease(taking) = decide(&set, &standing, false, Some(at(100))) else { panic!() };
    assert_eq!(taking.begins, None, "its promotion begins where the Lease says");
    assert_eq!(decide(&set, &standing, true, Some(at(100))), Action::Promise(version(6)), "it may receive more");
    assert_eq!(decide(&set, &standing, false, Some(at(101))), Action::Promise(version(6)));
    let other = Standing { is_last_holder: false, ..standing.clone() };
    assert_eq!(decide(&set, &other, false, Some(at(100))), Action::Promise(version(6)));
    let reached = set.reached.map(|reached| Reached { flushed: Some(Lsn(120)), ..reached });
    let led = Database { reached, ..set };
    assert_eq!(decide(&led, &standing, false, Some(at(100))), Action::Promise(version(6)), "it has led since");
}

#[test]
fn no_promotion_takes_a_number_that_another_may_have_been_promoted_to_unheard() {
    let (set, standing) = elected();
    let votes = counted(at(100), &[("db-0", Answer::Granted(at(100))), ("db-2", Answer::Granted(at(100)))]);
    let votes = match votes {
        Votes::Counted(ballot, answers) => Votes::Counted(Ballot { version: version(6), ..ballot }, answers),
        other => other,
    };
    let other = Standing { is_last_holder: false, voted: Some(version(6)), votes, ..standing };
    let Action::TakeLease(taking) = decide(&set, &other, false, Some(at(100))) else { panic!() };
    assert_eq!(taking.begins.map(|begins| begins.timeline), Some(3));
}

fn voter(version: &Version) -> Voter<'_> {
    let copy = Copy::Standby { receives: false, position: Some(at(90)) };
    Voter { version: Some(version), is_vacant: true, voted: Some(version), gave_leave: false, copy }
}

#[test]
fn a_voter_promises_first_and_answers_when_it_has_stopped_receiving() {
    let version = version(5);
    let ballot = Ballot { version: version.clone(), position: at(100) };
    let fresh =
        Voter { voted: None, copy: Copy::Standby { receives: true, position: Some(at(90)) }, ..voter(&version) };
    assert_eq!(respond(&ballot, &fresh), Response::Promise);
    let stopping = Voter { voted: Some(&version), ..fresh };
    assert_eq!(respond(&ballot, &stopping), Response::Answer(Answer::Refused(Refusal::NotYet)));
    assert_eq!(respond(&ballot, &voter(&version)), Response::Answer(Answer::Granted(at(90))));
}

#[test]
fn a_voter_that_sees_another_lease_or_a_master_refuses() {
    let (here, there) = (version(5), version(6));
    let ballot = Ballot { version: there, position: at(100) };
    let refused = Response::Answer(Answer::Refused(Refusal::OtherLease));
    assert_eq!(respond(&ballot, &voter(&here)), refused);
    let ballot = Ballot { version: here.clone(), position: at(100) };
    assert_eq!(respond(&ballot, &Voter { is_vacant: false, ..voter(&here) }), refused);
    let on_leave = Voter { gave_leave: true, ..voter(&here) };
    assert_eq!(respond(&ballot, &on_leave), Response::Answer(Answer::Refused(Refusal::PromisedToMaster)));
}

#[test]
fn a_master_that_is_about_to_return_says_so_and_an_empty_member_has_no_vote() {
    let version = version(5);
    let ballot = Ballot { version: version.clone(), position: at(100) };
    let returns = Voter { copy: Copy::OfTheMaster, voted: None, ..voter(&version) };
    assert_eq!(respond(&ballot, &returns), Response::Answer(Answer::Returns));
    let empty = Voter { copy: Copy::None, ..voter(&version) };
    assert_eq!(respond(&ballot, &empty), Response::Answer(Answer::Refused(Refusal::NoData)));
}
