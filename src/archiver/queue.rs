//! The files of the WAL on their way, several at once: what PostgreSQL asks for, and what it will ask for next.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::push::{self, Outcome};
use super::store::Store;
use crate::backup::wal::WalFile;
use crate::errors::with_causes;

/// So many files are on their way at once. Each takes as much memory as it is long when it is packed, 16 MB at most by default.
const AT_ONCE: usize = 3;
/// A file that is on its way for so long is told as trouble, though nothing has failed yet.
const LATE_AFTER: Duration = Duration::from_secs(60);

type Result<T, E = String> = std::result::Result<T, E>;

/// What a file on its way has come to; absent while it is.
type Progress = watch::Receiver<Option<Result<Outcome>>>;

/// What is known of the files of the WAL.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// The last one that is safely stored, and when that was seen.
    pub archived: Option<(WalFile, Timestamp)>,
    /// What goes wrong, and since when.
    pub trouble: Option<(String, Timestamp)>,
    /// A file that is there with other contents.
    pub alarm: Option<(WalFile, String)>,
}

/// The files on their way.
#[derive(Debug)]
pub struct Queue {
    pg_wal: PathBuf,
    jobs: Mutex<BTreeMap<WalFile, Progress>>,
    account: Mutex<Account>,
}

// === impl Account ===

impl Account {
    fn has_trouble(&mut self, why: String) {
        let since = self.trouble.take().map_or_else(Timestamp::now, |(_, since)| since);
        self.trouble = Some((why, since));
    }
}

// === impl Queue ===

impl Queue {
    /// Of a member with this `pg_wal`.
    #[must_use]
    pub fn new(data_directory: &Path) -> Arc<Self> {
        Arc::new(Self { pg_wal: data_directory.join("pg_wal"), jobs: Mutex::default(), account: Mutex::default() })
    }

    /// What is known by now.
    #[must_use]
    pub fn account(&self) -> Account {
        self.account.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The files that wait for PostgreSQL to ask for them, the oldest first.
    #[must_use]
    pub fn waiting(&self) -> Vec<WalFile> {
        let Ok(entries) = fs::read_dir(self.pg_wal.join("archive_status")) else { return Vec::new() };
        let ready =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".ready")?.parse().ok());
        let mut ready: Vec<_> = ready.collect();
        // As PostgreSQL asks for them: histories first, so that no other promotion takes the same number.
        ready.sort_by_key(|file| (!matches!(file, WalFile::History(_)), *file));
        ready
    }

    /// Sees to it that a file is in the store, and begins with those that come next.
    pub async fn push(self: &Arc<Self>, store: &Store, file: WalFile, is_master: bool) -> Result<Outcome> {
        if let Some((about, why)) = self.account().alarm.filter(|(about, _)| *about != file) {
            return Err(format!("nothing is archived because of {about}: {why}"));
        }
        let mut progress = self.start(store, file, is_master);
        for next in self.waiting().into_iter().take(AT_ONCE) {
            self.start(store, next, is_master);
        }
        let outcome = progress.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        // PostgreSQL asks once for what went well, and anew for what did not.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&file);
        outcome.unwrap_or_else(|| Err("the archiver was stopped".to_owned()))
    }

    fn start(self: &Arc<Self>, store: &Store, file: WalFile, is_master: bool) -> Progress {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |progress: &Progress| matches!(&*progress.borrow(), Some(Err(_)));
        if let Some(progress) = jobs.get(&file).filter(|progress| !is_over(progress)) {
            return progress.clone();
        }
        let (publish, progress) = watch::channel(None);
        jobs.insert(file, progress.clone());
        let (queue, store) = (self.clone(), store.clone());
        tokio::spawn(async move {
            let mut work = std::pin::pin!(push::push(&store, &queue.pg_wal, file, is_master));
            let outcome = tokio::select! {
                outcome = &mut work => outcome,
                () = sleep(LATE_AFTER) => {
                    queue.failed(&format!("the store takes longer than {} s for {file}", LATE_AFTER.as_secs()));
                    work.await
                }
            };
            queue.note(file, &outcome);
            publish.send_replace(Some(outcome.map_err(|why| with_causes(&why))));
        });
        progress
    }

    /// Where the files are.
    #[must_use]
    pub fn pg_wal(&self) -> &Path {
        &self.pg_wal
    }

    /// The store can't even be asked.
    pub fn failed(&self, why: &str) {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        account.has_trouble(why.to_owned());
    }

    fn note(&self, file: WalFile, outcome: &Result<Outcome, push::Error>) {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(outcome) => {
                tracing::debug!(%file, ?outcome, "archived");
                if account.trouble.take().is_some() {
                    info!(%file, "the WAL is archived again");
                }
                account.alarm = account.alarm.take().filter(|(about, _)| *about != file);
                account.archived = Some(newest(account.archived.take(), (file, Timestamp::now())));
            }
            Err(why) => {
                let text = with_causes(why);
                warn!(%file, error = text, "failed to archive");
                if matches!(why, push::Error::Different(_)) {
                    account.alarm = Some((file, text.clone()));
                }
                account.has_trouble(text);
            }
        }
    }
}

