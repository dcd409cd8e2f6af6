//! The check of who is to lead: orders that stand and are not followed, and sets that wait for one.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{
    leases::{is_its_lease, note},
    report::{Id, Verdict},
    sets::pointer,
    snapshot::{After, Basics},
};
use crate::{
    cli::cluster::{text, title},
    election::order::why_refused,
    names::{self, annotation},
    set::{Contract, Failover, Set},
};

/// An order of which nobody has heard for so long is not on its way any more.
const UNHEARD: Duration = Duration::from_secs(60);
/// Whoever renewed the Lease last so long ago leads no more, and nobody has led since: a failover takes less.
const LEADERLESS: Duration = Duration::from_secs(120);

/// The check.
pub fn checks(basics: &Basics, after: &After) -> Vec<(Id, Verdict)> {
    let verdict = match (&after.sets, &after.leases) {
        (Ok(sets), Ok(leases)) => orders(sets, leases, basics.now()),
        (Err(why), _) => Verdict::unread("StatefulSets", why),
        (_, Err(why)) => Verdict::unread("Leases", why),
    };
    vec![(Id::Orders, verdict)]
}

fn orders(sets: &[Value], leases: &[Value], now: Timestamp) -> Verdict {
    let mut found = Vec::new();
    for object in sets {
        let Some(lease) = leases.iter().find(|lease| is_its_lease(lease, object)) else { continue };
        let Some(set) = Set::parse(object).ok().filter(|set| set.contract == Contract::Agent && set.replicas > 0)
        else {
            continue;
        };
        let matter = of_order(object, lease, now).or_else(|| without_leader(&set, lease, now));
        found.extend(matter.map(|matter| format!("{}: {matter}", title(object))));
    }
    if found.is_empty() {
        return Verdict::ok("no set waits for a person to say who leads, and no order stands that is not followed");
    }
    let cure = format!(
        "pgset status sts/NAME -n NAMESPACE says how each does; pgset switchover or pgset failover gives another order; to take one \
         back: kubectl annotate statefulset NAME -n NAMESPACE {}-",
        annotation::SWITCHOVER
    );
    Verdict::warning("some sets wait for an order, or do not follow theirs", found, cure)
}

/// An order that stands and does not come to anything.
fn of_order(object: &Value, lease: &Value, now: Timestamp) -> Option<String> {
    let order = text(object, &pointer(annotation::SWITCHOVER));
    if order.is_empty() {
        return None;
    }
    let field = format!("{} {order:?}", annotation::SWITCHOVER);
    if let Some(why) = why_refused(note(lease, names::lease::ORDER_REFUSED), order) {
        return Some(format!("{field} was refused: {why}"));
    }
    // The commands write the time. Of what others write nobody knows how old it is.
    let given = order.split(' ').find_map(|word| word.parse::<Timestamp>().ok());
    let is_old = given.is_none_or(|given| age(given, now) >= UNHEARD);
    let is_done = note(lease, names::lease::ORDER_DONE) == order;
    (!is_done && is_old).then(|| format!("{field} has not been followed, nor refused"))
}

/// A set that has been without a leader for long.
fn without_leader(set: &Set, lease: &Value, now: Timestamp) -> Option<String> {
    let renewed: Timestamp = text(lease, "/spec/renewTime").parse().ok()?;
    let age = age(renewed, now);
    if age < LEADERLESS || note(lease, names::lease::SYSTEM_IDENTIFIER).is_empty() {
        return None;
    }
    let manual = match set.failover {
        Failover::Manual => {
            format!(", and {} is manual: pgset failover sts/{} -n {}", annotation::FAILOVER, set.name, set.namespace)
        }
        Failover::Automatic => String::new(),
    };
    Some(format!("no member has led for {} minutes{manual}", age.as_secs() / 60))
}

fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::check::sets::tests::injected;

    const NOW: &str = "2026-05-04T12:00:00Z";

    fn set(order: &str) -> Value {
        let mut set = injected("db");
        if !order.is_empty() {
            set["metadata"]["annotations"]["pgset.dev/switchover"] = json!(order);
        }
        set
    }

    fn lease(notes: &Value, renewed: &str) -> Value {
        let mut lease = json!({
            "metadata": {"namespace": "shop", "name": "db-leader", "annotations": notes}, "spec": {"renewTime": renewed},
        });
        lease["metadata"]["annotations"]["pgset.dev/system-identifier"] = json!("7");
        lease
    }

    fn found(set: Value, lease: Value) -> Vec<String> {
        match orders(&[set], &[lease], NOW.parse().unwrap()) {
            Verdict::Ok(_) => Vec::new(),
            Verdict::Warning(finding) => finding.found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_order_that_was_refused_or_that_nobody_heard_is_told() {
        let order = |order: &str, notes: Value| found(set(order), lease(&notes, NOW));
        assert_eq!(order("", json!({})), Vec::<String>::new());
        assert_eq!(order("db-1 1", json!({"pgset.dev/order-done": "db-1 1"})), Vec::<String>::new());
        let refused = json!({"pgset.dev/order-done": "db-9 1", "pgset.dev/order-refused": "db-9 1: no such member"});
        assert_eq!(
            order("db-9 1", refused.clone()),
            ["shop/db: pgset.dev/switchover \"db-9 1\" was refused: no such member"]
        );
        assert_eq!(order("db-1 2", refused).len(), 1, "another one, which nobody has heard");
        assert_eq!(order("db-1 2026-05-04T11:59:30Z", json!({})), Vec::<String>::new(), "it is on its way");
        assert!(order("db-1 2026-05-04T11:00:00.5Z", json!({}))[0].ends_with("not been followed, nor refused"));
    }

    #[test]
    fn a_set_that_nobody_has_led_for_long_is_told_and_whether_it_waits_for_a_person() {
        let at = |set: Value, renewed: &str| found(set, lease(&json!({}), renewed));
        assert_eq!(at(set(""), "2026-05-04T11:59:00.000000Z"), Vec::<String>::new());
        assert_eq!(at(set(""), "2026-05-04T11:50:00.000000Z"), ["shop/db: no member has led for 10 minutes"]);
        let mut manual = set("");
        manual["metadata"]["annotations"]["pgset.dev/failover"] = json!("manual");
        assert!(at(manual, "2026-05-04T11:50:00.000000Z")[0].ends_with("is manual: pgset failover sts/db -n shop"));
        let mut asleep = set("");
        asleep["spec"]["replicas"] = json!(0);
        assert_eq!(at(asleep, "2026-05-04T11:50:00.000000Z"), Vec::<String>::new());
    }
}
