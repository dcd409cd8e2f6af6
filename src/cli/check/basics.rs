//! Checks that make sense in every cluster: is it new enough, and who else changes `StatefulSets`.

use serde_json::Value;

use super::{
    report::{Id, Verdict},
    snapshot::{Basics, Before},
};
use crate::{
    cli::cluster::{Unread, items, text},
    names,
};

/// The oldest Kubernetes whose admission API has all that pgset uses: `matchConditions` and policies are stable from here on.
const OLDEST: (u32, u32) = (1, 30);
/// By how much pgset's certificates are back-dated; a clock that is further behind does not accept a new one.
const SKEW: u64 = 5 * 60;
/// The entry of our webhook configuration.
const OUR_ENTRY: &str = "inject.pgset.dev";

/// The checks that precede an installation.
pub fn before(basics: &Basics, before: &Before) -> Vec<(Id, Verdict)> {
    vec![
        (Id::KubernetesVersion, kubernetes_version(&basics.version)),
        (Id::Clock, clock(basics.server_time, basics.local_time)),
        (Id::AdmissionApi, admission_api(basics)),
        (Id::CanInstall, can_install(before)),
        (Id::OtherWebhooks, other_webhooks(basics)),
    ]
}

/// Those of them that stay interesting.
pub fn after(basics: &Basics) -> Vec<(Id, Verdict)> {
    vec![
        (Id::KubernetesVersion, kubernetes_version(&basics.version)),
        (Id::Clock, clock(basics.server_time, basics.local_time)),
        (Id::OtherWebhooks, other_webhooks(basics)),
    ]
}

fn kubernetes_version(version: &Value) -> Verdict {
    // Some providers write "30+".
    let number = |at: &str| text(version, at).trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    let name = text(version, "/gitVersion");
    match number("/major").zip(number("/minor")) {
        None => Verdict::Skipped(format!("the API server's version {name:?} is not readable")),
        Some(found) if found < OLDEST => Verdict::failure(
            format!("the API server is {name}, older than {}.{}", OLDEST.0, OLDEST.1),
            Vec::new(),
            "upgrade Kubernetes: before 1.30, match conditions and admission policies are not stable",
        ),
        Some(_) => Verdict::ok(format!("the API server is {name}")),
    }
}

fn clock(server: Option<u64>, local: u64) -> Verdict {
    let Some(server) = server else {
        return Verdict::Skipped("the API server's answers carry no date".to_owned());
    };
    let apart = server.abs_diff(local);
    if apart < SKEW {
        return Verdict::ok("this machine's clock and the API server's agree");
    }
    let side = if server > local { "ahead of" } else { "behind" };
    Verdict::warning(
        format!("the API server's clock is {apart} s {side} this machine's"),
        Vec::new(),
        "set the wrong one of them by NTP; an API server that is more than 5 minutes behind pgset's nodes does not accept a new certificate",
    )
}

fn admission_api(basics: &Basics) -> Verdict {
    let resources = match &basics.admission {
        Ok(resources) => resources,
        Err(Unread::Absent) => &Value::Null,
        Err(why) => return Verdict::unread("the resources of admissionregistration.k8s.io/v1", why),
    };
    let wanted = ["mutatingwebhookconfigurations", "validatingadmissionpolicies", "validatingadmissionpolicybindings"];
    let served = |wanted: &str| items(resources, "/resources").any(|resource| text(resource, "/name") == wanted);
    let missing: Vec<String> = wanted.iter().filter(|wanted| !served(wanted)).map(ToString::to_string).collect();
    if missing.is_empty() {
        return Verdict::ok("webhooks and admission policies are served");
    }
    Verdict::failure(
        "admissionregistration.k8s.io/v1 is not served as a whole",
        missing,
        "let the API server serve it (--runtime-config), or upgrade Kubernetes to 1.30 or newer",
    )
}

