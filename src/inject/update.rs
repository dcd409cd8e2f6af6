//! What an update must not do: move the place of the data, so that it would vanish from view, or lose it by the very roll-out.

use std::fmt;

use serde_json::Value;

use super::Reason;
use crate::set::{
    Contract, Error, ParsedSet,
    data::{BEFORE_18, Hidden, Pgdata, Placement, SubPathOwner, contains_path},
    error::named,
    json::at,
    known,
    record::{Record, member_directory},
    shape::{Settled, Shape},
};

/// Where a member's data is.
#[derive(Clone, Debug, PartialEq)]
struct Location {
    /// The volume itself, whatever its name in the template.
    source: Value,
    /// The directory of the volume that is mounted.
    directory: Option<String>,
    /// Where it is mounted.
    mount_path: String,
    /// PGDATA, unless only the kubelet knows.
    pgdata: Option<String>,
    /// Who divides the volume.
    contract: Contract,
    is_temporary: bool,
}

/// Refuses an update that moves or loses the data of members that run.
pub(super) fn check(old: &Value, new: &ParsedSet<'_>, shape: Shape) -> Result<(), Reason> {
    // Between two states, one of which has no members, the user can have moved the data himself.
    let old_replicas = at(old, &["spec", "replicas"]).and_then(Value::as_u64).unwrap_or(1);
    if old_replicas == 0 || new.set.replicas == 0 {
        return Ok(());
    }
    let record = Record::of(old).ok().flatten();
    let (own, settled) = match &record {
        Some(record) => (record.undone(old), Settled::by_object(old, Some(record))),
        // The annotation that names it comes with this change.
        None => (old.clone(), Settled { container: Some(new.set.container.clone()), ..Settled::of(shape, None) }),
    };
    let to = Location::of(new, true)?;
    let parsed = match ParsedSet::of(&own, &settled) {
        Ok(parsed) => parsed,
        // It ran without a volume, or beside it: the rows, if there are any, are in the container.
        Err(
            Error::NoData { .. }
            | Error::DataElsewhere { .. }
            | Error::NeverMounted { .. }
            | Error::PgdataElsewhere { .. }
            | Error::PgdataHidden { .. },
        ) => {
            return Err(Reason::DataInContainer { name: new.set.name.clone(), namespace: namespace_flag(new) });
        }
        // Whatever it was, pgset did not run it.
        Err(_) => return Ok(()),
    };
    check_version(&parsed, new)?;
    if record.is_none() && new.set.contract == Contract::Agent {
        outlives_the_roll_out(&parsed, new)?;
    }
    let from = Location::of(&parsed, record.is_some())?;
    if from.is_temporary && to.is_temporary {
        return Ok(());
    }
    if !from.is_same_place(&to) {
        return Err(moves(new, &from, &to));
    }
    // Of an image that nobody knows, its own PGDATA may be on the volume.
    let is_known = known::arguments(parsed.container.image).is_some();
    let is_outside = from.pgdata.as_deref().is_some_and(|pgdata| !contains_path(&from.mount_path, pgdata));
    if record.is_none() && is_known && is_outside {
        return Err(Reason::DataInContainer { name: new.set.name.clone(), namespace: namespace_flag(new) });
    }
    if let (Some(old), Some(new_pgdata)) = (&from.pgdata, &to.pgdata)
        && from.on_volume(old) != to.on_volume(new_pgdata)
    {
        hidden_rows(&parsed, new)?;
        let (from, to) = (named(old), named(new_pgdata));
        return Err(Reason::PgdataMoves { container: named(&new.set.container), from, to });
    }
    let replicas = old_replicas.min(new.set.replicas.into());
    if record.is_none() && new.set.contract == Contract::Agent && replicas > 1 {
        return Err(Reason::SeveralDatabases { replicas, name: new.set.name.clone(), namespace: namespace_flag(new) });
    }
    Ok(())
}

/// A set that ran without pgset is rolled out once by being annotated: refuses data that would not outlive that.
fn outlives_the_roll_out(old: &ParsedSet<'_>, new: &ParsedSet<'_>) -> Result<(), Reason> {
    if let Some(kind) = old.placement.temporary {
        return Err(Reason::DataInPod { kind, name: new.set.name.clone(), namespace: namespace_flag(new) });
    }
    hidden_rows(old, new)
}

