//! A set that is deleted and applied again: the same database, or none, and never a new one beside it.

use serde_json::json;

use crate::{
    lab::{self, Namespace, SOON, START, wait_until},
    manifests::{plain, set},
};

fn delete(ns: &Namespace<'_>) {
    ns.kubectl("delete statefulset pgset");
    ns.kubectl("wait --for=delete pod/pgset-0 pod/pgset-1 --timeout=60s");
}

/// The volume of a member is lost.
fn lose(ns: &Namespace<'_>, directory: &std::path::Path) {
    std::fs::remove_dir_all(directory)
        .unwrap_or_else(|error| panic!("{}: {error} in {}", directory.display(), ns.name));
}

#[test]
fn a_set_made_anew_has_its_old_database_or_waits_and_says_how_to_begin_with_a_new_one() {
    let lab = lab::shared();
    let ns = lab.namespace("anew");
    let db = ns.two_members(&set("pgset"));
    db.write_numbers();
    db.wait_for("pgset-replica", "select count(*) from numbers", "10000");
    let (first, second) = (ns.data_directory("pgset-0").0, ns.data_directory("pgset-1").0);
    let system = db.master("select system_identifier from pg_control_system()");

    delete(&ns);
    let lease = ns.get("lease pgset-leader");
    assert_eq!(lease["metadata"]["annotations"]["pgset.dev/system-identifier"], system.as_str());
    assert!(lease["metadata"]["annotations"]["pgset.dev/flushed"].is_string(), "{lease}");
    lose(&ns, &first);
    ns.apply(&set("pgset").manifest());

    // The first member, which would make the database of a new set, has lost it.
    let command = format!("kubectl --namespace {} delete lease pgset-leader", ns.name);
    wait_until(START, "an Event that says how to begin anew", || {
        let events = ns.events("StatefulSet", "pgset");
        let tells = |event: &&String| event.contains("pgset-0") && event.contains(&command);
        events.iter().find(tells).map(drop).ok_or_else(|| format!("{events:#?}"))
    });
    let log = ns.kubectl("logs pgset-0 --container=postgres");
    assert!(log.contains(&command) && !log.contains("making a new database"), "{log}");
    assert!(db.at("pgset-master", "select 1").is_err(), "a new database was made");
    assert!(second.join("PG_VERSION").exists(), "the other member's copy is touched");

    // It is given up on purpose.
    delete(&ns);
    lose(&ns, &second);
    ns.kubectl("delete lease pgset-leader");
    ns.apply(&set("pgset").manifest());
    ns.wait_ready("pgset", 2);
    db.wait_streaming(&["pgset-1"]);
    assert_ne!(db.master("select system_identifier from pg_control_system()"), system);
    wait_until(SOON, "the Lease remembers the new one", || {
        let lease = ns.get("lease pgset-leader");
        let found = &lease["metadata"]["annotations"]["pgset.dev/system-identifier"];
        if found.is_string() && *found != system.as_str() { Ok(()) } else { Err(lease.to_string()) }
    });
}

#[test]
fn a_set_whose_data_went_with_it_begins_anew() {
    let lab = lab::shared();
    let ns = lab.namespace("passing");
    let passing = plain("pgset")
        .replicas(2)
        .annotation("pgset.dev/inject", "enabled")
        .container("volumeMounts/-", json!({"name": "data", "mountPath": "/var/lib/postgresql/data"}))
        .pod("volumes/-", json!({"name": "data", "emptyDir": {}}));
    ns.apply(&passing.manifest());
    ns.wait_ready("pgset", 2);
    let db = ns.database("pgset");
    let system = db.master("select system_identifier from pg_control_system()");
    let lease = ns.get("lease pgset-leader");
    assert_eq!(lease["metadata"]["annotations"]["pgset.dev/system-identifier"], system.as_str());

    // At once: its earlier pods are still on their way out, and what they led by as well.
    ns.kubectl("delete statefulset pgset");
    ns.apply(&passing.manifest());
    wait_until(START, "a new database", || {
        match db.at("pgset-master", "select system_identifier from pg_control_system()") {
            Ok(found) if found != system => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    ns.wait_ready("pgset", 2);
    db.wait_streaming(&["pgset-1"]);
}

#[test]
fn a_former_master_does_not_take_the_free_lease_of_a_set_that_went_on() {
    let lab = lab::shared();
    let ns = lab.namespace("former-master");
    ns.shared_claim("pgset-pvc");
    ns.apply(&set("pgset").replicas(1).manifest());
    ns.wait_ready("pgset", 1);
    let db = ns.database("pgset");
    db.master("create table kept as select 'kept' as row");
    ns.kubectl("scale statefulset pgset --replicas=0");
    ns.kubectl("wait --for=delete pod/pgset-0 --timeout=60s");
    let notes = ns.get("lease pgset-leader")["metadata"]["annotations"].clone();
    assert!(notes["pgset.dev/stopped-at"].is_string(), "it stopped cleanly, and says where: {notes}");
    assert_eq!(notes["pgset.dev/stopped-at"], notes["pgset.dev/flushed"]);

    // As if another member had been promoted, and had stopped.
    ns.kubectl("annotate lease pgset-leader --overwrite pgset.dev/timeline=2");
    ns.kubectl("scale statefulset pgset --replicas=1");
    wait_until(START, "an Event that says why nobody leads", || {
        let events = ns.events("StatefulSet", "pgset");
        let tells = |event: &&String| event.contains("a former master's: it is on timeline 1");
        events.iter().find(tells).map(drop).ok_or_else(|| format!("{events:#?}"))
    });
    assert!(db.at("pgset-master", "select 1").is_err(), "it leads all the same");

    ns.kubectl("annotate lease pgset-leader --overwrite pgset.dev/timeline=1");
    ns.wait_ready("pgset", 1);
    db.wait_for("pgset-master", "select row from kept", "kept");
}
