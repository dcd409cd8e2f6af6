//! A server is started, or follows a master at another place.

use tokio::time::Instant;
use tracing::info;

use super::Member;
use super::postgres::{Postgres, Role, Running};
use crate::agent::postmasters;
use crate::agent::provisioner::{self, Provisioner};
use crate::agent::server::{Ready, Server};
use crate::election::Master;
use crate::election::epoch::Epoch;

impl Member {
    /// `decided_in`: the leadership by which a master is started.
    pub(super) async fn start(
        &mut self,
        role: Role,
        decided_in: Option<&Epoch>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let Provisioner { configuration, binaries, processes, data, .. } = &self.provisioner;
        // A server that was killed may have left backends, and its pid file.
        postmasters::end_all(data.path()).await?;
        data.remove_stale_pid_file()?;
        if !matches!(role, Role::Master { .. }) {
            data.forget_passed_over()?;
        }
        let ready = Ready::ask(configuration, data, binaries, processes).await?;
        let server = if matches!(role, Role::Master { .. }) {
            // What was asked took its time.
            let Some(permit) = self.leadership.permit(decided_in) else { return Ok(()) };
            Server::start_master(ready, &permit)?
        } else {
            Server::start_standby(ready, data)?
        };
        info!(role = role.name(), "starting PostgreSQL");
        self.status_handle.counts.starts.inc();
        let (name, archives) = (role.name(), server.settings.archives);
        self.status_handle.update(|status| {
            status.role = name;
            status.archives = Some(archives);
            "PostgreSQL is starting".clone_into(&mut status.message);
        });
        let access_rules_at = server.settings.access_rules_changed_at();
        self.postgres = Postgres::Running(Running { server, sql: None, role, access_rules_at });
        self.hurries_since = Instant::now();
        Ok(())
    }

    /// The master is elsewhere: the same one in a new pod, or another one.
    pub(super) fn follow(&mut self, master: Master) -> Result<(), provisioner::Error> {
        let Postgres::Running(Running { server, role: Role::Replica { follows, .. }, .. }) = &mut self.postgres else {
            return Ok(());
        };
        if follows.as_ref().is_none_or(|before| before.address != master.address || before.port != master.port) {
            info!(master = %master.pod, address = %master.address, "following the master at its new address");
            self.provisioner.write_master(&master)?;
            server.reload();
            self.hurries_since = Instant::now();
        }
        *follows = Some(master);
        Ok(())
    }
}
