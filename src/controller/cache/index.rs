//! What is known of one kind of objects, by namespace and name in that order: what is looked for together stands together, and
//! nobody has to go through all.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use tokio::sync::watch;

/// By `namespace/name`: neither has a slash in it.
type Known<T> = BTreeMap<Box<str>, T>;

/// What is known, for all who read it.
#[derive(Clone)]
pub struct Index<T> {
    known: Arc<RwLock<Known<T>>>,
    complete: watch::Receiver<bool>,
}

/// The one who writes it.
pub struct Writer<T> {
    known: Arc<RwLock<Known<T>>>,
    /// What a list that is under way has brought so far.
    coming: Known<T>,
    complete: watch::Sender<bool>,
}

/// The writer ended before it had seen everything.
#[derive(Debug)]
pub struct Ended;

/// An empty index.
pub fn index<T>() -> (Writer<T>, Index<T>) {
    let known = Arc::default();
    let (sender, complete) = watch::channel(false);
    let writer = Writer { known: Arc::clone(&known), coming: BTreeMap::new(), complete: sender };
    (writer, Index { known, complete })
}

// === impl Writer ===

impl<T> Writer<T> {
    /// Takes over an event of a watch. `keep` answers what is kept of an object; `None` if it does not belong here.
    pub fn apply<K>(&mut self, event: &Event<K>, keep: impl FnOnce(&K) -> Option<T>)
    where
        K: Resource,
    {
        match event {
            Event::Init => self.coming = BTreeMap::new(),
            Event::InitApply(object) => {
                if let Some(kept) = keep(object) {
                    self.coming.insert(key_of(object), kept);
                }
            }
            Event::InitDone => {
                // Built anew from what is in order already, it has no gaps.
                let complete = std::mem::take(&mut self.coming).into_iter().collect();
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = complete;
                self.complete.send_replace(true);
            }
            Event::Apply(object) => {
                let kept = keep(object);
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                match kept {
                    Some(kept) => known.insert(key_of(object), kept),
                    None => known.remove(&key_of(object)),
                };
            }
            Event::Delete(object) => {
                self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&key_of(object));
            }
        }
    }
}

// === impl Index ===

impl<T: Clone> Index<T> {
    /// Waits until the first list is complete.
    pub async fn ready(&self) -> Result<(), Ended> {
        self.complete.clone().wait_for(|complete| *complete).await.map(drop).map_err(|_| Ended)
    }

    /// What is under a name.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<T> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(key(namespace, name).as_str()).cloned()
    }

    /// What is in a namespace under names with that beginning, in the order of the names.
    #[must_use]
    pub fn starting_with(&self, namespace: &str, beginning: &str) -> Vec<(String, T)> {
        let first = key(namespace, beginning);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let from = known.range::<str, _>((Bound::Included(first.as_str()), Bound::Unbounded));
        let name = |key: &str| key.get(namespace.len() + 1..).unwrap_or_default().to_owned();
        from.take_while(|(key, _)| key.starts_with(&first)).map(|(key, kept)| (name(key), kept.clone())).collect()
    }
}

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn key_of<K: Resource>(object: &K) -> Box<str> {
    key(&object.namespace().unwrap_or_default(), &object.name_any()).into()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use kube::api::ObjectMeta;

    use super::*;

    fn object(namespace: &str, name: &str) -> Service {
        let metadata =
            ObjectMeta { namespace: Some(namespace.to_owned()), name: Some(name.to_owned()), ..ObjectMeta::default() };
        Service { metadata, ..Service::default() }
    }

    fn filled(objects: &[(&str, &str)]) -> (Writer<String>, Index<String>) {
        let (mut writer, index) = index();
        let events = objects.iter().map(|(namespace, name)| Event::InitApply(object(namespace, name)));
        for event in std::iter::once(Event::Init).chain(events).chain([Event::InitDone]) {
            writer.apply(&event, |object| Some(object.name_any()));
        }
        (writer, index)
    }

    fn names(index: &Index<String>, namespace: &str, beginning: &str) -> Vec<String> {
        index.starting_with(namespace, beginning).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn what_is_in_a_namespace_is_found_and_nothing_of_its_neighbours() {
        let (_writer, index) = filled(&[("shop", "b"), ("shop", "a"), ("shop-test", "a"), ("sho", "p"), ("a", "shop")]);
        assert_eq!(names(&index, "shop", ""), ["a", "b"]);
        assert_eq!(names(&index, "nowhere", ""), [""; 0]);
        assert_eq!((index.get("shop", "a"), index.get("shop", "p")), (Some("a".to_owned()), None));
    }

    #[test]
    fn names_with_one_beginning_are_found() {
        let (_writer, index) = filled(&[("shop", "db-0"), ("shop", "db-1"), ("shop", "db"), ("shop", "dc-0")]);
        assert_eq!(names(&index, "shop", "db-"), ["db-0", "db-1"]);
    }

    #[test]
    fn what_a_later_list_does_not_have_is_gone_but_not_before_it_is_complete() {
        let (mut writer, index) = filled(&[("shop", "a"), ("shop", "b")]);
        writer.apply(&Event::Init, |object: &Service| Some(object.name_any()));
        writer.apply(&Event::InitApply(object("shop", "b")), |object| Some(object.name_any()));
        assert_eq!(names(&index, "shop", ""), ["a", "b"]);
        writer.apply(&Event::InitDone, |object: &Service| Some(object.name_any()));
        assert_eq!(names(&index, "shop", ""), ["b"]);
    }

    #[test]
    fn what_was_deleted_or_does_not_belong_here_any_more_is_gone() {
        let (mut writer, index) = filled(&[("shop", "a"), ("shop", "b")]);
        writer.apply(&Event::Delete(object("shop", "a")), |object: &Service| Some(object.name_any()));
        writer.apply(&Event::Apply(object("shop", "b")), |_: &Service| None);
        writer.apply(&Event::Apply(object("shop", "c")), |object: &Service| Some(object.name_any()));
        assert_eq!(names(&index, "shop", ""), ["c"]);
    }

    #[tokio::test]
    async fn it_is_ready_when_the_first_list_is_complete_and_never_without_its_writer() {
        let (_writer, index) = filled(&[]);
        assert!(index.ready().await.is_ok());
        let (writer, index) = super::index::<()>();
        drop(writer);
        assert!(index.ready().await.is_err());
    }
}
