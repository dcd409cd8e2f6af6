//! The Lease by which the members agree on the master.

use k8s_openapi::api::coordination::v1::Lease;

use super::{Owner, owned};
use crate::names;

/// The Lease without a word about its holder: that is the members' own business, and applying this never touches it.
#[must_use]
pub fn lease(owner: &Owner) -> Lease {
    Lease { metadata: owned(names::leader(&owner.name), owner), spec: None }
}
