//! JSON Patch operations, built by hand and tried at once: each is applied to a working copy, so that every next one sees
//! the object as it will be, and a patch that does not apply can't leave this module.

use json_patch::{
    AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation,
    jsonptr::{Pointer, PointerBuf, Token},
};
use serde_json::{Map, Value};

/// A path from its parts; `~` and `/` in them are escaped.
pub(crate) fn path<'a>(tokens: impl IntoIterator<Item = &'a str>) -> PointerBuf {
    PointerBuf::from_tokens(tokens.into_iter().map(Token::new))
}

/// The path of one item or member below another.
pub(crate) fn below<'a>(parent: &Pointer, key: impl Into<Token<'a>>) -> PointerBuf {
    parent.with_trailing_token(key)
}

/// What is at a path. (`Value::pointer` makes two copies of every part of it, which was a third of the time of a review.)
fn find<'v>(document: &'v Value, at: &Pointer) -> Option<&'v Value> {
    at.resolve(document).ok()
}

/// The same, to be changed.
fn find_mut<'v>(document: &'v mut Value, at: &Pointer) -> Option<&'v mut Value> {
    at.resolve_mut(document).ok()
}

/// A patch in the making.
#[derive(Clone, Debug)]
pub(crate) struct Edits {
    document: Value,
    operations: Vec<PatchOperation>,
}

impl Edits {
    /// No edits yet.
    pub(crate) fn new(object: &Value) -> Self {
        Self { document: object.clone(), operations: Vec::new() }
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
    pub(crate) fn into_patch(self) -> Patch {
        Patch(self.operations)
    }

    /// The value at a path; `null` counts as absent.
    pub(crate) fn get(&self, at: &Pointer) -> Option<&Value> {
        find(&self.document, at).filter(|value| !value.is_null())
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
        self.ensure(object, Value::Object(Map::new()));
        let at = below(object, key);
        if find(&self.document, &at).is_some() {
            self.replace(at, value);
        } else {
            self.add(at, value);
        }
    }

    /// Appends to a list, and makes the list if there is none.
    pub(crate) fn append(&mut self, list: &Pointer, value: Value) {
        self.ensure(list, Value::Array(Vec::new()));
        self.add(below(list, "-"), value);
    }

    /// Puts another value in the place of one that is there.
    pub(crate) fn replace(&mut self, at: PointerBuf, value: Value) {
        if let Some(place) = find_mut(&mut self.document, &at) {
            *place = value.clone();
            self.operations.push(PatchOperation::Replace(ReplaceOperation { path: at, value }));
        }
    }

    /// Takes out what is at a path.
    pub(crate) fn remove(&mut self, at: PointerBuf) {
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

    fn add(&mut self, at: PointerBuf, value: Value) {
        let Some((parent, key)) = at.split_back() else { return };
        match find_mut(&mut self.document, parent) {
            Some(Value::Object(map)) => {
                map.insert(key.decoded().into_owned(), value.clone());
            }
            Some(Value::Array(items)) => items.push(value.clone()),
            _ => return,
        }
        self.operations.push(PatchOperation::Add(AddOperation { path: at, value }));
    }

    /// Makes the parent that is missing. Only the last one can be: whatever is above it was read before.
    fn ensure(&mut self, at: &Pointer, empty: Value) {
        if self.get(at).is_some() {
            return;
        }
        if let Some(parent) = at.parent().filter(|parent| !parent.is_root()) {
            self.ensure(parent, Value::Object(Map::new()));
        }
        if find(&self.document, at).is_some() {
            self.replace(at.to_buf(), empty);
        } else {
            self.add(at.to_buf(), empty);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn applied(object: &Value, patch: &Patch) -> Value {
        let mut object = object.clone();
        json_patch::patch(&mut object, patch).unwrap();
        object
    }

    #[test]
    fn makes_a_missing_parent_once() {
        let object = json!({ "metadata": {} });
        let mut edits = Edits::new(&object);
        let annotations = path(["metadata", "annotations"]);
        edits.set(&annotations, "pgset.dev/a~b", json!("1"));
        edits.set(&annotations, "pgset.dev/c", json!("2"));
        let expected = json!({ "metadata": { "annotations": { "pgset.dev/a~b": "1", "pgset.dev/c": "2" } } });
        assert_eq!(edits.document(), &expected);
        let patch = edits.into_patch();
        assert_eq!(patch.0.len(), 3);
        assert_eq!(patch.0[1].path().as_str(), "/metadata/annotations/pgset.dev~1a~0b");
        assert_eq!(applied(&object, &patch), expected);
    }

    #[test]
    fn a_null_list_is_a_missing_one() {
        let object = json!({ "env": null });
        let mut edits = Edits::new(&object);
        edits.append(&path(["env"]), json!({ "name": "A" }));
        edits.append(&path(["env"]), json!({ "name": "B" }));
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
