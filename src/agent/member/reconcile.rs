//! What a running server needs from time to time: its roles, its label, its slots, and an eye on its replication.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::Member;
use super::from_store::Step;
use super::postgres::{Postgres, Role, Running};
use crate::agent::configuration::Passwords;
use crate::agent::server::Stop;
use crate::agent::{leadership, role_label, route, sql};
use crate::backup::summary::Summary;
use crate::election::lease_record::Progress;
use crate::election::step::Event;
use crate::election::{Lease, Master};
use crate::errors::with_causes;

/// What a master does.
pub(super) const ACCEPTS_WRITES: &str = "accepts writes";

/// PostgreSQL that hears of its promotion, or of another master, just before it would look for more WAL sleeps first, for up to
/// `wal_retrieve_retry_interval` (5 s). The signal to read its settings ends that sleep.
const WAKE_EVERY: Duration = Duration::from_millis(100);
/// So long after it has heard of a master, or lost its stream, a replica is woken: a master that starts again takes less. After that
/// PostgreSQL's own pace is right for one that does not answer.
const HURRIES_FOR: Duration = Duration::from_secs(5);

impl Member {
    /// What a running server needs from time to time.
    pub(super) async fn look_after(&mut self) {
        let Postgres::Running(running) = &mut self.postgres else { return };
        if let Err(why) = running.sync_pg_hba(&self.provisioner.configuration) {
            warn!(error = with_causes(&why), "failed to bring the access rules up to date");
        }
        match running.connect(self.provisioner.configuration.port).await {
            Ok(()) => {
                let is_tight = self.status_handle.current().backup.as_ref().is_some_and(|backup| backup.tight);
                self.archiving.keep(running, &self.provisioner, &self.set, is_tight);
            }
            Err(why) if matches!(running.role, Role::Replica { .. }) && self.provisioner.data.is_promoted() => {
                return self.note_promotion(&with_causes(&why));
            }
            Err(sql::Error::NoRole) => return self.create_agent_role().await,
            Err(sql::Error::Starting) => return self.not_ready("PostgreSQL does not accept connections yet"),
            Err(why) => return self.not_ready(&with_causes(&why)),
        }
        let outcome = match &running.role {
            Role::Master { .. } => self.look_after_master().await,
            Role::Replica { .. } => self.look_after_replica().await,
            Role::Promoted => Ok(()),
        };
        if let Err(why) = outcome {
            self.not_ready(&with_causes(&why));
            if let Postgres::Running(running) = &mut self.postgres {
                running.sql = None;
            }
        }
    }

    fn not_ready(&self, why: &str) {
        self.status_handle.update(|status| {
            status.ready = false;
            why.clone_into(&mut status.message);
        });
    }

    /// The data comes from elsewhere and lacks the agent's role, or the Secret was made anew: once, a restart through single-user mode.
    /// A replica gets the role by replication.
    async fn create_agent_role(&mut self) {
        let Postgres::Running(Running { server, role: Role::Master { .. }, .. }) = &mut self.postgres else {
            return self.not_ready("waiting for the master to make the agent's role");
        };
        info!("the database lacks the agent's role: stopping PostgreSQL once to make it");
        // A large database takes its time to stop, and single-user mode to recover; neither means that the agent is stuck.
        self.status_handle.update(|status| status.last_tick = None);
        server.stop(Stop::Fast).await;
        self.postgres = Postgres::Stopped;
        self.mark_unready();
        if let Err(why) = self.provisioner.make_agent_role(self.provisioner.data.path()).await {
            let why = with_causes(&why);
            error!(error = why, "failed to make the agent's role, trying again");
            self.last_failure = why;
            let effects = self.happens(Event::Failed { is_start_of_master: true });
            self.run(effects).await;
        }
    }

    async fn look_after_master(&mut self) -> Result<(), sql::Error> {
        let Postgres::Running(Running { server, sql: Some(sql), role: Role::Master { announced }, .. }) =
            &mut self.postgres
        else {
            return Ok(());
        };
        if let Some(announced) = announced {
            send_clients_here(&self.leadership, &self.route);
            note_progress(&self.leadership, sql.progress(announced.timeline, self.leadership.begins()).await);
            let status = self.status_handle.current();
            self.leadership.note_backups(status.backup.as_deref().map(Summary::of));
            self.leadership.note_recovery(status.recovery.as_deref().cloned());
            if !self.status_handle.current().ready {
                self.route.look_again();
            }
        } else {
            let facts = sql.master_facts().await?;
            if facts.in_recovery {
                if self.was_promoted && self.woken_at.elapsed() >= WAKE_EVERY {
                    self.woken_at = Instant::now();
                    server.reload();
                }
                return Ok(());
            }
            // Clients first: the label is for people, and for Services of the user's own.
            send_clients_here(&self.leadership, &self.route);
            let configuration = &self.provisioner.configuration;
            sql.ensure_replication_role(&configuration.replication_user, &Passwords::read()?.replication).await?;
            self.label.set(role_label::PublishedRole::Master);
            let progress = sql.progress(facts.timeline, None).await;
            let master = Master {
                pod: configuration.me.pod.clone(),
                address: configuration.address.clone(),
                port: configuration.port,
                system: facts.system,
                timeline: facts.timeline,
                oldest_wal: None,
                begins: progress.as_ref().ok().and_then(|progress| progress.begins),
            };
            note_progress(&self.leadership, progress);
            // What an earlier leadership knew of them is old.
            self.leadership.note_members(Vec::new());
            *announced = Some(master.clone());
            self.leadership.announce(master).await;
            // In the same leadership as before, it may have been closed while the server was away.
            self.route.look_again();
            info!(system = %facts.system, timeline = facts.timeline, "this member is the master and accepts writes");
            self.status_handle.update(|status| {
                status.started = true;
                status.timeline = Some(facts.timeline);
                status.system_identifier = Some(facts.system.to_string());
            });
            let effects = self.happens(Event::Leads);
            self.run(effects).await;
            self.note_served();
            self.complete_histories(facts.timeline).await;
        }
        // It takes writes, whether or not it can make a slot at this moment.
        self.status_handle.update(|status| {
            status.ready = true;
            if !status.message.starts_with(ACCEPTS_WRITES) {
                ACCEPTS_WRITES.clone_into(&mut status.message);
            }
        });
        self.checkpoint_after_promotion();
        if let Err(why) = self.look_after_replicas().await {
            warn!(error = with_causes(&why), "failed to look after the replicas, trying again");
            if let Postgres::Running(running) = &mut self.postgres
                && !why.is_an_answer()
            {
                running.sql = None;
            }
        }
        self.follow_order().await;
        self.follow_accept().await;
        Ok(())
    }

