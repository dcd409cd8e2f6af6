//! Checks of pgset's own objects and pods.

use serde_json::Value;

use super::{
    compare::{Differences, differences},
    report::{Id, Verdict},
    snapshot::After,
};
use crate::{
    cli::cluster::{Read, Unread, items, number, text, title},
    names,
};

/// The kinds that have a check of their own.
const WEBHOOK: &str = "MutatingWebhookConfiguration";
const POLICIES: [&str; 2] = ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];
const CURE: &str = "install it again: pgset install --image IMAGE | kubectl apply -f -";

/// All checks of the installation.
pub fn checks(after: &After) -> Vec<(Id, Verdict)> {
    let of = |kinds: &'static [&str]| {
        after.installed.iter().filter(move |(shipped, _)| kinds.contains(&text(shipped, "/kind")))
    };
    let others = after.installed.iter().filter(|(shipped, _)| {
        let kind = text(shipped, "/kind");
        kind != WEBHOOK && !POLICIES.contains(&kind)
    });
    let deployments: Vec<Deployment<'_>> =
        of(&["Deployment"]).map(|(shipped, live)| Deployment { name: text(shipped, "/metadata/name"), live }).collect();
    let webhook = deployments.iter().find(|deployment| deployment.name == names::WEBHOOK);
    vec![
        (Id::Version, version(webhook.map_or(&Err(Unread::Absent), |deployment| deployment.live))),
        (Id::Installed, installed(others)),
        (Id::WebhookConfiguration, webhook_configuration(of(&[WEBHOOK]))),
        (Id::PolicyPresent, policy_present(of(&POLICIES))),
        (Id::DeploymentReady, of_all(&deployments, |deployment| deployment_ready(deployment, &after.pods))),
        (Id::TwoReplicas, of_all(&deployments, two_replicas)),
        (Id::ServiceEndpoints, service_endpoints(&after.endpoints)),
    ]
}

type Object = (Value, Read<Value>);

/// One of pgset's two Deployments, as far as it could be read.
#[derive(Clone, Copy)]
struct Deployment<'a> {
    name: &'a str,
    live: &'a Read<Value>,
}

/// The worst of what is found on each Deployment; of equals, all.
fn of_all<'a>(deployments: &[Deployment<'a>], check: impl Fn(Deployment<'a>) -> Verdict) -> Verdict {
    deployments
        .iter()
        .map(|deployment| check(*deployment))
        .reduce(Verdict::worse)
        .unwrap_or_else(|| Verdict::Skipped("this version ships no Deployment".to_owned()))
}

/// What a comparison of objects finds.
#[derive(Debug, Default)]
struct Comparison {
    count: usize,
    absent: Vec<String>,
    changed: Vec<String>,
    added: Vec<String>,
    unread: Option<Unread>,
}

fn compare<'a>(objects: impl Iterator<Item = &'a Object>) -> Comparison {
    let mut comparison = Comparison::default();
    for (shipped, live) in objects {
        comparison.count += 1;
        let name = format!("{} {}", text(shipped, "/kind"), title(shipped));
        match live {
            Ok(live) => {
                let Differences { changed, added } = differences(shipped, live);
                comparison.changed.extend(changed.into_iter().map(|difference| format!("{name}: {difference}")));
                comparison.added.extend(added.into_iter().map(|difference| format!("{name}: {difference}")));
            }
            Err(Unread::Absent) => comparison.absent.push(name),
            Err(why) => comparison.unread = Some(why.clone()),
        }
    }
    comparison
}

fn version(deployment: &Read<Value>) -> Verdict {
    let image = match deployment {
        Ok(deployment) => text(deployment, "/spec/template/spec/containers/0/image"),
        Err(Unread::Absent) => return Verdict::Skipped(format!("the Deployment {} is not there", names::WEBHOOK)),
        Err(why) => return Verdict::unread("pgset's Deployment", why),
    };
    let name = image.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let tag = name.split_once(':').map(|(_, tag)| tag.trim_start_matches('v')).unwrap_or_default();
    let is_version = tag.split('.').count() == 3 && tag.starts_with(|c: char| c.is_ascii_digit());
    let own = env!("CARGO_PKG_VERSION");
    if !is_version || tag == own {
        return Verdict::ok(format!("pgset runs from {image}, and this program is {own}"));
    }
    Verdict::warning(
        format!("pgset runs from {image}, but this program is {own}"),
        Vec::new(),
        "check with the program of the version that is installed: comparisons with another version's manifests tell its differences too",
    )
}

