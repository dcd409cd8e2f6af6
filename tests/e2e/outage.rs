//! An outage of the API server: an annotated set is never less available than the plain `StatefulSet` that it was.

use std::thread;
use std::time::Duration;

use crate::{
    failover::{all_stream_from, epoch, three_members, wait_recorded},
    lab::{self, Database, Namespace, START, now, wait_until},
    manifests::set,
    node,
};

/// Longer than several Leases.
const OUTAGE: Duration = Duration::from_secs(20);

/// A container that was killed, and its PostgreSQL with the recovery of little, on a busy machine.
const RESTARTS_WITHIN: f64 = 15.0;

pub fn restarts(ns: &Namespace<'_>, pod: &str) -> i64 {
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

/// Longer than what is remembered of the API server's answers by anybody.
const LONG_OUTAGE: Duration = Duration::from_secs(300);

/// A client writes through the Service as long as the outage lasts. When each write began that was refused, by the clock of [`now`].
fn refused_while(ns: &Namespace<'_>, db: &Database<'_>, outage: impl FnOnce()) -> Vec<f64> {
    ns.script("write", &db.psql("pgset-master", "insert into numbers values (1)"));
    let client = "touch /tmp/refused; while [ ! -e /tmp/stop ]; do began=$(date +%s.%N); \
                  timeout 5 sh /tmp/write || echo $began >> /tmp/refused; sleep 0.2; done; touch /tmp/ended";
    ns.shell("client", "client", &format!("({client}) >/dev/null 2>&1 &")).unwrap();
    outage();
    let words = "touch /tmp/stop; until [ -e /tmp/ended ]; do sleep 0.1; done; cat /tmp/refused";
    let text = ns.shell("client", "client", words).unwrap().out;
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// The API server is away for these members of three. `meanwhile` stands in the middle of it. Returns what was refused.
fn five_minutes_without(theme: &str, who: &[&str], meanwhile: impl FnOnce(&Namespace<'_>)) -> Vec<f64> {
    let lab = lab::shared();
    let ns = lab.namespace(theme);
    let db = three_members(&ns, |set| set);
    db.master("create table numbers (n int)");
    let before = epoch(&ns);
    thread::sleep(Duration::from_secs(3)); // the leader has noted whom it asks, the replicas have told where they are
    let refused = refused_while(&ns, &db, || {
        let cut_off: Vec<_> = who.iter().map(|pod| node::cut_off(&ns, pod, "postgres").unwrap()).collect();
        thread::sleep(LONG_OUTAGE / 2);
        meanwhile(&ns);
        thread::sleep(LONG_OUTAGE / 2);
        for network in cut_off {
            network.heal().unwrap();
        }
        thread::sleep(Duration::from_secs(10));
    });
    let rows = db.master("select count(*) from numbers");
    assert!(rows.parse::<u32>().unwrap() > 300, "the client wrote {rows} rows only");
    all_stream_from(&ns, &db, "pgset-0", &rows);
    assert_eq!(epoch(&ns), before, "somebody else led meanwhile");
    refused
}

/// The rows of the table in docs/failover.md; side by side, as each takes five minutes.
#[test]
fn without_the_api_server_for_five_minutes_no_write_is_refused_but_while_a_container_restarts() {
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(five_minutes_without("outage-replica", &["pgset-1"], |_| ()), [0.0; 0]));
        scope.spawn(|| assert_eq!(five_minutes_without("outage-leader", &["pgset-0"], |_| ()), [0.0; 0]));
        let mut killed = 0.0;
        let refused = five_minutes_without("outage-everybody", &["pgset-0", "pgset-1", "pgset-2"], |ns| {
            killed = now();
            node::kill(ns, "pgset-0", "postgres").unwrap();
        });
        let others: Vec<_> =
            refused.iter().filter(|at| !(killed - 0.5..killed + RESTARTS_WITHIN).contains(*at)).collect();
        assert!(others.is_empty(), "the container was killed at {killed}, refused was also: {others:?}");
    });
}
