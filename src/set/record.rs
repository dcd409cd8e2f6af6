//! The record of an injection, and how it is undone.
//!
//! The record stands in the annotation `pgset.dev/injected` and names each thing that pgset added, with its value where the
//! user could write the same thing: what no longer has that value is the user's now, and stays.
//!
//! Fields that this build does not know are passed over. Who makes an injection that an earlier pgset could not undo by what it
//! knows raises [`VERSION`].

use std::collections::BTreeMap;

use json_patch::jsonptr::{Pointer, PointerBuf};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Error, annotations,
    edits::{ANNOTATIONS, Edits, below},
    json::{at, covers},
};
use crate::names::{annotation, env, pod};

/// The newest version of the record that this pgset can undo.
const VERSION: u32 = 1;

/// What was injected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// The PostgreSQL container's name; everything below that belongs to a container belongs to this one. The policies look for it at
    /// the beginning of the text.
    pub(crate) container: String,
    /// Whether the revision's annotation is pgset's (a user may pin one himself).
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) revision: bool,
    /// Labels of the template.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    /// The template's service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) service_account_name: Option<String>,
    /// Volumes, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) volumes: Vec<String>,
    /// Init containers, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) init_containers: Vec<String>,
    /// Whether the container's command is wrapped.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) command: bool,
    /// Environment: a value, the object of a `valueFrom`, or `null` for a private variable, which can only be pgset's.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) env: Map<String, Value>,
    /// Mounts, by path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) volume_mounts: Vec<String>,
    /// Mounts of the user's, by path, that were given a sub-path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sub_paths: Vec<String>,
    /// The member that has its data where it is without pgset, on a mount that all members share as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) in_place: Option<String>,
    /// Probes of the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) probes: Vec<Probe>,
    /// Lists and objects that had to be made first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) created: Vec<Parent>,
}

/// The record as it stands; what is no text is an empty one.
fn text(object: &Value) -> Result<Option<&str>, Error> {
    let is_there = annotations::of(object)?.get(annotation::INJECTED)?.is_there();
    Ok(is_there.then(|| annotations::value(object, annotation::INJECTED).unwrap_or_default()))
}

/// Of a record only its version; absent is the first.
#[derive(Deserialize)]
struct Version {
    version: Option<u32>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(value: &bool) -> bool {
    !value
}

/// The probes of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Probe {
    /// `startupProbe`.
    #[serde(rename = "startupProbe")]
    Startup,
    /// `readinessProbe`.
    #[serde(rename = "readinessProbe")]
    Readiness,
    /// `livenessProbe`.
    #[serde(rename = "livenessProbe")]
    Liveness,
}

impl Probe {
    /// All of them, in the order of the record.
    pub(crate) const ALL: [Self; 3] = [Self::Startup, Self::Readiness, Self::Liveness];

    /// The container's field.
    pub(crate) fn field(self) -> &'static str {
        match self {
            Self::Startup => "startupProbe",
            Self::Readiness => "readinessProbe",
            Self::Liveness => "livenessProbe",
        }
    }

    /// What pgset puts there. A clone may take a day before PostgreSQL starts; liveness waits for the startup probe.
    pub(crate) fn value(self) -> Value {
        let (path, period, failures, timeout) = match self {
            Self::Startup => ("/startupz", 1, 86400, 2),
            Self::Readiness => ("/readyz", 1, 3, 2),
            Self::Liveness => ("/livez", 10, 6, 5),
        };
        json!({
            "httpGet": { "path": path, "port": pod::AGENT_PORT },
            "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": timeout,
        })
    }
}

/// Lists and objects that an injection may have to make, because the user wrote none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Parent {
    /// The template's `metadata`.
    Metadata,
    /// The template's labels.
    Labels,
    /// The template's volumes.
    Volumes,
    /// The template's init containers.
    InitContainers,
    /// The container's command.
    Command,
    /// The container's environment.
    Env,
    /// The container's mounts.
    VolumeMounts,
}

