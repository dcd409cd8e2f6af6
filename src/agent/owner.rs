//! Whose the data directory is: a file in it says so, its owner renews that, and who comes anew waits until the owner has let go or is
//! surely dead.
//!
//! A lock of the file system is not enough: an NFS mount with `nolock` or `local_lock` grants it to two nodes at once, and a pod that was
//! force-deleted while its node was cut off goes on writing to the shared export while its successor of the same name starts.
//!
//! **The file** (`.pgset-owner`) names the pod, its UID and a random token of this life of the container, with a number that grows
//! with each [`BEAT`]. No file: nobody owns the directory, its last owner has let go. Nobody ever compares clocks of two machines.
//!
//! **Its owner** reads it before each beat. If a later life of this pod stands there, it was overtaken: everything ends at once. If
//! no beat has come through for [`STOP_AFTER`], counted from before the rename of the last that did, the storage is gone or stalls and somebody
//! may be about to take over: everything ends as well, by the agent, or [`KILL_AFTER`] by the fencer, whatever hangs. A beat that takes long to
//! be written counts from when it can be seen, so that storage that is slow, but goes on, ends nobody.
//!
//! **A newcomer** looks once a second.
//!
//! | it finds | it |
//! |---|---|
//! | nothing | makes the file by a hard link, which only one can do: it owns the directory |
//! | an earlier life of this container, whose lock is free | takes it over at once: the processes of that life are dead |
//! | another's, where a lock that is held says that nobody else is there | the same |
//! | another's | takes it over after it has seen it unchanged for [`TAKE_OVER_AFTER`] |
//!
//! **Taking over** is a rename over the file, the claim. Two may do that at a time, so the claim has to stand for [`CLAIM_SETTLES`]. That is
//! longer than [`CLAIM_WITHIN`], the time between the look that a claim rests on and its end: who has claimed meanwhile sees the later
//! claim when he looks, and does not own. A claim that took longer may have overtaken somebody who owns the directory already: that one stops
//! within `STOP_AFTER`, so such a claim has to stand for `TAKE_OVER_AFTER`, with beats.
//!
//! **The arithmetic.** What a newcomer saw first at `r` was put there from before `r` on, so its owner's processes are dead at `r + KILL_AFTER`. A beat that
//! succeeded later would have been seen. At `r + TAKE_OVER_AFTER` the directory is taken over at the earliest: 14 s are left for the kernel
//! to end the processes, for writes on their way to the server, and for clocks that go at different speeds. 30 s outlast what a network
//! or a busy server does in everyday life (a switch that begins anew, a checkpoint of all members at once), and are still a wait that people bear
//! who have deleted a pod by force. A server that is gone for longer ends its PostgreSQL; where nobody else comes, it starts again
//! in its place as soon as the server answers.
//!
//! **Caches of NFS.** Attributes may be up to 60 s old (`acregmax`), so that nobody may trust a file that it has open. Each beat is a rename, by
//! which the file is another one, and each look opens it by its name: close-to-open consistency asks the server then. A name, too, may be
//! up to 60 s old (`acdirmax`): each look first writes a file of its own beside it, which makes the client forget what it knew of the names. An
//! absence that is remembered wrongly does no harm, as the server decides about the hard link.

mod keeper;
mod volume;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::keeper::{Ended, Lost, Ownership};
pub use self::volume::{Volume, has_locks_for_all};
use super::fencer::Moment;

/// How often the owner renews the file: often enough that a hiccup costs none of many tries, and small beside what a database writes.
pub const BEAT: Duration = Duration::from_secs(1);
/// After so long without a beat the owner ends: see the module's arithmetic.
pub const STOP_AFTER: Duration = Duration::from_secs(30);
/// After so long the fencer kills, if the agent did not end everything.
pub const KILL_AFTER: Duration = Duration::from_secs(31);
/// For so long a newcomer must have seen no change.
pub const TAKE_OVER_AFTER: Duration = Duration::from_secs(45);
/// How long a claim may take from the look that it rests on. Longer, it is a slow one.
pub const CLAIM_WITHIN: Duration = Duration::from_secs(2);
/// How long a claim must stand.
pub const CLAIM_SETTLES: Duration = Duration::from_secs(3);

/// All of these: tests live faster.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    beat: Duration,
    stop_after: Duration,
    kill_after: Duration,
    take_over_after: Duration,
    claim_within: Duration,
    claim_settles: Duration,
}

/// As they are.
pub const TIMES: Times = Times {
    beat: BEAT,
    stop_after: STOP_AFTER,
    kill_after: KILL_AFTER,
    take_over_after: TAKE_OVER_AFTER,
    claim_within: CLAIM_WITHIN,
    claim_settles: CLAIM_SETTLES,
};

/// What stands in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The pod.
    pub pod: String,
    /// Its UID, the same for all lives of its container.
    pub uid: String,
    /// This life of the container.
    pub token: String,
    /// Grows with each beat.
    pub beat: u64,
}

/// What a look finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No file.
    Nothing,
    /// A note.
    Note(Note),
    /// A file that is none, as a crash of the machine may leave.
    Unreadable(String),
}

/// A look at the file.
#[derive(Clone, Debug)]
pub struct Look {
    /// What it found.
    pub found: Found,
    /// When it began.
    pub asked: Moment,
    /// When it was over.
    pub answered: Moment,
}

