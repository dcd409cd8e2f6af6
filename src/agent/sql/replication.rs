//! Who is connected to a master to receive its WAL.

use std::time::Duration;

use super::{Result, Sql};
use crate::election::Lsn;

/// A connection that receives WAL, or a base backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walsender {
    /// `application_name`.
    pub name: String,
    /// `startup`, `catchup`, `streaming`, `backup` or `stopping`.
    pub state: String,
    /// What the other side has on its disk.
    pub flushed: Option<Lsn>,
    /// What it has replayed.
    pub replayed: Option<Lsn>,
    /// Its confirmations of commits count.
    pub synchronous: bool,
    /// How much later a commit was seen there, as it was last measured; absent while nothing is written.
    pub lag: Option<Duration>,
    /// It has replayed all that the master has written.
    pub is_abreast: bool,
}

// === impl Sql ===

impl Sql {
    /// Who is connected to receive WAL.
    pub async fn walsenders(&self) -> Result<Vec<Walsender>> {
        let rows = self
            .rows(
                "list who receives its WAL",
                "SELECT coalesce(application_name, ''), coalesce(state, ''), \
                        pg_wal_lsn_diff(flush_lsn, '0/0')::int8, pg_wal_lsn_diff(replay_lsn, '0/0')::int8, \
                        coalesce(sync_state IN ('sync', 'quorum'), false), (extract(epoch FROM replay_lag) * 1000)::int8, \
                        coalesce(replay_lsn >= pg_current_wal_flush_lsn(), false) \
                 FROM pg_stat_replication",
            )
            .await?;
        let natural = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
        Ok(rows
            .iter()
            .map(|row| Walsender {
                name: row.get(0),
                state: row.get(1),
                flushed: natural(row.get(2)).map(Lsn),
                replayed: natural(row.get(3)).map(Lsn),
                synchronous: row.get(4),
                lag: natural(row.get(5)).map(Duration::from_millis),
                is_abreast: row.get(6),
            })
            .collect())
    }
}
