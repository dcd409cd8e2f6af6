//! Upon which full base backup the next one stands. Pure.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::index::Index;

/// The first PostgreSQL that knows which blocks have changed since a backup (`summarize_wal`).
pub const INCREMENTAL_SINCE: u32 = 17;

/// The number of a major version, of what `postgres --version` says.
#[must_use]
pub fn major(version: &str) -> u32 {
    version.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// The full backup that the next one needs to say only what has changed since; absent if the next one is to be full. Each stands upon a full one, so
/// that no restore needs more than two.
#[must_use]
pub fn parent<'a>(backups: &'a [Index], version: &str, full_every: Duration, now: Timestamp) -> Option<&'a Index> {
    let newest = backups.iter().filter(|it| it.parent.is_none()).max_by_key(|it| it.ended)?;
    let is_young = newest.started > now.checked_sub(full_every).ok()?;
    let is_known = major(version) >= INCREMENTAL_SINCE && major(version) == major(&newest.version);
    (is_young && is_known).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::index::tests::backup;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn a_backup_stands_upon_the_newest_full_one_while_that_is_young() {
        let now: Timestamp = "2026-11-20T03:00:00Z".parse().unwrap();
        let full = [backup(10, 1, 1), backup(15, 1, 5)];
        let upon = Index { parent: Some(full[1].id.clone()), ..backup(19, 1, 9) };
        let all = [full[0].clone(), full[1].clone(), upon];
        let found = |version: &str, every: Duration| parent(&all, version, every, now).map(|it| it.id.as_str());
        assert_eq!(found("17.6", 7 * DAY), Some("20261115"));
        assert_eq!(found("17.6", 4 * DAY), None, "it is too old");
        assert_eq!(found("17.6", Duration::ZERO), None, "all are to be full");
        assert_eq!(found("18.1", 7 * DAY), None, "it is another version's");
        assert_eq!(found("16.3", 7 * DAY), None, "it can't");
        assert_eq!(parent(&[], "17.6", 7 * DAY, now), None);
    }
}
