//! The names of the files that PostgreSQL archives.

use std::fmt;
use std::str::FromStr;

use crate::election::Lsn;

/// A file that PostgreSQL archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFile {
    /// A segment of the WAL.
    Segment(Segment),
    /// The last segment of a timeline that a promotion left, as far as it was written.
    Partial(Segment),
    /// What a base backup of a master began with.
    Label(Segment, u32),
    /// Where a timeline comes from.
    History(u32),
}

/// A segment of the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// Its place in the WAL, whichever timeline it is of: ordered as the WAL is, and as long as the size of segments stays the same.
    pub place: Place,
    /// Its timeline.
    pub timeline: u32,
}

/// A place in the WAL, in segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The upper half of its position.
    pub high: u32,
    /// Which segment below it.
    pub low: u32,
}

impl Place {
    /// The one behind it.
    #[must_use]
    pub fn next(self, segment_size: u64) -> Self {
        let Self { high, low } = self;
        let most = (1_u64 << 32).checked_div(segment_size).unwrap_or(u64::MAX);
        let is_last = u64::from(low) + 1 >= most;
        if is_last { Self { high: high.saturating_add(1), low: 0 } } else { Self { high, low: low + 1 } }
    }
}

/// No name of a file that PostgreSQL archives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no file that PostgreSQL archives")]
pub struct NoWalFile(pub String);

// === impl Segment ===

impl Segment {
    /// The segment of a timeline that a position is in. The size of a segment is a power of two from 1 MB to 1 GB.
    #[must_use]
    pub fn at(timeline: u32, position: Lsn, size: u64) -> Self {
        let half = |number: u64| u32::try_from(number & 0xFFFF_FFFF).unwrap_or_default();
        let low = (position.0 & 0xFFFF_FFFF).checked_div(size).unwrap_or_default();
        Self { place: Place { high: half(position.0 >> 32), low: half(low) }, timeline }
    }

    /// The position right behind it.
    #[must_use]
    pub fn end(self, size: u64) -> Lsn {
        let start = u64::from(self.place.high) << 32 | u64::from(self.place.low).saturating_mul(size);
        Lsn(start.saturating_add(size))
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { high, low } = self.place;
        write!(f, "{:08X}{high:08X}{low:08X}", self.timeline)
    }
}

// === impl WalFile ===

impl WalFile {
    /// The place in the WAL that it is of; a history has none.
    #[must_use]
    pub fn place(self) -> Option<Place> {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::Label(segment, _) => Some(segment.place),
            Self::History(_) => None,
        }
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => segment.fmt(f),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::Label(segment, offset) => write!(f, "{segment}.{offset:08X}.backup"),
            Self::History(timeline) => write!(f, "{timeline:08X}.history"),
        }
    }
}

impl FromStr for WalFile {
    type Err = NoWalFile;

    fn from_str(text: &str) -> Result<Self, NoWalFile> {
        read(text).ok_or_else(|| NoWalFile(text.to_owned()))
    }
}

fn read(text: &str) -> Option<WalFile> {
    let (name, ending) = text.split_once('.').map_or((text, None), |(name, ending)| (name, Some(ending)));
    match (name.len(), ending) {
        (24, None) => segment(name).map(WalFile::Segment),
        (24, Some("partial")) => segment(name).map(WalFile::Partial),
        (24, Some(ending)) => Some(WalFile::Label(segment(name)?, number(ending.strip_suffix(".backup")?)?)),
        (8, Some("history")) => number(name).map(WalFile::History),
        _ => None,
    }
}

fn segment(name: &str) -> Option<Segment> {
    let part = |from: usize| number(name.get(from..from + 8)?);
    Some(Segment { timeline: part(0)?, place: Place { high: part(8)?, low: part(16)? } })
}

fn number(digits: &str) -> Option<u32> {
    let is_plain = digits.len() == 8 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    is_plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_and_written_alike() {
        for text in [
            "00000002000000A1000000FE",
            "00000002000000A1000000FE.partial",
            "00000002000000A1000000FE.00000028.backup",
            "0000000A.history",
        ] {
            assert_eq!(text.parse::<WalFile>().map(|it| it.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn nothing_else_is_one() {
        for text in [
            "",
            "00000002",
            "00000002000000A1000000F",
            "00000002000000a1000000fe",
            "00000002000000A1000000FE.ready",
            "../02000000A1000000FE0000",
            "0000000A.history.ready",
            "00000002000000A1000000FE.28.backup",
            "é0000002000000A1000000F",
        ] {
            assert!(text.parse::<WalFile>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_segment_follows_another() {
        let size = 16 << 20;
        assert_eq!(Place { high: 0, low: 254 }.next(size), Place { high: 0, low: 255 });
        assert_eq!(Place { high: 0, low: 255 }.next(size), Place { high: 1, low: 0 });
        assert_eq!(Place { high: 0, low: 3 }.next(1 << 30), Place { high: 1, low: 0 });
    }

    #[test]
    fn a_position_is_in_a_segment() {
        let size = 16 << 20;
        let segment = Segment::at(3, Lsn(0xA1_FE00_0028), size);
        assert_eq!(segment.to_string(), "00000003000000A1000000FE");
        assert_eq!(segment.end(size), Lsn(0xA1_FF00_0000));
        let last = Segment::at(3, Lsn(0xA1_FFFF_FFFF), size);
        assert_eq!((last.to_string().as_str(), last.end(size)), ("00000003000000A1000000FF", Lsn(0xA2_0000_0000)));
    }
}
