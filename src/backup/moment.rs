//! With which base backup a moment of a database's history is reached.

use k8s_openapi::jiff::Timestamp;

use super::index::Index;
use super::line::Line;
use crate::election::Lsn;
use crate::set::backup::Target;

/// Why a moment can't be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// There is nothing to begin with.
    #[error("there is no complete base backup")]
    NoBackup,
    /// No backup is old enough.
    #[error(
        "{target} lies before the first moment that can be restored: the oldest base backup was complete at {ended} ({ends})"
    )]
    TooOld {
        /// The moment.
        target: String,
        /// When the oldest backup was complete.
        ended: Timestamp,
        /// Where in the WAL.
        ends: Lsn,
    },
    /// All backups are of what was left behind.
    #[error(
        "no base backup leads to timeline {0}, on which the database goes on: all were made of what was given up since (a failover, a recovery in \
         place); the next one does"
    )]
    LeftBehind(u32),
    /// The newest backup is of what was left behind, so that it can't be told which of both the set went on with.
    #[error(
        "the newest base backup {backup} is of timeline {timeline}, behind the point where the history of timeline {newest} leaves that one: if the \
         set went on to {newest}, its next base backup will say so; if somebody only promoted a server by hand, move {newest:08X}.history away in \
         the store; or say a moment (pgset.dev/recover-to)"
    )]
    InDoubt {
        /// The newest backup.
        backup: String,
        /// Its timeline.
        timeline: u32,
        /// The newest timeline.
        newest: u32,
    },
}

/// The base backup to begin with: the last one that was complete before the moment, of those that the line goes on from.
pub fn backup_for<'a>(backups: &'a [Index], target: &Target, line: &Line) -> Result<&'a Index, Unreachable> {
    let is_before = |backup: &&Index| match target {
        // Where a restore point lies is not known: the newest that there is may be too new, and PostgreSQL says so.
        Target::Latest | Target::Name(_) => true,
        Target::Time(time) => backup.ended <= *time,
        Target::Position(text) => text.parse().is_ok_and(|position: Lsn| backup.ends <= position),
    };
    let leading = || backups.iter().filter(|backup| line.goes_on_from(backup));
    let newest = backups.iter().max_by_key(|backup| backup.ended);
    if let Some(Index { id, timeline, .. }) = newest.filter(|newest| !line.goes_on_from(newest))
        && matches!(target, Target::Latest | Target::Name(_))
        && leading().next().is_some()
    {
        return Err(Unreachable::InDoubt { backup: id.clone(), timeline: *timeline, newest: line.timeline });
    }
    let found = leading().filter(is_before).max_by_key(|backup| backup.ended);
    found.ok_or_else(|| match leading().min_by_key(|backup| backup.ended) {
        None if backups.is_empty() => Unreachable::NoBackup,
        None => Unreachable::LeftBehind(line.timeline),
        Some(oldest) => Unreachable::TooOld { target: target.to_string(), ended: oldest.ended, ends: oldest.ends },
    })
}

/// The settings by which PostgreSQL stops there, besides those that say where the WAL is.
#[must_use]
pub fn settings(target: &Target, line: &Line) -> Vec<(&'static str, String)> {
    let mut settings =
        vec![("recovery_target_timeline", line.target()), ("recovery_target_action", "promote".to_owned())];
    match target {
        Target::Latest => {}
        Target::Time(time) => {
            settings.push(("recovery_target_time", time.strftime("%Y-%m-%d %H:%M:%S%.f+00").to_string()));
        }
        Target::Position(position) => settings.push(("recovery_target_lsn", position.clone())),
        Target::Name(name) => settings.push(("recovery_target_name", name.clone())),
    }
    settings
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup::index::tests::backup;
    use crate::backup::line::tests::lives;

    #[test]
    fn the_last_backup_before_a_moment_is_taken() {
        let backups = [backup(10, 1, 3), backup(15, 1, 6)];
        let line = Line::default();
        let id = |target: &str| backup_for(&backups, &Target::parse(target).unwrap(), &line).map(|it| it.id.as_str());
        assert_eq!(id("latest"), Ok("20261115"));
        assert_eq!(id("before-upgrade"), Ok("20261115"));
        assert_eq!(id("2026-11-15T04:00:00Z"), Ok("20261115"));
        assert_eq!(id("2026-11-15T03:59:59Z"), Ok("20261110"), "that of the 15th was not complete yet");
        assert_eq!(id("0/6000000"), Ok("20261110"));
        let why = backup_for(&backups, &Target::parse("2026-11-09T00:00:00Z").unwrap(), &line).unwrap_err().to_string();
        assert!(why.contains("2026-11-10T04:00:00Z"), "{why}");
        assert_eq!(backup_for(&[], &Target::Latest, &line), Err(Unreachable::NoBackup));
    }

    #[test]
    fn a_backup_of_what_was_left_behind_leads_to_no_moment() {
        // On the 16th the set went back to what it had in segment 5.
        let line = Line::of(2, "1\t0/5000098\tbefore 2026-11-12 00:00:00+00\n");
        let mut backups = vec![backup(10, 1, 3), backup(15, 1, 6)];
        let id = |backups: &[Index], target: &str| {
            backup_for(backups, &Target::parse(target).unwrap(), &line).map(|it| it.id.clone())
        };
        let why = id(&backups, "latest").unwrap_err().to_string();
        assert!(
            why.contains("20261115") && why.contains("00000002.history"),
            "or somebody promoted a server by hand: {why}"
        );
        assert_eq!(id(&backups, "2026-11-18T00:00:00Z").as_deref(), Ok("20261110"));
        assert_eq!(id(&backups[1..], "latest"), Err(Unreachable::LeftBehind(2)));
        backups.push(backup(17, 2, 6));
        assert_eq!(id(&backups, "latest").as_deref(), Ok("20261117"));
        assert_eq!(id(&backups, "2026-11-16T12:00:00Z").as_deref(), Ok("20261110"));
    }

    proptest! {
        /// What a restore begins with leads to where it goes, and no later one does.
        #[test]
        fn the_last_backup_that_leads_there_is_taken((backups, line) in lives(), day in 1_u32..30) {
            let moment = format!("2026-11-{day:02}T12:00:00Z").parse().unwrap();
            match backup_for(&backups, &Target::Time(moment), &line) {
                Ok(found) => {
                    prop_assert!(line.goes_on_from(found) && found.ended <= moment);
                    let is_later = |it: &&Index| it.ended > found.ended && it.ended <= moment && line.goes_on_from(it);
                    prop_assert!(!backups.iter().any(|it| is_later(&it)));
                }
                Err(_) => prop_assert!(!backups.iter().any(|it| it.ended <= moment && line.goes_on_from(it))),
            }
        }
    }

    #[test]
    fn postgresql_is_told_where_to_stop() {
        let settings = |target: &str| {
            settings(&Target::parse(target).unwrap(), &Line::default()).into_iter().skip(2).collect::<Vec<_>>()
        };
        assert_eq!(settings("latest"), []);
        let time = ("recovery_target_time", "2026-11-24 13:03:00+00".to_owned());
        assert_eq!(settings("2026-11-24T14:03:00+01:00"), [time]);
        assert_eq!(settings("0/6000000"), [("recovery_target_lsn", "0/6000000".to_owned())]);
    }
}
