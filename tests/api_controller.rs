//! The controller against a real API server (`KUBECONFIG`): in a namespace of its own, with no more rights than it is installed with.

#![allow(clippy::unwrap_used, clippy::panic)] // this is a test all over

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod, ResourceQuota, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::client::{Body, ClientBuilder};
use kube::{Api, Client, Config, ResourceExt};
use pgset::inject::{Outcome, Request, Settings, inject};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tower::util::MapRequestLayer;

/// How long anything may take that has no limit of its own.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a condition holds, and answers how long that took.
macro_rules! eventually {
    ($what:expr, $condition:expr) => {{
        let start = Instant::now();
        loop {
            if $condition {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "still not so: {}", $what);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let took = start.elapsed();
        println!("{:>6} ms  {}", took.as_millis(), $what);
        took
    }};
}

/// A namespace with a controller that may write nowhere else.
struct Room {
    client: Client,
    namespace: String,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    controller: Option<tokio::task::JoinHandle<Result<(), pgset::controller::Error>>>,
}

impl Room {
    async fn open(name: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let level = std::env::var("RUST_LOG").ok().and_then(|level| level.parse::<tracing::Level>().ok());
        let _ = tracing_subscriber::fmt().with_max_level(level).with_test_writer().try_init();
        let config = Config::infer().await.unwrap();
        let client = Client::try_from(config.clone()).unwrap();
        let namespace = format!("controller-{name}-{}", std::process::id());
        // The sets come injected, the controller has an account of its own, and the tests do what the policies would deny.
        let metadata = json!({"name": namespace, "labels": {"pgset.dev/webhook": "disabled"}});
        create(&Api::<Namespace>::all(client.clone()), json!({"metadata": metadata})).await;
        grant(&client, &namespace).await;

        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut room = Self { client, namespace, asked, stop: None, controller: None };
        room.start(config);
        room
    }

    /// Starts a controller, as after a crash or an upgrade.
    fn start(&mut self, mut config: Config) {
        let namespace = self.namespace.clone();
        config.auth_info.impersonate = Some(format!("system:serviceaccount:{namespace}:pgset"));
        let log = Arc::clone(&self.asked);
        let counting = MapRequestLayer::new(move |request: axum::http::Request<Body>| {
            if !request.uri().query().unwrap_or_default().contains("watch=true") {
                log.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
            }
            request
        });
        let client = ClientBuilder::try_from(config).unwrap().with_layer(&counting).build();
        let settings = pgset::controller::Settings { namespace, identity: "tester".to_owned() };
        let (stop, stopped) = oneshot::channel::<()>();
        self.stop = Some(stop);
        self.controller = Some(tokio::spawn(pgset::controller::run(client, settings, async move {
            let _ = stopped.await;
        })));
    }

    /// Stops the controller, which gives its Lease back.
    async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.controller.take().unwrap().await.unwrap().unwrap();
        let lease = self.api::<Lease>().get("pgset-controller").await.unwrap();
        assert_eq!(lease.spec.unwrap().holder_identity, None, "the Lease is given back");
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The reasons and notes of the Events on a set.
    async fn events(&self, set: &str) -> Vec<(String, String)> {
        let events = self.api::<Event>().list(&ListParams::default()).await.unwrap();
        let on_set = |event: &Event| {
            event.reporting_controller.as_deref() == Some("pgset")
                && event.regarding.as_ref().and_then(|object| object.name.as_deref()) == Some(set)
        };
        let text = |event: Event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default());
        events.into_iter().filter(on_set).map(text).collect()
    }

    async fn was_told(&self, set: &str, reason: &str) -> bool {
        self.events(set).await.iter().any(|(told, _)| told == reason)
    }

    /// What the controller asked the API server for, besides watches and its own Lease, in this namespace.
    fn asked(&self) -> Vec<String> {
        let here = format!("/namespaces/{}/", self.namespace);
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|path| path.contains(&here) && !path.ends_with("/pgset-controller")).cloned().collect()
    }

    async fn close(mut self) {
        self.stop().await;
        let background = DeleteParams::background();
        Api::<ClusterRoleBinding>::all(self.client.clone()).delete(&self.namespace, &background).await.unwrap();
        for role in ["read", "write"] {
            let name = format!("{}-{role}", self.namespace);
            Api::<ClusterRole>::all(self.client.clone()).delete(&name, &background).await.unwrap();
        }
        Api::<Namespace>::all(self.client.clone()).delete(&self.namespace, &background).await.unwrap();
    }
}

