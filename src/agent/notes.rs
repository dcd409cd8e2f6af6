//! What a member has to know again after its container has started anew, on its data volume: its leadership, its vote, which
//! leadership it tried to take, and whether the set has backups.
//!
//! Written before anything depends on it. A note that can't be read is none: then the member asks the Lease, as ever.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::data::{DataDirectory, Error};
use crate::backup::in_place::Journal;
use crate::election::lineage::Database;
use crate::election::promise::Attempt;
use crate::election::vote::Version;
use crate::set::backup::Backup;

/// The leadership that this member had last.
const LEADERSHIP: &str = ".pgset-leadership";
/// The version of the Lease while which this member receives nothing.
const VOTE: &str = ".pgset-vote";

/// The leadership that this member tried to take last.
const ATTEMPT: &str = ".pgset-attempt";

/// A recovery in place.
const RECOVERY: &str = ".pgset-recovery";

/// What the set's owner wants of its backups.
const BACKUP: &str = ".pgset-backup";

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

/// What the set's owner wants of its backups, once that was heard: none is an answer, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Absent if he wants none.
    pub backup: Option<Backup>,
}

/// A member's notes.
#[derive(Clone, Debug)]
pub struct Notes {
    leadership: PathBuf,
    vote: PathBuf,
    attempt: PathBuf,
    backup: PathBuf,
    recovery: PathBuf,
}

// === impl Notes ===

impl Notes {
    /// Of the member with this data directory.
    #[must_use]
    pub fn of(data: &DataDirectory) -> Self {
        Self {
            leadership: data.named(LEADERSHIP),
            vote: data.named(VOTE),
            attempt: data.named(ATTEMPT),
            backup: data.named(BACKUP),
            recovery: data.named(RECOVERY),
        }
    }

    /// The leadership that was noted last.
    #[must_use]
    pub fn leadership(&self) -> Option<Leadership> {
        read(&self.leadership)
    }

    /// Notes a leadership.
    pub fn write_leadership(&self, leadership: &Leadership) -> Result<(), Error> {
        write(&self.leadership, leadership)
    }

    /// The leadership that was tried last.
    #[must_use]
    pub fn attempt(&self) -> Option<Attempt> {
        read(&self.attempt)
    }

    /// Notes a leadership before it is tried.
    pub fn write_attempt(&self, attempt: &Attempt) -> Result<(), Error> {
        write(&self.attempt, attempt)
    }

    /// There is no leadership to go on with.
    pub fn remove_leadership(&self) -> Result<(), Error> {
        remove(&self.leadership).map_err(failed(&self.leadership))
    }

    /// What was wanted of backups when that was heard last; absent if it never was.
    #[must_use]
    pub fn backup(&self) -> Option<Wanted> {
        read(&self.backup)
    }

    /// Notes what is wanted of backups: a member whose container starts anew while the API server is away lets no WAL go unarchived.
    pub fn write_backup(&self, wanted: &Wanted) -> Result<(), Error> {
        write(&self.backup, wanted)
    }

    /// How far a recovery in place has come.
    #[must_use]
    pub fn recovery(&self) -> Option<Journal> {
        read(&self.recovery)
    }

    /// Notes how far it has come, or that there is none.
    pub fn write_recovery(&self, journal: Option<&Journal>) -> Result<(), Error> {
        match journal {
            Some(journal) => write(&self.recovery, journal),
            None => remove(&self.recovery).map_err(failed(&self.recovery)),
        }
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

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = fs::read_to_string(path).ok()?;
    serde_json::from_str(&text).map_err(|error| warn!(path = %path.display(), %error, "the note can't be read")).ok()
}

fn write(path: &Path, note: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string(note).map_err(io::Error::from);
    text.and_then(|text| super::settings::write(path, &text)).map(drop).map_err(failed(path))
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
