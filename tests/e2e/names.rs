//! Names and numbers that have broken others: dashes, ordinals that begin elsewhere, neighbours of the same name.

use serde_json::json;

use crate::{
    lab::{self, Namespace},
    manifests::set,
};

#[test]
fn a_name_with_dashes_is_a_name() {
    let lab = lab::shared();
    let ns = lab.namespace("dashes");
    ns.shared_claim("pgset-pvc");
    ns.apply(&set("my-db").manifest());
    ns.wait_ready("my-db", 2);
    let db = ns.database("my-db");
    db.wait_streaming(&["my-db-1"]);
    db.wait_slots(&["pgset_my_db_1"]);
    assert_eq!(ns.label("pod my-db-0", "pgset.dev/role").as_deref(), Some("master"));
}

#[test]
fn ordinals_may_start_at_three_with_no_member_then_three_then_one() {
    let lab = lab::shared();
    let ns = lab.namespace("ordinals");
    ns.shared_claim("pgset-pvc");
    let set = set("pgset").with("/spec/ordinals/start", json!(3)).with("/spec/podManagementPolicy", json!("Parallel"));
    ns.apply(&set.replicas(0).manifest());
    ns.kubectl("scale statefulset pgset --replicas=3");
    ns.wait_ready("pgset", 3);
    assert_eq!(ns.pods("pgset"), ["pgset-3", "pgset-4", "pgset-5"]);
    let db = ns.database("pgset");
    db.wait_streaming(&["pgset-4", "pgset-5"]);
    assert_eq!(ns.label("pod pgset-3", "pgset.dev/role").as_deref(), Some("master"));
    db.master("create table kept as select 'kept' as row");

    ns.kubectl("scale statefulset pgset --replicas=1");
    ns.kubectl("wait --for=delete pod/pgset-4 pod/pgset-5 --timeout=60s");
    db.wait_slots(&[]);
    db.wait_for("pgset-master", "select row from kept", "kept");
}

#[test]
fn a_set_of_another_name_is_another_database_and_the_old_name_brings_the_old_rows_back() {
    let lab = lab::shared();
    let ns = lab.namespace("renamed");
    let db = ns.two_members(&set("pgset"));
    db.master("create table kept as select 'kept' as row");
    db.wait_for("pgset-replica", "select row from kept", "kept");
    let gone = |name: &str| {
        ns.kubectl(&format!("delete statefulset {name}"));
        ns.kubectl(&format!("wait --for=delete pod/{name}-0 pod/{name}-1 --timeout=60s"));
    };
    gone("pgset");

    ns.apply(&set("orders").manifest());
    ns.wait_ready("orders", 2);
    assert_eq!(ns.database("orders").master("select count(*) from pg_class where relname = 'kept'"), "0");
    gone("orders");

    ns.apply(&set("pgset").manifest());
    ns.wait_ready("pgset", 2);
    db.wait_streaming(&["pgset-1"]);
    db.wait_for("pgset-master", "select row from kept", "kept");
}

/// Two sets that must not know of each other.
fn strangers((left_ns, left): (&Namespace<'_>, &str), (right_ns, right): (&Namespace<'_>, &str)) {
    for (ns, set) in [(left_ns, left), (right_ns, right)] {
        ns.wait_ready(set, 2);
        let db = ns.database(set);
        db.wait_streaming(&[&format!("{set}-1")]);
        db.master(&format!("create table whose as select '{}/{set}' as owner", ns.name));
        db.wait_for(&format!("{set}-replica"), "select owner from whose", &format!("{}/{set}", ns.name));
    }
    let identifier =
        |ns: &Namespace<'_>, set: &str| ns.database(set).master("select system_identifier from pg_control_system()");
    assert_ne!(identifier(left_ns, left), identifier(right_ns, right));
    assert_eq!(
        left_ns.database(left).master("select owner from whose"),
        format!("{}/{left}", left_ns.name),
        "still its own after the other came"
    );
}

#[test]
fn two_sets_in_one_namespace_share_a_claim_and_nothing_else() {
    let lab = lab::shared();
    let ns = lab.namespace("neighbours");
    ns.shared_claim("pgset-pvc");
    ns.apply(&set("orders").manifest());
    ns.apply(&set("orders-archive").manifest());
    strangers((&ns, "orders"), (&ns, "orders-archive"));
}

#[test]
fn the_same_name_in_two_namespaces_is_two_sets() {
    let lab = lab::shared();
    let (left, right) = (lab.namespace("left"), lab.namespace("right"));
    for ns in [&left, &right] {
        ns.shared_claim("pgset-pvc");
        ns.apply(&set("pgset").manifest());
    }
    strangers((&left, "pgset"), (&right, "pgset"));
}
