//! Former masters come back, with real servers of PostgreSQL, on loopback.

use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use nix::unistd::{User, geteuid};

use super::super::place::Place;
use super::super::settings::Authentication;
use super::super::sql::Sql;
use super::*;
use crate::agent::data::Origin;
use crate::election::candidate::Standing;
use crate::election::{self, Action, Lease, Observation, PostgresState};

const REPLICATION: &str = "pgset_replication";
const PASSWORD: &str = "a secret";
const SOON: Duration = Duration::from_secs(30);

/// Set where a test runs in a process of its own.
const AGAIN: &str = "REWIND_TESTS_RUN_AS_THEY_SHOULD";

/// The programs of PostgreSQL, in a process that they run in: all of them are found from its PATH, and it is not root's, for whom they do
/// not run. The test runs once more in such a one. Absent in the first one, and, with the reason told, where there is no PostgreSQL.
fn binaries(test: &str) -> Option<Binaries> {
    let Ok(binaries) = Binaries::find(None) else {
        eprintln!("left out: there is no PostgreSQL here");
        return None;
    };
    if std::env::var_os(AGAIN).is_some() {
        return Some(binaries);
    }
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    // Where only some of them are linked into PATH.
    let directory = fs::canonicalize(binaries.path("postgres")).unwrap().parent().unwrap().to_owned();
    let path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", &name, "--nocapture"]).current_dir("/").env(AGAIN, "1");
    again.env("PATH", std::env::join_paths([directory].into_iter().chain(path)).unwrap());
    if geteuid().is_root() {
        let Some(user) = User::from_name("postgres").unwrap() else {
            eprintln!("left out: PostgreSQL does not run as root, and there is no user postgres");
            return None;
        };
        again.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    None
}

/// Two servers: `a`, which was the master, and `b`, which was its replica.
struct Set {
    root: tempfile::TempDir,
    binaries: Binaries,
    processes: Processes,
    a: DataDirectory,
    ports: [u16; 2],
}

#[derive(Clone, Copy, Default)]
struct Made {
    hints: bool,
    /// As much WAL as the agent has a server keep.
    keeps_wal: bool,
    /// PGDATA holds what is not the database's: the other members' directories.
    inside: bool,
}

const A: usize = 0;
const B: usize = 1;

impl Set {
    /// `a` is the master and `b` streams from it.
    async fn new(binaries: Binaries, made: Made) -> Self {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        fs::create_dir(&volume).unwrap();
        let real = volume.join("a");
        fs::create_dir(&real).unwrap();
        // A link, as people have them.
        symlink(&real, root.path().join("a")).unwrap();
        let members = made.inside.then(|| root.path().join("a/pgsql_tmp.pgset"));
        let place = Place { directory: root.path().join("a"), volume: None, members, searched: None };
        let a = DataDirectory::open(&place).unwrap();
        let ports = [0; 2].map(|_: u16| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let set = Self { root, binaries, processes: Processes::default(), a, ports };

        set.run("initdb", &["-D", &set.path(A), "--username=postgres", "--auth=trust", "--no-sync"]);
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nwal_log_hints = {}\nfsync = off\nmin_wal_size = 32MB\n\
             wal_keep_size = {}\n",
            set.root.path().display(),
            if made.hints { "on" } else { "off" },
            if made.keeps_wal { "256MB" } else { "0" },
        );
        let file = set.a.path().join("postgresql.conf");
        fs::write(&file, fs::read_to_string(&file).unwrap() + &settings).unwrap();
        let own = "local all postgres trust\nlocal replication postgres trust\n";
        fs::write(set.a.path().join("pg_hba.conf"), own.to_owned() + &settings::access_rules(REPLICATION)).unwrap();
        set.start(A);
        for statement in sql::agent_role(PASSWORD).lines() {
            set.sql(A, statement);
        }
        let agent = Sql::connect(set.root.path(), ports[A], PASSWORD).await.unwrap();
        agent.ensure_replication_role(REPLICATION, PASSWORD).await.unwrap();
        let passfile = settings::passfile_line(REPLICATION, PASSWORD);
        settings::write(&set.root.path().join("passfile"), &passfile).unwrap();
        set.sql(A, "CREATE TABLE rows AS SELECT i FROM generate_series(1, 50000) i");

        let port = ports[A].to_string();
        set.run("pg_basebackup", &["-h", set.root(), "-p", &port, "-U", "postgres", "-D", &set.path(B), "-c", "fast"]);
        let text = format!("primary_conninfo = '{}'\n", set.connection(A, "db-1").replace('\'', "''"));
        fs::write(Path::new(&set.path(B)).join(settings::AUTO_FILE), text).unwrap();
        fs::write(Path::new(&set.path(B)).join("standby.signal"), "").unwrap();
        set.start(B);
        set.wait_for(A, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'", "1");
        if made.inside {
            fs::create_dir_all(set.a.path().join("pgsql_tmp.pgset/db-1/data")).unwrap();
            fs::write(set.a.path().join("pgsql_tmp.pgset/db-1/data/PG_VERSION"), "15\n").unwrap();
            fs::create_dir(set.a.path().join("lost+found")).unwrap();
        }
        set
    }

    /// `b` is promoted and goes on, and so does `a` beside it.
    fn part(&self) {
        self.sql(B, "SELECT pg_promote()");
        self.sql(B, "CHECKPOINT");
        self.sql(B, "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (\"db-0\")'");
        self.sql(B, "INSERT INTO rows VALUES (-1)");
        self.sql(A, "INSERT INTO rows SELECT -2 FROM generate_series(1, 1000)");
        self.sql(A, "UPDATE rows SET i = i + 1000000 WHERE i = 7");
    }

    fn root(&self) -> &str {
        self.root.path().to_str().unwrap()
    }

    fn path(&self, server: usize) -> String {
        if server == A { self.a.path().to_str().unwrap().to_owned() } else { format!("{}/b", self.root()) }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.try_to_run(program, arguments).unwrap_or_else(|why| panic!("{program} {arguments:?}: {why}"))
    }

    fn try_to_run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(self.binaries.path(program)).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn start(&self, server: usize) {
        let (port, log) = (format!("-p {}", self.ports[server]), format!("{}/log-{server}", self.root()));
        let started = self.try_to_run(
            "pg_ctl",
            &["start", "-w", "-s", "-t", "20", "-D", &self.path(server), "-o", &port, "-l", &log],
        );
        assert!(started.is_ok(), "{started:?}\n{}", fs::read_to_string(log).unwrap_or_default());
    }

    fn stop(&self, server: usize, how: &str) {
        self.run("pg_ctl", &["stop", "-w", "-s", "-D", &self.path(server), "-m", how]);
    }

    fn sql(&self, server: usize, statement: &str) -> String {
        let port = self.ports[server].to_string();
        self.run("psql", &["-X", "-At", "-h", self.root(), "-p", &port, "-U", "postgres", "-c", statement, "postgres"])
    }

    fn wait_for(&self, server: usize, question: &str, answer: &str) {
        let until = Instant::now() + SOON;
        while self.sql(server, question) != answer {
            let log = || fs::read_to_string(format!("{}/log-{A}", self.root())).unwrap_or_default();
            assert!(Instant::now() < until, "{question}: {}\n{}", self.sql(server, question), log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn master(&self) -> Master {
        let control = self.sql(B, "SELECT system_identifier FROM pg_control_system()");
        Master {
            pod: "db-1".into(),
            address: "127.0.0.1".into(),
            port: self.ports[B],
            system: SystemIdentifier(control.parse().unwrap()),
            timeline: 2,
            oldest_wal: None,
            begins: None,
        }
    }

    fn connection(&self, server: usize, name: &str) -> String {
        let master = Master {
            pod: "any".into(),
            address: "127.0.0.1".into(),
            port: self.ports[server],
            system: SystemIdentifier(0),
            timeline: 1,
            oldest_wal: None,
            begins: None,
        };
        let passfile = self.root.path().join("passfile");
        settings::connection(&master, REPLICATION, &passfile, name, Authentication::Any)
    }

    async fn rewind(&self) -> Result<Outcome> {
        let master = self.master();
        self.prepared(&master).perform().await
    }

    fn prepared<'a>(&'a self, master: &'a Master) -> Rewind<'a> {
        Rewind {
            binaries: &self.binaries,
            processes: &self.processes,
            data: &self.a,
            arguments: &[],
            master,
            source: self.connection(B, "clone_db-0"),
            following: self.connection(B, "db-0"),
            slot: "pgset_db_0".into(),
        }
    }

    async fn distance(&self) -> Distance {
        match self.rewind().await.unwrap() {
            Outcome::Rewound(distance) => distance,
            Outcome::Impossible(why) => panic!("{why}"),
        }
    }

    async fn data(&self) -> DataState {
        self.a.inspect(&self.binaries, &self.processes).await
    }

    async fn decide(&self) -> Action {
        let lease = Lease::HeldByOther { master: Some(self.master()) };
        election::decide(&Observation {
            lease,
            data: self.data().await,
            server: PostgresState::Stopped,
            first: true,
            standing: Standing::default(),
        })
    }

    /// As [`super::super::provisioner::Provisioner::clone_from`] does it.
    async fn reinitialize(&self) {
        let staging = self.a.new_staging().unwrap();
        let source = self.connection(B, "clone_db-0");
        reserve_slot(&self.binaries, &self.processes, &source, "pgset_db_0").await.unwrap();
        self.run("pg_basebackup", &["-D", staging.to_str().unwrap(), "-d", &source, "-c", "fast"]);
        write_following(&staging, &self.connection(B, "db-0"), "pgset_db_0").unwrap();
        fs::write(staging.join("standby.signal"), "").unwrap();
        self.a.install(Origin::Clone(self.master().system)).unwrap();
    }

    /// `a` streams from `b`, and has what that has.
    async fn assert_follows(&self) {
        assert_eq!(self.decide().await, Action::StartReplica(self.master()));
        self.start(A);
        self.sql(B, "INSERT INTO rows VALUES (-3)");
        self.wait_for(B, "SELECT state FROM pg_stat_replication WHERE application_name = 'db-0'", "streaming");
        self.wait_for(A, "SELECT count(*) FROM rows WHERE i = -3", "1");
        let rows = "SELECT count(*), sum(i), md5(string_agg(i::text, ',' ORDER BY i)) FROM rows";
        assert_eq!(self.sql(A, rows), self.sql(B, rows));
        assert_eq!(self.sql(A, "SELECT count(*) FROM rows WHERE i = -2"), "0");
        assert_eq!(self.sql(A, "SELECT received_tli FROM pg_stat_wal_receiver"), "2");
        assert_eq!(self.sql(B, "SELECT active FROM pg_replication_slots WHERE slot_name = 'pgset_db_0'"), "t");
        self.stop(A, "fast");
    }

    fn kept(&self, suffix: &str) -> PathBuf {
        let inside = self.a.path().join(suffix);
        if inside.exists() { inside } else { PathBuf::from(format!("{}{suffix}", self.a.path().display())) }
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        for server in [A, B] {
            let _ = self.try_to_run("pg_ctl", &["stop", "-s", "-D", &self.path(server), "-m", "immediate"]);
        }
    }
}

#[tokio::test]
async fn a_former_master_is_rewound_streams_and_has_the_masters_rows() {
    let Some(binaries) = binaries("a_former_master_is_rewound_streams_and_has_the_masters_rows") else { return };
    for (inside, how) in [(false, "immediate"), (true, "fast")] {
        // A checkpoint of the former master throws away WAL that a rewind needs; one that crashed has made none.
        let keeps_wal = how == "fast";
        let set = Set::new(binaries.clone(), Made { hints: true, keeps_wal, inside }).await;
        set.part();
        set.stop(A, how);
        assert_eq!(set.decide().await, Action::Rewind(set.master()));

        let distance = set.distance().await;
        assert_eq!((distance.timeline, distance.masters), (1, 2));
        assert!(distance.bytes().is_some_and(|bytes| (50_000..5_000_000).contains(&bytes)), "{distance:?}");
        assert!(distance.to_string().contains("bytes of WAL of its own on timeline 1"), "{distance}");
        set.assert_follows().await;

        assert!(set.kept(".pgset-diverged").join("pg_control").is_file(), "kept until it streams");
        set.a.release_kept(set.master().system).unwrap();
        assert!(!set.kept(".pgset-diverged").exists());
        if inside {
            assert!(set.a.path().join("pgsql_tmp.pgset/db-1/data/PG_VERSION").is_file(), "another member's data");
            assert!(set.a.path().join("lost+found").is_dir());
        }
        assert!(fs::symlink_metadata(set.root.path().join("a")).unwrap().is_symlink());
        let settings = fs::read_to_string(set.a.path().join(settings::AUTO_FILE)).unwrap();
        assert!(!settings.contains("synchronous_standby_names"), "{settings}");
        assert!(settings.contains("application_name=db-0") && !settings.contains(PASSWORD), "{settings}");
    }
}

#[tokio::test]
async fn wal_that_the_master_has_thrown_away_is_not_missing_after_the_rewind() {
    let Some(binaries) = binaries("wal_that_the_master_has_thrown_away_is_not_missing_after_the_rewind") else {
        return;
    };
    let set = Set::new(binaries, Made { hints: true, ..Made::default() }).await;
    set.sql(A, "CHECKPOINT");
    let begins = set.sql(A, "SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()");
    for _ in 0..5 {
        set.sql(A, "INSERT INTO rows SELECT i FROM generate_series(1, 50000) i");
        set.sql(A, "SELECT pg_switch_wal()");
    }
    set.wait_for(A, "SELECT pg_current_wal_lsn() = replay_lsn FROM pg_stat_replication", "t");
    set.part();
    let has = |server, name: &str| Path::new(&set.path(server)).join("pg_wal").join(name).exists();
    assert!(!has(B, &begins) && has(A, &begins), "the master has {begins}");
    set.stop(A, "immediate");
    set.distance().await;
    assert!(has(A, &begins));
    set.assert_follows().await;
}

#[tokio::test]
async fn a_master_that_lacks_wal_since_the_two_parted_is_no_help() {
    let Some(binaries) = binaries("a_master_that_lacks_wal_since_the_two_parted_is_no_help") else { return };
    let set = Set::new(binaries, Made { hints: true, ..Made::default() }).await;
    set.part();
    for _ in 0..3 {
        set.sql(B, "INSERT INTO rows VALUES (-4)");
        set.sql(B, "SELECT pg_switch_wal()");
        set.sql(B, "CHECKPOINT");
    }
    set.stop(A, "immediate");
    let Outcome::Impossible(why) = set.rewind().await.unwrap() else { panic!("it was rewound") };
    assert!(why.contains("db-1 has WAL from 0/6000000 on only"), "{why}");
    assert_eq!(set.decide().await, Action::Rewind(set.master()), "it is whole");
}

#[tokio::test]
async fn a_rewind_that_was_killed_half_way_is_known_and_the_member_is_cloned_anew() {
    let Some(binaries) = binaries("a_rewind_that_was_killed_half_way_is_known_and_the_member_is_cloned_anew") else {
        return;
    };
    for inside in [false, true] {
        let set = Set::new(binaries.clone(), Made { hints: true, keeps_wal: true, inside }).await;
        set.part();
        set.stop(A, "fast");
        {
            let master = set.master();
            let prepared = set.prepared(&master);
            let mut rewind = std::pin::pin!(prepared.perform());
            let began = async {
                while !set.kept(".pgset-rewinding").is_dir() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            tokio::select! {
                biased;
                () = began => {}
                outcome = &mut rewind => panic!("it was too quick: {outcome:?}"),
            }
        }
        assert!(set.kept(".pgset-rewinding").is_dir());
        // What the next life of the agent does before it looks.
        fs::create_dir_all(set.a.path()).unwrap();
        set.a.recover().unwrap();
        assert_eq!(set.data().await, DataState::HalfRewound { system: set.master().system });
        assert_eq!(set.decide().await, Action::Reinitialize(set.master()));
        fs::set_permissions(set.a.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        set.reinitialize().await;
        assert!(set.kept(".pgset-old").is_dir(), "kept until the clone streams");
        set.assert_follows().await;
    }
}

#[tokio::test]
async fn two_members_that_wrote_one_timeline_are_no_case_for_a_rewind() {
    let Some(binaries) = binaries("two_members_that_wrote_one_timeline_are_no_case_for_a_rewind") else { return };
    let set = Set::new(binaries, Made { hints: true, ..Made::default() }).await;
    set.part();
    set.stop(A, "fast");
    set.a.mark_standby().unwrap();
    set.start(A);
    set.sql(A, "SELECT pg_promote()");
    set.sql(A, "CHECKPOINT");
    set.stop(A, "fast");

    assert_eq!(set.decide().await, Action::Reinitialize(set.master()));
    let outcome = set.prepared(&set.master()).pg_rewind(set.a.path(), &["--dry-run"]).await;
    assert!(outcome.is_ok(), "pg_rewind sees that there is something to rewind: {outcome:?}");
    set.reinitialize().await;
    set.assert_follows().await;
}

#[tokio::test]
async fn wal_that_nobody_has_any_more_is_said_so_and_the_data_is_as_it_was() {
    let Some(binaries) = binaries("wal_that_nobody_has_any_more_is_said_so_and_the_data_is_as_it_was") else { return };
    let set = Set::new(binaries, Made { hints: true, ..Made::default() }).await;
    set.part();
    set.stop(A, "fast");
    let before = set.data().await;
    let Outcome::Impossible(why) = set.rewind().await.unwrap() else { panic!("it was rewound") };
    assert!(why.contains("could not find previous WAL record"), "{why}");
    assert_eq!(set.data().await, before);
}

#[tokio::test]
async fn without_checksums_and_hints_it_is_said_so_and_the_data_is_as_it_was() {
    let Some(binaries) = binaries("without_checksums_and_hints_it_is_said_so_and_the_data_is_as_it_was") else {
        return;
    };
    for inside in [false, true] {
        let set = Set::new(binaries.clone(), Made { inside, ..Made::default() }).await;
        set.part();
        set.stop(A, "fast");
        let before = set.data().await;
        let Outcome::Impossible(why) = set.rewind().await.unwrap() else { panic!("it was rewound") };
        assert!(why.contains("wal_log_hints") && why.contains("bytes of WAL of its own"), "{why}");
        assert_eq!(set.data().await, before);
        assert_eq!(set.decide().await, Action::Rewind(set.master()), "it is whole, and may lead if the master is lost");
    }
}

#[tokio::test]
async fn a_master_that_stopped_after_its_last_replica_had_everything_follows_as_it_is() {
    let Some(binaries) = binaries("a_master_that_stopped_after_its_last_replica_had_everything_follows_as_it_is")
    else {
        return;
    };
    let set = Set::new(binaries, Made::default()).await;
    set.stop(A, "fast");
    set.sql(B, "SELECT pg_promote()");
    set.sql(B, "CHECKPOINT");
    set.sql(B, "INSERT INTO rows VALUES (-1)");
    assert_eq!(set.distance().await.bytes(), Some(0));
    set.assert_follows().await;
}

#[tokio::test]
async fn nobody_is_rewound_before_the_master_has_finished_its_checkpoint() {
    let Some(binaries) = binaries("nobody_is_rewound_before_the_master_has_finished_its_checkpoint") else { return };
    let set = Set::new(binaries, Made { hints: true, ..Made::default() }).await;
    // So much to write that the checkpoint takes its time.
    set.sql(A, "INSERT INTO rows SELECT i FROM generate_series(1, 50000) i");
    set.wait_for(A, "SELECT pg_current_wal_lsn() = replay_lsn FROM pg_stat_replication", "t");
    set.sql(B, "SELECT pg_promote()");
    set.stop(A, "immediate");
    let why = set.rewind().await.unwrap_err().to_string();
    assert!(why.contains("has not finished the checkpoint after its promotion"), "{why}");
    set.sql(B, "CHECKPOINT");
    set.distance().await;
    set.assert_follows().await;
}

#[tokio::test]
async fn the_replication_role_reaches_the_agents_database_and_no_other() {
    let Some(binaries) = binaries("the_replication_role_reaches_the_agents_database_and_no_other") else { return };
    let set = Set::new(binaries, Made::default()).await;
    let ask = |database: &str, statement: &str| {
        let connection = format!("{} dbname={database}", set.connection(A, "anybody"));
        set.try_to_run("psql", &["-X", "-At", "-w", "-d", &connection, "-c", statement])
    };
    assert_eq!(ask("postgres", "SELECT (pg_stat_file('PG_VERSION', true)).isdir").as_deref(), Ok("f"));
    for refused in ["SELECT pg_read_file('PG_VERSION')", "TABLE rows", "SELECT pg_read_binary_file('/etc/passwd')"] {
        assert!(ask("postgres", refused).is_err(), "{refused}");
    }
    assert!(ask("template1", "SELECT 1").unwrap_err().contains("no pg_hba.conf entry"));
}

#[tokio::test]
async fn a_promotion_passes_over_a_number_that_another_may_have_and_everybody_follows() {
    let Some(binaries) = binaries("a_promotion_passes_over_a_number_that_another_may_have_and_everybody_follows")
    else {
        return;
    };
    let set = Set::new(binaries, Made { hints: true, keeps_wal: true, ..Made::default() }).await;
    set.stop(A, "fast");
    let b = Place { directory: PathBuf::from(set.path(B)), volume: None, members: None, searched: None };
    let b = DataDirectory::open(&b).unwrap();
    let agent = Sql::connect(set.root.path(), set.ports[B], PASSWORD).await.unwrap();
    let until = Instant::now() + SOON;
    let from = loop {
        let facts = agent.standby_facts().await.unwrap();
        if let Some(position) = facts.position.filter(|_| facts.receiver.is_none()) {
            break position;
        }
        assert!(Instant::now() < until, "{facts:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    b.pass_over_timelines(from, 4).unwrap();
    set.sql(B, "SELECT pg_promote()");
    set.sql(B, "CHECKPOINT");
    assert_eq!(set.sql(B, "SELECT timeline_id FROM pg_control_checkpoint()"), "4");
    // As it is with data that was cloned.
    fs::remove_file(b.path().join("pg_wal/00000003.history")).unwrap();
    b.complete_histories(4).unwrap();

    let master = Master { timeline: 4, ..set.master() };
    write_following(set.a.path(), &set.connection(B, "db-0"), "").unwrap();
    fs::write(set.a.path().join("standby.signal"), "").unwrap();
    set.start(A);
    set.sql(B, "INSERT INTO rows VALUES (-3)");
    set.wait_for(A, "SELECT count(*) FROM rows WHERE i = -3", "1");
    assert_eq!(set.sql(A, "SELECT received_tli FROM pg_stat_wal_receiver"), master.timeline.to_string());
}
