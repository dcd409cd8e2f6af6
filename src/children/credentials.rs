//! The Secret with a set's passwords: made once, never read, never overwritten.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Owner, labels};
use crate::names;
use crate::set::Set;

/// One password for each key of [`names::credential::ALL`], in that order. Deliberately without `Debug`.
pub struct Passwords(pub [String; names::credential::ALL.len()]);

/// Whether the set's Secret is pgset's to make: one that the user names is the user's.
#[must_use]
pub fn is_made(set: &Set) -> bool {
    [names::credentials(&set.name), names::older_credentials(&set.name)].contains(&set.credentials)
}

/// The Secret. It belongs to nobody, so that it outlives the set as the data does: the passwords are in the data.
#[must_use]
pub fn secret(owner: &Owner, name: &str, passwords: &Passwords) -> Secret {
    let entries = names::credential::ALL.iter().zip(&passwords.0);
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(owner.namespace.clone()),
            labels: Some(labels(&owner.name)),
            ..ObjectMeta::default()
        },
        data: Some(entries.map(|(&key, word)| (key.to_owned(), ByteString(word.clone().into_bytes()))).collect()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}
