//! Checks of what makes API servers trust the webhook, and of the whole way to it.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::{
    report::{Id, Verdict},
    selector,
    sets::pointer,
    snapshot::{After, Basics, Canary},
};
use crate::{
    certs::{Material, Settings},
    cli::cluster::{Unread, items, text},
    errors::with_causes,
    names::{self, annotation},
};

/// When a renewal is overdue: pgset renews when a third of a certificate's life is left, which is 30 days at least.
const OVERDUE_DAYS: u64 = 20;
const DAY: u64 = 24 * 60 * 60;
const LOGS: &str = "see what pgset says of certificates: kubectl -n pgset-system logs deployment/pgset-webhook";

/// The checks of trust.
pub fn checks(basics: &Basics, after: &After) -> Vec<(Id, Verdict)> {
    let configuration = after
        .installed
        .iter()
        .find(|(shipped, _)| text(shipped, "/kind") == "MutatingWebhookConfiguration")
        .map_or(Err(&Unread::Absent), |(_, live)| live.as_ref());
    let now = basics.server_time.unwrap_or(basics.local_time);
    let material = after.secret.as_ref().map(material);
    vec![
        (Id::BundlePresent, bundle_present(configuration)),
        (Id::CertificateValid, certificate_valid(configuration, material.as_ref(), now)),
        (Id::CertificateExpiry, certificate_expiry(material.as_ref(), now)),
        (Id::Canary, canary(&after.canary, configuration.ok())),
    ]
}

/// What the Secret holds, or why that can't be used.
fn material(secret: &Value) -> Result<Material, String> {
    let data = secret.get("data").cloned().unwrap_or_default();
    let data = serde_json::from_value(data).map_err(|error| error.to_string())?;
    Material::from_secret(&data).map_err(|error| with_causes(&error))
}

/// The bundles of the entries, by the entries' names; an entry without one has none.
fn bundles(configuration: &Value) -> Vec<(&str, Option<String>)> {
    let bundle = |webhook: &Value| {
        let decoded = BASE64_STANDARD.decode(text(webhook, "/clientConfig/caBundle")).ok()?;
        String::from_utf8(decoded).ok().filter(|bundle| bundle.contains("BEGIN CERTIFICATE"))
    };
    items(configuration, "/webhooks").map(|webhook| (text(webhook, "/name"), bundle(webhook))).collect()
}

fn bundle_present(configuration: Result<&Value, &Unread>) -> Verdict {
    let configuration = match configuration {
        Ok(configuration) => configuration,
        Err(Unread::Absent) => return Verdict::Skipped("there is no webhook configuration".to_owned()),
        Err(why) => return Verdict::unread("MutatingWebhookConfigurations", why),
    };
    let bundles = bundles(configuration);
    let without: Vec<String> =
        bundles.iter().filter(|(_, bundle)| bundle.is_none()).map(|(name, _)| (*name).to_owned()).collect();
    if without.is_empty() {
        return Verdict::ok("every webhook has a caBundle");
    }
    let cure = format!("pgset writes it within seconds once a pod of its runs; else {LOGS}");
    Verdict::failure("a webhook has no caBundle, so that API servers trust nobody", without, cure)
}

type Secret<'a> = Result<&'a Result<Material, String>, &'a &'a Unread>;

/// The certificates, or what is said instead of them.
fn readable(secret: Secret<'_>) -> Result<&Material, Verdict> {
    match secret {
        Ok(Ok(material)) => Ok(material),
        Ok(Err(why)) => Err(Verdict::Skipped(format!(
            "the Secret {} is not of pgset's own making: {why}",
            names::CERTIFICATES_SECRET
        ))),
        Err(Unread::Absent) => Err(Verdict::Skipped(format!("there is no Secret {}", names::CERTIFICATES_SECRET))),
        Err(why) => Err(Verdict::unread("the Secret with the certificates", why)),
    }
}

