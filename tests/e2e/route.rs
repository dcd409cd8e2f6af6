//! Where clients of the master are sent: by the one `EndpointSlice` that its leader writes.

use serde_json::{Value, json};

use crate::{
    lab::{self, Namespace, SOON, START, same, wait_until},
    manifests::set,
};

/// The names of the slices behind the Service to the master, and what they say.
fn slices(ns: &Namespace<'_>) -> Vec<(String, Value)> {
    let list = ns.kubectl("get endpointslices --selector=kubernetes.io/service-name=pgset-master --output=json");
    let list: Value = serde_json::from_str(&list).unwrap();
    let items = list["items"].as_array().unwrap().iter();
    items.map(|slice| (slice["metadata"]["name"].as_str().unwrap().to_owned(), slice["endpoints"].clone())).collect()
}

/// What the one slice has to say of a pod that leads.
fn leads_to(ns: &Namespace<'_>, pod: &str) -> Value {
    let pod = ns.get(&format!("pod {pod}"));
    json!([{
        "addresses": [pod["status"]["podIP"]], "conditions": {"ready": true}, "nodeName": pod["spec"]["nodeName"],
        "targetRef": {"kind": "Pod", "name": pod["metadata"]["name"], "namespace": ns.name, "uid": pod["metadata"]["uid"]},
    }])
}

fn clients_are_sent_to(ns: &Namespace<'_>, pod: &str) {
    wait_until(SOON, &format!("clients are sent to {pod}"), || {
        same(slices(ns), &[("pgset-master".to_owned(), leads_to(ns, pod))][..])
    });
}

#[test]
fn clients_follow_the_master_through_a_service_without_selector() {
    let lab = lab::shared();
    let ns = lab.namespace("route");
    let db = ns.two_members(&set("pgset"));
    assert_eq!(ns.get("service pgset-master")["spec"].get("selector"), None);
    clients_are_sent_to(&ns, "pgset-0");
    db.master("create table numbers (n int)");

    // Each row until it is acknowledged.
    let writes = 60;
    let client = format!(
        "for n in $(seq {writes}); do until {}; do sleep 0.1; done; sleep 0.1; done >/dev/null 2>&1 &",
        db.psql("pgset-master", "insert into numbers values ($n)")
    );
    ns.shell("client", "client", &client).unwrap();
    let before = ns.get("pod pgset-0")["metadata"]["uid"].clone();
    ns.kubectl("delete pod pgset-0 --timeout=60s");

    wait_until(START, "all rows are there", || {
        db.at("pgset-master", "select count(distinct n) from numbers").and_then(|seen| same(seen, &*writes.to_string()))
    });
    let lease = ns.get("lease pgset-leader")["spec"]["holderIdentity"].clone();
    let master = lease.as_str().unwrap().split('/').next().unwrap().to_owned();
    clients_are_sent_to(&ns, &master);
    assert_ne!(ns.get(&format!("pod {master}"))["metadata"]["uid"], before, "another pod");
}

#[test]
fn a_slice_that_was_deleted_or_spoiled_leads_to_the_master_again() {
    let lab = lab::shared();
    let ns = lab.namespace("spoiled");
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();
    ns.kubectl("delete endpointslice pgset-master");
    wait_until(SOON, "clients find the master, if by its label", || {
        db.at("pgset-master", "select count(*) from numbers").and_then(|seen| same(seen, "10000"))
    });
    // Once a minute the leader looks.
    wait_until(START, "the leader has written it", || {
        same(slices(&ns), &[("pgset-master".to_owned(), leads_to(&ns, "pgset-0"))][..])
    });
    assert_eq!(ns.get("service pgset-master")["spec"].get("selector"), None);

    let closed = json!([{"op": "replace", "path": "/endpoints/0/conditions/ready", "value": false}]).to_string();
    let words = ["patch", "endpointslice", "pgset-master", "--type=json", "--patch", &closed];
    ns.try_kubectl_with(&words, None).unwrap();
    wait_until(START, "the leader has opened it", || {
        same(slices(&ns), &[("pgset-master".to_owned(), leads_to(&ns, "pgset-0"))][..])
    });
}

#[test]
fn a_set_of_an_older_revision_loses_no_client_on_its_way_to_this_one() {
    let lab = lab::shared();
    let ns = lab.namespace("older");
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();
    // As its agents and the controller of 0.1.0 had it: a selector, and nothing of the members' own.
    let selector = json!({"spec": {"selector": {"pgset.dev/set": "pgset", "pgset.dev/role": "master"}}}).to_string();
    ns.try_kubectl_with(&["patch", "service", "pgset-master", "--patch", &selector], None).unwrap();
    wait_until(SOON, "the selector goes, and what it leaves", || {
        let left: Vec<String> = slices(&ns).into_iter().map(|(name, _)| name).collect();
        same(
            (ns.get("service pgset-master")["spec"].get("selector").cloned(), left),
            &(None, vec!["pgset-master".to_owned()]),
        )
    });
    assert_eq!(db.master("select count(*) from numbers"), "10000");
}
