//! What a member sees at one moment, in the election's words.

use tokio::time::Instant;

use super::Member;
use super::postgres::{Postgres, Role, Running};
use crate::agent::configuration::Configuration;
use crate::election::step::Facts;
use crate::election::{DataState, PostgresState};
use crate::set::entries::MAXIMUM_LAG;

impl Member {
    /// What this member sees at this moment.
    pub(super) async fn look(&mut self) -> Facts {
        self.take_recovered().await;
        let view = self.leadership.view();
        self.look_at_wal(&view).await;
        let now = Instant::now();
        if matches!(self.postgres, Postgres::Stopped) && !self.state.lets_be(now) {
            self.look_at_data().await;
        }
        let wishes = self.set.borrow().clone();
        let Configuration { me, brings_database, fails_over, .. } = self.configuration();
        Facts {
            me: me.clone(),
            lease: view.at(Instant::now()),
            seen: view.seen().cloned(),
            data: self.data.clone().unwrap_or(DataState::Empty),
            server: self.server(),
            first: *brings_database,
            voted: self.promises.voted(),
            gave_leave: self.promises.leave(now).is_some(),
            fails_over: *fails_over,
            quorum: self.provisioner.quorum_at_start(wishes.as_ref().map(|set| &set.members)),
            maximum_lag: wishes.as_ref().map_or_else(|| MAXIMUM_LAG.of(None), |set| set.maximum_lag),
            order: wishes.and_then(|set| set.order),
            next_timeline: self.ballots.facts.map_or(0, |facts| facts.next_timeline),
        }
    }

    /// What PostgreSQL does, in the election's words.
    pub(super) fn server(&self) -> PostgresState {
        match &self.postgres {
            Postgres::Stopped => PostgresState::Stopped,
            Postgres::Bootstrapping(_) => PostgresState::Bootstrapping,
            Postgres::Cloning { from, .. } => PostgresState::Cloning { from: from.clone() },
            Postgres::Rewinding { from, .. } => PostgresState::Rewinding { from: from.clone() },
            Postgres::Running(Running { role: Role::Master { .. }, .. }) => PostgresState::Master,
            Postgres::Running(Running { role: Role::Promoted, .. }) => PostgresState::Promoted,
            Postgres::Running(Running { role: Role::Replica { follows, stalled_lsn }, .. }) => {
                let wal = self.wal();
                let (follows, stalled_lsn) = (follows.clone(), *stalled_lsn);
                PostgresState::Replica { follows, stalled_lsn, receives: wal.receives, position: wal.position }
            }
        }
    }

    /// Only a stopped member's data can change hands: somebody may move it away, bring it back, or mend what can't be used.
    async fn look_at_data(&mut self) {
        let data = self.provisioner.data.clone();
        let fingerprint = tokio::task::spawn_blocking(move || data.fingerprint()).await.ok();
        if matches!(self.data, None | Some(DataState::Unusable(_))) || fingerprint != self.fingerprint {
            self.data =
                Some(self.provisioner.data.inspect(&self.provisioner.binaries, &self.provisioner.processes).await);
            // From before it was looked at, so that no change falls in between. A move that was finished meanwhile is looked at again.
            self.fingerprint = fingerprint;
        }
    }
}
