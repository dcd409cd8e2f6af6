//! A change of the master by plan: which order stands, who has followed it, and who is let go first. Pure.

use std::time::Duration;

use super::Time;
use crate::election::order::{self, Order, Streaming};
use crate::election::step::Effect;

/// A master that has handed over takes the Lease again if nobody else did for so long.
const RESUMES_AFTER: Duration = Duration::from_secs(5);
/// How long an order waits for what may pass: the target has just lost its master, and is about to follow this one.
const ORDER_WAITS: Duration = Duration::from_secs(5);
/// How long a member that is to lead, and does not yet, keeps that to itself.
const SAYS_WHY_AFTER: Duration = Duration::from_secs(2);

/// Who leads next, by plan.
#[derive(Clone, Debug)]
pub struct Handover<T> {
    successor: Option<String>,
    /// The last order that this member has seen to.
    done: Option<String>,
    /// Why, if it was refused.
    refused: Option<String>,
    /// The order that this member has met last, and when.
    heard: Option<(String, T)>,
    /// The order that stood when this member took the Lease, and that is followed by that.
    took_by: Option<String>,
    /// This member has handed over and lets the other go first.
    until: Option<T>,
}

impl<T> Default for Handover<T> {
    fn default() -> Self {
        Self { successor: None, done: None, refused: None, heard: None, took_by: None, until: None }
    }
}

impl<T: Time> Handover<T> {
    /// The order that stands and that nobody has seen to yet; `recorded`: the last one that was, by the Lease.
    #[must_use]
    pub fn order(&self, stands: Option<&Order>, recorded: Option<&String>) -> Option<Order> {
        stands.filter(|order| ![recorded, self.done.as_ref()].contains(&Some(&order.text))).cloned()
    }

    /// The last order that this member has seen to, while it stands: one that stands no more is an old one.
    #[must_use]
    pub fn done(&self, stands: Option<&Order>) -> Option<String> {
        self.done.clone().filter(|done| stands.is_some_and(|order| order.text == *done))
    }

    /// Why an order was refused, as it is to be recorded.
    #[must_use]
    pub fn refused(&self) -> Option<String> {
        self.refused.clone()
    }

    /// Who is named as the next master.
    #[must_use]
    pub fn successor(&self) -> Option<&String> {
        self.successor.as_ref()
    }

    /// Whether the master has nothing to do about an order: it names this member, or this member leads because of it.
    pub fn is_followed(&mut self, order: &Order, me: &str) -> bool {
        let is_followed = order.target.as_deref() == Some(me) || self.took_by.as_ref() == Some(&order.text);
        if is_followed {
            self.done = Some(order.text.clone());
        }
        is_followed
    }

    /// Whether a member that is to lead by this order has waited for so long that it should say why.
    pub fn is_overdue(&mut self, order: &Order, now: T) -> bool {
        self.has_heard(order, SAYS_WHY_AFTER, now)
    }

    /// To whom this member has handed over, while that one is let go first.
    pub(in crate::election) fn waits_for(&self, now: T) -> Option<String> {
        self.until.filter(|until| now < *until).and(self.successor.clone())
    }

    /// Somebody leads: who has been let go first has gone, and the next vacancy is another one.
    pub(in crate::election) fn goes_on(&mut self) {
        self.until = None;
    }

    /// What stands no more may be ordered again.
    pub(in crate::election) fn forget_old(&mut self, stands: Option<&Order>) {
        self.done = self.done(stands);
    }

    /// Whoever takes the Lease while an order names it has followed that.
    pub(in crate::election) fn note_taking(&mut self, order: Option<&Order>, me: &str) {
        self.took_by = order.filter(|order| order.names(me)).map(|order| order.text.clone());
    }

    /// What the master does about an order, with the replicas that stream from it, the best first.
    pub(in crate::election) fn follow(
        &mut self,
        order: Order,
        others: &[String],
        streaming: &[Streaming],
        now: T,
    ) -> Option<Effect> {
        match order.successor(others, streaming) {
            Ok(successor) => {
                self.successor = Some(successor.clone());
                self.done = Some(order.text);
                Some(Effect::HandOver { to: successor })
            }
            Err(why) if why.may_pass() && !self.has_heard(&order, ORDER_WAITS, now) => None,
            Err(why) => {
                self.refused = Some(order::refused(&order.text, &why));
                self.done = Some(order.text.clone());
                Some(Effect::RefuseOrder { order, why })
            }
        }
    }

    /// The master stops, and this is who should lead next, if anybody can.
    pub(in crate::election) fn note_successor(&mut self, successor: Option<String>) {
        self.successor = successor;
    }

    pub(in crate::election) fn note_handed_over(&mut self, now: T) {
        self.until = Some(now.after(RESUMES_AFTER));
    }

    fn has_heard(&mut self, order: &Order, time: Duration, now: T) -> bool {
        match &self.heard {
            Some((text, since)) if *text == order.text => now >= since.after(time),
            _ => {
                self.heard = Some((order.text.clone(), now));
                false
            }
        }
    }
}
