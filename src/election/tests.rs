//! Each test is one sentence about who leads (docs/rules.md, 12 to 15).

use proptest::prelude::*;

use super::candidate::Standing;
use super::lease_record::Taking;
use super::*;

const SET: SystemIdentifier = SystemIdentifier(7_000_000_000_000_000_001);
const STRANGER: SystemIdentifier = SystemIdentifier(7_000_000_000_000_000_002);

/// The set, as a Lease of 0.1.0 knows it.
const KNOWN: Option<Database> = Some(Database { system: SET, reached: None });

fn at(timeline: u32, flushed: u64) -> Database {
    let reached = lineage::Reached { timeline, begins: None, flushed: Some(Lsn(flushed)), stopped_at: None };
    Database { system: SET, reached: Some(reached) }
}

fn on(timeline: u32) -> Lineage {
    Lineage { timeline, ..Lineage::default() }
}

fn master() -> Master {
    Master {
        pod: "pgset-0".into(),
        address: "198.18.0.10".into(),
        port: 5432,
        system: SET,
        timeline: 1,
        oldest_wal: Some(Lsn(1000)),
        begins: None,
    }
}

fn stopped(lease: Lease, data: DataState, first: bool) -> Action {
    decide(&Observation { lease, data, server: PostgresState::Stopped, first, standing: Standing::default() })
}

fn replica(stalled_lsn: Option<Lsn>) -> PostgresState {
    PostgresState::Replica { follows: Some(master()), stalled_lsn, receives: true, position: None }
}

fn was_master() -> DataState {
    DataState::Cluster { system: SET, standby: false, lineage: on(1) }
}

fn was_replica() -> DataState {
    DataState::Cluster { system: SET, standby: true, lineage: on(1) }
}

#[test]
fn the_first_member_of_a_new_set_takes_the_lease_and_bootstraps() {
    assert_eq!(stopped(Lease::Vacant { set: None }, DataState::Empty, true), Action::TakeLease(Taking::default()));
    assert_eq!(stopped(Lease::Held { set: None }, DataState::Empty, true), Action::Bootstrap);
}

#[test]
fn any_other_member_of_a_new_set_waits_and_then_clones() {
    assert_eq!(stopped(Lease::Vacant { set: None }, DataState::Empty, false), Action::Wait(Waiting::ForFirstMember));
    assert_eq!(
        stopped(Lease::HeldByOther { master: None }, DataState::Empty, false),
        Action::Wait(Waiting::ForMasterToStart)
    );
    assert_eq!(
        stopped(Lease::HeldByOther { master: Some(master()) }, DataState::Empty, false),
        Action::Clone(master())
    );
}

#[test]
fn an_adopted_member_with_data_leads_only_if_it_is_the_first() {
    assert_eq!(stopped(Lease::Vacant { set: None }, was_master(), true), Action::TakeLease(Taking::default()));
    assert_eq!(stopped(Lease::Held { set: None }, was_master(), true), Action::StartMaster);
    assert_eq!(stopped(Lease::Vacant { set: None }, was_master(), false), Action::Wait(Waiting::ForFirstMember));
}

#[test]
fn a_master_that_returns_leads_whatever_its_ordinal() {
    assert_eq!(stopped(Lease::Vacant { set: KNOWN }, was_master(), false), Action::TakeLease(Taking::default()));
    assert_eq!(stopped(Lease::Held { set: KNOWN }, was_master(), false), Action::StartMaster);
}

#[test]
fn a_replica_that_returns_follows_and_never_leads() {
    assert_eq!(
        stopped(Lease::HeldByOther { master: Some(master()) }, was_replica(), true),
        Action::StartReplica(master())
    );
    assert_eq!(stopped(Lease::Vacant { set: KNOWN }, was_replica(), true), Action::Wait(Waiting::ForMaster));
    assert_eq!(stopped(Lease::Held { set: KNOWN }, was_replica(), true), Action::ReleaseLease(Waiting::ForMaster));
}

#[test]
fn a_lost_volume_is_never_replaced_by_an_empty_database() {
    for first in [true, false] {
        assert_eq!(stopped(Lease::Vacant { set: KNOWN }, DataState::Empty, first), Action::Wait(Waiting::DataLost));
        assert_eq!(
            stopped(Lease::Held { set: KNOWN }, DataState::Empty, first),
            Action::ReleaseLease(Waiting::DataLost)
        );
    }
}

