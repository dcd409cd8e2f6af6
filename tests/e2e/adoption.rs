//! Sets that ran before anybody spoke of pgset, as people write them: annotated, rolled once, every row kept.

use serde_json::{Value, json};

use crate::{
    lab::{self, Database, Namespace, SOON, START, same, wait_until},
    manifests::{Set, example, list, plain},
};

/// The set runs as it is, and has rows.
pub fn runs_with_rows(ns: &Namespace<'_>, db: &Database<'_>) -> Value {
    ns.wait_ready("postgres", 1);
    // its own Service is the only one
    wait_until(START, "rows in the set as it was", || {
        db.at("postgres", "create table if not exists numbers as select n from generate_series(1, 10000) n")
    });
    assert_eq!(db.at("postgres", "select count(*) from numbers").unwrap(), "10000");
    ns.get("pod postgres-0")["metadata"]["uid"].clone()
}

pub fn annotate(ns: &Namespace<'_>) {
    ns.kubectl("annotate statefulset postgres pgset.dev/inject=enabled");
}

/// Rolled exactly once: another pod, one more revision, no container that was restarted.
pub fn was_rolled_once(ns: &Namespace<'_>, before: &Value) {
    ns.wait_ready("postgres", 1);
    let pod = wait_until(START, "a pod made anew", || {
        let pod = ns.try_get("pod postgres-0")?;
        if pod["metadata"]["uid"] == *before { Err("the pod is the same".to_owned()) } else { Ok(pod) }
    });
    assert_eq!(pod["spec"]["initContainers"].as_array().unwrap().last().unwrap()["name"], "pgset-agent");
    assert_eq!(revisions(ns), 2);
}

fn revisions(ns: &Namespace<'_>) -> usize {
    ns.get("controllerrevisions")["items"].as_array().unwrap().len()
}

/// All rows are there, and a second member streams.
pub fn keeps_every_row_and_scales(ns: &Namespace<'_>, db: &Database<'_>) {
    db.wait_for("postgres-master", "select count(*), sum(n) from numbers", "10000|50005000");
    ns.kubectl("scale statefulset postgres --replicas=2");
    ns.wait_ready("postgres", 2);
    db.wait_streaming(&["postgres-1"]);
    db.wait_for("postgres-replica", "select count(*), sum(n) from numbers", "10000|50005000");
    assert_eq!(revisions(ns), 2, "scaled, not rolled");
    no_container_was_restarted(ns);
}

fn no_container_was_restarted(ns: &Namespace<'_>) {
    for pod in ns.pods("postgres") {
        for status in ns.get(&format!("pod {pod}"))["status"]["containerStatuses"].as_array().unwrap() {
            assert_eq!(status["restartCount"], 0, "{pod}: {status}");
        }
    }
}

#[test]
fn a_set_with_all_that_is_common_is_adopted() {
    let lab = lab::shared();
    let ns = lab.namespace("adoption");
    for claim in ["data-postgres-0", "data-postgres-1"] {
        ns.volume_for(claim);
    }
    ns.apply(&list(&[
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "postgres"},
            "stringData": {"POSTGRES_USER": "app", "POSTGRES_PASSWORD": "change-me", "POSTGRES_DB": "shop"}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "schema"},
            "data": {"schema.sql": "create table runs as select 'at the first start' as script;"}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "postgres"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "postgres"},
            "spec": {"selector": {"app": "postgres"}, "ports": [{"port": 5432}]}}),
    ]));
    let probe = |delay| {
        json!({"exec": {"command": ["sh", "-c", "pg_isready -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\""]},
            "initialDelaySeconds": delay, "periodSeconds": 2, "timeoutSeconds": 2})
    };
    let set = plain("postgres")
        .replicas(1)
        .own_volume("data", "/var/lib/postgresql/data")
        .env("PGDATA", "/var/lib/postgresql/data/pgdata")
        .container("envFrom", json!([{"secretRef": {"name": "postgres"}}]))
        .container("args", json!(["-c", "max_connections=50"]))
        .container("readinessProbe", probe(1))
        .container("livenessProbe", probe(30))
        .container("volumeMounts/-", json!({"name": "schema", "mountPath": "/docker-entrypoint-initdb.d"}))
        .pod("volumes/-", json!({"name": "schema", "configMap": {"name": "schema"}}))
        .pod("serviceAccountName", json!("postgres"))
        .pod("containers/-", json!({"name": "exporter", "image": "postgres:17", "command": ["sleep", "infinity"]}));
    ns.apply(&set.manifest());
    let db = ns.database_as("postgres", "app", "change-me", "shop");
    let before = runs_with_rows(&ns, &db);

    annotate(&ns);
    was_rolled_once(&ns, &before);
    keeps_every_row_and_scales(&ns, &db);
    assert_eq!(db.master("show max_connections"), "50");
    assert_eq!(db.master("select count(*) from runs"), "1", "the scripts ran once, long ago");
    // what was the user's own is so still
    let pod = ns.get("statefulset postgres")["spec"]["template"]["spec"].clone();
    assert_eq!(pod["serviceAccountName"], "postgres");
    assert_eq!(pod["containers"][0]["livenessProbe"]["exec"], probe(30)["exec"]);
    assert!(pod["containers"][0]["startupProbe"].is_object(), "or his liveness probe would kill a long clone");
    assert!(pod["containers"][1]["command"] == json!(["sleep", "infinity"]), "the other container is not ours");

    // his own Service reaches replicas as well now
    wait_until(SOON, "an Event that says so", || {
        let events = ns.events("StatefulSet", "postgres");
        let tells = |event: &&String| event.contains("Service") && event.contains("pgset.dev/follow");
        events.iter().find(tells).map(drop).ok_or_else(|| format!("{events:#?}"))
    });
    assert_eq!(
        ns.get("service postgres")["spec"]["selector"],
        json!({"app": "postgres"}),
        "not touched without consent"
    );
    ns.kubectl("annotate service postgres pgset.dev/follow=master");
    wait_until(SOON, "the Service follows the master", || {
        same(ns.get("service postgres")["spec"]["selector"]["pgset.dev/role"].as_str(), &Some("master")).map(drop)
    });
    db.wait_for("postgres", "select pg_is_in_recovery()", "f");
    // Each is a connection of its own; kube-proxy hears of the selector a moment later than this test.
    wait_until(SOON, "the Service leads to the master alone", || {
        (0..10).try_for_each(|_| {
            db.at("postgres", "select pg_is_in_recovery()").and_then(|seen| same(seen, "f").map(drop))
        })
    });
    db.at("postgres", "insert into numbers values (0)").unwrap();
    db.wait_for("postgres-replica", "select count(*) from numbers", "10001");
}

