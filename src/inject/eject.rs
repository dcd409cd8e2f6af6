//! The way back: taking an injection out again.

use json_patch::Patch;
use serde_json::Value;

use super::{Outcome, Reason, warnings};
use crate::{
    names::{annotation, pod},
    set::{
        edits::Edits,
        error::named,
        json::at,
        record::{Record, undo_status},
    },
};

/// The patch that takes out exactly what was injected; empty if there is no injection, or no record of it.
#[must_use]
pub fn eject(object: &Value) -> Patch {
    let mut edits = Edits::new(object);
    if let Ok(Some(record)) = Record::of(object) {
        take_out(&mut edits, &record);
    }
    edits.into_patch()
}

fn take_out(edits: &mut Edits, record: &Record) {
    record.undo(edits, &Record::default());
    record.undo_annotations(edits);
    undo_status(edits);
}

/// A stored set whose annotation is gone: it may leave once it is a single PostgreSQL again.
pub(super) fn leave(object: &Value, old: Option<&Value>, stored: &Record) -> Result<Outcome, Reason> {
    // Its own record, if it differs, may be one that somebody edited: what the stored one names goes too.
    let own = Record::of(object).ok().flatten().filter(|own| own != stored);
    let replicas = |set: &Value| at(set, &["spec", "replicas"]).and_then(Value::as_u64).unwrap_or(1);
    // Without its volume or its sub-path, a member would start on an empty directory and look as if all rows were gone.
    let parts_data = !stored.sub_paths.is_empty() || stored.volumes.iter().any(|volume| volume == pod::DATA_VOLUME);
    let (limit, replicas, why) = if parts_data {
        (0, replicas(object), "each has its data in a directory of its own, which it would not find again")
    } else {
        // Scaled down by the same change, the one that stays might restart as the replica that it still is, without a master.
        let most = old.map_or(0, replicas).max(replicas(object));
        (1, most, "replicas would become databases of their own")
    };
    if replicas > u64::from(limit) {
        let field = |key: &str| object.get("metadata")?.get(key)?.as_str();
        return Err(Reason::StillRunning {
            name: named(field("name").unwrap_or_default()),
            namespace: field("namespace").map_or_else(String::new, |it| format!(" --namespace={}", named(it))),
            replicas: u32::try_from(replicas).unwrap_or(u32::MAX),
            limit,
            why,
        });
    }
    let mut edits = Edits::new(object);
    if let Some(own) = own {
        take_out(&mut edits, &own);
    }
    take_out(&mut edits, stored);
    let warnings = if parts_data { warnings::of_leaving(object) } else { Vec::new() };
    let patch = edits.into_patch();
    if patch.0.is_empty() {
        return Ok(Outcome::Untouched { warnings });
    }
    Ok(Outcome::Patched { patch, warnings, audit: vec![("ejected", annotation::INJECT.to_owned())] })
}
