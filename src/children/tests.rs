//! What surrounds a set, told as sentences.

use serde_json::json;

use super::compare::{Ownership, correction, ownership};
use super::route::AddressType;
use super::services::governing_service;
use super::*;
use crate::set::{DataSource, Failover, RoleLabel};

/// The article's set in pgset's own way: two members, our role label.
pub(crate) fn pgset() -> Set {
    let pod_labels = [("app", "pgset"), ("pgset.dev/set", "pgset"), ("pgset.dev/role", "replica")];
    Set {
        name: "pgset".to_owned(),
        namespace: "shop".to_owned(),
        uid: Some("set-uid".to_owned()),
        contract: Contract::Agent,
        container: "postgres".to_owned(),
        port: 5432,
        data: DataSource::Claim { claim: "pgset-pvc".to_owned() },
        data_outlives_set: true,
        service_account: "pgset-sa".to_owned(),
        credentials: "pgset-pgset-credentials".to_owned(),
        role_label: RoleLabel::new(names::label::ROLE, "pgset"),
        failover: Failover::Automatic,
        synchronous: 0,
        synchronous_strict: true,
        lease_seconds: 6,
        routed: true,
        headless_service: "pgset".to_owned(),
        replicas: 2,
        first_ordinal: 0,
        selector: BTreeMap::from([("app".to_owned(), "pgset".to_owned())]),
        pod_labels: pod_labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    }
}

/// The article's set in the article's way: its images label themselves by the key `name`.
pub(crate) fn article() -> Set {
    let pod_labels = [("app", "pgset"), ("pgset.dev/set", "pgset"), ("name", "pgset-replica")];
    Set {
        contract: Contract::Image,
        routed: false,
        role_label: RoleLabel::new("name", "pgset"),
        pod_labels: pod_labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..pgset()
    }
}

/// The owner that both are.
pub(crate) fn owner() -> Owner {
    Owner { namespace: "shop".to_owned(), name: "pgset".to_owned(), uid: "set-uid".to_owned() }
}

/// All that a set wants, with the members it has by its replicas.
pub(crate) fn all(set: &Set) -> Vec<Child> {
    let members: Vec<_> = set.members().collect();
    let route = Route { selector: !set.routed, slice: set.routed.then_some(AddressType::Ipv4) };
    desired(set, &owner(), &Grants { members: &members, lease: true, route }).unwrap()
}

pub(crate) fn child(set: &Set, kind: Kind, name: &str) -> Value {
    all(set).into_iter().find(|child| (child.kind, child.name.as_str()) == (kind, name)).unwrap().body
}

fn names_of(children: &[Child]) -> Vec<String> {
    children.iter().map(|child| format!("{} {}", child.kind, child.name)).collect()
}

#[test]
fn a_set_of_two_has_everything_of_the_designs_table() {
    assert_eq!(
        names_of(&all(&pgset())),
        [
            "ServiceAccount pgset-sa",
            "Role pgset-sa",
            "RoleBinding pgset-sa",
            "Lease pgset-leader",
            "EndpointSlice pgset-master",
            "Service pgset-master",
            "Service pgset-replica",
            "Service pgset",
            "PodDisruptionBudget pgset",
        ]
    );
}

#[test]
fn everything_made_carries_our_labels_and_all_but_the_lease_is_owned_by_the_set() {
    for child in all(&pgset()) {
        let metadata = &child.body["metadata"];
        assert_eq!(metadata["namespace"], "shop", "{}", child.name);
        let mut labels = metadata["labels"].clone();
        labels
            .as_object_mut()
            .unwrap()
            .retain(|key, _| !key.contains("service-name") && !key.contains("endpointslice"));
        assert_eq!(
            labels,
            json!({"app.kubernetes.io/managed-by": "pgset", "app.kubernetes.io/name": "postgresql", "pgset.dev/set": "pgset"})
        );
        let owned = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "pgset", "uid": "set-uid",
            "controller": true, "blockOwnerDeletion": false}]);
        let owners = if child.kind == Kind::Lease { json!([]) } else { owned };
        assert_eq!(metadata["ownerReferences"], owners, "{}", child.name);
    }
}

#[test]
fn a_single_member_has_no_disruption_budget() {
    let single = Set { replicas: 1, ..pgset() };
    assert!(!names_of(&all(&single)).contains(&"PodDisruptionBudget pgset".to_owned()));
}

#[test]
fn an_account_of_the_users_own_is_bound_and_not_made() {
    let set = Set { service_account: "postgres".to_owned(), ..pgset() };
    assert!(!names_of(&all(&set)).contains(&"ServiceAccount pgset-sa".to_owned()));
    let binding = child(&set, Kind::RoleBinding, "pgset-sa");
    assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "name": "postgres", "namespace": "shop"}]));
    assert_eq!(
        binding["roleRef"],
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pgset-sa"})
    );
}

