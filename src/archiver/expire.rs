//! Deletes what nobody needs any more.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tracing::info;

use super::store::{Error, Store};
use super::verification;
use crate::backup::index::Index;
use crate::backup::keep::expired;
use crate::backup::layout::{self, BACKUPS, CLAIMS, INDEX};
use crate::backup::line::Line;

/// Deletes a base backup whatever its age, and the WAL that only that one needed.
pub async fn delete(store: &Store, backups: &[Index], id: &str, line: &Line, keep: Duration) -> Result<(), Error> {
    let mut parts: Vec<_> = store.list(&layout::backup(id, "")).await?.into_iter().map(|object| object.key).collect();
    parts.sort_by_key(|key| !key.ends_with(INDEX));
    for key in parts {
        store.delete(&key).await?;
    }
    info!(backup = id, "a base backup is deleted, as was ordered");
    let rest: Vec<_> = backups.iter().filter(|backup| backup.id != id).cloned().collect();
    sweep(store, &rest, line, keep).await
}

/// Deletes backups and WAL that no moment within the time to keep needs, the claims of what is done, and what broken backups left.
pub async fn sweep(store: &Store, backups: &[Index], line: &Line, keep: Duration) -> Result<(), Error> {
    let files = store.wal_files().await?;
    let gone = expired(backups, &files, line, Timestamp::now(), keep);
    let all: BTreeSet<_> = backups.iter().map(|backup| backup.id.as_str()).collect();
    let newest = backups.iter().map(|backup| backup.id.as_str()).max().unwrap_or_default();
    let mut parts = Vec::new();
    for object in store.list(BACKUPS).await? {
        let Some(id) = object.key.split('/').nth(1) else { continue };
        // One that is younger than the newest complete one may be in the making.
        let is_broken = !all.contains(id) && id < newest;
        if is_broken || gone.backups.iter().any(|expired| expired == id) {
            parts.push(object.key);
        }
    }
    // The index first: without it the rest is no backup.
    parts.sort_by_key(|key| !key.ends_with(INDEX));
    let claims = store.list(CLAIMS).await?;
    let is_done = |key: &str| backups.iter().any(|backup| key.split('/').nth(1) == Some(backup.due.as_str()));
    let claims = claims.into_iter().map(|object| object.key).filter(|key| is_done(key));
    let (count, segments) = (gone.backups.len(), gone.wal.len());
    let verifications = verification::expired(store).await?;
    for key in parts.into_iter().chain(gone.wal.into_iter().map(layout::wal)).chain(claims).chain(verifications) {
        store.delete(&key).await?;
    }
    if count + segments > 0 {
        info!(backups = count, segments, "what nobody needs any more is deleted");
    }
    Ok(())
}
