//! Every annotation, once: its key, what it may say, what holds where nobody wrote it, and how the documents tell both.
//!
//! A new one is a key in [`annotation`], an entry here and in [`OF_A_SET`], and a golden file that sets it; `tests/annotations.rs` writes the
//! README's table from [`rows`] and says what is missing. Whoever needs what it says asks for it by its entry.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Contract, Error, Failover,
    backup::{self, Limit, Location, Schedule, Target},
    error::quoted,
    json::Field,
    recovery::RecoveryOrder,
    validation::{bytes, is_dns_label, is_dns_subdomain, is_order, is_role_key, is_token},
    values::{Bytes, Number, Parsed, Text, Values, Words},
};
use crate::names::annotation;

/// An annotation.
pub(crate) struct Entry<V> {
    /// Its key.
    pub(crate) key: &'static str,
    /// What it may say.
    values: V,
    /// The same, for the documents; empty if it is nobody's to write.
    says: &'static str,
    /// What holds where it is absent, for the documents.
    default: &'static str,
}

pub(crate) const INJECT: Entry<Words<bool>> = Entry {
    key: annotation::INJECT,
    values: Words(&[("enabled", true)], false),
    says: "`enabled`",
    default: "absent: pgset never sees the object",
};

pub(crate) const CONTRACT: Entry<Words<Option<Contract>>> = Entry {
    key: annotation::CONTRACT,
    values: Words(&[("agent", Some(Contract::Agent)), ("image", Some(Contract::Image))], None),
    says: "`agent`: pgset's agent runs the image's PostgreSQL. `image`: the image implements PG_MODE=set itself",
    default: "`image` if the image's name is crunchy-postgres*, else `agent`",
};

pub(crate) const CONTAINER: Entry<Text> = Entry {
    key: annotation::CONTAINER,
    values: Text(is_dns_label, "a container's name"),
    says: "name of the PostgreSQL container",
    default: "the only one, or the one that is it by its image, its port 5432 or its name ([how](docs/injection.md#which-container))",
};

pub(crate) const CLAIM: Entry<Text> = Entry {
    key: annotation::CLAIM,
    values: Text(is_dns_subdomain, "the name of a PersistentVolumeClaim"),
    says: "a PersistentVolumeClaim for the data of all members",
    default: "none: the set brings a volume of its own",
};

pub(crate) const VOLUME: Entry<Text> = Entry {
    key: annotation::VOLUME,
    values: Text(is_dns_label, "the name of a volume of the StatefulSet"),
    says: "name of the volume that holds the data",
    default: "the one mounted at or above PGDATA or a known data directory",
};

pub(crate) const SERVICE_ACCOUNT: Entry<Text> = Entry {
    key: annotation::SERVICE_ACCOUNT,
    values: Text(is_dns_subdomain, "the name of a ServiceAccount"),
    says: "name",
    default: "the account that the template names, else `<set>-sa`",
};

pub(crate) const CREDENTIALS: Entry<Text> = Entry {
    key: annotation::CREDENTIALS,
    values: Text(is_dns_subdomain, "the name of a Secret"),
    says: "name of a Secret",
    default: "`<set>-pgset-credentials`, generated once, never overwritten (a set that 0.1.0 injected keeps `<set>-credentials`)",
};

pub(crate) const ROLE_LABEL: Entry<Text> = Entry {
    key: annotation::ROLE_LABEL,
    values: Text(
        is_role_key,
        "a label's key such as name or example.com/role; of those with Kubernetes' or pgset's own prefix, only pgset.dev/role",
    ),
    says: "label key",
    default: "`pgset.dev/role` with the values `master` and `replica`; any other key has `<set>-master`, `<set>-replica`",
};

pub(crate) const FAILOVER: Entry<Words<Failover>> = Entry {
    key: annotation::FAILOVER,
    values: Words(&[("automatic", Failover::Automatic), ("manual", Failover::Manual)], Failover::Automatic),
    says: "`automatic`: when the master is lost, the best replica leads. `manual`: a person says which, by \
           [`pgset failover`](docs/failover.md#where-nobody-leads)",
    default: "`automatic`",
};