#[test]
fn data_of_another_database_is_left_alone() {
    let strange = DataState::Cluster { system: STRANGER, standby: false, lineage: on(1) };
    let refusal = Waiting::OtherDatabase { found: STRANGER, expected: SET };
    assert_eq!(stopped(Lease::Vacant { set: KNOWN }, strange.clone(), true), Action::Wait(refusal.clone()));
    assert_eq!(stopped(Lease::Held { set: KNOWN }, strange.clone(), true), Action::ReleaseLease(refusal.clone()));
    assert_eq!(stopped(Lease::HeldByOther { master: Some(master()) }, strange, true), Action::Wait(refusal));
}

#[test]
fn a_vacant_lease_is_not_taken_unread() {
    let older = Waiting::Diverged(Divergence::OlderTimeline { found: 1, reached: 2 });
    for first in [true, false] {
        assert_eq!(stopped(Lease::Vacant { set: Some(at(2, 9)) }, was_master(), first), Action::Wait(older.clone()));
        assert_eq!(
            stopped(Lease::Held { set: Some(at(2, 9)) }, was_master(), first),
            Action::ReleaseLease(older.clone())
        );
        assert_eq!(
            stopped(Lease::Vacant { set: Some(at(1, 9)) }, was_master(), first),
            Action::TakeLease(Taking::default())
        );
        assert_eq!(stopped(Lease::Held { set: Some(at(1, 9)) }, was_master(), first), Action::StartMaster);
    }
}

#[test]
fn a_member_that_was_promoted_by_hand_leads_where_the_set_went_on_with_it_and_the_old_master_does_not() {
    let branches = vec![lineage::Branch { timeline: 1, left_at: Lsn(100) }];
    let promoted = DataState::Cluster { system: SET, standby: false, lineage: Lineage { branches, ..on(2) } };
    assert_eq!(
        stopped(Lease::Vacant { set: Some(at(1, 100)) }, promoted.clone(), false),
        Action::TakeLease(Taking::default())
    );
    let lacks = Waiting::Diverged(Divergence::OtherHistory { found: 2, reached: 1 });
    assert_eq!(
        stopped(Lease::Vacant { set: Some(at(1, 101)) }, promoted, false),
        Action::Wait(lacks),
        "the master had come further"
    );
}

#[test]
fn of_a_lease_that_knows_no_database_a_first_member_that_is_a_replica_names_it_and_its_master_leads() {
    assert_eq!(stopped(Lease::Vacant { set: None }, was_replica(), true), Action::TakeLease(Taking::default()));
    let named = Database { system: SET, reached: Some(on(1).reached()) };
    assert_eq!(stopped(Lease::Held { set: None }, was_replica(), true), Action::NameDatabase(named));
    let named = Lease::Vacant { set: Some(named) };
    assert_eq!(stopped(named.clone(), was_replica(), true), Action::Wait(Waiting::ForMaster));
    assert_eq!(stopped(named.clone(), was_master(), false), Action::TakeLease(Taking::default()));
    assert_eq!(stopped(named, DataState::Empty, false), Action::Wait(Waiting::DataLost));
}

#[test]
fn a_way_out_is_told_where_the_lease_keeps_a_set_from_what_somebody_wants() {
    let told = |lease, waiting, first| {
        let observation = Observation {
            lease,
            data: DataState::Empty,
            server: PostgresState::Stopped,
            first,
            standing: Standing::default(),
        };
        way_out::way_out(&waiting, &observation, "shop", "pgset-leader").unwrap_or_default()
    };
    let command = "kubectl --namespace shop delete lease pgset-leader";
    let vacant = Lease::Vacant { set: KNOWN };
    assert!(told(vacant.clone(), Waiting::DataLost, false).contains(command));
    let strange = Waiting::OtherDatabase { found: STRANGER, expected: SET };
    let diverged = Waiting::Diverged(Divergence::OlderTimeline { found: 1, reached: 2 });
    for waiting in [strange, diverged] {
        assert!(told(vacant.clone(), waiting.clone(), true).contains(command), "{waiting}");
        assert!(
            !told(vacant.clone(), waiting.clone(), false).contains(command),
            "only the first brings another: {waiting}"
        );
        let led = Lease::HeldByOther { master: Some(master()) };
        assert_eq!(told(led, waiting, true), "", "the set has a master");
    }
    assert_eq!(told(vacant, Waiting::ForMaster, true), "");
}

fn promoted() -> Master {
    Master { pod: "pgset-1".into(), address: "198.18.0.11".into(), timeline: 2, ..master() }
}