fn can_install(before: &Before) -> Verdict {
    if let Some(why) = before.permissions.iter().find_map(|(_, answer)| answer.as_ref().err()) {
        return Verdict::unread("your own permissions", why);
    }
    let refused: Vec<String> = before
        .permissions
        .iter()
        .filter(|(_, answer)| *answer == Ok(false))
        .map(|(permission, _)| permission.words())
        .collect();
    if refused.is_empty() {
        return Verdict::ok(format!("you may do all {} things that installing takes", before.permissions.len()));
    }
    Verdict::failure(
        format!("you may not do {} of {} things that installing takes", refused.len(), before.permissions.len()),
        refused,
        "let somebody with the ClusterRole cluster-admin install pgset, or grant you these",
    )
}

/// Other webhooks that may be asked about `StatefulSets`. Their selectors are theirs: what is told is what could happen.
fn other_webhooks(basics: &Basics) -> Verdict {
    let (mutating, validating) = match (&basics.mutating, &basics.validating) {
        (Ok(mutating), Ok(validating)) => (mutating, validating),
        (Err(why), _) | (_, Err(why)) => return Verdict::unread("the webhook configurations of this cluster", why),
    };
    let (mut asked, mut found) = (0, Vec::new());
    for configuration in mutating.iter().chain(validating) {
        let name = text(configuration, "/metadata/name");
        if name == names::WEBHOOK_CONFIGURATION {
            continue;
        }
        for webhook in items(configuration, "/webhooks").filter(|webhook| matches_sets(webhook)) {
            asked += 1;
            let entry = text(webhook, "/name");
            if entry == OUR_ENTRY {
                found.push(format!(
                    "{name}: its webhook {entry} is pgset's too: sets may be injected twice over, by two versions"
                ));
            }
            if !["None", "NoneOnDryRun"].contains(&text(webhook, "/sideEffects")) {
                found.push(format!(
                    "{name}: {entry} has side effects, so that the API server refuses every dry run of a StatefulSet that it matches"
                ));
            }
        }
    }
    if found.is_empty() {
        return Verdict::ok(match asked {
            0 => "no other webhook is asked about StatefulSets".to_owned(),
            1 => "one other webhook may be asked about StatefulSets; it stands in nobody's way".to_owned(),
            more => format!("{more} other webhooks may be asked about StatefulSets; they stand in nobody's way"),
        });
    }
    Verdict::warning(
        "other webhooks get in the way",
        found,
        "ask who installed them; kubectl diff, --dry-run=server and the check canary need webhooks without side effects",
    )
}

