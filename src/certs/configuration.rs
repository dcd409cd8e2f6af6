//! The `caBundle` of the `MutatingWebhookConfiguration`: the only field of it that is ever changed.

use json_patch::{AddOperation, Patch, PatchOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::{ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration};
use serde_json::Value;

use super::certificate::Certificate;
use crate::errors::with_causes;

/// Why an API server would refuse the certificate: the first entry whose bundle does not verify it. `None` if all do.
pub(super) fn refusal(
    configuration: &MutatingWebhookConfiguration,
    certificate: &Certificate,
    name: &str,
    now: u64,
) -> Option<String> {
    configuration.webhooks.iter().flatten().find_map(|webhook| {
        let bundle = webhook.client_config.ca_bundle.as_ref().filter(|bundle| !bundle.0.is_empty());
        let reason = match bundle.map(|bundle| certificate.verifies(&bundle.0, name, now)) {
            Some(Ok(())) => return None,
            Some(Err(error)) => with_causes(&error),
            None => "it has no caBundle yet".to_owned(),
        };
        Some(format!("entry {} of the webhook configuration: {reason}", webhook.name))
    })
}

/// Whether every entry of the configuration has the bundle.
pub(super) fn is_in_sync(configuration: &MutatingWebhookConfiguration, bundle: &str) -> bool {
    patch(configuration, bundle).is_none()
}

/// What brings the bundle into every entry that lacks it; `None` if none does.
///
/// An index could mean another entry by the time the patch arrives, so each is tested by name first.
pub(super) fn patch(configuration: &MutatingWebhookConfiguration, bundle: &str) -> Option<Patch> {
    let bundle = ByteString(bundle.as_bytes().to_vec());
    let value = serde_json::to_value(&bundle).unwrap_or_default();
    let mut operations = Vec::new();
    for (index, webhook) in configuration.webhooks.iter().flatten().enumerate() {
        if webhook.client_config.ca_bundle.as_ref() == Some(&bundle) {
            continue;
        }
        let index = index.to_string();
        operations.push(PatchOperation::Test(TestOperation {
            path: PointerBuf::from_tokens(["webhooks", &index, "name"]),
            value: Value::String(webhook.name.clone()),
        }));
        operations.push(PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(["webhooks", &index, "clientConfig", "caBundle"]),
            value: value.clone(),
        }));
    }
    (!operations.is_empty()).then_some(Patch(operations))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::certs::Material;

    fn configuration(bundles: &[Option<&str>]) -> Value {
        let entry = |(index, bundle): (usize, Option<&str>)| {
            let mut entry = json!({
                "name": format!("{index}.pgset.dev"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"service": {"namespace": "pgset-system", "name": "pgset-webhook"}}
            });
            if let Some(bundle) = bundle {
                entry["clientConfig"]["caBundle"] =
                    serde_json::to_value(ByteString(bundle.as_bytes().to_vec())).unwrap();
            }
            entry
        };
        let entries: Vec<Value> = bundles.iter().copied().enumerate().map(entry).collect();
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "pgset"}, "webhooks": entries})
    }

    #[test]
    fn every_entry_gets_the_bundle_and_nothing_else_changes() {
        let mut object = configuration(&[None, Some("new"), Some("old"), Some("")]);
        let read = serde_json::from_value(object.clone()).unwrap();
        assert!(!is_in_sync(&read, "new"));
        json_patch::patch(&mut object, &patch(&read, "new").unwrap()).unwrap();
        assert_eq!(object, configuration(&[Some("new"); 4]));
        assert!(is_in_sync(&serde_json::from_value(object).unwrap(), "new"));
    }

    #[test]
    fn only_a_bundle_that_verifies_in_every_entry_is_no_refusal() {
        let material = |name: &str| Material::new(&[name.to_owned()], 1_800_000_000).unwrap();
        let (ours, stranger) = (material("ours.svc"), material("ours.svc"));
        let certificate = ours.certificate().unwrap();
        let refused = |bundles: &[Option<&str>], name: &str, now: u64| {
            refusal(&serde_json::from_value(configuration(bundles)).unwrap(), &certificate, name, now)
        };
        let (good, foreign) = (Some(ours.bundle()), Some(stranger.bundle()));
        let both = format!("{}{}", stranger.bundle(), ours.bundle());
        for fine in [&[good, good][..], &[good, Some(&both)], &[]] {
            assert_eq!(refused(fine, "ours.svc", 1_800_000_000), None);
        }
        for (bundles, entry, why) in [
            (&[good, None][..], "1.pgset.dev", "no caBundle"),
            (&[Some(""), good], "0.pgset.dev", "no caBundle"),
            (&[good, foreign], "1.pgset.dev", "refuses"),
            (&[Some("nonsense"), good], "0.pgset.dev", "PEM"),
        ] {
            let reason = refused(bundles, "ours.svc", 1_800_000_000).unwrap();
            assert!(reason.contains(entry) && reason.contains(why), "{reason}");
        }
        for (name, now, why) in
            [("other.svc", 1_800_000_000, "not valid for name"), ("ours.svc", 1_900_000_000, "xpired")]
        {
            let reason = refused(&[good], name, now).unwrap();
            assert!(reason.contains(why), "{reason}");
        }
    }

    #[test]
    fn an_entry_that_moved_is_not_patched() {
        let read = serde_json::from_value(configuration(&[None, None])).unwrap();
        let mut object = configuration(&[None, None]);
        object["webhooks"].as_array_mut().unwrap().reverse();
        json_patch::patch(&mut object, &patch(&read, "new").unwrap()).unwrap_err();
    }
}