fn led_by(master: Master) -> Lease {
    Lease::HeldByOther { master: Some(master) }
}

fn half_rewound() -> DataState {
    DataState::HalfRewound { system: SET }
}

#[test]
fn a_former_master_is_rewound_to_follow_the_present_one_whatever_its_ordinal() {
    for first in [true, false] {
        assert_eq!(stopped(led_by(promoted()), was_master(), first), Action::Rewind(promoted()));
        assert_eq!(
            stopped(Lease::HeldByOther { master: None }, was_master(), first),
            Action::Wait(Waiting::ForMasterToStart)
        );
    }
    let further = DataState::Cluster { system: SET, standby: false, lineage: on(3) };
    assert_eq!(stopped(led_by(promoted()), further, false), Action::Rewind(promoted()), "promoted apart from the set");
}

#[test]
fn two_members_that_wrote_one_timeline_are_not_told_apart_by_a_rewind() {
    assert_eq!(stopped(led_by(master()), was_master(), true), Action::Reinitialize(master()));
    assert_eq!(anew::Anew::of(&was_master(), &master()), anew::Anew::Collision { timeline: 1 });
    assert_eq!(stopped(led_by(master()), was_replica(), true), Action::StartReplica(master()), "it wrote nothing");
}

#[test]
fn data_that_no_rewind_helps_is_cloned_anew_and_leads_as_it_would_without_a_master() {
    let lineage = |timeline| Lineage { unrewindable: Some("no checksums".into()), ..on(timeline) };
    for standby in [false, true] {
        let data = DataState::Cluster { system: SET, standby, lineage: lineage(1) };
        assert_eq!(stopped(led_by(promoted()), data.clone(), false), Action::Reinitialize(promoted()));
        assert!(anew::Anew::of(&data, &promoted()).to_string().contains("no checksums"));
    }
    let data = DataState::Cluster { system: SET, standby: false, lineage: lineage(1) };
    assert_eq!(stopped(Lease::Vacant { set: Some(at(1, 9)) }, data, false), Action::TakeLease(Taking::default()));
}

#[test]
fn data_whose_rewind_was_broken_off_is_cloned_anew_and_never_leads() {
    assert_eq!(stopped(led_by(promoted()), half_rewound(), true), Action::Reinitialize(promoted()));
    let strange = Waiting::OtherDatabase { found: SET, expected: STRANGER };
    let stranger = Master { system: STRANGER, ..promoted() };
    assert_eq!(stopped(led_by(stranger), half_rewound(), true), Action::Wait(strange));
    for set in [None, KNOWN, Some(at(1, 9))] {
        assert_eq!(stopped(Lease::Vacant { set }, half_rewound(), true), Action::Wait(Waiting::HalfRewound));
        assert_eq!(stopped(Lease::Held { set }, half_rewound(), true), Action::ReleaseLease(Waiting::HalfRewound));
    }
}

#[test]
fn a_rewind_is_broken_off_when_the_master_is_another_one() {
    let seen = |lease| {
        decide(&Observation {
            lease,
            data: was_master(),
            server: PostgresState::Rewinding { from: promoted() },
            first: true,
            standing: Standing::default(),
        })
    };
    let more_wal_is_gone = Master { oldest_wal: Some(Lsn(5000)), ..promoted() };
    for lease in [led_by(promoted()), led_by(more_wal_is_gone), Lease::Unknown, Lease::Vacant { set: KNOWN }] {
        assert_eq!(seen(lease), Action::Stay);
    }
    assert_eq!(seen(led_by(Master { address: "198.18.0.12".into(), ..promoted() })), Action::AbandonClone);
    assert_eq!(seen(led_by(Master { timeline: 3, ..promoted() })), Action::AbandonClone);
}

#[test]
fn a_pod_made_anew_waits_for_the_lease_of_the_earlier_one() {
    for data in [DataState::Empty, was_master(), was_replica()] {
        assert_eq!(stopped(Lease::HeldByPreviousPod, data, true), Action::Wait(Waiting::ForPredecessor));
    }
}

#[test]
fn a_replica_follows_a_master_whose_address_changed() {
    let moved = Master { address: "198.18.0.99".into(), ..master() };
    let replica = replica(None);
    let seen = |lease| {
        decide(&Observation {
            lease,
            data: was_replica(),
            server: replica.clone(),
            first: false,
            standing: Standing::default(),
        })
    };
    assert_eq!(seen(Lease::HeldByOther { master: Some(moved.clone()) }), Action::Follow(moved));
    assert_eq!(seen(Lease::HeldByOther { master: Some(master()) }), Action::Stay);
    assert_eq!(seen(Lease::Vacant { set: KNOWN }), Action::Wait(Waiting::ForMaster));
}

