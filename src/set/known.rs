//! Images that people run PostgreSQL from: what each brings that the template does not say. Where a name says nothing, an image is
//! taken for one that is built on Docker's official image.

use super::image::{Family, Reference, is_official};

/// An image that the agent can run.
#[derive(Debug)]
struct Known {
    /// The end of its repository.
    repository: &'static str,
    /// What its CMD has behind `postgres`: the CMD is lost as soon as the container has a `command`.
    arguments: &'static [&'static str],
}

const fn plain(repository: &'static str) -> Known {
    Known { repository, arguments: &[] }
}

const fn with_arguments(repository: &'static str, arguments: &'static [&'static str]) -> Known {
    Known { repository, arguments }
}

/// Each by its own Dockerfile, read in November 2026; those without arguments write what they need into `postgresql.conf.sample`.
const KNOWN: [Known; 16] = [
    // github.com/apache/age, docker/Dockerfile
    with_arguments("apache/age", &["-c", "shared_preload_libraries=age"]),
    // github.com/tensorchord/pgvecto.rs, docker/pgvecto-rs.Dockerfile
    with_arguments(
        "tensorchord/pgvecto-rs",
        &["-c", "shared_preload_libraries=vectors.so", "-c", "search_path=\"$user\", public, vectors"],
    ),
    // github.com/tensorchord/VectorChord, docker/Dockerfile
    with_arguments("tensorchord/vchord-postgres", &["-c", "shared_preload_libraries=vchord"]),
    // github.com/supabase/postgres, Dockerfile-17: CMD ["postgres", "-D", "/etc/postgresql"], whose postgresql.conf names every other file.
    with_arguments("supabase/postgres", &["-c", "config_file=/etc/postgresql/postgresql.conf"]),
    // github.com/immich-app/base-images, postgres/Dockerfile. Its own entry point writes that file, and then runs the official one.
    with_arguments("immich-app/postgres", &["-c", "config_file=/etc/postgresql/postgresql.conf"]),
    plain("paradedb/paradedb"),         // github.com/paradedb/paradedb, docker/Dockerfile
    plain("citusdata/citus"),           // github.com/citusdata/docker, Dockerfile
    plain("timescale/timescaledb"),     // github.com/timescale/timescaledb-docker, Dockerfile
    plain("timescale/timescaledb-ha"),  // github.com/timescale/timescaledb-docker-ha, Dockerfile: CMD ["postgres"]
    plain("postgis/postgis"),           // github.com/postgis/docker-postgis, Dockerfile.template
    plain("mdillon/postgis"),           // the same under its first owner's name
    plain("pgvector/pgvector"),         // github.com/pgvector/pgvector, Dockerfile
    plain("ankane/pgvector"),           // the same under its first owner's name
    plain("debezium/postgres"),         // github.com/debezium/container-images, postgres
    plain("debezium/example-postgres"), // the same, with tables
    plain("cloudnative-pg/postgresql"), // github.com/cloudnative-pg/postgres-containers: no entry point at all
];

/// What an image's CMD has behind `postgres`; `None` if nobody knows.
pub(crate) fn arguments(image: &str) -> Option<&'static [&'static str]> {
    let reference = Reference::of(image);
    let known = KNOWN.iter().find(|known| reference.is(known.repository)).map(|known| known.arguments);
    let is_plain = is_official(image) || is_red_hats(&reference);
    known.or(is_plain.then_some(&[]))
}

/// Red Hat's images, which are sclorg's (github.com/sclorg/postgresql-container): by the folders that they are found in.
pub(crate) fn is_red_hats(reference: &Reference<'_>) -> bool {
    const FOLDERS: [&str; 9] = ["rhscl", "rhel7", "rhel8", "rhel9", "rhel10", "sclorg", "centos", "centos7", "fedora"];
    let is_in = |folders: &[&str]| reference.folders().any(|folder| folders.contains(&folder));
    (reference.name.starts_with("postgresql-") && is_in(&FOLDERS))
        || (reference.name == "postgresql" && is_in(&["openshift"]))
}

/// The words of a command behind the entry points that it begins with.
pub(crate) fn after_entry_points<S: AsRef<str>>(words: &[S]) -> &[S] {
    let entry_points = words.iter().take_while(|word| is_entry_point(word.as_ref())).count();
    words.get(entry_points..).unwrap_or_default()
}

