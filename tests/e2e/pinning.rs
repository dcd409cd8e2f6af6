//! A set beside pgsets of other versions: what runs is not restarted by any of them.

use serde_json::{Value, json};

use crate::{
    lab::{self, Database, Namespace, SOON, same, wait_until},
    manifests::set,
};

/// What a merge patch makes of the set while pgset is not asked: as if another version of it had written that.
fn write_past_pgset(ns: &Namespace<'_>, patch: &Value) {
    ns.kubectl(&format!("label namespace {} pgset.dev/webhook=disabled", ns.name));
    wait_until(SOON, "it is stored as another version writes it", || {
        ns.try_kubectl_with(&["patch", "statefulset", "pgset", "--type=merge", "--patch", &patch.to_string()], None)
            .map_err(|said| said.err)?;
        let stored = ns.get("statefulset pgset");
        let annotations = &patch["metadata"]["annotations"];
        same(stored["metadata"]["annotations"]["pgset.dev/injected"].clone(), &annotations["pgset.dev/injected"])
    });
    ns.kubectl(&format!("label namespace {} pgset.dev/webhook-", ns.name));
}

fn started(ns: &Namespace<'_>) -> Vec<Value> {
    ["pgset-0", "pgset-1"].map(|pod| ns.get(&format!("pod {pod}"))["metadata"]["uid"].clone()).to_vec()
}

fn goes_on(ns: &Namespace<'_>, db: &Database<'_>, before: &[Value]) {
    ns.wait_ready("pgset", 2);
    assert_eq!(started(ns), before, "no member was made anew");
    db.master("insert into visits values (now())");
}

#[test]
fn after_a_downgrade_of_pgset_a_set_scales_and_takes_foreign_annotations_and_after_the_upgrade_it_is_as_before() {
    let lab = lab::shared();
    let ns = lab.namespace("downgrade");
    let db = ns.two_members(&set("pgset"));
    db.master("create table visits (at timestamptz)");
    let (before, stored) = (started(&ns), ns.get("statefulset pgset"));

    // The record and the revision of a later version, with what this one does not know.
    let annotations = &stored["metadata"]["annotations"];
    let mut record: Value = serde_json::from_str(annotations["pgset.dev/injected"].as_str().unwrap()).unwrap();
    record["version"] = json!(2);
    record["tomorrow"] = json!({"any": "thing"});
    let later = json!({"pgset.dev/injected": record.to_string(), "pgset.dev/revision": "99.0.0"});
    write_past_pgset(&ns, &json!({"metadata": {"annotations": later}}));

    wait_until(SOON, "foreign annotations are taken", || {
        ns.try_kubectl("annotate statefulset pgset example.org/seen=yes --overwrite").map_err(|said| said.err)
    });
    ns.kubectl("scale statefulset pgset --replicas=3");
    ns.wait_ready("pgset", 3);
    db.wait_streaming(&["pgset-1", "pgset-2"]);
    ns.kubectl("scale statefulset pgset --replicas=2");
    goes_on(&ns, &db, &before);
    let change = json!({"spec": {"template": {"metadata": {"annotations": {"example.org/restarted": "now"}}}}});
    let refused = ns
        .try_kubectl_with(&["patch", "statefulset", "pgset", "--type=merge", "--patch", &change.to_string()], None)
        .expect_err("what needs another injection is refused");
    assert!(refused.err.contains("later version") && refused.err.contains("install"), "{}", refused.err);

    // The later version is back; for this test it is this one.
    let own = json!({"pgset.dev/injected": annotations["pgset.dev/injected"], "pgset.dev/revision": annotations["pgset.dev/revision"]});
    write_past_pgset(&ns, &json!({"metadata": {"annotations": own}}));
    ns.kubectl("annotate statefulset pgset example.org/seen=again --overwrite");
    goes_on(&ns, &db, &before);
    assert_eq!(ns.get("statefulset pgset")["spec"]["template"], stored["spec"]["template"]);
}
