//! The agent's conversation with its own PostgreSQL, over the local socket, as its own role.

mod replication;

use std::path::Path;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use super::leadership::WritePermit;
use crate::election::lease_record::Progress;
use crate::election::order::Streaming;
use crate::election::vote::Position;
use crate::election::{Lsn, SystemIdentifier, lineage};
use crate::names;

pub use self::replication::Walsender;

/// A healthy server answers the agent's small questions within milliseconds; one that doesn't is asked again.
const LIMIT: Duration = Duration::from_secs(2);
/// The database that the agent connects to. Not template1: a connection to it would keep CREATE DATABASE waiting.
pub const DATABASE: &str = "postgres";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server does not accept connections yet.
    #[error("the server does not accept connections yet")]
    Starting,
    /// The role is missing or has another password: a server can't be told apart from the answer.
    #[error("the role {} is missing or has another password", names::role::AGENT)]
    NoRole,
    /// The password of the agent's role is not there.
    #[error("the password of the role {} can't be read", names::role::AGENT)]
    Password(#[from] super::configuration::Error),
    /// Any other answer of the server.
    #[error("failed to {0}")]
    Failed(&'static str, #[source] tokio_postgres::Error),
    /// No answer.
    #[error("no answer within {LIMIT:?} when asked to {0}")]
    Silent(&'static str),
}

// === impl Error ===

impl Error {
    /// The server has refused a statement, and the connection is as good as before.
    #[must_use]
    pub fn is_an_answer(&self) -> bool {
        matches!(self, Self::Failed(_, why) if why.as_db_error().is_some())
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// A connection to the local server.
#[derive(Debug)]
pub struct Sql {
    client: Client,
    connection: JoinHandle<()>,
}

/// What a master says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MasterFacts {
    /// Which database cluster it is.
    pub system: SystemIdentifier,
    /// The timeline that it writes.
    pub timeline: u32,
    /// It does not accept writes: a standby.
    pub in_recovery: bool,
}

/// What a replica says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// It accepts writes: somebody promoted it.
    pub is_promoted: bool,
    /// The timeline that it receives, while it streams.
    pub streaming_timeline: Option<u32>,
    /// Bytes received and not yet replayed.
    pub replay_lag_bytes: i64,
    /// How far it has received the master's WAL, once it has asked for any since it started.
    pub received: Option<Lsn>,
    /// How far it has replayed; absent before it has begun.
    pub replayed: Option<Lsn>,
    /// It can get WAL from elsewhere.
    pub has_archive: bool,
    /// It has found no WAL, and waits for up to `wal_retrieve_retry_interval` before it looks again.
    pub pauses: bool,
}

// === impl ReplicaFacts ===

impl ReplicaFacts {
    /// How far it has come, if it does not stream and only the master can help it on. What is received and not replayed yet, perhaps by
    /// the user's `recovery_min_apply_delay`, it needs from nobody; and one that has not asked for WAL since it started still reads its own.
    #[must_use]
    pub fn stalled_lsn(&self) -> Option<Lsn> {
        self.received.filter(|_| self.streaming_timeline.is_none() && !self.has_archive)
    }
}

/// What a replica says of itself while the set has no master.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StandbyFacts {
    /// It is set to follow nobody.
    pub follows_nobody: bool,
    /// It may come by more: it follows somebody, or its receiver has not ended yet.
    pub receives: bool,
    /// The number of its receiver's process.
    pub receiver: Option<i32>,
    /// What it has on its disk; absent while it still reads WAL of its own.
    pub position: Option<Position>,
    /// The timeline that its promotion would begin.
    pub next_timeline: u32,
}

/// What a master says of the replicas that confirm its commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SynchronousFacts {
    /// `synchronous_standby_names` as it is now.
    pub names: String,
    /// It stands on the server's command line, where no `ALTER SYSTEM` changes it: the user's own.
    pub is_fixed: bool,
    /// So many replicas confirm commits now.
    pub confirming: u32,
}

/// A member's slot on the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Somebody streams from it.
    pub active: bool,
    /// The WAL that it kept is gone, and nobody can use it again.
    pub is_lost: bool,
}

/// The question how far a master has come.
const HOW_FAR: &str = "say how far it has come";

// === impl Sql ===