impl Parent {
    /// All of them, each before what it may hold.
    pub(crate) const ALL: [Self; 7] = [
        Self::Metadata,
        Self::Labels,
        Self::Volumes,
        Self::InitContainers,
        Self::Command,
        Self::Env,
        Self::VolumeMounts,
    ];

    /// Where it is, for a container at `index`.
    pub(crate) fn path(self, index: usize) -> PointerBuf {
        match self {
            Self::Metadata => below(TEMPLATE, "metadata"),
            Self::Labels => LABELS.to_buf(),
            Self::Volumes => below(POD_SPEC, "volumes"),
            Self::InitContainers => below(POD_SPEC, "initContainers"),
            Self::Command => below(&container(index), "command"),
            Self::Env => below(&container(index), "env"),
            Self::VolumeMounts => below(&container(index), "volumeMounts"),
        }
    }
}

/// The template.
const TEMPLATE: &Pointer = Pointer::from_static("/spec/template");

/// The template's labels.
const LABELS: &Pointer = Pointer::from_static("/spec/template/metadata/labels");

/// The template's pod.
pub(crate) const POD_SPEC: &Pointer = Pointer::from_static("/spec/template/spec");

/// The template's containers.
const CONTAINERS: &Pointer = Pointer::from_static("/spec/template/spec/containers");

/// The path of a container of the template.
pub(crate) fn container(index: usize) -> PointerBuf {
    CONTAINERS.with_trailing_token(index)
}

/// The sub-path that parts the members' directories.
pub(crate) fn member_directory() -> String {
    format!("$({})", env::POD_NAME)
}

/// The user's own command inside a wrapped one.
pub(crate) fn unwrapped(command: &[Value]) -> Option<&[Value]> {
    let [program, first, ..] = command else { return None };
    if program != pod::AGENT_PATH || first != "agent" {
        return None;
    }
    let end = command.iter().position(|word| word == "--")?;
    command.get(end + 1..)
}

impl Record {
    /// The record of a raw object; `None` if it carries none.
    pub(crate) fn of(object: &Value) -> Result<Option<Self>, Error> {
        let Some(text) = text(object)? else { return Ok(None) };
        // First: what a later version says besides may have another form.
        let version = serde_json::from_str(text).map_or(VERSION, |Version { version }| version.unwrap_or(VERSION));
        if version > VERSION {
            return Err(Error::LaterRecord { found: version, known: VERSION });
        }
        Self::read(text).map(Some)
    }

    /// The same to look at only: whatever a later version has added, a set is looked after.
    pub(crate) fn to_look_at(object: &Value) -> Result<Option<Self>, Error> {
        text(object)?.map(Self::read).transpose()
    }

    fn read(text: &str) -> Result<Self, Error> {
        serde_json::from_str(text).ok().filter(Self::is_short).ok_or(Error::Record)
    }

    /// Whether an object carries a record, be it one that can be read or not.
    pub(crate) fn is_on(object: &Value) -> bool {
        annotations::value(object, annotation::INJECTED).is_some()
    }

    /// No record of pgset's is longer. Each of its entries is looked for in the object: thousands of them, which somebody wrote
    /// by hand, would take their time.
    fn is_short(&self) -> bool {
        const MOST: usize = 64;
        let lists = [&self.volumes, &self.init_containers, &self.volume_mounts, &self.sub_paths].map(Vec::len);
        let others = [self.labels.len(), self.env.len(), self.probes.len(), self.created.len()];
        lists.into_iter().chain(others).all(|length| length <= MOST)
    }

    /// The record as the annotation's value: compact, and the same for the same injection.
    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The object as its user wrote it.
    pub(crate) fn undone(&self, object: &Value) -> Value {
        let mut edits = Edits::new(object);
        self.undo(&mut edits, &Self::default());
        self.undo_annotations(&mut edits);
        edits.into_document()
    }

