use serde_json::json;

use super::*;
use crate::{
    cli::{
        check::sets::tests::{bare, injected, member},
        status::{
            lease::Holder,
            rows::{Role, State},
        },
    },
    election::members::Connection,
    inject::{self, Outcome, Request, Settings},
    names::annotation,
};

/// Noon; what is told of ages is counted from here.
const NOW: &str = "2026-05-04T12:00:00Z";

fn set(replicas: u32) -> Value {
    let mut object = injected("db");
    object["metadata"]["uid"] = json!("set");
    object["spec"]["replicas"] = json!(replicas);
    object["status"] = json!({"readyReplicas": replicas});
    object
}

fn pod(ordinal: u32, role: &str, is_ready: bool) -> Value {
    let mut pod = member("db", ordinal, role, is_ready);
    pod["metadata"]["uid"] = json!(format!("uid-{ordinal}"));
    pod["status"]["phase"] = json!("Running");
    pod["status"]["startTime"] = json!("2026-05-04T09:00:00Z");
    pod
}

/// A Lease that db-0 renewed a second ago.
fn lease(members: &Value) -> Value {
    json!({
        "metadata": {"name": "db-leader", "namespace": "shop", "annotations": {
            "pgset.dev/address": "198.18.0.5", "pgset.dev/port": "5432", "pgset.dev/system-identifier": "7",
            "pgset.dev/timeline": "3", "pgset.dev/flushed": "0/5000000", "pgset.dev/members": members.to_string(),
        }},
        "spec": {"holderIdentity": "db-0/uid-0", "leaseDurationSeconds": 6, "leaseTransitions": 4,
            "acquireTime": "2026-05-04T11:00:00.000000Z", "renewTime": "2026-05-04T11:59:59.000000Z"},
    })
}

fn streams(pod: &str) -> Value {
    json!({"pod": pod, "state": "streaming", "flushed": "0/5000000", "replayed": "0/5000000", "synchronous": true, "lag": 0})
}

fn three() -> Facts {
    Facts {
        object: set(3),
        pods: Ok(vec![pod(0, "master", true), pod(1, "replica", true), pod(2, "replica", true)]),
        lease: Ok(lease(&json!([streams("db-1"), streams("db-2")]))),
        events: Ok(vec![]),
        now: NOW.parse().unwrap(),
        heard: None,
    }
}

fn event(reason: &str, at: &str) -> Value {
    json!({
        "regarding": {"kind": "StatefulSet", "name": "db", "namespace": "shop", "uid": "set"}, "type": "Warning",
        "reportingController": "pgset", "eventTime": at, "reason": reason, "note": "db-1: why",
    })
}

fn of(change: impl FnOnce(&mut Facts)) -> View {
    let mut facts = three();
    change(&mut facts);
    View::of(&facts)
}

fn reasons(view: &View) -> Vec<&str> {
    view.waits.iter().map(|wait| wait.reason.as_str()).collect()
}

fn states(view: &View) -> Vec<&str> {
    view.members.iter().map(|row| row.state.as_str()).collect()
}

#[test]
fn a_healthy_set_waits_for_nothing() {
    let view = of(|_| {});
    assert_eq!(view.health(), Health::Healthy);
    let expected = "\
StatefulSet shop/db: healthy, 3 of 3 members ready

  MEMBER  ROLE     STATE      TIMELINE  LAG  DELAY  SYNCHRONOUS  SINCE
  db-0    master   leading    3         -    -      -            1h0m
  db-1    replica  streaming  3         0 B  0 s    yes          3h0m
  db-2    replica  streaming  3         0 B  0 s    yes          3h0m

  lease     held by db-0 (epoch 4) for 1h0m; renewed 1 s ago, good for 6 s
  database  the database 7 on timeline 3, written up to 0/5000000
  waits     for nothing
";
    assert_eq!(view.to_text(), expected);
}

