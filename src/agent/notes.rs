//! What a member has to know again after its container has started anew, on its data volume: its leadership, and its vote.
//!
//! Written before anything depends on it. A note that can't be read is none: then the member asks the Lease, as ever.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::data::{DataDirectory, Error};
use crate::election::lineage::Database;
use crate::election::vote::Version;

/// The leadership that this member had last.
const LEADERSHIP: &str = ".pgset-leadership";
/// The version of the Lease while which this member receives nothing.
const VOTE: &str = ".pgset-vote";

/// A leadership, so that the master goes on after a restart of its container though the API server does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leadership {
    /// Who held the Lease: a pod of the same name made anew is another one.
    pub holder: String,
    /// In which epoch.
    pub epoch: u32,
    /// Who has to be asked.
    pub voters: BTreeSet<String>,
    /// Where they were.
    pub addresses: BTreeMap<String, String>,
    /// The database.
    pub database: Database,
}

/// A member's notes.
#[derive(Clone, Debug)]
pub struct Notes {
    leadership: PathBuf,
    vote: PathBuf,
}

// === impl Notes ===

impl Notes {
    /// Of the member with this data directory.
    #[must_use]
    pub fn of(data: &DataDirectory) -> Self {
        Self { leadership: data.named(LEADERSHIP), vote: data.named(VOTE) }
    }

    /// The leadership that was noted last.
    #[must_use]
    pub fn leadership(&self) -> Option<Leadership> {
        let text = fs::read_to_string(&self.leadership).ok()?;
        serde_json::from_str(&text)
            .map_err(|error| warn!(path = %self.leadership.display(), %error, "the note can't be read"))
            .ok()
    }

    /// Notes a leadership.
    pub fn write_leadership(&self, leadership: &Leadership) -> Result<(), Error> {
        let text = serde_json::to_string(leadership).map_err(io::Error::from);
        text.and_then(|text| super::settings::write(&self.leadership, &text))
            .map(drop)
            .map_err(failed(&self.leadership))
    }

    /// There is no leadership to go on with.
    pub fn remove_leadership(&self) -> Result<(), Error> {
        remove(&self.leadership).map_err(failed(&self.leadership))
    }

    /// The vote that was given last.
    #[must_use]
    pub fn vote(&self) -> Option<Version> {
        fs::read_to_string(&self.vote).ok().map(Version::from)
    }

    /// Notes a vote.
    pub fn write_vote(&self, version: &Version) -> Result<(), Error> {
        super::settings::write(&self.vote, version.as_str()).map(drop).map_err(failed(&self.vote))
    }

    /// The vote is over.
    pub fn remove_vote(&self) -> Result<(), Error> {
        remove(&self.vote).map_err(failed(&self.vote))
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { what: "write", path, source }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
