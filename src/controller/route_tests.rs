use std::collections::BTreeMap;

use super::*;
use crate::children::tests::{all, article, owner, pgset, stored};
use crate::children::{self, Grants};
use crate::controller::plan::{Plan, plan, role_members};

const MASTER: &str = "pgset-master";

fn member(name: &str, role: &str) -> Member {
    Member {
        name: name.to_owned(),
        uid: format!("{name}-uid"),
        resource_version: "5".to_owned(),
        labels: BTreeMap::from([(names::label::ROLE.to_owned(), role.to_owned())]),
        leaving: false,
        readiness: Readiness::Ready,
        family: Some(AddressType::Ipv4),
    }
}

/// A set of this revision that runs, and has everything but the word of a member.
fn running(set: &Set) -> Observed {
    let mut observed =
        Observed { members: vec![member("pgset-0", "master"), member("pgset-1", "replica")], ..Observed::default() };
    for child in all(set) {
        let live = stored(&child.body, &format!("{} {}", child.kind, child.name));
        observed.children.insert((child.kind, child.name), live);
    }
    observed
}

fn live(observed: &mut Observed, kind: Kind) -> &mut Value {
    observed.children.get_mut(&(kind, MASTER.to_owned())).unwrap()
}

fn with_selector(mut observed: Observed) -> Observed {
    live(&mut observed, Kind::Service)["spec"]["selector"] =
        json!({"pgset.dev/set": "pgset", "pgset.dev/role": "master"});
    observed
}

fn filled(mut observed: Observed) -> Observed {
    let slice = live(&mut observed, Kind::EndpointSlice);
    slice["metadata"]["annotations"] = json!({names::slice::WRITTEN_AT: "2026-01-01T00:00:10.5Z"});
    slice["endpoints"] =
        json!([{"targetRef": {"name": "pgset-0", "uid": "pgset-0-uid"}, "conditions": {"ready": true}}]);
    observed
}

fn by_kubernetes() -> Value {
    json!({"metadata": {"name": "pgset-master-x7k2p", "uid": "old", "labels": {
        names::slice::SERVICE: MASTER, names::slice::MANAGED_BY: names::slice::BY_KUBERNETES}},
        "endpoints": [{"targetRef": {"name": "pgset-0", "uid": "pgset-0-uid"}}]})
}

fn planned(set: &Set, observed: &Observed) -> Plan {
    let members = role_members(set, &observed.members);
    let grants = Grants { members: &members, lease: true, route: route(set, &owner(), observed) };
    plan(set, &owner(), children::desired(set, &owner(), &grants).unwrap(), observed)
}

/// What a plan does, in short.
fn steps(set: &Set, observed: &Observed) -> Vec<String> {
    let said = |step: Step| match step {
        Step::Create(child) => format!("make {} {}", child.kind, child.name),
        Step::Restore { child, patch } => format!("{} {}: {}", child.kind, child.name, patch["spec"]),
        Step::Remove { kind, name, uid } => format!("remove {kind} {name} ({uid})"),
        Step::Close(doubt) => format!("close {}: {}", doubt.pod, doubt.why),
        other => format!("{other:?}"),
    };
    planned(set, observed).objects.into_iter().map(said).collect()
}

fn of_an_older_revision() -> Set {
    Set { routed: false, ..pgset() }
}

#[test]
fn a_new_set_has_a_service_without_selector_and_an_empty_slice() {
    let route = route(&pgset(), &owner(), &Observed::default());
    assert_eq!(route, Route { selector: false, slice: Some(AddressType::Ipv4) });
    assert_eq!(steps(&pgset(), &running(&pgset())), [""; 0]);
    assert_eq!(steps(&pgset(), &filled(running(&pgset()))), [""; 0]);
}

