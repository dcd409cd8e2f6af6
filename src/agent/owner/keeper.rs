//! The owner's threads. One takes the directory, beats, and lets go; it waits for storage. The other waits for nothing but the deadline, and ends
//! this process when it is there: a thread that hangs in storage never comes back from it to the next step of what it did.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{Span, info, warn};

use super::volume::{Slate, is_full};
use super::{Duty, Look, Newcomer, Note, Step, Times, duty};
use crate::agent::fencer::Moment;
use crate::agent::fencing;

/// How long the fencer may take to kill before the first process ends: where that is not the kernel's end of all others, the runtime's
/// follows a moment later.
const KILL_PAUSE: Duration = Duration::from_millis(100);
/// How long letting go may take. A pod has other limits, and who comes then waits for a while.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);
/// How often one who waits says so, which is also how the liveness probe knows that it lives.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// How often the deadline is looked at: a machine that was suspended wakes up past it.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why everything ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// A later pod has the directory.
    #[error("the data directory was taken over by pod {} with UID {}: nothing here may write any more", .0.pod, .0.uid)]
    Overtaken(Note),
    /// No beat came through in time.
    #[error(
        "the data volume has not taken a write for {} s: another pod may take the data directory over, so nothing here may write any more",
        .0.as_secs()
    )]
    Overdue(Duration),
}

/// How everything ends. Both threads may find that it is due.
type End = Arc<dyn Fn(Lost) + Send + Sync>;

/// The thread ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("the owner of the data directory ended by itself")]
pub struct Ended;

/// The data directory is this life's, or will be; the thread's other end.
#[derive(Debug)]
pub struct Ownership {
    states: watch::Receiver<State>,
    orders: Sender<()>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Looking,
    Waiting(String),
    Owned,
    Left,
}

/// When this life must have ended, unless a beat comes through before.
#[derive(Clone, Debug, Default)]
struct Deadline(Arc<Mutex<Option<Moment>>>);

struct Keeper {
    slate: Box<dyn Slate>,
    me: Note,
    times: Times,
    fencer: fencing::Handle,
    deadline: Deadline,
    states: watch::Sender<State>,
    orders: Receiver<()>,
    end: End,
    last_beat: Moment,
    trouble: Option<io::ErrorKind>,
    waits_for: Option<String>,
}

// === impl Ownership ===

impl Ownership {
    /// Starts to take what the slate is about. `end` ends everything, when that is due.
    pub fn start(
        slate: impl Slate + 'static,
        me: Note,
        lock_proves: bool,
        times: Times,
        fencer: fencing::Handle,
        end: impl Fn(Lost) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (publish, states) = watch::channel(State::Looking);
        let (orders, inbox) = mpsc::channel();
        let (deadline, end): (_, End) = (Deadline::default(), Arc::new(end));
        deadline.watch(times.stop_after, end.clone())?;
        let newcomer = Newcomer::new(me.clone(), lock_proves, times);
        let keeper = Keeper {
            slate: Box::new(slate),
            me,
            times,
            fencer,
            deadline,
            states: publish,
            orders: inbox,
            end,
            last_beat: Moment::now(),
            trouble: None,
            waits_for: None,
        };
        let span = Span::current();
        let keep = move || span.in_scope(|| keeper.run(newcomer));
        thread::Builder::new().name("owner".to_owned()).spawn(keep)?;
        Ok(Self { states, orders })
    }

    /// Completes when the directory is this life's; says meanwhile what it waits for.
    pub async fn taken(&mut self, say: impl Fn(String)) -> Result<(), Ended> {
        loop {
            match self.states.borrow_and_update().clone() {
                State::Owned => return Ok(()),
                State::Left => return Err(Ended),
                State::Looking => say("looking whose the data directory is".to_owned()),
                State::Waiting(why) => say(why),
            }
            if let Ok(Err(_)) = timeout(SAY_EVERY, self.states.changed()).await {
                return Err(Ended);
            }
        }
    }

    /// Lets go: nothing of this life writes any more.
    pub async fn release(mut self) {
        if self.orders.send(()).is_err() {
            return;
        }
        let left = self.states.wait_for(|state| *state == State::Left);
        if timeout(RELEASE_LIMIT, left).await.is_err() {
            warn!("the data volume does not answer: a later pod of this name has to wait before it may use the data");
        }
    }
}

// === impl Deadline ===

impl Deadline {
    /// Ends everything when it is there, for as long as somebody has it.
    fn watch(&self, stop_after: Duration, end: End) -> io::Result<()> {
        let deadline = Arc::downgrade(&self.0);
        let span = Span::current();
        let watch = move || {
            let _entered = span.enter();
            while let Some(left) = Self::left(&deadline) {
                if left.is_zero() {
                    return end(Lost::Overdue(stop_after));
                }
                thread::sleep(left);
            }
        };
        thread::Builder::new().name("deadline".to_owned()).spawn(watch).map(drop)
    }

    /// Until when there is certainly nothing to do; absent if nobody has it any more.
    fn left(deadline: &Weak<Mutex<Option<Moment>>>) -> Option<Duration> {
        let deadline = *deadline.upgrade()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(deadline.map_or(LOOK_EVERY, |at| at.since(Moment::now()).min(LOOK_EVERY)))
    }

    fn set(&self, deadline: Option<Moment>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }
}

// === impl Keeper ===

impl Keeper {
    fn run(mut self, mut newcomer: Newcomer) {
        if self.take(&mut newcomer) {
            self.own();
        }
        self.states.send_replace(State::Left);
    }

