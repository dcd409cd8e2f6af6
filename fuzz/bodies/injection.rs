//! A YAML or JSON text of one or two objects: the second, if there is one, is what is stored already.
//!
//! Whatever they are, there is an answer; a patch applies, is not needed twice, changes nothing of the user's, and can be
//! taken out again.

use json_patch::{Patch, PatchOperation};
use pgset::{
    cli::inject::manifest,
    inject::{Outcome, Request, Settings, eject, inject},
    set::Set,
};
use serde_json::Value;

/// One input.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(documents) = manifest::read(text) else { return };
    let mut objects = documents.into_iter().map(|document| document.value).filter(Value::is_object);
    let Some(object) = objects.next() else { return };
    let old = objects.next();
    check(&object, None);
    if let Some(old) = old {
        check(&object, Some(&old));
        check(&old, None);
    }
}

fn ask(object: &Value, old: Option<&Value>) -> Outcome {
    inject(&Request { object, old, settings: &Settings { agent_image: "pgset.dev/pgset:0.2.0".to_owned() } })
}

fn applied(object: &Value, patch: &Patch) -> Value {
    let mut object = object.clone();
    json_patch::patch(&mut object, patch).expect("the patch applies");
    object
}

fn check(object: &Value, old: Option<&Value>) {
    let _ = Set::parse(object);
    let ejected = applied(object, &eject(object));
    match ask(object, old) {
        Outcome::Untouched { warnings } => check_warnings(&warnings),
        Outcome::Denied { reason } => {
            let text = reason.to_string();
            assert!(!text.contains(char::is_control) && text.len() < 2000, "{text:?}");
            assert!(!reason.code().is_empty());
        }
        Outcome::Patched { patch, warnings, .. } => {
            check_warnings(&warnings);
            let after = applied(object, &patch);
            let again = ask(&after, old);
            assert!(!matches!(again, Outcome::Patched { .. }), "patched twice: {again:?}");
            if old.is_some() {
                check_places(&patch);
            } else if is_new(object) {
                assert!(survives(object, &after), "{object}\nbecame\n{after}");
                assert_eq!(without_nulls(&applied(&after, &eject(&after))), without_nulls(object), "taken out again");
                assert_eq!(without_nulls(&ejected), without_nulls(object), "there was nothing to take out");
            }
        }
    }
}

fn check_warnings(warnings: &[String]) {
    for warning in warnings {
        assert!(warning.chars().count() <= 120 && !warning.contains(char::is_control), "{warning:?}");
    }
}

/// Whether no part of an earlier injection, and no wish for another revision, is in the object.
fn is_new(object: &Value) -> bool {
    let annotations = object.pointer("/metadata/annotations");
    ["pgset.dev/injected", "pgset.dev/revision", "pgset.dev/status"]
        .iter()
        .all(|key| annotations.and_then(|all| all.get(key)).is_none())
}

/// An update changes what may be changed.
fn check_places(patch: &Patch) {
    for operation in &patch.0 {
        let place = match operation {
            PatchOperation::Add(it) => &it.path,
            PatchOperation::Remove(it) => &it.path,
            PatchOperation::Replace(it) => &it.path,
            other => panic!("{other:?} is no operation of pgset's"),
        };
        let place = place.as_str();
        assert!(place.starts_with("/spec/template/") || place.starts_with("/metadata/annotations"), "{place}");
    }
}

/// Whether `after` has everything of `before`; of lists, in its order. `null` is nothing, and a command is wrapped.
fn survives(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Null, _) => true,
        (Value::Object(before), Value::Object(after)) => before.iter().all(|(key, value)| {
            let found = after.get(key).unwrap_or(&Value::Null);
            match (key.as_str(), value, found) {
                ("command", Value::Array(own), Value::Array(wrapped)) => wrapped.ends_with(own),
                _ => survives(value, found),
            }
        }),
        (Value::Array(before), Value::Array(after)) => {
            before.len() <= after.len() && before.iter().zip(after).all(|(before, after)| survives(before, after))
        }
        _ => before == after,
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.iter().filter(|(_, value)| !value.is_null());
            Value::Object(members.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}
