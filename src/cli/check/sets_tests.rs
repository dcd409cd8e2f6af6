use serde_json::json;

use super::*;
use crate::cli::cluster::Unread;

/// A set as its user wrote it, with a volume of each member's own.
pub fn bare(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": name, "namespace": "shop", "annotations": {annotation::INJECT: "enabled"}},
        "spec": {
            "replicas": 2, "serviceName": name, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{
                "name": "postgres", "image": "postgres:17",
                "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}],
            }]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
        },
    })
}

/// As it is stored.
pub fn injected(name: &str) -> Value {
    let mut object = bare(name);
    let settings = Settings { agent_image: "registry.example/agent:1".to_owned() };
    let Outcome::Patched { patch, .. } = inject::inject(&Request { object: &object, old: None, settings: &settings })
    else {
        panic!("not injected")
    };
    json_patch::patch(&mut object, &patch).unwrap();
    object["status"] = json!({"readyReplicas": 2});
    object
}

/// A pod of it.
pub fn member(set: &str, ordinal: u32, role: &str, ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({
        "metadata": {"namespace": "shop", "name": format!("{set}-{ordinal}"),
            "labels": {names::label::SET: set, names::label::ROLE: role}},
        "status": {"conditions": [{"type": "Ready", "status": ready, "message": "starting"}]},
    })
}

#[test]
fn a_set_stands_as_it_is_stored() {
    assert_eq!(standing(&bare("db")), Standing::Bare);
    assert_eq!(standing(&injected("db")), Standing::Injected);
    let mut tampered = injected("db");
    tampered["spec"]["template"]["spec"]["containers"][0]["env"] = json!([]);
    assert_eq!(standing(&tampered), Standing::Incomplete);
    let mut wrong = bare("db");
    wrong["metadata"]["annotations"][annotation::CONTRACT] = json!("none");
    assert!(matches!(standing(&wrong), Standing::Refused(_)));
}

#[test]
fn a_set_without_its_injection_fails_unless_its_namespace_is_exempt() {
    assert_eq!(sets_injected(&[injected("db")], |_| None), Verdict::ok("1 set is injected"));
    let Verdict::Failure(finding) = sets_injected(&[bare("db")], |_| None) else { panic!() };
    assert_eq!(finding.found, ["shop/db asks for injection, and has none"]);
    let exempt = |_: &Value| Some("it has the label pgset.dev/webhook=disabled".to_owned());
    assert!(matches!(sets_injected(&[bare("db")], exempt), Verdict::Warning(_)));
    assert!(matches!(sets_injected(&[injected("db")], exempt), Verdict::Ok(_)));
}

#[test]
fn a_set_at_another_revision_is_named_with_the_way_to_move_it() {
    let mut old = injected("db");
    assert!(matches!(sets_behind(std::slice::from_ref(&old)), Verdict::Ok(_)));
    old["metadata"]["annotations"][annotation::REVISION] = json!("0.0.1");
    let Verdict::Warning(finding) = sets_behind(&[old]) else { panic!() };
    assert_eq!(finding.found, ["shop/db is at 0.0.1"]);
    assert!(finding.cure.ends_with(&format!("--overwrite pgset.dev/revision={REVISION}")), "{}", finding.cure);
}

#[test]
fn members_that_are_not_ready_are_named() {
    let mut set = injected("db");
    set["status"]["readyReplicas"] = json!(1);
    let members = Ok(vec![member("db", 0, "master", true), member("db", 1, "replica", false)]);
    let Verdict::Warning(finding) = sets_ready(&[set.clone()], &members) else { panic!() };
    assert_eq!(finding.found, ["shop/db: 1 of 2 members are ready (pod db-1: not ready: starting)"]);
    let unread = Err(Unread::Forbidden(String::new()));
    let Verdict::Warning(finding) = sets_ready(&[set], &unread) else { panic!() };
    assert_eq!(finding.found, ["shop/db: 1 of 2 members are ready"]);
    assert!(matches!(sets_ready(&[injected("db")], &unread), Verdict::Ok(_)));
}

#[test]
fn a_set_has_one_master() {
    let check = |roles: [&str; 2]| {
        let members = Ok(vec![member("db", 0, roles[0], true), member("db", 1, roles[1], true)]);
        one_master(&[injected("db")], &members)
    };
    assert!(matches!(check(["master", "replica"]), Verdict::Ok(_)));
    assert!(matches!(check(["replica", "replica"]), Verdict::Warning(_)));
    let Verdict::Failure(finding) = check(["master", "master"]) else { panic!() };
    assert_eq!(finding.found, ["shop/db: db-0, db-1"]);
    let unread = Err(Unread::Forbidden(String::new()));
    assert_eq!(one_master(&[injected("db")], &unread), Verdict::Skipped("may not read pods".to_owned()));
}