/// The members read this one and the next from the `StatefulSet` as it is: neither is part of an injection.
pub(crate) const MAXIMUM_LAG: Entry<Bytes> = Entry {
    key: annotation::MAXIMUM_LAG,
    values: Bytes(1 << 20),
    says: "bytes (`0`, `512Ki`, `16Mi`) that an automatic failover may lose; without effect where commits wait for replicas",
    default: "`1Mi`",
};

pub(crate) const SWITCHOVER: Entry<Text> = Entry {
    key: annotation::SWITCHOVER,
    values: Text(
        is_order,
        "the name of a member or `any`, and whatever makes this order another one than the last, such as the time: db-1 2026-11-25T14:00:00Z",
    ),
    says: "a member's name or `any`, and a word that makes it another order than the last (`db-1 2026-11-25T14:00:00Z`): the master \
           hands over, once. `pgset switchover` and `pgset failover` write it",
    default: "absent",
};

pub(crate) const SYNCHRONOUS: Entry<Number> = Entry {
    key: annotation::SYNCHRONOUS,
    values: Number { low: 0, high: 100, default: 0 },
    says: "number of replicas that must confirm a commit; with fewer, commits wait",
    default: "`0`",
};

pub(crate) const SYNCHRONOUS_STRICT: Entry<Words<bool>> = Entry {
    key: annotation::SYNCHRONOUS_STRICT,
    values: Words(&[("true", true), ("false", false)], true),
    says: "`true`: commits wait also while too few replicas stream. `false`: after 10 seconds without them they go on with those that \
           there are, alone if need be, and wait again when they stream ([what that means for a failover](docs/failover.md#who-leads))",
    default: "`true`",
};

pub(crate) const LEASE_SECONDS: Entry<Number> = Entry {
    key: annotation::LEASE_SECONDS,
    values: Number { low: 4, high: 60, default: 6 },
    says: "4 to 60",
    default: "`6`",
};

const HOUR: Duration = Duration::from_secs(3600);

/// The members read this one and the next eight from the `StatefulSet` as it is, so that none of them restarts anything.
pub(crate) const BACKUP: Entry<Parsed<Option<Location>>> = Entry {
    key: annotation::BACKUP,
    values: Parsed {
        parse: |text| Location::parse(text).map(Some),
        default: || None,
        allowed: "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, or file:///PATH of a directory that is mounted in the container",
    },
    says: "where base backups and the WAL go: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or `file:///path` of a \
           mounted directory ([how](docs/backup.md))",
    default: "absent: no backups",
};

pub(crate) const BACKUP_SCHEDULE: Entry<Parsed<Schedule>> = Entry {
    key: annotation::BACKUP_SCHEDULE,
    values: Parsed {
        parse: Schedule::parse,
        default: Schedule::default,
        allowed: "the five fields of a crontab (minute, hour, day, month, day of the week), in UTC",
    },
    says: "five fields as in a crontab, in UTC: when a base backup is made",
    default: "`0 3 * * *`",
};

pub(crate) const BACKUP_KEEP: Entry<Parsed<Duration>> = Entry {
    key: annotation::BACKUP_KEEP,
    values: Parsed {
        parse: |text| backup::duration(text).filter(|keep| *keep >= HOUR),
        default: || HOUR * 24 * 14,
        allowed: "a time of at least an hour, such as 36h, 14d or 8w",
    },
    says: "how far back every moment can be restored (`36h`, `14d`, `8w`): what that takes stays, and nothing else",
    default: "`14d`",
};

pub(crate) const BACKUP_NOW: Entry<Text> = Entry {
    key: annotation::BACKUP_NOW,
    values: Text(
        is_token,
        "a word that makes this order another one than the last, such as the time: 2026-11-25T14:00:00Z",
    ),
    says: "a word that makes it another order than the last (`2026-11-25T14:00:00Z`): a base backup is made, once. `pgset backup now` writes it",
    default: "absent",
};

pub(crate) const BACKUP_DELETE: Entry<Text> = Entry {
    key: annotation::BACKUP_DELETE,
    values: Text(is_token, "the name of a base backup, as pgset backup list tells it: 20261130T030000Z-postgres-1"),
    says: "a base backup that goes before its time (`20261130T030000Z-postgres-1`), and what WAL only that one needs. `pgset backup delete` writes it",
    default: "absent",
};

