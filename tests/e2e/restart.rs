//! A member whose container is killed comes back as what it was.

use k8s_openapi::jiff::Timestamp;

use crate::{
    lab::{self, SOON, START, wait_until},
    manifests::set,
    node,
};

fn a_killed_member_comes_back(theme: &str, victim: &str) {
    let lab = lab::shared();
    let ns = lab.namespace(theme);
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();
    db.wait_for("pgset-replica", "select count(*) from numbers", "10000");
    let directories = ["pgset-0", "pgset-1"].map(|pod| ns.data_directory(pod));
    let uid = ns.get(&format!("pod {victim}"))["metadata"]["uid"].clone();

    node::kill(&ns, victim, "postgres").unwrap();

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
fn a_master_that_reaches_neither_the_api_server_nor_a_member_stops_before_another_leads() {
    let lab = lab::shared();
    let ns = lab.namespace("cut-off");
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();

    let network = node::isolate(&ns, "pgset-0", "postgres").unwrap();

    let stopped = wait_until(START, "PostgreSQL is stopped", || {
        let log = ns.kubectl("logs pgset-0 --container=postgres");
        log.lines().find_map(|line| line.contains("PostgreSQL stops now").then(|| time(line))).ok_or(log)
    });
    assert!(db.at("pgset-0.pgset", "insert into numbers values (0)").is_err(), "a write was accepted");
    let taken = wait_until(START, "the other one leads", || {
        let lease = ns.get("lease pgset-leader");
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        if holder.starts_with("pgset-1/") { Ok(lease) } else { Err(lease.to_string()) }
    });
    let taken = time(taken["spec"]["acquireTime"].as_str().unwrap());
    let before = taken.duration_since(stopped).as_secs_f64();
    assert!(before > 0.5, "it stopped only {before} s before the other one led");

    network.heal().unwrap();

    db.wait_streaming(&["pgset-0"]);
    db.wait_for("pgset-master", "select count(*) from numbers", "10000");
    assert_eq!(ns.label("pod pgset-1", "pgset.dev/role").as_deref(), Some("master"));
}

/// The time at the beginning of a line.
fn time(line: &str) -> Timestamp {
    line.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no time in {line}"))
}

#[test]
fn a_deleted_master_hands_over_and_returns_as_a_replica_without_a_clone() {
    let lab = lab::shared();
    let ns = lab.namespace("deleted-master");
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();
    let directories = ["pgset-0", "pgset-1"].map(|pod| ns.data_directory(pod));

    ns.kubectl("delete pod pgset-0 --timeout=60s");

    ns.wait_ready("pgset", 2);
    db.wait_streaming(&["pgset-0"]);
    db.wait_for("pgset-master", "select count(*) from numbers", "10000");
    db.master("insert into numbers values (0)");
    db.wait_for("pgset-replica", "select count(*) from numbers", "10001");
    assert_eq!(["pgset-0", "pgset-1"].map(|pod| ns.data_directory(pod)), directories, "a member was cloned again");
}

#[test]
fn a_master_stays_ready_while_its_wal_is_slow_to_list() {
    let lab = lab::shared();
    let ns = lab.namespace("slow-listing");
    ns.shared_claim("pgset-pvc");
    ns.apply(&set("pgset").replicas(1).manifest());
    ns.wait_ready("pgset", 1);
    let db = ns.database("pgset");
    let quarter = "select setting::int > 0 from pg_settings where name = 'max_slot_wal_keep_size'";
    db.wait_for("pgset-master", quarter, "t");
    let ready = || {
        let pod = ns.get("pod pgset-0");
        let conditions = pod["status"]["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|condition| condition["type"] == "Ready").unwrap()
    };
    let before = ready();

    db.master(
        "create function public.pg_ls_waldir() returns table (name text) language sql \
         as 'select null::text from pg_sleep(30)'",
    );
    db.master("alter role pgset set search_path = public, pg_catalog");
    db.master("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgset-agent'");
    wait_until(SOON, "a listing takes too long", || {
        let log = ns.kubectl("logs pgset-0");
        if log.contains("find its oldest WAL") { Ok(()) } else { Err(log) }
    });
    let writes = ["create table numbers (n int)", "insert into numbers values (1)"];
    assert_eq!(writes.map(|sql| db.master(sql)), ["", ""]);
    assert_eq!(ready(), before, "it was not Ready meanwhile");
}
