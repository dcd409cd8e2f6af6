//! The golden files (see `support/cases.rs`), by three ways that need no cluster: the function, the webhook's HTTP, and the
//! command line. The other two, what the API server would store and what it stores, are in `tests/api/goldens.rs`.
//!
//! `PGSET_BLESS=1 cargo test --test golden every_case` writes the answers anew: read the difference before you commit it.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a test may stop where it fails

#[path = "support/cases.rs"]
mod cases;

use std::{collections::BTreeMap, fs, process::Command, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{Request as HttpRequest, StatusCode},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cases::{ANSWERS, Answer, Case, IMAGE};
use http_body_util::BodyExt as _;
use pgset::{
    cli::inject::manifest,
    inject::{Outcome, Request, Settings, eject, inject},
    webhook::{self, State, metrics::Metrics},
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

fn settings() -> Settings {
    Settings { agent_image: IMAGE.to_owned() }
}

fn ask(object: &Value, old: Option<&Value>) -> Outcome {
    inject(&Request { object, old, settings: &settings() })
}

fn applied(object: &Value, patch: &json_patch::Patch) -> Value {
    let mut object = object.clone();
    json_patch::patch(&mut object, patch).unwrap();
    object
}

/// What is stored before an update.
fn stored(case: &Case) -> Option<Value> {
    let object = case.stored()?;
    Some(match ask(&object, None) {
        Outcome::Untouched { .. } => object,
        Outcome::Patched { patch, .. } => applied(&object, &patch),
        Outcome::Denied { reason } => panic!("{}: {reason}", case.name),
    })
}

/// The files that belong to a case, by what their names end with.
fn answers(case: &Case) -> BTreeMap<&'static str, String> {
    let Some(object) = case.object() else { return BTreeMap::new() };
    let (name, old) = (&case.name, stored(case));
    let mut answers = BTreeMap::new();
    let warnings = match ask(&object, old.as_ref()) {
        Outcome::Untouched { warnings } => {
            answers.insert("untouched.txt", "untouched\n".to_owned());
            warnings
        }
        Outcome::Denied { reason } => {
            answers.insert("denied.txt", format!("{reason}\n({})\n", reason.code()));
            Vec::new()
        }
        Outcome::Patched { patch, warnings, .. } => {
            let injected = applied(&object, &patch);
            check_twice(name, &object, &injected, old.as_ref());
            answers.insert("injected.yaml", manifest::to_yaml(&injected).unwrap());
            warnings
        }
    };
    for warning in &warnings {
        assert!(warning.chars().count() <= 120 && !warning.chars().any(char::is_control), "{name}: {warning:?}");
    }
    if !warnings.is_empty() {
        answers.insert("warnings.txt", warnings.join("\n") + "\n");
    }
    answers
}

/// What holds for every case: injecting again changes nothing, and ejecting gives the user's own back.
fn check_twice(name: &str, object: &Value, injected: &Value, old: Option<&Value>) {
    assert!(matches!(ask(injected, None), Outcome::Untouched { .. }), "{name}: injecting again changes something");
    let updated = ask(injected, Some(injected));
    assert!(matches!(updated, Outcome::Untouched { .. }), "{name}: {updated:?}");
    if old.is_none() {
        let ejected = applied(injected, &eject(injected));
        assert_eq!(ejected.to_string(), object.to_string(), "{name}: ejecting does not give the user's own back");
    }
}

#[test]
fn every_case_is_answered_as_its_golden_file_says() {
    let bless = std::env::var_os("PGSET_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in cases::all() {
        let expected = answers(&case);
        for suffix in ANSWERS {
            let path = cases::directory().join(format!("{}.{suffix}", case.name));
            match (case.files.get(suffix), expected.get(suffix)) {
                (found, expected) if found == expected => {}
                (_, Some(text)) if bless => fs::write(&path, text).unwrap(),
                (_, None) if bless => fs::remove_file(&path).unwrap(),
                (_, Some(text)) => wrong.push(format!("{}.{suffix} should be:\n{text}", case.name)),
                (_, None) => wrong.push(format!("{}.{suffix} is stale", case.name)),
            }
        }
        let known = |suffix: &str| ANSWERS.contains(&suffix) || ["yaml", "stored.yaml"].contains(&suffix);
        wrong.extend(case.files.keys().filter(|it| !known(it)).map(|it| format!("{}.{it} is no case", case.name)));
        if case.object().is_none() && case.files.contains_key("stored.yaml") {
            wrong.push(format!("{}.stored.yaml belongs to nothing", case.name));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nPGSET_BLESS=1 cargo test --test golden every_case writes them anew",
        wrong.join("\n")
    );
}

#[tokio::test]
async fn the_webhook_answers_the_same_over_http() {
    let router = webhook::router(State::new(webhook::by_injection(settings()), Arc::new(Metrics::new())));
    for case in cases::all() {
        let (name, object) = (&case.name, case.object().unwrap());
        let response = review(&router, &object, stored(&case).as_ref()).await;
        let warnings: Vec<String> =
            serde_json::from_value(response.get("warnings").cloned().unwrap_or(json!([]))).unwrap();
        assert_eq!(warnings, case.warnings(), "{name}");
        let audit = &response["auditAnnotations"];
        match case.answer() {
            Answer::Injected(expected) => {
                let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
                assert_eq!(applied(&object, &serde_json::from_slice(&patch).unwrap()), expected, "{name}");
                assert_eq!(audit["decision"], "injected", "{name}");
                assert!(audit["contract"].is_string() && audit["revision"].is_string(), "{name}: {audit}");
            }
            Answer::Denied { reason, code } => {
                assert_eq!(response["allowed"], false, "{name}");
                let message = response["status"]["message"].as_str().unwrap();
                assert!(message.ends_with(&format!(": {reason}")), "{name}: {message}");
                assert_eq!(audit, &json!({"reason": code, "decision": "denied", "request": "golden"}), "{name}");
            }
            Answer::Untouched => {
                assert!(response["allowed"] == true && response.get("patch").is_none(), "{name}: {response}");
                let decision = (!warnings.is_empty()).then(|| json!("unchanged"));
                assert_eq!(audit.get("decision"), decision.as_ref(), "{name}");
            }
        }
    }
}

async fn review(router: &Router, object: &Value, old: Option<&Value>) -> Value {
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "golden", "operation": if old.is_some() { "UPDATE" } else { "CREATE" },
        "kind": {"group": "apps", "version": "v1", "kind": "StatefulSet"}, "object": object, "oldObject": old}});
    let request = HttpRequest::post("/mutate").header("content-type", "application/json");
    let request = request.body(Body::from(review.to_string())).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let mut answer: Value = serde_json::from_slice(&body).unwrap();
    answer["response"].take()
}

