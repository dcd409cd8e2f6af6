//! The kinds of things that an annotation may say, and how each of them is read.

use super::{error::quoted, validation::bytes};

/// What an annotation may say.
pub(crate) trait Values {
    /// What it means.
    type Value;

    /// What a text means, if it is allowed.
    fn parse(&self, text: &str) -> Option<Self::Value>;

    /// What it means that there is none.
    fn default(&self) -> Self::Value;

    /// What is allowed, as a denial says it.
    fn allowed(&self) -> String;
}

/// One of these words, and what each means; behind them the default.
pub(crate) struct Words<T: 'static>(pub(super) &'static [(&'static str, T)], pub(super) T);

impl<T: Copy> Values for Words<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Option<T> {
        self.0.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }

    fn default(&self) -> T {
        self.1
    }

    fn allowed(&self) -> String {
        self.0.iter().map(|(word, _)| quoted(word)).collect::<Vec<_>>().join(" or ")
    }
}

/// A text of a closed grammar, and what it is.
pub(crate) struct Text(pub(super) fn(&str) -> bool, pub(super) &'static str);

impl Values for Text {
    type Value = Option<String>;

    fn parse(&self, text: &str) -> Option<Self::Value> {
        (self.0)(text).then(|| Some(text.to_owned()))
    }

    fn default(&self) -> Self::Value {
        None
    }

    fn allowed(&self) -> String {
        self.1.to_owned()
    }
}

/// A whole number.
pub(crate) struct Number {
    pub(super) low: u32,
    pub(super) high: u32,
    pub(super) default: u32,
}

impl Values for Number {
    type Value = u32;

    fn parse(&self, text: &str) -> Option<u32> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|number| is_plain && (self.low..=self.high).contains(number))
    }

    fn default(&self) -> u32 {
        self.default
    }

    fn allowed(&self) -> String {
        format!("a whole number from {} to {}", self.low, self.high)
    }
}

/// A number of bytes, and the default.
pub(crate) struct Bytes(pub(super) u64);

impl Values for Bytes {
    type Value = u64;

    fn parse(&self, text: &str) -> Option<u64> {
        bytes(text)
    }

    fn default(&self) -> u64 {
        self.0
    }

    fn allowed(&self) -> String {
        "a number of bytes such as 0, 512Ki, 16Mi or 1Gi".to_owned()
    }
}

/// What a function makes of a text.
#[derive(Clone, Copy)]
pub(crate) struct Parsed<T> {
    pub(super) parse: fn(&str) -> Option<T>,
    pub(super) default: fn() -> T,
    pub(super) allowed: &'static str,
}

impl<T> Values for Parsed<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Option<T> {
        (self.parse)(text)
    }

    fn default(&self) -> T {
        (self.default)()
    }

    fn allowed(&self) -> String {
        self.allowed.to_owned()
    }
}
