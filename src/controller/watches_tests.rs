use std::time::Duration;

use kube::client::Body;
use serde_json::json;

use super::*;

fn object(json: Value) -> DynamicObject {
    serde_json::from_value(json).unwrap()
}

fn labelled(name: &str, labels: &Value) -> DynamicObject {
    let metadata = json!({"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1", "labels": labels});
    object(json!({"metadata": metadata, "spec": {"selector": {"app": "pgset"}}}))
}

fn ours(name: &str, set: &str) -> DynamicObject {
    labelled(name, &json!({"pgset.dev/set": set, "app.kubernetes.io/managed-by": "pgset"}))
}

fn theirs(name: &str) -> DynamicObject {
    labelled(name, &json!({"app": "theirs"}))
}

fn stateful_set(name: &str, annotated: bool) -> DynamicObject {
    let annotations =
        if annotated { json!({"pgset.dev/inject": "enabled", "pgset.dev/claim": "data"}) } else { json!({}) };
    let metadata =
        json!({"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1", "annotations": annotations});
    object(json!({"metadata": metadata, "spec": {"serviceName": format!("{name}-hl"),
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name, "tier": "data"}},
            "spec": {"containers": [{"name": "postgres", "image": "postgres:17"}]}}}}))
}

fn set(name: &str) -> Set {
    match CachedSet::new(&stateful_set(name, true)).unwrap().state {
        SetState::NotInjected(set) => *set,
        other => panic!("{other:?}"),
    }
}

/// A Service of somebody else's with a selector.
#[allow(clippy::needless_pass_by_value)] // `json!` at every call
fn choosing(name: &str, selector: Value) -> DynamicObject {
    let metadata = json!({"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1"});
    object(json!({"metadata": metadata, "spec": {"selector": selector}}))
}

fn pod(name: &str, owner: &str) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1",
        "labels": {"pgset.dev/set": "db"}, "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet",
            "name": "db", "uid": owner, "controller": true}]}}))
    .unwrap()
}

#[allow(clippy::needless_pass_by_value)] // what a watch has just brought
fn names(sets: Vec<Place>) -> Vec<String> {
    sets.iter().map(ToString::to_string).collect()
}

/// Stores with what the events have brought.
fn stores(annotated: Vec<DynamicObject>, owned: Vec<Pod>, live: Vec<DynamicObject>) -> Stores {
    let interner = Arc::new(Interner::default());
    let (mut take, sets, labels) = sets();
    for set in annotated {
        take(Event::Apply(set));
    }
    let (mut take, pods) = pods(Arc::clone(&interner));
    for pod in owned {
        take(Event::Apply(pod));
    }
    let (mut take, services, foreign_services, selectors) = services(interner, labels);
    for service in live {
        take(Event::Apply(service));
    }
    Stores { sets, pods, children: BTreeMap::from([(Kind::Service, services)]), foreign_services, selectors }
}

#[test]
fn of_stateful_sets_only_annotated_ones_are_kept_and_looked_at() {
    let (mut take, sets, labels) = sets();
    assert_eq!(names(take(Event::Apply(stateful_set("db", true)))), ["shop/db"]);
    assert_eq!(names(take(Event::Apply(stateful_set("web", false)))), [""; 0]);
    let known = || (sets.get("shop", "db").is_some(), labels.read().unwrap().has("shop/db"));
    assert!(sets.get("shop", "web").is_none());
    assert_eq!(known(), (true, true));
    assert_eq!(names(take(Event::Apply(stateful_set("db", false)))), [""; 0]);
    assert_eq!(known(), (false, false));
}

#[test]
fn a_service_is_about_the_sets_that_it_can_choose_or_has_a_name_of() {
    let (mut take, _store, labels) = sets();
    for set in ["db", "db-archive"] {
        take(Event::Apply(stateful_set(set, true)));
    }
    let (mut take, ..) = services(Arc::default(), labels);
    let mut about = |service: DynamicObject| names(take(Event::Apply(service)));
    assert_eq!(about(choosing("postgres", json!({"app": "db"}))), ["shop/db"]);
    assert_eq!(about(choosing("postgres", json!({"app": "db"}))), [""; 0], "nothing has changed");
    assert_eq!(
        about(choosing("postgres", json!({"app": "db-archive", "tier": "data"}))),
        ["shop/db", "shop/db-archive"]
    );
    assert_eq!(about(choosing("web", json!({"app": "web", "tier": "data"}))), [""; 0]);
    assert_eq!(about(choosing("all", json!({"tier": "data"}))), ["shop/db", "shop/db-archive"]);
    assert_eq!(about(choosing("masters", json!({"pgset.dev/role": "master"}))), ["shop/db", "shop/db-archive"]);
    for name in ["db-master", "db-replica", "db-hl"] {
        assert_eq!(about(choosing(name, json!({"app": "web"}))), ["shop/db"], "{name}");
    }
    assert_eq!(about(ours("db-archive-master", "db-archive")), ["shop/db-archive"]);
    // The name is free for the other one.
    assert_eq!(names(take(Event::Delete(ours("db-master", "db-archive")))), ["shop/db", "shop/db-archive"]);
}