/// Everything but webhook and policies: their absence breaks something, another value may be somebody's choice.
fn installed<'a>(objects: impl Iterator<Item = &'a Object>) -> Verdict {
    let Comparison { count, absent, changed, unread, .. } = compare(objects);
    if !absent.is_empty() {
        let says = format!("{} of {count} objects are not there", absent.len());
        return Verdict::failure(says, absent, CURE);
    }
    if let Some(why) = unread {
        return Verdict::unread("some of pgset's objects", &why);
    }
    if !changed.is_empty() {
        let cure = format!("if nobody meant it, {CURE}");
        return Verdict::warning("some objects are not as they are shipped", changed, cure);
    }
    Verdict::ok(format!("all {count} objects are as they are shipped"))
}

fn webhook_configuration<'a>(objects: impl Iterator<Item = &'a Object>) -> Verdict {
    let Comparison { absent, changed, added, unread, .. } = compare(objects);
    if let Some(why) = unread {
        return Verdict::unread("MutatingWebhookConfigurations", &why);
    }
    if !absent.is_empty() {
        return Verdict::failure("it is not there, so that no set is injected", absent, CURE);
    }
    if !changed.is_empty() {
        return Verdict::failure("it is not as it is shipped", changed, CURE);
    }
    if !added.is_empty() {
        return Verdict::warning(
            "somebody has added to it",
            added,
            "see that what was added exempts no namespace of yours; cloud providers exempt theirs",
        );
    }
    Verdict::ok("it is as it is shipped")
}

fn policy_present<'a>(objects: impl Iterator<Item = &'a Object>) -> Verdict {
    let Comparison { count, mut absent, changed, unread, .. } = compare(objects);
    if let Some(why) = unread {
        return Verdict::unread("ValidatingAdmissionPolicies", &why);
    }
    if count == 0 {
        return Verdict::Skipped("this version ships no policies".to_owned());
    }
    absent = absent.into_iter().map(|name| format!("{name} is not there")).chain(changed).collect();
    if absent.is_empty() {
        return Verdict::ok(format!("all {count} policies and bindings are as they are shipped"));
    }
    Verdict::failure(
        "the policies are not as they are shipped, so that a set without its injection may be stored in silence",
        absent,
        CURE,
    )
}

fn deployment_ready(Deployment { name, live }: Deployment<'_>, pods: &Read<Vec<Value>>) -> Verdict {
    let deployment = match live {
        Ok(deployment) => deployment,
        Err(Unread::Absent) => {
            return Verdict::failure(format!("the Deployment {name} is not there"), Vec::new(), CURE);
        }
        Err(why) => return Verdict::unread("pgset's Deployment", why),
    };
    let (wanted, ready) = (wanted(deployment), ready(deployment));
    let says = format!("{name}: {ready} of {wanted} pods are ready");
    if ready >= wanted && ready > 0 {
        return Verdict::ok(says);
    }
    let mut found: Vec<String> = items(deployment, "/status/conditions")
        .filter(|condition| text(condition, "/type") == "ReplicaFailure" && text(condition, "/status") == "True")
        .map(|condition| text(condition, "/message").to_owned())
        .collect();
    match pods {
        Ok(pods) => found.extend(pods.iter().filter(|pod| is_of(pod, name)).filter_map(unready)),
        Err(_) => found.push("the pods may not be read".to_owned()),
    }
    if ready == 0 {
        let cure = format!(
            "see kubectl -n {0} describe pods, and kubectl -n {0} logs deployment/{name}; until then {1}, those that run go on",
            names::SYSTEM_NAMESPACE,
            lacks(name)
        );
        return Verdict::failure(says, found, cure);
    }
    Verdict::warning(says, found, format!("see kubectl -n {} describe pods", names::SYSTEM_NAMESPACE))
}

