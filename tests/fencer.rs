//! The fencer as the agent starts it: in process numbers of its own, beside a process that must be dead at the deadline.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed
#![allow(unused_crate_dependencies, missing_docs)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use pgset::agent::fencer::{Leave, Message, Moment, Order};

/// A busy machine is late, but never early.
const LATE: Duration = Duration::from_millis(1500);
const TICK: Duration = Duration::from_millis(100);

/// The first process of a container starts a process that sleeps and the fencer, and waits. `$0` is pgset, `$1` is open in the sleeper
/// alone.
const AS_FIRST_PROCESS: &str = "sleep 60 >\"$1\" & \"$0\" fencer; wait";
/// The same below another first process, which has a sleeper of its own with `$2` open.
const BELOW_ANOTHER: &str = "sleep 60 >\"$2\" & sh -c 'sleep 60 >\"$1\" & \"$0\" fencer; wait' \"$0\" \"$1\"; wait";

struct Container {
    process: Child,
    agent: UnixStream,
    directory: tempfile::TempDir,
}

impl Container {
    /// Absent where one may not make a namespace of process numbers.
    fn start(script: &str) -> Option<Self> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child"]);
        if !unshare.arg("true").status().is_ok_and(|status| status.success()) {
            eprintln!("left out: no leave to make a namespace of process numbers");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            mkfifo(&directory.path().join(name), Mode::S_IRWXU).unwrap();
        }
        let (agent, fencer) = UnixStream::pair().unwrap();
        let process = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, env!("CARGO_BIN_EXE_pgset")])
            .args([directory.path().join("one"), directory.path().join("two")])
            .stdin(Stdio::from(OwnedFd::from(fencer)))
            .spawn()
            .unwrap();
        Some(Self { process, agent, directory })
    }

    /// The end of the process that has this file open; it lives when this returns.
    fn end_of(&self, name: &str) -> Receiver<Instant> {
        let (tell, end) = mpsc::channel();
        let mut fifo = File::open(self.directory.path().join(name)).unwrap();
        thread::spawn(move || {
            let _ = fifo.read_to_end(&mut Vec::new());
            let _ = tell.send(Instant::now());
        });
        end
    }

    /// Returns when the fencer goes by it.
    fn order(&mut self, leave: Leave, order: Order) {
        let message = Message { leave, order };
        self.agent.write_all(&message.to_bytes()).unwrap();
        let mut confirmed = [0; Message::SIZE];
        self.agent.read_exact(&mut confirmed).unwrap();
        assert_eq!(confirmed, message.to_bytes());
    }

    fn kill_after(&mut self, pause: Duration) -> Instant {
        self.kill_without(Leave::Lease, pause)
    }

    fn kill_without(&mut self, leave: Leave, pause: Duration) -> Instant {
        let deadline = Instant::now() + pause;
        self.order(leave, Order::KillAt(Moment::now().after(pause)));
        deadline
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn dies_at(end: &Receiver<Instant>, deadline: Instant) {
    let ended = end.recv_timeout(deadline - Instant::now() + LATE).expect("it lives on after the deadline");
    let early = deadline.saturating_duration_since(ended);
    assert!(early <= Duration::from_millis(1), "it died {early:?} before the deadline");
}

fn lives(end: &Receiver<Instant>, pause: Duration) {
    assert!(end.recv_timeout(pause).is_err(), "it died");
}

#[test]
fn what_may_write_is_dead_at_the_deadline_and_not_before() {
    let Some(mut container) = Container::start(AS_FIRST_PROCESS) else { return };
    let end = container.end_of("one");
    let deadline = container.kill_after(TICK * 6);
    dies_at(&end, deadline);
}

#[test]
fn a_renewal_moves_the_deadline() {
    let Some(mut container) = Container::start(AS_FIRST_PROCESS) else { return };
    let end = container.end_of("one");
    container.kill_after(TICK * 5);
    lives(&end, TICK * 2);
    let moved = container.kill_after(TICK * 8);
    dies_at(&end, moved);
}

#[test]
fn nothing_dies_when_there_is_nothing_to_fence_any_more() {
    let Some(mut container) = Container::start(AS_FIRST_PROCESS) else { return };
    let end = container.end_of("one");
    container.kill_after(TICK * 3);
    container.order(Leave::Lease, Order::Stand);
    lives(&end, TICK * 6);
    let deadline = container.kill_after(TICK);
    dies_at(&end, deadline);
}

#[test]
fn whichever_deadline_comes_first_kills() {
    for first in [Leave::Lease, Leave::Storage] {
        let Some(mut container) = Container::start(AS_FIRST_PROCESS) else { return };
        let end = container.end_of("one");
        let second = if first == Leave::Lease { Leave::Storage } else { Leave::Lease };
        container.kill_without(second, Duration::from_secs(60));
        let deadline = container.kill_without(first, TICK * 4);
        container.kill_without(second, Duration::from_secs(90));
        dies_at(&end, deadline);
    }
}

#[test]
fn a_replica_dies_with_its_storage_though_it_does_not_lead() {
    let Some(mut container) = Container::start(AS_FIRST_PROCESS) else { return };
    let end = container.end_of("one");
    let deadline = container.kill_without(Leave::Storage, TICK * 4);
    container.order(Leave::Lease, Order::Stand);
    dies_at(&end, deadline);
}

#[test]
fn a_deadline_that_is_over_is_now() {
    let Some(mut container) = Container::start(AS_FIRST_PROCESS) else { return };
    let end = container.end_of("one");
    let deadline = container.kill_after(Duration::ZERO);
    dies_at(&end, deadline);
}

#[test]
fn the_fencer_ends_with_the_agents_end_of_the_line_and_kills_nobody() {
    let Some(mut container) = Container::start("sleep 60 >\"$1\" & \"$0\" fencer; echo ended >\"$2\"; wait") else {
        return;
    };
    let end = container.end_of("one");
    container.kill_after(Duration::from_secs(60));
    container.agent.shutdown(std::net::Shutdown::Both).unwrap();
    let mut said = String::new();
    File::open(container.directory.path().join("two")).unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "ended\n");
    lives(&end, TICK);
}

#[test]
fn where_process_numbers_are_shared_only_the_agents_own_processes_die() {
    let Some(mut container) = Container::start(BELOW_ANOTHER) else { return };
    let (own, of_another) = (container.end_of("one"), container.end_of("two"));
    let deadline = container.kill_after(TICK * 4);
    dies_at(&own, deadline);
    lives(&of_another, TICK * 2);
}

#[test]
fn the_fencer_takes_little_memory() {
    let (mut agent, input) = UnixStream::pair().unwrap();
    let mut fencer = Command::new(env!("CARGO_BIN_EXE_pgset"))
        .arg("fencer")
        .stdin(Stdio::from(OwnedFd::from(input)))
        .spawn()
        .unwrap();
    let message = Message { leave: Leave::Lease, order: Order::Stand };
    agent.write_all(&message.to_bytes()).unwrap();
    agent.read_exact(&mut [0; Message::SIZE]).unwrap();
    let status = std::fs::read_to_string(Path::new("/proc").join(fencer.id().to_string()).join("status")).unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kilobytes: u32 = own.trim().trim_end_matches(" kB").parse().unwrap();
    drop(agent);
    fencer.wait().unwrap();
    assert!(kilobytes < 4096, "{status}");
}
