//! What makes a member: a key from the password that all members of a set have, and nobody else.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ring::hmac;
use tokio::time::Instant;

/// How often the password is looked at, at most: strangers can't make the agent read files.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the key of an earlier password is good after a change. The kubelets bring a changed Secret into their pods within about two
/// minutes of each other.
const GRACE: Duration = Duration::from_secs(300);

/// A key of HMAC-SHA256.
#[derive(Clone)]
pub(super) struct Key(hmac::Key);

/// What a MAC is for: one made for a purpose is good for no other.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    Member,
    Challenge,
    Question,
    Answer,
}

/// The keys of a set: that of the password as it is now, and for a while after a change the one before.
#[derive(Clone)]
pub struct Keys(Arc<Mutex<Ring>>);

struct Ring {
    derive: Box<dyn Fn() -> Option<Key> + Send>,
    looked_at: Option<Instant>,
    current: Option<Key>,
    previous: Option<(Key, Instant)>,
}

// === impl Purpose ===

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Member => b"pgset 1 member",
            Self::Challenge => b"pgset 1 challenge",
            Self::Question => b"pgset 1 question",
            Self::Answer => b"pgset 1 answer",
        }
    }

    /// Each part with its length before it: no two lists of parts are the same bytes.
    fn framed(self, parts: &[&[u8]]) -> Vec<u8> {
        let length = parts.iter().map(|part| part.len() + 8).sum::<usize>() + self.label().len();
        let mut framed = Vec::with_capacity(length);
        framed.extend_from_slice(self.label());
        for part in parts {
            framed.extend_from_slice(&(part.len() as u64).to_be_bytes());
            framed.extend_from_slice(part);
        }
        framed
    }
}

// === impl Key ===

impl Key {
    /// Of a set: what is signed with it is nothing to a set of the same name elsewhere, or to PostgreSQL, even if the password is the same.
    fn of_set(password: &str, namespace: &str, set: &str) -> Self {
        let password = Self::of_bytes(password.as_bytes());
        Self::of_bytes(password.sign(Purpose::Member, &[namespace.as_bytes(), set.as_bytes()]).as_ref())
    }

    /// That nobody else knows.
    pub(super) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self::of_bytes(&bytes))
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    pub(super) fn sign(&self, purpose: Purpose, parts: &[&[u8]]) -> hmac::Tag {
        hmac::sign(&self.0, &purpose.framed(parts))
    }

    /// Takes the same time wherever a wrong tag differs.
    pub(super) fn verify(&self, purpose: Purpose, parts: &[&[u8]], tag: &[u8]) -> bool {
        hmac::verify(&self.0, &purpose.framed(parts), tag).is_ok()
    }

    fn is(&self, other: &Self) -> bool {
        self.verify(Purpose::Member, &[], other.sign(Purpose::Member, &[]).as_ref())
    }
}

// === impl Keys ===

impl Keys {
    pub(super) fn new(namespace: &str, set: &str, password: impl Fn() -> Option<String> + Send + 'static) -> Self {
        let (namespace, set) = (namespace.to_owned(), set.to_owned());
        let derive = move || {
            // Whoever knows that a password is empty would have the key.
            let password = password().filter(|password| !password.is_empty())?;
            Some(Key::of_set(&password, &namespace, &set))
        };
        let ring = Ring { derive: Box::new(derive), looked_at: None, current: None, previous: None };
        Self(Arc::new(Mutex::new(ring)))
    }

    /// Those that are good now, the newest first; none while no password could be read yet.
    pub(super) fn good(&self) -> Vec<Key> {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.look(Instant::now());
        ring.current.iter().chain(ring.previous.as_ref().map(|(key, _)| key)).cloned().collect()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Keys").finish_non_exhaustive()
    }
}

// === impl Ring ===

impl Ring {
    fn look(&mut self, now: Instant) {
        if self.looked_at.is_none_or(|at| now - at >= LOOK_EVERY) {
            self.looked_at = Some(now);
            // A Secret that is away for a moment takes no member out of its set.
            if let Some(key) = (self.derive)().filter(|key| self.current.as_ref().is_none_or(|same| !same.is(key))) {
                self.previous = self.current.replace(key).map(|key| (key, now + GRACE));
            }
        }
        self.previous.take_if(|(_, until)| *until <= now);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn changeable(password: &str) -> (Arc<Mutex<Option<String>>>, Keys) {
        let password = Arc::new(Mutex::new(Some(password.to_owned())));
        let read = password.clone();
        (password, Keys::new("default", "pgset", move || read.lock().unwrap().clone()))
    }

    #[test]
    fn a_key_is_of_one_password_in_one_namespace_and_set() {
        let key = Key::of_set("secret", "default", "pgset");
        assert!(key.is(&Key::of_set("secret", "default", "pgset")));
        for other in [("other", "default", "pgset"), ("secret", "other", "pgset"), ("secret", "default", "other")] {
            assert!(!key.is(&Key::of_set(other.0, other.1, other.2)), "{other:?}");
        }
        assert!(!key.is(&Key::of_set("secret", "default/pg", "set")));
    }

    #[test]
    fn a_mac_is_of_these_parts_for_this_purpose() {
        let key = Key::of_set("secret", "default", "pgset");
        let tag = key.sign(Purpose::Question, &[b"ab", b"c"]);
        assert!(key.verify(Purpose::Question, &[b"ab", b"c"], tag.as_ref()));
        assert!(!key.verify(Purpose::Answer, &[b"ab", b"c"], tag.as_ref()));
        assert!(!key.verify(Purpose::Question, &[b"a", b"bc"], tag.as_ref()));
        assert!(!key.verify(Purpose::Question, &[b"ab", b"c"], &tag.as_ref()[..16]));
        assert!(!key.verify(Purpose::Question, &[b"ab", b"c"], b""));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_password_is_followed_and_the_one_before_is_good_for_a_while() {
        let (password, keys) = changeable("one");
        let one = keys.good().remove(0);
        *password.lock().unwrap() = Some("two".to_owned());
        advance(LOOK_EVERY).await;
        let both = keys.good();
        assert!(both.len() == 2 && !both[0].is(&one) && both[1].is(&one));
        advance(GRACE).await;
        assert_eq!(keys.good().len(), 1);
        assert!(keys.good()[0].is(&both[0]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_password_that_is_gone_or_empty_changes_nothing_and_gives_no_key() {
        let (password, keys) = changeable("one");
        let one = keys.good().remove(0);
        for nothing in [None, Some(String::new())] {
            *password.lock().unwrap() = nothing;
            advance(LOOK_EVERY).await;
            assert!(keys.good().len() == 1 && keys.good()[0].is(&one));
        }
        assert!(Keys::new("default", "pgset", || None).good().is_empty());
        assert!(changeable("").1.good().is_empty());
    }

    #[test]
    fn no_key_is_shown() {
        let (_, keys) = changeable("hunter2");
        assert!(!keys.good().is_empty());
        assert_eq!(format!("{keys:?}"), "Keys { .. }");
    }
}
