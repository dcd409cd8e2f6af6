//! The check of where clients of each master are sent: one endpoint, which its leader has written, and no other beside it.

use std::fmt::Write as _;

use serde_json::Value;

use super::{
    report::{Id, Verdict},
    sets::is_member,
    snapshot::After,
};
use crate::{
    children::route::{is_behind, is_filled},
    cli::cluster::{Read, items, text, title},
    names,
    set::Set,
};

/// What to do about any of it.
pub const CURE: &str = "the leader writes the endpoint, and looks at it once a minute: see its log (kubectl logs POD) and the Role SET-sa; a \
                        slice that is not pgset's is to be deleted: kubectl get endpointslices -l kubernetes.io/service-name=SET-master";

/// The check.
pub fn checks(after: &After) -> Vec<(Id, Verdict)> {
    let verdict = match (&after.sets, &after.slices, &after.members) {
        (Ok(sets), Ok(slices), Ok(members)) => routes(sets, slices, members),
        (Err(why), ..) => Verdict::unread("StatefulSets", why),
        (_, Err(why), _) => Verdict::unread("EndpointSlices", why),
        (.., Err(why)) => Verdict::unread("pods", why),
    };
    vec![(Id::Routes, verdict)]
}

fn routes(sets: &[Value], slices: &[Value], members: &[Value]) -> Verdict {
    let found: Vec<String> =
        sets.iter().filter_map(|set| Some(format!("{}: {}", title(set), trouble(set, slices, members)?))).collect();
    if found.is_empty() {
        return Verdict::ok("clients of every master are sent to it");
    }
    Verdict::warning("clients of some masters are not sent to them, or not only", found, CURE)
}

/// What is wrong with where a set's clients are sent, by all slices and pods of its namespace; nothing, where they are sent by a selector.
pub fn trouble(object: &Value, slices: &[Value], pods: &[Value]) -> Option<String> {
    let set = Set::parse(object).ok().filter(|set| set.routed)?;
    let service = names::master(&set.name);
    let beside = |slice: &&Value| {
        text(slice, "/metadata/namespace") == text(object, "/metadata/namespace") && is_behind(slice, &service)
    };
    let (own, others): (Vec<&Value>, Vec<&Value>) =
        slices.iter().filter(beside).partition(|slice| text(slice, "/metadata/name") == service);
    let slice = own.first()?;
    let members: Vec<&Value> = pods.iter().filter(|pod| is_member(pod, object)).collect();
    if !is_filled(slice) {
        let leads = |pod: &&Value| {
            let labels = pod.pointer("/metadata/labels").unwrap_or(&Value::Null);
            labels.get(&set.role_label.key).and_then(Value::as_str) == Some(&set.role_label.master)
        };
        // As long as there is no master, or agents of an older revision are found by its label, that is as it should be.
        let master = members.into_iter().find(leads).filter(|_| others.is_empty())?;
        return Some(format!(
            "the endpoint of Service {service} is empty, though {} leads",
            text(master, "/metadata/name")
        ));
    }
    let mut wrong = items(slice, "/endpoints").find_map(|endpoint| of_endpoint(endpoint, &members)).unwrap_or_default();
    if !others.is_empty() {
        let others: Vec<&str> = others.iter().map(|slice| text(slice, "/metadata/name")).collect();
        let end = if wrong.is_empty() { "" } else { "; " };
        // Writing to a string can't fail.
        let _ = write!(wrong, "{end}beside the members' EndpointSlice there are others: {}", others.join(", "));
    }
    (!wrong.is_empty()).then_some(wrong)
}

fn of_endpoint(endpoint: &Value, members: &[&Value]) -> Option<String> {
    let (name, uid) = (text(endpoint, "/targetRef/name"), text(endpoint, "/targetRef/uid"));
    let address = items(endpoint, "/addresses").next().and_then(Value::as_str).unwrap_or_default();
    let leads = format!("its endpoint leads to {name} at {address}");
    let Some(pod) = members.iter().find(|pod| text(pod, "/metadata/name") == name) else {
        return Some(format!("{leads}, and there is no such pod"));
    };
    if text(pod, "/metadata/uid") != uid {
        return Some(format!("{leads}, an earlier pod of that name"));
    }
    let now = text(pod, "/status/podIP");
    if now != address {
        return Some(format!("{leads}, and the pod's address is {now:?}"));
    }
    (endpoint.pointer("/conditions/ready") == Some(&Value::Bool(false)))
        .then(|| format!("{leads} and is not ready, so that no client is sent there"))
}

