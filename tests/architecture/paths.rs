//! Which modules a source file names, by its text: no syntax tree is needed to see `crate::agent` in it.

use std::collections::BTreeSet;

/// A source file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its place: `src/agent/sql.rs`.
    pub file: String,
    /// What is in it.
    pub text: String,
}

/// A path in a source file, from the root of the crate on: `agent::sql::Sql`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub line: usize,
    pub parts: Vec<String>,
}

impl Source {
    pub fn is_test(&self) -> bool {
        self.file.ends_with("_tests.rs") || self.file.ends_with("/tests.rs")
    }

    /// The module that the file is: `agent::sql`. The crate's own two files are the room `main`.
    pub fn module(&self) -> Vec<String> {
        let place = self.file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        if place == "lib" { vec!["main".to_owned()] } else { place.split('/').map(str::to_owned).collect() }
    }

    /// The text without the tests at its end.
    pub fn own(&self) -> &str {
        let mut tests = self.text.match_indices("\n#[cfg(test)]\n").map(|(at, _)| at + 1);
        let of_a_module = |at: &usize| {
            let rest = self.text[*at..].lines().find(|line| !line.starts_with("#["));
            rest.is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
        };
        tests.find(of_a_module).map_or(&self.text, |at| &self.text[..at])
    }

    /// The same without comments, line by line.
    pub fn code(&self) -> String {
        let line = |line: &str| {
            let mut comments = line.match_indices("//").map(|(at, _)| at);
            let end = comments.find(|at| !line[..*at].ends_with(':')).unwrap_or(line.len());
            line[..end].to_owned() + "\n"
        };
        self.own().lines().map(line).collect()
    }

    /// All paths that lead to a module of this crate.
    pub fn paths(&self) -> Vec<Path> {
        self.paths_from(&["crate::", "pgset::", "self::", "super::"])
    }

    /// All paths that begin with one of these.
    pub fn paths_from(&self, starts: &[&str]) -> Vec<Path> {
        let (code, module) = (self.code(), self.module());
        let mut paths = Vec::new();
        for start in starts {
            for (at, _) in code.match_indices(start) {
                if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue;
                }
                let base = match *start {
                    "self::" => module.clone(),
                    "super::" => above(&module),
                    "crate::" | "pgset::" => Vec::new(),
                    other => vec![other.trim_end_matches(':').to_owned()],
                };
                let mut rest = &code[at + start.len()..];
                let line = code[..at].matches('\n').count() + 1;
                paths.extend(tree(&mut rest).into_iter().map(|tail| Path { line, parts: joined(&base, &tail) }));
            }
        }
        paths.sort_by_key(|path| path.line);
        paths
    }

    /// Where one of these functions or types is named without the way to it: `Instant::now`.
    pub fn calls(&self, words: &[String]) -> Vec<(usize, String)> {
        let of_a_name = |c: char| c.is_alphanumeric() || "_\"".contains(c);
        let mut found = Vec::new();
        for (line, code) in self.code().lines().enumerate() {
            for word in words.iter().filter(|word| word.starts_with(char::is_uppercase)) {
                let mut places =
                    code.match_indices(word.as_str()).map(|(at, _)| (&code[..at], &code[at + word.len()..]));
                if places
                    .any(|(before, after)| !before.ends_with(of_a_name) && !after.starts_with(char::is_alphanumeric))
                {
                    found.push((line + 1, word.clone()));
                }
            }
        }
        found
    }
}

fn above(module: &[String]) -> Vec<String> {
    module.split_last().map(|(_, above)| above.to_vec()).unwrap_or_default()
}

fn joined(base: &[String], tail: &[&str]) -> Vec<String> {
    let mut parts = base.to_vec();
    for part in tail {
        match *part {
            "super" => parts = above(&parts),
            "" | "self" | "*" => {}
            part => parts.push(part.to_owned()),
        }
    }
    parts
}

/// The paths that begin here: `a::{b, c::d}` are two.
fn tree<'a>(rest: &mut &'a str) -> Vec<Vec<&'a str>> {
    *rest = rest.trim_start();
    if let Some(inner) = rest.strip_prefix('{') {
        *rest = inner;
        return group(rest);
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after;
    match after.trim_start().strip_prefix("::") {
        Some(below) if !word.is_empty() => {
            *rest = below;
            tree(rest).into_iter().map(|tail| [vec![word], tail].concat()).collect()
        }
        _ => vec![vec![word]],
    }
}

fn group<'a>(rest: &mut &'a str) -> Vec<Vec<&'a str>> {
    let mut paths = Vec::new();
    loop {
        *rest = rest.trim_start_matches([' ', '\n', ',', '*']);
        if let Some(after) = rest.strip_prefix("as ") {
            *rest = after.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        } else if rest.is_empty() || rest.starts_with('}') {
            *rest = rest.strip_prefix('}').unwrap_or_default();
            return paths;
        } else {
            let before = rest.len();
            paths.extend(tree(rest));
            if rest.len() == before {
                return paths;
            }
        }
    }
}

/// The module that a path leads into: the longest part of it that is one.
pub fn module_of(path: &Path, modules: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
    (1..=path.parts.len()).rev().map(|length| path.parts[..length].to_vec()).find(|part| modules.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(file: &str, text: &str) -> Vec<String> {
        let source = Source { file: file.to_owned(), text: text.to_owned() };
        source.paths().into_iter().map(|path| format!("{}: {}", path.line, path.parts.join("::"))).collect()
    }

    #[test]
    fn a_group_is_as_many_paths_as_it_has_ends() {
        let text = "use crate::{\n    names::{self, annotation as a},\n    set::Set,\n};\nfn f() { super::g::<crate::set::X>() }\n";
        let found = paths("src/agent/sql.rs", text);
        assert_eq!(found, ["1: names", "1: names::annotation", "1: set::Set", "5: set::X", "5: agent::g"]);
    }

    #[test]
    fn super_and_self_are_resolved() {
        assert_eq!(
            paths("src/agent/peers/mod.rs", "use self::key::Key;\nuse super::super::set;\n"),
            ["1: agent::peers::key::Key", "2: set"]
        );
    }

    #[test]
    fn comments_and_tests_name_nothing() {
        let text =
            "/// See [`crate::cli`].\nfn f() {} // crate::agent\n#[cfg(test)]\nmod tests {\n    use crate::cli;\n}\n";
        assert!(paths("src/set.rs", text).is_empty());
    }
}