async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
}

async fn merge<K>(api: &Api<K>, name: &str, patch: Value) -> K
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
}

/// The rights that the controller is installed with; those to write only in the test's own namespace.
async fn grant(client: &Client, namespace: &str) {
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let look = ["get", "list", "watch"];
    let read = json!([
        rule("apps", &["statefulsets"], &look),
        rule("", &["services", "serviceaccounts", "pods"], &look),
        rule("rbac.authorization.k8s.io", &["roles", "rolebindings"], &look),
        rule("coordination.k8s.io", &["leases"], &look),
        rule("discovery.k8s.io", &["endpointslices"], &look),
        rule("policy", &["poddisruptionbudgets"], &look),
    ]);
    let write = json!([
        rule("", &["services", "serviceaccounts"], &["create", "patch"]),
        rule("", &["pods"], &["patch", "update"]),
        rule("", &["secrets"], &["create"]),
        rule("rbac.authorization.k8s.io", &["roles", "rolebindings"], &["create", "patch"]),
        rule("coordination.k8s.io", &["leases"], &["create", "patch", "update"]),
        rule("discovery.k8s.io", &["endpointslices"], &["create", "patch", "update", "delete"]),
        rule("policy", &["poddisruptionbudgets"], &["create", "patch", "delete"]),
        rule("events.k8s.io", &["events"], &["create"]),
    ]);
    let roles = Api::<ClusterRole>::all(client.clone());
    create(&roles, json!({"metadata": {"name": format!("{namespace}-read")}, "rules": read})).await;
    create(&roles, json!({"metadata": {"name": format!("{namespace}-write")}, "rules": write})).await;
    let to = |role: &str| {
        json!({"metadata": {"name": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": format!("{namespace}-{role}")},
            "subjects": [{"kind": "ServiceAccount", "name": "pgset", "namespace": namespace}]})
    };
    create(&Api::<ClusterRoleBinding>::all(client.clone()), to("read")).await;
    create(&Api::<RoleBinding>::namespaced(client.clone(), namespace), to("write")).await;
}

/// A set as its user writes it, whose pods no node takes.
fn written(name: &str, replicas: u32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": name, "annotations": {"pgset.dev/inject": "enabled"}},
        "spec": {
            "replicas": replicas, "serviceName": name, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "nodeSelector": {"nowhere": "to-run"},
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "postgres", "image": image,
                        "volumeMounts": [{"name": "data", "mountPath": "/pgdata"}]}],
                },
            },
            "volumeClaimTemplates": [{"metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
        },
    })
}

/// The same as the webhook leaves it, be there one or not.
fn set(name: &str, replicas: u32, image: &str) -> Value {
    let mut object = written(name, replicas, image);
    let settings = Settings { agent_image: pgset::names::IMAGE.to_owned() };
    match inject(&Request { object: &object, old: None, settings: &settings }) {
        Outcome::Patched { patch, .. } => json_patch::patch(&mut object, &patch).unwrap(),
        other => panic!("{other:?}"),
    }
    object
}

