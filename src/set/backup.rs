//! Where a set's backups go, when they are made and how long they stay, as its annotations say.

use std::{collections::BTreeMap, fmt, time::Duration};

use croner::{
    Cron,
    parser::{CronParser, Seconds},
};
use k8s_openapi::jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};

use super::entries;

/// What a set's owner wants of its backups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Where they go.
    pub location: Location,
    /// When a base backup is made.
    pub schedule: Schedule,
    /// How far back every moment can be restored.
    pub keep: Duration,
    /// After so long what a quiet database has written is archived as well.
    pub archive_timeout: Duration,
    /// A base backup besides those of the schedule; another text is another one.
    pub order: Option<String>,
    /// The name of a base backup that is to go before its time.
    #[serde(default)]
    pub delete: Option<String>,
    /// How much WAL may wait.
    #[serde(default)]
    pub limit: Limit,
    /// How many bytes of a base backup are read in a second; absent, as many as can be.
    #[serde(default)]
    pub rate: Option<u64>,
    /// How old a full base backup may be for others to hold only what has changed since; zero, and all are full ones.
    #[serde(default)]
    pub full_every: Duration,
}

/// How much WAL may wait on the volume for a store that does not take it. What is more is let go: it can't be restored, and the database lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    /// As much as the volume has room for, but for a part that stays free.
    #[default]
    Volume,
    /// So many bytes, and no more than that.
    Bytes(u64),
    /// All: the volume may become full, and the database stop.
    None,
}

/// From what a new set is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// Where another set's backups are.
    pub from: Location,
    /// Up to where its history is repeated.
    pub target: Target,
}

/// A moment in a database's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The last one that is archived.
    Latest,
    /// A time.
    Time(Timestamp),
    /// A position in the WAL, as PostgreSQL writes it.
    Position(String),
    /// A restore point (`pg_create_restore_point`).
    Name(String),
}

/// A place in an object store, or in a mounted directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Location {
    /// Whose store.
    pub store: Store,
    /// What lies before the names of everything that pgset writes; no slash at its ends.
    pub prefix: String,
}

/// Whose store it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// Amazon S3, or what speaks its language.
    S3 {
        /// The bucket.
        bucket: String,
    },
    /// Google Cloud Storage.
    Google {
        /// The bucket.
        bucket: String,
    },
    /// Azure Blob Storage.
    Azure {
        /// The container; the account is told by the Secret.
        container: String,
    },
    /// A directory that is mounted in the PostgreSQL container; `prefix` is its path below the root.
    Directory,
}

/// When base backups are made: five fields as in a crontab, in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Schedule(String);

/// The schedule where nobody wrote one.
const NIGHTLY: &str = "0 3 * * *";

// === impl Backup ===

impl Backup {
    /// What an object's annotations say; absent where no backup is asked for.
    #[must_use]
    pub fn among(annotations: &BTreeMap<String, String>) -> Option<Self> {
        Some(Self {
            location: entries::BACKUP.among(annotations)?,
            schedule: entries::BACKUP_SCHEDULE.among(annotations),
            keep: entries::BACKUP_KEEP.among(annotations),
            archive_timeout: entries::ARCHIVE_TIMEOUT.among(annotations),
            order: entries::BACKUP_NOW.among(annotations),
            delete: entries::BACKUP_DELETE.among(annotations),
            limit: entries::ARCHIVE_LIMIT.among(annotations),
            rate: entries::BACKUP_RATE.among(annotations),
            full_every: entries::FULL_BACKUP_EVERY.among(annotations),
        })
    }
}

// === impl Restore ===

impl Restore {
    /// What an object's annotations say; absent where a new set begins empty.
    #[must_use]
    pub fn among(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let from = entries::RESTORE_FROM.among(annotations)?;
        Some(Self { from, target: entries::RECOVER_TO.among(annotations) })
    }
}

// === impl Target ===

impl Target {
    /// Of `latest`, a time, a position or the name of a restore point.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_hexadecimal =
            |digits: &str| (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_name = |text: &str| {
            (1..=63).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        };
        match (text, text.parse(), text.split_once('/')) {
            ("latest", ..) => Some(Self::Latest),
            (_, Ok(time), _) => Some(Self::Time(time)),
            (_, _, Some((high, low))) => {
                (is_hexadecimal(high) && is_hexadecimal(low)).then(|| Self::Position(text.to_owned()))
            }
            // What begins like a time and is none is a slip, and no name.
            _ => (is_name(text) && text.starts_with(|c: char| c.is_ascii_alphabetic()))
                .then(|| Self::Name(text.to_owned())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Time(time) => time.fmt(f),
            Self::Position(text) | Self::Name(text) => f.write_str(text),
        }
    }
}

// === impl Location ===

impl Location {
    /// Of `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or `file:///path`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let store = match scheme {
            "s3" => Store::S3 { bucket: bucket.to_owned() },
            "gs" => Store::Google { bucket: bucket.to_owned() },
            "az" => Store::Azure { container: bucket.to_owned() },
            "file" => Store::Directory,
            _ => return None,
        };
        let is_placed = match store {
            Store::Directory => bucket.is_empty() && !prefix.is_empty(),
            _ => is_bucket(bucket),
        };
        let is_whole = is_placed && text.len() <= 500 && (prefix.is_empty() || prefix.split('/').all(is_segment));
        is_whole.then(|| Self { store, prefix: prefix.to_owned() })
    }

    /// Whether one of them lies in the other, or both are one place.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let lies_in = |inner: &str, outer: &str| {
            outer.is_empty() || inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.store == other.store && (lies_in(&self.prefix, &other.prefix) || lies_in(&other.prefix, &self.prefix))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, bucket) = match &self.store {
            Store::S3 { bucket } => ("s3", bucket.as_str()),
            Store::Google { bucket } => ("gs", bucket.as_str()),
            Store::Azure { container } => ("az", container.as_str()),
            Store::Directory => ("file", ""),
        };
        write!(f, "{scheme}://{bucket}/{}", self.prefix)
    }
}

