//! The webhook's router, in process: what it accepts, what it answers, and what it survives.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::BodyExt as _;
use pgset::webhook::{
    self, Decision, Operation, State,
    health::{self, Readiness},
    metrics::Metrics,
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

const UID: &str = "705ab4f5-6393-11e8-b7cc-42010a800002";

/// A webhook whose decision follows the object's name.
fn app() -> (Router, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let decide = |sets: &webhook::review::StatefulSets<'_>| match sets.object["metadata"]["name"].as_str().unwrap() {
        "panics" => panic!("a secret of the object"),
        "denied" => Decision::Denied { reason: "say it otherwise".to_owned(), code: "otherwise" },
        "warned" => Decision::Allowed { warnings: vec!["first\nsecond".to_owned()] },
        "untouched" => Decision::Untouched,
        _ => {
            let operation = if sets.operation == Operation::Create { "create" } else { "update" };
            let patch = json!([{"op": "add", "path": "/metadata/labels", "value": {"seen": operation,
                "old": sets.old.is_some().to_string()}}]);
            Decision::Patched {
                patch: serde_json::from_value(patch).unwrap(),
                warnings: Vec::new(),
                audit: vec![("revision", "7".to_owned())],
            }
        }
    };
    (webhook::router(State::new(decide, metrics.clone())), metrics)
}

fn review(operation: &str, object: &Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": UID, "operation": operation, "namespace": "default", "name": object["metadata"]["name"],
        "kind": {"group": "apps", "version": "v1", "kind": "StatefulSet"},
        "resource": {"group": "apps", "version": "v1", "resource": "statefulsets"},
        "userInfo": {"username": "somebody"}, "dryRun": false, "unheardOf": [1, 2],
        "object": object, "oldObject": if operation == "UPDATE" { object.clone() } else { Value::Null }}})
}

fn named(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name}})
}

