//! JSON Patch operations, built by hand and tried at once: each edit is made in a working copy, so that every next one sees
//! the object as it will be, and a patch that does not apply can't leave this module.

use std::ops::Range;

use json_patch::{
    AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation,
    jsonptr::{Pointer, PointerBuf, Token},
};
use serde_json::{Map, Value};

/// The object's annotations.
pub(crate) const ANNOTATIONS: &Pointer = Pointer::from_static("/metadata/annotations");

/// The path of one item or member below another.
pub(crate) fn below<'a>(parent: &Pointer, key: impl Into<Token<'a>>) -> PointerBuf {
    parent.with_trailing_token(key)
}

/// The value at a path; `null` counts as absent.
pub(crate) fn find<'v>(document: &'v Value, at: &Pointer) -> Option<&'v Value> {
    at.resolve(document).ok().filter(|value| !value.is_null())
}

/// What is at a path, to be changed.
fn find_mut<'v>(document: &'v mut Value, at: &Pointer) -> Option<&'v mut Value> {
    at.resolve_mut(document).ok()
}

/// A patch in the making.
#[derive(Clone, Debug)]
pub(crate) struct Edits {
    document: Value,
    /// The operations that are as they will be told.
    operations: Vec<PatchOperation>,
    /// Those after them, whose values still stand in the document.
    pending: Vec<PendingEdit>,
}

/// What was put into the document, and is taken from there in the end, with whatever has been put into it by then: copies of what is
/// added were most of the time of a review. None of them lies in another.
#[derive(Clone, Debug)]
enum PendingEdit {
    /// A value, and whether something else was there.
    Value { place: PointerBuf, replaces: bool },
    /// Items that were appended to a list.
    Items { list: PointerBuf, range: Range<usize> },
}

impl PendingEdit {
    /// Where it is; of items, their list.
    fn place(&self) -> &Pointer {
        match self {
            Self::Value { place, .. } => place,
            Self::Items { list, .. } => list,
        }
    }

    /// Whether a place is in it, or is it.
    fn holds(&self, place: &Pointer) -> bool {
        match self {
            Self::Value { place: own, .. } => place.starts_with(own),
            Self::Items { list, range } => {
                let item = place.strip_prefix(list).and_then(Pointer::first);
                item.and_then(|item| item.decoded().parse().ok()).is_some_and(|item| range.contains(&item))
            }
        }
    }

    /// Whether it is below a place.
    fn is_below(&self, place: &Pointer) -> bool {
        match self {
            Self::Value { place: own, .. } => own.starts_with(place) && own.len() > place.len(),
            Self::Items { list, .. } => list.starts_with(place),
        }
    }
}

impl Edits {
    /// No edits yet.
    pub(crate) fn new(object: &Value) -> Self {
        Self { document: object.clone(), operations: Vec::new(), pending: Vec::new() }
    }

    /// The object as it is after the edits so far.
    pub(crate) fn document(&self) -> &Value {
        &self.document
    }

    /// The object as it is after all edits.
    pub(crate) fn into_document(self) -> Value {
        self.document
    }

    /// The edits as a patch.
    pub(crate) fn into_patch(mut self) -> Patch {
        self.settle(Value::take);
        Patch(self.operations)
    }

    /// The value at a path; `null` counts as absent.
    pub(crate) fn get(&self, at: &Pointer) -> Option<&Value> {
        find(&self.document, at)
    }

