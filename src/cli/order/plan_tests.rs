use serde_json::json;

use super::*;
use crate::cli::{
    check::sets::tests::{bare, injected, member},
    cluster::Unread,
};

fn lease(holder: Option<&str>, renewed: &str) -> Value {
    let streams = |pod: &str, at: &str| json!({"pod": pod, "state": "streaming", "flushed": at});
    let members = json!([streams("db-1", "0/4000"), streams("db-2", "0/4800")]).to_string();
    json!({
        "metadata": {"name": "db-leader", "annotations": {
            "pgset.dev/address": "198.18.0.5", "pgset.dev/port": "5432", "pgset.dev/system-identifier": "7",
            "pgset.dev/timeline": "3", "pgset.dev/flushed": "0/5000", "pgset.dev/members": members,
        }},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 6, "leaseTransitions": 4, "renewTime": renewed},
    })
}

fn led() -> Value {
    lease(Some("db-0/uid-0"), "2026-05-04T11:59:59.000000Z")
}

fn silent() -> Value {
    lease(Some("db-0/uid-0"), "2026-05-04T11:58:00.000000Z")
}

fn facts(replicas: u32) -> Facts {
    let mut object = injected("db");
    object["spec"]["replicas"] = json!(replicas);
    let pod = |ordinal: u32| {
        let mut pod = member("db", ordinal, "none", true);
        pod["metadata"]["uid"] = json!(format!("uid-{ordinal}"));
        pod
    };
    Facts {
        object,
        pods: Ok((0..replicas).map(pod).collect()),
        lease: Err(Unread::Absent),
        events: Ok(vec![]),
        now: "2026-05-04T12:00:00Z".parse().unwrap(),
        heard: None,
    }
}

fn planned(kind: Kind, to: Option<&str>, facts: &Facts, lease: &Value) -> Result<Plan, String> {
    let wish = Wish { kind, to: to.map(str::to_owned), token: "t".to_owned() };
    plan(&wish, &Facts { lease: Ok(lease.clone()), ..facts.clone() }).map_err(|why| why.to_string())
}

fn order(plan: Result<Plan, String>) -> (String, Vec<String>) {
    let Ok(Plan::Order { order, says, before }) = plan else { panic!("{plan:?}") };
    assert_eq!(before.epoch, 4);
    (order.text, says)
}

const FAILOVER: Kind = Kind::Failover { accepts_loss: false };
const ACCEPT_LOSS: Kind = Kind::Failover { accepts_loss: true };

#[test]
fn a_master_is_told_to_hand_over() {
    let plan = |to: Option<&str>| planned(Kind::Switchover, to, &facts(3), &led());
    assert_eq!(order(plan(Some("db-1"))), ("db-1 t".to_owned(), vec![]));
    assert_eq!(order(plan(None)).0, "any t");
    assert_eq!(plan(Some("db-0")), Ok(Plan::Done("db-0".to_owned())));
}

#[test]
fn what_can_not_be_ordered_is_told_with_the_way() {
    let why = |kind: Kind, to: Option<&str>, facts: &Facts, lease: &Value| planned(kind, to, facts, lease).unwrap_err();
    let stranger = why(Kind::Switchover, Some("db-9"), &facts(3), &led());
    assert_eq!(stranger, "--to db-9: it is no member of this set of 3; name one of db-0, db-1, db-2");
    let mut podless = facts(3);
    podless.pods.as_mut().unwrap().pop();
    assert!(
        why(Kind::Switchover, Some("db-2"), &podless, &led()).starts_with("--to db-2: it has no pod; kubectl describe")
    );
    assert!(why(Kind::Switchover, None, &facts(1), &led()).ends_with("--replicas=2"));
    for nobody in [silent(), lease(None, "2026-05-04T11:58:00.000000Z")] {
        let why = why(Kind::Switchover, None, &facts(3), &nobody);
        assert!(why.ends_with("pgset failover sts/db -n shop"), "{why}");
    }
    let led = why(FAILOVER, Some("db-1"), &facts(3), &led());
    assert!(led.starts_with("db-0 leads: it has renewed the Lease 1 s ago"), "{led}");
    assert!(led.contains("pgset switchover sts/db -n shop --to db-1 moves the master"), "{led}");
    let mut new = silent();
    new["metadata"]["annotations"] = json!({});
    assert!(why(FAILOVER, None, &facts(3), &new).starts_with("no member has led yet"));
    assert!(
        why(FAILOVER, None, &facts(3), &lease(Some("someone"), "2026-05-04T11:59:59.000000Z"))
            .contains("\"someone\", which is no member")
    );
    let bare = Facts { object: bare("db"), ..facts(2) };
    assert!(why(FAILOVER, None, &bare, &silent()).contains("pgset explain sts/db -n shop"));
}

#[test]
fn where_nobody_leads_somebody_is_told_to() {
    let plan = |to: Option<&str>, lease: &Value| order(planned(FAILOVER, to, &facts(3), lease)).0;
    assert_eq!(plan(None, &silent()), "any t");
    assert_eq!(plan(Some("db-1"), &silent()), "db-1 t");
    // The pod that holds it was made anew: it leads no more, and the Lease runs out.
    assert_eq!(plan(None, &lease(Some("db-0/earlier"), "2026-05-04T11:59:59.000000Z")), "any t");
}

#[test]
fn what_is_given_up_is_said_before_it_is_ordered() {
    let plan = |to: Option<&str>, lease: &Value| planned(ACCEPT_LOSS, to, &facts(3), lease);
    let (text, says) = order(plan(Some("db-1"), &silent()));
    assert_eq!(text, "db-1 t accept-loss");
    assert!(
        says[0].contains("0/5000") && says[0].contains("db-1 had 0/4000") && says[1].contains("db-2 (0/4800)"),
        "{says:?}"
    );
    assert_eq!(order(plan(None, &silent())).0, "db-2 t accept-loss", "the one that had most");
    let mut forgotten = silent();
    forgotten["metadata"]["annotations"].as_object_mut().unwrap().remove("pgset.dev/members");
    assert!(plan(None, &forgotten).unwrap_err().contains("name the member by --to"));
    assert!(plan(None, &led()).unwrap_err().contains("pgset switchover"), "nothing is given up while a master leads");
}
