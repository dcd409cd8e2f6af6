//! Out of the store: a base backup into a directory, and segment by segment the WAL behind it.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use futures::StreamExt;
use ring::digest::{Context, SHA256};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::encryption::{self, Identities};
use super::incremental::{self, CHANGED, FULL};
use super::packed::{self, hexadecimal};
use super::place::Place;
use super::store::{self, Credentials, Store};
use super::{backups, install_crypto_provider};
use crate::backup::chain::{self, has_wal};
use crate::backup::index::Index;
use crate::backup::layout::{self, TAR};
use crate::backup::line::{Line, newest};
use crate::backup::moment::{self, Unreachable, backup_for};
use crate::backup::parent::major;
use crate::backup::wal::{Segment, WalFile};
use crate::election::lineage::branches;
use crate::set::backup::{Location, Restore, Target};

/// So many pieces of a backup wait to be unpacked.
const PIECES: usize = 2;

/// Why nothing is restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// What is in it.
    #[error("{0}")]
    Backups(String),
    /// The moment.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The image's PostgreSQL is another.
    #[error(
        "the backup is PostgreSQL {found}'s, and this image has {here}: restore with an image of that major version"
    )]
    Version {
        /// The backup's version.
        found: String,
        /// The image's.
        here: String,
    },
    /// The backup.
    #[error(
        "the base backup {id} in the store is not what was written: {why}; restore from another one (pgset.dev/recover-to), or move its backup.json away: \
         then the one before it is taken, and the WAL from there on"
    )]
    Damaged {
        /// Which one.
        id: String,
        /// What is wrong with it.
        why: String,
    },
    /// The backup upon which it stands.
    #[error(
        "the base backup {id} holds what has changed since {parent}, which is not in the store any more: restore from another one (pgset.dev/recover-to), \
         or move its backup.json away: then the one before it is taken"
    )]
    NoParent {
        /// Which one.
        id: String,
        /// The full one.
        parent: String,
    },
    /// Two backups that are to become one.
    #[error(transparent)]
    Incremental(#[from] incremental::Error),
    /// The WAL.
    #[error(
        "the WAL segment {missing} is missing in the store, though later ones up to {last} are there: a restore can't go beyond it. Say a moment \
         before it (pgset.dev/recover-to)"
    )]
    Hole {
        /// The first that is missing.
        missing: Segment,
        /// The last that is there.
        last: Segment,
    },
    /// The disk.
    #[error("failed to write the base backup below {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The image's PostgreSQL.
#[derive(Clone, Copy, Debug)]
pub struct Postgres<'a> {
    /// Its programs.
    pub binaries: &'a Path,
    /// Its version.
    pub version: &'a str,
}

/// What was restored, and how PostgreSQL goes on from it.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The backup.
    pub index: Index,
    /// The settings by which PostgreSQL stops at the moment that was asked for.
    pub settings: Vec<(&'static str, String)>,
}

/// Writes the base backup that leads to a moment into an empty directory.
pub async fn restore_base(
    restore: &Restore,
    credentials: &Path,
    postgres: &Postgres<'_>,
    place: &Place,
) -> Result<Restored, Error> {
    install_crypto_provider();
    let store = Store::open(&restore.from, &Credentials::read(credentials))?;
    tokio::select! {
        restored = restore_from(&store, &restore.target, postgres, place) => restored,
        never = place.tell() => match never {},
    }
}

