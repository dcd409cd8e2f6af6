//! Which member makes a base backup that is due: whoever claims it first, in the store itself, so that it needs neither the API server nor a
//! master. A claim is kept alive while the backup is made; one that is not ends, and the next member claims it. One is made at a time, whatever it is
//! due for: of two the one that ends first would sweep away the other's beginning.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::store::{Created, Error, Object, Store};
use crate::backup::layout::{self, CLAIMS};

/// How often a claim is written anew.
pub const BEAT_EVERY: Duration = Duration::from_secs(10);
/// A claim that was not, for so long, is over.
const DEAD_AFTER: Duration = Duration::from_secs(45);

/// The claims of others, and since when each of them has stood still.
#[derive(Debug, Default)]
pub struct Claims {
    seen: BTreeMap<String, (String, Instant)>,
}

/// A claim of this member's.
#[derive(Debug)]
pub struct Claim {
    store: Store,
    key: String,
    pod: String,
    beats: u64,
}

// === impl Claims ===

impl Claims {
    /// Claims what is due, unless somebody else makes a backup.
    pub async fn claim(&mut self, store: &Store, due: &str, pod: &str) -> Result<Option<Claim>, Error> {
        let found = store.list(CLAIMS).await?;
        // All of them are looked at, so that the time of each begins.
        if found.iter().filter(|object| self.is_alive(object)).count() > 0 {
            return Ok(None);
        }
        let number = |object: &Object| {
            let (folder, name) = object.key.rsplit_once('/')?;
            let number = name.strip_suffix(".json")?.parse::<u32>().ok();
            number.filter(|_| folder.rsplit('/').next() == Some(due))
        };
        let attempt = found.iter().filter_map(number).max().unwrap_or(0).saturating_add(1);
        let mut claim = Claim { store: store.clone(), key: layout::claim(due, attempt), pod: pod.to_owned(), beats: 0 };
        let content = claim.content();
        Ok(match store.create(&claim.key, content).await? {
            Created::Yes => Some(claim),
            Created::No => None,
        })
    }

    /// Told by watching it alone: clocks of members and stores may differ.
    fn is_alive(&mut self, object: &Object) -> bool {
        let now = Instant::now();
        let (written, since) = self.seen.entry(object.key.clone()).or_insert_with(|| (object.written.clone(), now));
        if *written != object.written {
            (*written, *since) = (object.written.clone(), now);
        }
        since.elapsed() < DEAD_AFTER
    }
}

// === impl Claim ===

impl Claim {
    fn content(&mut self) -> Vec<u8> {
        self.beats += 1;
        format!("{{\"pod\":\"{}\",\"beats\":{}}}", self.pod, self.beats).into_bytes()
    }

    /// Keeps it alive, until this is dropped.
    pub async fn keep(&mut self) -> ! {
        loop {
            tokio::time::sleep(BEAT_EVERY).await;
            let content = self.content();
            if let Err(error) = self.store.put(&self.key, content).await {
                tracing::debug!(%error, "a claim was not renewed");
            }
        }
    }

    /// Lets it go: the backup is complete, or another member may try it.
    pub async fn release(self) {
        if let Err(error) = self.store.delete(&self.key).await {
            tracing::debug!(%error, "a claim was not let go, and ends by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_member_claims_and_the_next_one_does_when_it_is_gone() {
        let store = Store::in_memory();
        let (mut first, mut second) = (Claims::default(), Claims::default());
        let claim = first.claim(&store, "now", "db-1").await.unwrap().unwrap();
        assert!(second.claim(&store, "now", "db-2").await.unwrap().is_none());
        assert!(second.claim(&store, "later", "db-2").await.unwrap().is_none(), "one at a time");
        drop(claim);
        tokio::time::advance(DEAD_AFTER).await;
        assert!(second.claim(&store, "now", "db-2").await.unwrap().is_some(), "it stood still");
        assert!(first.claim(&store, "now", "db-1").await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_let_go_is_free_at_once() {
        let store = Store::in_memory();
        let (mut first, mut second) = (Claims::default(), Claims::default());
        first.claim(&store, "now", "db-1").await.unwrap().unwrap().release().await;
        assert!(second.claim(&store, "now", "db-2").await.unwrap().is_some());
    }
}
