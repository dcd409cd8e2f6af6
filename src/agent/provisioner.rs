//! How a member comes to its data: a new database cluster, or a clone of the master's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio_postgres::error::SqlState;
use tracing::info;

use super::binaries::{self, Binaries};
use super::configuration::{self, Configuration, Passwords, run_directory};
use super::data::{self, DataDirectory, Origin};
use super::processes::Processes;
use super::rewind::{Outcome, Rewind};
use super::settings::Authentication;
use super::slots::Members;
use super::{nss_wrapper, postgres_shim, postmasters, recovery, server, settings, sql, synchronous};
use crate::election::lineage::Database;
use crate::election::vote::Quorum;
use crate::election::{DataState, Master};
use crate::names;

/// What a member needs to get its data.
#[derive(Clone, Debug)]
pub struct Provisioner {
    /// The member's configuration.
    pub configuration: Configuration,
    /// The image's programs.
    pub binaries: Binaries,
    /// All child processes.
    pub processes: Processes,
    /// The data directory.
    pub data: DataDirectory,
    /// How the image's libpq proves that it knows a password.
    pub authentication: Authentication,
}

/// What single-user mode is told besides the user's arguments: the password's verifier stays out of the log, and no replica can confirm
/// anything.
pub(super) const SINGLE_USER_SETTINGS: [&str; 4] =
    ["log_statement=none", "log_min_duration_statement=-1", "log_checkpoints=off", "synchronous_commit=local"];

