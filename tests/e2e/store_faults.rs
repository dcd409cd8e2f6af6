//! A store on its bad days: no write waits for it, what is wrong is told by its cause, and nothing is lost.

use std::time::{Duration, Instant};

use crate::{
    backup::{MADE, backed_up, listed, password, wait_backups, wait_told},
    lab::{self, Database, END_SEGMENT, Namespace, SOON, START, pgset, wait_until},
    manifests::set,
    proxy::{Mode, Proxy},
    store::{Kind, SECRET_KEY, Server},
};

/// A request is tried again for 20 s before it counts as failed.
const TOLD: Duration = Duration::from_secs(60);

/// Writes, which no store may keep waiting, and counts it. Answers which segment of the WAL it ended.
fn write(db: &Database<'_>, rows: &mut u32) -> String {
    let since = Instant::now();
    *rows += 1;
    db.master(&format!("insert into visits values ({rows})"));
    let segment = db.master(END_SEGMENT);
    assert!(since.elapsed() < SOON, "a write waited for the store: {:?}", since.elapsed());
    segment
}

/// Waits until it is told with the backups and with the set.
fn wait_named(ns: &Namespace<'_>, cause: &str) {
    wait_until(TOLD, &format!("{cause} is told"), || {
        let told = listed(ns, "pgset")?;
        let is_named = told["trouble"].as_str().is_some_and(|trouble| trouble.contains(cause));
        if is_named && told["waiting"].as_u64() >= Some(1) { Ok(()) } else { Err(told.to_string()) }
    });
    // Its exit code says that not all is well.
    let status = pgset(&format!("status sts/pgset -n {}", ns.name)).unwrap_or_else(|said| said).out;
    assert!(status.contains(cause), "{status}");
}

/// What must stand nowhere: the store's key, the database's passwords, and what makes an address let anybody in.
fn secrets(ns: &Namespace<'_>) -> Vec<String> {
    let given = &ns.get("secret pgset-pgset-credentials")["data"];
    let given = given.as_object().unwrap().iter().filter(|(key, _)| key.contains("password"));
    let mut secrets: Vec<_> = given.map(|(_, value)| lab::decoded(value.as_str().unwrap()).unwrap()).collect();
    assert!(!secrets.is_empty());
    secrets.extend([SECRET_KEY, "X-Amz-Signature", "Signature=", "sig="].map(str::to_owned));
    secrets
}

fn assert_untold(secrets: &[String], place: &str, text: &str) {
    for secret in secrets {
        assert!(!text.contains(secret.as_str()), "{secret} stands in {place}:\n{text}");
    }
}

/// Looks for secrets wherever people look who may not know them.
fn assert_no_secret_is_told(ns: &Namespace<'_>, secrets: &[String]) {
    let kinds = "events,leases,statefulsets,pods,jobs,services,endpointslices,configmaps";
    assert_untold(secrets, "objects", &ns.kubectl(&format!("get {kinds} --output=yaml")));
    assert_untold(secrets, "what is told", &listed(ns, "pgset").unwrap().to_string());
    for pod in ns.get("pods")["items"].as_array().unwrap() {
        let pod = pod["metadata"]["name"].as_str().unwrap();
        // One that was taken away meanwhile, or does not run yet, has none.
        let log = ns.try_kubectl(&format!("logs {pod} --all-containers")).map_or_else(|said| said.err, |said| said.out);
        assert_untold(secrets, &format!("{pod}'s log"), &log);
    }
}

/// Looks for secrets in what a member's programs were started with, those of a base backup among them.
fn assert_no_secret_is_an_argument(ns: &Namespace<'_>, pod: &str, secrets: &[String]) {
    let argv = wait_until(MADE, &format!("{pod} makes a base backup"), || {
        let line = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '";
        let argv = ns.shell(pod, "postgres", line).unwrap_or_else(|said| said).out;
        // That of the program that holds the WAL for it, to the end.
        if argv.contains("replication=true") { Ok(argv) } else { Err(argv) }
    });
    assert_untold(secrets, &format!("{pod}'s arguments"), &argv);
}

/// A set with a table whose backups go to a store behind a proxy.
fn with_a_proxy<'a>(ns: &'a Namespace<'_>, ports: [u16; 2]) -> (Server, Proxy, Database<'a>) {
    let mut s3 = Server::start(Kind::Versitygw, ns, "pgset", ports[0]);
    let proxy = Proxy::before(&mut s3, ports[1]);
    for name in ["pgset", "copy"] {
        s3.give(ns, name);
    }
    ns.shared_claim("pgset-pvc");
    ns.apply(&backed_up(set("pgset").replicas(1), &s3.location("db")).manifest());
    wait_backups(ns, "pgset", 1);
    let db = ns.database("pgset");
    db.master("create table visits (n int)");
    (s3, proxy, db)
}

fn restore_copy(ns: &Namespace<'_>, s3: &Server, rows: u32, limit: Duration) {
    ns.apply(&set("copy").replicas(1).annotation("pgset.dev/restore-from", &s3.location("db")).manifest());
    ns.wait_ready_within("copy", 1, limit);
    let copy = ns.database_as("copy", "postgres", &password(ns), "postgres");
    copy.wait_for("copy-master", "select count(*), max(n) from visits", &format!("{rows}|{rows}"));
}

