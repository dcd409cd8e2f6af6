//! The golden files once more, this time through the API server: what it would store is what `pgset inject` prints.

use std::{collections::BTreeMap, fs, path::Path};

use pgset::cli::inject::manifest;
use serde_json::{Value, json};

use super::harness::{Lab, with_webhook};

/// The answers to each case, by suffix; without the updates, whose first half would have to be stored.
pub fn cases() -> BTreeMap<String, BTreeMap<String, String>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        let (name, suffix) = file.split_once('.').unwrap();
        let text = fs::read_to_string(&path).unwrap();
        cases.entry(name.to_owned()).or_default().insert(suffix.to_owned(), text);
    }
    cases.retain(|_, files| !files.contains_key("stored.yaml"));
    cases
}

pub fn object(yaml: &str) -> Value {
    let mut object = manifest::read(yaml).unwrap().into_iter().map(|it| it.value).find(|it| !it.is_null()).unwrap();
    // The files name different ones, or none.
    object["metadata"].as_object_mut().unwrap().remove("namespace");
    object
}

/// What two objects of different namespaces have in common if they are the same.
fn essence(mut stored: Value) -> Value {
    let metadata = stored["metadata"].take();
    json!({"annotations": metadata["annotations"], "labels": metadata["labels"], "spec": stored["spec"].take()})
}

#[tokio::test]
async fn the_api_server_stores_what_the_golden_files_say() {
    with_webhook(async |lab| {
        let cases = cases();
        assert!(cases.len() > 50, "the golden files are missing");
        let mut wrong = Vec::new();
        for (name, files) in &cases {
            if let Err(error) = check(&lab, files).await {
                wrong.push(format!("{name}: {error}"));
            }
        }
        assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    })
    .await;
}

async fn check(lab: &Lab, files: &BTreeMap<String, String>) -> Result<(), String> {
    let asked = object(&files["yaml"]);
    let plain = lab.dry_run_in(&lab.plain(), &asked).await;
    let answer = lab.dry_run(&asked).await;
    if let Some(denied) = files.get("denied.txt") {
        let status = answer.err().ok_or("was not denied")?;
        // What the API server refuses by itself never gets to us.
        if plain.is_err() {
            return Ok(());
        }
        let reason = denied.lines().next().unwrap().split_once(": ").unwrap().1;
        return status.message.contains(reason).then_some(()).ok_or(status.message);
    }
    let (stored, warnings) = answer.map_err(|status| status.message)?;
    for warning in files.get("warnings.txt").into_iter().flat_map(|text| text.lines()) {
        if !warnings.iter().any(|told| told == warning) {
            return Err(format!("the warning {warning:?} is not among {warnings:?}"));
        }
    }
    // What the API server makes of the golden file, with nobody asked.
    let expected = match files.get("injected.yaml") {
        Some(injected) => lab.dry_run_in(&lab.plain(), &object(injected)).await,
        None => plain,
    };
    let expected = essence(expected.map_err(|status| status.message)?.0);
    let stored = essence(stored);
    if stored != expected {
        return Err(format!("stored would be\n{stored}\ninstead of\n{expected}"));
    }
    Ok(())
}
