//! pgset: a PostgreSQL master and its replicas from an annotated Kubernetes `StatefulSet`.
//!
//! Arrows point down: `cli` → `webhook`, `certs`, `controller`, `agent` (edges: I/O, thin) → `inject`, `children`,
//! `election` (core: pure) → `set` → `names`.

pub mod agent;
pub mod certs;
pub mod children;
pub mod cli;
pub mod controller;
pub mod election;
pub mod errors;
pub mod inject;
pub mod names;
pub mod set;
pub mod webhook;
