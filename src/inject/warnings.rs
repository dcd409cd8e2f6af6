//! What the user should know, though nothing stands in the way. One line of at most 120 characters each: the API server cuts
//! longer ones, and drops control characters.

use serde_json::Value;

use super::Reason;
use crate::{
    names::{
        self, annotation, env,
        pod::{AGENT_PORT, POSTGRES_PORT},
    },
    set::{
        Contract, DataSource, Error, ParsedSet,
        data::{Pgdata, SubPathOwner},
        entries,
        error::named,
        image::Reference,
        json::{Field, at},
        known,
        record::Record,
        shape::Settled,
        validation::nearly_ours,
    },
};

const LONGEST: usize = 120;
/// The API server drops all warnings of a reply beyond 4096 characters.
const MOST: usize = 12;

/// Warnings in the making.
#[derive(Debug, Default)]
struct Warnings(Vec<String>);

impl Warnings {
    fn push(&mut self, text: &str) {
        let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if line.chars().count() > LONGEST {
            line = line.chars().take(LONGEST - 1).chain(['…']).collect();
        }
        if self.0.len() < MOST && !self.0.contains(&line) {
            self.0.push(line);
        }
    }
}

/// Of an object that becomes or stays a set.
pub(super) fn of_set(own: &Value, parsed: &ParsedSet<'_>) -> Result<Vec<String>, Reason> {
    let mut warnings = Warnings::default();
    misplaced(&mut warnings, own);
    passwords(&mut warnings, parsed)?;
    data(&mut warnings, parsed)?;
    image(&mut warnings, parsed)?;
    unseen_environment(&mut warnings, parsed)?;
    if parsed.set.contract == Contract::Agent {
        port(&mut warnings, parsed)?;
        host_network(&mut warnings, parsed)?;
        startup(&mut warnings, parsed)?;
        grace_period(&mut warnings, parsed)?;
        synchronous(&mut warnings, parsed);
    }
    retention(&mut warnings, parsed)?;
    service_name(&mut warnings, parsed);
    Ok(warnings.0)
}

/// What was said of a stored set already, and is not said at each of its updates.
pub(super) fn already_warned(old: &Value) -> Vec<String> {
    let Ok(Some(record)) = Record::of(old) else { return Vec::new() };
    let own = record.undone(old);
    let parsed = ParsedSet::of(&own, &Settled::by_object(old, Some(&record))).map_err(Reason::from);
    parsed.and_then(|parsed| of_set(&own, &parsed)).unwrap_or_default()
}

