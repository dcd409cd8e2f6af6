use serde_json::json;

use super::*;
use crate::children::Grants;
use crate::children::tests::{all, article, child, owner, pgset, stored};
use crate::controller::cache::pod::Readiness;

fn complete(set: &Set) -> Observed {
    let mut observed = Observed::default();
    for (number, child) in all(set).into_iter().enumerate() {
        let live = stored(&child.body, &format!("uid-{number}"));
        if child.kind == Kind::Service {
            observed.services.push(live.clone());
        }
        observed.children.insert((child.kind, child.name), live);
    }
    observed
}

fn planned(set: &Set, observed: &Observed) -> Plan {
    let members = role_members(set, &observed.members);
    let route = route::route(set, &owner(), observed);
    let grants = Grants { members: &members, lease: may_grant_lease(&owner(), observed), route };
    let desired = children::desired(set, &owner(), &grants).unwrap();
    plan(set, &owner(), desired, observed)
}

fn reasons(plan: &Plan) -> Vec<Reason> {
    plan.events.iter().map(|event| event.reason).collect()
}

fn member(name: &str, role: &str) -> Member {
    Member {
        name: name.to_owned(),
        uid: format!("{name}-uid"),
        resource_version: "5".to_owned(),
        labels: BTreeMap::from([("name".to_owned(), role.to_owned())]),
        leaving: false,
        readiness: Readiness::Ready,
        family: Some(AddressType::Ipv4),
    }
}

fn foreign(kind: Kind, name: &str, rest: Value) -> ((Kind, String), Value) {
    let mut live = rest;
    live["metadata"] = json!({"name": name, "uid": "theirs", "labels": {"app": "theirs"}});
    ((kind, name.to_owned()), live)
}

#[test]
fn a_new_set_gets_everything() {
    let plan = planned(&pgset(), &Observed::default());
    assert_eq!((plan.objects.len(), plan.grants.len()), (8, 1));
    assert!(plan.steps().all(|step| matches!(step, Step::Create(_))));
}

#[test]
fn a_set_that_has_everything_gets_nothing_and_hears_nothing() {
    for set in [pgset(), article()] {
        assert_eq!(planned(&set, &complete(&set)), Plan::default());
    }
}

#[test]
fn a_deleted_object_is_made_again() {
    let mut observed = complete(&pgset());
    observed.children.remove(&(Kind::Service, "pgset-master".to_owned()));
    let steps = planned(&pgset(), &observed).objects;
    assert!(matches!(&steps[..], [Step::Create(child)] if child.name == "pgset-master"), "{steps:?}");
}

#[test]
fn an_edited_object_is_put_right_and_no_other_of_its_name() {
    let mut observed = complete(&pgset());
    let service = observed.children.get_mut(&(Kind::Service, "pgset-replica".to_owned())).unwrap();
    service["spec"]["selector"] = json!({"app": "web"});
    let uid = service["metadata"]["uid"].as_str().unwrap().to_owned();
    let steps = planned(&pgset(), &observed).objects;
    assert_eq!(
        steps,
        [Step::Restore {
            child: Child {
                kind: Kind::Service,
                name: "pgset-replica".to_owned(),
                body: child(&pgset(), Kind::Service, "pgset-replica")
            },
            patch: json!({
                "metadata": {"uid": uid, "resourceVersion": "7"},
                "spec": {"selector": {"app": null, "pgset.dev/set": "pgset", "pgset.dev/role": "replica"}},
            }),
        }]
    );
}

#[test]
fn scaling_up_adds_the_member_to_the_role_and_scaling_down_waits_for_the_pod() {
    let observed = complete(&pgset());
    let steps = planned(&Set { replicas: 3, ..pgset() }, &observed).objects;
    assert!(
        matches!(&steps[..], [Step::Restore { child: role, .. }] if role.body["rules"][2]["resourceNames"] == json!(["pgset-0", "pgset-1", "pgset-2"])),
        "{steps:?}"
    );

    let single = Set { replicas: 1, ..pgset() };
    let leaving = Observed { members: vec![member("pgset-0", ""), member("pgset-1", "")], ..observed };
    assert_eq!(role_members(&single, &leaving.members), ["pgset-0", "pgset-1"]);
}

#[test]
fn the_disruption_budget_goes_with_the_second_member() {
    let single = Set { replicas: 1, ..pgset() };
    let observed = Observed { members: vec![member("pgset-0", ""), member("pgset-1", "")], ..complete(&pgset()) };
    let steps = planned(&single, &observed).objects;
    assert!(
        matches!(&steps[..], [Step::Remove { kind: Kind::PodDisruptionBudget, name, .. }] if name == "pgset"),
        "{steps:?}"
    );
}