/// Whether a webhook's rules match the creation or update of `StatefulSets`.
fn matches_sets(webhook: &Value) -> bool {
    let has = |rule: &Value, list: &str, wanted: &[&str]| {
        items(rule, list).filter_map(Value::as_str).any(|found| wanted.contains(&found))
    };
    items(webhook, "/rules").any(|rule| {
        has(rule, "/apiGroups", &["*", "apps"])
            && has(rule, "/apiVersions", &["*", "v1"])
            && has(rule, "/resources", &["*", "*/*", "statefulsets"])
            && has(rule, "/operations", &["*", "CREATE", "UPDATE"])
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::check::snapshot::Permission;

    fn version(major: &str, minor: &str) -> Value {
        json!({"major": major, "minor": minor, "gitVersion": format!("v{major}.{minor}.1")})
    }

    fn basics(mutating: Vec<Value>) -> Basics {
        let names =
            ["mutatingwebhookconfigurations", "validatingadmissionpolicies", "validatingadmissionpolicybindings"];
        Basics {
            version: version("1", "37"),
            server_time: Some(1000),
            local_time: 1000,
            admission: Ok(json!({"resources": names.map(|name| json!({"name": name}))})),
            mutating: Ok(mutating),
            validating: Ok(Vec::new()),
        }
    }

    fn configuration(name: &str, entry: &str, resource: &str, side_effects: &str) -> Value {
        json!({"metadata": {"name": name}, "webhooks": [{"name": entry, "sideEffects": side_effects, "rules": [
            {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": [resource], "operations": ["*"]},
        ]}]})
    }

    #[test]
    fn kubernetes_is_new_enough_from_1_30_on() {
        for (minor, fits) in [("29", false), ("29+", false), ("30", true), ("31+", true), ("37", true)] {
            assert_eq!(matches!(kubernetes_version(&version("1", minor)), Verdict::Ok(_)), fits, "{minor}");
        }
        assert!(matches!(kubernetes_version(&version("", "")), Verdict::Skipped(_)));
    }

    #[test]
    fn clocks_may_differ_by_as_much_as_certificates_are_back_dated() {
        assert!(matches!(clock(Some(1000), 1200), Verdict::Ok(_)));
        let Verdict::Warning(finding) = clock(Some(1000), 2000) else { panic!() };
        assert_eq!(finding.says, "the API server's clock is 1000 s behind this machine's");
        assert!(matches!(clock(None, 0), Verdict::Skipped(_)));
    }

    #[test]
    fn an_admission_api_without_policies_fails() {
        assert!(matches!(admission_api(&basics(vec![])), Verdict::Ok(_)));
        let old = Basics {
            admission: Ok(json!({"resources": [{"name": "mutatingwebhookconfigurations"}]})),
            ..basics(vec![])
        };
        let Verdict::Failure(finding) = admission_api(&old) else { panic!() };
        assert_eq!(finding.found, ["validatingadmissionpolicies", "validatingadmissionpolicybindings"]);
        assert!(matches!(
            admission_api(&Basics { admission: Err(Unread::Absent), ..basics(vec![]) }),
            Verdict::Failure(_)
        ));
    }

    #[test]
    fn each_right_that_is_missing_is_named() {
        let permission = |verb: &str| Permission {
            verb: verb.to_owned(),
            resource: "deployments".to_owned(),
            group: "apps".to_owned(),
            name: String::new(),
            namespace: "pgset-system".to_owned(),
        };
        let answers = |last| Before { permissions: vec![(permission("get"), Ok(true)), (permission("create"), last)] };
        assert!(matches!(can_install(&answers(Ok(true))), Verdict::Ok(_)));
        let Verdict::Failure(finding) = can_install(&answers(Ok(false))) else { panic!() };
        assert_eq!(finding.found, ["create deployments.apps -n pgset-system"]);
        let forbidden = Err(Unread::Forbidden("no".to_owned()));
        assert_eq!(can_install(&answers(forbidden)), Verdict::Skipped("may not read your own permissions".to_owned()));
    }

    #[test]
    fn webhooks_that_spoil_dry_runs_or_are_pgsets_are_named() {
        let harmless = vec![
            configuration("pgset", OUR_ENTRY, "statefulsets", "None"),
            configuration("pods-only", "a", "pods", "Unknown"),
            configuration("kyverno", "b", "*", "NoneOnDryRun"),
        ];
        let says = "one other webhook may be asked about StatefulSets; it stands in nobody's way";
        assert_eq!(other_webhooks(&basics(harmless)), Verdict::ok(says));
        let harmful = vec![
            configuration("old", "c", "statefulsets", "Unknown"),
            configuration("pgset-2", OUR_ENTRY, "statefulsets", "None"),
        ];
        let Verdict::Warning(finding) = other_webhooks(&basics(harmful)) else { panic!() };
        assert!(finding.found[0].starts_with("old: c has side effects"), "{finding:?}");
        assert!(finding.found[1].starts_with("pgset-2: its webhook"), "{finding:?}");
        let forbidden = Basics { mutating: Err(Unread::Forbidden(String::new())), ..basics(vec![]) };
        assert!(matches!(other_webhooks(&forbidden), Verdict::Skipped(_)));
    }
}
