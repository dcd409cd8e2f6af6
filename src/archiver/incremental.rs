//! Base backups that hold only what has changed since a full one: what PostgreSQL needs to make one, and how both become one again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::statvfs::statvfs;
use tokio::process::Command;

use super::programs::last_line;
use super::store::{self, Store};
use crate::backup::index::Index;
use crate::backup::layout::{self, INDEX, MANIFEST};
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
        "the base backup {id} takes {needed} MB while it is restored, and only {free} MB are free on the volume: make it larger{hint}"
    )]
    Room {
        /// Which one.
        id: String,
        /// What it takes.
        needed: u64,
        /// What there is.
        free: u64,
        /// What else helps.
        hint: &'static str,
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

/// Brings PostgreSQL's list of what a full backup holds.
pub(super) async fn bring_manifest(store: &Store, parent: &Index, run: &Path) -> Result<PathBuf, store::Error> {
    let path = run.join(PARENTS_MANIFEST);
    let key = layout::backup(&parent.id, MANIFEST);
    let Some(bytes) = store.get(&key).await? else { return Err(store::Error::Store(format!("{key} is gone"))) };
    let write = || fs::write(&path, store.identities().decrypt(bytes)?);
    write().map_err(|source| store::Error::File { path: path.clone(), source })?;
    Ok(path)
}

/// An order may have let the full backup go meanwhile: what stands upon it would be no backup.
pub(super) async fn check_parent(store: &Store, parent: Option<&Index>) -> Result<(), store::Error> {
    let Some(parent) = parent else { return Ok(()) };
    match store.size(&layout::backup(&parent.id, INDEX)).await? {
        Some(_) => Ok(()),
        None => Err(store::Error::Store(format!(
            "the base backup {} was deleted while another was made upon it",
            parent.id
        ))),
    }
}

/// Says whether the volume has the room for a restore, before it begins. One that has not said so to the kernel is believed.
pub(super) fn check_room(index: &Index, parent: Option<&Index>, directory: &Path) -> Result<(), Error> {
    let needed = SPARE
        + match parent {
            None => index.size,
            Some(parent) if major(&index.version) >= LINKS_SINCE => parent.size + 2 * index.size,
            // Both parts, and what they become.
            Some(parent) => 2 * (parent.size + index.size),
        };
    let Ok(volume) = statvfs(directory) else { return Ok(()) };
    let free = volume.blocks_available() * volume.fragment_size();
    if volume.blocks() == 0 || free >= needed {
        return Ok(());
    }
    let hint = if parent.is_some() { ", or restore from a full base backup (pgset.dev/recover-to)" } else { "" };
    Err(Error::Room { id: index.id.clone(), needed: needed >> 20, free: free >> 20, hint })
}

/// Makes one database of the two parts that lie in a directory, in their place.
pub(super) async fn combine(binaries: &Path, index: &Index, directory: &Path) -> Result<(), Error> {
    let program = binaries.join("pg_combinebackup");
    if !program.is_file() {
        return Err(Error::NoProgram(index.id.clone()));
    }
    let [full, changed, combined] = [FULL, CHANGED, COMBINED].map(|name| directory.join(name));
    let mut command = Command::new(program);
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
        check_room(&small, None, directory.path()).unwrap();
        let large = Index { size: 1 << 60, ..small.clone() };
        let why = check_room(&large, None, directory.path()).unwrap_err().to_string();
        assert!(why.starts_with("the base backup 20261101 takes 1099511628032 MB"), "{why}");
        let why = check_room(&small, Some(&large), directory.path()).unwrap_err().to_string();
        assert!(why.contains("2199023255808 MB") && why.ends_with("(pgset.dev/recover-to)"), "{why}");
    }
}
