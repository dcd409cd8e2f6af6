//! The agent's end of the fencer: it starts it, tells it the deadlines, and puts another one in its place when it dies or hangs.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::sync::Notify;
use tracing::{error, warn};

use super::fencer::{COMMAND, Deadlines, Leave, Message, Moment, Order};
use super::processes::{Process, Processes};

/// How long a fencer may take to confirm an order. It needs microseconds for it; one that does not get to it in a third of the shortest
/// Lease's time for renewals is of no use.
const CONFIRMED_WITHIN: Duration = Duration::from_millis(500);
/// A fencer that lived shorter than this is followed by another only after as long a pause.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells the fencer, whichever it is at the moment.
#[derive(Clone, Debug)]
pub struct Handle {
    line: Arc<Mutex<Line>>,
    hangs: Arc<Notify>,
}

#[derive(Debug)]
struct Line {
    /// What is in force, and what another fencer begins with.
    deadlines: Deadlines,
    fencer: Option<Fencer>,
}

#[derive(Debug)]
struct Fencer {
    stream: UnixStream,
    /// Bytes that were sent and did not come back yet, and since when there are any.
    unconfirmed: usize,
    since: Instant,
}

// === impl Handle ===

impl Handle {
    /// Nobody fences yet.
    #[must_use]
    pub fn new() -> Self {
        Self { line: Arc::new(Mutex::new(Line { deadlines: Deadlines::NONE, fencer: None })), hangs: Arc::default() }
    }

