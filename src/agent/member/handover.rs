//! A leadership that ends by plan: the best of the others is ready before PostgreSQL stops, and is named when it has.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::Member;
use super::state::{Role, Running, State};
use crate::agent::configuration::Configuration;
use crate::agent::events::Reason;
use crate::agent::label;
use crate::agent::leadership::View;
use crate::agent::server::Stop;
use crate::election::claim::LastWord;
use crate::election::lineage::Database;
use crate::election::order::{self, Order, Refusal, Streaming};
use crate::election::{Lease, Waiting};
use crate::errors::with_causes;

/// How long the release of the Lease may wait for the position of a clean stop, which is worth less than the release.
const POSITION_LIMIT: Duration = Duration::from_secs(1);
/// How long a checkpoint may hold up the stop that it makes short.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(20);
/// How long the question who could lead next may hold up a stop.
const SUCCESSOR_LIMIT: Duration = Duration::from_millis(500);
/// A master that has handed over takes the Lease again if nobody else did for so long.
const RESUMES_AFTER: Duration = Duration::from_secs(5);
/// How long an order waits for what may pass: the target has just lost its master, and is about to follow this one.
const ORDER_WAITS: Duration = Duration::from_secs(5);
/// How long a member that is to lead, and does not yet, keeps that to itself.
const SAYS_WHY_AFTER: Duration = Duration::from_secs(2);

/// Who leads next, by plan.
#[derive(Debug, Default)]
pub(super) struct Handover {
    successor: Option<String>,
    /// The last order that this member has seen to.
    order: Option<String>,
    /// Why, if it was refused.
    refused: Option<String>,
    /// The order that this member has met last, and when.
    heard: Option<(String, Instant)>,
    /// The order that stood when this member took the Lease, and that is followed by that.
    took_by: Option<String>,
    /// This member has handed over and lets the other go first.
    until: Option<Instant>,
}

// === impl Handover ===

impl Handover {
    /// To whom this member has handed over, while that one is let go first.
    pub(super) fn waits_for(&self) -> Option<String> {
        self.until.filter(|until| Instant::now() < *until).and(self.successor.clone())
    }

    /// Somebody leads: who has been let go first has gone, and the next vacancy is another one.
    pub(super) fn goes_on(&mut self) {
        self.until = None;
    }

    /// For how long this member knows of an order.
    fn heard_for(&mut self, order: &Order) -> Duration {
        match &self.heard {
            Some((text, since)) if *text == order.text => since.elapsed(),
            _ => {
                self.heard = Some((order.text.clone(), Instant::now()));
                Duration::ZERO
            }
        }
    }
}

impl Member {
    /// An order that nobody has seen to yet.
    pub(super) fn order(&self, view: &View) -> Option<Order> {
        let done = view.seen().and_then(|seen| seen.order_done.as_ref());
        let is_new = |order: &Order| ![done, self.handover.order.as_ref()].contains(&Some(&order.text));
        self.set.borrow().as_ref()?.order.clone().filter(is_new)
    }

    /// What stands no more may be ordered again.
    pub(super) fn forget_old_order(&mut self) {
        let is_old = {
            let set = self.set.borrow();
            self.handover.order.as_ref() != set.as_ref().and_then(|set| set.order.as_ref()).map(|order| &order.text)
        };
        if is_old {
            self.handover.order = None;
        }
    }

    /// Follows an order to hand over, as the master. One that can't be followed is done with, and says why.
    pub(super) async fn follow_order(&mut self) {
        let view = self.leadership.view();
        let Some(order) = self.order(&view) else { return };
        if !self.leadership.leads() || view.is_by_leave() {
            return;
        }
        let me = &self.midwife.configuration.me.pod;
        if order.target.as_ref() == Some(me) || self.handover.took_by.as_ref() == Some(&order.text) {
            self.handover.order = Some(order.text);
            return;
        }
        // What PostgreSQL does not say now it says at the next turn.
        let Some(streaming) = self.streaming().await else { return };
        let successor = match order.successor(&self.others(), &streaming) {
            Ok(successor) => successor,
            Err(why) if why.may_pass() && self.handover.heard_for(&order) < ORDER_WAITS => return,
            Err(why) => return self.refuse_order(order, &why),
        };
        info!(successor, "handing over");
        self.handover.successor = Some(successor);
        self.handover.order = Some(order.text);
        self.checkpoint().await;
        self.label.set(label::Role::None);
        let last_word = self.stop_for_good().await;
        self.state = State::Stopped;
        self.not_serving();
        self.handover.until = Some(Instant::now() + RESUMES_AFTER);
        self.release(last_word).await;
    }

    fn refuse_order(&mut self, order: Order, why: &Refusal) {
        warn!(order = order.text, %why, "nothing is handed over");
        self.teller.tell(Reason::OrderRefused, &format!("the order {:?} is refused: {why}", order.text));
        self.handover.refused = Some(order::refused(&order.text, why));
        self.handover.order = Some(order.text);
    }

    /// Whoever takes the Lease while an order names it has followed that.
    pub(super) fn note_order_to_lead(&mut self) {
        let order = self.order(&self.leadership.view());
        self.handover.took_by = order.filter(|order| order.names(&self.configuration().me.pod)).map(|order| order.text);
    }

