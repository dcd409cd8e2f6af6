//! The injection: from an annotated `StatefulSet` to the patch that makes a set of it, and back.
//!
//! Pure: no clock, no randomness, no I/O. It looks at the object as its user wrote it (what an earlier injection added is taken
//! out first, see [`crate::set::record`]), decides what a set needs, and writes only what differs from what is there.

mod check;
mod command;
mod denial;
mod eject;
mod environment;
mod injection;
mod pod;
mod revision;
#[cfg(test)]
mod tests;
mod update;
mod warnings;

use std::borrow::Cow;

use json_patch::Patch;
use serde_json::Value;

pub use self::{
    denial::{Denial, Reason},
    eject::eject,
    pod::store_items,
    revision::{REVISION, REVISIONS},
};
use self::{injection::Injection, revision::Revisions};
use crate::{
    names::{self, annotation},
    set::{
        Contract, ParsedSet, annotations,
        edits::Edits,
        json::at,
        record::{Record, find_reserved_name},
        shape::Settled,
    },
};

/// What is asked: an object as it comes, and as it was.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The `StatefulSet`.
    pub object: &'a Value,
    /// What is stored: `Some` on UPDATE.
    pub old: Option<&'a Value>,
    /// How this pgset is set up.
    pub settings: &'a Settings,
}

/// How this pgset is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The image of the agent for sets that carry none yet.
    pub agent_image: String,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Nothing is to be changed.
    Untouched {
        /// What the user should know, one line of at most 120 characters each.
        warnings: Vec<String>,
    },
    /// The object becomes, or stays, a set; or ceases to be one.
    Patched {
        /// What is to be changed; never empty.
        patch: Patch,
        /// What the user should know, one line of at most 120 characters each.
        warnings: Vec<String>,
        /// For the audit log: fixed keys and short values.
        audit: Vec<(&'static str, String)>,
    },
    /// The user has to change something first.
    Denied {
        /// Why, and what.
        reason: Denial,
    },
}

// === impl Outcome ===

impl Outcome {
    /// In a word, for logs, metrics and the audit log.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Untouched { .. } => "unchanged",
            Self::Patched { .. } => "injected",
            Self::Denied { .. } => "denied",
        }
    }

    /// Why it was denied: one of a fixed number of words.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        if let Self::Denied { reason } = self { Some(reason.code()) } else { None }
    }
}

/// Answers a CREATE or UPDATE of a `StatefulSet`.
#[must_use]
pub fn inject(request: &Request<'_>) -> Outcome {
    inject_as(request, Revisions::THIS)
}

/// The same for a pgset that knows other revisions.
fn inject_as(request: &Request<'_>, revisions: Revisions) -> Outcome {
    let is_stored_set = request.old.is_some_and(Record::is_on);
    decide(request, revisions)
        .unwrap_or_else(|reason| Outcome::Denied { reason: Denial::new(request.object, is_stored_set, reason) })
}