#[test]
fn somebody_elses_budget_account_and_sufficient_role_are_left_alone_in_silence() {
    let set = Set { replicas: 1, ..pgset() };
    let mut observed = complete(&set);
    observed.children.extend([
        foreign(Kind::PodDisruptionBudget, "pgset", json!({"spec": {"maxUnavailable": 0}})),
        foreign(Kind::ServiceAccount, "pgset-sa", json!({})),
        foreign(Kind::Role, "pgset-sa", json!({"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]})),
        foreign(
            Kind::RoleBinding,
            "pgset-sa",
            json!({"subjects": [{"kind": "ServiceAccount", "name": "pgset-sa", "namespace": "shop"}]}),
        ),
    ]);
    assert_eq!(planned(&set, &observed), Plan::default());
}

#[test]
fn somebody_elses_role_binding_or_lease_that_cannot_serve_is_answered_and_not_touched() {
    let mut observed = complete(&pgset());
    observed.children.extend([
        foreign(
            Kind::Role,
            "pgset-sa",
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "patch"]}]}),
        ),
        foreign(Kind::RoleBinding, "pgset-sa", json!({"subjects": [{"kind": "User", "name": "pgset-sa"}]})),
        foreign(Kind::Lease, "pgset-leader", json!({"spec": {}})),
    ]);
    let plan = planned(&pgset(), &observed);
    assert_eq!(plan.steps().next(), None);
    assert_eq!(
        reasons(&plan),
        [Reason::NameTaken; 2],
        "of a binding to a Role that is not ours there is nothing to say"
    );
}

#[test]
fn what_an_earlier_set_of_the_name_left_is_waited_for() {
    let mut observed = complete(&pgset());
    let master = observed.children.get_mut(&(Kind::Service, "pgset-master".to_owned())).unwrap();
    master["metadata"]["ownerReferences"][0]["uid"] = json!("earlier");
    assert_eq!(planned(&pgset(), &observed), Plan::default());
}

/// Beside a Service of the user's own there is no slice of the members', and no right to it.
fn is_about_the_slice(step: &Step) -> bool {
    step.kind() == Some(Kind::Role) || matches!(step, Step::Remove { kind: Kind::EndpointSlice, .. })
}

#[test]
fn a_users_service_under_our_name_is_judged_and_not_touched() {
    let mut observed = complete(&pgset());
    let (place, mut live) = foreign(
        Kind::Service,
        "pgset-master",
        json!({"spec": {"selector": {"app": "pgset"}, "ports": [{"port": 5432}]}}),
    );
    observed.services.retain(|service| service["metadata"]["name"] != "pgset-master");
    observed.services.push(live.clone());
    observed.children.insert(place.clone(), live.clone());
    let plan = planned(&pgset(), &observed);
    assert!(plan.steps().all(is_about_the_slice), "{plan:?}");
    assert_eq!(reasons(&plan), [Reason::ServiceUnfit, Reason::ServiceReachesReplicas]);

    live["metadata"]["annotations"] = json!({"pgset.dev/follow": "master"});
    observed.services.pop();
    observed.services.push(live.clone());
    observed.children.insert(place, live);
    let plan = planned(&pgset(), &observed);
    assert_eq!(plan.events, []);
    assert!(
        matches!(plan.objects.last(), Some(Step::Follow { key, value, .. }) if key == "pgset.dev/role" && value == "master")
    );
}

#[test]
fn members_of_contract_image_get_their_roles_by_ordinal() {
    let set = Set { first_ordinal: 3, ..article() };
    let members = vec![
        member("pgset-3", "pgset-replica"),
        member("pgset-4", "pgset-replica"),
        Member { leaving: true, ..member("pgset-5", "") },
    ];
    let observed = Observed { members, ..complete(&set) };
    let labels: Vec<_> = planned(&set, &observed)
        .objects
        .into_iter()
        .filter_map(
            |step| if let Step::Label { member, key, value } = step { Some((member.name, key, value)) } else { None },
        )
        .collect();
    assert_eq!(labels, [("pgset-3".to_owned(), "name".to_owned(), "pgset-master".to_owned())]);
}

#[test]
fn agents_label_themselves() {
    let observed = Observed { members: vec![member("pgset-0", "")], ..complete(&pgset()) };
    assert_eq!(planned(&pgset(), &observed), Plan::default());
}

#[test]
fn an_uninjected_set_is_recognised() {
    let bare = json!({"spec": {"template": {"metadata": {"labels": {"app": "pgset"}}, "spec": {"containers": []}}}});
    assert!(!is_injected(&bare, &pgset()));
    let labelled = json!({"spec": {"template": {"metadata": {"labels": {"pgset.dev/set": "pgset"}}, "spec": {}}}});
    assert!(!is_injected(&labelled, &pgset()));
    assert!(is_injected(&labelled, &article()));
    let whole = json!({"spec": {"template": {"metadata": {"labels": {"pgset.dev/set": "pgset"}},
        "spec": {"initContainers": [{"name": "pgset-agent"}]}}}});
    assert!(is_injected(&whole, &pgset()));
}