/// The same of one set, where its slices and pods could be read.
pub fn trouble_of(set: &Value, slices: &Read<Vec<Value>>, pods: &Read<Vec<Value>>) -> Option<String> {
    trouble(set, slices.as_ref().ok()?, pods.as_ref().ok()?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::check::sets::tests::{injected, member};

    fn pod() -> Value {
        let mut pod = member("db", 0, "master", true);
        pod["metadata"]["uid"] = json!("u");
        pod["status"]["podIP"] = json!("10.0.0.1");
        pod
    }

    fn slice(name: &str, endpoints: &Value) -> Value {
        json!({"metadata": {"namespace": "shop", "name": name, "labels": {names::slice::SERVICE: "db-master"}}, "endpoints": endpoints})
    }

    fn leads_to(uid: &str, address: &str, ready: bool) -> Value {
        let endpoint =
            json!({"addresses": [address], "targetRef": {"name": "db-0", "uid": uid}, "conditions": {"ready": ready}});
        slice("db-master", &json!([endpoint]))
    }

    fn said(slices: &[Value], pods: &[Value]) -> String {
        trouble(&injected("db"), slices, pods).unwrap_or_default()
    }

    #[test]
    fn an_endpoint_that_leads_to_the_master_is_as_it_should_be() {
        let right = [leads_to("u", "10.0.0.1", true)];
        assert_eq!(routes(&[injected("db")], &right, &[pod()]), Verdict::ok("clients of every master are sent to it"));
        assert_eq!(said(&[], &[pod()]), "", "a Service of the user's own");
        let mut elsewhere = leads_to("old", "10.0.0.9", true);
        elsewhere["metadata"]["namespace"] = json!("bank");
        assert_eq!(said(&[elsewhere], &[pod()]), "");
    }

    #[test]
    fn a_stale_endpoint_is_named_with_what_is_the_matter() {
        let right = leads_to("u", "10.0.0.1", true);
        for (slice, pods, words) in [
            (&right, vec![], "there is no such pod"),
            (&leads_to("old", "10.0.0.1", true), vec![pod()], "an earlier pod of that name"),
            (&leads_to("u", "10.0.0.9", true), vec![pod()], "the pod's address is \"10.0.0.1\""),
            (&leads_to("u", "10.0.0.1", false), vec![pod()], "is not ready"),
        ] {
            let said = said(std::slice::from_ref(slice), &pods);
            assert!(said.starts_with("its endpoint leads to db-0 at") && said.contains(words), "{said}");
        }
        let Verdict::Warning(finding) = routes(&[injected("db")], &[right], &[]) else { panic!() };
        assert!(finding.found[0].starts_with("shop/db: its endpoint"), "{finding:?}");
    }

    #[test]
    fn slices_beside_the_members_own_are_named() {
        let left = slice("db-master-x7k2p", &json!([]));
        let said_of = |own: Value| said(&[own, left.clone()], &[pod()]);
        assert_eq!(
            said_of(leads_to("u", "10.0.0.1", true)),
            "beside the members' EndpointSlice there are others: db-master-x7k2p"
        );
        assert_eq!(said_of(slice("db-master", &json!([]))), "", "agents of an older revision are found by the label");
    }

    #[test]
    fn an_endpoint_that_no_master_has_written_is_named_and_so_is_he() {
        let empty = [slice("db-master", &json!([]))];
        assert!(said(&empty, &[pod()]).ends_with("is empty, though db-0 leads"));
        assert_eq!(said(&empty, &[member("db", 0, "replica", true)]), "", "nobody leads yet");
    }
}