    /// Until its first checkpoint on the new timeline the control file of this server says the old one, and no former master could be
    /// rewound to it.
    fn checkpoint_after_promotion(&mut self) {
        if !std::mem::take(&mut self.was_promoted) {
            return;
        }
        let Postgres::Running(Running { server, .. }) = &self.postgres else { return };
        let (directory, port) = (server.settings.socket_directory.clone(), self.configuration().port);
        tokio::spawn(async move {
            let outcome = async {
                let passwords = Passwords::read()?;
                sql::Sql::connect(&directory, port, &passwords.agent).await?.checkpoint().await
            };
            match outcome.await {
                Ok(()) => info!("the first checkpoint of this timeline is complete"),
                Err(why) => warn!(error = with_causes(&why), "no checkpoint after the promotion"),
            }
        });
    }

    async fn look_after_replica(&mut self) -> Result<(), sql::Error> {
        let Postgres::Running(Running { server, sql: Some(sql), role: Role::Replica { follows, stalled_lsn }, .. }) =
            &mut self.postgres
        else {
            return Ok(());
        };
        let facts = sql.replica_facts().await?;
        if facts.is_promoted {
            self.note_promotion("it is not in recovery");
            return Ok(());
        }
        let Some(follows) = follows.clone() else {
            self.label.take_off_soon();
            self.not_ready("follows nobody: the set has no master");
            return Ok(());
        };
        let streams = facts.streaming_timeline == Some(follows.timeline);
        let backup = self.set.borrow().as_ref().and_then(|wishes| wishes.backup.clone());
        let store = backup.filter(|_| server.settings.archives).map(|backup| backup.location);
        let oldest = match self.leadership.watch().borrow().at(Instant::now()) {
            Lease::HeldByOther { master: Some(master) } => master.oldest_wal,
            _ => None,
        };
        let step = self.from_store.step(&facts, oldest, store.is_some(), Instant::now());
        let told = match step {
            Step::Begin => Some(self.provisioner.write_store(store.as_ref())),
            Step::End => Some(self.provisioner.write_store(None)),
            Step::Leave | Step::Wait => None,
        };
        match told {
            Some(Ok(())) => {
                info!(?step, "WAL that the master has no more is taken from the set's backups");
                server.reload();
            }
            Some(Err(why)) => warn!(error = with_causes(&why), "failed to set restore_command"),
            None => {}
        }
        *stalled_lsn = facts.stalled_lsn().filter(|_| self.from_store.is_tried(store.is_some()));
        if !streams && self.status_handle.current().ready {
            self.hurries_since = Instant::now();
        }
        if !streams && facts.pauses && self.hurries_since.elapsed() < HURRIES_FOR {
            server.reload();
        }
        let (system, pod) = (follows.system, follows.pod);
        self.report();
        if streams {
            self.label.set(role_label::PublishedRole::Replica);
            self.note_served();
        } else {
            self.label.take_off_soon();
        }
        if streams && !self.status_handle.current().ready {
            let effects = self.happens(Event::Streams);
            self.run(effects).await;
            let data = self.provisioner.data.clone();
            // Waited for: nothing else may take the place of this data meanwhile.
            let released = tokio::task::spawn_blocking(move || data.release_kept(system)).await;
            if let Ok(Err(why)) = released {
                warn!(error = with_causes(&why), "the data that this clone replaced is kept");
            }
            self.provisioner.data.remove_released();
        }
        let trouble = self.waiting.as_ref().map(ToString::to_string);
        self.status_handle.update(|status| {
            if streams != status.ready {
                info!(streams, master = %pod, "replication");
            }
            status.started |= streams;
            status.ready = streams;
            status.system_identifier = Some(system.to_string());
            status.timeline = facts.streaming_timeline;
            status.replay_lag_bytes = facts.replay_lag_bytes;
            status.message = match trouble {
                Some(trouble) if !streams => trouble,
                _ if streams => format!("streams from {pod}"),
                _ => format!("does not stream from {pod} yet"),
            };
        });
        Ok(())
    }
}

/// The server accepts writes: clients of the master are to come here, if this member still leads.
fn send_clients_here(leadership: &leadership::Handle, route: &route::Handle) {
    if let Some(epoch) = leadership.epoch() {
        route.lead_here(epoch);
    }
}

/// How far the master has come goes along with the next renewal; where it can't be told, what the Lease says stays true.
fn note_progress(leadership: &leadership::Handle, progress: Result<Progress, sql::Error>) {
    match progress {
        Ok(progress) => leadership.note(progress),
        Err(why) => debug!(error = with_causes(&why), "how far the master has come is not known"),
    }
}
