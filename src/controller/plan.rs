//! What to do about a set, from the set and what stands beside it. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::notice::{Notice, Reason};
use super::selection::{self, Service};
use crate::children::compare::{Standing, covers, standing};
use crate::children::{self, Child, Kind, Owner};
use crate::names;
use crate::set::{Contract, Set};

/// A pod of the set, as far as the controller cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// The version that was seen.
    pub resource_version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is being deleted.
    pub leaving: bool,
}

/// What stands in the set's namespace.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// What stands under the names of the desired objects, and of those that the set may have had.
    pub children: BTreeMap<(Kind, String), Value>,
    /// The Services of the namespace that pgset did not make, and any others.
    pub services: Vec<Value>,
    /// The pods that the set owns.
    pub members: Vec<Member>,
}

/// One change to the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make an object.
    Create(Child),
    /// Put an object right again; the UID is that of the object to be changed, so that another of its name is not.
    Restore(Child, String),
    /// Remove an object that the set no longer needs.
    Remove {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Set a label on a pod of the set.
    Label {
        /// The pod.
        member: Member,
        /// The label's key.
        key: String,
        /// The label's value.
        value: String,
    },
    /// Put the role into the selector of a user's own Service that asks for it.
    Follow {
        /// The Service.
        service: Service,
        /// The role label's key.
        key: String,
        /// The role label's value.
        value: String,
    },
}

impl Step {
    /// Whether the API server takes this only when the Role is there: it looks into the Role that it is asked to give.
    #[must_use]
    pub fn needs_role(&self) -> bool {
        matches!(self, Self::Create(child) | Self::Restore(child, _) if child.kind == Kind::RoleBinding)
    }
}

/// What to do, and what to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The changes, in the order in which a new set needs them.
    pub steps: Vec<Step>,
    /// What stands in the way, whether or not it was told before.
    pub notices: Vec<Notice>,
}

/// Whether the webhook has done its work on a stored set: what it adds is there to be seen.
#[must_use]
pub fn is_injected(stateful_set: &Value, set: &Set) -> bool {
    let template = stateful_set.pointer("/spec/template");
    let label = template.and_then(|t| t.pointer("/metadata/labels")).and_then(|labels| labels.get(names::label::SET));
    let labelled = label.and_then(Value::as_str) == Some(&set.name);
    let mut init_containers =
        template.and_then(|t| t.pointer("/spec/initContainers")).and_then(Value::as_array).into_iter().flatten();
    let wrapped = set.contract == Contract::Image
        || init_containers
            .any(|container| container.get("name").and_then(Value::as_str) == Some(names::pod::INIT_CONTAINER));
    labelled && wrapped
}

/// What to say about a set that is not injected.
#[must_use]
pub fn not_injected(set: &Set) -> Notice {
    Notice::new(
        Reason::NotInjected,
        format!(
            "StatefulSet {0} is annotated, but pgset's webhook has not seen it, so that nothing of it is a PostgreSQL set yet. \
             See that the webhook is installed and up (\"pgset install | kubectl apply -f -\"), then run \
             \"kubectl rollout restart statefulset {0}\"",
            set.name
        ),
    )
}

/// What to do about an injected set, so that all that is desired stands beside it.
#[must_use]
pub fn plan(set: &Set, owner: &Owner, desired: Vec<Child>, world: &World) -> Plan {
    let mut plan = Plan::default();
    for child in desired {
        let Some(live) = world.children.get(&(child.kind, child.name.clone())) else {
            plan.steps.push(Step::Create(child));
            continue;
        };
        match standing(live, owner) {
            Standing::Ours if covers(live, &child.body) => {}
            Standing::Ours => plan.steps.push(Step::Restore(child, uid(live))),
            // Its deletion is an event, and then there is room for a new one.
            Standing::Leaving => {}
            Standing::Foreign => plan.notices.extend(taken(&child, live, set, owner)),
        }
    }
    plan.steps.extend(disruption_budget_to_remove(set, owner, world));
    if set.contract == Contract::Image {
        plan.steps.extend(world.members.iter().filter_map(|member| role_to_set(set, member)));
    }
    let foreign: Vec<Service> = world
        .services
        .iter()
        .filter(|live| standing(live, owner) == Standing::Foreign && !is_of_a_set(live))
        .map(Service::read)
        .collect();
    plan.notices.extend(selection::judge(&foreign, set));
    plan.steps.extend(foreign.into_iter().filter_map(|service| {
        let value = selection::to_follow(&service, set)?;
        Some(Step::Follow { service, key: set.role_label.key.clone(), value })
    }));
    plan
}