#[test]
fn for_programs_the_keys_are_those_of_the_manual() {
    let told = of(|facts| facts.events = Ok(vec![event("DataRefused", "2026-05-04T11:58:00.000000Z")])).to_json();
    assert_eq!(
        (&told["set"], &told["health"], &told["master"]),
        (&json!("shop/db"), &json!("healthy"), &json!("db-0"))
    );
    let lease = json!({
        "holder": "db-0/uid-0", "isMember": true, "epoch": 4, "since": "2026-05-04T11:00:00Z", "renewed": "2026-05-04T11:59:59Z",
        "ageSeconds": 1.0, "durationSeconds": 6, "silent": false, "acceptsWrites": true, "system": "7", "timeline": 3,
        "flushed": "0/5000000", "stoppedAt": null,
    });
    assert_eq!(told["lease"], lease);
    let replica = json!({
        "name": "db-1", "role": "replica", "state": "streaming", "ready": true, "leaving": false, "timeline": 3,
        "flushed": "0/5000000", "replayed": "0/5000000", "lagBytes": 0, "lagSeconds": 0.0, "synchronous": true,
        "since": "2026-05-04T09:00:00Z", "why": null,
    });
    assert_eq!(told["members"][1], replica);
    let event =
        json!({"time": "2026-05-04T11:58:00Z", "type": "Warning", "reason": "DataRefused", "note": "db-1: why"});
    assert_eq!(told["events"], json!([event]));
}

#[test]
fn an_order_that_was_refused_is_noted_as_long_as_it_stands() {
    let notes = |order: &str| {
        let change = |facts: &mut Facts| {
            facts.object["metadata"]["annotations"]["pgset.dev/switchover"] = json!(order);
            let lease = facts.lease.as_mut().unwrap();
            lease["metadata"]["annotations"]["pgset.dev/order-refused"] = json!("db-9 1: db-9 is no member");
        };
        of(change).notes
    };
    assert_eq!(notes("db-9 1"), ["the order pgset.dev/switchover \"db-9 1\" was refused: db-9 is no member"]);
    assert_eq!(notes("db-1 2"), Vec::<String>::new());
}

#[test]
fn a_manual_names_every_key_state_and_reason() {
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/status.md")).unwrap();
    let told = of(|facts| facts.events = Ok(vec![event("DataRefused", NOW)])).to_json();
    let parts = [&told, &told["lease"], &told["members"][0], &told["events"][0]];
    let keys = parts.into_iter().flat_map(|part| part.as_object().unwrap().keys());
    for key in keys.map(String::as_str).chain(["reason", "says", "cure"]) {
        assert!(manual.contains(&format!("\"{key}\":")), "{key}");
    }
    for reason in Reason::ALL {
        assert!(manual.contains(&format!("\n| `{}` |", reason.as_str())), "{reason:?}");
    }
    let seen =
        [Connection::Absent, Connection::Cloning, Connection::CatchingUp, Connection::Streaming].map(State::Seen);
    let own = [State::Leading, State::Starting, State::Silent, State::Ready, State::Waiting, State::Pending];
    let others = [State::Terminating, State::NoPod, State::Unknown];
    for state in seen.into_iter().chain(own).chain(others) {
        assert!(manual.contains(&format!("\n| `{}` |", state.as_str())), "{state:?}");
    }
}

#[test]
fn a_master_that_is_silent_leads_no_longer_and_its_old_words_are_not_told() {
    let view = of(|facts| {
        facts.now = "2026-05-04T12:00:13Z".parse().unwrap();
        *facts.pods.as_mut().unwrap() = vec![pod(0, "master", false), pod(1, "replica", true), pod(2, "replica", true)];
    });
    assert_eq!((view.health(), reasons(&view)), (Health::Waiting, vec!["master-silent"]));
    let says = &view.waits[0].says;
    assert!(says.starts_with("db-0 holds the Lease and has not renewed it for 14 s, longer than the 6 s"), "{says}");
    assert!(says.contains("pod db-0: not ready: starting"), "{says}");
    assert_eq!(states(&view), ["silent", "ready", "ready"]);
    assert!(view.to_text().contains("good for 6 s: its holder is silent"));
    assert_eq!(view.to_json()["master"], json!(null));
}

