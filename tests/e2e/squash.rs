//! An export that squashes root, as the article's does: root may write what anyone may, and own nothing.

use serde_json::json;

use crate::{
    lab,
    manifests::{Set, set},
};

fn a_set_runs_where_root_is_squashed(theme: &str, change: impl Fn(Set) -> Set) {
    let lab = lab::shared();
    let ns = lab.namespace(theme);
    let db = ns.two_members(&change(set("pgset")));
    db.master("create table visits as select 'written' as what");
    db.wait_for("pgset-replica", "select what from visits", "written");

    for pod in ["pgset-0", "pgset-1"] {
        use std::os::unix::fs::MetadataExt;
        let (path, _) = ns.data_directory(pod);
        let owner = std::fs::metadata(&path).unwrap().uid();
        assert_eq!(owner, 999, "{} belongs to {owner}", path.display());
        let status = ns.shell(pod, "postgres", "cat /proc/[0-9]*/status").unwrap().out;
        let server = status.split("Name:").find(|process| process.trim_start().starts_with("postgres")).unwrap();
        assert!(server.contains("Uid:\t999\t999"), "{server}");
    }
}

#[test]
fn it_runs_as_a_root_that_may_do_nothing_of_what_makes_it_root() {
    a_set_runs_where_root_is_squashed("squash", |set| {
        set.container("securityContext", json!({"capabilities": {"drop": ["CHOWN", "DAC_OVERRIDE", "FOWNER"]}}))
    });
}

#[test]
fn it_runs_as_the_postgres_user_from_the_start() {
    a_set_runs_where_root_is_squashed("nonroot", |set| {
        set.pod("securityContext", json!({"runAsUser": 999, "runAsGroup": 999, "runAsNonRoot": true}))
            .container("securityContext", json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}))
    });
}
