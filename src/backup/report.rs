//! What the archiver tells the agent, and the agent whoever asks: a file of the pod's own.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::due::Gap;
use super::index::Index;
use super::verification::Verification;

/// How a member's archive is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Where to.
    pub location: String,
    /// The last file of the WAL that this member has seen safely stored, and when.
    pub archived: Option<(String, Timestamp)>,
    /// How many files wait.
    pub waiting: usize,
    /// How many bytes more may wait before they are let go; absent where nothing limits it.
    pub left: Option<u64>,
    /// Whether so little of the volume is free that no WAL is to stay for later backups' sake.
    pub tight: bool,
    /// WAL that was let go and that no backup lies behind yet.
    pub gap: Option<Gap>,
    /// What goes wrong with the WAL now, and since when.
    pub trouble: Option<(String, Timestamp)>,
    /// Somebody else writes there, or what is there was changed: nothing is archived until a person has looked.
    pub alarm: Option<String>,
    /// The base backup that this member makes now.
    pub running: Option<Running>,
    /// Why its last one failed, and when; absent once one is complete.
    pub failed: Option<(String, Timestamp)>,
    /// All complete base backups of the set, the oldest first.
    pub backups: Vec<Index>,
    /// What the last trial restore found.
    pub verified: Option<Verification>,
}

/// A base backup in the making.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// What it is called.
    pub id: String,
    /// Since when.
    pub since: Timestamp,
    /// Bytes read.
    pub read: u64,
    /// Bytes that there will be, by the size of the database.
    pub expected: u64,
}

/// How much of a base backup has been brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brought {
    /// Bytes that have come.
    pub bytes: u64,
    /// Bytes that there are.
    pub size: u64,
}
