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
fn ordinals_may_start_at_three() {
    let lab = lab::shared();
    let ns = lab.namespace("ordinals");
    ns.shared_claim("pgset-pvc");
    ns.apply(&set("pgset").with("/spec/ordinals/start", json!(3)).manifest());
    ns.wait_ready("pgset", 2);
    assert_eq!(ns.pods("pgset"), ["pgset-3", "pgset-4"]);
    let db = ns.database("pgset");
    db.wait_streaming(&["pgset-4"]);
    assert_eq!(ns.label("pod pgset-3", "pgset.dev/role").as_deref(), Some("master"));
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