#[test]
fn a_renewal_that_was_witnessed_counts_for_more_than_a_clock_that_is_wrong() {
    let late = |heard| of(|facts| (facts.now, facts.heard) = ("2026-05-04T12:10:00Z".parse().unwrap(), heard));
    assert_eq!(reasons(&late(None)), ["master-silent"]);
    assert_eq!(late(Some(Duration::from_secs(1))).health(), Health::Healthy);
    assert_eq!(reasons(&late(Some(Duration::from_secs(6)))), ["master-silent"]);
    assert_eq!(
        of(|facts| facts.now = "2026-05-04T11:00:00Z".parse().unwrap()).health(),
        Health::Healthy,
        "ahead of us"
    );
}

#[test]
fn without_a_master_it_is_told_what_whoever_leads_has_to_have_and_what_members_refuse() {
    let view = of(|facts| {
        let lease = facts.lease.as_mut().unwrap();
        lease["spec"]["holderIdentity"] = json!(null);
        lease["metadata"]["annotations"]["pgset.dev/stopped-at"] = json!("0/5000028");
        facts.pods = Ok(vec![pod(1, "none", false), pod(2, "none", false)]);
        facts.events = Ok(vec![event("DataRefused", "2026-05-04T11:58:00.000000Z")]);
    });
    assert_eq!((reasons(&view), states(&view)), (vec!["no-master", "no-pod"], vec!["no pod", "waiting", "waiting"]));
    let says = "no member leads; whoever does has to have the database 7 on timeline 3, stopped cleanly at 0/5000028";
    assert_eq!(view.waits[0].says, says);
    let text = view.to_text();
    assert!(text.contains("  lease     held by nobody; the last epoch was 4\n"), "{text}");
    assert!(
        text.contains("  waits     db-0 has no pod\n            kubectl describe statefulset db -n shop"),
        "{text}"
    );
    assert!(text.contains("  event     2m0s ago, DataRefused: db-1: why\n"), "{text}");

    let fresh = of(|facts| facts.lease = Ok(json!({"metadata": {"name": "db-leader"}})));
    assert_eq!(fresh.waits[0].says, "no member leads, and none has led yet");
    let none = of(|facts| facts.lease = Err(Unread::Absent));
    assert_eq!((reasons(&none), none.health()), (vec!["no-lease"], Health::Waiting));
}

#[test]
fn failover_by_hand_is_said_where_it_is_what_keeps_a_set_waiting() {
    let view = of(|facts| {
        facts.object = injected_as(|object| object["metadata"]["annotations"][annotation::FAILOVER] = json!("manual"));
        facts.lease.as_mut().unwrap()["spec"]["holderIdentity"] = json!("");
    });
    assert!(view.waits[0].says.ends_with("pgset.dev/failover is manual, so that no replica is promoted by itself"));
    assert!(view.waits[0].cure.starts_with("pgset failover sts/db -n shop lets the best replica lead; "), "{view:?}");
}

#[test]
fn a_master_on_its_way_is_told_from_one_that_is_gone() {
    let starting = of(|facts| {
        facts.lease.as_mut().unwrap()["metadata"]["annotations"].as_object_mut().unwrap().remove("pgset.dev/address");
    });
    assert_eq!((reasons(&starting), states(&starting)[0]), (vec!["master-starting"], "starting"));
    let gone = of(|facts| facts.lease.as_mut().unwrap()["spec"]["holderIdentity"] = json!("db-0/earlier"));
    assert_eq!(reasons(&gone)[0], "master-gone");
    assert_eq!(gone.members[0].state, State::Ready, "the new pod leads nothing");
}

