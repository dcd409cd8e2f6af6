//! The fencer: a process beside the agent that kills all that may write when the Lease was not renewed in time.
//!
//! The agent may be stopped (SIGSTOP), starved, or wait for a storage that does not answer; PostgreSQL would go on, and acknowledge
//! commits while another member leads. So the deadline is with a process that has nothing else to do: it opens no file, has no runtime
//! and no thread, and only the agent's renewal of the Lease moves its deadline.
//!
//! Its standard input is a socket, or a pipe, from the agent. A message is 8 bytes, a moment of `CLOCK_BOOTTIME` (which goes on while the machine is
//! suspended) in nanoseconds, in the machine's byte order: the deadline from now on; 0 means that there is nothing to fence. What
//! came into force is sent back, so that the agent knows a fencer that hangs. The end of the input means that the agent is gone: where it was the container's first process, the kernel has ended all others with it.

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

/// What the fencer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Kill at this moment, unless another order comes before.
    KillAt(Moment),
    /// There is nothing to fence.
    Stand,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to read an order: it has {0} bytes")]
pub struct NoMessage(usize);

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
        Self(self.0 + pause)
    }
}

// === impl Order ===

impl Order {
    /// The size of a message: less than what a pipe takes or gives as a whole.
    pub const SIZE: usize = size_of::<u64>();

    /// As it stands in the pipe.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let nanoseconds = match self {
            // Never 0, which is no deadline at all.
            Self::KillAt(Moment(at)) => u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).max(1),
            Self::Stand => 0,
        };
        nanoseconds.to_ne_bytes()
    }

    /// From the pipe.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NoMessage> {
        let nanoseconds = bytes.try_into().map(u64::from_ne_bytes).map_err(|_| NoMessage(bytes.len()))?;
        Ok(match nanoseconds {
            0 => Self::Stand,
            nanoseconds => Self::KillAt(Moment(Duration::from_nanos(nanoseconds))),
        })
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
            let mut bytes = [0; Order::SIZE];
            let size = match read(input.as_fd(), &mut bytes) {
                Ok(0) => return Ok(()),
                Ok(size) => size,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            set(&timer, Order::from_bytes(bytes.get(..size).unwrap_or_default()).map_err(io::Error::other)?)?;
            // A pipe has no way back, and an agent that does not listen is no reason to wait.
            let _ = write(input.as_fd(), &bytes);
            told = false;
        } else if is_due {
            let _ = timer.wait();
            kill_all(agent);
            if !told {
                tell();
                told = true;
            }
        }
    }
}

/// Due at the deadline, and again and again from there on.
fn set(timer: &TimerFd, order: Order) -> nix::Result<()> {
    match order {
        Order::KillAt(Moment(at)) => timer.set(
            Expiration::IntervalDelayed(TimeSpec::from(at), TimeSpec::from(AGAIN)),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME,
        ),
        Order::Stand => timer.unset(),
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
fn tell() {
    let stderr = io::stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut ready, PollTimeout::ZERO) == Ok(1) {
        let _ = writeln!(
            &stderr,
            "{}  WARN {}: the Lease was not renewed in time and the agent did not stop PostgreSQL: every process of the container but \
             the first is killed",
            Timestamp::now(),
            COMMAND
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_the_same_at_the_other_end_of_the_pipe() {
        let deadline = Order::KillAt(Moment(Duration::new(86_400, 123_456_789)));
        for order in [deadline, Order::Stand] {
            assert_eq!(Order::from_bytes(&order.to_bytes()), Ok(order));
        }
    }

    #[test]
    fn a_deadline_is_never_mistaken_for_none() {
        let long_past = Order::KillAt(Moment(Duration::ZERO));
        assert!(matches!(Order::from_bytes(&long_past.to_bytes()), Ok(Order::KillAt(_))));
        let never = Order::KillAt(Moment(Duration::MAX));
        assert!(matches!(Order::from_bytes(&never.to_bytes()), Ok(Order::KillAt(_))));
    }

    #[test]
    fn a_part_of_a_message_is_none() {
        assert_eq!(Order::from_bytes(&[1, 2, 3]), Err(NoMessage(3)));
    }

    #[test]
    fn descendants_are_children_and_theirs_and_nobody_else() {
        let parents = [(1, 0), (7, 1), (8, 7), (9, 8), (10, 1), (11, 10)];
        assert_eq!(descendants(7, &parents), [8, 9]);
        assert_eq!(descendants(9, &parents), Vec::<i32>::new());
    }
}
