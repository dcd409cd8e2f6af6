use http_body_util::BodyExt;
use kube::client::Body;

use super::super::cache::pod::{Member, Readiness};
use super::*;
use crate::children::compare::correction;
use crate::children::tests::{child, owner, pgset};

#[test]
fn passwords_are_long_plain_and_never_the_same() {
    let Passwords(words) = passwords().unwrap();
    assert!(words.iter().all(|w| w.len() == PASSWORD_LENGTH && w.bytes().all(|b| b.is_ascii_alphanumeric())));
    let distinct: std::collections::BTreeSet<_> = words.iter().collect();
    assert_eq!(distinct.len(), words.len());
}

/// What one step asks of the API server: method, path, query and body.
async fn asked(step: Step) -> (String, String, String, Value) {
    let (service, mut server) = tower_test::mock::pair::<axum::http::Request<Body>, axum::http::Response<Body>>();
    let client = Client::new(service, "default");
    let answered = tokio::spawn(async move {
        let (request, send) = server.next_request().await.unwrap();
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let answer = json!({"apiVersion": "v1", "kind": "Any", "metadata": {"name": "any"}}).to_string();
        send.send_response(axum::http::Response::new(Body::from(answer.into_bytes())));
        let query = parts.uri.query().unwrap_or_default().to_owned();
        (
            parts.method.to_string(),
            parts.uri.path().to_owned(),
            query,
            serde_json::from_slice(&body).unwrap_or_default(),
        )
    });
    let owner = owner();
    Requests { client: &client, owner: &owner, identity: "tester" }.take(&step).await.unwrap();
    answered.await.unwrap()
}

fn master_service() -> Child {
    let body = child(&pgset(), Kind::Service, "pgset-master");
    Child { kind: Kind::Service, name: "pgset-master".to_owned(), body }
}

#[tokio::test]
async fn what_is_made_never_takes_over_what_somebody_made_meanwhile() {
    let (method, path, query, body) = asked(Step::Create(master_service())).await;
    assert_eq!((method.as_str(), path.as_str()), ("POST", "/api/v1/namespaces/shop/services"));
    assert!(query.contains("fieldManager=pgset"), "{query}");
    assert_eq!(body, master_service().body);
}

#[tokio::test]
async fn what_is_put_right_is_the_very_object_that_was_seen() {
    let wanted = json!({"metadata": {"uid": "seen"}, "spec": {"selector": {"app": null}}});
    let (method, path, query, body) = asked(Step::Restore { child: master_service(), patch: wanted.clone() }).await;
    assert_eq!((method.as_str(), path.as_str()), ("PATCH", "/api/v1/namespaces/shop/services/pgset-master"));
    assert!(query.contains("fieldManager=pgset"), "{query}");
    assert_eq!(body, wanted);
}

#[tokio::test]
async fn a_role_is_put_on_the_very_pod_and_version_that_was_seen() {
    let member = Member {
        name: "pgset-0".to_owned(),
        uid: "seen".to_owned(),
        resource_version: "7".to_owned(),
        labels: std::collections::BTreeMap::new(),
        leaving: false,
        readiness: Readiness::Ready,
        family: None,
    };
    let step = Step::Label { member, key: "name".to_owned(), value: "pgset-master".to_owned() };
    let (method, path, _, body) = asked(step).await;
    assert_eq!((method.as_str(), path.as_str()), ("PATCH", "/api/v1/namespaces/shop/pods/pgset-0"));
    let metadata = json!({"uid": "seen", "resourceVersion": "7", "labels": {"name": "pgset-master"}});
    assert_eq!(correction(&body["metadata"], &metadata), None, "{body}");
    assert_eq!(body.get("spec"), None);
}

#[tokio::test]
async fn what_is_removed_is_the_very_object_that_was_seen() {
    let step = Step::Remove { kind: Kind::PodDisruptionBudget, name: "pgset".to_owned(), uid: "seen".to_owned() };
    let (method, _, _, body) = asked(step).await;
    assert_eq!((method.as_str(), &body["preconditions"]["uid"]), ("DELETE", &json!("seen")));
}

/// The error for an answer of the API server's.
#[allow(clippy::needless_pass_by_value)] // `json!` at every call
fn refused(status: Value) -> Error {
    Error::request("create", "Secret", "pgset-credentials", kube::Error::Api(serde_json::from_value(status).unwrap()))
}

#[test]
fn that_a_namespace_goes_away_is_no_refusal() {
    let terminating = refused(json!({
        "status": "Failure", "code": 403, "reason": "Forbidden",
        "message": "secrets \"pgset-credentials\" is forbidden: unable to create new content in namespace shop because it is being \
                    terminated",
        "details": { "name": "pgset-credentials", "kind": "secrets", "causes": [{ "reason": "NamespaceTerminating",
            "message": "namespace shop is being terminated", "field": "metadata.namespace" }] },
    }));
    assert!(terminating.is_namespace_terminating());
    assert_eq!(terminating.refusal(), None);
}

#[test]
fn what_a_policy_says_of_termination_is_a_refusal() {
    let message = "secrets \"pgset-credentials\" is forbidden: exceeded quota, because it is being terminated";
    let quota = refused(json!({"status": "Failure", "code": 403, "reason": "Forbidden", "message": message,
        "details": { "name": "pgset-credentials", "kind": "secrets" }}));
    assert!(!quota.is_namespace_terminating());
    assert!(quota.refusal().is_some());
}

#[test]
fn that_somebody_was_first_is_a_conflict_which_means_to_look_again() {
    let exists =
        refused(json!({"status": "Failure", "code": 409, "reason": "AlreadyExists", "message": "already exists"}));
    assert_eq!(exists.code(), "conflict");
}