#[test]
fn of_300_sets_and_300_services_in_a_namespace_each_is_about_its_own() {
    let number = |n: usize| format!("db-{n}");
    let sets_there = (0..300).map(|n| stateful_set(&number(n), true)).collect();
    let stores = stores(
        sets_there,
        vec![],
        (0..300).map(|n| choosing(&format!("s-{n}"), json!({"tier": "data", "app": number(n)}))).collect(),
    );
    let read: usize = (0..300).map(|n| stores.foreign_services(&set(&number(n))).len()).sum();
    // The first one was filed when both labels were as rare.
    assert!((300..=600).contains(&read), "{read} Services were read for 300 looks");

    let (mut take, _store, labels) = sets();
    (0..300).for_each(|n| drop(take(Event::Apply(stateful_set(&number(n), true)))));
    let (mut take, ..) = services(Arc::default(), labels);
    let looks: usize =
        (0..300).map(|n| take(Event::Apply(choosing("s", json!({"tier": "data", "app": number(n)})))).len()).sum();
    assert_eq!(looks, 599, "each change is about the set before and the one after");
}

#[test]
fn a_renewed_lease_is_about_nobody_and_a_deleted_one_about_its_set() {
    let (mut take, leases) = made_for_sets(Kind::Lease, Arc::default());
    assert_eq!(names(take(Event::Apply(ours("db-leader", "db")))), [""; 0]);
    assert!(leases.get("shop", "db-leader").is_some());
    assert_eq!(names(take(Event::Delete(ours("db-leader", "db")))), ["shop/db"]);
    assert!(leases.get("shop", "db-leader").is_none());
}

#[test]
fn any_service_is_found_by_name_and_only_other_peoples_by_selector() {
    let stores = stores(vec![], vec![], vec![ours("db-master", "db"), theirs("postgres")]);
    for name in ["db-master", "postgres"] {
        assert_eq!(stores.child(Kind::Service, "shop", name).unwrap()["metadata"]["name"], name);
    }
    assert_eq!(stores.child(Kind::Service, "shop", "web"), None);
    let app = Set { pod_labels: BTreeMap::from([("app".to_owned(), "pgset".to_owned())]), ..set("db") };
    let foreign = stores.foreign_services(&app);
    assert_eq!((foreign.len(), &foreign[0]["metadata"]["name"]), (1, &json!("postgres")));
    assert_eq!(stores.foreign_services(&set("db")), [json!(null); 0]);
}

#[test]
fn a_service_that_loses_or_gets_our_labels_changes_sides() {
    let (mut take, services, foreign_services, _) = services(Arc::default(), Shared::default());
    let sides = || (services.get("shop", "db-master").is_some(), foreign_services.get("shop", "db-master").is_some());
    take(Event::Apply(ours("db-master", "db")));
    assert_eq!(sides(), (true, false));
    take(Event::Apply(theirs("db-master")));
    assert_eq!(sides(), (false, true));
    take(Event::Apply(ours("db-master", "db")));
    assert_eq!(sides(), (true, false));
}

#[test]
fn members_are_the_pods_that_the_set_owns() {
    let pods = vec![pod("db-1", "set"), pod("db-0", "set"), pod("db-archive-0", "another"), pod("db-2", "earlier")];
    let stores = stores(vec![], pods, vec![]);
    let owner = Owner { namespace: "shop".to_owned(), name: "db".to_owned(), uid: "set".to_owned() };
    let members: Vec<String> = stores.members(&owner).into_iter().map(|member| member.name).collect();
    assert_eq!(members, ["db-0", "db-1"]);
}

#[tokio::test(start_paused = true)]
async fn one_list_comes_after_the_other() {
    let (service, mut server) = tower_test::mock::pair::<axum::http::Request<Body>, axum::http::Response<Body>>();
    let (stores, _queue, _tasks) = Stores::start(&Client::new(service, "default"));
    let mut watches = Vec::new();
    let mut lists = 0;
    while lists < 9 {
        let (request, answer) = server.next_request().await.unwrap();
        if request.uri().query().unwrap_or_default().contains("watch=true") {
            watches.push(answer);
            continue;
        }
        lists += 1;
        // As long as this one is not answered, nobody begins another one.
        while let Ok(Some((request, answer))) =
            tokio::time::timeout(Duration::from_secs(1), server.next_request()).await
        {
            assert!(request.uri().query().unwrap_or_default().contains("watch=true"), "{}", request.uri());
            watches.push(answer);
        }
        let empty = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []});
        answer.send_response(axum::http::Response::new(Body::from(empty.to_string().into_bytes())));
    }
    assert!(stores.ready().await.is_ok());
}
