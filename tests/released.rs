//! Every released revision of the injection, for ever: what a database runs with stays as it is (see `tests/released/README.md`).

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a test may stop where it fails

mod support;

use std::{collections::BTreeSet, fs, path::Path};

use pgset::{
    cli::inject::manifest,
    inject::{Outcome, REVISION, REVISIONS},
};
use serde_json::{Value, json};
use support::{admitted_with, annotate, ask_with, defaulted, ejected};

/// The agent's image of a pgset that comes later.
const LATER: &str = "pgset.dev/pgset:99.0.0";

/// A set of a released revision.
struct Released {
    name: String,
    own: Value,
    stored: Value,
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/released")
}

fn revisions() -> BTreeSet<String> {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
    entries.filter(|it| it.path().is_dir()).map(|it| it.file_name().into_string().unwrap()).collect()
}

fn all() -> Vec<Released> {
    let mut all = Vec::new();
    for revision in revisions() {
        for entry in fs::read_dir(folder().join(&revision)).unwrap() {
            let path = entry.unwrap().path();
            let documents = manifest::read(&fs::read_to_string(&path).unwrap()).unwrap();
            let [own, stored] = <[Value; 2]>::try_from(documents.into_iter().map(|it| it.value).collect::<Vec<_>>())
                .unwrap_or_else(|_| panic!("{}: not two documents", path.display()));
            let name = format!("{revision}/{}", path.file_stem().unwrap().to_str().unwrap());
            all.push(Released { name, own, stored });
        }
    }
    assert!(all.len() >= 20 * REVISIONS.len(), "files are missing");
    all
}

/// An object in the order of its keys.
fn bytes(object: &Value) -> String {
    let mut object = object.clone();
    object.sort_all_objects();
    object.to_string()
}

#[test]
fn every_revision_that_this_pgset_knows_was_recorded_and_none_is_forgotten() {
    assert_eq!(revisions(), REVISIONS.iter().map(|it| (*it).to_owned()).collect());
    assert!(revisions().contains(REVISION));
}

#[test]
fn a_stored_set_is_left_alone() {
    for Released { name, stored, .. } in all() {
        assert_eq!(ask_with(LATER, &stored, Some(&stored)), Outcome::Untouched { warnings: vec![] }, "{name}");
        assert!(matches!(ask_with(LATER, &stored, None), Outcome::Untouched { .. }), "{name}: restored from a backup");
    }
}

#[test]
fn the_users_own_file_gives_the_bytes_that_are_stored() {
    for Released { name, own, stored } in all() {
        let again = admitted_with(LATER, &own, Some(&stored)).unwrap();
        assert_eq!(bytes(&defaulted(&again)), bytes(&stored), "{name}");
    }
}

#[test]
fn a_change_of_the_users_adds_nothing_else() {
    for Released { name, stored, .. } in all() {
        let mut changed = stored.clone();
        changed["spec"]["template"]["metadata"]["annotations"] = json!({ "example.org/restarted": "now" });
        changed["spec"]["template"]["spec"]["nodeSelector"] = json!({ "disk": "fast" });
        assert_eq!(ask_with(LATER, &changed, Some(&stored)), Outcome::Untouched { warnings: vec![] }, "{name}");
    }
}

#[test]
fn a_revision_by_its_name_moves_a_set_once() {
    for Released { name, own, stored } in all() {
        let mut wish = own;
        annotate(&mut wish, "pgset.dev/revision", REVISION);
        if name == "0.1.0/wild-mount-above" {
            // Its rows are where the image's own volume hides the mount: no later revision leaves them there.
            assert_eq!(admitted_with(LATER, &wish, Some(&stored)).unwrap_err().code(), "data_lost");
            continue;
        }
        let moved = defaulted(&admitted_with(LATER, &wish, Some(&stored)).unwrap());
        assert_eq!(moved["metadata"]["annotations"]["pgset.dev/revision"], REVISION, "{name}");
        let again = admitted_with(LATER, &wish, Some(&moved)).unwrap();
        assert_eq!(bytes(&defaulted(&again)), bytes(&moved), "{name}");
        assert_eq!(ask_with(LATER, &moved, Some(&moved)), Outcome::Untouched { warnings: vec![] }, "{name}");
    }
}

#[test]
fn leaving_gives_the_users_own_back() {
    for Released { name, own, stored } in all() {
        assert_eq!(bytes(&ejected(&stored)), bytes(&own), "{name}");
    }
}

#[test]
fn a_set_whose_servers_archive_nothing_is_told_to_move_before_it_has_backups() {
    for Released { name, stored, .. } in all() {
        let (mut wish, is_agents) = (stored.clone(), stored.to_string().contains("\"/pgset/pgset\""));
        annotate(&mut wish, "pgset.dev/backup", "s3://bucket/prefix");
        let answer = admitted_with(LATER, &wish, Some(&stored));
        match (is_agents, name.starts_with("0.1.0/")) {
            (true, true) => {
                let text = answer.unwrap_err().to_string();
                assert!(text.contains(&format!("write pgset.dev/revision: {REVISION}")), "{name}: {text}");
            }
            (true, false) => assert_eq!(answer.unwrap()["spec"], stored["spec"], "{name}: nothing restarts"),
            (false, _) => assert!(answer.unwrap_err().to_string().contains("contract image"), "{name}"),
        }
    }
}
