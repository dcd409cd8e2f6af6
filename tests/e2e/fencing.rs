//! Whatever becomes of the agent or of PostgreSQL, nothing writes without the Lease.

use std::thread;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::{
    lab::{self, Database, Namespace, SOON, START, same, wait_until},
    manifests::set,
    node,
};

const POSTMASTER: &str = "/pgdata/data/postmaster.pid";

/// How the command lines of PostgreSQL's server begin: the postmaster goes by its path, the others by what they do.
const SERVER: [&str; 2] = ["/usr/lib/postgresql/", "postgres: "];

/// How many processes of PostgreSQL's server a member runs.
pub fn servers(ns: &Namespace<'_>, pod: &str) -> usize {
    servers_in(&node::Container::of(ns, pod, "postgres").unwrap())
}

fn servers_in(container: &node::Container) -> usize {
    SERVER.map(|command| container.running(command).len()).iter().sum()
}

fn number_of_postmaster(ns: &Namespace<'_>, pod: &str) -> String {
    ns.shell(pod, "postgres", &format!("head -n 1 {POSTMASTER}")).unwrap().out
}

/// When the first master renewed its Lease for the last time, and when another one took it: seen by asking for it again and again.
fn renewed_and_taken(ns: &Namespace<'_>) -> (Timestamp, Timestamp) {
    let time = |lease: &Value, field: &str| -> Timestamp { lease["spec"][field].as_str().unwrap().parse().unwrap() };
    let first = ns.get("lease pgset-leader");
    let mut renewed = time(&first, "renewTime");
    let mut taken = None;
    wait_until(START, "another one has the Lease", || {
        let lease = ns.get("lease pgset-leader");
        if lease["spec"]["leaseTransitions"] != first["spec"]["leaseTransitions"] {
            taken = Some(time(&lease, "acquireTime"));
            return Ok(());
        }
        renewed = time(&lease, "renewTime");
        Err(lease["spec"].to_string())
    });
    (renewed, taken.unwrap())
}

/// The time at the beginning of the first line with these words.
pub fn told(log: &str, words: &str) -> Option<Timestamp> {
    log.lines().find(|line| line.contains(words))?.split(' ').next()?.parse().ok()
}

#[test]
fn a_master_whose_agent_is_stopped_is_dead_before_anyone_else_leads_and_comes_back_as_a_replica() {
    let lab = lab::shared();
    let ns = lab.namespace("frozen-agent");
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();

    let container = node::Container::of(&ns, "pgset-0", "postgres").unwrap();

    node::signal_first(&ns, "pgset-0", "postgres", "STOP").unwrap();

    let (stopped, stopped_at) = (Instant::now(), Timestamp::now());
    let (dead, (renewed, taken)) = thread::scope(|scope| {
        let lease = scope.spawn(|| renewed_and_taken(&ns));
        // The kernel alone is asked: on a busy machine a question to the API server takes as long as what is measured here.
        while servers_in(&container) > 0 {
            assert!(stopped.elapsed() < Duration::from_secs(10), "PostgreSQL lives on without its agent");
            thread::sleep(Duration::from_millis(20));
        }
        (Timestamp::now(), lease.join().unwrap())
    });
    let since = |then: Timestamp, at: Timestamp| at.duration_since(then).as_secs_f64();
    let told = format!(
        "dead {} s after the last renewal of a Lease of 6 s, and {} s after its agent was stopped; another took it {} s after the renewal",
        since(renewed, dead),
        since(stopped_at, dead),
        since(renewed, taken)
    );
    println!("{told}");
    // While the API server is slow to answer, the others' leave counts from when they were asked, and they stand only when it is over.
    assert!(dead < taken && since(stopped_at, dead) < 5.9 && since(renewed, dead) > 4.5, "{told}");
    assert!(db.at("pgset-0.pgset", "insert into numbers values (0)").is_err(), "a write was accepted");
    wait_until(START, "the other one leads", || {
        same(ns.label("pod pgset-1", "pgset.dev/role"), &Some("master".to_owned()))
    });

    node::signal_first(&ns, "pgset-0", "postgres", "CONT").unwrap();

    db.wait_streaming(&["pgset-0"]);
    db.wait_for("pgset-master", "select count(*) from numbers", "10000");
    db.master("insert into numbers values (0)");
}

