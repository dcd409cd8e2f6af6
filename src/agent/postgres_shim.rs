//! The stand-in for `postgres` during a bootstrap by the image's entry point.
//!
//! The entry point makes the database, runs the user's scripts and ends in `exec postgres`, which it looks up in PATH. There it finds
//! a link of that name to the agent, which ends well at once: so the end of the entry point means that the database is complete, and
//! no server was started on it that the agent did not start. Questions on the way (`postgres -C password_encryption`) are handed on.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The name of the link.
pub const NAME: &str = "postgres";
/// The variable that tells the stand-in where the real one is.
pub const REAL: &str = "PGSET_REAL_POSTGRES";

/// Arguments by which `postgres` answers a question or works for `initdb`, instead of being a server.
const QUESTIONS: [&str; 9] =
    ["-C", "-V", "--version", "-?", "--help", "--describe-config", "--single", "--boot", "--check"];

/// Stands in if this program was called by that name; otherwise absent.
#[must_use]
pub fn answer(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter();
    let called = arguments.next()?;
    if Path::new(&called).file_name() != Some(OsStr::new(NAME)) {
        return None;
    }
    let arguments: Vec<OsString> = arguments.collect();
    if !is_question(&arguments) {
        return Some(ExitCode::SUCCESS);
    }
    let real = std::env::var_os(REAL)?;
    let error = Command::new(&real).args(&arguments).exec();
    eprintln!("pgset: failed to run {}: {error}", Path::new(&real).display());
    Some(ExitCode::FAILURE)
}

fn is_question(arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| QUESTIONS.iter().any(|question| argument == question))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_server_at_the_end_of_the_entry_point_ends_well_at_once() {
        assert!(answer(words("postgres")).is_some());
        assert!(answer(words("/pgset/run/bin/postgres -c max_connections=300")).is_some());
    }

    #[test]
    fn questions_are_for_the_real_program() {
        assert!(is_question(&words("-C password_encryption")));
        assert!(is_question(&words("--version")));
        assert!(!is_question(&words("-c config_file=/etc/postgresql/postgresql.conf")));
    }

    #[test]
    fn under_its_own_name_this_program_is_itself() {
        assert!(answer(words("/pgset/pgset agent")).is_none());
    }
}