impl Sql {
    /// Connects over the socket in `directory`.
    pub async fn connect(directory: &Path, port: u16, password: &str) -> Result<Self> {
        const CONNECT: &str = "connect to the local server";
        let mut config = Config::new();
        config
            .host_path(directory)
            .port(port)
            .user(names::role::AGENT)
            .password(password)
            .dbname(DATABASE)
            .application_name("pgset-agent")
            .connect_timeout(LIMIT);
        let connected = timeout(LIMIT, config.connect(NoTls)).await.map_err(|_| Error::Silent(CONNECT))?;
        let (client, connection) = connected.map_err(|error| match error.code() {
            Some(code) if *code == SqlState::INVALID_PASSWORD => Error::NoRole,
            Some(code) if *code == SqlState::CANNOT_CONNECT_NOW => Error::Starting,
            _ => Error::Failed(CONNECT, error),
        })?;
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the local server ended");
            }
        });
        let sql = Self { client, connection };
        // Neither the log of statements nor a slow replica is any of the agent's business.
        sql.run("set up the session", "SET log_statement = 'none'; SET synchronous_commit = 'local'").await?;
        Ok(sql)
    }

    /// The connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    async fn run(&self, what: &'static str, statements: &str) -> Result<()> {
        timeout(LIMIT, self.client.batch_execute(statements))
            .await
            .map_err(|_| Error::Silent(what))?
            .map_err(|error| Error::Failed(what, error))
    }

    async fn rows(&self, what: &'static str, query: &str) -> Result<Vec<tokio_postgres::Row>> {
        timeout(LIMIT, self.client.query(query, &[]))
            .await
            .map_err(|_| Error::Silent(what))?
            .map_err(|error| Error::Failed(what, error))
    }

    /// What the server says of itself as a master.
    pub async fn master_facts(&self) -> Result<MasterFacts> {
        const WHAT: &str = "say which database it is";
        let recovery =
            self.rows(WHAT, "SELECT pg_is_in_recovery(), system_identifier FROM pg_control_system()").await?;
        let (in_recovery, system) = recovery.first().map_or((true, 0), |row| (row.get(0), row.get::<_, i64>(1)));
        let timeline = if in_recovery {
            0
        } else {
            let rows = self
                .rows(WHAT, "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int")
                .await?;
            rows.first().map_or(0, |row| row.get::<_, i32>(0))
        };
        Ok(MasterFacts {
            system: SystemIdentifier(u64::from_ne_bytes(system.to_ne_bytes())),
            timeline: u32::try_from(timeline).unwrap_or(0),
            in_recovery,
        })
    }

    /// From where on a master has its WAL.
    pub async fn oldest_wal(&self) -> Result<Option<Lsn>> {
        let rows = self
            .rows(
                "find its oldest WAL",
                "SELECT min(name COLLATE \"C\"), (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size') \
                 FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'",
            )
            .await?;
        Ok(rows
            .first()
            .and_then(|row| start_of_segment(row.get::<_, Option<&str>>(0)?, row.get::<_, Option<&str>>(1)?)))
    }

    /// What a master has on its disk.
    pub async fn flushed(&self) -> Result<Option<Lsn>> {
        let rows = self.rows(HOW_FAR, "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::int8").await?;
        Ok(rows.first().and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok()).map(Lsn))
    }

    /// How far a master has come. `begins` is asked for once: it never changes on a timeline.
    pub async fn progress(&self, timeline: u32, begins: Option<Lsn>) -> Result<Progress> {
        let flushed = self.flushed().await?;
        if begins.is_some() || timeline <= 1 {
            return Ok(Progress { begins, flushed });
        }
        let question = format!(
            "SELECT pg_read_file({}, 0, 1048576, true)",
            literal(&format!("pg_wal/{}", lineage::history_file(timeline)))
        );
        let rows = self.rows(HOW_FAR, &question).await?;
        let history = rows.first().and_then(|row| row.get::<_, Option<String>>(0)).unwrap_or_default();
        Ok(Progress { begins: lineage::branches(&history).last().map(|branch| branch.left_at), flushed })
    }

    /// What the server says of itself as a replica.
    pub async fn replica_facts(&self) -> Result<ReplicaFacts> {
        let rows = self
            .rows(
                "say what it receives",
                "SELECT (SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'), \
                        coalesce(pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), 0)::int8, \
                        pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::int8, current_setting('restore_command') <> '', \
                        NOT pg_is_in_recovery(), \
                        EXISTS (SELECT FROM pg_stat_activity \
                                WHERE backend_type = 'startup' AND wait_event = 'RecoveryRetrieveRetryInterval'), \
                        pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::int8",
            )
            .await?;
        Ok(rows.first().map_or_else(ReplicaFacts::default, |row| ReplicaFacts {
            streaming_timeline: row.get::<_, Option<i32>>(0).and_then(|timeline| u32::try_from(timeline).ok()),
            replay_lag_bytes: row.get(1),
            received: row.get::<_, Option<i64>>(2).and_then(|at| u64::try_from(at).ok()).map(Lsn),
            has_archive: row.get(3),
            is_promoted: row.get(4),
            pauses: row.get(5),
            replayed: row.get::<_, Option<i64>>(6).and_then(|at| u64::try_from(at).ok()).map(Lsn),
        }))
    }

    /// What a replica has, and whether it can still come by more.
    ///
    /// What was received since its start is on its disk. One that has received nothing has read all of its own WAL once its recovery
    /// waits for more to appear. The timeline is the one of its newest WAL file: the control file learns of it later.
    pub async fn standby_facts(&self) -> Result<StandbyFacts> {
        let rows = self
            .rows(
                "say what it has",
                "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::int8, pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::int8, \
                        (SELECT max(('x' || substr(name, 1, 8))::bit(32)::int) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'), \
                        (SELECT max(('x' || substr(name, 1, 8))::bit(32)::int) FROM pg_ls_dir('pg_wal') name WHERE name ~ '^[0-9A-F]{8}[.]history$'), \
                        current_setting('primary_conninfo') = '', \
                        (SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver' LIMIT 1), \
                        EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event IN \
                                ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream'))",
            )
            .await?;
        let Some(row) = rows.first() else { return Ok(StandbyFacts::default()) };
        let position = |at: Option<i64>| at.and_then(|at| u64::try_from(at).ok()).map(Lsn);
        let number = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        let (received, replayed) = (position(row.get(0)), position(row.get(1)));
        let (timeline, history) = (number(row.get(2)), number(row.get(3)));
        let (follows_nobody, process, has_read_all): (bool, Option<i32>, bool) = (row.get(4), row.get(5), row.get(6));
        let at = received.max(replayed).filter(|_| received.is_some() || has_read_all);
        Ok(StandbyFacts {
            follows_nobody,
            receives: !follows_nobody || process.is_some(),
            receiver: process,
            position: at.filter(|_| timeline > 0).map(|at| Position { timeline, at }),
            next_timeline: timeline.max(history).saturating_add(1),
        })
    }

    /// The members that stream from this one, whoever has most first.
    pub async fn streaming(&self) -> Result<Vec<Streaming>> {
        let rows = self
            .rows(
                "say who streams from it",
                "SELECT application_name, \
                        greatest(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), coalesce(flush_lsn, '0/0')), 0)::int8 \
                 FROM pg_stat_replication WHERE state = 'streaming' ORDER BY flush_lsn DESC NULLS LAST, application_name",
            )
            .await?;
        let replica = |row: &tokio_postgres::Row| Streaming {
            pod: row.get(0),
            behind: u64::try_from(row.get::<_, i64>(1)).unwrap_or(0),
        };
        Ok(rows.iter().map(replica).collect())
    }

    /// Writes all that is in memory to the data files. It takes as long as it takes.
    pub async fn checkpoint(&self) -> Result<()> {
        self.client.batch_execute("CHECKPOINT").await.map_err(|error| Error::Failed("make a checkpoint", error))
    }

    /// Ends recovery: the server accepts writes soon after, on a timeline of its own.
    pub async fn promote(&self, _permit: &WritePermit) -> Result<()> {
        self.run("promote itself", "SELECT pg_promote(false)").await
    }

    /// Makes the replication role, or gives it the password of today.
    pub async fn ensure_replication_role(&self, user: &str, password: &str) -> Result<()> {
        const WHAT: &str = "make the replication role";
        let found = self.rows(WHAT, &format!("SELECT 1 FROM pg_roles WHERE rolname = {}", literal(user))).await?;
        if found.is_empty() {
            self.run(WHAT, &format!("CREATE ROLE {}", identifier(user))).await?;
        }
        self.run(WHAT, &replication_role(user, password)).await?;
        self.run(WHAT, &leave_to_rewind(user)).await
    }

    /// The members' slots.
    pub async fn slots(&self) -> Result<Vec<Slot>> {
        let rows = self
            .rows(
                "list its replication slots",
                // invalidation_reason is there since PostgreSQL 17.
                "SELECT slot_name::text, active, \
                        coalesce(wal_status = 'lost' OR to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL, false) \
                 FROM pg_replication_slots s WHERE slot_type = 'physical' AND slot_name LIKE 'pgset\\_%'",
            )
            .await?;
        Ok(rows.iter().map(|row| Slot { name: row.get(0), active: row.get(1), is_lost: row.get(2) }).collect())
    }

    /// Makes a member's slot, with its WAL kept from now on. The member itself may be quicker, just before it clones.
    pub async fn create_slot(&self, name: &str) -> Result<()> {
        let statement = format!("SELECT pg_create_physical_replication_slot({}, true)", literal(name));
        match self.run("make a replication slot", &statement).await {
            Err(Error::Failed(_, why)) if why.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(()),
            outcome => outcome,
        }
    }

    /// Drops a slot that no member needs.
    pub async fn drop_slot(&self, name: &str) -> Result<()> {
        self.run("drop a replication slot", &format!("SELECT pg_drop_replication_slot({})", literal(name))).await
    }

    /// Which replicas confirm commits, and how many of them do.
    pub async fn synchronous_facts(&self) -> Result<SynchronousFacts> {
        let rows = self
            .rows(
                "say which replicas confirm commits",
                "SELECT setting, source = 'command line', \
                        (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')) \
                 FROM pg_settings WHERE name = 'synchronous_standby_names'",
            )
            .await?;
        let row = rows.first();
        Ok(SynchronousFacts {
            names: row.map(|row| row.get(0)).unwrap_or_default(),
            is_fixed: row.is_some_and(|row| row.get(1)),
            confirming: row.and_then(|row| u32::try_from(row.get::<_, i64>(2)).ok()).unwrap_or(0),
        })
    }

    /// Whether the server's checkpointer is where it takes a change of the setting at once. It alone tells all sessions whether commits wait, and
    /// it may be busy with a checkpoint for long.
    pub async fn commits_wait_as_set(&self) -> Result<bool> {
        let rows = self
            .rows(
                "say whether its checkpointer is idle",
                "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'checkpointer' \
                 AND wait_event IN ('CheckpointerMain', 'CheckpointWriteDelay')",
            )
            .await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// Changes `synchronous_standby_names`, from the next reload on.
    pub async fn set_synchronous_names(&self, value: &str) -> Result<()> {
        let statement = format!("ALTER SYSTEM SET synchronous_standby_names = {}", literal(value));
        self.run("set synchronous_standby_names", &statement).await
    }
}

