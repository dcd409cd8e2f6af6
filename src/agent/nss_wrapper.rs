//! A name for a user whom the image does not know, as a namespace may give one to its pods: `initdb` and single-user mode ask for it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};
use tokio::process::Command;

use super::configuration::run_directory;
use super::{privileges, settings};

/// The library that answers for `/etc/passwd`; Docker's official image has it for this purpose.
const LIBRARY: &str = "libnss_wrapper.so";

/// Lends one program a name for its user, if he has none and the image has the means. If not, PostgreSQL says what it misses.
pub fn lend(command: &mut Command) -> io::Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    if privileges::is_known(&fs::read_to_string("/etc/passwd").unwrap_or_default(), user) {
        return Ok(());
    }
    let Some(library) = library() else { return Ok(()) };
    let (users, groups) = (run_directory().join("passwd"), run_directory().join("group"));
    settings::write(&users, &format!("postgres:x:{user}:{group}:PostgreSQL:/tmp:/bin/false\n"))?;
    settings::write(&groups, &format!("postgres:x:{group}:\n"))?;
    command.env("LD_PRELOAD", library).env("NSS_WRAPPER_PASSWD", users).env("NSS_WRAPPER_GROUP", groups);
    Ok(())
}

/// Debian keeps it in a directory for each architecture, others in `lib64`.
fn library() -> Option<PathBuf> {
    let below = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let directories = below.chain([PathBuf::from("/usr/lib64"), PathBuf::from("/usr/lib")]);
    directories.map(|directory| directory.join(Path::new(LIBRARY))).find(|file| file.is_file())
}
