//! What happens to a set that is stored already: edits, upgrades, and the way out.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a test may stop where it fails

mod support;

use pgset::{
    inject::{Outcome, REVISION},
    set::{DataSource, Set},
};
use serde_json::{Value, json};
use support::{
    IMAGE, admitted, admitted_with, annotate, applied, ask, ask_with, container, defaulted, denied, ejected, golden,
    remove_annotation, stored,
};

fn warnings(outcome: &Outcome) -> &[String] {
    match outcome {
        Outcome::Untouched { warnings } | Outcome::Patched { warnings, .. } => warnings,
        Outcome::Denied { reason } => panic!("{reason}"),
    }
}

fn command(object: &Value, name: &str) -> Vec<String> {
    serde_json::from_value(container(&mut object.clone(), name)["command"].clone()).unwrap()
}

fn env<'a>(object: &'a Value, name: &str) -> Vec<&'a Value> {
    let env = object.pointer("/spec/template/spec/containers/0/env").and_then(Value::as_array).unwrap();
    env.iter().filter(|variable| variable["name"] == name).collect()
}

#[test]
fn a_stored_set_is_left_alone_when_nothing_of_ours_changes() {
    let old = stored(&golden("article.yaml"));
    let mut new = old.clone();
    new["spec"]["replicas"] = json!(5);
    new["metadata"]["labels"] = json!({ "team": "a" });
    annotate(&mut new, "pgset.dev/status", "{}");
    assert_eq!(ask(&new, Some(&old)), Outcome::Untouched { warnings: vec![] });
}

#[test]
fn injecting_the_stored_form_again_changes_nothing() {
    for name in ["article.yaml", "article-image.yaml", "example.yaml", "wild-probes-exec.yaml", "settings-all.yaml"] {
        let old = stored(&golden(name));
        assert!(matches!(ask(&old, None), Outcome::Untouched { .. }), "{name}");
        assert!(matches!(ask_with("other:2", &old, None), Outcome::Untouched { .. }), "{name}");
    }
}

#[test]
fn the_set_reads_the_same_before_and_after_the_injection() {
    for name in ["article.yaml", "article-image.yaml", "example.yaml", "wild-nfs.yaml", "settings-all.yaml"] {
        let own = golden(name);
        let set = Set::parse(&own).unwrap();
        assert_eq!(Set::parse(&stored(&own)).unwrap(), set, "{name}");
        assert!(Set::is_annotated(&own));
    }
}

#[test]
fn the_articles_set_is_understood() {
    let set = Set::parse(&golden("article.yaml")).unwrap();
    assert_eq!(set.role_label.key, "name");
    assert_eq!(set.role_label.replica, "pgset-replica");
    assert_eq!(set.service_account, "pgset-sa");
    assert_eq!(set.data, DataSource::Shared { volume: "pgdata".to_owned(), mount_path: "/pgdata".to_owned() });
    assert_eq!(set.members().collect::<Vec<_>>(), ["pgset-0", "pgset-1"]);
    let image = Set::parse(&golden("article-image.yaml")).unwrap();
    assert_eq!(image.data, DataSource::Own { volume: "pgdata".to_owned(), mount_path: "/pgdata".to_owned() });
}

#[test]
fn replacing_by_the_users_own_file_gives_the_same_bytes() {
    let own = defaulted(&golden("article.yaml"));
    let old = stored(&own);
    assert_eq!(defaulted(&admitted_with("other:2", &own, Some(&old)).unwrap()), old);
}

#[test]
fn a_new_pgset_keeps_the_image_that_the_set_is_pinned_to() {
    let old = stored(&golden("example.yaml"));
    let mut new = old.clone();
    annotate(&mut new, "pgset.dev/lease-seconds", "10");
    let new = admitted_with("other:2", &new, Some(&old)).unwrap();
    assert_eq!(new.pointer("/spec/template/spec/initContainers/0/image"), Some(&json!(IMAGE)));
    assert!(command(&new, "postgres").contains(&"--lease-seconds=10".to_owned()));
}

