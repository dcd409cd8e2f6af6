use std::time::Duration;

use super::super::lineage::{Database, Lineage, Reached};
use super::super::vote::Position;
use super::super::{Lsn, Master, SystemIdentifier};
use super::*;

const SYSTEM: SystemIdentifier = SystemIdentifier(7);

type Remembers = State<Duration>;

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn me() -> HolderIdentity {
    HolderIdentity { pod: "db-1".into(), uid: "u".into() }
}

fn version(number: u32) -> Version {
    Version::new("lease", &number.to_string())
}

fn database() -> Database {
    let reached = Reached { timeline: 1, begins: None, flushed: Some(Lsn(100)), stopped_at: None };
    Database { system: SYSTEM, reached: Some(reached) }
}

fn seen(number: u32, holder: Option<&str>) -> Seen {
    let voters = ["db-0", "db-1", "db-2"].map(str::to_owned).into();
    Seen {
        version: version(number),
        holder: holder.map(str::to_owned),
        record: Record { epoch: 4, voters, quorum: Quorum::default() },
        instance: None,
        successor: None,
        order_done: None,
    }
}

fn copy(standby: bool) -> DataState {
    DataState::Cluster { system: SYSTEM, standby, lineage: Lineage { timeline: 1, ..Lineage::default() } }
}

/// A replica that receives nothing any more, in a set without a master.
fn replica() -> Facts {
    let position = Some(Position { timeline: 1, at: Lsn(100) });
    Facts {
        me: me(),
        lease: Lease::Vacant { set: Some(database()) },
        seen: Some(seen(9, None)),
        data: copy(true),
        server: PostgresState::Replica { follows: None, stalled_lsn: None, receives: false, position },
        first: false,
        voted: Some(version(9)),
        gave_leave: false,
        fails_over: true,
        order: None,
        quorum: Quorum::default(),
        maximum_lag: 0,
        next_timeline: 2,
    }
}

/// A member that led and has stopped, in a set that it leads.
fn stopped_master() -> Facts {
    Facts {
        lease: Lease::Held { set: None },
        seen: Some(seen(9, Some("db-1/u"))),
        data: copy(false),
        server: PostgresState::Stopped,
        voted: None,
        ..replica()
    }
}

fn looks(state: &mut Remembers, facts: &Facts, now: Duration) -> Vec<Effect> {
    step(state, Event::Looked(Box::new(facts.clone())), now)
}

/// What it does next.
fn acts(state: &mut Remembers, facts: &Facts, now: Duration) -> Action {
    let decided = looks(state, facts, now).into_iter().find_map(|effect| match effect {
        Effect::Act(decision) => Some(decision.action),
        _ => None,
    });
    decided.unwrap()
}

fn order(text: &str) -> Order {
    Order::parse(text).unwrap()
}

fn failed(state: &mut Remembers, now: Duration) -> Vec<Effect> {
    step(state, Event::Ended(Ended::ServerFailed { was_starting_as_master: true }), now)
}

fn pauses(state: &Remembers, now: Duration) -> bool {
    state.pauses_until(now).is_some()
}

#[test]
fn a_server_that_was_killed_starts_again_at_once_and_one_that_fails_again_later() {
    let mut state = Remembers::default();
    assert_eq!(failed(&mut state, at(0)), [Effect::EndLeftovers]);
    assert!(pauses(&state, at(99)) && !pauses(&state, at(100)));
    failed(&mut state, at(100));
    assert!(pauses(&state, at(1400)) && !pauses(&state, at(1500)));
    let _ = step(&mut state, Event::Leads, at(2000));
    failed(&mut state, at(3000));
    assert!(!pauses(&state, at(3100)), "it has led in between");
}

#[test]
fn a_pause_never_exceeds_fifteen_seconds() {
    let mut state = Remembers::default();
    for _ in 0..99 {
        failed(&mut state, at(0));
    }
    assert!(pauses(&state, at(14_999)) && !pauses(&state, at(15_000)));
}

#[test]
fn after_three_failed_starts_others_go_first_and_then_one_more_is_tried_at_a_time() {
    let mut state = Remembers::default();
    for _ in 0..2 {
        assert_eq!(failed(&mut state, at(0)), [Effect::EndLeftovers]);
        assert_eq!(acts(&mut state, &stopped_master(), at(0)), Action::StartMaster);
    }
    assert_eq!(failed(&mut state, at(0)), [Effect::EndLeftovers, Effect::GiveUpStarting]);
    assert_eq!(acts(&mut state, &stopped_master(), at(0)), Action::ReleaseLease(Waiting::DoesNotStart));
    assert_eq!(acts(&mut state, &stopped_master(), at(30_000)), Action::StartMaster, "a person may have mended it");
    failed(&mut state, at(30_000));
    assert_eq!(acts(&mut state, &stopped_master(), at(30_000)), Action::ReleaseLease(Waiting::DoesNotStart));
}

