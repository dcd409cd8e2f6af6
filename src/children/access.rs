//! What the members run as, and what they may do: their own set, nothing else.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::{Owner, owned};
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

/// What the members may do. Every rule names its objects, so that one set's members can't touch another's.
#[must_use]
pub fn role(set: &Set, owner: &Owner, members: &[String]) -> Role {
    Role { metadata: owned(names::service_account(&owner.name), owner), rules: Some(rules(set, members)) }
}

fn rules(set: &Set, members: &[String]) -> Vec<PolicyRule> {
    let mut rules = Vec::with_capacity(3);
    if set.contract == Contract::Agent {
        // The Lease is the election: a member reads it, watches it, and the one that may holds it. It can't make or delete it.
        let verbs = ["get", "list", "watch", "update", "patch"];
        rules.push(rule("coordination.k8s.io", "leases", &verbs, vec![names::leader(&set.name)]));
    }
    // No names would mean all pods of the namespace: a set without members has no such rule.
    if !members.is_empty() {
        let verbs: &[&str] = match set.contract {
            // A member reads its own labels and puts its role on itself.
            Contract::Agent => &["get", "patch"],
            // So does the image; newer ones update the whole pod instead of patching it.
            Contract::Image => &["get", "update", "patch"],
        };
        rules.push(rule("", "pods", verbs, members.to_vec()));
    }
    if set.contract == Contract::Agent {
        // How many members there are to be (which slots to keep) and what the user asks for (failover, switchover) is on the set.
        rules.push(rule("apps", "statefulsets", &["get", "list", "watch"], vec![set.name.clone()]));
    }
    rules
}

fn rule(group: &str, resource: &str, verbs: &[&str], resource_names: Vec<String>) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        verbs: verbs.iter().map(|&verb| verb.to_owned()).collect(),
        resource_names: Some(resource_names),
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
