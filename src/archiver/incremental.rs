//! Base backups that hold only what has changed since a full one: what PostgreSQL needs to make one, and how both become one again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::statvfs::statvfs;
use tokio::process::Command;
use tracing::warn;

use super::place::Place;
use super::programs::last_line;
use super::store::{self, Store};
use crate::backup::index::Index;
use crate::backup::layout::{self, INDEX, MANIFEST, TAR};
use crate::backup::limit::LEFT_FREE;
use crate::backup::line::Line;
use crate::backup::parent::major;

/// In the agent's run directory: the list of what the full backup holds.
const PARENTS_MANIFEST: &str = "backup_manifest";
/// Where the parts lie while they become one, in the directory that is restored.
pub(super) const FULL: &str = ".pgset-full";
pub(super) const CHANGED: &str = ".pgset-changed";
const COMBINED: &str = ".pgset-combined";
/// The first `pg_combinebackup` that links files that are whole in one of the parts, instead of copying them.
const LINKS_SINCE: u32 = 18;
/// What a restored database needs besides its files: WAL.
const SPARE: u64 = 256 << 20;

/// Why two backups did not become one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program.
    #[error("pg_combinebackup failed: {0}")]
    Program(String),
    /// The program is not there.
    #[error(
        "the image has no pg_combinebackup, without which the base backup {0} can't be restored: take the image that the set had"
    )]
    NoProgram(String),
    /// The volume.
    #[error(
        "the base backup {id} takes {needed} MB while it is restored, and only {free} MB are free on the volume: make it larger"
    )]
    Room {
        /// Which one.
        id: String,
        /// What it takes.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// A file.
    #[error("failed to write below {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Brings PostgreSQL's list of what a full backup holds; absent if it is gone, or can't be read: then nothing can stand upon that backup.
pub(super) async fn bring_manifest(store: &Store, parent: &Index, run: &Path) -> Result<Option<PathBuf>, store::Error> {
    let key = layout::backup(&parent.id, MANIFEST);
    let manifest = match store.get(&key).await? {
        None => Err("it is gone".to_owned()),
        Some(bytes) => store.identities().decrypt(bytes).map_err(|why| why.to_string()),
    };
    match manifest {
        Ok(manifest) => {
            let path = run.join(PARENTS_MANIFEST);
            fs::write(&path, manifest).map_err(|source| store::Error::File { path: path.clone(), source })?;
            Ok(Some(path))
        }
        Err(why) => {
            warn!(key, why, "nothing can stand upon this full base backup: another one is made");
            Ok(None)
        }
    }
}

/// Whether a full backup is all there still, and the database still goes on from it: an order, or somebody else, may have let it go while another was
/// made upon it, or a change of the master left it behind. What stands upon it would be none.
pub(super) async fn check_parent(store: &Store, parent: &Index, line: &Line) -> Result<(), store::Error> {
    if !line.goes_on_from(parent) {
        return Err(store::Error::Store(format!(
            "the base backup {} was left behind by timeline {} while another was made upon it",
            parent.id, line.timeline
        )));
    }
    let is_listed = store.size(&layout::backup(&parent.id, INDEX)).await?.is_some();
    if is_listed && store.size(&layout::backup(&parent.id, TAR)).await? == Some(parent.stored) {
        return Ok(());
    }
    Err(store::Error::Store(format!("the base backup {} went while another was made upon it", parent.id)))
}

/// Says whether the volume has the room for a restore, before it begins. One that has not said so to the kernel is believed.
pub(super) fn check_room(index: &Index, parent: Option<&Index>, place: &Place) -> Result<(), Error> {
    let Ok(volume) = statvfs(&place.directory) else { return Ok(()) };
    let size = volume.blocks() * volume.fragment_size();
    let needed = SPARE
        + if place.is_beside { size / LEFT_FREE } else { 0 }
        + match parent {
            None => index.size,
            // Both parts, and what they become: also where links are made, of files that changed there are two.
            Some(parent) => 2 * (parent.size + index.size),
        };
    let free = volume.blocks_available() * volume.fragment_size();
    if size == 0 || free >= needed {
        return Ok(());
    }
    Err(Error::Room { id: index.id.clone(), needed: needed >> 20, free: free >> 20 })
}

/// Says whether two parts can become one here, before they are brought.
pub(super) fn check(index: &Index, parent: &Index, binaries: &Path, place: &Place) -> Result<(), Error> {
    if !program(binaries).is_file() {
        return Err(Error::NoProgram(index.id.clone()));
    }
    check_room(index, Some(parent), place)
}

fn program(binaries: &Path) -> PathBuf {
    binaries.join("pg_combinebackup")
}

/// Makes one database of the two parts that lie in a directory, in their place.
pub(super) async fn combine(binaries: &Path, index: &Index, directory: &Path) -> Result<(), Error> {
    let [full, changed, combined] = [FULL, CHANGED, COMBINED].map(|name| directory.join(name));
    let mut command = Command::new(program(binaries));
    command.arg(&full).arg(&changed).arg("--output").arg(&combined).env("LC_ALL", "C").stdin(Stdio::null());
    if major(&index.version) >= LINKS_SINCE {
        command.arg("--link");
    }
    let output = command.output().await.map_err(|error| Error::Program(error.to_string()))?;
    if !output.status.success() {
        return Err(Error::Program(last_line(&output.stderr)));
    }
    let place = || {
        for part in [&full, &changed] {
            fs::remove_dir_all(part)?;
        }
        for entry in fs::read_dir(&combined)? {
            let entry = entry?;
            fs::rename(entry.path(), directory.join(entry.file_name()))?;
        }
        fs::remove_dir(&combined)
    };
    place().map_err(|source| Error::Write { path: directory.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::index::tests::backup;

    #[test]
    fn a_restore_that_the_volume_has_no_room_for_is_refused_before_it_begins() {
        let directory = tempfile::tempdir().unwrap();
        let small = backup(1, 1, 1);
        let place = Place::new(directory.path());
        check_room(&small, None, &place).unwrap();
        let large = Index { size: 1 << 60, ..small.clone() };
        let why = check_room(&large, None, &place).unwrap_err().to_string();
        assert!(why.starts_with("the base backup 20261101 takes 1099511628032 MB"), "{why}");
        let why = check_room(&small, Some(&large), &place).unwrap_err().to_string();
        assert!(why.contains("2199023255808 MB"), "{why}");
    }
}
