//! Objects of many sets differ in little but names: without them, one text serves all.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// From how many texts on those that nobody uses any more are looked for.
const FORGET_FROM: usize = 64;

/// The names that one set's objects have and no other's; empty where there is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names<'a> {
    /// The set's.
    pub set: &'a str,
    /// The namespace's.
    pub namespace: &'a str,
    /// The UID of the owner.
    pub owner: &'a str,
}

impl<'a> Names<'a> {
    /// Each name with what stands for it in a text. JSON has no such characters, so that putting the names back gives the very text.
    fn placeholders(self) -> [(char, &'a str); 3] {
        [('\u{1}', self.set), ('\u{2}', self.namespace), ('\u{3}', self.owner)]
    }
}

/// Every text once.
#[derive(Default)]
pub struct Interner(Mutex<Known>);

#[derive(Default)]
struct Known {
    texts: HashSet<Arc<str>>,
    /// How many there were when the unused ones were last looked for.
    used: usize,
}

impl Interner {
    /// A JSON text without the names, the same for all that differ in nothing else.
    pub fn intern(&self, json: &str, names: Names<'_>) -> Arc<str> {
        let text = without_names(json, names);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = known.texts.get(text.as_str()) {
            return Arc::clone(text);
        }
        if known.texts.len() > FORGET_FROM.max(2 * known.used) {
            known.texts.retain(|text| Arc::strong_count(text) > 1);
            known.texts.shrink_to_fit();
            known.used = known.texts.len();
        }
        let text: Arc<str> = text.into();
        known.texts.insert(Arc::clone(&text));
        text
    }
}

/// A JSON text without the names. Longer ones first: one may be a part of another.
fn without_names(json: &str, names: Names<'_>) -> String {
    let mut placeholders = names.placeholders();
    placeholders.sort_by_key(|(_, name)| std::cmp::Reverse(name.len()));
    let mut text = json.to_owned();
    for (placeholder, name) in placeholders {
        // So that a placeholder is never part of a name.
        if !name.is_empty() && !name.contains(['\u{1}', '\u{2}', '\u{3}']) {
            text = text.replace(name, placeholder.encode_utf8(&mut [0; 4]));
        }
    }
    text
}

/// The text that an interned one was made of.
pub fn with_names(interned: &str, names: Names<'_>) -> String {
    let placeholders = names.placeholders();
    let mut text = String::with_capacity(interned.len() + 256);
    for character in interned.chars() {
        match placeholders.iter().find(|(placeholder, _)| *placeholder == character) {
            Some((_, name)) => text.push_str(name),
            None => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shared(interner: &Interner, set: &str, namespace: &str) -> Arc<str> {
        let text = format!(r#"{{"name":"{set}","namespace":"{namespace}"}}"#);
        let names = Names { set, namespace, ..Names::default() };
        let shared = interner.intern(&text, names);
        assert_eq!(with_names(&shared, names), text);
        shared
    }

    #[test]
    fn objects_that_differ_in_names_only_share_one_text() {
        let interner = Interner::default();
        assert!(Arc::ptr_eq(&shared(&interner, "orders", "shop"), &shared(&interner, "stock", "store")));
    }

    #[test]
    fn a_name_that_is_part_of_another_hides_nothing() {
        let interner = Interner::default();
        assert!(Arc::ptr_eq(&shared(&interner, "shop", "shop-test"), &shared(&interner, "orders", "web")));
    }

    #[test]
    fn texts_that_nobody_uses_are_forgotten() {
        let interner = Interner::default();
        let used = interner.intern("used", Names::default());
        for number in 0..10_000 {
            interner.intern(&number.to_string(), Names::default());
        }
        let known = interner.0.lock().unwrap();
        assert!(known.texts.len() < 200 && known.texts.contains(&used), "{}", known.texts.len());
    }

    proptest! {
        #[test]
        fn an_interned_text_with_its_names_is_the_text(
            json in "[a-c\"{}:,\\\\]{0,40}",
            set in "[a-c]{0,2}",
            namespace in "[a-c]{0,3}",
            owner in "[a-c\"]{0,3}",
        ) {
            let names = Names { set: &set, namespace: &namespace, owner: &owner };
            prop_assert_eq!(with_names(&without_names(&json, names), names), json);
        }
    }
}
