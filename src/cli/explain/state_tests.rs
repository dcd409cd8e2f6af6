use serde_json::json;

use super::*;
use crate::cli::check::snapshot::shipped;

fn set() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "db", "namespace": "shop", "annotations": {}},
        "spec": {
            "replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{
                "name": "postgres", "image": "postgres:17",
            }]}},
        },
    })
}

fn annotated() -> Value {
    let mut object = set();
    object["metadata"]["annotations"] = json!({annotation::INJECT: "enabled", annotation::CLAIM: "pgset-pvc"});
    object
}

fn injected() -> Value {
    let mut object = annotated();
    let settings = Settings { agent_image: "registry.example/agent:1".to_owned() };
    let Outcome::Patched { patch, .. } = inject::inject(&Request { object: &object, old: None, settings: &settings })
    else {
        panic!("not injected")
    };
    json_patch::patch(&mut object, &patch).unwrap();
    object
}

fn configuration() -> Value {
    let mut object =
        shipped(None).unwrap().into_iter().find(|it| it["kind"] == "MutatingWebhookConfiguration").unwrap();
    object["webhooks"][0]["clientConfig"]["caBundle"] = json!("LS0t");
    object
}

fn answer(value: Value) -> Answer {
    Answer { value, warnings: vec!["a warning of the API server".to_owned()], date: None }
}

/// All is well, and a dry run gives back the object as it is.
fn facts(object: Value) -> Facts {
    Facts {
        again: Ok(answer(object.clone())),
        object,
        is_stored: true,
        namespace: Ok(json!({"metadata": {"name": "shop", "labels": {"kubernetes.io/metadata.name": "shop"}}})),
        configuration: Ok(configuration()),
        services: Ok(Vec::new()),
        slices: Ok(Vec::new()),
        members: Ok(Vec::new()),
    }
}

fn refused(message: &str) -> Read<Answer> {
    Err(Unread::Refused(message.to_owned()))
}

#[test]
fn an_injected_set_tells_what_it_carries() {
    let told = explain(&facts(injected()));
    assert_eq!((told.state, told.why.as_str(), told.cure.as_str()), (State::Injected, "", ""));
    let injection = told.injection.clone().unwrap();
    assert_eq!((injection.contract, injection.container.as_str()), ("agent", "postgres"));
    assert_eq!(injection.agent_image, "registry.example/agent:1");
    assert!(injection.data.starts_with("claim pgset-pvc, mounted at /pgdata"), "{}", injection.data);
    assert!(injection.beside.contains(&"Service db-master".to_owned()), "{:?}", injection.beside);
    assert!(!injection.is_behind());
    assert!(told.warnings.contains(&"a warning of the API server".to_owned()));
    let text = told.to_text();
    assert!(text.starts_with("StatefulSet shop/db: injected\n  revision   "), "{text}");
    assert!(text.contains("  passwords  Secret db-pgset-credentials\n"), "{text}");
    assert_eq!(told.to_json()["state"], "injected");
    assert_eq!(told.to_json()["injection"]["roleLabel"]["key"], "pgset.dev/role");
}

#[test]
fn an_injection_that_was_changed_is_told() {
    let mut object = injected();
    object["spec"]["template"]["spec"]["containers"][0]["env"] = json!([]);
    assert_eq!(explain(&facts(object)).state, State::Incomplete);
}

#[test]
fn a_set_that_does_not_ask_is_told_how_to() {
    let told = explain(&facts(set()));
    assert_eq!(told.state, State::NotAsked);
    assert_eq!(told.cure, "if it is to be a set: kubectl annotate statefulset db pgset.dev/inject=enabled");
    assert_eq!(told.injection, None);
}

#[test]
fn an_annotation_in_the_wrong_place_is_found() {
    let mut template = set();
    template["spec"]["template"]["metadata"]["annotations"] = json!({annotation::INJECT: "enabled"});
    let mut label = set();
    label["metadata"]["labels"] = json!({annotation::INJECT: "enabled"});
    let mut misspelt = set();
    misspelt["metadata"]["annotations"] = json!({"pgset.dev/injct": "enabled"});
    for (object, words) in [
        (template, "does nothing on the pod template"),
        (label, "make it an annotation"),
        (misspelt, "pgset.dev/inject"),
    ] {
        let told = explain(&facts(object));
        assert_eq!(told.state, State::Misplaced);
        assert!(told.why.contains(words), "{}", told.why);
    }
    let service = json!({"metadata": {"name": "db", "annotations": {annotation::INJECT: "enabled"}}});
    let told = explain(&Facts { services: Ok(vec![service]), ..facts(set()) });
    assert!(told.why.starts_with("the annotation pgset.dev/inject is on the Service db"), "{}", told.why);
    let namespace = Ok(json!({"metadata": {"annotations": {annotation::INJECT: "enabled"}}}));
    let told = explain(&Facts { namespace, ..facts(set()) });
    assert!(told.why.starts_with("the annotation pgset.dev/inject is on the namespace"), "{}", told.why);
}

