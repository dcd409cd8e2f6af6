//! What a timeline's history says of a segment.

use super::wal::Segment;
use crate::election::lineage::Branch;

/// Whether the database left a segment's timeline before its end. A standby then has the segment only in part, and still gives it to the
/// archive (`archive_mode=always`, `WalReceiverMain`): nobody needs it, since the next timeline has a copy of what counts of it.
#[must_use]
pub fn is_left_in(segment: Segment, history: &[Branch], segment_size: u64) -> bool {
    history.iter().any(|branch| branch.timeline == segment.timeline && branch.left_at < segment.end(segment_size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::Lsn;
    use crate::election::lineage::branches as parse;

    const HISTORY: &str = "1\t0/5000098\tno recovery target specified\n\n2\t0/9000000\tbefore 2026-11-30 15:00:00+00\n";

    #[test]
    fn a_history_is_read() {
        let branches =
            [Branch { timeline: 1, left_at: Lsn(0x500_0098) }, Branch { timeline: 2, left_at: Lsn(0x900_0000) }];
        assert_eq!(parse(HISTORY), branches);
        assert_eq!(parse("# comment\nnonsense\n"), []);
    }

    #[test]
    fn a_segment_counts_unless_its_timeline_was_left_before_its_end() {
        let size = 16 << 20;
        let is_left =
            |timeline, position| is_left_in(Segment::at(timeline, Lsn(position), size), &parse(HISTORY), size);
        assert!(!is_left(1, 0x400_0000));
        assert!(is_left(1, 0x500_0000), "the promotion was in the middle of it");
        assert!(is_left(1, 0x600_0000), "what an earlier master wrote after it");
        assert!(!is_left(2, 0x800_0000), "left at its very end: it is whole");
        assert!(is_left(2, 0x900_0000));
        assert!(!is_left(3, 0x900_0000));
    }
}