#[test]
#[ignore = "make stores: it takes minutes"]
fn a_base_backup_that_takes_minutes_on_its_way_comes_back() {
    let lab = lab::shared();
    let ns = lab.namespace("slow-store");
    let (s3, proxy, db) = with_a_proxy(&ns, [17077, 17078]);
    let mut rows = 0;
    // Hexadecimal digits, of which two make a byte: 20 MB that no compression makes smaller.
    db.master("create table noise as select md5(n::text) as x from generate_series(1, 1250000) n");
    write(&db, &mut rows);
    pgset(&format!("backup now sts/pgset -n {} --wait", ns.name)).unwrap();
    let told = wait_backups(&ns, "pgset", 2);
    let sum: u64 = told["backups"].as_array().unwrap().iter().filter_map(|it| it["stored"].as_u64()).sum();
    assert!(sum > 20_000_000, "{told}");
    let last = write(&db, &mut rows);
    wait_told(&ns, &last);
    proxy.turn(Mode::Slow);
    let since = Instant::now();
    restore_copy(&ns, &s3, rows, Duration::from_secs(900));
    assert!(since.elapsed() > Duration::from_secs(100), "the store was not slow: {:?}", since.elapsed());
    println!("{sum} bytes came in {:?}", since.elapsed());
}

#[test]
#[ignore = "make stores: it takes a quarter of an hour"]
fn all_that_was_written_while_the_store_was_away_for_ten_minutes_comes_back() {
    const AWAY: Duration = Duration::from_secs(600);
    let lab = lab::shared();
    let ns = lab.namespace("store-away");
    let (mut s3, _proxy, db) = with_a_proxy(&ns, [17079, 17080]);
    let mut rows = 0;
    s3.stop();
    let since = Instant::now();
    let mut last = String::new();
    let mut told = None;
    while since.elapsed() < AWAY {
        last = write(&db, &mut rows);
        if told.is_none() {
            ns.wait_event(START, "pgset", "ArchiveFailing", "files wait on the volume");
            told = Some(since.elapsed());
        }
        std::thread::sleep(Duration::from_secs(5));
    }
    let waiting = listed(&ns, "pgset").unwrap()["waiting"].as_u64().unwrap();
    assert!(waiting >= u64::from(rows) / 2, "{waiting} files wait of {rows}");
    s3.start_again();
    let back = Instant::now();
    wait_told(&ns, &last);
    println!("{rows} segments waited, told after {told:?}, and were stored within {:?}", back.elapsed());
    restore_copy(&ns, &s3, rows, START);
}

#[test]
fn a_store_that_refuses_is_busy_full_or_slow_costs_no_write_is_named_by_its_cause_and_loses_nothing() {
    let lab = lab::shared();
    let ns = lab.namespace("store-faults");
    let mut s3 = Server::start(Kind::Versitygw, &ns, "pgset", 17075);
    let proxy = Proxy::before(&mut s3, 17076);
    for name in ["pgset", "refused", "halfway", "copy"] {
        s3.give(&ns, name);
    }
    ns.shared_claim("pgset-pvc");
    ns.apply(&backed_up(set("pgset").replicas(1), &s3.location("db")).manifest());
    wait_backups(&ns, "pgset", 1);
    let secrets = secrets(&ns);
    let db = ns.database("pgset");
    db.master("create table visits (n int)");
    let mut rows = 0;

    proxy.turn(Mode::OftenBusy);
    wait_told(&ns, &write(&db, &mut rows));
    assert!(listed(&ns, "pgset").unwrap()["trouble"].is_null(), "it was asked again, and that is all");

    for (mode, cause) in [(Mode::Busy, "SlowDown"), (Mode::Full, "XMinioStorageFull"), (Mode::Refuses, "AccessDenied")]
    {
        proxy.turn(mode);
        write(&db, &mut rows);
        wait_named(&ns, cause);
    }
    let restored = |name: &str| {
        ns.apply(&set(name).replicas(1).annotation("pgset.dev/restore-from", &s3.location("db")).manifest());
    };
    restored("refused");
    let backup = |words: &str| pgset(&format!("backup {words} -n {}", ns.name));
    let why = backup("now sts/pgset --wait --timeout 10").unwrap_err().err;
    assert!(why.contains("AccessDenied"), "{why}");
    let verify = "verify sts/pgset --wait --timeout 40 --size 2Gi --memory 300Mi --cpu 10m";
    let why = backup(verify).unwrap_err().err;
    assert!(why.contains("FAILED") && why.contains("AccessDenied"), "{why}");
    ns.wait_event(START, "refused", "RestoreFailed", "AccessDenied");
    ns.wait_event(START, "pgset", "ArchiveFailing", "AccessDenied");
    // What the base backup needs besides it is refused.
    proxy.turn(Mode::RefusesWal);
    restored("halfway");
    ns.wait_event(START, "halfway", "RestoreFailed", "AccessDenied");
    write(&db, &mut rows);
    assert_no_secret_is_told(&ns, &secrets);
    ns.kubectl("delete statefulsets refused halfway --timeout=60s");
    ns.kubectl("delete jobs --all --timeout=60s");

    // The backup that was ordered is still due.
    proxy.turn(Mode::Slow);
    write(&db, &mut rows);
    assert_no_secret_is_an_argument(&ns, "pgset-0", &secrets);
    let last = write(&db, &mut rows);
    wait_backups(&ns, "pgset", 2);
    wait_told(&ns, &last);
    wait_until(TOLD, "all is well", || {
        let told = listed(&ns, "pgset")?;
        if told["trouble"].is_null() { Ok(()) } else { Err(told.to_string()) }
    });
    restored("copy");
    ns.wait_ready("copy", 1);
    let copy = ns.database_as("copy", "postgres", &password(&ns), "postgres");
    copy.wait_for("copy-master", "select count(*), max(n) from visits", &format!("{rows}|{rows}"));
    assert_no_secret_is_told(&ns, &secrets);
}
