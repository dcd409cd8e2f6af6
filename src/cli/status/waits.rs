//! What a set waits for, and what to do about it.

use std::time::Duration;

use super::{
    lease::{Holder, Leadership},
    rows::{Role, Row, State},
    told::{bytes, seconds},
};
use crate::{
    cli::cluster::{Read, Unread},
    election::{
        lineage::{Database, Reached},
        members::Connection,
    },
    names::{self, annotation},
    set::{Contract, Failover, Set},
};

/// Something that a set waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// What kind of thing.
    pub reason: Reason,
    /// What it is, in one sentence.
    pub says: String,
    /// What to do; empty where time alone will do.
    pub cure: String,
}

/// What a set can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// pgset refuses the set as it is.
    Refused,
    /// The webhook was not asked.
    NotInjected,
    /// The controller has made no Lease.
    NoLease,
    /// Another program holds the Lease.
    ForeignLease,
    /// Nobody leads.
    NoMaster,
    /// The pod that leads by the Lease is gone.
    MasterGone,
    /// The holder of the Lease does not renew it.
    MasterSilent,
    /// The master does not accept connections yet.
    MasterStarting,
    /// More than one member has the master's label.
    TwoMasters,
    /// A member has no pod.
    NoPod,
    /// A member's pod does not run.
    NotRunning,
    /// A member is being cloned.
    Cloning,
    /// A member gets what it missed.
    CatchingUp,
    /// A member runs and receives nothing.
    NotStreaming,
    /// A member's pod is not Ready.
    NotReady,
    /// Too few replicas confirm commits.
    CommitsWait,
}

// === impl Reason ===

impl Reason {
    /// All of them.
    #[cfg(test)]
    pub const ALL: [Self; 16] = [
        Self::Refused,
        Self::NotInjected,
        Self::NoLease,
        Self::ForeignLease,
        Self::NoMaster,
        Self::MasterGone,
        Self::MasterSilent,
        Self::MasterStarting,
        Self::TwoMasters,
        Self::NoPod,
        Self::NotRunning,
        Self::Cloning,
        Self::CatchingUp,
        Self::NotStreaming,
        Self::NotReady,
        Self::CommitsWait,
    ];

    /// Its name, which stays the same.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::NotInjected => "not-injected",
            Self::NoLease => "no-lease",
            Self::ForeignLease => "foreign-lease",
            Self::NoMaster => "no-master",
            Self::MasterGone => "master-gone",
            Self::MasterSilent => "master-silent",
            Self::MasterStarting => "master-starting",
            Self::TwoMasters => "two-masters",
            Self::NoPod => "no-pod",
            Self::NotRunning => "not-running",
            Self::Cloning => "cloning",
            Self::CatchingUp => "catching-up",
            Self::NotStreaming => "not-streaming",
            Self::NotReady => "not-ready",
            Self::CommitsWait => "commits-wait",
        }
    }
}

/// A set whose members are known, as far as they could be read.
pub struct Known<'a> {
    /// The set.
    pub set: &'a Set,
    /// Its Lease as it was read; of contract `image`, nothing.
    pub lease: Option<&'a Read<Leadership>>,
    /// Its members.
    pub rows: &'a [Row],
}

// === impl Known ===

