//! What must be seen on a real cluster: each test is a sentence about what a user does and what he then finds.
//!
//! The tests type `kubectl` as a user does, and look at outcomes only: rows, labels, replication slots, directories on the shared
//! volume. They run on the lab (`make lab`) with pgset installed (`make install`); `make e2e` sees to both.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed
#![allow(unused_crate_dependencies, missing_docs)]

#[allow(dead_code)] // the faults use more of it
mod lab;
mod manifests;
mod matrix;
mod mount;
#[allow(dead_code)]
mod node;
#[path = "../support/load.rs"]
mod pace;

mod adoption;
mod anew;
mod apply;
mod article;
mod backup;
mod bootstrap;
mod children;
mod commands;
mod denials;
mod failover;
mod fencing;
mod install;
mod load;
mod names;
mod orders;
mod outage;
mod owner;
mod pinning;
mod proxy;
mod recover;
mod refusals;
mod restart;
mod route;
mod scale;
mod secrets;
mod squash;
mod store;
mod store_faults;
mod strict;
mod synchronous;
mod webhook_down;
