//! A leadership that ends by plan: the best of the others is ready before PostgreSQL stops, and is named when it has.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::Member;
use super::state::{Role, Running, State};
use crate::agent::label;
use crate::agent::leadership::View;
use crate::agent::server::Stop;
use crate::election::claim::LastWord;
use crate::election::lineage::Database;
use crate::election::order::Order;
use crate::errors::with_causes;

/// How long the release of the Lease may wait for the position of a clean stop, which is worth less than the release.
const POSITION_LIMIT: Duration = Duration::from_secs(1);
/// How long a checkpoint may hold up the stop that it makes short.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(20);
/// How long the question who could lead next may hold up a stop.
const SUCCESSOR_LIMIT: Duration = Duration::from_millis(500);
/// A master that has handed over takes the Lease again if nobody else did for so long.
const RESUMES_AFTER: Duration = Duration::from_secs(5);

/// Who leads next, by plan.
#[derive(Debug, Default)]
pub(super) struct Handover {
    successor: Option<String>,
    order: Option<String>,
    /// This member has handed over and lets the other go first.
    until: Option<Instant>,
}

// === impl Handover ===

impl Handover {
    /// To whom this member has handed over, while that one is let go first.
    pub(super) fn waits_for(&self) -> Option<String> {
        self.until.filter(|until| Instant::now() < *until).and(self.successor.clone())
    }
}

impl Member {
    /// An order that nobody has seen to yet.
    pub(super) fn order(&self, view: &View) -> Option<Order> {
        let done = view.seen().and_then(|seen| seen.order_done.clone());
        self.set.borrow().as_ref()?.order.clone().filter(|order| Some(&order.text) != done.as_ref())
    }

    /// Follows an order to hand over, as the master. One that can't be followed is done with, and says why.
    pub(super) async fn follow_order(&mut self) {
        let view = self.leadership.view();
        let Some(order) = self.order(&view) else { return };
        if !self.leadership.leads() || view.is_by_leave() {
            return;
        }
        let me = self.configuration().me.pod.clone();
        if order.target.as_ref() == Some(&me) {
            return self.note_order(&order);
        }
        let Some(successor) = self.best_of(order.target.as_deref()).await else {
            warn!(order = order.text, "no such member streams from this one: nothing is handed over");
            return self.note_order(&order);
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

    fn note_order(&mut self, order: &Order) {
        self.handover.order = Some(order.text.clone());
    }

    /// The last order that was seen to, as it is to be recorded.
    pub(super) fn order_done(&self, view: &View) -> Option<String> {
        self.handover.order.clone().or_else(|| view.seen().and_then(|seen| seen.order_done.clone()))
    }

    /// A master that stops hands over, if somebody can take over; what makes the stop short happens before it.
    pub(super) async fn prepare_successor(&mut self) {
        if !self.leadership.leads() || !matches!(self.state, State::Running(Running { role: Role::Master { .. }, .. }))
        {
            return;
        }
        self.handover.successor = self.best_of(None).await;
        if self.handover.successor.is_some() {
            self.checkpoint().await;
        }
    }

    /// The member that has most and will stay, or the one that was asked for if it streams.
    async fn best_of(&self, wanted: Option<&str>) -> Option<String> {
        let State::Running(Running { sql: Some(sql), .. }) = &self.state else { return None };
        let set = self.set.borrow().clone();
        let stays = |pod: &str| {
            set.as_ref()
                .is_some_and(|set| set.members.others(&self.midwife.configuration.me.pod).any(|other| other == pod))
        };
        let streaming = timeout(SUCCESSOR_LIMIT, sql.streaming()).await.ok()?.ok()?;
        let chosen = streaming.into_iter().filter(|pod| stays(pod) && wanted.is_none_or(|wanted| wanted == pod));
        chosen.take(1).next()
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
        Some(LastWord { database, successor, order_done: self.handover.order.clone() })
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
