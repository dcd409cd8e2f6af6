//! Which version of the injection a set is pinned to: a new pgset restarts no database.

use serde_json::{Value, json};

use super::{Reason, Settings};
use crate::{
    names::annotation,
    set::{
        annotations,
        edits::{ANNOTATIONS, Edits},
        error::quoted,
        record::Record,
        shape::{Pair, Shape},
    },
};

/// The revision that this pgset gives to new sets.
pub const REVISION: &str = env!("CARGO_PKG_VERSION");

/// The revisions that this pgset can write. One that changes the injection's bytes has a [`Shape`] of its own, and `tests/released`
/// holds what each of them wrote.
pub const REVISIONS: [&str; 2] = ["0.1.0", "0.2.0"];

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

    fn find(self, revision: &str) -> Result<&'static str, Reason> {
        match self.known.iter().find(|known| **known == revision) {
            Some(known) => Ok(known),
            None if revision == "latest" => Err(Reason::Latest { newest: self.newest }),
            None => {
                let known = self.known.join(", ");
                Err(Reason::Revision { found: quoted(revision), known, newest: self.newest })
            }
        }
    }
}

/// What a set is pinned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    /// The revision.
    pub(crate) revision: &'static str,
    /// What it writes.
    pub(crate) shape: Shape,
    /// The agent's image.
    pub(crate) image: String,
    /// Whether pgset writes the annotation; else the user has done so himself.
    pub(crate) is_ours: bool,
}

impl Pin {
    /// What the annotation asks for, if it is new; else what the template has, shape and program as a pair, so that
    /// `kubectl rollout undo` brings back both; else what is stored; else this pgset's.
    pub(crate) fn of(
        object: &Value,
        old: Option<&Value>,
        record: Option<&Record>,
        settings: &Settings,
        revisions: Revisions,
    ) -> Result<Self, Reason> {
        let written = annotations::value(object, annotation::REVISION);
        let stored = old.and_then(|old| annotations::value(old, annotation::REVISION));
        let pairs = [Some(object), old].map(|object| object.and_then(Pair::of));
        let asked = written.filter(|_| written != stored);
        let (revision, image) = match asked {
            // The image that is there already, if it is that revision's.
            Some(asked) => {
                let same = pairs.into_iter().flatten().find(|pair| pair.revision == asked);
                (revisions.find(asked)?, same.map(|pair| pair.image))
            }
            None => match pairs.into_iter().flatten().next() {
                Some(Pair { revision, image }) => (revisions.find(&revision)?, Some(image)),
                None => (written.or(stored).map_or(Ok(revisions.newest), |pinned| revisions.find(pinned))?, None),
            },
        };
        Ok(Self {
            revision,
            shape: Shape::of(revision),
            image: image.unwrap_or_else(|| settings.agent_image.clone()),
            is_ours: written.is_none() || record.is_some_and(|record| record.revision),
        })
    }

    /// Writes the annotation where it says something else.
    pub(crate) fn write(&self, edits: &mut Edits) {
        if annotations::value(edits.document(), annotation::REVISION) != Some(self.revision) {
            edits.set(ANNOTATIONS, annotation::REVISION, json!(self.revision));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_version_knows_its_own_revision() {
        assert!(REVISIONS.contains(&REVISION));
    }
}
