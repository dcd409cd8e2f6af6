//! A `StatefulSet`: not the object, but what it says to pgset.

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::Value;

use crate::controller::plan;
use crate::errors::with_causes;
use crate::names;
use crate::set::Set;

/// A `StatefulSet` with an annotation of ours, as it is kept.
#[derive(Debug)]
pub struct CachedSet {
    /// `metadata.uid`; empty if it has none.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// What it is to pgset.
    pub state: SetState,
}

/// What a `StatefulSet` is to pgset.
#[derive(Debug, PartialEq, Eq)]
pub enum SetState {
    /// It does not ask to be a set.
    Other,
    /// It is being deleted: what belongs to it goes with it.
    Leaving,
    /// It asks, but is no set; with the reason.
    Invalid(String),
    /// A set that the webhook has not seen.
    NotInjected(Box<Set>),
    /// A set.
    Injected(Box<Set>),
}

impl CachedSet {
    /// A `StatefulSet`, to be kept; `None` if it has no annotation of ours.
    #[must_use]
    pub fn new(object: &DynamicObject) -> Option<Self> {
        let is_annotated = object.annotations().keys().any(|key| key.starts_with(names::PREFIX));
        is_annotated.then(|| Self {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            generation: object.metadata.generation,
            state: SetState::of(object),
        })
    }
}

impl SetState {
    fn of(object: &DynamicObject) -> Self {
        if !object.annotations().contains_key(names::annotation::INJECT) {
            return Self::Other;
        }
        if object.metadata.deletion_timestamp.is_some() {
            return Self::Leaving;
        }
        let json = serde_json::to_value(object).unwrap_or(Value::Null);
        match Set::parse(&json) {
            Err(error) => Self::Invalid(with_causes(&error)),
            Ok(set) if plan::is_injected(&json, &set) => Self::Injected(Box::new(set)),
            Ok(set) => Self::NotInjected(Box::new(set)),
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

    fn cached(object: &Value) -> Option<CachedSet> {
        CachedSet::new(&serde_json::from_value(object.clone()).unwrap())
    }

    fn state(object: &Value) -> SetState {
        cached(object).unwrap().state
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
        let set = cached(&injected()).unwrap();
        assert_eq!(set.state, SetState::Injected(Box::new(Set::parse(&injected()).unwrap())));
        assert_eq!((set.generation, set.uid.as_str()), (Some(3), "u"));
        assert_eq!(state(&written()), SetState::NotInjected(Box::new(Set::parse(&written()).unwrap())));
    }

    #[test]
    fn data_that_goes_with_the_set_is_known() {
        let outlives = |spec: Value| {
            let mut object = written();
            object["metadata"]["annotations"] = json!({ "pgset.dev/inject": "enabled" });
            object["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
                json!([{ "name": "data", "mountPath": "/var/lib/postgresql/data" }]);
            json_patch::merge(&mut object["spec"], &spec);
            let SetState::NotInjected(set) = state(&object) else { panic!("{:?}", state(&object)) };
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
    fn what_is_no_set_yet_or_any_more_is_told_apart() {
        let mut invalid = written();
        invalid["metadata"]["annotations"]["pgset.dev/failover"] = json!("perhaps");
        let SetState::Invalid(reason) = state(&invalid) else { panic!() };
        assert!(reason.contains("pgset.dev/failover"), "{reason}");

        let mut leaving = injected();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(state(&leaving), SetState::Leaving);

        let mut other = written();
        other["metadata"]["annotations"] = json!({ "pgset.dev/claim": "pgset-pvc" });
        assert_eq!(state(&other), SetState::Other);
        other["metadata"]["annotations"] = json!({ "example.com/inject": "enabled" });
        assert!(cached(&other).is_none());
    }

    #[test]
    fn a_set_of_two_million_members_is_none_and_costs_nothing() {
        for mut object in [written(), injected()] {
            object["spec"]["replicas"] = json!(2_000_000);
            let SetState::Invalid(reason) = state(&object) else { panic!("{:?}", state(&object)) };
            assert!(reason.contains("replicas") && reason.len() < 1000, "{reason}");
        }
    }
}
