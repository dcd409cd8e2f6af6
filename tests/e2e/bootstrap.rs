//! The first database is made whole or not at all.

use serde_json::json;

use crate::{
    lab::{self, START, wait_until},
    manifests::{self, set},
};

fn script(sql: &str) -> String {
    manifests::list(&[
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "scripts"}, "data": {"first.sql": sql}}),
    ])
}

#[test]
fn a_broken_init_script_is_named_and_leaves_no_half_made_database() {
    let lab = lab::shared();
    let ns = lab.namespace("broken-script");
    ns.shared_claim("pgset-pvc");
    ns.apply(&script("create table first (i int); selec 1;"));
    let scripts = json!({"name": "scripts", "mountPath": "/docker-entrypoint-initdb.d"});
    let set = set("pgset")
        .container("volumeMounts", json!([scripts]))
        .pod("volumes", json!([{"name": "scripts", "configMap": {"name": "scripts"}}]));
    ns.apply(&set.manifest());

    wait_until(START, "the failure is told", || {
        let log = ns.try_kubectl("logs pgset-0 --container=postgres --previous").map_err(|said| said.err)?.out;
        if log.contains("syntax error") && log.contains("the database was not made") { Ok(()) } else { Err(log) }
    });

    ns.apply(&script("create table first (i int);"));
    ns.kubectl("delete pod pgset-0 --timeout=60s");
    ns.wait_ready("pgset", 2);
    let db = ns.database("pgset");
    db.wait_streaming(&["pgset-1"]);
    db.wait_for("pgset-replica", "select count(*) from first", "0");
}
