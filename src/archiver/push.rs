//! One file of the WAL on its way to the store: put if nothing is there, compared if something is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::encryption;
use super::packed::{self, SEAL_LENGTH, Seal};
use super::store::{self, Created, Store};
use crate::backup::history::is_left_in;
use crate::backup::layout;
use crate::backup::wal::WalFile;
use crate::election::lineage::{Branch, branches};

/// A replica leaves it to the master to bring a segment, for so long: then nothing is sent twice.
const LEAVES_IT_TO_MASTER: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored now.
    Stored,
    /// It was, the same.
    AlreadyThere,
    /// It is the end of a timeline that the database left; nobody needs it.
    Left,
}

/// Why a file is not stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error("failed to read {}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// There is one of that name, and it can't be told whether it is the same.
    #[error(
        "{key} is in the store already and can't be compared: {why}. If that key is lost, give the set another prefix (pgset.dev/backup)"
    )]
    Unreadable {
        /// The object.
        key: String,
        /// Why not.
        why: encryption::Error,
    },
    /// There is one of that name, and it is another.
    #[error(
        "{0} is in the store already, with other contents: somebody else writes to this prefix, or has changed what is there. Nothing is \
         overwritten, and this member archives nothing more until one of the two is moved away"
    )]
    Different(WalFile),
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// Sees to it that a file of `pg_wal` is in the store. A replica gives the master the time to bring it.
pub async fn push(store: &Store, pg_wal: &Path, file: WalFile, is_master: bool) -> Result<Outcome> {
    let path = pg_wal.join(file.to_string());
    let key = layout::wal(file);
    if let WalFile::Segment(segment) = file {
        let size = fs::metadata(&path).map_err(|source| Error::File { path: path.clone(), source })?.len();
        if is_left_in(segment, &newest_history(pg_wal, segment.timeline), size) {
            return Ok(Outcome::Left);
        }
    }
    let since = Instant::now();
    while !is_master && since.elapsed() < LEAVES_IT_TO_MASTER {
        if let Some(mark) = mark(store, &key).await? {
            return compare(store, &key, file, &mark, &blocking(&path, packed::seal_of).await?).await;
        }
        sleep(LOOK_EVERY).await;
    }
    let identities = store.identities().clone();
    let packed = blocking(&path, move |path| packed::pack(path, &identities)).await?;
    match store.create(&key, packed.bytes).await? {
        Created::Yes => Ok(Outcome::Stored),
        Created::No => {
            let mark = mark(store, &key).await?.unwrap_or_default();
            compare(store, &key, file, &mark, &packed.seal).await
        }
    }
}

/// Those bytes of an object that say what it holds, if it was written by whoever has this member's key, or none as this one; absent if there is no
/// object.
async fn mark(store: &Store, key: &str) -> Result<Option<Vec<u8>>, store::Error> {
    match store.identities().first() {
        Some(_) => store.beginning_of(key, encryption::HEADER_AT_MOST).await,
        None => store.end_of(key, SEAL_LENGTH as u64).await,
    }
}

async fn compare(store: &Store, key: &str, file: WalFile, mark: &[u8], mine: &Seal) -> Result<Outcome> {
    match file {
        _ if is_same(store, key, mark, mine).await? => Ok(Outcome::AlreadyThere),
        // Each member that leaves a timeline has as much of its last segment as it received.
        WalFile::Partial(_) => Ok(Outcome::AlreadyThere),
        _ => Err(Error::Different(file)),
    }
}

/// Whether an object holds this: by its mark, or as a whole where that does not say it.
async fn is_same(store: &Store, key: &str, mark: &[u8], mine: &Seal) -> Result<bool> {
    let identities = store.identities();
    if identities.is_sealed(mark, mine) {
        return Ok(true);
    }
    if let Some(theirs) = Seal::read(mark) {
        return Ok(theirs == *mine);
    }
    // Packed by somebody else, before there was this key, or damaged.
    let bytes = store.get(key).await?.unwrap_or_default();
    let content = match identities.decrypt(bytes) {
        Ok(bytes) => zstd::decode_all(&bytes[..]).ok(),
        Err(error) => match encryption::Error::of_keys(&error) {
            Some(why) => return Err(Error::Unreadable { key: key.to_owned(), why }),
            None => None,
        },
    };
    Ok(content.is_some_and(|bytes| Seal::of_bytes(&bytes) == *mine))
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let owned = path.to_owned();
    let outcome = spawn_blocking(move || work(&owned)).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    outcome.map_err(|source| Error::File { path: path.to_owned(), source })
}

