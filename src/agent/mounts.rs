//! Whether a directory is on the data volume, by the kernel's table of mounts: what is elsewhere is gone with the container.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

/// The kernel's own table of what this container sees.
const TABLE: &str = "/proc/self/mountinfo";

/// A directory that is not known to be on the data volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OffVolume {
    /// The recorded volume is not mounted.
    #[error(
        "no volume is mounted at {}, where the set's data should be: the container's volumeMounts were changed after the injection, \
         or something is mounted over it", volume.display()
    )]
    NotMounted {
        /// Where it should be.
        volume: PathBuf,
    },
    /// The directory is on another mount.
    #[error(
        "the data directory {} is not on the data volume, which is mounted at {}: it is on what is mounted at {}, \
         and a database there would be gone with the pod; set PGDATA under env of the container to a directory below {}",
        directory.display(), volume.display(), mount.display(), volume.display()
    )]
    Elsewhere {
        /// The data directory, as it is without symbolic links.
        directory: PathBuf,
        /// Where the volume is mounted.
        volume: PathBuf,
        /// The mount that has the directory.
        mount: PathBuf,
    },
    /// A path or the table can't be read.
    #[error("failed to find out on which volume {} is: {reason}", path.display())]
    Unknown {
        /// What was looked at.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
}

/// Whether `directory`, which need not exist yet, is on what is mounted at `volume`.
pub fn check(directory: &Path, volume: &Path) -> Result<(), OffVolume> {
    let unknown = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| OffVolume::Unknown { path, reason: error.to_string() }
    };
    let table = fs::read(TABLE).map_err(unknown(Path::new(TABLE)))?;
    let directory = resolved(directory).map_err(unknown(directory))?;
    let volume = resolved(volume).map_err(unknown(volume))?;
    judge(&String::from_utf8_lossy(&table), &directory, &volume)
}

/// Whether something is mounted at this very directory.
pub fn is_mount_point(directory: &Path) -> io::Result<bool> {
    let table = fs::read(TABLE)?;
    let real = fs::canonicalize(directory)?;
    Ok(String::from_utf8_lossy(&table).lines().filter_map(Mount::parse).any(|mount| mount.point == real))
}

/// Without symbolic links, as far as it exists and can be reached by this user.
pub fn resolved(path: &Path) -> io::Result<PathBuf> {
    let mut known = path;
    let mut real = loop {
        match fs::canonicalize(known) {
            Ok(real) => break real,
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                return Err(error);
            }
            Err(error) => known = known.parent().ok_or(error)?,
        }
    };
    for component in path.strip_prefix(known).into_iter().flat_map(Path::components) {
        match component {
            Component::Normal(name) => real.push(name),
            Component::ParentDir => drop(real.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(real)
}

fn judge(table: &str, directory: &Path, volume: &Path) -> Result<(), OffVolume> {
    let mounts: Vec<Mount> = table.lines().filter_map(Mount::parse).collect();
    let not_mounted = || OffVolume::NotMounted { volume: volume.to_owned() };
    let wanted = seen_at(&mounts, volume).filter(|mount| mount.point == volume).ok_or_else(not_mounted)?;
    match seen_at(&mounts, directory) {
        Some(found) if found.id == wanted.id => Ok(()),
        found => Err(OffVolume::Elsewhere {
            directory: directory.to_owned(),
            volume: volume.to_owned(),
            mount: found.map_or_else(|| PathBuf::from("/"), |mount| mount.point.clone()),
        }),
    }
}

/// One line of the table.
#[derive(Debug)]
struct Mount {
    id: u32,
    parent: u32,
    point: PathBuf,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let parent = fields.next()?.parse().ok()?;
        Some(Self { id, parent, point: unescaped(fields.nth(2)?) })
    }
}

/// The mount that a path without symbolic links leads to: from the root downwards, as the kernel goes, so that a mount which a later
/// one hides counts for nothing.
fn seen_at<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let is_listed = |id: u32| mounts.iter().any(|mount| mount.id == id);
    let mut here = mounts.iter().rfind(|mount| mount.parent == mount.id || !is_listed(mount.parent))?;
    // A line too many in a table that goes round in circles ends it.
    for _ in mounts {
        let below = mounts
            .iter()
            .filter(|mount| mount.parent == here.id && mount.id != here.id && path.starts_with(&mount.point));
        match below.min_by_key(|mount| mount.point.components().count()) {
            Some(next) => here = next,
            None => break,
        }
    }
    Some(here)
}

