use serde_json::json;

use super::*;
use crate::children::Kind;
use crate::children::compare::{Ownership, correction, ownership};
use crate::children::tests::{child, owner, pgset, stored};

/// The same set on volumes that go with it.
fn passing() -> Set {
    Set { data_outlives_set: false, ..pgset() }
}

#[test]
fn the_lease_says_nothing_of_its_holder() {
    let lease = child(&pgset(), Kind::Lease, "pgset-leader");
    assert_eq!(lease.get("spec"), None);
}

#[test]
fn the_lease_goes_with_the_set_where_the_data_does() {
    let owners = |set: &Set| child(set, Kind::Lease, "pgset-leader")["metadata"]["ownerReferences"].clone();
    assert_eq!(owners(&pgset()), json!([]));
    assert_eq!(owners(&passing()), child(&pgset(), Kind::Role, "pgset-sa")["metadata"]["ownerReferences"]);
}

#[test]
fn the_leases_owner_comes_and_goes_as_the_data_does() {
    let (lasting, passing) = (pgset(), passing());
    let body = |set: &Set| child(set, Kind::Lease, "pgset-leader");
    let mut live = stored(&body(&lasting), "1");
    for set in [&passing, &lasting] {
        let patch = correction(&live, &wanted(&live, body(set))).unwrap();
        json_patch::merge(&mut live, &patch);
        assert_eq!(live["metadata"]["ownerReferences"], body(set)["metadata"]["ownerReferences"]);
    }
}

#[test]
fn a_lease_that_remembers_a_database_goes_with_the_set_only_once_a_member_has_led() {
    let body = child(&passing(), Kind::Lease, "pgset-leader");
    let mut left = stored(&child(&pgset(), Kind::Lease, "pgset-leader"), "1");
    left["metadata"]["annotations"] = json!({"pgset.dev/system-identifier": "7"});
    for vacant in [json!({}), json!({"holderIdentity": null}), json!({"holderIdentity": ""})] {
        left["spec"] = vacant;
        assert_eq!(correction(&left, &wanted(&left, body.clone())), None, "{left}");
    }
    left["spec"] = json!({"holderIdentity": "pgset-0"});
    let owners = body["metadata"]["ownerReferences"].clone();
    assert_eq!(correction(&left, &wanted(&left, body.clone())), Some(json!({"metadata": {"ownerReferences": owners}})));
    left["metadata"]["ownerReferences"] = owners;
    left["spec"] = json!({});
    assert_eq!(correction(&left, &wanted(&left, body)), None, "it stays the set's");
}

#[test]
fn a_lease_that_nobody_has_touched_but_for_the_label_of_its_maker_is_the_sets() {
    let mut live = stored(&child(&pgset(), Kind::Lease, "pgset-leader"), "1");
    live["metadata"]["annotations"] = json!(null);
    live["metadata"]["labels"]["app.kubernetes.io/managed-by"] = json!("somebody");
    let ownership = |live: &Value| ownership(Kind::Lease, live, &owner());
    for spec in [json!(null), json!({})] {
        live["spec"] = spec;
        assert_eq!(ownership(&live), Ownership::Ours);
    }
    let foreign = |field: &str, value: Value| {
        let mut live = live.clone();
        *live.pointer_mut(field).unwrap() = value;
        assert_eq!(ownership(&live), Ownership::Foreign, "{live}");
    };
    for spec in [json!({"holderIdentity": "scheduler"}), json!({"leaseTransitions": 1}), json!({"holderIdentity": ""})]
    {
        foreign("/spec", spec);
    }
    foreign("/metadata/annotations", json!({"another.example.org/leader": "it"}));
    foreign("/metadata/labels", json!({"pgset.dev/set": "another"}));
    foreign("/metadata/labels", json!({}));
}

#[test]
fn the_holder_of_a_lease_is_no_difference() {
    let body = child(&pgset(), Kind::Lease, "pgset-leader");
    let mut live = stored(&body, "1");
    live["spec"] = json!({"holderIdentity": "pgset-0/uid", "leaseDurationSeconds": 6});
    assert_eq!(correction(&live, &body), None);
}

#[test]
fn the_lease_outlives_the_set_and_is_known_again_without_an_owner() {
    let body = child(&pgset(), Kind::Lease, "pgset-leader");
    let left = stored(&body, "1");
    assert_eq!(ownership(Kind::Lease, &left, &owner()), Ownership::Ours, "an earlier set of this name left it");
    assert_eq!(correction(&left, &body), None);

    let mut stripped = left.clone();
    stripped["metadata"]["labels"] = json!({});
    assert_eq!(ownership(Kind::Lease, &stripped, &owner()), Ownership::Foreign, "another program's of this name");
    stripped["metadata"]["annotations"] = json!({"pgset.dev/system-identifier": "7"});
    assert_eq!(ownership(Kind::Lease, &stripped, &owner()), Ownership::Ours, "only a member notes that");

    let mut leaving = left.clone();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(ownership(Kind::Lease, &leaving, &owner()), Ownership::Leaving);

    let mut taken = left;
    taken["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Other", "name": "pgset", "uid": "x", "controller": true}]);
    assert_eq!(ownership(Kind::Lease, &taken, &owner()), Ownership::Foreign);
}

#[test]
fn a_lease_of_0_1_0_loses_its_owner_and_an_earlier_sets_goes_with_it() {
    let body = child(&pgset(), Kind::Lease, "pgset-leader");
    let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"});
    let mut live = stored(&body, "1");
    live["metadata"]["ownerReferences"] = json!([theirs,
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "pgset", "uid": "set-uid", "controller": true}]);
    assert_eq!(ownership(Kind::Lease, &live, &owner()), Ownership::Ours);
    assert_eq!(correction(&live, &body), Some(json!({"metadata": {"ownerReferences": [theirs]}})));

    live["metadata"]["ownerReferences"][1]["uid"] = json!("earlier-uid");
    assert_eq!(ownership(Kind::Lease, &live, &owner()), Ownership::Leaving, "its data is gone");
}
