//! What the user asks for by annotations, parsed once.

use serde_json::Value;

use super::{
    Contract, Error, Failover, bytes,
    error::{named, shown},
    grammar::{is_dns_label, is_dns_subdomain, is_label_key, nearest},
    json::Field,
};
use crate::names::{self, annotation};

/// The annotations of a set; absent ones are `None`, their defaults come from the rest of the object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Annotations {
    pub(crate) contract: Option<Contract>,
    pub(crate) container: Option<String>,
    pub(crate) claim: Option<String>,
    pub(crate) volume: Option<String>,
    pub(crate) service_account: Option<String>,
    pub(crate) credentials: Option<String>,
    pub(crate) role_label: Option<String>,
    pub(crate) failover: Option<Failover>,
    pub(crate) synchronous: Option<u32>,
    pub(crate) lease_seconds: Option<u32>,
    /// The members read these three from the `StatefulSet` as they are: neither is part of an injection.
    pub(crate) synchronous_strict: Option<bool>,
    pub(crate) maximum_lag: Option<String>,
    pub(crate) switchover: Option<String>,
}

/// The object's annotations, as they stand.
pub(crate) fn of(object: &Value) -> Result<Field<'_>, Error> {
    Field::root(object).at(&["metadata", "annotations"])
}

/// The name of a raw object, where it has one.
pub(crate) fn name(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("name")?.as_str()
}

/// The annotation of a raw object, where it is a string.
pub(crate) fn value<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// Whether the object asks for injection; an error if it does so by another word than `enabled`.
pub(crate) fn is_enabled(object: &Value) -> Result<bool, Error> {
    let field = of(object)?.get(annotation::INJECT)?;
    match field.value() {
        None => Ok(false),
        Some(Value::String(text)) if text == "enabled" => Ok(true),
        Some(Value::String(text)) => Err(Error::Inject { value: shown(text) }),
        Some(other) => Err(Error::Inject { value: shown(&other.to_string()) }),
    }
}

/// The annotations with our prefix, all of which must be known.
pub(crate) fn ours(object: &Value) -> Result<Vec<(&str, Field<'_>)>, Error> {
    let mut ours = of(object)?.entries()?;
    ours.retain(|(key, _)| key.starts_with(names::PREFIX));
    for (key, _) in &ours {
        if *key != annotation::FOLLOW && !annotation::ON_STATEFUL_SET.contains(key) {
            let suggestion = nearest(key, &annotation::ON_STATEFUL_SET);
            return Err(Error::Unknown { annotation: named(key), suggestion });
        }
    }
    Ok(ours)
}

impl Annotations {
    /// Reads all of them, strictly.
    pub(crate) fn read(object: &Value) -> Result<Self, Error> {
        if ours(object)?.iter().any(|(key, _)| *key == annotation::FOLLOW) {
            return Err(Error::Follow);
        }
        let all = of(object)?;
        let all = &all;
        Ok(Self {
            contract: word(all, annotation::CONTRACT, &[("agent", Contract::Agent), ("image", Contract::Image)])?,
            container: text(all, annotation::CONTAINER, is_dns_label, "a container's name")?,
            claim: text(all, annotation::CLAIM, is_dns_subdomain, "the name of a PersistentVolumeClaim")?,
            volume: text(all, annotation::VOLUME, is_dns_label, "the name of a volume of the StatefulSet")?,
            service_account: text(all, annotation::SERVICE_ACCOUNT, is_dns_subdomain, "the name of a ServiceAccount")?,
            credentials: text(all, annotation::CREDENTIALS, is_dns_subdomain, "the name of a Secret")?,
            role_label: text(all, annotation::ROLE_LABEL, is_role_key, ROLE_KEYS)?,
            failover: word(
                all,
                annotation::FAILOVER,
                &[("automatic", Failover::Automatic), ("manual", Failover::Manual)],
            )?,
            synchronous: number(all, annotation::SYNCHRONOUS, 0, 100)?,
            lease_seconds: number(all, annotation::LEASE_SECONDS, 4, 60)?,
            synchronous_strict: word(all, annotation::SYNCHRONOUS_STRICT, &[("true", true), ("false", false)])?,
            maximum_lag: text(all, annotation::MAXIMUM_LAG, |text| bytes(text).is_some(), BYTES)?,
            switchover: text(all, annotation::SWITCHOVER, is_order, ORDERS)?,
        })
    }
}

const ROLE_KEYS: &str = "a label's key such as name or example.com/role; of those with Kubernetes' or pgset's own prefix, \
                         only pgset.dev/role";

const BYTES: &str = "a number of bytes such as 0, 512Ki, 16Mi or 1Gi";

const ORDERS: &str = "the name of a member or `any`, and whatever makes this order another one than the last, such as the time: db-1 2026-11-25T14:00:00Z";

/// An order to switch over: a member's name or `any`, and plain words behind it, a blank between two.
fn is_order(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
    };
    let is_member = |word: &str| {
        let ordinal = word.rsplit_once('-').map(|(_, ordinal)| ordinal);
        is_dns_label(word) && ordinal.is_some_and(|ordinal| ordinal.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let target = text.split(' ').next().unwrap_or_default();
    text.len() <= 200 && (target == "any" || is_member(target)) && text.split(' ').all(is_word)
}

/// A label key that may change at run time: not one that Kubernetes or pgset itself relies on.
fn is_role_key(key: &str) -> bool {
    let prefix = key.split_once('/').map(|(prefix, _)| prefix);
    let reserved = prefix.is_some_and(|prefix| {
        prefix == "pgset.dev"
            || prefix == "kubernetes.io"
            || prefix == "k8s.io"
            || prefix.ends_with(".kubernetes.io")
            || prefix.ends_with(".k8s.io")
    });
    is_label_key(key) && key != "controller-revision-hash" && (key == names::label::ROLE || !reserved)
}

fn word<T: Copy>(all: &Field<'_>, key: &'static str, words: &[(&str, T)]) -> Result<Option<T>, Error> {
    let Some(found) = raw(all, key)? else { return Ok(None) };
    let value = words.iter().find(|(word, _)| *word == found).map(|(_, value)| *value);
    let allowed = || words.iter().map(|(word, _)| shown(word)).collect::<Vec<_>>().join(" or ");
    value.map(Some).ok_or_else(|| Error::Annotation { annotation: key, value: shown(found), allowed: allowed() })
}

fn text(all: &Field<'_>, key: &'static str, grammar: fn(&str) -> bool, allowed: &str) -> Result<Option<String>, Error> {
    match raw(all, key)? {
        None => Ok(None),
        Some(found) if grammar(found) => Ok(Some(found.to_owned())),
        Some(found) => Err(Error::Annotation { annotation: key, value: shown(found), allowed: allowed.to_owned() }),
    }
}

fn number(all: &Field<'_>, key: &'static str, low: u32, high: u32) -> Result<Option<u32>, Error> {
    let Some(found) = raw(all, key)? else { return Ok(None) };
    let plain = !found.is_empty() && found.bytes().all(|byte| byte.is_ascii_digit());
    let number = found.parse().ok().filter(|number| plain && (low..=high).contains(number));
    let allowed = || format!("a whole number from {low} to {high}");
    number.map(Some).ok_or_else(|| Error::Annotation { annotation: key, value: shown(found), allowed: allowed() })
}

/// An empty value is a value: it is in no grammar, so it is answered rather than taken for an absent one.
fn raw<'a>(all: &Field<'a>, key: &'static str) -> Result<Option<&'a str>, Error> {
    let field = all.get(key)?;
    Ok(field.text()?.or(field.is_there().then_some("")))
}
