//! What the controller knows of the cluster: one watch for each kind, and which set a change is about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use futures::channel::mpsc;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, ApiResource};
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
use super::pods::SeenPod;
use super::selection;
use super::shape::Shapes;
use super::view::{SetState, View};
use super::words::{Place, Word, Words, place};
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
    pub sets: Store<View>,
    /// Every pod that is labelled as a member of a set.
    pods: Index<KeptPod>,
    /// What pgset made, by kind.
    children: BTreeMap<Kind, Index<Kept>>,
    /// The Services of other people: a user's own may reach a set.
    strangers: Index<Kept>,
    /// The same, each by the rarest label in its selector.
    selectors: Shared,
}

/// Written by one watch, read by all.
type Shared = Arc<RwLock<Words>>;

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
        let shapes = Arc::new(Shapes::default());
        let everything = watcher::Config::default().page_size(PAGE);
        let by_us = format!("{}={}", names::label::MANAGED_BY, names::MANAGER);
        let made = everything.clone().labels(&by_us);
        // The members' slices, and those of Kubernetes' for the same Services; not those of all the other Services.
        let slices = everything.clone().labels(&format!("{by_us},{}", names::slice::SKIP_MIRROR));
        let members = everything.clone().labels(names::label::SET);

        let (take, sets, labels) = sets(Arc::clone(&shapes));
        tasks.spawn(follow(Api::all(client.clone()), everything.clone(), take, sender.clone(), Arc::clone(&turns)));
        let (take, pods) = pods(Arc::clone(&shapes));
        tasks.spawn(follow(Api::all(client.clone()), members, take, sender.clone(), Arc::clone(&turns)));
        let (take, services, strangers, selectors) = services(Arc::clone(&shapes), labels);
        let api = Api::all_with(client.clone(), &Kind::Service);
        tasks.spawn(follow(api, everything, take, sender.clone(), Arc::clone(&turns)));

        let mut children = BTreeMap::from([(Kind::Service, services)]);
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Service) {
            let (take, index) = made_for_sets(kind, Arc::clone(&shapes));
            children.insert(kind, index);
            tasks.spawn(follow(
                Api::all_with(client.clone(), &kind),
                if kind == Kind::EndpointSlice { slices.clone() } else { made.clone() },
                take,
                sender.clone(),
                Arc::clone(&turns),
            ));
        }
        (Self { sets, pods, children, strangers, selectors }, queue, tasks)
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

    /// The slices behind the set's Service to the master that have other names than the members' own.
    #[must_use]
    pub fn other_slices(&self, owner: &Owner) -> Vec<Value> {
        let (service, namespace) = (names::master(&owner.name), &owner.namespace);
        let alike =
            self.children.get(&Kind::EndpointSlice).map(|it| it.starting_with(namespace, &format!("{service}-")));
        let slices = alike.unwrap_or_default().into_iter().map(|(_, kept)| kept.value(namespace));
        slices.filter(|slice| route::is_behind(slice, &service)).collect()
    }

    /// The annotated `StatefulSet` at a place.
    #[must_use]
    pub fn set(&self, place: &str) -> Option<Arc<View>> {
        let (namespace, name) = place.split_once('/')?;
        self.sets.get(&ObjectRef::new(name).within(namespace))
    }

    /// The Services that pgset did not make and that can choose the set's pods or have a name of its: no others are read.
    #[must_use]
    pub fn foreign_services(&self, set: &Set) -> Vec<Value> {
        let mut places = self.selectors.read().unwrap_or_else(PoisonError::into_inner).with_any(&label_words(set));
        let named = [names::master(&set.name), names::replica(&set.name), set.headless_service.clone()];
        places.extend(named.map(|name| place(&set.namespace, &name)));
        let service = |place: Place| {
            let (namespace, name) = place.split_once('/')?;
            Some(self.strangers.get(namespace, name)?.value(namespace))
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
fn sets(shapes: Arc<Shapes>) -> (impl Take<View>, Store<View>, Shared) {
    let mut writer = Writer::new(());
    let store = writer.as_reader();
    let labels = Shared::default();
    let written = Arc::clone(&labels);
    let take = move |event: Event<View>| {
        let Some(event) = annotated(event, &shapes) else { return Vec::new() };
        writer.apply_watcher_event(&event);
        written.write().unwrap_or_else(PoisonError::into_inner).apply(&event, |_, view| words_of(view));
        // Of a deleted one nothing is left to be looked at.
        let set = if let Event::Apply(set) | Event::InitApply(set) = &event { Some(set) } else { None };
        set.and_then(|set| place_in(&set.name_any(), set)).into_iter().collect()
    };
    (take, store, labels)
}

/// What a set is found by: what selectors say that choose its pods, and its `serviceName`.
fn words_of(view: &View) -> Vec<Word> {
    match view.means() {
        SetState::Injected(set) | SetState::NotInjected(set) => {
            let mut words = label_words(&set);
            words.push(Word::new(&set.namespace, SERVICE_NAME, &set.headless_service));
            words
        }
        SetState::Other | SetState::Leaving | SetState::Invalid(_) => Vec::new(),
    }
}

/// The labels that the set's pods have or may get.
fn label_words(set: &Set) -> Vec<Word> {
    let role = &set.role_label;
    let fixed = set.pod_labels.iter().filter(|(key, _)| **key != role.key);
    let roles = [(&role.key, &role.master), (&role.key, &role.replica)];
    fixed.chain(roles).map(|(key, value)| Word::new(&set.namespace, key, value)).collect()
}

/// Keeps the pods that are labelled as members.
fn pods(shapes: Arc<Shapes>) -> (impl Take<SeenPod>, Index<KeptPod>) {
    let (mut writer, index) = index();
    let take = move |event: Event<SeenPod>| {
        writer.apply(&event, |pod| KeptPod::new(pod, &shapes));
        let set = |pod: &SeenPod| place_in(pod.labels().get(names::label::SET)?, pod);
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

/// Keeps every Service: those that pgset made, and those of other people, which are found by their selectors as well.
fn services(shapes: Arc<Shapes>, sets: Shared) -> (impl Take<Seen>, Index<Kept>, Index<Kept>, Shared) {
    let (mut writer, ours) = index();
    let (mut other, strangers) = index::<Kept>();
    let selectors = Shared::default();
    let (known, written) = (strangers.clone(), Arc::clone(&selectors));
    let take = move |event: Event<Seen>| {
        let service = touched(&event);
        let before = service.and_then(|it| known.get(&it.namespace()?, &it.name_any()));
        let after = service.filter(|it| !it.is_ours() && gone(&event).is_none()).map(|it| it.keep(&shapes));
        // Most of what happens to a Service is about its status or its addresses.
        let is_news = !matches!((&before, &after), (Some(before), Some(after)) if before.says_the_same(after));
        writer.apply(&event, |service| service.is_ours().then(|| service.keep(&shapes)));
        other.apply(&event, |_| after.clone());
        let selects = |words: &Words, service: &Seen| {
            let pairs = after.as_ref().map(|kept| pairs(kept, service)).unwrap_or_default();
            words.rarest(&pairs).into_iter().collect()
        };
        written.write().unwrap_or_else(PoisonError::into_inner).apply(&event, selects);
        let Some(service) = service.filter(|_| is_news) else { return Vec::new() };
        let sets = sets.read().unwrap_or_else(PoisonError::into_inner);
        let mut about = namesakes(&sets, service);
        about.extend(set_of(service).filter(|_| service.is_ours()));
        // Those that it could choose before have something to hear as well.
        about.extend([before, after].iter().flatten().flat_map(|kept| sets.with_all(&pairs(kept, service))));
        about.into_iter().collect()
    };
    (take, ours, strangers, selectors)
}

/// The labels that a Service's selector asks for.
fn pairs(kept: &Kept, service: &Seen) -> Vec<Word> {
    let namespace = service.namespace().unwrap_or_default();
    let selector = selection::Service::read(&kept.value(&namespace)).selector;
    selector.iter().map(|(key, value)| Word::new(&namespace, key, value)).collect()
}

/// The sets that have or want a Service of that name.
fn namesakes(sets: &Words, service: &Seen) -> BTreeSet<Place> {
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    let own = names::set_of_role_service(&name).map(|set| place(&namespace, set)).filter(|place| sets.has(place));
    own.into_iter().chain(sets.with_all(&[Word::new(&namespace, SERVICE_NAME, &name)])).collect()
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
fn set_of(object: &Seen) -> Option<Place> {
    place_in(object.set()?, object)
}

/// The place of a name in an object's namespace.
fn place_in(name: &str, object: &impl ResourceExt) -> Option<Place> {
    Some(place(object.namespace()?.as_str(), name))
}

#[cfg(test)]
#[path = "watches_tests.rs"]
mod tests;
