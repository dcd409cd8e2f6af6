//! What an injection looks like and where it puts things: settled by the revision that a set is pinned to, and by what an earlier
//! injection of it did.

use serde_json::Value;

use super::{
    annotations,
    json::at,
    record::{POD_SPEC, Record, unwrapped},
};
use crate::names::{self, annotation, env, pod};

/// What a revision of the injection writes. A revision that writes the same bytes as the one before it has its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shape {
    /// 0.1.0.
    First,
    /// 0.2.0: the volume is recorded, the Secret is optional and has a name of its own, shared volumes are used in place, and the agent
    /// writes where the master is.
    Recorded,
}

impl Shape {
    /// Of a revision; one that nobody knows yet is taken for the newest.
    pub(crate) fn of(revision: &str) -> Self {
        if revision == "0.1.0" { Self::First } else { Self::Recorded }
    }

    /// Whether its agent writes where the master is.
    pub(crate) fn is_routed(self) -> bool {
        self >= Self::Recorded
    }

    /// What the Secret with the passwords is called where the user names none.
    pub(crate) fn credentials(self, set: &str) -> String {
        match self {
            Self::First => names::older_credentials(set),
            Self::Recorded => names::credentials(set),
        }
    }
}

/// What is settled about a set before its object is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    /// The shape of its injection.
    pub(crate) shape: Shape,
    /// The container that was injected: it stays, whatever speaks for another one by now.
    pub(crate) container: Option<String>,
    /// The members' directories were parted by a sub-path, and stay so.
    pub(crate) is_parted: bool,
    /// The member that has its data where it was before the injection.
    pub(crate) in_place: Option<String>,
    /// What PGDATA was set to.
    pub(crate) pgdata: Option<String>,
}

impl Settled {
    /// By a revision and the record of an earlier injection.
    pub(crate) fn of(shape: Shape, record: Option<&Record>) -> Self {
        Self {
            shape,
            container: record.map(|record| record.container.clone()),
            is_parted: record.is_some_and(|record| !record.sub_paths.is_empty()),
            in_place: record.and_then(|record| record.in_place.clone()),
            pgdata: record.and_then(|record| record.env.get(env::PGDATA)?.as_str().map(str::to_owned)),
        }
    }

    /// By what an object says of itself.
    pub(crate) fn by_object(object: &Value, record: Option<&Record>) -> Self {
        let written = annotations::value(object, annotation::REVISION);
        let injected = Pair::of(object).map(|pair| pair.revision);
        let revision = injected.as_deref().or(written).unwrap_or_default();
        Self::of(Shape::of(revision), record)
    }
}

/// The revision and the agent's image of an injected template: the command and the program that understands it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// The revision.
    pub(crate) revision: String,
    /// The image.
    pub(crate) image: String,
}

/// The flag of the agent that names the revision; 0.1.0 wrote none.
pub(crate) const REVISION_FLAG: &str = "--revision=";

/// The flag of the agent that repeats an argument of the image's CMD.
pub(crate) const IMAGE_ARGUMENT: &str = "--image-argument=";

impl Pair {
    /// Of an injected object; `None` if it has no agent.
    pub(crate) fn of(object: &Value) -> Option<Self> {
        let spec = POD_SPEC.resolve(object).ok()?;
        let init_containers = at(spec, &["initContainers"])?.as_array()?.iter();
        let ours =
            init_containers.rev().find(|it| it.get("name").and_then(Value::as_str) == Some(pod::INIT_CONTAINER))?;
        let image = ours.get("image")?.as_str()?.to_owned();
        let containers = at(spec, &["containers"])?.as_array()?.iter();
        let mut commands = containers.filter_map(|it| it.get("command")?.as_array());
        let command = commands.find(|command| unwrapped(command).is_some())?;
        let own = unwrapped(command).map_or(0, <[Value]>::len);
        let flags = command.get(..command.len().saturating_sub(own)).unwrap_or_default().iter();
        let revision = flags.filter_map(Value::as_str).find_map(|flag| flag.strip_prefix(REVISION_FLAG));
        Some(Self { revision: revision.unwrap_or("0.1.0").to_owned(), image })
    }
}
