//! Where a database is restored: how much room stays free there, and who hears how far it has come.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use crate::backup::report::Brought;

/// How often it is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// An empty directory for a database.
#[derive(Debug)]
pub struct Place {
    /// The directory.
    pub directory: PathBuf,
    /// The set's database is on the same volume, and goes on meanwhile: a part of it stays free.
    pub is_beside: bool,
    /// The file that says how far it has come.
    pub progress: Option<PathBuf>,
    size: AtomicU64,
    read: AtomicU64,
}

// === impl Place ===

impl Place {
    /// A directory of whose volume the database may have all.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            is_beside: false,
            progress: None,
            size: AtomicU64::default(),
            read: AtomicU64::default(),
        }
    }

    /// So many bytes are to come.
    pub(super) fn expect(&self, bytes: u64) {
        self.size.store(bytes, Ordering::Relaxed);
    }

    /// So many have.
    pub(super) fn note(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Tells how far it has come for as long as it is waited for.
    pub(super) async fn tell(&self) -> Infallible {
        loop {
            sleep(TELL_EVERY).await;
            let Some(file) = &self.progress else { continue };
            let brought = Brought { bytes: self.read.load(Ordering::Relaxed), size: self.size.load(Ordering::Relaxed) };
            // Nothing depends on it.
            let _ = fs::write(file, serde_json::to_vec(&brought).unwrap_or_default());
        }
    }
}
