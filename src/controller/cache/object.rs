//! An object beside a set: its JSON text without the names and without what nobody reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::ResourceExt;
use kube::api::{DynamicObject, ObjectMeta};
use serde_json::{Value, json};

use super::interner::{Interner, Names, with_names};
use crate::names;

/// The fields that are read beside `metadata`, of any kind: what pgset itself says of its objects, and what it wants to know of other
/// people's Services.
const FIELDS: [&str; 6] = ["spec", "rules", "roleRef", "subjects", "addressType", "endpoints"];
/// Of `spec`. Of a Lease it is the holder: the rest changes every few seconds.
const SPEC: [&str; 7] =
    ["type", "selector", "ports", "publishNotReadyAddresses", "clusterIP", "maxUnavailable", "holderIdentity"];
/// Of an endpoint: which pod it is, and whether it is ready.
const ENDPOINT: [&str; 2] = ["targetRef", "conditions"];
const TARGET: [&str; 2] = ["name", "uid"];

/// An object as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedObject {
    /// The set that it is labelled with; empty if with none.
    set: Box<str>,
    /// The UID of its controller; empty if it has none.
    owner: Box<str>,
    uid: Box<str>,
    /// Known of other people's objects only: those are changed on the condition that they still are what was seen.
    version: Option<Box<str>>,
    text: Arc<str>,
}

impl CachedObject {
    /// An object, to be kept.
    #[must_use]
    pub fn new(object: &DynamicObject, interner: &Interner) -> Self {
        let owner = object.owner_references().iter().find(|owner| owner.controller == Some(true));
        let owner = owner.map(|owner| owner.uid.as_str()).unwrap_or_default();
        let set = set_of(object).unwrap_or_default();
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let version = object.metadata.resource_version.as_deref().filter(|_| !is_made_for_a_set(object));
        Self {
            set: set.into(),
            owner: owner.into(),
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            version: version.map(Box::from),
            text: interner.intern(&reduced(object).to_string(), Names { set, namespace, owner }),
        }
    }

    /// Whether nothing differs that anybody reads, versions apart.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        *self == Self { version: self.version.clone(), ..other.clone() }
    }

    /// The object, without what nobody reads.
    #[must_use]
    pub fn value(&self, namespace: &str) -> Value {
        let names = Names { set: &self.set, namespace, owner: &self.owner };
        let mut object: Value = serde_json::from_str(&with_names(&self.text, names)).unwrap_or_default();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("uid".to_owned(), Value::from(self.uid.as_ref()));
            if let Some(version) = &self.version {
                metadata.insert("resourceVersion".to_owned(), Value::from(version.as_ref()));
            }
        }
        object
    }
}

/// The set that an object is labelled with.
#[must_use]
pub fn set_of(object: &impl ResourceExt) -> Option<&str> {
    object.labels().get(names::label::SET).map(String::as_str)
}

/// Whether pgset made an object for a set, by its labels; what is not so is somebody else's.
#[must_use]
pub fn is_made_for_a_set(object: &impl ResourceExt) -> bool {
    set_of(object).is_some()
        && object.labels().get(names::label::MANAGED_BY).is_some_and(|manager| manager == names::MANAGER)
}

/// What is read of an object; UID and version are kept apart.
fn reduced(object: &DynamicObject) -> Value {
    let ObjectMeta { name, namespace, labels, owner_references, deletion_timestamp, .. } = object.metadata.clone();
    let annotations = object.annotations().iter().filter(|(key, _)| is_read(key));
    let annotations: BTreeMap<_, _> = annotations.map(|(key, value)| (key.clone(), value.clone())).collect();
    let annotations = Some(annotations);
    let metadata = ObjectMeta {
        name,
        namespace,
        labels,
        annotations,
        owner_references,
        deletion_timestamp,
        ..ObjectMeta::default()
    };
    let mut reduced = json!({ "metadata": metadata });
    for field in FIELDS {
        if let Some(value) = object.data.get(field) {
            reduced[field] = value.clone();
        }
    }
    if let Some(spec) = reduced.get_mut("spec") {
        retain(spec, &SPEC);
        // An address of its own is as good as any other: asked for is only whether there is none.
        if spec.get("clusterIP").is_some_and(|address| address != "None") {
            spec.as_object_mut().map(|spec| spec.remove("clusterIP"));
        }
    }
    for endpoint in reduced.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
        retain(endpoint, &ENDPOINT);
        if let Some(target) = endpoint.get_mut("targetRef") {
            retain(target, &TARGET);
        }
    }
    reduced
}

/// Whether pgset reads an annotation. What a master notes on its Lease changes with every renewal.
fn is_read(annotation: &str) -> bool {
    annotation == names::slice::WRITTEN_AT
        || (annotation.starts_with(names::PREFIX) && !names::lease::OF_THE_MASTER.contains(&annotation))
}