#[test]
fn a_set_with_a_tight_security_context_is_adopted() {
    let lab = lab::shared();
    let ns = lab.namespace("adoption-tight");
    for claim in ["data-postgres-0", "data-postgres-1"] {
        lab::open_to_all(&ns.volume_for(claim));
    }
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "postgres"},
        "spec": {"clusterIP": "None", "selector": {"app": "postgres"}, "ports": [{"port": 5432}]}})
        .to_string(),
    );
    let set = tight(plain("postgres").replicas(1).own_volume("data", "/var/lib/postgresql/data"));
    ns.apply(&set.manifest());
    let db = ns.database_as("postgres", "postgres", "change-me", "postgres");
    let before = runs_with_rows(&ns, &db);

    annotate(&ns);
    was_rolled_once(&ns, &before);
    keeps_every_row_and_scales(&ns, &db);
    assert_eq!(db.master("show max_connections"), "60");
    // ended by his own preStop hook: the other one leads, and it is back as a replica
    ns.kubectl("delete pod postgres-0 --timeout=60s");
    ns.wait_ready("postgres", 2);
    db.wait_for("postgres-master", "select count(*) from numbers", "10000");
    db.wait_for("postgres-master", "select count(*) from pg_stat_replication where state = 'streaming'", "1");
}

/// User 999, a read-only root, a sub-path, PGDATA below it (the user may not chmod what is not his), the entry point by name, a hook that stops PostgreSQL, little grace.
fn tight(set: Set) -> Set {
    set.env("POSTGRES_PASSWORD", "change-me")
        .env("PGDATA", "/var/lib/postgresql/data/pgdata")
        .container("volumeMounts/0/subPath", json!("postgres"))
        .container("command", json!(["docker-entrypoint.sh"]))
        .container("args", json!(["postgres", "-c", "max_connections=60"]))
        .container("readinessProbe", json!({"tcpSocket": {"port": 5432}, "periodSeconds": 1}))
        .container("lifecycle", json!({"preStop": {"exec": {"command": ["pg_ctl", "stop", "-m", "fast"]}}}))
        .container("securityContext", json!({"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false}))
        .container("volumeMounts/-", json!({"name": "run", "mountPath": "/var/run/postgresql"}))
        .container("volumeMounts/-", json!({"name": "tmp", "mountPath": "/tmp"}))
        .pod("volumes/-", json!({"name": "run", "emptyDir": {}}))
        .pod("volumes/-", json!({"name": "tmp", "emptyDir": {}}))
        .pod("securityContext", json!({"runAsUser": 999, "runAsGroup": 999, "runAsNonRoot": true, "fsGroup": 999}))
        .pod("terminationGracePeriodSeconds", json!(10))
}

#[test]
fn the_example_of_an_adoption_is_adopted() {
    let lab = lab::shared();
    let ns = lab.namespace("adoption-example");
    for claim in ["data-postgres-0", "data-postgres-1"] {
        ns.volume_for(claim);
    }
    ns.apply(&example("adopt"));
    let db = ns.database_as("postgres", "app", "change-me", "app");
    let before = runs_with_rows(&ns, &db);

    annotate(&ns);
    was_rolled_once(&ns, &before);
    keeps_every_row_and_scales(&ns, &db);
    wait_until(SOON, "the Service follows the master, as its annotation asks", || {
        same(ns.get("service postgres")["spec"]["selector"]["pgset.dev/role"].as_str(), &Some("master")).map(drop)
    });
    // the same file again takes neither the annotation nor the injection away
    let generation = ns.get("statefulset postgres")["metadata"]["generation"].clone();
    let again = example("adopt").replace("replicas: 1", "replicas: 2");
    ns.apply(&again);
    assert_eq!(ns.get("statefulset postgres")["metadata"]["generation"], generation);
}

#[test]
fn an_impatient_liveness_probe_does_not_end_the_first_start_or_a_clone() {
    let lab = lab::shared();
    let ns = lab.namespace("impatient");
    ns.shared_claim("pgset-pvc");
    let impatient = json!({"exec": {"command": ["pg_isready", "-U", "postgres"]},
        "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 5});
    ns.apply(&crate::manifests::set("postgres").container("livenessProbe", impatient).manifest());
    ns.wait_ready("postgres", 2);
    ns.database("postgres").wait_streaming(&["postgres-1"]);
    no_container_was_restarted(&ns);
}
