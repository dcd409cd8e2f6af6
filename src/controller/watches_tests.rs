use std::time::Duration;

use kube::client::Body;
use serde_json::json;

use super::*;

fn seen(name: &str, labels: &Value) -> Seen {
    let metadata = json!({"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1", "labels": labels});
    serde_json::from_value(json!({"metadata": metadata, "spec": {"selector": {"app": "pgset"}}})).unwrap()
}

fn ours(name: &str, set: &str) -> Seen {
    seen(name, &json!({"pgset.dev/set": set, "app.kubernetes.io/managed-by": "pgset"}))
}

fn theirs(name: &str) -> Seen {
    seen(name, &json!({"app": "theirs"}))
}

fn view(name: &str, annotated: bool) -> View {
    let annotations = if annotated { json!({"pgset.dev/inject": "enabled"}) } else { json!({}) };
    let metadata =
        json!({"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1", "annotations": annotations});
    serde_json::from_value(json!({"metadata": metadata})).unwrap()
}

fn pod(name: &str, owner: &str) -> PartialObjectMeta<Pod> {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1",
        "labels": {"pgset.dev/set": "db"}, "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet",
            "name": "db", "uid": owner, "controller": true}]}}))
    .unwrap()
}

fn names(sets: Vec<ObjectRef<View>>) -> Vec<String> {
    sets.into_iter().map(|set| format!("{}/{}", set.namespace.unwrap_or_default(), set.name)).collect()
}

/// Stores with what the events have brought.
fn stores(views: Vec<View>, owned: Vec<PartialObjectMeta<Pod>>, live: Vec<Seen>) -> Stores {
    let shapes = Arc::new(Shapes::default());
    let (mut take, sets, neighbours) = sets(Arc::default());
    for set in views {
        take(Event::Apply(set));
    }
    let (mut take, pods) = pods(Arc::clone(&shapes));
    for pod in owned {
        take(Event::Apply(pod));
    }
    let (mut take, services, strangers) = services(shapes, neighbours);
    for service in live {
        take(Event::Apply(service));
    }
    Stores { sets, pods, children: BTreeMap::from([(Kind::Service, services)]), strangers }
}

#[test]
fn of_stateful_sets_only_annotated_ones_are_kept_and_looked_at() {
    let (mut take, store, places) = sets(Arc::default());
    assert_eq!(names(take(Event::Apply(view("db", true)))), ["shop/db"]);
    assert_eq!(names(take(Event::Apply(view("web", false)))), [""; 0]);
    assert_eq!((store.len(), places.starting_with("shop", "").len()), (1, 1));
    assert_eq!(names(take(Event::Apply(view("db", false)))), [""; 0]);
    assert_eq!((store.len(), places.starting_with("shop", "").len()), (0, 0));
}

#[test]
fn a_service_of_somebody_elses_is_about_all_sets_of_its_namespace_and_ours_about_its_own() {
    let (mut take, _store, places) = sets(Arc::default());
    for set in ["db", "db-archive"] {
        take(Event::Apply(view(set, true)));
    }
    let (mut take, _, _) = services(Arc::default(), places);
    assert_eq!(names(take(Event::Apply(theirs("postgres")))), ["shop/db", "shop/db-archive"]);
    assert_eq!(names(take(Event::Apply(ours("db-master", "db")))), ["shop/db"]);
    // The name is free for the other one.
    assert_eq!(names(take(Event::Delete(ours("db-master", "db")))), ["shop/db", "shop/db-archive"]);
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
fn any_service_is_found_by_name_and_only_other_peoples_by_namespace() {
    let stores = stores(vec![], vec![], vec![ours("db-master", "db"), theirs("postgres")]);
    for name in ["db-master", "postgres"] {
        assert_eq!(stores.child(Kind::Service, "shop", name).unwrap()["metadata"]["name"], name);
    }
    assert_eq!(stores.child(Kind::Service, "shop", "web"), None);
    let foreign = stores.foreign_services("shop");
    assert_eq!((foreign.len(), &foreign[0]["metadata"]["name"]), (1, &json!("postgres")));
    assert_eq!(stores.foreign_services("web"), [json!(null); 0]);
}

#[test]
fn a_service_that_loses_or_gets_our_labels_changes_sides() {
    let (mut take, services, strangers) = services(Arc::default(), sets(Arc::default()).2);
    let sides = |services: &Index<Kept>, strangers: &Index<Kept>| {
        (services.get("shop", "db-master").is_some(), strangers.get("shop", "db-master").is_some())
    };
    take(Event::Apply(ours("db-master", "db")));
    assert_eq!(sides(&services, &strangers), (true, false));
    take(Event::Apply(theirs("db-master")));
    assert_eq!(sides(&services, &strangers), (false, true));
    take(Event::Apply(ours("db-master", "db")));
    assert_eq!(sides(&services, &strangers), (true, false));
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
    while lists < 8 {
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