#[test]
fn a_set_of_one_is_healthy_by_its_master_alone() {
    let one = |object: Value| {
        of(|facts| {
            facts.object = object;
            facts.pods = Ok(vec![pod(0, "master", true)]);
            facts.lease.as_mut().unwrap()["metadata"]["annotations"]
                .as_object_mut()
                .unwrap()
                .remove("pgset.dev/members");
        })
    };
    let view = one(set(1));
    assert_eq!((view.health(), states(&view)), (Health::Healthy, vec!["leading"]));
    let mut waiting = injected_as(|object| object["metadata"]["annotations"][annotation::SYNCHRONOUS] = json!("1"));
    waiting["spec"]["replicas"] = json!(1);
    let view = one(waiting);
    assert_eq!(view.waits[0].says, "commits wait: 0 of 1 replicas confirm them");
}

#[test]
fn a_set_that_is_scaled_to_nothing_waits_for_nothing() {
    let view = of(|facts| {
        facts.object = set(0);
        facts.pods = Ok(vec![]);
        facts.lease.as_mut().unwrap()["spec"]["holderIdentity"] = json!(null);
    });
    assert_eq!(
        (view.health(), view.notes.as_slice()),
        (Health::Healthy, &["it is scaled to 0; its data stays".to_owned()][..])
    );
}

#[test]
fn an_image_that_implements_the_contract_has_its_roles_by_label_and_no_lease() {
    let image = |roles: [&str; 2]| {
        of(|facts| {
            facts.object = injected_as(|object| {
                object["spec"]["template"]["spec"]["containers"][0]["image"] =
                    json!("crunchydata/crunchy-postgres:centos7-10.4-1.8.3");
            });
            let label = |ordinal, role: &str| {
                let mut pod = pod(ordinal, "", true);
                pod["metadata"]["labels"] = json!({names::label::SET: "db", "name": role});
                pod
            };
            facts.pods = Ok(vec![label(0, roles[0]), label(1, roles[1])]);
            facts.lease = Err(Unread::Absent);
        })
    };
    let view = image(["db-master", "db-replica"]);
    assert_eq!(
        (view.health(), view.contract, view.leadership.as_ref()),
        (Health::Healthy, Some(Contract::Image), None)
    );
    assert_eq!(view.members.iter().map(|row| row.role).collect::<Vec<_>>(), [Role::Master, Role::Replica]);
    assert_eq!((states(&view), view.to_json()["master"].as_str()), (vec!["ready", "ready"], Some("db-0")));
    assert_eq!(reasons(&image(["db-replica", "db-replica"])), ["no-master"]);
    assert_eq!(reasons(&image(["db-master", "db-master"])), ["two-masters"]);
}

fn injected_as(change: impl FnOnce(&mut Value)) -> Value {
    let mut object = bare("db");
    change(&mut object);
    let settings = Settings { agent_image: "registry.example/agent:1".to_owned() };
    let outcome = inject::inject(&Request { object: &object, old: None, settings: &settings });
    let Outcome::Patched { patch, .. } = outcome else { panic!("not injected") };
    json_patch::patch(&mut object, &patch).unwrap();
    object["metadata"]["uid"] = json!("set");
    object
}

#[test]
fn a_replica_that_lags_is_told_and_no_fault() {
    let view = of(|facts| {
        let behind =
            json!({"pod": "db-2", "state": "streaming", "flushed": "0/5000000", "replayed": "0/2000000", "lag": 12.34});
        facts.lease = Ok(lease(&json!([streams("db-1"), behind])));
    });
    assert_eq!((view.health(), view.members[2].lag_bytes), (Health::Healthy, Some(48 << 20)));
    assert!(view.to_text().contains("db-2    replica  streaming  3         48 MB  12 s   no "), "{}", view.to_text());
    assert_eq!(view.notes, ["db-2 streams, and is 48 MB and 12 s behind the master"]);
}

