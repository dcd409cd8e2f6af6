//! What a master's commits wait for: how many replicas, from what the user asks for and who streams; and when the Lease may say so. All of
//! it belongs to one leadership. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Time;
use crate::election::Lsn;
use crate::election::quorum::{QuorumStep, quorum_step};
use crate::election::vote::Quorum;

/// A replica that restarts is back within seconds. Whoever prefers that commits go on without it takes that into account; a shorter time
/// would give up synchronous replication at every rolling update.
const GIVES_UP_AFTER: Duration = Duration::from_secs(10);
/// So long after a change of the setting every one of the server's processes has read it, also one that had to wait for its turn.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// What commits wait for.
#[derive(Clone, Debug)]
pub struct Commits<T> {
    /// What the Lease was taken with, until this member leads by it: its server begins with that.
    pub taken_with: Option<Quorum>,
    strictness: Strictness<T>,
    catch_up: CatchUp<T>,
}

/// What the server does and the Lease says.
#[derive(Clone, Debug)]
pub struct Setting<'a> {
    /// What commits wait for by the Lease.
    pub recorded: &'a Quorum,
    /// What they wait for on the server.
    pub on_server: &'a Quorum,
    /// What they should wait for.
    pub wanted: &'a Quorum,
    /// What shows how far the replicas have come; absent where that is not known.
    pub evidence: Option<&'a Evidence>,
}

/// How far the replicas have come.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What the master has on its disk.
    pub flushed: Lsn,
    /// What each replica has on its own.
    pub replicas: Vec<(String, Lsn)>,
}

/// So many replicas confirm a commit now.
#[derive(Clone, Copy, Debug)]
struct Strictness<T> {
    lowered: Option<u32>,
    short_since: Option<T>,
}

/// How far those that confirm commits have come, since the server waits for them.
#[derive(Clone, Debug)]
struct CatchUp<T> {
    quorum: Quorum,
    since: Option<T>,
    to: Option<Lsn>,
}

impl<T> Default for Commits<T> {
    fn default() -> Self {
        Self { taken_with: None, strictness: Strictness::default(), catch_up: CatchUp::default() }
    }
}

impl<T: Time> Commits<T> {
    /// Of a server that waits for these since then, while the Lease says something else; `to`: how far they have to come.
    #[must_use]
    pub fn with_catch_up(quorum: Quorum, since: T, to: Option<Lsn>) -> Self {
        Self { catch_up: CatchUp { quorum, since: Some(since), to }, ..Self::default() }
    }

    /// For whom the server waits while the Lease says something else, and how far they have to come, once that is known.
    #[must_use]
    pub fn catching_up(&self) -> Option<(&Quorum, Option<Lsn>)> {
        self.catch_up.since.map(|_| (&self.catch_up.quorum, self.catch_up.to))
    }

    /// Of `wanted` replicas as many as a commit waits for: where that is not strict, those that stream, once they have been too few for a
    /// while; more again as soon as more do.
    pub fn confirmations(&mut self, wanted: u32, is_strict: bool, streaming: u32, now: T) -> u32 {
        self.strictness.look(wanted, is_strict, streaming, now)
    }

    /// What the Lease is to say, and whether the server may do what is wanted.
    pub fn record(&mut self, setting: &Setting<'_>, now: T) -> (Quorum, bool) {
        let Setting { recorded, on_server, wanted, evidence } = setting;
        let are_caught_up = if on_server == recorded {
            // What is looked at next is another change, also if it leads to the same.
            self.catch_up = CatchUp::default();
            true
        } else {
            evidence.is_some_and(|evidence| self.catch_up.look(on_server, evidence, now))
        };
        match quorum_step(recorded, on_server, wanted, are_caught_up) {
            QuorumStep::Record(quorum) => (quorum, false),
            QuorumStep::Enable | QuorumStep::CatchUp => ((*recorded).clone(), true),
            QuorumStep::Done => ((*wanted).clone(), true),
        }
    }

    /// The server is about to wait for others.
    pub fn note_change(&mut self) {
        self.catch_up = CatchUp::default();
    }
}

// === impl Strictness ===

impl<T> Default for Strictness<T> {
    fn default() -> Self {
        Self { lowered: None, short_since: None }
    }
}

impl<T: Time> Strictness<T> {
    fn look(&mut self, wanted: u32, is_strict: bool, streaming: u32, now: T) -> u32 {
        let asked = self.lowered.unwrap_or(wanted).min(wanted);
        let there = streaming.min(wanted);
        if is_strict || there >= asked {
            *self = Self { lowered: (!is_strict && there < wanted).then_some(there), short_since: None };
        } else if now >= self.short_since.get_or_insert(now).after(GIVES_UP_AFTER) {
            *self = Self { lowered: Some(there), short_since: None };
        }
        self.lowered.unwrap_or(wanted)
    }
}

// === impl CatchUp ===

impl<T> Default for CatchUp<T> {
    fn default() -> Self {
        Self { quorum: Quorum::default(), since: None, to: None }
    }
}

impl<T: Time> CatchUp<T> {
    /// Whether as many as confirm a commit have all that had been acknowledged before it was they who did.
    fn look(&mut self, quorum: &Quorum, evidence: &Evidence, now: T) -> bool {
        if self.quorum != *quorum || self.since.is_none() {
            *self = Self { quorum: quorum.clone(), since: Some(now), to: None };
        }
        let have_read = self.since.is_some_and(|since| now >= since.after(READ_WITHIN));
        let Some(to) = self.to.or(have_read.then_some(evidence.flushed)) else { return false };
        self.to = Some(to);
        let has_it = |(pod, at): &&(String, Lsn)| quorum.names.contains(pod) && *at >= to;
        let there: BTreeSet<&str> = evidence.replicas.iter().filter(has_it).map(|(pod, _)| pod.as_str()).collect();
        there.len() >= usize::try_from(quorum.confirm).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
#[path = "commits_tests.rs"]
mod tests;
