//! PostgreSQL's own programs, as a base backup runs them.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tracing::warn;

use crate::backup::assignment::Assignment;

/// With the WAL in it, for which the server then waits for nobody: a replica whose archive has a segment by its master's hand would wait for
/// it forever (`XLogArchiveIsBusy`). It makes a backup whole by itself, too.
/// Upon a full backup of which this is the list, it holds what has changed since.
pub(super) fn start(assignment: &Assignment, id: &str, parents_manifest: Option<&Path>) -> io::Result<Child> {
    let mut command = Command::new(assignment.binaries.join("pg_basebackup"));
    command.args(["--no-password", "--checkpoint=fast", "--format=tar", "--wal-method=fetch", "--pgdata=-"]);
    if let Some(rate) = assignment.backup.as_ref().and_then(|backup| backup.rate) {
        command.arg(format!("--max-rate={}", rate / 1024));
    }
    if let Some(manifest) = parents_manifest {
        command.arg("--incremental").arg(manifest);
    }
    command.arg(format!("--label=pgset {id}")).arg("--dbname").arg(&assignment.connection).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Keeps the WAL of a backup on this member until the backup has it: by a slot that ends with this connection. What its own limit does not
/// allow (`max_slot_wal_keep_size`) goes as ever.
pub(super) fn hold_wal(assignment: &Assignment) -> io::Result<Child> {
    let mut command = Command::new(assignment.binaries.join("psql"));
    command.args(["--no-psqlrc", "--no-password", "--quiet", "--dbname"]);
    command.arg(format!("{} replication=true", assignment.connection));
    let mut psql = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
    let name = format!("base_backup_{}", std::process::id());
    if let Some(input) = &mut psql.stdin {
        writeln!(input, "CREATE_REPLICATION_SLOT {name} TEMPORARY PHYSICAL RESERVE_WAL;")?;
        input.flush()?;
    }
    Ok(psql)
}

/// A program that ends with this.
pub(super) struct Ends(pub(super) Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// PostgreSQL's version, of its programs' own account.
pub(super) async fn version(binaries: &Path) -> io::Result<String> {
    let mut command = tokio::process::Command::new(binaries.join("postgres"));
    let output = command.arg("--version").output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().nth(2).unwrap_or_default().to_owned())
}

/// Asks the master to begin another segment.
pub(super) async fn ask_for_next_segment(assignment: &Assignment) {
    let Some(connection) = &assignment.master_connection else { return };
    let mut command = tokio::process::Command::new(assignment.binaries.join("psql"));
    command
        .args(["--no-psqlrc", "--no-password", "--quiet", "--command=SELECT pg_switch_wal()", "--dbname"])
        .arg(connection);
    match command.stdin(Stdio::null()).output().await {
        Ok(output) if output.status.success() => {}
        Ok(output) => warn!(error = last_line(&output.stderr), "the master does not begin another segment"),
        Err(error) => warn!(%error, "failed to run psql"),
    }
}

/// The last line that a program that ends has said of an error.
pub(super) fn last_words(child: &mut Child) -> String {
    let mut words = Vec::new();
    if let Some(mut errors) = child.stderr.take() {
        let _ = errors.read_to_end(&mut words);
    }
    let _ = child.wait();
    last_line(&words)
}

/// The last line that says something.
pub(super) fn last_line(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or_default()
        .trim_start_matches("pg_basebackup: ")
        .to_owned()
}
