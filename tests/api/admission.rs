//! What the API server sends to the webhook, and what a user sees of its answers.

use kube::api::{Patch, PatchParams};
use pgset::names::annotation;
use serde_json::json;

use super::harness::{stateful_set, with_webhook};

#[tokio::test]
async fn only_what_speaks_of_pgset_is_sent() {
    with_webhook(async |lab| {
        let metadata = |name: &str, annotations: serde_json::Value| {
            stateful_set(&json!({"metadata": {"name": name, "annotations": annotations}}))
        };
        let template = |name: &str, annotations: serde_json::Value| {
            let template = json!({"metadata": {"annotations": annotations}});
            stateful_set(&json!({"metadata": {"name": name}, "spec": {"template": template}}))
        };
        for object in [
            stateful_set(&json!({"metadata": {"name": "plain"}})),
            metadata("others", json!({"example.org/inject": "enabled", "pgset": "x"})),
            template("others-template", json!({"example.org/pgset.dev": "x"})),
        ] {
            let (stored, warnings) = lab.dry_run(&object).await.unwrap();
            assert!(!lab.was_asked(object["metadata"]["name"].as_str().unwrap()));
            assert_eq!(
                (stored["metadata"]["annotations"].clone(), warnings),
                (object["metadata"]["annotations"].clone(), vec![])
            );
        }
        for object in [
            metadata("asks", json!({annotation::INJECT: "enabled"})),
            metadata("misspelled", json!({"pgset.dev/injekt": "enabled"})),
            template("misplaced", json!({annotation::INJECT: "enabled"})),
        ] {
            let _ = lab.dry_run(&object).await;
            assert!(lab.was_asked(object["metadata"]["name"].as_str().unwrap()));
        }
    })
    .await;
}

#[tokio::test]
async fn an_injected_set_is_stored_stays_as_it_is_and_is_heard_of_when_it_leaves() {
    with_webhook(async |lab| {
        let object = stateful_set(&json!({"metadata": {"annotations": {annotation::INJECT: "enabled"}}}));
        let (preview, _) = lab.dry_run(&object).await.unwrap();
        assert_eq!(preview["spec"]["template"]["spec"]["initContainers"][0]["name"], pgset::names::pod::INIT_CONTAINER);

        let path = format!("/apis/apps/v1/namespaces/{}/statefulsets", lab.name);
        let (stored, _) = lab.send("POST", &path, &object).await.unwrap();
        assert_eq!(preview["spec"], stored["spec"], "a server-side dry run is an exact preview");
        assert_eq!(stored["metadata"]["generation"], 1);

        // The same once more, as `kubectl apply` and `kubectl replace` send it.
        let apply = PatchParams::apply("somebody").force();
        for _ in 0..2 {
            let applied = lab.sets().patch("db", &apply, &Patch::Apply(&object)).await.unwrap();
            assert_eq!(applied.metadata.generation, Some(1), "nothing changes");
        }
        let mut replacement = stored.clone();
        replacement["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        let (again, _) = lab.send("PUT", &format!("{path}/db"), &replacement).await.unwrap();
        assert_eq!(again["metadata"]["generation"], 1);

        // Scaling is not ours to see, and never fails on us.
        let scale = Patch::Merge(json!({"spec": {"replicas": 1}}));
        let scaled = lab.sets().patch_scale("db", &PatchParams::default(), &scale).await.unwrap();
        assert_eq!(scaled.spec.unwrap().replicas, Some(1));

        // Only the old object speaks of pgset by its annotation now; what was injected goes with it.
        let leave = Patch::Merge(json!({"metadata": {"annotations": {annotation::INJECT: null}}}));
        let left = lab.sets().patch("db", &PatchParams::default(), &leave).await.unwrap();
        let annotations = left.metadata.annotations.unwrap_or_default();
        assert!(!annotations.keys().any(|key| key.starts_with(pgset::names::PREFIX)), "{annotations:?}");
        let pod = left.spec.unwrap().template.spec.unwrap();
        assert!(pod.init_containers.is_none() && pod.containers[0].command.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_denial_tells_the_object_and_what_to_change() {
    with_webhook(async |lab| {
        let annotations = json!({annotation::INJECT: "enabled", annotation::FAILOVER: "sometimes"});
        let object = stateful_set(&json!({"metadata": {"annotations": annotations}}));
        let status = lab.dry_run(&object).await.unwrap_err();
        assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"));
        for text in ["inject.pgset.dev", "denied the request", annotation::FAILOVER, "sometimes", "automatic", "manual"]
        {
            assert!(status.message.contains(text), "{text} in {}", status.message);
        }
        let details = status.details.unwrap();
        assert_eq!((details.kind.as_str(), details.name.as_str()), ("StatefulSet", "db"));
    })
    .await;
}

#[tokio::test]
async fn an_annotation_in_the_wrong_place_is_a_warning() {
    with_webhook(async |lab| {
        let template = json!({"metadata": {"annotations": {annotation::INJECT: "enabled"}}});
        let (stored, warnings) = lab.dry_run(&stateful_set(&json!({"spec": {"template": template}}))).await.unwrap();
        assert!(stored["spec"]["template"]["spec"]["initContainers"].is_null());
        assert!(warnings.iter().any(|warning| warning.contains(annotation::INJECT)), "{warnings:?}");
        assert!(warnings.iter().all(|warning| warning.chars().count() <= 120), "{warnings:?}");
    })
    .await;
}
