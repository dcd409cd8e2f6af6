use super::*;
use crate::election::lineage::Reached;
use crate::election::{Lsn, SystemIdentifier};

fn order(text: &str) -> RecoveryOrder {
    RecoveryOrder::parse(text).unwrap()
}

fn recovery(text: &str) -> Recovery {
    match order(text) {
        RecoveryOrder::To(recovery) => recovery,
        other => panic!("{other}"),
    }
}

fn database() -> Database {
    let reached = Reached { timeline: 3, begins: Some(Lsn(5)), flushed: Some(Lsn(9)), stopped_at: Some(Lsn(9)) };
    Database { system: SystemIdentifier(1), reached: Some(reached) }
}

const TO: &str = "to latest at 2026-12-01T03:00:00Z";
const ACCEPT: &str = "accept latest at 2026-12-01T03:00:00Z";
const ANOTHER: &str = "to latest at 2026-12-01T04:00:00Z";
const FORGET: &str = "forget at 2026-12-01T05:00:00Z";
const EARLIER_FORGET: &str = "forget at 2026-12-01T02:00:00Z";

fn stages() -> [Stage; 5] {
    let recovered = Stage::Recovered { last_commit: None };
    [Stage::Restoring, Stage::Restored, recovered, Stage::Finishing, Stage::Ready(database())]
}

fn what(text: Option<&str>, stage: Option<&Stage>, role: Role, keeps: bool) -> Next {
    let journal = stage.map(|stage| Journal { recovery: recovery(TO), stage: stage.clone() });
    next(text.map(order).as_ref(), journal.as_ref(), role, keeps)
}

#[test]
fn a_recovery_goes_from_its_order_to_the_accept() {
    let [restoring, restored, recovered, finishing, ready] = stages();
    let does = |text, stage| what(Some(text), stage, Role::Leads, false);
    assert_eq!(does(TO, None), Next::Restore(recovery(TO)));
    assert_eq!(does(TO, Some(&restoring)), Next::Restore(recovery(TO)), "half of a backup is nothing");
    assert_eq!(does(TO, Some(&restored)), Next::Recover);
    assert_eq!(does(TO, Some(&recovered)), Next::Show);
    assert_eq!(does(ACCEPT, Some(&recovered)), Next::Finish);
    assert_eq!(does(ACCEPT, Some(&finishing)), Next::Finish);
    assert_eq!(does(ACCEPT, Some(&ready)), Next::HandOver(database()));
    assert_eq!(does(ACCEPT, Some(&Stage::Accepted)), Next::Rest, "once");
    assert_eq!(does(TO, Some(&Stage::Accepted)), Next::Rest, "an old order that comes back from a repository");
}

#[test]
fn nothing_is_accepted_that_was_not_there_to_be_looked_at() {
    assert_eq!(what(Some(ACCEPT), None, Role::Leads, false), Next::Refuse(Refused::NothingReady));
    let another = "accept latest at 2026-12-01T04:00:00Z";
    for stage in stages() {
        assert_eq!(what(Some(another), Some(&stage), Role::Leads, false), Next::Remove, "{stage:?}");
    }
    assert_eq!(what(Some(another), Some(&Stage::Accepted), Role::Leads, true), Next::Refuse(Refused::NothingReady));
}

#[test]
fn what_nobody_wants_any_more_goes_and_only_that() {
    for stage in stages() {
        for text in [None, Some(ANOTHER), Some(FORGET)] {
            assert_eq!(what(text, Some(&stage), Role::Leads, false), Next::Remove, "{text:?} {stage:?}");
        }
        assert_eq!(what(Some(TO), Some(&stage), Role::Follows, false), Next::Remove, "{stage:?}");
        assert_eq!(what(Some(ACCEPT), Some(&stage), Role::Follows, false), Next::Remove, "{stage:?}");
        for text in [None, Some(TO), Some(ACCEPT), Some(ANOTHER), Some(FORGET)] {
            assert_eq!(what(text, Some(&stage), Role::Unknown, false), Next::Rest, "{text:?} {stage:?}");
        }
    }
    for text in [None, Some(TO), Some(ACCEPT), Some(ANOTHER), Some(EARLIER_FORGET)] {
        let done = what(text, Some(&Stage::Accepted), Role::Leads, true);
        assert!(matches!(done, Next::Rest | Next::Refuse(_)), "{text:?}: what was kept stays, {done:?}");
    }
}

#[test]
fn what_was_kept_goes_by_an_order_that_is_younger_than_it_on_whichever_member() {
    for role in [Role::Leads, Role::Follows, Role::Unknown] {
        assert_eq!(what(Some(FORGET), Some(&Stage::Accepted), role, true), Next::Forget);
        assert_eq!(what(Some(FORGET), Some(&Stage::Accepted), role, false), Next::Forget, "somebody has removed it");
        assert_eq!(what(Some(FORGET), None, role, false), Next::Rest);
        assert_eq!(what(Some(EARLIER_FORGET), Some(&Stage::Accepted), role, true), Next::Rest);
        assert_eq!(what(Some(FORGET), None, role, true), Next::Forget);
    }
    assert_eq!(what(Some(ANOTHER), Some(&Stage::Accepted), Role::Leads, true), Next::Refuse(Refused::NotForgotten));
    assert_eq!(what(Some(ANOTHER), Some(&Stage::Accepted), Role::Leads, false), Next::Restore(recovery(ANOTHER)));
}

#[test]
fn only_who_leads_begins_anything() {
    for role in [Role::Follows, Role::Unknown] {
        for text in [TO, ACCEPT, ANOTHER] {
            assert_eq!(what(Some(text), None, role, false), Next::Rest);
        }
    }
}

#[test]
fn it_is_told_on_the_lease_while_there_is_something_to_tell() {
    let told = Told {
        pod: "db-0".into(),
        order: TO.into(),
        state: State::Ready,
        last_commit: "2026-12-01T02:59:59Z".parse().ok(),
        ..Told::default()
    };
    let mut lease = LeaseObject::default();
    told.write(&mut lease);
    assert_eq!(Told::read(&lease), Some(told));
    Told::default().write(&mut lease);
    assert_eq!(Told::read(&lease), None);

    let keeps = Told { pod: "db-0".into(), kept: Some(7), ..Told::default() };
    keeps.write(&mut lease);
    Told { pod: "db-1".into(), ..Told::default() }.write(&mut lease);
    assert_eq!(Told::read(&lease), Some(keeps), "another leads, and db-0 keeps it still");
    Told { pod: "db-0".into(), ..Told::default() }.write(&mut lease);
    assert_eq!(Told::read(&lease), None);
}
