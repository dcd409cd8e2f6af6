//! Checks of the sets: are they injected, of the present revision, with all members and one master?

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    installation::unready,
    report::{Id, Verdict},
    selector,
    snapshot::After,
};
use crate::{
    cli::cluster::{Read, number, text, title},
    inject::{self, Outcome, REVISION, Request, Settings},
    names::{self, annotation},
    set::Set,
};

/// All checks of the sets.
pub fn checks(after: &After) -> Vec<(Id, Verdict)> {
    let configuration = after
        .installed
        .iter()
        .find(|(shipped, _)| text(shipped, "/kind") == "MutatingWebhookConfiguration")
        .and_then(|(_, live)| live.as_ref().ok());
    let sets = match &after.sets {
        Ok(sets) => sets,
        Err(why) => {
            let ids = [Id::SetsInjected, Id::SetsBehind, Id::SetsReady, Id::OneMaster];
            return ids.map(|id| (id, Verdict::unread("StatefulSets", why))).into();
        }
    };
    let exempt = |set: &Value| {
        let mut namespaces = after.namespaces.as_ref().ok()?.iter();
        let namespace = namespaces.find(|it| text(it, "/metadata/name") == text(set, "/metadata/namespace"))?;
        selector::exempt(configuration?, namespace)
    };
    vec![
        (Id::SetsInjected, sets_injected(sets, exempt)),
        (Id::SetsBehind, sets_behind(sets)),
        (Id::SetsReady, sets_ready(sets, &after.members)),
        (Id::OneMaster, one_master(sets, &after.members)),
    ]
}

/// How a stored set stands to the injection that it should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has it, whole.
    Injected,
    /// It asks for it and has nothing of it.
    Bare,
    /// Somebody has changed what was injected.
    Incomplete,
    /// It would be refused, were it applied now.
    Refused(String),
}

/// Shows a stored set to the injection, as if it were new.
pub fn standing(set: &Value) -> Standing {
    // A set that is injected keeps its own image.
    let settings = Settings { agent_image: names::IMAGE.to_owned() };
    let is_bare = text(set, &pointer(annotation::INJECTED)).is_empty();
    match inject::inject(&Request { object: set, old: None, settings: &settings }) {
        Outcome::Denied { reason } => Standing::Refused(reason.reason().to_string()),
        _ if is_bare => Standing::Bare,
        Outcome::Patched { .. } => Standing::Incomplete,
        Outcome::Untouched { .. } => Standing::Injected,
    }
}

fn sets_injected(sets: &[Value], exempt: impl Fn(&Value) -> Option<String>) -> Verdict {
    let (mut wrong, mut exempted) = (Vec::new(), Vec::new());
    for set in sets {
        let name = title(set);
        match (standing(set), exempt(set)) {
            (Standing::Injected, _) => {}
            (Standing::Bare, Some(why)) => exempted.push(format!("{name}: its namespace is exempt: {why}")),
            (Standing::Bare, None) => wrong.push(format!("{name} asks for injection, and has none")),
            (Standing::Incomplete, _) => wrong.push(format!("{name}: what was injected has been changed")),
            (Standing::Refused(why), _) => wrong.push(format!("{name}: {why}")),
        }
    }
    if !wrong.is_empty() {
        wrong.append(&mut exempted);
        let cure = "apply them again: the webhook injects them or says why not; pgset explain sts/NAME tells more";
        return Verdict::failure("some sets are not as pgset would have them", wrong, cure);
    }
    if !exempted.is_empty() {
        let label = names::label::WEBHOOK;
        let cure = format!("remove the namespace's label {label} and apply the sets again, or remove their annotation");
        return Verdict::warning("some sets ask for an injection that their namespace is exempt from", exempted, cure);
    }
    Verdict::ok(format!("{} injected", counted(sets.len(), "set is", "sets are")))
}

