//! What is applied stays applied: the same file again changes nothing.

use crate::{
    lab::{self, Namespace},
    manifests::{example, set},
};

/// What an apply must leave alone: the spec's generation, and the object as a whole.
fn version(ns: &Namespace<'_>) -> String {
    let metadata = &ns.get("statefulset pgset")["metadata"];
    format!("generation {}, annotations {}", metadata["generation"], metadata["annotations"])
}

/// `kubectl diff` ends with 1 where there is a difference.
fn assert_no_difference(ns: &Namespace<'_>, manifest: &str, flags: &[&str]) {
    let words = [&["diff", "-f", "-"], flags].concat();
    if let Err(said) = ns.try_kubectl_with(&words, Some(manifest)) {
        panic!("kubectl {}: exit code {:?}\n{}{}", words.join(" "), said.code, said.out, said.err);
    }
}

fn the_same_file_changes_nothing(theme: &str, flags: &[&str]) {
    let lab = lab::shared();
    let ns = lab.empty_namespace(theme);
    ns.shared_claim("pgset-pvc");
    // none of these tests looks at the pods
    let manifest = &example("pgset").replace("replicas: 2", "replicas: 0");
    let apply = |manifest: &str| {
        let words = [&["apply", "-f", "-"], flags].concat();
        ns.try_kubectl_with(&words, Some(manifest)).unwrap_or_else(|said| panic!("{}", said.err)).out
    };
    apply(manifest);
    let first = version(&ns);
    assert_no_difference(&ns, manifest, flags);
    let said = apply(manifest);
    if flags.is_empty() {
        assert_eq!(said, "statefulset.apps/pgset unchanged");
    }
    assert_eq!(version(&ns), first);
    assert_no_difference(&ns, manifest, flags);
}

#[test]
fn a_file_applied_twice_is_unchanged() {
    the_same_file_changes_nothing("apply-client", &[]);
}

#[test]
fn a_file_applied_twice_by_the_server_is_unchanged() {
    the_same_file_changes_nothing("apply-server", &["--server-side"]);
}

/// The file names no replicas, so their number is `kubectl scale`'s.
fn the_same_file_leaves_the_scale_alone(theme: &str, flags: &[&str]) {
    let lab = lab::shared();
    let ns = lab.namespace(theme);
    ns.shared_claim("pgset-pvc");
    let manifest = &example("pgset").replace("  replicas: 2\n", "");
    assert!(!manifest.contains("replicas"));
    let words = [&["apply", "-f", "-"], flags].concat();
    ns.try_kubectl_with(&words, Some(manifest)).unwrap_or_else(|said| panic!("{}", said.err));
    ns.wait_ready("pgset", 1);
    ns.kubectl("scale statefulset pgset --replicas=2");
    ns.wait_ready("pgset", 2);
    ns.database("pgset").wait_streaming(&["pgset-1"]);

    let scaled = version(&ns);
    assert_no_difference(&ns, manifest, flags);
    ns.try_kubectl_with(&words, Some(manifest)).unwrap_or_else(|said| panic!("{}", said.err));
    assert_eq!(version(&ns), scaled);
    assert_eq!(ns.get("statefulset pgset")["spec"]["replicas"], 2);
    assert_no_difference(&ns, manifest, flags);
}

#[test]
fn a_file_without_replicas_leaves_a_scaled_set_alone() {
    the_same_file_leaves_the_scale_alone("scale-client", &[]);
}

#[test]
fn a_file_without_replicas_leaves_a_scaled_set_alone_applied_by_the_server() {
    the_same_file_leaves_the_scale_alone("scale-server", &["--server-side"]);
}

#[test]
fn what_was_injected_is_stored_and_a_change_of_the_users_keeps_it() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("apply-change");
    ns.apply(&set("pgset").replicas(0).manifest());
    ns.apply(&set("pgset").replicas(0).env("POSTGRES_DB", "shop").manifest());
    let template = &ns.get("statefulset pgset")["spec"]["template"];
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["command"][0], "/pgset/pgset");
    let names: Vec<_> = container["env"].as_array().unwrap().iter().filter_map(|env| env["name"].as_str()).collect();
    for name in ["POSTGRES_DB", "PG_MODE", "PG_MASTER_HOST"] {
        assert_eq!(names.iter().filter(|other| **other == name).count(), 1, "{name} in {names:?}");
    }
    assert_eq!(template["metadata"]["labels"]["pgset.dev/role"], "replica");
}
