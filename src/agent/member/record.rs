//! What a master records: in the Lease, who may stand and what commits wait for; on its volume, its leadership.

use std::collections::BTreeSet;

use tokio::time::{Duration, Instant};
use tracing::warn;

use super::Member;
use super::state::{Role, Running, State};
use crate::agent::notes::Leadership;
use crate::agent::slots::Members;
use crate::agent::synchronous::{self, CatchUp};
use crate::election::claim::Told;
use crate::election::lineage::{Database, Reached};
use crate::election::quorum::{QuorumStep, quorum_step};
use crate::election::vote::Quorum;
use crate::errors::with_causes;

/// How often a replica tells the master where it is.
const REPORT_EVERY: Duration = Duration::from_secs(2);

impl Member {
    /// Records who may stand, and returns whether the server may do what it is about to do for the sake of synchronous replication:
    /// to wait for so many replicas.
    pub(super) async fn keep_record(&mut self, members: &Members, on_server: &str, is_fixed: bool, asked: u32) -> bool {
        let view = self.leadership.view();
        let Some(seen) = view.seen() else { return false };
        let configuration = self.configuration();
        let me = configuration.me.pod.clone();
        let recorded = seen.record.clone();
        let voters: BTreeSet<String> = if members.count == 0 {
            recorded.voters.clone()
        } else {
            members.others(&me).chain([me.clone()]).collect()
        };
        let (on_server, wanted) = if is_fixed {
            // The user's own: nothing is promised of it.
            (Quorum::default(), Quorum::default())
        } else {
            (synchronous::quorum(on_server), synchronous::quorum(&members.synchronous_names(&me, asked)))
        };
        let are_caught_up = if on_server == recorded.quorum {
            // What is looked at next is another change, also if it leads to the same.
            self.catch_up = CatchUp::default();
            true
        } else {
            self.are_caught_up(&on_server).await
        };
        let (quorum, may_enable) = match quorum_step(&recorded.quorum, &on_server, &wanted, are_caught_up) {
            QuorumStep::Record(quorum) => (quorum, false),
            QuorumStep::Enable | QuorumStep::CatchUp => (recorded.quorum, true),
            QuorumStep::Done => (wanted, true),
        };
        // Whom this member might forget to ask for leave may not stand.
        let voters = if self.note_leadership(&voters).await { voters } else { recorded.voters };
        let (order_done, order_refused) = (self.order_done(&view), self.order_refused());
        self.leadership.tell(Told { voters, quorum, order_done, order_refused }).await;
        may_enable
    }

    /// Whether those that the server waits for by now have all that it had acknowledged before.
    async fn are_caught_up(&mut self, on_server: &Quorum) -> bool {
        let State::Running(Running { sql: Some(sql), .. }) = &self.state else { return false };
        match (sql.flushed().await, sql.walsenders().await, sql.commits_wait_as_set().await) {
            (Ok(Some(flushed)), Ok(replicas), Ok(true)) => {
                let replicas = replicas.iter().filter_map(|replica| Some((replica.name.as_str(), replica.flushed?)));
                self.catch_up.look(on_server, flushed, replicas, Instant::now())
            }
            _ => false,
        }
    }

    /// Notes on the volume what this member needs to lead on after a restart without the API server: above all who has to be asked, which
    /// are those that the Lease records, those that it may record by now, and these. Returns whether it is noted.
    pub(super) async fn note_leadership(&mut self, voters: &BTreeSet<String>) -> bool {
        let State::Running(Running { role: Role::Master { announced: Some(master) }, .. }) = &self.state else {
            return false;
        };
        let view = self.leadership.view();
        let Some(seen) = view.seen() else { return false };
        let told = self.leadership.told().map(|told| told.voters).unwrap_or_default();
        let voters: BTreeSet<String> = seen.record.voters.iter().chain(&told).chain(voters).cloned().collect();
        if voters.is_empty() {
            return false;
        }
        let mut addresses = self.electorate.addresses();
        addresses.retain(|pod, _| voters.contains(pod));
        let reached = Reached { timeline: master.timeline, begins: master.begins, flushed: None, stopped_at: None };
        let leadership = Leadership {
            holder: self.configuration().me.to_string(),
            epoch: seen.record.epoch,
            voters,
            addresses,
            database: Database { system: master.system, reached: Some(reached) },
        };
        if self.noted_leadership.as_ref() == Some(&leadership) {
            return true;
        }
        let (notes, new) = (self.notes.clone(), leadership.clone());
        match tokio::task::spawn_blocking(move || notes.write_leadership(&new)).await {
            Ok(Ok(())) => {
                self.noted_leadership = Some(leadership);
                return true;
            }
            Ok(Err(why)) => warn!(
                error = with_causes(&why),
                "the leadership is not noted: without the API server it ends with this container"
            ),
            Err(why) => warn!(%why, "the leadership is not noted"),
        }
        false
    }

    /// Tells the master where this member is, so that it can be asked when the API server does not answer.
    pub(super) fn report(&mut self) {
        let State::Running(Running { role: Role::Replica { follows: Some(master), .. }, .. }) = &self.state else {
            return;
        };
        if Instant::now() < self.report_due {
            return;
        }
        self.report_due = Instant::now() + REPORT_EVERY;
        let (electorate, master) = (self.electorate.clone(), master.clone());
        let address = self.configuration().address.clone();
        tokio::spawn(async move { electorate.report(&master.pod, &master.address, &address).await });
    }
}
