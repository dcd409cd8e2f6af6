//! What the controller knows of the cluster: one watch for each kind, and which set a change is about.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::channel::mpsc;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Client, Resource, ResourceExt};
use serde_json::Value;
use tokio::task::JoinSet;
use tracing::warn;

use crate::children::Kind;
use crate::names;

/// How many changes may wait for the sets they are about.
const QUEUE: usize = 1024;

/// The sets that changes are about.
pub type Queue = mpsc::Receiver<ObjectRef<DynamicObject>>;

/// The cluster as last seen.
#[derive(Clone)]
pub struct Stores {
    /// Every `StatefulSet`; of those without an annotation of ours only the name.
    pub sets: Store<DynamicObject>,
    /// The metadata of every pod that is a member of a set.
    pub pods: Store<PartialObjectMeta<Pod>>,
    /// Every Service, because a user's own may reach a set, and of the other kinds what pgset made.
    pub children: BTreeMap<Kind, Store<DynamicObject>>,
}

/// A watch ended, which none ever should.
#[derive(Debug, thiserror::Error)]
#[error("a watch ended before it had seen everything")]
pub struct Ended;

/// The resource behind `StatefulSet`.
#[must_use]
pub fn stateful_set() -> ApiResource {
    ApiResource::erase::<StatefulSet>(&())
}

/// The resource behind a kind.
#[must_use]
pub fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
        Kind::Role => ApiResource::erase::<Role>(&()),
        Kind::RoleBinding => ApiResource::erase::<RoleBinding>(&()),
        Kind::Lease => ApiResource::erase::<Lease>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
    }
}

impl Stores {
    /// Starts every watch in a task of its own; they end with the returned set of tasks.
    pub fn start(client: &Client) -> (Self, Queue, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let (sender, queue) = mpsc::channel(QUEUE);

        let writer = Writer::new(stateful_set());
        let sets = writer.as_reader();
        let api = Api::all_with(client.clone(), &stateful_set());
        tasks.spawn(follow(api, watcher::Config::default(), writer, trim_set, sender.clone(), |event| {
            touched(event).map(|set| ObjectRef::from_obj_with(set, stateful_set())).into_iter().collect()
        }));

        let writer = Writer::<PartialObjectMeta<Pod>>::new(());
        let pods = writer.as_reader();
        let config = watcher::Config::default().labels(names::label::SET);
        tasks.spawn(follow(Api::all(client.clone()), config, writer, trim_pod, sender.clone(), |event| {
            touched(event).and_then(set_of).into_iter().collect()
        }));

        let mut children = BTreeMap::new();
        for kind in Kind::ALL {
            let writer = Writer::new(resource(kind));
            children.insert(kind, writer.as_reader());
            let api = Api::all_with(client.clone(), &resource(kind));
            let made = format!("{}={}", names::label::MANAGED_BY, names::MANAGER);
            let everything = watcher::Config::default();
            let config = if kind == Kind::Service { everything } else { everything.labels(&made) };
            let sets = sets.clone();
            tasks.spawn(follow(api, config, writer, trim_child, sender.clone(), move |event| match kind {
                // A user's own Service may reach any set of its namespace.
                Kind::Service => touched(event).map(|service| neighbours(&sets, service)).unwrap_or_default(),
                // A master renews its Lease every few seconds: only its disappearance is news.
                Kind::Lease => gone(event).and_then(set_of).into_iter().collect(),
                _ => touched(event).and_then(set_of).into_iter().collect(),
            }));
        }
        (Self { sets, pods, children }, queue, tasks)
    }

    /// Waits until every watch has seen what there is.
    pub async fn ready(&self) -> Result<(), Ended> {
        self.sets.wait_until_ready().await.map_err(|_| Ended)?;
        self.pods.wait_until_ready().await.map_err(|_| Ended)?;
        for store in self.children.values() {
            store.wait_until_ready().await.map_err(|_| Ended)?;
        }
        Ok(())
    }

    /// What is known under a name; of the kinds that are watched by label, somebody else's object is not.
    #[must_use]
    pub fn child(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<DynamicObject>> {
        self.children.get(&kind)?.get(&ObjectRef::new_with(name, resource(kind)).within(namespace))
    }

    /// Every Service of a namespace.
    #[must_use]
    pub fn services(&self, namespace: &str) -> Vec<Arc<DynamicObject>> {
        let services = self.children.get(&Kind::Service);
        services
            .map(|s| s.state_filter(|service| service.metadata.namespace.as_deref() == Some(namespace)))
            .unwrap_or_default()
    }
}

/// Runs one watch for ever: keeps the store, and queues the sets that a change is about.
async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    writer: Writer<K>,
    trim: fn(&mut K),
    mut queue: mpsc::Sender<ObjectRef<DynamicObject>>,
    about: impl Fn(&Event<K>) -> Vec<ObjectRef<DynamicObject>>,
) where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone + Send + Sync,
{
    let stream = reflector(writer, watcher(api, config).default_backoff().modify(trim));
    let mut stream = std::pin::pin!(stream.into_stream());
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                for set in about(&event) {
                    if futures::SinkExt::send(&mut queue, set).await.is_err() {
                        return;
                    }
                }
            }
            // The watcher itself tries again, with growing pauses.
            Err(error) => warn!(%error, "a watch failed and starts again"),
        }
    }
}

fn touched<K>(event: &Event<K>) -> Option<&K> {
    match event {
        Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => Some(object),
        Event::Init | Event::InitDone => None,
    }
}

fn gone<K>(event: &Event<K>) -> Option<&K> {
    if let Event::Delete(object) = event { Some(object) } else { None }
}

/// The set that a member or an object of ours belongs to, by its label.
fn set_of<K: ResourceExt>(object: &K) -> Option<ObjectRef<DynamicObject>> {
    let set = object.labels().get(names::label::SET)?;
    Some(ObjectRef::new_with(set, stateful_set()).within(object.namespace()?.as_str()))
}

/// The annotated sets of an object's namespace.
fn neighbours(sets: &Store<DynamicObject>, object: &DynamicObject) -> Vec<ObjectRef<DynamicObject>> {
    let near = |set: &DynamicObject| set.metadata.namespace == object.metadata.namespace && set.data != Value::Null;
    sets.state_filter(near).iter().map(|set| ObjectRef::from_obj_with(set.as_ref(), stateful_set())).collect()
}

/// A set without our annotations is nothing but a name; of the others, everything but the noise.
fn trim_set(set: &mut DynamicObject) {
    set.metadata.managed_fields = None;
    let ours = set.annotations().keys().any(|key| key.starts_with(names::PREFIX));
    if ours {
        drop_field(&mut set.data, "status");
        if let Some(annotations) = &mut set.metadata.annotations {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    } else {
        set.data = Value::Null;
        set.metadata.annotations = None;
        set.metadata.labels = None;
    }
}

fn trim_child(child: &mut DynamicObject) {
    child.metadata.managed_fields = None;
    if let Some(annotations) = &mut child.metadata.annotations {
        annotations.retain(|key, _| key == names::annotation::FOLLOW);
    }
    drop_field(&mut child.data, "status");
}

fn trim_pod(pod: &mut PartialObjectMeta<Pod>) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
}

fn drop_field(data: &mut Value, field: &str) {
    if let Some(fields) = data.as_object_mut() {
        fields.remove(field);
    }
}
