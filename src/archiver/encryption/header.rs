//! The header: for whom the file key is wrapped, and a digest of what the object holds.

use std::io::{self, BufRead, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::aead::{Aad, Nonce};
use ring::hmac;
use x25519_dalek::{PublicKey, StaticSecret};

use super::{
    Error, FILE_KEY, HEADER_AT_MOST, Identities, Identity, Result, SEAL, VERSION, cipher, derive, random, sign,
};
use crate::archiver::packed::Seal;

const X25519: &str = "X25519";
const LINES_AT_MOST: usize = 1 << 10;

/// The key that the file key is wrapped by. None for a share that says nothing of its secret.
fn wrapping(secret: &StaticSecret, other: [u8; 32], share: &[u8; 32], recipient: &[u8; 32]) -> Option<[u8; 32]> {
    let shared = secret.diffie_hellman(&PublicKey::from(other));
    let salt = [&share[..], &recipient[..]].concat();
    let info = format!("{VERSION}/{X25519}");
    shared.was_contributory().then(|| derive(&salt, shared.as_bytes(), info.as_bytes()))
}

/// A file key for everybody who may read: its header, up to where the digest of the header stands.
pub(super) fn write(file_key: [u8; FILE_KEY], identities: &Identities, seal: Option<&Seal>) -> io::Result<Vec<u8>> {
    let first = identities.first().ok_or(Error::NoIdentity)?;
    let ephemeral = StaticSecret::from(random::<32>()?);
    let share = PublicKey::from(&ephemeral).to_bytes();
    let key = wrapping(&ephemeral, first.recipient, &share, &first.recipient).ok_or(Error::Identity)?;
    let mut wrapped = file_key.to_vec();
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    cipher(&key)?.seal_in_place_append_tag(nonce, Aad::empty(), &mut wrapped).map_err(|_| Error::Identity)?;
    let encode = |bytes: &[u8]| STANDARD_NO_PAD.encode(bytes);
    let mut lines = vec![VERSION.to_owned(), format!("-> {X25519} {}", encode(&share)), encode(&wrapped)];
    if let Some(seal) = seal {
        lines.extend([format!("-> {SEAL}"), encode(&first.seal(seal))]);
    }
    lines.push("---".to_owned());
    let signed = lines.join("\n");
    let mac = sign(&derive(b"", &file_key, b"header"), signed.as_bytes());
    Ok(format!("{signed} {}\n", encode(&mac)).into_bytes())
}

/// What a header says.
pub(super) struct Header {
    /// The shares and wrapped file keys of kind X25519.
    keys: Vec<([u8; 32], Vec<u8>)>,
    pub(super) seal: Option<[u8; 32]>,
    /// What the digest is of, and the digest.
    signed: Vec<u8>,
    mac: Vec<u8>,
}

// === impl Header ===

impl Header {
    pub(super) fn read(from: &mut impl BufRead) -> io::Result<Self> {
        let (mut keys, mut seal, mut signed) = (Vec::new(), None, Vec::new());
        let mut line = next_line(from)?;
        if line != VERSION.as_bytes() {
            return Err(Error::Damaged.into());
        }
        for _ in 0..LINES_AT_MOST {
            signed.extend_from_slice(&line);
            signed.push(b'\n');
            line = next_line(from)?;
            if let Some(mac) = line.strip_prefix(b"--- ") {
                signed.extend_from_slice(b"---");
                return Ok(Self { keys, seal, signed, mac: decode(mac)? });
            }
            let Some(words) = line.strip_prefix(b"-> ") else { continue };
            let words: Vec<Vec<u8>> = words.split(|byte| *byte == b' ').map(<[u8]>::to_vec).collect();
            signed.extend_from_slice(&line);
            signed.push(b'\n');
            // All bodies of interest are shorter than a line, of 64 letters.
            line = next_line(from)?;
            match &words[..] {
                [kind, share] if kind == X25519.as_bytes() => {
                    let share = decode(share)?.try_into().map_err(|_| Error::Damaged)?;
                    keys.push((share, decode(&line)?));
                }
                [kind] if kind == SEAL.as_bytes() => seal = decode(&line)?.try_into().ok(),
                _ => {}
            }
        }
        Err(Error::Damaged.into())
    }

    pub(super) fn file_key(&self, identities: &Identities) -> Result<Vec<u8>> {
        let unwrap = |identity: &Identity, (share, wrapped): &([u8; 32], Vec<u8>)| {
            let key = wrapping(&identity.secret, *share, share, &identity.recipient)?;
            let mut wrapped = wrapped.clone();
            let nonce = Nonce::assume_unique_for_key([0; 12]);
            let file_key = cipher(&key).ok()?.open_in_place(nonce, Aad::empty(), &mut wrapped).ok()?;
            (file_key.len() == FILE_KEY).then(|| file_key.to_vec())
        };
        let mut all = identities.0.iter().flat_map(|identity| self.keys.iter().map(move |key| (identity, key)));
        let file_key =
            all.find_map(|(identity, key)| unwrap(identity, key)).ok_or_else(|| match identities.first() {
                None => Error::NoIdentity,
                Some(_) => {
                    Error::OtherIdentity(identities.0.iter().map(Identity::recipient).collect::<Vec<_>>().join(", "))
                }
            })?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &derive(b"", &file_key, b"header"));
        hmac::verify(&key, &self.signed, &self.mac).map_err(|_| Error::Damaged)?;
        Ok(file_key)
    }
}

fn next_line(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.by_ref().take(HEADER_AT_MOST).read_until(b'\n', &mut line)?;
    if line.pop() == Some(b'\n') { Ok(line) } else { Err(Error::Damaged.into()) }
}

fn decode(text: &[u8]) -> Result<Vec<u8>> {
    STANDARD_NO_PAD.decode(text).map_err(|_| Error::Damaged)
}
