//! A base backup: `pg_basebackup` of the image itself, through this process into the store. Nothing of it lies on the volume, and the memory that
//! it takes does not grow with the database.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use ring::digest::{Context, SHA256};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::encryption::{self, Identities, Identity};
use super::incremental::check_parent;
use super::lines::line_of;
use super::packed::{LEVEL, hexadecimal};
use super::programs::{Ends, ask_for_next_segment, hold_wal, last_line, last_words, start, version};
use super::push::{self, push};
use super::store::{self, Store};
use crate::backup::assignment::{Assignment, Role};
use crate::backup::index::{FORMAT, Index};
use crate::backup::layout::{self, INDEX, MANIFEST, TAR};
use crate::backup::wal::{Segment, WalFile};
use crate::election::{Lsn, SystemIdentifier};

/// A store takes at most 10,000 parts of one object (S3), so that this is enough for 156 GiB, packed; larger ones get larger parts.
const PART: u64 = 16 << 20;
const MOST_PARTS: u64 = 9_000;
/// So many parts are on their way at once, and so many pieces wait for them.
const PARTS_AT_ONCE: usize = 2;
const PIECE: usize = 1 << 20;
const PIECES: usize = 4;
/// A backup of which nothing comes for so long is broken off: its WAL is not archived, or the store takes nothing.
const STALLED_FOR: Duration = Duration::from_secs(900);
/// How long the end of a backup may take to be archived.
const ARCHIVED_WITHIN: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A replica's backup ends with a segment that its master may never fill: after so long it is asked to begin the next one.
const SWITCH_AFTER: Duration = Duration::from_secs(3);
const SWITCH_EVERY: Duration = Duration::from_secs(30);

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `pg_basebackup`.
    #[error("pg_basebackup failed: {0}")]
    Program(String),
    /// Reading what it says.
    #[error("failed to read the output of pg_basebackup")]
    Read(#[from] io::Error),
    /// Nothing comes any more.
    #[error("nothing of the backup came for {} s: its WAL is not archived, or the store takes nothing", STALLED_FOR.as_secs())]
    Stalled,
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The WAL.
    #[error("the WAL of the backup is not archived")]
    Wal(#[from] push::Error),
    /// Its list of files.
    #[error("pg_basebackup wrote no list of files that says where its WAL begins and ends ({0})")]
    Manifest(String),
    /// What was stored of it.
    #[error("what was stored of the backup {0} went before it was complete: somebody else deletes in this prefix")]
    Gone(String),
    /// WAL that it needs.
    #[error(
        "the segment {0}, which the backup needs, is neither in the store nor on this member any more: another try begins later"
    )]
    WalGone(Segment),
    /// WAL that it needs.
    #[error("the segment {0}, with which the backup ends, was not archived within {seconds} s", seconds = ARCHIVED_WITHIN.as_secs())]
    WalLate(Segment),
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// How far a backup has come, for whoever looks.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Bytes read.
    pub read: Arc<AtomicU64>,
}

/// What a stream was.
struct Streamed {
    size: u64,
    manifest: Vec<u8>,
}

/// The part of PostgreSQL's list of files that says which WAL a backup needs.
#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<WalRange>,
}

#[derive(Deserialize)]
struct WalRange {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

/// What a base backup is made for, and of what.
pub struct Wanted<'a> {
    /// A time of the schedule, or an order.
    pub due: &'a str,
    /// Bytes that are expected.
    pub expected: u64,
    /// The full backup upon which it is to stand, and PostgreSQL's list of what that holds.
    pub parent: Option<(&'a Index, &'a Path)>,
}

