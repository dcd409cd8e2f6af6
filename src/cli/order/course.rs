//! What becomes of an order, from what the Lease says time and again: pure.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use serde_json::Value;

use super::plan::Before;
use crate::{
    cli::status::told::seconds,
    election::{
        lease_record::{HolderIdentity, LeaseRecord},
        order::{Order, why_refused},
    },
};

/// A look at the Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The member that holds it.
    pub holder: Option<String>,
    /// The number of that leadership, or of the last one.
    pub epoch: i32,
    /// Its holder accepts connections.
    pub accepts: bool,
    /// To whom the last master handed over.
    pub successor: Option<String>,
    /// The last order that was seen to.
    pub done: Option<String>,
    /// Why one was refused.
    pub refused: Option<String>,
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Whoever was meant leads.
    Leads {
        /// Who.
        pod: String,
        /// How long that took, in words.
        took: String,
    },
    /// Another one leads.
    Other {
        /// Who.
        pod: String,
        /// Why, if it says so.
        why: Option<String>,
    },
    /// The master hands nothing over.
    Refused {
        /// Who.
        by: String,
        /// Why, if it says so.
        why: Option<String>,
    },
}

/// An order on its way.
#[derive(Clone, Debug)]
pub struct Course {
    order: Order,
    before: Before,
    /// When the Lease was first seen free, or held by another one.
    free_since: Option<Duration>,
    /// What was said last.
    said: String,
}

// === impl Look ===

impl Look {
    /// What the Lease says.
    pub fn at(lease: &Value) -> Self {
        let lease: LeaseObject = serde_json::from_value(lease.clone()).unwrap_or_default();
        // How long the Lease is good does not matter here.
        let claim = LeaseRecord::read(&lease, Duration::ZERO);
        Self {
            holder: claim.holder.as_deref().and_then(HolderIdentity::parse).map(|candidate| candidate.pod),
            epoch: lease.spec.and_then(|spec| spec.lease_transitions).unwrap_or(0),
            accepts: claim.master.is_some(),
            successor: claim.successor,
            done: claim.order_done,
            refused: claim.order_refused,
        }
    }
}

// === impl Course ===

impl Course {
    /// Of an order that was just written.
    pub fn new(order: Order, before: Before) -> Self {
        Self { order, before, free_since: None, said: String::new() }
    }

    /// What there is to say after a look, so long after the order, and how it ended, if it did.
    pub fn see(&mut self, look: &Look, after: Duration) -> (Option<String>, Option<End>) {
        let is_done = look.done.as_ref() == Some(&self.order.text);
        let why = || look.refused.as_deref().and_then(|note| why_refused(note, &self.order.text)).map(str::to_owned);
        let is_new = look.epoch > self.before.epoch;
        let Some(holder) = &look.holder else {
            self.free_since.get_or_insert(after);
            return (self.handed_over(look).and_then(|words| self.say(words)), None);
        };
        if !is_new && !is_done {
            return (None, None);
        }
        if is_new {
            self.free_since.get_or_insert(after);
        }
        if !look.accepts {
            return (self.say(format!("{holder} leads, and its PostgreSQL is about to accept writes")), None);
        }
        let is_meant = match &self.order.target {
            Some(target) => target == holder,
            None => self.before.leader.as_ref() != Some(holder),
        };
        if is_meant {
            return (None, Some(End::Leads { pod: holder.clone(), took: self.took(after) }));
        }
        if is_done {
            let (pod, why) = (holder.clone(), why());
            return (None, Some(if is_new { End::Other { pod, why } } else { End::Refused { by: pod, why } }));
        }
        let target = self.order.target.as_deref().unwrap_or("another member");
        (self.say(format!("{holder} leads, and is to hand over to {target}")), None)
    }

    fn handed_over(&self, look: &Look) -> Option<String> {
        let leader = self.before.leader.as_ref()?;
        Some(match &look.successor {
            Some(successor) => format!("{leader} has stopped, and hands over to {successor}"),
            None => format!("{leader} has stopped"),
        })
    }

