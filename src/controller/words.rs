//! Which objects have a label, found without going through all objects: by a hash of namespace, key and value.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

/// How far two words are told apart by how many places have them: beyond, both are common.
const COMMON: usize = 64;

/// A hash of namespace, key and value. Where two are the same by accident, an object is read once in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word(u64);

impl Word {
    /// The word of a label in a namespace.
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

/// Places by their words.
#[derive(Default)]
pub struct Words {
    places: BTreeSet<(Word, Place)>,
    by_place: BTreeMap<Place, Box<[Word]>>,
    /// What a list that is under way has brought so far.
    coming: Option<BTreeSet<Place>>,
}

impl Words {
    /// Takes over an event of a watch. `words` answers an object's words; none if it does not belong here.
    pub fn apply<K: Resource>(&mut self, event: &Event<K>, words: impl FnOnce(&Self, &K) -> Vec<Word>) {
        match event {
            Event::Init => self.coming = Some(BTreeSet::new()),
            Event::InitApply(object) | Event::Apply(object) => {
                let place = place_of(object);
                if let Some(coming) = &mut self.coming {
                    coming.insert(Arc::clone(&place));
                }
                let words = words(self, object);
                self.put(place, words);
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

    /// The places with all of these words; none if there are no words.
    #[must_use]
    pub fn with_all(&self, words: &[Word]) -> Vec<Place> {
        let Some(rarest) = self.rarest(words) else { return Vec::new() };
        let has_all =
            |place: &Place| self.by_place.get(place).is_some_and(|own| words.iter().all(|word| own.contains(word)));
        self.with(rarest).filter(|place| has_all(place)).cloned().collect()
    }

    /// The places with any of these words, each once.
    #[must_use]
    pub fn with_any(&self, words: &[Word]) -> BTreeSet<Place> {
        words.iter().flat_map(|word| self.with(*word)).cloned().collect()
    }

    /// The word that the fewest places have.
    #[must_use]
    pub fn rarest(&self, words: &[Word]) -> Option<Word> {
        words.iter().copied().min_by_key(|word| self.with(*word).take(COMMON).count())
    }

    fn with(&self, word: Word) -> impl Iterator<Item = &Place> {
        let first = (word, Place::from(""));
        self.places.range(first..).take_while(move |(found, _)| *found == word).map(|(_, place)| place)
    }

    fn put(&mut self, place: Place, words: Vec<Word>) {
        if self.by_place.get(&place).is_some_and(|known| **known == *words) {
            return;
        }
        for word in self.by_place.remove(&place).into_iter().flatten() {
            self.places.remove(&(word, Arc::clone(&place)));
        }
        if !words.is_empty() {
            self.places.extend(words.iter().map(|word| (*word, Arc::clone(&place))));
            self.by_place.insert(place, words.into());
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

    fn word(value: &str) -> Word {
        Word::new("shop", "app", value)
    }

    fn put(words: &mut Words, name: &str, values: &[&str]) {
        words.apply(&Event::Apply(object(name)), |_, _| values.iter().map(|value| word(value)).collect());
    }

    fn all(words: &Words, values: &[&str]) -> Vec<String> {
        let values: Vec<Word> = values.iter().map(|value| word(value)).collect();
        words.with_all(&values).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn places_are_found_by_all_of_their_words_and_of_their_namespace_only() {
        let mut words = Words::default();
        put(&mut words, "a", &["common", "one"]);
        put(&mut words, "b", &["common", "two"]);
        assert_eq!(all(&words, &["common"]), ["shop/a", "shop/b"]);
        assert_eq!(all(&words, &["common", "two"]), ["shop/b"]);
        assert_eq!((all(&words, &["one", "two"]), all(&words, &[])), (vec![], vec![]));
        assert_eq!(words.with_all(&[Word::new("web", "app", "one")]), [] as [Place; 0]);
        assert_eq!(words.rarest(&[word("common"), word("two")]), Some(word("two")));
    }

    #[test]
    fn what_changed_or_went_is_not_found_any_more() {
        let mut words = Words::default();
        put(&mut words, "a", &["one"]);
        put(&mut words, "a", &["two"]);
        assert_eq!((all(&words, &["one"]), all(&words, &["two"])), (vec![], vec!["shop/a".to_owned()]));
        words.apply(&Event::Delete(object("a")), |_, _: &Service| vec![]);
        assert!(words.places.is_empty() && words.by_place.is_empty());
    }

    #[test]
    fn what_a_later_list_does_not_have_is_gone() {
        let mut words = Words::default();
        put(&mut words, "a", &["one"]);
        put(&mut words, "b", &["one"]);
        words.apply(&Event::Init, |_, _: &Service| vec![]);
        words.apply(&Event::InitApply(object("b")), |_, _| vec![word("one")]);
        words.apply(&Event::InitDone, |_, _: &Service| vec![]);
        assert_eq!(all(&words, &["one"]), ["shop/b"]);
    }
}
