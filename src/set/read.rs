//! From a `StatefulSet` that carries no injection to the typed view of it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Contract, Error, MOST_MEMBERS, RoleLabel, Set,
    annotations::Annotations,
    container::Container,
    data::Placement,
    entries,
    error::{named, quoted},
    json::Field,
    shape::{Settled, Shape},
    validation::{is_dns_label, is_set_name},
};
use crate::names;

/// A set, and what the injection needs to know of the object besides.
#[derive(Clone, Debug)]
pub(crate) struct ParsedSet<'a> {
    /// The public view.
    pub(crate) set: Set,
    /// The object.
    pub(crate) object: Field<'a>,
    /// The PostgreSQL container.
    pub(crate) container: Container<'a>,
    /// Where the data is.
    pub(crate) placement: Placement,
    /// The template's own service account.
    pub(crate) service_account: Option<&'a str>,
}

impl<'a> ParsedSet<'a> {
    /// Reads an annotated object that carries no injection (see [`super::record::Record::undone`]).
    pub(crate) fn of(own: &'a Value, settled: &Settled) -> Result<Self, Error> {
        let object = Field::root(own);
        let annotations = Annotations::read(own)?;
        let name = name(&object)?;
        let (container, contract) = Container::of_set(&object, annotations, settled, name)?;
        check_backups(annotations, contract, settled.shape)?;
        let labels = labels(&object.at(&["spec", "template", "metadata", "labels"])?)?;
        let mut role_label = role_label(annotations.get(&entries::ROLE_LABEL).as_deref(), contract, &labels, name);
        if settled.shape >= Shape::Recorded && role_label.key != names::label::ROLE && says_primary(&container, name)? {
            role_label.master = names::primary(name);
        }
        check_labels(&object, &labels, &role_label, name)?;
        let service_account = template_account(&object)?;
        let replicas = count(&object.at(&["spec", "replicas"])?, 1, MOST_MEMBERS.into())?;
        let first_ordinal = count(&object.at(&["spec", "ordinals", "start"])?, 0, i32::MAX.into())?;
        let first_member = format!("{name}-{first_ordinal}");
        let placement = Placement::find(&object, &container, contract, annotations, &first_member, settled)?;

        let mut pod_labels = labels;
        pod_labels.insert(names::label::SET.to_owned(), name.to_owned());
        pod_labels.insert(role_label.key.clone(), role_label.replica.clone());
        let set = Set {
            name: name.to_owned(),
            namespace: object.at(&["metadata", "namespace"])?.text()?.unwrap_or_default().to_owned(),
            uid: object.at(&["metadata", "uid"])?.text()?.map(str::to_owned),
            contract,
            container: container.name.to_owned(),
            port: container.port(settled.shape)?,
            data: placement.data.clone(),
            data_outlives_set: data_outlives_set(&object, &placement)?,
            service_account: choose_account(annotations.get(&entries::SERVICE_ACCOUNT), service_account, name)?,
            credentials: annotations.get(&entries::CREDENTIALS).unwrap_or_else(|| settled.shape.credentials(name)),
            role_label,
            failover: annotations.get(&entries::FAILOVER),
            synchronous: annotations.get(&entries::SYNCHRONOUS),
            synchronous_strict: annotations.get(&entries::SYNCHRONOUS_STRICT),
            lease_seconds: annotations.get(&entries::LEASE_SECONDS),
            routed: contract == Contract::Agent && settled.shape.is_routed(),
            headless_service: headless_service(&object, name)?,
            replicas,
            first_ordinal,
            selector: self::labels(&object.at(&["spec", "selector", "matchLabels"])?)?,
            pod_labels,
        };
        Ok(Self { set, object, container, placement, service_account })
    }
}

fn check_backups(annotations: Annotations<'_>, contract: Contract, shape: Shape) -> Result<(), Error> {
    let (backup, restore) = (annotations.get(&entries::BACKUP), annotations.get(&entries::RESTORE_FROM));
    let asked = [(entries::BACKUP.key, &backup), (entries::RESTORE_FROM.key, &restore)];
    match asked.into_iter().find(|(_, location)| location.is_some()) {
        Some((key, _)) if contract == Contract::Image => return Err(Error::BackupByImage { key }),
        Some((key, _)) if shape < Shape::Recorded => return Err(Error::BackupBeforeRevision { key }),
        _ => {}
    }
    match (backup, restore) {
        (Some(backup), Some(restore)) if backup.overlaps(&restore) => Err(Error::RestoreIntoOriginal {
            backup: quoted(&backup.to_string()),
            restore: quoted(&restore.to_string()),
        }),
        _ => Ok(()),
    }
}

