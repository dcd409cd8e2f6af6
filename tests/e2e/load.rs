//! pgset's own pods are replaced while users go on applying sets.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

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

/// As many as a pod of anybody's can hold open, and more than each port of pgset has places.
const IDLE: usize = 1100;

#[test]
fn thousands_of_idle_connections_restart_nothing_and_hold_up_no_admission() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("idle");
    let before = restarts(&ns);
    let mut held = Vec::new();
    for address in before.iter().map(|(_, address, _)| address) {
        for port in [8080, 8081, 8443] {
            let address = format!("{address}:{port}").parse().unwrap();
            // The controller has but one of these ports. Whoever is not let in comes again.
            held.extend((0..IDLE).map_while(|_| TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()));
        }
    }
    assert!(held.len() > 6 * IDLE, "{} connections", held.len());
    // Three liveness probes that fail in a row, ten seconds apart, would restart a container; a fourth is for good measure.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(40) {
        let asked = Instant::now();
        ns.kubectl("create --dry-run=server --filename=deploy/examples/pgset.yaml");
        assert!(asked.elapsed() < Duration::from_secs(5), "an admission took {:?}", asked.elapsed());
        std::thread::sleep(Duration::from_secs(1));
    }
    drop(held);
    assert_eq!(restarts(&ns), before);
}

/// Name, address and restarts of pgset's pods.
fn restarts(ns: &Namespace<'_>) -> Vec<(String, String, u64)> {
    let list = ns.get(&format!("pods --selector=app.kubernetes.io/name=pgset {SYSTEM}"));
    let text = |pod: &Value, pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
    let read = |pod: &Value| {
        let status = &pod["status"]["containerStatuses"][0];
        assert_eq!(status["ready"], true, "{pod}");
        let restarts = status["restartCount"].as_u64().unwrap();
        (text(pod, "/metadata/name"), text(pod, "/status/podIP"), restarts)
    };
    list["items"].as_array().unwrap().iter().map(read).collect()
}
