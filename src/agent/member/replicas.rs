//! What a master does for its replicas: slots, WAL, and which of them confirm its commits.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::Member;
use super::postgres::{Postgres, Role, Running};
use super::reconcile::ACCEPTS_WRITES;
use crate::agent::configuration::Configuration;
use crate::agent::events::Reason;
use crate::agent::provisioner;
use crate::agent::server::Server;
use crate::agent::slots::{Change, Members};
use crate::agent::sql::{self, Sql, Walsender};
use crate::agent::synchronous::{Confirmations, Standing, Step};
use crate::errors::with_causes;

/// How often the master looks up its oldest WAL. A listing of a directory that may be large and slow, for the sake of replicas that have
/// been away for longer.
const OLDEST_WAL_EVERY: Duration = Duration::from_secs(5);

impl Member {
    /// A server that is about to accept writes waits for its replicas from the first commit on: for those that the Lease was taken with.
    /// One that leads already, or leads on without having read the Lease, waits for those that it waited for before.
    pub(super) fn write_synchronous_names(&self) -> Result<(), provisioner::Error> {
        if self.configuration().synchronous == 0 {
            return Ok(());
        }
        let quorum = self.state.commits.taken_with.clone().unwrap_or_else(|| self.provisioner.quorum_at_start(None));
        self.provisioner.write_synchronous_names(&quorum)
    }

    /// A standby has them as well, where they do nothing: whether commits wait at all is known to its processes before it is promoted. Who
    /// learned that by the promotion's own reload might acknowledge a commit before.
    pub(super) fn write_names_of_standby(&self) -> Result<(), provisioner::Error> {
        let members = self.set.borrow().as_ref().map(|set| set.members.clone());
        self.provisioner.write_names_of_standby(members.as_ref())
    }

    /// Nothing in here keeps a master from taking writes, or from being ready.
    pub(super) async fn look_after_replicas(&mut self) -> Result<(), sql::Error> {
        let members = self.set.borrow().as_ref().map(|set| set.members.clone());
        if let Some(members) = members {
            self.sync_slots(&members).await?;
        }
        self.note_leadership(&BTreeSet::new()).await;
        self.look_up_oldest_wal().await
    }

    /// Slots and synchronous replication follow the set's size.
    async fn sync_slots(&mut self, members: &Members) -> Result<(), sql::Error> {
        let Postgres::Running(Running { sql: Some(sql), .. }) = &self.postgres else { return Ok(()) };
        let replicas = sql.walsenders().await?;
        let facts = sql.synchronous_facts().await?;
        let now = Standing { slots: sql.slots().await?, names: facts.names, names_are_fixed: facts.is_fixed };
        self.note_members(members, &replicas);
        let asked = self.confirmations(members, &replicas);
        let may_enable = self.keep_record(members, &now.names, facts.is_fixed, asked, &replicas).await;
        let Postgres::Running(Running { server, sql: Some(sql), .. }) = &self.postgres else { return Ok(()) };
        let Configuration { me, set, synchronous, .. } = &self.provisioner.configuration;
        let mut outcome = Ok(());
        // One that fails keeps no other from being made: no commit waits because a slot can't be dropped.
        for step in members.steps(&now, &me.pod, asked) {
            if matches!(step, Step::Names(_)) && !may_enable {
                // The Lease has to say it first.
                continue;
            }
            info!(set, ?step, "the members changed");
            if matches!(step, Step::Names(_)) {
                self.state.commits.note_change();
            }
            if let Err(why) = take(sql, server, &step).await {
                warn!(?step, error = with_causes(&why), "failed to follow the set's size, trying again");
                outcome = Err(why);
            }
        }
        if members.count > 0 && !facts.is_fixed {
            let replicas = u32::try_from(members.others(&me.pod).count()).unwrap_or(u32::MAX);
            let wanted = *synchronous;
            self.note_shortage(Confirmations {
                wanted,
                asked,
                is_strict: self.is_strict(),
                confirming: facts.confirming,
                replicas,
            });
        }
        outcome
    }

    /// How many replicas a commit is to wait for: fewer than the annotation says where it may go on without them.
    fn confirmations(&mut self, members: &Members, found: &[Walsender]) -> u32 {
        let (wanted, is_strict) = (self.configuration().synchronous, self.is_strict());
        let streams = |pod: &String| found.iter().any(|it| it.name == *pod && it.state == "streaming");
        let streaming = members.others(&self.configuration().me.pod).filter(streams).count();
        let streaming = u32::try_from(streaming).unwrap_or(u32::MAX);
        self.state.commits.confirmations(wanted, is_strict, streaming, Instant::now())
    }

    /// As long as the set could not be read, it is.
    fn is_strict(&self) -> bool {
        self.set.borrow().as_ref().is_none_or(|set| set.synchronous_strict)
    }

    fn note_shortage(&mut self, has: Confirmations) {
        let message = match has.shortage() {
            Some(why) => format!("{ACCEPTS_WRITES}; {why}"),
            None => ACCEPTS_WRITES.to_owned(),
        };
        self.status_handle.update(|status| status.message = message);
        if let Some(note) = self.shortage.tell(&self.provisioner.configuration.set, has, Instant::now()) {
            warn!("{note}");
            let reason = if has.are_fewer_asked() { Reason::CommitsDoNotWait } else { Reason::CommitsWait };
            self.teller.tell(reason, &note);
        }
    }

    /// A replica may come from any timeline before this one.
    pub(super) async fn complete_histories(&self, timeline: u32) {
        let data = self.provisioner.data.clone();
        let outcome = tokio::task::spawn_blocking(move || data.complete_histories(timeline)).await;
        if let Ok(Err(why)) = outcome {
            warn!(error = with_causes(&why), "a replica from an earlier timeline may not find its way");
        }
    }

    async fn look_up_oldest_wal(&mut self) -> Result<(), sql::Error> {
        if Instant::now() < self.oldest_wal_due {
            return Ok(());
        }
        self.oldest_wal_due = Instant::now() + OLDEST_WAL_EVERY;
        let Postgres::Running(Running { sql: Some(sql), role: Role::Master { announced: Some(master) }, .. }) =
            &mut self.postgres
        else {
            return Ok(());
        };
        let oldest_wal = sql.oldest_wal().await?;
        if master.oldest_wal != oldest_wal {
            master.oldest_wal = oldest_wal;
            self.leadership.announce(master.clone()).await;
        }
        Ok(())
    }
}

async fn take(sql: &Sql, server: &Server, step: &Step) -> Result<(), sql::Error> {
    match step {
        Step::Slot(Change::Create(name)) => sql.create_slot(name).await,
        Step::Slot(Change::Renew(name)) => {
            sql.drop_slot(name).await?;
            sql.create_slot(name).await
        }
        Step::Slot(Change::Drop(name)) => sql.drop_slot(name).await,
        Step::Names(names) => {
            sql.set_synchronous_names(names).await?;
            server.reload();
            Ok(())
        }
    }
}
