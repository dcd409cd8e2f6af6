//! Reading raw JSON that nobody has checked: every step knows its field's name, so that an error can say it.

use std::rc::Rc;

use serde_json::Value;

use super::error::{Error, named};

/// A place in the object: there with a value, or absent. `null` counts as absent, as it does for the API server.
#[derive(Clone, Debug)]
pub(crate) struct Field<'a> {
    /// The way to it. Its name is put together only for an error: a review reads a thousand fields.
    way: Option<Rc<Step<'a>>>,
    value: Option<&'a Value>,
}

/// The last step of the way to a field.
#[derive(Debug)]
struct Step<'a> {
    from: Option<Rc<Step<'a>>>,
    to: Part<'a>,
}

#[derive(Debug)]
enum Part<'a> {
    Key(&'a str),
    Index(usize),
}

impl Step<'_> {
    fn name(&self) -> String {
        match (&self.from, &self.to) {
            (None, Part::Key(key)) => (*key).to_owned(),
            (Some(from), Part::Key(key)) if key.contains(['.', '/']) => format!("{}[{}]", from.name(), named(key)),
            (Some(from), Part::Key(key)) => format!("{}.{}", from.name(), named(key)),
            (from, Part::Index(index)) => {
                format!("{}[{index}]", from.as_ref().map(|from| from.name()).unwrap_or_default())
            }
        }
    }
}

impl<'a> Field<'a> {
    /// The object itself.
    pub(crate) fn root(object: &'a Value) -> Self {
        Self { way: None, value: Some(object) }
    }

    /// The field's path, as messages show it.
    pub(crate) fn name(&self) -> String {
        self.way.as_ref().map_or_else(|| "the object".to_owned(), |step| step.name())
    }

    /// Whether there is a value.
    pub(crate) fn is_there(&self) -> bool {
        self.value.is_some()
    }

    /// The value, whatever it is.
    pub(crate) fn value(&self) -> Option<&'a Value> {
        self.value
    }

    /// The field below; absent if this one is.
    pub(crate) fn get(&self, key: &'a str) -> Result<Self, Error> {
        let value = match self.value {
            None => None,
            Some(Value::Object(map)) => map.get(key).filter(|value| !value.is_null()),
            Some(other) => return Err(self.wrong(other, "an object")),
        };
        Ok(self.below(Part::Key(key), value))
    }

    fn below(&self, to: Part<'a>, value: Option<&'a Value>) -> Self {
        Self { way: Some(Rc::new(Step { from: self.way.clone(), to })), value }
    }

    /// The field several levels below.
    pub(crate) fn at(&self, keys: &[&'a str]) -> Result<Self, Error> {
        keys.iter().try_fold(self.clone(), |field, key| field.get(key))
    }

    /// The members of an object; none if it is absent.
    pub(crate) fn entries(&self) -> Result<Vec<(&'a str, Self)>, Error> {
        match self.value {
            None => Ok(Vec::new()),
            Some(Value::Object(map)) => map.keys().map(|key| Ok((key.as_str(), self.get(key)?))).collect(),
            Some(other) => Err(self.wrong(other, "an object")),
        }
    }

    /// The items of a list; none if it is absent.
    pub(crate) fn items(&self) -> Result<Vec<Self>, Error> {
        match self.value {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                let item = |(index, value)| self.below(Part::Index(index), Some(value));
                Ok(items.iter().enumerate().map(item).collect())
            }
            Some(other) => Err(self.wrong(other, "a list")),
        }
    }

    /// A string; `None` if it is absent or empty, which mean the same wherever pgset reads one.
    pub(crate) fn text(&self) -> Result<Option<&'a str>, Error> {
        match self.value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(self.wrong(other, "a string (quote it)")),
        }
    }

    /// The strings of a list.
    pub(crate) fn texts(&self) -> Result<Vec<&'a str>, Error> {
        self.items()?.iter().map(|item| Ok(item.text()?.unwrap_or_default())).collect()
    }

    /// A whole number within bounds.
    pub(crate) fn number(&self, low: i64, high: i64) -> Result<Option<i64>, Error> {
        match self.value {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_i64().filter(|number| (low..=high).contains(number)) {
                Some(number) => Ok(Some(number)),
                None => Err(Error::Range { field: self.name(), found: number.to_string(), low, high }),
            },
            Some(other) => Err(self.wrong(other, "a whole number")),
        }
    }

    fn wrong(&self, found: &Value, expected: &'static str) -> Error {
        let found = match found {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        Error::Type { field: self.name(), expected, found }
    }
}

/// What is at a path of members. (`Value::pointer` would make two copies of every part of the path.)
pub(crate) fn at<'v>(object: &'v Value, keys: &[&str]) -> Option<&'v Value> {
    keys.iter().try_fold(object, |value, key| value.get(key))
}

/// Whether `actual` has everything that `wanted` has. The API server fills in defaults, which `wanted` does not know:
/// only what pgset writes itself is compared.
pub(crate) fn covers(actual: &Value, wanted: &Value) -> bool {
    match (actual, wanted) {
        (Value::Object(actual), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| actual.get(key).is_some_and(|actual| covers(actual, wanted)))
        }
        (Value::Array(actual), Value::Array(wanted)) => {
            actual.len() == wanted.len() && actual.iter().zip(wanted).all(|(actual, wanted)| covers(actual, wanted))
        }
        _ => actual == wanted,
    }
}