#[test]
fn members_may_touch_their_own_lease_slice_pods_and_set_by_name_and_write_events_and_nothing_else() {
    assert_eq!(
        child(&pgset(), Kind::Role, "pgset-sa")["rules"],
        json!([
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["pgset-leader"],
                "verbs": ["get", "list", "watch", "update", "patch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "resourceNames": ["pgset-master"],
                "verbs": ["get", "update"]},
            {"apiGroups": [""], "resources": ["pods"], "resourceNames": ["pgset-0", "pgset-1"], "verbs": ["get", "patch"]},
            {"apiGroups": ["apps"], "resources": ["statefulsets"], "resourceNames": ["pgset"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
        ])
    );
}

#[test]
fn members_of_contract_image_may_label_themselves_and_have_no_lease() {
    assert_eq!(
        child(&article(), Kind::Role, "pgset-sa")["rules"],
        json!([{"apiGroups": [""], "resources": ["pods"], "resourceNames": ["pgset-0", "pgset-1"],
            "verbs": ["get", "update", "patch"]}])
    );
    assert!(!names_of(&all(&article())).contains(&"Lease pgset-leader".to_owned()));
}

#[test]
fn a_set_scaled_to_nothing_gives_no_right_to_all_pods() {
    for set in [Set { replicas: 0, ..pgset() }, Set { replicas: 0, ..article() }] {
        let role = child(&set, Kind::Role, "pgset-sa");
        assert!(!role["rules"].to_string().contains("pods"), "{role}");
    }
}

#[test]
fn the_role_follows_the_first_ordinal() {
    let set = Set { first_ordinal: 3, ..pgset() };
    assert_eq!(child(&set, Kind::Role, "pgset-sa")["rules"][2]["resourceNames"], json!(["pgset-3", "pgset-4"]));
}

#[test]
fn the_headless_service_names_members_before_they_are_ready() {
    let spec = child(&pgset(), Kind::Service, "pgset")["spec"].clone();
    assert_eq!(
        spec,
        json!({"type": "ClusterIP", "clusterIP": "None", "publishNotReadyAddresses": true,
            "selector": {"pgset.dev/set": "pgset"},
            "ports": [{"name": "postgres", "protocol": "TCP", "port": 5432, "targetPort": 5432}]})
    );
}

#[test]
fn the_service_to_the_replicas_chooses_by_set_and_role_and_so_does_an_images_to_its_master() {
    let selector = |set: &Set, name: &str| child(set, Kind::Service, name)["spec"]["selector"].clone();
    assert_eq!(selector(&pgset(), "pgset-replica"), json!({"pgset.dev/set": "pgset", "pgset.dev/role": "replica"}));
    assert_eq!(selector(&article(), "pgset-master"), json!({"pgset.dev/set": "pgset", "name": "pgset-master"}));
}

#[test]
fn the_service_to_the_master_has_no_selector_and_one_slice_which_members_fill() {
    let service = child(&pgset(), Kind::Service, "pgset-master");
    assert_eq!(service["spec"]["selector"], json!({}));
    assert_eq!(service["metadata"]["labels"]["endpointslice.kubernetes.io/skip-mirror"], "true");
    let slice = child(&pgset(), Kind::EndpointSlice, "pgset-master");
    let labels = &slice["metadata"]["labels"];
    assert_eq!(labels["kubernetes.io/service-name"], "pgset-master");
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "pgset.dev");
    assert_eq!((&slice["addressType"], &slice["endpoints"]), (&json!("IPv4"), &json!([])));
    let mut filled = stored(&slice, "1");
    filled["endpoints"] = json!([{"addresses": ["10.0.0.1"]}]);
    filled["ports"] = json!([{"name": "postgres", "port": 5432}]);
    assert_eq!(correction(&filled, &slice), None, "what members wrote stays");
    assert!(!names_of(&all(&article())).contains(&"EndpointSlice pgset-master".to_owned()));
}

#[test]
fn as_long_as_no_member_has_filled_the_slice_a_selector_that_is_there_stays() {
    let members: Vec<_> = pgset().members().collect();
    let route = Route { selector: true, slice: Some(AddressType::Ipv6) };
    let all = desired(&pgset(), &owner(), &Grants { members: &members, lease: true, route }).unwrap();
    let body =
        |kind| &all.iter().find(|child| (child.kind, child.name.as_str()) == (kind, "pgset-master")).unwrap().body;
    assert_eq!(body(Kind::Service)["spec"]["selector"], json!({"pgset.dev/set": "pgset", "pgset.dev/role": "master"}));
    assert_eq!(body(Kind::EndpointSlice)["addressType"], "IPv6");
}

#[test]
fn services_have_the_port_of_the_container() {
    let set = Set { port: 5433, ..pgset() };
    let ports = &child(&set, Kind::Service, "pgset-master")["spec"]["ports"][0];
    assert_eq!((&ports["port"], &ports["targetPort"]), (&json!(5433), &json!(5433)));
}

#[test]
fn a_set_whose_governing_service_is_the_masters_has_that_one_once() {
    let set = Set { headless_service: "pgset-master".to_owned(), ..pgset() };
    let masters = names_of(&all(&set)).iter().filter(|name| *name == "Service pgset-master").count();
    assert_eq!(masters, 1);
}

#[test]
fn the_secret_outlives_the_set_and_holds_every_password() {
    let words = ["one", "two", "three", "four"].map(str::to_owned);
    let secret =
        serde_json::to_value(credentials::secret(&owner(), "pgset-pgset-credentials", &credentials::Passwords(words)))
            .unwrap();
    assert_eq!(secret["metadata"]["name"], "pgset-pgset-credentials");
    assert_eq!(secret["metadata"].get("ownerReferences"), None);
    assert_eq!(
        secret["data"],
        json!({"agent-password": "dGhyZWU=", "postgres-password": "b25l", "replication-password": "dHdv", "user-password": "Zm91cg=="})
    );
}

/// What the API server makes of an object: its own fields, defaults, and what others wrote.
pub(crate) fn stored(body: &Value, uid: &str) -> Value {
    let mut live = body.clone();
    live["metadata"]["uid"] = json!(uid);
    live["metadata"]["resourceVersion"] = json!("7");
    live["metadata"]["annotations"] = json!({"somebody": "else"});
    if live["kind"] == "Service" {
        live["spec"]["sessionAffinity"] = json!("None");
        live["spec"]["clusterIPs"] = json!(["10.0.0.1"]);
        live["spec"].as_object_mut().unwrap().retain(|_, value| *value != json!(false));
    }
    live
}

#[test]
fn what_the_api_server_adds_is_no_difference() {
    for child in all(&pgset()) {
        assert_eq!(correction(&stored(&child.body, "1"), &child.body), None, "{} {}", child.kind, child.name);
    }
}

#[test]
fn an_item_of_a_list_which_does_not_say_its_kind_is_no_difference() {
    for child in all(&pgset()) {
        let mut live = stored(&child.body, "1");
        live.as_object_mut().unwrap().retain(|key, _| !["apiVersion", "kind"].contains(&key.as_str()));
        assert_eq!(correction(&live, &child.body), None, "{} {}", child.kind, child.name);
    }
}

#[test]
fn every_edit_that_matters_is_a_difference() {
    let edits = [
        (Kind::Service, "pgset-master", "/spec/selector", json!({"pgset.dev/set": "pgset"})),
        (
            Kind::Service,
            "pgset-master",
            "/spec/selector",
            json!({"pgset.dev/set": "pgset", "pgset.dev/role": "master", "x": "y"}),
        ),
        (Kind::Service, "pgset-master", "/spec/type", json!("LoadBalancer")),
        (Kind::Service, "pgset-master", "/spec/publishNotReadyAddresses", json!(true)),
        (Kind::Service, "pgset-master", "/spec/ports/0/targetPort", json!(1)),
        (Kind::Service, "pgset", "/spec/publishNotReadyAddresses", json!(false)),
        (Kind::Service, "pgset", "/metadata/ownerReferences", json!([])),
        (Kind::Service, "pgset", "/metadata/labels/pgset.dev~1set", json!("other")),
        (Kind::Role, "pgset-sa", "/rules/1/resourceNames", json!(["pgset-0"])),
        (Kind::Role, "pgset-sa", "/rules/1/verbs", json!(["get", "patch", "delete"])),
        (Kind::RoleBinding, "pgset-sa", "/subjects", json!([])),
        (Kind::PodDisruptionBudget, "pgset", "/spec/maxUnavailable", json!(2)),
    ];
    for (kind, name, pointer, value) in edits {
        let body = child(&pgset(), kind, name);
        let mut live = body.clone();
        match live.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => panic!("{pointer} is not in {live}"),
        }
        let patch = correction(&live, &body).unwrap_or_else(|| panic!("{kind} {name} {pointer} is no difference"));
        json_patch::merge(&mut live, &patch);
        assert_eq!(live, body, "{kind} {name} {pointer} after {patch}");
    }
}

