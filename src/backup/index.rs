//! What a base backup is, and whose a prefix is, as it stands beside it in the store.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::wal::{Place, Segment};
use crate::election::{Lsn, SystemIdentifier};

/// The form of what is written today. A later one is refused, and not misread.
pub const FORMAT: u32 = 1;

/// Whose prefix it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// See [`FORMAT`].
    pub format: u32,
    /// The namespace.
    pub namespace: String,
    /// The set.
    pub set: String,
    /// Its database.
    pub system: SystemIdentifier,
    /// For which key everything is encrypted, its public half as `age` writes it; absent if nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
}

/// A base backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// See [`FORMAT`].
    pub format: u32,
    /// What it is called.
    pub id: String,
    /// The member that it was made on.
    pub pod: String,
    /// What it was made for: a time of the schedule, or an order.
    pub due: String,
    /// The database.
    pub system: SystemIdentifier,
    /// PostgreSQL's version, as `pg_basebackup` writes it (`17.4`).
    pub version: String,
    /// When it was begun.
    pub started: Timestamp,
    /// When it was complete: from then on every moment can be restored with it.
    pub ended: Timestamp,
    /// Its timeline.
    pub timeline: u32,
    /// Where its WAL begins.
    pub begins: Lsn,
    /// Up to where its WAL is needed before the database is whole.
    pub ends: Lsn,
    /// The size of a segment of the WAL in bytes.
    pub segment_size: u64,
    /// Bytes of the tar file.
    pub size: u64,
    /// Bytes of what is stored of it.
    pub stored: u64,
    /// SHA-256 of what is stored of it, in hexadecimal.
    pub sha256: String,
    /// For which key it is encrypted, its public half as `age` writes it; absent if it is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// The full backup upon which it stands; absent if it is one itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

// === impl Index ===

impl Index {
    /// The first segment that a restore needs.
    #[must_use]
    pub fn first_place(&self) -> Place {
        Segment::at(self.timeline, self.begins, self.segment_size).place
    }

    /// The segment in which the database becomes whole.
    #[must_use]
    pub fn last_segment(&self) -> Segment {
        // The end is the position behind the last record.
        Segment::at(self.timeline, Lsn(self.ends.0.saturating_sub(1)), self.segment_size)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A backup that was complete on this day of November, and began with that segment.
    pub(crate) fn backup(day: u32, timeline: u32, segment: u64) -> Index {
        let at = |hour: u32| format!("2026-11-{day:02}T{hour:02}:00:00Z").parse().unwrap();
        Index {
            format: FORMAT,
            id: format!("202611{day:02}"),
            pod: "db-0".into(),
            due: String::new(),
            system: SystemIdentifier(1),
            version: "17.4".into(),
            started: at(3),
            ended: at(4),
            timeline,
            begins: Lsn(segment * (16 << 20) + 0x28),
            ends: Lsn((segment + 1) * (16 << 20)),
            segment_size: 16 << 20,
            size: 1,
            stored: 1,
            sha256: String::new(),
            recipient: None,
            parent: None,
        }
    }

    #[test]
    fn a_backup_that_ends_with_a_segment_needs_no_further_one() {
        assert_eq!(backup(1, 2, 5).last_segment().to_string(), "000000020000000000000005");
        assert_eq!(backup(1, 2, 5).first_place(), Place { high: 0, low: 5 });
    }
}
