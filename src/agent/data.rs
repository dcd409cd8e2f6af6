//! The data directory: what is on it, who may use it, and how a new one takes its place when it is complete.
//!
//! A clone or a new database is made in a staging directory and moved in when complete, so that a member that dies half-way starts
//! over instead of serving half a database. The staging directory stands beside the data directory, or, where that is the mount
//! itself or its parent is not writable, inside it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::control::ControlData;
use super::place::Place;
use super::processes::Processes;
use super::programs::Programs;
use super::search;
use crate::election::Data;
use crate::election::lineage::{Lineage, branches, history_file};

/// The oldest PostgreSQL that the agent knows how to run: since 13 a standby takes a new master's address without a restart.
const OLDEST_VERSION: u32 = 13;
/// Inside a staging directory: all of it has arrived.
const COMPLETE: &str = ".pgset-complete";
/// The staging directory's name where it stands inside the data directory.
const STAGING_INSIDE: &str = ".pgset-staging";
/// The name, inside the data directory, of the data that a new clone replaces.
const OLD_INSIDE: &str = ".pgset-old";
/// The lock's name where it stands inside the data directory.
const LOCK_INSIDE: &str = ".pgset-lock";
/// In a data directory that a member has served from under the agent, and in all that were cloned from it.
const MEMBER: &str = ".pgset-member";
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

/// Held as long as this member may touch the data directory.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] Option<File>);

// === impl DataDirectory ===

