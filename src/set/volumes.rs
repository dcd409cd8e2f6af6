//! The volumes of a template, by what they are for data.

use serde_json::{Value, json};

use super::{Error, json::Field};

/// What a volume is, for data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One for each member: a claim template.
    PerMember,
    /// One for each pod, gone with it, and what it is called.
    PerPod(&'static str),
    /// One that all members share.
    Shared,
    /// Made of an object or an image, read-only: never data.
    Projection(&'static str),
}

/// One volume of a template.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    /// What it is.
    pub(super) kind: Kind,
    /// Where it comes from, without its name.
    pub(super) source: Value,
}

/// The volumes that a template's containers can mount.
pub(super) fn volumes<'a>(object: &Field<'a>) -> Result<Vec<(&'a str, Volume)>, Error> {
    let mut volumes = Vec::new();
    for template in object.at(&["spec", "volumeClaimTemplates"])?.items()? {
        let name = template.at(&["metadata", "name"])?.text()?.unwrap_or_default();
        volumes.push((name, Volume { kind: Kind::PerMember, source: json!({ "volumeClaimTemplate": name }) }));
    }
    for volume in object.at(&["spec", "template", "spec", "volumes"])?.items()? {
        let name = volume.get("name")?.text()?.unwrap_or_default();
        let mut source = volume.value().cloned().unwrap_or_default();
        if let Value::Object(source) = &mut source {
            source.retain(|key, value| key != "name" && !value.is_null());
        }
        volumes.push((name, Volume { kind: kind(&source), source }));
    }
    Ok(volumes)
}

fn kind(source: &Value) -> Kind {
    let has = |key: &str| source.get(key).is_some();
    let projections = ["configMap", "secret", "projected", "downwardAPI", "image"];
    if let Some(projection) = projections.into_iter().find(|key| has(key)) {
        Kind::Projection(projection)
    } else if has("ephemeral") {
        Kind::PerPod("a generic ephemeral volume")
    } else if has("emptyDir") || source.as_object().is_none_or(serde_json::Map::is_empty) {
        // A volume without a source is an emptyDir: the API server fills it in.
        Kind::PerPod("an emptyDir")
    } else {
        Kind::Shared
    }
}
