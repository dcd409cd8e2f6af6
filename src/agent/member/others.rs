//! What others do to this member's PostgreSQL: a promotion by hand, a server started by hand. Neither writes for long.

use nix::sys::signal::Signal;
use tokio::time::{Duration, Instant, sleep};
use tracing::{error, warn};

use super::Member;
use super::postgres::{Postgres, Role, Running};
use crate::agent::postmasters::Postmaster;
use crate::agent::processes::end_container;
use crate::agent::role_label;
use crate::agent::server::IMMEDIATE_LIMIT;
use crate::election::step::Event;
use crate::errors::with_causes;

/// How often a server that was told to stop is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Member {
    /// Tells the fencer if there is nothing to fence.
    pub(super) fn stand_down(&self) {
        if !self.postgres.may_write() {
            self.leadership.stand_down();
        }
    }

    /// The next turn, which is now, fences it.
    pub(super) fn note_promotion(&mut self, how: &str) {
        warn!(how, "somebody promoted this replica: it accepts writes without the set's Lease");
        if let Postgres::Running(running) = &mut self.postgres {
            running.role = Role::Promoted;
        }
        self.label.set(role_label::PublishedRole::None);
    }

    /// A server has ended that was started as a replica. If it was promoted meanwhile, its data is out of the set's history: it is kept,
    /// and never leads.
    pub(super) fn look_at_data_of(&self, role: &Role) {
        let was_replica = matches!(role, Role::Replica { .. } | Role::Promoted);
        if was_replica
            && self.provisioner.data.is_promoted()
            && let Err(why) = self.provisioner.data.mark_promoted()
        {
            error!(error = with_causes(&why), "the data is not marked as promoted by hand");
        }
    }

    /// A server that somebody else started on this member's data is outside of all fencing. It is stopped, and the agent starts its own
    /// where one may run: nobody who wanted a restart (`pg_ctl restart`) misses anything.
    pub(super) async fn stop_server_of_others(&mut self) {
        let own = match &self.postgres {
            Postgres::Running(Running { server, .. }) => Some(server.number()),
            Postgres::Stopped => None,
            // The data directory is not there yet.
            Postgres::Bootstrapping(_) | Postgres::Cloning { .. } | Postgres::Rewinding { .. } => return,
        };
        let data = &self.provisioner.data;
        let Some(server) = Postmaster::of_somebody_else(data.path(), &data.pid_file(), own) else { return };
        warn!("a PostgreSQL that the agent did not start serves this member's data: it is stopped");
        // A large database takes its time to stop, which does not mean that the agent is stuck.
        self.status_handle.update(|status| status.last_tick = None);
        let mut ordered = None;
        let mut at_once_since: Option<Instant> = None;
        while server.lives(self.provisioner.data.path()) {
            let leads = self.leadership.leads();
            let order = if leads { Signal::SIGINT } else { Signal::SIGQUIT };
            if ordered != Some(order) && at_once_since.is_none() {
                server.signal(order);
                ordered = Some(order);
                at_once_since = (!leads).then(Instant::now);
            }
            if at_once_since.is_some_and(|since| since.elapsed() > IMMEDIATE_LIMIT) {
                warn!("PostgreSQL did not stop at once: the whole container ends");
                end_container();
            }
            sleep(LOOK_EVERY).await;
        }
        self.data = None;
        let effects = self.happens(Event::OthersStarted);
        self.run(effects).await;
    }
}
