//! Where a member's data is, from what the injection recorded and what the environment says. Pure but for the question what is mounted.

use std::path::{Path, PathBuf};

use super::configuration::Flags;
use super::mounts::{self, OffVolume};

/// Where a member's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The data directory.
    pub directory: PathBuf,
    /// Where the data volume is mounted; absent in a set that 0.1.0 injected.
    pub volume: Option<PathBuf>,
    /// Where the other members have their directories, on a volume that belongs to one of them.
    pub members: Option<PathBuf>,
    /// Below which another database would be this member's own.
    pub searched: Option<PathBuf>,
}

impl Place {
    /// `given` is PGDATA as the environment has it. It counts where it is on the data volume, or where the injection knew of none better.
    pub fn of(flags: &Flags, pod: &str, given: Option<PathBuf>, is_on: impl Fn(&Path, &Path) -> bool) -> Option<Self> {
        let Flags { data_volume: volume, default_data_directory: default, members_directory, in_place_member, .. } =
            flags;
        let members = members_directory.clone();
        if let Some(members) = members.clone().filter(|_| in_place_member.as_deref() != Some(pod)) {
            let own = members.join(pod);
            // What else is on that volume is the other members'.
            let directory = own.join("data");
            return Some(Self { directory, volume: volume.clone(), members: Some(members), searched: Some(own) });
        }
        let is_right = |given: &PathBuf| match (volume, default) {
            (Some(volume), Some(_)) => is_on(given, volume),
            _ => true,
        };
        let directory = given.filter(is_right).or_else(|| default.clone())?;
        Some(Self { directory, volume: volume.clone(), members, searched: volume.clone() })
    }

    /// Whether the data directory is another one than the container's, on a volume of the first member's.
    #[must_use]
    pub fn is_apart(&self) -> bool {
        self.members.as_ref().is_some_and(|members| self.directory.starts_with(members))
    }

    /// Whether the data directory is on the data volume.
    pub fn check(&self) -> Result<(), OffVolume> {
        self.volume.as_ref().map_or(Ok(()), |volume| mounts::check(&self.directory, volume))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn flags(more: &[&str]) -> Flags {
        let line = ["agent", "--set=db", "--master=db-master", "--role-label=pgset.dev/role", "--port=5432"];
        let line = line.into_iter().chain(["--first-ordinal=0", "--lease-seconds=6", "--failover=automatic"]);
        Line::try_parse_from(line.chain(more.iter().copied())).unwrap().flags
    }

    fn place(more: &[&str], pod: &str, given: Option<&str>) -> Option<Place> {
        Place::of(&flags(more), pod, given.map(PathBuf::from), |path, volume| path.starts_with(volume))
    }

    const VOLUME: [&str; 2] = ["--data-volume=/data", "--default-data-directory=/data/pg"];

    #[test]
    fn the_environments_directory_counts_on_the_volume_and_the_default_elsewhere() {
        let directory = |given| place(&VOLUME, "db-0", given).unwrap().directory;
        assert_eq!(directory(Some("/data/mine")), Path::new("/data/mine"));
        assert_eq!(directory(Some("/var/lib/postgresql/18/docker")), Path::new("/data/pg"));
        assert_eq!(directory(None), Path::new("/data/pg"));
    }

    #[test]
    fn without_a_default_the_environment_alone_says() {
        assert_eq!(place(&VOLUME[..1], "db-0", Some("/elsewhere")).unwrap().directory, Path::new("/elsewhere"));
        assert_eq!(place(&[], "db-0", None), None);
        assert_eq!(place(&[], "db-0", Some("/elsewhere")).unwrap().volume, None, "a set of 0.1.0");
    }

    #[test]
    fn the_in_place_member_stays_where_it_was_and_the_others_have_directories_of_their_own() {
        let more = ["--data-volume=/data", "--members-directory=/data/pgsql_tmp.pgset", "--in-place-member=db-0"];
        let first = place(&more, "db-0", Some("/data")).unwrap();
        assert_eq!(first.directory, Path::new("/data"));
        assert!(!first.is_apart());
        assert_eq!(first.members.as_deref(), Some(Path::new("/data/pgsql_tmp.pgset")));
        let second = place(&more, "db-1", Some("/data")).unwrap();
        assert_eq!(second.directory, Path::new("/data/pgsql_tmp.pgset/db-1/data"));
        assert!(second.is_apart());
        assert_eq!(second.searched.as_deref(), Some(Path::new("/data/pgsql_tmp.pgset/db-1")), "not the first one's");
    }
}
