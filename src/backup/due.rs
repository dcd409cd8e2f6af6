//! What a base backup is due for. Pure.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::index::Index;
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

/// What a base backup is due for: an order, the first one of all, WAL that was let go, or a time of the schedule.
#[must_use]
pub fn due(backup: &Backup, backups: &[Index], gap: Option<&Gap>, now: Timestamp) -> Option<String> {
    let is_done = |due: &str| backups.iter().any(|backup| backup.due == due);
    let order = backup.order.as_deref().map(by_order);
    if backups.is_empty() {
        return Some(order.unwrap_or_else(|| FIRST.to_owned()));
    }
    let behind_gap = gap.filter(|gap| !gap.is_closed_by(backups)).map(|gap| format!("gap-{}", gap.first));
    order.filter(|order| !is_done(order)).or(behind_gap).or_else(|| {
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
        let due = |wanted: &Backup, backups: &[Index]| due(wanted, backups, None, now());
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
        let due = |backups: &[Index]| due(&wanted(None), backups, Some(&gap), now());
        let before = made(FIRST, "2026-11-30T13:59:59Z");
        assert_eq!(due(std::slice::from_ref(&before)).as_deref(), Some("gap-000000010000000000000005"));
        let behind = made("gap-000000010000000000000005", "2026-11-30T14:00:01Z");
        assert_eq!(due(&[before, behind]), None);
    }
}
