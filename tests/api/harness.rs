//! A namespace, a webhook in this process, and a configuration that sends the namespace's `StatefulSets` to it.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum_server::Handle;
use futures::FutureExt as _;
use http_body_util::BodyExt as _;
use k8s_openapi::api::{
    admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    },
    apps::v1::StatefulSet,
    core::v1::Namespace,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use pgset::{
    certs::{self, CertificateRotator, Report, Resolver},
    cli::install,
    inject, names,
    webhook::{self, State, metrics::Metrics, server::Bound},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

/// How long anything may take that should take moments.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A webhook that the API server calls.
pub struct Lab {
    pub client: Client,
    /// The namespace, and the name of the webhook configuration.
    pub name: String,
    /// The names of the objects that the API server asked about.
    asked: Arc<Mutex<Vec<String>>>,
    /// Of each replica.
    pub reports: Vec<watch::Receiver<Report>>,
    pub address: IpAddr,
    pub kubeconfig: PathBuf,
    /// The agent's image that the webhook gives to new sets.
    image: Arc<Mutex<String>>,
    tasks: Vec<JoinHandle<()>>,
    handles: Vec<Handle<SocketAddr>>,
}

/// Runs a test with a webhook of its own, and cleans up however it ends.
pub async fn with_webhook(test: impl AsyncFnOnce(Arc<Lab>)) {
    let lab = Arc::new(Lab::start().await);
    let ready_and_test = async {
        lab.ready().await;
        test(lab.clone()).await;
    };
    let outcome = AssertUnwindSafe(ready_and_test).catch_unwind().await;
    lab.clean_up().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

impl Lab {
    async fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = ["PGSET_KUBECONFIG", "KUBECONFIG"].iter().find_map(std::env::var_os).map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/lab/kubeconfig")),
            PathBuf::from,
        );
        let read =
            Kubeconfig::read_from(&kubeconfig).unwrap_or_else(|error| panic!("{}: {error}", kubeconfig.display()));
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
        let api_server = (config.cluster_url.host().unwrap().to_owned(), config.cluster_url.port_u16().unwrap_or(443));
        let client = Client::try_from(config).unwrap();

        // The address of this machine on the way to the API server is the one on the way back.
        let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
        probe.connect(api_server).unwrap();
        let address = probe.local_addr().unwrap().ip();

        let name = format!("pgset-api-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // They are kept from the pgset that may be installed in the cluster.
        let labels = Some([(names::label::WEBHOOK.to_owned(), "disabled".to_owned())].into());
        for name in [name.clone(), plain(&name)] {
            let metadata = ObjectMeta { name: Some(name), labels: labels.clone(), ..ObjectMeta::default() };
            let namespace = Namespace { metadata, ..Namespace::default() };
            Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        }

        let mut lab = Self {
            client,
            name,
            asked: Arc::default(),
            reports: Vec::new(),
            address,
            kubeconfig,
            image: Arc::new(Mutex::new(names::IMAGE.to_owned())),
            tasks: Vec::new(),
            handles: Vec::new(),
        };
        // The API server calls the first. Two of them see to it that they agree.
        let port = lab.add_replica();
        lab.add_replica();
        let configuration = lab.configuration(port);
        Api::<MutatingWebhookConfiguration>::all(lab.client.clone())
            .create(&PostParams::default(), &configuration)
            .await
            .unwrap();
        lab
    }

    /// Starts what `pgset serve` starts, but for the controller. Tells the port.
    fn add_replica(&mut self) -> u16 {
        let (asked, image) = (self.asked.clone(), self.image.clone());
        let decide = move |sets: &webhook::review::StatefulSets<'_>| {
            asked.lock().unwrap().push(sets.object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
            webhook::by_injection(inject::Settings { agent_image: image.lock().unwrap().clone() })(sets)
        };
        let router = webhook::router(State::new(decide, Arc::new(Metrics::new())));
        let (resolver, handle) = (Arc::new(Resolver::new()), Handle::new());
        let (report, reports) = watch::channel(Report::default());
        let bound = Bound::new(0).unwrap();
        let port = bound.address().port();
        let settings = certs::Settings {
            namespace: self.name.clone(),
            secret: names::CERTIFICATES_SECRET.to_owned(),
            configuration: self.name.clone(),
            names: vec![self.address.to_string()],
        };
        let upkeep = CertificateRotator::new(self.client.clone(), settings, resolver.clone(), report);
        self.handles.push(handle.clone());
        self.reports.push(reports);
        self.tasks.push(tokio::spawn(async move { bound.serve_https(router, resolver, handle).await.unwrap() }));
        self.tasks.push(tokio::spawn(async move { upkeep.run().await.unwrap() }));
        port
    }

    /// The shipped configuration, for this namespace and this machine, with a second entry beside it.
    fn configuration(&self, port: u16) -> MutatingWebhookConfiguration {
        let mut shipped = shipped().pop().unwrap();
        shipped["metadata"]["name"] = json!(self.name);
        let entry = &mut shipped["webhooks"][0];
        entry["clientConfig"] =
            json!({"url": format!("https://{}:{port}/mutate", SocketAddr::new(self.address, port).ip())});
        let expressions = entry["namespaceSelector"]["matchExpressions"].as_array_mut().unwrap();
        expressions.retain(|expression| expression["key"] != names::label::WEBHOOK);
        expressions.push(json!({"key": "kubernetes.io/metadata.name", "operator": "In", "values": [self.name]}));
        // It matches nothing: it is there to have its caBundle kept.
        let mut second = entry.clone();
        second["name"] = json!("second.pgset.dev");
        second["matchConditions"] = json!([{"name": "never", "expression": "false"}]);
        shipped["webhooks"].as_array_mut().unwrap().push(second);
        serde_json::from_value(shipped).unwrap()
    }

    /// The shipped policies, for this namespace alone, in force as soon as they have been seen to deny something.
    pub async fn apply_policies(&self) {
        self.keep_parameters().await;
        for mut policy in shipped() {
            // Those that bind pgset's own accounts are another test's: they know no namespace.
            if [names::WEBHOOK, names::CONTROLLER].iter().any(|account| policy["metadata"]["name"] == *account) {
                continue;
            }
            let path = match policy["kind"].as_str() {
                Some("ValidatingAdmissionPolicy") => {
                    let expressions = &mut policy["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"];
                    *expressions =
                        json!([{"key": "kubernetes.io/metadata.name", "operator": "In", "values": [self.name]}]);
                    "validatingadmissionpolicies"
                }
                Some("ValidatingAdmissionPolicyBinding") => {
                    policy["spec"]["policyName"] = json!(self.policy(policy["spec"]["policyName"].as_str().unwrap()));
                    "validatingadmissionpolicybindings"
                }
                _ => continue,
            };
            policy["metadata"]["name"] = json!(self.policy(policy["metadata"]["name"].as_str().unwrap()));
            self.send("POST", &format!("/apis/admissionregistration.k8s.io/v1/{path}"), &policy).await.unwrap();
        }
        // Of each policy something that it denies.
        let pod = json!({"metadata": {"name": "canary", "labels": {names::label::SET: "nobody"}},
            "spec": {"containers": [{"name": "a", "image": "a"}]}});
        let mut set = stateful_set(
            &json!({"metadata": {"name": "canary", "annotations": {names::annotation::INJECT: "enabled"}}}),
        );
        set["spec"]["template"]["spec"]["containers"][0]["env"] =
            json!([{"name": "PGSET_POD_NAME", "value": "another"}]);
        let role =
            json!({"metadata": {"name": "canary", "labels": {names::label::ROLE: "master"}}, "spec": pod["spec"]});
        let canaries = [("/api/v1", "pods", &pod), ("/api/v1", "pods", &role), ("/apis/apps/v1", "statefulsets", &set)];
        for (path, object) in canaries
            .map(|(group, kind, object)| (format!("{group}/namespaces/{}/{kind}?dryRun=All", self.name), object))
        {
            eventually(&path, async || match self.send("POST", &path, object).await {
                Err(status) if status.message.contains("denied") => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
        }
    }

    /// An API server that has had a policy with sets as parameters, and then none, hears of no new set ever after: so there is one
    /// from the first test to the last, which matches nothing.
    async fn keep_parameters(&self) {
        const NAME: &str = "pgset-api-keeps-parameters";
        for mut object in shipped().into_iter().filter(|object| object["metadata"]["name"] == "pgset-owners") {
            let is_policy = object["kind"] == "ValidatingAdmissionPolicy";
            object["metadata"]["name"] = json!(NAME);
            let path = if is_policy {
                object["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"] =
                    json!([{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["nowhere"]}]);
                "validatingadmissionpolicies"
            } else {
                object["spec"]["policyName"] = json!(NAME);
                "validatingadmissionpolicybindings"
            };
            match self.send("POST", &format!("/apis/admissionregistration.k8s.io/v1/{path}"), &object).await {
                Ok(_) => {}
                Err(status) => assert_eq!(status.code, 409, "{}", status.message),
            }
        }
    }

    /// What one of the shipped policies is called here.
    fn policy(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    /// The same cluster, as a user of these groups.
    pub async fn client_as(&self, user: &str, groups: &[&str]) -> Client {
        let read = Kubeconfig::read_from(&self.kubeconfig).unwrap();
        let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(groups.iter().map(|&group| group.to_owned()).collect());
        Client::try_from(config).unwrap()
    }

    /// Until every replica says that API servers trust it, and the API server has seen it too.
    pub async fn ready(&self) {
        for reports in &self.reports {
            let mut reports = reports.clone();
            let ready = reports.wait_for(|report| report.trouble.is_none());
            assert!(tokio::time::timeout(PATIENCE, ready).await.is_ok(), "{:?}", self.reports);
        }
        // A configuration takes the API server a moment.
        let canary = json!({"metadata": {"name": "canary", "annotations": {"pgset.dev/canary": ""}}});
        let what = format!("the API server of {} asks the webhook at {}", self.kubeconfig.display(), self.address);
        eventually(&what, async || {
            let answer = self.dry_run(&stateful_set(&canary)).await;
            if self.was_asked("canary") {
                Ok(())
            } else {
                Err(format!("{:?}", answer.err().map(|status| status.message)))
            }
        })
        .await;
    }

    pub fn was_asked(&self, name: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked == name)
    }

    /// From now on the webhook is one that was installed with another image.
    pub fn upgrade(&self, image: &str) {
        image.clone_into(&mut self.image.lock().unwrap());
    }

    pub fn sets(&self) -> Api<StatefulSet> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub fn configurations(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    /// A namespace where the API server asks nobody.
    pub fn plain(&self) -> String {
        plain(&self.name)
    }

    /// Creates without storing: what would be stored and the warnings, or the error.
    pub async fn dry_run(&self, object: &Value) -> Result<(Value, Vec<String>), kube::core::Status> {
        self.dry_run_in(&self.name, object).await
    }

    /// The same in another namespace.
    pub async fn dry_run_in(
        &self,
        namespace: &str,
        object: &Value,
    ) -> Result<(Value, Vec<String>), kube::core::Status> {
        self.send("POST", &format!("/apis/apps/v1/namespaces/{namespace}/statefulsets?dryRun=All"), object).await
    }

    /// One request, with the warnings that kube's own methods drop.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        object: &Value,
    ) -> Result<(Value, Vec<String>), kube::core::Status> {
        let request = axum::http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(kube::client::Body::from(object.to_string().into_bytes()))
            .unwrap();
        let response = self.client.send(request).await.unwrap();
        let ok = response.status().is_success();
        let warnings = response.headers().get_all("warning").iter().map(|warning| {
            // 299 - "the text"
            warning.to_str().unwrap().trim_start_matches("299 - ").trim_matches('"').replace("\\\"", "\"")
        });
        let warnings = warnings.collect();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        if ok {
            Ok((serde_json::from_slice(&body).unwrap(), warnings))
        } else {
            Err(serde_json::from_slice(&body).unwrap())
        }
    }

    async fn clean_up(&self) {
        let now = DeleteParams::background();
        let _ = self.configurations().delete(&self.name, &now).await;
        for policy in shipped().iter().filter(|object| object["kind"] == "ValidatingAdmissionPolicy") {
            let policy = self.policy(policy["metadata"]["name"].as_str().unwrap());
            let _ = Api::<ValidatingAdmissionPolicyBinding>::all(self.client.clone()).delete(&policy, &now).await;
            let _ = Api::<ValidatingAdmissionPolicy>::all(self.client.clone()).delete(&policy, &now).await;
        }
        for name in [&self.name, &self.plain()] {
            let _ = Api::<Namespace>::all(self.client.clone()).delete(name, &now).await;
        }
        self.handles.iter().for_each(Handle::shutdown);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What two objects of different namespaces have in common if they are the same.
pub fn essence(stored: &Value) -> Value {
    let metadata = &stored["metadata"];
    json!({"annotations": metadata["annotations"], "labels": metadata["labels"], "spec": stored["spec"]})
}

/// Looks until there is something to see, and says what was seen last if there never is.
pub async fn eventually<T>(what: &str, look: impl AsyncFn() -> Result<T, String>) -> T {
    let last = Mutex::new(String::new());
    let seen = async {
        loop {
            match look().await {
                Ok(seen) => return seen,
                Err(other) => *last.lock().unwrap() = other,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let seen = tokio::time::timeout(PATIENCE, seen).await;
    seen.unwrap_or_else(|_| panic!("{what}: not in time; last seen: {}", last.lock().unwrap()))
}

/// The objects that `pgset install` prints, in its order: the webhook's configuration is the last.
pub fn shipped() -> Vec<Value> {
    let image: install::Image = names::IMAGE.parse().unwrap();
    serde_saphyr::from_multiple(&install::manifests(&image, &image)).unwrap()
}

fn plain(name: &str) -> String {
    format!("{name}-plain")
}

/// A `StatefulSet` with what it needs to be valid, and other fields merged over it.
pub fn stateful_set(fields: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {
            "serviceName": "db", "replicas": 0, "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [{
                    "name": "postgres", "image": "postgres:17",
                    "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}]
                }]}
            },
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]
        }
    });
    json_patch::merge(&mut object, fields);
    object
}
