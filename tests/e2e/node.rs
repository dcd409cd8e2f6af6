//! What only the node can do: kill a container as a crash does, look into its processes, cut its network.
//!
//! All of it may fail where a container is just being made or ended, and says so.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::lab::{Namespace, kubectl, run};

/// Where the lab's sockets are, and the numbers of its processes.
const RUN: &str = "/run/pgset-lab";
/// The node that every lab has; the control plane is on it.
pub const FIRST: &str = "lab";
/// The address under which pods find the API server.
const API_SERVER: &str = "198.19.0.1";

type Result<T> = std::result::Result<T, String>;

/// Runs one of the machine's programs.
pub fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    run(Command::new(program).args(arguments), None)
        .map(drop)
        .map_err(|said| format!("{program} {arguments:?}: {}", said.err))
}

/// Where a node's containerd listens: each has its own.
fn containerd(node: &str) -> String {
    let folder = if node == FIRST { RUN.to_owned() } else { format!("{RUN}/{node}") };
    format!("{folder}/containerd.sock")
}

fn ctr(node: &str, arguments: &[&str]) -> Result<()> {
    tool("ctr", &[&["--address", &containerd(node), "--namespace", "k8s.io"], arguments].concat())
}

/// A container, and the node that runs it.
#[derive(Debug)]
pub struct Container {
    node: String,
    id: String,
}

impl Container {
    pub fn of(namespace: &Namespace<'_>, pod: &str, container: &str) -> Result<Self> {
        let object = namespace.try_get(&format!("pod {pod}"))?;
        let id = object["status"]["containerStatuses"]
            .as_array()
            .and_then(|all| all.iter().find(|status| status["name"] == container))
            .and_then(|status| status["containerID"].as_str())
            .and_then(|id| id.strip_prefix("containerd://"))
            .ok_or_else(|| format!("{pod} has no running container {container}"))?;
        let node = object["spec"]["nodeName"].as_str().ok_or_else(|| format!("{pod} is on no node"))?;
        Ok(Self { node: node.to_owned(), id: id.to_owned() })
    }

    /// What a shell's line prints in it, by way of its node: no network is needed for that.
    pub fn shell(&self, line: &str) -> Result<String> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("shell-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let address = containerd(&self.node);
        let words = ["2", "ctr", "--address", &address, "--namespace", "k8s.io", "task", "exec", "--exec-id", &name];
        let mut command = Command::new("timeout");
        command.args(words).args([&self.id, "sh", "-c", line]);
        run(&mut command, None).map(|said| said.out).map_err(|said| said.err)
    }

    /// Its processes whose command line begins so, without those that have ended and were not reaped. Nobody but the kernel is asked.
    pub fn running(&self, command: &str) -> Vec<u32> {
        let begins = |number: &u32| {
            fs::read(format!("/proc/{number}/cmdline"))
                .is_ok_and(|words| String::from_utf8_lossy(&words).replace('\0', " ").starts_with(command))
        };
        numbers(&self.id).filter(begins).collect()
    }

    fn task(&self, arguments: &[&str]) -> Result<()> {
        ctr(&self.node, &[&["task"], arguments, &[&self.id]].concat())
    }
}

/// The process that is the lab's API server.
pub fn api_server() -> Result<u32> {
    let path = format!("{RUN}/pid/kube-apiserver");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    text.trim().parse().map_err(|_| format!("{path}: {text:?} is no number"))
}

/// The nodes, by name.
pub fn nodes() -> Result<Vec<String>> {
    let words = ["get", "nodes", "--output=jsonpath={.items[*].metadata.name}"];
    let said = run(kubectl().args(words), None).map_err(|said| said.err)?;
    Ok(said.out.split_whitespace().map(str::to_owned).collect())
}

/// `kill -9` of a container's first process: all others in it die with it, and the kubelet starts it anew in the same pod.
pub fn kill(namespace: &Namespace<'_>, pod: &str, container: &str) -> Result<()> {
    Container::of(namespace, pod, container)?.task(&["kill", "--signal", "SIGKILL"])
}

/// All processes of a container stand still, as on a virtual machine that is frozen. Returns which container it is, for [`thaw`].
pub fn freeze(namespace: &Namespace<'_>, pod: &str, container: &str) -> Result<Container> {
    let container = Container::of(namespace, pod, container)?;
    container.task(&["pause"])?;
    Ok(container)
}

