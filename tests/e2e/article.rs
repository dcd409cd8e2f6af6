//! The article's steps: apply, look at the replication, write, scale, list the shared directory.

use crate::{
    lab::{self, SOON, same, wait_until},
    manifests::example,
    node,
};

#[test]
fn the_example_is_short_and_needs_nothing_but_its_claim() {
    let lines = example("pgset");
    assert!(lines.lines().count() < 40, "{} lines", lines.lines().count());
    assert!(lines.contains("image: postgres:17") && lines.contains("replicas: 2"));
    assert_eq!(lines.matches("kind:").count(), 1);
}

#[test]
fn one_apply_makes_a_master_and_a_replica_and_one_scale_another() {
    let lab = lab::shared();
    let ns = lab.namespace("article");
    ns.shared_claim("pgset-pvc");
    ns.apply(&example("pgset"));

    ns.wait_ready("pgset", 2);
    assert_eq!(ns.pods("pgset"), ["pgset-0", "pgset-1"]);
    for object in ["service pgset", "service pgset-master", "service pgset-replica", "serviceaccount pgset-sa"] {
        ns.get(object);
    }

    let db = ns.database("pgset");
    db.wait_streaming(&["pgset-1"]);
    let rows = db.master("table pg_stat_replication");
    assert_eq!(rows.lines().count(), 1, "{rows}");
    assert!(rows.contains("|pgset-1|") && rows.contains("|streaming|"), "{rows}");

    the_master_takes_writes_and_the_replica_shows_them(&db);

    ns.kubectl("scale statefulset pgset --replicas=3");
    ns.wait_ready("pgset", 3);
    db.wait_streaming(&["pgset-1", "pgset-2"]);
    wait_until(SOON, "the roles on the labels", || {
        same(
            ["pgset-0", "pgset-1", "pgset-2"].map(|pod| ns.label(&format!("pod {pod}"), "pgset.dev/role")),
            &["master", "replica", "replica"].map(|role| Some(role.to_owned())),
        )
    });

    each_member_has_a_directory_that_no_other_can_see(&ns);
}

fn each_member_has_a_directory_that_no_other_can_see(ns: &lab::Namespace<'_>) {
    let mut directories: Vec<_> = std::fs::read_dir(ns.export())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    directories.sort();
    assert_eq!(directories, ["pgset-0", "pgset-1", "pgset-2"]);

    std::fs::write(ns.export().join("pgset-0/mark"), "").unwrap();
    let seen = |pod| ns.shell(pod, "postgres", "ls -A /pgdata /pgdata/..").unwrap().out;
    assert!(seen("pgset-0").contains("mark"));
    for other in ["pgset-1", "pgset-2"] {
        let seen = seen(other);
        assert!(!seen.contains("mark") && !seen.contains("pgset-0"), "{other} sees {seen}");
    }
}

/// The article's own objects, one annotation, and nothing else changed but the image's name.
fn the_articles_own_objects_work_with(image: &str, container_image: &str) {
    let lab = lab::shared();
    let ns = lab.namespace(image);
    // the article's export and its volume; the claim is among the article's objects
    ns.shared_claim("pgset-pvc");
    ns.apply(&example("article").replace("postgres:15", container_image));

    ns.wait_ready("pgset", 2);
    let db = ns.database_as("pgset", "postgres", "password", "postgres");
    db.wait_streaming(&["pgset-1"]);
    assert_eq!(ns.label("pod pgset-0", "name").as_deref(), Some("pgset-master"));
    assert_eq!(ns.label("pod pgset-1", "name").as_deref(), Some("pgset-replica"));

    the_master_takes_writes_and_the_replica_shows_them(&db);

    ns.kubectl("scale statefulset pgset --replicas=3");
    ns.wait_ready("pgset", 3);
    db.wait_streaming(&["pgset-1", "pgset-2"]);
    for pod in ["pgset-0", "pgset-1", "pgset-2"] {
        assert!(ns.export().join(pod).is_dir(), "no directory of {pod}");
    }
    // what the user wrote by hand is as he wrote it
    let selector = &ns.get("service pgset-master")["spec"]["selector"];
    assert_eq!(selector, &serde_json::json!({"name": "pgset-master"}));
}

#[test]
fn the_articles_own_objects_work_with_the_official_image() {
    the_articles_own_objects_work_with("official", "postgres:15");
}

#[test]
fn the_articles_own_objects_work_with_an_image_that_knows_pg_mode_itself() {
    // by its name, such an image is known without an annotation
    let name = "docker.io/crunchydata/crunchy-postgres:lab";
    node::tag("docker.io/library/pg-mode-set:15", name).unwrap();
    the_articles_own_objects_work_with("pg-mode", name);
}

fn the_master_takes_writes_and_the_replica_shows_them(db: &lab::Database<'_>) {
    db.master("create table visits as select 'through the master' as who");
    db.wait_for("pgset-replica", "select who from visits", "through the master");
    let refused = db.replica("create table foo (id int)").unwrap_err();
    assert!(refused.contains("cannot execute CREATE TABLE in a read-only transaction"), "{refused}");
}