    /// The items of the list at a path; none if it is absent.
    pub(crate) fn items(&self, at: &Pointer) -> &[Value] {
        self.get(at).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The place in the list of the last item whose member `key` is `text`.
    pub(crate) fn position(&self, list: &Pointer, key: &str, text: &str) -> Option<usize> {
        self.items(list).iter().rposition(|item| item.get(key).and_then(Value::as_str) == Some(text))
    }

    /// Sets a member of an object, and makes the object if there is none.
    pub(crate) fn set(&mut self, object: &Pointer, key: &str, value: Value) {
        self.set_unless(object, key, value, |_, _| false);
    }

    /// The same, but leaves alone what is there already if it `fits` what is wanted.
    pub(crate) fn set_unless(
        &mut self,
        object: &Pointer,
        key: &str,
        wanted: Value,
        fits: impl FnOnce(&Value, &Value) -> bool,
    ) {
        match self.get(object) {
            Some(object) if object.get(key).is_some_and(|found| fits(found, &wanted)) => return,
            Some(_) => {}
            None => self.make(object, Value::Object(Map::new())),
        }
        let place = below(object, key);
        self.clear(&place);
        if let Some(Value::Object(members)) = find_mut(&mut self.document, object) {
            let replaces = members.insert(key.to_owned(), wanted).is_some();
            self.note(PendingEdit::Value { place, replaces });
        }
    }

    /// Appends to a list, and makes the list if there is none.
    pub(crate) fn append(&mut self, list: &Pointer, values: Vec<Value>) {
        if values.is_empty() {
            return;
        }
        if self.get(list).is_none() {
            self.make(list, Value::Array(Vec::new()));
        }
        if let Some(Value::Array(items)) = find_mut(&mut self.document, list) {
            let range = items.len()..items.len() + values.len();
            items.extend(values);
            self.note(PendingEdit::Items { list: list.to_buf(), range });
        }
    }

    /// Puts another value in the place of one that is there.
    pub(crate) fn replace(&mut self, at: PointerBuf, value: Value) {
        self.clear(&at);
        if let Some(place) = find_mut(&mut self.document, &at) {
            *place = value;
            self.note(PendingEdit::Value { place: at, replaces: true });
        }
    }

    /// Takes out what is at a path.
    pub(crate) fn remove(&mut self, at: PointerBuf) {
        self.settle(|value| value.clone());
        let Some((parent, key)) = at.split_back() else { return };
        let removed = match find_mut(&mut self.document, parent) {
            // What stays keeps its order.
            Some(Value::Object(map)) => map.shift_remove(key.decoded().as_ref()).is_some(),
            Some(Value::Array(items)) => match key.decoded().parse::<usize>() {
                Ok(index) if index < items.len() => {
                    items.remove(index);
                    true
                }
                _ => false,
            },
            _ => false,
        };
        if removed {
            self.operations.push(PatchOperation::Remove(RemoveOperation { path: at }));
        }
    }

    /// Makes the parent that is missing. Only the last one can be: whatever is above it was read before.
    fn make(&mut self, at: &Pointer, empty: Value) {
        if let Some((parent, key)) = at.split_back() {
            self.set(parent, key.decoded().as_ref(), empty);
        }
    }

    /// Remembers what was put somewhere. What was put into something new goes with that.
    fn note(&mut self, new: PendingEdit) {
        if !self.pending.iter().any(|outer| outer.holds(new.place())) {
            self.pending.push(new);
        }
    }

    /// Before another value takes a place with what was put in it.
    fn clear(&mut self, place: &Pointer) {
        if self.pending.iter().any(|inner| inner.is_below(place)) {
            self.settle(|value| value.clone());
        }
    }

    /// Takes, or copies, the values from where they stand.
    fn settle(&mut self, get: impl Fn(&mut Value) -> Value) {
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                PendingEdit::Value { place, replaces } => {
                    let value = find_mut(&mut self.document, &place).map(&get).unwrap_or_default();
                    self.operations.push(put(place, replaces, value));
                }
                PendingEdit::Items { list, range } => {
                    let items =
                        find_mut(&mut self.document, &list).and_then(|items| items.as_array_mut()?.get_mut(range));
                    let end = below(&list, "-");
                    let values = items.into_iter().flatten().map(&get);
                    self.operations.extend(values.map(|value| put(end.clone(), false, value)));
                }
            }
        }
    }
}

