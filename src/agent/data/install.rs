//! How a new database takes its place and what it replaces is kept, so that after a crash at any point the next start ends with one
//! whole database.
//!
//! How far it has come is told by the names of directories, beside the data directory or inside it, and a rename leads from one to the
//! next:
//!
//! | name | what it is | after a crash |
//! |---|---|---|
//! | `.pgset-staging` | a database that is being made | is removed |
//! | `.pgset-complete` | a whole new database on its way to its place | goes on |
//! | `.pgset-leaving` | inside only: what of the replaced database has left its place already, or of one that is to be rewound | the rest follows; it comes back |
//! | `.pgset-rewinding` | a former master's database while it is rewound | is cloned anew, and this is kept until then |
//! | `.pgset-diverged` | what a database that is rewound had written on its own: WAL and the control file | stays until it streams |
//! | `.pgset-old`, `.pgset-old-2`, ... | whole databases that were replaced | stay until the new one streams |
//! | `.pgset-removed`, `.pgset-removed-2`, ... | what is not needed any more | is removed |
//!
//! Beside the data directory whole directories are renamed; inside it their entries are, `global` with the control file as the first
//! to leave and the last to come, so that a part of a database is none to anybody.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::beside::{ACCEPTED, BEFORE, LEFT_OUT, RECOVERED};
use super::disk::{Disk, Volume};
use super::{DataDirectory, Error, MEMBER, Result, failed, system_at};
use crate::election::SystemIdentifier;
use crate::errors::with_causes;

const STAGING: &str = ".pgset-staging";
const COMPLETE: &str = ".pgset-complete";
pub(super) const LEAVING: &str = ".pgset-leaving";
pub(super) const REWINDING: &str = ".pgset-rewinding";
pub(super) const DIVERGED: &str = ".pgset-diverged";
pub(super) const OLD: &str = ".pgset-old";
pub(super) const REMOVED: &str = ".pgset-removed";
/// So many directories of one name are never there; on a volume that can't be read, the search for a free one ends.
const MOST: u32 = 100;
/// All that the agent keeps on the volume for itself is called like this.
const OWN: &str = ".pgset-";
/// In a clone that has not streamed yet: it is not worth keeping beside the database that it replaced.
pub(super) const UNPROVEN: &str = ".pgset-unproven";
/// The agent's files that belong to a database, and move with it.
pub(super) const MARKS: [&str; 2] = [MEMBER, UNPROVEN];

/// Where a new database comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was made here.
    Bootstrap,
    /// It was copied from a master of this database.
    Clone(SystemIdentifier),
}

// === impl DataDirectory ===

impl DataDirectory {
    /// An empty staging directory.
    pub fn new_staging(&self) -> Result<PathBuf> {
        self.on(&Volume).new_staging()
    }

    /// Moves the database in the staging directory, which is complete, to its place, and one that is there already aside.
    pub fn install(&self, origin: Origin) -> Result<()> {
        self.on(&Volume).install(origin)
    }

    /// Finishes what an earlier life of this member left: a complete database goes to its place, a part of one is for removal.
    pub fn recover(&self) -> Result<()> {
        self.on(&Volume).recover()
    }

    /// Finishes a move that an error stopped.
    pub(super) fn finish(&self) -> Result<()> {
        self.on(&Volume).finish()
    }

    /// The database here streams from a master of `system`: what it replaced is for removal, if it was the same database.
    pub fn release_kept(&self, system: SystemIdentifier) -> Result<()> {
        self.on(&Volume).release_kept(system)
    }

    /// Removes what is for removal, in the background: a large tree on a network volume takes its time, and after a crash the next start
    /// goes on with it.
    pub fn remove_released(&self) {
        let data = self.clone();
        tokio::task::spawn_blocking(move || {
            data.on(&Volume)
                .remove_released()
                .map_err(|why| warn!(error = with_causes(&why), "old data was not removed"))
        });
    }

    pub(super) fn on<'a>(&'a self, disk: &'a dyn Disk) -> Mover<'a> {
        Mover { data: self, disk }
    }

    /// Where the agent's directories are.
    pub(super) fn home(&self) -> &Path {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        if self.inside { &self.path } else { parent }
    }

    fn base(&self, suffix: &str) -> OsString {
        let stays = [RECOVERED, BEFORE].iter().any(|name| suffix.starts_with(name));
        let mut name = match self.inside {
            true if stays => OsString::from(LEFT_OUT),
            true => OsString::new(),
            false => self.path.file_name().unwrap_or_default().to_owned(),
        };
        name.push(suffix);
        name
    }

    /// A name of the agent's own, beside or inside the data directory.
    #[must_use]
    pub fn named(&self, suffix: &str) -> PathBuf {
        self.home().join(self.base(suffix))
    }

