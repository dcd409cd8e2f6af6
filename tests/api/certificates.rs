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

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
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
        let wiped = [
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
        let managers = lab.configurations().get(&lab.name).await.unwrap().metadata.managed_fields.unwrap();
        let ours = managers.iter().find(|entry| entry.manager.as_deref() == Some("pgset-certificates")).unwrap();
        let fields = serde_json::to_string(&ours.fields_v1).unwrap();
        assert!(fields.contains("caBundle") && !fields.contains("f:rules"), "only caBundle is ours: {fields}");

        let version = lab.configurations().get(&lab.name).await.unwrap().metadata.resource_version;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(
            lab.configurations().get(&lab.name).await.unwrap().metadata.resource_version,
            version,
            "and then rests"
        );
    })
    .await;
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
