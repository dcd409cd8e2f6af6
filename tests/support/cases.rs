//! The golden files: `tests/golden/<name>.yaml` and what becomes of it, side by side.
//!
//! - `<name>.injected.yaml`, `<name>.denied.txt` or `<name>.untouched.txt`: the answer;
//! - `<name>.warnings.txt`: its warnings, if there are any;
//! - `<name>.stored.yaml`: what is stored already, if the case is an update (injected first, where it asks for it).

#![allow(dead_code)] // each test uses its part

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use pgset::cli::inject::manifest;
use serde_json::Value;

/// The agent's image that the golden files have.
pub const IMAGE: &str = "pgset.dev/pgset:0.2.0";

/// What the names of answers end with.
pub const ANSWERS: [&str; 4] = ["injected.yaml", "denied.txt", "untouched.txt", "warnings.txt"];

/// A golden file with all that belongs to it.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    /// The file of the object itself.
    pub path: PathBuf,
    /// The contents of its files, by what their names end with.
    pub files: BTreeMap<String, String>,
}

/// What the golden files say.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Injected(Value),
    Denied { reason: String, code: String },
    Untouched,
}

pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// All cases, in the order of their names.
pub fn all() -> Vec<Case> {
    let mut cases: BTreeMap<String, Case> = BTreeMap::new();
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        let (name, suffix) = file.split_once('.').unwrap_or_else(|| panic!("{file} is no case"));
        let text = fs::read_to_string(&path).unwrap();
        let case = cases.entry(name.to_owned()).or_insert_with(|| Case {
            name: name.to_owned(),
            path: directory().join(format!("{name}.yaml")),
            files: BTreeMap::new(),
        });
        case.files.insert(suffix.to_owned(), text);
    }
    assert!(cases.len() > 50, "the golden files are missing");
    cases.into_values().collect()
}

/// The one object of a text.
pub fn object(text: &str) -> Value {
    let documents = manifest::read(text).unwrap_or_else(|error| panic!("{error} in\n{text}"));
    let values: Vec<Value> = documents.into_iter().map(|it| it.value).filter(|it| !it.is_null()).collect();
    <[Value; 1]>::try_from(values).unwrap_or_else(|_| panic!("not one document:\n{text}"))[0].take()
}

impl Case {
    /// The object; a case without one has only stale answers.
    pub fn object(&self) -> Option<Value> {
        self.files.get("yaml").map(|text| object(text))
    }

    /// What is stored before, as its user wrote it.
    pub fn stored(&self) -> Option<Value> {
        self.files.get("stored.yaml").map(|text| object(text))
    }

    pub fn answer(&self) -> Answer {
        if let Some(injected) = self.files.get("injected.yaml") {
            return Answer::Injected(object(injected));
        }
        let Some(denied) = self.files.get("denied.txt") else { return Answer::Untouched };
        // StatefulSet NAMESPACE/NAME: REASON
        // (CODE)
        let (reason, code) = denied.trim_end().rsplit_once('\n').unwrap();
        let reason = reason.split_once(": ").unwrap().1;
        Answer::Denied { reason: reason.to_owned(), code: code.trim_matches(['(', ')']).to_owned() }
    }

    pub fn warnings(&self) -> Vec<String> {
        self.files.get("warnings.txt").into_iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
    }
}
