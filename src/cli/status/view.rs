//! How a set does, from what was read of it: pure.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{
    lease::{Leadership, since},
    rows::{Row, rows},
    waits::{Known, Reason, Wait, laggards},
};
use crate::{
    cli::{
        check::sets::{Standing, pointer, standing},
        cluster::{Read, Unread, number, text, title},
    },
    election::order::why_refused,
    names::{self, annotation},
    set::{Contract, Set},
};

/// Events that are older are of no interest; Kubernetes forgets them about then.
const RECENT: Duration = Duration::from_secs(3600);
/// How many are told.
const MOST_EVENTS: usize = 5;

/// What was read of a set.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The `StatefulSet`.
    pub object: Value,
    /// The members' pods.
    pub pods: Read<Vec<Value>>,
    /// Its Lease.
    pub lease: Read<Value>,
    /// Its Events.
    pub events: Read<Vec<Value>>,
    /// The API server's time.
    pub now: Timestamp,
    /// How long ago a renewal of the Lease was witnessed, if one was.
    pub heard: Option<Duration>,
}

/// How a set does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// `namespace/name`.
    pub set: String,
    /// When it was looked at.
    pub now: Timestamp,
    /// Who implements `PG_MODE=set`; absent for what is no valid set.
    pub contract: Option<Contract>,
    /// How many members it should have.
    pub replicas: i64,
    /// How many are Ready.
    pub ready: i64,
    /// Who leads.
    pub leadership: Option<Leadership>,
    /// The members.
    pub members: Vec<Row>,
    /// What it waits for.
    pub waits: Vec<Wait>,
    /// What else there is to know.
    pub notes: Vec<String>,
    /// What pgset said of it, the latest first.
    pub events: Vec<Event>,
    /// What could not be read, without which nobody can say that all is well.
    pub unread: Vec<String>,
}

/// Something that pgset said of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, the last time.
    pub at: Timestamp,
    /// Somebody has something to do about it.
    pub is_warning: bool,
    /// Why, of a fixed list.
    pub reason: String,
    /// What.
    pub note: String,
}

/// How a set does, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// One leads, all others stream, and nothing is waited for.
    Healthy,
    /// Something is waited for.
    Waiting,
    /// It could not be read whether something is.
    Unknown,
}

// === impl Health ===

impl Health {
    /// Its name, which stays the same.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Waiting => "waiting",
            Self::Unknown => "unknown",
        }
    }
}

// === impl View ===

impl View {
    /// What the facts say.
    pub fn of(facts: &Facts) -> Self {
        let Facts { object, events, now, .. } = facts;
        let mut view = Self {
            set: title(object),
            now: *now,
            contract: None,
            replicas: number(object, "/spec/replicas").unwrap_or(1),
            ready: number(object, "/status/readyReplicas").unwrap_or(0),
            leadership: None,
            members: Vec::new(),
            waits: Vec::new(),
            notes: Vec::new(),
            events: recent(object, events.as_deref().unwrap_or_default(), *now),
            unread: Vec::new(),
        };
        match (standing(object), Set::parse(object)) {
            (Standing::Refused(why), _) => view.waits.push(refused(&why, object)),
            (_, Err(why)) => view.waits.push(refused(&why.to_string(), object)),
            (Standing::Bare, Ok(_)) => view.waits.push(Wait {
                reason: Reason::NotInjected,
                says: "it asks for pgset, and was stored without it: its members run on their own".to_owned(),
                cure: format!("pgset explain sts/{}{} says why", text(object, "/metadata/name"), flag(object)),
            }),
            (standing, Ok(set)) => {
                if standing == Standing::Incomplete {
                    view.notes.push(
                        "what was injected has been changed since; applying the set again puts it right".to_owned(),
                    );
                }
                view.look_at_members(&set, facts);
            }
        }
        if let Err(why) = events {
            view.notes.push(unread("Events", "list events.events.k8s.io", object, why));
        }
        view
    }