pub(crate) const ARCHIVE_TIMEOUT: Entry<Parsed<Duration>> = Entry {
    key: annotation::ARCHIVE_TIMEOUT,
    values: Parsed {
        parse: |text| {
            let range = Duration::from_secs(5)..=HOUR * 24;
            backup::duration(text).filter(|timeout| range.contains(timeout))
        },
        default: || Duration::from_secs(60),
        allowed: "a time from 5s to 24h, such as 60s or 5m",
    },
    says: "after so long what a quiet database has written is archived as well (`30s`, `5m`)",
    default: "`60s`",
};

pub(crate) const ARCHIVE_LIMIT: Entry<Parsed<Limit>> = Entry {
    key: annotation::ARCHIVE_LIMIT,
    values: Parsed {
        parse: |text| match text {
            "none" => Some(Limit::None),
            text => bytes(text).filter(|limit| *limit > 0).map(Limit::Bytes),
        },
        default: Limit::default,
        allowed: "a number of bytes such as 512Mi or 20Gi, or none",
    },
    says: "how much WAL may wait on the volume for a store that does not take it (`20Gi`), or `none`: beyond that it is \
           [let go](docs/backup.md#while-a-store-is-away), and the database lives",
    default: "until a tenth of the volume is free",
};

/// What `pg_basebackup --max-rate` takes.
const RATES: std::ops::RangeInclusive<u64> = (32 << 10)..=(1 << 30);

pub(crate) const BACKUP_RATE: Entry<Parsed<Option<u64>>> = Entry {
    key: annotation::BACKUP_RATE,
    values: Parsed {
        parse: |text| bytes(text).filter(|rate| RATES.contains(rate)).map(Some),
        default: || None,
        allowed: "a number of bytes in a second from 32Ki to 1Gi, such as 50Mi",
    },
    says: "how many bytes of a base backup are read in a second, at most (`50Mi`)",
    default: "as many as can be",
};

pub(crate) const FULL_BACKUP_EVERY: Entry<Parsed<Duration>> = Entry {
    key: annotation::FULL_BACKUP_EVERY,
    values: Parsed {
        parse: |text| match text {
            "always" => Some(Duration::ZERO),
            text => backup::duration(text).filter(|every| *every >= HOUR),
        },
        default: || HOUR * 24 * 7,
        allowed: "always, or a time of at least an hour, such as 36h, 7d or 4w",
    },
    says: "from PostgreSQL 17 on base backups hold what has changed since the last full one, and a full one is made when that is so old (`36h`, `7d`); \
           or `always`",
    default: "`7d`",
};

pub(crate) const RESTORE_FROM: Entry<Parsed<Option<Location>>> = Entry {
    key: annotation::RESTORE_FROM,
    values: BACKUP.values,
    says: "where another set's backups are: a new set begins with its data; without effect on one that has data",
    default: "absent: a new set begins with an empty database",
};

pub(crate) const RECOVER_TO: Entry<Parsed<Target>> = Entry {
    key: annotation::RECOVER_TO,
    values: Parsed {
        parse: Target::parse,
        default: || Target::Latest,
        allowed: "latest, a time with its zone such as 2026-11-24T14:03:00Z, a position in the WAL such as 1A/2B00028, or the name of a restore point",
    },
    says: "up to where a restore goes: `latest`, a time (`2026-11-24T14:03:00Z`), a position in the WAL (`1A/2B00028`) or the \
           name of a restore point",
    default: "`latest`",
};

pub(crate) const RECOVER: Entry<Parsed<Option<RecoveryOrder>>> = Entry {
    key: annotation::RECOVER,
    values: Parsed {
        parse: |text| RecoveryOrder::parse(text).map(Some),
        default: || None,
        allowed: "to MOMENT at TIME, accept MOMENT at TIME, or forget at TIME, as pgset recover writes it: to 2026-11-24T14:03:00Z at 2026-11-25T08:00:00Z",
    },
    says: "a moment that is restored beside the set's data, to be looked at and then accepted (`to 2026-11-24T14:03:00Z at 2026-11-25T08:00:00Z`, \
           `accept 2026-11-24T14:03:00Z at 2026-11-25T08:00:00Z`, `forget at 2026-11-26T08:00:00Z`; [how](docs/backup.md#in-place)). `pgset recover` \
           writes it",
    default: "absent",
};

