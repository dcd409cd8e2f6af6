//! One name leads from the API server's audit log to the line that pgset logged.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pgset::names::annotation;
use serde_json::{Value, json};

use super::harness::{PATIENCE, stateful_set, with_webhook};

/// What this process logs while a test runs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The lines about a set of a namespace.
    fn reviewed(&self, namespace: &str, name: &str) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["namespace"] == namespace && line["name"] == name).collect()
    }
}

#[tokio::test]
async fn the_audit_log_and_ours_name_a_request_alike() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone());
    let _logged = tracing::subscriber::set_default(subscriber.finish());
    with_webhook(async |lab| {
        let set = |name: &str, failover: &str| {
            let annotations = json!({annotation::INJECT: "enabled", annotation::FAILOVER: failover});
            stateful_set(&json!({"metadata": {"name": name, "annotations": annotations}}))
        };
        lab.dry_run(&set("taken", "manual")).await.unwrap();
        lab.dry_run(&set("denied", "sometimes")).await.unwrap_err();

        for (name, decision) in [("taken", "injected"), ("denied", "denied")] {
            // The API server may ask twice about one request, and names each time anew.
            let ours = log.reviewed(&lab.name, name);
            let started = Instant::now();
            let annotations = loop {
                let found = audit_annotations(&lab.audit_log(), &ours);
                if let Some(found) = found {
                    break found;
                }
                assert!(started.elapsed() < PATIENCE, "no event of {ours:?} in {}", lab.audit_log().display());
                tokio::time::sleep(Duration::from_millis(200)).await;
            };
            assert_eq!(annotations["inject.pgset.dev/decision"], decision);
        }
    })
    .await;
}

/// The annotations of the event that names one of our requests.
fn audit_annotations(log: &std::path::Path, ours: &[Value]) -> Option<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
    let events = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut annotations = events.map(|mut event| event["annotations"].take());
    annotations.find(|found| ours.iter().any(|line| line["uid"] == found["inject.pgset.dev/request"]))
}
