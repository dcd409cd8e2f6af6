//! The edge: what is read from the cluster, so that the checks themselves are pure.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt as _, future, stream};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Resource as _,
    api::{ApiResource, DynamicObject},
    discovery::{ApiCapabilities, Scope},
};
use serde_json::{Value, json};

use crate::{
    cli::{
        cluster::{Cluster, Read, Unread, items, text},
        install::{self, Image},
    },
    names::{self, annotation},
};

/// How many requests are under way at once.
const AT_ONCE: usize = 8;
/// Where the canary is sung unless `--namespace` says otherwise.
const CANARY_NAMESPACE: &str = "default";

/// What is asked of every cluster.
#[derive(Clone, Debug)]
pub struct Basics {
    /// The answer of `/version`.
    pub version: Value,
    /// The API server's clock, in Unix seconds.
    pub server_time: Option<u64>,
    /// This machine's.
    pub local_time: u64,
    /// The resources of admissionregistration.k8s.io/v1.
    pub admission: Read<Value>,
    /// All `MutatingWebhookConfigurations`.
    pub mutating: Read<Vec<Value>>,
    /// All `ValidatingWebhookConfigurations`.
    pub validating: Read<Vec<Value>>,
}

/// What is asked before the installation.
#[derive(Clone, Debug)]
pub struct Before {
    /// What the installation does, and whether it may.
    pub permissions: Vec<(Permission, Read<bool>)>,
}

/// One thing that installing does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The verb.
    pub verb: String,
    /// The resource, in the plural.
    pub resource: String,
    /// Its group.
    pub group: String,
    /// The object's name, if it is about one.
    pub name: String,
    /// The namespace, if it is about one.
    pub namespace: String,
}

/// What is asked after the installation.
#[derive(Clone, Debug)]
pub struct After {
    /// What this version installs, with what is there.
    pub installed: Vec<(Value, Read<Value>)>,
    /// pgset's pods.
    pub pods: Read<Vec<Value>>,
    /// The endpoints of the webhook's Service.
    pub endpoints: Read<Vec<Value>>,
    /// The Secret with the certificates.
    pub secret: Read<Value>,
    /// What became of the canary.
    pub canary: Canary,
    /// All `StatefulSets` that speak of pgset.
    pub sets: Read<Vec<Value>>,
    /// The members' pods.
    pub members: Read<Vec<Value>>,
    /// The `EndpointSlices` behind the Services of sets.
    pub slices: Read<Vec<Value>>,
    /// The Leases that pgset made.
    pub leases: Read<Vec<Value>>,
    /// The namespaces.
    pub namespaces: Read<Vec<Value>>,
    /// The claims.
    pub claims: Read<Vec<Value>>,
    /// The volumes.
    pub volumes: Read<Vec<Value>>,
}

/// A small set that was shown to the API server, and not stored.
#[derive(Clone, Debug)]
pub struct Canary {
    /// Where.
    pub namespace: String,
    /// The namespace itself.
    pub namespace_object: Read<Value>,
    /// How it came back.
    pub answer: Read<Value>,
    /// How long that took.
    pub took: Duration,
}

// === impl Basics ===

impl Basics {
    /// Now, by the API server's clock if it tells it.
    pub fn now(&self) -> Timestamp {
        let seconds = i64::try_from(self.server_time.unwrap_or(self.local_time)).ok();
        seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_default()
    }
}

// === impl Permission ===

impl Permission {
    /// As `kubectl auth can-i` would be asked.
    pub fn words(&self) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let name = if self.name.is_empty() { String::new() } else { format!("/{}", self.name) };
        let place = if self.namespace.is_empty() { String::new() } else { format!(" -n {}", self.namespace) };
        format!("{} {}{group}{name}{place}", self.verb, self.resource)
    }

    fn attributes(&self) -> Value {
        let Self { verb, resource, group, name, namespace } = self;
        json!({"verb": verb, "resource": resource, "group": group, "name": name, "namespace": namespace})
    }
}

/// What `pgset install` prints, with the images of the pgset that is installed.
pub fn shipped(deployment: Option<&Value>) -> Result<Vec<Value>, Box<dyn std::error::Error>> {
    let containers = |object: &Value| items(object, "/spec/template/spec/containers").next().cloned();
    let container = deployment.and_then(containers).unwrap_or_default();
    let or_ours =
        |found: Option<&str>| found.unwrap_or(names::IMAGE).parse().or_else(|_| names::IMAGE.parse::<Image>());
    let image = or_ours(container.get("image").and_then(Value::as_str))?;
    let agent = items(&container, "/args").find_map(|word| word.as_str()?.strip_prefix("--agent-image="));
    Ok(serde_saphyr::from_multiple(&install::manifests(&image, &or_ours(agent)?))?)
}