impl TryFrom<String> for Location {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no place for backups"))
    }
}

impl From<Location> for String {
    fn from(location: Location) -> Self {
        location.to_string()
    }
}

fn is_bucket(text: &str) -> bool {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (3..=63).contains(&bytes.len())
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|byte| edge(byte) || b"-._".contains(byte))
}

/// One name of a path: no store and no shell takes it for something else.
fn is_segment(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._=".contains(&byte);
    !text.is_empty() && text.len() <= 200 && text != "." && text != ".." && text.bytes().all(is_plain)
}

// === impl Schedule ===

impl Schedule {
    /// Of five fields.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_short = text.len() <= 200 && text.split_ascii_whitespace().count() == 5;
        let schedule = Self(text.to_owned());
        (is_short && schedule.cron().is_some()).then_some(schedule)
    }

    fn cron(&self) -> Option<Cron> {
        CronParser::builder().seconds(Seconds::Disallowed).build().parse(&self.0).ok()
    }

    /// The last time at or before `now` that a base backup was due; absent if there never is one (30 February).
    #[must_use]
    pub fn last_due(&self, now: Timestamp) -> Option<Timestamp> {
        let found = self.cron()?.find_previous_occurrence(&now.to_zoned(TimeZone::UTC), true).ok()?;
        Some(found.timestamp())
    }

    /// The five fields.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self(NIGHTLY.to_owned())
    }
}

/// A time as people write it: `90s`, `30m`, `36h`, `14d`, `8w`.
#[must_use]
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400), ("w", 604_800)];
    let (digits, seconds) = units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)))?;
    let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|number| is_plain && *number > 0)?;
    number.checked_mul(seconds).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_read_and_written_alike() {
        for text in
            ["s3://my-bucket/prod/db", "gs://bucket/db", "az://backups/a/b", "file:///backup/db", "s3://bucket/"]
        {
            assert_eq!(Location::parse(text).map(|it| it.to_string()).as_deref(), Some(text));
        }
        assert_eq!(Location::parse("s3://bucket/db/"), Location::parse("s3://bucket/db"));
    }

    #[test]
    fn nothing_that_leaves_its_place_is_a_location() {
        for text in [
            "",
            "s3:",
            "s3://",
            "s3:///x",
            "s3://ab/x",
            "s3://Bucket/x",
            "ftp://bucket/x",
            "file://host/x",
            "file:///",
            "s3://bucket/../x",
            "s3://bucket/a//b",
            "s3://bucket/a b",
            "s3://bucket/a?b",
            "file:///a/../b",
            "s3://bucket/$(x)",
            "s3://user@bucket/x",
        ] {
            assert_eq!(Location::parse(text), None, "{text}");
        }
    }

    #[test]
    fn places_that_share_anything_overlap() {
        let overlap = |one, other| Location::parse(one).unwrap().overlaps(&Location::parse(other).unwrap());
        assert!(overlap("s3://bucket/db", "s3://bucket/db"));
        assert!(overlap("s3://bucket/db", "s3://bucket/db/new"));
        assert!(overlap("s3://bucket/", "s3://bucket/db"));
        assert!(!overlap("s3://bucket/db", "s3://bucket/db2"));
        assert!(!overlap("s3://bucket/db", "s3://other/db"));
    }

    #[test]
    fn a_schedule_has_five_fields() {
        assert!(Schedule::parse("0 3 * * *").is_some());
        assert!(Schedule::parse("*/15 8-18 * * 1-5").is_some());
        for text in ["", "daily", "0 3 * *", "0 0 3 * * *", "61 3 * * *", "0 25 * * *"] {
            assert_eq!(Schedule::parse(text), None, "{text}");
        }
        assert!(Schedule::parse(NIGHTLY).is_some());
    }

    #[test]
    fn a_backup_was_due_at_the_last_time_of_its_schedule() {
        let due = |schedule: &str, now: &str| {
            Schedule::parse(schedule).unwrap().last_due(now.parse().unwrap()).map(|at| at.to_string())
        };
        assert_eq!(due("0 3 * * *", "2026-11-30T02:59:59Z").as_deref(), Some("2026-11-29T03:00:00Z"));
        assert_eq!(due("0 3 * * *", "2026-11-30T03:00:00Z").as_deref(), Some("2026-11-30T03:00:00Z"));
        assert_eq!(due("0 3 30 2 *", "2026-11-30T03:00:00Z"), None);
    }

    #[test]
    fn a_moment_is_a_time_a_position_or_a_restore_point() {
        let time = "2026-11-24T14:03:00Z";
        assert_eq!(Target::parse("latest"), Some(Target::Latest));
        assert_eq!(Target::parse(time), Some(Target::Time(time.parse().unwrap())));
        assert_eq!(Target::parse("2026-11-24T15:03:00+01:00"), Target::parse(time));
        assert_eq!(Target::parse("1A/2b00028"), Some(Target::Position("1A/2b00028".into())));
        assert_eq!(Target::parse("before-upgrade"), Some(Target::Name("before-upgrade".into())));
        for text in ["", "2026-11-24", "2026-11-24T14:03:00", "yesterday evening", "1A/", "/", "1A/2b0002811", "it's"] {
            assert_eq!(Target::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(duration("14d"), Some(Duration::from_hours(14 * 24)));
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        for text in ["", "14", "d", "0d", "-1d", "1.5d", "14 d", "99999999999999999999w", "18446744073709551615w"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