/// Blanks, tabs, line ends, backslashes and number signs stand in the table as three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(octal);
        bytes.push(code.unwrap_or(*first));
        rest = tail.get(if code.is_some() { 3 } else { 0 }..).unwrap_or_default();
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "\
600 500 0:50 / / rw,relatime master:1 - overlay overlay rw
601 600 0:51 / /proc rw - proc proc rw
602 600 8:1 /pods/1/etc-hosts /etc/hosts rw - ext4 /dev/sda1 rw
603 600 8:2 / /var/lib/postgresql/data rw - ext4 /dev/sdb rw
";

    fn refused(table: &str, directory: &str, volume: &str) -> OffVolume {
        judge(table, Path::new(directory), Path::new(volume)).unwrap_err()
    }

    fn elsewhere(directory: &str, volume: &str, mount: &str) -> OffVolume {
        OffVolume::Elsewhere { directory: directory.into(), volume: volume.into(), mount: mount.into() }
    }

    #[test]
    fn the_mount_itself_and_all_below_it_are_on_the_volume() {
        let volume = Path::new("/var/lib/postgresql/data");
        for directory in ["/var/lib/postgresql/data", "/var/lib/postgresql/data/pgdata", "/var/lib/postgresql/data/a/b"]
        {
            assert_eq!(judge(POD, Path::new(directory), volume), Ok(()), "{directory}");
        }
    }

    #[test]
    fn the_containers_own_file_system_is_not_the_volume() {
        let volume = "/var/lib/postgresql/data";
        for directory in ["/var/lib/postgresql/18/docker", "/var/lib/postgresql/data2", "/"] {
            assert_eq!(refused(POD, directory, volume), elsewhere(directory, volume, "/"), "{directory}");
        }
    }

    #[test]
    fn a_volume_of_the_images_own_below_the_mount_hides_it() {
        let table = POD.to_owned()
            + "610 600 8:2 / /var/lib/postgresql rw - ext4 /dev/sdb rw\n"
            + "611 610 8:3 /volumes/abc /var/lib/postgresql/data rw - ext4 /dev/sda1 rw\n";
        let volume = "/var/lib/postgresql";
        assert_eq!(
            refused(&table, "/var/lib/postgresql/data/pgdata", volume),
            elsewhere("/var/lib/postgresql/data/pgdata", volume, "/var/lib/postgresql/data")
        );
        assert_eq!(judge(&table, Path::new("/var/lib/postgresql/18/docker"), Path::new(volume)), Ok(()));
    }

    #[test]
    fn a_mount_that_a_later_one_hides_is_no_volume() {
        let table = POD.to_owned() + "620 600 0:60 / /var/lib rw - tmpfs tmpfs rw\n";
        let directory = "/var/lib/postgresql/data";
        assert_eq!(refused(&table, directory, directory), OffVolume::NotMounted { volume: directory.into() });
    }

    #[test]
    fn of_two_mounts_at_one_place_the_upper_one_counts() {
        let table = POD.to_owned() + "630 603 8:9 / /var/lib/postgresql/data rw - ext4 /dev/sdc rw\n";
        let directory = Path::new("/var/lib/postgresql/data");
        assert_eq!(judge(&table, directory, directory), Ok(()));
    }

    #[test]
    fn a_volume_that_is_not_mounted_is_told() {
        assert_eq!(refused(POD, "/pgdata/data", "/pgdata"), OffVolume::NotMounted { volume: "/pgdata".into() });
        assert_eq!(refused("", "/pgdata", "/pgdata"), OffVolume::NotMounted { volume: "/pgdata".into() });
    }

    #[test]
    fn blanks_and_backslashes_of_a_path_are_read_as_they_are() {
        assert_eq!(unescaped(r"/my\040data\134x"), PathBuf::from(r"/my data\x"));
        assert_eq!(unescaped(r"/odd\9"), PathBuf::from(r"/odd\9"));
        let table = format!("{POD}640 600 8:4 / /my\\040data rw - ext4 /dev/sdd rw\n");
        assert_eq!(judge(&table, Path::new("/my data/pg"), Path::new("/my data")), Ok(()));
    }

    #[test]
    fn symbolic_links_are_followed_and_what_is_missing_is_taken_as_written() {
        let root = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(root.path()).unwrap();
        fs::create_dir(real.join("other")).unwrap();
        std::os::unix::fs::symlink(real.join("other"), real.join("link")).unwrap();
        assert_eq!(resolved(&real.join("link/new/data")).unwrap(), real.join("other/new/data"));
        assert_eq!(resolved(&real.join("other/x/../y")).unwrap(), real.join("other/y"));
    }
}
