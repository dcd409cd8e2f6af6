//! The check of the sets' backups: whether they are made when they are due, whether the WAL is archived, and whether one was restored on trial.

use std::{fmt::Write as _, time::Duration};

use k8s_openapi::{api::coordination::v1::Lease as LeaseObject, jiff::Timestamp};
use serde_json::Value;

use super::{
    leases::is_its_lease,
    report::{Id, Verdict},
    sets::pointer,
    snapshot::{After, Basics},
};
use crate::{
    backup::summary::{self, Summary},
    cli::{
        cluster::{text, title},
        status::told::{ago, plain},
    },
    names::annotation,
    set::backup::Schedule,
};

/// A base backup may take so long before it is missed.
const MADE_WITHIN: Duration = Duration::from_secs(6 * 3600);

/// The check.
pub fn checks(basics: &Basics, after: &After) -> Vec<(Id, Verdict)> {
    let verdict = match (&after.sets, &after.leases) {
        (Ok(sets), Ok(leases)) => backups(sets, leases, basics.now()),
        (Err(why), _) => Verdict::unread("StatefulSets", why),
        (_, Err(why)) => Verdict::unread("Leases", why),
    };
    vec![(Id::Backups, verdict)]
}

fn backups(sets: &[Value], leases: &[Value], now: Timestamp) -> Verdict {
    let (with, without): (Vec<_>, Vec<_>) =
        sets.iter().partition(|set| !text(set, &pointer(annotation::BACKUP)).is_empty());
    let mut found = Vec::new();
    let mut untried = 0;
    for set in &with {
        let lease = leases.iter().find(|lease| is_its_lease(lease, set));
        let lease = lease.and_then(|lease| serde_json::from_value::<LeaseObject>(lease.clone()).ok());
        let summary = lease.as_ref().and_then(summary::read);
        untried += usize::from(summary.as_ref().is_some_and(|summary| summary.verified.is_none()));
        found.extend(wrong(set, summary.as_ref(), now).into_iter().map(|what| format!("{}: {what}", title(set))));
    }
    if !found.is_empty() {
        let cure = "pgset backup list sts/NAME -n NAMESPACE says more, and the Events of the set why; docs/backup.md says what each needs";
        return Verdict::failure("some sets' backups are not as their owners want them", found, cure);
    }
    let mut says = match with.len() {
        0 => "no set asks for backups".to_owned(),
        count => format!("the backups of {count} sets are as they should be"),
    };
    if untried > 0 {
        // Writing to a string can't fail.
        let _ = write!(says, "; {untried} were never restored on trial (pgset backup verify)");
    }
    if !with.is_empty() && !without.is_empty() {
        let names: Vec<String> = without.iter().map(|set| title(set)).collect();
        let _ = write!(says, "; no backups are asked for by {}", names.join(", "));
    }
    Verdict::ok(says)
}

/// What is wrong with the backups of a set that asks for them.
fn wrong(set: &Value, summary: Option<&Summary>, now: Timestamp) -> Vec<String> {
    let Some(summary) = summary else { return vec!["its master has not told anything of its backups".to_owned()] };
    let mut wrong = Vec::new();
    if let Some(trouble) = &summary.trouble {
        let since = summary.trouble_since.map(|since| format!(" for {}", ago(since, now))).unwrap_or_default();
        wrong.push(format!("trouble{since}: {}", plain(trouble)));
    }
    let schedule = Schedule::parse(text(set, &pointer(annotation::BACKUP_SCHEDULE))).unwrap_or_default();
    let due = now.checked_sub(MADE_WITHIN).ok().and_then(|now| schedule.last_due(now));
    match (summary.backups.last(), due) {
        (None, _) => wrong.push("there is no base backup yet".to_owned()),
        (Some(newest), Some(due)) if newest.ended < due => {
            wrong.push(format!(
                "no base backup was made for {due}: the newest was complete {} ago",
                ago(newest.ended, now)
            ));
        }
        (Some(_), _) => {}
    }
    if let Some(found) = summary.verified.as_ref().filter(|found| found.failed.is_some()) {
        wrong.push(format!("the trial restore {} ago {}", ago(found.started, now), plain(&found.in_words())));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{cli::check::sets::tests::injected, names::lease::BACKUPS};

    const NOW: &str = "2026-11-30T12:00:00Z";

    fn set(location: &str) -> Value {
        let mut set = injected("db");
        if !location.is_empty() {
            set["metadata"]["annotations"]["pgset.dev/backup"] = json!(location);
        }
        set
    }

    fn lease(summary: &Value) -> Value {
        let mut lease = json!({"metadata": {"namespace": "shop", "name": "db-leader", "annotations": {}}, "spec": {}});
        lease["metadata"]["annotations"][BACKUPS] = json!(summary.to_string());
        lease
    }

    fn told(summary: &Value) -> Verdict {
        backups(&[set("s3://bucket/db")], &[lease(summary)], NOW.parse().unwrap())
    }

    fn found(summary: &Value) -> Vec<String> {
        match told(summary) {
            Verdict::Failure(finding) => finding.found,
            other => panic!("{other:?}"),
        }
    }

    fn made(ended: &str) -> Value {
        json!({"id": "a", "ended": ended, "seconds": 1, "timeline": 1, "size": 1, "stored": 1})
    }

    #[test]
    fn a_backup_that_was_due_and_is_not_there_is_told() {
        let of_today = made("2026-11-30T03:00:20Z");
        assert!(matches!(told(&json!({"backups": [of_today]})), Verdict::Ok(_)));
        let of_yesterday = found(&json!({"backups": [made("2026-11-29T03:00:20Z")]}));
        assert_eq!(
            of_yesterday,
            ["shop/db: no base backup was made for 2026-11-30T03:00:00Z: the newest was complete 1d8h ago"]
        );
        assert_eq!(found(&json!({})), ["shop/db: there is no base backup yet"]);
    }

    #[test]
    fn an_archive_that_fails_and_a_restore_that_failed_are_told() {
        let backups = [made("2026-11-30T03:00:20Z")];
        let trouble = json!({"backups": backups, "trouble": "no route", "troubleSince": "2026-11-30T11:58:00Z"});
        assert_eq!(found(&trouble), ["shop/db: trouble for 2m0s: no route"]);
        let failed = json!({"format": 1, "started": "2026-11-29T05:00:00Z", "seconds": 9, "failed": "no such file"});
        let failed = found(&json!({"backups": backups, "verified": failed}));
        assert_eq!(failed, ["shop/db: the trial restore 1d7h ago FAILED after 9 s: no such file"]);
    }

    #[test]
    fn sets_without_backups_are_named_beside_those_with() {
        let now = NOW.parse().unwrap();
        assert_eq!(backups(&[set("")], &[], now), Verdict::ok("no set asks for backups"));
        let mut other = set("");
        other["metadata"]["name"] = json!("other");
        let fine = lease(&json!({"backups": [made("2026-11-30T03:00:20Z")]}));
        let Verdict::Ok(says) = backups(&[set("s3://bucket/db"), other], &[fine], now) else { panic!("not well") };
        assert!(
            says.ends_with(
                "1 were never restored on trial (pgset backup verify); no backups are asked for by shop/other"
            )
        );
    }
}