#[test]
fn a_member_that_does_not_stream_is_waited_for_with_the_reason() {
    let view = of(|facts| {
        let catching_up = json!({"pod": "db-1", "state": "catching up", "replayed": "0/4FFFC00"});
        facts.lease = Ok(lease(&json!([catching_up, {"pod": "db-2", "state": "cloning"}])));
    });
    assert_eq!(reasons(&view), ["catching-up", "cloning"]);
    assert_eq!(view.waits[0].says, "db-1 gets what it missed, 1.0 kB to go");

    let view = of(|facts| {
        let mut crashing = pod(1, "none", false);
        crashing["status"]["containerStatuses"] = json!([{"name": "postgres", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}}}]);
        let mut leaving = pod(2, "replica", true);
        leaving["metadata"]["deletionTimestamp"] = json!(NOW);
        facts.pods = Ok(vec![pod(0, "master", true), crashing, leaving]);
        facts.lease = Ok(lease(&json!([{"pod": "db-1", "state": "absent"}, {"pod": "db-2", "state": "absent"}])));
    });
    assert_eq!(
        (reasons(&view), states(&view)),
        (vec!["not-running", "not-running"], vec!["leading", "pending", "terminating"])
    );
    assert_eq!(view.waits[0].says, "db-1 does not run: pod db-1: CrashLoopBackOff: back-off 20s");

    let absent = of(|facts| facts.lease = Ok(lease(&json!([streams("db-1"), {"pod": "db-2", "state": "absent"}]))));
    assert_eq!((reasons(&absent), absent.waits[0].cure.as_str()), (vec!["not-streaming"], "kubectl logs db-2 -n shop"));
}

#[test]
fn commits_that_wait_are_told_by_how_many_replicas_confirm_them() {
    let with = |members: Value| {
        of(|facts| {
            facts.object = injected_as(|object| {
                object["metadata"]["annotations"][annotation::SYNCHRONOUS] = json!("1");
            });
            facts.lease = Ok(lease(&members));
        })
    };
    assert_eq!(with(json!([streams("db-1")])).health(), Health::Healthy);
    assert_eq!(reasons(&with(json!([{"pod": "db-1", "state": "absent"}]))), ["not-streaming", "commits-wait"]);
}

#[test]
fn two_masters_by_label_are_told_by_their_names() {
    let view = of(|facts| facts.pods.as_mut().unwrap()[2] = pod(2, "master", true));
    assert_eq!(reasons(&view), ["two-masters"]);
    assert_eq!(view.waits[0].says, "db-2 is labelled as the master, and db-0 leads");
}

#[test]
fn a_member_beyond_the_sets_size_is_shown_and_not_waited_for() {
    let view = of(|facts| {
        let mut leaving = pod(3, "replica", false);
        leaving["metadata"]["deletionTimestamp"] = json!(NOW);
        facts.pods.as_mut().unwrap().push(leaving);
    });
    assert_eq!((view.health(), states(&view)[3]), (Health::Healthy, "terminating"));
    assert_eq!(view.to_json()["members"][3]["leaving"], json!(true));
}

#[test]
fn a_lease_of_another_program_is_no_masters() {
    for holder in ["controller-7", "other-0/uid", "db-x/uid", "db-/u"] {
        let view = of(|facts| facts.lease.as_mut().unwrap()["spec"]["holderIdentity"] = json!(holder));
        assert_eq!(reasons(&view)[0], "foreign-lease", "{holder}");
        assert_eq!(view.leadership.as_ref().unwrap().holder, Holder::Stranger(holder.to_owned()));
        assert_eq!(view.to_json()["master"], json!(null));
    }
}