#[test]
fn a_revision_by_its_name_moves_a_set_to_it() {
    let mut pinned = golden("example.yaml");
    annotate(&mut pinned, "pgset.dev/revision", "0.1.0");
    let old = stored(&pinned);
    let mut new = old.clone();
    annotate(&mut new, "pgset.dev/revision", REVISION);
    let new = admitted_with("other:2", &new, Some(&old)).unwrap();
    assert_eq!(new.pointer("/spec/template/spec/initContainers/0/image"), Some(&json!("other:2")));
    assert_eq!(new["metadata"]["annotations"]["pgset.dev/revision"], REVISION);
    assert!(matches!(ask_with("third:3", &new, Some(&new)), Outcome::Untouched { .. }));
}

#[test]
fn changing_a_setting_touches_the_command_and_nothing_else_of_the_template() {
    let old = stored(&golden("wild-args.yaml"));
    let mut new = old.clone();
    annotate(&mut new, "pgset.dev/synchronous", "1");
    let Outcome::Patched { patch, .. } = ask(&new, Some(&old)) else { panic!() };
    let paths: Vec<_> = patch.0.iter().map(|operation| operation.path().as_str().to_owned()).collect();
    assert_eq!(paths, ["/spec/template/spec/containers/0/command"]);
}

#[test]
fn another_port_reaches_command_and_environment() {
    let old = stored(&golden("wild-single.yaml"));
    let mut new = old.clone();
    container(&mut new, "postgres")["ports"] = json!([{ "containerPort": 5433 }]);
    let new = admitted(&new, Some(&old));
    assert!(command(&new, "postgres").contains(&"--port=5433".to_owned()));
    assert_eq!(env(&new, "PG_MASTER_PORT"), [&json!({ "name": "PG_MASTER_PORT", "value": "5433" })]);
}

#[test]
fn a_command_that_the_user_writes_later_is_wrapped() {
    let old = stored(&golden("wild-single.yaml"));
    let mut new = old.clone();
    container(&mut new, "postgres")["command"] = json!(["postgres", "-c", "max_connections=300"]);
    let new = admitted(&new, Some(&old));
    assert!(command(&new, "postgres").ends_with(&["--", "postgres", "-c", "max_connections=300"].map(str::to_owned)));
    assert_eq!(container(&mut ejected(&new), "postgres")["command"], json!(["postgres", "-c", "max_connections=300"]));
}

#[test]
fn a_variable_that_the_user_writes_later_is_his() {
    let old = stored(&golden("wild-single.yaml"));
    let mut new = old.clone();
    for variable in container(&mut new, "postgres")["env"].as_array_mut().unwrap() {
        if variable["name"] == "PG_MASTER_USER" {
            variable["value"] = json!("repl");
        }
    }
    let new = admitted(&new, Some(&old));
    assert_eq!(env(&new, "PG_MASTER_USER"), [&json!({ "name": "PG_MASTER_USER", "value": "repl" })]);
    assert_eq!(env(&ejected(&new), "PG_MASTER_USER").len(), 1);
}

#[test]
fn a_probe_that_the_user_adds_later_is_his_without_a_rest_of_ours() {
    let old = stored(&golden("wild-single.yaml"));
    let mut new = old.clone();
    // What `kubectl apply` makes of an added probe: it merges.
    container(&mut new, "postgres")["readinessProbe"]["exec"] = json!({ "command": ["pg_isready"] });
    let mut new = admitted(&new, Some(&old));
    let probe = container(&mut new, "postgres")["readinessProbe"].clone();
    assert!(probe.get("httpGet").is_none(), "{probe}");
    assert_eq!(probe["exec"]["command"], json!(["pg_isready"]));
    assert!(matches!(ask(&new, Some(&old)), Outcome::Untouched { .. }));
}

#[test]
fn a_service_account_that_the_user_names_later_is_his() {
    let old = stored(&golden("wild-single.yaml"));
    let mut new = old.clone();
    new["spec"]["template"]["spec"]["serviceAccountName"] = json!("mine");
    new["spec"]["template"]["spec"]["serviceAccount"] = json!("mine");
    let new = admitted(&new, Some(&old));
    assert_eq!(new["spec"]["template"]["spec"]["serviceAccountName"], "mine");
    assert_eq!(ejected(&new)["spec"]["template"]["spec"]["serviceAccountName"], "mine");
}