/// Why the data was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory.
    #[error(transparent)]
    DataState(#[from] data::Error),
    /// A password is missing.
    #[error(transparent)]
    Configuration(#[from] configuration::Error),
    /// A program could not be run.
    #[error("failed to run {program}")]
    Run {
        /// Which one.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A program failed; what it printed stands in the log above.
    #[error("{program} failed: {reason}")]
    Failed {
        /// Which one.
        program: &'static str,
        /// Its last words, or its exit status.
        reason: String,
    },
    /// The master is not what a former master can come back to, yet.
    #[error("{pod} {why}")]
    NotYet {
        /// The master.
        pod: String,
        /// What it has to do first.
        why: String,
    },
    /// The data that is to be rewound is not what it was.
    #[error("the data that was to be rewound has changed meanwhile")]
    DataChanged,
    /// A database that is restored.
    #[error(transparent)]
    Recovery(#[from] recovery::Error),
    /// What is left of an earlier server.
    #[error(transparent)]
    Stuck(#[from] postmasters::Stuck),
    /// A file of the agent's own.
    #[error("failed to write {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

type Result<T, E = Error> = std::result::Result<T, E>;

// === impl Provisioner ===

impl Provisioner {
    /// Makes a new database cluster by the image's own entry point, so that its variables and scripts keep their meaning, or by
    /// `initdb` where the image has none. It appears in its place only when it is complete.
    pub async fn bootstrap(self) -> Result<()> {
        let staging = self.data.new_staging()?;
        if let Some(command) = self.binaries.entry_point() {
            self.run_entry_point(command, &staging).await?;
        } else {
            self.initialize(&staging).await?;
            self.make_red_hats_database(&staging).await?;
        }
        self.make_agent_role(&staging).await?;
        self.data.install(Origin::Bootstrap)?;
        info!("the new database is complete");
        Ok(())
    }

    async fn run_entry_point(&self, mut command: tokio::process::Command, staging: &Path) -> Result<()> {
        let binaries = run_directory().join("bin");
        let write = |source| Error::Write { path: binaries.clone(), source };
        fs::create_dir_all(&binaries).map_err(write)?;
        let link = binaries.join(postgres_shim::NAME);
        let agent = std::env::current_exe().map_err(write)?;
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(agent, &link).map_err(write)?;

        command.arg("postgres").args(&self.configuration.server.others);
        command.args(["-c", &server::data_directory(staging)]);
        // The article's PGHOST=/tmp would send the entry point's psql, and the user's scripts, past this image's server.
        command.env_remove("PGHOST").env_remove("PGHOSTADDR");
        command.env(names::env::PGDATA, staging).env("PATH", self.binaries.path_behind(&binaries));
        command.env(postgres_shim::REAL, self.binaries.path(postgres_shim::NAME)).stdin(Stdio::null());
        if ["POSTGRES_PASSWORD", "POSTGRES_PASSWORD_FILE"]
            .iter()
            .all(|name| std::env::var_os(name).is_none_or(|value| value.is_empty()))
        {
            match std::env::var(names::env::PG_ROOT_PASSWORD) {
                Ok(password) if !password.is_empty() => command.env("POSTGRES_PASSWORD", password),
                _ => command.env("POSTGRES_PASSWORD_FILE", configuration::credential(names::credential::SUPERUSER)),
            };
        }
        info!("making a new database by the image's entry point");
        let mut process = self
            .processes
            .start(&mut command)
            .map_err(|source| Error::Run { program: "docker-entrypoint.sh", source })?;
        let status = process.wait().await.map_err(|source| Error::Run { program: "docker-entrypoint.sh", source })?;
        if status.success() {
            Ok(())
        } else {
            Err(Error::Failed { program: "docker-entrypoint.sh", reason: status.to_string() })
        }
    }

    async fn initialize(&self, staging: &Path) -> Result<()> {
        info!("making a new database by initdb: the image has no docker-entrypoint.sh");
        let mut command = self.binaries.command("initdb");
        nss_wrapper::lend(&mut command).map_err(|source| Error::Run { program: "initdb", source })?;
        command.arg("-D").arg(staging).args(["--username=postgres", "--encoding=UTF8", "--data-checksums"]);
        command.args(["--auth-local=trust", "--auth-host=scram-sha-256"]);
        command.arg(format!("--pwfile={}", configuration::credential(names::credential::SUPERUSER).display()));
        self.run("initdb", &mut command).await?;
        let path = staging.join("pg_hba.conf");
        let write = |source| Error::Write { path: path.clone(), source };
        let rules = fs::read_to_string(&path).map_err(write)?;
        settings::write(&path, &(rules + "host all all all scram-sha-256\n")).map_err(write)?;
        Ok(())
    }

    /// What `run-postgresql` of Red Hat's images makes of a new database by its variables.
    async fn make_red_hats_database(&self, staging: &Path) -> Result<()> {
        let Some(file) = red_hats_settings() else { return Ok(()) };
        let path = staging.join("postgresql.conf");
        let write = |source| Error::Write { path: path.clone(), source };
        let own = fs::read_to_string(&path).map_err(write)?;
        settings::write(&path, &format!("{own}include '{}'\n", file.display())).map_err(write)?;
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let statements = sql::red_hats_database(
            variable("POSTGRESQL_USER").zip(variable("POSTGRESQL_PASSWORD")),
            variable("POSTGRESQL_DATABASE"),
            variable("POSTGRESQL_ADMIN_PASSWORD"),
        );
        self.single_user(staging, &statements, &[]).await
    }

    /// Makes the agent's role in single-user mode: before anybody can connect, and whoever the superuser is.
    pub async fn make_agent_role(&self, directory: &Path) -> Result<()> {
        self.make_agent_role_with(directory, &[]).await
    }

    /// The same with settings of one's own.
    pub async fn make_agent_role_with(&self, directory: &Path, settings: &[&str]) -> Result<()> {
        self.single_user(directory, &sql::agent_role(&Passwords::read()?.agent), settings).await
    }

    async fn single_user(&self, directory: &Path, statements: &str, settings: &[&str]) -> Result<()> {
        let mut command = self.binaries.command("postgres");
        nss_wrapper::lend(&mut command).map_err(|source| Error::Run { program: "postgres --single", source })?;
        command.arg("--single").arg("-D").arg(directory).args(&self.configuration.server.others);
        command.args(["-c", &server::data_directory(directory)]);
        let settings = SINGLE_USER_SETTINGS.iter().chain(settings);
        command.args(settings.flat_map(|setting| ["-c", setting])).arg("template1");
        let output = self
            .processes
            .output_of_input(&mut command, statements)
            .await
            .map_err(|source| Error::Run { program: "postgres --single", source })?;
        // Single-user mode ends well even if a statement failed; its complaints are on standard error.
        let complaint =
            String::from_utf8_lossy(&output.stderr).lines().find(|line| line.contains("ERROR:")).map(str::to_owned);
        match complaint {
            Some(reason) => Err(Error::Failed { program: "postgres --single", reason }),
            None => succeeded("postgres --single", &output),
        }
    }

    /// Copies the master's data. It appears in its place only when it is complete, with this member's own way to follow the master.
    pub async fn clone_from(self, master: Master) -> Result<()> {
        let staging = self.data.new_staging()?;
        let connection = self.connection(&master, &names::clone_application(&self.configuration.me.pod))?;
        let slot = names::slot(&self.configuration.me.pod);

        reserve_slot(&self.binaries, &self.processes, &connection, &slot).await?;

        info!(master = %master.pod, "cloning the master's data");
        let started = std::time::Instant::now();
        let mut command = self.binaries.command("pg_basebackup");
        // A fast checkpoint: a spread one keeps a new member waiting for minutes behind a bulk load.
        command.args([
            "--no-password",
            "--checkpoint=fast",
            "--wal-method=stream",
            "--slot",
            &slot,
            "-d",
            &connection,
            "-D",
        ]);
        command.arg(&staging);
        self.run("pg_basebackup", &mut command).await?;

        write_following(&staging, &self.connection(&master, &self.configuration.me.pod)?, &slot)?;
        let signal = staging.join("standby.signal");
        fs::File::create(&signal).map_err(|source| Error::Write { path: signal, source })?;
        self.data.install(Origin::Clone(master.system))?;
        self.data.remove_released();
        info!(seconds = started.elapsed().as_secs_f32(), "cloned");
        Ok(())
    }

    /// Lets a former master's data go on from a master's.
    pub async fn rewind(self, master: Master) -> Result<Outcome> {
        let me = &self.configuration.me.pod;
        let rewind = Rewind {
            binaries: &self.binaries,
            processes: &self.processes,
            data: &self.data,
            arguments: &self.configuration.server.others,
            master: &master,
            source: self.connection(&master, &names::clone_application(me))?,
            following: self.connection(&master, me)?,
            slot: names::slot(me),
        };
        rewind.perform().await
    }

    /// Prepares the data directory of a stopped server to be a standby of a master.
    pub fn prepare_to_follow(&self, master: &Master) -> Result<()> {
        self.write_master(master)?;
        Ok(self.data.mark_standby()?)
    }

    /// Writes whom to follow into the data directory. A running standby takes it at its next reload, also before it accepts
    /// connections.
    pub fn write_master(&self, master: &Master) -> Result<()> {
        let me = &self.configuration.me.pod;
        write_following(self.data.path(), &self.connection(master, me)?, &names::slot(me))
    }

    /// Makes a standby follow nobody, from its next reload on.
    pub fn write_no_master(&self) -> Result<()> {
        let me = &self.configuration.me.pod;
        write_following(self.data.path(), "", &names::slot(me))
    }

    /// Prepares the data directory of a stopped server to be a standby that follows nobody.
    pub fn prepare_to_wait(&self) -> Result<()> {
        self.write_no_master()?;
        Ok(self.data.mark_standby()?)
    }

    /// Where a master's server has stopped cleanly: whoever has as much has everything.
    pub async fn position_of_clean_stop(&self) -> Option<Database> {
        match self.data.inspect(&self.binaries, &self.processes).await {
            DataState::Cluster { system, standby: false, lineage } => {
                lineage.stopped().map(|reached| Database { system, reached: Some(reached) })
            }
            _ => None,
        }
    }

    /// What commits of a master that starts now would wait for.
    #[must_use]
    pub fn quorum_at_start(&self, members: Option<&Members>) -> Quorum {
        let Configuration { set, me, synchronous, .. } = &self.configuration;
        let last = || {
            let text = fs::read_to_string(self.data.path().join(settings::AUTO_FILE)).unwrap_or_default();
            settings::setting(&text, synchronous::SETTING)
        };
        let last = if members.is_none() && *synchronous > 0 { last() } else { None };
        let names = synchronous::names_at_start(members, set, &me.pod, *synchronous, last.as_deref());
        names.map(|names| synchronous::quorum(&names)).unwrap_or_default()
    }

    /// Writes which replicas confirm a commit, before the server starts: its first commit waits already.
    pub fn write_synchronous_names(&self, quorum: &Quorum) -> Result<()> {
        let path = self.data.path().join(settings::AUTO_FILE);
        let old = fs::read_to_string(&path).unwrap_or_default();
        let new = settings::with_settings(&old, &[(synchronous::SETTING, &synchronous::value(quorum))]);
        settings::write(&path, &new).map(drop).map_err(|source| Error::Write { path, source })
    }

    /// What commits would wait for if this standby led. Where that is nobody, what an earlier life wrote goes.
    pub fn write_names_of_standby(&self, members: Option<&Members>) -> Result<()> {
        let quorum = self.quorum_at_start(members);
        let text = fs::read_to_string(self.data.path().join(settings::AUTO_FILE)).unwrap_or_default();
        let is_ours = |names: String| synchronous::is_the_agents(&names, &self.configuration.set);
        if quorum.confirm > 0 || settings::setting(&text, synchronous::SETTING).is_some_and(is_ours) {
            self.write_synchronous_names(&quorum)?;
        }
        Ok(())
    }

    /// How this member reaches a master, and by which name; the password goes into a file that dies with the pod.
    pub(super) fn connection(&self, master: &Master, name: &str) -> Result<String> {
        let passfile = run_directory().join("passfile");
        let user = &self.configuration.replication_user;
        let line = settings::passfile_line(user, &Passwords::read()?.replication);
        settings::write(&passfile, &line).map_err(|source| Error::Write { path: passfile.clone(), source })?;
        Ok(settings::connection(master, user, &passfile, name, self.authentication))
    }

    async fn run(&self, program: &'static str, command: &mut tokio::process::Command) -> Result<()> {
        let output = self.processes.output(command).await.map_err(|source| Error::Run { program, source })?;
        succeeded(program, &output)
    }
}

/// The slot comes before the clone, and with its WAL reserved: `pg_receivewal --create-slot` reserves none, and then the checkpoint
/// of another clone at the same moment takes away the segment that this one begins with.
pub(super) async fn reserve_slot(
    binaries: &Binaries,
    processes: &Processes,
    connection: &str,
    slot: &str,
) -> Result<()> {
    let mut command = binaries.command("psql");
    command.args(["--no-psqlrc", "--no-password", "--quiet", "--set=VERBOSITY=sqlstate", "-d"]);
    command.arg(format!("{connection} replication=true"));
    command.arg(format!("--command=CREATE_REPLICATION_SLOT {slot} PHYSICAL RESERVE_WAL"));
    let output = processes.output(&mut command).await.map_err(|source| Error::Run { program: "psql", source })?;
    let made_already = String::from_utf8_lossy(&output.stderr).contains(SqlState::DUPLICATE_OBJECT.code());
    if made_already { Ok(()) } else { succeeded("psql: CREATE_REPLICATION_SLOT", &output) }
}

/// What `run-postgresql` of Red Hat's images keeps outside of the volume, and lets the settings on it include.
fn red_hats_settings() -> Option<PathBuf> {
    let home = binaries::red_hats_script().and(std::env::var_os("HOME"))?;
    Some(PathBuf::from(home).join("openshift-custom-postgresql.conf")).filter(|file| file.is_file())
}

pub(super) fn write_following(directory: &Path, connection: &str, slot: &str) -> Result<()> {
    let path = directory.join(settings::AUTO_FILE);
    let old = fs::read_to_string(&path).unwrap_or_default();
    let old = recovery::without_store(&old);
    let new = settings::with_settings(&old, &[("primary_conninfo", connection), ("primary_slot_name", slot)]);
    settings::write(&path, &new).map(drop).map_err(|source| Error::Write { path, source })
}

pub(super) fn succeeded(program: &'static str, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let reason = words.lines().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("; ");
    Err(Error::Failed { program, reason: if reason.is_empty() { output.status.to_string() } else { reason } })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PostgreSQL keeps this much of a client's name.
    const NAME_LIMIT: usize = 63;

    #[test]
    fn no_list_of_members_names_a_clone_however_long_the_members_names_are() {
        for set in ["db".to_owned(), "clone-db".to_owned(), "d".repeat(NAME_LIMIT - 2)] {
            let members = Members { set: set.clone(), first: 0, count: 9 };
            let names = members.synchronous_names(&format!("{set}-0"), 1);
            for pod in members.others(&format!("{set}-0")) {
                let clone: String = names::clone_application(&pod).chars().take(NAME_LIMIT).collect();
                assert!(names.contains(&format!("\"{pod}\"")));
                assert!(!names.contains(&format!("\"{clone}\"")), "{clone}");
            }
        }
    }

    #[test]
    fn single_user_mode_waits_for_no_replica() {
        assert!(SINGLE_USER_SETTINGS.contains(&"synchronous_commit=local"));
    }
}
