//! What a member is told by its command line, its environment and its mounted files.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use super::arguments::{self, ServerArguments, UnknownCommand};
use super::mounts;
use super::place::Place;
use crate::election::lease_record::{HolderIdentity, LeaseTimings};
use crate::names;
use crate::set::RoleLabel;

/// The value of `--failover` by which replicas lead by themselves.
const AUTOMATIC: &str = "automatic";

/// The flags that the webhook writes into the container's command.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// The name of the `StatefulSet`.
    #[arg(long)]
    pub set: String,
    /// The Service to the master, which is also the value of a role label of the user's own.
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
    /// Whether a replica may be promoted: `automatic` or `manual`.
    #[arg(long, value_parser = [AUTOMATIC, "manual"])]
    pub failover: String,
    /// How many replicas must confirm a commit.
    #[arg(long, default_value_t = 0)]
    pub synchronous: u32,
    /// The shape of the injection. Not read: it is for the webhook, where an object has lost its record.
    #[arg(long)]
    pub revision: Option<String>,
    /// The Secret with the passwords.
    #[arg(long)]
    pub credentials: Option<String>,
    /// Where the data volume is mounted: no database is made or started elsewhere.
    #[arg(long)]
    pub data_volume: Option<PathBuf>,
    /// The data directory where the environment names none on the data volume.
    #[arg(long)]
    pub default_data_directory: Option<PathBuf>,
    /// Where the members have their directories on a volume that belongs to one of them.
    #[arg(long, requires = "in_place_member")]
    pub members_directory: Option<PathBuf>,
    /// The member whose data is where it was before the set was annotated.
    #[arg(long, requires = "members_directory")]
    pub in_place_member: Option<String>,
    /// The arguments of the image's own CMD, which count where the user wrote neither command nor arguments; may be repeated.
    #[arg(long = "image-argument")]
    pub image_arguments: Vec<String>,
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
    pub me: HolderIdentity,
    /// The set's database is this member's: it makes it, or brings it along.
    pub brings_database: bool,
    /// This member's address.
    pub address: String,
    /// PostgreSQL's port.
    pub port: u16,
    /// The role label.
    pub role_label: RoleLabel,
    /// The Lease's times.
    pub times: LeaseTimings,
    /// Whether a replica leads by itself when the master is gone.
    pub fails_over: bool,
    /// How many replicas must confirm a commit.
    pub synchronous: u32,
    /// The replication role.
    pub replication_user: String,
    /// The Secret with the passwords, as messages name it.
    pub credentials: String,
    /// Where the data is.
    pub place: Place,
    /// What the user asked of the server.
    pub server: ServerArguments,
    /// The user's own words: his command and arguments.
    pub argv: Vec<String>,
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
    pub fn new(mut flags: Flags) -> Result<Self, Error> {
        if flags.argv.is_empty() {
            flags.argv = std::mem::take(&mut flags.image_arguments);
        }
        let variable =
            |name: &'static str| env::var(name).ok().filter(|value| !value.is_empty()).ok_or(Error::Variable(name));
        let pod = variable(names::env::POD_NAME)?;
        let set = flags.set.clone();
        let ordinal =
            names::ordinal(&pod, &set).ok_or_else(|| Error::PodName { pod: pod.clone(), set: set.clone() })?;
        let server = arguments::parse(&flags.argv)?;
        let given = server
            .data_directory
            .clone()
            .or_else(|| env::var_os(names::env::PGDATA).filter(|path| !path.is_empty()).map(PathBuf::from));
        let place = Place::of(&flags, &pod, given, |directory, volume| mounts::check(directory, volume).is_ok())
            .ok_or(Error::NoDataDirectory)?;
        Ok(Self {
            namespace: variable(names::env::NAMESPACE)?,
            brings_database: flags
                .in_place_member
                .as_ref()
                .map_or(ordinal == flags.first_ordinal, |first| *first == pod),
            me: HolderIdentity { pod, uid: variable(names::env::POD_UID)? },
            address: variable(names::env::POD_IP)?,
            port: flags.port,
            role_label: if flags.role_label == names::label::ROLE {
                RoleLabel::new(&flags.role_label, &set)
            } else {
                RoleLabel { master: flags.master, ..RoleLabel::new(&flags.role_label, &set) }
            },
            times: LeaseTimings::of_seconds(flags.lease_seconds),
            fails_over: flags.failover == AUTOMATIC,
            synchronous: flags.synchronous,
            replication_user: variable(names::env::PG_MASTER_USER)
                .unwrap_or_else(|_| names::role::REPLICATION.to_owned()),
            // Without the flag, 0.1.0 injected the set.
            credentials: flags.credentials.unwrap_or_else(|| names::older_credentials(&set)),
            place,
            server,
            argv: flags.argv,
            set,
        })
    }
}

