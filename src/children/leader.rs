//! The Lease by which the members agree on the master.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::compare::is_labelled;
use super::{Owner, labels};
use crate::names;

/// The Lease without a word about its holder: that is the members' own business, and applying this never touches it. Like the Secret it
/// outlives the set, as the data does: it remembers which database the set is. No owner is said here, because one would take it along.
#[must_use]
pub fn lease(owner: &Owner) -> Lease {
    let metadata = ObjectMeta {
        name: Some(names::leader(&owner.name)),
        namespace: Some(owner.namespace.clone()),
        labels: Some(labels(&owner.name)),
        owner_references: Some(Vec::new()),
        ..ObjectMeta::default()
    };
    Lease { metadata, spec: None }
}

/// Whether a Lease of the name is the set's, be it of an earlier set of this name: by its labels, or by what only members note on it.
#[must_use]
pub fn is_of(live: &Value, set: &str) -> bool {
    is_labelled(live, set) || remembers_a_database(live)
}

/// Whether a member has ever led by this Lease: then there is a database.
#[must_use]
pub fn remembers_a_database(live: &Value) -> bool {
    let notes = live.pointer("/metadata/annotations");
    notes.is_some_and(|notes| notes.get(names::lease::SYSTEM_IDENTIFIER).is_some())
}