fn decide(request: &Request<'_>, revisions: Revisions) -> Result<Outcome, Reason> {
    let Request { object, old, settings } = *request;
    let stored_set = old.filter(|old| Record::is_on(old));
    // Whatever a rule says, an object must be able to go; and what was admitted once stays admitted while it stays as it is,
    // so that a later pgset with stricter rules, or an earlier one that can't read the record, holds up neither scaling nor foreign
    // annotations.
    if is_terminating(object) || stored_set.is_some_and(|old| is_same(old, object)) {
        return Ok(Outcome::Untouched { warnings: Vec::new() });
    }
    if !speaks_of_pgset(object) && stored_set.is_none() {
        return Ok(Outcome::Untouched { warnings: Vec::new() });
    }
    let stored = stored_set.map(Record::of).transpose().map(Option::flatten);
    if !annotations::is_enabled(object)? {
        return match stored? {
            Some(record) => eject::leave(object, old, &record),
            None => not_enabled(object),
        };
    }

    let record = match (Record::of(object), stored) {
        // `kubectl replace` with the user's own file: what is stored knows, but a list that is empty here is the user's.
        (Ok(None), stored) => stored?.map(|record| Record { created: Vec::new(), ..record }),
        // Its own; or, where that was damaged, the stored one.
        (Ok(Some(record)), _) | (Err(_), Ok(Some(record))) => Some(record),
        (Err(own), _) => return Err(own.into()),
    };
    let own = record.as_ref().map_or(Cow::Borrowed(object), |record| Cow::Owned(record.undone(object)));
    if let Some(part) = find_reserved_name(&own) {
        return Err(Reason::Reserved { part });
    }
    let pin = revision::Pin::of(object, old, record.as_ref(), settings, revisions)?;
    let settled = Settled::of(pin.shape, record.as_ref());
    check::image(&own, &settled)?;
    let parsed = ParsedSet::of(&own, &settled)?;
    check::conflicts(&parsed)?;
    if record.is_none() {
        check::new_conflicts(&parsed)?;
    }
    match old {
        Some(old) => update::check(old, &parsed, pin.shape)?,
        None if record.is_none() => check::new_names(&parsed)?,
        // Put back from a copy: it was admitted once.
        None => {}
    }
    let injection = Injection::of(&parsed, &own, &pin)?;

    let mut edits = Edits::new(object);
    if let Some(record) = &record {
        record.undo(&mut edits, injection.record());
    }
    injection.write(&mut edits);
    pin.write(&mut edits);
    let mut warnings = warnings::of_set(&own, &parsed)?;
    if let Some(old) = stored_set {
        let told = warnings::already_warned(old);
        warnings.retain(|warning| !told.contains(warning));
    }
    let audit = audit(&parsed, &pin);
    let patch = edits.into_patch();
    Ok(if patch.0.is_empty() { Outcome::Untouched { warnings } } else { Outcome::Patched { patch, warnings, audit } })
}

fn audit(parsed: &ParsedSet<'_>, pin: &revision::Pin) -> Vec<(&'static str, String)> {
    let contract = match parsed.set.contract {
        Contract::Agent => "agent",
        Contract::Image => "image",
    };
    vec![("contract", contract.to_owned()), ("revision", pin.revision.to_owned())]
}

/// A `StatefulSet` that does not ask for injection, but speaks of pgset.
fn not_enabled(object: &Value) -> Result<Outcome, Reason> {
    let ours = annotations::ours(object)?;
    if ours.iter().any(|(key, _)| *key == annotation::INJECTED) {
        return Err(Reason::OrphanedInjection);
    }
    Ok(Outcome::Untouched { warnings: warnings::of_bystander(object, &ours) })
}

/// Whether the object is being deleted: then only its finalizers change.
fn is_terminating(object: &Value) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_some_and(|time| !time.is_null())
}

/// Whether an update leaves everything alone that the injection depends on.
fn is_same(old: &Value, object: &Value) -> bool {
    let spec = ["template", "selector", "ordinals", "serviceName", "volumeClaimTemplates"];
    let same_spec = spec.iter().all(|field| {
        let [old, new] = [old, object].map(|object| object.get("spec").and_then(|spec| spec.get(field)));
        old == new
    });
    same_spec && our_annotations(old) == our_annotations(object)
}

fn our_annotations(object: &Value) -> Vec<(&String, &Value)> {
    let all = at(object, &["metadata", "annotations"]).and_then(Value::as_object);
    let is_ours = |(key, _): &(&String, &Value)| key.starts_with(names::PREFIX) && *key != annotation::STATUS;
    let mut ours: Vec<_> = all.into_iter().flatten().filter(is_ours).collect();
    ours.sort_by_key(|(key, _)| *key);
    ours
}

/// Whether pgset has any business with the object at all.
fn speaks_of_pgset(object: &Value) -> bool {
    let places: [&[&str]; 3] =
        [&["metadata", "annotations"], &["metadata", "labels"], &["spec", "template", "metadata", "annotations"]];
    places.iter().any(|place| {
        let members = at(object, place).and_then(Value::as_object);
        members.is_some_and(|members| members.keys().any(|key| key.starts_with(names::PREFIX)))
    })
}
