//! `pgset install`: prints the manifests, or applies them itself.

mod apply;

use std::{
    io::{self, Write as _},
    str::FromStr,
};

use super::{CommandResult, cluster::Connection};
use crate::names;

/// The manifests, in the order in which they are applied: the same files that `kubectl apply -k deploy/` reads.
const MANIFESTS: [&str; 9] = [
    include_str!("../../deploy/namespace.yaml"),
    include_str!("../../deploy/rbac.yaml"),
    include_str!("../../deploy/service.yaml"),
    // These need nobody to answer: from here on no set is stored without its injection, and pgset's own accounts are bound before a
    // pod of theirs starts.
    include_str!("../../webhook-config/policy.yaml"),
    include_str!("../../webhook-config/owners.yaml"),
    include_str!("../../webhook-config/accounts.yaml"),
    include_str!("../../deploy/webhook.yaml"),
    include_str!("../../deploy/controller.yaml"),
    // Last, when there is somebody to answer: until then nothing is held up.
    include_str!("../../webhook-config/webhook.yaml"),
];

/// The option, applied with the namespace, before a pod starts: the file of the component `deploy/network-policy/`.
const NETWORK_POLICIES: &str = include_str!("../../deploy/network-policy/network-policy.yaml");

/// The flags of `pgset install`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The image that pgset runs from.
    #[arg(long, default_value = names::IMAGE)]
    image: Image,
    /// The image that members copy the agent from [default: the same].
    #[arg(long)]
    agent_image: Option<Image>,
    /// Add a network policy for pgset's own pods: who reaches them, and whom they reach.
    #[arg(long)]
    network_policies: bool,
    /// Apply the manifests (server-side) instead of printing them, and let what stands outside of pgset's namespace go with it.
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    connection: Connection,
}

/// The name of an image, which can't be mistaken for anything else in YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image(String);

/// Why a text is not the name of an image.
#[derive(Debug, thiserror::Error)]
#[error(
    "an image is named like registry.example/pgset:0.2.0 or registry.example/pgset@sha256:…, in letters, digits and . _ - / : @"
)]
pub struct NotAnImage;

// === impl Image ===

impl FromStr for Image {
    type Err = NotAnImage;

    fn from_str(text: &str) -> Result<Self, NotAnImage> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let ends_well = text.ends_with(|c: char| c.is_ascii_alphanumeric());
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
        (starts_well && ends_well && text.chars().all(allowed)).then(|| Self(text.to_owned())).ok_or(NotAnImage)
    }
}

