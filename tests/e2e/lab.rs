//! The cluster that the tests run on, and a namespace of it for each of them.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::manifests::Set;

/// How long PostgreSQL may take to come up where three tests share two slow cores: `initdb` alone has taken more than a minute there. On a quiet
/// machine it takes some seconds.
pub const START: Duration = Duration::from_secs(240);
/// How long something may take that needs no container to start.
pub const SOON: Duration = Duration::from_secs(30);

/// Ends the segment of the WAL, and names it. Where a moment ago one was ended (`archive_timeout`) nothing is ended, and the position is the next one's.
pub const END_SEGMENT: &str = "select pg_walfile_name(pg_switch_wal() - 1::numeric)";

/// How long a Service may take to lead to a pod that is Ready: kube-proxy acts once a second, later where the processor is short.
const ROUTED: Duration = Duration::from_secs(5);

/// Between two looks at something that is awaited.
const PAUSE: Duration = Duration::from_millis(200);
/// No single `kubectl` takes longer.
const COMMAND_LIMIT: &str = "180";

// === the cluster ===

/// Tests share the cluster, except one that takes pgset itself away for a while.
static CLUSTER: RwLock<()> = RwLock::new(());

/// Leave to use the cluster. A test asks for it once: who asks twice may wait for himself.
pub struct Lab {
    _leave: Leave,
}

enum Leave {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

/// The cluster, with other tests beside this one.
pub fn shared() -> Lab {
    Lab { _leave: Leave::Shared { _guard: CLUSTER.read().unwrap_or_else(PoisonError::into_inner) } }
}

/// The cluster, for this test alone.
pub fn alone() -> Lab {
    Lab { _leave: Leave::Alone { _guard: CLUSTER.write().unwrap_or_else(PoisonError::into_inner) } }
}

impl Lab {
    /// A new namespace with a pod `client`, deleted with all it holds at the end of the test, whatever the end.
    pub fn namespace(&self, theme: &str) -> Namespace<'_> {
        let namespace = self.empty_namespace(theme);
        namespace.start_client();
        namespace
    }

    /// The same without the pod, for a test that speaks to no database.
    pub fn empty_namespace(&self, theme: &str) -> Namespace<'_> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() % 100_000;
        let name = format!("e2e-{theme}-{started}-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        run(kubectl().args(["create", "namespace", &name]), None).expect("a namespace");
        let namespace = Namespace { _lab: self, name };
        fs::create_dir_all(namespace.export()).unwrap();
        namespace
    }
}

/// The kubeconfig of the lab; its folder is the lab's folder.
pub fn kubeconfig() -> PathBuf {
    let path = env::var_os("KUBECONFIG")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab/kubeconfig"), PathBuf::from);
    assert!(path.exists(), "no lab is up, there is no {}: run `make lab install`", path.display());
    path
}

/// `kubectl` on the lab, with no namespace said.
pub fn kubectl() -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", COMMAND_LIMIT, "kubectl"]).env("KUBECONFIG", kubeconfig()).env("LC_ALL", "C");
    command
}

/// `pgset WORDS`, on the lab.
pub fn pgset(words: &str) -> Result<CommandOutput, CommandOutput> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgset"));
    run(command.args(words.split_whitespace()).env("KUBECONFIG", kubeconfig()), None)
}

/// What a command printed, or why it failed.
pub fn run(command: &mut Command, input: Option<&str>) -> Result<CommandOutput, CommandOutput> {
    let mut child = command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    if let Some(input) = input {
        // the command may end without reading all of it, which its exit code tells better than the broken pipe
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    }
    let output = child.wait_with_output().unwrap();
    let said = CommandOutput::from(&output);
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// What a command said.
#[derive(Debug)]
pub struct CommandOutput {
    pub out: String,
    pub err: String,
    pub code: Option<i32>,
}

impl From<&Output> for CommandOutput {
    fn from(output: &Output) -> Self {
        Self {
            out: String::from_utf8_lossy(&output.stdout).trim_end().to_owned(),
            err: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
            code: output.status.code(),
        }
    }
}

/// The machine's clock, which is that of all pods as well: seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock that goes right").as_secs_f64()
}