#[test]
fn the_selector_goes_when_a_member_has_written_the_slice_and_not_before() {
    let observed = with_selector(running(&pgset()));
    assert_eq!(steps(&pgset(), &observed), [""; 0], "agents of 0.1.0 still run");
    assert_eq!(
        steps(&pgset(), &filled(observed)),
        [r#"Service pgset-master: {"selector":{"pgset.dev/set":null,"pgset.dev/role":null}}"#]
    );
}

#[test]
fn a_service_that_was_deleted_among_agents_of_an_older_revision_has_its_selector() {
    let mut observed = running(&pgset());
    observed.children.remove(&(Kind::Service, MASTER.to_owned()));
    assert!(route(&pgset(), &owner(), &observed).selector);
    assert!(!route(&pgset(), &owner(), &filled(observed.clone())).selector);
    observed.members.clear();
    assert!(!route(&pgset(), &owner(), &observed).selector, "nobody is to be found by a label");
}

#[test]
fn a_master_whose_slice_stays_empty_is_found_by_its_label() {
    let mut observed = running(&pgset());
    assert!(
        is_unreachable(&pgset(), &observed) && !route(&pgset(), &owner(), &observed).selector,
        "it is about to write it"
    );
    observed.by_label = true;
    assert!(route(&pgset(), &owner(), &observed).selector);
    assert!(!is_unreachable(&pgset(), &with_selector(observed.clone())));
    observed.by_label = false;
    live(&mut observed, Kind::Service)["spec"]["selector"] = json!({"pgset.dev/role": "replica"});
    assert!(!route(&pgset(), &owner(), &observed).selector, "somebody's edit");
    assert!(!is_unreachable(&pgset(), &filled(observed.clone())));
    observed.members.clear();
    assert!(!is_unreachable(&pgset(), &observed));
}

#[test]
fn what_kubernetes_leaves_behind_is_removed_when_the_selector_is_gone() {
    let slices = vec![by_kubernetes()];
    let observed = Observed { slices: slices.clone(), ..filled(running(&pgset())) };
    assert_eq!(steps(&pgset(), &observed), ["remove EndpointSlice pgset-master-x7k2p (old)"]);
    let before = Observed { slices: slices.clone(), ..with_selector(filled(running(&pgset()))) };
    assert!(!steps(&pgset(), &before).iter().any(|step| step.starts_with("remove")), "clients use it");
    let empty = Observed { slices, ..running(&pgset()) };
    assert_eq!(steps(&pgset(), &empty), [""; 0], "nobody has written where the master is");
    let mut somebodys = by_kubernetes();
    somebodys["metadata"]["labels"][names::slice::MANAGED_BY] = json!("somebody");
    assert_eq!(steps(&pgset(), &Observed { slices: vec![somebodys], ..filled(running(&pgset())) }), [""; 0]);
}

#[test]
fn a_set_that_goes_back_to_an_older_revision_is_found_by_its_label_again() {
    let set = of_an_older_revision();
    let observed = filled(running(&pgset()));
    let said = steps(&set, &observed);
    assert!(
        said.contains(
            &r#"Service pgset-master: {"selector":{"pgset.dev/role":"master","pgset.dev/set":"pgset"}}"#.to_owned()
        ),
        "{said:?}"
    );
    assert!(!said.iter().any(|step| step.starts_with("remove")), "clients use it: {said:?}");
    let later = Observed { slices: vec![by_kubernetes()], ..with_selector(observed) };
    assert!(steps(&set, &later).contains(&format!("remove EndpointSlice {MASTER} (EndpointSlice {MASTER})")));
}

#[test]
fn a_service_of_the_users_own_gets_no_slice_beside_its_selector() {
    let mut observed = with_selector(running(&pgset()));
    live(&mut observed, Kind::Service)["metadata"] = json!({"name": MASTER, "uid": "theirs"});
    assert_eq!(route(&pgset(), &owner(), &observed), Route { selector: true, slice: None });
    let removed = format!("remove EndpointSlice {MASTER} (EndpointSlice {MASTER})");
    assert!(steps(&pgset(), &observed).contains(&removed), "made beside an earlier Service");
    observed.children.remove(&(Kind::EndpointSlice, MASTER.to_owned()));
    let said = steps(&pgset(), &observed);
    assert!(!said.iter().any(|step| step.contains("EndpointSlice")), "{said:?}");
    assert_eq!(route(&article(), &owner(), &Observed::default()), Route { selector: true, slice: None });
}

#[test]
fn a_slice_of_somebody_elses_is_told_and_clients_go_by_the_label() {
    let mut observed = running(&pgset());
    live(&mut observed, Kind::EndpointSlice)["metadata"] = json!({"name": MASTER, "uid": "theirs"});
    let Plan { objects: steps, events, .. } = planned(&pgset(), &observed);
    assert!(steps.iter().any(|step| matches!(step, Step::Restore { child, .. } if child.kind == Kind::Service)));
    assert!(events.iter().any(|event| event.note.contains("delete endpointslice pgset-master")), "{events:?}");
}

#[test]
fn a_slice_of_the_other_family_is_made_anew() {
    let mut observed = filled(running(&pgset()));
    for member in &mut observed.members {
        member.family = Some(AddressType::Ipv6);
    }
    assert_eq!(steps(&pgset(), &observed), [format!("remove EndpointSlice {MASTER} (EndpointSlice {MASTER})")]);
    observed.children.remove(&(Kind::EndpointSlice, MASTER.to_owned()));
    let route = route(&pgset(), &owner(), &observed);
    assert_eq!(route, Route { selector: false, slice: Some(AddressType::Ipv6) });
}

#[test]
fn members_of_two_families_go_by_the_masters() {
    let mut observed = running(&pgset());
    observed.members[0].family = Some(AddressType::Ipv6);
    assert_eq!(route(&pgset(), &owner(), &observed).slice, Some(AddressType::Ipv6));
    observed.members[0].labels.clear();
    assert_eq!(route(&pgset(), &owner(), &observed).slice, Some(AddressType::Ipv4), "as it is");
}

#[test]
fn an_endpoint_is_doubted_when_its_pod_is_gone_or_another_or_stopped_or_turned_not_ready() {
    let observed = |change: &dyn Fn(&mut Member)| {
        let mut observed = filled(running(&pgset()));
        change(&mut observed.members[0]);
        steps(&pgset(), &observed)
    };
    assert_eq!(observed(&|_| {}), [""; 0]);
    assert_eq!(observed(&|pod| pod.name = "pgset-1".to_owned()), ["close pgset-0: is gone"]);
    assert_eq!(observed(&|pod| pod.uid = "new".to_owned()), ["close pgset-0: was made anew"]);
    assert_eq!(observed(&|pod| pod.leaving = true), [""; 0], "it still serves");
    let unready = |since: &str| Readiness::Unready(since.parse().ok());
    let before = "2026-01-01T00:00:10Z";
    assert_eq!(
        observed(&|pod| {
            pod.leaving = true;
            pod.readiness = unready(before);
        }),
        ["close pgset-0: has stopped"]
    );
    assert_eq!(observed(&|pod| pod.readiness = unready(before)), [""; 0], "the kubelet has not asked it yet");
    assert_eq!(observed(&|pod| pod.readiness = Readiness::Unready(None)), [""; 0]);
    assert_eq!(observed(&|pod| pod.readiness = unready("2026-01-01T00:00:11Z")), ["close pgset-0: is not Ready"]);
}

#[test]
fn a_closed_endpoint_stays_closed_until_a_member_opens_it() {
    let mut observed = filled(running(&pgset()));
    live(&mut observed, Kind::EndpointSlice)["endpoints"][0]["conditions"]["ready"] = json!(false);
    assert_eq!(steps(&pgset(), &observed), [""; 0]);
    observed.members[0].uid = "new".to_owned();
    assert_eq!(steps(&pgset(), &observed), [""; 0]);
}
