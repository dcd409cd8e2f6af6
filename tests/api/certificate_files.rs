//! Certificates from files, with an API server that verifies them; the test is the one who renews them and writes `caBundle`.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum_server::Handle;
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Service},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use pgset::{
    certs::{self, Files, Material, Report, Resolver},
    inject::Outcome,
    names::{self, annotation},
    webhook::{self, State, metrics::Metrics, server::Bound},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    certificates::until,
    harness::{Lab, PATIENCE, stateful_set, with_webhook},
};

/// A webhook with certificates from a directory, under a DNS name, beside the lab's own.
struct Beside {
    name: String,
    directory: tempfile::TempDir,
    reports: watch::Receiver<Report>,
    asked: Arc<AtomicUsize>,
    handle: Handle<SocketAddr>,
}

impl Beside {
    async fn start(lab: &Lab) -> Self {
        let name = format!("{}-files", lab.name);
        let (resolver, handle, asked) = (Arc::new(Resolver::new()), Handle::new(), Arc::new(AtomicUsize::new(0)));
        let bound = Bound::new(0).unwrap();
        let port = bound.address().port();
        let counted = asked.clone();
        let decide = move |_: &webhook::review::StatefulSets<'_>| {
            counted.fetch_add(1, Ordering::Relaxed);
            Outcome::Untouched { warnings: Vec::new() }
        };
        let router = webhook::router(State::new(decide, Arc::new(Metrics::new())));
        let serving = bound.serve_https(router, resolver.clone(), handle.clone());
        tokio::spawn(async move { serving.await.unwrap() });
        let directory = tempfile::tempdir().unwrap();
        let (report, reports) = watch::channel(Report::default());
        let settings = certs::Settings::new(&lab.name, &name);
        let files = Files::new(lab.client.clone(), directory.path().to_owned(), settings, resolver, report);
        tokio::spawn(async move { files.run().await.unwrap() });
        Self::configure(lab, &name, port).await;
        Self { name, directory, reports, asked, handle }
    }

    /// A configuration that calls a Service, as the shipped one does; the Service leads back to this machine.
    async fn configure(lab: &Lab, name: &str, port: u16) {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pgset-webhook"},
            "spec": {"type": "ExternalName", "externalName": lab.address.to_string()}});
        let service: Service = serde_json::from_value(service).unwrap();
        Api::namespaced(lab.client.clone(), &lab.name).create(&PostParams::default(), &service).await.unwrap();

        let found = lab.configurations().get(&lab.name).await.unwrap();
        // Whatever happens to the test: it goes with the lab's.
        let owner = json!([{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "name": lab.name, "uid": found.metadata.uid}]);
        let mut entry = serde_json::to_value(&found.webhooks.unwrap()[0]).unwrap();
        entry["clientConfig"] =
            json!({"service": {"namespace": lab.name, "name": "pgset-webhook", "path": "/mutate", "port": port}});
        let configuration: MutatingWebhookConfiguration =
            serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owner}, "webhooks": [entry]}))
                .unwrap();
        lab.configurations().create(&PostParams::default(), &configuration).await.unwrap();
    }

    fn put(&self, material: &Material) {
        let data = material.to_secret();
        for file in ["tls.crt", "tls.key", "ca.crt"] {
            fs::write(self.directory.path().join(file), &data[file].0).unwrap();
        }
    }

    /// What cert-manager's cainjector does.
    async fn inject_bundle(&self, lab: &Lab, bundle: &str) {
        let bundle = ByteString(bundle.as_bytes().to_vec());
        let patch = json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]);
        let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
        lab.configurations().patch(&self.name, &PatchParams::default(), &Patch::Json::<()>(patch)).await.unwrap();
    }

    async fn reports(&mut self, what: &str, condition: impl FnMut(&Report) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, self.reports.wait_for(condition)).await.map(drop);
        assert!(waited.is_ok(), "{what}: {:?}", self.reports.borrow());
    }

    fn was_asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn made(lab: &Lab, days_ago: u64) -> Material {
    let service = format!("pgset-webhook.{}.svc", lab.name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Material::new(&[service.clone(), format!("{service}.cluster.local")], now - days_ago * 24 * 60 * 60).unwrap()
}

#[tokio::test]
async fn the_api_server_trusts_what_the_files_hold_and_nothing_is_written_by_us() {
    with_webhook(async |lab| {
        let mut beside = Beside::start(&lab).await;
        let (first, second) = (made(&lab, 1), made(&lab, 0));
        let object = stateful_set(&json!({"metadata": {"annotations": {annotation::INJECT: "enabled"}}}));

        beside.put(&first);
        beside.reports("no caBundle", |report| report.leaf_ends == Some(first.leaf_ends())).await;
        let report = beside.reports.borrow().clone();
        assert!(report.trouble.as_deref().is_some_and(|trouble| trouble.contains("no caBundle yet")), "{report:?}");
        assert!(!report.in_sync && report.authority_ends == Some(first.authority_ends()), "{report:?}");

        beside.inject_bundle(&lab, first.bundle()).await;
        beside.reports("ready", |report| report.trouble.is_none() && report.in_sync).await;
        let asks = async || lab.dry_run(&object).await.is_ok() && beside.was_asked() > 0;
        until("the API server accepts an authority that is limited to the DNS names", asks).await;

        // New files, the old bundle: the old certificate is as good as before.
        beside.put(&second);
        for _ in 0..50 {
            lab.dry_run(&object).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(beside.reports.borrow().leaf_ends, Some(first.leaf_ends()), "it waits for the bundle");
        beside.inject_bundle(&lab, &(second.bundle().to_owned() + first.bundle())).await;
        beside.reports("the new one is served", |report| report.leaf_ends == Some(second.leaf_ends())).await;
        assert_eq!(beside.reports.borrow().trouble, None);
        let before = beside.was_asked();
        let asks = async || lab.dry_run(&object).await.is_ok() && beside.was_asked() > before;
        until("the API server accepts the new certificate", asks).await;

        let found = lab.configurations().get(&beside.name).await.unwrap();
        let managers: Vec<_> = found.metadata.managed_fields.unwrap().into_iter().filter_map(|it| it.manager).collect();
        assert!(!managers.iter().any(|manager| manager.starts_with("pgset-")), "{managers:?}");
        beside.handle.shutdown();
    })
    .await;
}

#[test]
fn the_overlay_for_cert_manager_fits_together() {
    let overlay = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs/cert-manager");
    let output = Command::new("kubectl").arg("kustomize").arg(&overlay).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let objects: Vec<Value> = serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap();
    let find = |kind: &str, name: &str| {
        objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    };

    let settings = certs::Settings::new("pgset-system", names::WEBHOOK_CONFIGURATION);
    let certificate = find("Certificate", "pgset-webhook").unwrap();
    assert_eq!(certificate["spec"]["dnsNames"], json!(settings.names));
    assert_ne!(certificate["spec"]["secretName"], json!(settings.secret), "pgset's own Secret is not touched");

    let pod = &find("Deployment", "pgset-webhook").unwrap()["spec"]["template"]["spec"];
    let mount = &pod["containers"][0]["volumeMounts"][0];
    let arguments = pod["containers"][0]["args"].as_array().unwrap();
    let flag = format!("--certificate-directory={}", mount["mountPath"].as_str().unwrap());
    assert!(arguments.contains(&json!("serve")) && arguments.contains(&json!(flag)), "{arguments:?}");
    assert_eq!(pod["volumes"][0]["secret"]["secretName"], certificate["spec"]["secretName"]);
    assert_eq!(pod["volumes"][0]["name"], mount["name"]);

    let configuration = find("MutatingWebhookConfiguration", "pgset").unwrap();
    let annotations = &configuration["metadata"]["annotations"];
    assert_eq!(annotations["cert-manager.io/inject-ca-from"], "pgset-system/pgset-webhook");
    assert_eq!(annotations["admissions.enforcer/disabled"], "true", "those that were there stay");
    assert!(find("Role", "pgset-webhook").is_none() && find("RoleBinding", "pgset-webhook").is_none());
    let rules = &find("ClusterRole", "pgset-webhook").unwrap()["rules"];
    assert_eq!(rules[0]["verbs"], json!(["get", "list", "watch"]), "it writes nothing");
}
