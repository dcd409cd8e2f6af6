//! How a `StatefulSet` stands to pgset, and why: pure.

use serde_json::Value;

use super::{
    injection::Injection,
    told::{Explanation, State},
};
use crate::{
    cli::{
        check::{
            routes, selector,
            sets::{Standing, pointer, standing},
        },
        cluster::{Answer, Read, Unread, items, text, title},
    },
    inject::{self, Outcome, Request, Settings},
    names::{self, annotation},
    set::{Set, entries},
};

/// What is known of a set.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The set, as it is stored or as a file has it.
    pub object: Value,
    /// Whether it is stored.
    pub is_stored: bool,
    /// What the API server answers if it is written as it is, by a dry run.
    pub again: Read<Answer>,
    /// Its namespace.
    pub namespace: Read<Value>,
    /// The webhook configuration.
    pub configuration: Read<Value>,
    /// The Services of the namespace.
    pub services: Read<Vec<Value>>,
    /// The `EndpointSlices` behind its Service to the master.
    pub slices: Read<Vec<Value>>,
    /// The pods of sets in its namespace.
    pub members: Read<Vec<Value>>,
}

/// Why, and what to do about it.
type Because = (State, String, String);

/// Explains a set.
pub fn explain(facts: &Facts) -> Explanation {
    let local = locally(&facts.object);
    let (state, why, cure) = if is_injected(&facts.object) { of_injected(facts) } else { of_bare(facts, &local) };
    let mut warnings = local.warnings;
    if let Ok(answer) = &facts.again {
        warnings.extend(answer.warnings.iter().filter(|it| !warnings.contains(it)).cloned().collect::<Vec<_>>());
    }
    if facts.is_stored {
        let trouble = routes::trouble_of(&facts.object, &facts.slices, &facts.members);
        warnings.extend(trouble.map(|trouble| format!("{trouble}; {}", routes::CURE)));
    }
    // Of a set without an injection, the one that it would get.
    let would_be = facts.again.as_ref().ok().map(|answer| &answer.value);
    let injection = Injection::of(&facts.object).or_else(|| Injection::of(would_be?));
    Explanation { set: title(&facts.object), state, why, cure, warnings, injection }
}

fn is_injected(object: &Value) -> bool {
    !text(object, &pointer(annotation::INJECTED)).is_empty()
}

/// What this program's own injection says, without a cluster.
struct Locally {
    denied: Option<String>,
    warnings: Vec<String>,
}

fn locally(object: &Value) -> Locally {
    let settings = Settings { agent_image: names::IMAGE.to_owned() };
    match inject::inject(&Request { object, old: None, settings: &settings }) {
        Outcome::Untouched { warnings } | Outcome::Patched { warnings, .. } => Locally { denied: None, warnings },
        Outcome::Denied { reason } => Locally { denied: Some(reason.reason().to_string()), warnings: Vec::new() },
    }
}

fn of_injected(facts: &Facts) -> Because {
    match standing(&facts.object) {
        Standing::Refused(why) => (
            State::Denied,
            format!("it carries an injection, but applied now it would be denied: {why}"),
            "its members go on as they are until that is corrected".to_owned(),
        ),
        Standing::Incomplete => (
            State::Incomplete,
            "what was injected has been changed since".to_owned(),
            "apply the set again: the webhook puts it right, and members restart one by one where their template changes".to_owned(),
        ),
        Standing::Bare | Standing::Injected => (State::Injected, String::new(), String::new()),
    }
}

fn of_bare(facts: &Facts, local: &Locally) -> Because {
    if !Set::is_annotated(&facts.object) {
        return not_annotated(facts, local);
    }
    if let (Ok(configuration), Ok(namespace)) = (&facts.configuration, &facts.namespace)
        && let Some(why) = selector::exempt(configuration, namespace)
    {
        let label = names::label::WEBHOOK;
        let cure = format!(
            "use another namespace, or remove the label {label} from this one if it is that; then apply the set again"
        );
        return (State::Exempt, format!("its namespace is exempt: {why}"), cure);
    }
    if let Some(because) = unconfigured(&facts.configuration) {
        return because;
    }
    match &facts.again {
        Ok(answer) if is_injected(&answer.value) => pending(facts.is_stored),
        Ok(_) => not_asked_about("the API server does not ask pgset about it".to_owned()),
        Err(why) => refused(why, local),
    }
}

fn not_asked_about(why: String) -> Because {
    (State::Unconfigured, why, "pgset check says what is wrong with the webhook configuration".to_owned())
}