/// Looks until there is something to see, and says what was seen last if there never is.
pub fn wait_until<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(seen) if started.elapsed() > limit => {
                panic!("{what}: not within {} s; last seen: {seen}", limit.as_secs())
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// `Ok` if they are equal, else what is there, for [`wait_until`].
pub fn same<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug + ?Sized>(seen: T, wanted: &U) -> Result<T, String> {
    if seen == *wanted { Ok(seen) } else { Err(format!("{seen:?}, not {wanted:?}")) }
}

// === a namespace ===

/// A namespace of its own for one test.
pub struct Namespace<'lab> {
    _lab: &'lab Lab,
    pub name: String,
}

impl Namespace<'_> {
    // --- kubectl ---

    /// What `kubectl WORDS` prints; a failure is the test's.
    pub fn kubectl(&self, words: &str) -> String {
        self.try_kubectl(words).unwrap_or_else(|said| panic!("kubectl {words}: {}", said.err)).out
    }

    /// `kubectl WORDS`, which may fail.
    pub fn try_kubectl(&self, words: &str) -> Result<CommandOutput, CommandOutput> {
        self.try_kubectl_with(&words.split_whitespace().collect::<Vec<_>>(), None)
    }

    /// `kubectl`, with words that contain spaces, or with input.
    pub fn try_kubectl_with(&self, words: &[&str], input: Option<&str>) -> Result<CommandOutput, CommandOutput> {
        run(kubectl().args(["--namespace", &self.name]).args(words), input)
    }

    /// `kubectl apply`; what it prints, warnings included.
    pub fn apply(&self, manifest: &str) -> CommandOutput {
        self.try_apply(manifest).unwrap_or_else(|said| panic!("kubectl apply: {}\n{manifest}", said.err))
    }

    /// `kubectl apply`, which may be refused.
    pub fn try_apply(&self, manifest: &str) -> Result<CommandOutput, CommandOutput> {
        self.try_kubectl_with(&["apply", "-f", "-"], Some(manifest))
    }

    /// An object, as `kubectl get KIND NAME` shows it.
    pub fn get(&self, what: &str) -> Value {
        self.try_get(what).unwrap_or_else(|why| panic!("kubectl get {what}: {why}"))
    }

    /// An object, or why there is none.
    pub fn try_get(&self, what: &str) -> Result<Value, String> {
        let said = self.try_kubectl(&format!("get {what} --output=json")).map_err(|said| said.err)?;
        serde_json::from_str(&said.out).map_err(|error| error.to_string())
    }

    /// Runs a shell's command line in a container.
    pub fn shell(&self, pod: &str, container: &str, line: &str) -> Result<CommandOutput, CommandOutput> {
        self.try_kubectl_with(&["exec", pod, "--container", container, "--", "sh", "-c", line], None)
    }

    /// A script in the client's pod, below `/tmp`.
    pub fn script(&self, name: &str, text: &str) {
        let write = format!("cat > /tmp/{name}");
        let words = ["exec", "--stdin", "client", "--", "sh", "-c", &write];
        self.try_kubectl_with(&words, Some(text)).unwrap_or_else(|said| panic!("{name}: {}", said.err));
    }

    // --- volumes ---

    /// The directory that stands for the NFS export: every node sees the machine's file system.
    pub fn export(&self) -> PathBuf {
        kubeconfig().parent().expect("the kubeconfig is in the lab's folder").join("export").join(&self.name)
    }

    /// A shared claim on the export, which any user may write to, as the article's.
    pub fn shared_claim(&self, claim: &str) {
        let export = self.export();
        open_to_all(&export);
        self.claim_on(claim, &export);
    }

    /// A shared claim on a directory of the node.
    pub fn claim_on(&self, claim: &str, directory: &Path) {
        self.volume(claim, directory, "ReadWriteMany");
        self.apply(
            &json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim},
                "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "100M"}}},
            })
            .to_string(),
        );
    }

    /// A volume for one member's claim from a claim template, as an administrator makes by hand.
    pub fn volume_for(&self, claim: &str) -> PathBuf {
        let directory = self.export().join(claim);
        fs::create_dir_all(&directory).unwrap();
        self.volume(claim, &directory, "ReadWriteOnce");
        directory
    }

    fn volume(&self, claim: &str, directory: &Path, mode: &str) {
        self.apply(
            &json!({
                "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {"name": format!("{}-{claim}", self.name), "labels": {"pgset.dev/e2e": self.name}},
                "spec": {
                    "accessModes": [mode], "capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": "Retain",
                    "hostPath": {"path": directory}, "claimRef": {"namespace": self.name, "name": claim},
                },
            })
            .to_string(),
        );
    }

    /// The identity of a member's data directory below a shared claim. A clone lands elsewhere and is renamed: it has another.
    pub fn data_directory(&self, pod: &str) -> (PathBuf, u64) {
        use std::os::unix::fs::MetadataExt;
        let path = self.export().join(pod).join("data");
        let inode = fs::metadata(&path)
            .unwrap_or_else(|error| panic!("no data directory at {}: {error}", path.display()))
            .ino();
        (path, inode)
    }

    /// Waits until an Event on a set has this reason, and this cause in its note.
    pub fn wait_event(&self, limit: Duration, set: &str, reason: &str, cause: &str) {
        wait_until(limit, &format!("{set} says {reason} because of {cause}"), || {
            let events = self.events("StatefulSet", set);
            let is_told = |event: &&String| event.starts_with(&format!("{reason}: ")) && event.contains(cause);
            events.iter().find(is_told).map(drop).ok_or_else(|| format!("{events:#?}"))
        });
    }

    // --- sets ---

    /// Waits until a set has this many members, all Ready and of the newest revision.
    pub fn wait_ready(&self, set: &str, members: usize) {
        self.wait_ready_within(set, members, START);
    }

    pub fn wait_ready_within(&self, set: &str, members: usize, limit: Duration) {
        wait_until(limit, &format!("{members} Ready members of {set}"), || {
            let object = self.try_get(&format!("statefulset {set}"))?;
            let status = &object["status"];
            let number = |field: &str| status[field].as_u64().unwrap_or(0);
            let wanted = members as u64;
            let settled = status["observedGeneration"] == object["metadata"]["generation"]
                && number("replicas") == wanted
                && number("readyReplicas") == wanted
                && (wanted == 0 || number("updatedReplicas") == wanted);
            if settled { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// The pods of a set, by name.
    pub fn pods(&self, set: &str) -> Vec<String> {
        let list = self.get("pods");
        let mut names: Vec<String> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|pod| pod["metadata"]["ownerReferences"][0]["name"] == set)
            .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    /// A label of an object.
    pub fn label(&self, what: &str, key: &str) -> Option<String> {
        self.get(what)["metadata"]["labels"][key].as_str().map(str::to_owned)
    }

    /// The Events about an object, as `REASON: NOTE`.
    pub fn events(&self, kind: &str, name: &str) -> Vec<String> {
        self.get("events")["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["involvedObject"]["kind"] == kind && event["involvedObject"]["name"] == name)
            .map(|event| {
                format!("{}: {}", event["reason"].as_str().unwrap_or(""), event["message"].as_str().unwrap_or(""))
            })
            .collect()
    }

    /// A master and a replica that streams, named `pgset`, on a shared claim.
    pub fn two_members(&self, set: &Set) -> Database<'_> {
        self.shared_claim("pgset-pvc");
        self.apply(&set.manifest());
        self.wait_ready("pgset", 2);
        let database = self.database("pgset");
        database.wait_streaming(&["pgset-1"]);
        database
    }

    /// The superuser's database of a set whose password pgset made.
    pub fn database(&self, set: &str) -> Database<'_> {
        let password = wait_until(SOON, &format!("the Secret {set}-pgset-credentials"), || {
            let secret = self.try_get(&format!("secret {set}-pgset-credentials"))?;
            let encoded = secret["data"]["postgres-password"].as_str().ok_or("no key postgres-password")?;
            decoded(encoded).ok_or_else(|| "not base64".to_owned())
        });
        self.database_as(set, "postgres", &password, "postgres")
    }

    /// A database of a set whose user the test knows.
    pub fn database_as(&self, set: &str, user: &str, password: &str, name: &str) -> Database<'_> {
        Database {
            namespace: self,
            set: set.to_owned(),
            user: user.to_owned(),
            password: password.to_owned(),
            name: name.to_owned(),
        }
    }

    // --- life ---

    /// Starts the pod `client`, which the strictest namespace takes as well, on the node that no test takes away.
    pub fn start_client(&self) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": "lab"},
                "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "enableServiceLinks": false,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 999, "runAsGroup": 999,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [{
                    "name": "client", "image": "postgres:17", "command": ["sleep", "infinity"],
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                    "resources": {
                        "requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "256Mi"},
                    },
                }],
            },
        })
        .to_string();
        // the account `default` of a new namespace takes a moment to appear
        wait_until(SOON, "the client's pod is taken", || self.try_apply(&pod).map_err(|said| said.err));
    }

    /// All that tells why a test failed.
    fn report(&self) -> String {
        let mut report = vec![format!("=== {}", self.name)];
        let mut add = |title: &str, words: &str| {
            let text = match self.try_kubectl(words) {
                Ok(said) => said.out,
                Err(said) => said.err,
            };
            report.push(format!("--- {title}\n{text}"));
        };
        add("sets and pods", "get statefulsets,pods --output=wide --show-labels");
        add("Services", "get services,endpointslices,leases --output=wide");
        add("Events", "get events --sort-by=.metadata.creationTimestamp");
        // no panic here: there is one under way
        let pods = self.try_get("pods").unwrap_or_default();
        for pod in pods["items"].as_array().into_iter().flatten() {
            let Some(name) = pod["metadata"]["name"].as_str().filter(|name| *name != "client") else { continue };
            add(&format!("log of {name}"), &format!("logs {name} --all-containers --tail=60"));
            let restarted = pod["status"]["containerStatuses"]
                .as_array()
                .is_some_and(|all| all.iter().any(|container| container["restartCount"].as_u64() > Some(0)));
            if restarted {
                add(
                    &format!("log of {name} before it restarted"),
                    &format!("logs {name} --all-containers --previous --tail=40"),
                );
            }
        }
        report.join("\n")
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.report());
            if env::var_os("PGSET_E2E_KEEP").is_some() {
                eprintln!("PGSET_E2E_KEEP is set: {} stays", self.name);
                return;
            }
        }
        // Pods first, and without their grace: a namespace that finds pods with grace in it waits half of that and more.
        for words in [
            "delete statefulsets --all --wait=false",
            "delete pods --all --grace-period=1 --timeout=60s",
            &format!("delete namespace {} --wait=false", self.name),
            &format!("delete persistentvolumes --selector=pgset.dev/e2e={} --wait=false", self.name),
        ] {
            if let Err(said) = self.try_kubectl(words) {
                eprintln!("kubectl {words}: {}", said.err);
            }
        }
        if let Err(error) = fs::remove_dir_all(self.export()) {
            eprintln!("cannot remove {}: {error}", self.export().display());
        }
    }
}

