//! The way out: what is left is what the API server stores of the user's own file without pgset.

use kube::api::{Patch, PatchParams};
use pgset::{inject::eject, names::annotation};
use serde_json::{Value, json};

use super::{
    cases::{self, Answer, Case},
    harness::{Lab, essence, with_webhook},
};

/// The created cases that are injected, without members, so that they may leave.
fn cases() -> Vec<(String, Value)> {
    let is_injected = |case: &Case| case.stored().is_none() && matches!(case.answer(), Answer::Injected(_));
    let own = |case: Case| {
        let mut object = case.object().unwrap();
        object["metadata"].as_object_mut().unwrap().remove("namespace");
        object["spec"]["replicas"] = json!(0);
        (case.name, object)
    };
    cases::all().into_iter().filter(is_injected).map(own).collect()
}

async fn create(lab: &Lab, namespace: &str, object: &Value) -> Value {
    let path = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets");
    lab.send("POST", &path, object).await.unwrap_or_else(|status| panic!("{}: {object}", status.message)).0
}

/// What is left without a word of pgset's.
fn left(stored: &Value) -> String {
    let mut left = essence(stored);
    if left["annotations"].as_object().is_some_and(serde_json::Map::is_empty) {
        left["annotations"] = Value::Null;
    }
    left.to_string()
}

/// The crate that applies patches puts the last member in the place of a removed one.
fn sorted(json: &str) -> String {
    let mut value: Value = serde_json::from_str(json).unwrap();
    value.sort_all_objects();
    value.to_string()
}

fn without_inject(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"]["annotations"].as_object_mut().unwrap().remove(annotation::INJECT);
    object
}

#[tokio::test]
async fn removing_the_annotation_gives_the_users_own_set_back_byte_for_byte() {
    with_webhook(async |lab| {
        let cases = cases();
        assert!(cases.len() > 20);
        for (name, own) in cases {
            create(&lab, &lab.name, &own).await;
            let plain = create(&lab, &lab.plain(), &without_inject(&own)).await;
            let set = own["metadata"]["name"].as_str().unwrap();
            let gone = Patch::Merge(json!({"metadata": {"annotations": {annotation::INJECT: null}}}));
            lab.sets().patch(set, &PatchParams::default(), &gone).await.unwrap();
            // As the API server writes it, not as our types do.
            let path = format!("/apis/apps/v1/namespaces/{}/statefulsets/{set}", lab.name);
            let (gone, _) = lab.send("GET", &path, &Value::Null).await.unwrap();
            assert_eq!(left(&gone), left(&plain), "{name}");
            forget(&lab).await;
        }
    })
    .await;
}

#[tokio::test]
async fn ejecting_what_is_stored_gives_the_users_own_set_back_byte_for_byte() {
    with_webhook(async |lab| {
        for (name, own) in cases() {
            let mut stored = create(&lab, &lab.name, &own).await;
            let plain = create(&lab, &lab.plain(), &own).await;
            let patch = eject(&stored);
            json_patch::patch(&mut stored, &patch).unwrap();
            assert_eq!(sorted(&left(&stored)), sorted(&left(&plain)), "{name}");
            forget(&lab).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_ejected_file_may_replace_a_set_without_members() {
    with_webhook(async |lab| {
        for (name, own) in cases() {
            let set = own["metadata"]["name"].as_str().unwrap().to_owned();
            let mut stored = create(&lab, &lab.name, &own).await;
            let way_out = eject(&stored);
            json_patch::patch(&mut stored, &way_out).unwrap();
            stored["metadata"].as_object_mut().unwrap().remove("resourceVersion");
            let path = format!("/apis/apps/v1/namespaces/{}/statefulsets/{set}", lab.name);
            let replaced = lab.send("PUT", &path, &without_inject(&stored)).await;
            let (replaced, _) = replaced.unwrap_or_else(|status| panic!("{name}: {}", status.message));
            let plain = create(&lab, &lab.plain(), &without_inject(&own)).await;
            assert_eq!(left(&replaced), left(&plain), "{name}");
            forget(&lab).await;
        }
    })
    .await;
}

async fn forget(lab: &Lab) {
    lab.forget_sets().await;
    let path = format!("/apis/apps/v1/namespaces/{}/statefulsets", lab.plain());
    let _ = lab.send("DELETE", &path, &json!({"propagationPolicy": "Background"})).await;
}
