//! What to do about a set, from the set and what stands beside it. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::cache::pod::Member;
use super::event::{Reason, SetEvent};
use super::route::{self, Doubt};
use super::selection::{self, Service};
use super::taken;
use crate::children::compare::{Ownership, correction, is_labelled, is_made, ownership};
use crate::children::route::AddressType;
use crate::children::{self, Child, Kind, Owner, leader};
use crate::names;
use crate::set::{Contract, MOST_MEMBERS, Set};

/// What stands in the set's namespace.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// What stands under the names of the desired objects, and of those that the set may have had.
    pub children: BTreeMap<(Kind, String), Value>,
    /// The Services of the namespace that pgset did not make, and any others.
    pub services: Vec<Value>,
    /// The pods that the set owns.
    pub members: Vec<Member>,
    /// The slices behind the Service to the master that are not the members' own.
    pub slices: Vec<Value>,
    /// Whether a master has been labelled for a while and has not written the slice: clients find it by its label.
    pub by_label: bool,
}

/// One change to the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make an object.
    Create(Child),
    /// Put an object right again.
    Restore {
        /// What it has to say.
        child: Child,
        /// The merge patch that makes it say so; it names the very object, so that another of its name is not changed.
        patch: Value,
    },
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
    /// Let no client be sent to an endpoint where nobody answers.
    Close(Doubt),
}

impl Step {
    /// Which kind of what stands beside a set this makes or puts right.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Create(child) | Self::Restore { child, .. } => Some(child.kind),
            Self::Remove { .. } | Self::Label { .. } | Self::Follow { .. } | Self::Close(_) => None,
        }
    }
}

/// What to do, and what to say. The steps of one stage are taken together, one stage after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The first stage: everything else, in the order in which a new set needs it.
    pub objects: Vec<Step>,
    /// The last stage: what gives the Role to somebody, once it is there and says what it has to.
    pub grants: Vec<Step>,
    /// What stands in the way, whether or not it was told before.
    pub events: Vec<SetEvent>,
}

impl Plan {
    /// The steps of all stages.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.objects.iter().chain(&self.grants)
    }

    /// Leaves out the steps for which the answer is `false`.
    pub fn retain(&mut self, mut is_taken: impl FnMut(&Step) -> bool) {
        self.objects.retain(&mut is_taken);
        self.grants.retain(&mut is_taken);
    }
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
pub fn not_injected(set: &Set) -> SetEvent {
    SetEvent::new(
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
pub fn plan(set: &Set, owner: &Owner, desired: Vec<Child>, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let is_role_ours = role_is_ours(owner, observed);
    for child in desired {
        let live = observed.children.get(&(child.kind, child.name.clone()));
        let stage = match child.kind {
            // It would give somebody whatever another's Role allows, now or later.
            Kind::RoleBinding if !is_role_ours => continue,
            Kind::RoleBinding => &mut plan.grants,
            _ => &mut plan.objects,
        };
        let Some(live) = live else {
            stage.push(Step::Create(child));
            continue;
        };
        match ownership(child.kind, live, owner) {
            // The family can't be changed. Its deletion is an event, and then there is room for a new one.
            Ownership::Ours if is_of_another_family(&child, live) => stage.push(route::removal(live)),
            Ownership::Ours => stage.extend(restoration(child, live)),
            // Its deletion is an event, and then there is room for a new one.
            Ownership::Leaving => {}
            Ownership::Foreign => plan.events.extend(taken::event(&child, live, set, owner, observed)),
        }
    }
    plan.events.extend(taken::slice(set, owner, observed));
    plan.events.extend(taken::no_governing_service(set, owner, observed));
    plan.objects.extend(disruption_budget_to_remove(set, owner, observed));
    plan.objects.extend(route::to_remove(set, owner, observed));
    plan.objects.extend(route::doubt(set, owner, observed).map(Step::Close));
    if set.contract == Contract::Image {
        plan.objects.extend(observed.members.iter().filter_map(|member| role_to_set(set, member)));
    }
    let foreign: Vec<Service> = foreign_services(owner, observed).map(Service::read).collect();
    plan.events.extend(selection::judge(&foreign, set));
    plan.objects.extend(foreign.into_iter().filter_map(|service| {
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
    // As many as there may ever have been: a Role has to fit into one object.
    leaving.truncate(MOST_MEMBERS as usize);
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

fn is_of_another_family(child: &Child, live: &Value) -> bool {
    child.kind == Kind::EndpointSlice && AddressType::of_slice(&child.body) != AddressType::of_slice(live)
}

fn disruption_budget_to_remove(set: &Set, owner: &Owner, observed: &Observed) -> Option<Step> {
    let place = (Kind::PodDisruptionBudget, set.name.clone());
    let live = observed.children.get(&place)?;
    let obsolete = !children::wants_disruption_budget(set) && ownership(place.0, live, owner) == Ownership::Ours;
    obsolete.then(|| Step::Remove { kind: place.0, name: place.1, uid: uid(live) })
}

/// The Services of other people, and copies of this set's own; another set looks after its own.
fn foreign_services<'a>(owner: &'a Owner, observed: &'a Observed) -> impl Iterator<Item = &'a Value> {
    let under_our_names =
        observed.children.iter().filter(|((kind, _), _)| *kind == Kind::Service).map(|(_, live)| live);
    let copies = under_our_names.filter(|live| is_labelled(live, &owner.name));
    let others = observed.services.iter().filter(|live| !is_made(live));
    others.chain(copies).filter(|live| ownership(Kind::Service, live, owner) == Ownership::Foreign)
}

/// Whether the Role is this set's, or will be in a moment.
fn role_is_ours(owner: &Owner, observed: &Observed) -> bool {
    let live = observed.children.get(&(Kind::Role, names::service_account(&owner.name)));
    live.is_none_or(|live| ownership(Kind::Role, live, owner) == Ownership::Ours)
}

/// Whether the members may be granted the Lease of that name: another program's is not theirs to hold.
#[must_use]
pub fn may_grant_lease(owner: &Owner, observed: &Observed) -> bool {
    let live = observed.children.get(&(Kind::Lease, names::leader(&owner.name)));
    live.is_none_or(|live| ownership(Kind::Lease, live, owner) != Ownership::Foreign)
}

/// What makes an object of ours right again, if it is not.
fn restoration(mut child: Child, live: &Value) -> Option<Step> {
    if child.kind == Kind::Lease {
        child.body = leader::wanted(live, child.body);
    }
    let patch = of_this_object(live, correction(live, &child.body)?);
    Some(Step::Restore { child, patch })
}

/// The change, for this very object only and, where that is known, as it was seen.
fn of_this_object(live: &Value, mut change: Value) -> Value {
    let known = ["uid", "resourceVersion"].into_iter();
    let known = known.filter_map(|key| Some((key.to_owned(), live.get("metadata")?.get(key)?.clone())));
    if let Some(change) = change.as_object_mut() {
        let metadata = change.entry("metadata").or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.extend(known);
        }
    }
    change
}

fn uid(live: &Value) -> String {
    live.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
