//! pgset's own pods are replaced while users go on applying sets.

use std::time::Duration;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{
    lab::{self, Namespace, START, kubeconfig, same, wait_until},
    manifests::set,
    pace::Load,
};

const SYSTEM: &str = "--namespace pgset-system";

#[test]
fn both_pods_are_replaced_under_a_hundred_admissions_a_second_and_none_fails() {
    let lab = lab::alone();
    let ns = lab.empty_namespace("load");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let object = serde_json::from_str(&set("pgset").manifest()).unwrap();
    let client = runtime.block_on(client());
    let load = runtime.block_on(async { Load::start(&client, &ns.name, &object) });

    // An upgrade, as `kubectl apply` of another version.
    ns.kubectl(&format!("rollout restart deployment/pgset-webhook {SYSTEM}"));
    ns.kubectl(&format!("rollout status deployment/pgset-webhook --timeout={}s {SYSTEM}", START.as_secs()));
    wait_until(START, "two pods, the new ones", || same(pods(&ns).len(), &2));

    // A node that is drained, and then the other.
    for pod in pods(&ns) {
        ns.kubectl(&format!("delete pod {pod} --timeout=60s {SYSTEM}"));
        ns.kubectl(&format!("rollout status deployment/pgset-webhook --timeout={}s {SYSTEM}", START.as_secs()));
    }
    std::thread::sleep(Duration::from_secs(2)); // of load on the last ones

    runtime.block_on(load.stop()).assert_perfect();
}

fn pods(ns: &Namespace<'_>) -> Vec<String> {
    let list =
        ns.get(&format!("pods --selector=app.kubernetes.io/name=pgset,app.kubernetes.io/component=webhook {SYSTEM}"));
    list["items"].as_array().unwrap().iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

async fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let read = Kubeconfig::read_from(kubeconfig()).unwrap();
    Client::try_from(Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap()).unwrap()
}
