//! Everything that is added to one object, and how it is written: what is there already is left alone, what is missing is
//! appended, and what pgset wrote itself is brought in step.

use json_patch::jsonptr::Pointer;
use serde_json::{Value, json};

use super::{Reason, command, environment, pod, revision::Pin};
use crate::{
    names::{annotation, label},
    set::{
        Contract, DataSource, ParsedSet,
        data::SubPathOwner,
        edits::{ANNOTATIONS, Edits, below, find},
        json::{at, covers},
        record::{POD_SPEC, Parent, Probe, Record, container, member_directory},
    },
};

/// Everything that is added to one object.
#[derive(Clone, Debug)]
pub(super) struct Injection {
    index: usize,
    volumes: Vec<Value>,
    init_containers: Vec<Value>,
    command: Option<Value>,
    environment: Vec<Value>,
    mounts: Vec<Value>,
    record: Record,
}

impl Injection {
    /// What the object lacks, which its user wrote like `own`.
    pub(super) fn of(parsed: &ParsedSet<'_>, own: &Value, pin: &Pin) -> Result<Self, Reason> {
        let set = &parsed.set;
        let is_agent = set.contract == Contract::Agent;
        let volumes = pod::volumes(set, pin.shape);
        let init_containers = if is_agent { vec![pod::init_container(pin, parsed)?] } else { Vec::new() };
        let command = is_agent.then(|| command::wrapped(parsed, pin)).transpose()?.map(|words| json!(words));
        let environment = environment::variables(parsed)?;
        let mounts = pod::mounts(set);
        let mut record = Record {
            container: set.container.clone(),
            revision: pin.is_ours,
            service_account_name: parsed.service_account.is_none().then(|| set.service_account.clone()),
            volumes: texts(&volumes, "name"),
            init_containers: texts(&init_containers, "name"),
            command: command.is_some(),
            env: environment::recorded(&environment),
            volume_mounts: texts(&mounts, "mountPath"),
            ..Record::default()
        };
        let labels = at(own, &["spec", "template", "metadata", "labels"]);
        for (key, value) in [(label::SET, &set.name), (set.role_label.key.as_str(), &set.role_label.replica)] {
            if labels.and_then(|labels| labels.get(key)).is_none_or(Value::is_null) {
                record.labels.insert(key.to_owned(), value.clone());
            }
        }
        match (&set.data, &parsed.placement.sub_path_owner) {
            (DataSource::Shared { mount_path, .. }, SubPathOwner::Ours) => record.sub_paths.push(mount_path.clone()),
            (_, SubPathOwner::InPlace { member }) => record.in_place = Some(member.clone()),
            _ => {}
        }
        for probe in Probe::ALL.into_iter().filter(|_| is_agent) {
            if !parsed.container.field.get(probe.field())?.is_there() {
                record.probes.push(probe);
            }
        }
        let index = parsed.container.index;
        record.created = created(&record, own, index);
        Ok(Self { index, volumes, init_containers, command, environment, mounts, record })
    }

    /// What is added, for the object to remember.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Writes what differs.
    pub(super) fn write(self, edits: &mut Edits) {
        let Self { index, volumes, init_containers, command, environment, mounts, record } = self;
        write_labels(edits, index, &record);
        write_service_account(edits, &record);
        ensure_items(edits, &Parent::Volumes.path(index), "name", volumes);
        ensure_items(edits, &Parent::InitContainers.path(index), "name", init_containers);
        let container = container(index);
        if let Some(command) = command {
            ensure_member(edits, &container, "command", command);
        }
        ensure_items(edits, &Parent::Env.path(index), "name", environment);
        ensure_items(edits, &Parent::VolumeMounts.path(index), "mountPath", mounts);
        write_sub_paths(edits, index, &record);
        for probe in &record.probes {
            ensure_member(edits, &container, probe.field(), probe.value());
        }
        ensure_member(edits, ANNOTATIONS, annotation::INJECTED, json!(record.to_text()));
    }
}

fn write_labels(edits: &mut Edits, index: usize, record: &Record) {
    let labels = Parent::Labels.path(index);
    for (key, value) in &record.labels {
        ensure_member(edits, &labels, key, json!(value));
    }
}

fn write_service_account(edits: &mut Edits, record: &Record) {
    let Some(account) = &record.service_account_name else { return };
    ensure_member(edits, POD_SPEC, "serviceAccountName", json!(account));
    // The API server mirrors the name in the deprecated field, which must not say another.
    if edits.get(&below(POD_SPEC, "serviceAccount")).is_some() {
        ensure_member(edits, POD_SPEC, "serviceAccount", json!(account));
    }
}

fn write_sub_paths(edits: &mut Edits, index: usize, record: &Record) {
    let mounts = Parent::VolumeMounts.path(index);
    for mount_path in &record.sub_paths {
        if let Some(place) = edits.position(&mounts, "mountPath", mount_path) {
            let mount = mounts.with_trailing_token(place);
            ensure_member(edits, &mount, "subPathExpr", json!(member_directory()));
        }
    }
}

fn texts(items: &[Value], key: &str) -> Vec<String> {
    items.iter().filter_map(|item| item.get(key)?.as_str().map(str::to_owned)).collect()
}

/// The lists and objects that the injection is the first to put something in.
fn created(record: &Record, own: &Value, index: usize) -> Vec<Parent> {
    let is_needed = |parent: &Parent| match parent {
        Parent::Metadata | Parent::Labels => !record.labels.is_empty(),
        Parent::Volumes => !record.volumes.is_empty(),
        Parent::InitContainers => !record.init_containers.is_empty(),
        Parent::Command => record.command,
        Parent::Env => !record.env.is_empty(),
        Parent::VolumeMounts => !record.volume_mounts.is_empty(),
    };
    let is_missing = |parent: &Parent| find(own, &parent.path(index)).is_none();
    Parent::ALL.into_iter().filter(|parent| is_needed(parent) && is_missing(parent)).collect()
}

/// Sees to it that an object's member is as wanted, whatever defaults it has besides.
fn ensure_member(edits: &mut Edits, object: &Pointer, key: &str, wanted: Value) {
    edits.set_unless(object, key, wanted, covers);
}

/// Sees to it that a list has the wanted items, each of which its member `key` identifies.
fn ensure_items(edits: &mut Edits, list: &Pointer, key: &str, wanted: Vec<Value>) {
    let (mut missing, mut different) = (Vec::new(), Vec::new());
    let found = edits.items(list);
    let ids: Vec<_> = found.iter().map(|item| item.get(key)).collect();
    for item in wanted {
        let wanted_id = item.get(key);
        let place = ids.iter().rposition(|id| id.is_some() && *id == wanted_id);
        match place.and_then(|place| Some((place, found.get(place)?))) {
            None => missing.push(item),
            Some((_, found)) if is_as_wanted(found, &item) => {}
            Some((place, _)) => different.push((place, item)),
        }
    }
    for (place, item) in different {
        edits.replace(list.with_trailing_token(place), item);
    }
    edits.append(list, missing);
}

/// Whether an item has all that is wanted, and of resources nothing else: they are a copy, and what the user took out of the
/// original must go from it.
fn is_as_wanted(found: &Value, wanted: &Value) -> bool {
    fn resources(item: &Value) -> Option<&Value> {
        item.get("resources").filter(|it| it.as_object().is_some_and(|it| !it.is_empty()))
    }
    covers(found, wanted) && resources(found) == resources(wanted)
}
