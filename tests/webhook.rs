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
use pgset::{
    inject::{self, Denial, Outcome},
    invariants::Invariant,
    webhook::{
        self, State,
        health::{self, Readiness},
        metrics::Metrics,
        review::StatefulSets,
    },
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

#[path = "support/logged.rs"]
#[allow(dead_code, missing_docs)] // it is shared
mod logged;

use logged::Log;

const UID: &str = "705ab4f5-6393-11e8-b7cc-42010a800002";

/// Any refusal of the injection.
fn denial() -> Denial {
    let object = json!({"metadata": {"name": "denied", "annotations": {"pgset.dev/injekt": "enabled"}}});
    let settings = inject::Settings { agent_image: "pgset:1".to_owned() };
    match inject::inject(&inject::Request { object: &object, old: None, settings: &settings }) {
        Outcome::Denied { reason } => reason,
        other => panic!("{other:?}"),
    }
}

/// A webhook whose decision follows the object's name.
fn app() -> (Router, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let decide = |sets: &StatefulSets<'_>| match sets.object["metadata"]["name"].as_str().unwrap() {
        "panics" => panic!("a secret of the object"),
        "denied" => Outcome::Denied { reason: denial() },
        "warned" => Outcome::Untouched { warnings: vec!["first\nsecond".to_owned()] },
        "untouched" => Outcome::Untouched { warnings: Vec::new() },
        name => {
            let patch = json!([{"op": "add", "path": if name == "strays" { "/spec/replicas" } else { "/metadata/annotations" },
                "value": {"old": sets.old.is_some().to_string()}}]);
            Outcome::Patched {
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
        assert_eq!(object["metadata"]["annotations"], json!({"old": old}));
        assert_eq!(response["auditAnnotations"], json!({"decision": "injected", "request": UID, "revision": "7"}));
    }
}

#[tokio::test]
async fn a_patch_of_what_is_not_pgsets_to_change_is_never_sent_and_counts_as_a_bug() {
    let (app, _) = app();
    let before = Invariant::PatchStaysInTemplate.count();
    let (status, answer) = send(&app, "application/json", review("UPDATE", &named("strays")).to_string()).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_problem(&answer, 500);
    assert_eq!(Invariant::PatchStaysInTemplate.count(), before + 1);
}

#[tokio::test]
async fn a_denial_tells_the_reason() {
    let (app, _) = app();
    let response = ask(&app, &review("CREATE", &named("denied"))).await;
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["message"], denial().to_string());
    assert_eq!(response["status"]["code"], 403);
    assert_eq!(response["status"]["details"], json!({"name": "denied", "group": "apps", "kind": "StatefulSet"}));
    assert_eq!(response["auditAnnotations"], json!({"decision": "denied", "reason": denial().code(), "request": UID}));
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
    assert!(answer["message"].as_str().unwrap().contains(UID), "{answer}");
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

/// A request whose body never ends, with a length or without.
fn endless(timeout: &str, length: Option<usize>) -> Request<Body> {
    let never = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let mut request = Request::post(format!("/mutate?timeout={timeout}")).header("content-type", "application/json");
    if let Some(length) = length {
        request = request.header("content-length", length);
    }
    request.body(never).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up_after_four_seconds_or_the_api_servers_own_timeout() {
    let (app, _) = app();
    for (timeout, code, seconds) in [("30s", 408, 4), ("5s", 408, 4), ("3s", 504, 3)] {
        let started = tokio::time::Instant::now();
        let response = app.clone().oneshot(endless(timeout, None)).await.unwrap();
        assert_eq!((response.status().as_u16(), started.elapsed().as_secs()), (code, seconds));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_problem(&serde_json::from_slice(&body).unwrap(), code);
    }
}

#[tokio::test]
async fn slow_and_large_clients_hold_up_each_other_and_not_the_api_server() {
    let (app, metrics) = app();
    let held: Vec<_> = [None, Some(4 << 20)]
        .into_iter()
        .cycle()
        .take(100)
        .map(|length| tokio::spawn(app.clone().oneshot(endless("30s", length))))
        .collect();
    let admin = health::router(Readiness::new(), metrics);
    while !get(&admin, "/metrics").await.1.contains("pgset_admission_in_flight 100\n") {
        tokio::task::yield_now().await;
    }
    let large = Request::post("/mutate?timeout=1s").header("content-type", "application/json");
    let large = large.header("content-length", 1 << 20).body(Body::from(vec![b' '; 1 << 20])).unwrap();
    assert_eq!(
        app.clone().oneshot(large).await.unwrap().status(),
        StatusCode::GATEWAY_TIMEOUT,
        "eight are read at once"
    );

    let body = review("CREATE", &named("db")).to_string();
    let usual = Request::post("/mutate?timeout=1s").header("content-type", "application/json");
    let usual = usual.header("content-length", body.len()).body(Body::from(body)).unwrap();
    assert_eq!(app.oneshot(usual).await.unwrap().status(), StatusCode::OK);
    for request in &held {
        request.abort();
    }
    for request in held {
        let _ = request.await;
    }
    assert!(get(&admin, "/metrics").await.1.contains("pgset_admission_in_flight 0\n"), "who leaves is not counted");
}

#[tokio::test]
async fn a_thousand_at_once_are_answered_and_more_are_told_to_come_again() {
    let (app, metrics) = app();
    let admin = health::router(Readiness::new(), metrics);
    let held: Vec<_> = (0..1024).map(|_| tokio::spawn(app.clone().oneshot(endless("30s", Some(9))))).collect();
    while !get(&admin, "/metrics").await.1.contains("pgset_admission_in_flight 1024\n") {
        tokio::task::yield_now().await;
    }
    let response = app.clone().oneshot(endless("30s", Some(9))).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    for request in held {
        request.abort();
        let _ = request.await;
    }

    let ask = |n: usize| {
        let app = app.clone();
        tokio::spawn(async move { ask(&app, &review("CREATE", &named(&format!("db-{n}")))).await["allowed"] == true })
    };
    for answer in (0..1000).map(ask).collect::<Vec<_>>() {
        assert!(answer.await.unwrap());
    }
}

#[tokio::test]
async fn a_review_of_millions_of_values_is_refused_before_it_is_read() {
    let (app, _) = app();
    let few = review("CREATE", &named("db")).to_string();
    let many = format!(r#"{},"more":[{}0]}}"#, &few[..few.len() - 1], "0,".repeat(1 << 20));
    let (status, answer) = send(&app, "application/json", many).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_problem(&answer, 413);
    assert!(answer["message"].as_str().unwrap().contains("values"), "{answer}");
}

#[tokio::test]
async fn a_log_line_has_the_request_and_the_decision_and_nothing_of_the_object() {
    const SECRET: &str = "hunter2";
    let log = Log::start();
    let settings = pgset::inject::Settings { agent_image: pgset::names::IMAGE.to_owned() };
    let injecting = webhook::router(State::new(webhook::by_injection(settings), Arc::new(Metrics::new())));
    let (scripted, _) = app();
    let mut object = named("db");
    object["metadata"]["annotations"] = json!({"pgset.dev/inject": "enabled", "note": SECRET});
    object["spec"] = json!({"template": {"spec": {"containers": [
        {"name": "postgres", "image": "postgres:17", "env": [{"name": "POSTGRES_PASSWORD", "value": SECRET}],
         "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}]}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}}], "selector": {"matchLabels": {}}});
    let (mut wrong, mut panics) = (object.clone(), object.clone());
    wrong["metadata"]["annotations"]["pgset.dev/failover"] = json!(SECRET);
    panics["metadata"]["name"] = json!("panics");
    ask(&injecting, &review("CREATE", &object)).await;
    ask(&injecting, &review("UPDATE", &object)).await;
    ask(&injecting, &review("CREATE", &wrong)).await;
    send(&scripted, "application/json", review("CREATE", &panics).to_string()).await;
    let broken = review("CREATE", &object).to_string().replace(SECRET, &format!("{SECRET}\n"));
    send(&injecting, "application/json", broken).await;
    send(&injecting, SECRET, "{}").await;

    let text = log.text();
    assert!(!text.replace("must be application/json, not \\\"hunter2", "").contains(SECRET), "{text}");
    let lines = log.lines();
    let reviewed: Vec<_> = lines.iter().filter(|line| line["message"] == "reviewed").collect();
    assert_eq!(reviewed.len(), 3, "{text}");
    for line in &reviewed {
        let about = ["uid", "namespace", "set"].map(|field| &line["span"][field]);
        assert_eq!(about, [&json!(UID), &json!("default"), &json!("db")], "{line}");
        assert!(line["decision"].is_string() && line["microseconds"].is_u64(), "{line}");
    }
    assert!(reviewed[2]["reason"].is_string(), "{text}");
    let problem = lines.iter().find(|line| line["problem"].as_str().is_some_and(|problem| problem.contains(UID)));
    assert_eq!(problem.unwrap()["span"]["set"], "panics", "{text}");
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
    readiness.remark("certificates", Some("a file is broken, the one before is served".to_owned()));
    let expected = "ok\ncertificates: a file is broken, the one before is served\n".to_owned();
    assert_eq!(get(&admin, "/readyz").await, (StatusCode::OK, expected));
}