#[test]
fn an_exempt_namespace_is_named_with_its_label() {
    let namespace = Ok(json!({"metadata": {"labels": {"pgset.dev/webhook": "disabled"}}}));
    let told = explain(&Facts { namespace, ..facts(annotated()) });
    assert_eq!(told.state, State::Exempt);
    assert_eq!(told.why, "its namespace is exempt: it has the label pgset.dev/webhook=disabled");
}

#[test]
fn a_webhook_configuration_that_is_absent_or_not_trusted_is_told() {
    let absent = Facts { configuration: Err(Unread::Absent), ..facts(annotated()) };
    assert!(explain(&absent).why.starts_with("there is no MutatingWebhookConfiguration"));
    let mut empty = configuration();
    empty["webhooks"][0]["clientConfig"]["caBundle"] = json!("");
    let empty = Facts { configuration: Ok(empty), ..facts(annotated()) };
    assert!(explain(&empty).why.contains("has no caBundle"));
    assert_eq!(explain(&facts(annotated())).state, State::Unconfigured, "the dry run came back without injection");
}

#[test]
fn a_set_that_was_stored_without_pgset_is_told_what_it_would_get() {
    let told = explain(&Facts { again: Ok(answer(injected())), ..facts(annotated()) });
    assert_eq!(told.state, State::Pending);
    assert!(told.cure.starts_with("apply it again"), "{}", told.cure);
    assert!(told.injection.is_some());
    let in_a_file = Facts { again: Ok(answer(injected())), is_stored: false, ..facts(annotated()) };
    assert!(explain(&in_a_file).why.starts_with("it is not applied yet"));
}

#[test]
fn a_denial_gives_its_reason() {
    let mut object = annotated();
    object["metadata"]["annotations"][annotation::CONTRACT] = json!("none");
    let again = refused("admission webhook \"inject.pgset.dev\" denied the request: …");
    let told = explain(&Facts { again, ..facts(object) });
    assert_eq!(told.state, State::Denied);
    assert!(told.why.contains("pgset.dev/contract"), "{}", told.why);
    // Only the cluster knows what was stored before.
    let again = refused("admission webhook \"inject.pgset.dev\" denied the request: data would vanish");
    assert_eq!(explain(&Facts { again, ..facts(annotated()) }).state, State::Denied);
}

#[test]
fn whoever_else_stands_in_the_way_is_named() {
    let state = |again| explain(&Facts { again, ..facts(annotated()) }).state;
    assert_eq!(state(refused("failed calling webhook \"inject.pgset.dev\": no endpoints")), State::Unanswered);
    let policy = "statefulsets.apps \"db\" is forbidden: ValidatingAdmissionPolicy 'pgset-injection' with binding …";
    assert_eq!(state(refused(policy)), State::Unconfigured);
    assert_eq!(state(refused("admission webhook \"other\" denied the request: no")), State::Refused);
    assert_eq!(state(Err(Unread::Forbidden("no".to_owned()))), State::Pending);
}

#[test]
fn an_endpoint_that_leads_nowhere_is_told_of_a_stored_set() {
    let endpoint = json!([{"addresses": ["10.0.0.9"], "targetRef": {"name": "db-0", "uid": "gone"}}]);
    let slice = json!({"metadata": {"namespace": "shop", "name": "db-master", "labels": {names::slice::SERVICE: "db-master"}},
        "endpoints": endpoint});
    let told = explain(&Facts { slices: Ok(vec![slice]), ..facts(injected()) });
    let Some(warning) = told.warnings.last() else { panic!() };
    assert!(warning.starts_with("its endpoint leads to db-0 at 10.0.0.9, and there is no such pod; "), "{warning}");
}
