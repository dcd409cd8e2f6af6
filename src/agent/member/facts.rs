//! What a member sees at one moment, in the election's words.

use tokio::time::Instant;

use super::Member;
use super::postgres::{Postgres, Role, Running};
use crate::agent::configuration::Configuration;
use crate::election::step::Facts;
use crate::election::{Data, Server};
use crate::set::entries::MAXIMUM_LAG;

impl Member {
    /// What this member sees at this moment.
    pub(super) async fn look(&mut self) -> Facts {
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
            data: self.data.clone().unwrap_or(Data::Empty),
            server: self.server(),
            first: *brings_database,
            voted: self.promises.voted(),
            gave_leave: self.promises.leave(now).is_some(),
            fails_over: *fails_over,
            quorum: self.midwife.quorum_at_start(wishes.as_ref().map(|set| &set.members)),
            maximum_lag: wishes.as_ref().map_or_else(|| MAXIMUM_LAG.of(None), |set| set.maximum_lag),
            order: wishes.and_then(|set| set.order),
            next_timeline: self.ballots.facts.map_or(0, |facts| facts.next_timeline),
        }
    }

    /// What PostgreSQL does, in the election's words.
    pub(super) fn server(&self) -> Server {
        match &self.postgres {
            Postgres::Stopped => Server::Stopped,
            Postgres::Bootstrapping(_) => Server::Bootstrapping,
            Postgres::Cloning { from, .. } => Server::Cloning { from: from.clone() },
            Postgres::Rewinding { from, .. } => Server::Rewinding { from: from.clone() },
            Postgres::Running(Running { role: Role::Master { .. }, .. }) => Server::Master,
            Postgres::Running(Running { role: Role::Promoted, .. }) => Server::Promoted,
            Postgres::Running(Running { role: Role::Replica { follows, stuck_at }, .. }) => {
                let wal = self.wal();
                let (follows, stuck_at) = (follows.clone(), *stuck_at);
                Server::Replica { follows, stuck_at, receives: wal.receives, position: wal.position }
            }
        }
    }

    /// Only a stopped member's data can change hands: somebody may move it away, bring it back, or mend what can't be used.
    async fn look_at_data(&mut self) {
        let data = self.midwife.data.clone();
        let fingerprint = tokio::task::spawn_blocking(move || data.fingerprint()).await.ok();
        if matches!(self.data, None | Some(Data::Unusable(_))) || fingerprint != self.fingerprint {
            self.data = Some(self.midwife.data.inspect(&self.midwife.programs, &self.midwife.processes).await);
            // From before it was looked at, so that no change falls in between. A move that was finished meanwhile is looked at again.
            self.fingerprint = fingerprint;
        }
    }
}
