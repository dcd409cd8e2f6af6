//! pgset: a PostgreSQL master and its replicas from an annotated Kubernetes `StatefulSet`.
//!
//! Arrows point down: `cli` → `webhook`, `certs`, `controller`, `agent` (edges: I/O, thin) → `inject`, `children`,
//! `election` (core: pure) → `set` → `names`. Every edge may use `errors` and `invariants`.

pub mod agent;
pub mod certs;
pub mod children;
pub mod cli;
pub mod controller;
pub mod election;
pub mod errors;
pub mod inject;
pub mod invariants;
#[cfg(test)]
mod logged;
pub mod names;
pub mod set;
pub mod webhook;
