use serde_json::json;

use super::*;
use crate::children::tests::{article, pgset};

#[allow(clippy::needless_pass_by_value)] // `json!` at every call
fn service(name: &str, selector: Value) -> Service {
    let live = json!({"metadata": {"name": name, "uid": "u", "resourceVersion": "1"},
        "spec": {"clusterIP": "10.0.0.1", "selector": selector, "ports": [{"port": 5432, "targetPort": 5432}]}});
    Service::read(&live)
}

fn following(role: &str, service: Service) -> Service {
    Service { follow: Some(role.to_owned()), ..service }
}

fn reasons(services: &[Service], set: &Set) -> Vec<Reason> {
    judge(services, set).into_iter().map(|event| event.reason).collect()
}

#[test]
fn the_articles_three_services_need_no_word() {
    let governing = Service { headless: true, ..service("pgset", json!({"app": "pgset"})) };
    let services = [
        governing,
        service("pgset-master", json!({"name": "pgset-master"})),
        service("pgset-replica", json!({"name": "pgset-replica"})),
    ];
    assert_eq!(reasons(&services, &article()), []);
}

#[test]
fn a_service_to_all_members_is_a_danger_as_soon_as_there_are_two() {
    let services = [service("postgres", json!({"app": "pgset"}))];
    assert_eq!(reasons(&services, &Set { replicas: 1, ..pgset() }), []);
    let events = judge(&services, &pgset());
    assert_eq!(events.len(), 1);
    let note = &events[0].note;
    assert_eq!(events[0].reason, Reason::ServiceReachesReplicas);
    for cure in ["Service postgres", "pgset.dev/role: master", "pgset.dev/follow: master", "pgset-master"] {
        assert!(note.contains(cure), "{note}");
    }
}

#[test]
fn a_governing_service_that_clients_use_is_a_danger_too() {
    let governing = Service { headless: true, ..service("pgset", json!({"app": "pgset"})) };
    assert_eq!(reasons(&[governing], &pgset()), [Reason::ServiceReachesReplicas]);
}

#[test]
fn a_service_to_a_role_or_to_other_pods_is_none() {
    let services = [
        service("writes", json!({"app": "pgset", "pgset.dev/role": "master"})),
        service("first", json!({"statefulset.kubernetes.io/pod-name": "pgset-0"})),
        service("web", json!({"app": "web"})),
        service("manual", json!(null)),
    ];
    assert_eq!(reasons(&services, &pgset()), []);
}

#[test]
fn a_service_that_follows_gets_the_role_and_no_warning() {
    let plain = following("master", service("postgres", json!({"app": "pgset"})));
    assert_eq!(to_follow(&plain, &pgset()), Some("master".to_owned()));
    assert_eq!(to_follow(&plain, &article()), Some("pgset-master".to_owned()));
    assert_eq!(reasons(std::slice::from_ref(&plain), &pgset()), []);

    let done = following("master", service("postgres", json!({"app": "pgset", "pgset.dev/role": "master"})));
    assert_eq!(to_follow(&done, &pgset()), None);
    let changed = following("replica", done);
    assert_eq!(to_follow(&changed, &pgset()), Some("replica".to_owned()));
}

#[test]
fn a_service_never_follows_two_sets() {
    let of_another = following("master", service("postgres", json!({"app": "pgset", "name": "other-master"})));
    assert_eq!(to_follow(&of_another, &article()), None);
    let of_all = following("master", service("postgres", json!({"pgset.dev/role": "replica"})));
    assert_eq!(to_follow(&of_all, &pgset()), None, "the selector names no set");
}

#[test]
fn an_unknown_role_to_follow_is_answered() {
    let services = [following("primary", service("postgres", json!({"app": "pgset"})))];
    assert_eq!(reasons(&services, &pgset()), [Reason::InvalidFollow, Reason::ServiceReachesReplicas]);
    assert_eq!(to_follow(&services[0], &pgset()), None);
}

#[test]
fn a_master_service_of_the_users_own_must_lead_to_the_master() {
    let unfit = [
        service("pgset-master", json!({"app": "pgset"})),
        service("pgset-master", json!({"app": "pgset", "pgset.dev/role": "replica"})),
        service("pgset-master", json!({"app": "web"})),
        service("pgset-master", json!(null)),
        Service { ports: vec![(80, json!(80))], ..service("pgset-master", json!({"pgset.dev/role": "master"})) },
    ];
    let single = Set { replicas: 1, ..pgset() };
    for service in unfit {
        assert_eq!(reasons(std::slice::from_ref(&service), &single), [Reason::ServiceUnfit], "{service:?}");
    }
    let by_name =
        Service { ports: vec![(5432, json!("web"))], ..service("pgset-master", json!({"pgset.dev/role": "master"})) };
    assert_eq!(reasons(&[by_name], &single), []);
    let follows = following("master", service("pgset-master", json!({"app": "pgset"})));
    assert_eq!(reasons(&[follows], &single), []);
}

#[test]
fn a_governing_service_of_other_pods_is_answered() {
    assert_eq!(reasons(&[service("pgset", json!({"app": "web"}))], &pgset()), [Reason::ServiceUnfit]);
}