/// Refuses to leave rows behind that are not on the volume.
fn hidden_rows(old: &ParsedSet<'_>, new: &ParsedSet<'_>) -> Result<(), Reason> {
    if old.placement.hidden == Hidden::No {
        return Ok(());
    }
    Err(Reason::DataBehindImage {
        container: named(&new.set.container),
        mount_path: named(old.set.data.mount_path()),
        declared: BEFORE_18,
        surely: old.placement.hidden == Hidden::Surely,
        name: new.set.name.clone(),
        namespace: namespace_flag(new),
    })
}

/// Refuses another major version: its members would restart and fail one by one.
fn check_version(old: &ParsedSet<'_>, new: &ParsedSet<'_>) -> Result<(), Reason> {
    match (old.container.family.major(), new.container.family.major()) {
        (Some(from), Some(to)) if from != to => {
            Err(Reason::MajorVersion { image: named(new.container.image), from, to })
        }
        _ => Ok(()),
    }
}

fn moves(new: &ParsedSet<'_>, from: &Location, to: &Location) -> Reason {
    let set = &new.set;
    let member = set.member(set.first_ordinal);
    let of_member = |place: &Location| place.to_string().replace(&member_directory(), &member);
    let (from, to) = (of_member(from), of_member(to));
    Reason::DataMoves { name: set.name.clone(), namespace: namespace_flag(new), member, from, to }
}

fn namespace_flag(new: &ParsedSet<'_>) -> String {
    let namespace = &new.set.namespace;
    if namespace.is_empty() { String::new() } else { format!(" --namespace={}", named(namespace)) }
}

impl Location {
    fn of(parsed: &ParsedSet<'_>, is_injected: bool) -> Result<Self, Error> {
        let Placement { data, sub_path_owner, pgdata, source, temporary, hidden: _ } = &parsed.placement;
        let mount_path = data.mount_path();
        let written = parsed.container.mounts()?.into_iter().rev().find(|mount| mount.path == mount_path);
        let written = written.and_then(|mount| mount.sub_path.or(mount.sub_path_expr).map(str::to_owned));
        let (directory, pgdata) = match (sub_path_owner, pgdata) {
            (SubPathOwner::Ours, pgdata) if is_injected => (Some(member_directory()), pgdata),
            (_, pgdata) => (written, pgdata),
        };
        let pgdata = match pgdata {
            Pgdata::Users(pgdata) => pgdata.clone(),
            Pgdata::Images(usual) => Some(usual.clone()),
            Pgdata::Ours(pgdata) if is_injected => Some(pgdata.clone()),
            // The image of 18 or newer does not start beside a mount there (`docker_error_old_databases`): nothing has been written.
            Pgdata::Ours(pgdata) if pgdata == BEFORE_18 && parsed.container.family.major() >= Some(18) => None,
            Pgdata::Ours(_) => Some(parsed.container.family.usual_pgdata()),
            // The kubelet knows; and with pgset it is the same, if it is on the volume.
            Pgdata::Fallback(_) => None,
        };
        Ok(Self {
            source: source.clone(),
            directory,
            mount_path: mount_path.trim_end_matches('/').to_owned(),
            pgdata,
            contract: parsed.set.contract,
            is_temporary: temporary.is_some(),
        })
    }

    /// Whether the same directory of the same volume is mounted.
    fn is_same_place(&self, other: &Self) -> bool {
        self.source == other.source && self.directory == other.directory && self.contract == other.contract
    }

    /// PGDATA as seen from the volume, on which the same data may be mounted elsewhere.
    fn on_volume(&self, pgdata: &str) -> String {
        let inside = pgdata.strip_prefix(self.mount_path.as_str());
        inside.map_or_else(|| format!("outside: {pgdata}"), |inside| inside.trim_matches('/').to_owned())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |pointer: &str| self.source.pointer(pointer).and_then(Value::as_str).map(named);
        let inside = self.pgdata.as_deref().and_then(|pgdata| pgdata.strip_prefix(self.mount_path.as_str()));
        let parts = [self.directory.as_deref(), inside].into_iter().flatten().map(|part| part.trim_matches('/'));
        let directory = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        if directory.is_empty() {
            write!(formatter, "the root of ")?;
        } else {
            write!(formatter, "the directory {} of ", named(&directory))?;
        }
        if let Some(claim) = text("/persistentVolumeClaim/claimName") {
            write!(formatter, "the claim {claim}")
        } else if let Some(template) = text("/volumeClaimTemplate") {
            write!(formatter, "the claim template {template}")
        } else if let Some((server, export)) = text("/nfs/server").zip(text("/nfs/path")) {
            write!(formatter, "the NFS export {server}:{export}")
        } else {
            write!(formatter, "the volume mounted at {}", named(&self.mount_path))
        }
    }
}
