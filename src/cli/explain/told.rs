//! An explanation, for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::injection::Injection;

/// How a `StatefulSet` stands to pgset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It carries the whole injection.
    Injected,
    /// It carries one that somebody has changed.
    Incomplete,
    /// It carries none, and would get one if it were applied now.
    Pending,
    /// It does not ask.
    NotAsked,
    /// It asks in a place or in words that pgset does not read.
    Misplaced,
    /// Its namespace is exempt.
    Exempt,
    /// The webhook configuration is absent, or API servers can't trust the webhook.
    Unconfigured,
    /// pgset refuses it.
    Denied,
    /// The webhook does not answer.
    Unanswered,
    /// Somebody else refuses it.
    Refused,
}

/// Why a `StatefulSet` was or wasn't injected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// `namespace/name`.
    pub set: String,
    /// How it stands.
    pub state: State,
    /// Why, in one sentence.
    pub why: String,
    /// What to do; empty where nothing is to be done.
    pub cure: String,
    /// What else the user should know.
    pub warnings: Vec<String>,
    /// What it carries, or would carry.
    pub injection: Option<Injection>,
}

// === impl State ===

impl State {
    /// Its name in JSON, which stays the same.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Incomplete => "incomplete",
            Self::Pending => "pending",
            Self::NotAsked => "not-asked",
            Self::Misplaced => "misplaced",
            Self::Exempt => "exempt",
            Self::Unconfigured => "unconfigured",
            Self::Denied => "denied",
            Self::Unanswered => "unanswered",
            Self::Refused => "refused",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Incomplete => "injected, but changed since",
            _ => "not injected",
        }
    }
}

// === impl Explanation ===

impl Explanation {
    /// For people.
    pub fn to_text(&self) -> String {
        // Writing to a string can't fail.
        let mut text = String::new();
        let _ = writeln!(text, "StatefulSet {}: {}", self.set, self.state.in_words());
        let mut line = |heading: &str, words: &str| {
            let _ = writeln!(text, "  {heading:<10} {words}");
        };
        if !self.why.is_empty() {
            line("because", &self.why);
        }
        if !self.cure.is_empty() {
            line("to do", &self.cure);
        }
        for (heading, words) in self.injection.iter().flat_map(Injection::lines) {
            line(heading, &words);
        }
        for warning in &self.warnings {
            line("warning", warning);
        }
        text
    }

    /// For programs: the shape that `docs/explain.md` promises.
    pub fn to_json(&self) -> Value {
        json!({
            "set": self.set,
            "state": self.state.as_str(),
            "why": self.why,
            "cure": self.cure,
            "warnings": self.warnings,
            "injection": self.injection.as_ref().map(Injection::to_json),
        })
    }
}
