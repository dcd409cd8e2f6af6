//! A member's pod as a watch brings it, reduced to what is read: of its status, whether it is Ready and which addresses it has.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::{Deserialize, Deserializer};

use crate::children::route::AddressType;

/// Whether clients can be sent to a pod, as the kubelet or the node's keeper says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It is Ready.
    Ready,
    /// It is not, since then; or nobody has said so yet.
    Unready(Option<Timestamp>),
}

/// A pod.
#[derive(Clone, Debug)]
pub struct SeenPod {
    metadata: ObjectMeta,
    readiness: Readiness,
    family: Option<AddressType>,
}

// === impl SeenPod ===

impl SeenPod {
    /// Whether clients can be sent to it.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness
    }

    /// The family of its address, once it has one.
    #[must_use]
    pub fn family(&self) -> Option<AddressType> {
        self.family
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Pod {
    metadata: ObjectMeta,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Vec<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    last_transition_time: Option<Timestamp>,
}

impl<'de> Deserialize<'de> for SeenPod {
    /// Reduces each pod as it is read.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Pod { mut metadata, status } = Pod::deserialize(deserializer)?;
        metadata.managed_fields = None;
        metadata.annotations = None;
        let condition = status.conditions.into_iter().find(|condition| condition.kind == "Ready");
        let readiness = match condition {
            Some(condition) if condition.status == "True" => Readiness::Ready,
            Some(condition) => Readiness::Unready(condition.last_transition_time),
            None => Readiness::Unready(None),
        };
        Ok(Self { metadata, readiness, family: status.pod_ip.as_deref().map(AddressType::of) })
    }
}

impl Resource for SeenPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn readiness(conditions: &Value) -> Readiness {
        let pod = json!({"metadata": {"name": "db-0"}, "status": {"conditions": conditions}});
        serde_json::from_value::<SeenPod>(pod).unwrap().readiness()
    }

    #[test]
    fn a_pod_is_ready_when_its_condition_says_so() {
        let at = "2026-01-01T00:00:00Z";
        let ready = |status: &str| json!([{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": status, "lastTransitionTime": at}]);
        assert_eq!(readiness(&ready("True")), Readiness::Ready);
        assert_eq!(readiness(&ready("False")), Readiness::Unready(at.parse().ok()));
        assert_eq!(readiness(&ready("Unknown")), Readiness::Unready(at.parse().ok()));
        assert_eq!(readiness(&json!([])), Readiness::Unready(None));
    }
}