#[test]
fn nobody_is_bound_to_a_role_of_somebody_elses() {
    let everything = json!({"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    let role = (Kind::Role, "pgset-sa".to_owned());
    let mut labelled = foreign(Kind::Role, "pgset-sa", everything.clone()).1;
    labelled["metadata"]["labels"] = json!(children::labels("pgset"));
    for live in [foreign(Kind::Role, "pgset-sa", everything).1, labelled] {
        for set in [pgset(), Set { service_account: "attacker".to_owned(), ..pgset() }] {
            let mut observed = complete(&set);
            observed.children.remove(&(Kind::RoleBinding, "pgset-sa".to_owned()));
            observed.children.insert(role.clone(), live.clone());
            let plan = planned(&set, &observed);
            assert_eq!(plan.steps().next(), None);
            assert_eq!(reasons(&plan), [Reason::NameTaken]);
            assert!(plan.events[0].note.contains("kubectl delete role pgset-sa"), "{}", plan.events[0].note);
        }
    }
}

#[test]
fn a_binding_of_ours_is_not_put_right_beside_a_role_that_is_not() {
    let mut observed = complete(&pgset());
    observed.children.get_mut(&(Kind::RoleBinding, "pgset-sa".to_owned())).unwrap()["subjects"] = json!([]);
    let (place, live) = foreign(Kind::Role, "pgset-sa", json!({"rules": []}));
    observed.children.insert(place, live);
    assert_eq!(planned(&pgset(), &observed).steps().next(), None);
}

#[test]
fn another_programs_lease_is_not_granted_and_the_sets_own_left_over_is() {
    let mut observed = complete(&pgset());
    let (place, live) = foreign(Kind::Lease, "pgset-leader", json!({"spec": {"holderIdentity": "scheduler"}}));
    observed.children.insert(place.clone(), live);
    let plan = planned(&pgset(), &observed);
    assert_eq!(reasons(&plan), [Reason::NameTaken]);
    let Some(Step::Restore { child, .. }) = plan.objects.first() else { panic!("{plan:?}") };
    assert!(child.kind == Kind::Role && !child.body.to_string().contains("pgset-leader"), "{}", child.body);

    let mut left = stored(&child_of_lease(), "left");
    left["metadata"]["ownerReferences"] = json!(null);
    observed.children.insert(place, left);
    assert_eq!(planned(&pgset(), &observed), Plan::default());
}

fn child_of_lease() -> Value {
    child(&pgset(), Kind::Lease, "pgset-leader")
}

#[test]
fn a_copy_of_ours_that_somebody_deploys_is_told_and_left_alone() {
    let mut observed = complete(&pgset());
    for (kind, name) in
        [(Kind::Service, "pgset-replica"), (Kind::Role, "pgset-sa"), (Kind::PodDisruptionBudget, "pgset")]
    {
        let live = observed.children.get_mut(&(kind, name.to_owned())).unwrap();
        live["metadata"]["ownerReferences"] = json!(null);
    }
    let plan = planned(&pgset(), &observed);
    assert_eq!(plan.steps().next(), None);
    assert_eq!(reasons(&plan), [Reason::NameTaken; 2]);
    assert!(plan.events.iter().all(|event| event.note.contains("kubectl delete ")), "{:?}", plan.events);
}

#[test]
fn where_pgset_makes_no_governing_service_its_user_hears_how_to_get_names() {
    for (name, cure) in
        [("postgres", "make a headless Service postgres"), ("victim-master", "serviceName: pgset-headless")]
    {
        let set = Set { headless_service: name.to_owned(), ..pgset() };
        let mut observed = complete(&set);
        let plan = planned(&set, &observed);
        assert_eq!((plan.steps().next(), reasons(&plan)), (None, vec![Reason::NoGoverningService]));
        assert!(plan.events[0].note.contains(cure), "{}", plan.events[0].note);

        let (place, live) = foreign(Kind::Service, name, json!({"spec": {"clusterIP": "None"}}));
        observed.children.insert(place, live);
        assert_eq!(planned(&set, &observed), Plan::default(), "one is there");
    }
}

#[test]
fn no_list_is_as_long_as_a_number_in_an_object_says() {
    let members: Vec<Member> = (0..5000).map(|ordinal| member(&format!("pgset-{ordinal}"), "")).collect();
    assert_eq!(role_members(&Set { replicas: 1, ..pgset() }, &members).len(), 101);
}
