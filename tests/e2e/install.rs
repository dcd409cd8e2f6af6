//! How pgset stands in the cluster.

use std::process::Command;

use serde_json::Value;

use crate::lab::{self, START, same, wait_until};

/// The objects of a manifest, sorted, as the client reads them.
pub fn objects(manifest: &str) -> Vec<Value> {
    let words = ["create", "--dry-run=client", "--validate=false", "--output=json", "--filename=-"];
    let said = lab::run(lab::kubectl().args(words), Some(manifest)).unwrap_or_else(|said| panic!("{}", said.err));
    let mut objects: Vec<Value> = serde_json::Deserializer::from_str(&said.out)
        .into_iter::<Value>()
        .map(Result::unwrap)
        .flat_map(|object| match object["items"].as_array() {
            Some(items) => items.clone(),
            None => vec![object],
        })
        .collect();
    objects.sort_by_key(|object| format!("{} {}", object["kind"], object["metadata"]["name"]));
    objects
}

#[test]
fn two_pods_of_each_serve_at_the_restricted_level() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("install");
    let system = ns.get("namespace pgset-system");
    assert_eq!(system["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
    let deployments = ns.get("deployments --namespace pgset-system");
    let ready: u64 = deployments["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|deployment| deployment["status"]["readyReplicas"].as_u64().unwrap_or(0))
        .sum();
    assert_eq!(ready, 4);
}

#[test]
fn what_is_outside_of_the_namespace_goes_with_it() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("owned");
    let uid = ns.get("namespace pgset-system")["metadata"]["uid"].clone();
    for object in [
        "mutatingwebhookconfiguration pgset",
        "validatingadmissionpolicy pgset-injection",
        "validatingadmissionpolicybinding pgset-injection",
        "validatingadmissionpolicy pgset-members",
        "validatingadmissionpolicybinding pgset-members",
        "validatingadmissionpolicy pgset-roles",
        "validatingadmissionpolicybinding pgset-roles",
        "validatingadmissionpolicy pgset-owners",
        "validatingadmissionpolicy pgset-size",
        "validatingadmissionpolicy pgset-controller",
        "validatingadmissionpolicy pgset-webhook",
    ] {
        wait_until(START, object, || same(ns.get(object)["metadata"]["ownerReferences"][0]["uid"].clone(), &uid));
    }
}

#[test]
fn the_command_and_the_folder_install_the_same() {
    let _lab = lab::shared();
    let printed = lab::run(Command::new(env!("CARGO_BIN_EXE_pgset")).arg("install"), None).unwrap().out;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
    let folder = lab::run(lab::kubectl().args(["kustomize", folder]), None).unwrap().out;
    let (printed, folder) = (objects(&printed), objects(&folder));
    let names = |objects: &[Value]| -> Vec<String> {
        objects.iter().map(|object| format!("{} {}", object["kind"], object["metadata"]["name"])).collect()
    };
    assert_eq!(names(&printed), names(&folder));
    for (printed, folder) in printed.iter().zip(&folder) {
        assert_eq!(printed, folder);
    }
}