/// Asks what is asked of every cluster; an error means that nothing can be checked.
pub async fn basics(cluster: &Cluster) -> Read<Basics> {
    const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
    let version = cluster.answer("/version").await?;
    let (mutating, validating) =
        (format!("{ADMISSION}/mutatingwebhookconfigurations"), format!("{ADMISSION}/validatingwebhookconfigurations"));
    let (admission, mutating, validating) =
        future::join3(cluster.get(ADMISSION), cluster.list(&mutating), cluster.list(&validating)).await;
    Ok(Basics {
        server_time: version.date.as_deref().and_then(read_date),
        local_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        version: version.value,
        admission,
        mutating,
        validating,
    })
}

/// Asks whether everything that `pgset install` prints may be applied.
pub async fn before(cluster: &Cluster) -> Result<Before, Box<dyn std::error::Error>> {
    let shipped = shipped(None)?;
    let resources = Resources::of(cluster, &shipped).await;
    let mut permissions = Vec::new();
    for object in &shipped {
        // A kind that is not served can't be asked about; `admission-api` tells of it.
        let Some((resource, _)) = resources.find(object) else { continue };
        // What `kubectl apply` does.
        for verb in ["get", "create", "patch"] {
            permissions.push(Permission {
                verb: verb.to_owned(),
                resource: resource.plural.clone(),
                group: resource.group.clone(),
                // Nobody can be allowed to create one name only.
                name: if verb == "create" { String::new() } else { text(object, "/metadata/name").to_owned() },
                namespace: text(object, "/metadata/namespace").to_owned(),
            });
        }
    }
    permissions.extend(granting(cluster, &shipped).await);
    let ask = |permission: Permission| async move {
        let answer = cluster.may(&permission.attributes()).await;
        (permission, answer)
    };
    Ok(Before { permissions: stream::iter(permissions).map(ask).buffered(AT_ONCE).collect().await })
}

/// Nobody may grant what he does not hold, unless he may escalate: then each right that is granted counts.
async fn granting(cluster: &Cluster, shipped: &[Value]) -> Vec<Permission> {
    let all = |verb: &str, group: &str, resource: &str| Permission {
        verb: verb.to_owned(),
        resource: resource.to_owned(),
        group: group.to_owned(),
        name: String::new(),
        namespace: String::new(),
    };
    let escalate = all("escalate", "rbac.authorization.k8s.io", "clusterroles");
    if cluster.may(&escalate.attributes()).await == Ok(true) {
        return Vec::new();
    }
    let mut rights = Vec::new();
    for role in shipped.iter().filter(|object| text(object, "/kind").ends_with("Role")) {
        for rule in items(role, "/rules") {
            for resource in items(rule, "/resources").filter_map(Value::as_str) {
                for verb in items(rule, "/verbs").filter_map(Value::as_str) {
                    let mut right = all(
                        verb,
                        items(rule, "/apiGroups").next().and_then(Value::as_str).unwrap_or_default(),
                        resource,
                    );
                    text(role, "/metadata/namespace").clone_into(&mut right.namespace);
                    let name = items(rule, "/resourceNames").next().and_then(Value::as_str);
                    name.unwrap_or_default().clone_into(&mut right.name);
                    rights.push(right);
                }
            }
        }
    }
    rights
}

/// Asks for what is installed and for everything that depends on it.
pub async fn after(cluster: &Cluster, namespace: Option<&str>) -> Result<After, Box<dyn std::error::Error>> {
    let system = names::SYSTEM_NAMESPACE;
    let deployment = cluster.get(&format!("/apis/apps/v1/namespaces/{system}/deployments/{}", names::WEBHOOK)).await;
    let shipped = shipped(deployment.as_ref().ok())?;
    let resources = Resources::of(cluster, &shipped).await;
    let resources = &resources;
    let live = |object: Value| async move {
        let read = match resources.path(&object) {
            Some(path) => cluster.get(&path).await,
            None => Err(Unread::Absent),
        };
        (object, read)
    };
    let installed = stream::iter(shipped).map(live).buffered(AT_ONCE).collect().await;

    let of = |group: &str, resource: &str| match namespace {
        Some(namespace) => format!("/{group}/namespaces/{namespace}/{resource}"),
        None => format!("/{group}/{resource}"),
    };
    let paths = [
        format!("/api/v1/namespaces/{system}/pods?labelSelector=app.kubernetes.io/name={}", names::MANAGER),
        format!(
            "/apis/discovery.k8s.io/v1/namespaces/{system}/endpointslices?labelSelector=kubernetes.io/service-name={}",
            names::WEBHOOK_SERVICE
        ),
        of("apis/apps/v1", "statefulsets"),
        of("api/v1", &format!("pods?labelSelector={}", names::label::SET)),
        of("apis/discovery.k8s.io/v1", &format!("endpointslices?labelSelector={}", names::label::SET)),
        of(
            "apis/coordination.k8s.io/v1",
            &format!("leases?labelSelector={}={}", names::label::MANAGED_BY, names::MANAGER),
        ),
        "/api/v1/namespaces".to_owned(),
        of("api/v1", "persistentvolumeclaims"),
        "/api/v1/persistentvolumes".to_owned(),
    ];
    let mut lists: Vec<Read<Vec<Value>>> =
        stream::iter(&paths).map(|path| cluster.list(path)).buffered(AT_ONCE).collect().await;
    let mut next = || lists.remove(0);
    let secret = format!("/api/v1/namespaces/{system}/secrets/{}", names::CERTIFICATES_SECRET);
    Ok(After {
        installed,
        pods: next(),
        endpoints: next(),
        secret: cluster.get(&secret).await,
        canary: canary(cluster, namespace.unwrap_or(CANARY_NAMESPACE)).await,
        sets: next().map(|sets| sets.into_iter().filter(speaks_of_pgset).collect()),
        members: next(),
        slices: next(),
        leases: next(),
        namespaces: next(),
        claims: next(),
        volumes: next(),
    })
}

