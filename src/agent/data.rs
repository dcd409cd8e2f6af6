//! The data directory: what is on it, who may use it, and how a new one takes its place when it is complete.
//!
//! A clone or a new database is made in a staging directory and moved in when complete, so that a member that dies half-way starts
//! over instead of serving half a database. The staging directory stands beside the data directory, or, where that is the mount
//! itself or its parent is not writable, inside it. A data directory that is a symbolic link is where the link leads.

mod beside;
mod disk;
mod install;
mod rewinding;
mod timelines;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use self::disk::{Disk, Volume};
pub use self::{install::Origin, rewinding::has_wal_after};
use super::binaries::Binaries;
use super::control::ControlData;
use super::mounts;
use super::place::Place;
use super::processes::Processes;
use super::search;
use crate::election::lineage::{Lineage, branches, history_file};
use crate::election::{DataState, SystemIdentifier};
use crate::errors::with_causes;
use crate::set::OLDEST_POSTGRESQL;

/// The lock's name, beside the data directory or inside it.
const LOCK: &str = ".pgset-lock";
/// The name of the file that says whose the directory is, in the same place.
const OWNER: &str = ".pgset-owner";
/// Where a database keeps what it is.
const CONTROL_FILE: &str = "global/pg_control";
/// In a data directory that a member has served from under the agent, and in all that were cloned from it.
const MEMBER: &str = ".pgset-member";
/// In a data directory that was promoted by hand; it goes where the data goes, and says what it is to whoever looks.
const PROMOTED: &str = "pgset-promoted";
/// What it says.
const PROMOTED_TEXT: &str = "Somebody promoted this replica (pg_promote, pg_ctl promote) while it did not hold the set's Lease, so pgset stopped it.\n\
                             What it wrote since is on no other member. Move the data off the volume to let the member be cloned anew, or, if this\n\
                             is to be the set's data from now on, remove this file and the other members' data.\n";
/// What a stranger finds in the directory of the other members.
const README: &str = "The data directories of the other members of a PostgreSQL set (pgset.dev), one for each pod.\n\
                      The first member's is where it was before the set was annotated. Do not remove this while they run.\n";

/// Why the data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation.
    #[error("failed to {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another container or pod has it open.
    #[error("{} is locked: another container or pod uses this data directory; two servers on one directory would destroy it", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A file that is not the agent's stands where the new database goes.
    #[error("{} is in the way of a database that goes there: move it away", path.display())]
    InTheWay {
        /// The file or directory.
        path: PathBuf,
    },
    /// What was copied is not what should have been.
    #[error(
        "the copy is of another database (system identifier {}, the set's is {expected}): it is not used",
        found.map_or_else(|| "unknown".to_owned(), |found| found.to_string())
    )]
    OtherDatabase {
        /// What the copy says.
        found: Option<SystemIdentifier>,
        /// What the set is.
        expected: SystemIdentifier,
    },
}

type Result<T, E = Error> = std::result::Result<T, E>;

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}

/// A member's data directory.
#[derive(Clone, Debug)]
pub struct DataDirectory {
    path: PathBuf,
    inside: bool,
    /// The other members' directory, which may lie inside and is theirs.
    members: Option<PathBuf>,
    searched: Option<PathBuf>,
}

/// What changes when the data in the directory is exchanged for other data; cheap enough to look at every second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    control_file: Option<(u64, u64, i64, i64)>,
    standby: bool,
    half_rewound: bool,
}

/// Held as long as this member may touch the data directory.
#[derive(Debug)]
pub struct Lock(Option<File>);

// === impl Lock ===

impl Lock {
    /// The file system has locks, and this one is held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.is_some()
    }
}

// === impl DataDirectory ===