#[test]
fn a_standby_that_fails_is_no_failed_start_as_the_master() {
    let mut state = Remembers::default();
    for _ in 0..5 {
        let ended = Ended::ServerFailed { was_starting_as_master: false };
        assert_eq!(step(&mut state, Event::Ended(ended), at(0)), [Effect::EndLeftovers]);
    }
    assert_eq!(acts(&mut state, &stopped_master(), at(0)), Action::StartMaster);
}

#[test]
fn data_on_which_no_server_starts_after_a_rewind_is_given_up_and_other_data_is_not() {
    let master = Master {
        pod: "db-0".into(),
        address: "10.0.0.1".into(),
        port: 5432,
        system: SYSTEM,
        timeline: 2,
        oldest_wal: None,
        begins: None,
    };
    let facts = Facts {
        lease: Lease::HeldByOther { master: Some(master.clone()) },
        seen: Some(seen(10, Some("db-0/u"))),
        server: PostgresState::Stopped,
        voted: None,
        ..replica()
    };
    for (is_rewound, expected) in
        [(true, Action::Reinitialize(master.clone())), (false, Action::StartReplica(master.clone()))]
    {
        let mut state = Remembers::default();
        if is_rewound {
            let _ = step(&mut state, Event::Ended(Ended::Rewound), at(0));
        }
        for _ in 0..3 {
            assert_eq!(acts(&mut state, &facts, at(0)), Action::StartReplica(master.clone()));
            let _ = step(&mut state, Event::Ended(Ended::ServerFailed { was_starting_as_master: false }), at(0));
        }
        assert_eq!(acts(&mut state, &facts, at(0)), expected);
        let _ = step(&mut state, Event::Ended(Ended::Cloned), at(0));
        assert_eq!(acts(&mut state, &facts, at(0)), Action::StartReplica(master.clone()));
    }
}

#[test]
fn a_server_that_somebody_stopped_is_let_be_for_a_while_unless_he_starts_it_again() {
    let mut state = Remembers::default();
    assert_eq!(step(&mut state, Event::Ended(Ended::ServerStopped), at(0)), []);
    assert_eq!(acts(&mut state, &stopped_master(), at(9_999)), Action::Wait(Waiting::ForPodTermination));
    assert_eq!(acts(&mut state, &stopped_master(), at(10_000)), Action::StartMaster);
    let _ = step(&mut state, Event::Ended(Ended::ServerStopped), at(20_000));
    let _ = step(&mut state, Event::OthersStarted, at(20_100));
    assert_eq!(acts(&mut state, &stopped_master(), at(20_100)), Action::StartMaster);
}

fn ballot(number: u32) -> Ballot {
    Ballot { version: version(number), position: Position { timeline: 1, at: Lsn(90) } }
}

#[test]
fn a_candidate_is_promised_a_vote_first_and_hears_when_nothing_is_received_any_more() {
    let mut state = Remembers::default();
    let _ = step(&mut state, Event::Asked(1, ballot(9)), at(0));
    let receives = |receives| PostgresState::Replica {
        follows: None,
        stalled_lsn: None,
        receives,
        position: Some(Position { timeline: 1, at: Lsn(100) }),
    };
    let first = looks(&mut state, &Facts { voted: None, server: receives(true), ..replica() }, at(10));
    assert!(first.contains(&Effect::Promise(version(9))), "{first:?}");
    let second = looks(&mut state, &Facts { server: receives(true), ..replica() }, at(20));
    assert!(!second.iter().any(|effect| matches!(effect, Effect::Answer { .. })), "{second:?}");
    let third = looks(&mut state, &replica(), at(30));
    let granted = Answer::Granted(Position { timeline: 1, at: Lsn(100) });
    assert_eq!(third[0], Effect::Answer { number: 1, answer: Some(granted) });
    assert!(!state.candidacy.is_asked());
}

#[test]
fn a_candidate_that_can_be_promised_nothing_hears_so_when_its_time_is_over() {
    let mut state = Remembers::default();
    let _ = step(&mut state, Event::Asked(1, ballot(8)), at(0));
    let answers = |effects: Vec<Effect>| effects.into_iter().find(|effect| matches!(effect, Effect::Answer { .. }));
    assert_eq!(answers(looks(&mut state, &replica(), at(699))), None, "another look may be enough");
    let refused = Answer::Refused(super::super::vote::Refusal::OtherLease);
    assert_eq!(
        answers(looks(&mut state, &replica(), at(700))),
        Some(Effect::Answer { number: 1, answer: Some(refused) })
    );
}

