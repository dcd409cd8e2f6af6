//! Faults at random, on the lab, while clients write: nothing that was acknowledged is missing, no two members accept writes, and in the end all
//! members stream and have the same rows.
//!
//! A run prints its seed. `PGSET_FAULTS_SEED` chooses the same faults again (when each of them strikes is the machine's), `PGSET_FAULTS`
//! how many there are, and `PGSET_FAULTS_HOURS` goes on with other seeds for so long: `make soak HOURS=n`.
//!
//! In a lab of several nodes (`make lab NODES=3`) the members are spread over them, and nodes are cut off, frozen and killed as well; the API
//! server stands still, the export is full, or stalls. These last three strike in a lab of one node too if `PGSET_FAULTS_ALL` is 1.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed
#![allow(unused_crate_dependencies, missing_docs, dead_code)]

#[path = "../support/chance.rs"]
mod chance;
mod clients;
#[path = "../e2e/lab.rs"]
mod lab;
#[path = "../e2e/manifests.rs"]
mod manifests;
mod moments;
#[path = "../e2e/mount.rs"]
mod mount;
#[path = "../e2e/node.rs"]
mod node;
mod nodes;
mod storage;
#[path = "../e2e/store.rs"]
mod store;
mod strikes;
mod watch;

use std::env;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use chance::Chance;
use clients::{Clients, Write};
use lab::{Lab, Namespace, START, same, wait_until};
use manifests::{Set, set};
use serde_json::json;
use storage::Export;
use strikes::{Kinds, Strike};
use watch::{Inside, Watch};

/// The members, all of which write and confirm.
const MEMBERS: [&str; 3] = ["pgset-0", "pgset-1", "pgset-2"];
/// So many faults in a run of `make test`.
const FAULTS: u32 = 8;
/// After the last fault all members stream again within so long: clones, and restarts that the kubelet puts off for longer each time.
const CALM: Duration = Duration::from_secs(240);

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

/// Runs of a test, each with the next seed: one, or as many as there is time for.
fn runs(run: impl Fn(u64)) {
    let first = number("PGSET_FAULTS_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
    let until = Instant::now() + Duration::from_secs(60 * 60 * number("PGSET_FAULTS_HOURS").unwrap_or(0));
    for seed in first.. {
        println!("PGSET_FAULTS_SEED={seed}");
        run(seed);
        if Instant::now() >= until {
            return;
        }
    }
}

/// What there is besides the set, and is struck with it.
trait Beside {
    /// The set, with what it needs for that.
    fn set(&self, set: Set) -> Set {
        set
    }

    /// The set is ready, and nobody writes yet.
    fn ready(&mut self) {}

    /// A fault begins.
    fn struck(&mut self) {}

    /// It has ended.
    fn ended(&mut self) {}
}

struct Nothing;

impl Beside for Nothing {}

/// Faults while clients write. Returns what they wrote, when all is calm again and nothing of it is lost that may not be.
fn endure(ns: &Namespace<'_>, seed: u64, synchronous: bool, beside: &mut dyn Beside) -> Vec<Write> {
    let kinds = the_kinds();
    let export = (kinds != Kinds::Members).then(|| Export::of(ns));
    ns.shared_claim("pgset-pvc");
    let set = set("pgset").replicas(3).annotation("pgset.dev/maximum-lag", "0");
    let set = if synchronous { set.annotation("pgset.dev/synchronous", "1") } else { set };
    let set = if kinds == Kinds::WithNodes { spread(set) } else { set };
    ns.apply(&beside.set(set).manifest());
    ns.wait_ready("pgset", MEMBERS.len());
    beside.ready();
    let db = ns.database("pgset");
    db.wait_streaming(&MEMBERS[1..]);
    db.master("create table numbers (n bigint primary key)");
    wait_recorded(ns, synchronous);

    for pod in MEMBERS {
        ns.script(&format!("promote-{pod}"), &db.psql(&format!("{pod}.pgset"), "select pg_promote(wait => false)"));
    }
    let clients = Clients::start(ns, &db);
    let watch = Watch::start(ns, &db);
    let mut chance = Chance::of(seed);
    let (mut by_hand, mut inside, mut struck_at) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..number("PGSET_FAULTS").unwrap_or(u64::from(FAULTS)) {
        let strike = Strike::choose(&mut chance, kinds);
        let (hold, pause) = (strikes::seconds(&mut chance, 2..12), strikes::seconds(&mut chance, 0..8));
        println!("{} {strike:?} for {hold:?}", watch.time());
        let pod = strike.pod(ns);
        println!("  it is {pod}");
        struck_at.push((lab::now(), format!("{strike:?} at {pod}")));
        if strike.is_by_hand() {
            by_hand.push((lab::now(), pod.clone()));
        }
        let container =
            strike.hides_from_clients(&pod).and_then(|name| Some((strikes::container(ns, &pod).ok()?, name)));
        beside.struck();
        let struck = strike.begin(ns, &pod, export.as_ref());
        let asker = container.map(|(container, name)| Inside::start(container, &db, name));
        thread::sleep(hold);
        if let Some(answers) = asker.map(Inside::stop) {
            println!("  which answered inside of its node {} times that it accepts writes", answers.len());
            inside.extend(answers);
        }
        struck.end(ns);
        beside.ended();
        thread::sleep(pause);
    }

    println!("{} calm", watch.time());
    wait_until(CALM, "all members stream", || {
        strikes::put_away(ns);
        let sql =
            "select count(*) from pg_stat_replication where state = 'streaming' and application_name like 'pgset-%'";
        db.at("pgset-master", sql).and_then(|seen| same(seen, "2"))
    });
    ns.wait_ready("pgset", MEMBERS.len());
    struck_at.push((lab::now(), String::new()));
    let acknowledged = clients.stop();
    for pair in struck_at.windows(2) {
        let gap = clients::longest_gap(&acknowledged, pair[0].0, pair[1].0);
        println!("{gap:5.1} s without a write: {}", pair[0].1);
    }
    let events = watch.stop(by_hand, inside);

    let present = clients::present(&db);
    let missing: Vec<_> = acknowledged.iter().filter(|write| !present.contains(&write.number)).collect();
    println!(
        "{} writes were acknowledged, {} are missing; {} epochs",
        acknowledged.len(),
        missing.len(),
        events.epochs()
    );
    assert!(acknowledged.len() > 100, "the clients wrote next to nothing");
    if synchronous {
        assert!(missing.is_empty(), "acknowledged by two and lost: {missing:?}\n{events:?}");
    } else {
        let unexplained: Vec<_> = missing.iter().filter(|write| !events.may_lack(write)).collect();
        assert!(unexplained.is_empty(), "lost beyond the bound: {unexplained:?}\n{events:?}");
    }
    events.assert_one_writer();
    all_have_the_same(ns, &db);
    acknowledged
}

/// One member on a node, and none where no node may be struck if there are enough others. Who can't go back to his node goes to another.
fn spread(set: Set) -> Set {
    let set = set.pod(
        "topologySpreadConstraints",
        json!([{
            "topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
            "nodeTaintsPolicy": "Honor", "labelSelector": {"matchLabels": {"app": "pgset"}},
        }]),
    );
    if nodes::strikable() < MEMBERS.len() {
        return set;
    }
    let others = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [node::FIRST]}]}]);
    set.pod(
        "affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution",
        json!({"nodeSelectorTerms": others}),
    )
}

