//! What the controller keeps of a `StatefulSet`: not the object, but what it says to pgset.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::plan;
use crate::errors::with_causes;
use crate::names;
use crate::set::Set;

/// A `StatefulSet` as it is kept.
#[derive(Clone, Debug)]
pub struct View {
    /// Name, namespace, UID and version.
    metadata: ObjectMeta,
    /// Whether it has an annotation of ours.
    annotated: bool,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// What is to be done about it.
    pub state: State,
}

/// What a `StatefulSet` is to pgset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It does not ask to be a set.
    Other,
    /// It is being deleted: what belongs to it goes with it.
    Leaving,
    /// It asks, but is no set; with the reason.
    Invalid(Box<str>),
    /// A set that the webhook has not seen.
    NotInjected(Box<Set>),
    /// A set.
    Injected(Box<Set>),
}

// === impl View ===

impl View {
    /// Whether it has an annotation of ours.
    #[must_use]
    pub fn is_annotated(&self) -> bool {
        self.annotated
    }

    /// The same, without what only a watch has to know.
    #[must_use]
    pub fn without_version(mut self) -> Self {
        self.metadata.resource_version = None;
        self
    }

    fn new(object: &Value) -> Self {
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        let text = |field: &str| metadata.get(field).and_then(Value::as_str).map(str::to_owned);
        let annotations = metadata.get("annotations").and_then(Value::as_object);
        Self {
            annotated: annotations.is_some_and(|all| all.keys().any(|key| key.starts_with(names::PREFIX))),
            generation: metadata.get("generation").and_then(Value::as_i64),
            state: if annotations.is_none_or(|all| !all.contains_key(names::annotation::INJECT)) {
                State::Other
            } else if metadata.get("deletionTimestamp").is_some() {
                State::Leaving
            } else {
                State::of(object)
            },
            metadata: ObjectMeta {
                name: text("name"),
                namespace: text("namespace"),
                uid: text("uid"),
                resource_version: text("resourceVersion"),
                ..ObjectMeta::default()
            },
        }
    }
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
    fn of(object: &Value) -> Self {
        match Set::parse(object) {
            Err(error) => Self::Invalid(with_causes(&error).into()),
            Ok(set) => {
                let injected = plan::is_injected(object, &set);
                // What surrounds a set depends on the labels of its pods, not on how it finds them.
                let set = Box::new(Set { selector: BTreeMap::new(), ..set });
                if injected { Self::Injected(set) } else { Self::NotInjected(set) }
            }
        }
    }
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
    fn a_set_is_kept_as_it_was_read_but_for_its_selector() {
        let view = view(&injected());
        let State::Injected(set) = &view.state else { panic!("{view:?}") };
        assert_eq!(**set, Set { selector: BTreeMap::new(), ..Set::parse(&injected()).unwrap() });
        assert_eq!((view.is_annotated(), view.generation), (true, Some(3)));
        assert_eq!((view.metadata.name.as_deref(), view.metadata.uid.as_deref()), (Some("orders"), Some("u")));
    }

    #[test]
    fn what_is_no_set_yet_or_any_more_is_told_apart() {
        assert!(matches!(view(&written()).state, State::NotInjected(_)));

        let mut invalid = written();
        invalid["metadata"]["annotations"]["pgset.dev/failover"] = json!("perhaps");
        let State::Invalid(reason) = view(&invalid).state else { panic!() };
        assert!(reason.contains("pgset.dev/failover"), "{reason}");

        let mut leaving = injected();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(view(&leaving).state, State::Leaving);

        let mut other = written();
        other["metadata"]["annotations"] = json!({ "pgset.dev/claim": "pgset-pvc" });
        assert_eq!((view(&other).state, view(&other).is_annotated()), (State::Other, true));
        other["metadata"]["annotations"] = json!({ "example.com/inject": "enabled" });
        assert_eq!((view(&other).state, view(&other).is_annotated()), (State::Other, false));
    }

    #[test]
    fn the_path_is_kubernetes_own() {
        assert_eq!(View::url_path(&(), Some("shop")), "/apis/apps/v1/namespaces/shop/statefulsets");
    }
}
