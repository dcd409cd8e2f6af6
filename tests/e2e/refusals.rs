//! What a member does with data that it can't, or should not, take over: it makes nothing, says why, and takes no running database down.

use std::{fs, os::unix::fs::symlink};

use serde_json::{Value, json};

use crate::{
    adoption::{annotate, keeps_every_row_and_scales, runs_with_rows, was_rolled_once},
    lab::{self, Namespace, SOON, START, wait_until},
    manifests::{Set, plain},
};

const MOUNT: &str = "/var/lib/postgresql/data";

/// One member with a volume of its own and PGDATA one level below.
fn one_member(pgdata: &str) -> Set {
    plain("postgres")
        .replicas(1)
        .env("POSTGRES_PASSWORD", "change-me")
        .env("PGDATA", &format!("{MOUNT}/{pgdata}"))
        .own_volume("data", MOUNT)
}

fn service(ns: &Namespace<'_>) {
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "postgres"},
            "spec": {"selector": {"app": "postgres"}, "ports": [{"port": 5432}]}})
        .to_string(),
    );
}

/// Waits for the Event, which has all these words.
fn is_told(ns: &Namespace<'_>, reason: &str, words: &[&str]) {
    wait_until(START, &format!("an Event {reason}"), || {
        let events = ns.events("StatefulSet", "postgres");
        let told = events.iter().find(|event| event.starts_with(&format!("{reason}: ")));
        let told = told.filter(|event| words.iter().all(|word| event.contains(word)));
        told.map(drop).ok_or_else(|| format!("{events:#?}"))
    });
    let pod = ns.get("pod postgres-0");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "told, not crashed: {}", pod["status"]);
}

fn is_not_ready(ns: &Namespace<'_>) {
    let pod = ns.get("pod postgres-0");
    assert_eq!(pod["status"]["containerStatuses"][0]["ready"], false, "{}", pod["status"]);
}

#[test]
fn no_database_is_made_off_the_volume() {
    let lab = lab::shared();
    let ns = lab.namespace("off-volume");
    let volume = ns.volume_for("data-postgres-0");
    symlink("/var/lib/postgresql", volume.join("pgdata")).unwrap();

    ns.apply(&one_member("pgdata").annotation("pgset.dev/inject", "enabled").manifest());
    is_told(&ns, "DataRefused", &["/var/lib/postgresql is not on the data volume", MOUNT, "PGDATA"]);
    is_not_ready(&ns);
    let made = ns.shell("postgres-0", "postgres", "find /var/lib/postgresql -name PG_VERSION").unwrap();
    assert_eq!(made.out, "", "a database, gone with the pod");

    fs::remove_file(volume.join("pgdata")).unwrap();
    ns.kubectl("delete pod postgres-0 --timeout=60s");
    ns.wait_ready("postgres", 1);
    assert!(volume.join("pgdata/PG_VERSION").exists());
}

/// The image's own PGDATA is on the volume that it declares, which is gone with the pod.
#[test]
fn an_image_whose_tag_tells_no_version_has_its_rows_on_the_volume() {
    let lab = lab::shared();
    let ns = lab.namespace("stable");
    let volume = ns.volume_for("data-postgres-0");
    let set = plain("postgres")
        .replicas(1)
        .annotation("pgset.dev/inject", "enabled")
        .container("image", json!("postgres:stable"))
        .env("POSTGRES_PASSWORD", "change-me")
        .own_volume("data", MOUNT);
    ns.apply(&set.manifest());
    ns.wait_ready("postgres", 1);
    let db = ns.database_as("postgres", "postgres", "change-me", "postgres");
    db.write_numbers();
    assert!(volume.join("PG_VERSION").exists());
    ns.kubectl("delete pod postgres-0 --timeout=60s");
    ns.wait_ready("postgres", 1);
    db.wait_for("postgres-master", "select count(*) from numbers", "10000");
}

#[test]
fn no_database_is_made_beside_another_one() {
    let lab = lab::shared();
    let ns = lab.namespace("beside");
    let volume = ns.volume_for("data-postgres-0");
    fs::create_dir_all(volume.join("16/docker/global")).unwrap();
    fs::write(volume.join("16/docker/PG_VERSION"), "16\n").unwrap();

    ns.apply(&one_member("new").annotation("pgset.dev/inject", "enabled").manifest());
    is_told(&ns, "DataRefused", &[&format!("PGDATA to {MOUNT}/16/docker"), "PostgreSQL 16"]);
    is_not_ready(&ns);
    assert!(!volume.join("new/PG_VERSION").exists());

    fs::remove_dir_all(volume.join("16")).unwrap();
    ns.wait_ready("postgres", 1);
}

