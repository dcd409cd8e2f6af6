//! Certificates and `caBundle`, with an API server that verifies them.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use pgset::{
    certs::Material,
    names::{self, annotation},
};
use serde_json::json;

use super::harness::{Lab, PATIENCE, stateful_set, with_webhook};

async fn bundles(lab: &Lab) -> Vec<Option<ByteString>> {
    let found = lab.configurations().get(&lab.name).await.unwrap();
    found.webhooks.unwrap().into_iter().map(|webhook| webhook.client_config.ca_bundle).collect()
}

async fn secret(lab: &Lab) -> Option<Secret> {
    Api::<Secret>::namespaced(lab.client.clone(), &lab.name).get_opt(names::CERTIFICATES_SECRET).await.unwrap()
}

pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    started.elapsed()
}

#[tokio::test]
async fn a_wiped_or_foreign_ca_bundle_is_healed_in_every_entry() {
    with_webhook(async |lab| {
        let whole = bundles(&lab).await;
        assert_eq!(whole.len(), 2);
        assert!(whole[0].is_some() && whole[0] == whole[1]);
        let foreign = secret_of_somebody_else();
        let empty = ByteString(Vec::new());
        let wiped = [
            json!([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": empty},
                   {"op": "replace", "path": "/webhooks/1/clientConfig/caBundle", "value": empty}]),
            json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]),
            json!([{"op": "remove", "path": "/webhooks/1/clientConfig/caBundle"}]),
            json!([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": foreign},
                   {"op": "replace", "path": "/webhooks/1/clientConfig/caBundle", "value": foreign}]),
        ];
        for patch in wiped {
            let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
            lab.configurations().patch(&lab.name, &PatchParams::default(), &Patch::Json::<()>(patch)).await.unwrap();
            let took = until("caBundle is healed", async || bundles(&lab).await == whole).await;
            assert!(took < Duration::from_secs(5), "{took:?}");
        }
        let ours = fields_of(&lab, "pgset-certificates").await;
        assert!(!ours.is_empty());
        for field in &ours {
            assert!(field.ends_with("/f:clientConfig/f:caBundle"), "only caBundle is ours: {ours:?}");
        }
        rests(&lab).await;
    })
    .await;
}

#[tokio::test]
async fn another_hand_on_the_selector_is_left_alone() {
    with_webhook(async |lab| {
        let whole = bundles(&lab).await;
        // As Azure's admission enforcer does it.
        let excluded = json!({"key": "control-plane", "operator": "DoesNotExist"});
        let edit =
            json!([{"op": "add", "path": "/webhooks/0/namespaceSelector/matchExpressions/-", "value": excluded}]);
        let patch: json_patch::Patch = serde_json::from_value(edit).unwrap();
        let enforcer = PatchParams { field_manager: Some("admissionsenforcer".to_owned()), ..PatchParams::default() };
        lab.configurations().patch(&lab.name, &enforcer, &Patch::Json::<()>(patch)).await.unwrap();
        rests(&lab).await;
        let found = serde_json::to_value(lab.configurations().get(&lab.name).await.unwrap()).unwrap();
        let expressions = found["webhooks"][0]["namespaceSelector"]["matchExpressions"].as_array().unwrap();
        assert!(expressions.contains(&excluded));
        assert_eq!(bundles(&lab).await, whole);
    })
    .await;
}

#[tokio::test]
async fn the_manifest_can_be_applied_again_and_again_and_keeps_its_ca_bundle() {
    with_webhook(async |lab| {
        let whole = bundles(&lab).await;
        let mut manifest = serde_json::to_value(lab.configurations().get(&lab.name).await.unwrap()).unwrap();
        manifest["metadata"] = json!({"name": lab.name, "labels": manifest["metadata"]["labels"],
            "annotations": manifest["metadata"]["annotations"]});
        manifest["apiVersion"] = json!("admissionregistration.k8s.io/v1");
        manifest["kind"] = json!("MutatingWebhookConfiguration");
        for webhook in manifest["webhooks"].as_array_mut().unwrap() {
            webhook["clientConfig"].as_object_mut().unwrap().shift_remove("caBundle");
        }
        // Without force, as Helm 4 and Flux do it: a conflict would be an error.
        let helm = PatchParams::apply("helm");
        for _ in 0..2 {
            lab.configurations().patch(&lab.name, &helm, &Patch::Apply(&manifest)).await.unwrap();
            assert_eq!(bundles(&lab).await, whole);
        }
        let theirs = fields_of(&lab, "helm").await;
        assert!(theirs.iter().any(|field| field.ends_with("f:failurePolicy")), "{theirs:?}");
        assert!(!theirs.iter().any(|field| field.contains("caBundle")), "{theirs:?}");
        rests(&lab).await;
    })
    .await;
}

/// The paths of the fields of the webhook configuration that a manager has set.
async fn fields_of(lab: &Lab, manager: &str) -> Vec<String> {
    let managers = lab.configurations().get(&lab.name).await.unwrap().metadata.managed_fields.unwrap();
    let theirs = managers.iter().filter(|entry| entry.manager.as_deref() == Some(manager));
    theirs.flat_map(|entry| leaves("", &serde_json::to_value(&entry.fields_v1).unwrap())).collect()
}

