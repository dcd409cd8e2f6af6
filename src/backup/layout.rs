//! The names of the objects in the store, below the set's prefix.

use k8s_openapi::jiff::Timestamp;

use super::wal::WalFile;

/// Whose prefix it is.
pub const OWNER: &str = "set.json";
/// The folder of the WAL.
pub const WAL: &str = "wal";
/// The folder of the base backups.
pub const BACKUPS: &str = "backups";
/// The folder in which members say who makes the next base backup.
pub const CLAIMS: &str = "claims";
/// The folder of what trial restores found.
pub const VERIFICATIONS: &str = "verifications";
/// A base backup's tar file.
pub const TAR: &str = "base.tar.zst";
/// PostgreSQL's list of what is in it.
pub const MANIFEST: &str = "backup_manifest";
/// What a base backup is.
pub const INDEX: &str = "backup.json";
/// What PostgreSQL's names end with here.
const COMPRESSED: &str = ".zst";

/// Where a file of the WAL lies.
#[must_use]
pub fn wal(file: WalFile) -> String {
    format!("{WAL}/{file}{COMPRESSED}")
}

/// The file of the WAL whose object has this last name.
#[must_use]
pub fn wal_file(name: &str) -> Option<WalFile> {
    name.strip_suffix(COMPRESSED)?.parse().ok()
}

/// A part of a base backup.
#[must_use]
pub fn backup(id: &str, part: &str) -> String {
    format!("{BACKUPS}/{id}/{part}")
}

/// What a base backup that begins now is called: its time, so that names are in the order of their making.
#[must_use]
pub fn backup_id(now: Timestamp, pod: &str) -> String {
    format!("{}-{pod}", now.strftime("%Y%m%dT%H%M%SZ"))
}

/// The claim to make a base backup that is due, for the n-th time that somebody tries it.
#[must_use]
pub fn claim(due: &str, attempt: u32) -> String {
    format!("{CLAIMS}/{due}/{attempt:04}.json")
}

/// What a trial restore that begins now found.
#[must_use]
pub fn verification(now: Timestamp) -> String {
    format!("{VERIFICATIONS}/{}.json", now.strftime("%Y%m%dT%H%M%SZ"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_called_after_what_they_are() {
        let file = "00000001000000000000000A".parse().unwrap();
        assert_eq!(wal(file), "wal/00000001000000000000000A.zst");
        assert_eq!(wal_file("00000001000000000000000A.zst"), Some(file));
        assert_eq!(wal_file("00000001000000000000000A.zst#1"), None, "half an upload");
        let now = "2026-11-30T15:04:05.9Z".parse().unwrap();
        assert_eq!(backup(&backup_id(now, "db-1"), TAR), "backups/20261130T150405Z-db-1/base.tar.zst");
        assert_eq!(verification(now), "verifications/20261130T150405Z.json");
        assert_eq!(claim("20261130T030000Z", 2), "claims/20261130T030000Z/0002.json");
    }
}
