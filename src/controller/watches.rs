//! What the controller knows of the cluster: one watch for each kind, and which set a change is about.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::channel::mpsc;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, ApiResource, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::warn;

use super::index::{self, Index, index};
use super::kept::{Kept, KeptPod, Seen};
use super::plan::Member;
use super::shape::Shapes;
use super::view::View;
use crate::children::{Kind, Owner};
use crate::names;

/// How many objects a watch asks for at once as it begins: the page is in memory as a whole, twice.
const PAGE: u32 = 50;
/// How many changes may wait for the sets they are about.
const QUEUE: usize = 1024;

/// The sets that changes are about.
pub type Queue = mpsc::Receiver<ObjectRef<View>>;

/// Keeps what an event brings; answers the sets that it is about.
trait Take<K>: FnMut(Event<K>) -> Vec<ObjectRef<View>> + Send {}

impl<K, F: FnMut(Event<K>) -> Vec<ObjectRef<View>> + Send> Take<K> for F {}

/// The cluster as last seen.
#[derive(Clone)]
pub struct Stores {
    /// Every `StatefulSet` with an annotation of ours.
    pub sets: Store<View>,
    /// Every pod that is labelled as a member of a set.
    pods: Index<KeptPod>,
    /// What pgset made, by kind.
    children: BTreeMap<Kind, Index<Kept>>,
    /// The Services of other people: a user's own may reach a set.
    strangers: Index<Kept>,
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
        // One list after the other: the pages of all at once would be most of the memory that is ever needed.
        let turns = Arc::new(Semaphore::new(1));
        let shapes = Arc::new(Shapes::default());
        let everything = watcher::Config::default().page_size(PAGE);
        let made = everything.clone().labels(&format!("{}={}", names::label::MANAGED_BY, names::MANAGER));
        let members = everything.clone().labels(names::label::SET);

        let (take, sets, neighbours) = sets(Arc::clone(&shapes));
        tasks.spawn(follow(Api::all(client.clone()), everything.clone(), take, sender.clone(), Arc::clone(&turns)));
        let (take, pods) = pods(Arc::clone(&shapes));
        tasks.spawn(follow(Api::all(client.clone()), members, take, sender.clone(), Arc::clone(&turns)));
        let (take, services, strangers) = services(Arc::clone(&shapes), neighbours);
        let api = Api::all_with(client.clone(), &Kind::Service);
        tasks.spawn(follow(api, everything, take, sender.clone(), Arc::clone(&turns)));

        let mut children = BTreeMap::from([(Kind::Service, services)]);
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Service) {
            let (take, index) = made_for_sets(kind, Arc::clone(&shapes));
            children.insert(kind, index);
            tasks.spawn(follow(
                Api::all_with(client.clone(), &kind),
                made.clone(),
                take,
                sender.clone(),
                Arc::clone(&turns),
            ));
        }
        (Self { sets, pods, children, strangers }, queue, tasks)
    }

    /// Waits until every watch has seen what there is.
    pub async fn ready(&self) -> Result<(), Ended> {
        self.sets.wait_until_ready().await.map_err(|_| Ended)?;
        self.pods.ready().await.map_err(|index::Ended| Ended)?;
        for index in self.children.values() {
            index.ready().await.map_err(|index::Ended| Ended)?;
        }
        Ok(())
    }

    /// What is known under a name; of the kinds that are watched by label, somebody else's object is not.
    #[must_use]
    pub fn child(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        let ours = self.children.get(&kind)?.get(namespace, name);
        let any = ours.or_else(|| if kind == Kind::Service { self.strangers.get(namespace, name) } else { None })?;
        Some(any.value(namespace))
    }

    /// The Services of a namespace that pgset did not make.
    #[must_use]
    pub fn foreign_services(&self, namespace: &str) -> Vec<Value> {
        self.strangers.starting_with(namespace, "").iter().map(|(_, service)| service.value(namespace)).collect()
    }

    /// The pods that the set itself owns, in the order of their names. Kubernetes names them after the set.
    #[must_use]
    pub fn members(&self, owner: &Owner) -> Vec<Member> {
        let alike = self.pods.starting_with(&owner.namespace, &format!("{}-", owner.name));
        alike.into_iter().filter(|(_, pod)| pod.is_of(&owner.uid)).map(|(name, pod)| pod.member(name)).collect()
    }
}

