//! A database that ran before the set was annotated and that the agent can't take over goes on as it did: by the image's own entry point,
//! without replication and without a role. Annotating takes no running database down.

use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::configuration::Configuration;
use super::events::Reason;
use super::life::Life;
use super::{Ending, binaries, data, kubernetes, role_label, settings, synchronous};
use crate::election::SystemIdentifier;
use crate::names;

/// How often the server's port is tried, for the readiness probe.
const LOOP_INTERVAL: Duration = Duration::from_secs(1);
/// A server on the same machine answers at once.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// How long the Secret may lack a password. The kubelet brings what is new in a Secret within about a minute.
const PASSWORDS_PATIENCE: Duration = Duration::from_secs(90);
/// How long the Lease may be out of reach. The controller makes it and the Role within a second or two of the set.
const LEASE_PATIENCE: Duration = Duration::from_secs(30);

/// What the agent can't do with a database that it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its PostgreSQL is older than the agent knows.
    Version,
    /// The image has no programs of PostgreSQL where the agent looks.
    Binaries,
    /// The data belongs to another user than PostgreSQL's, or the agent can't become that user.
    User,
    /// The Secret lacks passwords.
    Passwords,
    /// The Lease can't be used.
    Lease,
    /// The set is another database, by the Lease of an earlier set of its name.
    OtherDatabase,
    /// PostgreSQL does not start as a member.
    FirstStart,
}

/// A refusal, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it is.
    pub kind: Kind,
    /// In words.
    pub why: String,
}

/// What a data directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// No database.
    Nothing,
    /// A database that no agent has served.
    Database,
    /// A standby that no agent has served.
    Standby,
    /// A database that has been served from under an agent.
    Member,
}

/// What the data directory is to a member that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What is in it.
    pub content: Content,
    /// The set's database is this member's.
    pub brings_database: bool,
}

impl Found {
    /// Looks at a directory.
    #[must_use]
    pub fn at(directory: &Path, brings_database: bool) -> Self {
        let content = if !directory.join("PG_VERSION").is_file() {
            Content::Nothing
        } else if data::is_marked_member(directory) {
            Content::Member
        } else if directory.join("standby.signal").exists() {
            Content::Standby
        } else {
            Content::Database
        };
        Self { content, brings_database }
    }

    /// The member makes the set's database.
    #[must_use]
    pub fn is_for_a_new_database(self) -> bool {
        self.content == Content::Nothing && self.brings_database
    }

    /// It ran before the set was annotated. What an agent has served is never run without one: another member may lead with it by now.
    #[must_use]
    pub fn is_adopted(self) -> bool {
        self.content == Content::Database && self.brings_database
    }
}

/// Whether the image runs as it did before, after the agent has been refused for so long. `set` is the database that the Lease names: a
/// set that has had a master is past its adoption, even if its data bears no mark (0.1.0 made none).
#[must_use]
pub fn is_due(found: Found, kind: Kind, lasted: Duration, set: Option<SystemIdentifier>) -> bool {
    let patience = match kind {
        Kind::Passwords => PASSWORDS_PATIENCE,
        Kind::Lease => LEASE_PATIENCE,
        Kind::Version | Kind::Binaries | Kind::User | Kind::OtherDatabase | Kind::FirstStart => Duration::ZERO,
    };
    let may_be_the_sets = match kind {
        // No agent ever ran it, and what the Lease names is another one.
        Kind::Version | Kind::OtherDatabase => false,
        Kind::Binaries | Kind::User | Kind::Passwords | Kind::Lease | Kind::FirstStart => set.is_some(),
    };
    found.is_adopted() && !may_be_the_sets && lasted >= patience
}

/// The image's own command line: the user's command if he wrote one, else the image's entry point with his arguments.
fn command_line(
    argv: &[String],
    entry_point: Option<PathBuf>,
    script: Option<PathBuf>,
    server: Option<PathBuf>,
) -> Option<(PathBuf, Vec<String>)> {
    let program = argv.first().filter(|word| !word.starts_with('-') && *word != "postgres");
    if let (Some(program), Some(arguments)) = (program, argv.get(1..)) {
        return Some((PathBuf::from(program), arguments.to_vec()));
    }
    if let Some(entry_point) = entry_point {
        let arguments = if argv.is_empty() { vec!["postgres".to_owned()] } else { argv.to_vec() };
        return Some((entry_point, arguments));
    }
    let arguments = argv.iter().skip_while(|word| *word == "postgres").cloned().collect();
    script.or(server).map(|program| (program, arguments))
}