#[test]
fn a_replica_whose_wal_is_gone_from_the_master_is_cloned_anew() {
    let seen = |stalled_lsn| {
        let server = replica(stalled_lsn);
        decide(&Observation {
            lease: Lease::HeldByOther { master: Some(master()) },
            data: was_replica(),
            server,
            first: false,
            standing: Standing::default(),
        })
    };
    assert_eq!(seen(Some(Lsn(999))), Action::Reinitialize(master()));
    assert_eq!(seen(Some(Lsn(1000))), Action::Stay, "the master still has what this one needs");
    assert_eq!(seen(None), Action::Stay, "it streams, or an archive may have what the master has not");
}

#[test]
fn the_agent_fences_first_then_the_fencer_and_only_then_may_another_lead() {
    for seconds in 4..=60 {
        let times = lease_record::LeaseTimings::of_seconds(seconds);
        // The agent needs milliseconds to stop PostgreSQL, and the kernel to end what was killed.
        let margin = std::time::Duration::from_millis(600);
        assert!(times.fence_after() + margin <= times.kill_after(), "{times:?}");
        assert!(times.kill_after() + margin <= times.duration, "{times:?}");
    }
}

#[test]
fn a_replica_neither_follows_nor_clones_a_master_of_another_database() {
    let elsewhere = Master { address: "198.18.0.99".into(), system: STRANGER, ..master() };
    for stalled_lsn in [None, Some(Lsn(999))] {
        let seen = decide(&Observation {
            lease: Lease::HeldByOther { master: Some(elsewhere.clone()) },
            data: was_replica(),
            server: replica(stalled_lsn),
            first: false,
            standing: Standing::default(),
        });
        assert_eq!(seen, Action::Wait(Waiting::OtherDatabase { found: SET, expected: STRANGER }));
    }
}

#[test]
fn a_clone_of_another_database_than_the_leases_is_abandoned() {
    let seen = |system| {
        decide(&Observation {
            lease: Lease::HeldByOther { master: Some(Master { system, ..master() }) },
            data: DataState::Empty,
            server: PostgresState::Cloning { from: master() },
            first: false,
            standing: Standing::default(),
        })
    };
    assert_eq!(seen(SET), Action::Stay);
    assert_eq!(seen(STRANGER), Action::AbandonClone);
}

#[test]
fn a_server_stopped_by_a_hook_of_the_pod_is_not_started_again() {
    let observation = Observation {
        lease: Lease::Held { set: KNOWN },
        data: was_master(),
        server: PostgresState::StoppedExternally,
        first: true,
        standing: Standing::default(),
    };
    assert_eq!(decide(&observation), Action::Wait(Waiting::ForPodTermination));
}

proptest! {
    #[test]
    fn a_replica_that_was_promoted_by_hand_is_fenced_whoever_leads(lease in leases(), data in data(), first: bool) {
        prop_assert_eq!(decide(&Observation { lease, data, server: PostgresState::Promoted, first, standing: Standing::default() }), Action::Fence);
    }
}

fn leases() -> impl Strategy<Value = Lease> {
    let set = prop_oneof![
        Just(None),
        Just(KNOWN),
        Just(Some(at(1, 5))),
        Just(Some(at(2, 5))),
        Just(Some(Database { system: STRANGER, reached: None }))
    ];
    prop_oneof![
        Just(Lease::Unknown),
        set.clone().prop_map(|set| Lease::Vacant { set }),
        set.prop_map(|set| Lease::Held { set }),
        Just(Lease::HeldByPreviousPod),
        Just(Lease::HeldByOther { master: None }),
        Just(Lease::HeldByOther { master: Some(master()) }),
        Just(Lease::HeldByOther { master: Some(promoted()) }),
    ]
}

fn data() -> impl Strategy<Value = DataState> {
    let system = prop_oneof![Just(SET), Just(STRANGER)];
    prop_oneof![
        Just(DataState::Empty),
        Just(DataState::Unusable("it is locked".into())),
        Just(half_rewound()),
        (system, any::<bool>(), 1..4_u32).prop_map(|(system, standby, timeline)| DataState::Cluster {
            system,
            standby,
            lineage: on(timeline)
        }),
    ]
}

