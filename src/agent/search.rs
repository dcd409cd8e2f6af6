//! Another database on the data volume: where one is, no new one is made beside it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

/// How deep below the mount a database is looked for: PGDATA is one or two levels below it, a copy by hand one more.
const DEPTH: usize = 4;
/// How many entries are looked at: on a slow network volume that is seconds.
const ENTRIES: usize = 20_000;

/// A database that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its data directory.
    pub directory: PathBuf,
    /// PostgreSQL's major version, as the database itself says.
    pub major: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { directory, major } = self;
        write!(
            f,
            "it is empty, but {0} on the same volume holds a database of PostgreSQL {major}, and none is made beside it: \
             set PGDATA to {0} under env of the container to use that one, or move it off the volume",
            directory.display()
        )
    }
}

/// Looks for a database at and below `root`, whatever is in `left_out` not counted. Symbolic links are not followed, what can't be read
/// is left out, and so is what the agent itself keeps beside a data directory.
pub fn another_database(root: &Path, left_out: &[PathBuf]) -> Option<Found> {
    let mut waiting = VecDeque::from([(root.to_owned(), 0)]);
    let mut entries = 0;
    while let Some((directory, depth)) = waiting.pop_front() {
        if let Some(found) = database_at(&directory) {
            return Some(found);
        }
        if depth == DEPTH {
            continue;
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            entries += 1;
            if entries > ENTRIES {
                return None;
            }
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let path = entry.path();
            if is_directory && !left_out.contains(&path) && !entry.file_name().to_string_lossy().contains(".pgset-") {
                waiting.push_back((path, depth + 1));
            }
        }
    }
    None
}

/// `base/16384` has a `PG_VERSION` too; only a whole database cluster has `global` beside it.
fn database_at(directory: &Path) -> Option<Found> {
    let is_database = directory.join("global").is_dir();
    let major = fs::read_to_string(directory.join("PG_VERSION")).ok().filter(|_| is_database)?;
    Some(Found { directory: directory.to_owned(), major: major.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(directory: &Path, major: &str) {
        fs::create_dir_all(directory.join("global")).unwrap();
        fs::write(directory.join("PG_VERSION"), format!("{major}\n")).unwrap();
    }

    #[test]
    fn a_database_a_few_levels_down_is_found_with_its_version() {
        let root = tempfile::tempdir().unwrap();
        let there = root.path().join("18/docker");
        database(&there, "18");
        let found = another_database(root.path(), &[]).unwrap();
        assert_eq!(found, Found { directory: there.clone(), major: "18".to_owned() });
        let text = found.to_string();
        assert!(text.contains("PostgreSQL 18") && text.contains(&format!("PGDATA to {}", there.display())), "{text}");
    }

    #[test]
    fn the_mount_itself_may_be_the_database() {
        let root = tempfile::tempdir().unwrap();
        database(root.path(), "15");
        assert_eq!(another_database(root.path(), &[]).unwrap().directory, root.path());
    }

    #[test]
    fn what_the_agent_keeps_and_what_is_left_out_is_no_other_database() {
        let root = tempfile::tempdir().unwrap();
        for own in ["data.pgset-old", ".pgset-staging", "pgsql_tmp.pgset/pgset-1/data"] {
            database(&root.path().join(own), "17");
        }
        assert_eq!(another_database(root.path(), &[root.path().join("pgsql_tmp.pgset")]), None);
    }

    #[test]
    fn a_part_of_a_database_a_link_and_what_is_deep_below_are_none() {
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(root.path().join("base/1")).unwrap();
        fs::write(root.path().join("base/1/PG_VERSION"), "17\n").unwrap();
        database(other.path(), "17");
        std::os::unix::fs::symlink(other.path(), root.path().join("link")).unwrap();
        database(&root.path().join("1/2/3/4/5"), "17");
        assert_eq!(another_database(root.path(), &[]), None);
    }
}
