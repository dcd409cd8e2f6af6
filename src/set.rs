//! The typed, validated view of an annotated `StatefulSet`: parsed once, at the edge, from raw JSON.

pub(crate) mod annotations;
pub(crate) mod arguments;
pub mod backup;
pub(crate) mod container;
pub(crate) mod data;
pub(crate) mod edits;
pub(crate) mod entries;
pub(crate) mod error;
pub(crate) mod image;
pub(crate) mod json;
pub(crate) mod known;
mod read;
pub(crate) mod record;
pub mod recovery;
pub(crate) mod shape;
pub(crate) mod validation;
mod values;
mod volumes;

use std::collections::BTreeMap;

use serde_json::Value;

pub(crate) use self::read::ParsedSet;
use self::shape::Settled;
pub use self::{
    entries::{Row, rows},
    error::Error,
};
use crate::names;

/// The most members that a set may have. PostgreSQL's sets have a handful; one that asks for thousands asks for nothing that works,
/// and would cost everybody who has to list them.
pub const MOST_MEMBERS: u32 = 100;

/// The oldest PostgreSQL that the agent can run: since 13 a standby takes a new master's address without a restart.
pub const OLDEST_POSTGRESQL: u32 = 13;

/// An annotated `StatefulSet`, with every default filled in that [`rows`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// `metadata.name`; a DNS label, so that `<set>-master` can be a Service.
    pub name: String,
    /// `metadata.namespace`; empty where the object does not say (a file given to `pgset inject`).
    pub namespace: String,
    /// `metadata.uid`; absent before the object is stored.
    pub uid: Option<String>,
    /// Who implements `PG_MODE=set` inside the container.
    pub contract: Contract,
    /// The PostgreSQL container's name.
    pub container: String,
    /// The port that PostgreSQL listens on: that of its arguments or of PGPORT, if the container names no other; else the container's port
    /// named `postgres`, `postgresql`, `pg` or `db`, else its only one, else 5432.
    pub port: u16,
    /// Where the data is.
    pub data: DataSource,
    /// Whether the data is still there when the set is deleted: on an `emptyDir`, an ephemeral volume, or a claim that goes with the set
    /// (`persistentVolumeClaimRetentionPolicy.whenDeleted: Delete`) it is not.
    pub data_outlives_set: bool,
    /// The service account of the pods.
    pub service_account: String,
    /// The Secret with the passwords.
    pub credentials: String,
    /// The label that carries the role.
    pub role_label: RoleLabel,
    /// Whether a replica may be promoted.
    pub failover: Failover,
    /// How many replicas must confirm a commit.
    pub synchronous: u32,
    /// Whether commits wait also while fewer replicas stream.
    pub synchronous_strict: bool,
    /// For how many seconds the master's Lease is good.
    pub lease_seconds: u32,
    /// Whether the agents, by the revision of the template, write themselves where the master is (`EndpointSlice` `<set>-master`).
    pub routed: bool,
    /// `spec.serviceName`, or the set's name if that is empty.
    pub headless_service: String,
    /// `spec.replicas`, 1 if absent.
    pub replicas: u32,
    /// `spec.ordinals.start`, 0 if absent: the member that bootstraps a new set.
    pub first_ordinal: u32,
    /// `spec.selector.matchLabels`.
    pub selector: BTreeMap<String, String>,
    /// The template's labels, as they will be after injection.
    pub pod_labels: BTreeMap<String, String>,
}

/// Who implements `PG_MODE=set` inside the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// pgset's agent, wrapped around any image that has PostgreSQL's programs.
    Agent,
    /// The image does it itself (the crunchy-postgres family).
    Image,
}

/// Whether a replica may be promoted when the master is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failover {
    /// By the members themselves.
    Automatic,
    /// Only when somebody asks for it.
    Manual,
}

/// Where the data of the members is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSource {
    /// `pgset.dev/claim`: pgset adds the volume and its mount.
    Claim {
        /// The claim's name.
        claim: String,
    },
    /// A volume that all members share, mounted by the user: each member gets a directory of it.
    Shared {
        /// The volume's name in the template.
        volume: String,
        /// Where it is mounted.
        mount_path: String,
    },
    /// A volume of each member's own (claim template, `emptyDir`, ephemeral), or one that the image divides itself: left as it is.
    Own {
        /// The volume's name.
        volume: String,
        /// Where it is mounted.
        mount_path: String,
    },
}

impl DataSource {
    /// Where the volume is mounted.
    #[must_use]
    pub fn mount_path(&self) -> &str {
        match self {
            Self::Claim { .. } => names::pod::DATA_PATH,
            Self::Shared { mount_path, .. } | Self::Own { mount_path, .. } => mount_path,
        }
    }
}

/// The label that carries a member's role, and its two values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleLabel {
    /// The label's key.
    pub key: String,
    /// Its value on the master.
    pub master: String,
    /// Its value on a replica, and in the template.
    pub replica: String,
}

impl RoleLabel {
    /// The values follow from the key: our own key has `master` and `replica`, any other the article's `<set>-master` and `<set>-replica`.
    #[must_use]
    pub fn new(key: &str, set: &str) -> Self {
        let (master, replica) = if key == names::label::ROLE {
            ("master".to_owned(), "replica".to_owned())
        } else {
            (names::master(set), names::replica(set))
        };
        Self { key: key.to_owned(), master, replica }
    }

    /// The Service by which the `PG_MODE` family of images reaches the master: for it, the label's value is its name.
    #[must_use]
    pub fn master_host(&self, set: &str) -> String {
        if self.key == names::label::ROLE { names::master(set) } else { self.master.clone() }
    }
}

impl Set {
    /// Whether the object asks to be a set: `pgset.dev/inject: enabled`.
    #[must_use]
    pub fn is_annotated(object: &Value) -> bool {
        annotations::is_enabled(object).unwrap_or(false)
    }

    /// Parses an annotated `StatefulSet`, as its user wrote it or as it is stored with the injection: the result is the same.
    pub fn parse(object: &Value) -> Result<Self, Error> {
        let record = record::Record::to_look_at(object)?;
        let settled = Settled::by_object(object, record.as_ref());
        let own = match &record {
            Some(record) => &record.undone(object),
            None => object,
        };
        Ok(ParsedSet::of(own, &settled)?.set)
    }

    /// The pods of the set, in the order of their ordinals.
    pub fn members(&self) -> impl Iterator<Item = String> + '_ {
        (self.first_ordinal..self.first_ordinal.saturating_add(self.replicas)).map(|ordinal| self.member(ordinal))
    }

    /// The pod with an ordinal.
    #[must_use]
    pub fn member(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.name)
    }
}
