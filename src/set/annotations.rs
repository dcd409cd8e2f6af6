//! What the user asks for by annotations: they are checked once, all of them, and then read without an error.

use serde_json::Value;

use super::{
    Error,
    entries::{self, Entry},
    error::{named, quoted},
    json::Field,
    validation::nearest,
    values::Values,
};
use crate::names::{self, annotation};

/// The annotations of a set, each of which says something that it may say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Annotations<'a>(&'a Value);

/// The object's annotations, as they stand.
pub(crate) fn of(object: &Value) -> Result<Field<'_>, Error> {
    Field::root(object).at(&["metadata", "annotations"])
}

/// The name of a raw object, where it has one.
pub(crate) fn name(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("name")?.as_str()
}

/// The annotation of a raw object, where it is a string.
pub(crate) fn value<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// Whether the object asks for injection; an error if it does so by another word than `enabled`.
pub(crate) fn is_enabled(object: &Value) -> Result<bool, Error> {
    let field = of(object)?.get(annotation::INJECT)?;
    match field.value() {
        None => Ok(false),
        Some(Value::String(text)) if entries::INJECT.of(Some(text)) => Ok(true),
        Some(Value::String(text)) => Err(Error::Inject { value: quoted(text) }),
        Some(other) => Err(Error::Inject { value: quoted(&other.to_string()) }),
    }
}

/// The annotations with our prefix, all of which must be known.
pub(crate) fn ours(object: &Value) -> Result<Vec<(&str, Field<'_>)>, Error> {
    let mut ours = of(object)?.entries()?;
    ours.retain(|(key, _)| key.starts_with(names::PREFIX));
    for (key, _) in &ours {
        if *key != annotation::FOLLOW && !entries::is_of_a_set(key) {
            let suggestion = nearest(key, &entries::of_a_set());
            return Err(Error::Unknown { annotation: named(key), suggestion });
        }
    }
    Ok(ours)
}

impl<'a> Annotations<'a> {
    /// Checks all of them, strictly.
    pub(crate) fn read(object: &'a Value) -> Result<Self, Error> {
        if ours(object)?.iter().any(|(key, _)| *key == annotation::FOLLOW) {
            return Err(Error::Follow);
        }
        let all = of(object)?;
        entries::OF_A_SET.iter().try_for_each(|entry| entry.check(&all))?;
        Ok(Self(object))
    }

    /// What one of them says, or its default.
    pub(crate) fn get<V: Values>(self, entry: &Entry<V>) -> V::Value {
        entry.of(value(self.0, entry.key))
    }
}