/// Of an object that speaks of pgset without asking for injection.
pub(super) fn of_bystander(object: &Value, ours: &[(&str, Field<'_>)]) -> Vec<String> {
    let mut warnings = Warnings::default();
    misplaced(&mut warnings, object);
    for (key, _) in ours.iter().filter(|(key, _)| *key != annotation::STATUS) {
        if *key == annotation::FOLLOW {
            warnings.push(&format!("annotation {key} belongs on a Service; on a StatefulSet it does nothing"));
        } else {
            warnings.push(&format!("annotation {key} does nothing without {}: enabled", annotation::INJECT));
        }
    }
    warnings.0
}

/// Of a set that ceases to be one, and whose data lies where only pgset looked.
pub(super) fn of_leaving(object: &Value) -> Vec<String> {
    let mut warnings = Warnings::default();
    let name = at(object, &["metadata", "name"]).and_then(Value::as_str).unwrap_or_default();
    warnings.push(&format!("each member's data stays in the volume's directory {}-<ordinal>: mount that", named(name)));
    warnings.0
}

fn misplaced(warnings: &mut Warnings, object: &Value) {
    let keys = |place: &[&str]| {
        let members = at(object, place).and_then(Value::as_object);
        members.into_iter().flat_map(serde_json::Map::keys).filter(|key| key.starts_with(names::PREFIX))
    };
    for key in keys(&["spec", "template", "metadata", "annotations"]) {
        warnings.push(&format!(
            "annotation {} does nothing on the pod template: move it to metadata.annotations",
            named(key)
        ));
    }
    for place in [&["metadata", "labels"][..], &["spec", "template", "metadata", "labels"]] {
        for key in keys(place).filter(|key| entries::is_of_a_set(key)) {
            warnings.push(&format!("label {} does nothing: make it an annotation of the StatefulSet", named(key)));
        }
    }
    let others = at(object, &["metadata", "annotations"]).and_then(Value::as_object);
    for key in others.into_iter().flat_map(serde_json::Map::keys).filter(|key| !key.starts_with(names::PREFIX)) {
        if let Some(meant) = nearly_ours(key, &entries::of_a_set()) {
            warnings.push(&format!("annotation {} is not pgset's: did you mean {meant}?", named(key)));
        }
    }
}

fn passwords(warnings: &mut Warnings, parsed: &ParsedSet<'_>) -> Result<(), Error> {
    let names = [
        env::POSTGRES_PASSWORD,
        env::PG_ROOT_PASSWORD,
        env::PG_PASSWORD,
        env::PG_MASTER_PASSWORD,
        env::PG_PRIMARY_PASSWORD,
    ];
    for name in names {
        if parsed.container.variable(name)?.is_some_and(|it| it.literal.is_some_and(|value| !value.is_empty())) {
            warnings.push(&format!("{name} is written in clear text: keep it in a Secret (valueFrom.secretKeyRef)"));
        }
    }
    Ok(())
}

fn data(warnings: &mut Warnings, parsed: &ParsedSet<'_>) -> Result<(), Error> {
    let placement = &parsed.placement;
    if let Some(kind) = placement.temporary {
        warnings.push(&format!("the data volume is {kind}: a copy is lost with its pod, all rows with the last pod"));
    }
    if let SubPathOwner::InPlace { .. } = placement.sub_path_owner {
        in_place(warnings, &placement.source);
    }
    if let DataSource::Shared { volume, mount_path } = &placement.data {
        let pod = parsed.object.at(&["spec", "template", "spec"])?;
        for list in ["initContainers", "containers"] {
            for container in pod.get(list)?.items()? {
                let name = container.get("name")?.text()?.unwrap_or_default();
                if list == "containers" && name == parsed.container.name {
                    continue;
                }
                let mounts = container.get("volumeMounts")?.items()?;
                if mounts.iter().any(|it| it.get("name").and_then(|it| it.text()).ok().flatten() == Some(volume)) {
                    let (name, volume) = (named(name), named(volume));
                    warnings.push(&format!(
                        "container {name} mounts volume {volume} too, and sees the data of all members"
                    ));
                }
            }
        }
        if placement.pgdata == Pgdata::Users(Some(mount_path.clone())) && placement.sub_path_owner == SubPathOwner::Ours
        {
            warnings.push("PGDATA is the mount itself, a directory of root's: better a directory below it");
        }
    }
    Ok(())
}

/// Of one volume for all members, which only some kinds can be.
fn in_place(warnings: &mut Warnings, source: &Value) {
    if let Some(claim) = at(source, &["persistentVolumeClaim", "claimName"]).and_then(Value::as_str) {
        warnings.push(&format!("claim {}: unless it is ReadWriteMany, all members run on one node", named(claim)));
    } else if source.get("hostPath").is_some() {
        warnings.push("the data volume is a hostPath: a member on another node starts with an empty directory");
    }
}

fn image(warnings: &mut Warnings, parsed: &ParsedSet<'_>) -> Result<(), Error> {
    let container = &parsed.container;
    let tag = Reference::of(container.image).tag;
    if !container.image.contains('@') && matches!(tag, "" | "latest") {
        let image = named(container.image);
        warnings.push(&format!("image {image} names no version: another pull may bring another major version"));
    }
    let is_images = container.command()?.is_empty() && container.arguments()?.is_empty();
    if parsed.set.contract == Contract::Agent && is_images && known::arguments(container.image).is_none() {
        warnings.push("the image's CMD is not run any more: if it has arguments, write them as the container's args");
    }
    Ok(())
}

fn host_network(warnings: &mut Warnings, parsed: &ParsedSet<'_>) -> Result<(), Error> {
    let field = parsed.object.at(&["spec", "template", "spec", "hostNetwork"])?;
    if field.value() == Some(&Value::Bool(true)) {
        let port = parsed.set.port;
        warnings.push(&format!(
            "hostNetwork: {port} and {AGENT_PORT} must be free on each node, which can have one member only"
        ));
    }
    Ok(())
}

/// PostgreSQL's port without a word is 5432, and a containerPort binds nobody.
fn port(warnings: &mut Warnings, parsed: &ParsedSet<'_>) -> Result<(), Error> {
    let port = parsed.set.port;
    if port != POSTGRES_PORT && parsed.container.told_port()?.is_none() {
        warnings.push(&format!(
            "PostgreSQL is started on the containerPort, {port}, also if it has listened on 5432 so far"
        ));
    }
    Ok(())
}

fn unseen_environment(warnings: &mut Warnings, parsed: &ParsedSet<'_>) -> Result<(), Error> {
    if parsed.set.contract == Contract::Image && parsed.container.has_unseen_environment()? {
        warnings.push(
            "with envFrom, pgset adds no users, passwords or database: see that PG_USER and the others are there",
        );
    }
    Ok(())
}

/// A replica's first start takes as long as the clone of the whole database.
fn startup(warnings: &mut Warnings, parsed: &ParsedSet<'_>) -> Result<(), Error> {
    const ENOUGH: i64 = 600;
    let probe = parsed.container.field.get("startupProbe")?;
    if !probe.is_there() {
        return Ok(());
    }
    let number =
        |key: &str, default: i64| Ok::<_, Error>(probe.get(key)?.number(0, i64::from(i32::MAX))?.unwrap_or(default));
    let allowed = number("initialDelaySeconds", 0)?
        .saturating_add(number("periodSeconds", 10)?.saturating_mul(number("failureThreshold", 3)?));
    if allowed < ENOUGH {
        warnings.push(&format!(
            "startupProbe allows {allowed} s: a longer clone would be killed over and over; better none"
        ));
    }
    Ok(())
}

fn grace_period(warnings: &mut Warnings, parsed: &ParsedSet<'_>) -> Result<(), Error> {
    const ENOUGH: i64 = 15;
    let field = parsed.object.at(&["spec", "template", "spec", "terminationGracePeriodSeconds"])?;
    if let Some(seconds) = field.number(0, i64::MAX)?.filter(|seconds| *seconds < ENOUGH) {
        warnings.push(&format!(
            "terminationGracePeriodSeconds: {seconds} is short for a clean handover: better {ENOUGH} or more"
        ));
    }
    Ok(())
}

fn synchronous(warnings: &mut Warnings, parsed: &ParsedSet<'_>) {
    let (wanted, replicas) = (parsed.set.synchronous, parsed.set.replicas);
    if wanted > 0 && wanted >= replicas && parsed.set.synchronous_strict {
        warnings.push(&format!(
            "{} {wanted} needs {wanted} replicas beside the master: commits wait",
            annotation::SYNCHRONOUS
        ));
    }
    if wanted == 0 && replicas == 2 {
        warnings.push(&format!(
            "one replica, {} 0: commits that it has not received yet are lost with the master's data",
            annotation::SYNCHRONOUS
        ));
    }
}

/// `spec.serviceName` can't be changed: who is adopted with another set's name is not refused.
fn service_name(warnings: &mut Warnings, parsed: &ParsedSet<'_>) {
    let set = &parsed.set;
    if names::is_kept_for_another_set(&set.headless_service, &set.name) {
        warnings.push(&format!(
            "serviceName {} is kept for another set: pgset makes no such Service",
            set.headless_service
        ));
    }
}

/// Claims made from a template may go with the set, or with its members.
fn retention(warnings: &mut Warnings, parsed: &ParsedSet<'_>) -> Result<(), Error> {
    if parsed.placement.source.get("volumeClaimTemplate").is_none() {
        return Ok(());
    }
    let policy = parsed.object.at(&["spec", "persistentVolumeClaimRetentionPolicy"])?;
    for (field, when) in [
        ("whenDeleted", "deleting the StatefulSet deletes all of its data"),
        ("whenScaled", "scaling down deletes the data of the members that go, scaling to 0 all of it"),
    ] {
        if policy.get(field)?.text()? == Some("Delete") {
            warnings.push(&format!("{field}: Delete: {when}"));
        }
    }
    Ok(())
}
