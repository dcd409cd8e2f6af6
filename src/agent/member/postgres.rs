//! What a member's PostgreSQL does, with what belongs to it.

use std::time::SystemTime;

use tokio::task::JoinHandle;

use crate::agent::configuration::{Configuration, Passwords};
use crate::agent::provisioner;
use crate::agent::rewind::Outcome;
use crate::agent::server::{self, Server};
use crate::agent::sql::{self, Sql};
use crate::election::{Lsn, Master};
use crate::errors::with_causes;

/// What this member's PostgreSQL does, with what belongs to it.
#[expect(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub(super) enum Postgres {
    Stopped,
    Bootstrapping(Task),
    Cloning { from: Master, task: Task },
    Rewinding { from: Master, task: JoinHandle<Result<Outcome, provisioner::Error>> },
    Running(Running),
}

pub(super) type Task = JoinHandle<Result<(), provisioner::Error>>;

pub(super) struct Running {
    pub(super) server: Server,
    pub(super) sql: Option<Sql>,
    pub(super) role: Role,
    pub(super) access_rules_at: Option<SystemTime>,
}

pub(super) enum Role {
    Master {
        announced: Option<Master>,
    },
    Replica {
        /// Absent while it follows nobody.
        follows: Option<Master>,
        stalled_lsn: Option<Lsn>,
    },
    /// It was started as a replica and accepts writes by somebody else's order.
    Promoted,
}

impl Role {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Master { .. } => "master",
            Self::Replica { .. } => "replica",
            Self::Promoted => "none",
        }
    }
}

/// What ended by itself, and how.
pub(super) enum Ended {
    Server(std::process::ExitStatus),
    Bootstrap(Result<(), String>),
    Clone(Result<(), String>),
    Rewind(Master, Result<Outcome, String>),
}

impl Postgres {
    /// Something of this member's may write, or is about to.
    pub(super) fn may_write(&self) -> bool {
        match self {
            Self::Bootstrapping(_) => true,
            Self::Running(running) => matches!(running.role, Role::Master { .. } | Role::Promoted),
            Self::Stopped | Self::Cloning { .. } | Self::Rewinding { .. } => false,
        }
    }

    /// Completes when what runs has ended. Cancel-safe.
    pub(super) async fn ended(&mut self) -> Ended {
        match self {
            Self::Stopped => std::future::pending().await,
            Self::Bootstrapping(task) => Ended::Bootstrap(outcome(task).await),
            Self::Cloning { task, .. } => Ended::Clone(outcome(task).await),
            Self::Rewinding { from, task } => {
                let outcome = outcome(task).await;
                Ended::Rewind(from.clone(), outcome)
            }
            Self::Running(running) => match running.server.ended().await {
                Ok(status) => Ended::Server(status),
                Err(_) => std::future::pending().await,
            },
        }
    }
}

async fn outcome<T>(task: &mut JoinHandle<Result<T, provisioner::Error>>) -> Result<T, String> {
    match task.await {
        Ok(result) => result.map_err(|why| with_causes(&why)),
        Err(why) => Err(why.to_string()),
    }
}

// === impl Running ===

impl Running {
    pub(super) async fn connect(&mut self, port: u16) -> Result<(), sql::Error> {
        if self.sql.as_ref().is_some_and(|sql| !sql.is_closed()) {
            return Ok(());
        }
        self.sql = None;
        if !self.server.accepts_connections() {
            return Err(sql::Error::Starting);
        }
        let passwords = Passwords::read()?;
        self.sql = Some(Sql::connect(&self.server.settings.socket_directory, port, &passwords.agent).await?);
        Ok(())
    }

    /// The user edits his `pg_hba.conf` as ever; the file that PostgreSQL reads is ours with a copy of his.
    pub(super) fn sync_pg_hba(&mut self, configuration: &Configuration) -> Result<(), server::Error> {
        let changed_at = self.server.settings.access_rules_changed_at();
        if changed_at == self.access_rules_at {
            return Ok(());
        }
        self.access_rules_at = changed_at;
        if self.server.settings.write_access_rules(&configuration.replication_user)? {
            self.server.reload();
        }
        Ok(())
    }
}