#[test]
fn whose_an_object_is_shows_in_its_owner_and_never_in_its_labels() {
    let ours = child(&pgset(), Kind::Service, "pgset-master");
    assert_eq!(ownership(Kind::Service, &ours, &owner()), Ownership::Ours);

    let mut stripped = ours.clone();
    stripped["metadata"]["labels"] = json!({});
    assert_eq!(
        ownership(Kind::Service, &stripped, &owner()),
        Ownership::Ours,
        "the owner reference alone makes it ours"
    );

    let mut orphaned = ours.clone();
    orphaned["metadata"]["ownerReferences"] = json!([]);
    assert_eq!(
        ownership(Kind::Service, &orphaned, &owner()),
        Ownership::Foreign,
        "a copy, or left over from --cascade=orphan: anybody can write labels"
    );

    let mut predecessor = ours.clone();
    predecessor["metadata"]["ownerReferences"][0]["uid"] = json!("earlier-uid");
    assert_eq!(
        ownership(Kind::Service, &predecessor, &owner()),
        Ownership::Leaving,
        "the garbage collector is about to take it"
    );

    let mut deleted = ours.clone();
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(ownership(Kind::Service, &deleted, &owner()), Ownership::Leaving);

    let mut adopted = ours.clone();
    adopted["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Other", "name": "pgset", "uid": "x", "controller": true}]);
    assert_eq!(ownership(Kind::Service, &adopted, &owner()), Ownership::Foreign);

    let mut handwritten = ours;
    handwritten["metadata"]["labels"] = json!({"app": "pgset"});
    handwritten["metadata"]["ownerReferences"] = json!(null);
    assert_eq!(ownership(Kind::Service, &handwritten, &owner()), Ownership::Foreign);
}