impl DataDirectory {
    /// The directory exists already and belongs to the PostgreSQL user.
    pub fn open(place: &Place) -> Result<Self> {
        let Place { directory, members, searched, .. } = place.clone();
        // A link with a slash behind it would not be known as one.
        let directory: PathBuf = directory.components().collect();
        let is_link = fs::symlink_metadata(&directory).is_ok_and(|found| found.is_symlink());
        let real = |path: &Path| mounts::resolved(path).map_err(failed("find", path));
        // A clone that replaced the link would be off the volume.
        let path = if is_link { real(&directory)? } else { directory };
        let members = if is_link { members.as_deref().map(real).transpose()? } else { members };
        let mode = fs::metadata(&path).map_err(failed("find", &path))?.permissions().mode();
        if mode & 0o027 != 0 {
            // PostgreSQL refuses a directory that others may read; a volume's root often is one.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                .map_err(failed("restrict the mode of", &path))?;
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        let holds_members = members.as_ref().is_some_and(|members| members.starts_with(&path));
        let inside = holds_members
            || mounts::is_mount_point(&path).map_err(failed("find the mounts of", &path))?
            || !is_writable(parent);
        if let Some(members) = members.as_ref().filter(|members| path.starts_with(members)) {
            // For people; nobody reads it to decide anything.
            let _ = fs::write(members.join("README"), README);
        }
        Ok(Self { path, inside, members, searched })
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock, which ends with this process. A file system without locks (some NFS exports) is told and accepted.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.named(LOCK);
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(Some(file))),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path }),
            Err(TryLockError::Error(error)) => {
                tracing::warn!(path = %path.display(), %error, "the file system has no locks: the owner file and the Lease keep two servers apart");
                Ok(Lock(None))
            }
        }
    }

    /// The file that says whose the directory is.
    #[must_use]
    pub fn owner_file(&self) -> PathBuf {
        self.named(OWNER)
    }

    /// Looks at what is there.
    pub async fn inspect(&self, binaries: &Binaries, processes: &Processes) -> DataState {
        if let Err(why) = self.finish() {
            return DataState::Unusable(with_causes(&why));
        }
        match self.look() {
            Ok(Some(())) => self.read_control_file(binaries, processes).await,
            Ok(None) => match self.half_rewound() {
                Some(data) => data,
                None => self.search().await,
            },
            Err(why) => DataState::Unusable(why),
        }
    }

    /// What tells this data from other data.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let control_file = fs::metadata(self.path.join(CONTROL_FILE)).ok();
        Fingerprint {
            control_file: control_file.map(|found| (found.dev(), found.ino(), found.mtime(), found.mtime_nsec())),
            standby: self.standby_signal().exists(),
            half_rewound: self.is_half_rewound(),
        }
    }

    /// An empty directory is for a new database only where there is no other one.
    async fn search(&self) -> DataState {
        let Some(root) = self.searched.clone() else { return DataState::Empty };
        let left_out: Vec<PathBuf> =
            self.members.clone().filter(|members| !root.starts_with(members)).into_iter().collect();
        let found = tokio::task::spawn_blocking(move || search::another_database(&root, &left_out)).await;
        match found {
            Ok(None) => DataState::Empty,
            Ok(Some(found)) => DataState::Unusable(format!("{}: {found}", self.path.display())),
            Err(error) => DataState::Unusable(format!("the data volume can't be looked through: {error}")),
        }
    }

    /// The major version of the database, if there is one; of 9.6 it is 9.
    #[must_use]
    pub fn major(&self) -> Option<u32> {
        major_of(&self.version()?)
    }

    fn version(&self) -> Option<String> {
        Some(fs::read_to_string(self.path.join("PG_VERSION")).ok()?.trim().to_owned())
    }

    /// The version of a database that is older than the agent knows how to run.
    #[must_use]
    pub fn too_old(&self) -> Option<String> {
        self.version().filter(|version| major_of(version).is_some_and(|major| major < OLDEST_POSTGRESQL))
    }

    /// Whether a replica's data was promoted: PostgreSQL removes the file when it ends recovery, before it accepts writes.
    #[must_use]
    pub fn is_promoted(&self) -> bool {
        self.standby_signal().try_exists().is_ok_and(|exists| !exists)
    }

    /// Notes that this data has been served from under the agent.
    pub fn mark_member(&self) -> Result<()> {
        let mark = self.path.join(MEMBER);
        if mark.exists() {
            return Ok(());
        }
        self.make_file(&mark)
    }

    /// Notes that this data has left the set's history by a promotion that was not the agent's: neither served nor removed from now on.
    pub fn mark_promoted(&self) -> Result<()> {
        let mark = self.path.join(PROMOTED);
        fs::write(&mark, PROMOTED_TEXT).map_err(failed("write", &mark))?;
        Volume.sync(&mark)?;
        Volume.sync(&self.path)
    }

    fn look(&self) -> std::result::Result<Option<()>, String> {
        let version = self.path.join("PG_VERSION");
        match fs::read_to_string(&version) {
            Ok(text) => match text.trim().parse::<u32>() {
                Ok(major) if major >= OLDEST_POSTGRESQL && self.path.join(CONTROL_FILE).is_file() => {
                    if self.path.join(PROMOTED).exists() { Err(self.promoted()) } else { Ok(Some(())) }
                }
                Ok(major) if major >= OLDEST_POSTGRESQL => Err(format!(
                    "{} has no global/pg_control: an initdb or copy of somebody else's ended half-way; move it away",
                    self.path.display()
                )),
                _ => Err(format!(
                    "{} says {:?}: PostgreSQL {OLDEST_POSTGRESQL} or newer is needed",
                    version.display(),
                    text.trim()
                )),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match self.entries().map_err(|error| error.to_string())?.first() {
                    None => Ok(None),
                    Some(name) => Err(format!(
                        "{} holds {} but no database (no PG_VERSION): set PGDATA to a directory of its own, or move the files away",
                        self.path.display(),
                        name.display()
                    )),
                }
            }
            Err(error) => Err(format!("{}: {error}", version.display())),
        }
    }

    fn promoted(&self) -> String {
        format!(
            "this replica was promoted by hand while it did not hold the set's Lease: its data stays as it is; move {} off the volume to let this \
             member be cloned anew, or, if this is to be the set's data from now on, remove {PROMOTED} from it and the other members' data",
            self.path.display()
        )
    }

    async fn read_control_file(&self, binaries: &Binaries, processes: &Processes) -> DataState {
        let mut command = binaries.command("pg_controldata");
        command.env("LC_ALL", "C").arg("-D").arg(&self.path);
        let output = match processes.output(&mut command).await {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
            Ok(output) => {
                return DataState::Unusable(format!(
                    "pg_controldata: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                ));
            }
            Err(error) => return DataState::Unusable(format!("pg_controldata can't be run: {error}")),
        };
        match ControlData::parse(&output) {
            Some(control) => DataState::Cluster {
                system: control.system,
                standby: self.standby_signal().exists(),
                lineage: self.lineage(&control),
            },
            None => DataState::Unusable("pg_controldata names no system identifier or no timeline".to_owned()),
        }
    }

    fn lineage(&self, control: &ControlData) -> Lineage {
        let history = self.path.join("pg_wal").join(history_file(control.timeline));
        // A backup's control file is not the end of it: the WAL that it is recovered with is.
        let is_backup = ["backup_label", "recovery.signal"].iter().any(|name| self.path.join(name).exists());
        Lineage {
            timeline: control.timeline,
            stopped_at: control.stopped_at.filter(|_| !is_backup),
            // The first timeline has none, and without one nothing is claimed.
            branches: fs::read_to_string(history).map(|text| branches(&text)).unwrap_or_default(),
            unrewindable: None,
        }
    }

    /// The file that makes a server start as a standby.
    #[must_use]
    pub fn standby_signal(&self) -> PathBuf {
        self.path.join("standby.signal")
    }

    /// Makes the server start as a standby.
    pub fn mark_standby(&self) -> Result<()> {
        self.make_file(&self.standby_signal())
    }

    /// Makes an empty file in the directory that is there after a crash as well.
    fn make_file(&self, path: &Path) -> Result<()> {
        Volume.make_file(path)?;
        Volume.sync(&self.path)
    }

    /// The running server's own notes: its process number, and in the eighth line what it does.
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.path.join("postmaster.pid")
    }

    /// Removes the pid file of a server that a killed container left. The lock is held and no server of this container runs, so the
    /// process number in it means nothing; left there it could be some other process's by now, and PostgreSQL would refuse to start.
    pub fn remove_stale_pid_file(&self) -> Result<()> {
        let file = self.pid_file();
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &file)(error)),
            _ => Ok(()),
        }
    }
}

/// Whether the data in a directory has been served from under the agent.
#[must_use]
pub fn is_marked_member(directory: &Path) -> bool {
    directory.join(MEMBER).exists()
}

/// Of what `PG_VERSION` says.
fn major_of(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// Which database is in a directory: the control file begins with its identifier, in the machine's order of bytes.
fn system_at(directory: &Path) -> Option<SystemIdentifier> {
    let mut bytes = [0; 8];
    File::open(directory.join(CONTROL_FILE)).and_then(|mut file| file.read_exact(&mut bytes)).ok()?;
    Some(SystemIdentifier(u64::from_ne_bytes(bytes)))
}

/// By trying: mode bits say little on NFS.
fn is_writable(directory: &Path) -> bool {
    let probe = directory.join(format!(".pgset-probe-{}", std::process::id()));
    let made = fs::DirBuilder::new().mode(0o700).create(&probe).is_ok();
    made && fs::metadata(&probe).is_ok_and(|found| found.uid() == nix::unistd::geteuid().as_raw())
        && fs::remove_dir(&probe).is_ok()
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
