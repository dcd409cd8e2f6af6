//! `pgset copy`.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::CommandResult;

/// The program that runs, also where its own path is not visible from inside the container.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// The flags of `pgset copy`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The file to write; what is there is replaced in one step.
    path: PathBuf,
}

/// Why the program could not be copied.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The path names no file.
    #[error("{path:?} is not the path of a file")]
    NotAFile { path: PathBuf },
    /// Reading, writing or renaming failed.
    #[error("failed to copy this program to {path:?}")]
    Copy {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> CommandResult {
    Ok(copy(Path::new(OWN_PROGRAM), &arguments.path)?)
}

/// Copies a program beside its destination and renames it: whoever starts it finds a whole one, and a program that runs from
/// there already keeps its file.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let name = to.file_name().ok_or_else(|| Error::NotAFile { path: to.to_owned() })?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = to.with_file_name(temporary);
    let copied = fs::copy(from, &temporary)
        .and_then(|_| fs::set_permissions(&temporary, Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&temporary, to));
    copied.map_err(|source| {
        // Best effort: the error that is told is the one that counts.
        let _ = fs::remove_file(&temporary);
        Error::Copy { path: to.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_replaces_what_is_there_and_can_be_run() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::write(&from, "program").unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o600)).unwrap();
        fs::write(&to, "old").unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "program");
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "nothing else is left behind");
    }

    #[test]
    fn errors_name_the_path() {
        let error = copy(Path::new(OWN_PROGRAM), Path::new("/nowhere/pgset")).unwrap_err();
        assert_eq!(error.to_string(), "failed to copy this program to \"/nowhere/pgset\"");
        copy(Path::new(OWN_PROGRAM), Path::new("/..")).unwrap_err();
    }
}
