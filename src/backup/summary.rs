//! What a master tells of the set's backups on its Lease, for people and programs that look at the set. Nothing is decided by it.

use std::collections::BTreeSet;

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::index::Index;
use super::report::Report;
use super::verification::Verification;
use crate::names::lease::BACKUPS;

/// So many backups are told, the newest ones, and the full ones upon which they stand: it goes with every renewal.
const MOST: usize = 20;
/// So much is told of what goes wrong, or of what was found.
pub(super) const LONGEST: usize = 400;

/// What is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Summary {
    /// Where they go.
    pub location: String,
    /// The last file of the WAL that the master has seen safely stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archived: Option<String>,
    /// When it saw that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archived_at: Option<Timestamp>,
    /// How many files wait on its volume.
    pub waiting: usize,
    /// What goes wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble_since: Option<Timestamp>,
    /// How many backups there are.
    pub count: usize,
    /// The newest of them and those upon which they stand, the oldest first.
    pub backups: Vec<Told>,
    /// What the last trial restore found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verification>,
}

/// A base backup, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What it is called.
    pub id: String,
    /// When it was complete.
    pub ended: Timestamp,
    /// How long it took, in seconds.
    pub seconds: u64,
    /// Its timeline.
    pub timeline: u32,
    /// Bytes of the database.
    pub size: u64,
    /// Bytes of what is stored.
    pub stored: u64,
    /// What it was made for.
    #[serde(default)]
    pub due: String,
    /// The full backup upon which it stands; absent if it is one itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

// === impl Summary ===

impl Summary {
    /// Of what the archiver told.
    #[must_use]
    pub fn of(report: &Report) -> Self {
        let newest = report.backups.iter().rev().take(MOST).rev();
        let parents: BTreeSet<_> = newest.filter_map(|it| it.parent.as_deref()).collect();
        let older = report.backups.len().saturating_sub(MOST);
        let is_told = |at: usize, it: &Index| at >= older || parents.contains(it.id.as_str());
        let told_backups = report.backups.iter().enumerate().filter(|(at, it)| is_told(*at, it));
        let gap = report.gap.as_ref().map(|gap| (gap_in_words(&gap.first), gap.until));
        let told = report.trouble.as_ref().or(gap.as_ref()).or(report.failed.as_ref());
        let trouble = report.alarm.clone().or_else(|| told.map(|(why, _)| why.clone()));
        let since = told.map(|(_, since)| *since);
        Self {
            location: report.location.clone(),
            archived: report.archived.as_ref().map(|(file, _)| file.clone()),
            archived_at: report.archived.as_ref().map(|(_, at)| *at),
            waiting: report.waiting,
            trouble_since: since.filter(|_| trouble.is_some()),
            trouble: trouble.map(|text| text.chars().take(LONGEST).collect()),
            count: report.backups.len(),
            backups: told_backups.map(|(_, it)| Told::of(it)).collect(),
            verified: report.verified.clone().map(Verification::cut),
        }
    }
}

/// On one line, and no more than is told.
pub(super) fn in_short(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(LONGEST).collect()
}

/// What it means that WAL was let go.
#[must_use]
pub fn gap_in_words(first: &str) -> String {
    format!(
        "the store did not take the WAL before it had filled its part of the volume (pgset.dev/archive-limit), and from {first} on it was let go: \
         what was committed from there on can't be restored before the next base backup, which is made as soon as the store is there"
    )
}

// === impl Told ===

impl Told {
    fn of(index: &Index) -> Self {
        let Index { id, started, ended, timeline, size, stored, due, parent, .. } = index;
        let seconds = u64::try_from(ended.duration_since(*started).as_secs()).unwrap_or(0);
        Self {
            id: id.clone(),
            ended: *ended,
            seconds,
            timeline: *timeline,
            size: *size,
            stored: *stored,
            due: due.clone(),
            parent: parent.clone(),
        }
    }
}

/// Tells it on a Lease, or takes off what an earlier word says.
pub fn write(lease: &mut LeaseObject, summary: Option<&Summary>) {
    let text = summary.and_then(|summary| serde_json::to_string(summary).ok());
    let notes = lease.metadata.annotations.get_or_insert_default();
    match text {
        Some(text) => notes.insert(BACKUPS.to_owned(), text),
        None => notes.remove(BACKUPS),
    };
}

/// What a Lease says. Anybody who may write Leases may have written it: what makes no sense is as if it were not there.
#[must_use]
pub fn read(lease: &LeaseObject) -> Option<Summary> {
    serde_json::from_str(lease.metadata.annotations.as_ref()?.get(BACKUPS)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::index::tests::backup;
    use crate::backup::verification::tests::verification;

    #[test]
    fn a_lease_tells_the_newest_backups_and_what_goes_wrong() {
        let now: Timestamp = "2026-11-30T15:00:00Z".parse().unwrap();
        let parent = |day: u32| (day == 24).then(|| "20261102".to_owned());
        let report = Report {
            location: "s3://bucket/db".into(),
            archived: Some(("000000010000000000000003".into(), now)),
            trouble: Some(("no route".into(), now)),
            backups: (1..=25).map(|day| Index { parent: parent(day), ..backup(day, 1, day.into()) }).collect(),
            verified: Some(verification(None)),
            ..Report::default()
        };
        let mut lease = LeaseObject::default();
        write(&mut lease, Some(&Summary::of(&report)));
        let told = read(&lease).unwrap();
        assert_eq!((told.count, told.backups.len()), (25, MOST + 1));
        assert_eq!(told.backups.first().map(|it| it.id.as_str()), Some("20261102"), "what one of them stands upon");
        assert_eq!(told.backups.last().map(|it| (it.id.as_str(), it.seconds)), Some(("20261125", 3600)));
        assert_eq!(told.trouble.as_deref(), Some("no route"));
        assert_eq!(told.verified, Some(verification(None)));
        write(&mut lease, None);
        assert_eq!(read(&lease), None);
    }
}