impl Image {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> CommandResult {
    let Arguments { image, agent_image, network_policies, apply, connection } = arguments;
    let mut text = manifests(image, agent_image.as_ref().unwrap_or(image));
    if *network_policies {
        text = with_network_policies(&text);
    }
    if *apply {
        return apply::apply(connection, &text);
    }
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever reads has seen enough (`pgset install | head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// All manifests in one text, with the images in place.
#[must_use]
pub fn manifests(image: &Image, agent_image: &Image) -> String {
    let with = |field: &str, image: &str| format!("{field}{image}\n");
    MANIFESTS
        .map(|manifest| {
            manifest
                .replace(&with("--agent-image=", names::IMAGE), &with("--agent-image=", agent_image.as_str()))
                .replace(&with("image: ", names::IMAGE), &with("image: ", image.as_str()))
        })
        .join("---\n")
}

/// The same with pgset's network policy, after the namespace that it is in and before all else.
fn with_network_policies(manifests: &str) -> String {
    match manifests.split_once("---\n") {
        Some((namespace, others)) => [namespace, NETWORK_POLICIES, others].join("---\n"),
        None => [manifests, NETWORK_POLICIES].join("---\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use k8s_openapi::{
        api::{
            admissionregistration::v1::MutatingWebhookConfiguration,
            apps::v1::Deployment,
            core::v1::Service,
            networking::v1::{NetworkPolicy, NetworkPolicyPort},
        },
        apimachinery::pkg::util::intstr::IntOrString,
        serde_json::Value,
    };

    use super::*;

    fn documents(text: &str) -> Vec<Value> {
        serde_saphyr::from_multiple(text).unwrap()
    }

    fn shipped() -> Vec<Value> {
        let image: Image = names::IMAGE.parse().unwrap();
        documents(&manifests(&image, &image))
    }

    fn one<T: serde::de::DeserializeOwned>(objects: Vec<Value>, kind: &str) -> T {
        let found = objects.into_iter().find(|object| object["kind"] == kind).unwrap();
        serde_json::from_value(found).unwrap()
    }

    fn named<T: serde::de::DeserializeOwned>(objects: Vec<Value>, kind: &str, name: &str) -> T {
        one(objects.into_iter().filter(|object| object["metadata"]["name"] == name).collect(), kind)
    }

    #[test]
    fn kustomize_applies_the_same_files() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        let base: Value =
            documents(&std::fs::read_to_string(root.join("deploy/kustomization.yaml")).unwrap()).remove(0);
        for resource in base["resources"].as_array().unwrap() {
            let path = root.join("deploy").join(resource.as_str().unwrap());
            if path.is_dir() {
                let inner = documents(&std::fs::read_to_string(path.join("kustomization.yaml")).unwrap()).remove(0);
                files.extend(inner["resources"].as_array().unwrap().iter().map(|r| path.join(r.as_str().unwrap())));
            } else {
                files.push(path);
            }
        }
        let kustomized: Vec<Value> =
            files.iter().flat_map(|file| documents(&std::fs::read_to_string(file).unwrap())).collect();
        let sorted = |mut objects: Vec<Value>| {
            objects.sort_by_key(ToString::to_string);
            objects
        };
        assert_eq!(sorted(kustomized), sorted(shipped()));
    }

    #[test]
    fn the_network_policy_is_an_option_that_adds_itself_after_the_namespace() {
        let image: Image = names::IMAGE.parse().unwrap();
        let mut with = documents(&with_network_policies(&manifests(&image, &image)));
        for policy in [with.remove(1), with.remove(1)] {
            assert_eq!(
                (&policy["kind"], &policy["metadata"]["namespace"]),
                (&"NetworkPolicy".into(), &names::SYSTEM_NAMESPACE.into())
            );
        }
        assert_eq!(with, shipped(), "all else is as without");
        // the component of kustomize has the same file, and nothing else
        let component = documents(include_str!("../../deploy/network-policy/kustomization.yaml")).remove(0);
        assert_eq!(component["kind"], "Component");
        assert_eq!(component["resources"], k8s_openapi::serde_json::json!(["network-policy.yaml"]));
    }

    #[test]
    fn the_network_policies_select_pgsets_pods_and_open_the_ports_that_they_have() {
        for name in [names::WEBHOOK, names::CONTROLLER] {
            let deployment: Deployment = named(shipped(), "Deployment", name);
            let pods = deployment.spec.unwrap().template;
            let policy: NetworkPolicy = named(documents(NETWORK_POLICIES), "NetworkPolicy", name);
            let spec = policy.spec.unwrap();
            assert_eq!(spec.pod_selector.unwrap().match_labels, pods.metadata.unwrap().labels);
            let ports = pods.spec.unwrap().containers.remove(0).ports.unwrap();
            let listened: BTreeSet<i32> = ports.iter().map(|port| port.container_port).collect();
            let opened: BTreeSet<i32> =
                spec.ingress.unwrap().into_iter().flat_map(|rule| numbers(rule.ports)).collect();
            assert_eq!(opened, listened, "{name}");
        }
    }

    #[test]
    fn each_service_has_an_account_and_an_order_of_its_own_and_api_servers_reach_the_webhook_only() {
        let service: Service = one(shipped(), "Service");
        let selector = service.spec.unwrap().selector;
        for (name, order) in [(names::WEBHOOK, "webhook"), (names::CONTROLLER, "controller")] {
            let deployment: Deployment = named(shipped(), "Deployment", name);
            let template = deployment.spec.unwrap().template;
            assert_eq!(selector == template.metadata.unwrap().labels, name == names::WEBHOOK);
            let pod = template.spec.unwrap();
            assert_eq!(pod.service_account_name.as_deref(), Some(name));
            assert_eq!(pod.containers[0].args.as_ref().unwrap()[..2], ["serve", order]);
        }
    }

    #[test]
    fn the_example_for_members_opens_the_ports_that_they_have() {
        let example = documents(include_str!("../../deploy/examples/network-policy.yaml"));
        let policy: NetworkPolicy = one(example, "NetworkPolicy");
        let spec = policy.spec.unwrap();
        let members = spec.pod_selector.unwrap();
        assert_eq!(members.match_labels.unwrap().into_keys().collect::<Vec<_>>(), [names::label::SET]);
        let listened = BTreeSet::from([names::pod::POSTGRES_PORT.into(), names::pod::AGENT_PORT.into()]);
        let opened: BTreeSet<i32> = spec.ingress.unwrap().into_iter().flat_map(|rule| numbers(rule.ports)).collect();
        assert_eq!(opened, listened);
        let between_members = spec.egress.unwrap().into_iter().find(|rule| rule.to.is_some()).unwrap();
        assert_eq!(numbers(between_members.ports).into_iter().collect::<BTreeSet<_>>(), listened);
    }

    fn numbers(ports: Option<Vec<NetworkPolicyPort>>) -> Vec<i32> {
        let number = |port: NetworkPolicyPort| match port.port {
            Some(IntOrString::Int(number)) => number,
            other => panic!("a number and not {other:?}"),
        };
        ports.unwrap().into_iter().map(number).collect()
    }

    #[test]
    fn the_images_are_set_wherever_they_stand() {
        let (image, agent) = ("registry.example:5000/pgset@sha256:0a1b", "other.example/agent:2");
        let text = manifests(&image.parse().unwrap(), &agent.parse().unwrap());
        assert!(!text.contains(names::IMAGE), "the version of the manifests is that of the program");
        let container = |name| {
            let deployment: Deployment = named(documents(&text), "Deployment", name);
            deployment.spec.unwrap().template.spec.unwrap().containers.remove(0)
        };
        assert_eq!(container(names::CONTROLLER).image.as_deref(), Some(image));
        let container = container(names::WEBHOOK);
        assert_eq!(container.image.as_deref(), Some(image));
        assert!(container.args.as_ref().unwrap().contains(&format!("--agent-image={agent}")));
    }

    #[test]
    fn what_could_be_yaml_is_no_image() {
        for bad in ["", "a b", "a\nb: c", "a\"", "{a}", "-a", "a:", "a#b", "*a", "ä"] {
            assert!(bad.parse::<Image>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_webhooks_configuration_comes_last_and_is_as_narrow_as_promised() {
        let objects = shipped();
        assert_eq!(objects[0]["kind"], "Namespace");
        assert_eq!(objects.last().unwrap()["kind"], "MutatingWebhookConfiguration");
        assert!(!manifests(&Image("a".to_owned()), &Image("a".to_owned())).contains("caBundle:"));
        let configuration: MutatingWebhookConfiguration = one(objects, "MutatingWebhookConfiguration");
        assert_eq!(configuration.metadata.name.as_deref(), Some(names::WEBHOOK_CONFIGURATION));
        for webhook in configuration.webhooks.unwrap() {
            assert_eq!(webhook.failure_policy.as_deref(), Some("Fail"));
            assert_eq!(webhook.side_effects, "None");
            assert_eq!(webhook.timeout_seconds, Some(5));
            let service = webhook.client_config.service.unwrap();
            assert_eq!(
                (service.name.as_str(), service.namespace.as_str()),
                (names::WEBHOOK_SERVICE, names::SYSTEM_NAMESPACE)
            );
            let excluded = webhook.namespace_selector.unwrap().match_expressions.unwrap().remove(0).values.unwrap();
            assert!(
                excluded.contains(&names::SYSTEM_NAMESPACE.to_owned()) && excluded.contains(&"kube-system".to_owned())
            );
            assert!(webhook.match_conditions.unwrap()[0].expression.contains(names::PREFIX));
        }
    }

    #[test]
    fn pgset_gets_no_wildcard_and_reads_no_secret_but_its_own() {
        let mut verbs_on_secrets = BTreeSet::new();
        for role in shipped().iter().filter(|object| object["kind"] == "ClusterRole" || object["kind"] == "Role") {
            for rule in role["rules"].as_array().unwrap() {
                assert!(!rule.to_string().contains('*'), "{rule}");
                let named = rule["resourceNames"].is_array();
                let on = |resource: &str| rule["resources"].as_array().unwrap().iter().any(|r| r == resource);
                if on("secrets") && !named {
                    verbs_on_secrets.extend(rule["verbs"].as_array().unwrap().iter().map(ToString::to_string));
                }
                assert!(named || !on("mutatingwebhookconfigurations"));
            }
        }
        assert_eq!(verbs_on_secrets, BTreeSet::from(["\"create\"".to_owned()]));
    }
}