#[test]
fn a_backend_that_outlives_its_postmaster_is_dead_before_the_next_server_starts() {
    let lab = lab::shared();
    let ns = lab.namespace("killed-server");
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();
    // It asks nobody for anything, and so does not notice that its server is gone.
    ns.shell(
        "client",
        "client",
        &format!("{} >/dev/null 2>&1 &", db.psql("pgset-master", "do 'begin loop end loop; end'")),
    )
    .unwrap();
    let busy = "select count(*) from pg_stat_activity where query like 'do%' and state = 'active'";
    db.wait_for("pgset-master", busy, "1");
    let first = number_of_postmaster(&ns, "pgset-0");

    let killed = Instant::now();
    ns.shell("pgset-0", "postgres", &format!("kill -KILL {first}")).unwrap();

    db.wait_for("pgset-master", "select count(*) from numbers", "10000");
    assert!(killed.elapsed() < Duration::from_secs(10), "it took {:?}", killed.elapsed());
    db.wait_for("pgset-master", busy, "0");
    assert_eq!(ns.get("pod pgset-0")["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[test]
fn a_member_whose_fencer_is_killed_has_another_at_once_and_stays_what_it_is() {
    let lab = lab::shared();
    let ns = lab.namespace("killed-fencer");
    let db = ns.two_members(&set("pgset"));
    let server = number_of_postmaster(&ns, "pgset-0");
    let fencer = || {
        let found = node::running(&ns, "pgset-0", "postgres", "pgset fencer").unwrap_or_default();
        found.first().copied().ok_or_else(|| "no fencer".to_owned())
    };
    let first = wait_until(SOON, "a fencer", fencer);

    node::signal_process(first, "KILL").unwrap();

    wait_until(SOON, "another fencer", || {
        fencer().and_then(|number| if number == first { Err("the first".to_owned()) } else { Ok(()) })
    });
    thread::sleep(Duration::from_secs(7)); // longer than a Lease, which would have run out
    assert_eq!(number_of_postmaster(&ns, "pgset-0"), server);
    db.master("create table t ()");
}

#[test]
fn a_replica_that_is_promoted_by_hand_is_stopped_at_once_and_no_client_writes_to_it() {
    let lab = lab::shared();
    let ns = lab.namespace("promoted");
    let db = ns.two_members(&set("pgset"));
    db.master("create table numbers (n int)");
    let writes = 60;
    let client = format!(
        "for n in $(seq {writes}); do {} || sleep 0.1; done >/dev/null 2>&1 &",
        db.psql("pgset-master", "insert into numbers values ($n)")
    );
    ns.shell("client", "client", &client).unwrap();

    let promoted = Timestamp::now();
    db.at("pgset-1.pgset", "select pg_promote(wait => false)").unwrap();

    wait_until(SOON, "it is stopped", || match servers(&ns, "pgset-1") {
        0 => Ok(()),
        some => Err(format!("{some} processes")),
    });
    let log = ns.kubectl("logs pgset-1 --container=postgres");
    let stopped = told(&log, "PostgreSQL stops now").expect(&log);
    let took = stopped.duration_since(promoted).as_secs_f64();
    assert!(took < 2.0, "{took} s, of which kubectl takes a part\n{log}");
    wait_until(SOON, "it has no role", || same(ns.label("pod pgset-1", "pgset.dev/role"), &None));
    assert_eq!(ns.label("pod pgset-0", "pgset.dev/role").as_deref(), Some("master"));
    wait_until(SOON, "an Event", || {
        let events = ns.events("StatefulSet", "pgset");
        if events.iter().any(|event| event.starts_with("DataRefused: pgset-1") && event.contains("promoted by hand")) {
            Ok(())
        } else {
            Err(format!("{events:?}"))
        }
    });
    written_by_all(&db, writes);

    // The master's Lease is free for a moment: data that has left the set's history does not take it.
    ns.kubectl("delete pod pgset-0 --timeout=60s");
    written_by_all(&db, writes);
    assert_eq!(servers(&ns, "pgset-1"), 0);
}

fn written_by_all(db: &Database<'_>, writes: u32) {
    let wanted = format!("{writes}|{writes}");
    let seen = || {
        db.at("pgset-master", "select count(*), count(distinct n) from numbers")
            .and_then(|seen| same(seen, wanted.as_str()))
    };
    wait_until(START, "all rows are there, once", seen);
}

#[test]
fn a_server_that_was_started_by_hand_gives_way_to_the_agents_own() {
    let lab = lab::shared();
    let ns = lab.namespace("pg-ctl");
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();
    for (pod, role) in [("pgset-0", "master"), ("pgset-1", "replica")] {
        let first = number_of_postmaster(&ns, pod);

        // What pg_ctl says of it does not matter: its server may be gone before it has seen it.
        let _ = ns.shell(pod, "postgres", "gosu postgres pg_ctl -D /pgdata/data -m fast restart >/dev/null 2>&1");

        wait_until(SOON, &format!("the agent's own server on {pod}"), || {
            let log = ns.kubectl(&format!("logs {pod} --container=postgres"));
            let (_, since) = log.split_once("that the agent did not start").ok_or_else(|| log.clone())?;
            if since.contains("starting PostgreSQL") { Ok(()) } else { Err(log.clone()) }
        });
        db.wait_streaming(&["pgset-1"]);
        assert_ne!(number_of_postmaster(&ns, pod), first);
        wait_until(SOON, &format!("the role of {pod}"), || {
            same(ns.label(&format!("pod {pod}"), "pgset.dev/role"), &Some(role.to_owned()))
        });
        assert_eq!(ns.get(&format!("pod {pod}"))["status"]["containerStatuses"][0]["restartCount"], 0);
    }
    db.wait_for("pgset-master", "select count(*) from numbers", "10000");
}
