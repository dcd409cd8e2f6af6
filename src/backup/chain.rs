//! Whether the WAL from a base backup to its end is all there. PostgreSQL takes the first segment that is missing for the end of the history, and
//! would leave out without a word what follows.

use std::collections::BTreeSet;

use super::index::Index;
use super::wal::{Place, Segment, WalFile};
use crate::election::lineage::Branch;

/// Whether the WAL of a backup begins in the store. Of some backups only the files are kept, for those that stand upon them.
#[must_use]
pub fn has_wal(index: &Index, files: &[WalFile]) -> bool {
    files.iter().any(|file| file.place() == Some(index.first_place()))
}

/// The newest timeline of which something is stored.
#[must_use]
pub fn newest_timeline(files: &[WalFile], index: &Index) -> u32 {
    let of = |file: &WalFile| match file {
        WalFile::History(timeline) => Some(*timeline),
        WalFile::Segment(segment) => Some(segment.timeline),
        WalFile::Partial(_) | WalFile::Label(..) => None,
    };
    files.iter().filter_map(of).fold(index.timeline, u32::max)
}

/// The first segment that a restore to the end of the history lacks, and the last one that there is. `history` is the newest timeline's.
#[must_use]
pub fn hole(index: &Index, files: &[WalFile], newest: u32, history: &[Branch]) -> Option<(Segment, Segment)> {
    let segment = |file: &WalFile| match file {
        WalFile::Segment(segment) => Some(*segment),
        _ => None,
    };
    let there: BTreeSet<Segment> = files.iter().filter_map(segment).collect();
    // Where a promotion was, the newer timeline has a copy of the segment.
    let timeline_at = |place: Place| {
        let end = Segment { place, timeline: newest }.end(index.segment_size);
        history.iter().find(|branch| end <= branch.left_at).map_or(newest, |branch| branch.timeline)
    };
    let needed = |place: Place| Segment { place, timeline: timeline_at(place) };
    let last = there.iter().rfind(|segment| segment.timeline == needed(segment.place).timeline)?;
    let mut place = index.first_place();
    while place <= last.place {
        if !there.contains(&needed(place)) {
            return Some((needed(place), *last));
        }
        place = place.next(index.segment_size);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::index::tests::backup;
    use crate::election::Lsn;

    fn files(names: &[&str]) -> Vec<WalFile> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    const SIZE: u64 = 16 << 20;

    #[test]
    fn a_missing_segment_is_named_wherever_it_is() {
        let (index, history) = (backup(1, 1, 3), [Branch { timeline: 1, left_at: Lsn(5 * SIZE + 0x98) }]);
        let all = files(&[
            "000000010000000000000003",
            "000000010000000000000004",
            "000000010000000000000005.partial",
            "00000002.history",
            "000000020000000000000005",
            "000000020000000000000006",
            "000000020000000000000007",
        ]);
        assert_eq!(newest_timeline(&all, &index), 2);
        assert_eq!(hole(&index, &all, 2, &history), None);
        for missing in [0, 1, 4, 5] {
            let mut less = all.clone();
            let name = less.remove(missing).to_string();
            let (found, last) = hole(&index, &less, 2, &history).unwrap();
            assert_eq!((found.to_string(), last.to_string()), (name, "000000020000000000000007".to_owned()));
        }
        assert_eq!(hole(&index, &all[..6], 2, &history), None, "what is not there at the end may never have been");
    }

    #[test]
    fn what_a_lost_master_wrote_alone_fills_no_hole_of_the_set() {
        let (index, history) = (backup(1, 1, 3), [Branch { timeline: 1, left_at: Lsn(4 * SIZE + 0x98) }]);
        let all = files(&[
            "000000010000000000000003",
            "000000010000000000000004",
            "000000010000000000000005",
            "000000020000000000000004",
            "000000020000000000000006",
        ]);
        let (found, _) = hole(&index, &all, 2, &history).unwrap();
        assert_eq!(found.to_string(), "000000020000000000000005");
    }
}
