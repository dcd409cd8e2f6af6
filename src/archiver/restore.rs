//! Out of the store: a base backup into a directory, and segment by segment the WAL behind it.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use futures::StreamExt;
use ring::digest::{Context, SHA256};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::info;

use super::encryption::{self, Identities};
use super::incremental::{self, CHANGED, FULL};
use super::packed::{self, hexadecimal};
use super::store::{self, Credentials, Store};
use super::{backups, install_crypto_provider};
use crate::backup::chain;
use crate::backup::index::Index;
use crate::backup::layout::{self, TAR};
use crate::backup::moment::{self, Unreachable, backup_for};
use crate::backup::parent::major;
use crate::backup::wal::{Segment, WalFile};
use crate::election::lineage::branches;
use crate::set::backup::{Location, Restore, Target};

/// So many pieces of a backup wait to be unpacked.
const PIECES: usize = 8;

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
        "the base backup {id} in the store is not what was written: {why}; restore from another one (pgset.dev/recover-to)"
    )]
    Damaged {
        /// Which one.
        id: String,
        /// What is wrong with it.
        why: String,
    },
    /// The backup upon which it stands.
    #[error(
        "the base backup {id} holds what has changed since {parent}, which is not in the store any more: restore from another one (pgset.dev/recover-to)"
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
    directory: &Path,
) -> Result<Restored, Error> {
    install_crypto_provider();
    let store = Store::open(&restore.from, &Credentials::read(credentials))?;
    let files = store.wal_files().await?;
    let backups = backups(&store).await.map_err(Error::Backups)?;
    // Of some only the files are kept, for those that stand upon them.
    let has_wal = |index: &Index| files.iter().any(|file| file.place() == Some(index.first_place()));
    let (usable, rest): (Vec<_>, Vec<_>) = backups.into_iter().partition(has_wal);
    let index = backup_for(&usable, &restore.target)?.clone();
    if major(&index.version) != major(postgres.version) {
        return Err(Error::Version { found: index.version, here: postgres.version.to_owned() });
    }
    if restore.target == Target::Latest {
        check_chain(&store, &index, &files).await?;
    }
    let settings = moment::settings(&restore.target);
    let Some(id) = &index.parent else {
        incremental::check_room(&index, None, directory)?;
        bring(&store, &index, directory).await?;
        return Ok(Restored { index, settings });
    };
    let parent = usable.iter().chain(&rest).find(|it| it.id == *id);
    let parent = parent.ok_or_else(|| Error::NoParent { id: index.id.clone(), parent: id.clone() })?;
    incremental::check_room(&index, Some(parent), directory)?;
    for (part, name) in [(parent, FULL), (&index, CHANGED)] {
        let place = directory.join(name);
        fs::create_dir(&place).map_err(|source| Error::Write { path: place.clone(), source })?;
        bring(&store, part, &place).await?;
    }
    incremental::combine(postgres.binaries, &index, directory).await?;
    Ok(Restored { index, settings })
}

/// Writes one base backup into an empty directory.
async fn bring(store: &Store, index: &Index, directory: &Path) -> Result<(), Error> {
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
        digest.update(&piece);
        // Whoever unpacks says himself what went wrong.
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let unpacked = unpacking.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    match unpacked {
        Err(error) if matches!(error.raw_os_error(), Some(28 | 122)) => {
            return Err(Error::Write { path: directory.to_owned(), source: error });
        }
        Err(error) => match encryption::Error::of_keys(&error) {
            Some(why) => return Err(store::Error::from(why).into()),
            None => return Err(damaged(error.to_string())),
        },
        Ok(()) => {}
    }
    if (length, hexadecimal(digest.finish().as_ref())) != (index.stored, index.sha256.clone()) {
        return Err(damaged("bytes were changed or lost".into()));
    }
    Ok(())
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
