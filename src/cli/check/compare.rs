//! What is installed against what this version installs: one mechanism for every object.

use serde_json::{Map, Value};

/// How a live object differs from the one that is shipped. Fields are named as `kubectl explain` does, items by their name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// What is shipped, and absent or otherwise in the cluster.
    pub changed: Vec<String>,
    /// What somebody has added in the cluster.
    pub added: Vec<String>,
}

/// Parts of an object that its manifest says nothing about, or that say only which object it is.
const ASIDE: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];
/// What pgset itself writes.
const OURS: &str = "caBundle";

/// Compares labels, annotations and everything below the object's own fields. What is added to metadata is nobody's concern.
pub fn differences(shipped: &Value, live: &Value) -> Differences {
    let mut found = Differences::default();
    let mut unconcerned = Differences::default();
    for part in ["labels", "annotations"] {
        let at = format!("/metadata/{part}");
        if let Some(shipped) = shipped.pointer(&at) {
            compare(&format!("metadata.{part}"), shipped, live.pointer(&at), &mut unconcerned);
        }
    }
    found.changed = unconcerned.changed;
    let (Some(shipped), Some(live)) = (shipped.as_object(), live.as_object()) else { return found };
    for (key, value) in shipped.iter().filter(|(key, _)| !ASIDE.contains(&key.as_str())) {
        compare(key, value, live.get(key), &mut found);
    }
    found
}

fn compare(path: &str, shipped: &Value, live: Option<&Value>, found: &mut Differences) {
    match (shipped, live) {
        (shipped, None) if is_empty(shipped) => {}
        (_, None) => found.changed.push(format!("{path} is absent")),
        (Value::Object(shipped), Some(Value::Object(live))) => members(path, shipped, live, found),
        (Value::Array(shipped), Some(Value::Array(live))) => items(path, shipped, live, found),
        (shipped, Some(live)) if shipped == live => {}
        (shipped, Some(live)) => found.changed.push(format!("{path} is {}, not {}", brief(live), brief(shipped))),
    }
}

fn members(path: &str, shipped: &Map<String, Value>, live: &Map<String, Value>, found: &mut Differences) {
    for (key, value) in shipped {
        compare(&format!("{path}.{key}"), value, live.get(key), found);
    }
    for (key, value) in live.iter().filter(|(key, value)| !shipped.contains_key(*key) && !is_empty(value)) {
        if key != OURS {
            found.added.push(format!("{path}.{key}: {}", brief(value)));
        }
    }
}

/// Items with a name are compared with their namesakes; others must be there, in whatever order.
fn items(path: &str, shipped: &[Value], live: &[Value], found: &mut Differences) {
    let mut rest: Vec<&Value> = live.iter().collect();
    for (index, item) in shipped.iter().enumerate() {
        let name = key_of(item);
        let at = name.map_or_else(|| format!("{path}[{index}]"), |name| format!("{path}[{name}]"));
        let place = match name {
            Some(name) => rest.iter().position(|live| key_of(live) == Some(name)),
            None if item.is_object() => rest
                .iter()
                .position(|live| {
                    let mut inner = Differences::default();
                    compare("", item, Some(live), &mut inner);
                    inner.changed.is_empty()
                })
                // Nothing fits: where only one is left, it is that one which was changed.
                .or_else(|| (rest.len() == 1).then_some(0)),
            None => rest.iter().position(|live| *live == item),
        };
        match place {
            Some(place) => compare(&at, item, Some(rest.remove(place)), found),
            None if item.is_object() => found.changed.push(format!("{at} is absent")),
            None => found.changed.push(format!("{path} lacks {}", brief(item))),
        }
    }
    found.added.extend(rest.into_iter().map(|item| format!("{path}: {}", brief(item))));
}

/// What tells the items of a list apart.
fn key_of(item: &Value) -> Option<&str> {
    ["name", "key", "topologyKey"].iter().find_map(|key| item.get(key)?.as_str())
}

/// Values that the API server may leave out or fill in.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// A value on one short line.
fn brief(value: &Value) -> String {
    const LONGEST: usize = 70;
    let text = value.to_string();
    if text.chars().count() <= LONGEST { text } else { text.chars().take(LONGEST).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn webhook(expressions: &Value) -> Value {
        json!({
            "metadata": {"name": "pgset", "labels": {"app.kubernetes.io/name": "pgset"}},
            "webhooks": [{
                "name": "inject.pgset.dev", "timeoutSeconds": 5, "rules": [{"operations": ["CREATE", "UPDATE"]}],
                "clientConfig": {"service": {"name": "pgset-webhook"}}, "namespaceSelector": {"matchExpressions": expressions},
            }],
        })
    }

    fn shipped() -> Value {
        webhook(&json!([{"key": "a", "operator": "NotIn", "values": ["x", "y"]}]))
    }

    #[test]
    fn what_pgset_and_the_api_server_fill_in_is_no_difference() {
        let mut live = shipped();
        live["webhooks"][0]["clientConfig"]["caBundle"] = json!("LS0t");
        live["webhooks"][0]["objectSelector"] = json!({});
        live["metadata"]["uid"] = json!("1");
        live["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": "{}"});
        live["webhooks"][0]["rules"][0]["operations"] = json!(["UPDATE", "CREATE"]);
        assert_eq!(differences(&shipped(), &live), Differences::default());
    }

    #[test]
    fn what_a_cloud_provider_adds_is_named() {
        let live = webhook(&json!([
            {"key": "control-plane", "operator": "DoesNotExist"}, {"key": "a", "operator": "NotIn", "values": ["x", "y"]},
        ]));
        let found = differences(&shipped(), &live);
        let added = r#"webhooks[inject.pgset.dev].namespaceSelector.matchExpressions: {"key":"control-plane","operator":"DoesNotExist"}"#;
        assert_eq!(found, Differences { changed: vec![], added: vec![added.to_owned()] });
    }

    #[test]
    fn what_is_otherwise_or_gone_is_named() {
        let mut live = webhook(&json!([{"key": "a", "operator": "NotIn", "values": ["x"]}]));
        live["webhooks"][0]["timeoutSeconds"] = json!(30);
        live["webhooks"][0]["rules"][0]["operations"] = json!(["CREATE"]);
        live["metadata"]["labels"] = json!({});
        let expected = [
            "metadata.labels.app.kubernetes.io/name is absent",
            "webhooks[inject.pgset.dev].timeoutSeconds is 30, not 5",
            r#"webhooks[inject.pgset.dev].rules[0].operations lacks "UPDATE""#,
            r#"webhooks[inject.pgset.dev].namespaceSelector.matchExpressions[a].values lacks "y""#,
        ];
        assert_eq!(differences(&shipped(), &live).changed, expected);
    }
}
