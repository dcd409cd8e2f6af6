//! Whether a namespace is one that the webhook is asked about.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Expression, Selector, SelectorExt as _};
use serde_json::Value;

use crate::cli::cluster::items;

/// Which requirement of a webhook configuration's namespace selectors a namespace does not meet; `None` if some entry takes it.
pub fn exempt(configuration: &Value, namespace: &Value) -> Option<String> {
    let mut unmet = None;
    for webhook in items(configuration, "/webhooks") {
        match requirement(webhook.get("namespaceSelector").unwrap_or(&Value::Null), namespace) {
            None => return None,
            Some(requirement) => unmet = Some(requirement),
        }
    }
    unmet
}

/// The first requirement of a label selector that an object does not meet. One that an API server would refuse asks for nothing.
fn requirement(selector: &Value, object: &Value) -> Option<String> {
    let selector: LabelSelector = serde_json::from_value(selector.clone()).unwrap_or_default();
    let labels = object.pointer("/metadata/labels").cloned().unwrap_or_default();
    let labels: BTreeMap<String, String> = serde_json::from_value(labels).unwrap_or_default();
    let requirements = Selector::try_from(selector).unwrap_or_default();
    let unmet = requirements.into_iter().find(|requirement| !requirement.matches(&labels))?;
    Some(match unmet {
        Expression::Equal(key, value) => format!("it lacks the label {key}={value}"),
        Expression::NotEqual(key, _)
        | Expression::In(key, _)
        | Expression::NotIn(key, _)
        | Expression::Exists(key)
        | Expression::DoesNotExist(key) => match labels.get(&key) {
            Some(found) => format!("it has the label {key}={found}"),
            None => format!("it lacks the label {key}"),
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::check::snapshot::shipped;

    #[test]
    fn the_shipped_selector_leaves_out_system_namespaces_and_those_that_opted_out() {
        let configuration =
            shipped(None).unwrap().into_iter().find(|it| it["kind"] == "MutatingWebhookConfiguration").unwrap();
        let exempt = |labels: Value| exempt(&configuration, &json!({"metadata": {"labels": labels}}));
        assert_eq!(exempt(json!({"kubernetes.io/metadata.name": "shop"})), None);
        assert_eq!(
            exempt(json!({"kubernetes.io/metadata.name": "kube-system"})).unwrap(),
            "it has the label kubernetes.io/metadata.name=kube-system"
        );
        assert_eq!(
            exempt(json!({"kubernetes.io/metadata.name": "shop", "pgset.dev/webhook": "disabled"})).unwrap(),
            "it has the label pgset.dev/webhook=disabled"
        );
    }

    #[test]
    fn every_operator_is_understood() {
        let namespace = json!({"metadata": {"labels": {"a": "1"}}});
        let of = |operator: &str, key: &str| {
            let selector = json!({"matchExpressions": [{"key": key, "operator": operator, "values": ["1"]}]});
            requirement(&selector, &namespace).is_none()
        };
        assert!(of("In", "a") && of("Exists", "a") && of("NotIn", "b") && of("DoesNotExist", "b"));
        assert!(!of("NotIn", "a") && !of("DoesNotExist", "a") && !of("In", "b") && !of("Exists", "b"));
        assert_eq!(requirement(&json!({"matchLabels": {"b": "2"}}), &namespace).unwrap(), "it lacks the label b=2");
    }
}