/// Several are on their way at once, and end in any order.
fn newest(known: Option<(WalFile, Timestamp)>, other: (WalFile, Timestamp)) -> (WalFile, Timestamp) {
    let place = |(file, _): &(WalFile, Timestamp)| (file.place(), *file);
    match known {
        Some(old) if other.0.place().is_none() || place(&old) > place(&other) => old,
        _ => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::layout;

    fn member(segments: &[(&str, u8)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let pg_wal = directory.path().join("pg_wal");
        fs::create_dir_all(pg_wal.join("archive_status")).unwrap();
        for (name, fill) in segments {
            fs::write(pg_wal.join(name), vec![*fill; 1 << 20]).unwrap();
            fs::write(pg_wal.join(format!("archive_status/{name}.ready")), "").unwrap();
        }
        directory
    }

    const NAMES: [&str; 3] = ["000000010000000000000001", "000000010000000000000002", "000000010000000000000003"];

    #[tokio::test]
    async fn what_comes_next_is_stored_before_it_is_asked_for() {
        let directory = member(&NAMES.map(|name| (name, 1)));
        let (store, queue) = (Store::in_memory(), Queue::new(directory.path()));
        queue.push(&store, NAMES[0].parse().unwrap(), true).await.unwrap();
        for name in NAMES {
            let key = layout::wal(name.parse().unwrap());
            let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while store.get(&key).await.unwrap().is_none() {
                assert!(std::time::Instant::now() < limit, "{name} was not stored: {:?}", queue.account());
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(queue.push(&store, NAMES[1].parse().unwrap(), true).await, Ok(Outcome::Stored));
    }

    #[tokio::test]
    async fn an_alarm_stops_all_others_until_the_file_is_the_same() {
        let directory = member(&[(NAMES[0], 1), (NAMES[1], 1)]);
        let (store, queue) = (Store::in_memory(), Queue::new(directory.path()));
        let key = layout::wal(NAMES[0].parse().unwrap());
        store.create(&key, b"somebody else's".to_vec()).await.unwrap();
        assert!(queue.push(&store, NAMES[0].parse().unwrap(), true).await.is_err());
        let why = queue.push(&store, NAMES[1].parse().unwrap(), true).await.unwrap_err();
        assert!(why.contains(NAMES[0]), "{why}");
        store.delete(&key).await.unwrap();
        queue.push(&store, NAMES[0].parse().unwrap(), true).await.unwrap();
        queue.push(&store, NAMES[1].parse().unwrap(), true).await.unwrap();
        assert!(queue.account().alarm.is_none() && queue.account().trouble.is_none());
    }
}
