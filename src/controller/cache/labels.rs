//! Which objects have a label, found without going through all objects: by a hash of namespace, key and value.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

/// How far two labels are told apart by how many places have them: beyond, both are common.
const COMMON: usize = 64;

/// A hash of namespace, key and value. Where two are the same by accident, an object is read once in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabelHash(u64);

impl LabelHash {
    /// The hash of a label in a namespace.
    #[must_use]
    pub fn new(namespace: &str, key: &str, value: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (namespace, key, value).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Where an object stands, as `namespace/name`.
pub type Place = Arc<str>;

/// The place of a name in a namespace.
#[must_use]
pub fn place(namespace: &str, name: &str) -> Place {
    format!("{namespace}/{name}").into()
}

/// Places by their labels.
#[derive(Default)]
pub struct LabelIndex {
    places: BTreeSet<(LabelHash, Place)>,
    by_place: BTreeMap<Place, Box<[LabelHash]>>,
    /// What a list that is under way has brought so far.
    coming: Option<BTreeSet<Place>>,
}

impl LabelIndex {
    /// Takes over an event of a watch. `labels` answers the labels of an object; none if it does not belong here.
    pub fn apply<K: Resource>(&mut self, event: &Event<K>, labels: impl FnOnce(&Self, &K) -> Vec<LabelHash>) {
        match event {
            Event::Init => self.coming = Some(BTreeSet::new()),
            Event::InitApply(object) | Event::Apply(object) => {
                let place = place_of(object);
                if let Some(coming) = &mut self.coming {
                    coming.insert(Arc::clone(&place));
                }
                let labels = labels(self, object);
                self.put(place, labels);
            }
            Event::InitDone => {
                let coming = self.coming.take().unwrap_or_default();
                let gone: Vec<Place> = self.by_place.keys().filter(|place| !coming.contains(*place)).cloned().collect();
                for place in gone {
                    self.put(place, Vec::new());
                }
            }
            Event::Delete(object) => self.put(place_of(object), Vec::new()),
        }
    }

    /// Whether there is anything known of a place.
    #[must_use]
    pub fn has(&self, place: &str) -> bool {
        self.by_place.contains_key(place)
    }

    /// The places with all of these labels; none if there are no labels.
    #[must_use]
    pub fn with_all(&self, labels: &[LabelHash]) -> Vec<Place> {
        let Some(rarest) = self.rarest(labels) else { return Vec::new() };
        let has_all =
            |place: &Place| self.by_place.get(place).is_some_and(|own| labels.iter().all(|label| own.contains(label)));
        self.with(rarest).filter(|place| has_all(place)).cloned().collect()
    }

    /// The places with any of these labels, each once.
    #[must_use]
    pub fn with_any(&self, labels: &[LabelHash]) -> BTreeSet<Place> {
        labels.iter().flat_map(|label| self.with(*label)).cloned().collect()
    }

    /// The label that the fewest places have.
    #[must_use]
    pub fn rarest(&self, labels: &[LabelHash]) -> Option<LabelHash> {
        labels.iter().copied().min_by_key(|label| self.with(*label).take(COMMON).count())
    }

    fn with(&self, label: LabelHash) -> impl Iterator<Item = &Place> {
        let first = (label, Place::from(""));
        self.places.range(first..).take_while(move |(found, _)| *found == label).map(|(_, place)| place)
    }

    fn put(&mut self, place: Place, labels: Vec<LabelHash>) {
        if self.by_place.get(&place).is_some_and(|known| **known == *labels) {
            return;
        }
        for label in self.by_place.remove(&place).into_iter().flatten() {
            self.places.remove(&(label, Arc::clone(&place)));
        }
        if !labels.is_empty() {
            self.places.extend(labels.iter().map(|label| (*label, Arc::clone(&place))));
            self.by_place.insert(place, labels.into());
        }
    }
}

fn place_of(object: &impl ResourceExt) -> Place {
    place(&object.namespace().unwrap_or_default(), &object.name_any())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use kube::api::ObjectMeta;

    use super::*;

    fn object(name: &str) -> Service {
        let metadata =
            ObjectMeta { namespace: Some("shop".to_owned()), name: Some(name.to_owned()), ..ObjectMeta::default() };
        Service { metadata, ..Service::default() }
    }

    fn label(value: &str) -> LabelHash {
        LabelHash::new("shop", "app", value)
    }

    fn put(index: &mut LabelIndex, name: &str, values: &[&str]) {
        index.apply(&Event::Apply(object(name)), |_, _| values.iter().map(|value| label(value)).collect());
    }

    fn all(index: &LabelIndex, values: &[&str]) -> Vec<String> {
        let values: Vec<LabelHash> = values.iter().map(|value| label(value)).collect();
        index.with_all(&values).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn places_are_found_by_all_of_their_labels_and_of_their_namespace_only() {
        let mut index = LabelIndex::default();
        put(&mut index, "a", &["common", "one"]);
        put(&mut index, "b", &["common", "two"]);
        assert_eq!(all(&index, &["common"]), ["shop/a", "shop/b"]);
        assert_eq!(all(&index, &["common", "two"]), ["shop/b"]);
        assert_eq!((all(&index, &["one", "two"]), all(&index, &[])), (vec![], vec![]));
        assert_eq!(index.with_all(&[LabelHash::new("web", "app", "one")]), [] as [Place; 0]);
        assert_eq!(index.rarest(&[label("common"), label("two")]), Some(label("two")));
    }

    #[test]
    fn what_changed_or_went_is_not_found_any_more() {
        let mut index = LabelIndex::default();
        put(&mut index, "a", &["one"]);
        put(&mut index, "a", &["two"]);
        assert_eq!((all(&index, &["one"]), all(&index, &["two"])), (vec![], vec!["shop/a".to_owned()]));
        index.apply(&Event::Delete(object("a")), |_, _: &Service| vec![]);
        assert!(index.places.is_empty() && index.by_place.is_empty());
    }

    #[test]
    fn what_a_later_list_does_not_have_is_gone() {
        let mut index = LabelIndex::default();
        put(&mut index, "a", &["one"]);
        put(&mut index, "b", &["one"]);
        index.apply(&Event::Init, |_, _: &Service| vec![]);
        index.apply(&Event::InitApply(object("b")), |_, _| vec![label("one")]);
        index.apply(&Event::InitDone, |_, _: &Service| vec![]);
        assert_eq!(all(&index, &["one"]), ["shop/b"]);
    }
}
