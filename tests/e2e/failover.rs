//! A set survives its master: whoever has most leads next, nothing that was promised is lost, and clients follow.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use crate::{
    lab::{self, Database, Namespace, SOON, START, same, wait_until},
    manifests::set,
    node,
    outage::restarts,
};

/// The pod that leads, by the Lease and by its label. (The label of one whose agent hangs stays until that goes on.)
pub fn master(ns: &Namespace<'_>) -> Result<String, String> {
    let lease = ns.get("lease pgset-leader");
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().split('/').next().unwrap_or_default();
    match ns.label(&format!("pod {holder}"), "pgset.dev/role").as_deref() {
        Some("master") => Ok(holder.to_owned()),
        label => Err(format!("{holder:?} holds the Lease, its label is {label:?}")),
    }
}

pub fn epoch(ns: &Namespace<'_>) -> i64 {
    ns.get("lease pgset-leader")["spec"]["leaseTransitions"].as_i64().unwrap_or(0)
}

fn wait_master(ns: &Namespace<'_>, pod: &str) {
    wait_until(START, &format!("{pod} leads"), || {
        master(ns).and_then(|master| same(master, pod)).map_err(|seen| {
            let log = ns.kubectl(&format!("logs {pod} --container=postgres --tail=30"));
            format!("{seen}; Lease: {}\n{log}", ns.get("lease pgset-leader"))
        })
    });
}

/// Members that may stand are recorded by the master a moment after its start.
pub fn wait_recorded(ns: &Namespace<'_>, voters: &str) {
    wait_until(SOON, "who may stand is recorded", || {
        let lease = ns.get("lease pgset-leader");
        same(lease["metadata"]["annotations"]["pgset.dev/voters"].as_str().unwrap_or_default().to_owned(), voters)
    });
}

pub fn three_members<'a>(
    ns: &'a Namespace<'_>,
    changed: impl Fn(crate::manifests::Set) -> crate::manifests::Set,
) -> Database<'a> {
    ns.shared_claim("pgset-pvc");
    ns.apply(&changed(set("pgset").replicas(3)).manifest());
    ns.wait_ready("pgset", 3);
    let db = ns.database("pgset");
    db.wait_streaming(&["pgset-1", "pgset-2"]);
    wait_recorded(ns, "pgset-0,pgset-1,pgset-2");
    db
}

pub fn all_stream_from(ns: &Namespace<'_>, db: &Database<'_>, master: &str, rows: &str) {
    let replicas: Vec<String> =
        ["pgset-0", "pgset-1", "pgset-2"].iter().filter(|pod| **pod != master).map(|pod| (*pod).to_owned()).collect();
    let replicas: Vec<&str> = replicas.iter().map(String::as_str).collect();
    db.wait_streaming(&replicas);
    for pod in ["pgset-0", "pgset-1", "pgset-2"] {
        db.wait_for(&format!("{pod}.pgset"), "select count(*) from numbers", rows);
    }
    wait_until(SOON, "one master", || {
        let is_labelled = |pod: &&&str| ns.label(&format!("pod {pod}"), "pgset.dev/role").as_deref() == Some("master");
        let masters: Vec<&str> = ["pgset-0", "pgset-1", "pgset-2"].iter().filter(is_labelled).copied().collect();
        same(masters, &vec![master])
    });
}

