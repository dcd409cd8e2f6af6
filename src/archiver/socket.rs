//! How PostgreSQL's `archive_command` asks the archiver: a line over a local socket, and one back.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream as Stream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader as AsyncBufReader};
use tokio::net::{UnixListener, UnixStream};

use super::{STOPPING, assignment};
use crate::backup::wal::WalFile;

/// The socket, in the agent's run directory.
pub const NAME: &str = "archiver.sock";

/// How long PostgreSQL waits for an answer. The archiver gives up before; a store that is slower than that is asked anew.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// How long a server that stops waits for what is not archived yet.
const STOPS_WITHIN: Duration = Duration::from_millis(500);
/// An exit code by which PostgreSQL's own archiver ends without another try (`pgarch_archiveXlog`: above 128, as if by a signal).
const ENDS_ARCHIVING: i32 = 255;
/// What a request may have at most.
const LONGEST: u64 = 200;

const STORED: &str = "stored";

/// Runs as PostgreSQL's `archive_command`. What it prints is in PostgreSQL's log.
#[must_use]
pub fn archive_command(run: &Path, path: &str) -> ExitCode {
    match archive(run, path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("pgset: {why}");
            ExitCode::FAILURE
        }
    }
}

fn archive(run: &Path, path: &str) -> Result<(), String> {
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path);
    let file: WalFile = name.parse().map_err(|why: crate::backup::wal::NoWalFile| why.to_string())?;
    let assignment = assignment::read(run)
        .ok_or("it is not known yet whether the set has backups: PostgreSQL keeps the file, and asks again")?;
    if assignment.backup.is_none() {
        return Ok(());
    }
    if let Some(since) = stops_since(run) {
        // These are its last words, and a hand-over waits for them.
        let left = STOPS_WITHIN.saturating_sub(since);
        if !left.is_zero() && ask(&run.join(NAME), file, left).is_ok_and(|answer| answer == STORED) {
            return Ok(());
        }
        eprintln!("pgset: {file} is left to the other members, or to the next start: PostgreSQL is stopping");
        std::process::exit(ENDS_ARCHIVING);
    }
    let answer = ask(&run.join(NAME), file, ANSWER_LIMIT).map_err(|error| {
        format!("the archiver does not answer ({error}): PostgreSQL keeps the file, and asks again")
    })?;
    if answer == STORED { Ok(()) } else { Err(answer) }
}

/// How long PostgreSQL has been stopping, if it is.
fn stops_since(run: &Path) -> Option<Duration> {
    let written = fs::metadata(run.join(STOPPING)).ok()?.modified().ok()?;
    Some(written.elapsed().unwrap_or_default())
}

fn ask(socket: &Path, file: WalFile, limit: Duration) -> io::Result<String> {
    let mut stream = Stream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    writeln!(stream, "{file}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer.trim_end().to_owned()) }
}

/// Listens in the run directory, instead of whoever did before.
pub fn listen(run: &Path) -> io::Result<UnixListener> {
    let path = run.join(NAME);
    let _ = fs::remove_file(&path);
    UnixListener::bind(path)
}

/// Answers one question.
pub async fn answer<F: Future<Output = Result<(), String>>>(
    stream: UnixStream,
    push: impl FnOnce(WalFile) -> F,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    AsyncBufReader::new(tokio::io::AsyncReadExt::take(reader, LONGEST)).read_line(&mut line).await?;
    let outcome = match line.trim_end().parse() {
        Ok(file) => push(file).await,
        Err(why) => Err(crate::backup::wal::NoWalFile::to_string(&why)),
    };
    // One line, whatever a store says.
    let answer = outcome.map_or_else(|why| why.replace(['\n', '\r'], " "), |()| STORED.to_owned());
    writer.write_all(format!("{answer}\n").as_bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgresql_keeps_the_file_while_nobody_knows_and_lets_it_go_where_no_backup_is_wanted() {
        let run = tempfile::tempdir().unwrap();
        let archive = || archive(run.path(), "pg_wal/000000010000000000000001");
        assert!(archive().unwrap_err().contains("not known yet"));
        assignment::write(run.path(), &assignment::tests::assignment(None)).unwrap();
        assert_eq!(archive(), Ok(()));
        assignment::write(run.path(), &assignment::tests::assignment(Some("s3://bucket/db"))).unwrap();
        assert!(archive().unwrap_err().contains("does not answer"));
    }

    #[tokio::test]
    async fn an_answer_is_what_became_of_that_file() {
        let run = tempfile::tempdir().unwrap();
        let listener = listen(run.path()).unwrap();
        let socket = run.path().join(NAME);
        let file: WalFile = "000000010000000000000001".parse().unwrap();
        for (outcome, expected) in [(Ok(()), STORED), (Err("no\nroom".to_owned()), "no room")] {
            let socket = socket.clone();
            let asked = tokio::task::spawn_blocking(move || ask(&socket, file, ANSWER_LIMIT));
            let (stream, _) = listener.accept().await.unwrap();
            answer(stream, |asked| async move { if asked == file { outcome } else { Err("another".into()) } })
                .await
                .unwrap();
            assert_eq!(asked.await.unwrap().unwrap(), expected);
        }
    }
}
