//! PostgreSQL's programs in the image that the user chose.

use std::path::{Path, PathBuf};

use tokio::process::Command;
use tracing::warn;

use super::processes::Processes;
use super::settings::Authentication;
use crate::names;

/// A directory without a server's socket, for a question that libpq answers without one.
const NO_SERVER: &str = "/pgset/no-server";

/// Where distributions keep the programs that they leave out of PATH.
const DIRECTORIES: [&str; 3] = ["/usr/lib/postgresql", "/usr/local/pgsql", "/usr"];

/// What `run-postgresql` of Red Hat's images does before each start: it writes `openshift-custom-postgresql.conf`, which the settings on the
/// volume include.
const RED_HATS_SETTINGS: &str = "export ENABLE_REPLICATION=${ENABLE_REPLICATION:-false}; export $(cgroup-limits); \
                                 . \"$CONTAINER_SCRIPTS_PATH/common.sh\" && generate_postgresql_config";

/// The directory of `postgres`, and the entry point if the image has one.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
    entry_point: Option<PathBuf>,
    home: Option<PathBuf>,
}

/// The image has no PostgreSQL.
#[derive(Debug, thiserror::Error)]
#[error(
    "found no program `postgres` in PATH nor in the usual places: contract `agent` needs an image with PostgreSQL's programs"
)]
pub struct Missing;

impl Binaries {
    /// Looks for them once, at the start.
    pub fn find(home: Option<PathBuf>) -> Result<Self, Missing> {
        let path: Vec<PathBuf> =
            std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        let usual = DIRECTORIES.iter().flat_map(|root| candidates(Path::new(root)));
        let directory =
            path.iter().cloned().chain(usual).find(|directory| directory.join("postgres").is_file()).ok_or(Missing)?;
        Ok(Self { directory, entry_point: entry_point(), home })
    }

    /// Where PostgreSQL's programs are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where one of PostgreSQL's programs is.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }

    /// A command for one of PostgreSQL's programs. Passwords that the container's environment carries for the first bootstrap are not
    /// handed on.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.clean(Command::new(self.path(program)));
        for (name, _) in std::env::vars_os() {
            // A stray PGHOST or PGUSER would send PostgreSQL's own programs elsewhere.
            if name.to_str().is_some_and(|name| {
                is_secret(name) || matches!(name, "PGHOST" | "PGUSER" | "PGDATABASE" | "PGPASSFILE")
            }) {
                command.env_remove(name);
            }
        }
        command
    }

    /// A command for the image's own entry point, with the whole environment that it documents; absent if the image has none.
    #[must_use]
    pub fn entry_point(&self) -> Option<Command> {
        self.entry_point.as_ref().map(|file| self.clean(Command::new(file)))
    }

    /// Lets the image write what its own entry point writes at each start, outside of the volume: files that PostgreSQL's settings name.
    pub async fn prepare_image(&self, processes: &Processes, data: &Path) {
        let Some(mut command) = self.preparation() else { return };
        command.env(names::env::PGDATA, data);
        match processes.output(&mut command).await {
            Ok(output) if output.status.success() => {}
            Ok(output) => warn!(
                status = %output.status,
                said = %String::from_utf8_lossy(&output.stderr).trim(),
                "the image's entry point did not prepare its files"
            ),
            Err(error) => warn!(%error, "failed to run the image's entry point for its files"),
        }
    }

    fn preparation(&self) -> Option<Command> {
        if red_hats_script().is_some() {
            let mut command = self.clean(Command::new("bash"));
            command.args(["-c", RED_HATS_SETTINGS]);
            return Some(command);
        }
        let own = self.entry_point.as_ref().filter(|file| !file.ends_with("docker-entrypoint.sh"))?;
        let mut command = self.clean(Command::new(own));
        command.arg("true");
        Some(command)
    }

    /// PATH with this directory in front of it.
    #[must_use]
    pub fn path_behind(&self, first: &Path) -> std::ffi::OsString {
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(first.to_owned()).chain(std::env::split_paths(&rest)).chain([self.directory.clone()]);
        std::env::join_paths(all).unwrap_or(rest)
    }

    /// Whether the image's libpq can be told to prove its password by SCRAM alone. It is asked itself: distributions put a libpq of
    /// another version beside a server. It knows its words before it looks for a server.
    pub async fn authentication(&self, processes: &Processes) -> Authentication {
        let mut command = self.command("psql");
        command
            .args(["--no-psqlrc", "--no-password", "-d"])
            .arg(format!("require_auth=scram-sha-256 host={NO_SERVER}"));
        match processes.output(&mut command).await {
            Ok(output) => authentication(&String::from_utf8_lossy(&output.stderr)),
            Err(_) => Authentication::Any,
        }
    }

    fn clean(&self, mut command: Command) -> Command {
        if let Some(home) = &self.home {
            command.env("HOME", home);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with(names::env::PRIVATE_PREFIX)) {
                command.env_remove(name);
            }
        }
        command
    }
}

/// From psql's complaint, in whatever language: about the server that is not there, or about a word that it doesn't know.
fn authentication(complaint: &str) -> Authentication {
    if complaint.contains(NO_SERVER) && !complaint.contains("require_auth") {
        Authentication::Scram
    } else {
        Authentication::Any
    }
}

/// The image's entry point, where it hands over to the program in its arguments, as Docker's official image's does.
#[must_use]
pub fn entry_point() -> Option<PathBuf> {
    ["immich-docker-entrypoint.sh", "docker-entrypoint.sh"].iter().find_map(|name| in_path(name))
}

/// The script of Red Hat's images, which starts PostgreSQL itself, with its own arguments.
#[must_use]
pub fn red_hats_script() -> Option<PathBuf> {
    in_path("run-postgresql")
}

/// Some images have their entry point in the root.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain([PathBuf::from("/usr/local/bin"), PathBuf::from("/")]);
    directories.map(|directory| directory.join(name)).find(|file| file.is_file())
}

fn candidates(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.join("bin")];
    let mut versions: Vec<PathBuf> =
        std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path().join("bin")).collect();
    versions.sort();
    found.extend(versions.into_iter().rev());
    found
}

/// Variables that hold a password in the images that pgset knows.
fn is_secret(name: &str) -> bool {
    name.contains("PASSWORD") && (name.starts_with("POSTGRES") || name.starts_with("PG"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libpq_is_told_to_use_scram_where_it_knows_the_word() {
        let missing =
            r#"psql: error: connection to server on socket "/pgset/no-server/.s.PGSQL.5432" failed: No such file"#;
        let unknown = r#"psql: error: invalid connection option "require_auth""#;
        assert_eq!(authentication(missing), Authentication::Scram);
        assert_eq!(authentication(unknown), Authentication::Any);
        assert_eq!(authentication("error while loading shared libraries"), Authentication::Any);
    }

    #[test]
    fn passwords_of_the_environment_are_known_by_name() {
        for name in [
            "POSTGRES_PASSWORD",
            "POSTGRES_PASSWORD_FILE",
            "PG_MASTER_PASSWORD",
            "PG_ROOT_PASSWORD",
            "PGPASSWORD",
            "POSTGRESQL_PASSWORD",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["POSTGRES_USER", "PGDATA", "MY_PASSWORD_POLICY"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