fn pending(is_stored: bool) -> Because {
    if is_stored {
        return (
            State::Pending,
            "it was stored when nobody asked pgset: before pgset was installed, or while it was out of the way"
                .to_owned(),
            "apply it again: it is then injected as told below, and its members restart".to_owned(),
        );
    }
    (State::Pending, "it is not applied yet; applied now, it is injected as told below".to_owned(), String::new())
}

fn refused(why: &Unread, local: &Locally) -> Because {
    let message = why.to_string();
    if message.contains("failed calling webhook") {
        return (State::Unanswered, message, "pgset check says why the webhook does not answer".to_owned());
    }
    if let Some(denied) = &local.denied {
        return (State::Denied, denied.clone(), "change that, and apply the set again".to_owned());
    }
    match why {
        // The policy speaks where the webhook was not asked.
        Unread::Refused(_) if message.contains("ValidatingAdmissionPolicy 'pgset-injection'") => {
            not_asked_about(message)
        }
        Unread::Refused(_) if message.contains("inject.pgset.dev") => {
            (State::Denied, message, "change that, and apply the set again".to_owned())
        }
        Unread::Forbidden(_) => (
            State::Pending,
            format!("nothing stands in the way as far as this program sees; it may not ask the API server: {message}"),
            "apply the set again, or let somebody explain it who may write StatefulSets".to_owned(),
        ),
        _ => (State::Refused, message, "the message names who refuses it".to_owned()),
    }
}

/// Why API servers don't ask, or don't trust the answer.
fn unconfigured(configuration: &Read<Value>) -> Option<Because> {
    let cure = |cure: &str| format!("{cure}; then apply the set again");
    match configuration {
        Err(Unread::Absent) => Some((
            State::Unconfigured,
            format!("there is no MutatingWebhookConfiguration {}", names::WEBHOOK_CONFIGURATION),
            cure("install pgset (again): pgset install --image IMAGE | kubectl apply -f -"),
        )),
        // What can't be read shows in the dry run.
        Err(_) => None,
        Ok(configuration) => {
            let mut entries = items(configuration, "/webhooks");
            entries.any(|entry| text(entry, "/clientConfig/caBundle").is_empty()).then(|| {
                let why = "the webhook configuration has no caBundle, so that API servers do not trust the webhook";
                let why = format!("{why}; pgset writes it once a pod of its runs");
                (State::Unconfigured, why, cure("see pgset check"))
            })
        }
    }
}

/// A set that does not ask, or not where it is heard.
fn not_annotated(facts: &Facts, local: &Locally) -> Because {
    let ask = format!(
        "kubectl annotate statefulset {} {}=enabled",
        text(&facts.object, "/metadata/name"),
        annotation::INJECT
    );
    if let Some(denied) = &local.denied {
        return (State::Misplaced, denied.clone(), ask);
    }
    if let Some(warning) = local.warnings.first() {
        return (State::Misplaced, warning.clone(), ask);
    }
    if let Some(place) = elsewhere(facts) {
        let why = format!("{place}, where it does nothing: it belongs on the StatefulSet's own metadata");
        return (State::Misplaced, why, ask);
    }
    let why = format!("it has no annotation {}: enabled, so that pgset never sees it", annotation::INJECT);
    (State::NotAsked, why, format!("if it is to be a set: {ask}"))
}

/// An annotation for a set on the namespace, or on a Service beside the set.
fn elsewhere(facts: &Facts) -> Option<String> {
    let misplaced = |object: &Value| {
        let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object)?;
        annotations.keys().find(|key| entries::is_of_a_set(key)).cloned()
    };
    if let Some(key) = facts.namespace.as_ref().ok().and_then(misplaced) {
        return Some(format!("the annotation {key} is on the namespace"));
    }
    let labels = facts.object.pointer("/spec/template/metadata/labels").cloned().unwrap_or_default();
    let set = text(&facts.object, "/metadata/name");
    // A Service's selector is a map and no more: kube's has nothing to add to it.
    let is_beside = |service: &&Value| {
        let selector = service.pointer("/spec/selector").and_then(Value::as_object);
        text(service, "/metadata/name") == set
            || selector.is_some_and(|it| !it.is_empty() && it.iter().all(|(key, value)| labels.get(key) == Some(value)))
    };
    let mut services = facts.services.as_deref().unwrap_or_default().iter().filter(is_beside);
    services.find_map(|service| {
        let key = misplaced(service)?;
        Some(format!("the annotation {key} is on the Service {}", text(service, "/metadata/name")))
    })
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
