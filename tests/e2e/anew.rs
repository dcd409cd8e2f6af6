//! A set that is deleted and applied again: the same database, or none, and never a new one beside it.

use crate::{
    lab::{self, Namespace, SOON, START, wait_until},
    manifests::set,
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
