//! What the agent tells the archiver: a file of the pod's own, written anew whenever it changes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::election::SystemIdentifier;
use crate::set::backup::Backup;

/// What a member's archiver has to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The namespace.
    pub namespace: String,
    /// The set.
    pub set: String,
    /// The member.
    pub pod: String,
    /// What is wanted; absent, all that PostgreSQL wants to archive is let go.
    pub backup: Option<Backup>,
    /// What the member is.
    pub role: Role,
    /// Its database, once that is known.
    pub system: Option<SystemIdentifier>,
    /// How many members the set has.
    pub members: u32,
    /// The data directory.
    pub data_directory: PathBuf,
    /// The image's PostgreSQL programs.
    pub binaries: PathBuf,
    /// How the member's own server is reached; no password is in it.
    pub connection: String,
    /// How the master's is reached, in a database.
    pub master_connection: Option<String>,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It accepts writes.
    Master,
    /// It streams from the master.
    Replica,
    /// Neither, now.
    None,
}