/// A program that hands over to `postgres` behind it, by whatever path: the agent does what it does, or runs it itself.
fn is_entry_point(program: &str) -> bool {
    const ENTRY_POINTS: [&str; 4] =
        ["docker-entrypoint.sh", "immich-docker-entrypoint.sh", "container-entrypoint", "run-postgresql"];
    ENTRY_POINTS.contains(&name_of(program))
}

/// A command's program without its path.
pub(crate) fn name_of(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// Whether PostgreSQL is in an image, by its name.
pub(crate) fn is_postgresql(image: &str) -> bool {
    const WORDS: [&str; 10] = [
        "postgres",
        "postgis",
        "pgvector",
        "pgvecto",
        "vchord",
        "timescaledb",
        "spilo",
        "patroni",
        "stolon",
        "paradedb",
    ];
    /// What stands beside a server and is called after it.
    const OTHERS: [&str; 22] = [
        "exporter",
        "backup",
        "bouncer",
        "pool",
        "admin",
        "operator",
        "client",
        "dump",
        "restore",
        "wal-g",
        "walg",
        "barman",
        "backrest",
        "monitor",
        "metrics",
        "proxy",
        "postgrest",
        "migrat",
        "cron",
        "sidecar",
        "watch",
        "init",
    ];
    let reference = Reference::of(image);
    let has = |words: &[&str]| words.iter().any(|word| reference.name.contains(word));
    let is_known = arguments(image).is_some() || Family::of(image) == Family::Crunchy;
    is_known || (has(&WORDS) && !has(&OTHERS))
}

/// A program that starts, replicates and promotes PostgreSQL itself, or scripts that do.
#[derive(Debug)]
pub(crate) struct Manager {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Parts of the repositories of its images.
    repositories: &'static [&'static str],
    /// How the variables begin that tell it what to do.
    variables: &'static [&'static str],
    /// Its programs.
    programs: &'static [&'static str],
    /// Where its images keep their data, if no other image does.
    mount: Option<&'static str>,
}

