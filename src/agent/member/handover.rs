//! A leadership that ends by plan: the best of the others is ready before PostgreSQL stops, and is named when it has.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::Member;
use super::postgres::{Postgres, Running};
use crate::agent::configuration::Configuration;
use crate::agent::events::Reason;
use crate::agent::leadership::LeaseSnapshot;
use crate::agent::role_label;
use crate::agent::server::Stop;
use crate::election::lease_record::LastWord;
use crate::election::lineage::Database;
use crate::election::order::{Order, Refusal, Streaming};
use crate::election::step::{Effect, End, Event, Stopping, stop};
use crate::election::{Lease, Waiting};
use crate::errors::with_causes;

/// How long the release of the Lease may wait for the position of a clean stop, which is worth less than the release.
const POSITION_LIMIT: Duration = Duration::from_secs(1);
/// How long a checkpoint may hold up the stop that it makes short.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(20);
/// How long the question who could lead next may hold up a stop.
const SUCCESSOR_LIMIT: Duration = Duration::from_millis(500);

impl Member {
    /// An order that nobody has seen to yet.
    fn order(&self, view: &LeaseSnapshot) -> Option<Order> {
        let recorded = view.seen().and_then(|seen| seen.order_done.as_ref());
        self.state.handover.order(self.set.borrow().as_ref()?.order.as_ref(), recorded)
    }

    /// Follows an order to hand over, as the master. One that can't be followed is done with, and says why.
    pub(super) async fn follow_order(&mut self) {
        let view = self.leadership.view();
        let Some(order) = self.order(&view) else { return };
        if !self.leadership.leads() || view.is_by_leave() {
            return;
        }
        if self.state.handover.is_followed(&order, &self.provisioner.configuration.me.pod) {
            return;
        }
        // What PostgreSQL does not say now it says at the next turn.
        let Some(streaming) = self.streaming().await else { return };
        let effects = self.happens(Event::Ordered { order, others: self.others(), streaming });
        self.run(effects).await;
    }

    pub(super) async fn hand_over(&mut self, successor: &str) -> Vec<Effect> {
        info!(successor, "handing over");
        self.checkpoint().await;
        self.label.set(role_label::PublishedRole::None);
        let last_word = self.stop_master().await;
        self.postgres = Postgres::Stopped;
        self.mark_unready();
        let effects = self.happens(Event::HandedOver);
        self.release(Some(last_word)).await;
        effects
    }

    pub(super) fn refuse_order(&mut self, order: &Order, why: &Refusal) {
        warn!(order = order.text, %why, "nothing is handed over");
        self.teller.tell(Reason::OrderRefused, &format!("the order {:?} is refused: {why}", order.text));
    }

    /// A member that is to lead, where nobody does, says why it does not yet.
    pub(super) fn tell_what_order_waits_for(&mut self, waiting: &Waiting) {
        let view = self.leadership.view();
        let is_passing = matches!(
            waiting,
            Waiting::ForLease | Waiting::ForPredecessor | Waiting::ForSuccessor(_) | Waiting::ForPodTermination
        );
        let Some(order) = self.order(&view).filter(|order| order.names(&self.configuration().me.pod)) else { return };
        if is_passing || !matches!(view.at(Instant::now()), Lease::Vacant { .. }) {
            return;
        }
        if self.state.handover.is_overdue(&order, Instant::now()) {
            let why = self.in_words(waiting);
            self.teller.tell(Reason::OrderRefused, &format!("the order {:?} is not followed yet: {why}", order.text));
        }
    }

    /// The last order that was seen to, as it is to be recorded.
    pub(super) fn order_done(&self, view: &LeaseSnapshot) -> Option<String> {
        self.order_done_here().or_else(|| view.seen().and_then(|seen| seen.order_done.clone()))
    }

    fn order_done_here(&self) -> Option<String> {
        self.state.handover.done(self.set.borrow().as_ref()?.order.as_ref())
    }

    /// How this member ends. What makes the stop of a master short happens before it.
    pub(super) async fn how_to_end(&mut self) -> End {
        let leads = self.leadership.leads();
        let streaming = if leads { self.streaming_that_stay().await } else { Vec::new() };
        let Configuration { set, me, .. } = self.configuration();
        let stopping = Stopping { server: self.server(), leads, set: set.clone(), me: me.pod.clone(), streaming };
        let end = stop(&mut self.state, &stopping);
        if matches!(end, End::StopMaster { successor: Some(_) }) {
            self.checkpoint().await;
        }
        end
    }

    async fn streaming_that_stay(&self) -> Vec<Streaming> {
        let others = self.others();
        let mut streaming = self.streaming().await.unwrap_or_default();
        streaming.retain(|replica| others.contains(&replica.pod));
        streaming
    }

    /// Who streams from this master, the best first.
    async fn streaming(&self) -> Option<Vec<Streaming>> {
        let Postgres::Running(Running { sql: Some(sql), .. }) = &self.postgres else { return None };
        timeout(SUCCESSOR_LIMIT, sql.streaming()).await.ok()?.ok()
    }

    /// The other members that the set should have.
    fn others(&self) -> Vec<String> {
        let set = self.set.borrow();
        set.as_ref().map(|set| set.members.others(&self.configuration().me.pod).collect()).unwrap_or_default()
    }

    pub(super) async fn checkpoint(&mut self) {
        let Postgres::Running(Running { sql: Some(sql), .. }) = &self.postgres else { return };
        // Neither this member's turn nor its probe ends while it takes its time.
        self.status_handle.update(|status| status.last_tick = None);
        tokio::select! {
            () = sleep(CHECKPOINT_LIMIT) => warn!("the checkpoint takes long: the stop does not wait for it"),
            () = self.leadership.fenced() => {}
            outcome = sql.checkpoint() => if let Err(why) = outcome {
                warn!(error = with_causes(&why), "no checkpoint before the stop");
            },
        }
    }

    /// Stops the master cleanly while the Lease lasts, at once when it does not, and says what is known of the database then.
    pub(super) async fn stop_master(&mut self) -> LastWord {
        if let Postgres::Running(running) = &mut self.postgres {
            // Renewals go on meanwhile; should they fail, the rest of the shutdown happens at once.
            let in_time = tokio::select! {
                biased;
                () = self.leadership.fenced() => false,
                () = running.server.stop(Stop::Fast) => true,
            };
            if !in_time {
                running.server.stop(Stop::Immediate).await;
            }
        }
        let word = self.last_word().await;
        let successor = self.state.handover.successor().cloned().filter(|_| word.database.is_some());
        LastWord { successor, order_done: self.order_done_here(), ..word }
    }

    /// What is known of the database when it has stopped.
    pub(super) async fn last_word(&self) -> LastWord {
        LastWord { database: self.position_of_clean_stop().await, ..LastWord::default() }
    }

    async fn position_of_clean_stop(&self) -> Option<Database> {
        timeout(POSITION_LIMIT, self.provisioner.position_of_clean_stop()).await.ok().flatten()
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