    /// Takes out what this record names and `keep` does not.
    pub(crate) fn undo(&self, edits: &mut Edits, keep: &Self) {
        let index = edits.position(CONTAINERS, "name", &self.container);
        // What belongs to another container can't stay.
        let empty = Self::default();
        let keep_here = if keep.container == self.container { keep } else { &empty };
        if let Some(index) = index {
            self.undo_command(edits, index, keep_here);
            self.undo_probes(edits, index, keep_here);
            self.undo_mounts(edits, index, keep_here);
            self.undo_env(edits, index, keep_here);
        }
        undo_named(edits, &Parent::InitContainers.path(0), &self.init_containers, &keep.init_containers);
        undo_named(edits, &Parent::Volumes.path(0), &self.volumes, &keep.volumes);
        self.undo_service_account(edits, keep);
        self.undo_labels(edits, keep);
        for parent in Parent::ALL.into_iter().rev().filter(|parent| self.created.contains(parent)) {
            let at = parent.path(index.unwrap_or(usize::MAX));
            let empty = match edits.get(&at) {
                Some(Value::Array(items)) => items.is_empty(),
                Some(Value::Object(members)) => members.is_empty(),
                _ => false,
            };
            if empty {
                edits.remove(at);
            }
        }
    }

    /// Takes out the annotations that tell of the injection.
    pub(crate) fn undo_annotations(&self, edits: &mut Edits) {
        edits.remove(below(ANNOTATIONS, annotation::INJECTED));
        if self.revision {
            edits.remove(below(ANNOTATIONS, annotation::REVISION));
        }
    }

    fn undo_command(&self, edits: &mut Edits, index: usize, keep: &Self) {
        if self.command && !keep.command {
            let at = Parent::Command.path(index);
            while let Some(command) = unwrapped(edits.items(&at)).map(<[Value]>::to_vec) {
                edits.replace(at.clone(), Value::Array(command));
            }
        }
    }

    fn undo_probes(&self, edits: &mut Edits, index: usize, keep: &Self) {
        for probe in self.probes.iter().rev().filter(|probe| !keep.probes.contains(probe)) {
            let at = below(&container(index), probe.field());
            let ours = probe.value();
            let Some(found) = edits.get(&at) else { continue };
            if HANDLERS.iter().any(|handler| found.get(handler).is_some()) {
                // `kubectl apply` merges: a probe that the user adds later comes with our handler still in it.
                let rest = found.get("httpGet").zip(ours.get("httpGet"));
                if rest.is_some_and(|(rest, ours)| covers(rest, ours)) {
                    edits.remove(below(&at, "httpGet"));
                }
            } else if covers(found, &ours) {
                edits.remove(at);
            }
        }
    }

    fn undo_mounts(&self, edits: &mut Edits, index: usize, keep: &Self) {
        let at = Parent::VolumeMounts.path(index);
        for mount_path in self.sub_paths.iter().filter(|mount_path| !keep.sub_paths.contains(mount_path)) {
            if let Some(place) = edits.position(&at, "mountPath", mount_path) {
                let expression = at.with_trailing_token(place).with_trailing_token("subPathExpr");
                if edits.get(&expression).and_then(Value::as_str) == Some(member_directory().as_str()) {
                    edits.remove(expression);
                }
            }
        }
        for mount_path in self.volume_mounts.iter().rev().filter(|it| !keep.volume_mounts.contains(it)) {
            while let Some(place) = edits.position(&at, "mountPath", mount_path) {
                let mount = at.with_trailing_token(place);
                let volume = edits.get(&below(&mount, "name")).and_then(Value::as_str);
                if !volume.is_some_and(|volume| OUR_VOLUMES.contains(&volume)) {
                    break;
                }
                edits.remove(mount);
            }
        }
    }

    fn undo_env(&self, edits: &mut Edits, index: usize, keep: &Self) {
        let at = Parent::Env.path(index);
        for (name, recorded) in self.env.iter().rev().filter(|(name, _)| !keep.env.contains_key(*name)) {
            while let Some(place) = edits.position(&at, "name", name) {
                let entry = at.with_trailing_token(place);
                let Some(found) = edits.get(&entry) else { break };
                if let Some(half) = our_half(found, recorded) {
                    edits.remove(below(&entry, half));
                } else if is_as_recorded(found, name, recorded) {
                    edits.remove(entry);
                } else {
                    break;
                }
            }
        }
    }