fn servers() -> impl Strategy<Value = PostgresState> {
    prop_oneof![
        Just(PostgresState::Stopped),
        Just(PostgresState::StoppedExternally),
        Just(PostgresState::Bootstrapping),
        Just(PostgresState::Cloning { from: master() }),
        Just(PostgresState::Rewinding { from: promoted() }),
        Just(PostgresState::Master),
        Just(PostgresState::Promoted),
        Just(replica(None)),
        Just(replica(Some(Lsn(1)))),
    ]
}

proptest! {
    #[test]
    fn nothing_writable_is_started_or_kept_without_the_lease(lease in leases(), data in data(), server in servers(), first: bool) {
        let mine = matches!(lease, Lease::Held { .. });
        let action = decide(&Observation { lease, data, server: server.clone(), first, standing: Standing::default() });
        if !mine {
            prop_assert!(!matches!(action, Action::Bootstrap | Action::StartMaster));
            if matches!(server, PostgresState::Master | PostgresState::Promoted | PostgresState::Bootstrapping) {
                prop_assert_eq!(action, Action::Fence);
            }
        }
    }

    #[test]
    fn data_is_written_over_only_where_there_is_none(lease in leases(), data in data(), first: bool) {
        let action = stopped(lease, data.clone(), first);
        if matches!(action, Action::Bootstrap | Action::Clone(_)) {
            prop_assert_eq!(data, DataState::Empty);
        }
    }

    #[test]
    fn only_a_copy_of_the_masters_own_database_is_replaced(lease in leases(), data in data(), server in servers(), first: bool) {
        if let Action::Reinitialize(master) | Action::Rewind(master) =
            decide(&Observation { lease, data: data.clone(), server, first, standing: Standing::default() })
        {
            let (DataState::Cluster { system, .. } | DataState::HalfRewound { system }) = data else {
                return Err(TestCaseError::fail("there is none"));
            };
            let is_the_same = system == master.system;
            prop_assert!(is_the_same);
        }
    }

    #[test]
    fn only_a_vacant_lease_is_asked_for(lease in leases(), data in data(), server in servers(), first: bool) {
        let vacant = matches!(lease, Lease::Vacant { .. });
        let action = decide(&Observation { lease, data, server, first, standing: Standing::default() });
        prop_assert!(vacant || !matches!(action, Action::TakeLease(_)));
    }

    #[test]
    fn a_database_is_made_only_where_the_set_has_none(lease in leases(), data in data(), server in servers(), first: bool) {
        let knows_none = matches!(lease, Lease::Held { set: None });
        let action = decide(&Observation { lease, data, server, first, standing: Standing::default() });
        prop_assert!(knows_none || !matches!(action, Action::Bootstrap | Action::NameDatabase(_)));
    }

    #[test]
    fn a_master_starts_only_on_data_that_goes_on_from_where_the_set_is(lease in leases(), data in data(), first: bool) {
        let action = stopped(lease.clone(), data.clone(), first);
        if let (Lease::Held { set: Some(set) }, DataState::Cluster { system, standby, lineage }) = (lease, data)
            && action == Action::StartMaster
        {
            prop_assert_eq!(system, set.system);
            prop_assert!(!standby && set.reached.is_none_or(|reached| lineage.continues(&reached).is_ok()));
        }
    }
}

#[test]
fn a_master_whose_server_does_not_start_lets_others_lead_if_there_are_any() {
    let set = Some(Database { system: SystemIdentifier(7), reached: None });
    let data = DataState::Cluster {
        system: SystemIdentifier(7),
        standby: false,
        lineage: Lineage { timeline: 1, ..Lineage::default() },
    };
    let decided = |lease: Lease, voters: &[&str]| {
        let record =
            vote::Record { voters: voters.iter().map(|&voter| voter.to_owned()).collect(), ..vote::Record::default() };
        let standing = Standing { me: "db-0".into(), fails_to_start: true, record, ..Standing::default() };
        decide(&Observation { lease, data: data.clone(), server: PostgresState::Stopped, first: true, standing })
    };
    assert_eq!(decided(Lease::Held { set }, &["db-0", "db-1"]), Action::ReleaseLease(Waiting::DoesNotStart));
    assert_eq!(decided(Lease::Vacant { set }, &["db-0", "db-1"]), Action::Wait(Waiting::DoesNotStart));
    assert_eq!(decided(Lease::Held { set }, &["db-0"]), Action::StartMaster, "there is nobody else");
}
