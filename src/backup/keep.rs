//! What has to stay in the store, so that every moment within the time to keep can be restored, and what goes.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::index::Index;
use super::wal::WalFile;

/// What nobody needs any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Base backups, by their names.
    pub backups: Vec<String>,
    /// Files of the WAL.
    pub wal: Vec<WalFile>,
}

/// Which backups and which WAL no moment from `now - keep` on needs. The last backup before that moment stays, and all later ones; of the WAL
/// whatever lies behind the beginning of the oldest that stays, on every timeline: what a lost master wrote may be all that is left of it.
#[must_use]
pub fn expired(backups: &[Index], wal: &[WalFile], now: Timestamp, keep: Duration) -> Expired {
    let Some(horizon) = now.checked_sub(keep).ok() else { return Expired::default() };
    let oldest = backups.iter().filter(|it| it.ended <= horizon).map(|it| it.ended).max();
    let (kept, gone): (Vec<_>, Vec<_>) = backups.iter().partition(|it| oldest.is_none_or(|oldest| it.ended >= oldest));
    // Without a backup nothing says what the WAL is good for: the first one may be in the making.
    let Some(first) = kept.iter().map(|it| it.first_place()).min() else { return Expired::default() };
    let timeline = kept.iter().map(|it| it.timeline).min().unwrap_or_default();
    let is_expired = |file: &WalFile| match file {
        // A database's newest history tells of all timelines before.
        WalFile::History(of) => *of < timeline,
        file => file.place().is_some_and(|place| place < first),
    };
    Expired {
        backups: gone.into_iter().map(|it| it.id.clone()).collect(),
        wal: wal.iter().copied().filter(is_expired).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup::index::tests::backup;

    fn wal(names: &[&str]) -> Vec<WalFile> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn now() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn the_last_backup_before_the_time_to_keep_stays_and_its_wal_with_it() {
        let backups = [backup(10, 1, 3), backup(15, 1, 6), backup(19, 2, 9)];
        let files = wal(&[
            "000000010000000000000003",
            "000000010000000000000005",
            "000000010000000000000005.00000028.backup",
            "000000010000000000000006",
            "000000010000000000000008.partial",
            "00000002.history",
            "000000020000000000000008",
            "000000020000000000000009",
        ]);
        let gone = expired(&backups, &files, now(), 3 * DAY);
        assert_eq!(gone.backups, ["20261110"], "a moment of the 17th needs the backup of the 15th");
        assert_eq!(
            gone.wal,
            wal(&["000000010000000000000003", "000000010000000000000005", "000000010000000000000005.00000028.backup"])
        );
    }

    #[test]
    fn nothing_goes_while_there_is_no_backup_or_all_are_young() {
        let files = wal(&["000000010000000000000003"]);
        assert_eq!(expired(&[], &files, now(), DAY), Expired::default());
        let young = expired(&[backup(19, 1, 3), backup(20, 1, 4)], &files, now(), 10 * DAY);
        assert_eq!(young, Expired::default());
    }

    #[test]
    fn histories_stay_as_long_as_a_backup_of_their_timeline_or_an_older_one() {
        let files = wal(&["00000002.history", "00000003.history", "00000004.history"]);
        let gone = expired(&[backup(10, 1, 1), backup(15, 3, 6), backup(19, 3, 9)], &files, now(), 3 * DAY);
        assert_eq!(gone.wal, wal(&["00000002.history"]));
    }

    /// Every segment of one history: timelines that follow each other, and what each backup is of.
    fn histories() -> impl Strategy<Value = (Vec<Index>, Vec<WalFile>)> {
        let steps = prop::collection::vec((0_u8..4, 1_u64..4), 1..40);
        steps.prop_map(|steps| {
            let (mut backups, mut files) = (Vec::new(), Vec::new());
            let (mut timeline, mut segment, mut day) = (1, 1, 1);
            for (kind, length) in steps {
                match kind {
                    0 if day < 20 => {
                        backups.push(backup(day, timeline, segment));
                        day += u32::try_from(length).unwrap();
                    }
                    1 => {
                        timeline += 1;
                        files.push(WalFile::History(timeline));
                    }
                    _ => segment += length,
                }
                for number in segment..segment + length {
                    let name = format!("{timeline:08X}00000000{number:08X}");
                    files.push(name.parse().unwrap());
                }
            }
            (backups, files)
        })
    }

    proptest! {
        /// With what stays, every moment within the time to keep can be restored; and with one backup less it could not.
        #[test]
        fn what_is_needed_stays_and_the_rest_goes((backups, files) in histories(), days in 1_u32..15) {
            let keep = days * DAY;
            let horizon = now().checked_sub(keep).unwrap();
            let gone = expired(&backups, &files, now(), keep);
            let kept: Vec<_> = backups.iter().filter(|it| !gone.backups.contains(&it.id)).collect();
            prop_assert_eq!(kept.is_empty(), backups.is_empty());
            // The backup for a moment is the last one that was complete before it.
            for moment in backups.iter().map(|it| it.ended).filter(|it| *it >= horizon).chain([horizon]) {
                let needed = backups.iter().filter(|it| it.ended <= moment).max_by_key(|it| it.ended);
                if let Some(needed) = needed {
                    prop_assert!(kept.contains(&needed));
                    for file in &gone.wal {
                        prop_assert!(file.place().is_none_or(|place| place < needed.first_place()));
                        prop_assert!(!matches!(file, WalFile::History(of) if *of >= needed.timeline));
                    }
                }
            }
            let older = kept.iter().filter(|it| it.ended <= horizon).count();
            prop_assert!(older <= 1, "of those before the time to keep one is enough");
            if let Some(first) = kept.iter().map(|it| it.first_place()).min() {
                let left = files.iter().filter(|it| !gone.wal.contains(it)).filter_map(|it| it.place());
                prop_assert!(left.min().is_none_or(|place| place >= first), "nothing stays that no backup needs");
            }
        }
    }
}
