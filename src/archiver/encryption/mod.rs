//! What is stored of a set whose Secret has a key, in the format of `age` (age-encryption.org/v1, recipients of kind X25519): `age --decrypt` reads
//! it without pgset. The format is written here, upon the primitives of `ring` and `x25519-dalek`, because the crate `age` brings seventy
//! others, and does not let a header say what an object holds; the tests hold it to `age`'s own words.
//!
//! A header has one stanza more than `age` needs, and readers skip those that they don't know: a keyed digest of what the object holds, so that
//! a member tells by its first bytes whether what is there is equal to what it would bring.

mod header;
mod stream;
#[cfg(test)]
pub(super) mod tests;

use std::fmt;
use std::io::{self, Read, Write};

use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use ring::aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use ring::{hkdf, hmac};
use x25519_dalek::{PublicKey, StaticSecret};

use self::header::Header;
pub use self::stream::{Reader, Writer};
use super::packed::Seal;
use crate::names::store::AGE_IDENTITY;

const VERSION: &str = "age-encryption.org/v1";
/// The stanza that only pgset reads.
const SEAL: &str = "pgset-seal";
const SECRET_PREFIX: &str = "age-secret-key-";
const RECIPIENT_PREFIX: &str = "age";
const FILE_KEY: usize = 16;
/// A header of ours is shorter; one of somebody else's for many recipients may be longer.
pub const HEADER_AT_MOST: u64 = 1 << 10;

/// Why something can't be encrypted or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The Secret.
    #[error(
        "the key {AGE_IDENTITY} of the Secret for backups is none: each of its lines has to be a comment (#) or a secret key as age-keygen writes it \
         (AGE-SECRET-KEY-1…)"
    )]
    Identity,
    /// There is no key.
    #[error(
        "it is encrypted, and the Secret for backups has no key ({AGE_IDENTITY}): put the one in that it was written with"
    )]
    NoIdentity,
    /// It is another one's.
    #[error(
        "it is encrypted for another key than those of the Secret for backups ({AGE_IDENTITY}, for {0}): put the one in that it was written with, too, \
         on a line of its own"
    )]
    OtherIdentity(String),
    /// What is stored.
    #[error("it is not what was encrypted: bytes were changed or lost")]
    Damaged,
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// A key pair.
#[derive(Clone)]
pub struct Identity {
    secret: StaticSecret,
    recipient: [u8; 32],
}

/// The key pairs of a set: what is written is for the first, and all are tried on what is read. None means that nothing is encrypted.
#[derive(Clone, Debug, Default)]
pub struct Identities(Vec<Identity>);

// === impl Error ===

impl Error {
    /// What an error of reading says of the keys; absent if it is about what was read.
    #[must_use]
    pub fn of_keys(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Self>().filter(|why| **why != Self::Damaged).cloned()
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

// === impl Identity ===

impl Identity {
    fn parse(text: &str) -> Option<Self> {
        let checked = CheckedHrpstring::new::<Bech32>(text).ok()?;
        if !checked.hrp().as_str().eq_ignore_ascii_case(SECRET_PREFIX) {
            return None;
        }
        let bytes: Vec<u8> = checked.byte_iter().collect();
        let secret = StaticSecret::from(<[u8; 32]>::try_from(bytes).ok()?);
        let recipient = PublicKey::from(&secret).to_bytes();
        Some(Self { secret, recipient })
    }

    /// The public half, as `age` writes it.
    #[must_use]
    pub fn recipient(&self) -> String {
        let encoded =
            Hrp::parse(RECIPIENT_PREFIX).ok().and_then(|hrp| bech32::encode::<Bech32>(hrp, &self.recipient).ok());
        encoded.unwrap_or_default()
    }

    /// What nobody without the key can tell from one of something else.
    fn seal(&self, seal: &Seal) -> [u8; 32] {
        let key = derive(b"", self.secret.as_bytes(), SEAL.as_bytes());
        sign(&key, &seal.to_bytes())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.recipient())
    }
}

// === impl Identities ===

impl Identities {
    /// What the Secret says, as `age-keygen` writes it.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let identities = lines.map(Identity::parse).collect::<Option<Vec<_>>>().ok_or(Error::Identity)?;
        if identities.is_empty() { Err(Error::Identity) } else { Ok(Self(identities)) }
    }

    /// The one that everything is written for.
    #[must_use]
    pub fn first(&self) -> Option<&Identity> {
        self.0.first()
    }

    /// Whether one of them is the key with this public half.
    #[must_use]
    pub fn have(&self, recipient: Option<&str>) -> bool {
        self.0.iter().any(|identity| Some(identity.recipient().as_str()) == recipient)
    }

    /// Encrypts, if there is a key.
    pub fn encrypt(&self, content: Vec<u8>) -> io::Result<Vec<u8>> {
        if self.0.is_empty() {
            return Ok(content);
        }
        let mut writer = Writer::new(Vec::with_capacity(stream::length_at_most(content.len())), self, None)?;
        writer.write_all(&content)?;
        writer.finish()
    }

    /// Decrypts what is encrypted.
    pub fn decrypt(&self, content: Vec<u8>) -> io::Result<Vec<u8>> {
        if !is_encrypted(&content) {
            return Ok(content);
        }
        let mut plain = Vec::with_capacity(content.len());
        Reader::new(&content[..], self)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    /// Whether the beginning of an object says that it holds this. False also means that it can't be told.
    #[must_use]
    pub fn is_sealed(&self, beginning: &[u8], seal: &Seal) -> bool {
        let Ok(header) = Header::read(&mut &beginning[..]) else { return false };
        self.0.iter().any(|it| header.seal == Some(it.seal(seal)))
    }
}

/// Whether this is the beginning of something encrypted.
#[must_use]
pub fn is_encrypted(beginning: &[u8]) -> bool {
    beginning.starts_with(VERSION.as_bytes())
}

/// HKDF of SHA-256.
fn derive(salt: &[u8], secret: &[u8], info: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let filled = extracted.expand(&[info], hkdf::HKDF_SHA256).and_then(|expanded| expanded.fill(&mut key));
    debug_assert!(filled.is_ok(), "32 bytes are what one block gives");
    key
}

fn sign(key: &[u8], content: &[u8]) -> [u8; 32] {
    let mut mac = [0; 32];
    mac.copy_from_slice(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), content).as_ref());
    mac
}

fn cipher(key: &[u8; 32]) -> Result<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, key).map(LessSafeKey::new).map_err(|_| Error::Damaged)
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}
