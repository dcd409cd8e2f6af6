//! The owner file on its volume. Each operation may wait for storage, so that only the owner's thread calls them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, statfs,
};

/// A file that two may want to write. A seam: tests put faults there.
pub trait Slate: Send {
    /// Makes a text ready, in a file of one's own.
    fn prepare(&mut self, text: &str) -> io::Result<()>;
    /// What stands there now.
    fn read(&self) -> io::Result<Option<String>>;
    /// Puts the prepared text there if nothing is. Returns whether it did; of several, one does.
    fn put_first(&self) -> io::Result<bool>;
    /// Puts the prepared text in the place of whatever is there.
    fn put_over(&self) -> io::Result<()>;
    /// Takes away what is there.
    fn remove(&self) -> io::Result<()>;
    /// Removes what others left that came to prepare a text and never returned.
    fn tidy(&self);
}

/// The file, beside the data directory or inside it.
#[derive(Clone, Debug)]
pub struct Volume {
    path: PathBuf,
    own: PathBuf,
    is_synced: bool,
    /// Nothing new fits on the volume: the text goes in place of another that is as long.
    in_place: Option<String>,
}

/// File systems of one machine: who holds a lock of theirs has it from every process that could write there. What two machines see (NFS,
/// `CephFS`, GFS2), or is unknown (FUSE), may have locks that only one of them knows.
pub fn has_locks_for_all(directory: &Path) -> bool {
    const ZFS_SUPER_MAGIC: FsType = FsType(0x2fc1_2fc1);
    const LOCAL: [FsType; 6] =
        [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC, OVERLAYFS_SUPER_MAGIC, ZFS_SUPER_MAGIC];
    statfs(directory).is_ok_and(|found| LOCAL.contains(&found.filesystem_type()))
}

/// Nothing new fits there, but it answers.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

// === impl Volume ===

impl Volume {
    /// `life` makes the name of the pod's own file; one pod's lives follow each other. Without `is_synced` a beat need not reach the disk: who
    /// would look from another machine does not exist, and a busy disk is not asked to write once a second.
    #[must_use]
    pub fn new(path: PathBuf, life: &str, is_synced: bool) -> Self {
        let mut own = path.clone().into_os_string();
        own.push(format!("-{life}"));
        Self { path, own: own.into(), is_synced, in_place: None }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let create = || OpenOptions::new().write(true).create_new(true).open(&self.own);
        let mut file = match create() {
            // Never into one that is there: it may have the other name as well, by a crash between a link and the end of its first name.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                fs::remove_file(&self.own).and_then(|()| create())?
            }
            outcome => outcome?,
        };
        file.write_all(text.as_bytes())?;
        if self.is_synced { file.sync_all() } else { Ok(()) }
    }

    /// On a volume that was full: over the text that is there, which takes no new room on most file systems.
    fn write_in_place(&self, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }

    fn sync_names(&self) -> io::Result<()> {
        let home = self.path.parent().unwrap_or(Path::new("/"));
        File::open(home)?.sync_all()
    }
}

impl Slate for Volume {
    fn prepare(&mut self, text: &str) -> io::Result<()> {
        self.in_place = None;
        match self.write(text) {
            Err(error) if is_full(&error) => {
                // An empty one would take the place of a good one.
                let _ = fs::remove_file(&self.own);
                self.in_place = Some(text.to_owned());
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn read(&self) -> io::Result<Option<String>> {
        match fs::read(&self.path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn put_first(&self) -> io::Result<bool> {
        if self.in_place.is_some() {
            return Err(ErrorKind::StorageFull.into());
        }
        match fs::hard_link(&self.own, &self.path) {
            Ok(()) => {
                // A second name would keep a replaced file alive on the server, and a client's cache of it true.
                fs::remove_file(&self.own)?;
                self.sync_names().map(|()| true)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(error),
            // A file system without hard links makes a new file for one alone as well, only not with its content.
            Err(_) => match OpenOptions::new().write(true).create_new(true).open(&self.path) {
                Ok(mut file) => {
                    file.write_all(&fs::read(&self.own)?)?;
                    file.sync_all()?;
                    Ok(true)
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(error),
            },
        }
    }

    fn put_over(&self) -> io::Result<()> {
        match &self.in_place {
            Some(text) => self.write_in_place(text),
            None => fs::rename(&self.own, &self.path),
        }
    }

    fn remove(&self) -> io::Result<()> {
        let _ = fs::remove_file(&self.own);
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => self.sync_names(),
        }
    }

    fn tidy(&self) {
        let (Some(home), Some(name)) = (self.path.parent(), self.path.file_name()) else { return };
        let mut prefix = name.to_owned();
        prefix.push("-");
        let entries = fs::read_dir(home).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()))
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}
