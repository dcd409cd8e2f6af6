//! What the controller knows of the cluster: one watch for each kind, and which set a change is about.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::channel::mpsc;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, ApiResource, PartialObjectMeta};
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Client, Resource, ResourceExt};
use tokio::task::JoinSet;
use tracing::warn;

use super::kept::{Kept, Type};
use crate::children::Kind;
use crate::names;

/// How many objects a watch asks for at once as it begins: the page is in memory as a whole.
const PAGE: u32 = 100;
/// How many changes may wait for the sets they are about.
const QUEUE: usize = 1024;

/// The sets that changes are about.
pub type Queue = mpsc::Receiver<ObjectRef<Kept>>;

/// The cluster as last seen.
#[derive(Clone)]
pub struct Stores {
    /// Every `StatefulSet`; of those without an annotation of ours only the name.
    pub sets: Store<Kept>,
    /// The metadata of every pod that is a member of a set.
    pub pods: Store<PartialObjectMeta<Pod>>,
    /// Every Service, because a user's own may reach a set, and of the other kinds what pgset made.
    pub children: BTreeMap<Kind, Store<Kept>>,
}

/// A watch ended, which none ever should.
#[derive(Debug, thiserror::Error)]
#[error("a watch ended before it had seen everything")]
pub struct Ended;

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

        let writer = Writer::new(Type::Set);
        let sets = writer.as_reader();
        let api = Api::all_with(client.clone(), &Type::Set);
        let everything = watcher::Config::default().page_size(PAGE);
        tasks.spawn(follow(api, everything.clone(), writer, trim_set, sender.clone(), |event| {
            touched(event).map(|set| ObjectRef::from_obj_with(set, Type::Set)).into_iter().collect()
        }));

        let writer = Writer::<PartialObjectMeta<Pod>>::new(());
        let pods = writer.as_reader();
        let config = everything.clone().labels(names::label::SET);
        tasks.spawn(follow(Api::all(client.clone()), config, writer, trim_pod, sender.clone(), |event| {
            touched(event).and_then(set_of_pod).into_iter().collect()
        }));

        let mut children = BTreeMap::new();
        for kind in Kind::ALL {
            let writer = Writer::new(Type::Child(kind));
            children.insert(kind, writer.as_reader());
            let api = Api::all_with(client.clone(), &Type::Child(kind));
            let made = format!("{}={}", names::label::MANAGED_BY, names::MANAGER);
            let everything = everything.clone();
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
    pub fn child(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Kept>> {
        self.children.get(&kind)?.get(&ObjectRef::new_with(name, Type::Child(kind)).within(namespace))
    }

    /// Every Service of a namespace.
    #[must_use]
    pub fn services(&self, namespace: &str) -> Vec<Arc<Kept>> {
        let services = self.children.get(&Kind::Service);
        services
            .map(|s| s.state_filter(|service| service.meta().namespace.as_deref() == Some(namespace)))
            .unwrap_or_default()
    }
}

/// Runs one watch for ever: keeps the store, and queues the sets that a change is about.
async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    writer: Writer<K>,
    trim: fn(&mut K),
    mut queue: mpsc::Sender<ObjectRef<Kept>>,
    about: impl Fn(&Event<K>) -> Vec<ObjectRef<Kept>>,
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

/// The set that an object of ours belongs to, by its label.
fn set_of(object: &Kept) -> Option<ObjectRef<Kept>> {
    Some(ObjectRef::new_with(object.set()?, Type::Set).within(object.namespace()?.as_str()))
}

/// The set that a member belongs to, by its label.
fn set_of_pod(pod: &PartialObjectMeta<Pod>) -> Option<ObjectRef<Kept>> {
    let set = pod.labels().get(names::label::SET)?;
    Some(ObjectRef::new_with(set, Type::Set).within(pod.namespace()?.as_str()))
}

/// The annotated sets of an object's namespace.
fn neighbours(sets: &Store<Kept>, object: &Kept) -> Vec<ObjectRef<Kept>> {
    let near = |set: &Kept| set.is_annotated() && set.meta().namespace == object.meta().namespace;
    sets.state_filter(near).iter().map(|set| ObjectRef::from_obj_with(set.as_ref(), Type::Set)).collect()
}

/// A set without our annotations is nothing but a name.
fn trim_set(set: &mut Kept) {
    if !set.is_annotated() {
        set.forget_rest();
    }
}

fn trim_child(child: &mut Kept) {
    child.forget_identity();
}

fn trim_pod(pod: &mut PartialObjectMeta<Pod>) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
}
