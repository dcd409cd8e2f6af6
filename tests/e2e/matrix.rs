//! What people do to a set, whichever member leads it, ordered and parallel: no deadlock, no row lost, no more moves of the master than it
//! takes. `make test` lets the last member lead, which the others wait for when they start; `make matrix` each of them.

use std::env;

use crate::failover::{all_stream_from, epoch, master, three_members};
use crate::lab::{self, Database, Namespace, START, wait_until};
use crate::orders::switchover;

const ALL: [&str; 3] = ["pgset-0", "pgset-1", "pgset-2"];

fn leaders() -> Vec<&'static str> {
    if env::var_os("PGSET_MATRIX").is_some() { ALL.to_vec() } else { vec![ALL[2]] }
}

fn let_lead(ns: &Namespace<'_>, leader: &str) {
    if master(ns).as_deref() != Ok(leader) {
        switchover(ns, &format!("--to {leader} --wait --timeout 60")).unwrap();
    }
}

/// All members run, stream, and have every row; one more is written.
fn all_is_well(ns: &Namespace<'_>, db: &Database<'_>, rows: &mut u32, what: &str) {
    ns.wait_ready("pgset", ALL.len());
    wait_until(START, &format!("after {what} a write is taken"), || {
        let once = format!("insert into numbers select {rows} where not exists (select from numbers where n = {rows})");
        db.at("pgset-master", &once)
    });
    *rows += 1;
    let leads = master(ns).unwrap();
    all_stream_from(ns, db, &leads, &rows.to_string());
}

fn rolls_out(ns: &Namespace<'_>, leader: &str) {
    let before = epoch(ns);
    ns.kubectl("rollout restart statefulset/pgset");
    ns.kubectl("rollout status statefulset/pgset --timeout=180s");
    let moves = epoch(ns) - before;
    let most = if leader == ALL[0] { 1 } else { 2 };
    assert!((1..=most).contains(&moves), "the master moved {moves} times, and {leader} led");
}

fn goes_to_nothing_and_back(ns: &Namespace<'_>) {
    ns.kubectl("scale statefulset pgset --replicas=0");
    ns.kubectl("wait --for=delete pod/pgset-0 pod/pgset-1 pod/pgset-2 --timeout=90s");
    ns.kubectl("scale statefulset pgset --replicas=3");
}

fn loses_its_last_member_and_gets_it_back(ns: &Namespace<'_>, db: &Database<'_>) {
    ns.kubectl("scale statefulset pgset --replicas=2");
    ns.kubectl("wait --for=delete pod/pgset-2 --timeout=90s");
    db.wait_for("pgset-master", "select count(*) > 0 from numbers", "t");
    ns.kubectl("scale statefulset pgset --replicas=3");
}

fn loses_all_pods_at_once(ns: &Namespace<'_>) {
    let uids = || ALL.map(|pod| ns.try_get(&format!("pod {pod}")).ok().map(|pod| pod["metadata"]["uid"].clone()));
    let before = uids();
    ns.kubectl("delete pod pgset-0 pgset-1 pgset-2 --wait=false");
    wait_until(START, "all pods are new", || {
        let now = uids();
        if now.iter().zip(&before).all(|(now, before)| now.is_some() && now != before) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });
}

fn survives_all_of_it(management: &str) {
    let lab = lab::shared();
    let ns = lab.namespace(&format!("matrix-{}", management.to_lowercase()));
    let db = three_members(&ns, |set| set.pod_management(management));
    db.master("create table numbers (n int)");
    let mut rows = 0;
    for leader in leaders() {
        let_lead(&ns, leader);
        rolls_out(&ns, leader);
        all_is_well(&ns, &db, &mut rows, "a rolling update");
        let_lead(&ns, leader);
        goes_to_nothing_and_back(&ns);
        all_is_well(&ns, &db, &mut rows, "no member");
        let_lead(&ns, leader);
        loses_its_last_member_and_gets_it_back(&ns, &db);
        all_is_well(&ns, &db, &mut rows, "one member less");
        let_lead(&ns, leader);
        loses_all_pods_at_once(&ns);
        all_is_well(&ns, &db, &mut rows, "all pods deleted");
    }
}

#[test]
fn an_ordered_set_survives_what_people_do_to_it() {
    survives_all_of_it("OrderedReady");
}

#[test]
fn a_parallel_set_survives_what_people_do_to_it() {
    survives_all_of_it("Parallel");
}