fn certificate_valid(configuration: Result<&Value, &Unread>, secret: Secret<'_>, now: u64) -> Verdict {
    let material = match readable(secret) {
        Ok(material) => material,
        Err(verdict) => return verdict,
    };
    let Ok(configuration) = configuration else {
        return Verdict::Skipped("the webhook configuration can't be read".to_owned());
    };
    // The name that API servers verify.
    let names = Settings::new(names::SYSTEM_NAMESPACE, names::WEBHOOK_CONFIGURATION).names;
    let name = names.first().map(String::as_str).unwrap_or_default();
    let refused: Vec<String> = bundles(configuration)
        .into_iter()
        .filter_map(|(entry, bundle)| {
            let refused = material.verifies(&bundle?, name, now).err()?;
            Some(format!("{entry}: {}", with_causes(&refused)))
        })
        .collect();
    if refused.is_empty() {
        return Verdict::ok(format!("the caBundle vouches for the certificate of {name}"));
    }
    Verdict::failure(format!("API servers do not accept the certificate for {name}"), refused, LOGS)
}

fn certificate_expiry(secret: Secret<'_>, now: u64) -> Verdict {
    let material = match readable(secret) {
        Ok(material) => material,
        Err(verdict) => return verdict,
    };
    let days = |ends: u64| ends.saturating_sub(now) / DAY;
    let (leaf, authority) = (days(material.leaf_ends()), days(material.authority_ends()));
    let says = format!("the certificate is good for {leaf} days, its authority for {authority}");
    match leaf.min(authority) {
        0 => Verdict::failure(says, Vec::new(), LOGS),
        1..OVERDUE_DAYS => Verdict::warning(format!("{says}: the renewal is overdue"), Vec::new(), LOGS),
        _ => Verdict::ok(says),
    }
}

/// The whole way: API server, webhook, injection, policies.
fn canary(canary: &Canary, configuration: Option<&Value>) -> Verdict {
    let Canary { namespace, namespace_object, answer, took } = canary;
    if let Some((configuration, namespace_object)) = configuration.zip(namespace_object.as_ref().ok())
        && let Some(why) = selector::exempt(configuration, namespace_object)
    {
        return Verdict::Skipped(format!("the namespace {namespace} is exempt: {why}; choose another by --namespace"));
    }
    match answer {
        Ok(object) if text(object, &pointer(annotation::INJECTED)).is_empty() => Verdict::failure(
            format!("a set that was shown to the API server in namespace {namespace} came back without the injection"),
            Vec::new(),
            "the webhook configuration is absent or does not match: see the check webhook-configuration",
        ),
        Ok(_) => Verdict::ok(format!("a set shown to the API server came back injected, in {}", shortly(*took))),
        Err(Unread::Forbidden(_)) => Verdict::Skipped(format!("may not create StatefulSets in namespace {namespace}")),
        Err(Unread::Absent) => {
            Verdict::Skipped(format!("there is no namespace {namespace}; choose one by --namespace"))
        }
        Err(why) => Verdict::failure(
            format!("a set that was shown to the API server in namespace {namespace} was refused"),
            vec![why.to_string()],
            cure(&why.to_string()),
        ),
    }
}

/// What to do about the API server's words.
fn cure(message: &str) -> String {
    let system = names::SYSTEM_NAMESPACE;
    if message.contains("certificate") || message.contains("x509") {
        format!("API servers do not trust the webhook: {LOGS}")
    } else if message.contains("no endpoints") || message.contains("connection refused") {
        format!("no pod of pgset's answers: kubectl -n {system} get pods")
    } else if message.contains("deadline") || message.contains("timeout") || message.contains("timed out") {
        "the API server does not reach pgset's pods: see that firewalls and NetworkPolicies let it connect to port 8443 of them"
            .to_owned()
    } else if message.contains("ValidatingAdmissionPolicy 'pgset-injection'") {
        "a policy of pgset's has noticed that API servers do not ask the webhook: see the check webhook-configuration"
            .to_owned()
    } else if message.contains("failed calling webhook") {
        format!("pgset's Service or its pods are not there: kubectl -n {system} get services,pods")
    } else {
        "the message names who refused it; if that is not pgset, choose a namespace without such a rule by --namespace"
            .to_owned()
    }
}

