//! The check of what the sets' Leases remember: they outlive their sets, and keep a set from a new database where it has one.

use serde_json::Value;

use super::{
    report::{Id, Verdict},
    sets::{is_member, pointer},
    snapshot::After,
};
use crate::{
    cli::cluster::{Read, number, text, title},
    names,
    set::{Contract, Set},
};

/// The check.
pub fn checks(after: &After) -> Vec<(Id, Verdict)> {
    let verdict = match (&after.sets, &after.leases) {
        (Ok(sets), Ok(leases)) => remembered(sets, leases, &after.members),
        (Err(why), _) => Verdict::unread("StatefulSets", why),
        (_, Err(why)) => Verdict::unread("Leases", why),
    };
    vec![(Id::Leases, verdict)]
}

fn remembered(sets: &[Value], leases: &[Value], members: &Read<Vec<Value>>) -> Verdict {
    let members = members.as_deref().unwrap_or_default();
    let (mut waiting, mut left) = (Vec::new(), Vec::new());
    for lease in leases.iter().filter(|lease| !note(lease, names::lease::SYSTEM_IDENTIFIER).is_empty()) {
        match sets.iter().find(|set| is_its_lease(lease, set)) {
            None => left.push(title(lease)),
            Some(set) if number(set, "/spec/replicas") == Some(0) => {}
            Some(set) => {
                if !has_master(set, members) {
                    waiting.push(format!("{} has no master; {}", title(set), memory(lease)));
                }
            }
        }
    }
    if !waiting.is_empty() {
        let cure = "the members' logs and the Events of the set say what each waits for; mostly the member that led last has to come back \
                    with its data. Only to give the database up, and to begin with an empty one or with the first member's: kubectl delete \
                    lease SET-leader -n NAMESPACE";
        return Verdict::warning("some sets without a master have a database", waiting, cure);
    }
    if left.is_empty() {
        return Verdict::ok("every set whose Lease remembers a database has a master");
    }
    Verdict::ok(format!(
        "of sets that are gone there are Leases, which remember their databases for a set of the same name: {}",
        left.join(", ")
    ))
}

fn memory(lease: &Value) -> String {
    let or = |key: &str| Some(note(lease, key)).filter(|found| !found.is_empty()).unwrap_or("not known");
    format!(
        "its Lease remembers the database {} (timeline {}, written up to {})",
        note(lease, names::lease::SYSTEM_IDENTIFIER),
        or(names::lease::TIMELINE),
        or(names::lease::FLUSHED)
    )
}

pub(super) fn note<'a>(lease: &'a Value, key: &str) -> &'a str {
    text(lease, &pointer(key))
}

pub(super) fn is_its_lease(lease: &Value, set: &Value) -> bool {
    text(lease, "/metadata/namespace") == text(set, "/metadata/namespace")
        && text(lease, "/metadata/name") == names::leader(text(set, "/metadata/name"))
}

/// Whether a member is labelled as the master; nothing is said of a set whose image elects nobody, or that is none.
fn has_master(object: &Value, members: &[Value]) -> bool {
    let Some(set) = Set::parse(object).ok().filter(|set| set.contract == Contract::Agent) else { return true };
    members.iter().filter(|pod| is_member(pod, object)).any(|pod| {
        let labels = pod.pointer("/metadata/labels").unwrap_or(&Value::Null);
        labels.get(&set.role_label.key).and_then(Value::as_str) == Some(&set.role_label.master)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::check::sets::tests::{injected, member};

    fn lease(set: &str, annotations: &Value) -> Value {
        json!({"metadata": {"namespace": "shop", "name": format!("{set}-leader"), "annotations": annotations}})
    }

    #[test]
    fn a_set_without_a_master_that_has_a_database_is_told_with_what_is_remembered() {
        let led = lease(
            "db",
            &json!({"pgset.dev/system-identifier": "7", "pgset.dev/timeline": "2", "pgset.dev/flushed": "0/5"}),
        );
        let check = |role: &str, lease: &Value| {
            remembered(&[injected("db")], std::slice::from_ref(lease), &Ok(vec![member("db", 0, role, true)]))
        };
        let Verdict::Warning(finding) = check("none", &led) else { panic!() };
        assert_eq!(
            finding.found,
            ["shop/db has no master; its Lease remembers the database 7 (timeline 2, written up to 0/5)"]
        );
        assert!(finding.cure.contains("kubectl delete lease SET-leader"));
        assert!(matches!(check("master", &led), Verdict::Ok(_)));
        assert!(matches!(check("none", &lease("db", &json!({}))), Verdict::Ok(_)), "it begins only now");
        let mut asleep = injected("db");
        asleep["spec"]["replicas"] = json!(0);
        assert!(matches!(remembered(&[asleep], &[led], &Ok(vec![])), Verdict::Ok(_)));
    }

    #[test]
    fn the_lease_of_a_set_that_is_gone_is_named_and_is_as_it_should_be() {
        let left = lease("old", &json!({"pgset.dev/system-identifier": "7"}));
        let Verdict::Ok(says) = remembered(&[injected("db")], &[left], &Ok(vec![])) else { panic!() };
        assert!(says.ends_with("shop/old-leader"), "{says}");
    }
}
