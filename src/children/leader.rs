//! The Lease by which the members agree on the master.

use k8s_openapi::api::coordination::v1::Lease;
use serde_json::{Map, Value};

use super::compare::{has_label_of, is_labelled};
use super::{Owner, owned};
use crate::names;
use crate::set::Set;

/// The Lease without a word about its holder: that is the members' own business, and applying this never touches it. It remembers which
/// database the set is, and so it lasts as long as the data: it is owned by the set, and goes with it, only if the data does.
#[must_use]
pub fn lease(set: &Set, owner: &Owner) -> Lease {
    let mut metadata = owned(names::leader(&owner.name), owner);
    if set.data_outlives_set {
        // No owner is a word as well: one that is there is taken off.
        metadata.owner_references = Some(Vec::new());
    }
    Lease { metadata, spec: None }
}

/// What a live Lease has to say. Of one that nobody holds and that remembers a database, nobody knows whether that was this set's: it gets
/// no owner, which would take it along, before a member leads by it.
#[must_use]
pub fn wanted(live: &Value, mut desired: Value) -> Value {
    let owns = |lease: &Value| {
        lease.pointer("/metadata/ownerReferences").and_then(Value::as_array).is_some_and(|owners| !owners.is_empty())
    };
    if owns(&desired) && remembers_a_database(live) && !is_held(live) {
        desired.get_mut("metadata").and_then(Value::as_object_mut).map(|metadata| metadata.remove("ownerReferences"));
    }
    desired
}

/// Whether a Lease of the name, without an owner, is the set's, be it of an earlier set of this name: by its labels, by what only members
/// note on it, or because nobody has ever done anything with it but change a label of the controller's.
#[must_use]
pub fn is_of(live: &Value, set: &str) -> bool {
    is_labelled(live, set) || remembers_a_database(live) || (has_label_of(live, set) && is_untouched(live))
}

/// Whether a member has ever led by this Lease: then there is a database.
#[must_use]
pub fn remembers_a_database(live: &Value) -> bool {
    let notes = live.pointer("/metadata/annotations");
    notes.is_some_and(|notes| notes.get(names::lease::SYSTEM_IDENTIFIER).is_some())
}

fn is_held(live: &Value) -> bool {
    let holder = live.pointer("/spec/holderIdentity").and_then(Value::as_str);
    holder.is_some_and(|holder| !holder.is_empty())
}

/// Whether nobody has ever held it or noted anything on it, as the controller makes it.
fn is_untouched(live: &Value) -> bool {
    let is_empty = |field: &str| live.pointer(field).and_then(Value::as_object).is_none_or(Map::is_empty);
    is_empty("/spec") && is_empty("/metadata/annotations")
}

#[cfg(test)]
#[path = "leader_tests.rs"]
mod tests;
