//! Replicas come and go with `kubectl scale`.

use std::fs;

use serde_json::json;

use crate::{
    lab::{self, START, wait_until},
    manifests::set,
};

#[test]
fn a_replica_that_goes_takes_its_slot_along() {
    let lab = lab::shared();
    let ns = lab.namespace("slots");
    ns.shared_claim("pgset-pvc");
    ns.apply(&set("pgset").replicas(3).pod_management("Parallel").manifest());
    ns.wait_ready("pgset", 3);
    let db = ns.database("pgset");
    db.wait_streaming(&["pgset-1", "pgset-2"]);
    db.wait_slots(&["pgset_pgset_1", "pgset_pgset_2"]);

    ns.kubectl("scale statefulset pgset --replicas=2");
    db.wait_streaming(&["pgset-1"]);
    db.wait_slots(&["pgset_pgset_1"]);

    // and comes back as it was
    ns.kubectl("scale statefulset pgset --replicas=3");
    db.wait_streaming(&["pgset-1", "pgset-2"]);
    db.wait_slots(&["pgset_pgset_1", "pgset_pgset_2"]);
}

#[test]
fn a_replica_that_missed_wal_which_the_master_has_thrown_away_is_cloned_anew() {
    let lab = lab::shared();
    let ns = lab.namespace("stranded");
    // None: a master keeps some.
    let db = ns.two_members(&set("pgset").container("args", json!(["-c", "wal_keep_size=1MB"])));
    db.write_numbers();
    let first_clone = ns.data_directory("pgset-1");

    ns.kubectl("scale statefulset pgset --replicas=1");
    ns.kubectl("wait --for=delete pod/pgset-1 --timeout=60s");
    db.wait_slots(&[]);
    for _ in 0..4 {
        db.master("insert into numbers values (0)");
        db.master("select pg_switch_wal()");
        db.master("checkpoint");
    }

    ns.kubectl("scale statefulset pgset --replicas=2");
    db.wait_streaming(&["pgset-1"]);
    db.wait_for("pgset-replica", "select count(*) from numbers", "10004");
    assert_ne!(ns.data_directory("pgset-1"), first_clone, "it was not cloned anew");
    let old = ns.export().join("pgset-1/data.pgset-old");
    wait_until(START, "the old data is gone", || if old.exists() { Err(old.display().to_string()) } else { Ok(()) });
}

#[test]
fn a_data_directory_that_is_moved_away_is_noticed_and_the_member_is_cloned() {
    let lab = lab::shared();
    let ns = lab.namespace("moved-away");
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();
    let data = ns.export().join("pgset-1/data");
    ns.kubectl("scale statefulset pgset --replicas=1");
    ns.kubectl("wait --for=delete pod/pgset-1 --timeout=60s");
    fs::write(data.join("pgset-promoted"), "").unwrap();

    ns.kubectl("scale statefulset pgset --replicas=2");
    wait_until(START, "an Event that the data was promoted by hand", || {
        let events = ns.events("StatefulSet", "pgset");
        events.iter().find(|event| event.contains("off the volume")).map(drop).ok_or_else(|| format!("{events:#?}"))
    });
    fs::remove_dir_all(&data).unwrap();
    db.wait_streaming(&["pgset-1"]);
    db.wait_for("pgset-replica", "select count(*) from numbers", "10000");
    let pod = ns.get("pod pgset-1");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{}", pod["status"]);
}

#[test]
fn a_member_that_wrote_the_masters_timeline_is_cloned_anew_beside_its_old_data() {
    let lab = lab::shared();
    let ns = lab.namespace("collision");
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();
    let first_clone = ns.data_directory("pgset-1");
    ns.kubectl("scale statefulset pgset --replicas=1");
    ns.kubectl("wait --for=delete pod/pgset-1 --timeout=60s");
    fs::remove_file(ns.export().join("pgset-1/data/standby.signal")).unwrap();

    ns.kubectl("scale statefulset pgset --replicas=2");
    db.wait_streaming(&["pgset-1"]);
    db.wait_for("pgset-replica", "select count(*) from numbers", "10000");
    assert_ne!(ns.data_directory("pgset-1"), first_clone, "it was not cloned anew");
    wait_until(START, "an Event that says why", || {
        let events = ns.events("StatefulSet", "pgset");
        events.iter().find(|event| event.contains("cloned anew")).map(drop).ok_or_else(|| format!("{events:#?}"))
    });
}

