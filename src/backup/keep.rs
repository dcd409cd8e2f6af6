//! What has to stay in the store, so that every moment within the time to keep can be restored, and what goes.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::index::Index;
use super::line::Line;
use super::wal::WalFile;

/// What nobody needs any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Base backups, by their names.
    pub backups: Vec<String>,
    /// Files of the WAL.
    pub wal: Vec<WalFile>,
}

/// Why a base backup can't go before its time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Kept {
    /// It is not there.
    #[error("there is no base backup {0}: pgset backup list says which there are")]
    Absent(String),
    /// It is all there is.
    #[error(
        "{0} is the last base backup: without it nothing can be restored. Make another one first (pgset backup now)"
    )]
    Last(String),
    /// Others stand upon it.
    #[error("{id} is the full base backup upon which {other} stands: delete that one first")]
    Parent {
        /// Which one.
        id: String,
        /// What stands upon it.
        other: String,
    },
}

/// A base backup among others.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// What it is called.
    pub id: &'a str,
    /// The full one upon which it stands.
    pub parent: Option<&'a str>,
    /// Whether its WAL is there, without which it is none.
    pub has_wal: bool,
}

/// Whether one of these base backups may go before its time.
pub fn may_go<'a>(all: impl IntoIterator<Item = Standing<'a>>, id: &str) -> Result<(), Kept> {
    let all: Vec<_> = all.into_iter().collect();
    if !all.iter().any(|it| it.id == id) {
        return Err(Kept::Absent(id.to_owned()));
    }
    if let Some(other) = all.iter().find(|it| it.parent == Some(id)) {
        return Err(Kept::Parent { id: id.to_owned(), other: other.id.to_owned() });
    }
    if all.iter().any(|it| it.id != id && it.has_wal) { Ok(()) } else { Err(Kept::Last(id.to_owned())) }
}

