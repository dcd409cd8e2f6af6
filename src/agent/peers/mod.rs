//! Members of a set ask each other, over the agent's port, and know whom they talk to.
//!
//! Whoever has the set's Secret is a member. A question is one POST; it goes
//!
//! 1. with a challenge, which the addressee gave a moment before: anybody may have one, it is good for [`CHALLENGE_LIFE`] and for one question;
//! 2. with a MAC over set, namespace, asker, addressee, challenge, a nonce of the asker's and the digest of the body: all of it is in the
//!    header, so that a stranger is turned away before anything of his is kept;
//! 3. and comes back with a MAC over the same and the answer: the addressee, and nobody else, answered this very question.
//!
//! Each answer, and each refusal, brings the next challenge: on a connection that is kept, a question is one round trip.
//!
//! What is asked is not this module's: it carries any `Q` and `A`. Two things are left to them. **The epoch** of a leadership belongs into the
//! question, and whoever answers compares it. **A question may arrive twice** (the connection broke before the answer came), or be answered
//! after the asker has given up: to be asked something must not do harm the second time.

mod challenge;
mod client;
mod inbox;
mod key;
mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use self::client::Client;
pub use self::inbox::{Asked, Inbox};
pub use self::key::Keys;
use super::configuration::{Configuration, Passwords};
use crate::election::lease_record::HolderIdentity;
use crate::names;

/// Where questions go.
const PATH: &str = "/members";
/// How long a question or an answer may be.
pub const BODY_LIMIT: usize = 64 << 10;
/// How long it may take to read a question and answer it.
pub const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// How long a challenge is good.
pub const CHALLENGE_LIFE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was sent.
    #[error("failed to put the question: {0}")]
    NotAsked(&'static str),
    /// Nobody there, or the connection broke.
    #[error("failed to reach the member")]
    Unreachable(#[source] io::Error),
    /// The peer is no member of this set, or not the one that it was taken for, or has another password.
    #[error("the member refused the question: it has another password, or is another member")]
    Refused,
    /// The peer is a member, and its loop did not come to answer.
    #[error("the member did not come to answer")]
    Busy,
    /// What came is not an answer of this member to this question: it was tampered with, or is another version's or program's.
    #[error("what came is no answer to the question")]
    Garbled,
    /// The asker's own limit.
    #[error("the member took too long")]
    TimedOut,
}

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The pod, by which it is addressed: whoever else has that address by now refuses.
    pub pod: String,
    /// Where its agent listens.
    pub address: SocketAddr,
}

/// Who asks and answers, and what makes it a member.
#[derive(Clone, Debug)]
pub struct Membership {
    namespace: String,
    set: String,
    me: HolderIdentity,
    keys: Keys,
}

// === impl Peer ===

impl Peer {
    /// The agent in a pod.
    #[must_use]
    pub fn new(pod: &str, address: IpAddr) -> Self {
        Self { pod: pod.to_owned(), address: SocketAddr::new(address, names::pod::AGENT_PORT) }
    }
}

// === impl Membership ===

impl Membership {
    /// Of a member whose agent password is what `password` reads; absent while it can't be read.
    pub fn new(
        namespace: &str,
        set: &str,
        me: HolderIdentity,
        password: impl Fn() -> Option<String> + Send + 'static,
    ) -> Self {
        let keys = Keys::new(namespace, set, password);
        Self { namespace: namespace.to_owned(), set: set.to_owned(), me, keys }
    }

    /// Of this pod, by its mounted Secret.
    #[must_use]
    pub fn of(configuration: &Configuration) -> Self {
        let password = || Passwords::read().ok().map(|passwords| passwords.agent);
        Self::new(&configuration.namespace, &configuration.set, configuration.me.clone(), password)
    }
}

#[cfg(test)]
mod tests;