    /// A fencer lives and does what it is told.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.line().fencer.is_some()
    }

    /// From now on the Lease's deadline is this one. Returns whether a fencer was told: if not, nothing may write for longer than before.
    #[must_use]
    pub fn kill_at(&self, deadline: Moment) -> bool {
        self.order(Leave::Lease, Order::KillAt(deadline))
    }

    /// There is nothing to fence: nothing that may write runs, and this member does not lead.
    pub fn stand(&self) {
        if self.line().deadlines.lease != Order::Stand {
            self.order(Leave::Lease, Order::Stand);
        }
    }

    /// From now on the storage's deadline is this one. Returns whether a fencer was told; the next one is told otherwise.
    pub fn storage_kill_at(&self, deadline: Moment) -> bool {
        self.order(Leave::Storage, Order::KillAt(deadline))
    }

    /// The data directory is nobody's: nothing runs in it.
    pub fn storage_stand(&self) {
        self.order(Leave::Storage, Order::Stand);
    }

    fn order(&self, leave: Leave, order: Order) -> bool {
        let mut line = self.line();
        let message = Message { leave, order };
        line.deadlines.follow(message);
        let Some(fencer) = &mut line.fencer else { return false };
        if let Err(error) = fencer.tell(message) {
            warn!(%error, "the fencer does not answer");
            line.fencer = None;
            self.hangs.notify_one();
            return false;
        }
        true
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a fencer, for as long as this is awaited.
    pub async fn keep(self, processes: Processes) {
        loop {
            let began = Instant::now();
            match self.start(&processes) {
                Ok(mut process) => tokio::select! {
                    outcome = process.wait() => match outcome {
                        Ok(status) => error!(%status, "the fencer ended, starting another"),
                        Err(error) => error!(%error, "the fencer was lost, starting another"),
                    },
                    // With the handle of the process, the process ends.
                    () = self.hangs.notified() => error!("the fencer hangs, starting another"),
                },
                Err(error) => error!(%error, "failed to start the fencer: this member does not lead without one"),
            }
            self.line().fencer = None;
            if began.elapsed() < PAUSE {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn start(&self, processes: &Processes) -> io::Result<Process> {
        let (ours, theirs) = UnixStream::pair()?;
        // The file may have been replaced, or be out of this user's sight; the kernel has it.
        let mut command = Command::new(Path::new("/proc/self/exe"));
        command.arg0("pgset").arg(COMMAND).env_clear();
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        let process = processes.start(&mut command)?;
        self.listen_to(ours)?;
        Ok(process)
    }

    /// A fencer at the other end of a socket is told what is in force.
    fn listen_to(&self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let mut line = self.line();
        let mut fencer = Fencer { stream, unconfirmed: 0, since: Instant::now() };
        for (leave, order) in [(Leave::Lease, line.deadlines.lease), (Leave::Storage, line.deadlines.storage)] {
            if order != Order::Stand {
                fencer.tell(Message { leave, order })?;
            }
        }
        line.fencer = Some(fencer);
        Ok(())
    }
}

// === impl Fencer ===

impl Fencer {
    fn tell(&mut self, message: Message) -> io::Result<()> {
        self.hear()?;
        if self.unconfirmed == 0 {
            self.since = Instant::now();
        } else if self.since.elapsed() > CONFIRMED_WITHIN {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.unconfirmed += Message::SIZE;
        self.stream.write_all(&message.to_bytes())
    }

    fn hear(&mut self) -> io::Result<()> {
        let mut bytes = [0; Message::SIZE];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(size) => self.unconfirmed = self.unconfirmed.saturating_sub(size),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// What stands in for a fencer in the tests of others.
#[cfg(test)]
pub mod tests {
    use super::*;

    /// A handle whose fencer confirms all that it hears, and the other end of the line.
    pub fn obedient() -> (Handle, UnixStream) {
        let handle = Handle::new();
        let (ours, theirs) = UnixStream::pair().unwrap();
        handle.listen_to(ours).unwrap();
        let fencer = theirs.try_clone().unwrap();
        std::thread::spawn(move || io::copy(&mut &fencer, &mut &fencer));
        (handle, theirs)
    }

    /// What the fencer goes by.
    pub fn in_force(handle: &Handle) -> Order {
        handle.line().deadlines.lease
    }

    /// What it goes by for the data directory.
    pub fn storage_in_force(handle: &Handle) -> Order {
        handle.line().deadlines.storage
    }

    /// The same, with an end that says nothing.
    fn silent(handle: &Handle) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        handle.listen_to(ours).unwrap();
        theirs
    }

    fn heard(stream: &mut UnixStream) -> Message {
        let mut bytes = [0; Message::SIZE];
        stream.read_exact(&mut bytes).unwrap();
        Message::from_bytes(&bytes).unwrap()
    }

    fn deadline(seconds: u64) -> Moment {
        Moment::now().after(Duration::from_secs(seconds))
    }

    #[test]
    fn nobody_is_told_where_there_is_no_fencer() {
        let handle = Handle::new();
        assert!(!handle.is_there());
        assert!(!handle.kill_at(deadline(5)));
    }

    #[test]
    fn another_fencer_begins_with_the_deadlines_that_are_in_force() {
        let handle = Handle::new();
        let last = deadline(7);
        let of_storage = deadline(30);
        for at in [deadline(5), last] {
            let _ = handle.kill_at(at);
            let _ = handle.storage_kill_at(of_storage);
        }
        let mut fencer = silent(&handle);
        assert_eq!(heard(&mut fencer), Message { leave: Leave::Lease, order: Order::KillAt(last) });
        assert_eq!(heard(&mut fencer), Message { leave: Leave::Storage, order: Order::KillAt(of_storage) });
    }

    #[test]
    fn a_fencer_that_has_nothing_to_fence_is_told_so_once() {
        let handle = Handle::new();
        let mut fencer = silent(&handle);
        assert!(handle.kill_at(deadline(5)));
        handle.stand();
        handle.stand();
        drop(handle);
        assert!(matches!(heard(&mut fencer).order, Order::KillAt(_)));
        assert_eq!(heard(&mut fencer), Message { leave: Leave::Lease, order: Order::Stand });
        assert_eq!(fencer.read(&mut [0; Message::SIZE]).unwrap(), 0, "and then no more");
    }

    #[test]
    fn a_fencer_that_confirms_nothing_is_given_up() {
        let handle = Handle::new();
        let _fencer = silent(&handle);
        assert!(handle.kill_at(deadline(5)));
        assert!(handle.kill_at(deadline(5)), "it may be about to");
        std::thread::sleep(CONFIRMED_WITHIN + Duration::from_millis(20));
        assert!(!handle.kill_at(deadline(5)));
        assert!(!handle.is_there());
    }

    #[test]
    fn a_fencer_that_confirms_is_kept() {
        let (handle, _fencer) = obedient();
        for _ in 0..3 {
            assert!(handle.kill_at(deadline(5)));
            std::thread::sleep(CONFIRMED_WITHIN + Duration::from_millis(20));
        }
    }

    #[test]
    fn a_fencer_that_is_gone_is_noticed() {
        let handle = Handle::new();
        drop(silent(&handle));
        assert!(!handle.kill_at(deadline(5)));
    }
}