fn name<'a>(object: &Field<'a>) -> Result<&'a str, Error> {
    match object.at(&["metadata", "name"])?.text()? {
        Some(name) if is_set_name(name) => Ok(name),
        None if object.at(&["metadata", "generateName"])?.text()?.is_some() => Err(Error::GeneratedName),
        name => Err(Error::Name { name: quoted(name.unwrap_or_default()) }),
    }
}

fn data_outlives_set(object: &Field<'_>, placement: &Placement) -> Result<bool, Error> {
    let is_deleted = match placement.source.get("volumeClaimTemplate") {
        Some(_) => {
            object.at(&["spec", "persistentVolumeClaimRetentionPolicy", "whenDeleted"])?.text()? == Some("Delete")
        }
        None => placement.temporary.is_some(),
    };
    Ok(!is_deleted)
}

fn headless_service(object: &Field<'_>, set: &str) -> Result<String, Error> {
    let name = object.at(&["spec", "serviceName"])?.text()?.unwrap_or(set);
    if is_dns_label(name) {
        Ok(name.to_owned())
    } else {
        Err(Error::ServiceName { name: quoted(name), set: set.to_owned() })
    }
}

fn count(field: &Field<'_>, default: u32, most: i64) -> Result<u32, Error> {
    let number = field.number(0, most)?;
    Ok(number.and_then(|number| u32::try_from(number).ok()).unwrap_or(default))
}

fn labels(field: &Field<'_>) -> Result<BTreeMap<String, String>, Error> {
    let label = |(key, value): (&str, Field<'_>)| Ok((key.to_owned(), value.text()?.unwrap_or_default().to_owned()));
    field.entries()?.into_iter().map(label).collect()
}

/// The annotation's key; else that of a template label with a replica's value, as in the article; else the contract's.
fn role_label(annotation: Option<&str>, contract: Contract, labels: &BTreeMap<String, String>, set: &str) -> RoleLabel {
    let replica = names::replica(set);
    let is_articles = |key: &str| labels.get(key).is_some_and(|value| *value == replica);
    let written = || {
        let keys = std::iter::once(names::label::ARTICLE_ROLE).chain(labels.keys().map(String::as_str));
        keys.filter(|key| !key.starts_with(names::PREFIX)).find(|key| is_articles(key))
    };
    let key = annotation.or_else(written).unwrap_or(match contract {
        Contract::Agent => names::label::ROLE,
        Contract::Image => names::label::ARTICLE_ROLE,
    });
    RoleLabel::new(key, set)
}

/// Whether the master is called `<set>-primary`, as in the later examples of the article's family.
fn says_primary(container: &Container<'_>, set: &str) -> Result<bool, Error> {
    let primary = names::primary(set);
    for name in [names::env::PG_PRIMARY_HOST, names::env::PG_MASTER_HOST] {
        if container.variable(name)?.and_then(|variable| variable.literal) == Some(primary.as_str()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A label that changes while the set runs must not be one that the set selects on, and must start as a replica's.
fn check_labels(
    object: &Field<'_>,
    labels: &BTreeMap<String, String>,
    role_label: &RoleLabel,
    set: &str,
) -> Result<(), Error> {
    let selector = object.at(&["spec", "selector"])?;
    let mut selects = selector.at(&["matchLabels", &role_label.key])?.is_there();
    for expression in selector.get("matchExpressions")?.items()? {
        selects |= expression.get("key")?.text()? == Some(&role_label.key);
    }
    if selects {
        return Err(Error::Selector { key: named(&role_label.key) });
    }
    if let Some(found) = labels.get(&role_label.key).filter(|found| **found != role_label.replica) {
        let (key, found) = (named(&role_label.key), quoted(found));
        return Err(Error::RoleLabel { key, found, replica: role_label.replica.clone() });
    }
    if let Some(found) = labels.get(names::label::SET).filter(|found| *found != set) {
        return Err(Error::SetLabel { found: quoted(found), set: set.to_owned() });
    }
    Ok(())
}

/// The account that the template names: the deprecated field counts, as for the API server.
fn template_account<'a>(object: &Field<'a>) -> Result<Option<&'a str>, Error> {
    let spec = object.at(&["spec", "template", "spec"])?;
    let account = spec.get("serviceAccountName")?.text()?;
    Ok(account.or(spec.get("serviceAccount")?.text()?))
}

fn choose_account(annotation: Option<String>, template: Option<&str>, set: &str) -> Result<String, Error> {
    match (annotation, template) {
        (Some(annotation), Some(template)) if annotation != template => {
            Err(Error::ServiceAccount { annotation, template: named(template) })
        }
        (Some(account), _) => Ok(account),
        (None, Some(account)) => Ok(account.to_owned()),
        (None, None) => Ok(names::service_account(set)),
    }
}
