//! What the controller keeps of an object: what it is found by, and the rest as JSON text. As a tree of values it would take
//! ten times the memory, and of ten thousand sets there are eighty thousand objects.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Resource;
use kube::api::ObjectMeta;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::children::Kind;
use crate::names;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A `StatefulSet`.
    Set,
    /// Something that surrounds a set.
    Child(Kind),
}

/// An object as it is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Name, namespace, UID and version; the rest is in the text.
    metadata: ObjectMeta,
    /// The set that it is labelled with.
    set: Option<Box<str>>,
    /// Whether it has an annotation of ours.
    annotated: bool,
    text: Box<str>,
}

// === impl Kept ===

impl Kept {
    /// The object, without what nobody reads; `null` if nothing was kept.
    #[must_use]
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// The set that it is labelled with.
    #[must_use]
    pub fn set(&self) -> Option<&str> {
        self.set.as_deref()
    }

    /// Whether it has an annotation of ours.
    #[must_use]
    pub fn is_annotated(&self) -> bool {
        self.annotated
    }

    /// Keeps nothing but the name.
    pub fn forget_rest(&mut self) {
        self.text = Box::default();
    }

    /// Keeps no second copy of what the text says as well.
    pub fn forget_identity(&mut self) {
        self.metadata.uid = None;
        self.metadata.resource_version = None;
    }

    fn new(mut object: Value) -> Self {
        remove(&mut object, "status");
        let mut annotated = false;
        if let Some(metadata) = object.get_mut("metadata") {
            remove(metadata, "managedFields");
            if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.retain(|key, _| key.starts_with(names::PREFIX));
                annotated = !annotations.is_empty();
            }
        }
        let text = |at: &str| object.pointer(at).and_then(Value::as_str).map(str::to_owned);
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
        Self {
            metadata: ObjectMeta {
                name: text("/metadata/name"),
                namespace: text("/metadata/namespace"),
                uid: text("/metadata/uid"),
                resource_version: text("/metadata/resourceVersion"),
                ..ObjectMeta::default()
            },
            set: labels.and_then(|labels| labels.get(names::label::SET)?.as_str()).map(Box::from),
            annotated,
            text: object.to_string().into_boxed_str(),
        }
    }
}

fn remove(object: &mut Value, field: &str) {
    object.as_object_mut().map(|fields: &mut Map<String, Value>| fields.remove(field));
}

impl<'de> Deserialize<'de> for Kept {
    /// Reduces each object as it is read, so that a list is never held as a whole.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::new)
    }
}

impl Resource for Kept {
    type DynamicType = Type;
    type Scope = NamespaceResourceScope;

    fn kind(of: &Type) -> Cow<'_, str> {
        of.names().kind.into()
    }

    fn group(of: &Type) -> Cow<'_, str> {
        of.names().group.into()
    }

    fn version(of: &Type) -> Cow<'_, str> {
        of.names().version.into()
    }

    fn plural(of: &Type) -> Cow<'_, str> {
        of.names().plural.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

// === impl Type ===

struct Names {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
}

impl Type {
    fn names(self) -> Names {
        fn of<K: k8s_openapi::Resource>() -> Names {
            Names { group: K::GROUP, version: K::VERSION, kind: K::KIND, plural: K::URL_PATH_SEGMENT }
        }
        match self {
            Self::Set => of::<StatefulSet>(),
            Self::Child(Kind::ServiceAccount) => of::<ServiceAccount>(),
            Self::Child(Kind::Role) => of::<Role>(),
            Self::Child(Kind::RoleBinding) => of::<RoleBinding>(),
            Self::Child(Kind::Lease) => of::<Lease>(),
            Self::Child(Kind::Service) => of::<Service>(),
            Self::Child(Kind::PodDisruptionBudget) => of::<PodDisruptionBudget>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_kept_without_what_nobody_reads() {
        let kept: Kept = serde_json::from_value(json!({
            "metadata": {
                "name": "pgset", "namespace": "shop", "uid": "u", "resourceVersion": "7", "managedFields": [{}],
                "annotations": { "pgset.dev/inject": "enabled", "kubectl.kubernetes.io/last-applied-configuration": "{}" },
                "labels": { "pgset.dev/set": "orders" },
            },
            "spec": { "replicas": 2 },
            "status": { "replicas": 2 },
        }))
        .unwrap();
        assert_eq!((kept.set(), kept.is_annotated()), (Some("orders"), true));
        assert_eq!((kept.metadata.name.as_deref(), kept.metadata.uid.as_deref()), (Some("pgset"), Some("u")));
        assert_eq!(
            kept.value(),
            json!({
                "metadata": {
                    "name": "pgset", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                    "annotations": { "pgset.dev/inject": "enabled" }, "labels": { "pgset.dev/set": "orders" },
                },
                "spec": { "replicas": 2 },
            })
        );
    }

    #[test]
    fn the_path_of_each_kind_is_kubernetes_own() {
        assert_eq!(Kept::url_path(&Type::Set, Some("shop")), "/apis/apps/v1/namespaces/shop/statefulsets");
        assert_eq!(Kept::url_path(&Type::Child(Kind::Service), None), "/api/v1/services");
        assert_eq!(Kept::url_path(&Type::Child(Kind::Role), None), "/apis/rbac.authorization.k8s.io/v1/roles");
    }
}
