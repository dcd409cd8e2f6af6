//! The line of its history that a database has come to. A failover that gave something up, and a recovery in place, leave a part of the WAL behind
//! them: a base backup that was made there leads to no moment after that. Pure.

use serde::{Deserialize, Serialize};

use super::index::Index;
use super::wal::WalFile;
use crate::election::lineage::{Branch, branches};

/// A timeline, and those before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The timeline.
    pub timeline: u32,
    /// What it goes on from, each up to where it was left; empty of the first one, or where that is not known.
    pub before: Vec<Branch>,
}

// === impl Line ===

impl Line {
    /// Of a timeline, by what its file of history says.
    #[must_use]
    pub fn of(timeline: u32, history: &str) -> Self {
        Self { timeline, before: branches(history) }
    }

    /// Whether it goes on from a base backup: from where that is whole, each moment after it can be reached with it.
    #[must_use]
    pub fn goes_on_from(&self, backup: &Index) -> bool {
        // Of a line of which nothing else is known all are.
        if self.before.is_empty() {
            return true;
        }
        let left_at = self.before.iter().find(|branch| branch.timeline == backup.timeline).map(|it| it.left_at);
        backup.timeline == self.timeline || left_at.is_some_and(|left_at| backup.ends <= left_at)
    }

    /// The word by which PostgreSQL recovers along it. By `latest` it would take the first number without a history for the end of all, and pgset
    /// passes over numbers.
    #[must_use]
    pub fn target(&self) -> String {
        if self.before.is_empty() && self.timeline > 1 { "latest".to_owned() } else { self.timeline.to_string() }
    }
}

impl Default for Line {
    fn default() -> Self {
        Self { timeline: 1, before: Vec::new() }
    }
}

/// The newest timeline by its history, or by a base backup of it.
#[must_use]
pub fn newest(files: &[WalFile], backups: &[Index]) -> u32 {
    let histories = files.iter().filter_map(|file| match file {
        WalFile::History(timeline) => Some(*timeline),
        _ => None,
    });
    histories.chain(backups.iter().map(|backup| backup.timeline)).max().unwrap_or(1)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup::index::tests::backup;
    use crate::election::Lsn;

    const SIZE: u64 = 16 << 20;

    #[test]
    fn a_backup_behind_a_fork_leads_nowhere_and_one_before_it_does() {
        // Timeline 1 was left in segment 5.
        let line = Line::of(3, "1\t0/5000098\tbefore 2026-11-30\n2\t0/9000000\tno recovery target specified\n");
        for (timeline, segment, leads) in [(1, 3, true), (1, 4, true), (1, 5, false), (1, 7, false), (2, 7, true)] {
            let index = backup(1, timeline, segment);
            assert_eq!(line.goes_on_from(&index), leads, "timeline {timeline}, segment {segment}: ends {}", index.ends);
        }
        assert!(line.goes_on_from(&backup(1, 3, 20)));
        assert!(!line.goes_on_from(&backup(1, 4, 1)), "another's timeline");
        assert_eq!((line.target().as_str(), Line::default().target().as_str()), ("3", "1"));
        assert_eq!(Line::of(4, "").target(), "latest", "its history is not known");
    }

    #[test]
    fn the_newest_timeline_is_known_by_its_history_or_a_backup_of_it() {
        let files = ["00000003.history", "000000050000000000000001"].map(|name| name.parse().unwrap());
        assert_eq!(newest(&files, &[backup(1, 2, 1)]), 3, "a segment alone leads nowhere");
        assert_eq!(newest(&files, &[backup(1, 4, 1)]), 4);
        assert_eq!(newest(&[], &[]), 1);
    }

    /// What a set has done: it wrote, made a backup, or went back by so many segments to go on from there. Timelines have gaps in their numbers.
    pub(crate) fn lives() -> impl Strategy<Value = (Vec<Index>, Line)> {
        prop::collection::vec((0_u8..4, 0_u64..6), 0..30).prop_map(|steps| {
            let (mut backups, mut line, mut segment) = (Vec::<Index>::new(), Line::default(), 1);
            for (kind, count) in steps {
                match kind {
                    0 => segment += count + 1,
                    1 => {
                        let day = u32::try_from(backups.len() + 1).unwrap();
                        backups.push(backup(day.min(30), line.timeline, segment));
                        segment += 1;
                    }
                    _ => {
                        segment = segment.saturating_sub(count).max(1);
                        let left_at = Lsn(segment * SIZE + 0x98);
                        // To go back behind the beginning of a timeline is to go on from the one before.
                        let left = line.before.iter().find(|branch| branch.left_at >= left_at);
                        let from = left.map_or(line.timeline, |branch| branch.timeline);
                        line.before.retain(|branch| branch.left_at < left_at);
                        line.before.push(Branch { timeline: from, left_at });
                        line.timeline += 1 + u32::from(count == 2);
                    }
                }
            }
            (backups, line)
        })
    }
}
