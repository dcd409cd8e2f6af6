//! What surrounds a set: from the set alone to the objects that must stand beside it. Pure: no clock, no randomness, no I/O.

pub mod access;
pub mod compare;
pub mod credentials;
pub mod disruption;
pub mod event;
pub mod leader;
pub mod route;
pub mod services;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Serialize;
use serde_json::Value;

use crate::names;
use crate::set::{Contract, Set};
use route::Route;
use services::GoverningService;

/// From how many members on a set has a disruption budget: with one, it could only stand in the way of draining a node.
const DISRUPTION_BUDGET_FROM: u32 = 2;

/// Why the objects of a set could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A typed object did not become JSON.
    #[error("failed to encode the {kind} of the set")]
    Encode {
        /// Which kind.
        kind: &'static str,
        /// What the encoder said.
        #[source]
        source: serde_json::Error,
    },
}

/// The kinds of objects that are kept right beside a set. The Secret is not among them: it is made once and never looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// What the members run as.
    ServiceAccount,
    /// What the members may do.
    Role,
    /// Who may do it.
    RoleBinding,
    /// Who the master is.
    Lease,
    /// Where the master is.
    EndpointSlice,
    /// How clients reach the members.
    Service,
    /// How many members may be away at once.
    PodDisruptionBudget,
}

impl Kind {
    /// Every kind, in the order in which a new set needs them: without the account its first pod is refused.
    pub const ALL: [Self; 7] = [
        Self::ServiceAccount,
        Self::Role,
        Self::RoleBinding,
        Self::Lease,
        Self::EndpointSlice,
        Self::Service,
        Self::PodDisruptionBudget,
    ];

    /// The kind's name as Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServiceAccount => "ServiceAccount",
            Self::Role => "Role",
            Self::RoleBinding => "RoleBinding",
            Self::Lease => "Lease",
            Self::EndpointSlice => "EndpointSlice",
            Self::Service => "Service",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The stored set that the objects belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The set's namespace: everything stands in it, nothing outside.
    pub namespace: String,
    /// The set's name.
    pub name: String,
    /// The set's UID: a set made anew under the same name is another owner.
    pub uid: String,
}

impl Owner {
    fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: "StatefulSet".to_owned(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            // `true` would need the right to set finalizers on other people's sets, and buys only the order of deletion.
            block_owner_deletion: Some(false),
        }
    }
}

/// An object that must stand beside a set, as it is sent to the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// All that pgset says of it, and nothing else.
    pub body: Value,
}

impl Child {
    fn new(kind: Kind, name: String, object: &impl Serialize) -> Result<Self, Error> {
        let body = serde_json::to_value(object).map_err(|source| Error::Encode { kind: kind.as_str(), source })?;
        Ok(Self { kind, name, body })
    }

    /// Whether it says that it is in this set's namespace and this set's own. A Lease may outlive its set, and then has no owner.
    #[must_use]
    pub fn is_of(&self, owner: &Owner) -> bool {
        let says =
            |value: &Value, pointer: &str, text: &str| value.pointer(pointer).and_then(Value::as_str) == Some(text);
        let owners = self.body.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        let is_owned = owners.into_iter().flatten().any(|it| says(it, "/uid", &owner.uid));
        says(&self.body, "/metadata/namespace", &owner.namespace) && (is_owned || self.kind == Kind::Lease)
    }
}

/// What the members are granted besides what every set's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grants<'a> {
    /// The pods that the Role names: those the set has by its `replicas`, and those that are still leaving.
    pub members: &'a [String],
    /// The Lease; not where another program has its own under that name.
    pub lease: bool,
    /// How clients come to the master: the slice is the members' to fill.
    pub route: Route,
}

/// The places of everything that must stand beside a set, in the order in which a new set needs it.
#[must_use]
pub fn places(set: &Set) -> Vec<(Kind, String)> {
    let account = names::service_account(&set.name);
    let mut places = Vec::with_capacity(9);
    if set.service_account == account {
        places.push((Kind::ServiceAccount, account.clone()));
    }
    places.extend([(Kind::Role, account.clone()), (Kind::RoleBinding, account)]);
    // An image that implements the contract itself elects nobody.
    if set.contract == Contract::Agent {
        places.push((Kind::Lease, names::leader(&set.name)));
    }
    if set.routed {
        places.push((Kind::EndpointSlice, names::master(&set.name)));
    }
    places.extend([names::master(&set.name), names::replica(&set.name)].map(|name| (Kind::Service, name)));
    if services::governing_service(&set.name, &set.headless_service) == GoverningService::Made {
        places.push((Kind::Service, set.headless_service.clone()));
    }
    if wants_disruption_budget(set) {
        places.push((Kind::PodDisruptionBudget, set.name.clone()));
    }
    places
}

/// Everything that must stand beside a set, in the order in which a new set needs it.
pub fn desired(set: &Set, owner: &Owner, grants: &Grants<'_>) -> Result<Vec<Child>, Error> {
    let child = |(kind, name): (Kind, String)| match kind {
        Kind::ServiceAccount => Child::new(kind, name, &access::service_account(owner)),
        Kind::Role => Child::new(kind, name, &access::role(set, owner, grants)),
        Kind::RoleBinding => Child::new(kind, name, &access::role_binding(set, owner)),
        Kind::Lease => Child::new(kind, name, &leader::lease(set, owner)),
        Kind::EndpointSlice => Child::new(kind, name, &route::slice(owner, grants.route.slice.unwrap_or_default())),
        Kind::Service if name == names::master(&set.name) => {
            Child::new(kind, name, &services::master(set, owner, grants.route))
        }
        Kind::Service if name == names::replica(&set.name) => Child::new(kind, name, &services::replica(set, owner)),
        Kind::Service => Child::new(kind, name, &services::headless(set, owner)),
        Kind::PodDisruptionBudget => Child::new(kind, name, &disruption::budget(set, owner)),
    };
    let is_wanted = |(kind, _): &(Kind, String)| *kind != Kind::EndpointSlice || grants.route.slice.is_some();
    places(set).into_iter().filter(is_wanted).map(child).collect()
}

/// Whether a set of this size has a disruption budget.
#[must_use]
pub fn wants_disruption_budget(set: &Set) -> bool {
    set.replicas >= DISRUPTION_BUDGET_FROM
}

/// The labels of everything made for a set. `app.kubernetes.io/instance` is not among them: by that label Argo CD tells which application
/// an object is of, and of one that has the set's name it would delete what is not in Git and has no owner, the Secret and the Lease.
#[must_use]
pub fn labels(set: &str) -> BTreeMap<String, String> {
    [(names::label::SET, set), (names::label::MANAGED_BY, names::MANAGER), ("app.kubernetes.io/name", "postgresql")]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The labels by which a set's own Services and budget choose its members.
fn members_of(set: &Set) -> BTreeMap<String, String> {
    BTreeMap::from([(names::label::SET.to_owned(), set.name.clone())])
}

fn owned(name: String, owner: &Owner) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(owner.namespace.clone()),
        labels: Some(labels(&owner.name)),
        owner_references: Some(vec![owner.reference()]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
pub(crate) mod tests;