const fn by_image(name: &'static str, repositories: &'static [&'static str]) -> Manager {
    Manager { name, repositories, variables: &[], programs: &[], mount: None }
}

/// The more telling ones first: Spilo is full of Patroni, and bitnami's and `PostDock`'s images of repmgr.
pub(crate) const MANAGERS: [Manager; 11] = [
    Manager { variables: &["SPILO_"], ..by_image("Spilo", &["spilo"]) },
    Manager {
        variables: &["PATRONI_"],
        programs: &["patroni", "patroni.py", "patroni_entrypoint.sh", "timescaledb_entrypoint.sh"],
        ..by_image("Patroni", &["patroni"])
    },
    // The images of Crunchy's operator have Patroni in them.
    by_image(
        "Patroni",
        &["crunchy-postgres-ha", "crunchy-postgres-gis-ha", "crunchy-postgres-appdev-ha", "postgres-ha"],
    ),
    Manager { variables: &["STKEEPER_", "STOLON_"], programs: &["stolon-keeper"], ..by_image("Stolon", &["stolon"]) },
    by_image("PostDock, with repmgr", &["postdock", "paunin/postgresql-cluster"]),
    Manager { variables: &["REPMGR_"], programs: &["repmgrd"], ..by_image("repmgr", &["repmgr"]) },
    Manager {
        variables: &["PG_AUTOCTL_"],
        programs: &["pg_autoctl"],
        ..by_image("pg_auto_failover", &["pg_auto_failover", "pg-auto-failover", "pgautofailover", "pg_autoctl"])
    },
    Manager { mount: Some("/bitnami"), ..by_image("bitnami's scripts", &["bitnami"]) },
    by_image("kartoza's scripts", &["kartoza/postgis"]),
    by_image("sameersbn's scripts", &["sameersbn/postgresql"]),
    by_image("KubeDB", &["kubedb/postgres"]),
];

impl Manager {
    /// Whether it is in an image of this name.
    pub(crate) fn is_in(&self, image: &str) -> bool {
        let repository = Reference::of(image).repository;
        self.repositories.iter().any(|part| repository.contains(part))
    }

    /// Whether a variable tells it something.
    pub(crate) fn reads(&self, variable: &str) -> bool {
        self.variables.iter().any(|start| variable.starts_with(start))
    }

    /// Whether it is started by a word of a command, which may be a script.
    pub(crate) fn is_started_by(&self, word: &str) -> bool {
        word.split([' ', '\n', '\t', ';', '&', '"', '\'']).any(|part| self.programs.contains(&name_of(part)))
    }

    /// Whether it keeps its data at a mount.
    pub(crate) fn is_mounted_at(&self, mount_path: &str) -> bool {
        self.mount.is_some_and(|mount| mount_path.starts_with(mount))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_images_arguments_are_kept_and_a_strangers_are_unknown() {
        let age: Option<&[&str]> = Some(&["-c", "shared_preload_libraries=age"]);
        for (image, known) in [
            ("apache/age:release_PG16_1.5.0", age),
            ("docker.io/apache/age", age),
            ("postgres:17", Some(&[])),
            ("docker.io/library/postgres:17", Some(&[])),
            ("timescale/timescaledb:latest-pg16", Some(&[])),
            ("quay.io/sclorg/postgresql-15-c9s", Some(&[])),
            ("my/postgres:stable", None),
            ("my/age:1", None),
        ] {
            assert_eq!(arguments(image), known, "{image}");
        }
    }

    #[test]
    fn a_name_says_whether_postgresql_is_in_an_image() {
        for image in [
            "postgres:9.6",
            "registry.gitlab.com/acme/infra/postgres-custom:15",
            "postgis/postgis:16-3.4",
            "timescale/timescaledb-ha:pg16",
            "ghcr.io/zalando/spilo-15:3.0-p1",
            "docker.io/bitnamilegacy/postgresql-repmgr:16",
            "tensorchord/pgvecto-rs:pg14-v0.2.0",
            "apache/age",
            "citusdata/citus:12",
        ] {
            assert!(is_postgresql(image), "{image}");
        }
        for image in [
            "prometheuscommunity/postgres-exporter",
            "wrouesnel/postgres_exporter:v0.8.0",
            "prodrigestivill/postgres-backup-local:15",
            "bitnami/pgbouncer",
            "edoburu/pgbouncer:1.20",
            "dpage/pgadmin4",
            "postgrest/postgrest",
            "redis:7",
            "busybox",
            "",
        ] {
            assert!(!is_postgresql(image), "{image}");
        }
    }

    #[test]
    fn a_cluster_manager_is_known_by_its_images() {
        let manager = |image| MANAGERS.iter().find(|manager| manager.is_in(image)).map(|manager| manager.name);
        for (image, name) in [
            ("registry.opensource.zalan.do/acid/spilo-14:2.1-p5", Some("Spilo")),
            ("patroni/patroni:3.2.2-bookworm", Some("Patroni")),
            ("registry.developers.crunchydata.com/crunchydata/crunchy-postgres-ha:centos8-13.5-4.7.4", Some("Patroni")),
            ("sorintlab/stolon:v0.16.0-pg10", Some("Stolon")),
            ("postdock/postgres:1.11-postgres11-repmgr40", Some("PostDock, with repmgr")),
            ("docker.io/bitnamilegacy/postgresql-repmgr:16", Some("repmgr")),
            ("citusdata/pg_auto_failover:v2.0", Some("pg_auto_failover")),
            ("docker.io/bitnamilegacy/postgresql:16", Some("bitnami's scripts")),
            ("harbor.example/mirror/bitnami/postgresql:16", Some("bitnami's scripts")),
            ("harbor.example/bitnami-postgresql:16", Some("bitnami's scripts")),
            ("kartoza/postgis:14-3.2", Some("kartoza's scripts")),
            ("postgres:16", None),
            ("crunchydata/crunchy-postgres:centos7-12.4-4.4.2", None),
            ("timescale/timescaledb-ha:pg12.6-ts2.0.1-p0", None),
        ] {
            assert_eq!(manager(image), name, "{image}");
        }
    }

    #[test]
    fn a_cluster_manager_is_known_by_what_it_is_told() {
        let patroni = &MANAGERS[1];
        assert!(patroni.reads("PATRONI_SCOPE") && !patroni.reads("PGDATA"));
        assert!(patroni.is_started_by("exec /usr/bin/patroni /etc/patroni.yaml"));
        assert!(!patroni.is_started_by("cat /etc/patroni.yaml"));
    }
}