impl Known<'_> {
    /// All that it waits for, the weightiest first.
    pub fn waits(&self) -> Vec<Wait> {
        let mut waits: Vec<Wait> = self.for_a_master().into_iter().collect();
        waits.extend(self.for_one_master_only());
        waits.extend(self.rows.iter().filter(|row| row.is_wanted).filter_map(|row| self.for_member(row)));
        waits.extend(self.for_confirmations());
        waits
    }

    fn leadership(&self) -> Option<&Leadership> {
        self.lease.and_then(|read| read.as_ref().ok())
    }

    fn has_master(&self) -> bool {
        match self.set.contract {
            Contract::Agent => self.leadership().and_then(Leadership::master).is_some(),
            Contract::Image => self.rows.iter().any(|row| row.role == Role::Master),
        }
    }

    fn for_a_master(&self) -> Option<Wait> {
        let lease = names::leader(&self.set.name);
        let read = match self.lease {
            // Where pods can't be read, their labels are not known.
            None if self.has_master() || self.rows.iter().any(|row| row.state == State::Unknown) => return None,
            None => {
                let says = "no member is labelled as the master".to_owned();
                return Some(Wait { reason: Reason::NoMaster, says, cure: self.see_logs() });
            }
            Some(read) => read,
        };
        let leadership = match read {
            Ok(leadership) => leadership,
            Err(Unread::Absent) => {
                let says = format!("there is no Lease {lease}, by which members agree on the master");
                let cure = "pgset's controller makes it: pgset check says whether that runs".to_owned();
                return Some(Wait { reason: Reason::NoLease, says, cure });
            }
            Err(_) => return None,
        };
        match &leadership.holder {
            Holder::Stranger(holder) => Some(Wait {
                reason: Reason::ForeignLease,
                says: format!("the Lease {lease} is held by {holder:?}, which is no member of this set"),
                cure: "give that program another Lease; then a member takes this one".to_owned(),
            }),
            Holder::Nobody => Some(self.nobody_leads(leadership)),
            Holder::Member(candidate) => self.for_holder(&candidate.pod, leadership),
        }
    }

    fn nobody_leads(&self, leadership: &Leadership) -> Wait {
        let is_manual = self.set.failover == Failover::Manual && leadership.database.is_some();
        let manual = if is_manual {
            format!("; {} is manual, so that no replica is promoted by itself", annotation::FAILOVER)
        } else {
            String::new()
        };
        let says = match leadership.database {
            None => "no member leads, and none has led yet".to_owned(),
            Some(database) => {
                format!("no member leads; whoever does has to have {}{manual}", memory(&database))
            }
        };
        let cure = format!("the Events of the set say what members refuse; {}", self.see_logs());
        Wait { reason: Reason::NoMaster, says, cure: format!("{}{cure}", self.fail_over(is_manual)) }
    }

    fn for_holder(&self, pod: &str, leadership: &Leadership) -> Option<Wait> {
        let row = self.rows.iter().find(|row| row.pod == pod);
        let is_there = row.is_some_and(|row| row.is_holder);
        let good_for = seconds(leadership.duration);
        let why = row.and_then(|row| row.why.as_ref()).map(|why| format!(" ({why})")).unwrap_or_default();
        let see = format!("kubectl describe pod {pod}{0} and kubectl logs {pod}{0} say what holds it up", self.flag());
        if leadership.is_silent {
            let age = seconds(leadership.age.unwrap_or_default());
            let gone = if is_there { why } else { ", and its pod is gone".to_owned() };
            return Some(Wait {
                reason: Reason::MasterSilent,
                says: format!(
                    "{pod} holds the Lease and has not renewed it for {age}, longer than the {good_for} that it is good for{gone}: it \
                     writes no more, and a member that has what the set has reached may lead"
                ),
                cure: format!(
                    "{}{}",
                    self.fail_over(self.set.failover == Failover::Manual),
                    if is_there { see } else { self.see_logs() }
                ),
            });
        }
        if !is_there {
            let says = format!(
                "an earlier pod of {pod} holds the Lease; it is gone, and the Lease runs out {good_for} after its last renewal"
            );
            return Some(Wait { reason: Reason::MasterGone, says, cure: String::new() });
        }
        (!leadership.is_announced).then(|| Wait {
            reason: Reason::MasterStarting,
            says: format!("{pod} leads, and its PostgreSQL does not accept connections yet{why}"),
            cure: see,
        })
    }

    fn for_one_master_only(&self) -> Option<Wait> {
        let labelled: Vec<&str> =
            self.rows.iter().filter(|row| row.is_labelled_master).map(|row| row.pod.as_str()).collect();
        let (says, cure) = match self.leadership().and_then(Leadership::master) {
            Some(master) if labelled.iter().any(|pod| *pod != master.pod) => {
                let others: Vec<&str> = labelled.into_iter().filter(|pod| *pod != master.pod).collect();
                let says = format!("{} labelled as the master, and {} leads", are(&others), master.pod);
                (says, "the label goes by itself; until then a Service that selects on it reaches both".to_owned())
            }
            None if self.lease.is_none() && labelled.len() > 1 => {
                (format!("{} labelled as the master", are(&labelled)), self.see_logs())
            }
            _ => return None,
        };
        Some(Wait { reason: Reason::TwoMasters, says, cure })
    }

    fn for_member(&self, row: &Row) -> Option<Wait> {
        let Row { pod, state, why, lag_bytes, is_ready, .. } = row;
        let why = why.as_deref().unwrap_or("its pod is not Ready");
        let see = |what: &str| format!("kubectl {what} {pod}{}", self.flag());
        let (reason, says, cure) = match state {
            State::NoPod => (
                Reason::NoPod,
                format!("{pod} has no pod"),
                format!("kubectl describe statefulset {}{} says why none was made", self.set.name, self.flag()),
            ),
            State::Pending => (Reason::NotRunning, format!("{pod} does not run: {why}"), see("describe pod")),
            State::Terminating => {
                (Reason::NotRunning, format!("{pod} is being deleted, and comes again"), String::new())
            }
            State::Seen(Connection::Cloning) => (Reason::Cloning, format!("{pod} is being cloned"), String::new()),
            State::Seen(Connection::CatchingUp) => {
                let left = lag_bytes.map(|lag| format!(", {} to go", bytes(lag))).unwrap_or_default();
                (Reason::CatchingUp, format!("{pod} gets what it missed{left}"), String::new())
            }
            State::Seen(Connection::Absent) => {
                (Reason::NotStreaming, format!("{pod} runs, and receives nothing from the master: {why}"), see("logs"))
            }
            State::Leading | State::Seen(Connection::Streaming) if !is_ready && row.why.is_some() => {
                (Reason::NotReady, format!("{pod} is {}, and not Ready: {why}", state.as_str()), see("describe pod"))
            }
            // Without a master that is what all wait for.
            State::Waiting if self.has_master() => (Reason::NotReady, format!("{pod}: {why}"), see("logs")),
            _ => return None,
        };
        Some(Wait { reason, says, cure })
    }

    fn for_confirmations(&self) -> Option<Wait> {
        let wanted = self.set.synchronous;
        let leadership = self.leadership().filter(|it| it.master().is_some())?;
        // An agent that tells nothing of the others may have some all the same.
        if wanted == 0 || (leadership.seen.is_none() && self.set.replicas > 1) {
            return None;
        }
        let confirms = |row: &&Row| row.synchronous == Some(true) && row.state == State::Seen(Connection::Streaming);
        let confirming = self.rows.iter().filter(confirms).count();
        let says = if self.set.synchronous_strict {
            format!("commits wait: {confirming} of {wanted} replicas confirm them")
        } else {
            format!("commits go on with {confirming} of {wanted} replicas that confirm them")
        };
        (confirming < wanted as usize).then(|| Wait {
            reason: Reason::CommitsWait,
            says,
            cure: format!(
                "it takes {wanted} replicas that stream; more members (kubectl scale statefulset {}{}), or a smaller {}",
                self.set.name,
                self.flag(),
                annotation::SYNCHRONOUS
            ),
        })
    }

    /// Where no member leads by itself, a person says who does.
    fn fail_over(&self, is_manual: bool) -> String {
        if !is_manual {
            return String::new();
        }
        format!("pgset failover sts/{}{} lets the best replica lead; ", self.set.name, self.flag())
    }

    fn flag(&self) -> String {
        format!(" -n {}", self.set.namespace)
    }

    fn see_logs(&self) -> String {
        format!(
            "kubectl logs -l {}={} --prefix{} says what each member waits for",
            names::label::SET,
            self.set.name,
            self.flag()
        )
    }
}

