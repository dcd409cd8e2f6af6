//! What an image's name says about what is inside.

use super::known;

/// An image reference such as `registry:5000/pgvector/pgvector:pg17@sha256:…`, in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference<'a> {
    /// Everything before the tag: `registry:5000/pgvector/pgvector`.
    pub(crate) repository: &'a str,
    /// Everything before the name: `registry:5000/pgvector`.
    path: &'a str,
    /// `pgvector`.
    pub(crate) name: &'a str,
    /// `pg17`.
    pub(crate) tag: &'a str,
}

impl<'a> Reference<'a> {
    /// Takes any text apart.
    pub(crate) fn of(image: &'a str) -> Self {
        let image = image.split_once('@').map_or(image, |(image, _)| image);
        let (path, last) = image.rsplit_once('/').unwrap_or(("", image));
        let (name, tag) = last.split_once(':').unwrap_or((last, ""));
        let repository = image.strip_suffix(tag).unwrap_or(image).trim_end_matches(':');
        Self { repository, path, name, tag }
    }

    /// Whether the repository is this one, or a mirror of it.
    pub(crate) fn is(&self, repository: &str) -> bool {
        let before = self.repository.strip_suffix(repository);
        before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
    }

    /// The parts of the path.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &'a str> {
        self.path.split('/')
    }
}

/// The families of PostgreSQL images, as far as they differ for pgset. The number is PostgreSQL's major version, where the name says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// The official image, what is built on it, and everything unknown.
    Official(Option<u32>),
    /// Red Hat's, also called sclorg's: `run-postgresql`.
    RedHat(Option<u32>),
    /// timescale/timescaledb-ha: the official entry point, and a home of its own.
    TimescaleHa(Option<u32>),
    /// crunchy-postgres*: implements `PG_MODE=set` itself.
    Crunchy,
}

impl Family {
    /// Of an image reference.
    pub(crate) fn of(image: &str) -> Self {
        let reference = Reference::of(image);
        let Reference { name, tag, .. } = reference;
        // Those of its operator leave everything to Patroni.
        if name.starts_with("crunchy-postgres") && !name.ends_with("-ha") {
            Self::Crunchy
        } else if known::is_red_hats(&reference) {
            Self::RedHat(red_hats_major(name).or_else(|| major(name, tag)))
        } else if reference.is("timescale/timescaledb-ha") {
            Self::TimescaleHa(major(name, tag))
        } else {
            Self::Official(major(name, tag))
        }
    }

    /// PostgreSQL's major version, where the name says it.
    pub(crate) fn major(self) -> Option<u32> {
        match self {
            Self::Official(major) | Self::RedHat(major) | Self::TimescaleHa(major) => major,
            Self::Crunchy => None,
        }
    }

    /// The directory that PGDATA is where nobody sets it.
    pub(crate) fn usual_pgdata(self) -> String {
        match self {
            // From 18 on, the official image keeps one directory for each major version.
            Self::Official(Some(major)) if major >= 18 => format!("/var/lib/postgresql/{major}/docker"),
            Self::Official(_) => "/var/lib/postgresql/data".to_owned(),
            Self::RedHat(_) => "/var/lib/pgsql/data/userdata".to_owned(),
            Self::TimescaleHa(_) => "/home/postgres/pgdata/data".to_owned(),
            Self::Crunchy => "/pgdata".to_owned(),
        }
    }

    /// Where a volume for the data is best mounted.
    pub(crate) fn usual_mount(self) -> &'static str {
        match self {
            Self::Official(Some(18..)) => "/var/lib/postgresql",
            Self::Official(_) => "/var/lib/postgresql/data",
            Self::RedHat(_) => "/var/lib/pgsql/data",
            Self::TimescaleHa(_) => "/home/postgres/pgdata",
            Self::Crunchy => "/pgdata",
        }
    }
}

/// Whether an image reference names Docker's official image itself, not one built on it: `postgres:17`, also by a mirror of all of
/// Docker's official images (`public.ecr.aws/docker/library/postgres`).
pub(crate) fn is_official(image: &str) -> bool {
    let Reference { path, name, .. } = Reference::of(image);
    name == "postgres" && (path.is_empty() || path.rsplit('/').next() == Some("library"))
}

