//! What the controller keeps of a `StatefulSet`: not the object, but what it says to pgset, as text without the names, which like
//! sets share.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::plan;
use super::shape::{Names, Shapes, fold, unfold};
use crate::errors::with_causes;
use crate::names;
use crate::set::{Contract, Data, Failover, RoleLabel, Set};

/// A `StatefulSet` as it is kept.
#[derive(Clone, Debug)]
pub struct View {
    /// Name and namespace; as long as it is in a watch's hands, its version.
    metadata: ObjectMeta,
    uid: Box<str>,
    /// Whether it has an annotation of ours.
    annotated: bool,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Other,
    Leaving,
    Invalid(Box<str>),
    Set { injected: bool, shape: Arc<str> },
}

/// What a `StatefulSet` is to pgset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetState {
    /// It does not ask to be a set, or what it says is lost.
    Other,
    /// It is being deleted: what belongs to it goes with it.
    Leaving,
    /// It asks, but is no set; with the reason.
    Invalid(String),
    /// A set that the webhook has not seen.
    NotInjected(Set),
    /// A set.
    Injected(Set),
}

// === impl View ===

impl View {
    /// Whether it has an annotation of ours.
    #[must_use]
    pub fn is_annotated(&self) -> bool {
        self.annotated
    }

    /// `metadata.uid`; empty if it has none.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// What it is to pgset.
    #[must_use]
    pub fn means(&self) -> SetState {
        match &self.state {
            State::Other => SetState::Other,
            State::Leaving => SetState::Leaving,
            State::Invalid(reason) => SetState::Invalid(reason.as_ref().into()),
            State::Set { injected, shape } => match read(shape, names_in(&self.metadata, &self.uid)) {
                Some(set) if *injected => SetState::Injected(set),
                Some(set) => SetState::NotInjected(set),
                None => SetState::Other,
            },
        }
    }

    /// The same, to be kept: without what only a watch has to know.
    #[must_use]
    pub fn keep(mut self, shapes: &Shapes) -> Self {
        self.metadata.resource_version = None;
        if let State::Set { shape, .. } = &mut self.state {
            *shape = shapes.once(Arc::clone(shape));
        }
        self
    }

    fn new(object: &Value) -> Self {
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        let text = |field: &str| metadata.get(field).and_then(Value::as_str).map(str::to_owned);
        let annotations = metadata.get("annotations").and_then(Value::as_object);
        let kept = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        let uid = text("uid").unwrap_or_default();
        Self {
            annotated: annotations.is_some_and(|all| all.keys().any(|key| key.starts_with(names::PREFIX))),
            generation: metadata.get("generation").and_then(Value::as_i64),
            state: if annotations.is_none_or(|all| !all.contains_key(names::annotation::INJECT)) {
                State::Other
            } else if metadata.get("deletionTimestamp").is_some() {
                State::Leaving
            } else {
                State::of(object, names_in(&kept, &uid))
            },
            metadata: kept,
            uid: uid.into(),
        }
    }
}

fn names_in<'a>(metadata: &'a ObjectMeta, uid: &'a str) -> Names<'a> {
    [metadata.name.as_deref().unwrap_or_default(), metadata.namespace.as_deref().unwrap_or_default(), uid]
}

impl<'de> Deserialize<'de> for View {
    /// Reduces each object as it is read, so that a list is never held as a whole.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|object| Self::new(&object))
    }
}

impl Resource for View {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "StatefulSet".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "apps".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "statefulsets".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

// === impl State ===

impl State {
    fn of(object: &Value, names: Names<'_>) -> Self {
        match Set::parse(object) {
            Err(error) => Self::Invalid(with_causes(&error).into()),
            Ok(set) => {
                let injected = plan::is_injected(object, &set);
                let text = serde_json::to_string(&Written(set)).unwrap_or_default();
                Self::Set { injected, shape: fold(&text, names).into() }
            }
        }
    }
}

// === a set as text ===

fn read(shape: &str, names: Names<'_>) -> Option<Set> {
    serde_json::from_str(&unfold(shape, names)).ok().map(|Written(set)| set)
}

#[derive(Serialize, Deserialize)]
struct Written(#[serde(with = "SetText")] Set);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Set")]
struct SetText {
    name: String,
    namespace: String,
    uid: Option<String>,
    #[serde(with = "ContractText")]
    contract: Contract,
    container: String,
    port: u16,
    #[serde(with = "DataText")]
    data: Data,
    data_outlives_set: bool,
    service_account: String,
    credentials: String,
    #[serde(with = "RoleLabelText")]
    role_label: RoleLabel,
    #[serde(with = "FailoverText")]
    failover: Failover,
    synchronous: u32,
    synchronous_strict: bool,
    lease_seconds: u32,
    routed: bool,
    headless_service: String,
    replicas: u32,
    first_ordinal: u32,
    selector: BTreeMap<String, String>,
    pod_labels: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Contract")]
enum ContractText {
    Agent,
    Image,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Data")]
enum DataText {
    Claim { claim: String },
    Shared { volume: String, mount_path: String },
    Own { volume: String, mount_path: String },
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "RoleLabel")]
struct RoleLabelText {
    key: String,
    master: String,
    replica: String,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Failover")]
enum FailoverText {
    Automatic,
    Manual,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inject::{self, Outcome, Request};

    fn written() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": { "name": "orders", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 3,
                "annotations": { "pgset.dev/inject": "enabled", "pgset.dev/claim": "pgset-pvc" } },
            "spec": { "replicas": 2, "serviceName": "orders", "selector": { "matchLabels": { "app": "orders" } },
                "template": { "metadata": { "labels": { "app": "orders" } },
                    "spec": { "containers": [{ "name": "postgres", "image": "postgres:17" }] } } },
        })
    }

