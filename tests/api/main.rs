//! The webhook behind a real kube-apiserver, without nodes: the API server calls a webhook that runs in this process.
//!
//! The cluster is that of `PGSET_KUBECONFIG`, else `KUBECONFIG`, else the lab's. Its API server must be able to open
//! connections to this machine. Every test has a namespace and a webhook configuration of its own, and deletes both.

#![expect(clippy::unwrap_used, clippy::panic, clippy::large_futures, reason = "tests")]

mod admission;
#[path = "../support/cases.rs"]
mod cases;
mod certificate_files;
mod certificates;
mod commands;
mod gitops;
mod goldens;
mod hands;
mod harness;
mod kubectl;
mod leaving;
mod load;
#[path = "../support/load.rs"]
mod pace;
mod pinning;
mod plane;
mod policies;
mod process;
mod record;
mod shapes;
mod somebody;
