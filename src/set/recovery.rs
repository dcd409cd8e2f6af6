//! What a set's owner asks for by the annotation `pgset.dev/recover`: a recovery in place.
//!
//! `to TARGET at TIME` restores a moment beside the set's data, `accept TARGET at TIME` lets the set go on from it, and `forget at TIME` lets go what
//! it had before. The time is when it was ordered first: it tells one order from another.

use std::fmt;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::backup::Target;

/// A recovery that was ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Up to which moment.
    pub target: Target,
    /// When it was ordered.
    pub at: Timestamp,
}

/// What is ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryOrder {
    /// Restore it beside the data, and let it be looked at.
    To(Recovery),
    /// Go on from it.
    Accept(Recovery),
    /// Let go what was kept by a recovery that was ordered before.
    Forget {
        /// When that was ordered.
        at: Timestamp,
    },
}

// === impl RecoveryOrder ===

impl RecoveryOrder {
    /// Of the annotation's value.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let recovery = |target: &str, at: &str| Some(Recovery { target: Target::parse(target)?, at: at.parse().ok()? });
        match words.as_slice() {
            ["to", target, "at", at] => recovery(target, at).map(Self::To),
            ["accept", target, "at", at] => recovery(target, at).map(Self::Accept),
            ["forget", "at", at] => at.parse().ok().map(|at| Self::Forget { at }),
            _ => None,
        }
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.target, self.at)
    }
}

impl fmt::Display for RecoveryOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(recovery) => write!(f, "to {recovery}"),
            Self::Accept(recovery) => write!(f, "accept {recovery}"),
            Self::Forget { at } => write!(f, "forget at {at}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_and_written_alike() {
        for text in [
            "to 2026-11-24T14:03:00Z at 2026-12-01T03:34:20.123Z",
            "accept 1A/2B00028 at 2026-12-01T03:34:20.123Z",
            "to latest at 2026-12-01T03:34:20Z",
            "to forget at 2026-12-01T03:34:20Z",
            "forget at 2026-12-01T03:34:20Z",
        ] {
            assert_eq!(RecoveryOrder::parse(text).map(|order| order.to_string()).as_deref(), Some(text));
        }
    }

    #[test]
    fn nothing_else_is_one() {
        for text in [
            "",
            "2026-11-24T14:03:00Z",
            "to 2026-11-24T14:03:00Z",
            "to yesterday evening at 2026-12-01T03:34:20Z",
            "to 2026-11-24 at 2026-12-01T03:34:20Z",
            "accept at 2026-12-01T03:34:20Z",
            "accept  latest at 2026-12-01T03:34:20Z",
            "forget",
            "to it's at 2026-12-01T03:34:20Z",
        ] {
            assert_eq!(RecoveryOrder::parse(text), None, "{text}");
        }
    }
}
