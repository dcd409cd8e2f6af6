//! Which members a Service of somebody else's reaches, and whether that does.

use std::collections::BTreeMap;

use serde_json::Value;

use super::event::{Reason, SetEvent};
use crate::children::services::{GoverningService, governing_service};
use crate::names;
use crate::set::Set;

/// Which pods of a set a Service's selector chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorMatch {
    /// None.
    Nobody,
    /// All members, whatever their role.
    Everybody,
    /// The members with this value of the role label.
    Role(String),
}

/// The fields of a Service that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The version that was seen.
    pub resource_version: String,
    /// `pgset.dev/follow`, as the user wrote it.
    pub follow: Option<String>,
    /// Its selector; empty if it has none.
    pub selector: BTreeMap<String, String>,
    headless: bool,
    ports: Vec<(i64, Value)>,
}

impl Service {
    /// Reads a Service; what it lacks is empty.
    #[must_use]
    pub fn read(live: &Value) -> Self {
        let text = |pointer: &str| live.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let annotations = live.pointer("/metadata/annotations");
        let follow = annotations.and_then(|all| all.get(names::annotation::FOLLOW)).and_then(Value::as_str);
        let selector = live.pointer("/spec/selector").and_then(Value::as_object).into_iter().flatten();
        let ports = live.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
        Self {
            name: text("/metadata/name"),
            uid: text("/metadata/uid"),
            resource_version: text("/metadata/resourceVersion"),
            follow: follow.map(ToOwned::to_owned),
            selector: selector.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect(),
            headless: live.pointer("/spec/clusterIP").and_then(Value::as_str) == Some("None"),
            ports: ports
                .filter_map(|port| {
                    Some((port.get("port")?.as_i64()?, port.get("targetPort").cloned().unwrap_or_default()))
                })
                .collect(),
        }
    }

    /// Which members this Service chooses. A selector with another set's role in it chooses nobody here.
    #[must_use]
    pub fn selects(&self, set: &Set) -> SelectorMatch {
        let role = &set.role_label;
        let fits = |(key, value): (&String, &String)| *key == role.key || set.pod_labels.get(key) == Some(value);
        if self.selector.is_empty() || !self.selector.iter().all(fits) {
            return SelectorMatch::Nobody;
        }
        match self.selector.get(&role.key) {
            None => SelectorMatch::Everybody,
            Some(value) if *value == role.master || *value == role.replica => SelectorMatch::Role(value.clone()),
            Some(_) => SelectorMatch::Nobody,
        }
    }

    /// Whether the selector names anything that distinguishes this set, so that the role in it can be ours to keep.
    fn is_of(&self, set: &Set) -> bool {
        let shared = set.role_label.key == names::label::ROLE;
        self.selector.keys().any(|key| *key != set.role_label.key || !shared)
    }

    /// Whether clients that use the set's port come out at the set's port. A target by name is the template's business.
    fn leads_to(&self, port: u16) -> bool {
        self.ports.iter().any(|(number, target)| {
            *number == i64::from(port)
                && (target.is_null() || target.is_string() || target.as_i64() == Some(i64::from(port)))
        })
    }
}

/// The value of the role label that a Service's annotation asks for and its selector lacks.
#[must_use]
pub fn to_follow(service: &Service, set: &Set) -> Option<String> {
    let wanted = match service.follow.as_deref()? {
        "master" => &set.role_label.master,
        "replica" => &set.role_label.replica,
        _ => return None,
    };
    match service.selects(set) {
        SelectorMatch::Nobody => None,
        SelectorMatch::Role(role) if role == *wanted => None,
        SelectorMatch::Role(_) | SelectorMatch::Everybody => service.is_of(set).then(|| wanted.clone()),
    }
}

/// What is to be said about the Services of somebody else's in the set's namespace.
#[must_use]
pub fn judge(services: &[Service], set: &Set) -> Vec<SetEvent> {
    let told_apart = services.iter().any(|service| matches!(service.selects(set), SelectorMatch::Role(_)));
    let mut events = Vec::new();
    for service in services {
        events.extend(stands_in(service, set));
        let selects = service.selects(set);
        if let Some(value) = service.follow.as_deref().filter(|value| !["master", "replica"].contains(value))
            && selects != SelectorMatch::Nobody
        {
            events.push(SetEvent::new(
                Reason::InvalidFollow,
                format!(
                    "Service {}: the annotation {}: {value:?} is neither \"master\" nor \"replica\"; its selector stays as it is",
                    service.name,
                    names::annotation::FOLLOW
                ),
            ));
        }
        // Where the user wrote Services to the roles himself, his governing one is for the members' names, as in the article.
        let governing = service.headless && service.name == set.headless_service && told_apart;
        let following = matches!(service.follow.as_deref(), Some("master" | "replica"));
        if set.replicas > 1 && selects == SelectorMatch::Everybody && !governing && !following {
            events.push(reaches_replicas(service, set));
        }
    }
    events
}

fn reaches_replicas(service: &Service, set: &Set) -> SetEvent {
    SetEvent::new(
        Reason::ServiceReachesReplicas,
        format!(
            "Service {} chooses all {} members, so that writes will fail whenever a replica gets them: add the line \
             \"{}: {}\" to its selector, or the annotation \"{}: master\" to let pgset do that, or let clients use {}",
            service.name,
            set.replicas,
            set.role_label.key,
            set.role_label.master,
            names::annotation::FOLLOW,
            names::master(&set.name)
        ),
    )
}

/// Why a Service of somebody else's under the name of one of ours can't do its job, if it can't.
fn stands_in(service: &Service, set: &Set) -> Option<SetEvent> {
    let role = &set.role_label;
    let wanted = if service.name == names::master(&set.name) {
        &role.master
    } else if service.name == names::replica(&set.name) {
        &role.replica
    } else if service.name == set.headless_service {
        return (service.selects(set) == SelectorMatch::Nobody).then(|| {
            unfit(
                service,
                set,
                "its selector chooses none of the set's pods, so that the members have no names in the DNS",
            )
        });
    } else {
        return None;
    };
    let following = to_follow(service, set).as_ref() == Some(wanted);
    if service.selects(set) != SelectorMatch::Role(wanted.clone()) && !following {
        return Some(unfit(
            service,
            set,
            &format!("its selector must choose the set's pods with \"{}: {wanted}\" and no other", role.key),
        ));
    }
    (!service.leads_to(set.port)).then(|| unfit(service, set, &format!("it has no port {0} to {0}", set.port)))
}

fn unfit(service: &Service, set: &Set, why: &str) -> SetEvent {
    let (name, set_name) = (&service.name, &set.name);
    let is_made = governing_service(set_name, name) != GoverningService::Users;
    let else_made = format!(", or delete it and pgset makes one (\"kubectl delete service {name}\")");
    let cure = if is_made { else_made.as_str() } else { "" };
    SetEvent::new(
        Reason::ServiceUnfit,
        format!(
            "Service {name} is not pgset's and is left alone, but set {set_name} can't use it: {why}. Correct it{cure}"
        ),
    )
}

#[cfg(test)]
#[path = "selection_tests.rs"]
mod tests;