#[test]
fn a_candidate_that_may_not_lead_asks_again_after_a_while() {
    let mut state = Remembers::default();
    let facts = Facts {
        server: PostgresState::Replica {
            follows: None,
            stalled_lsn: None,
            receives: false,
            position: Some(Position { timeline: 1, at: Lsn(50) }),
        },
        ..replica()
    };
    let asks = |action: &Action| matches!(action, Action::AskForVotes(_));
    assert!(asks(&acts(&mut state, &facts, at(0))));
    assert_eq!(acts(&mut state, &facts, at(5)), Action::Stay, "they are being asked");
    let _ = step(&mut state, Event::Answered(BTreeMap::new()), at(10));
    assert!(matches!(acts(&mut state, &facts, at(20)), Action::Wait(Waiting::ForVotes(_))));
    assert!(asks(&acts(&mut state, &facts, at(510))));
}

#[test]
fn whoever_was_handed_the_set_is_let_go_first_and_not_for_ever() {
    let mut state = Remembers::default();
    let named = Seen { successor: Some("db-2".into()), ..seen(9, None) };
    let facts = Facts { seen: Some(named.clone()), ..replica() };
    assert_eq!(acts(&mut state, &facts, at(0)), Action::Wait(Waiting::ForSuccessor("db-2".into())));
    assert_eq!(acts(&mut state, &facts, at(2_999)), Action::Wait(Waiting::ForSuccessor("db-2".into())));
    assert!(!matches!(acts(&mut state, &facts, at(3_000)), Action::Wait(_)));
    let me_too = Facts { seen: Some(Seen { successor: Some("db-1".into()), ..named }), ..replica() };
    assert!(!matches!(acts(&mut Remembers::default(), &me_too, at(0)), Action::Wait(_)), "it is the one");
}

fn streams(pod: &str, behind: u64) -> Streaming {
    Streaming { pod: pod.into(), behind }
}

fn ordered(text: &str, streaming: &[Streaming]) -> Event {
    Event::Ordered { order: order(text), others: vec!["db-0".into(), "db-2".into()], streaming: streaming.to_vec() }
}

#[test]
fn a_master_that_has_handed_over_waits_for_its_successor_until_somebody_leads() {
    let mut state = Remembers::default();
    let _ = step(&mut state, ordered("db-2", &[streams("db-2", 0)]), at(0));
    let _ = step(&mut state, Event::HandedOver, at(0));
    let vacant =
        Facts { lease: Lease::Vacant { set: Some(database()) }, seen: Some(seen(10, None)), ..stopped_master() };
    let waits = Action::Wait(Waiting::ForSuccessor("db-2".into()));
    assert_eq!(acts(&mut state, &vacant, at(4_999)), waits);
    assert!(matches!(acts(&mut state, &vacant, at(5_000)), Action::TakeLease(_)));

    let _ = step(&mut state, Event::HandedOver, at(10_000));
    assert_eq!(acts(&mut state, &vacant, at(10_001)), waits);
    let led =
        Facts { lease: Lease::HeldByOther { master: None }, seen: Some(seen(11, Some("db-2/u"))), ..stopped_master() };
    acts(&mut state, &led, at(10_100));
    assert!(matches!(acts(&mut state, &vacant, at(10_200)), Action::TakeLease(_)), "the next vacancy is another one");
}

#[test]
fn an_order_is_followed_once_and_a_new_one_again() {
    let mut state = Remembers::default();
    let text = order("db-2");
    assert_eq!(state.handover.order(Some(&text), None), Some(text.clone()));
    let followed = step(&mut state, ordered("db-2", &[streams("db-2", 0)]), at(0));
    assert_eq!(followed, [Effect::HandOver { to: "db-2".into() }]);
    assert_eq!(state.handover.order(Some(&text), None), None);
    let next = order("db-2 again");
    assert_eq!(state.handover.order(Some(&next), Some(&text.text)), Some(next.clone()));
    assert_eq!(state.handover.order(Some(&next), Some(&next.text)), None, "another master has seen to it");
}

#[test]
fn an_order_that_can_not_be_followed_waits_for_what_may_pass_and_is_refused_then() {
    let mut state = Remembers::default();
    assert_eq!(step(&mut state, ordered("db-2", &[]), at(0)), []);
    assert_eq!(step(&mut state, ordered("db-2", &[]), at(4_999)), []);
    let refused = step(&mut state, ordered("db-2", &[]), at(5_000));
    assert!(matches!(refused[..], [Effect::RefuseOrder { .. }]), "{refused:?}");
    assert_eq!(state.handover.done(Some(&order("db-2"))), Some("db-2".to_owned()));
    let stranger = step(&mut state, ordered("db-7", &[]), at(6_000));
    assert!(matches!(stranger[..], [Effect::RefuseOrder { .. }]), "no time makes it a member: {stranger:?}");
}

