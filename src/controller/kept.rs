//! What the controller keeps of the objects around the sets: of ten thousand sets there are a hundred thousand. Only what is read
//! is kept, as JSON text without the names, which objects of many sets share.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::plan::Member;
use super::pods::{Readiness, SeenPod};
use super::shape::{Names, Shapes, unfold};
use crate::children::Kind;
use crate::children::route::AddressType;
use crate::names;

/// The fields that are read, of any kind: what pgset itself says of its objects, and what it wants to know of other people's Services.
const FIELDS: [&str; 7] = ["metadata", "spec", "rules", "roleRef", "subjects", "addressType", "endpoints"];
/// Of `metadata`; UID and version are kept apart.
const METADATA: [&str; 6] = ["name", "namespace", "labels", "annotations", "ownerReferences", "deletionTimestamp"];
/// Of `spec`. Of a Lease it is the holder: the rest changes every few seconds.
const SPEC: [&str; 7] =
    ["type", "selector", "ports", "publishNotReadyAddresses", "clusterIP", "maxUnavailable", "holderIdentity"];
/// Of an endpoint: which pod it is, and whether it is ready.
const ENDPOINT: [&str; 2] = ["targetRef", "conditions"];
const TARGET: [&str; 2] = ["name", "uid"];
/// A label of pods that no role is in, and that would make each set's pods differ.
const REVISION_HASH: &str = "controller-revision-hash";

/// An object as a watch brings it, reduced to what is read.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Name, namespace, UID and version.
    metadata: ObjectMeta,
    /// The set that it is labelled with.
    set: Option<String>,
    /// Whether pgset made it, by its label.
    made: bool,
    /// The UID of its controller.
    owner: Option<String>,
    text: String,
}

/// An object as it is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    set: Box<str>,
    owner: Box<str>,
    uid: Box<str>,
    version: Option<Box<str>>,
    shape: Arc<str>,
}

/// A pod as it is kept.
#[derive(Clone, Debug)]
pub struct KeptPod {
    set: Box<str>,
    owner: Box<str>,
    uid: Box<str>,
    version: Box<str>,
    leaving: bool,
    readiness: Readiness,
    family: Option<AddressType>,
    labels: Arc<str>,
}

// === impl Seen ===

impl Seen {
    /// The set that it is labelled with.
    #[must_use]
    pub fn set(&self) -> Option<&str> {
        self.set.as_deref()
    }

    /// Whether pgset made it for a set; what is not so is somebody else's.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.made && self.set.is_some()
    }

    /// The object, to be kept.
    #[must_use]
    pub fn keep(&self, shapes: &Shapes) -> Kept {
        let text = |text: &Option<String>| Box::from(text.as_deref().unwrap_or_default());
        let (set, owner): (Box<str>, Box<str>) = (text(&self.set), text(&self.owner));
        let namespace = self.namespace().unwrap_or_default();
        Kept {
            shape: shapes.share(&self.text, [&set, &namespace, &owner]),
            uid: text(&self.metadata.uid),
            // Only other people's objects are changed on the condition that they still are what was seen.
            version: self.metadata.resource_version.as_deref().filter(|_| !self.is_ours()).map(Box::from),
            set,
            owner,
        }
    }

    fn new(mut object: Value) -> Self {
        let text = |object: &Value, at: &str| object.pointer(at).and_then(Value::as_str).map(str::to_owned);
        let metadata = ObjectMeta {
            name: text(&object, "/metadata/name"),
            namespace: text(&object, "/metadata/namespace"),
            uid: text(&object, "/metadata/uid"),
            resource_version: text(&object, "/metadata/resourceVersion"),
            ..ObjectMeta::default()
        };
        reduce(&mut object);
        let label = |key: &str| object.get("metadata")?.get("labels")?.get(key)?.as_str();
        let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten();
        let mut controllers = owners.filter(|owner| owner.get("controller") == Some(&Value::Bool(true)));
        Self {
            set: label(names::label::SET).map(str::to_owned),
            made: label(names::label::MANAGED_BY) == Some(names::MANAGER),
            owner: controllers.next().and_then(|owner| text(owner, "/uid")),
            text: object.to_string(),
            metadata,
        }
    }
}

fn reduce(object: &mut Value) {
    retain(object, &FIELDS);
    if let Some(metadata) = object.get_mut("metadata") {
        retain(metadata, &METADATA);
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|key, _| is_read(key));
        }
    }
    if let Some(spec) = object.get_mut("spec") {
        retain(spec, &SPEC);
        // An address of its own is as good as any other: asked for is only whether there is none.
        if spec.get("clusterIP").is_some_and(|address| address != "None") {
            spec.as_object_mut().map(|spec| spec.remove("clusterIP"));
        }
    }
    for endpoint in object.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
        retain(endpoint, &ENDPOINT);
        if let Some(target) = endpoint.get_mut("targetRef") {
            retain(target, &TARGET);
        }
    }
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

