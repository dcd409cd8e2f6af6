//! Records what this revision of the injection stores: `tests/released`, see the README there.

use std::{fs, path::Path};

use pgset::{cli::inject::manifest, inject::REVISION};
use serde_json::Value;

use super::{
    cases::{self, Answer},
    harness::with_webhook,
};

#[tokio::test]
#[ignore = "it writes files, once for each release"]
async fn this_revision_is_recorded() {
    with_webhook(async |lab| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/released").join(REVISION);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        for case in cases::all() {
            let Answer::Injected(_) = case.answer() else { continue };
            let mut own = case.object().unwrap();
            own["metadata"].as_object_mut().unwrap().remove("namespace");
            if case.stored().is_some() {
                continue;
            }
            let (plain, _) = lab.dry_run_in(&lab.plain(), &own).await.unwrap();
            let (stored, _) = lab.dry_run(&own).await.unwrap();
            let text = |object: Value| manifest::to_yaml(&lasting(object)).unwrap();
            let text = format!("{}---\n{}", text(plain), text(stored));
            fs::write(folder.join(format!("{}.yaml", case.name)), text).unwrap();
        }
    })
    .await;
}

/// Without what the API server makes anew for each object.
fn lasting(mut object: Value) -> Value {
    object.as_object_mut().unwrap().remove("status");
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.retain(|key, _| ["name", "labels", "annotations"].contains(&key.as_str()));
    object
}
