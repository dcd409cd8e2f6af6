//! How a former master's database leaves its place to be rewound, and comes back.
//!
//! `pg_rewind` removes from the data directory whatever the master's lacks, a mark and other members' directories too, and copies whatever
//! that has. So it gets a directory with nothing but the database in it, whose name says what is done to it.

use std::fs;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::disk::{Disk, Volume};
use super::install::{DIVERGED, LEAVING, MARKS, Mover, OLD, REWINDING};
use super::{CONTROL_FILE, DataDirectory, PROMOTED, Result, failed, system_at};
use crate::agent::sql::start_of_segment;
use crate::election::lineage::Branch;
use crate::election::{DataState, Lsn};
use crate::errors::with_causes;

/// What describes a server that runs, or a backup, on the other side.
const NOT_OURS: [&str; 4] = ["postmaster.pid", "postmaster.opts", "recovery.signal", PROMOTED];

/// What a database that is about to be rewound has beyond the common history, and of the WAL of that history.
#[derive(Debug)]
pub struct Kept {
    directory: PathBuf,
    common: Vec<PathBuf>,
}

// === impl DataDirectory ===

impl DataDirectory {
    /// A directory with nothing in it but the database. A crash from here on, or [`Self::put_back`], brings it back to its place.
    pub fn lift(&self) -> Result<PathBuf> {
        self.on(&Volume).lift()
    }

    /// The database goes back to its place.
    pub fn put_back(&self) -> Result<()> {
        self.on(&Volume).finish()
    }

    /// The database, which was lifted, is no server's from here on until [`Self::end_rewind`]. Returns where it is rewound.
    pub fn begin_rewind(&self) -> Result<PathBuf> {
        self.on(&Volume).begin_rewind()
    }

    /// The database is whole again: it is a standby, and goes to its place.
    pub fn end_rewind(&self) -> Result<()> {
        self.on(&Volume).end_rewind()
    }

    /// A database whose rewind was broken off, if that is all that there is.
    pub(super) fn half_rewound(&self) -> Option<DataState> {
        let directory = self.named(REWINDING);
        if !directory.is_dir() {
            return None;
        }
        let system = system_at(&directory).map(|system| DataState::HalfRewound { system });
        Some(system.unwrap_or_else(|| {
            DataState::Unusable(format!(
                "{} is a database whose rewind was broken off, without a control file: move it away to let this member be cloned",
                directory.display()
            ))
        }))
    }

    pub(super) fn is_half_rewound(&self) -> bool {
        self.named(REWINDING).is_dir()
    }

    /// Keeps what `pg_rewind` would take away: the control file and the WAL that a lifted database wrote on its own, until it streams, and the
    /// common WAL before that, which it needs to start, while the master may have thrown it away. What can't be kept is told.
    pub fn keep_diverged(&self, lifted: &Path, common: Option<Branch>) -> Kept {
        let directory = self.free(DIVERGED);
        let mut kept = Kept { directory: directory.clone(), common: Vec::new() };
        let outcome = Volume.make_directory(&directory).and_then(|()| {
            let copy = directory.join("pg_control");
            fs::copy(lifted.join(CONTROL_FILE), &copy).map_err(failed("write", &copy))?;
            Volume.sync(&copy)?;
            common.map_or(Ok(()), |common| kept.take(&lifted.join("pg_wal"), common.left_at))
        });
        if let Err(why) = outcome {
            warn!(error = with_causes(&why), "not all that this data has of its own is kept while it is rewound");
        }
        kept
    }
}

// === impl Kept ===

impl Kept {
    /// By links, which cost nothing: `pg_rewind` takes a name away, not the file. A file that the master has too it writes over, which
    /// matters for the one in which the two part.
    fn take(&mut self, wal: &Path, parted_at: Lsn) -> Result<()> {
        for entry in fs::read_dir(wal).map_err(failed("list", wal))?.flatten() {
            let (name, from) = (entry.file_name(), entry.path());
            let Some((begins, ends)) = extent(&from) else { continue };
            let to = self.directory.join(&name);
            if begins <= parted_at && parted_at < ends {
                fs::copy(&from, &to).map_err(failed("write", &to))?;
            } else {
                fs::hard_link(&from, &to).map_err(failed("link", &to))?;
            }
            if ends <= parted_at {
                self.common.push(to);
            }
        }
        Ok(())
    }

    /// The common WAL goes where a server finds it, if the master had it no more.
    pub fn give_back(&self, directory: &Path) -> Result<()> {
        let wal = directory.join("pg_wal");
        for file in &self.common {
            let target = file.file_name().map(|name| wal.join(name)).filter(|target| !target.exists());
            match target {
                Some(target) => Volume.rename(file, &target)?,
                None => Volume.remove(file)?,
            }
        }
        Volume.sync(&wal)
    }
}

/// Whether a rewound database has the WAL with which the master's history begins after the common one. The rest it gets by streaming; without
/// this it would wait for ever, and say nothing.
#[must_use]
pub fn has_wal_after(directory: &Path, common: &Branch) -> bool {
    let files = fs::read_dir(directory.join("pg_wal")).into_iter().flatten().flatten();
    files.map(|entry| entry.path()).any(|file| {
        let timeline = file.file_name().and_then(|name| u32::from_str_radix(name.to_str()?.get(..8)?, 16).ok());
        timeline.is_some_and(|timeline| timeline > common.timeline)
            && extent(&file).is_some_and(|(begins, ends)| begins <= common.left_at && common.left_at < ends)
    })
}

/// From where to where a file of WAL goes; absent of any other file.
fn extent(file: &Path) -> Option<(Lsn, Lsn)> {
    let name = file.file_name()?.to_str()?;
    if name.len() != 24 || !name.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let size = fs::metadata(file).ok()?.len();
    let begins = start_of_segment(name, &size.to_string())?;
    Some((begins, Lsn(begins.0.checked_add(size)?)))
}

// === impl Mover ===

impl Mover<'_> {
    pub(super) fn lift(&self) -> Result<PathBuf> {
        if !self.data.inside {
            return Ok(self.data.path.clone());
        }
        let leaving = self.data.named(LEAVING);
        self.move_out(&leaving)?;
        Ok(leaving)
    }

    pub(super) fn begin_rewind(&self) -> Result<PathBuf> {
        self.keep_half_rewound()?;
        let lifted = if self.data.inside { self.data.named(LEAVING) } else { self.data.path.clone() };
        let rewinding = self.data.named(REWINDING);
        self.disk.rename(&lifted, &rewinding)?;
        self.disk.sync(self.data.home())?;
        Ok(rewinding)
    }

    pub(super) fn end_rewind(&self) -> Result<()> {
        let rewinding = self.data.named(REWINDING);
        for name in NOT_OURS {
            self.disk.remove(&rewinding.join(name))?;
        }
        for name in MARKS.into_iter().chain(["standby.signal"]) {
            self.disk.make_file(&rewinding.join(name))?;
        }
        self.disk.sync(&rewinding)?;
        self.seal(&rewinding)?;
        self.finish()
    }

    /// A database whose rewind was broken off is kept like any other that is replaced.
    pub(super) fn keep_half_rewound(&self) -> Result<()> {
        let rewinding = self.data.named(REWINDING);
        if rewinding.is_dir() { self.put_aside(&rewinding, OLD) } else { Ok(()) }
    }
}
