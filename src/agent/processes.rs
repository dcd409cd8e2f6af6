//! Child processes of the first process of a container: it starts its own, and it must reap everybody's.

use std::collections::HashSet;
use std::io;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// How often orphans are looked for besides each SIGCHLD: signals of one kind merge, and one child of ours may hide them.
const REAP_EVERY: Duration = Duration::from_secs(5);

/// How long processes that were killed may take to end, and how often they are looked for.
const END_LIMIT: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Ends the container: with its first process, the kernel ends all others in it, also those that nobody can name. The kubelet starts it
/// anew, and later each time if it happens again.
pub fn end_container() -> ! {
    std::process::exit(1)
}

/// A process' parent, by the kernel's table; absent if it has ended.
#[must_use]
pub fn parent(process: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may hold anything; state, parent and group follow it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The group of a process that has not ended.
fn group(process: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let lives = fields.next().is_some_and(|state| !["Z", "X"].contains(&state));
    fields.nth(1)?.parse().ok().filter(|_| lives)
}

/// The numbers of all processes, by the kernel's table.
pub fn all() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// All processes that this one started and still waits for.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    own: Arc<Mutex<HashSet<i32>>>,
    /// Those that were killed and not waited for, by their groups.
    killed: Arc<Mutex<HashSet<i32>>>,
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: i32,
    processes: Processes,
}

// === impl Processes ===

impl Processes {
    /// Starts a command in a process group of its own, which is killed if it is dropped before its end.
    pub fn start(&self, command: &mut Command) -> io::Result<Process> {
        // The lock is held from before the start until the child is known, so that the reaper can't take its status from us.
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or_default();
        own.insert(pid);
        self.killed.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
        Ok(Process { child, pid, processes: self.clone() })
    }

    /// Runs a command to its end and returns what it printed.
    pub async fn output(&self, command: &mut Command) -> io::Result<Output> {
        let process = self.start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        process.output().await
    }

    /// Runs a command to its end with some text as its input.
    pub async fn output_of_input(&self, command: &mut Command, input: &str) -> io::Result<Output> {
        let mut process = self.start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        if let Some(mut stdin) = process.child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        process.output().await
    }

    /// Reaps what nobody else waits for: processes whose parent died become children of the container's first one.
    pub async fn reap_orphans(self) {
        let Ok(mut ended) = signal(SignalKind::child()) else { return };
        loop {
            tokio::select! {
                _ = ended.recv() => {}
                () = tokio::time::sleep(REAP_EVERY) => {}
            }
            self.reap();
        }
    }

    fn reap(&self) {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) = waitid(Id::All, peek) {
            if own.contains(&pid.as_raw()) || waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_err() {
                return;
            }
        }
    }

    /// Whether all that were killed have ended, or do so in a moment: what they were at may have to be over.
    pub async fn are_ended(&self) -> bool {
        let killed: Vec<i32> = self.killed.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let began = Instant::now();
        loop {
            let lives = all().any(|process| group(process).is_some_and(|group| killed.contains(&group)));
            if !lives || began.elapsed() > END_LIMIT {
                return !lives;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn forget(&self, pid: i32) {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }
}

// === impl Process ===

impl Process {
    /// Waits for the end. Cancel-safe.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.processes.forget(self.pid);
        Ok(status)
    }

    /// What it says on standard error, if that was piped and nobody has taken it yet.
    pub fn take_errors(&mut self) -> Option<tokio::process::ChildStderr> {
        self.child.stderr.take()
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.pid
    }

    /// Sends a signal; a process that has ended already is no error.
    pub fn signal(&self, signal: Signal) {
        if self.child.id().is_some() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    async fn output(mut self) -> io::Result<Output> {
        use tokio::io::AsyncReadExt;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (out, err) = (self.child.stdout.take(), self.child.stderr.take());
        let read_out = async {
            match out {
                Some(mut out) => out.read_to_end(&mut stdout).await.map(drop),
                None => Ok(()),
            }
        };
        let read_err = async {
            match err {
                Some(mut err) => err.read_to_end(&mut stderr).await.map(drop),
                None => Ok(()),
            }
        };
        tokio::try_join!(read_out, read_err)?;
        let status = self.wait().await?;
        Ok(Output { status, stdout, stderr })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.id().is_some() {
            // Its own children too: a half-killed pg_basebackup would keep the slot busy.
            let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
            self.processes.killed.lock().unwrap_or_else(PoisonError::into_inner).insert(self.pid);
        }
        self.processes.forget(self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_was_killed_is_known_until_it_has_ended_with_all_of_its_group() {
        let processes = Processes::default();
        let process = processes.start(Command::new("sh").args(["-c", "sleep 60 & wait"])).unwrap();
        let number = process.number();
        assert!(processes.are_ended().await, "one that nobody killed is somebody's");
        assert_eq!(group(number), Some(number));
        drop(process);
        assert!(processes.are_ended().await);
        assert!(all().all(|process| group(process) != Some(number)));
    }

    #[test]
    fn a_process_has_its_parent_in_the_kernels_table() {
        let parent = i32::try_from(std::os::unix::process::parent_id()).unwrap();
        assert_eq!(super::parent(i32::try_from(std::process::id()).unwrap()), Some(parent));
    }
}