/// Runs the image until it ends or `shutdown` completes.
pub async fn run(
    life: &Life,
    server: Option<PathBuf>,
    home: Option<&Path>,
    refusal: &Refusal,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> io::Result<Ending> {
    let Life { configuration, processes, status_handle, teller, .. } = life;
    let note = format!(
        "PostgreSQL runs as it did before the set was annotated, without replicas, because {}; mend that and delete the pod, or leave: \
         kubectl annotate statefulset {} {}-",
        refusal.why,
        configuration.set,
        names::annotation::INJECT
    );
    warn!("{note}");
    teller.tell(Reason::RunsAsBefore, &note);
    take_label_off(configuration);
    if let Err(why) = confirm_without_replicas(&configuration.place.directory, &configuration.set) {
        warn!(error = %why, "commits may wait for replicas: reset synchronous_standby_names");
    }
    status_handle.update(|status| {
        status.message = note;
        // Alive for as long as the image is: this process ends with it.
        status.last_tick = None;
    });

    let words = command_line(&configuration.argv, binaries::entry_point(), binaries::red_hats_script(), server);
    let (program, arguments) = words.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "the image has no docker-entrypoint.sh and no postgres")
    })?;
    let mut command = Command::new(program);
    command.args(arguments).env(names::env::PGDATA, &configuration.place.directory).stdin(Stdio::null());
    if let Some(home) = home {
        command.env("HOME", home);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with(names::env::PRIVATE_PREFIX)) {
            command.env_remove(name);
        }
    }
    let mut process = processes.start(&mut command)?;
    loop {
        tokio::select! {
            status = process.wait() => return status.map(Ending::Image),
            () = &mut shutdown => break,
            () = sleep(LOOP_INTERVAL) => {}
        }
        let answers = answers(configuration).await;
        status_handle.update(|status| {
            status.started |= answers;
            status.ready = answers;
        });
    }
    status_handle.update(|status| status.ready = false);
    // PostgreSQL's fast shutdown, which is also what the official image asks its runtime for.
    process.signal(Signal::SIGINT);
    process.wait().await?;
    Ok(Ending::Stopped)
}

/// The agent may have tried to start it as the master of replicas that confirm its commits. There are none.
fn confirm_without_replicas(directory: &Path, set: &str) -> io::Result<()> {
    let path = directory.join(settings::AUTO_FILE);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    if settings::setting(&text, synchronous::SETTING).is_some_and(|names| synchronous::is_the_agents(&names, set)) {
        settings::write(&path, &settings::without_setting(&text, synchronous::SETTING))?;
    }
    Ok(())
}

/// A pod that is no member of a set, or not yet, has no role in it. Goes on until it is done or aborted.
pub fn take_label_off(configuration: &Configuration) -> Option<AbortHandle> {
    let Configuration { namespace, me, role_label, .. } = configuration.clone();
    match kubernetes::client(&namespace) {
        Ok(client) => {
            let task = tokio::spawn(async move { role_label::remove(client, &namespace, &me, &role_label).await });
            Some(task.abort_handle())
        }
        Err(error) => {
            warn!(%error, "failed to take the role label off this pod");
            None
        }
    }
}