/// The newest history in `pg_wal` that goes back beyond a timeline; empty if there is none.
fn newest_history(pg_wal: &Path, timeline: u32) -> Vec<Branch> {
    let Ok(entries) = fs::read_dir(pg_wal) else { return Vec::new() };
    let newer = entries.flatten().filter_map(|entry| match entry.file_name().to_str()?.parse() {
        Ok(WalFile::History(of)) if of > timeline => Some((of, entry.path())),
        _ => None,
    });
    let mut newer: Vec<_> = newer.collect();
    newer.sort();
    let read = |(_, path): &(u32, PathBuf)| Some(branches(&fs::read_to_string(path).ok()?));
    let is_about = |branches: &Vec<Branch>| branches.iter().any(|branch| branch.timeline == timeline);
    newer.iter().rev().filter_map(read).find(is_about).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: &str = "000000010000000000000005";

    fn pg_wal(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    fn segment(fill: u8) -> Vec<u8> {
        vec![fill; 1 << 20]
    }

    async fn pushed(store: &Store, pg_wal: &tempfile::TempDir, name: &str, is_master: bool) -> Result<Outcome> {
        push(store, pg_wal.path(), name.parse().unwrap(), is_master).await
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_already_is_compared_and_never_overwritten() {
        let store = Store::in_memory();
        let mine = pg_wal(&[(SEGMENT, &segment(1))]);
        assert_eq!(pushed(&store, &mine, SEGMENT, true).await.unwrap(), Outcome::Stored);
        assert_eq!(pushed(&store, &mine, SEGMENT, true).await.unwrap(), Outcome::AlreadyThere);
        assert_eq!(pushed(&store, &mine, SEGMENT, false).await.unwrap(), Outcome::AlreadyThere);
        let other = pg_wal(&[(SEGMENT, &segment(2))]);
        for is_master in [true, false] {
            let outcome = pushed(&store, &other, SEGMENT, is_master).await;
            assert!(matches!(outcome, Err(Error::Different(_))), "{outcome:?}");
        }
        assert_eq!(pushed(&store, &mine, SEGMENT, true).await.unwrap(), Outcome::AlreadyThere, "it is as it was");
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_brings_what_its_master_does_not() {
        let store = Store::in_memory();
        let mine = pg_wal(&[(SEGMENT, &segment(1))]);
        let since = Instant::now();
        assert_eq!(pushed(&store, &mine, SEGMENT, false).await.unwrap(), Outcome::Stored);
        assert!(since.elapsed() >= LEAVES_IT_TO_MASTER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_segment_that_somebody_else_packed_is_compared_by_its_contents() {
        let store = Store::in_memory();
        let mine = pg_wal(&[(SEGMENT, &segment(1))]);
        let key = layout::wal(SEGMENT.parse().unwrap());
        store.create(&key, zstd::encode_all(&segment(1)[..], 1).unwrap()).await.unwrap();
        assert_eq!(pushed(&store, &mine, SEGMENT, true).await.unwrap(), Outcome::AlreadyThere);
        store.put(&key, b"rubbish".to_vec()).await.unwrap();
        assert!(matches!(pushed(&store, &mine, SEGMENT, true).await, Err(Error::Different(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_encrypted_is_compared_as_well_and_by_whoever_has_no_key_not_at_all() {
        let plain = Store::in_memory();
        let store = plain.with_identities(encryption::tests::identities());
        let (mine, other) = (pg_wal(&[(SEGMENT, &segment(1))]), pg_wal(&[(SEGMENT, &segment(2))]));
        assert_eq!(pushed(&store, &mine, SEGMENT, true).await.unwrap(), Outcome::Stored);
        let key = layout::wal(SEGMENT.parse().unwrap());
        assert!(encryption::is_encrypted(&store.get(&key).await.unwrap().unwrap()));
        for is_master in [true, false] {
            assert_eq!(pushed(&store, &mine, SEGMENT, is_master).await.unwrap(), Outcome::AlreadyThere);
            assert!(matches!(pushed(&store, &other, SEGMENT, is_master).await, Err(Error::Different(_))));
            let without = pushed(&plain, &mine, SEGMENT, is_master).await.unwrap_err();
            let without = without.to_string();
            assert!(without.contains("AGE_IDENTITY"), "no alarm, but a key that is missing: {without}");
            assert!(without.starts_with(&key) && without.contains("pgset.dev/backup"), "what to do: {without}");
        }
        let rotated = plain.with_identities(encryption::tests::rotated());
        assert_eq!(pushed(&rotated, &mine, SEGMENT, true).await.unwrap(), Outcome::AlreadyThere);
        assert!(matches!(pushed(&rotated, &other, SEGMENT, true).await, Err(Error::Different(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_stored_before_there_was_a_key_is_compared_too() {
        let plain = Store::in_memory();
        let mine = pg_wal(&[(SEGMENT, &segment(1))]);
        assert_eq!(pushed(&plain, &mine, SEGMENT, true).await.unwrap(), Outcome::Stored);
        let store = plain.with_identities(encryption::tests::identities());
        assert_eq!(pushed(&store, &mine, SEGMENT, true).await.unwrap(), Outcome::AlreadyThere);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_timeline_that_was_left_is_not_stored_as_if_it_were_whole() {
        let store = Store::in_memory();
        let history = b"1\t0/580000\tno recovery target specified\n";
        let replica = pg_wal(&[(SEGMENT, &segment(1)), ("00000002.history", history)]);
        assert_eq!(pushed(&store, &replica, SEGMENT, false).await.unwrap(), Outcome::Left);
        assert_eq!(store.get(&layout::wal(SEGMENT.parse().unwrap())).await.unwrap(), None);
        assert_eq!(pushed(&store, &replica, "00000002.history", true).await.unwrap(), Outcome::Stored);
    }

    #[tokio::test(start_paused = true)]
    async fn two_promotions_to_one_timeline_are_told_and_two_ends_of_one_are_not() {
        let store = Store::in_memory();
        for (name, is_alarm) in [("00000002.history", true), ("000000010000000000000005.partial", false)] {
            let one = pg_wal(&[(name, b"1\t0/5000000\n")]);
            let other = pg_wal(&[(name, b"1\t0/5800000\n")]);
            assert_eq!(pushed(&store, &one, name, true).await.unwrap(), Outcome::Stored);
            assert_eq!(pushed(&store, &other, name, true).await.is_err(), is_alarm, "{name}");
        }
    }
}
