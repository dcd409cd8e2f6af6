//! The fencer: a process beside the agent that kills all that may write when the Lease was not renewed in time, or when this member could
//! not show in time that the data directory is its own.
//!
//! The agent may be stopped (SIGSTOP), starved, or wait for a storage that does not answer; PostgreSQL would go on, and acknowledge
//! commits while another member leads. So the deadline is with a process that has nothing else to do: it opens no file, has no runtime
//! and no thread. It has two deadlines, and whichever comes first kills: only the agent's renewal of the Lease moves the one, only a beat
//! of the owner of the data directory (`owner`) the other.
//!
//! Its standard input is a socket, or a pipe, from the agent. A message is two numbers of 8 bytes in the machine's byte order: which of the
//! deadlines it is (0 the Lease's, 1 the storage's), and a moment of `CLOCK_BOOTTIME` (which goes on while the machine is suspended) in
//! nanoseconds: the deadline from now on; 0 means that there is nothing to fence. What came into force is sent back, so that the agent knows a fencer that hangs. The end of the input means that the agent is gone: where it was the container's first process, the kernel has ended all others with it.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::clock_gettime;
use nix::unistd::{Pid, getpid, getppid, read, write};

use super::processes::{self, parent};

/// The word by which this program is the fencer.
pub const COMMAND: &str = "fencer";

/// How often the fencer kills while the deadline is over: a process may have forked meanwhile, or been started by somebody else.
const AGAIN: Duration = Duration::from_millis(50);

/// A moment of the clock that agent and fencer share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

/// What keeps a member's processes alive. Each has a deadline of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The set's Lease, for what may write to the database.
    Lease,
    /// The data directory, for whatever runs in it.
    Storage,
}

/// A message to the fencer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whose deadline it is.
    pub leave: Leave,
    /// What is to be done.
    pub order: Order,
}

/// What the fencer is told about one of its deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Kill at this moment, unless another order comes before.
    KillAt(Moment),
    /// There is nothing to fence.
    Stand,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to read an order: it has {0} bytes, or is about nothing known")]
pub struct NoMessage(usize);

/// What is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadlines {
    pub(super) lease: Order,
    pub(super) storage: Order,
}

// === impl Moment ===

impl Moment {
    /// Now. The clock can't be refused to anybody; if it were, the moment is long past, and what depends on it ends early.
    #[must_use]
    pub fn now() -> Self {
        Self(clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from))
    }

    /// So much later.
    #[must_use]
    pub fn after(self, pause: Duration) -> Self {
        Self(self.0.saturating_add(pause))
    }

    /// How long after another moment this one is; nothing if it is before it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

// === impl Message ===

impl Message {
    /// The size of a message: less than what a pipe takes or gives as a whole.
    pub const SIZE: usize = 2 * size_of::<u64>();

    /// As it stands in the pipe.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let which: u64 = match self.leave {
            Leave::Lease => 0,
            Leave::Storage => 1,
        };
        let nanoseconds = match self.order {
            // Never 0, which is no deadline at all.
            Order::KillAt(Moment(at)) => u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).max(1),
            Order::Stand => 0,
        };
        let mut bytes = [0; Self::SIZE];
        for (byte, value) in bytes.iter_mut().zip(which.to_ne_bytes().into_iter().chain(nanoseconds.to_ne_bytes())) {
            *byte = value;
        }
        bytes
    }

    /// From the pipe.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NoMessage> {
        let no_message = NoMessage(bytes.len());
        let (which, nanoseconds) = bytes.split_at_checked(size_of::<u64>()).ok_or(no_message)?;
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).map_err(|_| no_message);
        let leave = match number(which)? {
            0 => Leave::Lease,
            1 => Leave::Storage,
            _ => return Err(no_message),
        };
        let order = match number(nanoseconds)? {
            0 => Order::Stand,
            nanoseconds => Order::KillAt(Moment(Duration::from_nanos(nanoseconds))),
        };
        Ok(Self { leave, order })
    }
}

// === impl Deadlines ===

impl Deadlines {
    pub(super) const NONE: Self = Self { lease: Order::Stand, storage: Order::Stand };

    pub(super) fn follow(&mut self, message: Message) {
        match message.leave {
            Leave::Lease => self.lease = message.order,
            Leave::Storage => self.storage = message.order,
        }
    }

    /// The one that comes first.
    fn next(self) -> Option<(Moment, Leave)> {
        let both = [(self.lease, Leave::Lease), (self.storage, Leave::Storage)];
        let deadlines = both.into_iter().filter_map(|(order, leave)| match order {
            Order::KillAt(at) => Some((at, leave)),
            Order::Stand => None,
        });
        deadlines.min_by_key(|(at, _)| *at)
    }
}

/// Is the fencer if this program was called by that word; otherwise absent.
#[must_use]
pub fn answer(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    arguments.into_iter().nth(1).filter(|word| word == COMMAND)?;
    match run() {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("pgset: the fencer ends: {error}");
            Some(ExitCode::FAILURE)
        }
    }
}

