//! What stands in the headers of a question and its answer.

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use ring::digest;

use super::Membership;
use super::key::{Key, Purpose};
use crate::election::lease_record::HolderIdentity;

/// Who asks whom, and the MAC: seven words.
pub(super) const QUESTION: HeaderName = HeaderName::from_static("pgset-question");
/// The MAC of an answer.
pub(super) const ANSWER: HeaderName = HeaderName::from_static("pgset-answer");
/// The challenge for the next question.
pub(super) const CHALLENGE: HeaderName = HeaderName::from_static("pgset-challenge");

/// All of a question but its body, which the digest stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) from: HolderIdentity,
    pub(super) to: String,
    pub(super) challenge: String,
    pub(super) nonce: String,
    pub(super) digest: String,
}

/// What was read of a question and is not believed yet.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) question: Question,
    tag: Vec<u8>,
}

// === impl Question ===

impl Question {
    pub(super) fn new(
        from: &HolderIdentity,
        to: &str,
        challenge: String,
        body: &[u8],
    ) -> Result<Self, getrandom::Error> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce)?;
        Ok(Self {
            from: from.clone(),
            to: to.to_owned(),
            challenge,
            nonce: BASE64.encode(nonce),
            digest: digest_of(body),
        })
    }

    /// As a header; absent if a name could not stand in one.
    pub(super) fn signed(&self, set: &Membership, key: &Key) -> Option<HeaderValue> {
        let tag = BASE64.encode(key.sign(Purpose::Question, &self.parts(set)));
        let Self { from: HolderIdentity { pod, uid }, to, challenge, nonce, digest } = self;
        HeaderValue::from_str(&format!("{pod} {uid} {to} {challenge} {nonce} {digest} {tag}")).ok()
    }

    pub(super) fn sign_answer(&self, set: &Membership, key: &Key, next: &str, answer: &[u8]) -> String {
        BASE64.encode(key.sign(Purpose::Answer, &self.parts_with(set, next, answer)))
    }

    pub(super) fn is_answered_by(
        &self,
        set: &Membership,
        key: &Key,
        headers: &HeaderMap,
        next: &str,
        answer: &[u8],
    ) -> bool {
        let tag = text(headers, &ANSWER).and_then(|tag| BASE64.decode(tag).ok());
        tag.is_some_and(|tag| key.verify(Purpose::Answer, &self.parts_with(set, next, answer), &tag))
    }

    pub(super) fn is_of(&self, body: &Bytes) -> bool {
        self.digest == digest_of(body)
    }

    fn parts<'a>(&'a self, set: &'a Membership) -> [&'a [u8]; 8] {
        let Self { from, to, challenge, nonce, digest } = self;
        [&set.namespace, &set.set, &from.pod, &from.uid, to, challenge, nonce, digest].map(String::as_bytes)
    }

    fn parts_with<'a>(&'a self, set: &'a Membership, next: &'a str, answer: &'a [u8]) -> [&'a [u8]; 10] {
        let [namespace, name, pod, uid, to, challenge, nonce, digest] = self.parts(set);
        [namespace, name, pod, uid, to, challenge, nonce, digest, next.as_bytes(), answer]
    }
}

// === impl Received ===

impl Received {
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let mut words = text(headers, &QUESTION)?.split(' ').map(str::to_owned);
        let mut word = || words.next().filter(|word| !word.is_empty());
        let question = Question {
            from: HolderIdentity { pod: word()?, uid: word()? },
            to: word()?,
            challenge: word()?,
            nonce: word()?,
            digest: word()?,
        };
        let tag = BASE64.decode(word()?).ok()?;
        words.next().is_none().then_some(Self { question, tag })
    }

    /// Whether a member with this key asks.
    pub(super) fn is_signed(&self, set: &Membership, key: &Key) -> bool {
        key.verify(Purpose::Question, &self.question.parts(set), &self.tag)
    }
}

/// A header's text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn digest_of(body: &[u8]) -> String {
    BASE64.encode(digest::digest(&digest::SHA256, body))
}
