//! `pgset switchover` and `pgset failover`: a person says who leads next, and hears what became of it.

use std::{thread, time::Duration};

use k8s_openapi::jiff::Timestamp;

use crate::{
    failover::{all_stream_from, epoch, master, three_members},
    lab::{self, CommandOutput, Database, Namespace, SOON, START, pgset, wait_until},
    node,
};

pub fn switchover(ns: &Namespace<'_>, words: &str) -> Result<CommandOutput, CommandOutput> {
    pgset(&format!("switchover sts/pgset --namespace {} {words}", ns.name))
}

fn failover(ns: &Namespace<'_>, words: &str) -> Result<CommandOutput, CommandOutput> {
    pgset(&format!("failover sts/pgset --namespace {} {words}", ns.name))
}

fn is_ordered(ns: &Namespace<'_>) -> bool {
    ns.get("statefulset pgset")["metadata"]["annotations"]["pgset.dev/switchover"].is_string()
}

/// What was refused, with exit code 1.
fn refused(said: Result<CommandOutput, CommandOutput>) -> String {
    let said = said.expect_err("it was not refused");
    assert_eq!(said.code, Some(1), "{said:?}");
    said.err
}

/// A client that writes a number after the other, each until it is taken.
fn write_one_by_one(ns: &Namespace<'_>, db: &Database<'_>, writes: u32) {
    db.master("create table numbers (n int)");
    let client = format!(
        "for n in $(seq {writes}); do until {}; do sleep 0.05; done; done >/dev/null 2>&1; touch /tmp/done",
        db.psql("pgset-master", "insert into numbers values ($n)")
    );
    ns.shell("client", "client", &format!("({client}) >/dev/null 2>&1 &")).unwrap();
}

#[test]
fn a_switchover_by_command_loses_no_row_of_a_writing_client_and_refuses_what_can_not_lead() {
    let lab = lab::shared();
    let ns = lab.namespace("orders");
    let db = three_members(&ns, |set| set);
    let writes = 300;
    write_one_by_one(&ns, &db, writes);
    let before = epoch(&ns);

    let said = switchover(&ns, "--to pgset-1 --wait").unwrap_or_else(|said| panic!("{said:?}"));

    println!("{}", said.out);
    assert!(said.out.contains("pgset-1 leads and accepts writes: "), "{}", said.out);
    assert!(said.out.ends_with("all members follow pgset-1"), "{}", said.out);
    assert_eq!((master(&ns).as_deref(), epoch(&ns)), (Ok("pgset-1"), before + 1));
    assert!(!is_ordered(&ns), "the order stays");
    wait_until(Duration::from_secs(120), "the client is done", || {
        ns.shell("client", "client", "test -e /tmp/done").map(drop).map_err(|said| said.err)
    });
    // A write whose answer was lost is done again: none is missing, and one or two may be there twice.
    db.wait_for("pgset-master", "select count(distinct n) from numbers", &writes.to_string());
    let rows = db.master("select count(*) from numbers");
    all_stream_from(&ns, &db, "pgset-1", rows.trim());

    refuses_what_can_not_lead(&ns);
    refuses_who_is_far_behind(&ns, &db);
    assert_eq!((master(&ns).as_deref(), epoch(&ns)), (Ok("pgset-1"), before + 1), "the master has moved");

    let said = switchover(&ns, "").unwrap_or_else(|said| panic!("{said:?}"));
    assert!(said.out.contains("leads and accepts writes"), "{}", said.out);
    assert!(master(&ns).is_ok_and(|pod| pod != "pgset-1"), "{:?}", master(&ns));
}

