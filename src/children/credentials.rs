//! The Secret with a set's passwords: made once, never read, never overwritten.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Owner, labels};
use crate::names;

/// One password for each key of [`names::credential::ALL`], in that order. Deliberately without `Debug`.
pub struct Passwords(pub [String; names::credential::ALL.len()]);

/// The Secret. It belongs to nobody, so that it outlives the set as the data does: the passwords are in the data.
#[must_use]
pub fn secret(owner: &Owner, passwords: &Passwords) -> Secret {
    let entries = names::credential::ALL.iter().zip(&passwords.0);
    Secret {
        metadata: ObjectMeta {
            name: Some(names::credentials(&owner.name)),
            namespace: Some(owner.namespace.clone()),
            labels: Some(labels(&owner.name)),
            ..ObjectMeta::default()
        },
        data: Some(entries.map(|(&key, word)| (key.to_owned(), ByteString(word.clone().into_bytes()))).collect()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}
