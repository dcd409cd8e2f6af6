//! The line of its history that a member's server is on: the newest history that it has itself.

use std::fs;
use std::path::Path;

use crate::backup::line::{Line, newest};
use crate::backup::wal::WalFile;

/// By the files of a server that leads, or streams from the one that does: no store has to be asked.
pub(super) fn line_of(data_directory: &Path) -> Line {
    let pg_wal = data_directory.join("pg_wal");
    let entries = fs::read_dir(&pg_wal).into_iter().flatten().flatten();
    let files: Vec<WalFile> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let timeline = newest(&files, &[]);
    let history = fs::read_to_string(pg_wal.join(WalFile::History(timeline).to_string())).unwrap_or_default();
    Line::of(timeline, &history)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_on_the_line_of_its_newest_history() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(line_of(data.path()), Line::default());
        fs::create_dir(data.path().join("pg_wal")).unwrap();
        for (name, text) in [("00000002.history", "1\t0/3000098\tx\n"), ("00000003.history", "1\t0/2000098\tx\n")] {
            fs::write(data.path().join("pg_wal").join(name), text).unwrap();
        }
        fs::write(data.path().join("pg_wal/000000030000000000000002"), "").unwrap();
        assert_eq!(line_of(data.path()), Line::of(3, "1\t0/2000098\tx\n"));
    }
}