impl DataDirectory {
    /// The directory exists already and belongs to the PostgreSQL user.
    pub fn open(place: &Place) -> Result<Self> {
        let Place { directory: path, members, searched, .. } = place.clone();
        let mode = fs::metadata(&path).map_err(failed("find", &path))?.permissions().mode();
        if mode & 0o027 != 0 {
            // PostgreSQL refuses a directory that others may read; a volume's root often is one.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                .map_err(failed("restrict the mode of", &path))?;
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        let inside = is_mount_point(&path)? || !is_writable(parent);
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

    /// Where a new one is made.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.sibling_or(STAGING_INSIDE, ".pgset-staging")
    }

    fn old(&self) -> PathBuf {
        self.sibling_or(OLD_INSIDE, ".pgset-old")
    }

    fn sibling_or(&self, inside: &str, suffix: &str) -> PathBuf {
        if self.inside {
            return self.path.join(inside);
        }
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        self.path.with_file_name(name)
    }

    /// Takes the lock, which ends with this process. A file system without locks (some NFS exports) is told and accepted.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.sibling_or(LOCK_INSIDE, ".pgset-lock");
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(Some(file))),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path }),
            Err(TryLockError::Error(error)) => {
                tracing::warn!(path = %path.display(), %error, "the file system has no locks: only the Lease keeps two servers apart");
                Ok(Lock(None))
            }
        }
    }

    /// Finishes what an earlier life of this member left: a complete staging directory is moved in, a part of one is removed.
    pub fn recover(&self) -> Result<()> {
        let staging = self.staging();
        if staging.join(COMPLETE).exists() {
            return self.install();
        }
        remove_tree(&staging)
    }

    /// An empty staging directory.
    pub fn new_staging(&self) -> Result<PathBuf> {
        let staging = self.staging();
        remove_tree(&staging)?;
        fs::DirBuilder::new().mode(0o700).create(&staging).map_err(failed("make", &staging))?;
        Ok(staging)
    }

    /// Moves a complete staging directory to its place, and data that is there already aside. May be called again after any crash
    /// in between.
    pub fn install(&self) -> Result<()> {
        let staging = self.staging();
        let complete = staging.join(COMPLETE);
        File::create(&complete).and_then(|file| file.sync_all()).map_err(failed("make", &complete))?;
        sync(&staging)?;
        if self.path.join("global/pg_control").exists() {
            self.set_aside()?;
        }
        if self.inside {
            self.move_entries(&staging)?;
        } else {
            // Only an empty directory gives way to a rename, so nothing can be lost here.
            fs::rename(&staging, &self.path).map_err(failed("move the new data directory to", &self.path))?;
        }
        for leftover in [self.path.join(COMPLETE), self.path.join(LOCK_INSIDE)] {
            if !self.inside || leftover.ends_with(COMPLETE) {
                let _ = fs::remove_file(leftover);
            }
        }
        sync(&self.path)?;
        self.path.parent().map_or(Ok(()), sync)
    }

    /// Keeps the data that a new clone replaces, until [`Self::remove_old`].
    fn set_aside(&self) -> Result<()> {
        let old = self.old();
        remove_tree(&old)?;
        if !self.inside {
            return fs::rename(&self.path, &old).map_err(failed("move the old data directory to", &old));
        }
        // `global` goes first: what is left behind by a crash is then no database, and the next start goes on here.
        fs::DirBuilder::new().mode(0o700).create(&old).map_err(failed("make", &old))?;
        let mut names = self.entries()?;
        names.sort_by_key(|name| name != "global");
        for name in names {
            let target = old.join(&name);
            fs::rename(self.path.join(&name), &target).map_err(failed("move the old data to", &target))?;
        }
        sync(&self.path)
    }

    /// Removes data that a clone replaced: the clone streams.
    pub fn remove_old(&self) -> Result<()> {
        remove_tree(&self.old())
    }

    /// What the data directory holds, without what the agent and the file system keep there.
    fn entries(&self) -> Result<Vec<std::ffi::OsString>> {
        let entries = fs::read_dir(&self.path).map_err(failed("list", &self.path))?;
        let others = entries.flatten().filter(|entry| self.members.as_ref() != Some(&entry.path()));
        let own = ["lost+found", STAGING_INSIDE, LOCK_INSIDE, OLD_INSIDE, MEMBER];
        Ok(others.map(|entry| entry.file_name()).filter(|name| !own.iter().any(|own| name == own)).collect())
    }

    /// `global`, which holds the control file, goes last: a data directory with it is whole.
    fn move_entries(&self, staging: &Path) -> Result<()> {
        let mut names: Vec<_> =
            fs::read_dir(staging).map_err(failed("list", staging))?.flatten().map(|entry| entry.file_name()).collect();
        names.retain(|name| ![COMPLETE, LOCK_INSIDE, STAGING_INSIDE, OLD_INSIDE].iter().any(|own| name == own));
        names.sort_by_key(|name| name == "global");
        for name in names {
            let target = self.path.join(&name);
            fs::rename(staging.join(&name), &target).map_err(failed("move the new data to", &target))?;
        }
        sync(&self.path)?;
        remove_tree(staging)
    }

    /// Looks at what is there.
    pub async fn inspect(&self, programs: &Programs, processes: &Processes) -> Data {
        match self.look() {
            Ok(Some(())) => self.read_control_file(programs, processes).await,
            Ok(None) => self.search().await,
            Err(why) => Data::Unusable(why),
        }
    }

    /// An empty directory is for a new database only where there is no other one.
    async fn search(&self) -> Data {
        let Some(root) = self.searched.clone() else { return Data::Empty };
        let left_out: Vec<PathBuf> =
            self.members.clone().filter(|members| !root.starts_with(members)).into_iter().collect();
        let found = tokio::task::spawn_blocking(move || search::another_database(&root, &left_out)).await;
        match found {
            Ok(None) => Data::Empty,
            Ok(Some(found)) => Data::Unusable(format!("{}: {found}", self.path.display())),
            Err(error) => Data::Unusable(format!("the data volume can't be looked through: {error}")),
        }
    }

    /// The version of a database that is older than the agent knows how to run.
    #[must_use]
    pub fn too_old(&self) -> Option<String> {
        let text = fs::read_to_string(self.path.join("PG_VERSION")).ok()?;
        let version = text.trim();
        let major: Option<u32> = version.split('.').next().and_then(|major| major.parse().ok());
        major.filter(|major| *major < OLDEST_VERSION).map(|_| version.to_owned())
    }

    /// Notes that this data has been served from under the agent.
    pub fn mark_member(&self) -> Result<()> {
        let mark = self.path.join(MEMBER);
        if mark.exists() {
            return Ok(());
        }
        File::create(&mark).and_then(|file| file.sync_all()).map_err(failed("make", &mark))?;
        sync(&self.path)
    }

    fn look(&self) -> std::result::Result<Option<()>, String> {
        let version = self.path.join("PG_VERSION");
        match fs::read_to_string(&version) {
            Ok(text) => match text.trim().parse::<u32>() {
                Ok(major) if major >= OLDEST_VERSION && self.path.join("global/pg_control").is_file() => Ok(Some(())),
                Ok(major) if major >= OLDEST_VERSION => Err(format!(
                    "{} has no global/pg_control: an initdb or copy of somebody else's ended half-way; move it away",
                    self.path.display()
                )),
                _ => Err(format!(
                    "{} says {:?}: PostgreSQL {OLDEST_VERSION} or newer is needed",
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

    async fn read_control_file(&self, programs: &Programs, processes: &Processes) -> Data {
        let mut command = programs.command("pg_controldata");
        command.env("LC_ALL", "C").arg("-D").arg(&self.path);
        let output = match processes.output(&mut command).await {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
            Ok(output) => {
                return Data::Unusable(format!("pg_controldata: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
            Err(error) => return Data::Unusable(format!("pg_controldata can't be run: {error}")),
        };
        match ControlData::parse(&output) {
            Some(control) => Data::Cluster {
                system: control.system,
                standby: self.standby_signal().exists(),
                lineage: self.lineage(&control),
            },
            None => Data::Unusable("pg_controldata names no system identifier or no timeline".to_owned()),
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
        }
    }

    /// The file that makes a server start as a standby.
    #[must_use]
    pub fn standby_signal(&self) -> PathBuf {
        self.path.join("standby.signal")
    }

    /// Makes the server start as a standby.
    pub fn mark_standby(&self) -> Result<()> {
        let file = self.standby_signal();
        File::create(&file).and_then(|file| file.sync_all()).map_err(failed("make", &file))?;
        sync(&self.path)
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

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(failed("sync", directory))
}

fn is_mount_point(path: &Path) -> Result<bool> {
    let table = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(table).map_err(failed("read", table))?;
    let real = fs::canonicalize(path).map_err(failed("find", path))?;
    Ok(mounts.lines().filter_map(|line| line.split(' ').nth(4)).any(|mount| Path::new(mount) == real))
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
