//! The body of a request to the webhook. Whatever it is, the answer is JSON and no panic; of a review, the uid comes back, and a
//! patch applies to the object that was sent.

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::BodyExt as _;
use pgset::{
    inject::Settings,
    webhook::{self, State, metrics::Metrics},
};
use serde_json::Value;
use tower::ServiceExt as _;

static ROUTER: LazyLock<Router> = LazyLock::new(|| {
    let settings = Settings { agent_image: "pgset.dev/pgset:0.2.0".to_owned() };
    webhook::router(State::new(webhook::by_injection(settings), Arc::new(Metrics::new())))
});

/// One input.
pub fn run(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let (status, body) = runtime.block_on(async {
        let request = Request::post("/mutate?timeout=5s").header("content-type", "application/json");
        let request = request.body(Body::from(bytes.to_vec())).expect("a request");
        let response = ROUTER.clone().oneshot(request).await.expect("an answer");
        let status = response.status();
        (status, response.into_body().collect().await.expect("a body").to_bytes())
    });
    let answer: Value = serde_json::from_slice(&body).expect("the answer is JSON");
    if status == StatusCode::OK {
        // Of a field that nobody asks for, serde reads less strictly.
        if let Ok(review) = serde_json::from_slice(bytes) {
            check(&review, &answer["response"]);
        }
    } else {
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_eq!((&answer["kind"], &answer["code"]), (&"Status".into(), &400.into()), "{answer}");
    }
}

fn check(review: &Value, response: &Value) {
    assert_eq!(response["uid"], review["request"]["uid"]);
    let allowed = response["allowed"].as_bool().expect("a decision");
    assert_eq!(allowed, response.get("status").is_none(), "{response}");
    if let Some(patch) = response.get("patch") {
        assert!(allowed && response["patchType"] == "JSONPatch");
        let patch = STANDARD.decode(patch.as_str().expect("base64")).expect("base64");
        let mut object = review["request"]["object"].clone();
        json_patch::patch(&mut object, &serde_json::from_slice::<json_patch::Patch>(&patch).expect("a patch"))
            .expect("it applies");
    }
    for warning in response["warnings"].as_array().into_iter().flatten() {
        let warning = warning.as_str().expect("text");
        assert!(warning.chars().count() <= 120 && !warning.contains(char::is_control), "{warning:?}");
    }
}
