//! What an image's name says about what is inside.

/// The families of PostgreSQL images, as far as they differ for pgset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// The official image, what is built on it, and everything unknown.
    Official {
        /// PostgreSQL's major version, where the tag says it.
        major: Option<u32>,
    },
    /// crunchy-postgres*: implements `PG_MODE=set` itself.
    Crunchy,
    /// bitnami's: its own entry point, layout and replication.
    Bitnami,
}

impl Family {
    /// Of an image reference such as `registry:5000/pgvector/pgvector:pg17@sha256:…`.
    pub(crate) fn of(image: &str) -> Self {
        let image = image.split_once('@').map_or(image, |(image, _)| image);
        let (path, last) = image.rsplit_once('/').unwrap_or(("", image));
        let (name, tag) = last.split_once(':').unwrap_or((last, ""));
        if name.starts_with("crunchy-postgres") {
            Self::Crunchy
        } else if name.starts_with("postgresql") && path.split('/').any(|part| part.starts_with("bitnami")) {
            Self::Bitnami
        } else {
            Self::Official { major: major(name, tag) }
        }
    }

    /// The directory that PGDATA is where nobody sets it.
    pub(crate) fn usual_pgdata(self) -> String {
        match self {
            // From 18 on, the official image keeps one directory for each major version.
            Self::Official { major: Some(major) } if major >= 18 => format!("/var/lib/postgresql/{major}/docker"),
            Self::Official { .. } => "/var/lib/postgresql/data".to_owned(),
            Self::Crunchy => "/pgdata".to_owned(),
            Self::Bitnami => "/bitnami/postgresql/data".to_owned(),
        }
    }
}

/// Whether an image reference names Docker's official image itself, not one built on it: `postgres:17`, also by a mirror of all of
/// Docker's official images (`public.ecr.aws/docker/library/postgres`).
pub(crate) fn is_official(image: &str) -> bool {
    let image = image.split_once('@').map_or(image, |(image, _)| image);
    let (path, last) = image.rsplit_once('/').unwrap_or(("", image));
    let name = last.split_once(':').map_or(last, |(name, _)| name);
    name == "postgres" && (path.is_empty() || path.rsplit('/').next() == Some("library"))
}

/// `17-alpine`, `17.2`: the leading number, where the name says that it is PostgreSQL's own version. Elsewhere only
/// `pg17` is sure: timescaledb and pgvector number themselves first.
fn major(name: &str, tag: &str) -> Option<u32> {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok().filter(|major| (8..100).contains(major))
    };
    let marked = tag.split(['-', '_', '.']).find_map(|part| part.strip_prefix("pg").and_then(number));
    let own = name.contains("postgres") || name.contains("postgis") || name.contains("pg-mode-set");
    marked.or_else(|| number(tag).filter(|_| own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_name_says_its_family() {
        let official = |major| Family::Official { major };
        for (image, family) in [
            ("postgres", official(None)),
            ("postgres:latest", official(None)),
            ("postgres:15", official(Some(15))),
            ("docker.io/library/postgres:17.2-alpine@sha256:00", official(Some(17))),
            ("registry:5000/postgres", official(None)),
            ("postgis/postgis:16-3.4", official(Some(16))),
            ("pgvector/pgvector:pg18", official(Some(18))),
            ("pgvector/pgvector:0.8.0-pg17", official(Some(17))),
            ("timescale/timescaledb:2.17.2-pg16", official(Some(16))),
            ("timescale/timescaledb:17.0.0", official(None)),
            ("crunchydata/crunchy-postgres:centos7-9.5-1.2.6", Family::Crunchy),
            ("crunchydata/crunchy-postgres-gis:centos7-12", Family::Crunchy),
            ("bitnami/postgresql:16", Family::Bitnami),
            ("docker.io/bitnamilegacy/postgresql-repmgr:16", Family::Bitnami),
            ("", official(None)),
            (":/@", official(None)),
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
    fn from_18_on_the_usual_directory_names_the_version() {
        assert_eq!(Family::of("postgres:17").usual_pgdata(), "/var/lib/postgresql/data");
        assert_eq!(Family::of("postgres:18").usual_pgdata(), "/var/lib/postgresql/18/docker");
    }
}
