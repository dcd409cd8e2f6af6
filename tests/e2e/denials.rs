//! What cannot work is refused before it runs, with what to change.

use serde_json::json;

use crate::{
    lab,
    manifests::{Set, plain, set},
};

/// Each is refused, and the message holds all these words.
fn refused(set: &Set, words: &[&str]) {
    let lab = lab::shared();
    let ns = lab.empty_namespace("denied");
    let said = ns.try_apply(&set.manifest()).expect_err("not refused");
    for word in words {
        assert!(said.err.contains(word), "no {word:?} in: {}", said.err);
    }
    assert!(ns.try_get("statefulset pgset").is_err(), "refused, and yet stored");
}

#[test]
fn a_set_that_selects_on_the_role_label() {
    let selecting = set("pgset")
        .with("/spec/selector/matchLabels/pgset.dev~1role", json!("replica"))
        .with("/spec/template/metadata/labels/pgset.dev~1role", json!("replica"));
    refused(&selecting, &["spec.selector", "pgset.dev/role"]);
}

#[test]
fn the_articles_set_with_all_its_labels_in_the_selector() {
    let selecting = set("pgset")
        .with("/spec/selector/matchLabels/name", json!("pgset-replica"))
        .with("/spec/template/metadata/labels/name", json!("pgset-replica"));
    refused(&selecting, &["spec.selector", "name"]);
}

#[test]
fn a_set_without_a_volume_for_its_data() {
    let without = plain("pgset").annotation("pgset.dev/inject", "enabled");
    refused(&without, &["pgset.dev/claim", "add a volume", "mount it"]);
}

#[test]
fn a_shared_volume_with_one_sub_path_for_all_where_the_image_has_no_data() {
    let fixed = plain("pgset")
        .annotation("pgset.dev/inject", "enabled")
        .shared_volume("data", "shared", "/pgdata")
        .container("volumeMounts/0/subPath", json!("postgres"));
    refused(&fixed, &["subPath", "subPathExpr", "data"]);
}

#[test]
fn a_size_that_no_set_has() {
    let huge = set("pgset").replicas(2_000_000);
    refused(&huge, &["spec.replicas", "2000000", "100"]);
}

#[test]
fn the_service_name_of_another_set() {
    let other = set("pgset").with("/spec/serviceName", json!("victim-master"));
    refused(&other, &["spec.serviceName", "victim-master", "pgset-pods"]);
}

#[test]
fn an_annotation_of_ours_that_does_not_exist() {
    let misspelled = set("pgset").annotation("pgset.dev/replikas", "2");
    refused(&misspelled, &["pgset.dev/replikas"]);
}

#[test]
fn a_misspelled_switch_that_would_otherwise_do_nothing() {
    let misspelled = plain("pgset").annotation("pgset.dev/injekt", "enabled");
    refused(&misspelled, &["pgset.dev/injekt", "pgset.dev/inject"]);
}

#[test]
fn a_value_that_is_not_among_the_allowed() {
    let wrong = set("pgset").annotation("pgset.dev/failover", "sometimes");
    refused(&wrong, &["pgset.dev/failover", "sometimes", "automatic", "manual"]);
}

#[test]
fn two_containers_and_no_choice() {
    let two = set("pgset")
        .container("name", json!("one"))
        .pod("containers/-", json!({"name": "two", "image": "postgres:17", "ports": [{"containerPort": 5432}]}));
    refused(&two, &["pgset.dev/container", "one, two"]);
}

#[test]
fn a_claim_together_with_a_data_volume_of_its_own() {
    let both = set("pgset").own_volume("data", "/var/lib/postgresql/data");
    refused(&both, &["pgset.dev/claim", "data"]);
}

/// A set that is stored is not annotated, and the message holds all these words.
fn not_annotated(ran: &Set, words: &[&str]) {
    let lab = lab::shared();
    let ns = lab.empty_namespace("ran");
    ns.apply(&ran.manifest());
    let said = ns.try_kubectl("annotate statefulset pgset pgset.dev/inject=enabled").expect_err("not refused");
    for word in words {
        assert!(said.err.contains(word), "no {word:?} in: {}", said.err);
    }
    let object = ns.get("statefulset pgset");
    assert!(object["metadata"]["annotations"]["pgset.dev/inject"].is_null());
    assert_eq!(object["metadata"]["generation"], 1, "nothing was changed");
}

#[test]
fn annotating_a_set_whose_rows_the_restart_would_lose() {
    let on_empty_dir = plain("pgset")
        .container("volumeMounts/-", json!({"name": "data", "mountPath": "/var/lib/postgresql/data"}))
        .pod("volumes/-", json!({"name": "data", "emptyDir": {}}));
    not_annotated(&on_empty_dir, &["emptyDir", "pg_dumpall"]);
    let hidden = plain("pgset").own_volume("data", "/var/lib/postgresql");
    not_annotated(&hidden, &["/var/lib/postgresql/data", "in the container", "pg_dumpall"]);
}

#[test]
fn annotating_a_set_of_a_version_that_the_agent_cannot_run() {
    let old = plain("pgset").own_volume("data", "/var/lib/postgresql/data").container("image", json!("postgres:12"));
    not_annotated(&old, &["postgres:12", "13 or newer"]);
}

#[test]
fn annotating_several_servers_that_know_nothing_of_each_other() {
    let several = plain("pgset").replicas(3).own_volume("data", "/var/lib/postgresql/data");
    not_annotated(&several, &["3 servers", "--replicas=1"]);
}

#[test]
fn an_annotation_on_the_pod_template_is_warned_of() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("misplaced");
    let misplaced =
        plain("pgset").replicas(0).with("/spec/template/metadata/annotations/pgset.dev~1inject", json!("enabled"));
    let said = ns.apply(&misplaced.manifest());
    assert!(said.err.contains("Warning:") && said.err.contains("pgset.dev/inject"), "{}", said.err);
    assert!(said.err.contains("metadata.annotations"), "says where it goes: {}", said.err);
    assert!(ns.get("statefulset pgset")["spec"]["template"]["spec"]["initContainers"].is_null());
}

#[test]
fn a_volume_that_ends_with_the_pod_is_warned_of() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("fleeting");
    let fleeting = plain("pgset")
        .replicas(0)
        .annotation("pgset.dev/inject", "enabled")
        .container("volumeMounts/-", json!({"name": "data", "mountPath": "/var/lib/postgresql/data"}))
        .pod("volumes/-", json!({"name": "data", "emptyDir": {}}));
    let said = ns.apply(&fleeting.manifest());
    assert!(said.err.contains("Warning:") && said.err.contains("emptyDir"), "{}", said.err);
}
