//! pgset: a PostgreSQL master and its replicas from an annotated Kubernetes `StatefulSet`.
//!
//! `ARCHITECTURE.md` follows a review, a set and a member's moment through these modules, and says which may import which.

pub mod agent;
pub mod archiver;
pub mod backup;
pub mod certs;
pub mod children;
pub mod cli;
pub mod controller;
pub mod election;
pub mod errors;
pub mod inject;
pub mod invariants;
#[cfg(test)]
#[path = "../tests/support/logged.rs"]
mod logged;
pub mod names;
pub mod set;
pub mod webhook;
