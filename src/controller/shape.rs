//! Objects of many sets differ in little but names: without them, one text serves all.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// What stands for each name in a text. JSON has no such characters, so that putting the names back gives the very text.
const PLACES: [char; 3] = ['\u{1}', '\u{2}', '\u{3}'];
/// From how many texts on those that nobody uses any more are looked for.
const FORGET_FROM: usize = 64;

/// The names that a text is told apart by; empty where there is none.
pub type Names<'a> = [&'a str; 3];

/// Every text once.
#[derive(Default)]
pub struct Shapes(Mutex<Known>);

#[derive(Default)]
struct Known {
    texts: HashSet<Arc<str>>,
    /// How many there were when the unused ones were last looked for.
    used: usize,
}

impl Shapes {
    /// A JSON text without the names, the same for all that differ in nothing else.
    pub fn share(&self, json: &str, names: Names<'_>) -> Arc<str> {
        self.once(fold(json, names).into())
    }

    /// A text that [`fold`] made, the same for all that are alike.
    pub fn once(&self, shape: Arc<str>) -> Arc<str> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shape) = known.texts.get(&shape) {
            return Arc::clone(shape);
        }
        if known.texts.len() > FORGET_FROM.max(2 * known.used) {
            known.texts.retain(|text| Arc::strong_count(text) > 1);
            known.texts.shrink_to_fit();
            known.used = known.texts.len();
        }
        known.texts.insert(Arc::clone(&shape));
        shape
    }
}

/// The text that a shape was made of.
pub fn unfold(shape: &str, names: Names<'_>) -> String {
    let mut text = String::with_capacity(shape.len() + 256);
    for character in shape.chars() {
        match PLACES.iter().position(|place| *place == character) {
            Some(place) => text.push_str(names[place]),
            None => text.push(character),
        }
    }
    text
}

/// A JSON text without the names. Longer ones first: one may be a part of another.
pub fn fold(json: &str, names: Names<'_>) -> String {
    let mut order = [0, 1, 2];
    order.sort_by_key(|&place| std::cmp::Reverse(names[place].len()));
    let mut text = json.to_owned();
    for place in order {
        // So that a place is never part of a name.
        if !names[place].is_empty() && !names[place].contains(PLACES) {
            text = text.replace(names[place], PLACES[place].encode_utf8(&mut [0; 4]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn objects_that_differ_in_names_only_share_one_text() {
        let shapes = Shapes::default();
        let text = |set: &str, namespace: &str| format!(r#"{{"name":"{set}-master","namespace":"{namespace}"}}"#);
        let one = shapes.share(&text("orders", "shop"), ["orders", "shop", ""]);
        let two = shapes.share(&text("stock", "store"), ["stock", "store", ""]);
        assert!(Arc::ptr_eq(&one, &two), "{one:?} {two:?}");
        assert_eq!(unfold(&two, ["stock", "store", ""]), text("stock", "store"));
    }

    #[test]
    fn a_name_that_is_part_of_another_hides_nothing() {
        let shapes = Shapes::default();
        let text = |set: &str, namespace: &str| format!(r#"{{"name":"{set}","namespace":"{namespace}"}}"#);
        let one = shapes.share(&text("shop", "shop-test"), ["shop", "shop-test", ""]);
        let two = shapes.share(&text("orders", "web"), ["orders", "web", ""]);
        assert!(Arc::ptr_eq(&one, &two), "{one:?} {two:?}");
    }

    #[test]
    fn texts_that_nobody_uses_are_forgotten() {
        let shapes = Shapes::default();
        let used = shapes.share("used", ["", "", ""]);
        for number in 0..10_000 {
            shapes.share(&number.to_string(), ["", "", ""]);
        }
        let known = shapes.0.lock().unwrap();
        assert!(known.texts.len() < 200 && known.texts.contains(&used), "{}", known.texts.len());
    }

    proptest! {
        #[test]
        fn a_shape_with_its_names_is_the_text(
            json in "[a-c\"{}:,\\\\]{0,40}",
            set in "[a-c]{0,2}",
            namespace in "[a-c]{0,3}",
            owner in "[a-c\"]{0,3}",
        ) {
            let names = [set.as_str(), namespace.as_str(), owner.as_str()];
            prop_assert_eq!(unfold(&fold(&json, names), names), json);
        }
    }
}
