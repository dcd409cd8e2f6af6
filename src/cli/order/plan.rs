//! What is to be ordered, from what was read of the set: pure.

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use serde_json::Value;

use super::loss::Loss;
use crate::{
    cli::{
        cluster::text,
        status::{
            lease::{Holder, Leadership},
            told::seconds,
            view::Facts,
        },
    },
    election::{members, order::Order},
    names::{self, annotation},
    set::{Contract, Set},
};

/// What a person wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// By which command.
    pub kind: Kind,
    /// Who is to lead; absent if that is left to the set.
    pub to: Option<String>,
    /// What makes the order another one than the last.
    pub token: String,
}

/// The two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The master hands over.
    Switchover,
    /// Nobody leads, and somebody is to.
    Failover {
        /// What that one lacks is given up.
        accepts_loss: bool,
    },
}

/// What follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The member leads already.
    Done(String),
    /// This is to be ordered.
    Order {
        /// The order.
        order: Order,
        /// How it was before.
        before: Before,
        /// What has to be said before that.
        says: Vec<String>,
    },
}

/// How a set was before the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// Who leads.
    pub leader: Option<String>,
    /// The number of the last leadership.
    pub epoch: i32,
}

/// Why nothing is ordered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{says}; {cure}")]
pub struct Refused {
    /// What is in the way.
    pub says: String,
    /// What to do.
    pub cure: String,
}

fn refused<T>(says: impl Into<String>, cure: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { says: says.into(), cure: cure.into() })
}

/// What is to be done, or why nothing is.
pub fn plan(wish: &Wish, facts: &Facts) -> Result<Plan, Refused> {
    let set = match Set::parse(&facts.object) {
        Ok(set) if text(&facts.object, "/metadata/annotations/pgset.dev~1injected").is_empty() => {
            return refused("it was stored without its injection", format!("pgset explain {} says why", place(&set)));
        }
        Ok(set) => set,
        Err(why) => return refused(format!("pgset refuses it as it is: {why}"), "change that, and apply it again"),
    };
    if set.contract != Contract::Agent {
        let says = format!("{} is image: that image says itself who is the master", annotation::CONTRACT);
        return refused(says, "its own documentation tells how that is changed");
    }
    let Ok(lease) = &facts.lease else {
        let says = format!("it has no Lease {}, by which its members agree on the master", names::leader(&set.name));
        return refused(says, "pgset's controller makes it: pgset check says whether that runs");
    };
    let leadership = Leadership::read(lease, &set, facts.now, facts.heard);
    let situation = Situation { wish, facts, lease, set: &set, leadership: &leadership };
    situation.check_target()?;
    match wish.kind {
        Kind::Switchover => situation.switch_over(),
        Kind::Failover { accepts_loss } => situation.fail_over(accepts_loss),
    }
}

struct Situation<'a> {
    wish: &'a Wish,
    facts: &'a Facts,
    lease: &'a Value,
    set: &'a Set,
    leadership: &'a Leadership,
}

// === impl Situation ===

