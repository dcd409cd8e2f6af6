//! Whether a live object is ours, and whether it says already what we would say.

use serde_json::{Map, Value};

use super::Owner;
use crate::names;

/// Fields that the API server replaces as a whole: anything more in them than we say is a difference.
const ATOMIC: [&str; 4] = ["selector", "rules", "subjects", "roleRef"];

/// Whose a live object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Made for this set: kept right.
    Ours,
    /// Made for a set of this name that is gone, or being deleted: soon absent, and then made anew.
    Leaving,
    /// Anybody else's: left alone.
    Foreign,
}

/// Whose a live object is: ours by an owner reference to this very set, or by our labels.
#[must_use]
pub fn standing(live: &Value, owner: &Owner) -> Standing {
    let references = live.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let controller =
        references.into_iter().flatten().find(|reference| reference.get("controller") == Some(&Value::Bool(true)));
    let ours = references.into_iter().flatten().any(|reference| text(reference, "uid") == Some(&owner.uid));
    let label = |key: &str| live.get("metadata").and_then(|m| m.get("labels")).and_then(|labels| text(labels, key));
    let labelled = label(names::label::MANAGED_BY) == Some(names::MANAGER)
        && label(names::label::SET) == Some(owner.name.as_str());
    if !ours && !labelled {
        return Standing::Foreign;
    }
    if live.pointer("/metadata/deletionTimestamp").is_some() {
        return Standing::Leaving;
    }
    match controller {
        Some(other) if text(other, "uid") != Some(&owner.uid) => {
            // The garbage collector is about to take what an earlier set of this name owned. Any other owner has taken it over.
            let earlier = text(other, "kind") == Some("StatefulSet") && text(other, "name") == Some(&owner.name);
            if earlier { Standing::Leaving } else { Standing::Foreign }
        }
        _ => Standing::Ours,
    }
}

/// Whether a live object says all that the desired one says; what it says besides is the API server's and other people's.
#[must_use]
pub fn covers(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            desired.iter().all(|(key, value)| entry_covers(live, key, value))
        }
        // Lists of objects with a key each (ports, owner references): ours must be among them.
        (Value::Array(live), Value::Array(desired)) => {
            desired.iter().all(|wanted| live.iter().any(|found| covers(found, wanted)))
        }
        (live, desired) => live == desired,
    }
}

fn entry_covers(live: &Map<String, Value>, key: &str, desired: &Value) -> bool {
    match live.get(key) {
        None => is_empty(desired),
        Some(found) if is_empty(found) && is_empty(desired) => true,
        Some(found) if ATOMIC.contains(&key) => found == desired,
        Some(found) => covers(found, desired),
    }
}

/// Values that the API server may leave out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.values().all(is_empty),
        _ => false,
    }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}
