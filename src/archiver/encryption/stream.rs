//! The payload, in chunks of which each is sealed for itself: neither end of it waits for the other.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read, Write};

use ring::aead::{Aad, LessSafeKey, Nonce};

use super::header::{self, Header};
use super::{Error, FILE_KEY, HEADER_AT_MOST, Identities, VERSION, cipher, derive, is_encrypted, random};
use crate::archiver::packed::Seal;

pub(super) const CHUNK: usize = 64 << 10;
pub(super) const TAG: usize = 16;
const NONCE: usize = 16;

/// How long something of this length is at most when it is encrypted: one that grew meanwhile would be copied.
pub(super) fn length_at_most(content: usize) -> usize {
    usize::try_from(HEADER_AT_MOST).unwrap_or(usize::MAX) + NONCE + content + (content / CHUNK + 1) * TAG
}

/// Of the chunks of one payload each has its own.
fn nonce(counter: u64, is_last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&counter.to_be_bytes());
    nonce[11] = u8::from(is_last);
    Nonce::assume_unique_for_key(nonce)
}

/// What is written into it goes on encrypted, if there is a key.
pub struct Writer<W> {
    to: W,
    sealing: Option<Sealing>,
}

struct Sealing {
    key: LessSafeKey,
    counter: u64,
    chunk: Vec<u8>,
}

// === impl Writer ===

impl<W: Write> Writer<W> {
    /// Begins; what it is to hold may be said in its header.
    pub fn new(mut to: W, identities: &Identities, seal: Option<&Seal>) -> io::Result<Self> {
        if identities.first().is_none() {
            return Ok(Self { to, sealing: None });
        }
        let (file_key, nonce) = (random::<FILE_KEY>()?, random::<NONCE>()?);
        to.write_all(&header::write(file_key, identities, seal)?)?;
        to.write_all(&nonce)?;
        let key = cipher(&derive(&nonce, &file_key, b"payload"))?;
        Ok(Self { to, sealing: Some(Sealing { key, counter: 0, chunk: Vec::with_capacity(CHUNK + TAG) }) })
    }

    /// Writes the last chunk.
    pub fn finish(mut self) -> io::Result<W> {
        if let Some(sealing) = &mut self.sealing {
            self.to.write_all(sealing.seal(true)?)?;
        }
        Ok(self.to)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(sealing) = &mut self.sealing else { return self.to.write(bytes) };
        // Only with more behind it is it known that a chunk is not the last.
        if sealing.chunk.len() == CHUNK {
            self.to.write_all(sealing.seal(false)?)?;
            sealing.chunk.clear();
        }
        let taken = bytes.len().min(CHUNK - sealing.chunk.len());
        sealing.chunk.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

// === impl Sealing ===

impl Sealing {
    fn seal(&mut self, is_last: bool) -> io::Result<&[u8]> {
        let nonce = nonce(self.counter, is_last);
        self.counter += 1;
        let sealed = self.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut self.chunk);
        sealed.map_err(|_| io::Error::other("failed to encrypt"))?;
        Ok(&self.chunk)
    }
}

/// What is read from it is decrypted, if it is encrypted.
pub struct Reader<R> {
    from: BufReader<Chain<Cursor<Vec<u8>>, R>>,
    opening: Option<Opening>,
}

struct Opening {
    key: LessSafeKey,
    counter: u64,
    chunk: Vec<u8>,
    /// How much of the chunk's content was read.
    at: usize,
    is_last: bool,
}

// === impl Reader ===

impl<R: Read> Reader<R> {
    /// Begins.
    pub fn new(mut from: R, identities: &Identities) -> io::Result<Self> {
        // A stream may give its first bytes one by one.
        let mut beginning = Vec::new();
        from.by_ref().take(VERSION.len() as u64).read_to_end(&mut beginning)?;
        let is_encrypted = is_encrypted(&beginning);
        let mut from = BufReader::with_capacity(CHUNK, Cursor::new(beginning).chain(from));
        if !is_encrypted {
            return Ok(Self { from, opening: None });
        }
        let file_key = Header::read(&mut from)?.file_key(identities)?;
        let mut nonce = [0; NONCE];
        from.read_exact(&mut nonce).map_err(of_end)?;
        let key = cipher(&derive(&nonce, &file_key, b"payload"))?;
        Ok(Self { from, opening: Some(Opening { key, counter: 0, chunk: Vec::new(), at: 0, is_last: false }) })
    }
}

/// An end that comes too early is a damage.
fn of_end(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof { Error::Damaged.into() } else { error }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(opening) = &mut self.opening else { return self.from.read(buffer) };
        while opening.at == opening.chunk.len() {
            if opening.is_last {
                return Ok(0);
            }
            opening.open_next(&mut self.from)?;
        }
        let count = opening.chunk.get(opening.at..).unwrap_or_default().read(buffer)?;
        opening.at += count;
        Ok(count)
    }
}

// === impl Opening ===

impl Opening {
    fn open_next(&mut self, from: &mut impl BufRead) -> io::Result<()> {
        self.chunk.clear();
        self.at = 0;
        from.take((CHUNK + TAG) as u64).read_to_end(&mut self.chunk)?;
        self.is_last = self.chunk.len() < CHUNK + TAG || from.fill_buf()?.is_empty();
        let nonce = nonce(self.counter, self.is_last);
        let length = self.key.open_in_place(nonce, Aad::empty(), &mut self.chunk).map_err(|_| Error::Damaged)?.len();
        if length == 0 && self.counter > 0 {
            return Err(Error::Damaged.into());
        }
        self.chunk.truncate(length);
        self.counter += 1;
        Ok(())
    }
}
