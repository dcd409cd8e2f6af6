//! What an update must not do: move the place of the data, so that it would vanish from view.

use std::fmt;

use serde_json::Value;

use super::Reason;
use crate::{
    names::pod,
    set::{
        Contract, Data, Error, Reading,
        data::{Parting, Pgdata, Placement},
        error::named,
        image::Family,
        json::at,
        record::{Record, member_directory},
    },
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

/// Refuses an update that moves the data of members that run.
pub(super) fn check(old: &Value, new: &Reading<'_>) -> Result<(), Reason> {
    // Between two states, one of which has no members, the user can have moved the data himself.
    let old_replicas = at(old, &["spec", "replicas"]).and_then(Value::as_u64).unwrap_or(1);
    if old_replicas == 0 || new.set.replicas == 0 {
        return Ok(());
    }
    let record = Record::of(old).ok().flatten();
    let own = record.as_ref().map_or_else(|| old.clone(), |record| record.undone(old));
    let to = Location::of(new, true)?;
    let from = match Reading::of(&own) {
        Ok(reading) => {
            check_version(&reading, new)?;
            Location::of(&reading, record.is_some())?
        }
        // It ran without a volume: the rows, if there are any, are in the container.
        Err(Error::NoData { .. }) => {
            return Err(Reason::DataInContainer { name: new.set.name.clone(), namespace: namespace_flag(new) });
        }
        // Whatever it was, pgset did not run it.
        Err(_) => return Ok(()),
    };
    if from.is_temporary && to.is_temporary {
        return Ok(());
    }
    if !from.is_same_place(&to) {
        return Err(moves(new, &from, &to));
    }
    match (&from.pgdata, &to.pgdata) {
        (Some(old), Some(new_pgdata)) if from.on_volume(old) != to.on_volume(new_pgdata) => {
            Err(Reason::PgdataMoves { container: named(&new.set.container), from: named(old), to: named(new_pgdata) })
        }
        _ => Ok(()),
    }
}

/// Refuses another major version: its members would restart and fail one by one.
fn check_version(old: &Reading<'_>, new: &Reading<'_>) -> Result<(), Reason> {
    match (old.container.family, new.container.family) {
        (Family::Official { major: Some(from) }, Family::Official { major: Some(to) }) if from != to => {
            let image = new.container.field.get("image")?.text()?.unwrap_or_default();
            Err(Reason::MajorVersion { image: named(image), from, to })
        }
        _ => Ok(()),
    }
}

fn moves(new: &Reading<'_>, from: &Location, to: &Location) -> Reason {
    let set = &new.set;
    let member = set.member(set.first_ordinal);
    let of_member = |place: &Location| place.to_string().replace(&member_directory(), &member);
    let (from, to) = (of_member(from), of_member(to));
    Reason::DataMoves { name: set.name.clone(), namespace: namespace_flag(new), member, from, to }
}

fn namespace_flag(new: &Reading<'_>) -> String {
    let namespace = &new.set.namespace;
    if namespace.is_empty() { String::new() } else { format!(" --namespace={}", named(namespace)) }
}

impl Location {
    fn of(reading: &Reading<'_>, is_injected: bool) -> Result<Self, Error> {
        let Placement { data, parting, pgdata, source, ephemeral } = &reading.placement;
        let mount_path = match data {
            Data::Claim { .. } => pod::DATA_PATH,
            Data::Shared { mount_path, .. } | Data::Own { mount_path, .. } => mount_path,
        };
        let written = reading.container.mounts()?.into_iter().rev().find(|mount| mount.path == mount_path);
        let written = written.and_then(|mount| mount.sub_path.or(mount.sub_path_expr).map(str::to_owned));
        let (directory, pgdata) = match (parting, pgdata) {
            (Parting::Ours, pgdata) if is_injected => (Some(member_directory()), pgdata),
            (_, pgdata) => (written, pgdata),
        };
        let pgdata = match pgdata {
            Pgdata::Users(pgdata) => pgdata.clone(),
            Pgdata::Images(usual) => Some(usual.clone()),
            Pgdata::Ours(pgdata) if is_injected => Some(pgdata.clone()),
            Pgdata::Ours(_) => Some(reading.container.family.usual_pgdata()),
        };
        Ok(Self {
            source: source.clone(),
            directory,
            mount_path: mount_path.trim_end_matches('/').to_owned(),
            pgdata,
            contract: reading.set.contract,
            is_temporary: *ephemeral,
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
