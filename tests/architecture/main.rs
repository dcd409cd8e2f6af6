//! `ARCHITECTURE.md` says which room of `src/` may import which, and this holds the code to it. The tables are read from the document, so
//! that what a newcomer reads is what is enforced.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)] // a test may stop where it fails

mod document;
mod paths;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path as File, PathBuf},
};

use document::{Architecture, links};
use paths::{Path, Source, module_of};

/// How long a file may be, without its tests.
const LONGEST: usize = 400;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap()
}

/// The files below a folder.
fn sources(folder: &File, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let file = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push(Source { file, text: fs::read_to_string(&path).unwrap() });
        }
    }
}

/// What the sources do that the document does not allow.
fn complaints(architecture: &Architecture, sources: &[Source]) -> Vec<String> {
    let sources: Vec<&Source> = sources.iter().filter(|source| !source.is_test()).collect();
    let modules: BTreeSet<Vec<String>> = sources.iter().map(|source| source.module()).collect();
    let mut complaints = rooms_without_a_row(architecture, &modules);
    complaints.extend(arrows_that_point_up(architecture));
    for source in sources {
        for path in source.paths() {
            let Some(to) = module_of(&path, &modules) else { continue };
            complaints.extend(why_not(architecture, source, &path, &to.join("::")));
        }
        complaints.extend(impure(architecture, source));
        complaints.extend(too_long(architecture, source));
    }
    complaints
}

fn rooms_without_a_row(architecture: &Architecture, modules: &BTreeSet<Vec<String>>) -> Vec<String> {
    let rooms: BTreeSet<&str> = modules.iter().map(|module| module[0].as_str()).collect();
    let rows: BTreeSet<&str> = architecture.rooms.keys().map(String::as_str).collect();
    let differ = rooms.symmetric_difference(&rows);
    differ.map(|room| format!("{room} is a room of src/ or a row of the table of rooms, but not both")).collect()
}

/// A room stands above those that it imports.
fn arrows_that_point_up(architecture: &Architecture) -> Vec<String> {
    let place = |room: &str| architecture.order.iter().position(|it| it == room);
    let mut complaints = Vec::new();
    for (room, imports) in &architecture.rooms {
        let up = imports.iter().filter(|below| place(below) <= place(room));
        complaints
            .extend(up.map(|below| format!("the table lets {room} import {below}, which does not stand below it")));
    }
    complaints
}

/// Why a file may not name a module.
fn why_not(architecture: &Architecture, source: &Source, path: &Path, to: &str) -> Option<String> {
    let module = source.module();
    let (from, room) = (module.join("::"), module[0].as_str());
    let to_room = to.split("::").next().unwrap_or_default();
    let told = |allowed: &[String], of: &str| {
        let allowed = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
        let place = format!("{}:{}", source.file, path.line);
        Some(format!("{place} imports {}; by ARCHITECTURE.md {of} {allowed}", path.parts.join("::")))
    };
    if to_room != room {
        let mut allowed = architecture.rooms.get(room).cloned().unwrap_or_default();
        allowed.extend(architecture.exceptions.get(&source.file).cloned().unwrap_or_default());
        let is_allowed = allowed.iter().any(|it| it == to_room);
        return if is_allowed { None } else { told(&allowed, &format!("the room {room} imports")) };
    }
    for (low, allowed) in &architecture.low {
        if is_in(&from, low) && !is_in(to, low) && !is_in(low, to) && !allowed.iter().any(|it| is_in(to, it)) {
            return told(allowed, &format!("{low} imports of its own room"));
        }
    }
    for (high, importers) in &architecture.high {
        if is_in(to, high) && !is_in(&from, high) && !is_in(high, &from) && !importers.iter().any(|it| is_in(&from, it))
        {
            return told(importers, &format!("{high} is imported by"));
        }
    }
    None
}