#[test]
fn a_correction_says_what_differs_and_nothing_else() {
    let body = child(&pgset(), Kind::Service, "pgset-replica");
    let mut live = stored(&body, "1");
    live["spec"]["selector"] = json!({"app": "web", "pgset.dev/set": "pgset"});
    live["metadata"]["labels"]["theirs"] = json!("stays");
    assert_eq!(
        correction(&live, &body),
        Some(json!({"spec": {"selector": {"app": null, "pgset.dev/role": "replica"}}}))
    );
}

#[test]
fn of_a_port_that_changed_nothing_is_left() {
    let mut live = stored(&child(&pgset(), Kind::Service, "pgset-master"), "1");
    let body = child(&Set { port: 5433, ..pgset() }, Kind::Service, "pgset-master");
    let patch = correction(&live, &body).unwrap();
    json_patch::merge(&mut live, &patch);
    assert_eq!(live["spec"]["ports"], body["spec"]["ports"]);
}

#[test]
fn other_peoples_owner_references_stay() {
    let body = child(&pgset(), Kind::Service, "pgset-master");
    let mut live = stored(&body, "1");
    let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"});
    live["metadata"]["ownerReferences"] = json!([theirs, {"uid": "set-uid", "controller": false}]);
    let patch = correction(&live, &body).unwrap();
    let ours = body["metadata"]["ownerReferences"][0].clone();
    assert_eq!(patch, json!({"metadata": {"ownerReferences": [theirs, ours]}}));
}

#[test]
fn a_governing_service_is_made_under_the_sets_own_names_only() {
    for name in ["db", "db-headless", "db-hl", "db-svc", "db-service", "db-pods", "db-members"] {
        assert_eq!(governing_service("db", name), GoverningService::Made, "{name}");
    }
    for name in ["db-master", "db-replica"] {
        assert_eq!(governing_service("db", name), GoverningService::ToRole, "{name}");
    }
    for name in ["victim-master", "victim-replica", "db-svc-master"] {
        assert_eq!(governing_service("db", name), GoverningService::OfAnotherSet, "{name}");
    }
    for name in ["postgres", "victim", "victim-headless", "dbx", "db-x"] {
        assert_eq!(governing_service("db", name), GoverningService::Users, "{name}");
    }
    assert_eq!(governing_service("db-master", "db-master"), GoverningService::OfAnotherSet);
    assert_eq!(governing_service("db-master", "db-master-headless"), GoverningService::Made);
    let set = Set { headless_service: "victim-master".to_owned(), ..pgset() };
    assert!(!names_of(&all(&set)).contains(&"Service victim-master".to_owned()));
}

#[test]
fn no_two_sets_ever_make_objects_of_one_name() {
    let ends = [
        "",
        "-master",
        "-replica",
        "-sa",
        "-leader",
        "-headless",
        "-hl",
        "-svc",
        "-service",
        "-pods",
        "-members",
        "-0",
    ];
    let sets: Vec<String> =
        ends.iter().flat_map(|one| ends.iter().map(move |other| format!("a{one}{other}"))).collect();
    let mut owners: BTreeMap<(Kind, String), String> = BTreeMap::new();
    let serving: std::collections::BTreeSet<&String> = sets.iter().collect();
    for name in serving {
        // Whatever a set may be made to say.
        for headless_service in sets.iter().cloned() {
            let set =
                Set { name: name.clone(), service_account: names::service_account(name), headless_service, ..pgset() };
            for place in places(&set) {
                let owner = owners.entry(place.clone()).or_insert_with(|| name.clone());
                assert_eq!(owner, name, "both make {place:?}");
            }
        }
    }
}