#[test]
fn the_command_line_prints_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stored.yaml");
    for case in cases::all() {
        let name = &case.name;
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgset"));
        command.args(["inject", "--agent-image", IMAGE, "-f"]).arg(&case.path);
        if let Some(stored) = stored(&case) {
            fs::write(&file, manifest::to_yaml(&stored).unwrap()).unwrap();
            command.arg("--stored").arg(&file);
        }
        let output = command.output().unwrap();
        let (told, printed) = (String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap());
        let warnings: Vec<_> = told.lines().filter_map(|line| Some(line.split_once(": warning: ")?.1)).collect();
        assert_eq!(warnings, case.warnings(), "{name}");
        match case.answer() {
            Answer::Injected(expected) => {
                assert_eq!(cases::object(&printed).to_string(), expected.to_string(), "{name}");
            }
            Answer::Untouched => assert_eq!(printed, case.files["yaml"], "{name}"),
            Answer::Denied { reason, .. } => {
                assert_eq!((output.status.code(), printed.as_str()), (Some(1), ""), "{name}: {told}");
                // The way past pgset is for those who talk to a cluster.
                let reason = reason.split(" (past pgset").next().unwrap();
                assert!(told.lines().any(|line| line.ends_with(&format!(": {reason}"))), "{name}: {told}");
            }
        }
    }
}
