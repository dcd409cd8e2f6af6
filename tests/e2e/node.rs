//! What only the node can do: kill a container as a crash does, look into its processes.

use std::{fs, process::Command};

use crate::lab::{Namespace, run};

/// The socket of the lab's containerd.
const CONTAINERD: &str = "/run/pgset-lab/containerd.sock";

fn ctr(arguments: &[&str]) {
    let mut command = Command::new("ctr");
    command.args(["--address", CONTAINERD, "--namespace", "k8s.io"]).args(arguments);
    run(&mut command, None).unwrap_or_else(|said| panic!("{command:?}: {}", said.err));
}

fn container_id(namespace: &Namespace<'_>, pod: &str, container: &str) -> String {
    let object = namespace.get(&format!("pod {pod}"));
    object["status"]["containerStatuses"]
        .as_array()
        .and_then(|all| all.iter().find(|status| status["name"] == container))
        .and_then(|status| status["containerID"].as_str())
        .and_then(|id| id.strip_prefix("containerd://"))
        .unwrap_or_else(|| panic!("{pod} has no running container {container}"))
        .to_owned()
}

/// `kill -9` of a container's first process: all others in it die with it, and the kubelet starts it anew in the same pod.
pub fn kill(namespace: &Namespace<'_>, pod: &str, container: &str) {
    let id = container_id(namespace, pod, container);
    ctr(&["task", "kill", "--signal", "SIGKILL", &id]);
}

/// A signal to a container's first process, which cannot refuse the node's root.
pub fn signal_first(namespace: &Namespace<'_>, pod: &str, container: &str, signal: &str) {
    signal_process(first_process(namespace, pod, container), signal);
}

/// A signal to a process of the node.
pub fn signal_process(number: u32, signal: &str) {
    let mut command = Command::new("kill");
    command.args(["-s", signal, &number.to_string()]);
    run(&mut command, None).unwrap_or_else(|said| panic!("{command:?}: {}", said.err));
}

/// The processes in a container whose command line begins so, without those that have ended and were not reaped.
pub fn running(namespace: &Namespace<'_>, pod: &str, container: &str, command: &str) -> Vec<u32> {
    let id = container_id(namespace, pod, container);
    let begins = |number: &u32| {
        fs::read(format!("/proc/{number}/cmdline"))
            .is_ok_and(|words| String::from_utf8_lossy(&words).replace('\0', " ").starts_with(command))
    };
    numbers(&id).filter(begins).collect()
}

/// The address under which pods find the API server.
const API_SERVER: &str = "198.19.0.1";

/// Drops all that a pod sends to the API server, and so all answers: neither side is told.
pub fn cut_off(namespace: &Namespace<'_>, pod: &str, container: &str) {
    let rules = format!(
        "add table inet cut; add chain inet cut out {{ type filter hook output priority 0; }}; add rule inet cut out ip daddr {API_SERVER} drop"
    );
    in_network_of(namespace, pod, container, &rules);
}

/// The same, and all that it asks of the other members.
pub fn isolate(namespace: &Namespace<'_>, pod: &str, container: &str) {
    let rules = format!(
        "add table inet cut; add chain inet cut out {{ type filter hook output priority 0; }}; add rule inet cut out ip daddr {API_SERVER} drop; \
         add rule inet cut out tcp dport 8008 drop"
    );
    in_network_of(namespace, pod, container, &rules);
}

/// Ends [`cut_off`] and [`isolate`].
pub fn heal(namespace: &Namespace<'_>, pod: &str, container: &str) {
    in_network_of(namespace, pod, container, "delete table inet cut");
}

fn in_network_of(namespace: &Namespace<'_>, pod: &str, container: &str, rules: &str) {
    let process = first_process(namespace, pod, container);
    let mut command = Command::new("nsenter");
    command.args(["--net", "--target", &process.to_string(), "nft", rules]);
    run(&mut command, None).unwrap_or_else(|said| panic!("{command:?}: {}", said.err));
}

fn first_process(namespace: &Namespace<'_>, pod: &str, container: &str) -> u32 {
    let id = container_id(namespace, pod, container);
    // Numbers begin anew when they have come to their end: the lowest of them says nothing.
    let is_first = |number: &u32| {
        fs::read_to_string(format!("/proc/{number}/status")).is_ok_and(|status| {
            status.lines().any(|line| line.starts_with("NSpid:") && line.split_whitespace().last() == Some("1"))
        })
    };
    numbers(&id).find(is_first).unwrap_or_else(|| panic!("{container} of {pod} has no process"))
}

/// The processes in a container, by the node's numbers.
fn numbers(id: &str) -> impl Iterator<Item = u32> {
    let numbers = fs::read_dir("/proc")
        .unwrap()
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(move |number: &u32| {
        fs::read_to_string(format!("/proc/{number}/cgroup")).is_ok_and(|cgroup| cgroup.contains(id))
    })
}

/// Another name for an image that the node has.
pub fn tag(image: &str, name: &str) {
    ctr(&["images", "tag", "--force", image, name]);
}

/// The command lines and environments of all processes in a container, as the node's root sees them: what it is, and its text.
pub fn processes(namespace: &Namespace<'_>, pod: &str, container: &str) -> Vec<(String, String)> {
    let id = container_id(namespace, pod, container);
    let mut texts = Vec::new();
    for process in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let path = process.path();
        // a process may end while it is looked at
        let Ok(cgroup) = fs::read_to_string(path.join("cgroup")) else { continue };
        if !cgroup.contains(&id) {
            continue;
        }
        for file in ["cmdline", "environ"] {
            if let Ok(bytes) = fs::read(path.join(file)) {
                texts.push((path.join(file).display().to_string(), String::from_utf8_lossy(&bytes).replace('\0', " ")));
            }
        }
    }
    texts
}