impl Situation<'_> {
    fn check_target(&self) -> Result<(), Refused> {
        let Some(target) = &self.wish.to else { return Ok(()) };
        let members: Vec<String> = self.set.members().collect();
        if !members.contains(target) {
            let says = format!("--to {target}: it is no member of this set of {}", members.len());
            return refused(says, format!("name one of {}", members.join(", ")));
        }
        let is_there = |pods: &Vec<Value>| pods.iter().any(|pod| text(pod, "/metadata/name") == target);
        if self.facts.pods.as_ref().is_ok_and(|pods| !is_there(pods)) {
            let cure = format!("kubectl describe statefulset {} -n {} says why", self.set.name, self.set.namespace);
            return refused(format!("--to {target}: it has no pod"), cure);
        }
        Ok(())
    }

    fn switch_over(&self) -> Result<Plan, Refused> {
        let place = place(self.set);
        let Some(master) = self.leadership.master() else {
            return match &self.leadership.holder {
                Holder::Member(holder) if !self.leadership.is_silent => refused(
                    format!("{} leads, and its PostgreSQL does not accept connections yet", holder.pod),
                    format!("wait until it does: pgset status {place} --watch"),
                ),
                _ => refused("no member leads, so that none can hand over", format!("pgset failover {place}")),
            };
        };
        if self.set.replicas < 2 {
            let cure = format!("kubectl scale statefulset {} -n {} --replicas=2", self.set.name, self.set.namespace);
            return refused("it has one member, and nobody to hand over to", cure);
        }
        if self.wish.to.as_ref() == Some(&master.pod) {
            return Ok(Plan::Done(master.pod.clone()));
        }
        Ok(self.order(self.wish.to.as_deref(), Some(master.pod.clone()), false, Vec::new()))
    }

    fn fail_over(&self, accepts_loss: bool) -> Result<Plan, Refused> {
        let place = place(self.set);
        match &self.leadership.holder {
            Holder::Stranger(holder) => {
                let says = format!(
                    "the Lease {} is held by {holder:?}, which is no member of this set",
                    names::leader(&self.set.name)
                );
                return refused(says, "give that program another Lease");
            }
            Holder::Member(holder) if !self.leadership.is_silent && self.is_there(&holder.uid) => {
                let says = format!(
                    "{} leads: it has renewed the Lease {} ago, which is good for {}",
                    holder.pod,
                    seconds(self.leadership.age.unwrap_or_default()),
                    seconds(self.leadership.duration)
                );
                let to = self.wish.to.as_ref().map(|to| format!(" --to {to}")).unwrap_or_default();
                let cure = format!(
                    "pgset switchover {place}{to} moves the master, and loses nothing; if it is lost, the Lease runs out by itself"
                );
                return refused(says, cure);
            }
            Holder::Member(_) | Holder::Nobody => {}
        }
        let Some(database) = self.leadership.database else {
            return refused("no member has led yet, so that there is nothing to go on with", status(&place));
        };
        if !accepts_loss {
            return Ok(self.order(self.wish.to.as_deref(), None, false, Vec::new()));
        }
        let last: LeaseObject = serde_json::from_value(self.lease.clone()).unwrap_or_default();
        let loss = Loss {
            database,
            age: self.leadership.age,
            synchronous: self.set.synchronous,
            seen: members::read(&last).unwrap_or_default(),
        };
        let Some(target) = self.wish.to.clone().or_else(|| loss.best(|pod| self.has_pod(pod))) else {
            let cure = format!("name the member by --to, of {}", self.set.members().collect::<Vec<_>>().join(", "));
            return refused("which member has most is not known", cure);
        };
        Ok(self.order(Some(&target), None, true, loss.words(&target)))
    }

    fn order(&self, target: Option<&str>, leader: Option<String>, accepts_loss: bool, says: Vec<String>) -> Plan {
        let before = Before { leader, epoch: self.leadership.epoch.unwrap_or(0) };
        Plan::Order { order: Order::new(target, &self.wish.token, accepts_loss), before, says }
    }

    /// Whether the pod of that UID is there; where pods can't be read, it may be.
    fn is_there(&self, uid: &str) -> bool {
        self.facts.pods.as_ref().map_or(true, |pods| pods.iter().any(|pod| text(pod, "/metadata/uid") == uid))
    }

    fn has_pod(&self, name: &str) -> bool {
        let is_wanted = self.set.members().any(|member| member == name);
        let found = self.facts.pods.as_ref();
        is_wanted && found.map_or(true, |pods| pods.iter().any(|pod| text(pod, "/metadata/name") == name))
    }
}

/// A set, as it is named on the command line.
pub fn place(set: &Set) -> String {
    format!("sts/{} -n {}", set.name, set.namespace)
}

fn status(place: &str) -> String {
    format!("pgset status {place} says what its members wait for")
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