    fn say(&mut self, words: String) -> Option<String> {
        if self.said == words {
            return None;
        }
        self.said.clone_from(&words);
        Some(words)
    }

    fn took(&self, after: Duration) -> String {
        let freed = self.free_since.filter(|_| self.before.leader.is_some());
        let freed = freed.map(|since| format!(", {} after the Lease was free", seconds(after.saturating_sub(since))));
        format!("{} after the order{}", seconds(after), freed.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: &str = "db-1 t";

    fn course(order: &str, leader: Option<&str>) -> Course {
        Course::new(Order::parse(order).unwrap(), Before { leader: leader.map(str::to_owned), epoch: 4 })
    }

    fn held(pod: &str, epoch: i32) -> Look {
        Look { holder: Some(pod.to_owned()), epoch, accepts: true, ..Look::default() }
    }

    fn done(look: Look) -> Look {
        Look { done: Some(ORDER.to_owned()), ..look }
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_handover_is_told_step_by_step_and_how_long_it_took() {
        let mut course = course(ORDER, Some("db-0"));
        assert_eq!(course.see(&held("db-0", 4), at(0)), (None, None));
        let vacant = Look { epoch: 4, successor: Some("db-1".to_owned()), ..Look::default() };
        let (says, end) = course.see(&done(vacant.clone()), at(1000));
        assert_eq!((says.as_deref(), end), (Some("db-0 has stopped, and hands over to db-1"), None));
        assert_eq!(course.see(&done(vacant), at(1100)), (None, None), "nothing is said twice");
        let (says, end) = course.see(&done(Look { accepts: false, ..held("db-1", 5) }), at(1200));
        assert!(says.unwrap().starts_with("db-1 leads") && end.is_none());
        let (_, end) = course.see(&done(held("db-1", 5)), at(1500));
        let took = "1.5 s after the order, 0.5 s after the Lease was free".to_owned();
        assert_eq!(end, Some(End::Leads { pod: "db-1".to_owned(), took }));
    }

    #[test]
    fn a_refusal_is_told_with_its_reason_and_not_with_that_of_an_earlier_order() {
        let end = |refused: &str| {
            let look = Look { refused: Some(refused.to_owned()), ..done(held("db-0", 4)) };
            course(ORDER, Some("db-0")).see(&look, at(0)).1
        };
        let refused = |why: Option<&str>| Some(End::Refused { by: "db-0".to_owned(), why: why.map(str::to_owned) });
        assert_eq!(end("db-1 t: it lags"), refused(Some("it lags")));
        assert_eq!(end("db-1 earlier: it lags"), refused(None));
    }

    #[test]
    fn another_one_that_leads_instead_is_named() {
        let end = |order: &str, look: Look| course(order, Some("db-0")).see(&look, at(0)).1;
        let other = |pod: &str| Some(End::Other { pod: pod.to_owned(), why: None });
        assert_eq!(end(ORDER, done(held("db-2", 5))), other("db-2"));
        assert_eq!(end(ORDER, done(held("db-0", 5))), other("db-0"), "nobody took over, and it goes on");
        assert!(matches!(end("any t", held("db-2", 5)), Some(End::Leads { .. })));
        let mut back = done(held("db-0", 5));
        back.done = Some("any t".to_owned());
        assert_eq!(end("any t", back), other("db-0"));
    }

    #[test]
    fn where_nobody_led_whoever_leads_first_may_have_to_hand_over() {
        let mut course = course(ORDER, None);
        assert_eq!(course.see(&held("db-0", 4), at(0)), (None, None), "a holder that is silent");
        let (says, end) = course.see(&held("db-2", 5), at(0));
        assert_eq!((says.as_deref(), end), (Some("db-2 leads, and is to hand over to db-1"), None));
        let Some(End::Leads { pod, took }) = course.see(&held("db-1", 6), at(2000)).1 else { panic!() };
        assert_eq!((pod.as_str(), took.as_str()), ("db-1", "2 s after the order"));
    }
}
