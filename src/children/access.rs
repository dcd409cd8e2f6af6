//! What the members run as, and what they may do: their own set, nothing else.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::{Grants, Owner, owned};
use crate::names;
use crate::set::{Contract, Set};

/// The API group of roles.
const RBAC: &str = "rbac.authorization.k8s.io";

/// The account that members run as where the template names none of the user's own.
#[must_use]
pub fn service_account(owner: &Owner) -> ServiceAccount {
    // Nothing about mounting the token: the agent has its own, projected one, and an image that labels itself needs the usual one.
    ServiceAccount { metadata: owned(names::service_account(&owner.name), owner), ..ServiceAccount::default() }
}

/// What the members may do. Every rule about objects that are there names them, so that one set's members can't touch another's.
#[must_use]
pub fn role(set: &Set, owner: &Owner, grants: &Grants<'_>) -> Role {
    Role { metadata: owned(names::service_account(&owner.name), owner), rules: Some(rules(set, grants)) }
}

fn rules(set: &Set, grants: &Grants<'_>) -> Vec<PolicyRule> {
    let members = grants.members;
    let mut rules = Vec::with_capacity(5);
    if set.contract == Contract::Agent && grants.lease {
        // The Lease is the election: a member reads it, watches it, and the one that may holds it. It can't make or delete it.
        let verbs = ["get", "list", "watch", "update", "patch"];
        rules.push(named_rule("coordination.k8s.io", "leases", &verbs, vec![names::leader(&set.name)]));
    }
    if set.contract == Contract::Agent {
        // The leader replaces it in one write when it has become the master, so that clients are never without one. It can't make or delete
        // it, and the policy lets a member write its own pod into it and no other. Beside a Service of the user's own it only sees that
        // there is none.
        let verbs: &[&str] = if grants.route.slice.is_some() { &["get", "update"] } else { &["get"] };
        rules.push(named_rule("discovery.k8s.io", "endpointslices", verbs, vec![names::master(&set.name)]));
    }
    // No names would mean all pods of the namespace: a set without members has no such rule.
    if !members.is_empty() {
        let verbs: &[&str] = match set.contract {
            // A member reads its own labels and puts its role on itself.
            Contract::Agent => &["get", "patch"],
            // So does the image; newer ones update the whole pod instead of patching it.
            Contract::Image => &["get", "update", "patch"],
        };
        rules.push(named_rule("", "pods", verbs, members.to_vec()));
    }
    if set.contract == Contract::Agent {
        // How many members there are to be (which slots to keep) and what the user asks for (failover, switchover) is on the set.
        rules.push(named_rule("apps", "statefulsets", &["get", "list", "watch"], vec![set.name.clone()]));
        // A member that refuses to start tells its owner why. What is made has no name yet that the rule could say.
        rules.push(rule("events.k8s.io", "events", &["create"]));
    }
    rules
}

fn named_rule(group: &str, resource: &str, verbs: &[&str], resource_names: Vec<String>) -> PolicyRule {
    PolicyRule { resource_names: Some(resource_names), ..rule(group, resource, verbs) }
}

fn rule(group: &str, resource: &str, verbs: &[&str]) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        verbs: verbs.iter().map(|&verb| verb.to_owned()).collect(),
        resource_names: None,
        non_resource_urls: None,
    }
}

/// Gives the Role to the account that the template names, be it ours or the user's.
#[must_use]
pub fn role_binding(set: &Set, owner: &Owner) -> RoleBinding {
    let name = names::service_account(&owner.name);
    RoleBinding {
        metadata: owned(name.clone(), owner),
        role_ref: RoleRef { api_group: RBAC.to_owned(), kind: "Role".to_owned(), name },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: set.service_account.clone(),
            namespace: Some(owner.namespace.clone()),
            api_group: None,
        }]),
    }
}
