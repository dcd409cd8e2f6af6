//! What was let go: WAL that the store did not take before it had filled its part of the volume. The database lives, and what was let go can't be
//! restored: the next base backup, which is due at once, begins behind it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nix::sys::statvfs::statvfs;
use tokio::time::Instant;
use tracing::warn;

use crate::backup::due::Gap;
use crate::backup::index::Index;
use crate::backup::limit::{self, Room};
use crate::backup::wal::WalFile;
use crate::set::backup::Limit;

/// In the agent's run directory, so that another archiver of this pod knows it.
const FILE: &str = "archiver-gap.json";
/// Nothing is let go before a store has been away for so long: it may only be slow.
const AWAY_FOR: Duration = Duration::from_secs(60);
/// How often the store is tried while WAL is let go: each try takes as long as a store may take, and PostgreSQL writes on.
const TRY_EVERY: Duration = Duration::from_secs(30);

/// Keeps what was let go.
#[derive(Debug)]
pub(super) struct Gaps {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    gap: Option<Gap>,
    tried_at: Option<Instant>,
}

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is tried, and waits if the store does not take it.
    Kept,
    /// It is tried, and let go if the store does not take it.
    TriedOnce,
    /// It is let go.
    LetGo,
}

// === impl Gaps ===

impl Gaps {
    /// As an earlier archiver of this pod left it.
    pub(super) fn of(run: &Path) -> Self {
        let path = run.join(FILE);
        let gap = fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok());
        Self { path, state: Mutex::new(State { gap, tried_at: None }) }
    }

    pub(super) fn gap(&self) -> Option<Gap> {
        self.lock().gap.clone()
    }

    /// What is to become of the next file, while the store has not taken any since then and so much room is left for what waits.
    pub(super) fn fate(&self, since: Option<Timestamp>, left: Option<u64>, segment_size: u64) -> Fate {
        let is_away = since.is_some_and(|since| Timestamp::now().duration_since(since).unsigned_abs() >= AWAY_FOR);
        if !is_away || left.is_none_or(|left| left >= segment_size) {
            return Fate::Kept;
        }
        let mut state = self.lock();
        if state.tried_at.is_some_and(|at| at.elapsed() < TRY_EVERY) {
            return Fate::LetGo;
        }
        state.tried_at = Some(Instant::now());
        Fate::TriedOnce
    }

    /// A master lets a file go.
    pub(super) fn let_go(&self, file: WalFile) {
        let mut state = self.lock();
        let first = state.gap.take().map_or_else(|| file.to_string(), |gap| gap.first);
        state.gap = Some(Gap { first, until: Timestamp::now() });
        self.write(state.gap.as_ref());
    }

    /// Forgets what a backup has closed.
    pub(super) fn close(&self, backups: &[Index]) {
        let mut state = self.lock();
        if state.gap.as_ref().is_some_and(|gap| gap.is_closed_by(backups)) {
            state.gap = None;
            self.write(None);
        }
    }

    fn write(&self, gap: Option<&Gap>) {
        let written = match gap {
            Some(gap) => fs::write(&self.path, serde_json::to_vec(gap).unwrap_or_default()),
            None => fs::remove_file(&self.path),
        };
        if let Err(error) =
            written.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        {
            warn!(%error, "failed to note what was let go");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the volume is filled that `pg_wal` is on; absent if the file system does not tell.
pub(super) fn room(pg_wal: &Path) -> Option<Room> {
    let found = statvfs(pg_wal).ok()?;
    Some(Room {
        size: found.blocks().saturating_mul(found.fragment_size()),
        free: found.blocks_available().saturating_mul(found.fragment_size()),
    })
}

/// How many bytes more may wait in `pg_wal`, beside this many files; absent where nothing limits it or the file system does not tell.
pub(super) fn left(limit: Limit, pg_wal: &Path, files: usize, segment_size: u64) -> Option<u64> {
    limit::left(limit, (files as u64).saturating_mul(segment_size), room(pg_wal)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::index::tests::backup;

    const SEGMENT: u64 = 16 << 20;

    fn ago(seconds: i64) -> Timestamp {
        Timestamp::from_second(Timestamp::now().as_second() - seconds).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_let_go_before_the_room_is_used_up_and_the_store_has_been_away_for_a_while() {
        let run = tempfile::tempdir().unwrap();
        let gaps = Gaps::of(run.path());
        assert_eq!(gaps.fate(None, Some(0), SEGMENT), Fate::Kept, "the store takes it");
        assert_eq!(gaps.fate(Some(ago(30)), Some(0), SEGMENT), Fate::Kept, "it may only be slow");
        assert_eq!(gaps.fate(Some(ago(300)), Some(SEGMENT), SEGMENT), Fate::Kept, "there is room for one more");
        assert_eq!(gaps.fate(Some(ago(300)), None, SEGMENT), Fate::Kept, "the owner wants it so");
        assert_eq!(gaps.fate(Some(ago(300)), Some(0), SEGMENT), Fate::TriedOnce);
        assert_eq!(gaps.fate(Some(ago(300)), Some(0), SEGMENT), Fate::LetGo);
        tokio::time::advance(TRY_EVERY).await;
        assert_eq!(gaps.fate(Some(ago(300)), Some(0), SEGMENT), Fate::TriedOnce);
    }

    #[test]
    fn what_was_let_go_is_known_to_the_next_archiver_until_a_backup_was_begun_behind_it() {
        let run = tempfile::tempdir().unwrap();
        let gaps = Gaps::of(run.path());
        for name in ["000000010000000000000005", "000000010000000000000006"] {
            gaps.let_go(name.parse().unwrap());
        }
        let gap = Gaps::of(run.path()).gap().unwrap();
        assert_eq!(gap.first, "000000010000000000000005");
        gaps.close(&[]);
        assert_eq!(gaps.gap(), Some(gap));
        let behind = Index { started: ago(-10), ..backup(1, 1, 1) };
        gaps.close(&[behind]);
        assert_eq!(Gaps::of(run.path()).gap(), None);
    }
}