#[test]
fn a_member_that_took_the_lease_while_an_order_named_it_has_followed_that() {
    let mut state = Remembers::default();
    let named = order("db-1");
    let facts = Facts { order: Some(named.clone()), ..replica() };
    let vacant = Facts { data: copy(false), server: PostgresState::Stopped, voted: None, ..facts };
    assert!(matches!(acts(&mut state, &vacant, at(0)), Action::TakeLease(_)));
    let any = order("any");
    assert!(state.handover.is_followed(&named, "db-1"));
    assert!(!state.handover.is_followed(&any, "db-1"), "that is another one");
}

#[test]
fn without_failover_only_a_member_that_an_order_names_stands() {
    let manual = Facts { fails_over: false, ..replica() };
    assert_eq!(acts(&mut Remembers::default(), &manual, at(0)), Action::Wait(Waiting::ForFailover));
    let other = Facts { order: Some(order("db-2")), ..manual.clone() };
    assert_eq!(acts(&mut Remembers::default(), &other, at(0)), Action::Wait(Waiting::ForFailover));
    for text in ["db-1", "any"] {
        let named = Facts { order: Some(order(text)), ..manual.clone() };
        assert!(matches!(acts(&mut Remembers::default(), &named, at(0)), Action::AskForVotes(_)), "{text}");
    }
}

#[test]
fn what_is_decided_names_the_leadership_that_it_was_decided_by() {
    let decision = |facts: &Facts| {
        let effects = looks(&mut Remembers::default(), facts, at(0));
        effects.into_iter().find_map(|effect| if let Effect::Act(decision) = effect { Some(decision) } else { None })
    };
    let leads = decision(&stopped_master()).unwrap();
    assert_eq!(leads.epoch(), Some(Epoch::new(&version(9), 4)));
    let stands = decision(&replica()).unwrap();
    assert_eq!((stands.version(), stands.epoch()), (Some(&version(9)), None));
}

#[test]
fn a_member_that_waits_is_nobodys_master_and_a_replica_that_waits_can_be_read() {
    let stopped = |action| stale_label(&action, &PostgresState::Stopped);
    for action in [
        Action::Wait(Waiting::HalfRewound),
        Action::Wait(Waiting::ForMaster),
        Action::ReleaseLease(Waiting::DataLost),
        Action::Fence,
    ] {
        assert_eq!(stopped(action.clone()), Some(Effect::TakeLabelOff { soon: false }), "{action:?}");
    }
    let waits = looks(&mut Remembers::default(), &replica(), at(0));
    assert!(waits.contains(&Effect::TakeLabelOff { soon: true }), "{waits:?}");
}

#[test]
fn a_master_that_starts_anew_keeps_its_label() {
    let taking = super::super::lease_record::Taking::default();
    for action in [Action::Wait(Waiting::ForLease), Action::TakeLease(taking), Action::StartMaster, Action::Stay] {
        assert_eq!(stale_label(&action, &PostgresState::Stopped), None, "{action:?}");
    }
}

#[test]
fn what_commits_waited_for_in_one_leadership_says_nothing_of_the_next() {
    let mut state = Remembers::default();
    state.commits.taken_with = Some(Quorum { names: ["db-2".to_owned()].into(), confirm: 1 });
    state.commits.confirmations(1, false, 0, at(0));
    assert_eq!(state.commits.confirmations(1, false, 0, at(10_000)), 0);
    let _ = step(&mut state, Event::Leads, at(10_000));
    assert_eq!(state.commits.taken_with, None);
    assert_eq!(state.commits.confirmations(1, false, 0, at(10_000)), 1);
}

#[test]
fn a_member_that_is_asked_to_end_does_what_its_server_needs() {
    let end = |server, leads, streaming: &[Streaming]| {
        let (set, me) = ("db".to_owned(), "db-1".to_owned());
        stop(&mut Remembers::default(), &Stopping { server, leads, set, me, streaming: streaming.to_vec() })
    };
    let both = [streams("db-0", 0), streams("db-2", 0)];
    assert_eq!(end(PostgresState::Master, true, &both), End::StopMaster { successor: Some("db-2".into()) });
    assert_eq!(end(PostgresState::Master, true, &[]), End::StopMaster { successor: None });
    assert_eq!(end(PostgresState::Master, false, &both), End::StopMaster { successor: None }, "it names nobody");
    assert_eq!(end(replica().server, false, &[]), End::StopStandby);
    assert_eq!(end(PostgresState::Bootstrapping, true, &[]), End::Leave);
    assert_eq!(end(PostgresState::Stopped, true, &[]), End::SayHowFar);
    assert_eq!(end(PostgresState::Stopped, false, &[]), End::Nothing);
}
