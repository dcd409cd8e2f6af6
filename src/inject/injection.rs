//! Everything that is added to one object, and how it is written: what is there already is left alone, what is missing is
//! appended, and what pgset wrote itself is brought in step.

use json_patch::jsonptr::PointerBuf;
use serde_json::{Value, json};

use super::{Reason, command, environment, pod, revision::Pin};
use crate::{
    names::{annotation, label},
    set::{
        Contract, Data, Reading, annotations,
        data::Parting,
        edits::{Edits, below, path},
        json::covers,
        record::{Parent, Probe, Record, container, member_directory, pod_spec},
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
    pub(super) fn of(reading: &Reading<'_>, own: &Value, pin: &Pin) -> Result<Self, Reason> {
        let set = &reading.set;
        let is_agent = set.contract == Contract::Agent;
        let volumes = pod::volumes(set);
        let init_containers =
            if is_agent { vec![pod::init_container(&pin.image, &reading.container)] } else { Vec::new() };
        let command = is_agent.then(|| reading.container.command()).transpose()?;
        let command = command.map(|own| json!(command::wrapped(set, &own)));
        let environment = environment::variables(reading)?;
        let mounts = pod::mounts(set);
        let mut record = Record {
            container: set.container.clone(),
            revision: pin.is_ours,
            service_account_name: reading.service_account.is_none().then(|| set.service_account.clone()),
            volumes: texts(&volumes, "name"),
            init_containers: texts(&init_containers, "name"),
            command: command.is_some(),
            env: environment::recorded(&environment),
            volume_mounts: texts(&mounts, "mountPath"),
            ..Record::default()
        };
        let labels = own.pointer("/spec/template/metadata/labels");
        for (key, value) in [(label::SET, &set.name), (set.role_label.key.as_str(), &set.role_label.replica)] {
            if labels.and_then(|labels| labels.get(key)).is_none_or(Value::is_null) {
                record.labels.insert(key.to_owned(), value.clone());
            }
        }
        if let (Data::Shared { mount_path, .. }, Parting::Ours) = (&set.data, reading.placement.parting) {
            record.sub_paths.push(mount_path.clone());
        }
        for probe in Probe::ALL.into_iter().filter(|_| is_agent) {
            if !reading.container.field.get(probe.field())?.is_there() {
                record.probes.push(probe);
            }
        }
        let index = reading.container.index;
        record.created = created(&record, own, index);
        Ok(Self { index, volumes, init_containers, command, environment, mounts, record })
    }

    /// What is added, for the object to remember.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Writes what differs.
    pub(super) fn write(&self, edits: &mut Edits) {
        self.write_labels(edits);
        self.write_service_account(edits);
        ensure_items(edits, &Parent::Volumes.path(self.index), "name", &self.volumes);
        ensure_items(edits, &Parent::InitContainers.path(self.index), "name", &self.init_containers);
        self.write_command(edits);
        ensure_items(edits, &Parent::Env.path(self.index), "name", &self.environment);
        ensure_items(edits, &Parent::VolumeMounts.path(self.index), "mountPath", &self.mounts);
        self.write_sub_paths(edits);
        self.write_probes(edits);
        self.write_record(edits);
    }

    fn write_labels(&self, edits: &mut Edits) {
        let labels = Parent::Labels.path(self.index);
        for (key, value) in &self.record.labels {
            ensure_member(edits, &labels, key, &json!(value));
        }
    }

    fn write_service_account(&self, edits: &mut Edits) {
        let Some(account) = &self.record.service_account_name else { return };
        ensure_member(edits, &pod_spec(), "serviceAccountName", &json!(account));
        // The API server mirrors the name in the deprecated field, which must not say another.
        if edits.get(&below(&pod_spec(), "serviceAccount")).is_some() {
            ensure_member(edits, &pod_spec(), "serviceAccount", &json!(account));
        }
    }

    fn write_command(&self, edits: &mut Edits) {
        if let Some(command) = &self.command {
            ensure_member(edits, &container(self.index), "command", command);
        }
    }

    fn write_sub_paths(&self, edits: &mut Edits) {
        let mounts = Parent::VolumeMounts.path(self.index);
        for mount_path in &self.record.sub_paths {
            if let Some(place) = edits.position(&mounts, "mountPath", mount_path) {
                let mount = mounts.with_trailing_token(place);
                ensure_member(edits, &mount, "subPathExpr", &json!(member_directory()));
            }
        }
    }

    fn write_probes(&self, edits: &mut Edits) {
        for probe in &self.record.probes {
            ensure_member(edits, &container(self.index), probe.field(), &probe.value());
        }
    }

    fn write_record(&self, edits: &mut Edits) {
        let record = self.record.to_text();
        if annotations::value(edits.document(), annotation::INJECTED) != Some(&record) {
            edits.set(&path(["metadata", "annotations"]), annotation::INJECTED, json!(record));
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
    let is_missing = |parent: &Parent| own.pointer(parent.path(index).as_str()).is_none_or(Value::is_null);
    Parent::ALL.into_iter().filter(|parent| is_needed(parent) && is_missing(parent)).collect()
}

/// Sees to it that an object's member is as wanted, whatever defaults it has besides.
fn ensure_member(edits: &mut Edits, object: &PointerBuf, key: &str, wanted: &Value) {
    if !edits.get(&below(object, key)).is_some_and(|found| covers(found, wanted)) {
        edits.set(object, key, wanted.clone());
    }
}

fn ensure_items(edits: &mut Edits, list: &PointerBuf, key: &str, wanted: &[Value]) {
    for item in wanted {
        ensure_item(edits, list, key, item);
    }
}

/// Sees to it that a list has the wanted item, which its member `key` identifies.
fn ensure_item(edits: &mut Edits, list: &PointerBuf, key: &str, wanted: &Value) {
    let id = wanted.get(key).and_then(Value::as_str).unwrap_or_default();
    match edits.position(list, key, id) {
        None => edits.append(list, wanted.clone()),
        Some(place) if edits.items(list).get(place).is_some_and(|found| is_as_wanted(found, wanted)) => {}
        Some(place) => edits.replace(list.with_trailing_token(place), wanted.clone()),
    }
}

/// Whether an item has all that is wanted, and of resources nothing else: they are a copy, and what the user took out of the
/// original must go from it.
fn is_as_wanted(found: &Value, wanted: &Value) -> bool {
    let resources =
        |item: &Value| item.get("resources").filter(|it| it.as_object().is_some_and(|it| !it.is_empty())).cloned();
    covers(found, wanted) && resources(found) == resources(wanted)
}