fn shortly(took: Duration) -> String {
    format!("{} ms", took.as_millis())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::cluster::Read;

    const NOW: u64 = 1_800_000_000;

    fn of_names(names: &[&str]) -> Material {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Material::new(&names, NOW).unwrap()
    }

    fn ours() -> Material {
        of_names(&["pgset-webhook.pgset-system.svc"])
    }

    fn configuration(bundle: Option<&str>) -> Value {
        let mut object = json!({"webhooks": [{"name": "inject.pgset.dev", "clientConfig": {}}]});
        if let Some(bundle) = bundle {
            object["webhooks"][0]["clientConfig"]["caBundle"] = json!(BASE64_STANDARD.encode(bundle));
        }
        object
    }

    #[test]
    fn an_empty_bundle_fails() {
        assert!(matches!(bundle_present(Ok(&configuration(Some(ours().bundle())))), Verdict::Ok(_)));
        for empty in [None, Some(""), Some("\n")] {
            let Verdict::Failure(finding) = bundle_present(Ok(&configuration(empty))) else { panic!() };
            assert_eq!(finding.found, ["inject.pgset.dev"]);
        }
        assert!(matches!(bundle_present(Err(&Unread::Absent)), Verdict::Skipped(_)));
    }

    #[test]
    fn the_certificate_must_be_the_bundles_and_for_the_services_name() {
        let material = ours();
        let check = |bundle: &str, material: Material, now| {
            certificate_valid(Ok(&configuration(Some(bundle))), Ok(&Ok(material)), now)
        };
        assert!(matches!(check(material.bundle(), material.clone(), NOW), Verdict::Ok(_)));
        assert!(matches!(check(ours().bundle(), material.clone(), NOW), Verdict::Failure(_)), "another authority");
        assert!(matches!(check(material.bundle(), material.clone(), NOW + 100 * DAY), Verdict::Failure(_)), "expired");
        let other = of_names(&["other.pgset-system.svc"]);
        assert!(matches!(check(other.bundle(), other.clone(), NOW), Verdict::Failure(_)), "another name");
    }

    #[test]
    fn a_secret_that_may_not_be_read_is_skipped_with_the_reason() {
        let forbidden = Unread::Forbidden("no".to_owned());
        let verdict = certificate_expiry(Err(&&forbidden), NOW);
        assert_eq!(verdict, Verdict::Skipped("may not read the Secret with the certificates".to_owned()));
        let foreign = Err("no ca.crt".to_owned());
        assert!(matches!(certificate_valid(Ok(&Value::Null), Ok(&foreign), NOW), Verdict::Skipped(_)));
    }

    #[test]
    fn an_overdue_renewal_warns_before_it_fails() {
        let material = Ok(ours());
        for (days, word) in [(1, "ok"), (60, "ok"), (75, "overdue"), (91, "failure")] {
            let found = match certificate_expiry(Ok(&material), NOW + days * DAY) {
                Verdict::Ok(_) => "ok",
                Verdict::Warning(_) => "overdue",
                _ => "failure",
            };
            assert_eq!(found, word, "after {days} days");
        }
    }

    fn sung(answer: Read<Value>) -> Verdict {
        let namespace_object = Ok(json!({"metadata": {"labels": {"pgset.dev/webhook": "enabled"}}}));
        let took = Duration::from_millis(7);
        canary(&Canary { namespace: "default".to_owned(), namespace_object, answer, took }, None)
    }

    #[test]
    fn the_canary_must_come_back_injected() {
        let injected = json!({"metadata": {"annotations": {annotation::INJECTED: "{}"}}});
        assert_eq!(sung(Ok(injected)), Verdict::ok("a set shown to the API server came back injected, in 7 ms"));
        assert!(matches!(sung(Ok(json!({}))), Verdict::Failure(_)));
        assert!(matches!(sung(Err(Unread::Forbidden(String::new()))), Verdict::Skipped(_)));
        assert!(matches!(sung(Err(Unread::Absent)), Verdict::Skipped(_)));
    }

    #[test]
    fn what_the_canary_met_is_told_with_its_cure() {
        for (message, cure) in [
            ("failed calling webhook: x509: certificate signed by unknown authority", "API servers do not trust"),
            ("failed calling webhook: no endpoints available for service", "no pod of pgset's answers"),
            ("failed calling webhook: context deadline exceeded", "the API server does not reach"),
            ("failed calling webhook: service \"pgset-webhook\" not found", "pgset's Service or its pods"),
            ("ValidatingAdmissionPolicy 'pgset-injection' with binding …", "a policy of pgset's has noticed"),
            ("admission webhook \"other\" denied the request: no", "the message names who refused it"),
        ] {
            let Verdict::Failure(finding) = sung(Err(Unread::Refused(message.to_owned()))) else { panic!() };
            assert!(finding.cure.starts_with(cure), "{message}: {}", finding.cure);
            assert_eq!(finding.found, [message]);
        }
    }
}