/// What this lab allows, and what was asked for.
fn the_kinds() -> Kinds {
    if nodes::strikable() > 0 {
        Kinds::WithNodes
    } else if number("PGSET_FAULTS_ALL") == Some(1) {
        Kinds::WithSurroundings
    } else {
        Kinds::Members
    }
}

/// A node that is struck takes the members of every set with it, and all have one API server: then one run comes after the other.
fn the_lab() -> Lab {
    if the_kinds() == Kinds::Members { lab::shared() } else { lab::alone() }
}

fn wait_recorded(ns: &Namespace<'_>, synchronous: bool) {
    let quorum = if synchronous { "1 of pgset-1,pgset-2" } else { "0 of " };
    wait_until(START, "who may stand, and what commits wait for, is recorded", || {
        let lease = ns.get("lease pgset-leader");
        let note = |key: &str| lease["metadata"]["annotations"][key].as_str().unwrap_or_default().to_owned();
        same(
            (note("pgset.dev/voters"), note("pgset.dev/quorum")),
            &("pgset-0,pgset-1,pgset-2".to_owned(), quorum.to_owned()),
        )
    });
}

/// Row by row, and by PostgreSQL's own check of tables and indexes.
fn all_have_the_same(ns: &Namespace<'_>, db: &lab::Database<'_>) {
    let sql = "select count(*), md5(string_agg(n::text, ',' order by n)) from numbers";
    let wanted = db.master(sql);
    for pod in MEMBERS {
        db.wait_for(&format!("{pod}.pgset"), sql, &wanted);
    }
    db.master("create extension if not exists amcheck");
    for pod in MEMBERS {
        let check = db.program(&format!("{pod}.pgset"), "pg_amcheck --heapallindexed");
        ns.shell("client", "client", &check)
            .unwrap_or_else(|said| panic!("pg_amcheck at {pod}: {}\n{}", said.out, said.err));
    }
}

#[test]
fn commits_that_waited_for_a_replica_survive_whatever_happens() {
    let lab = the_lab();
    runs(|seed| drop(endure(&lab.namespace("faults-synchronous"), seed, true, &mut Nothing)));
}

#[test]
fn commits_that_waited_for_nobody_are_lost_within_the_bound_alone() {
    let lab = the_lab();
    runs(|seed| drop(endure(&lab.namespace("faults"), seed.wrapping_add(1 << 32), false, &mut Nothing)));
}
