//! The sets that the tests apply: the example, and changes of it.

use serde_json::{Value, json};

/// A set like `deploy/examples/pgset.yaml`, to be changed by a test.
#[derive(Clone)]
pub struct Set {
    object: Value,
}

/// The example, with another name: two members on the shared claim `pgset-pvc`.
pub fn set(name: &str) -> Set {
    plain(name).replicas(2).annotation("pgset.dev/inject", "enabled").annotation("pgset.dev/claim", "pgset-pvc")
}

/// A set as it was before pgset: one member, no annotation, no volume.
pub fn plain(name: &str) -> Set {
    Set {
        object: json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
            "spec": {
                "serviceName": name, "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{
                        "name": "postgres", "image": "postgres:17", "ports": [{"name": "postgres", "containerPort": 5432}],
                    }]},
                },
            },
        }),
    }
}

impl Set {
    pub fn replicas(self, replicas: u32) -> Self {
        self.with("/spec/replicas", json!(replicas))
    }

    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.with(&format!("/metadata/annotations/{}", key.replace('/', "~1")), json!(value))
    }

    /// Sets a field, given as a JSON pointer; what is missing on the way is made. `-` is one more of a list.
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.object;
        for token in pointer.split('/').skip(1) {
            let token = token.replace("~1", "/");
            place = if token == "-" {
                if place.is_null() {
                    *place = json!([]);
                }
                let list = place.as_array_mut().expect("a list");
                list.push(Value::Null);
                list.last_mut().unwrap()
            } else if place.is_array() {
                &mut place[token.parse::<usize>().expect("an index")]
            } else {
                &mut place[token.as_str()]
            };
        }
        *place = value;
        self
    }

    /// Sets a field of the first container.
    pub fn container(self, field: &str, value: Value) -> Self {
        self.with(&format!("/spec/template/spec/containers/0/{field}"), value)
    }

    /// Sets a field of the pods.
    pub fn pod(self, field: &str, value: Value) -> Self {
        self.with(&format!("/spec/template/spec/{field}"), value)
    }

    pub fn env(self, name: &str, value: &str) -> Self {
        self.container("env/-", json!({"name": name, "value": value}))
    }

    /// A volume of each member's own, mounted there.
    pub fn own_volume(self, name: &str, path: &str) -> Self {
        self.container("volumeMounts/-", json!({"name": name, "mountPath": path})).with(
            "/spec/volumeClaimTemplates/-",
            json!({
                "metadata": {"name": name},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }),
        )
    }

    /// A claim that all members share, mounted there.
    pub fn shared_volume(self, name: &str, claim: &str, path: &str) -> Self {
        self.container("volumeMounts/-", json!({"name": name, "mountPath": path}))
            .pod("volumes/-", json!({"name": name, "persistentVolumeClaim": {"claimName": claim}}))
    }

    pub fn manifest(&self) -> String {
        self.object.to_string()
    }
}

/// Several objects as one manifest.
pub fn list(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// An example as it is in the repository.
pub fn example(name: &str) -> String {
    let path = format!("{}/deploy/examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}