    fn view(object: &Value) -> View {
        serde_json::from_value(object.clone()).unwrap()
    }

    fn injected() -> Value {
        let mut object = written();
        let settings = inject::Settings { agent_image: names::IMAGE.to_owned() };
        let outcome = inject::inject(&Request { object: &object, old: None, settings: &settings });
        let Outcome::Patched { patch, .. } = outcome else { panic!("{outcome:?}") };
        json_patch::patch(&mut object, &patch).unwrap();
        object
    }

    #[test]
    fn a_set_is_kept_as_it_was_read() {
        let view = view(&injected()).keep(&Shapes::default());
        assert_eq!(view.means(), SetState::Injected(Set::parse(&injected()).unwrap()));
        assert_eq!((view.is_annotated(), view.generation, view.uid()), (true, Some(3), "u"));
        assert_eq!(view.metadata.name.as_deref(), Some("orders"));
    }

    #[test]
    fn every_word_of_a_set_is_kept() {
        let manual = [
            ("contract", "image"),
            ("failover", "manual"),
            ("synchronous", "1"),
            ("synchronous-strict", "false"),
            ("lease-seconds", "30"),
        ];
        let mut object = written();
        for (key, value) in manual {
            object["metadata"]["annotations"][format!("pgset.dev/{key}")] = json!(value);
        }
        assert_eq!(view(&object).means(), SetState::NotInjected(Set::parse(&object).unwrap()));
        object["metadata"]["annotations"] = json!({ "pgset.dev/inject": "enabled" });
        object["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{ "name": "data", "mountPath": "/var/lib/postgresql/data" }]);
        for source in [json!({ "nfs": { "server": "files", "path": "/" } }), json!({ "ephemeral": {} })] {
            let mut volume = source;
            volume["name"] = json!("data");
            object["spec"]["template"]["spec"]["volumes"] = json!([volume]);
            assert_eq!(view(&object).means(), SetState::NotInjected(Set::parse(&object).unwrap()));
        }
    }

    #[test]
    fn data_that_goes_with_the_set_is_known() {
        let outlives = |spec: Value| {
            let mut object = written();
            object["metadata"]["annotations"] = json!({ "pgset.dev/inject": "enabled" });
            object["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
                json!([{ "name": "data", "mountPath": "/var/lib/postgresql/data" }]);
            json_patch::merge(&mut object["spec"], &spec);
            let SetState::NotInjected(set) = view(&object).means() else { panic!("{:?}", view(&object).means()) };
            set.data_outlives_set
        };
        let volume = |source: &str| json!({ "template": { "spec": { "volumes": [{ "name": "data", source: {} }] } } });
        assert!(!outlives(volume("emptyDir")) && !outlives(volume("ephemeral")) && outlives(volume("nfs")));
        let claims = |when_deleted: &str| {
            json!({ "volumeClaimTemplates": [{ "metadata": { "name": "data" } }],
                "persistentVolumeClaimRetentionPolicy": { "whenDeleted": when_deleted, "whenScaled": "Delete" } })
        };
        assert!(outlives(claims("Retain")) && !outlives(claims("Delete")));
        assert!(outlives(json!({ "volumeClaimTemplates": [{ "metadata": { "name": "data" } }] })));
        let mut shared = volume("nfs");
        shared["persistentVolumeClaimRetentionPolicy"] = json!({ "whenDeleted": "Delete" });
        assert!(outlives(shared), "that is about other claims");
    }

    #[test]
    fn like_sets_share_their_text() {
        let shapes = Shapes::default();
        let shape = |name: &str, uid: &str| {
            let mut object = injected();
            object["metadata"]["uid"] = json!(uid);
            let renamed = serde_json::from_str(&object.to_string().replace("orders", name)).unwrap();
            let State::Set { shape, .. } = view(&renamed).keep(&shapes).state else { panic!() };
            shape
        };
        assert!(Arc::ptr_eq(&shape("orders", "one-uid"), &shape("stock", "another-uid")));
    }

    #[test]
    fn what_is_no_set_yet_or_any_more_is_told_apart() {
        assert!(matches!(view(&written()).means(), SetState::NotInjected(_)));

        let mut invalid = written();
        invalid["metadata"]["annotations"]["pgset.dev/failover"] = json!("perhaps");
        let SetState::Invalid(reason) = view(&invalid).means() else { panic!() };
        assert!(reason.contains("pgset.dev/failover"), "{reason}");

        let mut leaving = injected();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(view(&leaving).means(), SetState::Leaving);

        let mut other = written();
        other["metadata"]["annotations"] = json!({ "pgset.dev/claim": "pgset-pvc" });
        assert_eq!((view(&other).means(), view(&other).is_annotated()), (SetState::Other, true));
        other["metadata"]["annotations"] = json!({ "example.com/inject": "enabled" });
        assert_eq!((view(&other).means(), view(&other).is_annotated()), (SetState::Other, false));
    }

    #[test]
    fn a_set_of_two_million_members_is_none_and_costs_nothing() {
        for mut object in [written(), injected()] {
            object["spec"]["replicas"] = json!(2_000_000);
            let view = view(&object).keep(&Shapes::default());
            let SetState::Invalid(reason) = view.means() else { panic!("{:?}", view.means()) };
            assert!(reason.contains("replicas") && reason.len() < 1000, "{reason}");
        }
    }

    #[test]
    fn the_path_is_kubernetes_own() {
        assert_eq!(View::url_path(&(), Some("shop")), "/apis/apps/v1/namespaces/shop/statefulsets");
    }
}
