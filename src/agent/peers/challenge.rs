//! Challenges: proof that a question was not put before. Giving one costs nothing that has to be kept; only those that a member has used are
//! remembered, until they would have run out.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use tokio::time::Instant;

use super::CHALLENGE_LIFE;
use super::key::{Key, Purpose};

/// How many are remembered: 99 other members that ask eight times a second.
const USED_LIMIT: usize = 8192;

/// The challenges of this process: of a key that dies with it, so that what an earlier one gave is good for nothing.
pub(super) struct Challenges {
    key: Key,
    since: Instant,
    given: AtomicU64,
    used: Mutex<BTreeSet<Stamp>>,
}

/// Milliseconds of the process, and a number that no other challenge has.
type Stamp = (u64, u64);

// === impl Challenges ===

impl Challenges {
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        Ok(Self { key: Key::random()?, since: Instant::now(), given: AtomicU64::new(0), used: Mutex::default() })
    }

    pub(super) fn give(&self) -> String {
        let (now, number) = (self.now().to_be_bytes(), self.given.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let tag = self.key.sign(Purpose::Challenge, &[&now, &number]);
        BASE64.encode([&now, &number, tag.as_ref()].concat())
    }

    /// Whether it is one of these, not too old, and not used before; now it is. For members only: what they use is remembered.
    pub(super) fn use_up(&self, challenge: &str) -> bool {
        let Some(stamp) = self.stamp(challenge) else { return false };
        let oldest = self.now().saturating_sub(u64::try_from(CHALLENGE_LIFE.as_millis()).unwrap_or(u64::MAX));
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.split_off(&(oldest, 0));
        stamp.0 >= oldest && used.len() < USED_LIMIT && used.insert(stamp)
    }

    fn stamp(&self, challenge: &str) -> Option<Stamp> {
        let bytes = BASE64.decode(challenge).ok()?;
        let (now, rest) = bytes.split_first_chunk::<8>()?;
        let (number, tag) = rest.split_first_chunk::<8>()?;
        let is_ours = self.key.verify(Purpose::Challenge, &[now, number], tag);
        is_ours.then(|| (u64::from_be_bytes(*now), u64::from_be_bytes(*number)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Challenges").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_challenge_is_good_once_and_not_for_long() {
        let challenges = Challenges::new().unwrap();
        let [first, second, third] = std::array::from_fn(|_| challenges.give());
        assert!(challenges.use_up(&first));
        assert!(!challenges.use_up(&first));
        advance(CHALLENGE_LIFE).await;
        assert!(challenges.use_up(&second));
        assert!(!challenges.use_up(&first));
        advance(Duration::from_millis(1)).await;
        assert!(!challenges.use_up(&second));
        assert!(!challenges.use_up(&third));
    }

    #[tokio::test(start_paused = true)]
    async fn a_challenge_of_another_process_or_of_nobody_is_none() {
        let challenges = Challenges::new().unwrap();
        assert!(!challenges.use_up(&Challenges::new().unwrap().give()));
        for made_up in ["", "AAAA", "!", &BASE64.encode([0; 48]), &BASE64.encode([0; 16])] {
            assert!(!challenges.use_up(made_up), "{made_up}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_forgotten_in_time() {
        let challenges = Challenges::new().unwrap();
        for _ in 0..USED_LIMIT {
            assert!(challenges.use_up(&challenges.give()));
        }
        assert!(!challenges.use_up(&challenges.give()));
        advance(CHALLENGE_LIFE + Duration::from_millis(1)).await;
        assert!(challenges.use_up(&challenges.give()));
        assert_eq!(challenges.used.lock().unwrap().len(), 1);
    }
}
