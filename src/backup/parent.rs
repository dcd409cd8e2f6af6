//! Upon which full base backup the next one stands. Pure.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::index::Index;
use super::line::Line;

/// The first PostgreSQL that knows which blocks have changed since a backup (`summarize_wal`).
pub const INCREMENTAL_SINCE: u32 = 17;

/// The number of a major version, of what `postgres --version` says.
#[must_use]
pub fn major(version: &str) -> u32 {
    version.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// What the next backup is made with.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    /// PostgreSQL's version.
    pub version: &'a str,
    /// For which key it is encrypted, its public half; absent if it is not.
    pub recipient: Option<&'a str>,
    /// How old a full one may be that others stand upon.
    pub full_every: Duration,
    /// The line that the database is on.
    pub line: &'a Line,
}

/// The full backup that the next one needs to say only what has changed since; absent if the next one is to be full. Each stands upon a full one, so
/// that no restore needs more than two, and no more than one key. It is one that the line goes on from: of what changed on another PostgreSQL knows
/// nothing, and does not always say so.
#[must_use]
pub fn parent<'a>(backups: &'a [Index], next: &Next<'_>, now: Timestamp) -> Option<&'a Index> {
    let is_full = |it: &&Index| it.parent.is_none() && next.line.goes_on_from(it);
    let newest = backups.iter().filter(is_full).max_by_key(|it| it.ended)?;
    let is_young = newest.started > now.checked_sub(next.full_every).ok()?;
    let is_known = major(next.version) >= INCREMENTAL_SINCE && major(next.version) == major(&newest.version);
    let is_readable = newest.recipient.as_deref() == next.recipient;
    (is_young && is_known && is_readable).then_some(newest)
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
        let line = Line::default();
        let next = |version, full_every| Next { version, recipient: None, full_every, line: &line };
        let found = |version, every| parent(&all, &next(version, every), now).map(|it| it.id.as_str());
        assert_eq!(found("17.6", 7 * DAY), Some("20261115"));
        assert_eq!(found("17.6", 4 * DAY), None, "it is too old");
        assert_eq!(found("17.6", Duration::ZERO), None, "all are to be full");
        assert_eq!(found("18.1", 7 * DAY), None, "it is another version's");
        assert_eq!(found("16.3", 7 * DAY), None, "it can't");
        assert_eq!(parent(&[], &next("17.6", 7 * DAY), now).map(|it| &it.id), None);
        let of_key = |recipient| Next { recipient, ..next("17.6", 7 * DAY) };
        assert_eq!(parent(&all, &of_key(Some("age1x")), now).map(|it| &it.id), None, "it is in the clear");
        let encrypted = all.map(|it| Index { recipient: Some("age1x".into()), ..it });
        let found = |recipient| parent(&encrypted, &of_key(recipient), now).map(|it| it.id.as_str());
        assert_eq!(found(Some("age1x")), Some("20261115"));
        assert_eq!(found(Some("age1y")), None, "it is for another key, which may be gone");
        let line = Line::of(2, "1\t0/4000098\tbefore 2026-11-12 00:00:00+00\n");
        let left = Next { line: &line, ..of_key(Some("age1x")) };
        let found = parent(&encrypted, &Next { full_every: 30 * DAY, ..left }, now).map(|it| it.id.as_str());
        assert_eq!(found, Some("20261110"), "the newer one is of what was left behind");
    }
}
