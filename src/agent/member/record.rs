//! What a master records: in the Lease, who may stand and what commits wait for; on its volume, its leadership.

use std::collections::BTreeSet;

use tokio::time::{Duration, Instant};
use tracing::warn;

use super::Member;
use super::postgres::{Postgres, Role, Running};
use crate::agent::notes::Leadership;
use crate::agent::slots::Members;
use crate::agent::sql::Walsender;
use crate::agent::synchronous;
use crate::election::lease_record::Told;
use crate::election::lineage::{Database, Reached};
use crate::election::state::commits::{Evidence, Setting};
use crate::election::vote::Quorum;
use crate::errors::with_causes;

/// How often a replica tells the master where it is.
const REPORT_EVERY: Duration = Duration::from_secs(2);

impl Member {
    /// Records who may stand, and returns whether the server may do what it is about to do for the sake of synchronous replication:
    /// to wait for so many replicas.
    pub(super) async fn keep_record(
        &mut self,
        members: &Members,
        on_server: &str,
        is_fixed: bool,
        asked: u32,
        replicas: &[Walsender],
    ) -> bool {
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
        let evidence = if on_server == recorded.quorum { None } else { self.evidence(replicas).await };
        let setting =
            Setting { recorded: &recorded.quorum, on_server: &on_server, wanted: &wanted, evidence: evidence.as_ref() };
        let (quorum, may_enable) = self.state.commits.record(&setting, Instant::now());
        // Whom this member might forget to ask for leave may not stand.
        let voters = if self.note_leadership(&voters).await { voters } else { recorded.voters };
        let (order_done, order_refused) = (self.order_done(&view), self.state.handover.refused());
        self.leadership.tell(Told { voters, quorum, order_done, order_refused }).await;
        may_enable
    }

    /// How far the replicas have come, once the server's processes wait for those that it lists. The replicas were looked at before the
    /// master itself: they have at least that.
    async fn evidence(&self, replicas: &[Walsender]) -> Option<Evidence> {
        let Postgres::Running(Running { sql: Some(sql), .. }) = &self.postgres else { return None };
        match (sql.flushed().await, sql.commits_wait_as_set().await) {
            (Ok(Some(flushed)), Ok(true)) => {
                let have = |replica: &Walsender| Some((replica.name.clone(), replica.flushed?));
                Some(Evidence { flushed, replicas: replicas.iter().filter_map(have).collect() })
            }
            _ => None,
        }
    }

    /// Notes on the volume what this member needs to lead on after a restart without the API server: above all who has to be asked, which
    /// are those that the Lease records, those that it may record by now, and these. Returns whether it is noted.
    pub(super) async fn note_leadership(&mut self, voters: &BTreeSet<String>) -> bool {
        let Postgres::Running(Running { role: Role::Master { announced: Some(master) }, .. }) = &self.postgres else {
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
        let Postgres::Running(Running { role: Role::Replica { follows: Some(master), .. }, .. }) = &self.postgres
        else {
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
