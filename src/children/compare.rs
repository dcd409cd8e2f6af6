//! Whose a live object is, and what has to change for it to say what we would say.

use serde_json::{Map, Value};

use super::{Kind, Owner, leader};
use crate::names;

/// Fields that are one thing: anything more in them than we say is a difference.
const ATOMIC: [&str; 4] = ["selector", "rules", "subjects", "roleRef"];
/// The list in which every owner has an entry of his own.
const OWNERS: &str = "ownerReferences";

/// Whose a live object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This very set's: kept right.
    Ours,
    /// Of a set of this name that is gone, or being deleted: soon absent, and then made anew.
    Leaving,
    /// Anybody else's: left alone.
    Foreign,
}

/// Whose a live object is. Only an owner reference to this very set makes it ours: a label is written by whoever likes to. The Lease alone
/// may have no owner, because it outlives the set as the data does.
#[must_use]
pub fn ownership(kind: Kind, live: &Value, owner: &Owner) -> Ownership {
    let references = live.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let is_ours = |reference: &Value| text(reference, "uid") == Some(&owner.uid);
    let controller =
        references.into_iter().flatten().find(|reference| reference.get("controller") == Some(&Value::Bool(true)));
    let ours = match controller {
        Some(controller) => is_ours(controller),
        None => {
            references.into_iter().flatten().any(is_ours) || (kind == Kind::Lease && leader::is_of(live, &owner.name))
        }
    };
    // The garbage collector is about to take what an earlier set of this name owned. Any other owner has taken it over.
    let is_sets = controller.is_some_and(|controller| {
        text(controller, "kind") == Some("StatefulSet") && text(controller, "name") == Some(&owner.name)
    });
    let leaves = live.pointer("/metadata/deletionTimestamp").is_some();
    match (ours, is_sets && is_labelled(live, &owner.name)) {
        (true, _) if leaves => Ownership::Leaving,
        (true, _) => Ownership::Ours,
        (false, true) => Ownership::Leaving,
        (false, false) => Ownership::Foreign,
    }
}

/// Whether an object carries the labels of what pgset makes for a set. It says nothing of whose it is: copies have them too.
#[must_use]
pub fn is_labelled(live: &Value, set: &str) -> bool {
    is_made(live) && has_label_of(live, set)
}

/// Whether an object has the label of this set, whoever made it.
#[must_use]
pub fn has_label_of(live: &Value, set: &str) -> bool {
    label(live, names::label::SET) == Some(set)
}

/// Whether an object has the label of what pgset makes for any set.
#[must_use]
pub fn is_made(live: &Value) -> bool {
    label(live, names::label::MANAGED_BY) == Some(names::MANAGER)
}

fn label<'a>(live: &'a Value, key: &str) -> Option<&'a str> {
    live.pointer("/metadata/labels").and_then(|labels| text(labels, key))
}

/// The merge patch (RFC 7386) that makes a live object say all that the desired one says, with nothing in it that is right
/// already; `None` if it says all. What it says besides is the API server's and other people's.
#[must_use]
pub fn correction(live: &Value, desired: &Value) -> Option<Value> {
    let (Some(live), Some(desired)) = (live.as_object(), desired.as_object()) else { return Some(desired.clone()) };
    // Which kind it is was the question already, and the items of a list don't repeat it.
    changes(live, desired.iter().filter(|(key, _)| !["apiVersion", "kind"].contains(&key.as_str())))
}

/// What fields have to become; `None` if all of them say what is desired.
fn changes<'a>(live: &Map<String, Value>, desired: impl Iterator<Item = (&'a String, &'a Value)>) -> Option<Value> {
    let changes: Map<_, _> =
        desired.filter_map(|(key, value)| Some((key.clone(), change(key, live.get(key), value)?))).collect();
    (!changes.is_empty()).then_some(Value::Object(changes))
}

/// What one field has to become; `None` if it says all that is desired.
fn change(key: &str, live: Option<&Value>, desired: &Value) -> Option<Value> {
    let Some(live) = live else { return (!is_empty(desired)).then(|| desired.clone()) };
    if is_empty(live) && is_empty(desired) {
        return None;
    }
    if ATOMIC.contains(&key) {
        return (live != desired).then(|| replacement(live, desired));
    }
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => changes(live, desired.iter()),
        (Value::Array(live), Value::Array(desired)) if key == OWNERS && desired.is_empty() => {
            let others: Vec<Value> = live.iter().filter(|found| !is_stateful_set(found)).cloned().collect();
            (others.len() < live.len()).then_some(Value::Array(others))
        }
        (Value::Array(live), Value::Array(desired)) => {
            // Ours must be among them. A merge patch can't say which of them to change: it brings the whole list.
            let has_all =
                desired.iter().all(|wanted| live.iter().any(|found| change("", Some(found), wanted).is_none()));
            (!has_all).then(|| Value::Array(if key == OWNERS { with_others(live, desired) } else { desired.clone() }))
        }
        (live, desired) => (live != desired).then(|| desired.clone()),
    }
}

/// What a merge patch has to say so that nothing but the desired value is left: what is too much is taken away by name.
fn replacement(live: &Value, desired: &Value) -> Value {
    let (Value::Object(live), Value::Object(desired)) = (live, desired) else { return desired.clone() };
    let surplus = live.keys().filter(|key| !desired.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let wanted = desired.iter().filter(|(key, value)| live.get(*key) != Some(*value)).map(|(key, value)| {
        let value = live.get(key).map_or_else(|| value.clone(), |found| replacement(found, value));
        (key.clone(), value)
    });
    Value::Object(surplus.chain(wanted).collect())
}

/// What no set may own loses such an owner, and keeps those that other people gave it.
fn is_stateful_set(reference: &Value) -> bool {
    text(reference, "kind") == Some("StatefulSet")
}

/// Our owner reference, and those of everybody else.
fn with_others(live: &[Value], desired: &[Value]) -> Vec<Value> {
    let is_ours = |found: &&Value| desired.iter().any(|wanted| wanted.get("uid") == found.get("uid"));
    live.iter().filter(|found| !is_ours(found)).chain(desired).cloned().collect()
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
