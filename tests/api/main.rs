//! The webhook behind a real kube-apiserver, without nodes: the API server calls a webhook that runs in this process.
//!
//! The cluster is that of `PGSET_KUBECONFIG`, else `KUBECONFIG`, else the lab's. Its API server must be able to open
//! connections to this machine. Every test has a namespace and a webhook configuration of its own, and deletes both.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod admission;
mod audit;
mod certificates;
mod goldens;
mod harness;
mod load;
#[path = "../support/load.rs"]
mod pace;
mod policies;
mod process;