/// Makes a base backup of this member. What a broken one leaves in the store has no index, and is swept away later.
pub async fn back_up(
    store: &Store,
    assignment: &Assignment,
    system: SystemIdentifier,
    wanted: &Wanted<'_>,
    progress: &Progress,
) -> Result<Index> {
    let Wanted { due, expected, parent } = *wanted;
    let started = Timestamp::now();
    let id = layout::backup_id(started, &assignment.pod);
    info!(backup = id, due, upon = parent.map(|(parent, _)| parent.id.as_str()), "a base backup begins");
    let version = version(&assignment.binaries).await?;
    let _held = hold_wal(assignment).map(Ends).map_err(|error| warn!(%error, "the WAL of the backup is not held"));
    let mut child = start(assignment, &id, parent.map(|(_, manifest)| manifest))?;
    let part = part_size(expected);
    let (streamed, stored, sha256) = match stream(store, &mut child, &id, part, progress).await {
        Ok(streamed) => streamed,
        Err(why) => {
            let _ = child.kill();
            let words = spawn_blocking(move || last_words(&mut child)).await.unwrap_or_default();
            // A server that ends says more than the pipe that breaks.
            return Err(if words.is_empty() { why } else { Error::Program(words) });
        }
    };
    let outcome =
        spawn_blocking(move || child.wait_with_output()).await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    if !outcome.status.success() {
        return Err(Error::Program(last_line(&outcome.stderr)));
    }
    let manifest: Manifest =
        serde_json::from_slice(&streamed.manifest).map_err(|error| Error::Manifest(error.to_string()))?;
    let (first, last) = manifest
        .wal_ranges
        .first()
        .zip(manifest.wal_ranges.last())
        .ok_or_else(|| Error::Manifest("no WAL-Ranges".into()))?;
    let position = |text: &str| text.parse::<Lsn>().map_err(|error| Error::Manifest(error.to_string()));
    let mut index = Index {
        format: FORMAT,
        id: id.clone(),
        pod: assignment.pod.clone(),
        due: due.to_owned(),
        system,
        version,
        started,
        ended: started,
        timeline: last.timeline,
        begins: position(&first.start)?,
        ends: position(&last.end)?,
        segment_size: segment_size(&assignment.data_directory.join("pg_wal")),
        size: streamed.size,
        stored,
        sha256,
        recipient: store.identities().first().map(Identity::recipient),
        parent: parent.map(|(parent, _)| parent.id.clone()),
    };
    wait_for_wal(store, assignment, &index, first.timeline).await?;
    let files = store.identities().encrypt(streamed.manifest)?;
    store.create(&layout::backup(&id, MANIFEST), files).await?;
    if let Some((parent, _)) = parent {
        check_parent(store, parent, &line_of(&assignment.data_directory)).await?;
    }
    if store.size(&layout::backup(&id, TAR)).await? != Some(stored) {
        return Err(Error::Gone(id));
    }
    index.ended = Timestamp::now();
    store.create(&layout::backup(&id, INDEX), serde_json::to_vec_pretty(&index).unwrap_or_default()).await?;
    info!(backup = id, bytes = index.size, stored = index.stored, "the base backup is complete");
    Ok(index)
}

fn part_size(expected: u64) -> usize {
    usize::try_from((expected / MOST_PARTS).max(PART)).unwrap_or(usize::MAX)
}

/// Bytes that a backup of this directory will have, about. Looked at beside the thread that archives: a large database takes its time.
pub async fn expected_size(data_directory: &Path) -> u64 {
    let directory = data_directory.to_owned();
    spawn_blocking(move || size_of(&directory)).await.unwrap_or_default()
}

fn size_of(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() && entry.file_name() != "pg_wal" => size_of(&entry.path()),
        Ok(found) if found.is_file() => found.len(),
        _ => 0,
    };
    entries.flatten().map(size).sum()
}

/// The size of a segment, by one that is there.
pub(super) fn segment_size(pg_wal: &Path) -> u64 {
    let entries = fs::read_dir(pg_wal).into_iter().flatten().flatten();
    let is_segment =
        |entry: &fs::DirEntry| matches!(entry.file_name().to_str().map(str::parse), Some(Ok(WalFile::Segment(_))));
    entries.filter(is_segment).find_map(|entry| Some(entry.metadata().ok()?.len())).unwrap_or(16 << 20)
}

async fn stream(
    store: &Store,
    child: &mut Child,
    id: &str,
    part: usize,
    progress: &Progress,
) -> Result<(Streamed, u64, String)> {
    let output = child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
    let (pieces, mut packed) = mpsc::channel::<Vec<u8>>(PIECES);
    let read = progress.read.clone();
    let identities = store.identities().clone();
    let packing = spawn_blocking(move || pack(output, pieces, &identities, &read));
    let mut upload = store.write(&layout::backup(id, TAR), part).await?;
    let (mut stored, mut digest) = (0, Context::new(&SHA256));
    let sent = async {
        while let Some(piece) = packed.recv().await {
            upload.wait_for_capacity(PARTS_AT_ONCE).await.map_err(store::Error::of)?;
            stored += piece.len() as u64;
            digest.update(&piece);
            upload.put(piece.into());
        }
        Ok::<_, store::Error>(())
    };
    let sent = tokio::select! {
        sent = sent => sent.map_err(Error::from),
        why = stalled(progress) => Err(why),
    };
    if sent.is_err() {
        // Whoever packs waits for what it says.
        let _ = child.kill();
    }
    // Nobody reads any more: whoever packs hears it.
    drop(packed);
    let streamed = packing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    match (sent, streamed) {
        (Ok(()), Ok(streamed)) => {
            upload.finish().await.map_err(store::Error::of)?;
            Ok((streamed, stored, hexadecimal(digest.finish().as_ref())))
        }
        (sent, streamed) => {
            let _ = upload.abort().await;
            sent?;
            Err(streamed.err().map_or_else(|| Error::Manifest("the stream ended".into()), Error::Read))
        }
    }
}