#[test]
fn a_master_that_hangs_is_replaced_and_comes_back_as_a_replica() {
    let lab = lab::shared();
    let ns = lab.namespace("failover-hangs");
    let db = three_members(&ns, |set| set);
    db.write_numbers();
    db.wait_for("pgset-1.pgset", "select count(*) from numbers", "10000");
    let before = epoch(&ns);

    node::signal_first(&ns, "pgset-0", "postgres", "STOP").unwrap();
    let since = Instant::now();

    let next =
        wait_until(START, "another one leads", || match db.at("pgset-master", "insert into numbers values (-1)") {
            Ok(_) => master(&ns).and_then(|pod| if pod == "pgset-0" { Err(pod) } else { Ok(pod) }),
            Err(why) => Err(format!("{why}\nLease: {}", ns.get("lease pgset-leader"))),
        });
    println!("{next} led after {:?}", since.elapsed());
    assert_eq!(epoch(&ns), before + 1);
    db.wait_for("pgset-master", "select count(*) from numbers where n >= 0", "10000");

    node::signal_first(&ns, "pgset-0", "postgres", "CONT").unwrap();

    let rows = db.master("select count(*) from numbers");
    all_stream_from(&ns, &db, &next, rows.trim());
}

#[test]
fn a_master_whose_pod_is_deleted_hands_over_and_no_row_is_missing() {
    let lab = lab::shared();
    let ns = lab.namespace("failover-deleted");
    let db = three_members(&ns, |set| set);
    db.master("create table numbers (n int)");
    let writes = 300;
    let client = format!(
        "for n in $(seq {writes}); do until {}; do sleep 0.05; done; done >/dev/null 2>&1; touch /tmp/done",
        db.psql("pgset-master", "insert into numbers values ($n)")
    );
    ns.shell("client", "client", &format!("({client}) >/dev/null 2>&1 &")).unwrap();

    ns.kubectl("delete pod pgset-0 --timeout=60s");

    let next = wait_until(START, "another one leads", || {
        master(&ns).and_then(|pod| if pod == "pgset-0" { Err(pod) } else { Ok(pod) })
    });
    wait_until(Duration::from_secs(120), "the client is done", || {
        ns.shell("client", "client", "test -e /tmp/done").map(drop).map_err(|said| said.err)
    });
    // A write whose answer was lost is done again: none is missing, and one or two may be there twice.
    db.wait_for("pgset-master", "select count(distinct n) from numbers", &writes.to_string());
    let rows = db.master("select count(*) from numbers");
    all_stream_from(&ns, &db, &next, rows.trim());
}

#[test]
fn an_order_moves_the_master_once() {
    let lab = lab::shared();
    let ns = lab.namespace("switchover");
    let db = three_members(&ns, |set| set);
    db.write_numbers();
    let before = epoch(&ns);

    ns.kubectl("annotate statefulset pgset --overwrite pgset.dev/switchover=pgset-2");

    wait_master(&ns, "pgset-2");
    all_stream_from(&ns, &db, "pgset-2", "10000");
    ns.kubectl("annotate statefulset pgset --overwrite note=again");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((master(&ns).as_deref(), epoch(&ns)), (Ok("pgset-2"), before + 1), "it was followed twice");
}

#[test]
fn commits_that_waited_for_replicas_survive_the_master() {
    let lab = lab::shared();
    let ns = lab.namespace("failover-synchronous");
    let db = three_members(&ns, |set| set.annotation("pgset.dev/synchronous", "1"));
    wait_until(SOON, "what commits wait for is recorded", || {
        let lease = ns.get("lease pgset-leader");
        let quorum = lease["metadata"]["annotations"]["pgset.dev/quorum"].as_str().unwrap_or_default().to_owned();
        same(quorum, "1 of pgset-1,pgset-2")
    });
    db.write_numbers();

    node::signal_first(&ns, "pgset-0", "postgres", "STOP").unwrap();

    let next = wait_until(START, "another one leads", || {
        master(&ns)
            .and_then(|pod| if pod == "pgset-0" { Err(pod) } else { Ok(pod) })
            .map_err(|seen| format!("{seen}\n{}", ns.kubectl("logs pgset-1 --container=postgres --tail=20")))
    });
    db.wait_for("pgset-master", "select count(*) from numbers", "10000");
    node::signal_first(&ns, "pgset-0", "postgres", "CONT").unwrap();
    all_stream_from(&ns, &db, &next, "10000");
}

