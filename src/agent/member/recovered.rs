//! The set goes on from a database that was restored beside its master's, as its owner has accepted.
//!
//! The master stops, and gives the Lease back with the word that it has stopped there: that one write is the point from which on nobody leads who has
//! less, or other things, than what was recovered. Whoever has it beside its data, this member or a later life of it, puts it in its place then, and
//! leads as after any stop. Before that write nothing has happened.

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Duration, Instant};
use tracing::{error, info, warn};

use super::Member;
use super::postgres::Postgres;
use crate::agent::events::Reason;
use crate::agent::in_place::Ready;
use crate::agent::postmasters;
use crate::agent::role_label;
use crate::election::Lease;
use crate::election::lease_record::LastWord;
use crate::election::lineage::Database;
use crate::election::recovered::is_the_sets;
use crate::election::step::Event;
use crate::errors::with_causes;
use crate::set::recovery::RecoveryOrder;

/// A stop that came to nothing, as the Lease could not be written, is not tried again at once.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What this member has of it while it is at it.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    ready: Option<OwnedMutexGuard<Option<Ready>>>,
    try_at: Option<Instant>,
}

impl Member {
    /// Goes on from what was accepted, as the master, if the order stands.
    pub(super) async fn follow_accept(&mut self) {
        let view = self.leadership.view();
        let Lease::Held { set: Some(set) } = view.at(Instant::now()) else { return };
        if view.is_by_leave() || self.recovered.try_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        // Or its keeper is at it.
        let Ok(ready) = self.accepted.clone().try_lock_owned() else { return };
        let order = self.set.borrow().as_ref().and_then(|wishes| wishes.recovery.clone());
        let is_ordered = |it: &Ready| order == Some(RecoveryOrder::Accept(it.recovery.clone()));
        let Some(Ready { database, .. }) = ready.clone().filter(is_ordered) else { return };
        self.recovered.ready = Some(ready);
        let effects = self.happens(Event::Accepted { recovered: database, set });
        self.run(effects).await;
        // What came to nothing is given back when the Lease says so.
        if !matches!(self.postgres, Postgres::Stopped) {
            self.recovered.ready = None;
        }
    }

    pub(super) async fn go_on_from(&mut self, recovered: Database) {
        let timeline = recovered.reached.map(|reached| reached.timeline);
        warn!(timeline, "the set goes on from what was recovered, as its owner has accepted: this master stops");
        self.recovered.try_at = Some(Instant::now() + TRY_AGAIN_AFTER);
        self.checkpoint().await;
        self.label.set(role_label::PublishedRole::None);
        let word = self.stop_master().await;
        self.postgres = Postgres::Stopped;
        self.mark_unready();
        let is_accepted = matches!(
            self.set.borrow().as_ref().and_then(|wishes| wishes.recovery.as_ref()),
            Some(RecoveryOrder::Accept(_))
        );
        if !self.leadership.leads() || !is_accepted {
            warn!("this member does not lead any more, or the order was taken back: the recovery did not happen");
            return self.release(Some(word)).await;
        }
        self.release(Some(LastWord { database: Some(recovered), successor: None, ..word })).await;
    }

    /// Puts what was recovered in its place, once the Lease says that the set goes on from it.
    pub(super) async fn take_recovered(&mut self) {
        if !matches!(self.postgres, Postgres::Stopped) {
            return;
        }
        let held = self.recovered.ready.take();
        let Some(mut ready) = held.or_else(|| self.accepted.clone().try_lock_owned().ok()) else { return };
        let Some(Ready { database, .. }) = ready.clone() else { return };
        match self.leadership.view().at(Instant::now()) {
            Lease::Vacant { set: Some(set) } | Lease::Held { set: Some(set) } if is_the_sets(&database, &set) => {}
            // What it says is not known yet.
            Lease::Unknown | Lease::HeldByPreviousPod => {
                self.recovered.ready = Some(ready);
                return;
            }
            _ => return,
        }
        let data = self.provisioner.data.clone();
        if !data.recovered().path().exists() {
            // An earlier life has done it.
            *ready = None;
            return;
        }
        let outcome = async {
            postmasters::end_all(data.recovered().path()).await?;
            let moving = data.clone();
            tokio::task::spawn_blocking(move || moving.accept_recovered()).await??;
            Ok::<_, Box<dyn std::error::Error>>(())
        };
        match outcome.await {
            Ok(()) => {
                info!("what was recovered is in its place, and what was there is kept");
                *ready = None;
                self.data = None;
                self.recovered = Recovered::default();
            }
            Err(why) => {
                let why = with_causes(why.as_ref());
                error!(error = why, "what was recovered is not in its place yet, trying again");
                self.teller.tell(Reason::RecoveryFailed, &format!("what was recovered is not in its place yet: {why}"));
                self.recovered.ready = Some(ready);
            }
        }
    }
}
