//! What to say about somebody else's object under a name of the set's. pgset leaves it alone, whatever it is.

use serde_json::Value;

use super::event::{Reason, SetEvent};
use super::plan::Observed;
use crate::children::compare::{Ownership, is_labelled, is_made, ownership};
use crate::children::services::{GoverningService, governing_service};
use crate::children::{Child, Kind, Owner};
use crate::names;
use crate::set::Set;

/// What to say about it, if anything. Whether a Service serves is judged with all others of the namespace.
pub fn event(child: &Child, live: &Value, set: &Set, owner: &Owner, observed: &Observed) -> Option<SetEvent> {
    let is_copy = is_labelled(live, &set.name);
    let why = match child.kind {
        Kind::Role => role(child, live, is_copy, set, owner, observed)?,
        Kind::RoleBinding if !binds(live, &set.service_account, &owner.namespace) => {
            "but it does not bind the members' account; delete it and pgset makes one, or rename it".to_owned()
        }
        Kind::RoleBinding | Kind::Service if is_copy => copied(child),
        // Made for another set: that one's own job comes first.
        Kind::Service if is_made(live) => "but it belongs to another set; rename one of the two sets".to_owned(),
        Kind::Lease => {
            "but another program may hold it, and the members, who elect the master by it, are not given it; \
                                    delete or rename it"
                .to_owned()
        }
        // The user's own account serves as well as ours: pods run as it because their template says so, and all that pgset gives it
        // are the members' rights. His own budget is his choice.
        Kind::ServiceAccount | Kind::PodDisruptionBudget | Kind::Service | Kind::RoleBinding | Kind::EndpointSlice => {
            return None;
        }
    };
    let note = format!("{} {} is not pgset's for set {} and is left alone, {why}", child.kind, child.name, set.name);
    Some(SetEvent::new(Reason::NameTaken, note))
}

/// What to say of somebody else's slice under the name of the members' own.
pub fn slice(set: &Set, owner: &Owner, observed: &Observed) -> Option<SetEvent> {
    let name = names::master(&set.name);
    let live = observed.children.get(&(Kind::EndpointSlice, name.clone())).filter(|_| set.routed)?;
    (ownership(Kind::EndpointSlice, live, owner) == Ownership::Foreign).then(|| {
        let note = format!(
            "EndpointSlice {name} is not pgset's for set {} and is left alone, so that clients find the master by its label, a second or two \
             later at each change; delete it and pgset makes its own (\"kubectl delete endpointslice {name}\")",
            set.name
        );
        SetEvent::new(Reason::NameTaken, note)
    })
}

/// What to say where the members have no names in the DNS and pgset makes no Service that gives them any.
pub fn no_governing_service(set: &Set, owner: &Owner, observed: &Observed) -> Option<SetEvent> {
    let name = &set.headless_service;
    let cure = match governing_service(&set.name, name) {
        GoverningService::Made | GoverningService::ToRole => return None,
        GoverningService::Users => format!(
            "make a headless Service {name} with the selector \"{}: {}\" (clusterIP: None, publishNotReadyAddresses: true)",
            names::label::SET,
            set.name
        ),
        GoverningService::OfAnotherSet => format!(
            "make the set anew with serviceName: {}-headless (the name {name} is kept for another set's Service)",
            set.name
        ),
    };
    let live = observed.children.get(&(Kind::Service, name.clone()));
    let is_there =
        live.is_some_and(|live| !is_made(live) || ownership(Kind::Service, live, owner) != Ownership::Foreign);
    (!is_there).then(|| {
        SetEvent::new(
            Reason::NoGoverningService,
            format!(
                "spec.serviceName is {name:?}: pgset makes no Service of that name, and there is none. Set {} works without, but \
                 its members have no names of their own in the DNS. For names, {cure}",
                set.name
            ),
        )
    })
}

fn copied(child: &Child) -> String {
    format!(
        "and not kept right: its labels are pgset's, but no owner reference is the set's (a copy, or what \"kubectl delete \
         --cascade=orphan\" left). Delete it and pgset makes its own: \"kubectl delete {} {}\"",
        child.kind.as_str().to_lowercase(),
        child.name
    )
}

/// Nobody is bound to another's Role: it may allow more, and change.
fn role(child: &Child, live: &Value, is_copy: bool, set: &Set, owner: &Owner, observed: &Observed) -> Option<String> {
    let name = &child.name;
    if !allows(live, &child.body) {
        return Some(format!(
            "but it does not allow the members what they need; delete it and pgset makes one (\"kubectl delete role {name}\"), \
             or rename it"
        ));
    }
    let binding = observed.children.get(&(Kind::RoleBinding, name.clone()));
    if !binding.is_some_and(|binding| binds(binding, &set.service_account, &owner.namespace)) {
        return Some(format!(
            "and pgset gives it to nobody, so that the members may do nothing: delete it and pgset makes one \
             (\"kubectl delete role {name}\"), or bind it to ServiceAccount {} yourself",
            set.service_account
        ));
    }
    is_copy.then(|| copied(child))
}

/// Whether a Role of somebody else's allows at least what ours would.
fn allows(live: &Value, desired: &Value) -> bool {
    let rules = |role: &Value| role.get("rules").and_then(Value::as_array).cloned().unwrap_or_default();
    let has = |rule: &Value, field: &str, wanted: &Value| {
        let list = rule.get(field).and_then(Value::as_array).into_iter().flatten().collect::<Vec<_>>();
        let is_names = field == "resourceNames";
        let wanted: Vec<&Value> = wanted.as_array().into_iter().flatten().collect();
        match (is_names, list.is_empty(), wanted.is_empty()) {
            // No names are all names.
            (true, true, _) => true,
            (true, false, true) => false,
            _ => (!is_names && list.iter().any(|&item| item == "*")) || wanted.iter().all(|item| list.contains(item)),
        }
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

/// Whether a `RoleBinding` names the account, directly or with all accounts.
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