/// Anyone may write there, as on the article's export.
pub fn open_to_all(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(directory).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
}

// === a database ===

/// `psql` in the client's pod, as one user of one set.
pub struct Database<'ns> {
    namespace: &'ns Namespace<'ns>,
    set: String,
    user: String,
    password: String,
    name: String,
}

impl Database<'_> {
    /// The same database, seen from another namespace.
    pub fn from<'other>(&self, namespace: &'other Namespace<'other>) -> Database<'other> {
        let Self { set, user, password, name, .. } = self;
        namespace.database_as(set, user, password, name)
    }

    /// `psql -h HOST -c SQL`: the rows, columns separated by `|`; or what psql says.
    pub fn at(&self, host: &str, sql: &str) -> Result<String, String> {
        let password = format!("PGPASSWORD={}", self.password);
        let command = ["exec", "client", "--", "env", &password, "PGCONNECT_TIMEOUT=3", "psql", "-X", "-A", "-t", "-q"];
        let words = [&command[..], &["-h", host, "-U", &self.user, &self.name, "-c", sql]].concat();
        let said = self.namespace.try_kubectl_with(&words, None);
        said.map(|said| said.out).map_err(|said| format!("{host}: {}", said.err))
    }

    /// The line by which a shell in the client's pod asks this at a host; the shell sees what is in it as between double quotes.
    pub fn psql(&self, host: &str, sql: &str) -> String {
        let Self { user, password, name, .. } = self;
        format!("PGPASSWORD='{password}' PGCONNECT_TIMEOUT=3 psql -X -A -t -q -h {host} -U {user} {name} -c \"{sql}\"")
    }

    /// The line by which a shell in the client's pod runs another of PostgreSQL's programs on it.
    pub fn program(&self, host: &str, program: &str) -> String {
        let Self { user, password, name, .. } = self;
        format!("PGPASSWORD='{password}' PGCONNECT_TIMEOUT=3 {program} -h {host} -U {user} {name}")
    }

    /// Through the Service to the master.
    ///
    /// A pod is Ready a second or two before kube-proxy leads clients to it, which are refused until then; nothing is run by that.
    pub fn master(&self, sql: &str) -> String {
        let master = format!("{}-master", self.set);
        let began = Instant::now();
        loop {
            match self.at(&master, sql) {
                Ok(rows) => return rows,
                Err(error) if error.contains("Connection refused") && began.elapsed() < ROUTED => thread::sleep(PAUSE),
                Err(error) => panic!("{sql}: {error}"),
            }
        }
    }

    /// Ten thousand rows, which a test counts later.
    pub fn write_numbers(&self) {
        self.master("create table numbers as select n from generate_series(1, 10000) n");
    }

    /// Through the Service to the replicas.
    pub fn replica(&self, sql: &str) -> Result<String, String> {
        self.at(&format!("{}-replica", self.set), sql)
    }

    /// Waits until a query at a host answers this: what was written arrives at a replica a moment later.
    pub fn wait_for(&self, host: &str, sql: &str, wanted: &str) {
        wait_until(SOON, &format!("{sql} at {host}"), || self.at(host, sql).and_then(|seen| same(seen, wanted)));
    }

    /// Waits until exactly these replicas stream from the master.
    pub fn wait_streaming(&self, replicas: &[&str]) {
        let sql = "select application_name from pg_stat_replication where state = 'streaming' order by 1";
        let master = format!("{}-master", self.set);
        wait_until(START, &format!("streaming from {master}"), || {
            self.at(&master, sql).and_then(|seen| same(seen, &replicas.join("\n")))
        });
    }

    /// Waits until the master keeps exactly these replication slots.
    pub fn wait_slots(&self, slots: &[&str]) {
        let master = format!("{}-master", self.set);
        self.wait_for(&master, "select slot_name from pg_replication_slots order by 1", &slots.join("\n"));
    }
}

/// What a value of a Secret says.
pub fn decoded(value: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(value).ok()?).ok()
}