async fn restore_from(
    store: &Store,
    target: &Target,
    postgres: &Postgres<'_>,
    place: &Place,
) -> Result<Restored, Error> {
    let directory = place.directory.as_path();
    let files = store.wal_files().await?;
    let backups = backups(store).await.map_err(Error::Backups)?;
    let (usable, rest): (Vec<_>, Vec<_>) = backups.into_iter().partition(|index| has_wal(index, &files));
    let line = line(store, &files, &usable).await?;
    let index = backup_for(&usable, target, &line)?.clone();
    if major(&index.version) != major(postgres.version) {
        return Err(Error::Version { found: index.version, here: postgres.version.to_owned() });
    }
    if *target == Target::Latest {
        check_chain(store, &index, &files).await?;
    }
    let settings = moment::settings(target, &line);
    let Some(id) = &index.parent else {
        incremental::check_room(&index, None, place)?;
        place.expect(index.stored);
        bring(store, &index, directory, place).await?;
        return Ok(Restored { index, settings });
    };
    let parent = usable.iter().chain(&rest).find(|it| it.id == *id);
    let parent = parent.ok_or_else(|| Error::NoParent { id: index.id.clone(), parent: id.clone() })?;
    if let Err(why) = incremental::check(&index, parent, postgres.binaries, place) {
        if !has_wal(parent, &files) || incremental::check_room(parent, None, place).is_err() {
            return Err(why.into());
        }
        if *target == Target::Latest {
            check_chain(store, parent, &files).await?;
        }
        warn!(%why, "the full base backup and all WAL behind it are taken instead");
        place.expect(parent.stored);
        bring(store, parent, directory, place).await?;
        return Ok(Restored { index: parent.clone(), settings });
    }
    place.expect(parent.stored + index.stored);
    for (part, name) in [(parent, FULL), (&index, CHANGED)] {
        let path = directory.join(name);
        fs::create_dir(&path).map_err(|source| Error::Write { path: path.clone(), source })?;
        bring(store, part, &path, place).await?;
    }
    incremental::combine(postgres.binaries, &index, directory).await?;
    Ok(Restored { index, settings })
}

/// Writes one base backup into an empty directory.
async fn bring(store: &Store, index: &Index, directory: &Path, watched: &Place) -> Result<(), Error> {
    info!(backup = index.id, "restoring a base backup");
    let damaged = |why: String| Error::Damaged { id: index.id.clone(), why };
    let mut stream = store.read(&layout::backup(&index.id, TAR)).await?.ok_or_else(|| damaged("it is gone".into()))?;
    let (pieces, packed) = mpsc::channel::<Vec<u8>>(PIECES);
    let place = directory.to_owned();
    let identities = store.identities().clone();
    let unpacking = spawn_blocking(move || unpack(packed, &identities, &place));
    let (mut digest, mut length) = (Context::new(&SHA256), 0);
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        length += piece.len() as u64;
        watched.note(piece.len());
        digest.update(&piece);
        // Whoever unpacks says himself what went wrong.
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let unpacked = unpacking.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    match unpacked {
        // `tar` keeps the kind of an error, and nothing else of the kernel's.
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            return Err(Error::Write { path: directory.to_owned(), source: error });
        }
        Err(error) => match encryption::Error::of_keys(&error) {
            // Whoever has the key that it was written with can read it, or it is another thing than it was.
            Some(why) if !store.identities().have(index.recipient.as_deref()) => {
                return Err(store::Error::from(why).into());
            }
            _ => return Err(damaged(error.to_string())),
        },
        Ok(()) => {}
    }
    if (length, hexadecimal(digest.finish().as_ref())) != (index.stored, index.sha256.clone()) {
        return Err(damaged("bytes were changed or lost".into()));
    }
    Ok(())
}

/// The line of the history that the database has come to.
async fn line(store: &Store, files: &[WalFile], backups: &[Index]) -> Result<Line, Error> {
    let timeline = newest(files, backups);
    let history =
        if timeline > 1 { read(store, WalFile::History(timeline)).await?.unwrap_or_default() } else { Vec::new() };
    Ok(Line::of(timeline, &String::from_utf8_lossy(&history)))
}

/// Up to the end means up to the end: a segment that is missing on the way is told before anything is made.
async fn check_chain(store: &Store, index: &Index, files: &[WalFile]) -> Result<(), Error> {
    let newest = chain::newest_timeline(files, index);
    let history =
        if newest > 1 { read(store, WalFile::History(newest)).await?.unwrap_or_default() } else { Vec::new() };
    let history = branches(&String::from_utf8_lossy(&history));
    match chain::hole(index, files, newest, &history) {
        None => Ok(()),
        Some((missing, last)) => Err(Error::Hole { missing, last }),
    }
}

/// A file of the WAL as it was; absent if there is none.
async fn read(store: &Store, file: WalFile) -> Result<Option<Vec<u8>>, Error> {
    let Some(bytes) = store.get(&layout::wal(file)).await? else { return Ok(None) };
    let mut content = Vec::new();
    packed::unpack(bytes, store.identities(), &mut content).map_err(|error| {
        match encryption::Error::of_keys(&error) {
            Some(why) => store::Error::from(why).into(),
            None => Error::Backups(format!("{file} in the store is damaged: {error}")),
        }
    })?;
    Ok(Some(content))
}