/// `17-alpine`, `17.2`: the leading number, where the name says that it is PostgreSQL's own version. Elsewhere only
/// `pg17` is sure: timescaledb and pgvector number themselves first.
fn major(name: &str, tag: &str) -> Option<u32> {
    let marked = tag.split(['-', '_', '.']).find_map(|part| part.strip_prefix("pg").and_then(number));
    let own = name.contains("postgres") || name.contains("postgis") || name.contains("pg-mode-set");
    marked.or_else(|| number(tag).filter(|_| own))
}

/// `postgresql-13-centos7`, `postgresql-96-rhel7`: of the name, not of the tag.
fn red_hats_major(name: &str) -> Option<u32> {
    let digits: String = name.strip_prefix("postgresql-")?.chars().take_while(char::is_ascii_digit).collect();
    match digits.parse().ok()? {
        two_numbers @ 90..=99 => Some(two_numbers / 10),
        major => Some(major),
    }
}

fn number(text: &str) -> Option<u32> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|major| (8..100).contains(major))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_name_says_its_family() {
        for (image, family) in [
            ("postgres", Family::Official(None)),
            ("postgres:latest", Family::Official(None)),
            ("postgres:15", Family::Official(Some(15))),
            ("docker.io/library/postgres:17.2-alpine@sha256:00", Family::Official(Some(17))),
            ("registry:5000/postgres", Family::Official(None)),
            ("postgis/postgis:16-3.4", Family::Official(Some(16))),
            ("pgvector/pgvector:pg18", Family::Official(Some(18))),
            ("pgvector/pgvector:0.8.0-pg17", Family::Official(Some(17))),
            ("timescale/timescaledb:2.17.2-pg16", Family::Official(Some(16))),
            ("timescale/timescaledb:17.0.0", Family::Official(None)),
            ("timescale/timescaledb-ha:pg16.6-ts2.17.2", Family::TimescaleHa(Some(16))),
            ("crunchydata/crunchy-postgres:centos7-9.5-1.2.6", Family::Crunchy),
            ("crunchydata/crunchy-postgres-gis:centos7-12", Family::Crunchy),
            ("crunchydata/crunchy-postgres-ha:centos8-13.5-4.7.4", Family::Official(None)),
            ("centos/postgresql-96-centos7", Family::RedHat(Some(9))),
            ("registry.redhat.io/rhel9/postgresql-15:1-21", Family::RedHat(Some(15))),
            ("quay.io/sclorg/postgresql-13-c9s:latest", Family::RedHat(Some(13))),
            ("image-registry.openshift-image-registry.svc:5000/openshift/postgresql:12-el8", Family::RedHat(Some(12))),
            ("my/postgresql:16", Family::Official(Some(16))),
            ("", Family::Official(None)),
            (":/@", Family::Official(None)),
        ] {
            assert_eq!(Family::of(image), family, "{image}");
        }
    }

    #[test]
    fn the_official_image_is_known_by_its_name() {
        for image in
            ["postgres", "postgres:17", "docker.io/library/postgres:17@sha256:00", "ecr.aws/docker/library/postgres"]
        {
            assert!(is_official(image), "{image}");
        }
        for image in ["my/postgres:17", "registry:5000/postgres", "postgis/postgis:16-3.4", "postgres-backup", ""] {
            assert!(!is_official(image), "{image}");
        }
    }

    #[test]
    fn a_mirror_has_the_same_repository_below_its_own_name() {
        for image in ["apache/age", "registry:5000/apache/age:1.5@sha256:00", "docker.io/apache/age:latest"] {
            assert!(Reference::of(image).is("apache/age"), "{image}");
        }
        for image in ["age", "my-apache/age", "apache/age/tools", "apache/agent"] {
            assert!(!Reference::of(image).is("apache/age"), "{image}");
        }
    }

    #[test]
    fn from_18_on_the_usual_directory_names_the_version() {
        assert_eq!(Family::of("postgres:17").usual_pgdata(), "/var/lib/postgresql/data");
        assert_eq!(Family::of("postgres:18").usual_pgdata(), "/var/lib/postgresql/18/docker");
    }
}