fn are(pods: &[&str]) -> String {
    format!("{} {}", pods.join(", "), if pods.len() == 1 { "is" } else { "are" })
}

/// What a set has reached, in words.
pub fn memory(database: &Database) -> String {
    let Database { system, reached } = database;
    let Some(Reached { timeline, flushed, stopped_at, .. }) = reached else { return format!("the database {system}") };
    let position = match (stopped_at, flushed) {
        (Some(at), _) => format!(", stopped cleanly at {at}"),
        (None, Some(at)) => format!(", written up to {at}"),
        (None, None) => String::new(),
    };
    format!("the database {system} on timeline {timeline}{position}")
}

/// Replicas that are so far behind that people want to know: that is no fault by itself.
pub fn laggards(rows: &[Row]) -> impl Iterator<Item = String> + '_ {
    const BYTES: u64 = 16 << 20;
    const LATE: Duration = Duration::from_secs(10);
    rows.iter().filter(|row| row.state == State::Seen(Connection::Streaming)).filter_map(|row| {
        let far = row.lag_bytes.filter(|lag| *lag >= BYTES).map(bytes);
        let late = row.lag.filter(|lag| *lag >= LATE).map(seconds);
        let lag: Vec<String> = far.into_iter().chain(late).collect();
        (!lag.is_empty()).then(|| format!("{} streams, and is {} behind the master", row.pod, lag.join(" and ")))
    })
}