/// Ends [`freeze`].
pub fn thaw(container: &Container) -> Result<()> {
    container.task(&["resume"])
}

/// A signal to a container's first process, which cannot refuse the node's root.
pub fn signal_first(namespace: &Namespace<'_>, pod: &str, container: &str, signal: &str) -> Result<()> {
    signal_process(first_process(namespace, pod, container)?, signal)
}

/// A signal to a process of the node.
pub fn signal_process(number: u32, signal: &str) -> Result<()> {
    tool("kill", &["-s", signal, &number.to_string()])
}

/// The processes in a container whose command line begins so, without those that have ended and were not reaped.
pub fn running(namespace: &Namespace<'_>, pod: &str, container: &str, command: &str) -> Result<Vec<u32>> {
    Ok(Container::of(namespace, pod, container)?.running(command))
}

/// A pod's network, in which something is dropped. It stays the pod's whatever becomes of its containers.
pub struct Network(File);

/// Drops all that a pod sends to the API server, and so all answers: neither side is told.
pub fn cut_off(namespace: &Namespace<'_>, pod: &str, container: &str) -> Result<Network> {
    drop_all(namespace, pod, container, &[&format!("ip daddr {API_SERVER}")])
}

/// The same, and all that it asks of the other members.
pub fn isolate(namespace: &Namespace<'_>, pod: &str, container: &str) -> Result<Network> {
    drop_all(namespace, pod, container, &[&format!("ip daddr {API_SERVER}"), "tcp dport 8008"])
}

fn drop_all(namespace: &Namespace<'_>, pod: &str, container: &str, what: &[&str]) -> Result<Network> {
    let process = first_process(namespace, pod, container)?;
    let network = File::open(format!("/proc/{process}/ns/net")).map(Network).map_err(|error| error.to_string())?;
    let chain =
        ["add table inet cut", "add chain inet cut out { type filter hook output priority 0; }"].map(str::to_owned);
    let rules = what.iter().map(|what| format!("add rule inet cut out {what} drop"));
    let all: Vec<String> = chain.into_iter().chain(rules).collect();
    network.nft(&all.join("; "))?;
    Ok(network)
}

impl Network {
    /// Ends [`cut_off`] and [`isolate`].
    pub fn heal(&self) -> Result<()> {
        self.nft("delete table inet cut")
    }

    fn nft(&self, rules: &str) -> Result<()> {
        let path = format!("--net=/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        tool("nsenter", &[&path, "nft", rules])
    }
}

/// A container's first process, by the node's number.
pub fn first_process(namespace: &Namespace<'_>, pod: &str, container: &str) -> Result<u32> {
    let id = Container::of(namespace, pod, container)?.id;
    // Numbers begin anew when they have come to their end: the lowest of them says nothing.
    let is_first = |number: &u32| {
        fs::read_to_string(format!("/proc/{number}/status")).is_ok_and(|status| {
            status.lines().any(|line| line.starts_with("NSpid:") && line.split_whitespace().last() == Some("1"))
        })
    };
    numbers(&id).find(is_first).ok_or_else(|| format!("{container} of {pod} has no process"))
}

/// The processes in a container, by the node's numbers.
fn numbers(id: &str) -> impl Iterator<Item = u32> {
    let numbers = fs::read_dir("/proc")
        .unwrap()
        .filter_map(std::result::Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(move |number: &u32| {
        fs::read_to_string(format!("/proc/{number}/cgroup")).is_ok_and(|cgroup| cgroup.contains(id))
    })
}

/// Another name for an image that the nodes have.
pub fn tag(image: &str, name: &str) -> Result<()> {
    nodes()?.iter().try_for_each(|node| ctr(node, &["images", "tag", "--force", image, name]))
}

/// The command lines and environments of all processes in a container, as the node's root sees them: what it is, and its text.
pub fn processes(namespace: &Namespace<'_>, pod: &str, container: &str) -> Result<Vec<(String, String)>> {
    let id = Container::of(namespace, pod, container)?.id;
    let mut texts = Vec::new();
    for number in numbers(&id) {
        for file in ["cmdline", "environ"] {
            let path = format!("/proc/{number}/{file}");
            // a process may end while it is looked at
            if let Ok(bytes) = fs::read(&path) {
                texts.push((path, String::from_utf8_lossy(&bytes).replace('\0', " ")));
            }
        }
    }
    Ok(texts)
}
