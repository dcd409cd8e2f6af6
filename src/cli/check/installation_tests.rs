use serde_json::json;

use super::*;

fn object(kind: &str, live: Read<Value>) -> Object {
    (json!({"kind": kind, "metadata": {"name": "pgset"}, "spec": {"a": 1}}), live)
}

fn live(spec: &Value) -> Value {
    json!({"metadata": {"name": "pgset"}, "spec": spec})
}

fn forbidden() -> Unread {
    Unread::Forbidden("no".to_owned())
}

fn deployment(wanted: i64, ready: i64) -> Value {
    json!({"spec": {"replicas": wanted}, "status": {"readyReplicas": ready}})
}

#[test]
fn an_object_that_is_not_there_fails_and_one_that_was_changed_warns() {
    let check = |live| installed([object("Deployment", live)].iter());
    assert!(matches!(check(Ok(live(&json!({"a": 1, "defaulted": true})))), Verdict::Ok(_)));
    let Verdict::Failure(finding) = check(Err(Unread::Absent)) else { panic!() };
    assert_eq!(finding.found, ["Deployment pgset"]);
    let Verdict::Warning(finding) = check(Ok(live(&json!({"a": 2})))) else { panic!() };
    assert_eq!(finding.found, ["Deployment pgset: spec.a is 2, not 1"]);
    assert_eq!(check(Err(forbidden())), Verdict::Skipped("may not read some of pgset's objects".to_owned()));
}

#[test]
fn a_webhook_configuration_may_be_added_to_but_not_changed() {
    let check = |live| webhook_configuration([object(WEBHOOK, live)].iter());
    assert!(matches!(check(Ok(live(&json!({"a": 1})))), Verdict::Ok(_)));
    assert!(matches!(check(Ok(live(&json!({"a": 1, "b": 2})))), Verdict::Warning(_)));
    assert!(matches!(check(Ok(live(&json!({"a": 2})))), Verdict::Failure(_)));
    assert!(matches!(check(Err(Unread::Absent)), Verdict::Failure(_)));
    assert!(matches!(check(Err(forbidden())), Verdict::Skipped(_)));
}

#[test]
fn every_policy_and_binding_must_be_there() {
    let objects = [object(POLICIES[0], Ok(live(&json!({"a": 1})))), object(POLICIES[1], Err(Unread::Absent))];
    let Verdict::Failure(finding) = policy_present(objects.iter()) else { panic!() };
    assert_eq!(finding.found, ["ValidatingAdmissionPolicyBinding pgset is not there"]);
    assert!(matches!(policy_present(objects[..1].iter()), Verdict::Ok(_)));
    assert!(matches!(policy_present([].iter()), Verdict::Skipped(_)));
}

fn named(live: &Read<Value>) -> Deployment<'_> {
    Deployment { name: names::WEBHOOK, live }
}

#[test]
fn the_worse_of_two_deployments_counts_and_of_equals_both() {
    let [none, one, two] = [0, 1, 2].map(|ready| Ok(deployment(2, ready)));
    let verdict = |webhook, controller| {
        let both = [(names::WEBHOOK, webhook), (names::CONTROLLER, controller)];
        of_all(&both.map(|(name, live)| Deployment { name, live }), |it| deployment_ready(it, &Ok(Vec::new())))
    };
    let says = "pgset-webhook: 2 of 2 pods are ready; pgset-controller: 2 of 2 pods are ready";
    assert_eq!(verdict(&two, &two), Verdict::ok(says));
    let Verdict::Warning(finding) = verdict(&two, &one) else { panic!() };
    assert_eq!(finding.says, "pgset-controller: 1 of 2 pods are ready");
    let Verdict::Failure(finding) = verdict(&one, &none) else { panic!() };
    assert!(finding.cure.contains("nobody looks after the sets"), "{finding:?}");
    let Verdict::Failure(finding) = verdict(&none, &none) else { panic!() };
    assert_eq!(finding.says, "pgset-webhook: 0 of 2 pods are ready; pgset-controller: 0 of 2 pods are ready");
}

#[test]
fn no_ready_pod_fails_with_what_the_pods_wait_for() {
    let pods = Ok(vec![
        json!({"metadata": {"name": "pgset-webhook-a"}, "status": {"containerStatuses": [
            {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}}),
        json!({"metadata": {"name": "pgset-webhook-b"}, "status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]}}),
        json!({"metadata": {"name": "pgset-webhook-c"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
    ]);
    let Verdict::Failure(finding) = deployment_ready(named(&Ok(deployment(2, 0))), &pods) else { panic!() };
    assert_eq!(finding.says, "pgset-webhook: 0 of 2 pods are ready");
    let expected = [
        "pod pgset-webhook-a: ImagePullBackOff: no such image",
        "pod pgset-webhook-b: not scheduled: 0/1 nodes are available",
    ];
    assert_eq!(finding.found, expected);
    assert!(matches!(deployment_ready(named(&Ok(deployment(2, 1))), &pods), Verdict::Warning(_)));
    assert!(matches!(deployment_ready(named(&Ok(deployment(2, 2))), &pods), Verdict::Ok(_)));
    assert!(matches!(deployment_ready(named(&Ok(deployment(0, 0))), &pods), Verdict::Failure(_)));
    assert!(matches!(deployment_ready(named(&Err(Unread::Absent)), &pods), Verdict::Failure(_)));
    assert!(matches!(deployment_ready(named(&Err(forbidden())), &pods), Verdict::Skipped(_)));
}

#[test]
fn one_pod_is_enough_to_work_and_too_few_to_rely_on() {
    for (wanted, ready, fits) in [(2, 2, true), (3, 2, true), (1, 1, false), (2, 1, false), (2, 0, false)] {
        assert_eq!(
            matches!(two_replicas(named(&Ok(deployment(wanted, ready)))), Verdict::Ok(_)),
            fits,
            "{wanted} {ready}"
        );
    }
    assert!(matches!(two_replicas(named(&Err(Unread::Absent))), Verdict::Skipped(_)));
}

#[test]
fn a_service_without_a_ready_endpoint_fails() {
    let slice = |ready: bool| Ok(vec![json!({"endpoints": [{"conditions": {"ready": ready}}]})]);
    assert!(matches!(service_endpoints(&slice(true)), Verdict::Ok(_)));
    assert!(matches!(service_endpoints(&slice(false)), Verdict::Failure(_)));
    assert!(matches!(service_endpoints(&Ok(Vec::new())), Verdict::Failure(_)));
    assert!(matches!(service_endpoints(&Err(forbidden())), Verdict::Skipped(_)));
}

#[test]
fn another_versions_program_is_told_so() {
    let runs = |image: &str| Ok(json!({"spec": {"template": {"spec": {"containers": [{"image": image}]}}}}));
    let own = env!("CARGO_PKG_VERSION");
    assert!(matches!(version(&runs(&format!("registry.example:5000/pgset:{own}"))), Verdict::Ok(_)));
    assert!(matches!(version(&runs("registry.example/pgset:dev")), Verdict::Ok(_)));
    assert!(matches!(version(&runs("registry.example/pgset@sha256:0a")), Verdict::Ok(_)));
    assert!(matches!(version(&runs("registry.example/pgset:v99.0.0")), Verdict::Warning(_)));
}
