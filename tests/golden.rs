//! Golden files: `tests/golden/<name>.yaml` and what becomes of it, side by side.
//!
//! - `<name>.injected.yaml`, `<name>.denied.txt` or `<name>.untouched.txt`: what `pgset inject` answers;
//! - `<name>.warnings.txt`: its warnings, if there are any;
//! - `<name>.stored.yaml`: what is stored already, if the case is an update (injected first, where it asks for it).
//!
//! `PGSET_BLESS=1 cargo test --test golden` writes the answers anew: read the difference before you commit it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use pgset::{
    cli::inject::manifest,
    inject::{Outcome, Request, Settings, eject, inject},
};
use serde_json::Value;

const ANSWERS: [&str; 4] = [".injected.yaml", ".denied.txt", ".untouched.txt", ".warnings.txt"];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn settings() -> Settings {
    Settings { agent_image: "pgset.dev/pgset:0.1.0".to_owned() }
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap();
    let documents = manifest::read(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let values: Vec<Value> = documents.into_iter().map(|it| it.value).filter(|it| !it.is_null()).collect();
    <[Value; 1]>::try_from(values).unwrap_or_else(|_| panic!("{}: not one document", path.display()))[0].take()
}

fn ask(object: &Value, old: Option<&Value>) -> Outcome {
    inject(&Request { object, old, settings: &settings() })
}

fn applied(object: &Value, patch: &json_patch::Patch) -> Value {
    let mut object = object.clone();
    json_patch::patch(&mut object, patch).unwrap();
    object
}

fn stored(path: &Path) -> Value {
    let object = read(path);
    match ask(&object, None) {
        Outcome::Untouched { .. } => object,
        Outcome::Patched { patch, .. } => applied(&object, &patch),
        Outcome::Denied { reason } => panic!("{}: {reason}", path.display()),
    }
}

/// The files that belong to a case, by name.
fn answers(directory: &Path, name: &str) -> BTreeMap<String, String> {
    let object = read(&directory.join(format!("{name}.yaml")));
    let old = directory.join(format!("{name}.stored.yaml"));
    let old = old.exists().then(|| stored(&old));
    let mut answers = BTreeMap::new();
    let warnings = match ask(&object, old.as_ref()) {
        Outcome::Untouched { warnings } => {
            answers.insert(format!("{name}.untouched.txt"), "untouched\n".to_owned());
            warnings
        }
        Outcome::Denied { reason } => {
            answers.insert(format!("{name}.denied.txt"), format!("{reason}\n({})\n", reason.code()));
            Vec::new()
        }
        Outcome::Patched { patch, warnings, .. } => {
            let injected = applied(&object, &patch);
            check_twice(name, &object, &injected, old.as_ref());
            answers.insert(format!("{name}.injected.yaml"), manifest::to_yaml(&injected).unwrap());
            warnings
        }
    };
    for warning in &warnings {
        assert!(warning.chars().count() <= 120 && !warning.chars().any(char::is_control), "{name}: {warning:?}");
    }
    if !warnings.is_empty() {
        answers.insert(format!("{name}.warnings.txt"), warnings.join("\n") + "\n");
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
    let directory = directory();
    let files: BTreeSet<String> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let is_answer = |file: &&String| ANSWERS.iter().any(|suffix| file.ends_with(suffix));
    let is_case = |file: &&String| !is_answer(file) && !file.ends_with(".stored.yaml");
    let bless = std::env::var_os("PGSET_BLESS").is_some();
    let mut expected = BTreeMap::new();
    for case in files.iter().filter(is_case) {
        let name = case.strip_suffix(".yaml").unwrap_or_else(|| panic!("{case} is no case"));
        expected.append(&mut answers(&directory, name));
    }
    assert!(expected.len() > 50, "the golden files are missing");

    let mut wrong = Vec::new();
    for stale in files.iter().filter(is_answer).filter(|file| !expected.contains_key(*file)) {
        if bless {
            fs::remove_file(directory.join(stale)).unwrap();
        } else {
            wrong.push(format!("{stale} is stale"));
        }
    }
    for (file, text) in expected {
        let path = directory.join(&file);
        if fs::read_to_string(&path).ok().as_ref() == Some(&text) {
            continue;
        }
        if bless {
            fs::write(&path, &text).unwrap();
        } else {
            wrong.push(format!("{file} should be:\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}\nPGSET_BLESS=1 writes them anew", wrong.join("\n"));
}
