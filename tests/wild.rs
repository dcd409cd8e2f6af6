//! What people's `StatefulSets` look like, as a table: each is taken, when it is new and when it runs already, or refused with the reason
//! and the cure of that very case.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a test may stop where it fails

mod support;

use pgset::{
    cli::inject::manifest,
    inject::Outcome,
    set::{Contract, Set},
};
use serde_json::{Value, json};
use support::{admitted_with, annotate, ask, defaulted};

/// The answer to a manifest.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Taken, with this container as PostgreSQL's.
    Taken(&'static str),
    /// Refused, in words that contain these.
    Refused(&'static [&'static str]),
}
use Answer::{Refused, Taken};

/// A set of this name, with a claim template `data`, and this in its template's spec.
fn set(name: &str, pod: &str) -> Value {
    let pod = manifest::read(pod).unwrap().remove(0).value;
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "serviceName": name, "replicas": 1, "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": pod },
            "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } }],
        },
    })
}

fn annotated(object: &Value) -> Value {
    let mut object = object.clone();
    annotate(&mut object, "pgset.dev/inject", "enabled");
    object
}

/// New, and annotated while it runs.
fn answers(object: &Value) -> [Result<Value, String>; 2] {
    let running = defaulted(object);
    let told = |it: Result<Value, pgset::inject::Denial>| it.map_err(|denial| denial.to_string());
    [
        told(admitted_with(support::IMAGE, &annotated(object), None)),
        told(admitted_with(support::IMAGE, &annotated(&running), Some(&running))),
    ]
}

fn check(name: &str, pod: &str, new: Answer, running: Answer) -> Vec<String> {
    let mut wrong = Vec::new();
    for (how, expected, found) in answers(&set(name, pod))
        .into_iter()
        .zip([("new", new), ("running", running)])
        .map(|(found, (how, expected))| (how, expected, found))
    {
        let is_right = match (&found, expected) {
            (Ok(object), Taken(container)) => Set::parse(object).unwrap().container == container,
            (Err(message), Refused(words)) => words.iter().all(|word| message.contains(word)),
            _ => false,
        };
        if !is_right {
            let found = found.map(|object| Set::parse(&object).unwrap().container);
            wrong.push(format!("{how}: should be {expected:?}, is {found:?}, for\n{pod}"));
        }
    }
    wrong
}

