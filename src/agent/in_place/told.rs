//! What is told of a recovery in place: on the set's Lease, and as Events.

use std::fs;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::{Keeper, PROGRESS, show};
use crate::agent::configuration::run_directory;
use crate::agent::events::Reason;
use crate::backup::in_place::{Next, Stage, State, Told};
use crate::backup::report::Brought;
use crate::set::recovery::RecoveryOrder;

/// What is kept changes by nobody, and a large directory takes its time.
const MEASURE_EVERY: Duration = Duration::from_secs(3600);

// === impl Keeper ===

impl Keeper {
    pub(super) fn tell_progress(&self) {
        let brought = fs::read(run_directory().join(PROGRESS)).ok();
        let brought: Option<Brought> = brought.and_then(|text| serde_json::from_slice(&text).ok());
        self.status_handle.update(|status| {
            if let (Some(told), Some(Brought { bytes, size })) = (&mut status.recovery, brought) {
                (told.brought, told.size) = (Some(bytes), Some(size));
            }
        });
    }

    pub(super) fn tell_nothing(&self) {
        let told = Told { pod: self.provisioner.configuration.me.pod.clone(), ..Told::default() };
        if self.status_handle.current().recovery.as_deref() != Some(&told) {
            self.status_handle.update(|status| status.recovery = Some(Box::new(told)));
        }
    }

    pub(super) async fn tell(&mut self, next: &Next) {
        let can_be_seen = self.shown.as_ref().is_some_and(|shown| *shown.can_be_seen.borrow());
        let last_commit = match self.journal.as_ref().map(|journal| &journal.stage) {
            Some(Stage::Recovered { last_commit }) => *last_commit,
            _ => None,
        };
        let is_done = self.journal.as_ref().is_some_and(|journal| journal.stage == Stage::Accepted);
        let refused = match next {
            Next::Refuse(why) => Some(why.in_words().to_owned()),
            _ => self.refused.as_ref().map(|(_, why)| why.clone()),
        };
        let state = match next {
            _ if refused.is_some() => State::Refused,
            Next::Restore(_) => State::Restoring,
            Next::Show if can_be_seen => State::Ready,
            Next::Recover | Next::Show => State::Replaying,
            Next::Finish | Next::HandOver(_) => State::Accepting,
            _ if is_done => State::Accepted,
            _ => State::None,
        };
        // An order to forget takes back what another member has told of what it keeps.
        let is_told = |order: &RecoveryOrder| state != State::None || matches!(order, RecoveryOrder::Forget { .. });
        let order = self.order().filter(is_told).map(|order| order.to_string());
        if state == State::Ready {
            let to = last_commit.map_or_else(String::new, |at| format!(", with the last commit of {at}"));
            let note = format!(
                "{} can be looked at{to}: psql -h {} -U postgres in this pod's container; pgset recover --accept, or --cancel",
                order.as_deref().unwrap_or_default(),
                show::socket().display()
            );
            self.teller.tell(Reason::RecoveryReady, &note);
        }
        let told = Told {
            pod: self.provisioner.configuration.me.pod.clone(),
            order: order.unwrap_or_default(),
            state,
            brought: None,
            size: None,
            last_commit: last_commit.filter(|_| state == State::Ready),
            trouble: refused.or_else(|| self.trouble.clone().filter(|_| state != State::None)),
            kept: self.size_of_kept().await,
        };
        self.status_handle.update(|status| status.recovery = Some(Box::new(told.cut())));
    }

    async fn size_of_kept(&mut self) -> Option<u64> {
        if self.provisioner.data.kept_before().is_empty() {
            self.kept = None;
            return None;
        }
        if self.kept.is_none_or(|(_, at)| at.elapsed() >= MEASURE_EVERY) {
            let data = self.provisioner.data.clone();
            let size = spawn_blocking(move || data.size_of_kept()).await.unwrap_or_default();
            self.kept = Some((size, Instant::now()));
        }
        self.kept.map(|(size, _)| size)
    }
}