/// Runs one watch for ever: hands on what happens, and queues the sets that it is about. Its first list waits for its turn.
async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    mut take: impl Take<K>,
    mut queue: mpsc::Sender<ObjectRef<View>>,
    turns: Arc<Semaphore>,
) where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let mut turn = turns.acquire().await.ok();
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                if matches!(event, Event::InitDone) {
                    drop(turn.take());
                }
                for set in take(event) {
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

/// Keeps the annotated `StatefulSets`, as a whole and by their places.
fn sets(shapes: Arc<Shapes>) -> (impl Take<View>, Store<View>, Index<()>) {
    let mut writer = Writer::new(());
    let store = writer.as_reader();
    let (mut places, index) = index();
    let take = move |event: Event<View>| {
        let Some(event) = annotated(event, &shapes) else { return Vec::new() };
        writer.apply_watcher_event(&event);
        places.apply(&event, |_| Some(()));
        // Of a deleted one nothing is left to be looked at.
        if let Event::Apply(set) | Event::InitApply(set) = &event { vec![ObjectRef::from_obj(set)] } else { Vec::new() }
    };
    (take, store, index)
}

/// Keeps the pods that are labelled as members.
fn pods(shapes: Arc<Shapes>) -> (impl Take<PartialObjectMeta<Pod>>, Index<KeptPod>) {
    let (mut writer, index) = index();
    let take = move |event: Event<PartialObjectMeta<Pod>>| {
        writer.apply(&event, |pod| KeptPod::new(pod, &shapes));
        let set = |pod: &PartialObjectMeta<Pod>| place(pod.labels().get(names::label::SET)?, pod);
        touched(&event).and_then(set).into_iter().collect()
    };
    (take, index)
}

/// Keeps what pgset made of one kind.
fn made_for_sets(kind: Kind, shapes: Arc<Shapes>) -> (impl Take<Seen>, Index<Kept>) {
    let (mut writer, index) = index();
    let take = move |event: Event<Seen>| {
        writer.apply(&event, |child| Some(child.keep(&shapes)));
        // A master renews its Lease every few seconds: only its disappearance is news.
        let news = if kind == Kind::Lease { gone(&event) } else { touched(&event) };
        news.and_then(set_of).into_iter().collect()
    };
    (take, index)
}

/// Keeps every Service: those that pgset made, and those of other people.
fn services(shapes: Arc<Shapes>, sets: Index<()>) -> (impl Take<Seen>, Index<Kept>, Index<Kept>) {
    let (mut writer, ours) = index();
    let (mut other, strangers) = index();
    let take = move |event: Event<Seen>| {
        writer.apply(&event, |service| service.is_ours().then(|| service.keep(&shapes)));
        other.apply(&event, |service| (!service.is_ours()).then(|| service.keep(&shapes)));
        match touched(&event) {
            // Its name is free for another set as well.
            Some(service) if service.is_ours() && gone(&event).is_none() => set_of(service).into_iter().collect(),
            // A user's own Service may reach any set of its namespace.
            Some(service) => neighbours(&sets, service),
            None => Vec::new(),
        }
    };
    (take, ours, strangers)
}

/// An event as it is for one who knows annotated sets only.
fn annotated(event: Event<View>, shapes: &Shapes) -> Option<Event<View>> {
    match event {
        Event::InitApply(set) if !set.is_annotated() => None,
        Event::InitApply(set) => Some(Event::InitApply(set.keep(shapes))),
        Event::Apply(set) if !set.is_annotated() => Some(Event::Delete(set)),
        Event::Apply(set) => Some(Event::Apply(set.keep(shapes))),
        Event::Delete(_) | Event::Init | Event::InitDone => Some(event),
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
fn set_of(object: &Seen) -> Option<ObjectRef<View>> {
    place(object.set()?, object)
}

/// The set of that name in an object's namespace.
fn place(set: &str, object: &impl ResourceExt) -> Option<ObjectRef<View>> {
    Some(ObjectRef::new(set).within(object.namespace()?.as_str()))
}

/// The annotated sets of an object's namespace.
fn neighbours(sets: &Index<()>, object: &Seen) -> Vec<ObjectRef<View>> {
    let Some(namespace) = object.namespace() else { return Vec::new() };
    let near = sets.starting_with(&namespace, "");
    near.into_iter().map(|(name, ())| ObjectRef::new(&name).within(&namespace)).collect()
}

#[cfg(test)]
#[path = "watches_tests.rs"]
mod tests;