/// Of each: the set's name, its pod, the answer when it is new and when it runs.
fn hold(table: &[(&str, &str, Answer, Answer)]) {
    let wrong: Vec<String> =
        table.iter().flat_map(|(name, pod, new, running)| check(name, pod, *new, *running)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn both(name: &'static str, pod: &'static str, answer: Answer) -> (&'static str, &'static str, Answer, Answer) {
    (name, pod, answer, answer)
}

const MOUNT: &str = "volumeMounts: [{name: data, mountPath: /var/lib/postgresql/data}]";

#[test]
fn the_container_is_known_by_its_image_then_by_its_port_or_name_and_last_by_the_sets_name() {
    let pods = |text: &str| text.replace("MOUNT", MOUNT);
    for (name, pod, answer) in [
        ("db", "containers: [{name: anything, image: postgres:16, MOUNT}]", Taken("anything")),
        (
            "db",
            "containers: [{name: exporter, image: prometheuscommunity/postgres-exporter}, {name: main, image: postgres:16, MOUNT}]",
            Taken("main"),
        ),
        (
            "shop",
            "containers: [{name: shop, image: acme/shop:1}, {name: store, image: 'postgis/postgis:16-3.4', MOUNT}]",
            Taken("store"),
        ),
        (
            "shop",
            "containers: [{name: shop, image: acme/shop:1}, {name: store, image: acme/rows:15, ports: [{containerPort: 5432}], MOUNT}]",
            Taken("store"),
        ),
        ("shop", "containers: [{name: shop, image: acme/shop:1}, {name: db, image: acme/rows:15, MOUNT}]", Taken("db")),
        (
            "rows",
            "containers: [{name: rows, image: acme/rows:15, MOUNT}, {name: metrics, image: acme/metrics}]",
            Taken("rows"),
        ),
        // A job beside the server, with the server's image.
        (
            "db",
            "containers: [{name: backup, image: postgres:16, command: [sh, -c, 'pg_dump'], MOUNT}, {name: server, image: postgres:16, MOUNT}]",
            Taken("server"),
        ),
        (
            "db",
            "containers: [{name: pgbouncer, image: edoburu/pgbouncer, ports: [{containerPort: 5432}]}, {name: server, image: postgres:16, MOUNT}]",
            Taken("server"),
        ),
        (
            "db",
            "containers: [{name: one, image: postgres:16, MOUNT}, {name: postgres, image: postgres:16, MOUNT}]",
            Taken("postgres"),
        ),
        (
            "db",
            "containers: [{name: one, image: postgres:16, MOUNT}, {name: two, image: postgres:16, MOUNT}]",
            Refused(&["one, two", "images of PostgreSQL", "pgset.dev/container: <name>"]),
        ),
        (
            "db",
            "containers: [{name: one, image: acme/a, ports: [{containerPort: 5432}], MOUNT}, {name: pg, image: acme/b, MOUNT}, {name: c, image: acme/c}]",
            Refused(&["has one, pg:", "PostgreSQL's port or a usual name", "pgset.dev/container: <name>"]),
        ),
        (
            "db",
            "containers: [{name: one, image: acme/a, MOUNT}, {name: two, image: acme/b}]",
            Refused(&["has one, two:", "none of them is it", "pgset.dev/container: <name>"]),
        ),
    ] {
        let wrong = check(name, &pods(pod), answer, answer);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[test]
fn an_injected_container_stays_what_it_is_when_another_one_looks_more_like_it() {
    let pod = "containers: [{name: db, image: acme/rows:15, volumeMounts: [{name: data, mountPath: /var/lib/postgresql/data}]}]";
    let stored = admitted_with(support::IMAGE, &annotated(&defaulted(&set("db", pod))), None).unwrap();
    let mut wish = stored.clone();
    let containers = wish["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap();
    containers.insert(0, json!({ "name": "seed", "image": "postgres:15" }));
    assert_eq!(ask(&wish, Some(&stored)), Outcome::Untouched { warnings: vec![] });
}

#[test]
fn rows_on_an_empty_dir_are_not_lost_because_an_annotation_names_the_container() {
    let pod = "containers: [{name: one, image: postgres:16}, {name: two, image: postgres:16, volumeMounts: [{name: rows, mountPath: \
               /var/lib/postgresql/data}]}]\nvolumes: [{name: rows, emptyDir: {}}]";
    let running = defaulted(&set("db", pod));
    let mut wish = annotated(&running);
    annotate(&mut wish, "pgset.dev/container", "two");
    let denial = admitted_with(support::IMAGE, &wish, Some(&running)).unwrap_err();
    assert_eq!(denial.code(), "data_lost", "{denial}");
}

const KEEP: &[&str] = &["leave out the annotation pgset.dev/inject to keep it", "postgres:<version>", "pg_dump"];

#[test]
fn an_image_with_a_cluster_manager_is_refused_by_its_name_whatever_else_is_wrong() {
    for (pod, words) in [
        (
            "containers: [{name: patroni, image: 'acme/patroni:3', ports: [{containerPort: 8008}, {containerPort: 5432}]}]",
            "runs Patroni (image",
        ),
        (
            "containers: [{name: pg, image: 'acme/pg:15', env: [{name: PATRONI_SCOPE, value: db}], ports: [{containerPort: 8008}]}]",
            "runs Patroni (variable PATRONI_SCOPE)",
        ),
        (
            "containers: [{name: ts, image: 'timescale/timescaledb-ha:pg14-latest', command: [/bin/bash, -c, 'exec patroni /etc/patroni.yaml']}]",
            "runs Patroni (by its command)",
        ),
        (
            "containers: [{name: pg, image: 'registry.opensource.zalan.do/acid/spilo-14:2.1-p5', volumeMounts: [{name: data, mountPath: /home/postgres/pgdata}]}]",
            "runs Spilo (image",
        ),
        (
            "containers: [{name: stolon-keeper, image: 'sorintlab/stolon:v0.16.0-pg10', command: ['/bin/bash', '-ec', 'exec gosu stolon stolon-keeper'], volumeMounts: [{name: data, mountPath: /stolon-data}]}]",
            "runs Stolon (image",
        ),
        (
            "containers: [{name: postgresql, image: 'bitnami/postgresql-repmgr:14', volumeMounts: [{name: data, mountPath: /bitnami/postgresql}]}]",
            "runs repmgr (image",
        ),
        (
            "containers: [{name: db, image: 'postdock/postgres:1.11', volumeMounts: [{name: data, mountPath: /var/lib/postgresql/data}]}]",
            "runs PostDock",
        ),
        (
            "containers: [{name: db, image: 'citusdata/pg_auto_failover:v2.0', command: [pg_autoctl, run]}]",
            "runs pg_auto_failover (image",
        ),
        (
            "containers: [{name: db, image: 'docker.io/bitnamilegacy/postgresql:16', volumeMounts: [{name: data, mountPath: /bitnami/postgresql}]}]",
            "runs bitnami's scripts (image",
        ),
        (
            "containers: [{name: db, image: 'harbor.example/mirror/bitnami/postgresql:12'}]",
            "runs bitnami's scripts (image",
        ),
        (
            "containers: [{name: db, image: 'paradedb/paradedb:0.8', volumeMounts: [{name: data, mountPath: /bitnami/postgresql}]}]",
            "runs bitnami's scripts (data at /bitnami/postgresql)",
        ),
        (
            "containers: [{name: db, image: 'crunchydata/crunchy-postgres-ha:centos8-13.5-4.7.4', volumeMounts: [{name: data, mountPath: /pgdata}]}]",
            "runs Patroni (image",
        ),
        (
            "containers: [{name: db, image: 'kartoza/postgis:14-3.2', volumeMounts: [{name: data, mountPath: /var/lib/postgresql}]}]",
            "runs kartoza's scripts",
        ),
    ] {
        for found in answers(&set("db", pod)) {
            let message = found.unwrap_err();
            assert!(message.contains(words) && KEEP.iter().all(|word| message.contains(word)), "{pod}\n{message}");
        }
    }
}

#[test]
fn a_version_that_the_agent_cant_run_is_told_before_what_could_be_mended() {
    hold(&[
        both("db", "containers: [{name: db, image: 'postgres:9.6'}]", Refused(&["PostgreSQL 9", "13 or newer"])),
        both(
            "db",
            "containers: [{name: db, image: 'postgres:12-alpine', volumeMounts: [{name: data, mountPath: /data}]}]",
            Refused(&["PostgreSQL 12"]),
        ),
        both("db", "containers: [{name: db, image: 'centos/postgresql-96-centos7'}]", Refused(&["PostgreSQL 9"])),
        both("db", "containers: [{name: db, image: 'timescale/timescaledb:1.7.4-pg11'}]", Refused(&["PostgreSQL 11"])),
    ]);
}

#[test]
fn rows_that_are_on_no_volume_are_told_with_the_volume_that_was_meant() {
    hold(&[
        both(
            "db",
            "containers: [{name: db, image: postgres:15, volumeMounts: [{name: data, mountPath: /data}]}]",
            Refused(&[
                "volume data at /data",
                "never writes",
                "/var/lib/postgresql/data,",
                "pg_dumpall",
                "mount data at /var/lib/postgresql/data",
                "PGDATA: /data/data",
            ]),
        ),
        both(
            "db",
            "containers: [{name: db, image: postgres:18, volumeMounts: [{name: data, mountPath: /var/data/}]}]",
            Refused(&[
                "volume data at /var/data,",
                "/var/lib/postgresql/18/docker",
                "mount data at /var/lib/postgresql,",
            ]),
        ),
        both(
            "db",
            "containers: [{name: db, image: 'quay.io/sclorg/postgresql-15-c9s', volumeMounts: [{name: data, mountPath: /data}]}]",
            Refused(&["never writes", "mount data at /var/lib/pgsql/data"]),
        ),
        both(
            "db",
            "containers: [{name: db, image: postgres:15}]",
            Refused(&["does not mount volume data", "pg_dumpall", "mount data at /var/lib/postgresql/data"]),
        ),
        both(
            "db",
            "containers: [{name: db, image: postgres:15, volumeMounts: [{name: scripts, mountPath: /docker-entrypoint-initdb.d}]}]\nvolumes: [{name: scripts, configMap: {name: scripts}}]",
            Refused(&["does not mount volume data"]),
        ),
        both(
            "db",
            "containers: [{name: db, image: postgres:15, env: [{name: PGDATA, value: /rows}], volumeMounts: [{name: time, mountPath: \
             /etc/localtime}]}]\nvolumes: [{name: time, hostPath: {path: /etc/localtime}}]",
            Refused(&["does not mount volume data", "mount data at /rows"]),
        ),
        both(
            "db",
            "containers: [{name: db, image: postgres:15, volumeMounts: [{name: pgdata, mountPath: /var/lib/postgresql/data}]}]",
            Refused(&["volume pgdata at /var/lib/postgresql/data", "neither", "volumeMounts"]),
        ),
        both(
            "db",
            "containers: [{name: db, image: postgres:15, env: [{name: PGDATA, value: /pg/data}], volumeMounts: [{name: data, mountPath: /var/lib/postgresql/data}]}]",
            Refused(&[
                "PGDATA of container db is /pg/data",
                "mounted at /var/lib/postgresql/data",
                "pg_dumpall",
                "remove PGDATA",
            ]),
        ),
        // A volume of its own at its home, and one at the official image's place.
        (
            "db",
            "containers: [{name: db, image: 'timescale/timescaledb-ha:pg16', volumeMounts: [{name: data, mountPath: /var/lib/postgresql/data}]}]",
            Taken("db"),
            Refused(&["inside the container", "pg_dumpall"]),
        ),
    ]);
}

#[test]
fn an_image_that_nobody_knows_may_have_a_pgdata_of_its_own() {
    let pod = |path: &str| {
        format!("containers: [{{name: db, image: 'acme/rows:15', volumeMounts: [{{name: data, mountPath: {path}}}]}}]")
    };
    for found in answers(&set("db", &pod("/data"))) {
        let message = found.unwrap_err();
        assert!(
            message.contains("never writes")
                && message.contains("if the image or envFrom sets PGDATA to a directory there"),
            "{message}"
        );
    }
    let [new, running] = answers(&set("db", &pod("/pgdata")));
    assert!(new.is_ok());
    let message = running.unwrap_err();
    assert!(
        message.contains("as far as pgset can see") && message.contains("before you annotate, write PGDATA under env"),
        "{message}"
    );
}

#[test]
fn known_images_are_taken_where_their_data_is() {
    hold(&[
        both(
            "db",
            "containers: [{name: db, image: 'timescale/timescaledb-ha:pg16', volumeMounts: [{name: data, mountPath: /home/postgres/pgdata}]}]",
            Taken("db"),
        ),
        both(
            "db",
            "containers: [{name: db, image: 'quay.io/sclorg/postgresql-15-c9s', volumeMounts: [{name: data, mountPath: /var/lib/pgsql/data}]}]",
            Taken("db"),
        ),
        both(
            "db",
            "containers: [{name: db, image: 'registry.redhat.io/rhel9/postgresql-15', command: [container-entrypoint, run-postgresql], volumeMounts: [{name: data, mountPath: /var/lib/pgsql/data}]}]",
            Taken("db"),
        ),
        // Its own image does not start there, so that there is nothing to lose.
        both(
            "db",
            "containers: [{name: db, image: postgres:18, volumeMounts: [{name: data, mountPath: /var/lib/postgresql/data}]}]",
            Taken("db"),
        ),
        both(
            "db",
            "containers: [{name: db, image: postgres:18-alpine, volumeMounts: [{name: data, mountPath: /var/lib/postgresql}]}]",
            Taken("db"),
        ),
    ]);
}

/// The words of the injected command, and the warnings.
fn injected(image: &str, more: &str) -> (Vec<String>, Vec<String>) {
    let pod = format!("containers: [{{name: db, image: '{image}', {more} {MOUNT}}}]");
    let Outcome::Patched { patch, warnings, .. } = ask(&annotated(&set("db", &pod)), None) else { panic!("{image}") };
    let object = support::applied(&annotated(&set("db", &pod)), &patch);
    let command = object["spec"]["template"]["spec"]["containers"][0]["command"].as_array().unwrap().iter();
    (command.map(|word| word.as_str().unwrap().to_owned()).collect(), warnings)
}

#[test]
fn the_arguments_of_a_known_images_cmd_are_kept_unless_there_are_own_ones() {
    for (image, more, kept) in [
        ("apache/age:release_PG16_1.5.0", "", Some("--image-argument=shared_preload_libraries=age")),
        (
            "docker.io/tensorchord/pgvecto-rs:pg16-v0.3.0",
            "",
            Some("--image-argument=search_path=\"$user\", public, vectors"),
        ),
        (
            "ghcr.io/tensorchord/vchord-postgres:pg17-v0.4.2",
            "",
            Some("--image-argument=shared_preload_libraries=vchord"),
        ),
        ("supabase/postgres:15.8.1.060", "", Some("--image-argument=config_file=/etc/postgresql/postgresql.conf")),
        (
            "ghcr.io/immich-app/postgres:16-vectorchord0.4.3",
            "",
            Some("--image-argument=config_file=/etc/postgresql/postgresql.conf"),
        ),
        ("apache/age:release_PG16_1.5.0", "args: [-c, max_connections=50],", None),
        ("apache/age:release_PG16_1.5.0", "command: [postgres],", None),
        ("postgres:16", "", None),
    ] {
        let (command, warnings) = injected(image, more);
        let arguments: Vec<_> = command.iter().filter(|word| word.starts_with("--image-argument=")).collect();
        assert_eq!(arguments.last().map(|word| word.as_str()), kept, "{image} {more}");
        assert!(!warnings.iter().any(|warning| warning.contains("CMD")), "{image} {warnings:?}");
    }
}

#[test]
fn a_stranger_is_warned_of_once_with_the_cure() {
    let warned =
        |image, more| injected(image, more).1.into_iter().filter(|warning| warning.contains("CMD")).collect::<Vec<_>>();
    assert_eq!(warned("acme/postgres:16", "").len(), 1);
    assert!(warned("acme/postgres:16", "")[0].contains("write them as the container's args"));
    assert_eq!(warned("acme/postgres:16", "args: [-c, max_connections=50],"), Vec::<String>::new());
}

#[test]
fn the_port_is_honoured_or_refused_wherever_it_is_written() {
    let port = |more: &str| {
        let pod = format!("containers: [{{name: db, image: postgres:16, {more} {MOUNT}}}]");
        answers(&set("db", &pod)).map(|found| found.map(|object| Set::parse(&object).unwrap().port))
    };
    for (more, wanted) in [
        ("", 5432),
        ("args: [-p, '5433'],", 5433),
        ("args: [-c, port=5433],", 5433),
        ("args: [--port=5433], ports: [{containerPort: 9187, name: metrics}, {containerPort: 5433}],", 5433),
        ("env: [{name: PGPORT, value: '5433'}],", 5433),
        ("env: [{name: PGPORT, value: '5433'}], ports: [{containerPort: 5433}],", 5433),
        ("ports: [{containerPort: 5433}],", 5433),
    ] {
        assert_eq!(port(more), [Ok(wanted), Ok(wanted)], "{more}");
    }
    for (more, words) in [
        (
            "args: [-p, '5433'], ports: [{containerPort: 5432}],",
            ["5433", "by its arguments", "containerPort is 5432", "make them equal"],
        ),
        (
            "env: [{name: PGPORT, value: '5433'}], ports: [{containerPort: 5432}],",
            ["5433", "by a variable", "containerPort is 5432", "make them equal"],
        ),
        (
            "env: [{name: PGPORT, valueFrom: {configMapKeyRef: {name: c, key: port}}}],",
            ["PGPORT", "a value from elsewhere", "5432", "make them equal"],
        ),
    ] {
        for found in port(more) {
            let message = found.unwrap_err();
            assert!(words.iter().all(|word| message.contains(word)), "{more}\n{message}");
        }
    }
    let (_, warnings) = injected("postgres:16", "ports: [{containerPort: 5433}],");
    assert!(
        warnings.iter().any(|warning| warning.contains("PostgreSQL is started on the containerPort, 5433")),
        "{warnings:?}"
    );
}

#[test]
fn a_file_in_the_data_directory_is_refused_with_the_place_and_the_argument_for_it() {
    let pod = |path: &str, env: &str| {
        format!(
            "containers: [{{name: db, image: postgres:16, {env} volumeMounts: [{{name: data, mountPath: /var/lib/postgresql/data}}, \
             {{name: config, mountPath: {path}, subPath: x}}]}}]\nvolumes: [{{name: config, configMap: {{name: config}}}}]"
        )
    };
    let below = "env: [{name: PGDATA, value: /var/lib/postgresql/data/pgdata}],";
    for (path, env, cure) in [
        (
            "/var/lib/postgresql/data/postgresql.conf",
            "",
            "args: [\"-c\", \"config_file=/etc/postgresql/postgresql.conf\"]",
        ),
        (
            "/var/lib/postgresql/data/pgdata/pg_hba.conf",
            below,
            "args: [\"-c\", \"hba_file=/etc/postgresql/pg_hba.conf\"]",
        ),
        ("/var/lib/postgresql/data/conf.d", "", "mount it outside of that"),
    ] {
        for found in answers(&set("db", &pod(path, env))) {
            let message = found.unwrap_err();
            assert!(message.contains(path) && message.contains(cure), "{path}\n{message}");
        }
    }
    for (path, env) in [("/etc/postgresql/postgresql.conf", ""), ("/var/lib/postgresql/data/postgresql.conf", below)] {
        assert!(answers(&set("db", &pod(path, env))).iter().all(Result::is_ok), "{path}");
    }
}

#[test]
fn what_the_agent_cant_share_is_refused_with_the_reason() {
    for (field, words) in [
        ("hostPID", ["first process", "remove hostPID", "kubectl debug"]),
        ("shareProcessNamespace", ["first process", "remove shareProcessNamespace", "kubectl debug"]),
    ] {
        let pod = format!("{field}: true\ncontainers: [{{name: db, image: postgres:16, {MOUNT}}}]");
        for found in answers(&set("db", &pod)) {
            let message = found.unwrap_err();
            assert!(words.iter().all(|word| message.contains(word)), "{field}\n{message}");
        }
        assert!(answers(&set("db", &pod.replace("true", "false"))).iter().all(Result::is_ok), "{field}: false");
    }
}

#[test]
fn a_set_on_the_nodes_network_is_taken_with_a_word_about_the_ports() {
    let pod = format!("hostNetwork: true\ncontainers: [{{name: db, image: postgres:16, {MOUNT}}}]");
    let Outcome::Patched { warnings, .. } = ask(&annotated(&set("db", &pod)), None) else { panic!() };
    assert!(warnings.iter().any(|warning| warning.contains("5432 and 8008 must be free on each node")), "{warnings:?}");
}

#[test]
fn no_user_is_written_where_openshift_gives_one() {
    let context = |pod: &str| {
        let pod = format!("{pod}containers: [{{name: db, image: postgres:16, {MOUNT}}}]");
        let [new, _] = answers(&set("db", &pod));
        new.unwrap()["spec"]["template"]["spec"]["initContainers"][0]["securityContext"].clone()
    };
    assert!(context("").get("runAsUser").is_none() && context("")["runAsNonRoot"] == true);
    assert!(context("securityContext: {runAsUser: 999}\n").get("runAsUser").is_none(), "the pod's own goes for it too");
    assert_eq!(context("securityContext: {runAsUser: 0}\n")["runAsUser"], 65532, "the agent's image needs no root");
}

#[test]
fn an_image_of_the_articles_family_keeps_its_contract() {
    let pod = "containers: [{name: db, image: 'crunchydata/crunchy-postgres:centos7-12.4-4.4.2', volumeMounts: [{name: data, mountPath: /pgdata}]}]";
    for found in answers(&set("db", pod)) {
        assert_eq!(Set::parse(&found.unwrap()).unwrap().contract, Contract::Image);
    }
}

#[test]
fn a_master_that_is_called_primary_stays_so() {
    let env = "env: [{name: PG_MODE, value: set}, {name: PG_PRIMARY_HOST, value: db-primary}, {name: PG_PRIMARY_PORT, value: '5432'}, \
               {name: PG_REPLICA_HOST, value: db-replica}]";
    let pod = |image: &str, mount: &str| {
        format!(
            "containers: [{{name: db, image: '{image}', {env}, volumeMounts: [{{name: data, mountPath: {mount}}}]}}]"
        )
    };
    for found in answers(&set("db", &pod("crunchydata/crunchy-postgres:centos7-11.4-2.4.1", "/pgdata"))) {
        let object = found.unwrap();
        let role = Set::parse(&object).unwrap().role_label;
        assert_eq!(
            (role.key.as_str(), role.master.as_str(), role.replica.as_str()),
            ("name", "db-primary", "db-replica")
        );
        let env = object["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        let host = env.iter().find(|it| it["name"] == "PG_MASTER_HOST").unwrap();
        assert_eq!(host["value"], "db-primary", "the old name of the same thing");
    }
    // pgset's agent labels as the Services of that example select, if the template's label says so.
    let mut object = set("db", &pod("postgres:16", "/var/lib/postgresql/data"));
    object["spec"]["template"]["metadata"]["labels"]["name"] = json!("db-replica");
    for found in answers(&object) {
        let object = found.unwrap();
        let command = object["spec"]["template"]["spec"]["containers"][0]["command"].as_array().unwrap();
        assert!(command.contains(&json!("--master=db-primary")) && command.contains(&json!("--role-label=name")));
    }
    let other =
        pod("crunchydata/crunchy-postgres:centos7-11.4-2.4.1", "/pgdata").replace("db-primary", "other-primary");
    for found in answers(&set("db", &other)) {
        let message = found.unwrap_err();
        assert!(message.contains("PG_PRIMARY_HOST") && message.contains("must be \"db-master\""), "{message}");
    }
}
