//! What a running server needs from time to time: its roles, its label, its slots, and an eye on its replication.

use tracing::{debug, error, info, warn};

use super::Member;
use super::state::{Retry, Role, Running, State};
use crate::agent::configuration::Passwords;
use crate::agent::server::Stop;
use crate::agent::slots::{self, Change};
use crate::agent::{kubernetes, label, sql};
use crate::election::Master;
use crate::errors::with_causes;

impl Member {
    /// What a running server needs from time to time.
    pub(super) async fn look_after(&mut self) {
        let State::Running(running) = &mut self.state else { return };
        if let Err(why) = running.follow_access_rules(&self.midwife.configuration) {
            warn!(error = with_causes(&why), "failed to bring the access rules up to date");
        }
        match running.connect(self.midwife.configuration.port).await {
            Ok(()) => {}
            Err(sql::Error::NoRole) => return self.adopt().await,
            Err(sql::Error::Starting) => return self.not_ready("PostgreSQL does not accept connections yet"),
            Err(why) => return self.not_ready(&with_causes(&why)),
        }
        let outcome = match &running.role {
            Role::Master { .. } => self.look_after_master().await,
            Role::Replica { .. } => self.look_after_replica().await,
        };
        if let Err(why) = outcome {
            self.not_ready(&with_causes(&why));
            if let State::Running(running) = &mut self.state {
                running.sql = None;
            }
        }
    }

    fn not_ready(&self, why: &str) {
        self.publisher.update(|status| {
            status.ready = false;
            why.clone_into(&mut status.doing);
        });
    }

    /// The data comes from elsewhere and lacks the agent's role, or the Secret was made anew: once, a restart through single-user mode.
    /// A replica gets the role by replication.
    async fn adopt(&mut self) {
        let State::Running(Running { server, role: Role::Master { .. }, .. }) = &mut self.state else {
            return self.not_ready("waiting for the master to make the agent's role");
        };
        info!("the database lacks the agent's role: stopping PostgreSQL once to make it");
        // A large database takes its time to stop, and single-user mode to recover; neither means that the agent is stuck.
        self.publisher.update(|status| status.turned_at = None);
        server.stop(Stop::Fast).await;
        self.state = State::Stopped;
        self.not_serving();
        if let Err(why) = self.midwife.make_agent_role(self.midwife.data.path()).await {
            let why = with_causes(&why);
            error!(error = why, "failed to make the agent's role, trying again");
            self.retry.later();
            self.note_failed_start(why);
        }
    }

    async fn look_after_master(&mut self) -> Result<(), sql::Error> {
        let State::Running(Running { sql: Some(sql), role: Role::Master { announced }, .. }) = &mut self.state else {
            return Ok(());
        };
        let oldest_wal = sql.oldest_wal().await?;
        if let Some(announced) = announced {
            match sql.progress(announced.timeline, self.leadership.begins()).await {
                Ok(progress) => self.leadership.note(progress),
                // The Lease says what it said before, which stays true.
                Err(why) => debug!(error = with_causes(&why), "how far the master has come is not known"),
            }
            if announced.oldest_wal != oldest_wal {
                announced.oldest_wal = oldest_wal;
                self.leadership.announce(announced.clone()).await;
            }
        } else {
            let facts = sql.master_facts().await?;
            if facts.in_recovery {
                return Ok(());
            }
            let configuration = &self.midwife.configuration;
            sql.ensure_replication_role(&configuration.replication_user, &Passwords::read()?.replication).await?;
            self.label.set(label::Role::Master);
            let master = Master {
                pod: configuration.me.pod.clone(),
                address: configuration.address.clone(),
                port: configuration.port,
                system: facts.system,
                timeline: facts.timeline,
                oldest_wal,
            };
            self.leadership.note(sql.progress(facts.timeline, None).await?);
            *announced = Some(master.clone());
            self.leadership.announce(master).await;
            self.retry = Retry::none();
            info!(system = %facts.system, timeline = facts.timeline, "this member is the master and accepts writes");
            self.publisher.update(|status| {
                status.started = true;
                status.timeline = Some(facts.timeline);
                status.system_identifier = Some(facts.system.to_string());
            });
            self.note_served();
        }
        // It takes writes, whether or not it can make a slot at this moment.
        self.publisher.update(|status| {
            status.ready = true;
            "accepts writes".clone_into(&mut status.doing);
        });
        if let Err(why) = self.keep_members().await {
            warn!(error = with_causes(&why), "failed to follow the set's size, trying again");
            if let State::Running(running) = &mut self.state {
                running.sql = None;
            }
        }
        Ok(())
    }

    /// Slots and synchronous replication follow the set's size.
    async fn keep_members(&mut self) -> Result<(), sql::Error> {
        let configuration = &self.midwife.configuration;
        let members = self.members.get_or_insert_with(|| {
            // The task ends with its stream, which this process outlives only when it ends itself.
            kubernetes::follow_members(self.client.clone(), &configuration.namespace, configuration.set.clone()).0
        });
        let Some(members) = members.borrow().clone() else { return Ok(()) };
        let State::Running(Running { server, sql: Some(sql), .. }) = &self.state else { return Ok(()) };
        let me = &configuration.me.pod;
        for change in slots::changes(&sql.slots().await?, &members, me) {
            info!(?change, "the members changed");
            match change {
                Change::Create(name) => sql.create_slot(&name).await?,
                Change::Drop(name) => sql.drop_slot(&name).await?,
            }
        }
        let wanted = members.synchronous_names(me, configuration.synchronous);
        let now = sql.synchronous_names().await?;
        if now != wanted && (!wanted.is_empty() || members.wrote_synchronous_names(&now)) {
            info!(was = now, now = wanted, "the replicas that confirm a commit changed");
            sql.set_synchronous_names(&wanted).await?;
            server.reload();
        }
        Ok(())
    }

    async fn look_after_replica(&mut self) -> Result<(), sql::Error> {
        let State::Running(Running { sql: Some(sql), role: Role::Replica { follows, stuck_at }, .. }) = &mut self.state
        else {
            return Ok(());
        };
        let facts = sql.replica_facts().await?;
        let streams = facts.streaming_timeline == Some(follows.timeline);
        *stuck_at = facts.replayed.filter(|_| facts.streaming_timeline.is_none());
        let (system, pod) = (follows.system.to_string(), follows.pod.clone());
        self.label.set(if streams { label::Role::Replica } else { label::Role::None });
        if streams {
            self.note_served();
        }
        if streams && !self.publisher.current().ready {
            self.retry = Retry::none();
            let data = self.midwife.data.clone();
            tokio::task::spawn_blocking(move || {
                data.remove_old().map_err(|why| warn!(error = with_causes(&why), "old data was not removed"))
            });
        }
        self.publisher.update(|status| {
            if streams != status.ready {
                info!(streams, master = %pod, "replication");
            }
            status.started |= streams;
            status.ready = streams;
            status.system_identifier = Some(system);
            status.timeline = facts.streaming_timeline;
            status.replay_lag_bytes = facts.replay_lag_bytes;
            status.doing =
                if streams { format!("streams from {pod}") } else { format!("does not stream from {pod} yet") };
        });
        Ok(())
    }
}
