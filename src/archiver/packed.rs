//! A file of the WAL as it is stored: compressed as `zstd` does it, and behind that, in a frame that `zstd -d` skips, what it was. So a reader
//! tells by the last bytes whether two are equal, and after unpacking whether one is whole.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use super::encryption::{self, Identities};

/// PostgreSQL's WAL gets smaller by little with more, and more costs the database its processor.
pub const LEVEL: i32 = 3;

/// Begins a frame that every reader of zstd's format skips (RFC 8878, 3.1.2).
const SKIPPED: [u8; 4] = [0x50, 0x2A, 0x4D, 0x18];
/// Begins what we write into it.
const MARK: [u8; 8] = *b"pgset-01";
/// The length of that: the mark, the digest, the length of the file.
const CONTENT: usize = MARK.len() + SHA256_OUTPUT_LEN + 8;
/// The length of the whole frame.
pub const SEAL_LENGTH: usize = SKIPPED.len() + 4 + CONTENT;

/// What a file was before it was packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    digest: [u8; SHA256_OUTPUT_LEN],
    length: u64,
}

/// A file, packed.
pub struct Packed {
    /// What is stored.
    pub bytes: Vec<u8>,
    /// What it was.
    pub seal: Seal,
}

// === impl Seal ===

impl Seal {
    fn of(context: Context, length: u64) -> Self {
        let mut digest = [0; SHA256_OUTPUT_LEN];
        digest.copy_from_slice(context.finish().as_ref());
        Self { digest, length }
    }

    /// From the last bytes of what is stored; absent if they are no seal.
    #[must_use]
    pub fn read(end: &[u8]) -> Option<Self> {
        let seal = end.get(end.len().checked_sub(SEAL_LENGTH)?..)?;
        let content = seal.strip_prefix(&SKIPPED[..])?.get(4..)?.strip_prefix(&MARK[..])?;
        let (digest, length) = content.split_at_checked(SHA256_OUTPUT_LEN)?;
        Some(Self { digest: digest.try_into().ok()?, length: u64::from_le_bytes(length.try_into().ok()?) })
    }

    /// Of these bytes.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(bytes);
        Self::of(context, bytes.len() as u64)
    }

    /// The digest and the length, as they stand in what is written.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.digest[..], &self.length.to_le_bytes()].concat()
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let length = u32::try_from(CONTENT).unwrap_or_default();
        [&SKIPPED[..], &length.to_le_bytes(), &MARK, &self.to_bytes()].iter().try_for_each(|part| to.write_all(part))
    }
}

/// Reads from one and tells a digest what it read.
struct Digesting<R> {
    inner: R,
    context: Context,
    length: u64,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.context.update(buffer.get(..count).unwrap_or_default());
        self.length += count as u64;
        Ok(count)
    }
}

fn digesting<R: Read>(inner: R) -> Digesting<R> {
    Digesting { inner, context: Context::new(&SHA256), length: 0 }
}

/// A digest as people and `sha256sum` write it.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Packs a file, encrypted if there is a key. Takes as much memory as it has packed.
pub fn pack(path: &Path, identities: &Identities) -> io::Result<Packed> {
    // What is encrypted says at its beginning what it is.
    let expected = identities.first().map(|_| seal_of(path)).transpose()?;
    let mut file = digesting(File::open(path)?);
    let mut encoder = zstd::Encoder::new(encryption::Writer::new(Vec::new(), identities, expected.as_ref())?, LEVEL)?;
    encoder.include_checksum(true)?;
    io::copy(&mut file, &mut encoder)?;
    let mut writer = encoder.finish()?;
    let seal = Seal::of(file.context, file.length);
    if expected.is_some_and(|expected| expected != seal) {
        return Err(io::Error::other("it changed while it was read"));
    }
    seal.write(&mut writer)?;
    Ok(Packed { bytes: writer.finish()?, seal })
}

/// What a file on the disk is.
pub fn seal_of(path: &Path) -> io::Result<Seal> {
    let mut file = digesting(File::open(path)?);
    io::copy(&mut file, &mut io::sink())?;
    Ok(Seal::of(file.context, file.length))
}

/// Unpacks what is stored; an error if it is not what was packed.
pub fn unpack(bytes: Vec<u8>, identities: &Identities, to: &mut impl Write) -> io::Result<()> {
    let changed =
        || io::Error::new(io::ErrorKind::InvalidData, "it is not what was stored: bytes were changed or lost");
    let bytes = identities.decrypt(bytes)?;
    let expected = Seal::read(&bytes).ok_or_else(changed)?;
    let mut content = digesting(zstd::Decoder::new(&bytes[..])?);
    io::copy(&mut content, to)?;
    if Seal::of(content.context, content.length) == expected { Ok(()) } else { Err(changed()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(content: &[u8]) -> Packed {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let packed = pack(file.path(), &Identities::default()).unwrap();
        assert_eq!(seal_of(file.path()).unwrap(), packed.seal);
        packed
    }

    #[test]
    fn what_is_unpacked_is_what_was_packed_also_by_a_reader_that_knows_no_seal() {
        let content = b"0123456789".repeat(100_000);
        let Packed { bytes, seal } = packed(&content);
        assert!(bytes.len() < content.len() / 10);
        assert_eq!(Seal::read(&bytes), Some(seal));
        let mut unpacked = Vec::new();
        unpack(bytes.clone(), &Identities::default(), &mut unpacked).unwrap();
        assert!(unpacked == content);
        assert!(zstd::decode_all(&bytes[..]).unwrap() == content);
    }

    #[test]
    fn a_changed_byte_and_a_lost_end_are_found_or_do_no_harm_wherever_they_are() {
        const CONTENT: &[u8] = b"a segment of the WAL, a segment of the WAL";
        let Packed { bytes, .. } = packed(CONTENT);
        for place in 0..bytes.len() * 8 {
            let (mut changed, mut unpacked) = (bytes.clone(), Vec::new());
            changed[place / 8] ^= 1 << (place % 8);
            // The size of the window, for one, says nothing of what is in it.
            let is_found = unpack(changed, &Identities::default(), &mut unpacked).is_err();
            assert!(is_found || unpacked == CONTENT, "bit {place}");
        }
        for length in 0..bytes.len() {
            assert!(
                unpack(bytes[..length].to_vec(), &Identities::default(), &mut Vec::new()).is_err(),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn different_files_have_different_seals() {
        assert_ne!(packed(b"one").seal, packed(b"two").seal);
        assert_eq!(packed(b"one").seal, packed(b"one").seal);
    }
}
