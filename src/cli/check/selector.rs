//! Whether a namespace is one that the webhook is asked about.

use serde_json::Value;

use crate::cli::cluster::{items, text};

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

/// The first requirement of a label selector that an object does not meet.
fn requirement(selector: &Value, object: &Value) -> Option<String> {
    let labels = object.pointer("/metadata/labels").unwrap_or(&Value::Null);
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let wanted = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    for (key, value) in wanted {
        if label(key) != value.as_str() {
            return Some(format!("it lacks the label {key}={}", value.as_str().unwrap_or_default()));
        }
    }
    items(selector, "/matchExpressions").find_map(|expression| {
        let key = text(expression, "/key");
        let found = label(key);
        let listed = found.is_some_and(|found| items(expression, "/values").any(|value| value == found));
        let meets = match text(expression, "/operator") {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => found.is_some(),
            "DoesNotExist" => found.is_none(),
            _ => true,
        };
        (!meets).then(|| match found {
            Some(found) => format!("it has the label {key}={found}"),
            None => format!("it lacks the label {key}"),
        })
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