#[test]
fn a_replica_that_is_away_for_too_long_costs_the_master_no_more_than_its_share_of_the_disk() {
    let lab = lab::shared();
    let ns = lab.namespace("slot-limit");
    let limit = json!(["-c", "max_slot_wal_keep_size=16MB", "-c", "wal_sender_timeout=3s"]);
    let db = ns.two_members(&set("pgset").container("args", limit));
    db.write_numbers();
    db.wait_for("pgset-replica", "select count(*) from numbers", "10000");
    assert_eq!(db.master("show max_slot_wal_keep_size"), "16MB", "the user's own");
    let first_clone = ns.data_directory("pgset-1");
    let receiver = db.replica("select pid from pg_stat_wal_receiver").unwrap();

    ns.shell("pgset-1", "postgres", &format!("kill -STOP {receiver}")).unwrap();
    db.wait_for("pgset-master", "select active from pg_replication_slots", "f");
    for _ in 0..5 {
        db.master("insert into numbers values (0)");
        db.master("select pg_switch_wal()");
    }
    db.master("checkpoint");

    // PostgreSQL has given the slot up; one of that name that can be used takes its place
    db.wait_for("pgset-master", "select slot_name, wal_status from pg_replication_slots", "pgset_pgset_1|reserved");
    let _ = ns.shell("pgset-1", "postgres", &format!("kill -CONT {receiver}"));
    db.wait_streaming(&["pgset-1"]);
    db.wait_for("pgset-replica", "select count(*) from numbers", "10005");
    assert_ne!(ns.data_directory("pgset-1"), first_clone, "it was not cloned anew");
}

fn nothing_is_lost_from_two_to_none_and_back(management: &str) {
    let lab = lab::shared();
    let ns = lab.namespace(&management.to_lowercase());
    let db = ns.two_members(&set("pgset").pod_management(management));
    db.write_numbers();
    let directories = ["pgset-0", "pgset-1"].map(|pod| ns.data_directory(pod));

    ns.kubectl("scale statefulset pgset --replicas=0");
    ns.wait_ready("pgset", 0);
    ns.kubectl("wait --for=delete pod/pgset-0 pod/pgset-1 --timeout=60s");
    ns.kubectl("scale statefulset pgset --replicas=2");
    ns.wait_ready("pgset", 2);
    // Whichever has all may lead: the first may have handed over to the other before that was told to end.
    let streams =
        "select count(*) from pg_stat_replication where state = 'streaming' and application_name ~ '^pgset-[01]$'";
    db.wait_for("pgset-master", streams, "1");
    db.wait_for("pgset-master", "select count(*), sum(n) from numbers", "10000|50005000");
    db.wait_for("pgset-replica", "select count(*), sum(n) from numbers", "10000|50005000");
    assert_eq!(["pgset-0", "pgset-1"].map(|pod| ns.data_directory(pod)), directories, "a member was cloned again");

    db.master("insert into numbers values (0)");
    db.wait_for("pgset-replica", "select count(*) from numbers", "10001");
}

#[test]
fn an_ordered_set_keeps_every_row_at_zero_and_up_again() {
    nothing_is_lost_from_two_to_none_and_back("OrderedReady");
}

#[test]
fn a_parallel_set_keeps_every_row_at_zero_and_up_again() {
    nothing_is_lost_from_two_to_none_and_back("Parallel");
}

impl crate::manifests::Set {
    pub fn pod_management(self, policy: &str) -> Self {
        self.with("/spec/podManagementPolicy", json!(policy))
    }
}