/// Fences until the input ends.
fn run() -> io::Result<()> {
    let input = io::stdin();
    let agent = getppid();
    // Nothing but `poll` is ever waited for.
    fcntl(input.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // A timer of that clock, and not the time-out of poll, whose clock stands still in a suspended machine.
    let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
    let mut deadlines = Deadlines::NONE;
    let mut told = false;
    loop {
        let mut ready = [PollFd::new(input.as_fd(), PollFlags::POLLIN), PollFd::new(timer.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [has_input, is_due] = ready.map(|one| one.any().unwrap_or_default());
        if has_input {
            // What the agent says goes first: it may be the renewal, or its end.
            let mut bytes = [0; Message::SIZE];
            let size = match read(input.as_fd(), &mut bytes) {
                Ok(0) => return Ok(()),
                Ok(size) => size,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            deadlines.follow(Message::from_bytes(bytes.get(..size).unwrap_or_default()).map_err(io::Error::other)?);
            set(&timer, deadlines.next().map(|(at, _)| at))?;
            // A pipe has no way back, and an agent that does not listen is no reason to wait.
            let _ = write(input.as_fd(), &bytes);
            told = told && deadlines.next().is_some_and(|(at, _)| at <= Moment::now());
        } else if is_due {
            let _ = timer.wait();
            kill_all(agent);
            if let Some((_, leave)) = deadlines.next().filter(|_| !told) {
                tell(leave);
                told = true;
            }
        }
    }
}

/// Due at the deadline, and again and again from there on.
fn set(timer: &TimerFd, deadline: Option<Moment>) -> nix::Result<()> {
    match deadline {
        Some(Moment(at)) => timer.set(
            Expiration::IntervalDelayed(TimeSpec::from(at), TimeSpec::from(AGAIN)),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME,
        ),
        None => timer.unset(),
    }
}

/// Kills all that may write and is within reach.
///
/// Where the agent is the first process of a container with process numbers of its own, that is every process in it but the agent and
/// this one: `kill(-1)` passes over the first process of the namespace and over its caller. It reaches what belongs to the same user as
/// the fencer, and PostgreSQL runs as no other.
///
/// With `shareProcessNamespace` the agent is not the first, and `kill(-1)` would reach other containers. Then it is the agent's own
/// descendants; orphans among them stay so, as the agent has them given to it. They are found in the kernel's tables, of which nothing
/// is on a disk. What others start there (`kubectl exec`) is out of reach.
fn kill_all(agent: Pid) {
    if agent.as_raw() == 1 {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        return;
    }
    for process in descendants(agent.as_raw(), &parents()) {
        if process != getpid().as_raw() {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
    }
}

/// All processes, each with its parent.
fn parents() -> Vec<(i32, i32)> {
    processes::all().filter_map(|number| Some((number, parent(number)?))).collect()
}

fn descendants(ancestor: i32, parents: &[(i32, i32)]) -> Vec<i32> {
    let mut found = vec![ancestor];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(
            parents.iter().filter(|(process, of)| *of == parent && *process != parent).map(|(process, _)| process),
        );
        at += 1;
    }
    found.split_off(1)
}

/// One line in the container's log; never waited for.
fn tell(leave: Leave) {
    let why = match leave {
        Leave::Lease => "the Lease was not renewed in time",
        Leave::Storage => {
            "nobody could show in time that the data directory is this member's (its storage stalls or is gone)"
        }
    };
    let stderr = io::stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut ready, PollTimeout::ZERO) == Ok(1) {
        let _ = writeln!(
            &stderr,
            "{}  WARN {}: {why} and the agent did not stop PostgreSQL: every process of the container but the first is killed",
            Timestamp::now(),
            COMMAND
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(order: Order) -> Message {
        Message { leave: Leave::Lease, order }
    }

    fn storage(order: Order) -> Message {
        Message { leave: Leave::Storage, order }
    }

    fn at(seconds: u64) -> Order {
        Order::KillAt(Moment(Duration::from_secs(seconds)))
    }

    #[test]
    fn an_order_is_the_same_at_the_other_end_of_the_pipe() {
        let deadline = Order::KillAt(Moment(Duration::new(86_400, 123_456_789)));
        for order in [deadline, Order::Stand] {
            for message in [lease(order), storage(order)] {
                assert_eq!(Message::from_bytes(&message.to_bytes()), Ok(message));
            }
        }
    }

    #[test]
    fn a_deadline_is_never_mistaken_for_none() {
        for moment in [Duration::ZERO, Duration::MAX] {
            let message = lease(Order::KillAt(Moment(moment)));
            let read = Message::from_bytes(&message.to_bytes()).unwrap();
            assert!(matches!(read.order, Order::KillAt(_)));
        }
    }

    #[test]
    fn a_part_of_a_message_is_none() {
        assert_eq!(Message::from_bytes(&[1, 2, 3]), Err(NoMessage(3)));
        assert_eq!(Message::from_bytes(&[0; 8]), Err(NoMessage(8)));
        assert_eq!(Message::from_bytes(&[9; 16]), Err(NoMessage(16)));
    }

    #[test]
    fn the_first_deadline_counts_and_each_is_moved_by_its_own_orders_only() {
        let mut deadlines = Deadlines::NONE;
        let mut after = |message| {
            deadlines.follow(message);
            deadlines.next().map(|(Moment(at), leave)| (at.as_secs(), leave))
        };
        assert_eq!(after(lease(at(5))), Some((5, Leave::Lease)));
        assert_eq!(after(storage(at(3))), Some((3, Leave::Storage)));
        assert_eq!(after(storage(at(9))), Some((5, Leave::Lease)), "a beat does not renew the Lease");
        assert_eq!(after(lease(Order::Stand)), Some((9, Leave::Storage)), "a replica writes to its directory too");
        assert_eq!(after(storage(Order::Stand)), None);
    }

    #[test]
    fn descendants_are_children_and_theirs_and_nobody_else() {
        let parents = [(1, 0), (7, 1), (8, 7), (9, 8), (10, 1), (11, 10)];
        assert_eq!(descendants(7, &parents), [8, 9]);
        assert_eq!(descendants(9, &parents), Vec::<i32>::new());
    }
}
