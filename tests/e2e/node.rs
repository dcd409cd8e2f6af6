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
