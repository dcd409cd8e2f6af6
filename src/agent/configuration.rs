//! What a member is told by its command line, its environment and its mounted files.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use super::arguments::{self, ServerArguments, UnknownCommand};
use crate::election::claim::{Candidate, Times};
use crate::names;
use crate::set::RoleLabel;

/// The flags that the webhook writes into the container's command.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// The name of the `StatefulSet`.
    #[arg(long)]
    pub set: String,
    /// The Service to the master.
    #[arg(long)]
    pub master: String,
    /// The key of the role label.
    #[arg(long)]
    pub role_label: String,
    /// PostgreSQL's port.
    #[arg(long)]
    pub port: u16,
    /// The ordinal of the member that makes the database.
    #[arg(long)]
    pub first_ordinal: u32,
    /// For how many seconds the master's Lease is good.
    #[arg(long, value_parser = clap::value_parser!(u32).range(4..=60))]
    pub lease_seconds: u32,
    /// Whether a replica may be promoted: `automatic` or `manual`. This version promotes none.
    #[arg(long, value_parser = ["automatic", "manual"])]
    pub failover: String,
    /// How many replicas must confirm a commit.
    #[arg(long, default_value_t = 0)]
    pub synchronous: u32,
    /// The user's own command and arguments.
    #[arg(last = true)]
    pub argv: Vec<String>,
}

/// Why a member can't start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A variable of the injection is missing.
    #[error("the variable {0} is not set: the container was changed after the injection, or is not a member of a set")]
    Variable(&'static str),
    /// The pod's name is not one of the set's.
    #[error("the pod's name {pod:?} is not {set:?} and an ordinal")]
    PodName {
        /// The pod.
        pod: String,
        /// The set.
        set: String,
    },
    /// No data directory.
    #[error("PGDATA is not set by the image nor by the container: set it to a directory on the data volume")]
    NoDataDirectory,
    /// The command is not PostgreSQL's.
    #[error(transparent)]
    Command(#[from] UnknownCommand),
    /// A password's file.
    #[error("failed to read the password in {}: is it a key of the set's Secret?", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Everything that a member knows before it looks around.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The set's name.
    pub set: String,
    /// Its namespace.
    pub namespace: String,
    /// This member.
    pub me: Candidate,
    /// This member's ordinal.
    pub ordinal: u32,
    /// The ordinal of the member that makes the database.
    pub first_ordinal: u32,
    /// This member's address.
    pub address: String,
    /// PostgreSQL's port.
    pub port: u16,
    /// The role label.
    pub role_label: RoleLabel,
    /// The Lease's times.
    pub times: Times,
    /// How many replicas must confirm a commit.
    pub synchronous: u32,
    /// The replication role.
    pub replication_user: String,
    /// The data directory.
    pub data_directory: PathBuf,
    /// What the user asked of the server.
    pub server: ServerArguments,
}

/// The passwords, read anew whenever they are needed: the kubelet follows changes of the Secret.
#[derive(Clone)]
pub struct Passwords {
    /// Of the agent's own role.
    pub agent: String,
    /// Of the replication role.
    pub replication: String,
}

// === impl Configuration ===

impl Configuration {
    /// From the flags and the environment.
    pub fn new(flags: Flags) -> Result<Self, Error> {
        let Flags { set, master: _, role_label, port, first_ordinal, lease_seconds, failover: _, synchronous, argv } =
            flags;
        let variable =
            |name: &'static str| env::var(name).ok().filter(|value| !value.is_empty()).ok_or(Error::Variable(name));
        let pod = variable(names::env::POD_NAME)?;
        let ordinal = ordinal(&pod, &set).ok_or_else(|| Error::PodName { pod: pod.clone(), set: set.clone() })?;
        let server = arguments::parse(&argv)?;
        let data_directory = server
            .data_directory
            .clone()
            .or_else(|| env::var_os(names::env::PGDATA).filter(|path| !path.is_empty()).map(PathBuf::from))
            .ok_or(Error::NoDataDirectory)?;
        Ok(Self {
            namespace: variable(names::env::NAMESPACE)?,
            me: Candidate { pod, uid: variable(names::env::POD_UID)? },
            ordinal,
            first_ordinal,
            address: variable(names::env::POD_IP)?,
            port,
            role_label: RoleLabel::new(&role_label, &set),
            times: Times::of_seconds(lease_seconds),
            synchronous,
            replication_user: variable(names::env::PG_MASTER_USER)
                .unwrap_or_else(|_| names::role::REPLICATION.to_owned()),
            data_directory,
            server,
            set,
        })
    }
}

/// Where the agent keeps what dies with the pod: on the injected `emptyDir`.
#[must_use]
pub fn run_directory() -> PathBuf {
    Path::new(names::pod::RUN_PATH).join("run")
}

/// Where the Secret's keys are mounted.
#[must_use]
pub fn credential(key: &str) -> PathBuf {
    Path::new(names::pod::ACCESS_PATH).join(key)
}

impl Passwords {
    /// From the mounted Secret; a replication password that the user wrote into the environment goes first.
    pub fn read() -> Result<Self, Error> {
        let read = |key: &str| {
            let path = credential(key);
            fs::read_to_string(&path)
                .map(|text| text.trim_end_matches('\n').to_owned())
                .map_err(|source| Error::Password { path, source })
        };
        let written = env::var(names::env::PG_MASTER_PASSWORD).ok().filter(|password| !password.is_empty());
        Ok(Self {
            agent: read(names::credential::AGENT)?,
            replication: written.map_or_else(|| read(names::credential::REPLICATION), Ok)?,
        })
    }
}

/// The number at the end of a member's name: the set's own name may hold dashes and digits.
fn ordinal(pod: &str, set: &str) -> Option<u32> {
    pod.strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinal_is_read_behind_a_name_with_dashes_and_digits() {
        assert_eq!(ordinal("my-db-0", "my-db"), Some(0));
        assert_eq!(ordinal("db-2-17", "db-2"), Some(17));
        assert_eq!(ordinal("db-2", "db-2"), None);
        assert_eq!(ordinal("other-0", "db"), None);
    }
}