fn leaves(path: &str, fields: &serde_json::Value) -> Vec<String> {
    match fields.as_object().filter(|fields| !fields.is_empty()) {
        Some(fields) => fields.iter().flat_map(|(key, below)| leaves(&format!("{path}/{key}"), below)).collect(),
        None => vec![path.to_owned()],
    }
}

/// Nobody writes the configuration, for a while in which a quarrel would show.
async fn rests(lab: &Lab) {
    let version = async || lab.configurations().get(&lab.name).await.unwrap().metadata.resource_version;
    let before = version().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(version().await, before, "somebody writes on and on");
}

fn secret_of_somebody_else() -> ByteString {
    let names = ["elsewhere".to_owned()];
    ByteString(Material::new(&names, 1_700_000_000).unwrap().bundle().as_bytes().to_vec())
}

#[tokio::test]
async fn deleting_the_secret_makes_a_new_authority_and_no_admission_fails() {
    with_webhook(async |lab| {
        let before = secret(&lab).await.unwrap().data.unwrap();
        let object = stateful_set(&json!({"metadata": {"annotations": {annotation::INJECT: "enabled"}}}));
        let admissions = tokio::spawn({
            let (lab, object) = (lab.clone(), object.clone());
            async move { admit_for(&lab, &object, Duration::from_secs(14)).await }
        });
        let secrets = Api::<Secret>::namespaced(lab.client.clone(), &lab.name);
        secrets.delete(names::CERTIFICATES_SECRET, &DeleteParams::default()).await.unwrap();
        until("there is a Secret again", async || secret(&lab).await.is_some()).await;
        let after = secret(&lab).await.unwrap().data.unwrap();
        assert_ne!(before["ca.crt"], after["ca.crt"]);
        let bundle = String::from_utf8(after["ca-bundle.crt"].0.clone()).unwrap();
        assert!(
            bundle.contains(std::str::from_utf8(&before["ca.crt"].0).unwrap().trim()),
            "the old one stays in the bundle"
        );
        until("the new bundle is published", async || {
            bundles(&lab).await.iter().all(|found| found.as_ref() == Some(&after["ca-bundle.crt"]))
        })
        .await;
        // While the first replica still serves the old certificate, and after it serves the new one.
        assert!(admissions.await.unwrap() > 20);
    })
    .await;
}

/// Admissions in a row, each of which must succeed: how many there were.
async fn admit_for(lab: &Arc<Lab>, object: &serde_json::Value, time: Duration) -> u32 {
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < time {
        lab.dry_run(object).await.unwrap_or_else(|status| panic!("after {count}: {}", status.message));
        count += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    count
}

#[tokio::test]
async fn two_replicas_that_start_at_once_share_one_authority_and_rest() {
    with_webhook(async |lab| {
        // Trusted already, one may have yet to hear of the other's last write.
        for reports in &lab.reports {
            let mut reports = reports.clone();
            let in_sync = tokio::time::timeout(PATIENCE, reports.wait_for(|report| report.in_sync)).await;
            assert!(in_sync.is_ok(), "{:?}", lab.reports);
        }
        assert_eq!(*lab.reports[0].borrow(), *lab.reports[1].borrow());
        let version = secret(&lab).await.unwrap().metadata.resource_version;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(secret(&lab).await.unwrap().metadata.resource_version, version);
    })
    .await;
}

#[tokio::test]
async fn what_is_old_is_renewed() {
    with_webhook(async |lab| {
        const DAY: u64 = 24 * 60 * 60;
        let names = [lab.address.to_string()];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        for (days, same_authority) in [(70, true), (300, false)] {
            let old = Material::new(&names, now - days * DAY).unwrap().to_secret();
            let secrets = Api::<Secret>::namespaced(lab.client.clone(), &lab.name);
            let patch = Patch::Merge(json!({"data": old}));
            secrets.patch(names::CERTIFICATES_SECRET, &PatchParams::default(), &patch).await.unwrap();
            until("the certificate is renewed", async || {
                secret(&lab).await.is_some_and(|found| found.data.unwrap()["tls.crt"] != old["tls.crt"])
            })
            .await;
            let new = secret(&lab).await.unwrap().data.unwrap();
            assert_eq!(new["ca.crt"] == old["ca.crt"], same_authority);
            assert_eq!(Material::from_secret(&new).unwrap().due(&names, now), None);
        }
    })
    .await;
}

#[tokio::test]
async fn a_damaged_secret_is_replaced() {
    with_webhook(async |lab| {
        let secrets = Api::<Secret>::namespaced(lab.client.clone(), &lab.name);
        let damaged = json!({"data": {"tls.key": null}, "metadata": {"labels": {"kept": "yes"}}});
        secrets.patch(names::CERTIFICATES_SECRET, &PatchParams::default(), &Patch::Merge(damaged)).await.unwrap();
        until("the key is back", async || {
            secret(&lab).await.is_some_and(|found| found.data.unwrap().contains_key("tls.key"))
        })
        .await;
        assert_eq!(secret(&lab).await.unwrap().metadata.labels.unwrap()["kept"], "yes");
    })
    .await;
}