    /// Those of a name that there are: without a number and with one.
    pub(super) fn all(&self, suffix: &str) -> Vec<PathBuf> {
        let base = self.base(suffix);
        let is_one = |name: &OsStr| {
            let rest = name.as_encoded_bytes().strip_prefix(base.as_encoded_bytes());
            rest.is_some_and(|rest| {
                rest.is_empty() || rest.starts_with(b"-") && rest[1..].iter().all(u8::is_ascii_digit)
            })
        };
        let entries = fs::read_dir(self.home()).into_iter().flatten().flatten();
        entries.filter(|entry| is_one(&entry.file_name())).map(|entry| entry.path()).collect()
    }

    /// The first of a name that is not taken, or where nothing is in it.
    pub(super) fn free(&self, suffix: &str) -> PathBuf {
        let numbered = (2..MOST).map(|number| self.named(&format!("{suffix}-{number}")));
        let mut names = std::iter::once(self.named(suffix)).chain(numbered);
        names.find(|path| names_in(path).is_ok_and(|names| names.is_empty())).unwrap_or_else(|| self.named(suffix))
    }

    /// What the data directory holds, the marks too, without what the agent, the file system and the other members keep there.
    fn content(&self) -> Result<Vec<OsString>> {
        let is_members =
            |name: &OsStr| self.members.as_ref().is_some_and(|members| members.starts_with(self.path.join(name)));
        let mut names = names_in(&self.path)?;
        names.retain(|name| !is_own(name) && name != "lost+found" && !is_members(name));
        Ok(names)
    }

    /// The same without the marks.
    pub(super) fn entries(&self) -> Result<Vec<OsString>> {
        let mut names = self.content()?;
        names.retain(|name| !is_mark(name));
        Ok(names)
    }

    fn has_whole_copies(&self) -> bool {
        self.all(OLD).iter().any(|copy| system_at(copy).is_some())
    }
}

/// A data directory, and the disk that it is on.
pub(super) struct Mover<'a> {
    pub(super) data: &'a DataDirectory,
    pub(super) disk: &'a dyn Disk,
}

// === impl Mover ===

