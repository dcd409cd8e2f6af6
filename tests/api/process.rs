//! `pgset serve webhook` as a process: how it stops while the API server asks a hundred times a second.
//!
//! It looks after cluster-wide objects of fixed names, so the test has a control plane of its own. What Services and kube-proxy
//! do for a pod, a forwarder on the loopback does for the process: when its target changes, connections that are open stay where
//! they are, as they do in the kernel's connection tracking.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    apps::v1::StatefulSet,
    core::v1::{Namespace, Service},
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgset::names::{self, annotation};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::{
    harness::{PATIENCE, shipped, stateful_set},
    pace::Load,
};

/// How long a process that was told to stop may take: 10 s of grace, and what is open then.
const STOPPING: Duration = Duration::from_secs(30);

/// How long after a pod's end has begun kube-proxy still sends connections to it: it looks once a second, if it is given the time.
const LAG: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_are_replaced_under_load_and_no_admission_fails() {
    let cluster = Cluster::start().await;
    let mut old = Process::start(&cluster.kubeconfig);
    cluster.forward_to(&old);
    old.until_ready().await;
    let object = stateful_set(&json!({"metadata": {"annotations": {annotation::INJECT: "enabled"}}}));
    cluster.until_injected(&object).await;
    let load = Load::start(&cluster.client, "default", &object);

    for _ in 0..2 {
        let new = Process::start(&cluster.kubeconfig);
        new.until_ready().await;
        let told = Instant::now();
        old.signal(Signal::SIGTERM);
        old.until_not_ready().await;
        let unready = told.elapsed();
        assert!(unready < Duration::from_secs(4), "readiness fails first, not after {unready:?}");
        tokio::time::sleep(LAG).await;
        assert!(old.serves().await, "new connections are taken for a while");
        cluster.forward_to(&new);
        let status = old.ended().await;
        assert!(status.success(), "{status}\n{}", old.log());
        eprintln!("not ready after {unready:.1?}, gone after {:.1?}", told.elapsed());
        old = new;
    }
    tokio::time::sleep(Duration::from_secs(1)).await; // of load on the last one
    load.stop().await.assert_perfect();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once() {
    let cluster = Cluster::start().await;
    let mut process = Process::start(&cluster.kubeconfig);
    cluster.forward_to(&process);
    process.until_ready().await;
    process.signal(Signal::SIGTERM);
    process.until_not_ready().await;
    let told = Instant::now();
    process.signal(Signal::SIGTERM);
    let status = process.ended().await;
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}\n{}", told.elapsed(), process.log());
    assert_eq!(status.code(), Some(1), "{}", process.log());
    assert!(process.log().contains("second signal"), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_id_leads_from_the_audit_log_to_the_line_in_our_log() {
    let cluster = Cluster::start().await;
    let process = Process::start(&cluster.kubeconfig);
    cluster.forward_to(&process);
    process.until_ready().await;
    let set = |inject| stateful_set(&json!({"metadata": {"annotations": {annotation::INJECT: inject}}}));
    cluster.until_injected(&set("enabled")).await;

    let sets: Api<StatefulSet> = Api::namespaced(cluster.client.clone(), "default");
    let wrong: StatefulSet = serde_json::from_value(set("hunter2")).unwrap();
    let denied = sets.create(&PostParams::default(), &wrong).await.unwrap_err().to_string();
    assert!(denied.contains("hunter2"), "the user is told: {denied}");

    let (audited, reason) = cluster.audited_denial().await;
    let log = process.log();
    let line = log.lines().find(|line| line.contains(&audited)).unwrap_or_else(|| panic!("no {audited} in\n{log}"));
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&line["span"]["uid"], &line["decision"], &line["reason"]),
        (&json!(audited), &json!("denied"), &json!(reason)),
        "{line}"
    );
    let about = (&line["span"]["namespace"], &line["span"]["set"]);
    assert_eq!(about, (&json!("default"), &json!("db")), "{line}");
    assert!(!log.contains("hunter2"), "nothing of the object is logged:\n{log}");
}

// === the cluster ===

/// A control plane, gone when this is dropped, that finds the webhook behind a forwarder.
struct Cluster {
    folder: tempfile::TempDir,
    kubeconfig: PathBuf,
    client: Client,
    target: Arc<AtomicU16>,
}

