//! A pod of a set: whose it is, its labels, and whether clients can be sent to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::interner::{Interner, Names, with_names};
use super::object::set_of;
use crate::children::route::AddressType;

/// A label of pods that no role is in, and that would make each set's pods differ.
const REVISION_HASH: &str = "controller-revision-hash";

/// A pod of the set, as far as the controller cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// The version that was seen.
    pub resource_version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is being deleted.
    pub leaving: bool,
    /// Whether clients can be sent to it.
    pub readiness: Readiness,
    /// The family of its address, once it has one.
    pub family: Option<AddressType>,
}

/// Whether clients can be sent to a pod, as the kubelet or the node's keeper says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It is Ready.
    Ready,
    /// It is not, since then; or nobody has said so yet.
    Unready(Option<Timestamp>),
}

/// A pod as it is kept.
#[derive(Clone, Debug)]
pub struct CachedPod {
    set: Box<str>,
    owner: Box<str>,
    uid: Box<str>,
    version: Box<str>,
    leaving: bool,
    readiness: Readiness,
    family: Option<AddressType>,
    labels: Arc<str>,
}

impl CachedPod {
    /// A pod, to be kept; `None` if nobody is its controller.
    #[must_use]
    pub fn new(pod: &Pod, interner: &Interner) -> Option<Self> {
        let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true))?;
        let set = set_of(pod).unwrap_or_default();
        let labels: BTreeMap<_, _> = pod.labels().iter().filter(|(key, _)| *key != REVISION_HASH).collect();
        let labels = serde_json::to_string(&labels).unwrap_or_default();
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
        Some(Self {
            set: set.into(),
            owner: owner.uid.as_str().into(),
            uid: pod.uid().unwrap_or_default().into(),
            version: pod.resource_version().unwrap_or_default().into(),
            leaving: pod.metadata.deletion_timestamp.is_some(),
            readiness: readiness(pod.status.as_ref()),
            family: address.map(AddressType::of),
            labels: interner.intern(&labels, Names { set, ..Names::default() }),
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
        let labels = with_names(&self.labels, Names { set: &self.set, ..Names::default() });
        Member {
            name,
            uid: self.uid.as_ref().into(),
            resource_version: self.version.as_ref().into(),
            labels: serde_json::from_str(&labels).unwrap_or_default(),
            leaving: self.leaving,
            readiness: self.readiness,
            family: self.family,
        }
    }
}

fn readiness(status: Option<&PodStatus>) -> Readiness {
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(condition) if condition.status == "True" => Readiness::Ready,
        Some(condition) => Readiness::Unready(condition.last_transition_time.as_ref().map(|time| time.0)),
        None => Readiness::Unready(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_is_a_member_of_the_set_that_owns_it() {
        let pod = |controller: bool| -> Pod {
            serde_json::from_value(json!({
                "status": {"podIP": "fd00::1", "conditions": [{"type": "Ready", "status": "True"}]},
                "metadata": {
                    "name": "pgset-0", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                    "deletionTimestamp": "2026-01-01T00:00:00Z",
                    "labels": { "pgset.dev/set": "pgset", "name": "pgset-replica", "controller-revision-hash": "pgset-1" },
                    "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "pgset", "uid": "set-uid",
                        "controller": controller }],
                },
            }))
            .unwrap()
        };
        let cached = CachedPod::new(&pod(true), &Interner::default()).unwrap();
        assert!(cached.is_of("set-uid") && !cached.is_of("another"));
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
        assert_eq!(cached.member("pgset-0".to_owned()), member);
        assert!(CachedPod::new(&pod(false), &Interner::default()).is_none());
    }

    #[allow(clippy::needless_pass_by_value)] // `json!` at every call
    fn readiness_by(conditions: Value) -> Readiness {
        let status: PodStatus = serde_json::from_value(json!({ "conditions": conditions })).unwrap();
        readiness(Some(&status))
    }

    #[test]
    fn a_pod_is_ready_when_its_condition_says_so() {
        let at = "2026-01-01T00:00:00Z";
        let ready = |status: &str| json!([{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": status, "lastTransitionTime": at}]);
        assert_eq!(readiness_by(ready("True")), Readiness::Ready);
        assert_eq!(readiness_by(ready("False")), Readiness::Unready(at.parse().ok()));
        assert_eq!(readiness_by(ready("Unknown")), Readiness::Unready(at.parse().ok()));
        assert_eq!(readiness_by(json!([])), Readiness::Unready(None));
    }
}