impl Drop for Sql {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The position at which a WAL file begins: its name is the timeline and two halves of a number, eight hexadecimal digits each.
#[must_use]
pub fn start_of_segment(name: &str, segment_size: &str) -> Option<Lsn> {
    let size: u64 = segment_size.parse().ok().filter(|size| *size > 0)?;
    let high = u64::from_str_radix(name.get(8..16)?, 16).ok()?;
    let low = u64::from_str_radix(name.get(16..24)?, 16).ok()?;
    high.checked_mul(1 << 32)?.checked_add(low.checked_mul(size)?).map(Lsn)
}

/// Statements for single-user mode, a line each, that make the agent's role. What the server sees is a verifier, not the password.
#[must_use]
pub fn agent_role(password: &str) -> String {
    let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
    let role = names::role::AGENT;
    format!(
        "DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN CREATE ROLE {role}; END IF; END $do$;\n\
         ALTER ROLE {role} SUPERUSER LOGIN PASSWORD {};\n",
        literal(&verifier)
    )
}

/// Statements for single-user mode, a line each, that make what `run-postgresql` of Red Hat's images makes by its variables: a user with his
/// password, his database, and the superuser's password.
#[must_use]
pub fn red_hats_database(
    user: Option<(String, String)>,
    database: Option<String>,
    superuser_password: Option<String>,
) -> String {
    let verifier = |password: &str| literal(&postgres_protocol::password::scram_sha_256(password.as_bytes()));
    let mut statements = Vec::new();
    if let Some(password) = superuser_password {
        statements.push(format!("ALTER ROLE postgres PASSWORD {};\n", verifier(&password)));
    }
    if let Some((user, password)) = user {
        statements.push(format!("CREATE ROLE {} LOGIN PASSWORD {};\n", identifier(&user), verifier(&password)));
        if let Some(database) = database {
            statements.push(format!("CREATE DATABASE {} OWNER {};\n", identifier(&database), identifier(&user)));
        }
    }
    statements.concat()
}

fn replication_role(user: &str, password: &str) -> String {
    let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
    format!("ALTER ROLE {} LOGIN REPLICATION PASSWORD {}", identifier(user), literal(&verifier))
}

/// What `pg_rewind` does on the master of a member that comes back, without being a superuser; as PostgreSQL's documentation has it. It reads
/// the data directory's files and no others. And a replica's base backup needs the segment that it ends with.
fn leave_to_rewind(user: &str) -> String {
    let user = identifier(user);
    let functions = [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
        "pg_switch_wal()",
    ]
    .map(|function| format!("pg_catalog.{function}"))
    .join(", ");
    format!("GRANT EXECUTE ON FUNCTION {functions} TO {user}; GRANT CONNECT ON DATABASE {DATABASE} TO {user}")
}

fn literal(text: &str) -> String {
    let escaped = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", escaped.replace('\\', "\\\\")) } else { format!("'{escaped}'") }
}

fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn red_hats_variables_make_a_user_his_database_and_the_superusers_password() {
        let user = Some(("app".to_owned(), "secret".to_owned()));
        let made = red_hats_database(user.clone(), Some("rows".to_owned()), Some("root".to_owned()));
        let lines: Vec<&str> = made.lines().collect();
        assert!(lines[0].starts_with("ALTER ROLE postgres PASSWORD 'SCRAM-SHA-256$"));
        assert!(lines[1].starts_with("CREATE ROLE \"app\" LOGIN PASSWORD 'SCRAM-SHA-256$"));
        assert_eq!(lines[2], "CREATE DATABASE \"rows\" OWNER \"app\";");
        assert!(!made.contains("secret"), "the server sees a verifier");
        assert_eq!(red_hats_database(None, Some("rows".to_owned()), None), "");
        assert_eq!(red_hats_database(user, None, None).lines().count(), 1);
    }

