//! What a master does for its replicas: slots, WAL, and which of them confirm its commits.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::Member;
use super::state::{Role, Running, State};
use super::upkeep::ACCEPTS_WRITES;
use crate::agent::events::Reason;
use crate::agent::slots::{self, Change, Members};
use crate::agent::sql::{self, Sql};
use crate::agent::synchronous::{self, Confirmations};
use crate::agent::{birth, kubernetes};
use crate::errors::with_causes;

/// How long the start of a master whose commits wait for replicas may be held up by the question how many members the set has: the
/// server is down meanwhile. The API server, which has just given this member the Lease, answers within milliseconds.
const MEMBERS_LIMIT: Duration = Duration::from_secs(1);
/// How often the master looks up its oldest WAL. A listing of a directory that may be large and slow, for the sake of replicas that have
/// been away for longer.
const OLDEST_WAL_EVERY: Duration = Duration::from_secs(5);

impl Member {
    fn members(&mut self) -> &mut watch::Receiver<Option<Members>> {
        let configuration = &self.midwife.configuration;
        self.members.get_or_insert_with(|| {
            // The task ends with its stream, which this process outlives only when it ends itself.
            kubernetes::follow_members(self.client.clone(), &configuration.namespace, configuration.set.clone()).0
        })
    }

    /// A server that is about to accept writes waits for its replicas from the first commit on.
    pub(super) async fn write_synchronous_names(&mut self) -> Result<(), birth::Error> {
        if self.configuration().synchronous == 0 {
            return Ok(());
        }
        let known = timeout(MEMBERS_LIMIT, self.members().wait_for(Option::is_some)).await;
        let members = known.ok().and_then(Result::ok).and_then(|members| members.clone());
        if members.is_none() {
            warn!("the set's size is not known: commits wait for the replicas that were known last");
        }
        self.midwife.write_synchronous_names(members.as_ref())
    }

    /// Nothing in here keeps a master from taking writes, or from being ready.
    pub(super) async fn look_after_replicas(&mut self) -> Result<(), sql::Error> {
        let members = self.members().borrow().clone();
        if let Some(members) = members {
            self.keep_members(&members).await?;
        }
        self.look_up_oldest_wal().await
    }

    /// Slots and synchronous replication follow the set's size. A member has its slot before commits wait for it, and commits don't wait for
    /// it any more when it loses its slot; what keeps a slot from being made or dropped keeps no commit waiting.
    async fn keep_members(&mut self, members: &Members) -> Result<(), sql::Error> {
        let State::Running(Running { sql: Some(sql), .. }) = &self.state else { return Ok(()) };
        let (drops, makes): (Vec<Change>, Vec<Change>) =
            slots::changes(&sql.slots().await?, members, &self.midwife.configuration.me.pod)
                .into_iter()
                .partition(|change| matches!(change, Change::Drop(_)));
        let made = change_slots(sql, makes).await;
        self.keep_synchronous_names(members).await?;
        let State::Running(Running { sql: Some(sql), .. }) = &self.state else { return Ok(()) };
        made.and(change_slots(sql, drops).await)
    }

    async fn keep_synchronous_names(&mut self, members: &Members) -> Result<(), sql::Error> {
        let State::Running(Running { server, sql: Some(sql), .. }) = &self.state else { return Ok(()) };
        let configuration = &self.midwife.configuration;
        let (me, wanted) = (&configuration.me.pod, configuration.synchronous);
        let facts = sql.synchronous_facts().await?;
        let (names, now) = (members.synchronous_names(me, wanted), facts.names);
        if facts.is_fixed {
            return Ok(());
        }
        if now != names && (wanted > 0 || synchronous::is_the_agents(&now, &configuration.set)) {
            info!(was = now, now = names, "the replicas that confirm a commit changed");
            sql.set_synchronous_names(&names).await?;
            server.reload();
        }
        if members.count > 0 {
            let replicas = u32::try_from(members.others(me).count()).unwrap_or(u32::MAX);
            self.note_shortage(Confirmations { wanted, confirming: facts.confirming, replicas });
        }
        Ok(())
    }

    fn note_shortage(&mut self, has: Confirmations) {
        let doing = match has.shortage() {
            Some(why) => format!("{ACCEPTS_WRITES}; {why}"),
            None => ACCEPTS_WRITES.to_owned(),
        };
        self.publisher.update(|status| status.doing = doing);
        if let Some(note) = self.shortage.tell(&self.midwife.configuration.set, has, Instant::now()) {
            warn!("{note}");
            self.teller.tell(Reason::CommitsWait, &note);
        }
    }

    async fn look_up_oldest_wal(&mut self) -> Result<(), sql::Error> {
        if Instant::now() < self.oldest_wal_due {
            return Ok(());
        }
        self.oldest_wal_due = Instant::now() + OLDEST_WAL_EVERY;
        let State::Running(Running { sql: Some(sql), role: Role::Master { announced: Some(master) }, .. }) =
            &mut self.state
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

/// Makes all changes that can be made, and returns what kept one from it.
async fn change_slots(sql: &Sql, changes: Vec<Change>) -> Result<(), sql::Error> {
    let mut outcome = Ok(());
    for change in changes {
        info!(?change, "the members changed");
        let done = match &change {
            Change::Create(name) => sql.create_slot(name).await,
            Change::Renew(name) => match sql.drop_slot(name).await {
                Ok(()) => sql.create_slot(name).await,
                failed => failed,
            },
            Change::Drop(name) => sql.drop_slot(name).await,
        };
        if let Err(why) = done {
            warn!(?change, error = with_causes(&why), "a replication slot could not be changed");
            outcome = Err(why);
        }
    }
    outcome
}
