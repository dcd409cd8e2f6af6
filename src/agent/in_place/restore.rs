//! A base backup is brought into a directory beside the data.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use nix::unistd::syncfs;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::{Error, PROGRESS, promote};
use crate::agent::configuration::run_directory;
use crate::agent::provisioner::Provisioner;
use crate::agent::recovery::{self, bring};
use crate::agent::sql;
use crate::set::backup::Restore;

/// Brings the base backup, and writes what PostgreSQL needs to recover on it.
pub async fn restore_beside(provisioner: &Provisioner, restore: &Restore, directory: &Path) -> Result<(), Error> {
    mark_the_moment(provisioner).await;
    let progress = run_directory().join(PROGRESS);
    let _ = fs::remove_file(&progress);
    let more = [OsStr::new("--beside"), OsStr::new("--progress"), progress.as_os_str()];
    let restored = bring(super::programs(provisioner), restore, directory, &more).await?;
    promote::copy_settings(provisioner.data.path(), directory)?;
    recovery::prepare(restore, &restored.settings, directory)?;
    // What comes next is noted: after a crash nobody would know that some of it was never on the disk.
    let directory = directory.to_owned();
    spawn_blocking(move || sync_volume(&directory)).await??;
    Ok(())
}

fn sync_volume(directory: &Path) -> Result<(), recovery::Error> {
    let synced = fs::File::open(directory).and_then(|volume| Ok(syncfs(volume)?));
    synced.map_err(|source| recovery::Error::Write { path: directory.to_owned(), source })
}

/// PostgreSQL knows that it has come to a time by the first commit after it: there is one now, and what was written is archived soon.
async fn mark_the_moment(provisioner: &Provisioner) {
    let connection = provisioner.own_backup_connection().unwrap_or_default();
    let mut command = provisioner.binaries.command("psql");
    command.args(["--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1"]);
    for statement in ["SET synchronous_commit = local", "SELECT pg_current_xact_id()", "SELECT pg_switch_wal()"] {
        command.arg("--command").arg(statement);
    }
    command.arg("--dbname").arg(format!("{connection} dbname={}", sql::DATABASE)).stdin(Stdio::null());
    match provisioner.processes.output(&mut command).await {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            warn!(error, "the WAL of the moment may be archived late");
        }
        Err(error) => warn!(%error, "failed to run psql"),
    }
}
