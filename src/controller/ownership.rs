//! Sees to it that what pgset has outside of its namespace goes with the namespace: by an owner reference, which only a running
//! program can write, because it names the namespace by its UID.
//!
//! A webhook configuration that outlives its webhook would hold up every set, and `kubectl delete namespace` is how many uninstall.

use std::time::Duration;

use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::core::ClusterResourceScope;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::{info, warn};

use crate::errors::with_causes;
use crate::names;

/// How often it looks: only who deletes one of them and applies it again makes it necessary.
const PERIOD: Duration = Duration::from_secs(300);
/// How long to wait after a failure: at the start, the API server may not know of our rights yet.
const RETRY: Duration = Duration::from_secs(10);

/// Looks again and again, for ever.
pub async fn keep(client: Client, namespace: String) -> std::convert::Infallible {
    loop {
        let wait = match look(&client, &namespace).await {
            Ok(()) => PERIOD,
            Err(error) => {
                let error = with_causes(&error);
                warn!(
                    error,
                    "failed to bind the webhook configuration and the policies to the namespace: they outlive it"
                );
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn look(client: &Client, namespace: &str) -> kube::Result<()> {
    let Some(found) = Api::<Namespace>::all(client.clone()).get_metadata_opt(namespace).await? else { return Ok(()) };
    let Some(owner) = reference(&found.metadata) else { return Ok(()) };
    own::<MutatingWebhookConfiguration>(client, names::WEBHOOK_CONFIGURATION, &owner).await?;
    for policy in [names::INJECTION_POLICY, names::MEMBERS_POLICY, names::ROLES_POLICY] {
        own::<ValidatingAdmissionPolicy>(client, policy, &owner).await?;
        own::<ValidatingAdmissionPolicyBinding>(client, policy, &owner).await?;
    }
    Ok(())
}

/// Gives one object its owner. One that somebody has deleted stays away.
async fn own<K>(client: &Client, name: &str, owner: &OwnerReference) -> kube::Result<()>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api = Api::<K>::all(client.clone());
    let Some(found) = api.get_metadata_opt(name).await? else { return Ok(()) };
    let Some(patch) = patch(&found.metadata, owner) else { return Ok(()) };
    let parameters = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
    api.patch_metadata(name, &parameters, &Patch::Json::<()>(patch)).await?;
    info!(kind = %K::kind(&()), name, "goes with the namespace from now on");
    Ok(())
}

/// The namespace as an owner. Nothing waits for its end: a deletion must not hang on what it deletes.
fn reference(namespace: &ObjectMeta) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        name: namespace.name.clone()?,
        uid: namespace.uid.clone()?,
        controller: None,
        block_owner_deletion: None,
    })
}

/// What is missing on the object, if anything is; under the condition that it still is the one that was seen.
fn patch(object: &ObjectMeta, owner: &OwnerReference) -> Option<JsonPatch> {
    let owners = object.owner_references.as_deref().unwrap_or_default();
    if owners.iter().any(|other| other.uid == owner.uid) {
        return None;
    }
    let place: &[&str] =
        if owners.is_empty() { &["metadata", "ownerReferences"] } else { &["metadata", "ownerReferences", "-"] };
    let value = json!(owner);
    Some(JsonPatch(vec![
        PatchOperation::Test(TestOperation {
            path: PointerBuf::from_tokens(["metadata", "uid"]),
            value: json!(object.uid),
        }),
        PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(place.iter().copied()),
            value: if owners.is_empty() { json!([value]) } else { value },
        }),
    ]))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn owner(uid: &str) -> OwnerReference {
        reference(&ObjectMeta {
            name: Some("pgset-system".to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        })
        .unwrap()
    }

    fn with_owner(owners: &[OwnerReference]) -> Value {
        let object = ObjectMeta {
            name: Some("pgset".to_owned()),
            uid: Some("its-own".to_owned()),
            owner_references: (!owners.is_empty()).then(|| owners.to_vec()),
            ..ObjectMeta::default()
        };
        let mut value = json!({"metadata": object});
        if let Some(patch) = patch(&object, &owner("namespace")) {
            json_patch::patch(&mut value, &patch).unwrap();
        }
        value["metadata"]["ownerReferences"].take()
    }

    #[test]
    fn the_namespace_is_the_owner_once_beside_those_that_there_are() {
        let ours = json!({"apiVersion": "v1", "kind": "Namespace", "name": "pgset-system", "uid": "namespace"});
        assert_eq!(with_owner(&[]), json!([ours]));
        assert_eq!(with_owner(&[owner("namespace")]), json!([ours]));
        assert_eq!(with_owner(&[owner("other")])[1], ours);
    }

    #[test]
    fn another_object_of_that_name_is_not_patched() {
        let object = ObjectMeta { uid: Some("seen".to_owned()), ..ObjectMeta::default() };
        let patch = patch(&object, &owner("namespace")).unwrap();
        assert!(json_patch::patch(&mut json!({"metadata": {"uid": "another"}}), &patch).is_err());
    }
}
