//! What a trial restore found: whether the newest backup is one, up to which moment, and how long it took.

use std::fmt::Write as _;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::summary::in_short;

/// What a trial restore found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// See [`super::index::FORMAT`].
    pub format: u32,
    /// When it began.
    pub started: Timestamp,
    /// How long it took, in seconds.
    pub seconds: u64,
    /// The base backup that it began with; absent if it did not come to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// The last commit that is there after all WAL was repeated; absent if it failed, or no commit followed the backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restorable_to: Option<Timestamp>,
    /// The first line of what the user's query answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Programs that the image lacks, so that their part was left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

// === impl Verification ===

impl Verification {
    /// With its texts as short as they may be.
    #[must_use]
    pub fn cut(mut self) -> Self {
        for text in [&mut self.answer, &mut self.failed].into_iter().flatten() {
            *text = in_short(text);
        }
        self
    }

    /// In a few words, for people.
    #[must_use]
    pub fn in_words(&self) -> String {
        let mut words = match (&self.failed, &self.restorable_to) {
            (Some(why), _) => return format!("FAILED after {} s: {why}", self.seconds),
            (None, Some(to)) => format!("restorable to {to:.0}"),
            (None, None) => "restorable".to_owned(),
        };
        // Writing to a string can't fail.
        let _ = write!(words, ", took {} s", self.seconds);
        if let Some(answer) = &self.answer {
            let _ = write!(words, ", answer: {answer}");
        }
        if !self.left_out.is_empty() {
            let _ = write!(words, ", without {} (not in the image)", self.left_out.join(" and "));
        }
        words
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::backup::summary::LONGEST;

    pub(in crate::backup) fn verification(failed: Option<&str>) -> Verification {
        Verification {
            format: 1,
            started: "2026-11-30T05:00:00Z".parse().unwrap(),
            seconds: 41,
            backup: Some("20261130".into()),
            restorable_to: "2026-11-30T14:03:12.345Z".parse().ok().filter(|_| failed.is_none()),
            answer: failed.is_none().then(|| "1204".into()),
            left_out: Vec::new(),
            failed: failed.map(str::to_owned),
        }
    }

    #[test]
    fn it_is_told_in_a_few_words() {
        assert_eq!(verification(None).in_words(), "restorable to 2026-11-30T14:03:12Z, took 41 s, answer: 1204");
        assert_eq!(verification(Some("no such file")).in_words(), "FAILED after 41 s: no such file");
        let without = Verification { left_out: vec!["pg_amcheck".into()], answer: None, ..verification(None) };
        assert!(without.in_words().ends_with("took 41 s, without pg_amcheck (not in the image)"));
    }

    #[test]
    fn what_a_program_says_at_length_is_cut() {
        let long = Verification { answer: Some("one\ntwo ".repeat(1000)), ..verification(None) }.cut();
        let answer = long.answer.unwrap_or_default();
        assert!(answer.starts_with("one two one") && answer.chars().count() == LONGEST);
    }
}
