//! A commit that waits for replicas.

use std::thread;

use serde_json::json;

use crate::{
    lab::{self, SOON, same, wait_until},
    manifests::set,
};

#[test]
fn as_many_replicas_confirm_a_commit_as_the_annotation_says() {
    let lab = lab::shared();
    let ns = lab.namespace("synchronous");
    let db = ns.two_members(&set("pgset").annotation("pgset.dev/synchronous", "1"));
    db.wait_for("pgset-master", "select application_name, sync_state from pg_stat_replication", "pgset-1|quorum");
    db.master("create table visits as select 'confirmed' as what");
    db.wait_for("pgset-replica", "select what from visits", "confirmed");
}

#[test]
fn commits_go_on_without_a_replica_where_the_user_prefers_that_and_wait_again_when_it_streams() {
    let lab = lab::shared();
    let ns = lab.namespace("not-strict");
    let set = set("pgset").annotation("pgset.dev/synchronous", "1").annotation("pgset.dev/synchronous-strict", "false");
    let db = ns.two_members(&set);
    let wait_recorded = |wanted: &str| {
        wait_until(SOON, &format!("{wanted:?} is recorded"), || {
            let quorum = ns.get("lease pgset-leader")["metadata"]["annotations"]["pgset.dev/quorum"].clone();
            same(quorum.as_str().unwrap_or_default().to_owned(), wanted)
        });
    };
    wait_recorded("1 of pgset-1");
    db.master("create table visits as select 'with a replica' as what");

    ns.kubectl("scale statefulset pgset --replicas=1");
    ns.kubectl("wait --for=delete pod/pgset-1 --timeout=60s");
    db.master("insert into visits values ('alone')");
    wait_recorded("0 of ");
    wait_until(SOON, "it is told that commits go on", || {
        let events = ns.events("StatefulSet", "pgset");
        let is_told = |event: &String| event.starts_with("CommitsDoNotWait: ");
        events.iter().find(|event| is_told(event)).map(drop).ok_or_else(|| format!("{events:#?}"))
    });

    ns.kubectl("scale statefulset pgset --replicas=2");
    db.wait_for("pgset-master", "select application_name, sync_state from pg_stat_replication", "pgset-1|quorum");
    wait_recorded("1 of pgset-1");
    db.wait_for("pgset-replica", "select count(*) from visits", "2");
}

#[test]
fn commits_wait_from_the_first_one_on_for_a_replica_and_not_for_its_clone() {
    let lab = lab::shared();
    let ns = lab.namespace("waits");
    ns.shared_claim("pgset-pvc");
    let tells_who_asks = json!(["-c", "log_replication_commands=on", "-c", "log_line_prefix=%a: "]);
    let alone = set("pgset").replicas(1).annotation("pgset.dev/synchronous", "1").container("args", tells_who_asks);
    ns.apply(&alone.manifest());
    ns.wait_ready("pgset", 1);
    let db = ns.database("pgset");
    db.wait_for("pgset-master", "show synchronous_standby_names", r#"ANY 1 ("pgset-1")"#);
    let log = ns.kubectl("logs pgset-0");
    assert!(!log.contains(r#"parameter "synchronous_standby_names" changed"#), "it was set after the start");
    wait_until(SOON, "it is told why commits wait", || {
        let events = ns.events("StatefulSet", "pgset");
        let is_told = |event: &String| event.starts_with("CommitsWait: ") && event.contains("--replicas=2");
        events.iter().find(|event| is_told(event)).map(drop).ok_or_else(|| format!("{events:#?}"))
    });

    thread::scope(|scope| {
        let commit = scope.spawn(|| db.master("create table visits as select 'confirmed' as what"));
        db.wait_for("pgset-master", "select count(*) from pg_stat_activity where wait_event = 'SyncRep'", "1");
        ns.kubectl("scale statefulset pgset --replicas=2");
        commit.join().unwrap();
    });

    db.wait_for("pgset-replica", "select what from visits", "confirmed");
    db.wait_for("pgset-master", "select application_name, sync_state from pg_stat_replication", "pgset-1|quorum");
    let log = ns.kubectl("logs pgset-0");
    let copied: Vec<&str> = log.lines().filter(|line| line.contains("BASE_BACKUP")).collect();
    assert!(!copied.is_empty() && copied.iter().all(|line| line.contains("clone_pgset-1: ")), "{copied:#?}");
    let asks = "select current_setting('primary_conninfo') like '% require_auth=scram-sha-256'";
    db.wait_for("pgset-replica", asks, "t");
}