    /// A member that is to lead, where nobody does, says why it does not yet.
    pub(super) fn tell_what_order_waits_for(&mut self, waiting: &Waiting) {
        let view = self.leadership.view();
        let is_passing = matches!(
            waiting,
            Waiting::ForLease | Waiting::ForPredecessor | Waiting::ForSuccessor(_) | Waiting::ForTheEnd
        );
        let Some(order) = self.order(&view).filter(|order| order.names(&self.configuration().me.pod)) else { return };
        if is_passing || !matches!(view.at(Instant::now()), Lease::Vacant { .. }) {
            return;
        }
        if self.handover.heard_for(&order) >= SAYS_WHY_AFTER {
            let why = self.in_words(waiting);
            self.teller.tell(Reason::OrderRefused, &format!("the order {:?} is not followed yet: {why}", order.text));
        }
    }

    /// The last order that was seen to, as it is to be recorded. One that this member saw to, and that stands no more, is an old one.
    pub(super) fn order_done(&self, view: &View) -> Option<String> {
        self.order_done_here().or_else(|| view.seen().and_then(|seen| seen.order_done.clone()))
    }

    fn order_done_here(&self) -> Option<String> {
        let set = self.set.borrow();
        let stands = set.as_ref()?.order.as_ref()?;
        self.handover.order.clone().filter(|done| *done == stands.text)
    }

    /// Why an order was refused, as it is to be recorded.
    pub(super) fn order_refused(&self) -> Option<String> {
        self.handover.refused.clone()
    }

    /// A master that stops hands over, if somebody can take over; what makes the stop short happens before it.
    pub(super) async fn prepare_successor(&mut self) {
        if !self.leadership.leads() || !matches!(self.state, State::Running(Running { role: Role::Master { .. }, .. }))
        {
            return;
        }
        self.handover.successor = self.best().await;
        if self.handover.successor.is_some() {
            self.checkpoint().await;
        }
    }

    /// The best of those that will stay.
    async fn best(&self) -> Option<String> {
        let others = self.others();
        let mut streaming = self.streaming().await?;
        streaming.retain(|replica| others.contains(&replica.pod));
        let Configuration { set, me, .. } = self.configuration();
        order::successor_at_stop(set, &me.pod, &streaming)
    }

    /// Who streams from this master, the best first.
    async fn streaming(&self) -> Option<Vec<Streaming>> {
        let State::Running(Running { sql: Some(sql), .. }) = &self.state else { return None };
        timeout(SUCCESSOR_LIMIT, sql.streaming()).await.ok()?.ok()
    }

    /// The other members that the set should have.
    fn others(&self) -> Vec<String> {
        let set = self.set.borrow();
        set.as_ref().map(|set| set.members.others(&self.configuration().me.pod).collect()).unwrap_or_default()
    }

    async fn checkpoint(&mut self) {
        let State::Running(Running { sql: Some(sql), .. }) = &self.state else { return };
        // Neither this member's turn nor its probe ends while it takes its time.
        self.publisher.update(|status| status.turned_at = None);
        tokio::select! {
            () = sleep(CHECKPOINT_LIMIT) => warn!("the checkpoint takes long: the stop does not wait for it"),
            () = self.leadership.fenced() => {}
            outcome = sql.checkpoint() => if let Err(why) = outcome {
                warn!(error = with_causes(&why), "no checkpoint before the stop");
            },
        }
    }

    /// Stops PostgreSQL cleanly while the Lease lasts, at once when it does not, and says what is known of the database then.
    pub(super) async fn stop_for_good(&mut self) -> Option<LastWord> {
        let State::Running(running) = &mut self.state else { return self.word_of_a_stopped_master().await };
        if !matches!(running.role, Role::Master { .. }) {
            running.server.stop(Stop::Fast).await;
            return None;
        }
        // Renewals go on meanwhile; should they fail, the rest of the shutdown happens at once.
        let in_time = tokio::select! {
            biased;
            () = self.leadership.fenced() => false,
            () = running.server.stop(Stop::Fast) => true,
        };
        if !in_time {
            running.server.stop(Stop::Immediate).await;
        }
        let database = self.position_of_clean_stop().await;
        let successor = self.handover.successor.clone().filter(|_| database.is_some());
        Some(LastWord { database, successor, order_done: self.order_done_here() })
    }

    /// A `preStop` hook of the user's has stopped PostgreSQL already.
    async fn word_of_a_stopped_master(&self) -> Option<LastWord> {
        if !self.leadership.leads() || !matches!(self.state, State::Stopped | State::StoppedByOthers { .. }) {
            return None;
        }
        Some(LastWord { database: self.position_of_clean_stop().await, ..LastWord::default() })
    }

    async fn position_of_clean_stop(&self) -> Option<Database> {
        timeout(POSITION_LIMIT, self.midwife.position_of_clean_stop()).await.ok().flatten()
    }

    /// Gives the Lease back. What would let this member lead on without it goes first.
    pub(super) async fn release(&mut self, last_word: Option<LastWord>) {
        self.noted_leadership = None;
        let notes = self.notes.clone();
        match tokio::task::spawn_blocking(move || notes.remove_leadership()).await {
            Ok(Ok(())) => self.leadership.release(last_word).await,
            Ok(Err(why)) => warn!(error = with_causes(&why), "the Lease is not released: it expires by itself"),
            Err(why) => warn!(%why, "the Lease is not released: it expires by itself"),
        }
    }
}