fn refuses_what_can_not_lead(ns: &Namespace<'_>) {
    let why = refused(switchover(ns, "--to pgset-9"));
    let title = format!("pgset: StatefulSet {}/pgset: ", ns.name);
    assert!(why.starts_with(&format!("{title}--to pgset-9: it is no member of this set of 3")), "{why}");
    assert!(why.ends_with("name one of pgset-0, pgset-1, pgset-2"), "{why}");
    let why = refused(failover(ns, "--to pgset-2 --accept-loss"));
    assert!(why.contains("pgset-1 leads") && why.contains("pgset switchover sts/pgset"), "{why}");
    let said = switchover(ns, "--to pgset-1").expect("it leads already");
    assert_eq!(said.out, "pgset-1 leads already");

    // Of what is ordered without the command, the master itself tells.
    ns.kubectl("annotate statefulset pgset --overwrite pgset.dev/switchover=pgset-9");
    wait_until(START, "the refusal is told", || {
        let events = ns.events("StatefulSet", "pgset");
        let is_told = |event: &String| {
            event.starts_with("OrderRefused: pgset-1: ") && event.contains("pgset-9 is no other member of this set")
        };
        if events.iter().any(is_told) { Ok(()) } else { Err(events.join("\n")) }
    });
    for words in ["check", "status sts/pgset"] {
        wait_until(SOON, "it is told of the set as well", || {
            let said = pgset(&format!("{words} --namespace {}", ns.name)).unwrap_or_else(|said| said);
            if said.out.contains("pgset.dev/switchover \"pgset-9\" was refused") { Ok(()) } else { Err(said.out) }
        });
    }
    ns.kubectl("annotate statefulset pgset pgset.dev/switchover-");
}

fn refuses_who_is_far_behind(ns: &Namespace<'_>, db: &Database<'_>) {
    let receiver = node::running(ns, "pgset-2", "postgres", "postgres: walreceiver").unwrap();
    assert_eq!(receiver.len(), 1, "{receiver:?}");
    node::signal_process(receiver[0], "STOP").unwrap();
    db.master("create table much as select n, repeat('x', 200) as x from generate_series(1, 200000) n");

    let why = refused(switchover(ns, "--to pgset-2"));

    node::signal_process(receiver[0], "CONT").unwrap();
    assert!(why.contains("is refused by pgset-1: pgset-2 has") && why.contains("still to receive"), "{why}");
    assert!(why.contains("wait until there are less than 16777216, or name another member"), "{why}");
    db.wait_for("pgset-2.pgset", "select count(*) from much", "200000");
}

#[test]
fn where_nobody_leads_a_person_says_who_does_and_gives_up_only_what_he_says_he_does() {
    let lab = lab::shared();
    let ns = lab.namespace("orders-loss");
    let changed = |set: crate::manifests::Set| {
        set.annotation("pgset.dev/failover", "manual").annotation("pgset.dev/synchronous", "1")
    };
    let db = three_members(&ns, changed);
    db.write_numbers();
    for replica in ["pgset-1.pgset", "pgset-2.pgset"] {
        db.wait_for(replica, "select count(*) from numbers", "10000");
    }
    // Of the two that confirm commits one is silent: the other may lack what was confirmed.
    node::signal_first(&ns, "pgset-2", "postgres", "STOP").unwrap();
    node::signal_first(&ns, "pgset-0", "postgres", "STOP").unwrap();
    wait_until(START, "the Lease has run out", || {
        let lease = ns.get("lease pgset-leader");
        let renewed: Timestamp =
            lease["spec"]["renewTime"].as_str().and_then(|text| text.parse().ok()).ok_or("no time")?;
        let age = Timestamp::now().duration_since(renewed);
        if age.as_secs() >= 8 { Ok(()) } else { Err(format!("it was renewed {age:?} ago")) }
    });
    let why = refused(switchover(&ns, ""));
    assert!(why.contains("no member leads") && why.contains("pgset failover sts/pgset"), "{why}");

    let why = refused(failover(&ns, "--to pgset-1 --timeout 8"));

    println!("{why}");
    assert!(why.contains("pgset-1: the order \"pgset-1 ") && why.contains("can be asked"), "{why}");
    assert!(why.contains("was taken back") && why.contains("--to POD --accept-loss"), "{why}");
    assert!(!is_ordered(&ns), "the order stays");

    let said = failover(&ns, "--to pgset-1 --accept-loss").unwrap_or_else(|said| panic!("{said:?}"));

    println!("{}", said.out);
    let [first, second] = ["given up, and whatever was written since", "pgset-1 leads and accepts writes: "];
    assert!(said.out.find(first).is_some_and(|told| Some(told) < said.out.find("ordered: ")), "{}", said.out);
    assert!(said.out.contains(second) && said.out.contains("commits were confirmed by replicas"), "{}", said.out);
    assert_eq!(master(&ns).as_deref(), Ok("pgset-1"));
    for pod in ["pgset-0", "pgset-2"] {
        node::signal_first(&ns, pod, "postgres", "CONT").unwrap();
    }
    thread::sleep(Duration::from_secs(1));
    all_stream_from(&ns, &db, "pgset-1", "10000");
}
