//! What trial restores found, in the store beside the backups: there it outlives pods and sets, and whoever makes the backups tells it.

use std::path::Path;

use tracing::warn;

use super::install_crypto_provider;
use super::store::{Credentials, Error, Store};
use crate::backup::index::FORMAT;
use crate::backup::layout::{self, VERIFICATIONS};
use crate::backup::verification::Verification;
use crate::set::backup::Location;

/// So many stay, the newest ones.
const KEPT: usize = 30;

/// Writes what one found.
pub async fn note_verification(to: &Location, credentials: &Path, found: &Verification) -> Result<(), Error> {
    install_crypto_provider();
    let store = Store::open(to, &Credentials::read(credentials))?;
    let content = serde_json::to_vec_pretty(&found.clone().cut()).map_err(|error| Error::Store(error.to_string()))?;
    store.put(&layout::verification(found.started), content).await
}

/// What the last one found; absent if there was none, or it is of a later pgset.
pub(super) async fn newest(store: &Store) -> Result<Option<Verification>, Error> {
    let Some(newest) = store.list(VERIFICATIONS).await?.pop() else { return Ok(None) };
    let Some(text) = store.get(&newest.key).await? else { return Ok(None) };
    match serde_json::from_slice::<Verification>(&text) {
        Ok(found) if found.format == FORMAT => Ok(Some(found)),
        Ok(_) => Ok(None),
        Err(error) => {
            warn!(%error, key = newest.key, "what a trial restore found can't be read");
            Ok(None)
        }
    }
}

/// Those that are too old to be of interest.
pub(super) async fn expired(store: &Store) -> Result<Vec<String>, Error> {
    let all = store.list(VERIFICATIONS).await?;
    Ok(all.into_iter().map(|object| object.key).rev().skip(KEPT).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::verification::Verification;

    #[tokio::test]
    async fn the_newest_is_told_and_those_of_long_ago_go() {
        let store = Store::in_memory();
        assert_eq!(newest(&store).await.unwrap(), None);
        for minute in 0..32 {
            let started = format!("2026-11-30T05:{minute:02}:00Z").parse().unwrap();
            let found = Verification {
                format: FORMAT,
                started,
                seconds: minute,
                backup: None,
                restorable_to: None,
                answer: None,
                left_out: Vec::new(),
                failed: None,
            };
            store.put(&layout::verification(started), serde_json::to_vec(&found).unwrap()).await.unwrap();
        }
        assert_eq!(newest(&store).await.unwrap().map(|found| found.seconds), Some(31));
        let gone = ["verifications/20261130T050100Z.json", "verifications/20261130T050000Z.json"];
        assert_eq!(expired(&store).await.unwrap(), gone);
    }
}