/// Whether a pod is one of a Deployment's, by its name.
fn is_of(pod: &Value, deployment: &str) -> bool {
    text(pod, "/metadata/name").strip_prefix(deployment).is_some_and(|rest| rest.starts_with('-'))
}

/// What cannot be done without a Deployment's pods.
fn lacks(deployment: &str) -> &'static str {
    if deployment == names::CONTROLLER { "nobody looks after the sets" } else { "sets can't be applied" }
}

fn wanted(deployment: &Value) -> i64 {
    number(deployment, "/spec/replicas").unwrap_or(1)
}

fn ready(deployment: &Value) -> i64 {
    number(deployment, "/status/readyReplicas").unwrap_or(0)
}

/// A pod that is not ready, and what it waits for.
pub fn unready(pod: &Value) -> Option<String> {
    let condition = |kind: &str| {
        let mut conditions = items(pod, "/status/conditions");
        conditions.find(|condition| text(condition, "/type") == kind)
    };
    if condition("Ready").is_some_and(|ready| text(ready, "/status") == "True") {
        return None;
    }
    let lists = ["/status/initContainerStatuses", "/status/containerStatuses"];
    let waiting = lists.iter().flat_map(|list| items(pod, list)).find_map(|container| {
        let (reason, message) = (text(container, "/state/waiting/reason"), text(container, "/state/waiting/message"));
        (!reason.is_empty() && reason != "PodInitializing").then(|| join(reason, message))
    });
    let unscheduled = || {
        let scheduled = condition("PodScheduled").filter(|scheduled| text(scheduled, "/status") == "False")?;
        Some(join("not scheduled", text(scheduled, "/message")))
    };
    let unready = || Some(join("not ready", text(condition("Ready")?, "/message")));
    let why = waiting.or_else(unscheduled).or_else(unready).unwrap_or_else(|| "not started".to_owned());
    Some(format!("pod {}: {why}", text(pod, "/metadata/name")))
}

fn join(reason: &str, message: &str) -> String {
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
}

fn two_replicas(Deployment { name, live }: Deployment<'_>) -> Verdict {
    let deployment = match live {
        Ok(deployment) => deployment,
        Err(Unread::Absent) => return Verdict::Skipped(format!("the Deployment {name} is not there")),
        Err(why) => return Verdict::unread("pgset's Deployment", why),
    };
    match (wanted(deployment), ready(deployment)) {
        (2.., 2..) => Verdict::ok(format!("{name}: one pod may go, and another is there")),
        (wanted @ ..2, _) => Verdict::warning(
            format!("the Deployment {name} has replicas: {wanted}, so that {} while its pod restarts", lacks(name)),
            Vec::new(),
            format!("kubectl -n {} scale deployment {name} --replicas=2", names::SYSTEM_NAMESPACE),
        ),
        (_, ready) => Verdict::warning(
            format!("{name}: {ready} of the pods is ready, so that {} while it restarts", lacks(name)),
            Vec::new(),
            format!("see kubectl -n {} describe pods", names::SYSTEM_NAMESPACE),
        ),
    }
}

fn service_endpoints(slices: &Read<Vec<Value>>) -> Verdict {
    let slices = match slices {
        Ok(slices) => slices,
        Err(why) => return Verdict::unread("EndpointSlices", why),
    };
    let is_ready = |endpoint: &&Value| endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false));
    let ready = slices.iter().flat_map(|slice| items(slice, "/endpoints")).filter(is_ready).count();
    if ready > 0 {
        return Verdict::ok(format!("the Service {} has {ready} ready endpoints", names::WEBHOOK_SERVICE));
    }
    Verdict::failure(
        format!("the Service {} has no ready endpoint, so that API servers reach nobody", names::WEBHOOK_SERVICE),
        Vec::new(),
        format!(
            "see kubectl -n {} describe service {}: its selector must choose pgset's pods, and one must be ready",
            names::SYSTEM_NAMESPACE,
            names::WEBHOOK_SERVICE
        ),
    )
}

#[cfg(test)]
#[path = "installation_tests.rs"]
mod tests;