#[test]
fn with_manual_failover_replicas_wait_until_a_person_says_who_leads() {
    let lab = lab::shared();
    let ns = lab.namespace("failover-manual");
    let db = three_members(&ns, |set| set.annotation("pgset.dev/failover", "manual"));
    db.write_numbers();
    db.wait_for("pgset-1.pgset", "select count(*) from numbers", "10000");

    node::signal_first(&ns, "pgset-0", "postgres", "STOP").unwrap();
    std::thread::sleep(Duration::from_secs(12));
    assert!(db.at("pgset-master", "select 1").is_err(), "somebody leads");

    ns.kubectl("annotate statefulset pgset --overwrite pgset.dev/switchover=pgset-1");

    wait_master(&ns, "pgset-1");
    node::signal_first(&ns, "pgset-0", "postgres", "CONT").unwrap();
    all_stream_from(&ns, &db, "pgset-1", "10000");
}

#[test]
fn a_master_whose_server_does_not_start_any_more_lets_another_lead() {
    let lab = lab::shared();
    let ns = lab.namespace("failover-start");
    let db = three_members(&ns, |set| set);
    db.write_numbers();
    db.wait_for("pgset-1.pgset", "select count(*) from numbers", "10000");
    let settings = ns.data_directory("pgset-0").0.join("postgresql.auto.conf");
    let before = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, format!("{before}work_mem = 'much'\n")).unwrap();

    let postmaster = node::running(&ns, "pgset-0", "postgres", "/usr/lib/postgresql/").unwrap();
    node::signal_process(postmaster[0], "KILL").unwrap();

    let next = wait_until(START, "another one leads", || {
        master(&ns).and_then(|pod| if pod == "pgset-0" { Err(pod) } else { Ok(pod) })
    });
    db.wait_for("pgset-master", "select count(*) from numbers", "10000");
    wait_until(SOON, "it is told", || {
        let told = ns.events("StatefulSet", "pgset");
        let is_told = told.iter().any(|event| event.contains("pgset-0: PostgreSQL does not start as the master"));
        if is_told { Ok(()) } else { Err(told.join("\n")) }
    });

    let broken = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, broken.replace("work_mem = 'much'\n", "")).unwrap();
    all_stream_from(&ns, &db, &next, "10000");
}

#[test]
fn a_master_whose_container_is_not_started_again_soon_is_replaced_before_its_lease_has_run_out() {
    let lab = lab::shared();
    let ns = lab.namespace("failover-ended");
    let lease = Duration::from_secs(30);
    let db = three_members(&ns, |set| set.annotation("pgset.dev/lease-seconds", &lease.as_secs().to_string()));
    db.write_numbers();
    for pod in ["pgset-1", "pgset-2"] {
        db.wait_for(&format!("{pod}.pgset"), "select count(*) from numbers", "10000");
    }
    let before = epoch(&ns);
    thread::sleep(lease); // so long the replicas' agents have to have lived

    node::kill(&ns, "pgset-0", "postgres").unwrap();
    wait_until(START, "it starts again where it was", || {
        same(restarts(&ns, "pgset-0"), &1)?;
        db.at("pgset-master", "insert into numbers values (0)")
    });
    assert_eq!((master(&ns).as_deref(), epoch(&ns)), (Ok("pgset-0"), before), "another one led meanwhile");
    all_stream_from(&ns, &db, "pgset-0", "10001");

    // Its Lease would last for half a minute, and the kubelet starts it once more after ten seconds.
    node::kill(&ns, "pgset-0", "postgres").unwrap();
    let killed = Instant::now();
    let next = wait_until(START, "another one leads", || {
        master(&ns).and_then(|pod| if pod == "pgset-0" { Err(pod) } else { Ok(pod) })
    });
    db.wait_for("pgset-master", "select count(*) from numbers", "10001");
    assert!(killed.elapsed() < Duration::from_secs(10), "after {:?}", killed.elapsed());
    assert_eq!(epoch(&ns), before + 1);
    all_stream_from(&ns, &db, &next, "10001");
}