/// What comes in pieces, as one stream.
struct Pieces {
    from: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.piece.len() {
            let Some(piece) = self.from.blocking_recv() else { return Ok(0) };
            (self.piece, self.at) = (piece, 0);
        }
        let count = self.piece.get(self.at..).unwrap_or_default().read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

fn unpack(packed: mpsc::Receiver<Vec<u8>>, identities: &Identities, directory: &Path) -> io::Result<()> {
    let packed = encryption::Reader::new(Pieces { from: packed, piece: Vec::new(), at: 0 }, identities)?;
    let mut tar = zstd::Decoder::new(packed)?;
    let mut archive = tar::Archive::new(&mut tar);
    archive.set_preserve_permissions(true);
    archive.set_overwrite(false);
    archive.unpack(directory)?;
    // Up to the end, so that what is checked is all of it.
    io::copy(&mut tar, &mut io::sink()).map(drop)
}

/// Brings one file of the WAL, as PostgreSQL's `restore_command` asks. False if there is none.
pub async fn fetch_segment(from: &Location, credentials: &Path, file: WalFile, to: &Path) -> Result<bool, Error> {
    install_crypto_provider();
    let store = Store::open(from, &Credentials::read(credentials))?;
    let Some(content) = read(&store, file).await? else { return Ok(false) };
    fs::write(to, content).map_err(|source| Error::Write { path: to.to_owned(), source })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::index::tests::backup;
    use crate::backup::layout::INDEX;

    /// A base backup with one file of this name, and its first segment of WAL.
    async fn store_backup(store: &Store, index: Index, file: &str) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o600);
        tar.append_data(&mut header, file, io::empty()).unwrap();
        let packed = zstd::encode_all(&tar.into_inner().unwrap()[..], 1).unwrap();
        let sha256 = hexadecimal(ring::digest::digest(&SHA256, &packed).as_ref());
        let index = Index { stored: packed.len() as u64, sha256, ..index };
        let segment = Segment::at(index.timeline, index.begins, index.segment_size);
        store.put(&layout::wal(WalFile::Segment(segment)), Vec::new()).await.unwrap();
        store.put(&layout::backup(&index.id, TAR), packed).await.unwrap();
        store.put(&layout::backup(&index.id, INDEX), serde_json::to_vec(&index).unwrap()).await.unwrap();
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn where_two_backups_cannot_become_one_the_full_one_is_brought_if_its_wal_is_there() {
        let (store, directory) = (Store::in_memory(), tempfile::tempdir().unwrap());
        let upon = Index { parent: Some("20261101".into()), ..backup(2, 1, 2) };
        store_backup(&store, backup(1, 1, 1), "full").await;
        store_backup(&store, upon.clone(), "changes").await;
        // No pg_combinebackup is in it.
        let postgres = Postgres { binaries: directory.path(), version: "17.6" };
        let place = directory.path().join("data");
        fs::create_dir(&place).unwrap();
        let restored = restore_from(&store, &Target::Latest, &postgres, &Place::new(&place)).await.unwrap();
        assert_eq!((restored.index.id.as_str(), names(&place)), ("20261101", vec!["full".to_owned()]));

        let between = layout::wal("000000010000000000000001".parse().unwrap());
        store.delete(&between).await.unwrap();
        let why = restore_from(&store, &Target::Latest, &postgres, &Place::new(&place)).await.unwrap_err();
        assert!(why.to_string().contains("no pg_combinebackup"), "only its files are kept: {why}");
    }

    #[tokio::test]
    async fn a_changed_byte_of_a_base_backup_is_told_and_so_is_the_way_out() {
        let (store, directory) = (Store::in_memory(), tempfile::tempdir().unwrap());
        store_backup(&store, backup(1, 1, 1), "full").await;
        let key = layout::backup("20261101", TAR);
        let mut packed = store.get(&key).await.unwrap().unwrap();
        *packed.last_mut().unwrap() ^= 1;
        store.put(&key, packed).await.unwrap();
        let postgres = Postgres { binaries: directory.path(), version: "17.6" };
        let why = restore_from(&store, &Target::Latest, &postgres, &Place::new(directory.path()))
            .await
            .unwrap_err()
            .to_string();
        assert!(why.contains("20261101") && why.contains("move its backup.json away"), "{why}");
    }
}
