//! A database that is restored beside a member's, for a recovery in place, and what the member had before the set went on from it.
//!
//! | name | what it is | after a crash |
//! |---|---|---|
//! | `.pgset-recovered` | a database that is restored beside this one | its keeper goes on, or removes it |
//! | `.pgset-accepted` | the same on its way to its place: the Lease says that the set goes on from it | goes on |
//! | `.pgset-before`, `.pgset-before-2`, ... | the database that it replaced | stays until the set's owner lets it go |
//!
//! Two of them may stay for long. Where they are inside of the data directory they have names that `pg_basebackup` leaves out, and by which nobody is
//! rewound to that data.

use std::fs;
use std::path::{Path, PathBuf};

use super::disk::{Disk, Volume};
use super::install::{Mover, REMOVED};
use super::{DataDirectory, MEMBER, Result};

pub(super) const RECOVERED: &str = ".pgset-recovered";
pub(super) const ACCEPTED: &str = ".pgset-accepted";
pub(super) const BEFORE: &str = ".pgset-before";
/// What PostgreSQL's own copies of a data directory leave out begins with this.
pub(super) const LEFT_OUT: &str = "pgsql_tmp";

// === impl DataDirectory ===

impl DataDirectory {
    /// The database that is restored beside this one, or will be.
    #[must_use]
    pub fn recovered(&self) -> Self {
        Self { path: self.named(RECOVERED), inside: false, members: None, searched: None }
    }

    /// An empty directory for it.
    pub fn new_recovered(&self) -> Result<PathBuf> {
        self.remove_recovered()?;
        let path = self.named(RECOVERED);
        Volume.make_directory(&path)?;
        Ok(path)
    }

    /// It is for removal. No server may run there.
    pub fn remove_recovered(&self) -> Result<()> {
        let path = self.named(RECOVERED);
        if path.exists() { self.on(&Volume).put_aside(&path, REMOVED) } else { Ok(()) }
    }

    /// Moves it to its place, and keeps what is there. The Lease must say before that the set goes on from it: from here on a crash goes on as well.
    pub fn accept_recovered(&self) -> Result<()> {
        self.on(&Volume).accept_recovered()
    }

    /// What is kept from before a recovery.
    #[must_use]
    pub fn kept_before(&self) -> Vec<PathBuf> {
        self.all(BEFORE)
    }

    /// How many bytes that is. A large database takes its time.
    #[must_use]
    pub fn size_of_kept(&self) -> u64 {
        self.kept_before().iter().map(|path| size_of(path)).sum()
    }

    /// It is for removal.
    pub fn forget_kept(&self) -> Result<()> {
        self.kept_before().iter().try_for_each(|path| self.on(&Volume).put_aside(path, REMOVED))
    }
}

// === impl Mover ===

impl Mover<'_> {
    pub(super) fn accept_recovered(&self) -> Result<()> {
        let recovered = self.data.named(RECOVERED);
        self.disk.make_file(&recovered.join(MEMBER))?;
        self.disk.sync(&recovered)?;
        self.disk.rename(&recovered, &self.data.named(ACCEPTED))?;
        self.disk.sync(self.data.home())?;
        self.finish()
    }
}

/// Links of files that are elsewhere as well are counted once for each.
fn size_of(directory: &Path) -> u64 {
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => size_of(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    fs::read_dir(directory).into_iter().flatten().flatten().map(size).sum()
}