    fn look_at_members(&mut self, set: &Set, facts: &Facts) {
        let Facts { object, pods, lease, now, heard, .. } = facts;
        self.contract = Some(set.contract);
        // An image that implements PG_MODE=set knows nothing of a Lease.
        let read = (set.contract == Contract::Agent)
            .then(|| lease.as_ref().map(|lease| Leadership::read(lease, set, *now, *heard)).map_err(Clone::clone));
        let leadership = read.as_ref().and_then(|read| read.as_ref().ok());
        self.members = rows(set, object, pods.as_deref().ok(), leadership);
        if set.replicas == 0 {
            self.notes.push("it is scaled to 0; its data stays".to_owned());
        } else {
            self.waits = Known { set, lease: read.as_ref(), rows: &self.members }.waits();
        }
        self.notes.extend(laggards(&self.members));
        self.notes.extend(refused_order(object, leadership));
        if let Err(why) = pods {
            self.unread.push(unread("pods", "list pods", object, why));
        }
        if let Some(Err(why)) = read.as_ref().filter(|read| !matches!(read, Err(Unread::Absent))) {
            let lease = format!("the Lease {}", names::leader(&set.name));
            self.unread.push(unread(&lease, "get leases.coordination.k8s.io", object, why));
        }
        self.leadership = read.and_then(Result::ok);
    }

    /// How it does.
    pub fn health(&self) -> Health {
        match (self.waits.is_empty(), self.unread.is_empty()) {
            (false, _) => Health::Waiting,
            (true, false) => Health::Unknown,
            (true, true) => Health::Healthy,
        }
    }

    /// The same without what passes by itself, so that a change can be told from the passing of time.
    pub fn essence(&self) -> Self {
        let leadership = self.leadership.clone().map(|it| Leadership { renewed: None, age: None, ..it });
        Self { now: Timestamp::UNIX_EPOCH, leadership, ..self.clone() }
    }
}

/// An order that stands on the set, and that the master has refused.
fn refused_order(object: &Value, leadership: Option<&Leadership>) -> Option<String> {
    let order = text(object, &pointer(annotation::SWITCHOVER));
    let why = why_refused(leadership?.order_refused.as_deref()?, order)?;
    Some(format!("the order {} {order:?} was refused: {why}", annotation::SWITCHOVER))
}

fn refused(why: &str, object: &Value) -> Wait {
    let cure = format!(
        "change that, and apply the set again; pgset explain sts/{}{}",
        text(object, "/metadata/name"),
        flag(object)
    );
    Wait { reason: Reason::Refused, says: format!("pgset refuses it as it is: {why}"), cure }
}

fn flag(object: &Value) -> String {
    format!(" -n {}", text(object, "/metadata/namespace"))
}

/// What could not be read, and the right that it takes.
fn unread(what: &str, right: &str, object: &Value, why: &Unread) -> String {
    match why {
        Unread::Forbidden(_) => {
            format!(
                "you may not read {what}: that takes the right to {right} in the namespace {}",
                text(object, "/metadata/namespace")
            )
        }
        why => format!("failed to read {what}: {why}"),
    }
}

/// What pgset said of a set of late.
fn recent(object: &Value, events: &[Value], now: Timestamp) -> Vec<Event> {
    let same = |event: &Value, pointer: &str, own: &str| text(event, pointer) == text(object, own);
    let is_about = |event: &&Value| {
        text(event, "/regarding/kind") == "StatefulSet"
            && same(event, "/regarding/name", "/metadata/name")
            && same(event, "/regarding/namespace", "/metadata/namespace")
            && same(event, "/regarding/uid", "/metadata/uid")
            && text(event, "/reportingController") == names::MANAGER
    };
    let mut found: Vec<Event> = events
        .iter()
        .filter(is_about)
        .filter_map(|event| {
            let times =
                ["/series/lastObservedTime", "/eventTime", "/deprecatedLastTimestamp", "/metadata/creationTimestamp"];
            Some(Event {
                at: times.iter().find_map(|pointer| text(event, pointer).parse().ok())?,
                is_warning: text(event, "/type") == "Warning",
                reason: text(event, "/reason").to_owned(),
                note: text(event, "/note").to_owned(),
            })
        })
        .filter(|event| since(event.at, now) < RECENT)
        .collect();
    found.sort_by_key(|event| std::cmp::Reverse(event.at));
    found.truncate(MOST_EVENTS);
    found
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