impl<'de> Deserialize<'de> for Seen {
    /// Reduces each object as it is read, so that a list is never held as a whole.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::new)
    }
}

impl Resource for Seen {
    type DynamicType = Kind;
    type Scope = NamespaceResourceScope;

    fn kind(kind: &Kind) -> Cow<'_, str> {
        names_of(*kind).kind.into()
    }

    fn group(kind: &Kind) -> Cow<'_, str> {
        names_of(*kind).group.into()
    }

    fn version(kind: &Kind) -> Cow<'_, str> {
        names_of(*kind).version.into()
    }

    fn plural(kind: &Kind) -> Cow<'_, str> {
        names_of(*kind).plural.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

struct ResourceNames {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
}

fn names_of(kind: Kind) -> ResourceNames {
    fn of<K: k8s_openapi::Resource>() -> ResourceNames {
        ResourceNames { group: K::GROUP, version: K::VERSION, kind: K::KIND, plural: K::URL_PATH_SEGMENT }
    }
    match kind {
        Kind::ServiceAccount => of::<ServiceAccount>(),
        Kind::Role => of::<Role>(),
        Kind::RoleBinding => of::<RoleBinding>(),
        Kind::Lease => of::<Lease>(),
        Kind::EndpointSlice => of::<EndpointSlice>(),
        Kind::Service => of::<Service>(),
        Kind::PodDisruptionBudget => of::<PodDisruptionBudget>(),
    }
}

// === impl Kept ===

impl Kept {
    /// Whether nothing differs that anybody reads, versions apart.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        let said = |kept: &Self| (kept.set.clone(), kept.owner.clone(), kept.uid.clone(), Arc::clone(&kept.shape));
        said(self) == said(other)
    }

    /// The object, without what nobody reads.
    #[must_use]
    pub fn value(&self, namespace: &str) -> Value {
        let names: Names<'_> = [&self.set, namespace, &self.owner];
        let mut object: Value = serde_json::from_str(&unfold(&self.shape, names)).unwrap_or_default();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("uid".to_owned(), Value::from(self.uid.as_ref()));
            if let Some(version) = &self.version {
                metadata.insert("resourceVersion".to_owned(), Value::from(version.as_ref()));
            }
        }
        object
    }
}

// === impl KeptPod ===