/// Whether a module is another one or below it.
fn is_in(module: &str, other: &str) -> bool {
    module.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// What a file touches that is in a room of the core, or calls itself pure.
fn impure(architecture: &Architecture, source: &Source) -> Vec<String> {
    let says_so = source
        .text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .any(|line| line.contains("Pure.") || line.contains("Pure:"));
    if !says_so && !architecture.core.contains(&source.module()[0]) {
        return Vec::new();
    }
    let words: Vec<String> = architecture.untouched.iter().map(|word| format!("{word}::")).collect();
    let starts: Vec<&str> = words.iter().map(String::as_str).chain(["std::"]).collect();
    let paths = source.paths_from(&starts).into_iter().map(|path| (path.line, path.parts.join("::")));
    let called = source.calls(&architecture.untouched);
    let mut touched: Vec<(usize, String)> = paths.chain(called).collect();
    let is_one_of = |path: &str, words: &[String]| words.iter().any(|word| is_in(path, word));
    touched.retain(|(_, path)| is_one_of(path, &architecture.untouched) && !is_one_of(path, &architecture.values));
    touched.sort();
    touched.dedup_by_key(|(line, _)| *line);
    touched.into_iter().map(|(line, path)| format!("{}:{line} is pure, but touches {path}", source.file)).collect()
}

fn too_long(architecture: &Architecture, source: &Source) -> Option<String> {
    let (lines, is_listed) = (source.own().lines().count(), architecture.long.contains(&source.file));
    let file = &source.file;
    match (lines > LONGEST, is_listed) {
        (true, false) => {
            Some(format!("{file} has {lines} lines: more than {LONGEST} need a reason in ARCHITECTURE.md"))
        }
        (false, true) => Some(format!("{file} has {lines} lines: ARCHITECTURE.md need not list it as a long one")),
        _ => None,
    }
}

#[test]
fn the_code_imports_what_the_document_allows() {
    let mut all = Vec::new();
    sources(&root().join("src"), &mut all);
    let complaints = complaints(&Architecture::read(&read("ARCHITECTURE.md")), &all);
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn the_document_names_files_that_are_there() {
    for document in ["ARCHITECTURE.md", "docs/rules.md"] {
        let folder = root().join(document).parent().unwrap().to_owned();
        let text = read(document);
        let found = links(&text);
        assert!(found.len() > 5, "{document} has no links");
        let missing: Vec<_> = found.into_iter().filter(|link| !folder.join(link).exists()).collect();
        assert!(missing.is_empty(), "{document} names what is not there: {missing:?}");
    }
}

#[test]
fn a_rule_that_is_cited_is_there() {
    let mut all = Vec::new();
    for folder in ["src", "tests"] {
        sources(&root().join(folder), &mut all);
    }
    let rules = read("docs/rules.md");
    let citation = "docs/rules.md, ";
    let mut cited = 0;
    for source in all.iter().filter(|source| !source.file.contains("architecture")) {
        for (_, after) in source.text.match_indices(citation).map(|(at, _)| source.text.split_at(at + citation.len())) {
            let number: String = after.chars().take_while(char::is_ascii_alphanumeric).collect();
            let is_there = rules.contains(&format!("\n{number}. ")) || rules.contains(&format!("**{number}.**"));
            assert!(is_there, "{} cites rule {number}, which docs/rules.md has not", source.file);
            cited += 1;
        }
    }
    assert!(cited > 0, "nothing cites a rule");
}

/// A document that is small, and sources that keep to it.
fn example() -> (Architecture, Vec<Source>) {
    let document = "
## Rooms

| room | what | may import |
|---|---|---|
| [`cli`](src/cli) | | `agent`, `names` |
| [`agent`](src/agent) | | `web`, `names` |
| [`web`](src/web) | | nothing |
| [`names`](src/names.rs) | core | nothing |

The core is `names`. It does not touch: `std::fs`, `Instant::now`, `tokio` (but for `tokio::time::Instant`).

| file | may also import | why |
|---|---|---|
| [`src/web/status.rs`](src/web/status.rs) | `names` | |

| low module | imports of its own room | why |
|---|---|---|
| `agent::fencer` | `agent::processes` | |

| high module | is imported by | why |
|---|---|---|
| `agent::member` | `agent::life` | |

| long file | why |
|---|---|
| [`src/agent/life.rs`](src/agent/life.rs) | |
";
    let source = |(file, text): (&str, &str)| Source { file: file.to_owned(), text: text.to_owned() };
    let long = "use super::member::Member;\n".to_owned() + &"\n".repeat(LONGEST);
    let sources = [
        ("src/cli/mod.rs", "use crate::agent;\n"),
        ("src/agent/mod.rs", "mod fencer;\n"),
        ("src/agent/life.rs", long.as_str()),
        ("src/agent/member.rs", "use super::fencer;\nuse crate::names;\n"),
        ("src/agent/fencer.rs", "use super::processes;\n"),
        ("src/agent/processes.rs", "use std::fs;\n"),
        ("src/web/mod.rs", ""),
        ("src/web/status.rs", "use crate::names;\n"),
        ("src/names.rs", "//! Pure.\nconst TOKIO: &str = \"tokio\";\n"),
    ];
    (Architecture::read(document), sources.map(source).to_vec())
}

/// What is said of the example with another text in one of its files.
fn said_of(file: &str, text: &str) -> Vec<String> {
    let (architecture, mut sources) = example();
    sources.retain(|source| source.file != file);
    sources.push(Source { file: file.to_owned(), text: text.to_owned() });
    complaints(&architecture, &sources)
}

#[test]
fn sources_that_keep_to_it_pass() {
    let (architecture, sources) = example();
    assert_eq!(complaints(&architecture, &sources), Vec::<String>::new());
}

#[test]
fn each_way_to_break_it_is_told_with_its_place() {
    for (file, text, said) in [
        (
            "src/agent/processes.rs",
            "\nuse crate::cli::Flags;\n",
            "src/agent/processes.rs:2 imports cli::Flags; by ARCHITECTURE.md the room agent imports web, names",
        ),
        (
            "src/web/mod.rs",
            "use crate::{\n    names,\n};\n",
            "src/web/mod.rs:1 imports names; by ARCHITECTURE.md the room web imports nothing",
        ),
        (
            "src/agent/fencer.rs",
            "use super::member::Member;\n",
            "src/agent/fencer.rs:1 imports agent::member::Member; by ARCHITECTURE.md agent::fencer imports of its own room agent::processes",
        ),
        (
            "src/agent/processes.rs",
            "use super::member::Member;\n",
            "src/agent/processes.rs:1 imports agent::member::Member; by ARCHITECTURE.md agent::member is imported by agent::life",
        ),
        ("src/names.rs", "\nfn f() { std::fs::read(\"x\") }\n", "src/names.rs:2 is pure, but touches std::fs::read"),
        ("src/names.rs", "use std::{collections::BTreeMap, fs};\n", "src/names.rs:1 is pure, but touches std::fs"),
        (
            "src/names.rs",
            "fn f(now: Instant) -> Instant {\n    Instant::now()\n}\n",
            "src/names.rs:2 is pure, but touches Instant::now",
        ),
        (
            "src/agent/processes.rs",
            "//! Text in, text out. Pure.\nuse tokio::time::{Instant, sleep};\n",
            "src/agent/processes.rs:2 is pure, but touches tokio::time::sleep",
        ),
        ("src/agent/life.rs", "", "src/agent/life.rs has 0 lines: ARCHITECTURE.md need not list it as a long one"),
        (
            "src/web/mod.rs",
            &"\n".repeat(401),
            "src/web/mod.rs has 401 lines: more than 400 need a reason in ARCHITECTURE.md",
        ),
        ("src/new.rs", "", "new is a room of src/ or a row of the table of rooms, but not both"),
    ] {
        assert_eq!(said_of(file, text), [said]);
    }
}

#[test]
fn a_table_whose_arrows_go_round_is_refused() {
    let (mut architecture, sources) = example();
    architecture.rooms.insert("names".to_owned(), vec!["cli".to_owned()]);
    assert_eq!(complaints(&architecture, &sources), ["the table lets names import cli, which does not stand below it"]);
}