impl Mover<'_> {
    fn new_staging(&self) -> Result<PathBuf> {
        let staging = self.data.named(STAGING);
        self.disk.remove(&staging)?;
        self.disk.make_directory(&staging)?;
        Ok(staging)
    }

    fn install(&self, origin: Origin) -> Result<()> {
        let staging = self.data.named(STAGING);
        if let Origin::Clone(expected) = origin {
            let found = system_at(&staging);
            if found != Some(expected) {
                return Err(Error::OtherDatabase { found, expected });
            }
            MARKS.iter().try_for_each(|mark| self.disk.make_file(&staging.join(mark)))?;
        }
        self.disk.sync(&staging)?;
        self.seal(&staging)?;
        self.finish()
    }

    pub(super) fn seal(&self, staging: &Path) -> Result<()> {
        self.disk.rename(staging, &self.data.named(COMPLETE))?;
        self.disk.sync(self.data.home())
    }

    fn recover(&self) -> Result<()> {
        self.finish()?;
        let staging = self.data.named(STAGING);
        if staging.exists() { self.put_aside(&staging, REMOVED) } else { Ok(()) }
    }

    pub(super) fn finish(&self) -> Result<()> {
        self.take_up_0_1_0()?;
        let (complete, accepted) = (self.data.named(COMPLETE), self.data.named(ACCEPTED));
        let (new, old) = match (complete.is_dir(), accepted.is_dir()) {
            (true, _) => (complete, OLD),
            (false, true) => (accepted, BEFORE),
            (false, false) => return self.put_back(),
        };
        self.sweep(&new)?;
        self.keep_half_rewound()?;
        if self.data.inside { self.finish_inside(&new, old) } else { self.finish_beside(&new, old) }
    }

    fn finish_beside(&self, complete: &Path, old: &str) -> Result<()> {
        let path = &self.data.path;
        let there = names_in(path)?;
        if !there.is_empty() && there.iter().all(|name| is_mark(name)) {
            self.put_aside(path, REMOVED)?;
        } else if !there.is_empty() {
            self.keep(path, old)?;
        }
        self.disk.rename(complete, path)?;
        self.disk.sync(self.data.home())
    }

    fn finish_inside(&self, complete: &Path, old: &str) -> Result<()> {
        let (path, leaving) = (&self.data.path, self.data.named(LEAVING));
        // The new one's comes last: as long as both have one, the one here is the old one's.
        let is_replaced = path.join("global").exists() && complete.join("global").exists();
        if is_replaced || leaving.exists() {
            self.move_out(&leaving)?;
            self.keep(&leaving, old)?;
        }
        self.move_in(complete)
    }

    /// Moves the database out of its place, to a directory of the agent's own inside of it.
    pub(super) fn move_out(&self, leaving: &Path) -> Result<()> {
        self.disk.make_directory(leaving)?;
        self.disk.sync(&self.data.path)?;
        let mut names = self.data.content()?;
        names.sort_by_key(|name| name != "global");
        self.move_entries(&names, &self.data.path, leaving)
    }

    /// Keeps what was replaced as a copy of its own. A clone that never streamed is not worth it beside the copy that it replaced.
    fn keep(&self, replaced: &Path, old: &str) -> Result<()> {
        let never_streamed = replaced.join(UNPROVEN).exists() && replaced.join("standby.signal").exists();
        let is_worthless = old == OLD && never_streamed && self.data.has_whole_copies();
        self.put_aside(replaced, if is_worthless { REMOVED } else { old })
    }

    pub(super) fn put_aside(&self, directory: &Path, suffix: &str) -> Result<()> {
        self.disk.rename(directory, &self.data.free(suffix))?;
        self.disk.sync(self.data.home())
    }

    /// Moves the entries of a directory of the agent's own to their place, and removes it.
    fn move_in(&self, from: &Path) -> Result<()> {
        let (last, first): (Vec<_>, Vec<_>) = names_in(from)?.into_iter().partition(|name| name == "global");
        self.move_entries(&first, from, &self.data.path)?;
        self.move_entries(&last, from, &self.data.path)?;
        self.disk.remove(from)
    }

    /// Nothing that is there already gives way, but for an earlier mark.
    fn move_entries(&self, names: &[OsString], from: &Path, to: &Path) -> Result<()> {
        for name in names {
            let target = to.join(name);
            if !is_mark(name) && fs::symlink_metadata(&target).is_ok() {
                return Err(Error::InTheWay { path: target });
            }
            self.disk.rename(&from.join(name), &target)?;
        }
        self.disk.sync(to)?;
        self.disk.sync(from)
    }

    /// Somebody has taken the new database away while the old one was leaving: that comes back.
    fn put_back(&self) -> Result<()> {
        let leaving = self.data.named(LEAVING);
        if leaving.is_dir() { self.move_in(&leaving) } else { Ok(()) }
    }

    /// What the master's agent and file system keep in its data directory came along.
    fn sweep(&self, complete: &Path) -> Result<()> {
        let strangers = names_in(complete)?.into_iter().filter(|name| is_own(name) || name == "lost+found");
        strangers.map(|name| complete.join(name)).try_for_each(|path| self.disk.remove(&path))
    }

    /// 0.1.0 marked a complete staging directory by a file in it.
    fn take_up_0_1_0(&self) -> Result<()> {
        let (path, staging, old) = (&self.data.path, self.data.named(STAGING), self.data.named(OLD));
        if !staging.join(COMPLETE).is_file() {
            return Ok(());
        }
        let is_part = self.data.inside && !path.join("global").exists() && staging.join("global").exists();
        if is_part && old.is_dir() {
            // What the new one still has is the old one's here.
            let mut names = self.data.content()?;
            names.retain(|name| staging.join(name).exists());
            self.move_entries(&names, path, &old)?;
        }
        self.seal(&staging)
    }

    fn release_kept(&self, system: SystemIdentifier) -> Result<()> {
        let path = &self.data.path;
        if system_at(path) != Some(system) {
            return Ok(());
        }
        let unproven = path.join(UNPROVEN);
        if unproven.exists() {
            self.disk.remove(&unproven)?;
            self.disk.sync(path)?;
        }
        for diverged in self.data.all(DIVERGED) {
            self.put_aside(&diverged, REMOVED)?;
        }
        for copy in self.data.all(OLD) {
            if system_at(&copy) == Some(system) {
                self.put_aside(&copy, REMOVED)?;
            } else {
                warn!(path = %copy.display(), "not removed: it is no copy of the set's database; remove it once you need it no more");
            }
        }
        Ok(())
    }

    fn remove_released(&self) -> Result<()> {
        self.data.all(REMOVED).iter().try_for_each(|path| self.disk.remove(path))
    }
}

fn is_mark(name: &OsStr) -> bool {
    MARKS.iter().any(|mark| name == *mark)
}

fn is_own(name: &OsStr) -> bool {
    let name_without = name.as_encoded_bytes().strip_prefix(LEFT_OUT.as_bytes()).unwrap_or(name.as_encoded_bytes());
    name_without.starts_with(OWN.as_bytes()) && !is_mark(name)
}

/// A directory that is missing, as somebody moved it away, holds nothing.
fn names_in(directory: &Path) -> Result<Vec<OsString>> {
    let list = || -> io::Result<_> { fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect() };
    match list() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        outcome => outcome.map_err(failed("list", directory)),
    }
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
