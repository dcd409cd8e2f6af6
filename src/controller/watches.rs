//! What the controller knows of the cluster: one watch for each kind, and which set a change is about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use futures::channel::mpsc;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::warn;

use super::cache::index::{self, Index, index};
use super::cache::interner::Interner;
use super::cache::labels::{LabelHash, LabelIndex, Place, place};
use super::cache::object::{CachedObject, is_made_for_a_set, set_of};
use super::cache::pod::{CachedPod, Member};
use super::cache::set::{CachedSet, SetState};
use super::selection;
use crate::children::{Kind, Owner, route};
use crate::names;
use crate::set::Set;

/// How many objects a watch asks for at once as it begins: the page is in memory as a whole, twice.
const PAGE: u32 = 50;
/// What a set's `serviceName` is filed under. No label has such a key.
const SERVICE_NAME: &str = " serviceName";
/// How many changes may wait for the sets they are about.
const QUEUE: usize = 1024;

/// The sets that changes are about.
pub type Queue = mpsc::Receiver<Place>;

/// Keeps what an event brings; answers the sets that it is about.
trait Take<K>: FnMut(Event<K>) -> Vec<Place> + Send {}

impl<K, F: FnMut(Event<K>) -> Vec<Place> + Send> Take<K> for F {}

/// The cluster as last seen.
#[derive(Clone)]
pub struct Stores {
    /// Every `StatefulSet` with an annotation of ours.
    sets: Index<Arc<CachedSet>>,
    /// Every pod that is labelled as a member of a set.
    pods: Index<CachedPod>,
    /// What pgset made, by kind.
    children: BTreeMap<Kind, Index<CachedObject>>,
    /// The Services of other people: a user's own may reach a set.
    foreign_services: Index<CachedObject>,
    /// The same, each by the rarest label in its selector.
    selectors: Shared,
}