    /// Returns whether the directory is its own, which it is not if it was told to leave before.
    fn take(&mut self, newcomer: &mut Newcomer) -> bool {
        loop {
            let pause = match self.approach(newcomer) {
                Ok(Step::Own) => return true,
                Ok(Step::Make | Step::Claim) => Duration::ZERO,
                Ok(Step::Wait(_) | Step::Settle) => {
                    self.tell_waiting(newcomer);
                    self.times.beat
                }
                Err(error) => {
                    let why = format!(
                        "the data volume does not take the file that says whose the data directory is: {error}"
                    );
                    self.note_trouble(&error, &why);
                    self.states.send_replace(State::Waiting(why));
                    self.times.beat
                }
            };
            if self.orders.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return false;
            }
        }
    }

    fn approach(&mut self, newcomer: &mut Newcomer) -> io::Result<Step> {
        self.prepare()?;
        let look = self.look()?;
        let step = newcomer.step(&look);
        let began = Moment::now();
        match &step {
            Step::Make => {
                self.last_beat = began;
                newcomer.makes(Moment::now());
                self.slate.put_first()?;
            }
            Step::Claim | Step::Settle => match self.slate.put_over() {
                Ok(()) => {
                    self.last_beat = began;
                    newcomer.claimed(look.asked, Moment::now());
                }
                Err(error) => {
                    newcomer.failed(Moment::now());
                    return Err(error);
                }
            },
            Step::Wait(_) | Step::Own => {}
        }
        Ok(step)
    }

    fn own(&mut self) {
        self.extend();
        self.slate.tidy();
        if self.waits_for.is_some() {
            info!("the data directory is this pod's now");
        }
        self.states.send_replace(State::Owned);
        loop {
            match self.orders.recv_timeout(self.times.beat) {
                Ok(()) => return self.let_go(),
                // The agent ends with an error; the next life of the container knows its own.
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            match self.beat() {
                Ok(None) => self.extend(),
                Ok(Some(lost)) => return self.end(lost),
                Err(error) => self.note_trouble(
                    &error,
                    &format!(
                        "the data volume takes no beat of this pod, {error}: all of it ends {} s after the last one",
                        self.times.stop_after.as_secs()
                    ),
                ),
            }
            if let Some(lost) = self.is_overdue() {
                return self.end(lost);
            }
        }
    }

    /// Nothing is written if it is too late for it: the directory may be another's.
    fn beat(&mut self) -> io::Result<Option<Lost>> {
        self.prepare()?;
        let look = self.look()?;
        let duty = duty(&self.me, &look.found);
        if let Duty::End(note) = duty {
            return Ok(Some(Lost::Overtaken(note)));
        }
        if let Some(lost) = self.is_overdue() {
            return Ok(Some(lost));
        }
        let began = Moment::now();
        let outcome = match duty {
            Duty::MakeAgain => self.slate.put_first().map(drop),
            Duty::Beat | Duty::End(_) => self.slate.put_over(),
        };
        match outcome {
            // Full is not gone: it was read that the directory is this life's, and nobody else can write a claim.
            Err(error) if !is_full(&error) => Err(error),
            _ if self.is_overdue().is_some() => Ok(self.is_overdue()),
            _ => {
                self.last_beat = began;
                Ok(None)
            }
        }
    }

    fn prepare(&mut self) -> io::Result<()> {
        self.me = self.me.next();
        self.slate.prepare(&self.me.to_text())
    }

    fn look(&self) -> io::Result<Look> {
        let asked = Moment::now();
        let found = Note::read(self.slate.read()?);
        Ok(Look { found, asked, answered: Moment::now() })
    }

    fn is_overdue(&self) -> Option<Lost> {
        (Moment::now().since(self.last_beat) > self.times.stop_after).then_some(Lost::Overdue(self.times.stop_after))
    }

    /// A beat has come through. Without a fencer there is still the agent's own watch; the next fencer begins with what it is told here.
    fn extend(&mut self) {
        if self.trouble.take().is_some() {
            info!("the data volume takes beats again");
        }
        self.deadline.set(Some(self.last_beat.after(self.times.stop_after)));
        let _ = self.fencer.storage_kill_at(self.last_beat.after(self.times.kill_after));
    }

    fn let_go(&mut self) {
        let is_own = self.is_overdue().is_none()
            && self
                .look()
                .is_ok_and(|look| matches!(look.found, super::Found::Note(note) if note.token == self.me.token));
        if is_own && let Err(error) = self.slate.remove() {
            warn!(%error, "the data directory was not released: a later pod of this name has to wait before it may use the data");
        }
        self.deadline.set(None);
        self.fencer.storage_stand();
    }

    /// The fencer goes first: nothing that it does waits for anything.
    fn end(&mut self, lost: Lost) {
        if self.fencer.storage_kill_at(Moment::now()) {
            thread::sleep(KILL_PAUSE);
        }
        (self.end)(lost);
    }

    fn tell_waiting(&mut self, newcomer: &Newcomer) {
        let Some((who, left)) = newcomer.waits_for(Moment::now()) else { return };
        let at = Timestamp::now().checked_add(left).unwrap_or(Timestamp::MAX);
        let why = format!(
            "waiting: {who} may still write to the data directory; it is taken over at {at:.0}, or as soon as it is let go, unless it \
             shows life before"
        );
        // Each beat of the other moves the time.
        if self.waits_for.as_ref() != Some(&who) {
            warn!("{why}");
            self.waits_for = Some(who);
        }
        self.states.send_replace(State::Waiting(why));
    }

    fn note_trouble(&mut self, error: &io::Error, why: &str) {
        if self.trouble.replace(error.kind()) != Some(error.kind()) {
            warn!("{why}");
        }
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
