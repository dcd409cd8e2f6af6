//! Recovery in place: a moment is restored beside the data, looked at while the set goes on, and becomes the set's data when its owner says so.

use std::{path::PathBuf, thread, time::Duration};

use serde_json::Value;

use crate::{
    backup::{MADE, backed_up, moment, mounted, store, wait_archived, wait_backups},
    lab::{self, CommandOutput, Database, Namespace, SOON, START, pgset, wait_until},
    manifests::set,
    node,
};

fn recover(ns: &Namespace<'_>, words: &str) -> Result<CommandOutput, CommandOutput> {
    pgset(&format!("recover sts/pgset -n {} {words}", ns.name))
}

/// The member that leads.
fn master(ns: &Namespace<'_>) -> String {
    let lease = ns.get("lease pgset-leader");
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    holder.split('/').next().unwrap_or_default().to_owned()
}

/// What is asked of what was restored, in the container of the member that leads.
fn ask_recovered(ns: &Namespace<'_>, sql: &str) -> Result<String, String> {
    let line = format!("psql -h /pgset/run/recovered -U postgres -Atc \"{sql}\"");
    ns.shell(&master(ns), "postgres", &line).map(|said| said.out.trim().to_owned()).map_err(|said| said.err)
}

fn beside(ns: &Namespace<'_>, pod: &str) -> Vec<String> {
    let data: PathBuf = ns.data_directory(pod).0;
    let entries = std::fs::read_dir(data.parent().unwrap()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        names.filter(|name| name.contains(".pgset-recover") || name.contains(".pgset-before")).collect();
    names.sort();
    names
}

fn timeline(ns: &Namespace<'_>) -> u32 {
    let lease = ns.get("lease pgset-leader");
    lease["metadata"]["annotations"]["pgset.dev/timeline"].as_str().unwrap_or_default().parse().unwrap_or(0)
}

/// A set of two whose table is dropped, and the moment before that.
fn with_a_dropped_table<'ns>(ns: &'ns Namespace<'_>) -> (Database<'ns>, String, PathBuf) {
    let directory = store(ns);
    let db = ns.two_members(&backed_up(mounted(set("pgset")), "file:///backup/db"));
    wait_backups(ns, "pgset", 1);
    db.master("create table visits as select 'before' as what");
    db.master("create table kept as select 1 as n");
    thread::sleep(Duration::from_secs(1));
    let then = moment(&db);
    thread::sleep(Duration::from_secs(1));
    db.master("drop table visits");
    db.master("insert into kept values (2)");
    (db, then, directory)
}

#[test]
fn a_dropped_table_is_looked_at_beside_the_running_set_and_comes_back_when_its_owner_accepts() {
    let lab = lab::shared();
    let ns = lab.namespace("recover");
    let (db, then, directory) = with_a_dropped_table(&ns);

    let why = recover(&ns, "--accept").unwrap_err().err;
    assert!(why.contains("--to orders it"), "{why}");
    let why = recover(&ns, "--to 2099-01-01T00:00:00Z").unwrap_err().err;
    assert!(why.contains("has not come yet"), "{why}");
    let said = recover(&ns, &format!("--to {then} --wait --timeout 240")).unwrap_or_else(|said| panic!("{said:?}"));
    println!("{}", said.out);
    assert!(said.out.contains("ready to be looked at on pgset-0, with the last commit of "), "{}", said.out);
    assert_eq!(ask_recovered(&ns, "select what from visits").as_deref(), Ok("before"));
    assert_eq!(ask_recovered(&ns, "select count(*) from kept").as_deref(), Ok("1"));
    let why = ask_recovered(&ns, "insert into visits values ('x')").unwrap_err();
    assert!(why.contains("read-only transaction"), "{why}");
    db.master("insert into kept values (3)");
    db.wait_for("pgset-replica", "select count(*) from kept", "3");
    assert_eq!(beside(&ns, "pgset-0"), ["data.pgset-recovered", "data.pgset-recovery"]);
    let status = pgset(&format!("status sts/pgset -n {}", ns.name)).unwrap_or_else(|said| said).out;
    assert!(status.contains("recovery  to "), "{status}");

    let before = timeline(&ns);
    let said = recover(&ns, "--accept").unwrap_or_else(|said| panic!("{said:?}"));
    println!("{}", said.out);
    assert!(said.out.contains("the set went on from a recovery on pgset-0; pgset-0 keeps "), "{}", said.out);
    assert!(timeline(&ns) > before);
    db.wait_for("pgset-master", "select what from visits", "before");
    assert_eq!(db.master("select count(*) from kept"), "1");
    db.wait_streaming(&["pgset-1"]);
    db.wait_for("pgset-replica", "select what from visits", "before");
    db.master("insert into visits values ('after')");
    db.wait_for("pgset-replica", "select count(*) from visits", "2");
    assert!(ns.get("statefulset pgset")["metadata"]["annotations"]["pgset.dev/recover"].is_null(), "the order is done");
    assert_eq!(beside(&ns, "pgset-0"), ["data.pgset-before", "data.pgset-recovery"]);
    // What was there is whole.
    assert!(ns.data_directory("pgset-0").0.with_file_name("data.pgset-before").join("global/pg_control").exists());

    goes_on(&ns, &db, &directory);

    let why = recover(&ns, &format!("--to {then}")).unwrap_err().err;
    assert!(why.contains("let it go first (--forget)") || why.contains("still keeps"), "{why}");
    let said = recover(&ns, "--forget").unwrap_or_else(|said| panic!("{said:?}"));
    println!("{}", said.out);
    wait_until(SOON, "what was before is gone", || match beside(&ns, "pgset-0").as_slice() {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    });
}

