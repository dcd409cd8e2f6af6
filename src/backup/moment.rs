//! With which base backup a moment of a database's history is reached.

use k8s_openapi::jiff::Timestamp;

use super::index::Index;
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
}

/// The base backup to begin with: the last one that was complete before the moment.
pub fn backup_for<'a>(backups: &'a [Index], target: &Target) -> Result<&'a Index, Unreachable> {
    let is_before = |backup: &&Index| match target {
        // Where a restore point lies is not known: the newest that there is may be too new, and PostgreSQL says so.
        Target::Latest | Target::Name(_) => true,
        Target::Time(time) => backup.ended <= *time,
        Target::Position(text) => text.parse().is_ok_and(|position: Lsn| backup.ends <= position),
    };
    let found = backups.iter().filter(is_before).max_by_key(|backup| backup.ended);
    found.ok_or_else(|| match backups.iter().min_by_key(|backup| backup.ended) {
        None => Unreachable::NoBackup,
        Some(oldest) => Unreachable::TooOld { target: target.to_string(), ended: oldest.ended, ends: oldest.ends },
    })
}

/// The settings by which PostgreSQL stops there, besides those that say where the WAL is.
#[must_use]
pub fn settings(target: &Target) -> Vec<(&'static str, String)> {
    let mut settings =
        vec![("recovery_target_timeline", "latest".to_owned()), ("recovery_target_action", "promote".to_owned())];
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
    use super::*;
    use crate::backup::index::tests::backup;

    #[test]
    fn the_last_backup_before_a_moment_is_taken() {
        let backups = [backup(10, 1, 3), backup(15, 1, 6)];
        let id = |target: &str| backup_for(&backups, &Target::parse(target).unwrap()).map(|it| it.id.as_str());
        assert_eq!(id("latest"), Ok("20261115"));
        assert_eq!(id("before-upgrade"), Ok("20261115"));
        assert_eq!(id("2026-11-15T04:00:00Z"), Ok("20261115"));
        assert_eq!(id("2026-11-15T03:59:59Z"), Ok("20261110"), "that of the 15th was not complete yet");
        assert_eq!(id("0/6000000"), Ok("20261110"));
        let why = backup_for(&backups, &Target::parse("2026-11-09T00:00:00Z").unwrap()).unwrap_err().to_string();
        assert!(why.contains("2026-11-10T04:00:00Z"), "{why}");
        assert_eq!(backup_for(&[], &Target::Latest), Err(Unreachable::NoBackup));
    }

    #[test]
    fn postgresql_is_told_where_to_stop() {
        let settings = |target: &str| settings(&Target::parse(target).unwrap()).into_iter().skip(2).collect::<Vec<_>>();
        assert_eq!(settings("latest"), []);
        let time = ("recovery_target_time", "2026-11-24 13:03:00+00".to_owned());
        assert_eq!(settings("2026-11-24T14:03:00+01:00"), [time]);
        assert_eq!(settings("0/6000000"), [("recovery_target_lsn", "0/6000000".to_owned())]);
    }
}