impl KeptPod {
    /// A pod, to be kept; `None` if nobody is its controller.
    #[must_use]
    pub fn new(pod: &SeenPod, shapes: &Shapes) -> Option<Self> {
        let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true))?;
        let set = pod.labels().get(names::label::SET).map(String::as_str).unwrap_or_default();
        let labels: BTreeMap<_, _> = pod.labels().iter().filter(|(key, _)| *key != REVISION_HASH).collect();
        let labels = serde_json::to_string(&labels).unwrap_or_default();
        Some(Self {
            set: set.into(),
            owner: owner.uid.as_str().into(),
            uid: pod.uid().unwrap_or_default().into(),
            version: pod.resource_version().unwrap_or_default().into(),
            leaving: pod.meta().deletion_timestamp.is_some(),
            readiness: pod.readiness(),
            family: pod.family(),
            labels: shapes.share(&labels, [set, "", ""]),
        })
    }

    /// Whether the set with this UID owns it; a label alone makes no member.
    #[must_use]
    pub fn is_of(&self, set_uid: &str) -> bool {
        *self.owner == *set_uid
    }

    /// The pod as a member.
    #[must_use]
    pub fn member(&self, name: String) -> Member {
        Member {
            name,
            uid: self.uid.as_ref().into(),
            resource_version: self.version.as_ref().into(),
            labels: serde_json::from_str(&unfold(&self.labels, [&self.set, "", ""])).unwrap_or_default(),
            leaving: self.leaving,
            readiness: self.readiness,
            family: self.family,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::children::compare::{Ownership, correction, ownership};
    use crate::children::leader;
    use crate::children::tests::{all, article, owner, pgset, stored};
    use crate::controller::selection::Service;

    fn kept(live: &Value) -> Kept {
        serde_json::from_value::<Seen>(live.clone()).unwrap().keep(&Shapes::default())
    }

    #[test]
    fn what_pgset_makes_is_kept_so_that_it_is_known_again_as_right() {
        for set in [pgset(), article()] {
            for child in all(&set) {
                let live = kept(&stored(&child.body, "its-own")).value("shop");
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
            assert!(correction(&kept(&live).value("shop"), &child.body).is_some(), "{}", child.kind);
            let mut live = stored(&child.body, "its-own");
            let field = match child.kind {
                Kind::Service => "/spec/selector",
                Kind::PodDisruptionBudget => "/spec/maxUnavailable",
                Kind::Role => "/rules/0/verbs",
                Kind::RoleBinding => "/subjects/0/name",
                Kind::ServiceAccount | Kind::Lease | Kind::EndpointSlice => continue,
            };
            *live.pointer_mut(field).unwrap() = json!("changed");
            assert!(correction(&kept(&live).value("shop"), &child.body).is_some(), "{}", child.kind);
        }
    }

    #[test]
    fn the_objects_of_two_sets_share_their_text() {
        let shapes = Shapes::default();
        for child in all(&pgset()) {
            let live = stored(&child.body, "its-own").to_string();
            // But for what pgset itself is called, of course.
            let renamed = live.replace("pgset", "orders").replace("orders.dev/", "pgset.dev/");
            let renamed = renamed.replace("-by\":\"orders", "-by\":\"pgset").replace("set-uid", "another-uid");
            let (one, another): (Seen, Seen) =
                (serde_json::from_str(&live).unwrap(), serde_json::from_str(&renamed).unwrap());
            let [one, another] = [one, another].map(|seen| seen.keep(&shapes));
            assert_eq!((&*one.set, &*another.set), ("pgset", "orders"));
            // A set that is called as pgset itself has other texts than all others, and that is all.
            assert_eq!(
                unfold(&another.shape, ["pgset", "shop", "set-uid"]),
                unfold(&one.shape, ["pgset", "shop", "set-uid"])
            );
        }
    }

    #[test]
    fn a_renewed_lease_is_kept_alike_and_its_holder_is_known() {
        let lease = |time: &str, version: &str| {
            kept(&json!({
                "metadata": { "name": "pgset-leader", "namespace": "shop", "uid": "u", "resourceVersion": version,
                    "labels": { "pgset.dev/set": "pgset", "app.kubernetes.io/managed-by": "pgset" },
                    "annotations": { "pgset.dev/system-identifier": "7", "pgset.dev/flushed": version } },
                "spec": { "holderIdentity": "pgset-0", "renewTime": time, "leaseDurationSeconds": 6 },
            }))
        };
        let (one, two) = (lease("2026-01-01T00:00:00Z", "1"), lease("2026-01-01T00:00:06Z", "2"));
        assert_eq!(one.shape, two.shape);
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
        let value = kept(&live).value("shop");
        assert_eq!(Service::read(&value), Service::read(&live));
        assert_eq!((value.get("status"), value["metadata"].get("managedFields")), (None, None));
        let mut headless = live;
        headless["spec"]["clusterIP"] = json!("None");
        assert_eq!(Service::read(&kept(&headless).value("shop")), Service::read(&headless));
    }

    #[test]
    fn a_pod_is_a_member_of_the_set_that_owns_it() {
        let pod = |controller: bool| -> SeenPod {
            serde_json::from_value(json!({"status": {"podIP": "fd00::1", "conditions": [{"type": "Ready", "status": "True"}]}, "metadata": {
                "name": "pgset-0", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "deletionTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "pgset.dev/set": "pgset", "name": "pgset-replica", "controller-revision-hash": "pgset-1" },
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "pgset", "uid": "set-uid",
                    "controller": controller }],
            }}))
            .unwrap()
        };
        let kept = KeptPod::new(&pod(true), &Shapes::default()).unwrap();
        assert!(kept.is_of("set-uid") && !kept.is_of("another"));
        let labels = [("pgset.dev/set", "pgset"), ("name", "pgset-replica")];
        let member = Member {
            name: "pgset-0".to_owned(),
            uid: "u".to_owned(),
            resource_version: "7".to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            leaving: true,
            readiness: Readiness::Ready,
            family: Some(AddressType::Ipv6),
        };
        assert_eq!(kept.member("pgset-0".to_owned()), member);
        assert!(KeptPod::new(&pod(false), &Shapes::default()).is_none());
    }

    #[test]
    fn the_path_of_each_kind_is_kubernetes_own() {
        assert_eq!(Seen::url_path(&Kind::Service, None), "/api/v1/services");
        assert_eq!(
            Seen::url_path(&Kind::Role, Some("shop")),
            "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles"
        );
    }
}
