//! Every annotation stands in one place, `src/set/entries.rs`; what the documents say of it, and the golden files, are held to that.
//!
//! `PGSET_BLESS=1 cargo test --test annotations` writes the tables of the documents anew.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a test may stop where it fails

#[path = "support/cases.rs"]
mod cases;
mod support;

use std::{fs, path::PathBuf};

use cases::Answer;
use pgset::{
    names::annotation,
    set::{Row, Set, rows},
};
use support::{admitted_with, annotate, golden, remove_annotation};

/// How a table of annotations begins.
const HEAD: &str = "| annotation | values | default |\n|---|---|---|\n";

/// The annotations that people write.
fn for_people() -> Vec<Row> {
    rows().into_iter().filter(|row| !row.says.is_empty()).collect()
}

fn table() -> String {
    let line = |Row { key, says, default }| {
        let place = if key == annotation::FOLLOW { " on a Service of yours" } else { "" };
        format!("| `{key}`{place} | {says} | {default} |\n")
    };
    for_people().into_iter().map(line).collect()
}

fn documents() -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    docs.filter(|path| path.extension().is_some_and(|it| it == "md")).chain([root.join("README.md")]).collect()
}

#[test]
fn the_documents_list_what_the_program_knows() {
    let mut found = 0;
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for (before, rest) in text.match_indices(HEAD).map(|(at, _)| text.split_at(at + HEAD.len())) {
            found += 1;
            let is_row = |line: &&str| line.starts_with('|');
            let length = rest.split_inclusive('\n').take_while(is_row).map(str::len).sum();
            let (listed, after) = rest.split_at(length);
            if listed != table() && std::env::var_os("PGSET_BLESS").is_some() {
                fs::write(&path, [before, &table(), after].concat()).unwrap();
                continue;
            }
            let (known, listed): (Vec<_>, Vec<_>) =
                (table().lines().map(str::to_owned).collect(), listed.lines().collect());
            for line in &listed {
                assert!(
                    known.iter().any(|it| it == line),
                    "{}: src/set/entries.rs does not say {line}",
                    path.display()
                );
            }
            assert_eq!(listed, known, "{}: PGSET_BLESS=1 cargo test --test annotations writes it anew", path.display());
        }
    }
    assert!(found > 0, "the README has no table of the annotations");
}

/// What stands in backquotes and is a value: not a command, and not a part of a name.
fn shown(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|it| !it.starts_with("pgset ") && !it.contains('<')).collect()
}

/// A set with this annotation alone, as far as it goes alone.
fn set_with(key: &str, value: Option<&str>) -> serde_json::Value {
    let mut object = golden("wild-single.yaml");
    match value {
        Some(value) => annotate(&mut object, key, value),
        None if key == annotation::INJECT => {}
        None => remove_annotation(&mut object, key),
    }
    object
}

#[test]
fn every_value_that_the_documents_show_is_taken() {
    for Row { key, says, .. } in for_people().into_iter().filter(|row| row.key != annotation::FOLLOW) {
        for value in shown(says) {
            let answer = admitted_with("image", &set_with(key, Some(value)), None);
            let refused = answer.err().filter(|denial| ["annotation_value", "inject_value"].contains(&denial.code()));
            assert_eq!(refused, None, "{key}: {value}");
        }
    }
}

#[test]
fn a_default_that_is_written_out_changes_nothing() {
    for Row { key, default, .. } in for_people() {
        if let [value] = shown(default)[..]
            && default.len() == value.len() + 2
        {
            let (written, absent) = (set_with(key, Some(value)), set_with(key, None));
            assert_eq!(Set::parse(&written).unwrap(), Set::parse(&absent).unwrap(), "{key}");
        }
    }
}

#[test]
fn a_golden_file_sets_each_of_them_and_another_is_refused_for_it() {
    let annotations = |case: &cases::Case| case.object().map(|mut it| it["metadata"]["annotations"].take());
    let cases: Vec<_> =
        cases::all().iter().map(|case| (annotations(case).unwrap_or_default(), case.answer())).collect();
    for Row { key, .. } in for_people() {
        let answers: Vec<_> = cases.iter().filter(|(it, _)| it[key].is_string()).map(|(_, answer)| answer).collect();
        let is_named = |reason: &str| reason.contains(&format!("annotation {key}"));
        let is_refused = answers.iter().any(|it| matches!(it, Answer::Denied { reason, .. } if is_named(reason)));
        assert!(is_refused, "no file of tests/golden is denied for what {key} says");
        // One is never on a set, the other is pgset's to write.
        if ![annotation::FOLLOW, annotation::REVISION].contains(&key) {
            let is_taken = answers.iter().any(|it| matches!(it, Answer::Injected(_)));
            assert!(is_taken, "no file of tests/golden that is injected sets {key}");
        }
    }
}
