use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};
use tower_test::mock::Handle;

use super::*;

type Server = Handle<axum::http::Request<Body>, axum::http::Response<Body>>;

fn candidate(identity: &str) -> (Leadership, Server) {
    let (service, server) = tower_test::mock::pair();
    (Leadership::new(kube::Client::new(service, "pgset-system"), "pgset-system", identity), server)
}

/// Answers one request, and returns what it asked: method, path and body.
async fn answer(server: &mut Server, status: u16, body: Value) -> (String, String, Value) {
    let (request, send) = server.next_request().await.unwrap();
    let (parts, body_sent) = request.into_parts();
    let bytes = body_sent.collect().await.unwrap().to_bytes();
    let response = axum::http::Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
    send.send_response(response.unwrap());
    (parts.method.to_string(), parts.uri.path().to_owned(), serde_json::from_slice(&bytes).unwrap_or_default())
}

fn lease(holder: &str, version: &str) -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "pgset-controller", "resourceVersion": version},
        "spec": {"holderIdentity": holder, "leaseTransitions": 1}})
}

fn held() -> Held {
    Held { lease: serde_json::from_value(lease("one", "7")).unwrap(), asked: Instant::now() }
}

fn refused(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/pgset-system/leases/pgset-controller";

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_renews_is_taken_with_the_version_that_was_seen() {
    let (one, mut server) = candidate("one");
    let answers = tokio::spawn(async move {
        // Looked at until it has not changed for its whole length, and only then written.
        let mut looks = 0;
        loop {
            let asked = answer(&mut server, 200, lease(if looks < 4 { "dead" } else { "one" }, "7")).await;
            if asked.0 == "PUT" {
                return (looks, asked);
            }
            looks += 1;
        }
    });
    one.acquire().await;
    let (looks, (method, path, body)) = answers.await.unwrap();
    assert!((3..=4).contains(&looks), "{looks} looks");
    assert_eq!((method.as_str(), path.as_str()), ("PUT", PATH));
    assert_eq!(body["metadata"]["resourceVersion"], "7");
    assert_eq!(body["spec"]["holderIdentity"], "one");
    assert_eq!(body["spec"]["leaseTransitions"], 2);
}

#[tokio::test(start_paused = true)]
async fn whoever_loses_the_race_goes_on_waiting() {
    let (one, mut server) = candidate("one");
    let answers = tokio::spawn(async move {
        answer(&mut server, 200, lease("", "7")).await;
        assert_eq!(answer(&mut server, 409, refused(409, "Conflict")).await.0, "PUT");
        assert_eq!(answer(&mut server, 200, lease("two", "8")).await.0, "GET");
        answer(&mut server, 200, lease("", "9")).await;
        answer(&mut server, 200, lease("one", "10")).await
    });
    one.acquire().await;
    assert_eq!(answers.await.unwrap().2["metadata"]["resourceVersion"], "9");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_finds_another_stops_at_once() {
    let (one, mut server) = candidate("one");
    let held = held();
    let answers = tokio::spawn(async move {
        assert_eq!(answer(&mut server, 409, refused(409, "Conflict")).await.2["metadata"]["resourceVersion"], "7");
        answer(&mut server, 200, lease("two", "9")).await;
    });
    assert!(matches!(one.hold(held).await, Error::Taken { holder } if holder == "two"));
    answers.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_lease_was_edited_renews_the_edited_one() {
    let (one, mut server) = candidate("one");
    let held = held();
    let answers = tokio::spawn(async move {
        answer(&mut server, 409, refused(409, "Conflict")).await;
        answer(&mut server, 200, lease("one", "8")).await;
        assert_eq!(answer(&mut server, 200, lease("one", "9")).await.2["metadata"]["resourceVersion"], "8");
        assert_eq!(answer(&mut server, 404, refused(404, "NotFound")).await.2["metadata"]["resourceVersion"], "9");
        answer(&mut server, 404, refused(404, "NotFound")).await;
    });
    assert!(matches!(one.hold(held).await, Error::Taken { .. }));
    answers.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_stops_before_the_lease_runs_out() {
    let (one, mut server) = candidate("one");
    let held = held();
    let start = Instant::now();
    let answers = tokio::spawn(async move {
        loop {
            // The request is taken and never answered.
            let Some(request) = server.next_request().await else { return };
            std::mem::forget(request);
        }
    });
    assert!(matches!(one.hold(held).await, Error::Overdue));
    assert_eq!(start.elapsed(), DEADLINE);
    answers.abort();
}

#[tokio::test(start_paused = true)]
async fn a_lease_counts_from_when_it_was_asked_for_however_late_the_answer_is() {
    let (one, mut server) = candidate("one");
    let start = Instant::now();
    let answers = tokio::spawn(async move {
        answer(&mut server, 200, lease("", "7")).await;
        let (_, send) = server.next_request().await.unwrap();
        sleep(Duration::from_secs(8)).await;
        send.send_response(axum::http::Response::new(Body::from(lease("one", "8").to_string().into_bytes())));
        loop {
            assert_eq!(answer(&mut server, 500, refused(500, "InternalError")).await.0, "PUT");
        }
    });
    assert!(matches!(one.hold(one.acquire().await).await, Error::Overdue));
    assert_eq!(start.elapsed(), DEADLINE);
    answers.abort();
}

#[test]
fn a_lease_is_taken_if_free_or_ours_or_run_out() {
    let of = |holder: &str| serde_json::from_value::<Lease>(lease(holder, "1")).unwrap();
    assert!(may_take(&of(""), "one", Duration::ZERO));
    assert!(may_take(&of("one"), "one", Duration::ZERO));
    assert!(!may_take(&of("two"), "one", LENGTH.checked_sub(Duration::from_secs(1)).unwrap()));
    assert!(may_take(&of("two"), "one", LENGTH));
}