/// Where the agent keeps what dies with the pod: on the injected `emptyDir`.
#[must_use]
pub fn run_directory() -> PathBuf {
    Path::new(names::pod::RUN_PATH).join("run")
}

/// Where one of the Secret's keys is mounted.
#[must_use]
pub fn credential(key: &str) -> PathBuf {
    credentials_directory(Path::new(names::pod::ACCESS_PATH)).join(key)
}

/// A set that 0.1.0 injected has its passwords in a Secret of the older name. It may be somebody's own by chance, so it counts only if it
/// has all that a member needs.
fn credentials_directory(access: &Path) -> PathBuf {
    let older = access.join(names::pod::OLDER_CREDENTIALS);
    let is_whole =
        [names::credential::AGENT, names::credential::REPLICATION].iter().all(|key| older.join(key).is_file());
    if is_whole { older } else { access.to_owned() }
}

/// The keys that a member needs and the mounted Secret lacks. The superuser's is for making a database.
#[must_use]
pub fn missing_keys(makes_a_database: bool) -> Vec<&'static str> {
    missing_keys_in(Path::new(names::pod::ACCESS_PATH), makes_a_database, |name| {
        env::var_os(name).is_some_and(|value| !value.is_empty())
    })
}

fn missing_keys_in(access: &Path, makes_a_database: bool, is_set: impl Fn(&str) -> bool) -> Vec<&'static str> {
    use names::{credential, env};
    let directory = credentials_directory(access);
    let superuser = [env::POSTGRES_PASSWORD, "POSTGRES_PASSWORD_FILE", env::PG_ROOT_PASSWORD];
    let needed = [
        (credential::SUPERUSER, makes_a_database && !superuser.iter().any(|name| is_set(name))),
        (credential::REPLICATION, !is_set(env::PG_MASTER_PASSWORD)),
        (credential::AGENT, true),
    ];
    needed
        .into_iter()
        .filter(|(key, is_needed)| *is_needed && !directory.join(key).is_file())
        .map(|(key, _)| key)
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &Path, keys: &[&str]) {
        fs::create_dir_all(directory).unwrap();
        for key in keys {
            fs::write(directory.join(key), "secret").unwrap();
        }
    }

    #[test]
    fn the_older_secret_counts_only_where_it_is_whole() {
        let access = tempfile::tempdir().unwrap();
        let older = access.path().join("older");
        files(&older, &["postgres-password", "agent-password"]);
        assert_eq!(credentials_directory(access.path()), access.path(), "somebody's own Secret of that name");
        files(&older, &["replication-password"]);
        assert_eq!(credentials_directory(access.path()), older);
    }

    #[test]
    fn the_keys_that_are_missing_are_named_and_no_others() {
        let access = tempfile::tempdir().unwrap();
        let missing = |makes, set: &[&str]| missing_keys_in(access.path(), makes, |name| set.contains(&name));
        assert_eq!(missing(false, &[]), ["replication-password", "agent-password"]);
        assert_eq!(missing(true, &[]), ["postgres-password", "replication-password", "agent-password"]);
        assert_eq!(missing(true, &["POSTGRES_PASSWORD", "PG_MASTER_PASSWORD"]), ["agent-password"]);
        files(access.path(), &["postgres-password", "replication-password", "agent-password"]);
        assert_eq!(missing(true, &[]), Vec::<&str>::new());
    }
}