#[test]
fn what_is_missing_or_makes_no_sense_on_a_lease_is_not_told() {
    let view = of(|facts| {
        facts.lease = Ok(json!({
            "metadata": {"annotations": {
                "pgset.dev/address": "198.18.0.5", "pgset.dev/port": "5432", "pgset.dev/system-identifier": "7",
                "pgset.dev/timeline": "3", "pgset.dev/members": "[{\"pod\": 7}, nonsense",
            }},
            "spec": {"holderIdentity": "db-0/uid-0"},
        }));
    });
    // An agent of an earlier version tells nothing of the others: that they are Ready has to do.
    assert_eq!((view.health(), states(&view)), (Health::Healthy, vec!["leading", "ready", "ready"]));
    let text = view.to_text();
    assert!(text.contains("held by db-0 (epoch unknown); renewed nobody knows when, good for 6 s\n"), "{text}");
    assert!(text.contains("db-1    replica  ready    -         -    -      -            3h0m\n"), "{text}");
    let odd = of(|facts| facts.lease = Ok(json!({"spec": {"holderIdentity": 7}})));
    assert_eq!(reasons(&odd), ["no-master"]);
}

#[test]
fn what_others_wrote_has_no_say_over_the_terminal() {
    let view = of(|facts| {
        facts.lease.as_mut().unwrap()["spec"]["holderIdentity"] = json!("evil\u{1b}[2J");
        let mut event = event("DataRefused", NOW);
        event["note"] = json!("a\nb\u{1b}]0;x\u{7}");
        facts.events = Ok(vec![event]);
    });
    let text = view.to_text();
    assert!(!text.contains('\u{1b}') && text.contains("a b ]0;x"), "{text}");
}

#[test]
fn what_may_not_be_read_is_named_with_the_right_that_it_takes() {
    let forbidden = || Unread::Forbidden("forbidden: User ...".to_owned());
    let view = of(|facts| facts.lease = Err(forbidden()));
    assert_eq!((view.health(), reasons(&view)), (Health::Unknown, vec![]));
    let right = "you may not read the Lease db-leader: that takes the right to get leases.coordination.k8s.io in the namespace shop";
    assert_eq!(view.unread, [right]);
    let view = of(|facts| facts.pods = Err(forbidden()));
    assert_eq!((view.health(), states(&view)), (Health::Unknown, vec!["leading", "streaming", "streaming"]));
    let view = of(|facts| facts.events = Err(forbidden()));
    assert_eq!(view.health(), Health::Healthy, "what was said is of less weight than what is");
    assert!(view.notes[0].contains("list events.events.k8s.io"), "{:?}", view.notes);
}

#[test]
fn a_set_without_its_injection_says_so_and_nothing_of_members() {
    let not_injected = of(|facts| facts.object = bare("db"));
    assert_eq!((reasons(&not_injected), not_injected.members.len()), (vec!["not-injected"], 0));
    let mut object = set(3);
    object["metadata"]["annotations"][annotation::CONTRACT] = json!("none");
    assert_eq!(reasons(&of(|facts| facts.object = object)), ["refused"]);
}

#[test]
fn of_events_the_latest_of_the_last_hour_are_told_that_pgset_wrote_about_this_very_set() {
    let view = of(|facts| {
        let mut strangers = event("Stranger", NOW);
        strangers["reportingController"] = json!("statefulset-controller");
        let mut earlier_set = event("Earlier", NOW);
        earlier_set["regarding"]["uid"] = json!("earlier");
        facts.events = Ok(vec![
            event("Old", "2026-05-04T10:59:00.000000Z"),
            event("First", "2026-05-04T11:10:00.000000Z"),
            event("Second", "2026-05-04T11:20:00.000000Z"),
            strangers,
            earlier_set,
        ]);
    });
    assert_eq!(view.events.iter().map(|event| event.reason.as_str()).collect::<Vec<_>>(), ["Second", "First"]);
}

#[test]
fn the_passing_of_time_is_no_change() {
    let later = |seconds: i8| {
        of(|facts| {
            facts.now = format!("2026-05-04T12:00:0{seconds}Z").parse().unwrap();
            facts.lease.as_mut().unwrap()["spec"]["renewTime"] = json!(format!("2026-05-04T12:00:0{seconds}.000000Z"));
        })
    };
    assert_eq!(later(1).essence(), later(3).essence());
    assert_ne!(later(1).essence(), of(|facts| facts.pods.as_mut().unwrap()[1] = pod(1, "none", false)).essence());
}