fn retain(object: &mut Value, fields: &[&str]) {
    if let Some(object) = object.as_object_mut() {
        object.retain(|key, _| fields.contains(&key.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::children::Kind;
    use crate::children::compare::{Ownership, correction, ownership};
    use crate::children::leader;
    use crate::children::tests::{all, article, owner, pgset, stored};
    use crate::controller::selection::Service;

    fn cached(live: &Value) -> CachedObject {
        CachedObject::new(&serde_json::from_value(live.clone()).unwrap(), &Interner::default())
    }

    #[test]
    fn what_pgset_makes_is_kept_so_that_it_is_known_again_as_right() {
        for set in [pgset(), article()] {
            for child in all(&set) {
                let live = cached(&stored(&child.body, "its-own")).value("shop");
                assert_eq!(correction(&live, &child.body), None, "{live} for {}", child.body);
                assert_eq!(ownership(child.kind, &live, &owner()), Ownership::Ours);
                assert_eq!(live["metadata"]["uid"], "its-own");
            }
        }
    }

    #[test]
    fn what_somebody_changed_on_it_is_seen() {
        for child in all(&pgset()) {
            let mut live = stored(&child.body, "its-own");
            live["metadata"]["labels"]["app.kubernetes.io/managed-by"] = json!("somebody");
            assert!(correction(&cached(&live).value("shop"), &child.body).is_some(), "{}", child.kind);
            let mut live = stored(&child.body, "its-own");
            let field = match child.kind {
                Kind::Service => "/spec/selector",
                Kind::PodDisruptionBudget => "/spec/maxUnavailable",
                Kind::Role => "/rules/0/verbs",
                Kind::RoleBinding => "/subjects/0/name",
                Kind::ServiceAccount | Kind::Lease | Kind::EndpointSlice => continue,
            };
            *live.pointer_mut(field).unwrap() = json!("changed");
            assert!(correction(&cached(&live).value("shop"), &child.body).is_some(), "{}", child.kind);
        }
    }

    #[test]
    fn the_objects_of_two_sets_share_their_text() {
        let interner = Interner::default();
        for child in all(&pgset()) {
            let live = stored(&child.body, "its-own").to_string();
            // But for what pgset itself is called, of course.
            let renamed = live.replace("pgset", "orders").replace("orders.dev/", "pgset.dev/");
            let renamed = renamed.replace("-by\":\"orders", "-by\":\"pgset").replace("set-uid", "another-uid");
            let [one, another] =
                [live, renamed].map(|json| CachedObject::new(&serde_json::from_str(&json).unwrap(), &interner));
            assert_eq!((&*one.set, &*another.set), ("pgset", "orders"));
            // A set that is called as pgset itself has other texts than all others, and that is all.
            let names = Names { set: "pgset", namespace: "shop", owner: "set-uid" };
            assert_eq!(with_names(&another.text, names), with_names(&one.text, names));
        }
    }

    #[test]
    fn a_renewed_lease_is_kept_alike_and_its_holder_is_known() {
        let lease = |time: &str, version: &str| {
            cached(&json!({
                "metadata": { "name": "pgset-leader", "namespace": "shop", "uid": "u", "resourceVersion": version,
                    "labels": { "pgset.dev/set": "pgset", "app.kubernetes.io/managed-by": "pgset" },
                    "annotations": { "pgset.dev/system-identifier": "7", "pgset.dev/flushed": version } },
                "spec": { "holderIdentity": "pgset-0", "renewTime": time, "leaseDurationSeconds": 6 },
            }))
        };
        let (one, two) = (lease("2026-01-01T00:00:00Z", "1"), lease("2026-01-01T00:00:06Z", "2"));
        assert_eq!(one.text, two.text);
        assert_eq!(two.value("shop")["spec"], json!({ "holderIdentity": "pgset-0" }));
        assert!(leader::remembers_a_database(&two.value("shop")));
    }

    #[test]
    fn a_service_of_somebody_elses_is_kept_as_far_as_it_is_judged() {
        let live = json!({
            "metadata": {
                "name": "postgres", "namespace": "shop", "uid": "u", "resourceVersion": "7", "managedFields": [{}],
                "annotations": { "pgset.dev/follow": "master", "kubectl.kubernetes.io/last-applied-configuration": "{}" },
            },
            "spec": { "selector": { "app": "pgset" }, "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
                "ports": [{ "port": 5432, "targetPort": "db" }] },
            "status": { "loadBalancer": {} },
        });
        let value = cached(&live).value("shop");
        assert_eq!(Service::read(&value), Service::read(&live));
        assert_eq!((value.get("status"), value["metadata"].get("managedFields")), (None, None));
        let mut headless = live;
        headless["spec"]["clusterIP"] = json!("None");
        assert_eq!(Service::read(&cached(&headless).value("shop")), Service::read(&headless));
    }
}
