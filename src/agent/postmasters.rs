//! PostgreSQL processes on a data directory, whoever started them, as the kernel's tables have them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

use super::processes::{self, parent};

/// What the kernel calls a process of PostgreSQL's server.
const NAME: &str = "postgres";
/// How often processes that were killed are looked for again, and how many times: storage that does not answer may hold them.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOOKS: u32 = 250;

/// Processes of an earlier server that can't be killed.
#[derive(Debug, thiserror::Error)]
#[error("failed to end the processes of an earlier server, {0:?}: does the storage answer?")]
pub struct Stuck(Vec<i32>);

/// A server that somebody else started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Postmaster(i32);

// === impl Postmaster ===

impl Postmaster {
    /// The server that a pid file names, if it lives, serves this directory, and is not `own` nor a child of that. A pid file alone says
    /// little: it may be a former container's, whose numbers mean other processes by now.
    #[must_use]
    pub fn of_somebody_else(directory: &Path, pid_file: &Path, own: Option<i32>) -> Option<Self> {
        let text = fs::read_to_string(pid_file).ok()?;
        let process = text.lines().next()?.trim().parse().ok().filter(|number: &i32| *number > 1)?;
        let is_own = own.is_some_and(|own| own == process || parent(process) == Some(own));
        (!is_own && works_in(process, Identity::of(directory)?)).then_some(Self(process))
    }

    /// It has not ended.
    #[must_use]
    pub fn lives(self, directory: &Path) -> bool {
        Identity::of(directory).is_some_and(|identity| works_in(self.0, identity))
    }

    /// Sends it a signal.
    pub fn signal(self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.0), signal);
    }
}

/// Kills what is left of a server on this directory. The backends of a server that was killed are in sessions of their own and go on
/// with what they do until they next wait for their client; the next server would refuse to start beside them.
pub fn kill_all(directory: &Path) -> Vec<i32> {
    let found = all(directory);
    for process in &found {
        let _ = kill(Pid::from_raw(*process), Signal::SIGKILL);
    }
    found
}

/// The same, until there are none.
pub async fn end_all(directory: &Path) -> Result<(), Stuck> {
    let mut left = Vec::new();
    for _ in 0..LOOKS {
        left = kill_all(directory);
        if left.is_empty() {
            return Ok(());
        }
        sleep(LOOK_EVERY).await;
    }
    Err(Stuck(left))
}

/// A directory's identity: its path says little where containers share process numbers but no files.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(directory: &Path) -> Option<Self> {
        fs::metadata(directory).ok().map(|found| Self { device: found.dev(), inode: found.ino() })
    }
}

/// All processes of a server on this directory.
#[must_use]
pub fn all(directory: &Path) -> Vec<i32> {
    let Some(identity) = Identity::of(directory) else { return Vec::new() };
    processes::all().filter(|process| is_postgres(*process) && works_in(*process, identity)).collect()
}

fn is_postgres(process: i32) -> bool {
    fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim_end() == NAME)
}

/// All processes of a server have its data directory as their working directory; one that has ended has none.
fn works_in(process: i32, identity: Identity) -> bool {
    Identity::of(Path::new(&format!("/proc/{process}/cwd"))) == Some(identity)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A process that works in a directory, under a name.
    fn process(name: &str, directory: &Path) -> Child {
        let program = directory.join(name);
        if !program.exists() {
            fs::copy("/bin/sleep", &program).unwrap();
        }
        Command::new(program).arg("60").current_dir(directory).spawn().unwrap()
    }

    fn ends(mut child: Child) -> bool {
        std::thread::sleep(Duration::from_millis(100));
        let ended = child.try_wait().unwrap().is_some();
        let _ = child.kill();
        let _ = child.wait();
        ended
    }

    #[test]
    fn what_is_left_of_a_server_is_killed_and_nothing_else() {
        let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (backend, elsewhere) = (process("postgres", data.path()), process("postgres", other.path()));
        let shell = process("psql", data.path());
        assert_eq!(kill_all(data.path()), [i32::try_from(backend.id()).unwrap()]);
        assert!(ends(backend));
        assert!(!ends(elsewhere), "another database's server");
        assert!(!ends(shell), "a client that somebody runs there");
    }

    #[test]
    fn a_server_of_somebody_else_is_the_one_that_the_pid_file_names_and_that_serves_the_directory() {
        let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut server = process("postgres", data.path());
        let number = i32::try_from(server.id()).unwrap();
        let pid_file = data.path().join("postmaster.pid");
        let seen = |directory: &Path, own| Postmaster::of_somebody_else(directory, &pid_file, own);
        assert_eq!(seen(data.path(), None), None, "no pid file");

        fs::write(&pid_file, format!("{number}\n{}\n", data.path().display())).unwrap();
        assert_eq!(seen(data.path(), None), Some(Postmaster(number)));
        assert_eq!(seen(data.path(), Some(number)), None, "the agent's own");
        assert_eq!(
            seen(data.path(), Some(i32::try_from(std::process::id()).unwrap())),
            None,
            "a child of the agent's own"
        );
        assert_eq!(seen(other.path(), None), None, "the number of a process that serves another directory");

        server.kill().unwrap();
        server.wait().unwrap();
        assert_eq!(seen(data.path(), None), None, "it has ended");
    }
}
