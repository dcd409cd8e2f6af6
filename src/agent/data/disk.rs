//! The steps that change a data volume. A crash may come before any of them, so that tests put one there.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::{Result, failed};

/// What is done to the volume, each step whole or not at all but for [`Disk::remove`].
pub trait Disk {
    /// Makes a directory for the PostgreSQL user alone. One that is there already is as good.
    fn make_directory(&self, path: &Path) -> Result<()>;
    /// Makes an empty file.
    fn make_file(&self, path: &Path) -> Result<()>;
    /// Moves a file, or a directory with all that is in it. Only an empty directory gives way to it.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file, or a directory with all that is in it. What is missing is removed.
    fn remove(&self, path: &Path) -> Result<()>;
    /// Makes a file's content, or the names in a directory, last.
    fn sync(&self, path: &Path) -> Result<()>;
}

/// The volume itself.
pub struct Volume;

// === impl Volume ===

impl Disk for Volume {
    fn make_directory(&self, path: &Path) -> Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            outcome => outcome.map_err(failed("make", path)),
        }
    }

    fn make_file(&self, path: &Path) -> Result<()> {
        File::create(path).and_then(|file| file.sync_all()).map_err(failed("make", path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(failed("move data to", to))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let is_directory = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
        let outcome = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        match outcome {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
            _ => Ok(()),
        }
    }

    fn sync(&self, path: &Path) -> Result<()> {
        File::open(path).and_then(|file| file.sync_all()).map_err(failed("sync", path))
    }
}