/// Whether the server's port answers, on the loopback address or, where it listens on that alone, on the pod's.
async fn answers(configuration: &Configuration) -> bool {
    for address in ["127.0.0.1", configuration.address.as_str()] {
        if matches!(timeout(CONNECT_LIMIT, TcpStream::connect((address, configuration.port))).await, Ok(Ok(_))) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADOPTED: Found = Found { content: Content::Database, brings_database: true };
    const SET: Option<SystemIdentifier> = Some(SystemIdentifier(7));
    const ALL: [Kind; 7] = [
        Kind::Version,
        Kind::Binaries,
        Kind::User,
        Kind::Passwords,
        Kind::Lease,
        Kind::OtherDatabase,
        Kind::FirstStart,
    ];

    #[test]
    fn a_database_that_ran_before_goes_on_whatever_the_agent_refuses() {
        for kind in ALL {
            assert!(is_due(ADOPTED, kind, PASSWORDS_PATIENCE, None), "{kind:?}");
        }
    }

    #[test]
    fn nothing_else_is_ever_run_without_the_agent() {
        for kind in ALL {
            for found in [
                Found { content: Content::Nothing, ..ADOPTED },
                Found { content: Content::Standby, ..ADOPTED },
                Found { content: Content::Member, ..ADOPTED },
                Found { brings_database: false, ..ADOPTED },
            ] {
                assert!(!is_due(found, kind, Duration::MAX, None), "{kind:?} {found:?}");
            }
        }
    }

    #[test]
    fn what_may_mend_itself_is_waited_for() {
        assert!(!is_due(ADOPTED, Kind::Passwords, Duration::from_secs(89), None));
        assert!(!is_due(ADOPTED, Kind::Lease, Duration::from_secs(29), None));
        assert!(is_due(ADOPTED, Kind::Lease, LEASE_PATIENCE, None));
        assert!(is_due(ADOPTED, Kind::Version, Duration::ZERO, None));
    }

    #[test]
    fn data_that_may_be_a_sets_waits_for_its_agent_unless_it_can_only_be_somebody_elses() {
        for kind in ALL {
            let is_somebody_elses = matches!(kind, Kind::Version | Kind::OtherDatabase);
            assert_eq!(is_due(ADOPTED, kind, Duration::MAX, SET), is_somebody_elses, "{kind:?}");
        }
    }

    #[test]
    fn an_image_that_runs_as_before_waits_for_no_replica_of_the_agents_and_for_those_of_the_users() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(settings::AUTO_FILE);
        let after = |line: &str| {
            fs::write(&path, format!("work_mem = '8MB'\n{line}")).unwrap();
            confirm_without_replicas(directory.path(), "db").unwrap();
            fs::read_to_string(&path).unwrap()
        };
        assert_eq!(after("synchronous_standby_names = 'ANY 1 (\"db-1\")'\n"), "work_mem = '8MB'\n");
        assert_eq!(after("synchronous_standby_names = 's1'\n"), "work_mem = '8MB'\nsynchronous_standby_names = 's1'\n");
    }

    fn line(argv: &[&str], entry_point: Option<&str>, script: Option<&str>, server: Option<&str>) -> Option<String> {
        let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
        let [entry_point, script, server] = [entry_point, script, server].map(|file| file.map(PathBuf::from));
        let (program, arguments) = command_line(&argv, entry_point, script, server)?;
        Some([vec![program.display().to_string()], arguments].concat().join(" "))
    }

    #[test]
    fn the_image_runs_by_the_users_command_or_its_own_entry_point_with_the_users_arguments() {
        let entry_point = Some("/usr/local/bin/docker-entrypoint.sh");
        for (argv, wanted) in [
            (&[][..], "/usr/local/bin/docker-entrypoint.sh postgres"),
            (&["-c", "work_mem=8MB"], "/usr/local/bin/docker-entrypoint.sh -c work_mem=8MB"),
            (&["postgres", "-c", "work_mem=8MB"], "/usr/local/bin/docker-entrypoint.sh postgres -c work_mem=8MB"),
            (&["docker-entrypoint.sh", "postgres"], "docker-entrypoint.sh postgres"),
            (&["/usr/lib/postgresql/12/bin/postgres", "-N", "9"], "/usr/lib/postgresql/12/bin/postgres -N 9"),
        ] {
            assert_eq!(line(argv, entry_point, None, None).as_deref(), Some(wanted), "{argv:?}");
        }
    }

    #[test]
    fn without_an_entry_point_the_server_itself_runs_if_there_is_one() {
        let server = Some("/bin/postgres");
        assert_eq!(line(&["postgres", "-N", "9"], None, None, server).as_deref(), Some("/bin/postgres -N 9"));
        assert_eq!(line(&["-N", "9"], None, None, None), None);
        let script = Some("/usr/bin/run-postgresql");
        assert_eq!(line(&["-N", "9"], None, script, server).as_deref(), Some("/usr/bin/run-postgresql -N 9"));
    }
}
