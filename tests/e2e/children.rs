//! What the controller makes around a set, and keeps right.

use serde_json::json;

use crate::{
    lab::{self, Namespace, SOON, same, wait_until},
    manifests::{plain, set},
};

/// What is made for a set `pgset`.
const MADE: [&str; 10] = [
    "service pgset",
    "service pgset-master",
    "service pgset-replica",
    "serviceaccount pgset-sa",
    "role pgset-sa",
    "rolebinding pgset-sa",
    "secret pgset-pgset-credentials",
    "lease pgset-leader",
    "endpointslice pgset-master",
    "poddisruptionbudget pgset",
];

/// Objects only: the claim does not exist, so that no pod starts.
fn objects_of_a_set(ns: &Namespace<'_>) {
    ns.apply(&set("pgset").manifest());
    for object in MADE {
        wait_until(SOON, object, || ns.try_get(object));
    }
}

#[test]
fn what_is_deleted_comes_back() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("deleted");
    objects_of_a_set(&ns);
    for object in MADE.into_iter().filter(|object| !object.starts_with("secret")) {
        let before = ns.get(object)["metadata"]["uid"].clone();
        ns.kubectl(&format!("delete {object}"));
        wait_until(SOON, &format!("{object} comes back"), || {
            let uid = ns.try_get(object)?["metadata"]["uid"].clone();
            if uid == before { Err("the same still".to_owned()) } else { Ok(()) }
        });
    }
}

#[test]
fn what_is_edited_is_put_right() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("edited");
    objects_of_a_set(&ns);
    let managed = "/metadata/labels/app.kubernetes.io~1managed-by";
    let somebody = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "somebody"}}});
    let stranger = json!({"subjects": [{"kind": "ServiceAccount", "name": "stranger", "namespace": ns.name}]});
    for (object, edit, field) in [
        ("service pgset-master", json!({"spec": {"selector": {"pgset.dev/role": "replica"}}}), "/spec/selector"),
        ("service pgset-replica", json!({"spec": {"ports": [{"port": 6543, "name": "other"}]}}), "/spec/ports"),
        ("serviceaccount pgset-sa", somebody.clone(), managed),
        ("role pgset-sa", json!({"rules": []}), "/rules"),
        ("rolebinding pgset-sa", stranger, "/subjects"),
        ("lease pgset-leader", somebody, managed),
        ("poddisruptionbudget pgset", json!({"spec": {"maxUnavailable": 0}}), "/spec/maxUnavailable"),
    ] {
        let value = |object: &serde_json::Value| object.pointer(field).cloned();
        let before = value(&ns.get(object));
        let words =
            [&["patch"], &object.split(' ').collect::<Vec<_>>()[..], &["--type=merge", "--patch", &edit.to_string()]];
        ns.try_kubectl_with(&words.concat(), None).unwrap_or_else(|said| panic!("{object}: {}", said.err));
        wait_until(SOON, &format!("{object} is put right"), || same(value(&ns.get(object)), &before));
    }
}

#[test]
fn the_role_names_the_members_that_there_are() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("role");
    objects_of_a_set(&ns);
    let names_pods = |pods: serde_json::Value| {
        wait_until(SOON, &format!("the Role names {pods}"), || {
            let rules = ns.get("role pgset-sa")["rules"].clone();
            let rule = rules.as_array().unwrap().iter().find(|rule| rule["resources"] == json!(["pods"])).cloned();
            same(rule.unwrap_or_default()["resourceNames"].clone(), &pods)
        });
    };
    names_pods(json!(["pgset-0", "pgset-1"]));
    ns.kubectl("scale statefulset pgset --replicas=3");
    names_pods(json!(["pgset-0", "pgset-1", "pgset-2"]));
}

#[test]
fn with_the_set_go_its_objects_but_not_its_passwords_nor_its_lease() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("gone");
    objects_of_a_set(&ns);
    let password = ns.get("secret pgset-pgset-credentials")["data"].clone();
    ns.kubectl("delete statefulset pgset --timeout=60s");
    let stays = |object: &&str| ["secret", "lease"].iter().any(|kind| object.starts_with(kind));
    for object in MADE.into_iter().filter(|object| !stays(object)) {
        wait_until(SOON, &format!("{object} goes"), || {
            ns.try_get(object).map_or(Ok(()), |_| Err("still there".to_owned()))
        });
    }
    assert_eq!(ns.get("secret pgset-pgset-credentials")["data"], password);
    assert!(ns.get("lease pgset-leader")["metadata"]["ownerReferences"].is_null());

    // who comes back finds the passwords that his data knows
    objects_of_a_set(&ns);
    assert_eq!(ns.get("secret pgset-pgset-credentials")["data"], password);
}

#[test]
fn the_lease_goes_with_the_set_where_its_claims_do() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("retention");
    let own = plain("pgset").annotation("pgset.dev/inject", "enabled").own_volume("data", "/var/lib/postgresql/data");
    ns.apply(&own.manifest());
    let uid = ns.get("statefulset pgset")["metadata"]["uid"].clone();
    for (policy, owner) in [("Retain", json!(null)), ("Delete", uid.clone()), ("Retain", json!(null)), ("Delete", uid)]
    {
        ns.apply(&own.clone().with("/spec/persistentVolumeClaimRetentionPolicy/whenDeleted", json!(policy)).manifest());
        wait_until(SOON, &format!("the Lease's owner with {policy}"), || {
            same(ns.try_get("lease pgset-leader")?["metadata"]["ownerReferences"][0]["uid"].clone(), &owner)
        });
    }
    ns.kubectl("delete statefulset pgset --timeout=60s");
    wait_until(SOON, "the Lease goes", || {
        ns.try_get("lease pgset-leader").map_or(Ok(()), |_| Err("still there".to_owned()))
    });
}

#[test]
fn an_object_that_is_not_ours_is_left_alone() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("not-ours");
    let own = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pgset-master"},
        "spec": {"selector": {"app": "something-else"}, "ports": [{"port": 5432}]}});
    ns.apply(&own.to_string());
    ns.apply(&set("pgset").manifest());
    wait_until(SOON, "an Event that names the Service", || {
        let events = ns.events("StatefulSet", "pgset");
        events.iter().find(|event| event.contains("pgset-master")).map(drop).ok_or_else(|| format!("{events:#?}"))
    });
    assert_eq!(ns.get("service pgset-master")["spec"]["selector"], json!({"app": "something-else"}));
    assert!(ns.try_get("endpointslice pgset-master").is_err(), "it would send this Service's clients elsewhere");
}
