//! The members of a set, one row each: what their pods say, and what the master says of them.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::lease::{Holder, Leadership};
use crate::{
    cli::{
        check::{installation::unready, sets::is_member},
        cluster::{items, text},
    },
    election::{
        Lsn,
        lineage::Reached,
        members::{Connection, Seen},
    },
    set::Set,
};

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each of them is told by itself")]
pub struct Row {
    /// Its pod.
    pub pod: String,
    /// Its role.
    pub role: Role,
    /// What it does.
    pub state: State,
    /// Its pod is Ready.
    pub is_ready: bool,
    /// The set should have it; otherwise it is about to go.
    pub is_wanted: bool,
    /// The timeline that it writes, or receives.
    pub timeline: Option<u32>,
    /// What it has on its disk.
    pub flushed: Option<Lsn>,
    /// What those who read from it see.
    pub replayed: Option<Lsn>,
    /// How many bytes of the WAL it has still to replay.
    pub lag_bytes: Option<u64>,
    /// By how much later a commit is seen there.
    pub lag: Option<Duration>,
    /// The master counts its confirmations of commits; absent where that is not told.
    pub synchronous: Option<bool>,
    /// Since when it leads, or its pod runs.
    pub since: Option<Timestamp>,
    /// What its pod waits for.
    pub why: Option<String>,
    /// This very pod holds the Lease.
    pub is_holder: bool,
    /// Its pod's label says that it is the master.
    pub is_labelled_master: bool,
}

/// A member's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It holds the Lease, or has the master's label.
    Master,
    /// It has the replica's label, or receives the master's WAL.
    Replica,
    /// Neither.
    None,
}

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It leads and accepts writes.
    Leading,
    /// It leads, and PostgreSQL does not accept connections yet.
    Starting,
    /// It leads by the Lease, and has not renewed that in time.
    Silent,
    /// What the master says of it.
    Seen(Connection),
    /// Its pod is Ready; the master does not say more.
    Ready,
    /// Its pod runs and is not Ready.
    Waiting,
    /// Its pod does not run.
    Pending,
    /// Its pod is being deleted.
    Terminating,
    /// It has no pod.
    NoPod,
    /// Pods can't be read.
    Unknown,
}

// === impl Role ===

impl Role {
    /// Its name, which stays the same.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Replica => "replica",
            Self::None => "none",
        }
    }
}

// === impl State ===

impl State {
    /// Its name, which stays the same.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leading => "leading",
            Self::Starting => "starting",
            Self::Silent => "silent",
            Self::Seen(connection) => connection.as_str(),
            Self::Ready => "ready",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Terminating => "terminating",
            Self::NoPod => "no pod",
            Self::Unknown => "unknown",
        }
    }
}

/// All members: those that the set should have, and those that are about to go. `pods` is absent where they can't be read.
pub fn rows(set: &Set, object: &Value, pods: Option<&[Value]>, leadership: Option<&Leadership>) -> Vec<Row> {
    let own: Vec<&Value> = pods.unwrap_or_default().iter().filter(|pod| is_member(pod, object)).collect();
    let name = |pod: &Value| text(pod, "/metadata/name").to_owned();
    let wanted: Vec<String> = set.members().collect();
    let leaving = own.iter().map(|pod| name(pod)).filter(|pod| !wanted.contains(pod));
    let names = wanted.iter().cloned().map(|pod| (pod, true)).chain(leaving.map(|pod| (pod, false)));
    let row = |(pod, is_wanted): (String, bool)| {
        let found = own.iter().find(|it| name(it) == pod).copied();
        let member = Member { set, pod: found, are_pods_known: pods.is_some(), leadership };
        Row { is_wanted, ..member.row(pod) }
    };
    names.map(row).collect()
}

struct Member<'a> {
    set: &'a Set,
    pod: Option<&'a Value>,
    are_pods_known: bool,
    leadership: Option<&'a Leadership>,
}

// === impl Member ===

