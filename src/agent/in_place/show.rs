//! A server on what was recovered, for people to look at: a standby of nobody, so that it accepts no writes, and nobody reaches it but who may read the
//! data directory as well.
//!
//! It has come to its moment before that, and was promoted: in a recovery that waits there, what somebody had begun to drop is locked.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::agent::configuration::run_directory;
use crate::agent::data::DataDirectory;
use crate::agent::postmasters;
use crate::agent::recovery::{Error, LastLines, Programs, next_line, private_server};
use crate::agent::server;

type Result<T, E = Error> = std::result::Result<T, E>;

/// In the agent's run directory: where the server's socket is, and who may use it.
const SOCKET: &str = "recovered";
const RULES: &str = "recovered_hba.conf";
/// Whoever comes to the socket, which is in a directory of the PostgreSQL user's own, could read the files as well.
const ANYBODY: &str = "local all all trust\n";
/// How often it is looked at. Somebody may promote it: then it accepts writes.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a clean stop may take; at the next start PostgreSQL recovers by itself.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// It is small: the set's own server goes on beside it, in the same container.
const SMALL: [&str; 11] = [
    "hot_standby=on",
    "shared_buffers=16MB",
    "work_mem=4MB",
    "maintenance_work_mem=16MB",
    "temp_file_limit=1GB",
    "max_parallel_workers_per_gather=0",
    "jit=off",
    "huge_pages=off",
    "ssl=off",
    "external_pid_file=",
    "restart_after_crash=off",
];

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was stopped.
    Stopped,
    /// Somebody promoted it: what is there may be anything by now.
    Promoted,
}

/// Where people find it.
#[must_use]
pub fn socket() -> PathBuf {
    run_directory().join(SOCKET)
}

/// Runs it until `stop` is told, and says when it can be looked at.
pub async fn show(
    programs: Programs<'_>,
    data: &DataDirectory,
    port: u16,
    mut stop: oneshot::Receiver<()>,
    can_be_seen: &watch::Sender<bool>,
) -> Result<End> {
    let run = |source| Error::Run { program: "postgres", source };
    let mut process = programs.processes.start(&mut command(programs, data, port)?).map_err(run)?;
    let mut lines = process.take_errors().map(|errors| BufReader::new(errors).lines());
    let (mut last, pid_file) = (LastLines::default(), data.pid_file());
    loop {
        tokio::select! {
            line = next_line(&mut lines) => {
                eprintln!("recovered: {line}");
                last.push(line);
            }
            ended = process.wait() => {
                let status = ended.map_err(run)?;
                let (reason, _) = last.words();
                return Err(Error::Base(format!(
                    "the server for what was recovered ended: {}",
                    reason.unwrap_or_else(|| status.to_string())
                )));
            }
            _ = &mut stop => {
                process.signal(Signal::SIGINT);
                // What it says meanwhile is read, or it would wait for that.
                let reads = async { loop { eprintln!("recovered: {}", next_line(&mut lines).await) } };
                let ends = async {
                    tokio::select! {
                        _ = process.wait() => {}
                        () = reads => {}
                    }
                };
                if timeout(STOP_LIMIT, ends).await.is_err() {
                    warn!("the recovered server does not stop: it is killed");
                }
                return Ok(if data.is_promoted() { End::Promoted } else { End::Stopped });
            }
            () = sleep(LOOK_EVERY) => {
                if data.is_promoted() {
                    // It is nobody's master, and nothing that it writes counts.
                    postmasters::kill_all(data.path());
                    return Ok(End::Promoted);
                }
                let now = server::is_ready(&pid_file);
                can_be_seen.send_if_modified(|known| std::mem::replace(known, now) != now);
            }
        }
    }
}

fn command(programs: Programs<'_>, data: &DataDirectory, port: u16) -> Result<Command> {
    let (socket, rules) = (socket(), run_directory().join(RULES));
    let make = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&socket)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o700))
    };
    make().map_err(|source| Error::Write { path: socket.clone(), source })?;
    fs::write(&rules, ANYBODY).map_err(|source| Error::Write { path: rules.clone(), source })?;
    let (mut command, _) = private_server(programs, data.path())?;
    for setting in SMALL {
        command.args(["-c", setting]);
    }
    command.arg("-c").arg(format!("hba_file={}", rules.display()));
    command.arg("-c").arg(format!("unix_socket_directories={}", socket.display()));
    command.arg("-c").arg(format!("port={port}"));
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    Ok(command)
}