/// What the owner does after a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Goes on: with the next beat.
    Beat,
    /// The file is gone, by somebody's hand: it is made again.
    MakeAgain,
    /// Ends everything.
    End(Note),
}

/// What a newcomer does after a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes the file, if there is still none.
    Make,
    /// Claims the directory.
    Claim,
    /// Its claim has to stand for longer.
    Settle,
    /// Looks again. At this moment it may claim, if nothing changes until then.
    Wait(Moment),
    /// It owns the directory.
    Own,
}

/// One who does not own the directory yet.
#[derive(Debug)]
pub struct Newcomer {
    me: Note,
    lock_proves: bool,
    times: Times,
    watched: Option<(Found, Moment)>,
    /// From when on its own note means that it owns the directory.
    settles_at: Option<Moment>,
    is_at_once: bool,
    /// A claim of its own was sent, and nobody knows when it will be written.
    is_in_doubt: bool,
}

// === impl Note ===

impl Note {
    /// All notes are so long, whatever they say: one can be written over another in place where the volume is full.
    const SIZE: usize = 1024;

    /// As it stands in the file.
    #[must_use]
    pub fn to_text(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        let pad = Self::SIZE.saturating_sub(text.len() + 1);
        text + &" ".repeat(pad) + "\n"
    }

    /// The note of the next beat.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { beat: self.beat.saturating_add(1), ..self.clone() }
    }

    /// What a look at the file found there.
    #[must_use]
    pub fn read(text: Option<String>) -> Found {
        match text {
            None => Found::Nothing,
            Some(text) => serde_json::from_str(&text).map_or(Found::Unreadable(text), Found::Note),
        }
    }
}

// === impl Found ===

impl Found {
    fn is_of(&self, me: &Note) -> bool {
        matches!(self, Self::Note(note) if note.token == me.token)
    }
}

/// What the owner does. A note of another pod's name came along with a copy of that member's data: each name has its own directory.
#[must_use]
pub fn duty(me: &Note, found: &Found) -> Duty {
    match found {
        Found::Nothing => Duty::MakeAgain,
        Found::Note(note) if note.token != me.token && note.pod == me.pod => Duty::End(note.clone()),
        Found::Note(_) | Found::Unreadable(_) => Duty::Beat,
    }
}

// === impl Newcomer ===

impl Newcomer {
    /// `lock_proves`: this process holds a lock that nobody who could still write would have left it.
    #[must_use]
    pub fn new(me: Note, lock_proves: bool, times: Times) -> Self {
        Self { me, lock_proves, times, watched: None, settles_at: None, is_at_once: false, is_in_doubt: false }
    }

    /// What to do after a look.
    pub fn step(&mut self, look: &Look) -> Step {
        if look.found.is_of(&self.me) {
            // One that is found and was not known to be written may have overtaken anybody.
            let settles_at = *self.settles_at.get_or_insert(look.answered.after(self.times.take_over_after));
            return if look.asked >= settles_at { Step::Own } else { Step::Settle };
        }
        self.settles_at = None;
        if look.found == Found::Nothing {
            self.watched = None;
            return Step::Make;
        }
        self.is_at_once = self.lock_proves || matches!(&look.found, Found::Note(note) if note.uid == self.me.uid);
        let since = match self.watched.take() {
            Some((found, since)) if found == look.found => since,
            _ => look.answered,
        };
        self.watched = Some((look.found.clone(), since));
        let due = since.after(self.times.take_over_after);
        if self.is_at_once || look.asked >= due { Step::Claim } else { Step::Wait(due) }
    }

    /// The file is about to be made. Of several who try, one does: whose note is found there is the one, whatever answer he got.
    pub fn makes(&mut self, at: Moment) {
        if !self.is_in_doubt {
            self.settles_at = Some(at);
        }
    }

    /// A claim, or a beat of one that settles, was written at `done`, after a look that began at `asked`.
    pub fn claimed(&mut self, asked: Moment, done: Moment) {
        let is_slow = done.since(asked) > self.times.claim_within || self.is_in_doubt && self.settles_at.is_none();
        self.settles_at = Some(match self.settles_at {
            _ if is_slow => done.after(self.times.take_over_after),
            Some(settles_at) => settles_at,
            None if self.is_at_once => done,
            None => done.after(self.times.claim_settles),
        });
    }

    /// A claim was tried, and nobody knows whether it was written.
    pub fn failed(&mut self, at: Moment) {
        self.is_in_doubt = true;
        self.settles_at = Some(at.after(self.times.take_over_after));
    }

    /// For whom it waits, and for how long; absent if it waits for nobody.
    #[must_use]
    pub fn waits_for(&self, now: Moment) -> Option<(String, Duration)> {
        let (found, since) = self.watched.as_ref()?;
        let who = match found {
            Found::Note(note) => format!("pod {} with UID {}", note.pod, note.uid),
            Found::Unreadable(_) | Found::Nothing => "another pod".to_owned(),
        };
        let due = self.settles_at.unwrap_or_else(|| since.after(self.times.take_over_after));
        Some((who, due.since(now)))
    }
}

#[cfg(test)]
#[path = "owner/decision_tests.rs"]
mod tests;