/// The operation that puts a value at a path.
fn put(path: PointerBuf, replaces: bool, value: Value) -> PatchOperation {
    if replaces {
        PatchOperation::Replace(ReplaceOperation { path, value })
    } else {
        PatchOperation::Add(AddOperation { path, value })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path<'a>(tokens: impl IntoIterator<Item = &'a str>) -> PointerBuf {
        PointerBuf::from_tokens(tokens)
    }

    fn applied(object: &Value, patch: &Patch) -> Value {
        let mut object = object.clone();
        json_patch::patch(&mut object, patch).unwrap();
        object
    }

    #[test]
    fn makes_a_missing_parent_once() {
        let object = json!({ "metadata": {} });
        let mut edits = Edits::new(&object);
        edits.set(ANNOTATIONS, "pgset.dev/a~b", json!("1"));
        edits.set(ANNOTATIONS, "pgset.dev/c", json!("2"));
        let expected = json!({ "metadata": { "annotations": { "pgset.dev/a~b": "1", "pgset.dev/c": "2" } } });
        assert_eq!(edits.document(), &expected);
        let patch = edits.into_patch();
        assert_eq!(patch.0.len(), 1, "the parent comes with all that is in it");
        assert_eq!(applied(&object, &patch), expected);
    }

    #[test]
    fn keys_are_escaped_in_paths() {
        let object = json!({ "metadata": { "annotations": {} } });
        let mut edits = Edits::new(&object);
        edits.set(ANNOTATIONS, "pgset.dev/a~b", json!("1"));
        let patch = edits.into_patch();
        assert_eq!(patch.0[0].path().as_str(), "/metadata/annotations/pgset.dev~1a~0b");
        assert_eq!(applied(&object, &patch), json!({ "metadata": { "annotations": { "pgset.dev/a~b": "1" } } }));
    }

    /// Each in every order, and each after each: what is said must come to the same as what was done.
    #[test]
    fn the_patch_makes_what_the_edits_made() {
        type Edit = fn(&mut Edits);
        let steps: [Edit; 8] = [
            |edits| edits.set(&path(["a"]), "new", json!({ "in": 1 })),
            |edits| edits.set(&path(["a", "new"]), "more", json!(2)),
            |edits| edits.append(&path(["a", "list"]), vec![json!({ "n": 1 }), json!({ "n": 2 })]),
            |edits| edits.set(&path(["a", "list", "1"]), "n", json!(3)),
            |edits| edits.replace(path(["a", "list", "0"]), json!("other")),
            |edits| edits.replace(path(["a"]), json!({ "list": [0] })),
            |edits| edits.remove(path(["a", "list", "0"])),
            |edits| edits.remove(path(["a", "new"])),
        ];
        for object in [json!({ "a": {} }), json!({ "a": { "list": null } }), json!({ "a": { "list": [9], "new": 0 } })]
        {
            for order in 0..steps.len().pow(4) {
                let mut edits = Edits::new(&object);
                for place in 0..4 {
                    steps[order / steps.len().pow(place) % steps.len()](&mut edits);
                }
                let expected = edits.document().clone();
                let patch = edits.into_patch();
                assert_eq!(applied(&object, &patch), expected, "{order:o} on {object}: {patch}");
            }
        }
    }

    #[test]
    fn a_null_list_is_a_missing_one() {
        let object = json!({ "env": null });
        let mut edits = Edits::new(&object);
        edits.append(&path(["env"]), vec![json!({ "name": "A" })]);
        edits.append(&path(["env"]), vec![json!({ "name": "B" })]);
        edits.remove(path(["env", "0"]));
        assert_eq!(edits.document(), &json!({ "env": [{ "name": "B" }] }));
        assert_eq!(applied(&object, &edits.into_patch()), json!({ "env": [{ "name": "B" }] }));
    }

    #[test]
    fn what_is_not_there_is_neither_removed_nor_replaced() {
        let mut edits = Edits::new(&json!({ "a": [1] }));
        edits.remove(path(["a", "1"]));
        edits.remove(path(["b", "c"]));
        edits.replace(path(["b"]), json!(1));
        assert!(edits.into_patch().0.is_empty());
    }

    #[test]
    fn the_order_of_what_stays_is_kept() {
        let mut edits = Edits::new(&json!({ "a": 1, "b": 2, "c": 3 }));
        edits.remove(path(["a"]));
        assert_eq!(edits.into_document().to_string(), r#"{"b":2,"c":3}"#);
    }
}