/// Which backups and which WAL no moment from `now - keep` on needs. The last backup before that moment stays, all later ones, and the full ones upon
/// which those stand; of the WAL whatever lies behind the beginning of the first of these but for the last, on every timeline: what a lost master
/// wrote may be all that is left of it. A backup of what the set has left behind leads to no moment of it, and makes none before it superfluous.
#[must_use]
pub fn expired(backups: &[Index], wal: &[WalFile], line: &Line, now: Timestamp, keep: Duration) -> Expired {
    let Some(horizon) = now.checked_sub(keep).ok() else { return Expired::default() };
    let is_of_line = |it: &&Index| it.ended <= horizon && line.goes_on_from(it);
    let oldest = backups.iter().filter(is_of_line).map(|it| it.ended).max();
    let (kept, gone): (Vec<_>, Vec<_>) = backups.iter().partition(|it| oldest.is_none_or(|oldest| it.ended >= oldest));
    // Without a backup nothing says what the WAL is good for: the first one may be in the making.
    let Some(first) = kept.iter().map(|it| it.first_place()).min() else { return Expired::default() };
    let timeline = kept.iter().map(|it| it.timeline).min().unwrap_or_default();
    let is_expired = |file: &WalFile| match file {
        // A database's newest history tells of all timelines before.
        WalFile::History(of) => *of < timeline,
        file => file.place().is_some_and(|place| place < first),
    };
    let is_parent = |id: &str| kept.iter().any(|it| it.parent.as_deref() == Some(id));
    Expired {
        backups: gone.into_iter().filter(|it| !is_parent(&it.id)).map(|it| it.id.clone()).collect(),
        wal: wal.iter().copied().filter(is_expired).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup::index::tests::backup;
    use crate::backup::line::tests::lives;
    use crate::election::Lsn;
    use crate::election::lineage::Branch;

    fn wal(names: &[&str]) -> Vec<WalFile> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn now() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    const DAY: Duration = Duration::from_hours(24);

    /// Timelines that follow each other, of which nothing was left behind.
    fn line() -> Line {
        Line { timeline: 99, before: (1..99).map(|timeline| Branch { timeline, left_at: Lsn(u64::MAX) }).collect() }
    }

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
        let gone = expired(&backups, &files, &line(), now(), 3 * DAY);
        assert_eq!(gone.backups, ["20261110"], "a moment of the 17th needs the backup of the 15th");
        assert_eq!(
            gone.wal,
            wal(&["000000010000000000000003", "000000010000000000000005", "000000010000000000000005.00000028.backup"])
        );
    }

    #[test]
    fn a_full_backup_stays_for_those_that_stand_upon_it_and_without_its_wal() {
        let upon = Index { parent: Some("20261110".to_owned()), ..backup(15, 1, 6) };
        let files = wal(&["000000010000000000000003", "000000010000000000000006"]);
        let gone =
            expired(&[backup(8, 1, 1), backup(10, 1, 3), upon, backup(19, 1, 9)], &files, &line(), now(), 3 * DAY);
        assert_eq!(gone.backups, ["20261108"]);
        assert_eq!(gone.wal, wal(&["000000010000000000000003"]));
    }

    #[test]
    fn a_backup_of_what_was_left_behind_makes_none_before_it_superfluous() {
        let line = Line::of(2, "1\t0/5000098\tbefore 2026-11-12 00:00:00+00\n");
        let backups = [backup(10, 1, 3), backup(15, 1, 6), backup(19, 2, 9)];
        assert_eq!(
            expired(&backups, &[], &line, now(), 3 * DAY).backups,
            [""; 0],
            "the 18th needs the one of the 10th"
        );
        let later = "2026-11-23T12:00:00Z".parse().unwrap();
        assert_eq!(expired(&backups, &[], &line, later, 3 * DAY).backups, ["20261110", "20261115"]);
    }

    #[test]
    fn neither_the_last_backup_nor_one_that_others_stand_upon_goes_by_order() {
        let one = |id, parent| Standing { id, parent, has_wal: true };
        let all = [one("a", None), one("b", Some("a")), one("c", None)];
        assert_eq!(may_go(all, "b"), Ok(()));
        assert_eq!(may_go(all, "c"), Ok(()));
        assert_eq!(may_go(all, "a"), Err(Kept::Parent { id: "a".into(), other: "b".into() }));
        assert_eq!(may_go(all, "d"), Err(Kept::Absent("d".into())));
        assert_eq!(may_go([one("a", None)], "a"), Err(Kept::Last("a".into())));
        let full = Standing { has_wal: false, ..one("a", None) };
        assert_eq!(may_go([full, one("b", Some("a"))], "b"), Err(Kept::Last("b".into())), "a full one without its WAL");
    }

    #[test]
    fn nothing_goes_while_there_is_no_backup_or_all_are_young() {
        let files = wal(&["000000010000000000000003"]);
        assert_eq!(expired(&[], &files, &line(), now(), DAY), Expired::default());
        let young = expired(&[backup(19, 1, 3), backup(20, 1, 4)], &files, &line(), now(), 10 * DAY);
        assert_eq!(young, Expired::default());
    }

    #[test]
    fn histories_stay_as_long_as_a_backup_of_their_timeline_or_an_older_one() {
        let files = wal(&["00000002.history", "00000003.history", "00000004.history"]);
        let gone = expired(&[backup(10, 1, 1), backup(15, 3, 6), backup(19, 3, 9)], &files, &line(), now(), 3 * DAY);
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
                        // One of three is full.
                        let full = backups.iter().rfind(|it: &&Index| it.parent.is_none()).map(|it| it.id.clone());
                        backups.push(Index { parent: full.filter(|_| length > 1), ..backup(day, timeline, segment) });
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
        /// The same where parts of the history were left behind: for the moments of the line that the set has come to.
        #[test]
        fn what_the_line_needs_stays((backups, line) in lives(), days in 1_u32..15) {
            let horizon = now().checked_sub(days * DAY).unwrap();
            let gone = expired(&backups, &[], &line, now(), days * DAY);
            for moment in backups.iter().map(|it| it.ended).filter(|it| *it >= horizon).chain([horizon]) {
                let leads = |it: &&Index| it.ended <= moment && line.goes_on_from(it);
                if let Some(needed) = backups.iter().filter(leads).max_by_key(|it| it.ended) {
                    prop_assert!(!gone.backups.contains(&needed.id), "{moment} needs {}", needed.id);
                }
            }
        }

        /// With what stays, every moment within the time to keep can be restored; and with one backup less it could not.
        #[test]
        fn what_is_needed_stays_and_the_rest_goes((backups, files) in histories(), days in 1_u32..15) {
            let keep = days * DAY;
            let horizon = now().checked_sub(keep).unwrap();
            let gone = expired(&backups, &files, &line(), now(), keep);
            let kept: Vec<_> = backups.iter().filter(|it| !gone.backups.contains(&it.id)).collect();
            prop_assert_eq!(kept.is_empty(), backups.is_empty());
            for parent in kept.iter().filter_map(|it| it.parent.as_ref()) {
                prop_assert!(kept.iter().any(|it| it.id == *parent), "what a kept one stands upon stays");
            }
            // Of the others, those that only lend their files to a kept one are not for a moment of their own.
            let oldest = backups.iter().filter(|it| it.ended <= horizon).map(|it| it.ended).max();
            let (kept, lenders): (Vec<_>, Vec<_>) =
                kept.into_iter().partition(|it| oldest.is_none_or(|oldest| it.ended >= oldest));
            for lender in lenders {
                let is_needed = kept.iter().any(|it| it.parent.as_deref() == Some(lender.id.as_str()));
                prop_assert!(is_needed, "{} is needed by none", lender.id);
            }
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