    fn undo_service_account(&self, edits: &mut Edits, keep: &Self) {
        let Some(recorded) = self.service_account_name.as_deref().filter(|_| keep.service_account_name.is_none())
        else {
            return;
        };
        // The API server mirrors the name in the deprecated field.
        for field in ["serviceAccount", "serviceAccountName"] {
            let at = below(POD_SPEC, field);
            if edits.get(&at).and_then(Value::as_str) == Some(recorded) {
                edits.remove(at);
            }
        }
    }

    fn undo_labels(&self, edits: &mut Edits, keep: &Self) {
        for (key, recorded) in self.labels.iter().rev().filter(|(key, _)| !keep.labels.contains_key(*key)) {
            let at = below(LABELS, key.as_str());
            if edits.get(&at).and_then(Value::as_str) == Some(recorded) {
                edits.remove(at);
            }
        }
    }
}

/// The ways to probe that pgset does not use.
const HANDLERS: [&str; 3] = ["exec", "tcpSocket", "grpc"];

/// The names of volumes that only pgset gives.
pub(crate) const OUR_VOLUMES: [&str; 3] = [pod::RUN_VOLUME, pod::ACCESS_VOLUME, pod::DATA_VOLUME];

fn is_as_recorded(entry: &Value, name: &str, recorded: &Value) -> bool {
    match recorded {
        // Somebody else's of that name is to be refused, not taken for ours.
        Value::Null => {
            let field = env::FIELDS.iter().find(|(private, _)| *private == name).map(|(_, field)| *field);
            let found = at(entry, &["valueFrom", "fieldRef", "fieldPath"]).and_then(Value::as_str);
            name.starts_with(env::PRIVATE_PREFIX) && field.is_none_or(|field| found == Some(field))
        }
        Value::Object(_) => entry.get("valueFrom").is_some_and(|source| covers(source, recorded)),
        // An empty value is left out when the API server stores it.
        _ => entry.get("valueFrom").is_none() && entry.get("value").unwrap_or(&json!("")) == recorded,
    }
}

/// What is ours of a variable that says two things. As with probes: what the user adds later comes with ours still in it, and the API
/// server refuses both together.
fn our_half(entry: &Value, recorded: &Value) -> Option<&'static str> {
    let value = entry.get("value").filter(|value| !value.is_null() && **value != "")?;
    let source = entry.get("valueFrom").filter(|source| !source.is_null())?;
    match recorded {
        Value::Object(_) if covers(source, recorded) => Some("valueFrom"),
        _ if value == recorded => Some("value"),
        _ => None,
    }
}

fn undo_named(edits: &mut Edits, list: &PointerBuf, recorded: &[String], keep: &[String]) {
    for name in recorded.iter().rev().filter(|name| !keep.contains(name) && is_ours(name)) {
        while let Some(place) = edits.position(list, "name", name) {
            edits.remove(list.with_trailing_token(place));
        }
    }
}

/// Only names that pgset gives: a record that names anything else does not make it pgset's.
fn is_ours(name: &str) -> bool {
    name == pod::INIT_CONTAINER || OUR_VOLUMES.contains(&name)
}

/// Everything that tells of pgset on an object's metadata but is no wish of the user's.
pub(crate) fn undo_status(edits: &mut Edits) {
    edits.remove(below(ANNOTATIONS, annotation::STATUS));
}

/// Whether the object is marked as a set of ours in any way that the record has to explain.
pub(crate) fn find_reserved_name(object: &Value) -> Option<String> {
    let spec = object.get("spec")?.get("template")?.get("spec")?;
    let named = |list: &str, names: &[&str]| {
        let items = spec.get(list)?.as_array()?;
        let names_it = |item: &Value| item.get("name").and_then(Value::as_str).map(str::to_owned);
        items.iter().filter_map(names_it).find(|name| names.contains(&name.as_str()))
    };
    named("volumes", &OUR_VOLUMES)
        .map(|name| format!("volume {name}"))
        .or_else(|| named("initContainers", &[pod::INIT_CONTAINER]).map(|name| format!("init container {name}")))
        .or_else(|| named("containers", &[pod::INIT_CONTAINER]).map(|name| format!("container {name}")))
}