async fn send(app: &Router, content_type: &str, body: impl Into<Body>) -> (StatusCode, Value) {
    let request = Request::post("/mutate?timeout=5s").header("content-type", content_type).body(body.into()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn ask(app: &Router, review: &Value) -> Value {
    let (status, answer) = send(app, "application/json", review.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!((&answer["apiVersion"], &answer["kind"]), (&json!("admission.k8s.io/v1"), &json!("AdmissionReview")));
    assert_eq!(answer["response"]["uid"], UID);
    answer["response"].clone()
}

fn assert_problem(answer: &Value, code: u16) {
    assert_eq!(
        (&answer["kind"], &answer["status"], &answer["code"]),
        (&json!("Status"), &json!("Failure"), &json!(code))
    );
    assert!(answer["message"].as_str().unwrap().starts_with("pgset: "), "{answer}");
}

#[tokio::test]
async fn a_patch_is_decoded_and_applies() {
    let (app, _) = app();
    for (operation, old) in [("CREATE", "false"), ("UPDATE", "true")] {
        let response = ask(&app, &review(operation, &named("db"))).await;
        assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
        let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
        let mut object = named("db");
        json_patch::patch(&mut object, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap()).unwrap();
        assert_eq!(object["metadata"]["labels"], json!({"seen": operation.to_lowercase(), "old": old}));
        assert_eq!(response["auditAnnotations"], json!({"decision": "injected", "revision": "7"}));
    }
}

#[tokio::test]
async fn a_denial_tells_the_reason() {
    let (app, _) = app();
    let response = ask(&app, &review("CREATE", &named("denied"))).await;
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["message"], "say it otherwise");
    assert_eq!(response["status"]["code"], 403);
    assert_eq!(response["status"]["details"], json!({"name": "denied", "group": "apps", "kind": "StatefulSet"}));
    assert_eq!(response["auditAnnotations"], json!({"decision": "denied", "reason": "otherwise"}));
    assert!(response.get("patch").is_none() && response.get("patchType").is_none());
}

#[tokio::test]
async fn warnings_come_one_a_line() {
    let (app, _) = app();
    let response = ask(&app, &review("UPDATE", &named("warned"))).await;
    assert_eq!((&response["allowed"], &response["warnings"]), (&json!(true), &json!(["first", "second"])));
}

#[tokio::test]
async fn what_is_not_ours_is_allowed_untouched() {
    let (app, _) = app();
    let mut others =
        vec![review("CREATE", &named("untouched")), review("DELETE", &named("denied")), review("CONNECT", &named("x"))];
    let mut pod = review("CREATE", &named("panics"));
    pod["request"]["kind"] = json!({"group": "", "version": "v1", "kind": "Pod"});
    let mut scale = review("UPDATE", &named("panics"));
    scale["request"]["subResource"] = json!("scale");
    let mut objectless = review("CREATE", &named("panics"));
    objectless["request"]["object"] = Value::Null;
    let mut unheard = review("CREATE", &named("panics"));
    unheard["request"]["operation"] = json!("TELEPORT");
    others.extend([pod, scale, objectless, unheard]);
    for other in others {
        assert_eq!(ask(&app, &other).await, json!({"uid": UID, "allowed": true}));
    }
}

#[tokio::test]
async fn a_legal_update_of_two_large_objects_is_read_and_nine_megabytes_are_not() {
    let (app, _) = app();
    let large = |bytes: usize| {
        let mut object = named("db");
        object["metadata"]["annotations"] = json!({"a": "x".repeat(bytes)});
        review("UPDATE", &object)
    };
    ask(&app, &large(1_300_000)).await; // the 2.5 MB at which axum's own limit fails
    ask(&app, &large(3 << 20)).await; // the largest objects that the API server takes
    let (status, answer) = send(&app, "application/json", large(4_500_000).to_string()).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_problem(&answer, 413);
}

#[tokio::test]
async fn only_json_is_read() {
    let (app, _) = app();
    let good = review("CREATE", &named("db")).to_string();
    for content_type in ["application/json; charset=utf-8", "Application/JSON"] {
        assert_eq!(send(&app, content_type, good.clone()).await.0, StatusCode::OK);
    }
    for content_type in ["", "text/plain", "application/jsonx", "application/yaml"] {
        let (status, answer) = send(&app, content_type, good.clone()).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_problem(&answer, 415);
    }
    let get = Request::get("/mutate").body(Body::empty()).unwrap();
    assert_eq!(app.clone().oneshot(get).await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    let elsewhere = Request::post("/").body(Body::empty()).unwrap();
    assert_eq!(app.oneshot(elsewhere).await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn garbage_is_refused_with_a_status() {
    let (app, _) = app();
    let mut beta = review("CREATE", &named("db"));
    beta["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut no_request = review("CREATE", &named("db"));
    no_request["request"] = Value::Null;
    let mut no_uid = review("CREATE", &named("db"));
    no_uid["request"].as_object_mut().unwrap().remove("uid");
    let deep = format!(r#"{{"request":{{"object":{}"#, "[".repeat(200_000));
    let bodies: [Vec<u8>; 8] = [
        vec![],
        b"{}".to_vec(),
        b"null".to_vec(),
        vec![0xff, 0xfe, 0x00],
        beta.to_string().into_bytes(),
        no_request.to_string().into_bytes(),
        no_uid.to_string().into_bytes(),
        deep.into_bytes(),
    ];
    for body in bodies {
        let (status, answer) = send(&app, "application/json", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_problem(&answer, 400);
    }
    ask(&app, &review("CREATE", &named("db"))).await;
}

#[tokio::test]
async fn a_panic_is_answered_counted_and_survived() {
    let (app, metrics) = app();
    let (status, answer) = send(&app, "application/json", review("CREATE", &named("panics")).to_string()).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_problem(&answer, 500);
    assert!(!answer.to_string().contains("a secret of the object"));
    ask(&app, &review("CREATE", &named("db"))).await;

    let admin = health::router(Readiness::new(), metrics);
    let text = get(&admin, "/metrics").await.1;
    for line in [
        "pgset_panics_total 1",
        r#"pgset_admission_requests_total{operation="create",outcome="injected"} 1"#,
        r#"pgset_admission_requests_total{operation="unknown",outcome="error"} 1"#,
        "pgset_admission_duration_seconds_count 1",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up_at_the_api_servers_deadline() {
    let (app, _) = app();
    let never = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let started = tokio::time::Instant::now();
    let (status, answer) = send(&app, "application/json", never).await;
    assert_eq!((status, started.elapsed().as_secs()), (StatusCode::GATEWAY_TIMEOUT, 5));
    assert_problem(&answer, 504);
}

async fn get(app: &Router, path: &str) -> (StatusCode, String) {
    let response = app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn readiness_tells_its_reasons_and_liveness_does_not_depend_on_it() {
    let readiness = Readiness::new();
    let admin = health::router(readiness.clone(), Arc::new(Metrics::new()));
    assert_eq!(get(&admin, "/readyz").await, (StatusCode::OK, "ok\n".to_owned()));
    readiness.set("certificates", Some("not loaded yet".to_owned()));
    readiness.set("serve", Some("shutting down".to_owned()));
    let expected = "certificates: not loaded yet\nserve: shutting down\n".to_owned();
    assert_eq!(get(&admin, "/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, expected));
    assert_eq!(get(&admin, "/livez").await.0, StatusCode::OK);
    readiness.set("certificates", None);
    readiness.set("serve", None);
    assert_eq!(get(&admin, "/readyz").await.0, StatusCode::OK);
}