/// What is written goes on in pieces.
struct Pieces {
    to: mpsc::Sender<Vec<u8>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        if piece.is_empty() {
            return Ok(());
        }
        self.to.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Whatever is read from it is written into another, too.
struct Copying<'a, W> {
    from: ChildStdout,
    to: W,
    count: &'a AtomicU64,
}

impl<W: Write> Read for Copying<'_, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.to.write_all(buffer.get(..count).unwrap_or_default())?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Packs the tar file, encrypts it if there is a key, and takes the list of files out of it on the way.
fn pack(
    output: ChildStdout,
    pieces: mpsc::Sender<Vec<u8>>,
    identities: &Identities,
    read: &AtomicU64,
) -> io::Result<Streamed> {
    let pieces = Pieces { to: pieces, piece: Vec::with_capacity(PIECE) };
    let mut encoder = zstd::Encoder::new(encryption::Writer::new(pieces, identities, None)?, LEVEL)?;
    encoder.include_checksum(true)?;
    let copying = Copying { from: output, to: encoder, count: read };
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(256 << 10, copying));
    let mut manifest = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.as_os_str() == MANIFEST {
            entry.read_to_end(&mut manifest)?;
        }
    }
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink())?;
    let Copying { to: encoder, .. } = rest.into_inner();
    encoder.finish()?.finish()?.flush()?;
    Ok(Streamed { size: read.load(Ordering::Relaxed), manifest })
}

/// A backup without its WAL is none: all of it has to be in the store. What PostgreSQL let go before backups were asked for is brought, where it
/// is still there.
async fn wait_for_wal(store: &Store, assignment: &Assignment, index: &Index, first_timeline: u32) -> Result<()> {
    let pg_wal = assignment.data_directory.join("pg_wal");
    let last = index.last_segment();
    let mut segment = Segment::at(first_timeline, index.begins, index.segment_size);
    while segment.place < last.place {
        // The segment of a branch has the newer timeline's number.
        let candidates = [first_timeline, index.timeline].map(|timeline| Segment { timeline, ..segment });
        let mut is_there = false;
        for candidate in candidates {
            let file = WalFile::Segment(candidate);
            is_there |= store.size(&layout::wal(file)).await?.is_some();
            if !is_there && pg_wal.join(file.to_string()).is_file() {
                push(store, &pg_wal, file, true).await?;
                is_there = true;
            }
        }
        if !is_there {
            return Err(Error::WalGone(segment));
        }
        segment.place = segment.place.next(index.segment_size);
    }
    let since = Instant::now();
    let mut switch_at = since + SWITCH_AFTER;
    while store.size(&layout::wal(WalFile::Segment(last))).await?.is_none() {
        if since.elapsed() >= ARCHIVED_WITHIN {
            return Err(Error::WalLate(last));
        }
        if assignment.role == Role::Replica && Instant::now() >= switch_at {
            switch_at = Instant::now() + SWITCH_EVERY;
            ask_for_next_segment(assignment).await;
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Completes when nothing has come for too long.
async fn stalled(progress: &Progress) -> Error {
    let (mut read, mut since) = (0, Instant::now());
    while since.elapsed() < STALLED_FOR {
        sleep(LOOK_EVERY).await;
        let now = progress.read.load(Ordering::Relaxed);
        if now != read {
            (read, since) = (now, Instant::now());
        }
    }
    Error::Stalled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_with_the_database_so_that_a_store_takes_it() {
        assert_eq!(part_size(1 << 30), 16 << 20);
        assert!(part_size(1 << 40) as u64 * 10_000 >= 1 << 40);
    }

    #[test]
    fn a_backups_size_is_told_without_its_wal() {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir_all(data.path().join("base/1")).unwrap();
        fs::create_dir_all(data.path().join("pg_wal")).unwrap();
        fs::write(data.path().join("base/1/2"), [0; 10]).unwrap();
        fs::write(data.path().join("pg_wal/3"), [0; 100]).unwrap();
        assert_eq!(size_of(data.path()), 10);
    }
}