impl Cluster {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        // From here on its end takes the processes with it.
        let made = tokio::task::block_in_place(|| control_plane("up", folder.path()));
        let kubeconfig = folder.path().join("kubeconfig");
        let target = Arc::new(AtomicU16::new(0));
        let forwarder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = forwarder.local_addr().unwrap().port();
        tokio::spawn(forward(forwarder, target.clone()));
        assert!(made, "no control plane");
        let read = Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
        let cluster = Self { folder, kubeconfig, client: Client::try_from(config).unwrap(), target };
        cluster.install(port).await;
        cluster
    }

    /// What of pgset's installation matters here: the webhook's configuration, and a Service that leads to the forwarder.
    async fn install(&self, port: u16) {
        let parameters = PostParams::default();
        let mut configuration = shipped().pop().unwrap();
        configuration["webhooks"][0]["clientConfig"]["service"]["port"] = json!(port);
        let namespace = json!({"metadata": {"name": names::SYSTEM_NAMESPACE}});
        let service = json!({
            "metadata": {"name": names::WEBHOOK_SERVICE, "namespace": names::SYSTEM_NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "127.0.0.1"},
        });
        let client = || self.client.clone();
        let namespace: Namespace = serde_json::from_value(namespace).unwrap();
        Api::all(client()).create(&parameters, &namespace).await.unwrap();
        let service: Service = serde_json::from_value(service).unwrap();
        Api::namespaced(client(), names::SYSTEM_NAMESPACE).create(&parameters, &service).await.unwrap();
        let configuration: MutatingWebhookConfiguration = serde_json::from_value(configuration).unwrap();
        Api::all(client()).create(&parameters, &configuration).await.unwrap();
    }

    /// From now on, new connections lead there.
    fn forward_to(&self, process: &Process) {
        self.target.store(process.https, Ordering::Relaxed);
    }

    /// Until the API server knows the webhook and trusts it.
    async fn until_injected(&self, object: &Value) {
        let started = Instant::now();
        loop {
            let load = Load::start(&self.client, "default", object);
            tokio::time::sleep(Duration::from_millis(200)).await;
            let tally = load.stop().await;
            if tally.answered > 0 && tally.failures.is_empty() {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "the API server does not ask the webhook: {:?}", tally.failures);
        }
    }
}

impl Cluster {
    /// The id and the reason that the API server's audit log has of a denial.
    async fn audited_denial(&self) -> (String, String) {
        let path = self.folder.path().join("audit.log");
        let started = Instant::now();
        loop {
            let text = std::fs::read_to_string(&path).unwrap();
            let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut annotations = events.map(|event| event["annotations"].clone());
            if let Some(found) = annotations.find(|found| found["inject.pgset.dev/decision"] == "denied") {
                let text = |key: &str| found[key].as_str().unwrap_or_else(|| panic!("no {key}: {found}")).to_owned();
                return (text("inject.pgset.dev/request"), text("inject.pgset.dev/reason"));
            }
            assert!(started.elapsed() < PATIENCE, "no denial in {}", path.display());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !control_plane("down", self.folder.path()) {
            eprintln!("a control plane may still run: {}", self.folder.path().display());
        }
    }
}

fn control_plane(verb: &str, folder: &Path) -> bool {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/control-plane");
    Command::new(program).arg(verb).arg(folder).status().is_ok_and(|status| status.success())
}

async fn forward(listener: TcpListener, target: Arc<AtomicU16>) {
    while let Ok((mut near, _)) = listener.accept().await {
        let port = target.load(Ordering::Relaxed);
        tokio::spawn(async move {
            let _ = near.set_nodelay(true);
            if let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await {
                let _ = far.set_nodelay(true);
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

// === the process ===

/// A `pgset serve webhook` that runs, killed when this is dropped.
struct Process {
    child: Child,
    https: u16,
    http: u16,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts it on free ports, which its log tells.
    fn start(kubeconfig: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pgset"))
            .args(["serve", "webhook", "--https-port=0", "--http-port=0", "--health-port=0"])
            .env("KUBECONFIG", kubeconfig)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (log, stderr) = (lines.clone(), BufReader::new(child.stderr.take().unwrap()));
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                log.lock().unwrap().push(line);
            }
        });
        let mut process = Self { child, https: 0, http: 0, lines };
        let started = Instant::now();
        loop {
            if let Some((https, http)) = process.lines.lock().unwrap().iter().find_map(|line| ports(line)) {
                (process.https, process.http) = (https, http);
                break;
            }
            assert!(started.elapsed() < PATIENCE, "it does not serve:\n{}", process.log());
            thread::sleep(Duration::from_millis(20));
        }
        process
    }

    fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                tokio::time::sleep(Duration::from_millis(100)).await; // for its last words to be read
                return status;
            }
            assert!(started.elapsed() < STOPPING, "it does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_ready(&self) {
        self.until("ready", "HTTP/1.1 200").await;
    }

    async fn until_not_ready(&self) {
        self.until("no longer ready", "serve: shutting down").await;
    }

    async fn until(&self, what: &str, text: &str) {
        let started = Instant::now();
        loop {
            let answer = self.readyz().await.unwrap_or_else(|error| error.to_string());
            if answer.contains(text) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "not {what}: {answer}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn readyz(&self) -> std::io::Result<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut connection = TcpStream::connect(("127.0.0.1", self.http)).await?;
        connection.write_all(b"GET /readyz HTTP/1.1\r\nhost: pgset\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Whether it takes new connections.
    async fn serves(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.https)).await.is_ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The ports in the line that says that it serves.
fn ports(line: &str) -> Option<(u16, u16)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let port = |field: &str| Some(line[field].as_str()?.parse::<SocketAddr>().ok()?.port());
    Some((port("https")?, port("http")?))
}