/// The pods that the Role names: those by `replicas`, and those still there that have to finish what they are doing.
#[must_use]
pub fn role_members(set: &Set, present: &[Member]) -> Vec<String> {
    let mut names: Vec<String> = set.members().collect();
    let mut leaving: Vec<String> =
        present.iter().map(|m| m.name.clone()).filter(|name| !names.contains(name)).collect();
    leaving.sort_unstable();
    names.append(&mut leaving);
    names
}

/// The role of a member of contract `image`, where its label does not say it: the first is the master, as the image itself has it.
fn role_to_set(set: &Set, member: &Member) -> Option<Step> {
    let first = member.name == set.member(set.first_ordinal);
    let value = if first { &set.role_label.master } else { &set.role_label.replica };
    let key = &set.role_label.key;
    (!member.leaving && member.labels.get(key) != Some(value)).then(|| Step::Label {
        member: member.clone(),
        key: key.clone(),
        value: value.clone(),
    })
}

fn disruption_budget_to_remove(set: &Set, owner: &Owner, world: &World) -> Option<Step> {
    let place = (Kind::PodDisruptionBudget, set.name.clone());
    let live = world.children.get(&place)?;
    let obsolete = !children::wants_disruption_budget(set) && standing(live, owner) == Standing::Ours;
    obsolete.then(|| Step::Remove { kind: place.0, name: place.1, uid: uid(live) })
}

/// Whether pgset made this object for another set: that set looks after it.
fn is_of_a_set(live: &Value) -> bool {
    let labels = live.pointer("/metadata/labels");
    labels.and_then(|l| l.get(names::label::MANAGED_BY)).and_then(Value::as_str) == Some(names::MANAGER)
}

/// What to say about somebody else's object under a name of ours. Services are judged with all others of the namespace.
fn taken(child: &Child, live: &Value, set: &Set, owner: &Owner) -> Option<Notice> {
    let why = match child.kind {
        // Made for another set: that one's own job comes first.
        Kind::Service if is_of_a_set(live) => "belongs to another set; rename one of the two sets",
        // The user's own account serves as well as ours, and his own budget is his choice.
        Kind::Service | Kind::ServiceAccount | Kind::PodDisruptionBudget => return None,
        Kind::Role if allows(live, &child.body) => return None,
        Kind::Role => "does not allow the members what they need; delete it and pgset makes one, or rename it",
        Kind::RoleBinding if binds(live, &set.service_account, &owner.namespace) => return None,
        Kind::RoleBinding => "does not bind the members' account; delete it and pgset makes one, or rename it",
        Kind::Lease => "may be held by something else, and the members elect the master by it; delete or rename it",
    };
    let note =
        format!("{} {} is not pgset's for set {} and is left alone, but it {why}", child.kind, child.name, set.name);
    Some(Notice::new(Reason::NameTaken, note))
}

/// Whether a Role of somebody else's allows at least what ours would.
fn allows(live: &Value, desired: &Value) -> bool {
    let rules = |role: &Value| role.get("rules").and_then(Value::as_array).cloned().unwrap_or_default();
    let has = |rule: &Value, field: &str, wanted: &Value| {
        let list = rule.get(field).and_then(Value::as_array).into_iter().flatten().collect::<Vec<_>>();
        let unlimited = field == "resourceNames" && list.is_empty();
        let any = field != "resourceNames" && list.iter().any(|&item| item == "*");
        unlimited || any || wanted.as_array().into_iter().flatten().all(|item| list.contains(&item))
    };
    let live = rules(live);
    rules(desired).iter().all(|wanted| {
        live.iter().any(|rule| {
            ["apiGroups", "resources", "verbs", "resourceNames"]
                .iter()
                .all(|field| has(rule, field, wanted.get(*field).unwrap_or(&Value::Null)))
        })
    })
}

/// Whether a `RoleBinding` of somebody else's names the account, directly or with all accounts.
fn binds(live: &Value, account: &str, namespace: &str) -> bool {
    let text = |subject: &Value, key: &str| subject.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    live.get("subjects").and_then(Value::as_array).into_iter().flatten().any(|subject| {
        let name = text(subject, "name");
        match text(subject, "kind").as_str() {
            "ServiceAccount" => name == account && text(subject, "namespace") == namespace,
            "Group" => name == "system:serviceaccounts" || name == format!("system:serviceaccounts:{namespace}"),
            _ => false,
        }
    })
}

fn uid(live: &Value) -> String {
    live.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