/// Read where it is needed, and answered there.
const ANYTHING: Text = Text(|_| true, "");

const REVISION: Entry<Text> = Entry {
    key: annotation::REVISION,
    values: ANYTHING,
    says: "written by pgset; write a later version to move the set to its injection, which restarts the members one by one",
    default: "the version that injected first",
};

const INJECTED: Entry<Text> = Entry { key: annotation::INJECTED, values: ANYTHING, says: "", default: "" };

const STATUS: Entry<Text> = Entry { key: annotation::STATUS, values: ANYTHING, says: "", default: "" };

const FOLLOW: Entry<Text> = Entry {
    key: annotation::FOLLOW,
    values: ANYTHING,
    says: "`master`, `replica`",
    default: "absent: pgset leaves it alone",
};

/// The annotations that belong on a `StatefulSet` and nowhere else, as the documents list them.
pub(crate) const OF_A_SET: [&dyn Known; 29] = [
    &INJECT,
    &CONTRACT,
    &CONTAINER,
    &CLAIM,
    &VOLUME,
    &SERVICE_ACCOUNT,
    &CREDENTIALS,
    &ROLE_LABEL,
    &FAILOVER,
    &MAXIMUM_LAG,
    &SWITCHOVER,
    &SYNCHRONOUS,
    &SYNCHRONOUS_STRICT,
    &LEASE_SECONDS,
    &BACKUP,
    &BACKUP_SCHEDULE,
    &BACKUP_KEEP,
    &BACKUP_NOW,
    &BACKUP_DELETE,
    &ARCHIVE_TIMEOUT,
    &ARCHIVE_LIMIT,
    &BACKUP_RATE,
    &FULL_BACKUP_EVERY,
    &RESTORE_FROM,
    &RECOVER_TO,
    &RECOVER,
    &REVISION,
    &INJECTED,
    &STATUS,
];

/// Their keys.
pub(crate) fn of_a_set() -> [&'static str; OF_A_SET.len()] {
    OF_A_SET.map(|entry| entry.row().key)
}

/// Whether it is the key of one of them.
pub(crate) fn is_of_a_set(key: &str) -> bool {
    of_a_set().contains(&key)
}

/// An annotation as the documents list it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: &'static str,
    /// What it may say; empty if it is nobody's to write.
    pub says: &'static str,
    /// What holds where it is absent.
    pub default: &'static str,
}

/// All annotations: those of a set, and at last the one of a Service.
#[must_use]
pub fn rows() -> Vec<Row> {
    OF_A_SET.into_iter().chain([&FOLLOW as &dyn Known]).map(Known::row).collect()
}

// === impl Entry ===

impl<V: Values> Entry<V> {
    /// What this text says; the default if it says nothing.
    pub(crate) fn of(&self, text: Option<&str>) -> V::Value {
        text.and_then(|text| self.values.parse(text)).unwrap_or_else(|| self.values.default())
    }

    /// What it says among an object's annotations.
    pub(crate) fn among(&self, annotations: &BTreeMap<String, String>) -> V::Value {
        self.of(annotations.get(self.key).map(String::as_str))
    }
}

/// What is the same of all entries.
pub(crate) trait Known {
    /// The entry as the documents list it.
    fn row(&self) -> Row;

    /// Whether it says what it may, among all annotations of an object. An empty value is a value, not an absent one.
    fn check(&self, all: &Field<'_>) -> Result<(), Error>;
}

impl<V: Values> Known for Entry<V> {
    fn row(&self) -> Row {
        Row { key: self.key, says: self.says, default: self.default }
    }

    fn check(&self, all: &Field<'_>) -> Result<(), Error> {
        let field = all.get(self.key)?;
        let found = field.text()?.unwrap_or_default();
        if !field.is_there() || self.values.parse(found).is_some() {
            return Ok(());
        }
        Err(Error::Annotation { annotation: self.key, value: quoted(found), allowed: self.values.allowed() })
    }
}