fn sets_behind(sets: &[Value]) -> Verdict {
    let behind: Vec<String> = sets
        .iter()
        .filter_map(|set| {
            let revision = text(set, &pointer(annotation::REVISION));
            (!revision.is_empty() && revision != REVISION).then(|| format!("{} is at {revision}", title(set)))
        })
        .collect();
    if behind.is_empty() {
        return Verdict::ok(format!("no set is at another revision than {REVISION}"));
    }
    let cure = format!(
        "they go on as they are; to move one, which restarts its members one by one: kubectl annotate statefulset NAME \
         -n NAMESPACE --overwrite {}={REVISION}",
        annotation::REVISION
    );
    Verdict::warning(format!("some sets are at another revision than {REVISION}"), behind, cure)
}

fn sets_ready(sets: &[Value], members: &Read<Vec<Value>>) -> Verdict {
    let mut found = Vec::new();
    for set in sets {
        let wanted = number(set, "/spec/replicas").unwrap_or(1);
        let ready = number(set, "/status/readyReplicas").unwrap_or(0);
        if ready >= wanted {
            continue;
        }
        let pods = members.as_deref().unwrap_or_default().iter().filter(|pod| is_member(pod, set));
        let why: Vec<String> = pods.filter_map(unready).collect();
        let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
        found.push(format!("{}: {ready} of {wanted} members are ready{why}", title(set)));
    }
    if found.is_empty() {
        return Verdict::ok("every set has all its members");
    }
    Verdict::warning(
        "some sets lack members",
        found,
        "see kubectl describe pod and kubectl logs of the member; a replica that is being cloned becomes ready when it is done",
    )
}

/// Whether a pod is labelled as a member of the set.
pub fn is_member(pod: &Value, set: &Value) -> bool {
    let label = format!("/metadata/labels/{}", names::label::SET.replace('/', "~1"));
    text(pod, &label) == text(set, "/metadata/name")
        && text(pod, "/metadata/namespace") == text(set, "/metadata/namespace")
}

fn one_master(sets: &[Value], members: &Read<Vec<Value>>) -> Verdict {
    let members = match members {
        Ok(members) => members,
        Err(why) => return Verdict::unread("pods", why),
    };
    let mut masters: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for object in sets.iter().filter(|set| number(set, "/status/readyReplicas").unwrap_or(0) > 0) {
        let Ok(set) = Set::parse(object) else { continue };
        let labelled = members.iter().filter(|pod| is_member(pod, object)).filter(|pod| {
            let labels = pod.pointer("/metadata/labels").unwrap_or(&Value::Null);
            labels.get(&set.role_label.key).and_then(Value::as_str) == Some(&set.role_label.master)
        });
        masters.insert(title(object), labelled.map(|pod| text(pod, "/metadata/name")).collect());
    }
    let several = |(_, pods): &(&String, &Vec<&str>)| pods.len() > 1;
    let two: Vec<String> =
        masters.iter().filter(several).map(|(set, pods)| format!("{set}: {}", pods.join(", "))).collect();
    if !two.is_empty() {
        let cure = "the master Service reaches all of them; see their logs, and the set's Lease, which names the one that may write";
        return Verdict::failure("more than one member is labelled as the master", two, cure);
    }
    let none: Vec<String> = masters.iter().filter(|(_, pods)| pods.is_empty()).map(|(set, _)| set.clone()).collect();
    if !none.is_empty() {
        let cure = "writes wait until there is one; see the logs of the members and the Events of the set";
        return Verdict::warning("some sets have members, but no master", none, cure);
    }
    Verdict::ok("every set with members has one master")
}

fn counted(count: usize, one: &str, more: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {more}") }
}

/// The JSON pointer of an annotation.
pub fn pointer(annotation: &str) -> String {
    format!("/metadata/annotations/{}", annotation.replace('/', "~1"))
}

#[cfg(test)]
#[path = "sets_tests.rs"]
pub mod tests;
