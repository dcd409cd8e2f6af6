//! A member whose container is killed comes back as what it was.

use crate::{
    lab::{self, START, wait_until},
    manifests::set,
    node,
};

fn a_killed_member_comes_back(theme: &str, victim: &str) {
    let lab = lab::shared();
    let ns = lab.namespace(theme);
    ns.shared_claim("pgset-pvc");
    ns.apply(&set("pgset").manifest());
    ns.wait_ready("pgset", 2);
    let db = ns.database("pgset");
    db.wait_streaming(&["pgset-1"]);
    db.master("create table numbers as select n from generate_series(1, 10000) n");
    db.wait_for("pgset-replica", "select count(*) from numbers", "10000");
    let directories = ["pgset-0", "pgset-1"].map(|pod| ns.data_directory(pod));
    let uid = ns.get(&format!("pod {victim}"))["metadata"]["uid"].clone();

    node::kill(&ns, victim, "postgres");

    wait_until(START, &format!("{victim} is Ready again"), || {
        let pod = ns.try_get(&format!("pod {victim}"))?;
        let status = &pod["status"]["containerStatuses"][0];
        if status["ready"] == true && status["restartCount"] == 1 { Ok(()) } else { Err(status.to_string()) }
    });
    db.wait_streaming(&["pgset-1"]);
    assert_eq!(ns.get(&format!("pod {victim}"))["metadata"]["uid"], uid, "the same pod");
    assert_eq!(ns.label("pod pgset-0", "pgset.dev/role").as_deref(), Some("master"));
    assert_eq!(ns.label("pod pgset-1", "pgset.dev/role").as_deref(), Some("replica"));
    db.wait_for("pgset-master", "select count(*) from numbers", "10000");
    db.wait_for("pgset-replica", "select count(*) from numbers", "10000");
    db.master("insert into numbers values (0)");
    db.wait_for("pgset-replica", "select count(*) from numbers", "10001");
    assert_eq!(["pgset-0", "pgset-1"].map(|pod| ns.data_directory(pod)), directories, "a member was cloned again");
}

#[test]
fn a_killed_master_returns_as_the_master_with_all_rows() {
    a_killed_member_comes_back("killed-master", "pgset-0");
}

#[test]
fn a_killed_replica_returns_as_a_replica_without_another_clone() {
    a_killed_member_comes_back("killed-replica", "pgset-1");
}

#[test]
fn a_deleted_master_returns_as_the_master_with_all_rows() {
    let lab = lab::shared();
    let ns = lab.namespace("deleted-master");
    ns.shared_claim("pgset-pvc");
    ns.apply(&set("pgset").manifest());
    ns.wait_ready("pgset", 2);
    let db = ns.database("pgset");
    db.wait_streaming(&["pgset-1"]);
    db.master("create table numbers as select n from generate_series(1, 10000) n");
    let directories = ["pgset-0", "pgset-1"].map(|pod| ns.data_directory(pod));

    ns.kubectl("delete pod pgset-0 --timeout=60s");

    ns.wait_ready("pgset", 2);
    db.wait_streaming(&["pgset-1"]);
    db.wait_for("pgset-master", "select count(*) from numbers", "10000");
    db.master("insert into numbers values (0)");
    db.wait_for("pgset-replica", "select count(*) from numbers", "10001");
    assert_eq!(["pgset-0", "pgset-1"].map(|pod| ns.data_directory(pod)), directories, "a member was cloned again");
}