#[test]
fn a_secret_that_lacks_keys_is_named_and_waited_for() {
    let lab = lab::shared();
    let ns = lab.namespace("keys");
    ns.volume_for("data-postgres-0");
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine"},
            "stringData": {"postgres-password": "change-me"}})
        .to_string(),
    );
    let set =
        one_member("pgdata").annotation("pgset.dev/inject", "enabled").annotation("pgset.dev/credentials", "mine");
    ns.apply(&set.manifest());
    is_told(&ns, "CredentialsIncomplete", &["Secret mine", "replication-password, agent-password"]);
    is_not_ready(&ns);

    let keys = json!({"stringData": {"replication-password": "r-secret", "agent-password": "a-secret"}}).to_string();
    ns.try_kubectl_with(&["patch", "secret", "mine", "--patch", &keys], None).unwrap();
    wait_until(2 * START, "the member goes on", || {
        let pod = ns.try_get("pod postgres-0")?;
        let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        if ready { Ok(()) } else { Err(pod["status"]["containerStatuses"].to_string()) }
    });
}

/// An entry point whose data says that it is PostgreSQL 12's. What runs is the image's own, so that there are rows to keep.
const OLD_ENTRY_POINT: &str = r#"#!/bin/bash
[ ! -s "$PGDATA/PG_VERSION" ] || echo 17 >"$PGDATA/PG_VERSION"
/usr/local/bin/docker-entrypoint.sh "$@" &
server=$!
trap 'kill -INT $server' INT TERM
until pg_isready -q -h 127.0.0.1; do sleep 0.1; done
echo 12 >"$PGDATA/PG_VERSION"
wait $server
trap - INT TERM
wait $server
"#;

#[test]
fn a_database_that_the_agent_does_not_know_goes_on_as_before() {
    let lab = lab::shared();
    let ns = lab.namespace("as-before");
    ns.volume_for("data-postgres-0");
    service(&ns);
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "old"},
            "data": {"docker-entrypoint.sh": OLD_ENTRY_POINT}})
        .to_string(),
    );
    let path = "/opt/old:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/17/bin";
    let set = one_member("pgdata")
        .env("PATH", path)
        .container("args", json!(["-c", "max_connections=40"]))
        .container("volumeMounts/-", json!({"name": "old", "mountPath": "/opt/old"}))
        .pod("volumes/-", json!({"name": "old", "configMap": {"name": "old", "defaultMode": 0o755}}));
    ns.apply(&set.manifest());
    let db = ns.database_as("postgres", "postgres", "change-me", "postgres");
    let before = runs_with_rows(&ns, &db);

    annotate(&ns);
    was_rolled_once(&ns, &before);
    is_told(&ns, "RunsAsBefore", &["PostgreSQL 12", "pgset.dev/inject-"]);
    db.wait_for("postgres", "select count(*), sum(n) from numbers", "10000|50005000");
    db.wait_for("postgres", "show max_connections", "40");
    wait_until(SOON, "no role label", || {
        let label = ns.label("pod postgres-0", "pgset.dev/role");
        label.map_or(Ok(()), |role| Err(format!("it is a {role}")))
    });

    // the way out that the Event names, and back with all rows
    let annotated = ns.get("pod postgres-0")["metadata"]["uid"].clone();
    ns.kubectl("annotate statefulset postgres pgset.dev/inject-");
    wait_until(START, "the pod as it was", || {
        let pod = ns.try_get("pod postgres-0")?;
        let is_plain = pod["metadata"]["uid"] != annotated && pod["spec"]["initContainers"] == Value::Null;
        if is_plain { Ok(()) } else { Err("it has the agent".to_owned()) }
    });
    ns.wait_ready("postgres", 1);
    db.wait_for("postgres", "select count(*), sum(n) from numbers", "10000|50005000");
}

#[test]
fn a_shared_volume_is_adopted_in_place_and_left_as_it_was() {
    let lab = lab::shared();
    let ns = lab.namespace("in-place");
    ns.shared_claim("data");
    service(&ns);
    let set = plain("postgres").replicas(1).env("POSTGRES_PASSWORD", "change-me").shared_volume("data", "data", MOUNT);
    ns.apply(&set.manifest());
    let db = ns.database_as("postgres", "postgres", "change-me", "postgres");
    let before = runs_with_rows(&ns, &db);
    let first = fs::canonicalize(ns.export()).unwrap();

    annotate(&ns);
    was_rolled_once(&ns, &before);
    keeps_every_row_and_scales(&ns, &db);
    let members = first.join("pgsql_tmp.pgset");
    assert!(first.join("PG_VERSION").exists(), "where it was");
    assert!(members.join("postgres-1/data/PG_VERSION").exists(), "a directory of its own");
    assert!(members.join("README").exists());
    assert!(!members.join("postgres-1/data/pgsql_tmp.pgset").exists(), "no copy of the copies");

    ns.kubectl("scale statefulset postgres --replicas=1");
    ns.wait_ready("postgres", 1);
    let annotated = ns.get("pod postgres-0")["metadata"]["uid"].clone();
    ns.kubectl("annotate statefulset postgres pgset.dev/inject-");
    wait_until(START, "the pod as it was", || {
        let pod = ns.try_get("pod postgres-0")?;
        if pod["metadata"]["uid"] == annotated { Err("the pod is the same".to_owned()) } else { Ok(()) }
    });
    ns.wait_ready("postgres", 1);
    db.wait_for("postgres", "select count(*), sum(n) from numbers", "10000|50005000");
}
