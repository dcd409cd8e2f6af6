//! What is added around the PostgreSQL container: volumes, their mounts, and the init container that brings the agent.

use serde_json::{Value, json};

use crate::{
    names::{credential, pod},
    set::{Contract, Data, Set, record::member_directory},
};

/// The volumes of a set's pods.
pub(super) fn volumes(set: &Set) -> Vec<Value> {
    let mut volumes = Vec::new();
    if set.contract == Contract::Agent {
        volumes.push(json!({ "name": pod::RUN_VOLUME, "emptyDir": {} }));
        volumes.push(access(set));
    }
    if let Data::Claim { claim } = &set.data {
        volumes.push(json!({ "name": pod::DATA_VOLUME, "persistentVolumeClaim": { "claimName": claim } }));
    }
    volumes
}

/// The agent's own way to the API server, so that the pod's `automountServiceAccountToken` stays the user's choice, and the
/// passwords as files.
fn access(set: &Set) -> Value {
    let keys = [credential::SUPERUSER, credential::REPLICATION, credential::AGENT];
    let items: Vec<Value> = keys.iter().map(|key| json!({ "key": key, "path": key })).collect();
    json!({
        "name": pod::ACCESS_VOLUME,
        "projected": {
            "sources": [
                { "serviceAccountToken": { "path": pod::TOKEN_FILE, "expirationSeconds": 3607 } },
                {
                    "configMap": {
                        "name": "kube-root-ca.crt",
                        "items": [{ "key": pod::CA_FILE, "path": pod::CA_FILE }],
                    }
                },
                { "secret": { "name": set.credentials, "items": items } },
            ]
        }
    })
}

/// The mounts of the PostgreSQL container.
pub(super) fn mounts(set: &Set) -> Vec<Value> {
    let mut mounts = Vec::new();
    if set.contract == Contract::Agent {
        mounts.push(json!({ "name": pod::RUN_VOLUME, "mountPath": pod::RUN_PATH }));
        mounts.push(json!({ "name": pod::ACCESS_VOLUME, "mountPath": pod::ACCESS_PATH, "readOnly": true }));
    }
    if let Data::Claim { .. } = &set.data {
        mounts.push(json!({
            "name": pod::DATA_VOLUME, "mountPath": pod::DATA_PATH, "subPathExpr": member_directory(),
        }));
    }
    mounts
}

/// The init container that copies the agent into the pod. It passes the restricted Pod Security level whatever the rest of
/// the pod does, and a `ResourceQuota` too.
pub(super) fn init_container(image: &str) -> Value {
    json!({
        "name": pod::INIT_CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [pod::AGENT_PATH_IN_IMAGE, "copy", pod::AGENT_COPY_PATH],
        "volumeMounts": [{ "name": pod::RUN_VOLUME, "mountPath": pod::COPY_PATH }],
        "resources": {
            "requests": { "cpu": "10m", "memory": "16Mi" },
            "limits": { "cpu": "500m", "memory": "64Mi" },
        },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}
