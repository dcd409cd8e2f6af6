//! The two files by which agent and archiver know of each other, in the pod's own run directory.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backup::assignment::Assignment;
use crate::backup::report::Report;

/// It is there where no backups are wanted, for PostgreSQL's `archive_command`.
pub const NO_BACKUPS: &str = "no-backups";
const ASSIGNMENT: &str = "archiver.json";
const REPORT: &str = "archiver-report.json";

/// What the archiver has to do; absent as long as the agent has not said it.
#[must_use]
pub fn read(run: &Path) -> Option<Assignment> {
    read_file(&run.join(ASSIGNMENT))
}

/// Tells the archiver what it has to do, and PostgreSQL's `archive_command` whether there is anything to do at all.
pub fn write(run: &Path, assignment: &Assignment) -> io::Result<()> {
    let nothing = run.join(NO_BACKUPS);
    let is_wanted = assignment.backup.is_some();
    match fs::remove_file(&nothing) {
        Err(error) if is_wanted && error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write_file(&run.join(ASSIGNMENT), assignment)?;
    if is_wanted { Ok(()) } else { fs::write(&nothing, "") }
}

/// What the archiver told last.
#[must_use]
pub fn report(run: &Path) -> Option<Report> {
    read_file(&run.join(REPORT))
}

/// Tells how the archive is.
pub fn write_report(run: &Path, report: &Report) -> io::Result<()> {
    write_file(&run.join(REPORT), report)
}

fn read_file<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// A reader sees the old text or the new.
fn write_file(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(content)?)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::backup::assignment::Role;
    use crate::set::backup::{Backup, Location, Schedule};

    /// That of a master whose backups go there, if anywhere.
    pub(in crate::archiver) fn assignment(location: Option<&str>) -> Assignment {
        let backup = location.map(|location| Backup {
            location: Location::parse(location).unwrap(),
            schedule: Schedule::default(),
            keep: std::time::Duration::from_hours(24),
            archive_timeout: std::time::Duration::from_mins(1),
            order: None,
            limit: crate::set::backup::Limit::default(),
            rate: None,
            delete: None,
            full_every: std::time::Duration::ZERO,
        });
        Assignment {
            namespace: "shop".into(),
            set: "db".into(),
            pod: "db-0".into(),
            backup,
            role: Role::Master,
            system: Some(crate::election::SystemIdentifier(1)),
            members: 1,
            data_directory: "/none".into(),
            binaries: "/none".into(),
            connection: String::new(),
            master_connection: None,
        }
    }

    #[test]
    fn postgresql_is_told_that_nothing_is_to_be_archived_only_as_long_as_that_is_so() {
        let run = tempfile::tempdir().unwrap();
        let says_nothing = || run.path().join(NO_BACKUPS).exists();
        for location in [None, Some("s3://bucket/db"), None] {
            write(run.path(), &assignment(location)).unwrap();
            assert_eq!(says_nothing(), location.is_none());
        }
    }

    #[test]
    fn an_assignment_is_read_as_it_was_written() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(read(run.path()), None);
        let assignment = assignment(Some("gs://bucket/db"));
        write(run.path(), &assignment).unwrap();
        assert_eq!(read(run.path()), Some(assignment));
    }
}
