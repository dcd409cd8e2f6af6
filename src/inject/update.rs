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
    let old_replicas = old.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
    if old_replicas == 0 || new.set.replicas == 0 {
        return Ok(());
    }
    let record = Record::of(old).ok().flatten();
    let own = record.as_ref().map_or_else(|| old.clone(), |record| record.undone(old));
    let to = Location::of(new, true)?;
    let from = match Reading::of(&own) {
        Ok(reading) => Location::of(&reading, record.is_some())?,
        // It ran without a volume: the rows, if there are any, are in the container.
        Err(Error::NoData { .. }) => return Err(moves(new, "the container itself", &to)),
        // Whatever it was, pgset did not run it.
        Err(_) => return Ok(()),
    };
    if from.is_temporary && to.is_temporary || from.leads_to(&to) {
        return Ok(());
    }
    Err(moves(new, &from.to_string(), &to))
}

fn moves(new: &Reading<'_>, from: &str, to: &Location) -> Reason {
    let set = &new.set;
    let namespace =
        if set.namespace.is_empty() { String::new() } else { format!(" --namespace={}", named(&set.namespace)) };
    let member = set.member(set.first_ordinal);
    let to = to.to_string().replace(&member_directory(), &member);
    Reason::DataMoves { name: set.name.clone(), namespace, member, from: from.to_owned(), to }
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

    /// Whether data that is here is found there.
    fn leads_to(&self, other: &Self) -> bool {
        let same_pgdata = match (self.on_volume(), other.on_volume()) {
            (Some(from), Some(to)) => from == to,
            _ => true,
        };
        self.source == other.source
            && self.directory == other.directory
            && self.contract == other.contract
            && same_pgdata
    }

    /// PGDATA as seen from the volume: the same data may be mounted elsewhere.
    fn on_volume(&self) -> Option<String> {
        let pgdata = self.pgdata.as_deref()?;
        let inside = pgdata.strip_prefix(self.mount_path.as_str());
        Some(inside.map_or_else(|| format!("outside:{pgdata}"), |inside| inside.trim_matches('/').to_owned()))
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
