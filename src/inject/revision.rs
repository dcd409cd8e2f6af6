//! Which version of the injection a set is pinned to: a new pgset restarts no database.

use serde_json::{Value, json};

use super::{Reason, Settings};
use crate::{
    names::{annotation, pod},
    set::{
        annotations,
        edits::{ANNOTATIONS, Edits},
        error::shown,
        json::at,
        record::Record,
    },
};

/// The revision that this pgset gives to new sets.
pub const REVISION: &str = env!("CARGO_PKG_VERSION");

/// The revisions that this pgset can write. One that changes the injection's bytes gets a case of its own where it differs,
/// and `tests/released` holds what each of them wrote.
pub const REVISIONS: [&str; 1] = ["0.1.0"];

/// What a pgset can write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revisions {
    /// What it gives to new sets.
    pub(super) newest: &'static str,
    /// All of them.
    pub(super) known: &'static [&'static str],
}

impl Revisions {
    /// Of this pgset.
    pub(super) const THIS: Self = Self { newest: REVISION, known: &REVISIONS };
}

/// What a set is pinned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    /// The revision.
    pub(crate) revision: &'static str,
    /// The agent's image.
    pub(crate) image: String,
    /// Whether pgset writes the annotation; else the user has done so himself.
    pub(crate) is_ours: bool,
}

impl Pin {
    /// The object's own revision and image; else those that are stored; else this pgset's.
    pub(crate) fn of(
        object: &Value,
        old: Option<&Value>,
        record: Option<&Record>,
        settings: &Settings,
        revisions: Revisions,
    ) -> Result<Self, Reason> {
        let written = annotations::value(object, annotation::REVISION);
        let stored = old.and_then(|old| annotations::value(old, annotation::REVISION));
        let latest = Self { revision: revisions.newest, image: settings.agent_image.clone(), is_ours: true };
        match written.or(stored) {
            None | Some("latest") => Ok(latest),
            Some(pinned) => match revisions.known.iter().find(|known| **known == pinned) {
                Some(revision) => Ok(Self {
                    revision,
                    image: image(object).or_else(|| old.and_then(image)).unwrap_or(latest.image),
                    is_ours: written.is_none() || record.is_some_and(|record| record.revision),
                }),
                None => Err(Reason::Revision { found: shown(pinned), known: revisions.known.join(", ") }),
            },
        }
    }

    /// Writes the annotation where it says something else.
    pub(crate) fn write(&self, edits: &mut Edits) {
        if annotations::value(edits.document(), annotation::REVISION) != Some(self.revision) {
            edits.set(ANNOTATIONS, annotation::REVISION, json!(self.revision));
        }
    }
}

/// The agent's image in an injected object.
fn image(object: &Value) -> Option<String> {
    let containers = at(object, &["spec", "template", "spec", "initContainers"])?.as_array()?;
    let ours = containers
        .iter()
        .find(|container| container.get("name").and_then(Value::as_str) == Some(pod::INIT_CONTAINER))?;
    ours.get("image")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_version_knows_its_own_revision() {
        assert!(REVISIONS.contains(&REVISION));
    }
}