/// Written by one watch, read by all.
type Shared = Arc<RwLock<LabelIndex>>;

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
        Kind::EndpointSlice => ApiResource::erase::<EndpointSlice>(&()),
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
        let interner = Arc::new(Interner::default());
        let everything = watcher::Config::default().page_size(PAGE);
        let by_us = format!("{}={}", names::label::MANAGED_BY, names::MANAGER);
        let made = everything.clone().labels(&by_us);
        // The members' slices, and those of Kubernetes' for the same Services; not those of all the other Services.
        let slices = everything.clone().labels(&format!("{by_us},{}", names::slice::SKIP_MIRROR));
        let members = everything.clone().labels(names::label::SET);

        let (take, sets, labels) = sets();
        let api = Api::all_with(client.clone(), &ApiResource::erase::<StatefulSet>(&()));
        tasks.spawn(follow(api, everything.clone(), take, sender.clone(), Arc::clone(&turns)));
        let (take, pods) = pods(Arc::clone(&interner));
        tasks.spawn(follow(Api::all(client.clone()), members, take, sender.clone(), Arc::clone(&turns)));
        let (take, services, foreign_services, selectors) = services(Arc::clone(&interner), labels);
        let api = Api::all_with(client.clone(), &resource(Kind::Service));
        tasks.spawn(follow(api, everything, take, sender.clone(), Arc::clone(&turns)));

        let mut children = BTreeMap::from([(Kind::Service, services)]);
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Service) {
            let (take, index) = made_for_sets(kind, Arc::clone(&interner));
            children.insert(kind, index);
            tasks.spawn(follow(
                Api::all_with(client.clone(), &resource(kind)),
                if kind == Kind::EndpointSlice { slices.clone() } else { made.clone() },
                take,
                sender.clone(),
                Arc::clone(&turns),
            ));
        }
        (Self { sets, pods, children, foreign_services, selectors }, queue, tasks)
    }

    /// Waits until every watch has seen what there is.
    pub async fn ready(&self) -> Result<(), Ended> {
        self.sets.ready().await.map_err(|index::Ended| Ended)?;
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
        let foreign = || if kind == Kind::Service { self.foreign_services.get(namespace, name) } else { None };
        let any = ours.or_else(foreign)?;
        Some(any.value(namespace))
    }

    /// The slices behind the set's Service to the master that have other names than the members' own.
    #[must_use]
    pub fn other_slices(&self, owner: &Owner) -> Vec<Value> {
        let (service, namespace) = (names::master(&owner.name), &owner.namespace);
        let alike =
            self.children.get(&Kind::EndpointSlice).map(|it| it.starting_with(namespace, &format!("{service}-")));
        let slices = alike.unwrap_or_default().into_iter().map(|(_, slice)| slice.value(namespace));
        slices.filter(|slice| route::is_behind(slice, &service)).collect()
    }

    /// The annotated `StatefulSet` of a name.
    #[must_use]
    pub fn set(&self, namespace: &str, name: &str) -> Option<Arc<CachedSet>> {
        self.sets.get(namespace, name)
    }

    /// The Services that pgset did not make and that can choose the set's pods or have a name of its: no others are read.
    #[must_use]
    pub fn foreign_services(&self, set: &Set) -> Vec<Value> {
        let mut places = self.selectors.read().unwrap_or_else(PoisonError::into_inner).with_any(&labels_of(set));
        let named = [names::master(&set.name), names::replica(&set.name), set.headless_service.clone()];
        places.extend(named.map(|name| place(&set.namespace, &name)));
        let service = |place: Place| {
            let (namespace, name) = place.split_once('/')?;
            Some(self.foreign_services.get(namespace, name)?.value(namespace))
        };
        places.into_iter().filter_map(service).collect()
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
    mut queue: mpsc::Sender<Place>,
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

/// Keeps the annotated `StatefulSets`, as a whole and by their pods' labels.
fn sets() -> (impl Take<DynamicObject>, Index<Arc<CachedSet>>, Shared) {
    let (mut writer, sets) = index();
    let labels = Shared::default();
    let written = Arc::clone(&labels);
    let take = move |event: Event<DynamicObject>| {
        let set = live(&event).and_then(CachedSet::new).map(Arc::new);
        writer.apply(&event, |_| set.clone());
        let hashes = |_: &LabelIndex, _: &DynamicObject| set.as_deref().map(hashes_of).unwrap_or_default();
        written.write().unwrap_or_else(PoisonError::into_inner).apply(&event, hashes);
        // Of one that is none any more nothing is left to be looked at.
        let object = live(&event).filter(|_| set.is_some());
        object.and_then(|object| place_in(&object.name_any(), object)).into_iter().collect()
    };
    (take, sets, labels)
}

/// What a set is found by: what selectors say that choose its pods, and its `serviceName`.
fn hashes_of(set: &CachedSet) -> Vec<LabelHash> {
    match &set.state {
        SetState::Injected(set) | SetState::NotInjected(set) => {
            let mut hashes = labels_of(set);
            hashes.push(LabelHash::new(&set.namespace, SERVICE_NAME, &set.headless_service));
            hashes
        }
        SetState::Other | SetState::Leaving | SetState::Invalid(_) => Vec::new(),
    }
}

/// The labels that the set's pods have or may get.
fn labels_of(set: &Set) -> Vec<LabelHash> {
    let role = &set.role_label;
    let fixed = set.pod_labels.iter().filter(|(key, _)| **key != role.key);
    let roles = [(&role.key, &role.master), (&role.key, &role.replica)];
    fixed.chain(roles).map(|(key, value)| LabelHash::new(&set.namespace, key, value)).collect()
}

/// Keeps the pods that are labelled as members.
fn pods(interner: Arc<Interner>) -> (impl Take<Pod>, Index<CachedPod>) {
    let (mut writer, index) = index();
    let take = move |event: Event<Pod>| {
        writer.apply(&event, |pod| CachedPod::new(pod, &interner));
        touched(&event).and_then(place_of_set).into_iter().collect()
    };
    (take, index)
}

/// Keeps what pgset made of one kind.
fn made_for_sets(kind: Kind, interner: Arc<Interner>) -> (impl Take<DynamicObject>, Index<CachedObject>) {
    let (mut writer, index) = index();
    let take = move |event: Event<DynamicObject>| {
        writer.apply(&event, |child| Some(CachedObject::new(child, &interner)));
        // A master renews its Lease every few seconds: only its disappearance is news.
        let news = if kind == Kind::Lease { gone(&event) } else { touched(&event) };
        news.and_then(place_of_set).into_iter().collect()
    };
    (take, index)
}

/// Keeps every Service: those that pgset made, and those of other people, which are found by their selectors as well.
fn services(
    interner: Arc<Interner>,
    sets: Shared,
) -> (impl Take<DynamicObject>, Index<CachedObject>, Index<CachedObject>, Shared) {
    let (mut ours, services) = index();
    let (mut foreign, foreign_services) = index::<CachedObject>();
    let selectors = Shared::default();
    let (known, written) = (foreign_services.clone(), Arc::clone(&selectors));
    let take = move |event: Event<DynamicObject>| {
        let service = touched(&event);
        let is_ours = service.is_some_and(is_made_for_a_set);
        let before = service.and_then(|it| known.get(&it.namespace()?, &it.name_any()));
        let cached = live(&event).map(|it| CachedObject::new(it, &interner));
        let after = cached.clone().filter(|_| !is_ours);
        // Most of what happens to a Service is about its status or its addresses.
        let is_news = !matches!((&before, &after), (Some(before), Some(after)) if before.says_the_same(after));
        ours.apply(&event, |_| cached.filter(|_| is_ours));
        foreign.apply(&event, |_| after.clone());
        let selects = |index: &LabelIndex, service: &DynamicObject| {
            let selector = after.as_ref().map(|cached| selector_of(cached, service)).unwrap_or_default();
            index.rarest(&selector).into_iter().collect()
        };
        written.write().unwrap_or_else(PoisonError::into_inner).apply(&event, selects);
        let Some(service) = service.filter(|_| is_news) else { return Vec::new() };
        let sets = sets.read().unwrap_or_else(PoisonError::into_inner);
        let mut about = namesakes(&sets, service);
        about.extend(place_of_set(service).filter(|_| is_ours));
        // Those that it could choose before have something to hear as well.
        about.extend([before, after].iter().flatten().flat_map(|it| sets.with_all(&selector_of(it, service))));
        about.into_iter().collect()
    };
    (take, services, foreign_services, selectors)
}

/// The labels that a Service's selector asks for.
fn selector_of(cached: &CachedObject, service: &DynamicObject) -> Vec<LabelHash> {
    let namespace = service.namespace().unwrap_or_default();
    let selector = selection::Service::read(&cached.value(&namespace)).selector;
    selector.iter().map(|(key, value)| LabelHash::new(&namespace, key, value)).collect()
}

/// The sets that have or want a Service of that name.
fn namesakes(sets: &LabelIndex, service: &DynamicObject) -> BTreeSet<Place> {
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    let own = names::set_of_role_service(&name).map(|set| place(&namespace, set)).filter(|place| sets.has(place));
    own.into_iter().chain(sets.with_all(&[LabelHash::new(&namespace, SERVICE_NAME, &name)])).collect()
}

fn touched<K>(event: &Event<K>) -> Option<&K> {
    live(event).or_else(|| gone(event))
}

fn live<K>(event: &Event<K>) -> Option<&K> {
    if let Event::Apply(object) | Event::InitApply(object) = event { Some(object) } else { None }
}

fn gone<K>(event: &Event<K>) -> Option<&K> {
    if let Event::Delete(object) = event { Some(object) } else { None }
}

/// The set that an object belongs to, by its label.
fn place_of_set(object: &impl ResourceExt) -> Option<Place> {
    place_in(set_of(object)?, object)
}

/// The place of a name in an object's namespace.
fn place_in(name: &str, object: &impl ResourceExt) -> Option<Place> {
    Some(place(object.namespace()?.as_str(), name))
}

#[cfg(test)]
#[path = "watches_tests.rs"]
mod tests;
