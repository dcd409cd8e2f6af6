//! The golden files by the two ways that need an API server: what it would store (`--dry-run=server`) and what it stores.
//! The other ways are in `tests/golden.rs`.

use serde_json::{Value, json};

use super::{
    cases::{self, Answer, Case},
    harness::{Lab, essence, with_webhook},
};

/// The object for a namespace of the test's: the files name different ones, or none.
pub fn unplaced(mut object: Value) -> Value {
    object["metadata"].as_object_mut().unwrap().remove("namespace");
    object
}

#[tokio::test]
async fn the_api_server_stores_what_the_golden_files_say() {
    with_webhook(async |lab| {
        let cases = cases::all();
        let (mut wrong, mut injected) = (Vec::new(), 0);
        for case in &cases {
            injected += usize::from(matches!(case.answer(), Answer::Injected(_)));
            let outcome = check(&lab, case).await;
            lab.forget_sets().await;
            if let Err(error) = outcome {
                wrong.push(format!("{}: {error}", case.name));
            }
        }
        println!("{} cases, {injected} of them injected, by dry run and stored", cases.len());
        assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    })
    .await;
}

async fn check(lab: &Lab, case: &Case) -> Result<(), String> {
    let asked = unplaced(case.object().unwrap());
    let base = format!("/apis/apps/v1/namespaces/{}/statefulsets", lab.name);
    let (method, path) = match case.stored() {
        None => ("POST", base.clone()),
        Some(before) => {
            let before = unplaced(before);
            lab.send("POST", &base, &before).await.map_err(|status| format!("before: {}", status.message))?;
            ("PUT", format!("{base}/{}", before["metadata"]["name"].as_str().unwrap()))
        }
    };
    // What the API server makes of an object with nobody asked.
    let plain = async |object: Value| lab.dry_run_in(&lab.plain(), &object).await.map(|(stored, _)| essence(&stored));
    let answer = lab.send(method, &format!("{path}?dryRun=All"), &asked).await;
    let expected = match case.answer() {
        Answer::Denied { reason, .. } => {
            let status = answer.err().ok_or("was not denied")?;
            // What the API server refuses by itself never gets to us.
            if method == "POST" && plain(asked).await.is_err() {
                return Ok(());
            }
            let (told, reason) = (unplaced_text(&status.message), unplaced_text(&reason));
            return told.contains(&reason).then_some(()).ok_or(format!("{told}\ninstead of\n{reason}"));
        }
        Answer::Injected(injected) => plain(unplaced(injected)).await,
        Answer::Untouched => plain(asked.clone()).await,
    };
    let expected = expected.map_err(|status| status.message)?;
    let (dry, warnings) = answer.map_err(|status| status.message)?;
    for warning in case.warnings() {
        if !warnings.contains(&warning) {
            return Err(format!("the warning {warning:?} is not among {warnings:?}"));
        }
    }
    let (stored, _) = lab.send(method, &path, &asked).await.map_err(|status| status.message)?;
    let name = stored["metadata"]["name"].as_str().unwrap();
    // As it comes: typed, a null of an older API server's would be lost.
    let (read, _) = lab.send("GET", &format!("{base}/{name}"), &Value::Null).await.map_err(|status| status.message)?;
    for (way, found) in [("a dry run", &dry), ("the answer", &stored), ("the store", &read)] {
        if essence(found) != expected {
            return Err(format!("{way} has\n{}\ninstead of\n{expected}", essence(found)));
        }
    }
    Ok(())
}

/// A message without what tells of the namespace, which the files have otherwise.
fn unplaced_text(text: &str) -> String {
    let text = text.split(" (past pgset").next().unwrap_or_default();
    let words = text.split(' ').filter(|word| !word.starts_with("--namespace="));
    words.collect::<Vec<_>>().join(" ")
}

impl Lab {
    /// Deletes the namespace's sets.
    pub async fn forget_sets(&self) {
        let path = format!("/apis/apps/v1/namespaces/{}/statefulsets", self.name);
        let _ = self.send("DELETE", &path, &json!({"propagationPolicy": "Background"})).await;
    }
}
