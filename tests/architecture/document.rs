//! The tables of `ARCHITECTURE.md`.

use std::collections::{BTreeMap, BTreeSet};

type Lists = BTreeMap<String, Vec<String>>;

/// What the document allows.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// The rooms from the top down.
    pub order: Vec<String>,
    /// What each of them may import.
    pub rooms: Lists,
    /// What a file may import besides.
    pub exceptions: Lists,
    /// Modules that import no more of their own room than this.
    pub low: Lists,
    /// Modules that nobody in their room imports but these.
    pub high: Lists,
    /// Files that may be long.
    pub long: BTreeSet<String>,
    /// The rooms that are pure.
    pub core: Vec<String>,
    /// What those, and files that call themselves pure, do not touch.
    pub untouched: Vec<String>,
    /// But these are values, which may be handed to them.
    pub values: Vec<String>,
}

impl Architecture {
    pub fn read(document: &str) -> Self {
        let rooms = table(document, "| room |");
        let (core, untouched) = document
            .lines()
            .find_map(|line| line.strip_prefix("The core is ")?.split_once(" does not touch: "))
            .expect("no line says: The core is ... It does not touch: ...");
        // `tokio` but for `tokio::time::Instant`: what is part of another is the exception.
        let words = quoted(untouched);
        let is_part = |word: &String| words.iter().any(|other| word.starts_with(&format!("{other}::")));
        let (values, untouched) = words.iter().cloned().partition(is_part);
        Self {
            order: rooms.iter().map(|row| quoted(&row[0]).remove(0)).collect(),
            rooms: lists(&rooms, 2),
            exceptions: lists(&table(document, "| file |"), 1),
            low: lists(&table(document, "| low module |"), 1),
            high: lists(&table(document, "| high module |"), 1),
            long: lists(&table(document, "| long file |"), 1).into_keys().collect(),
            core: quoted(core),
            untouched,
            values,
        }
    }
}

/// The rows of the table that begins so.
fn table(document: &str, head: &str) -> Vec<Vec<String>> {
    let lines = document.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    let cells = |line: &str| line.trim_matches('|').split('|').map(str::to_owned).collect();
    let rows: Vec<Vec<String>> = lines.take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(!rows.is_empty(), "there is no table that begins with {head}");
    rows
}

/// What the first cell of each row names, and what another one does.
fn lists(rows: &[Vec<String>], column: usize) -> Lists {
    rows.iter().map(|row| (quoted(&row[0]).remove(0), quoted(&row[column]))).collect()
}

/// What stands in backquotes.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The files that a document links to, without the place in them.
pub fn links(document: &str) -> Vec<&str> {
    let targets = document.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files = targets.map(|target| target.split('#').next().unwrap_or_default());
    files.filter(|file| !file.is_empty() && !file.contains("://")).collect()
}