    #[test]
    fn no_statement_holds_a_password() {
        for statements in [agent_role("very secret"), replication_role("r", "very secret")] {
            assert!(!statements.contains("very secret"));
            assert!(statements.contains("SCRAM-SHA-256$4096:"));
        }
    }

    #[test]
    fn a_wal_file_begins_where_its_name_says() {
        assert_eq!(start_of_segment("000000010000000000000005", "16777216"), Some(Lsn(5 << 24)));
        assert_eq!(start_of_segment("000000020000000A000000FF", "16777216"), Some(Lsn((0xA << 32) + (0xFF << 24))));
        assert_eq!(start_of_segment("short", "16777216"), None);
    }

    #[test]
    fn a_replica_is_stuck_where_its_reception_ended_if_only_the_master_has_more() {
        let stuck = ReplicaFacts { received: Some(Lsn(9)), ..ReplicaFacts::default() };
        assert_eq!(stuck.stalled_lsn(), Some(Lsn(9)), "however far behind a delay keeps what it replays");
        assert_eq!(
            ReplicaFacts { received: None, ..stuck.clone() }.stalled_lsn(),
            None,
            "it still reads WAL of its own"
        );
        assert_eq!(ReplicaFacts { has_archive: true, ..stuck.clone() }.stalled_lsn(), None);
        assert_eq!(ReplicaFacts { streaming_timeline: Some(1), ..stuck }.stalled_lsn(), None);
    }

    #[test]
    fn quotes_in_names_stay_inside_the_name() {
        assert_eq!(literal("o'b\\c"), r"E'o''b\\c'");
        assert_eq!(identifier(r#"a"b"#), r#""a""b""#);
    }
}