/// Whether a `StatefulSet` asks for pgset, or carries what pgset injected.
pub fn speaks_of_pgset(object: &Value) -> bool {
    let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object);
    let tells = |key: &String| key == annotation::INJECT || key == annotation::INJECTED;
    annotations.is_some_and(|annotations| annotations.keys().any(tells))
}

/// Shows a small set to the API server, which stores nothing.
async fn canary(cluster: &Cluster, namespace: &str) -> Canary {
    let name = format!("pgset-check-{:x}", std::process::id());
    let object = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": name, "namespace": namespace, "annotations": {annotation::INJECT: "enabled"}},
        "spec": {
            "replicas": 0, "serviceName": name, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{
                    "name": "postgres", "image": "postgres:17",
                    "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}],
                }]},
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    });
    let namespace_object = cluster.get(&format!("/api/v1/namespaces/{namespace}")).await;
    let path = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets?dryRun=All&fieldManager=pgset-check");
    let started = Instant::now();
    let answer = cluster.post(&path, &object).await.map(|answer| answer.value);
    Canary { namespace: namespace.to_owned(), namespace_object, answer, took: started.elapsed() }
}

/// What the API server serves.
pub struct Resources(Vec<(ApiResource, ApiCapabilities)>);

// === impl Resources ===

impl Resources {
    /// Asks for the API groups of the objects. What can't be read is not served.
    pub async fn of(cluster: &Cluster, objects: &[Value]) -> Self {
        let versions: BTreeSet<&str> = objects.iter().map(|object| text(object, "/apiVersion")).collect();
        let mut resources = Vec::new();
        for version in versions {
            resources.extend(cluster.resources(version).await);
        }
        Self(resources)
    }

    fn find(&self, object: &Value) -> Option<&(ApiResource, ApiCapabilities)> {
        let (version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
        self.0.iter().find(|(resource, _)| resource.api_version == version && resource.kind == kind)
    }

    /// Where an object is.
    pub fn path(&self, object: &Value) -> Option<String> {
        let (resource, capabilities) = self.find(object)?;
        let namespace = (capabilities.scope == Scope::Namespaced).then(|| text(object, "/metadata/namespace"));
        Some(format!("{}/{}", DynamicObject::url_path(resource, namespace), text(object, "/metadata/name")))
    }
}

/// The seconds of an HTTP date, such as `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn read_date(text: &str) -> Option<u64> {
    let time = k8s_openapi::jiff::fmt::rfc2822::parse(text).ok()?;
    u64::try_from(time.timestamp().as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_date_is_read() {
        assert_eq!(read_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(read_date("yesterday"), None);
    }

    #[test]
    fn the_manifests_are_compared_with_the_images_that_run() {
        let deployment = json!({"spec": {"template": {"spec": {"containers": [
            {"image": "registry.example/pgset:9", "args": ["serve", "--agent-image=registry.example/agent:9"]},
        ]}}}});
        let shipped = shipped(Some(&deployment)).unwrap();
        let ours = shipped.iter().find(|object| object["kind"] == "Deployment").unwrap();
        let container = &ours["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "registry.example/pgset:9");
        assert!(container["args"].to_string().contains("--agent-image=registry.example/agent:9"));
    }

    #[test]
    fn a_permission_reads_as_it_is_asked() {
        let permission = Permission {
            verb: "patch".to_owned(),
            resource: "deployments".to_owned(),
            group: "apps".to_owned(),
            name: "pgset".to_owned(),
            namespace: "pgset-system".to_owned(),
        };
        assert_eq!(permission.words(), "patch deployments.apps/pgset -n pgset-system");
    }
}
