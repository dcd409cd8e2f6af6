//! How clients come to the master, and when its endpoint is doubted. Pure. An endpoint is chosen by members only.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::cache::pod::{Member, Readiness};
use super::plan::{Observed, Step};
use crate::children::compare::{Ownership, ownership};
use crate::children::route::{AddressType, Route, is_filled, is_filled_by_kubernetes};
use crate::children::services::in_role;
use crate::children::{Kind, Owner};
use crate::names;
use crate::set::Set;

/// An endpoint that clients are sent to, though nobody answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The slice, by its UID.
    pub slice: String,
    /// The pod.
    pub pod: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// When a member wrote that, in its own words.
    pub written_at: String,
    /// What is the matter with the pod.
    pub why: &'static str,
}

/// How clients come to the master, by what stands there. What Kubernetes does by a selector goes on until a member has written the slice:
/// agents of an older revision write none.
#[must_use]
pub fn route(set: &Set, owner: &Owner, observed: &Observed) -> Route {
    const BY_LABEL: Route = Route { selector: true, slice: None };
    let (service, slice) = (service(set, observed), slice(set, observed));
    let is_foreign =
        |kind, live: Option<&Value>| live.is_some_and(|live| ownership(kind, live, owner) == Ownership::Foreign);
    // Beside a Service of the user's own with a selector, a slice of ours would be one too many.
    if !set.routed || is_foreign(Kind::Service, service) || is_foreign(Kind::EndpointSlice, slice) {
        return BY_LABEL;
    }
    let selector = !slice.is_some_and(is_filled)
        && match service {
            Some(service) => observed.by_label || chooses_master(set, service),
            // Whoever has the label may be of an older revision.
            None => masters(set, observed).next().is_some(),
        };
    Route { selector, slice: Some(family(set, observed, slice)) }
}

/// Whether clients have no way to a master that there is: it has not written the slice, and the Service has no selector.
#[must_use]
pub fn is_unreachable(set: &Set, observed: &Observed) -> bool {
    let is_blind = service(set, observed).is_some_and(|service| !has_selector(service));
    set.routed && is_blind && !slice(set, observed).is_some_and(is_filled) && masters(set, observed).next().is_some()
}

/// The slices to be removed: those that Kubernetes leaves behind when the selector goes, and the members' own where their agents have gone
/// back to a revision that knows of none, or the Service is the user's own now.
#[must_use]
pub fn to_remove(set: &Set, owner: &Owner, observed: &Observed) -> Vec<Step> {
    let slice = slice(set, observed).filter(|live| ownership(Kind::EndpointSlice, live, owner) == Ownership::Ours);
    let (Some(service), Some(slice)) = (service(set, observed), slice) else { return Vec::new() };
    match ownership(Kind::Service, service, owner) {
        Ownership::Ours => {}
        Ownership::Foreign => return vec![removal(slice)],
        Ownership::Leaving => return Vec::new(),
    }
    let mut by_kubernetes = observed.slices.iter().filter(|slice| is_filled_by_kubernetes(slice));
    match (set.routed, has_selector(service)) {
        (true, false) if is_filled(slice) => by_kubernetes.map(removal).collect(),
        (false, true) if by_kubernetes.any(is_filled) => vec![removal(slice)],
        _ => Vec::new(),
    }
}

/// Removes a slice.
#[must_use]
pub fn removal(slice: &Value) -> Step {
    let text = |pointer: &str| slice.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    Step::Remove { kind: Kind::EndpointSlice, name: text("/metadata/name"), uid: text("/metadata/uid") }
}

/// Whether an endpoint that counts as ready can't be.
#[must_use]
pub fn doubt(set: &Set, owner: &Owner, observed: &Observed) -> Option<Doubt> {
    let slice = slice(set, observed).filter(|live| ownership(Kind::EndpointSlice, live, owner) == Ownership::Ours)?;
    doubt_of(slice, |name| observed.members.iter().find(|member| member.name == name))
}

/// The same of a slice, by the pods.
#[must_use]
pub fn doubt_of<'a>(slice: &Value, pod: impl FnOnce(&str) -> Option<&'a Member>) -> Option<Doubt> {
    let text = |pointer: &str| slice.pointer(pointer).and_then(Value::as_str);
    if slice.pointer("/endpoints/0/conditions/ready") == Some(&Value::Bool(false)) {
        return None;
    }
    let (name, uid) = (text("/endpoints/0/targetRef/name")?, text("/endpoints/0/targetRef/uid")?);
    let notes = slice.pointer("/metadata/annotations");
    let written_at = notes.and_then(|all| all.get(names::slice::WRITTEN_AT)?.as_str()).unwrap_or_default();
    let why = match pod(name) {
        None => "is gone",
        Some(pod) if pod.uid != uid => "was made anew",
        Some(Member { readiness: Readiness::Ready, .. }) => return None,
        Some(Member { leaving: true, .. }) => "has stopped",
        // A member that has just begun says so before its kubelet does.
        Some(Member { readiness: Readiness::Unready(since), .. }) => {
            let written_at: Option<Timestamp> = written_at.parse().ok();
            since.as_ref().zip(written_at).filter(|(since, written_at)| *since > written_at)?;
            "is not Ready"
        }
    };
    Some(Doubt {
        slice: text("/metadata/uid").unwrap_or_default().to_owned(),
        pod: name.to_owned(),
        pod_uid: uid.to_owned(),
        written_at: written_at.to_owned(),
        why,
    })
}

/// That of the members' addresses, or of the master's where they differ; as it is, as long as they have none.
fn family(set: &Set, observed: &Observed, slice: Option<&Value>) -> AddressType {
    let mut of_masters = masters(set, observed).filter_map(|member| member.family);
    let all: Vec<AddressType> = observed.members.iter().filter_map(|member| member.family).collect();
    let of_all = all.first().copied().filter(|first| all.iter().all(|family| family == first));
    of_masters.next().or(of_all).or_else(|| slice.map(AddressType::of_slice)).unwrap_or_default()
}

fn masters<'a>(set: &'a Set, observed: &'a Observed) -> impl Iterator<Item = &'a Member> {
    observed.members.iter().filter(|member| member.labels.get(&set.role_label.key) == Some(&set.role_label.master))
}

fn service<'a>(set: &Set, observed: &'a Observed) -> Option<&'a Value> {
    observed.children.get(&(Kind::Service, names::master(&set.name)))
}

fn slice<'a>(set: &Set, observed: &'a Observed) -> Option<&'a Value> {
    observed.children.get(&(Kind::EndpointSlice, names::master(&set.name)))
}

/// Whether a Service chooses the master as pgset has it; another selector is somebody's edit.
fn chooses_master(set: &Set, service: &Value) -> bool {
    service.pointer("/spec/selector") == Some(&json!(in_role(set, &set.role_label.master)))
}

fn has_selector(service: &Value) -> bool {
    service.pointer("/spec/selector").and_then(Value::as_object).is_some_and(|selector| !selector.is_empty())
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