/// Where the data goes with the set, so does the Lease; it does not at first.
async fn the_leases_owner_follows_the_data(room: &Room) {
    let retention = async |policy: &str| {
        let spec = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": policy}}});
        merge(&room.api::<StatefulSet>(), "pgset", spec).await;
    };
    let is_owned = async || !room.api::<Lease>().get("pgset-leader").await.unwrap().owner_references().is_empty();
    eventually!("the Lease has no owner", !is_owned().await);
    retention("Delete").await;
    eventually!("the Lease has an owner", is_owned().await);
    retention("Retain").await;
    eventually!("the Lease has none again", !is_owned().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_around_a_set_is_made_kept_right_and_taken_away_with_it() {
    let mut room = Room::open("whole").await;
    let sets = room.api::<StatefulSet>();
    let services = room.api::<Service>();
    create(&sets, set("pgset", 2, "postgres:17")).await;

    eventually!("both pods are there", room.api::<Pod>().list(&ListParams::default()).await.unwrap().items.len() == 2);
    for name in ["pgset", "pgset-master", "pgset-replica"] {
        eventually!(format!("Service {name}"), services.get_opt(name).await.unwrap().is_some());
    }
    eventually!("ServiceAccount", room.api::<ServiceAccount>().get_opt("pgset-sa").await.unwrap().is_some());
    eventually!("Role", room.api::<Role>().get_opt("pgset-sa").await.unwrap().is_some());
    eventually!("RoleBinding", room.api::<RoleBinding>().get_opt("pgset-sa").await.unwrap().is_some());
    eventually!("Lease", room.api::<Lease>().get_opt("pgset-leader").await.unwrap().is_some());
    eventually!("slice", room.api::<EndpointSlice>().get_opt("pgset-master").await.unwrap().is_some());
    eventually!("budget", room.api::<PodDisruptionBudget>().get_opt("pgset").await.unwrap().is_some());
    eventually!("Secret", room.api::<Secret>().get_opt("pgset-pgset-credentials").await.unwrap().is_some());
    eventually!("told what was made", room.was_told("pgset", "Created").await);
    let passwords = room.api::<Secret>().get("pgset-pgset-credentials").await.unwrap().data;

    // Healing.
    services.delete("pgset-master", &DeleteParams::default()).await.unwrap();
    let took = eventually!("a deleted Service is back", services.get_opt("pgset-master").await.unwrap().is_some());
    assert!(took < Duration::from_secs(1), "{took:?}");
    merge(&services, "pgset-replica", json!({"spec": {"selector": {"app": "web", "pgset.dev/role": null}}})).await;
    let right = json!({"pgset.dev/role": "replica", "pgset.dev/set": "pgset"});
    let selector = async |name: &str| json!(services.get(name).await.unwrap().spec.unwrap().selector.unwrap());
    let took = eventually!("an edited selector is right again", selector("pgset-replica").await == right);
    assert!(took < Duration::from_secs(1), "{took:?}");
    merge(&room.api::<Role>(), "pgset-sa", json!({"rules": [], "metadata": {"labels": null}})).await;
    let roles = room.api::<Role>();
    let members = async || {
        let role = roles.get("pgset-sa").await.unwrap();
        let granted = role.rules.unwrap_or_default();
        let pods = granted.into_iter().find(|rule| rule.resources.as_deref() == Some(&["pods".to_owned()]));
        pods.and_then(|rule| rule.resource_names).unwrap_or_default()
    };
    eventually!("an emptied Role is right again", members().await == ["pgset-0", "pgset-1"]);
    room.api::<Lease>().delete("pgset-leader", &DeleteParams::default()).await.unwrap();
    eventually!("a deleted Lease is back", room.api::<Lease>().get_opt("pgset-leader").await.unwrap().is_some());
    eventually!("told what was put right", room.was_told("pgset", "Restored").await);
    let edit = json!({"metadata": {"labels": {"app.kubernetes.io/name": "edited"}}});
    macro_rules! put_right {
        ($kind:ty, $name:literal) => {
            merge(&room.api::<$kind>(), $name, edit.clone()).await;
            eventually!(format!("an edited label on {} {} is right again", stringify!($kind), $name), {
                room.api::<$kind>().get($name).await.unwrap().labels()["app.kubernetes.io/name"] == "postgresql"
            });
        };
    }
    put_right!(ServiceAccount, "pgset-sa");
    put_right!(RoleBinding, "pgset-sa");
    put_right!(PodDisruptionBudget, "pgset");
    put_right!(EndpointSlice, "pgset-master");
    // As 0.1.0 made it: it would go with the set.
    let owner = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "pgset", "controller": true,
        "uid": sets.get("pgset").await.unwrap().uid().unwrap()}]);
    let older = json!({"metadata": {"ownerReferences": owner, "labels": {"app.kubernetes.io/name": "edited"}}});
    merge(&room.api::<Lease>(), "pgset-leader", older).await;

    // The Lease's owner of 0.1.0 is taken off by a controller that starts anew.
    room.stop().await;
    room.start(Config::infer().await.unwrap());
    the_leases_owner_follows_the_data(&room).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    // A controller that starts anew finds everything as it should be: it asks for the Secret, blindly, and for nothing else.
    room.stop().await;
    let before = room.asked().len();
    room.start(Config::infer().await.unwrap());
    eventually!("a new controller has looked", room.asked().len() > before);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(room.asked()[before..], [format!("POST /api/v1/namespaces/{}/secrets", room.namespace)]);

    // Scaling.
    merge(&sets, "pgset", json!({"spec": {"replicas": 3}})).await;
    eventually!("the Role names the third", members().await == ["pgset-0", "pgset-1", "pgset-2"]);
    merge(&sets, "pgset", json!({"spec": {"replicas": 1}})).await;
    eventually!("no budget for one", room.api::<PodDisruptionBudget>().get_opt("pgset").await.unwrap().is_none());
    eventually!("the Role names the only one", members().await == ["pgset-0"]);

    // Nothing to do, nothing asked. A member that renews the Lease is nothing to do.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = room.asked();
    for holder in ["pgset-0/a", "pgset-0/b", "pgset-0/c"] {
        merge(&room.api::<Lease>(), "pgset-leader", json!({"spec": {"holderIdentity": holder}})).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(room.asked()[before.len()..], [] as [String; 0]);

    // A Secret that is gone from a set that runs.
    room.api::<Secret>().delete("pgset-pgset-credentials", &DeleteParams::default()).await.unwrap();
    room.api::<Pod>().delete("pgset-0", &DeleteParams::default()).await.unwrap();
    eventually!(
        "a new pod finds a Secret",
        room.api::<Secret>().get_opt("pgset-pgset-credentials").await.unwrap().is_some()
    );
    assert_ne!(room.api::<Secret>().get("pgset-pgset-credentials").await.unwrap().data, passwords);
    eventually!("told of it", room.was_told("pgset", "CredentialsReplaced").await);

    sets.delete("pgset", &DeleteParams::default()).await.unwrap();
    eventually!("nothing is left", services.list(&ListParams::default()).await.unwrap().items.is_empty());
    assert!(
        room.api::<Secret>().get_opt("pgset-pgset-credentials").await.unwrap().is_some(),
        "the Secret outlives the set"
    );
    let holder = room.api::<Lease>().get("pgset-leader").await.unwrap().spec.and_then(|spec| spec.holder_identity);
    assert_eq!(holder.as_deref(), Some("pgset-0/c"), "so does the Lease, with all that it remembers");

    // The same name again: a new owner.
    create(&sets, set("pgset", 1, "postgres:17")).await;
    eventually!("the new set has its Services", services.get_opt("pgset-master").await.unwrap().is_some());
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_somebody_elses_is_used_judged_and_left_alone() {
    let room = Room::open("foreign").await;
    let services = room.api::<Service>();
    let service = |name: &str, selector: Value| json!({"metadata": {"name": name}, "spec": {"selector": selector, "ports": [{"port": 5432}]}});
    create(&room.api::<ServiceAccount>(), json!({"metadata": {"name": "my-db-sa"}})).await;
    create(&services, service("my-db", json!({"app": "my-db"}))).await;
    create(&services, service("my-db-master", json!({"app": "web"}))).await;
    let seen = services.get("my-db-master").await.unwrap().resource_version();
    create(&room.api::<StatefulSet>(), set("my-db", 2, "postgres:17")).await;

    eventually!("the replicas' Service is made", services.get_opt("my-db-replica").await.unwrap().is_some());
    eventually!("told that one can't serve", room.was_told("my-db", "ServiceUnfit").await);
    eventually!("told that one reaches replicas", room.was_told("my-db", "ServiceReachesReplicas").await);
    assert_eq!(services.get("my-db-master").await.unwrap().resource_version(), seen, "left alone");
    let account = room.api::<ServiceAccount>().get("my-db-sa").await.unwrap();
    assert_eq!(account.owner_references(), [], "the user's account stays the user's");

    merge(&services, "my-db", json!({"metadata": {"annotations": {"pgset.dev/follow": "master"}}})).await;
    let selector = async |name: &str| json!(services.get(name).await.unwrap().spec.unwrap().selector.unwrap());
    let followed = json!({"app": "my-db", "pgset.dev/role": "master"});
    eventually!("the Service follows", selector("my-db").await == followed);
    merge(&services, "my-db", json!({"spec": {"selector": {"pgset.dev/role": null}}})).await;
    eventually!("and goes on following", selector("my-db").await == followed);
    merge(&services, "my-db-replica", json!({"metadata": {"annotations": {"x": "y"}}})).await;

    services.delete("my-db-master", &DeleteParams::default()).await.unwrap();
    eventually!("the way is free for ours", services.get_opt("my-db-master").await.unwrap().is_some());

    // A set that no webhook has seen, as this namespace is left out, and one that it would have refused.
    create(&room.api::<StatefulSet>(), written("bare", 1, "postgres:17")).await;
    eventually!("told that it is not injected", room.was_told("bare", "NotInjected").await);
    assert!(services.get_opt("bare-master").await.unwrap().is_none());
    let mut wrong = written("wrong", 1, "postgres:17");
    wrong["metadata"]["annotations"]["pgset.dev/failover"] = json!("sometimes");
    create(&room.api::<StatefulSet>(), wrong).await;
    eventually!("told that it is wrong", room.was_told("wrong", "InvalidSet").await);
    for name in ["my-db", "bare", "wrong"] {
        for (reason, note) in room.events(name).await {
            println!("{name}: {reason}: {note}");
        }
    }
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_only_make_sets_gets_no_right_and_no_service_by_them() {
    let mut room = Room::open("attack").await;
    let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}]);
    create(&room.api::<Role>(), json!({"metadata": {"name": "x-sa"}, "rules": rules})).await;
    let mut attack = set("x", 1, "postgres:17");
    attack["metadata"]["annotations"]["pgset.dev/service-account"] = json!("attacker");
    attack["spec"]["template"]["spec"]["serviceAccountName"] = json!("attacker");
    attack["spec"]["serviceName"] = json!("victim-master");
    create(&room.api::<StatefulSet>(), attack).await;

    eventually!("the set has its own Service", room.api::<Service>().get_opt("x-master").await.unwrap().is_some());
    eventually!("told that the Role is not its", room.was_told("x", "NameTaken").await);
    eventually!("told that the Service is not its", room.was_told("x", "NoGoverningService").await);
    assert!(room.api::<RoleBinding>().get_opt("x-sa").await.unwrap().is_none(), "nobody is bound");
    assert!(room.api::<Service>().get_opt("victim-master").await.unwrap().is_none());

    room.api::<Role>().delete("x-sa", &DeleteParams::default()).await.unwrap();
    // Somebody else's objects are not watched: this controller looks again within a minute or two, a new one at once.
    room.stop().await;
    room.start(Config::infer().await.unwrap());
    let bindings = room.api::<RoleBinding>();
    eventually!("after its end, pgset's own is bound", bindings.get_opt("x-sa").await.unwrap().is_some());
    let role = room.api::<Role>().get("x-sa").await.unwrap();
    assert!(!json!(role.rules).to_string().contains("secrets"), "{:?}", role.rules);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_an_edit_and_whoever_insists_is_left_in_peace() {
    let room = Room::open("contest").await;
    let services = room.api::<Service>();
    create(&room.api::<StatefulSet>(), set("db", 1, "postgres:17")).await;
    eventually!("it has its Service", services.get_opt("db-master").await.unwrap().is_some());
    let says = |service: Service| {
        let spec = service.spec.unwrap();
        json!([spec.selector, spec.ports, spec.type_])
    };
    let said = async || says(services.get("db-master").await.unwrap());
    let right = said().await;
    let ports = json!([{"name": "postgres", "port": 5433, "targetPort": 5433}]);
    let edit = json!({"spec": {"type": "NodePort", "ports": ports, "selector": {"app": "web"}}});
    // By the answer: a moment later the controller may have undone it.
    assert_ne!(says(merge(&services, "db-master", edit).await), right);
    eventually!("of an edit nothing is left", said().await == right);

    let insist = json!({"spec": {"selector": {"app": "web"}}});
    eventually!("told that somebody insists", {
        merge(&services, "db-master", insist.clone()).await;
        room.was_told("db", "Contended").await
    });
    let patches = || room.asked().iter().filter(|path| path.starts_with("PATCH")).count();
    let before = patches();
    merge(&services, "db-master", json!({"spec": {"selector": {"another": "word"}}})).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(patches(), before, "peace");
    merge(&services, "db-master", json!({"spec": {"selector": {"app": null, "another": null}}})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    merge(&services, "db-master", insist).await;
    eventually!("once it was right it is kept right again", said().await == right);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_refused_is_told_and_not_tried_all_the_time() {
    let room = Room::open("quota").await;
    let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {"count/secrets": "0"}}});
    let quotas = room.api::<ResourceQuota>();
    create(&quotas, quota).await;
    let counted = async || quotas.get("none").await.unwrap().status.and_then(|status| status.hard).is_some();
    eventually!("the quota is in force", counted().await);
    create(&room.api::<StatefulSet>(), set("db", 1, "postgres:17")).await;
    eventually!("told why", room.was_told("db", "Refused").await);
    let (_, note) = room.events("db").await.into_iter().find(|(reason, _)| reason == "Refused").unwrap();
    assert!(note.contains("exceeded quota"), "{note}");
    eventually!("the rest is there", room.api::<Service>().get_opt("db-master").await.unwrap().is_some());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let tries = room.asked().iter().filter(|path| path.ends_with("/secrets")).count();
    assert_eq!(tries, 1);
    assert_eq!(room.events("db").await.iter().filter(|(reason, _)| reason == "Refused").count(), 1);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_contract_image_have_their_roles() {
    let room = Room::open("image").await;
    let image = set("pgset", 2, "crunchydata/crunchy-postgres:centos7-9.6-1.2.7");
    create(&room.api::<StatefulSet>(), image).await;
    let pods = room.api::<Pod>();
    let role = async |name: &str| pods.get_opt(name).await.unwrap().and_then(|pod| pod.labels().get("name").cloned());
    eventually!("the first is the master", role("pgset-0").await.as_deref() == Some("pgset-master"));
    eventually!("the second is not", role("pgset-1").await.as_deref() == Some("pgset-replica"));
    merge(&pods, "pgset-1", json!({"metadata": {"labels": {"name": "pgset-master"}}})).await;
    eventually!("nor may it say so", role("pgset-1").await.as_deref() == Some("pgset-replica"));
    pods.delete("pgset-0", &DeleteParams::default()).await.unwrap();
    eventually!("a new first is the master again", role("pgset-0").await.as_deref() == Some("pgset-master"));
    eventually!("told of it", room.was_told("pgset", "RoleLabelled").await);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_where_there_is_more_than_its_queue_holds() {
    let mut room = Room::open("crowd").await;
    eventually!("it acts", room.api::<Lease>().get_opt("pgset-controller").await.unwrap().is_some());
    room.stop().await;
    let accounts = room.api::<ServiceAccount>();
    let account = |number: usize| {
        let labels = json!({"app.kubernetes.io/managed-by": "pgset", "pgset.dev/set": format!("gone-{number}")});
        create(&accounts, json!({"metadata": {"name": format!("a-{number}"), "labels": labels}}))
    };
    futures::stream::iter(0..1100).for_each_concurrent(25, async |number| drop(account(number).await)).await;
    create(&room.api::<StatefulSet>(), set("db", 1, "postgres:17")).await;

    room.start(Config::infer().await.unwrap());
    eventually!("the set has its Service", room.api::<Service>().get_opt("db-master").await.unwrap().is_some());
    room.close().await;
}
