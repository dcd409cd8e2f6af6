//! What is added around the PostgreSQL container: volumes, their mounts, and the init container that brings the agent.

use serde_json::{Map, Value, json};

use super::revision::Pin;
use crate::{
    names::{self, credential, pod},
    set::{Contract, DataSource, Error, ParsedSet, Set, container::Container, record::member_directory, shape::Shape},
};

/// The volumes of a set's pods.
pub(super) fn volumes(set: &Set, shape: Shape) -> Vec<Value> {
    let mut volumes = Vec::new();
    if set.contract == Contract::Agent {
        volumes.push(json!({ "name": pod::RUN_VOLUME, "emptyDir": {} }));
        volumes.push(access(set, shape));
    }
    if let DataSource::Claim { claim } = &set.data {
        volumes.push(json!({ "name": pod::DATA_VOLUME, "persistentVolumeClaim": { "claimName": claim } }));
    }
    volumes
}

/// The agent's own way to the API server, so that the pod's `automountServiceAccountToken` stays the user's choice, and the
/// passwords as files.
fn access(set: &Set, shape: Shape) -> Value {
    let mut sources = vec![
        json!({ "serviceAccountToken": { "path": pod::TOKEN_FILE, "expirationSeconds": 3607 } }),
        json!({
            "configMap": {
                "name": "kube-root-ca.crt",
                "items": [{ "key": pod::CA_FILE, "path": pod::CA_FILE }],
            }
        }),
    ];
    match shape {
        Shape::First => sources.push(json!({ "secret": { "name": set.credentials, "items": passwords("") } })),
        // What is missing keeps no pod from starting: the agent says what it is, and waits for it.
        Shape::Recorded => {
            let secret = |name: &str, folder: &str| json!({ "secret": { "name": name, "optional": true, "items": passwords(folder) } });
            sources.push(secret(&set.credentials, ""));
            // A set that 0.1.0 injected and that was made anew: its data knows the passwords in the Secret that it had then.
            if set.credentials == names::credentials(&set.name) {
                sources.push(secret(&names::older_credentials(&set.name), pod::OLDER_CREDENTIALS));
            }
            sources.push(store(set));
        }
    }
    json!({ "name": pod::ACCESS_VOLUME, "projected": { "sources": sources } })
}

/// The credentials of the store that backups go to. They may come and change while the pod runs, so that turning backups on restarts nothing.
fn store(set: &Set) -> Value {
    json!({ "secret": { "name": names::backup_credentials(&set.name), "optional": true, "items": store_items() } })
}

/// The keys of that Secret, each with the file that it becomes.
#[must_use]
pub fn store_items() -> Vec<Value> {
    let item = |key: &&str| json!({ "key": key, "path": format!("{}/{key}", pod::BACKUP_CREDENTIALS) });
    names::store::ALL.iter().map(item).collect()
}

/// The keys of a Secret that become files in a folder.
fn passwords(folder: &str) -> Vec<Value> {
    let path = |key: &str| if folder.is_empty() { key.to_owned() } else { format!("{folder}/{key}") };
    let keys = [credential::SUPERUSER, credential::REPLICATION, credential::AGENT];
    keys.iter().map(|key| json!({ "key": key, "path": path(key) })).collect()
}

/// The mounts of the PostgreSQL container.
pub(super) fn mounts(set: &Set) -> Vec<Value> {
    let mut mounts = Vec::new();
    if set.contract == Contract::Agent {
        mounts.push(json!({ "name": pod::RUN_VOLUME, "mountPath": pod::RUN_PATH }));
        mounts.push(json!({ "name": pod::ACCESS_VOLUME, "mountPath": pod::ACCESS_PATH, "readOnly": true }));
    }
    if let DataSource::Claim { .. } = &set.data {
        mounts.push(json!({
            "name": pod::DATA_VOLUME, "mountPath": pod::DATA_PATH, "subPathExpr": member_directory(),
        }));
    }
    mounts
}

/// The user of the agent's image.
const USER: u32 = 65532;

/// The init container that copies the agent into the pod. It passes the restricted Pod Security level whatever the rest of
/// the pod does.
pub(super) fn init_container(pin: &Pin, parsed: &ParsedSet<'_>) -> Result<Value, Error> {
    let mut container = json!({
        "name": pod::INIT_CONTAINER,
        "image": pin.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [pod::AGENT_PATH_IN_IMAGE, "copy", pod::AGENT_COPY_PATH],
        "volumeMounts": [{ "name": pod::RUN_VOLUME, "mountPath": pod::COPY_PATH }],
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    });
    // OpenShift gives each namespace users of its own and refuses any other: where the pod names none, the image's own does.
    let user = parsed.object.at(&["spec", "template", "spec", "securityContext", "runAsUser"])?;
    let is_root = user.value().and_then(Value::as_u64) == Some(0);
    if (pin.shape == Shape::First || is_root)
        && let Some(context) = container.get_mut("securityContext").and_then(Value::as_object_mut)
    {
        context.insert("runAsUser".to_owned(), json!(USER));
        context.insert("runAsGroup".to_owned(), json!(USER));
    }
    let resources = resources(&parsed.container);
    if let (Some(container), false) = (container.as_object_mut(), resources.is_empty()) {
        container.insert("resources".to_owned(), Value::Object(resources));
    }
    Ok(container)
}

/// The resources of the PostgreSQL container, for the init container: what a quota or a `LimitRange` says of one it then
/// says of the other, the pod keeps its quality of service, and needs no more than it did, since the two run one after the
/// other. Devices and claims are PostgreSQL's alone.
fn resources(postgres: &Container<'_>) -> Map<String, Value> {
    let all = postgres.field.value().and_then(|container| container.get("resources"));
    let common = |list: &str| {
        let amounts = all?.get(list)?.as_object()?.iter();
        let amounts: Map<String, Value> = amounts
            .filter(|(resource, _)| matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage"))
            .map(|(resource, amount)| (resource.clone(), amount.clone()))
            .collect();
        (!amounts.is_empty()).then(|| (list.to_owned(), Value::Object(amounts)))
    };
    ["requests", "limits"].into_iter().filter_map(common).collect()
}
