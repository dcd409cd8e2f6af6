//! What a base backup is due for. Pure.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::index::Index;
use super::line::Line;
use crate::set::backup::Backup;

/// What a set needs its first backup for is all of its backups; it is not waited for with the schedule.
const FIRST: &str = "first";

/// WAL that a master has let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The first file.
    pub first: String,
    /// When the last one was let go.
    pub until: Timestamp,
}

// === impl Gap ===

impl Gap {
    /// Whether a backup was begun behind it, so that nothing is missing from there on.
    #[must_use]
    pub fn is_closed_by(&self, backups: &[Index]) -> bool {
        backups.iter().any(|backup| backup.started > self.until)
    }
}

/// What a backup is due for by an order, as its annotation writes that.
#[must_use]
pub fn by_order(order: &str) -> String {
    format!("now-{}", order.replace(':', "-"))
}

/// What a base backup is due for: an order, the first one of all, WAL that was let go, the line that the database has come to if the newest one is of
/// what it has left behind, or a time of the schedule.
#[must_use]
pub fn due(backup: &Backup, backups: &[Index], gap: Option<&Gap>, line: &Line, now: Timestamp) -> Option<String> {
    let is_done = |due: &str| backups.iter().any(|backup| backup.due == due);
    let order = backup.order.as_deref().map(by_order);
    if backups.is_empty() {
        return Some(order.unwrap_or_else(|| FIRST.to_owned()));
    }
    let behind_gap = gap.filter(|gap| !gap.is_closed_by(backups)).map(|gap| format!("gap-{}", gap.first));
    let newest = backups.iter().max_by_key(|backup| backup.ended);
    let is_left = newest.is_some_and(|newest| newest.timeline < line.timeline && !line.goes_on_from(newest));
    let on_line = is_left.then(|| format!("timeline-{}", line.timeline)).filter(|line| !is_done(line));
    order.filter(|order| !is_done(order)).or(behind_gap).or(on_line).or_else(|| {
        let at = backup.schedule.last_due(now)?;
        let is_made = backups.iter().any(|backup| backup.started >= at);
        (!is_made).then(|| at.strftime("%Y%m%dT%H%M%SZ").to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::index::tests::backup;
    use crate::set::backup::{Limit, Location, Schedule};

    fn wanted(order: Option<&str>) -> Backup {
        Backup {
            location: Location::parse("s3://bucket/db").unwrap(),
            schedule: Schedule::default(),
            keep: std::time::Duration::from_hours(24),
            archive_timeout: std::time::Duration::from_mins(1),
            order: order.map(str::to_owned),
            limit: Limit::default(),
            rate: None,
            delete: None,
            full_every: std::time::Duration::ZERO,
        }
    }

    fn made(due: &str, started: &str) -> Index {
        let at: Timestamp = started.parse().unwrap();
        Index { due: due.to_owned(), started: at, ended: at, ..backup(1, 1, 1) }
    }

    fn now() -> Timestamp {
        "2026-11-30T15:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_backup_is_due_at_first_by_order_and_by_schedule() {
        let due = |wanted: &Backup, backups: &[Index]| due(wanted, backups, None, &Line::default(), now());
        assert_eq!(due(&wanted(None), &[]).as_deref(), Some(FIRST));
        let made_today = made(FIRST, "2026-11-30T03:00:01Z");
        assert_eq!(due(&wanted(None), std::slice::from_ref(&made_today)), None);
        let of_yesterday = [made(FIRST, "2026-11-29T12:00:00Z")];
        assert_eq!(due(&wanted(None), &of_yesterday).as_deref(), Some("20261130T030000Z"));
        let order = wanted(Some("2026-11-30T14:00:00Z"));
        let done = "now-2026-11-30T14-00-00Z";
        assert_eq!(due(&order, std::slice::from_ref(&made_today)).as_deref(), Some(done));
        assert_eq!(due(&order, &[made_today, made(done, "2026-11-30T14:00:00Z")]), None, "an order is followed once");
    }

    #[test]
    fn a_backup_is_due_behind_what_was_let_go_and_is_made_once() {
        let gap = Gap { first: "000000010000000000000005".into(), until: "2026-11-30T14:00:00Z".parse().unwrap() };
        let due = |backups: &[Index]| due(&wanted(None), backups, Some(&gap), &Line::default(), now());
        let before = made(FIRST, "2026-11-30T13:59:59Z");
        assert_eq!(due(std::slice::from_ref(&before)).as_deref(), Some("gap-000000010000000000000005"));
        let behind = made("gap-000000010000000000000005", "2026-11-30T14:00:01Z");
        assert_eq!(due(&[before, behind]), None);
    }
    #[test]
    fn a_backup_is_due_on_a_line_that_the_newest_one_does_not_lead_to_once() {
        let line = Line::of(2, "1\t0/5000098\tbefore 2026-11-30 12:00:00+00\n");
        let due = |backups: &[Index]| due(&wanted(None), backups, None, &line, now());
        let made = |timeline, segment, due: &str| Index {
            ends: backup(1, timeline, segment).ends,
            timeline,
            ..made(due, "2026-11-30T13:00:00Z")
        };
        assert_eq!(due(&[made(1, 3, FIRST)]), None, "it was made before the fork");
        assert_eq!(due(&[made(1, 6, FIRST)]).as_deref(), Some("timeline-2"));
        assert_eq!(due(&[made(1, 6, FIRST), made(1, 7, "timeline-2")]), None, "not again and again");
        assert_eq!(due(&[made(3, 6, FIRST)]), None, "this member has not heard of it");
    }
}