impl Member<'_> {
    fn row(&self, name: String) -> Row {
        let is_holder = self.is_holder(&name);
        let seen = self.leadership.and_then(|it| it.seen.as_deref()).unwrap_or_default();
        let seen = seen.iter().find(|seen| seen.pod == name).filter(|_| !is_holder);
        let state = self.state(is_holder, seen);
        let reached = self.leadership.and_then(|it| it.database).and_then(|database| database.reached);
        let is_connected = matches!(state, State::Seen(Connection::Streaming | Connection::CatchingUp));
        let seen_now = seen.filter(|_| is_connected);
        let written = reached.and_then(|reached| reached.flushed);
        let replayed = seen_now.and_then(|seen| seen.replayed);
        let tells = matches!(state, State::Leading | State::Seen(Connection::Streaming));
        Row {
            role: self.role(is_holder, is_connected),
            state,
            is_ready: self.pod.is_some_and(is_ready),
            is_wanted: true,
            // It streams from the timeline that the master writes.
            timeline: reached.filter(|_| tells).map(|Reached { timeline, .. }| timeline),
            flushed: if state == State::Leading { written } else { seen_now.and_then(|seen| seen.flushed) },
            replayed,
            lag_bytes: written.zip(replayed).map(|(Lsn(written), Lsn(replayed))| written.saturating_sub(replayed)),
            lag: seen_now.and_then(|seen| seen.lag),
            synchronous: seen.map(|seen| seen.synchronous),
            since: self.since(is_holder),
            why: self.pod.and_then(unready),
            is_holder,
            is_labelled_master: self.is_labelled(&self.set.role_label.master),
            pod: name,
        }
    }

    /// A pod made anew is another candidate than the one before.
    fn is_holder(&self, name: &str) -> bool {
        let Some(Holder::Member(holder)) = self.leadership.map(|it| &it.holder) else { return false };
        let is_same = |pod: &Value| text(pod, "/metadata/uid") == holder.uid;
        holder.pod == name && self.pod.map_or(!self.are_pods_known, is_same)
    }

    fn state(&self, is_holder: bool, seen: Option<&Seen>) -> State {
        if let Some(state) = self.state_of_pod() {
            return state;
        }
        match (self.leadership, seen) {
            (Some(leadership), _) if is_holder => match leadership {
                Leadership { is_silent: true, .. } => State::Silent,
                Leadership { is_announced: false, .. } => State::Starting,
                _ => State::Leading,
            },
            (_, Some(seen)) => State::Seen(seen.state),
            _ => match self.pod {
                Some(pod) if is_ready(pod) => State::Ready,
                Some(_) => State::Waiting,
                None => State::Unknown,
            },
        }
    }

    /// What the pod says, as long as it does not run.
    fn state_of_pod(&self) -> Option<State> {
        let Some(pod) = self.pod else { return self.are_pods_known.then_some(State::NoPod) };
        if !text(pod, "/metadata/deletionTimestamp").is_empty() {
            return Some(State::Terminating);
        }
        let container = |status: &&Value| text(status, "/name") == self.set.container;
        let is_held_up = items(pod, "/status/containerStatuses")
            .find(container)
            .is_some_and(|status| status.pointer("/state/running").is_none() && status.pointer("/state").is_some());
        (is_held_up || text(pod, "/status/phase") != "Running").then_some(State::Pending)
    }

    fn role(&self, is_holder: bool, is_connected: bool) -> Role {
        if is_holder || self.is_labelled(&self.set.role_label.master) {
            Role::Master
        } else if is_connected || self.is_labelled(&self.set.role_label.replica) {
            Role::Replica
        } else {
            Role::None
        }
    }

    fn is_labelled(&self, value: &str) -> bool {
        let labels = self.pod.and_then(|pod| pod.pointer("/metadata/labels"));
        labels.and_then(|labels| labels.get(&self.set.role_label.key)?.as_str()) == Some(value)
    }

    fn since(&self, is_holder: bool) -> Option<Timestamp> {
        let leads = self.leadership.filter(|_| is_holder).and_then(|it| it.since);
        leads.or_else(|| text(self.pod?, "/status/startTime").parse().ok())
    }
}

fn is_ready(pod: &Value) -> bool {
    items(pod, "/status/conditions").any(|it| text(it, "/type") == "Ready" && text(it, "/status") == "True")
}