#[test]
fn another_role_label_replaces_the_first() {
    let old = stored(&golden("wild-single.yaml"));
    let mut new = old.clone();
    annotate(&mut new, "pgset.dev/role-label", "example.com/role");
    let new = admitted(&new, Some(&old));
    let labels = &new["spec"]["template"]["metadata"]["labels"];
    let expected = json!({ "app": "postgres", "pgset.dev/set": "postgres", "example.com/role": "postgres-replica" });
    assert_eq!(labels, &expected);
}

#[test]
fn what_a_user_breaks_is_mended() {
    let old = stored(&golden("example.yaml"));
    let mut new = old.clone();
    new["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap().remove(0);
    new["spec"]["template"]["spec"]["initContainers"][0]["command"] = json!(["/bin/true"]);
    new["spec"]["template"]["metadata"]["labels"].as_object_mut().unwrap().shift_remove("pgset.dev/set");
    annotate(&mut new, "pgset.dev/injected", "nonsense");
    let mended = defaulted(&admitted(&new, Some(&old)));
    let mut expected = old.clone();
    // A volume's place in its list means nothing.
    let volumes = expected["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
    volumes.rotate_left(1);
    assert_eq!(mended, expected);
}

#[test]
fn one_replica_may_leave_and_gets_its_template_back() {
    let own = defaulted(&golden("wild-probes-exec.yaml"));
    let old = stored(&own);
    let mut new = old.clone();
    remove_annotation(&mut new, "pgset.dev/inject");
    annotate(&mut new, "pgset.dev/status", "{}");
    let Outcome::Patched { patch, .. } = ask(&new, Some(&old)) else { panic!() };
    let left = applied(&new, &patch);
    assert_eq!(left["spec"], own["spec"]);
    assert_eq!(left["metadata"]["annotations"], json!({}));
    new["spec"]["replicas"] = json!(2);
    assert_eq!(denied(&new, Some(&old)).code(), "still_running");
}

#[test]
fn a_variable_that_the_user_adds_later_is_his_though_it_comes_merged_with_ours() {
    let old = stored(&golden("claim-image.yaml"));
    let source = json!({"secretKeyRef": {"name": "own", "key": "user"}});
    for (name, field, value) in [("PG_ROOT_PASSWORD", "value", &json!("own")), ("PG_USER", "valueFrom", &source)] {
        let mut new = old.clone();
        let variables = new["spec"]["template"]["spec"]["containers"][0]["env"].as_array_mut().unwrap();
        variables.iter_mut().find(|variable| variable["name"] == name).unwrap()[field] = value.clone();
        assert_eq!(env(&admitted(&new, Some(&old)), name), [&json!({"name": name, field: value})]);
    }
}

#[test]
fn a_set_is_not_scaled_down_and_let_go_by_one_change() {
    let mut own = defaulted(&golden("wild-probes-exec.yaml"));
    own["spec"]["replicas"] = json!(2);
    let old = stored(&own);
    for replicas in [0, 1] {
        let mut new = old.clone();
        remove_annotation(&mut new, "pgset.dev/inject");
        new["spec"]["replicas"] = json!(replicas);
        let reason = denied(&new, Some(&old)).to_string();
        assert!(reason.contains("its 2 members") && reason.contains("--replicas=1"), "{reason}");
    }
}

#[test]
fn a_member_with_a_directory_of_its_own_leaves_only_when_it_does_not_run() {
    let own = defaulted(&golden("article.yaml"));
    let old = stored(&own);
    let mut new = old.clone();
    remove_annotation(&mut new, "pgset.dev/inject");
    new["spec"]["replicas"] = json!(1);
    let reason = denied(&new, Some(&old)).to_string();
    assert!(reason.contains("kubectl scale statefulset pgset --replicas=0"), "{reason}");
    new["spec"]["replicas"] = json!(0);
    let outcome = ask(&new, Some(&old));
    assert_eq!(warnings(&outcome).len(), 1);
    assert_eq!(admitted(&new, Some(&old))["spec"]["template"], own["spec"]["template"]);
}

#[test]
fn a_set_that_is_being_deleted_is_let_go() {
    let old = stored(&golden("article.yaml"));
    let mut new = old.clone();
    new["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    remove_annotation(&mut new, "pgset.dev/inject");
    assert_eq!(ask(&new, Some(&old)), Outcome::Untouched { warnings: vec![] });
}

#[test]
fn a_copy_under_another_name_becomes_a_set_of_its_own() {
    let mut copy = stored(&golden("example.yaml"));
    copy["metadata"]["name"] = json!("other");
    let copy = admitted(&copy, None);
    assert!(command(&copy, "postgres").contains(&"--master=other-master".to_owned()));
    assert_eq!(copy["spec"]["template"]["metadata"]["labels"]["pgset.dev/set"], "other");
    assert_eq!(copy["spec"]["template"]["spec"]["serviceAccountName"], "other-sa");
    assert_eq!(env(&copy, "PG_MASTER_HOST"), [&json!({ "name": "PG_MASTER_HOST", "value": "other-master" })]);
}

#[test]
fn an_injection_without_its_annotation_is_not_created() {
    let mut object = stored(&golden("example.yaml"));
    remove_annotation(&mut object, "pgset.dev/inject");
    assert_eq!(denied(&object, None).code(), "leftover");
}

#[test]
fn an_injection_without_its_record_is_not_created() {
    let mut object = stored(&golden("example.yaml"));
    remove_annotation(&mut object, "pgset.dev/injected");
    assert_eq!(denied(&object, None).code(), "reserved_name");
}

#[test]
fn a_forged_record_takes_out_nothing_but_pgsets_names() {
    let mut object = golden("wild-sidecar.yaml");
    let record = json!({
        "container": "postgres", "volumes": ["data"], "initContainers": ["exporter"], "command": true,
        "volumeMounts": ["/var/lib/postgresql/data"], "subPaths": ["/var/lib/postgresql/data"], "created": ["env", "labels"],
        "labels": { "app": "else" },
    });
    annotate(&mut object, "pgset.dev/injected", &record.to_string());
    assert_eq!(ejected(&object)["spec"], object["spec"]);
}

#[test]
fn another_container_takes_the_whole_injection_with_it() {
    let mut own = golden("wild-sidecar.yaml");
    container(&mut own, "exporter")["image"] = json!("postgres:16");
    let old = stored(&own);
    let mut new = old.clone();
    annotate(&mut new, "pgset.dev/container", "exporter");
    new["spec"]["replicas"] = json!(0);
    annotate(&mut new, "pgset.dev/volume", "data");
    let mut new = admitted(&new, Some(&old));
    assert!(container(&mut new, "postgres").get("command").is_none());
    assert!(container(&mut new, "postgres").get("env").is_none());
    assert!(command(&new, "exporter").contains(&"agent".to_owned()));
}

#[test]
fn another_contract_takes_the_agent_out() {
    let mut own = golden("article.yaml");
    own["spec"]["replicas"] = json!(0);
    let old = stored(&own);
    let mut new = old.clone();
    annotate(&mut new, "pgset.dev/contract", "image");
    let mut new = admitted(&new, Some(&old));
    assert!(new["spec"]["template"]["spec"].get("initContainers").is_none());
    assert!(container(&mut new, "pgset").get("command").is_none());
    assert_eq!(env(&new, "PGSET_POD_NAME").len(), 0);
    assert_eq!(env(&new, "CCP_NAMESPACE").len(), 1);
}

#[test]
fn the_init_containers_resources_follow_those_of_the_container() {
    let old = stored(&golden("resources.yaml"));
    let of_init = |object: &Value| object.pointer("/spec/template/spec/initContainers/0/resources").cloned();
    assert_eq!(
        of_init(&old),
        Some(
            json!({ "requests": { "cpu": "500m", "memory": "1Gi" }, "limits": { "memory": "1Gi", "ephemeral-storage": "2Gi" } })
        )
    );
    let mut new = old.clone();
    container(&mut new, "postgres")["resources"] = json!({ "requests": { "cpu": "250m" } });
    let fewer = admitted(&new, Some(&old));
    assert_eq!(of_init(&fewer), Some(json!({ "requests": { "cpu": "250m" } })), "what was taken out is gone");
    container(&mut new, "postgres").as_object_mut().unwrap().remove("resources");
    assert_eq!(of_init(&admitted(&new, Some(&fewer))), None);
}
