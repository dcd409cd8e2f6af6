//! An outage of the API server: an annotated set is never less available than the plain `StatefulSet` that it was.

use std::{thread, time::Duration};

use crate::{
    lab::{self, Namespace, SOON, START, same, wait_until},
    manifests::set,
    node,
};

/// Longer than several Leases.
const OUTAGE: Duration = Duration::from_secs(20);

fn wait_recorded(ns: &Namespace<'_>, voters: &str) {
    wait_until(SOON, "who may stand is recorded", || {
        let lease = ns.get("lease pgset-leader");
        same(lease["metadata"]["annotations"]["pgset.dev/voters"].as_str().unwrap_or_default().to_owned(), voters)
    });
}

fn restarts(ns: &Namespace<'_>, pod: &str) -> i64 {
    ns.get(&format!("pod {pod}"))["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap()
}

#[test]
fn a_set_of_one_goes_on_and_restarts_without_the_api_server() {
    let lab = lab::shared();
    let ns = lab.namespace("outage-one");
    ns.shared_claim("pgset-pvc");
    ns.apply(&set("pgset").replicas(1).manifest());
    ns.wait_ready("pgset", 1);
    let db = ns.database("pgset");
    db.write_numbers();
    wait_recorded(&ns, "pgset-0");
    thread::sleep(Duration::from_secs(2)); // its own note on the volume follows with the next turn

    let network = node::cut_off(&ns, "pgset-0", "postgres").unwrap();
    let began = std::time::Instant::now();
    while began.elapsed() < OUTAGE {
        db.at("pgset-0.pgset", "insert into numbers values (0)").unwrap_or_else(|why| {
            panic!(
                "refused after {:?}: {why}\n{}",
                began.elapsed(),
                ns.kubectl("logs pgset-0 --container=postgres --tail=20")
            )
        });
        thread::sleep(Duration::from_millis(200));
    }
    node::kill(&ns, "pgset-0", "postgres").unwrap();
    wait_until(START, "it restarts", || {
        db.at("pgset-0.pgset", "insert into numbers values (-1)")
            .map_err(|why| format!("{why}\n{}", ns.kubectl("logs pgset-0 --container=postgres --tail=20")))
    });
    assert_eq!(restarts(&ns, "pgset-0"), 1);
    network.heal().unwrap();
    thread::sleep(Duration::from_secs(8));
    db.at("pgset-0.pgset", "insert into numbers values (-2)").unwrap();
    db.wait_for("pgset-master", "select count(*) from numbers where n < 0", "2");
}

#[test]
fn a_master_that_is_cut_off_from_the_api_server_goes_on_while_its_replicas_confirm_it() {
    let lab = lab::shared();
    let ns = lab.namespace("outage-master");
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();
    wait_recorded(&ns, "pgset-0,pgset-1");
    thread::sleep(Duration::from_secs(3)); // the replica has told where it is

    let network = node::cut_off(&ns, "pgset-0", "postgres").unwrap();
    let began = std::time::Instant::now();
    while began.elapsed() < OUTAGE {
        db.at("pgset-0.pgset", "insert into numbers values (0)").unwrap_or_else(|why| {
            panic!(
                "refused after {:?}: {why}\n{}",
                began.elapsed(),
                ns.kubectl("logs pgset-0 --container=postgres --tail=20")
            )
        });
        thread::sleep(Duration::from_millis(200));
    }
    network.heal().unwrap();
    thread::sleep(Duration::from_secs(4));
    assert_eq!(ns.label("pod pgset-0", "pgset.dev/role").as_deref(), Some("master"));
    db.wait_streaming(&["pgset-1"]);
}