/// The next master has the recovered state, the WAL goes on to the store, and a new set is made of both.
fn goes_on(ns: &Namespace<'_>, db: &Database<'_>, directory: &std::path::Path) {
    let line = format!("timeline-{}", timeline(ns));
    let pod = master(ns);
    ns.kubectl(&format!("delete pod {pod} --wait=false"));
    wait_until(START, "another leads", || if master(ns) == "pgset-1" { Ok(()) } else { Err(master(ns)) });
    db.wait_for("pgset-master", "select count(*) from visits", "2");
    ns.wait_ready("pgset", 2);
    db.wait_streaming(&["pgset-0"]);
    db.master("insert into visits values ('later')");
    db.wait_for("pgset-replica", "select count(*) from visits", "3");
    wait_archived(db, &directory.join("db/wal"));
    let told: Value = wait_backups(ns, "pgset", 1);
    println!("{line}: {told}");
    let password = crate::backup::password(ns);
    let from = set("copy").replicas(1).annotation("pgset.dev/restore-from", "file:///backup/db");
    ns.apply(&mounted(from).manifest());
    ns.wait_ready("copy", 1);
    let copy = ns.database_as("copy", "postgres", &password, "postgres");
    copy.wait_for("copy-master", "select count(*) from visits", "3");
}

#[test]
fn a_recovery_that_is_not_wanted_any_more_goes_and_the_set_does_not_hear_of_it() {
    let lab = lab::shared();
    let ns = lab.namespace("recover-cancel");
    let (db, then, _) = with_a_dropped_table(&ns);
    recover(&ns, &format!("--to {then} --wait --timeout 240")).unwrap_or_else(|said| panic!("{said:?}"));
    // Somebody promotes what he looks at: it is restored again.
    let line = "psql -h /pgset/run/recovered -U postgres -Atc 'select pg_promote(false)'";
    ns.shell("pgset-0", "postgres", line).unwrap();
    ns.wait_event(MADE, "pgset", "RecoveryFailed", "promoted what was restored");
    wait_until(MADE, "it can be looked at again", || match ask_recovered(&ns, "select pg_is_in_recovery()") {
        Ok(yes) if yes == "t" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // The container starts anew: what was restored is there still.
    node::kill(&ns, "pgset-0", "postgres").unwrap();
    wait_until(START, "it can be looked at again", || match ask_recovered(&ns, "select what from visits") {
        Ok(what) if what == "before" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    recover(&ns, "--cancel").unwrap_or_else(|said| panic!("{said:?}"));
    wait_until(SOON, "it is removed", || {
        let left: Vec<_> = ["pgset-0", "pgset-1"].iter().flat_map(|pod| beside(&ns, pod)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert_eq!(db.master("select count(*) from kept"), "2");
    db.wait_streaming(&["pgset-1"]);
}

/// What the master's keeper has noted.
fn journal(ns: &Namespace<'_>) -> String {
    std::fs::read_to_string(ns.data_directory("pgset-0").0.with_file_name("data.pgset-recovery")).unwrap_or_default()
}

#[test]
fn an_accept_in_which_the_master_dies_leaves_the_one_state_or_the_other_to_all_members() {
    let lab = lab::shared();
    let ns = lab.namespace("recover-crash");
    let (db, then, _) = with_a_dropped_table(&ns);
    for dies_after_the_lease in [false, true] {
        if master(&ns) != "pgset-0" {
            pgset(&format!("switchover sts/pgset --to pgset-0 --wait -n {}", ns.name)).unwrap();
        }
        recover(&ns, &format!("--to {then} --wait --timeout 240")).unwrap_or_else(|said| panic!("{said:?}"));
        let order = ns.get("statefulset pgset")["metadata"]["annotations"]["pgset.dev/recover"].clone();
        let accept = order.as_str().unwrap().replacen("to ", "accept ", 1);
        let before = timeline(&ns);
        let annotation = format!("pgset.dev/recover={accept}");
        ns.try_kubectl_with(&["annotate", "statefulset", "pgset", "--overwrite", &annotation], None).unwrap();
        let is_there = || if dies_after_the_lease { timeline(&ns) > before } else { journal(&ns).contains("Ready") };
        while !is_there() {
            thread::sleep(Duration::from_millis(5));
        }
        node::kill(&ns, "pgset-0", "postgres").unwrap();
        ns.wait_ready("pgset", 2);
        let has_come_back = wait_until(START, "one state", || {
            let rows = "select to_regclass('visits') is not null, count(*) from kept";
            match (db.at("pgset-master", rows).as_deref(), db.at("pgset-replica", rows).as_deref()) {
                (Ok("t|1"), Ok("t|1")) => Ok(true),
                // The order stands: where the same member leads again it is followed.
                (Ok("f|2"), Ok("f|2")) if master(&ns) != "pgset-0" => Ok(false),
                other => Err(format!("{other:?}, {} leads", master(&ns))),
            }
        });
        println!("dies after the Lease is written: {dies_after_the_lease}, accepted: {has_come_back}");
        assert!(has_come_back || !dies_after_the_lease, "nobody leads with what was given up");
        if has_come_back {
            assert!(beside(&ns, "pgset-0").contains(&"data.pgset-before".to_owned()));
            // The life that has put it in its place tells so with its next renewal.
            wait_until(SOON, "what is kept is told", || {
                let said = recover(&ns, "").map_err(|said| said.err)?.out;
                if said.contains("pgset-0 keeps ") { Ok(()) } else { Err(said) }
            });
            recover(&ns, "--forget").unwrap_or_else(|said| panic!("{said:?}"));
            db.master("drop table visits");
            db.master("insert into kept values (2)");
        } else {
            recover(&ns, "--cancel").unwrap_or_else(|said| panic!("{said:?}"));
        }
    }
}
