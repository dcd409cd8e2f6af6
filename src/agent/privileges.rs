//! From root to the PostgreSQL user, before anything is made on the data volume: an export that squashes root lets nobody else.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, geteuid, getgroups, setegid, seteuid, setgid, setgroups, setuid};

/// The user that official images and Debian's and Alpine's packages run PostgreSQL as.
const POSTGRES_USER: &str = "postgres";

/// A line of the container's `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
}

/// Why the agent can't become the PostgreSQL user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Root, and no user to become.
    #[error(
        "the container runs as root and its image has no user `postgres`, and {} belongs to root: \
         set securityContext.runAsUser to the user that PostgreSQL should run as", pgdata.display()
    )]
    NoUser {
        /// The data directory.
        pgdata: PathBuf,
    },
    /// The kernel refused.
    #[error(
        "failed to become user {uid}: the container runs as root without the capabilities SETUID and SETGID; \
         add them or set securityContext.runAsUser: {uid}"
    )]
    Refused {
        /// The user.
        uid: u32,
        /// The kernel's answer.
        #[source]
        source: nix::Error,
    },
    /// The data directory can't be made by the user, nor for him.
    #[error(
        "failed to make {} as user {uid}: set PGDATA to a directory below the mount, and make the mount writable for that user \
         (chmod 0777 or chown {uid} on the export or volume, or securityContext.fsGroup)", pgdata.display()
    )]
    DataDirectory {
        /// The data directory.
        pgdata: PathBuf,
        /// The user.
        uid: u32,
        /// What failed.
        #[source]
        source: io::Error,
    },
}

/// Becomes the PostgreSQL user if this is root, and makes the data directory's parent reachable for him. Must run before any thread
/// starts. Returns the user's home, for the environment of PostgreSQL's programs.
pub fn settle(pgdata: &Path) -> Result<Option<PathBuf>, Error> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    if !geteuid().is_root() {
        let uid = geteuid().as_raw();
        make_data_directory(pgdata).map_err(|source| Error::DataDirectory {
            pgdata: pgdata.to_owned(),
            uid,
            source,
        })?;
        return Ok(home_of(&passwd, uid));
    }
    let user = find_user(&passwd, pgdata).ok_or_else(|| Error::NoUser { pgdata: pgdata.to_owned() })?;
    let refused = |source| Error::Refused { uid: user.uid, source };
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));

    // Supplementary groups stay: fsGroup is one, and the token's file may be readable by it alone.
    let groups: HashSet<Gid> =
        getgroups().map_err(refused)?.into_iter().filter(|group| group.as_raw() != 0).chain([gid]).collect();
    setgroups(&groups.into_iter().collect::<Vec<_>>()).map_err(refused)?;

    setegid(gid).map_err(refused)?;
    seteuid(uid).map_err(refused)?;
    let made = make_data_directory(pgdata);
    seteuid(Uid::from_raw(0)).map_err(refused)?;
    setegid(Gid::from_raw(0)).map_err(refused)?;
    if made.is_err() {
        // A fresh block volume belongs to root. The image's own entry point would do the same; on an export that squashes root this
        // fails, and rightly so.
        give_data_directory(pgdata, &user).map_err(|source| Error::DataDirectory {
            pgdata: pgdata.to_owned(),
            uid: user.uid,
            source,
        })?;
    }
    setgid(gid).map_err(refused)?;
    setuid(uid).map_err(refused)?;
    Ok(Some(user.home))
}

/// Makes the directory if it is missing, and fails if it exists and belongs to somebody else: PostgreSQL refuses such a one.
fn make_data_directory(pgdata: &Path) -> io::Result<()> {
    match fs::metadata(pgdata) {
        Ok(found) if found.uid() == geteuid().as_raw() => Ok(()),
        Ok(found) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("it belongs to user {} and PostgreSQL runs as {}", found.uid(), geteuid()),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(pgdata)
        }
        Err(error) => Err(error),
    }
}

fn give_data_directory(pgdata: &Path, user: &User) -> io::Result<()> {
    fs::create_dir_all(pgdata)?;
    if fs::read_dir(pgdata)?.flatten().any(|entry| entry.file_name() != "lost+found") {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("it holds files of another user: run `chown -R {}:{}` on it once", user.uid, user.gid),
        ));
    }
    chown(pgdata, Some(user.uid), Some(user.gid))?;
    fs::set_permissions(pgdata, fs::Permissions::from_mode(0o700))
}

/// The image's `postgres`, else the owner of the data.
fn find_user(passwd: &str, pgdata: &Path) -> Option<User> {
    if let Some(user) = users(passwd).find_map(|(name, user)| (name == POSTGRES_USER).then_some(user)) {
        return Some(user);
    }
    let owner = fs::metadata(pgdata).ok().filter(|found| found.uid() != 0)?;
    let home = home_of(passwd, owner.uid()).unwrap_or_else(|| PathBuf::from("/tmp"));
    Some(User { uid: owner.uid(), gid: owner.gid(), home })
}

/// Whether the image knows a user.
pub fn is_known(passwd: &str, uid: u32) -> bool {
    users(passwd).any(|(_, user)| user.uid == uid)
}

fn home_of(passwd: &str, uid: u32) -> Option<PathBuf> {
    users(passwd).find_map(|(_, user)| (user.uid == uid).then_some(user.home))
}

fn users(passwd: &str) -> impl Iterator<Item = (&str, User)> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?.into();
        Some((name, User { uid, gid, home }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPINE: &str = "root:x:0:0:root:/root:/bin/sh\nbroken line\npostgres:x:70:70::/var/lib/postgresql:/bin/sh\n";

    #[test]
    fn the_images_postgres_user_is_found_whatever_its_number() {
        let user = find_user(ALPINE, Path::new("/nowhere")).unwrap();
        assert_eq!(user, User { uid: 70, gid: 70, home: "/var/lib/postgresql".into() });
    }

    #[test]
    fn an_image_without_that_user_and_without_data_has_none() {
        assert_eq!(find_user("root:x:0:0:root:/root:/bin/sh\n", Path::new("/nowhere")), None);
    }
}
