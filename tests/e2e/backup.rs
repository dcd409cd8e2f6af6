//! Backups: turned on without a restart, with no hole through changes of the master, and restored to any moment of them.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    lab::{self, Database, END_SEGMENT, Namespace, SOON, START, open_to_all, pgset, wait_until},
    manifests::{Set, plain, set},
    store::{Kind, SECRET_KEY, Server},
};

/// How long a base backup of a database without rows may take, with the segment that it ends with.
pub(crate) const MADE: Duration = Duration::from_secs(180);

/// A directory that all members see at `/backup`.
pub(crate) fn store(ns: &Namespace<'_>) -> PathBuf {
    let directory = ns.export().join("backups");
    open_to_all(&directory);
    ns.claim_on("backups", &directory);
    directory
}

pub(crate) fn mounted(set: Set) -> Set {
    set.shared_volume("backups", "backups", "/backup")
}

pub(crate) fn backed_up(set: Set, to: &str) -> Set {
    set.annotation("pgset.dev/backup", to).annotation("pgset.dev/archive-timeout", "5s")
}

/// What `pgset backup list -o json` says.
pub(crate) fn listed(ns: &Namespace<'_>, set: &str) -> Result<Value, String> {
    let said = pgset(&format!("backup list sts/{set} -n {} -o json", ns.name)).map_err(|said| said.err)?;
    serde_json::from_str(&said.out).map_err(|error| error.to_string())
}

pub(crate) fn wait_backups(ns: &Namespace<'_>, set: &str, count: u64) -> Value {
    wait_until(MADE, &format!("{count} base backups of {set}"), || {
        let told = listed(ns, set)?;
        if told["count"].as_u64() >= Some(count) { Ok(told) } else { Err(told.to_string()) }
    })
}

/// The superuser's password of the set `pgset`, which a set that is made from it has as well.
pub(crate) fn password(ns: &Namespace<'_>) -> String {
    let secret = &ns.get("secret pgset-pgset-credentials")["data"]["postgres-password"];
    lab::decoded(secret.as_str().unwrap()).unwrap()
}

/// The database's clock, between what is committed and what is not yet.
pub(crate) fn moment(db: &Database<'_>) -> String {
    db.master(r#"select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#)
}

/// Waits until all that is committed now is in the store.
pub(crate) fn wait_archived(db: &Database<'_>, wal: &std::path::Path) {
    let segment = db.master(END_SEGMENT);
    let file = wal.join(format!("{segment}.zst"));
    wait_until(SOON * 2, &format!("{} is there", file.display()), || {
        if file.exists() { Ok(()) } else { Err(format!("{:#?}", names(wal))) }
    });
}

/// Waits until all that is committed now is in a store where nobody sees the objects: by what the master tells.
fn wait_told_archived(ns: &Namespace<'_>, db: &Database<'_>) {
    wait_told(ns, &db.master(END_SEGMENT));
}

/// Waits until the master tells that a segment is archived, and that no other waits.
pub(crate) fn wait_told(ns: &Namespace<'_>, segment: &str) {
    wait_until(MADE, &format!("{segment} is archived"), || {
        let told = listed(ns, "pgset")?;
        let is_archived = told["archived"].as_str() >= Some(segment) && told["waiting"] == 0;
        if is_archived { Ok(()) } else { Err(told.to_string()) }
    });
}

/// What the trial restore of the newest backup says, with the number of visits for an answer; or why it failed.
fn verify(ns: &Namespace<'_>) -> Result<String, String> {
    let verify = "backup verify sts/pgset --wait --timeout 240 --size 2Gi --memory 300Mi --cpu 10m";
    let said = pgset(&format!("{verify} -n {} --query select/**/count(*)/**/from/**/visits", ns.name));
    said.map(|said| said.out).map_err(|said| said.err)
}

fn names(directory: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The identity of each of a set's pods, and how often its container has started.
fn lives(ns: &Namespace<'_>, set: &str) -> Vec<String> {
    let life =
        |pod: &Value| format!("{} {}", pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]);
    ns.pods(set).iter().map(|pod| life(&ns.get(&format!("pod {pod}")))).collect()
}

#[test]
fn backups_come_and_go_without_a_restart_and_a_new_set_is_any_moment_of_the_old_one() {
    let lab = lab::shared();
    let ns = lab.namespace("backup");
    let directory = store(&ns);
    let plain = mounted(set("pgset"));
    let db = ns.two_members(&plain);
    db.master("create table visits as select 'before backups' as what");
    let lives_before = lives(&ns, "pgset");

    ns.apply(&backed_up(plain.clone(), "file:///backup/db").manifest());
    let told = wait_backups(&ns, "pgset", 1);
    assert_eq!(told["location"], "file:///backup/db");
    db.wait_for("pgset-master", "show archive_timeout", "5s");
    db.master("insert into visits values ('first')");
    let first = moment(&db);
    db.master("insert into visits values ('second')");
    pgset(&format!("switchover sts/pgset -n {} --wait", ns.name)).unwrap();
    db.master("insert into visits values ('third')");
    pgset(&format!("switchover sts/pgset -n {} --wait", ns.name)).unwrap();
    db.master("insert into visits values ('fourth')");
    let wal = directory.join("db/wal");
    wait_archived(&db, &wal);
    assert!(names(&wal).contains(&"00000003.history.zst".to_owned()), "{:#?}", names(&wal));
    let password = password(&ns);

    let restored = |name: &str, to: &str| {
        let from =
            set(name).annotation("pgset.dev/restore-from", "file:///backup/db").annotation("pgset.dev/recover-to", to);
        let own = backed_up(mounted(from), &format!("file:///backup/{name}"));
        ns.apply(&own.manifest());
    };
    restored("then", &first);
    restored("latest", "latest");
    let rows = "select string_agg(what, ', ' order by what) from visits";
    for (name, wanted) in
        [("then", "before backups, first"), ("latest", "before backups, first, fourth, second, third")]
    {
        ns.wait_ready(name, 2);
        let copy = ns.database_as(name, "postgres", &password, "postgres");
        copy.wait_for(&format!("{name}-master"), rows, wanted);
        copy.wait_for(&format!("{name}-replica"), rows, wanted);
        copy.master("insert into visits values ('of the copy')");
        wait_backups(&ns, name, 1);
    }
    assert_eq!(db.master("select count(*) from visits"), "5", "the original is as it was");

    ns.apply(&plain.manifest());
    db.wait_for("pgset-master", "show archive_timeout", "0");
    db.master("create table later as select 1");
    db.master("select pg_switch_wal()");
    let waiting = "select count(*) from pg_ls_archive_statusdir() where name like '%.ready'";
    db.wait_for("pgset-master", waiting, "0");
    assert_eq!(lives(&ns, "pgset"), lives_before, "nothing was restarted");
}

#[test]
fn a_prefix_that_is_another_sets_is_refused_and_stays_as_it_is() {
    let lab = lab::shared();
    let ns = lab.namespace("two-prefixes");
    let directory = store(&ns);
    ns.shared_claim("pgset-pvc");
    ns.apply(&backed_up(mounted(set("pgset").replicas(1)), "file:///backup/db").manifest());
    wait_backups(&ns, "pgset", 1);
    let owner = fs::read_to_string(directory.join("db/set.json")).unwrap();

    ns.apply(&backed_up(mounted(set("other").replicas(1)), "file:///backup/db").manifest());
    ns.wait_ready("other", 1);
    ns.wait_event(START, "other", "BackupFailed", "/pgset ");
    let db = ns.database("other");
    db.master("create table t as select 1");
    assert_eq!(fs::read_to_string(directory.join("db/set.json")).unwrap(), owner);
    assert_eq!(names(&directory.join("db/backups")).len(), 1);
}

#[test]
fn what_was_changed_or_lost_in_the_store_is_named_and_not_restored() {
    let lab = lab::shared();
    let ns = lab.namespace("damaged");
    let directory = store(&ns);
    ns.shared_claim("pgset-pvc");
    ns.apply(&backed_up(mounted(set("pgset").replicas(1)), "file:///backup/db").manifest());
    wait_backups(&ns, "pgset", 1);
    let db = ns.database("pgset");
    db.master("create table visits as select 'first' as what");
    let wal = directory.join("db/wal");
    for _ in 0..3 {
        db.master("insert into visits values ('more')");
        wait_archived(&db, &wal);
    }

    let segments: Vec<_> = names(&wal).into_iter().filter(|name| name.len() == 28).collect();
    let lost = segments[segments.len() - 2].clone();
    fs::rename(wal.join(&lost), directory.join(&lost)).unwrap();
    let told = |set: &str, what: &str| ns.wait_event(START, set, "RestoreFailed", what);
    let restored =
        |name: &str| mounted(set(name).replicas(1).annotation("pgset.dev/restore-from", "file:///backup/db"));
    ns.apply(&restored("hole").manifest());
    told("hole", lost.trim_end_matches(".zst"));
    fs::rename(directory.join(&lost), wal.join(&lost)).unwrap();
    // It is tried again by itself.
    ns.wait_ready("hole", 1);

    let said = verify(&ns).unwrap();
    assert!(said.contains("restorable to 20") && said.trim_end().ends_with(", answer: 4"), "{said}");
    wait_until(MADE, "it is told with the backups", || {
        let told = listed(&ns, "pgset")?;
        if told["verified"]["answer"] == "4" { Ok(()) } else { Err(told.to_string()) }
    });

    let backup = directory.join("db/backups").join(&names(&directory.join("db/backups"))[0]).join("base.tar.zst");
    let mut bytes = fs::read(&backup).unwrap();
    let middle = bytes.len() / 2;
    fs::write(&backup, &bytes[..middle]).unwrap();
    ns.apply(&restored("shortened").manifest());
    told("shortened", "is not what was written");
    bytes[middle] ^= 1;
    fs::write(&backup, bytes).unwrap();
    ns.apply(&restored("changed").manifest());
    told("changed", "is not what was written");
    let why = verify(&ns).unwrap_err();
    assert!(why.contains("FAILED after") && why.contains("is not what was written"), "{why}");
    wait_until(MADE, "it is told to whoever looks after the set", || {
        let events = ns.events("StatefulSet", "pgset");
        let is_told = |event: &&String| event.starts_with("VerificationFailed: ");
        events.iter().find(is_told).map(drop).ok_or_else(|| format!("{events:#?}"))
    });
}

#[test]
fn a_server_that_archives_by_itself_goes_on_so_and_it_is_told_why_there_are_no_backups() {
    let lab = lab::shared();
    let ns = lab.namespace("own-archive");
    store(&ns);
    ns.shared_claim("pgset-pvc");
    let own = json!(["-c", "archive_mode=on", "-c", "archive_command=test ! -f /backup/%f && cp %p /backup/%f"]);
    ns.apply(&backed_up(mounted(set("pgset").replicas(1)), "file:///backup/db").container("args", own).manifest());
    ns.wait_ready("pgset", 1);
    let db = ns.database("pgset");
    assert_eq!(db.master("show archive_mode"), "on");
    wait_until(SOON, "it is told", || {
        let events = ns.events("StatefulSet", "pgset");
        let is_told = |event: &&String| event.starts_with("BackupRefused: ");
        events.iter().find(is_told).map(drop).ok_or_else(|| format!("{events:#?}"))
    });
    db.master("select pg_switch_wal()");
    db.wait_for("pgset-master", "select archived_count > 0, failed_count from pg_stat_archiver", "t|0");
    assert_eq!(db.master("show archive_timeout"), "0");
}

#[test]
fn an_object_store_that_is_away_costs_no_write_and_leaves_no_hole() {
    let lab = lab::shared();
    let ns = lab.namespace("s3");
    let mut s3 = Server::start(Kind::Versitygw, &ns, "pgset", 17070);
    let db = ns.two_members(&backed_up(set("pgset"), &s3.location("db")));
    wait_backups(&ns, "pgset", 1);
    db.master("create table visits as select 0 as n");
    let wal = s3.objects("db/wal");
    wait_archived(&db, &wal);

    s3.stop();
    for n in 1..=4 {
        db.master(&format!("insert into visits values ({n})"));
        db.master("select pg_switch_wal()");
    }
    let told = wait_until(MADE, "it is told that files wait", || {
        let told = listed(&ns, "pgset")?;
        let is_told = told["trouble"].is_string() && told["waiting"].as_u64() >= Some(4);
        if is_told { Ok(told) } else { Err(told.to_string()) }
    });
    let away = Instant::now();
    pgset(&format!("switchover sts/pgset -n {}", ns.name)).unwrap();
    assert!(away.elapsed() < SOON, "a hand-over waits for no store: {:?}", away.elapsed());
    db.master("insert into visits values (5)");
    s3.start_again();
    wait_until(MADE, "nothing waits any more", || {
        let told = listed(&ns, "pgset")?;
        if told["waiting"] == 0 && told["trouble"].is_null() { Ok(()) } else { Err(told.to_string()) }
    });
    wait_archived(&db, &wal);

    let password = password(&ns);
    s3.give(&ns, "copy");
    ns.apply(&set("copy").replicas(1).annotation("pgset.dev/restore-from", &s3.location("db")).manifest());
    ns.wait_ready("copy", 1);
    let copy = ns.database_as("copy", "postgres", &password, "postgres");
    copy.wait_for("copy-master", "select string_agg(n::text, ',' order by n) from visits", "0,1,2,3,4,5");

    for pod in ["pgset-0", "pgset-1", "copy-0"] {
        assert!(!ns.kubectl(&format!("logs {pod} --all-containers")).contains(SECRET_KEY), "{pod}'s log");
        let argv = ns.shell(pod, "postgres", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").unwrap().out;
        assert!(argv.contains("archiver serve") || pod == "copy-0", "{argv}");
        assert!(!argv.contains(SECRET_KEY), "{pod}: {argv}");
    }
    let seen = ns.kubectl("get events,leases,statefulsets,pods --output=yaml") + &told.to_string();
    assert!(!seen.contains(SECRET_KEY));
}

#[test]
fn wal_that_waits_for_a_store_does_not_fill_the_volume_and_a_backup_is_made_behind_what_was_let_go() {
    let lab = lab::shared();
    let ns = lab.namespace("archive-limit");
    let mut s3 = Server::start(Kind::Versitygw, &ns, "pgset", 17074);
    let location = s3.location("db");
    ns.shared_claim("pgset-pvc");
    let limited = backed_up(set("pgset").replicas(1), &location).annotation("pgset.dev/archive-limit", "48Mi");
    ns.apply(&limited.manifest());
    wait_backups(&ns, "pgset", 1);
    let db = ns.database("pgset");
    db.master("create table visits (n int)");

    s3.stop();
    let gap = |events: &[String]| events.iter().any(|event| event.starts_with("ArchiveGap: "));
    let mut rows = 0;
    // PostgreSQL asks three times for a file, 20 s each, and then sleeps for up to a minute.
    wait_until(MADE * 2, "it is told that WAL was let go", || {
        rows += 1;
        db.master(&format!("insert into visits values ({rows})"));
        db.master("select pg_switch_wal()");
        let events = ns.events("StatefulSet", "pgset");
        if gap(&events) { Ok(()) } else { Err(format!("{events:#?}")) }
    });
    let waiting = "select count(*) <= 8 from pg_ls_archive_statusdir() where name like '%.ready'";
    db.wait_for("pgset-master", waiting, "t");
    assert!(listed(&ns, "pgset").unwrap()["trouble"].is_string());

    s3.start_again();
    wait_backups(&ns, "pgset", 2);
    rows += 1;
    db.master(&format!("insert into visits values ({rows})"));
    wait_archived(&db, &s3.objects("db/wal"));
    wait_until(MADE, "all is well", || {
        let told = listed(&ns, "pgset")?;
        if told["trouble"].is_null() { Ok(()) } else { Err(told.to_string()) }
    });
    s3.give(&ns, "copy");
    ns.apply(&set("copy").replicas(1).annotation("pgset.dev/restore-from", &location).manifest());
    ns.wait_ready("copy", 1);
    let copy = ns.database_as("copy", "postgres", &password(&ns), "postgres");
    copy.wait_for("copy-master", "select count(*) from visits", &rows.to_string());
}

#[test]
fn a_replica_whose_wal_is_gone_from_its_master_takes_it_from_the_store_and_is_not_cloned_anew() {
    let lab = lab::shared();
    let ns = lab.namespace("from-store");
    let directory = store(&ns);
    let limit = json!(["-c", "max_slot_wal_keep_size=16MB", "-c", "wal_sender_timeout=3s"]);
    let db = ns.two_members(&backed_up(mounted(set("pgset")), "file:///backup/db").container("args", limit));
    wait_backups(&ns, "pgset", 1);
    db.write_numbers();
    db.wait_for("pgset-replica", "select count(*) from numbers", "10000");
    let clone = ns.data_directory("pgset-1");
    let receiver = db.replica("select pid from pg_stat_wal_receiver").unwrap();

    ns.shell("pgset-1", "postgres", &format!("kill -STOP {receiver}")).unwrap();
    db.wait_for("pgset-master", "select active from pg_replication_slots where slot_name like 'pgset%'", "f");
    for _ in 0..5 {
        db.master("insert into numbers values (0)");
        wait_archived(&db, &directory.join("db/wal"));
    }
    // With summaries PostgreSQL keeps its WAL for a checkpoint longer.
    wait_until(SOON, "the WAL is gone, and the replica's slot is another one", || {
        db.master("checkpoint");
        let slot = "select slot_name, wal_status from pg_replication_slots where slot_name like 'pgset%'";
        let found = db.master(slot);
        if found == "pgset_pgset_1|reserved" { Ok(()) } else { Err(found) }
    });
    let _ = ns.shell("pgset-1", "postgres", &format!("kill -CONT {receiver}"));

    db.wait_streaming(&["pgset-1"]);
    db.wait_for("pgset-replica", "select count(*) from numbers", "10005");
    assert_eq!(ns.data_directory("pgset-1"), clone, "it was cloned anew");
    db.wait_for("pgset-1.pgset", "show restore_command", "");
}

/// Made by `age-keygen` for these tests.
const AGE_IDENTITY: &str = "AGE-SECRET-KEY-1MGLFYDL60WF2A3X2SJ5P5D2SURDD4TR4LYUNAKRGCTSWGNFFF4ES6WF22Z";
const RECIPIENT: &str = "age1se4j8f9cgk9lq8r3h5jz9q9uq24zuzp78s85f0gm4dw7sdwyc3dqjf7vp3";

/// So was the one after it.
const NEXT_AGE_IDENTITY: &str = "AGE-SECRET-KEY-1WQLATJ0EXEGALNNEG97C7MA46UNSMZ6LQHZ9K5HX6JAURQWVQ2XS72GH3S";
const NEXT_RECIPIENT: &str = "age1knvrn7692xav8fltycv050nsvtagqgfg4p4zzet9k9fqt8x0zgnq2ct4ns";
/// How long the kubelet may take to bring a Secret that has changed into a pod.
const BROUGHT: Duration = Duration::from_secs(180);

fn give_key(ns: &Namespace<'_>, set: &str) {
    give_keys(ns, set, &format!("# public key: {RECIPIENT}\n{AGE_IDENTITY}\n"));
}

fn give_keys(ns: &Namespace<'_>, set: &str, keys: &str) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("{set}-pgset-backup")},
        "stringData": {"AGE_IDENTITY": keys},
    });
    ns.apply(&secret.to_string());
}

/// All files below a directory.
fn files(directory: &std::path::Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn what_is_stored_of_a_set_with_a_key_is_read_by_age_and_restored_by_whoever_has_the_key() {
    let lab = lab::shared();
    let ns = lab.namespace("encrypted");
    let directory = store(&ns);
    give_key(&ns, "pgset");
    let db = ns.two_members(&backed_up(mounted(set("pgset")), "file:///backup/db"));
    let told = wait_backups(&ns, "pgset", 1);
    db.master("create table visits as select 'a row that nobody is to read' as what");
    pgset(&format!("switchover sts/pgset -n {} --wait", ns.name)).unwrap();
    db.master("insert into visits values ('another')");
    pgset(&format!("backup now sts/pgset -n {} --wait", ns.name)).unwrap();
    let told_later = wait_backups(&ns, "pgset", 2);
    let [full, upon] = [0, 1].map(|at| told_later["backups"][at].clone());
    assert_eq!(upon["parent"], full["id"], "it holds what has changed: {told_later}");
    assert!(upon["stored"].as_u64() < full["stored"].as_u64().map(|stored| stored / 4), "{told_later}");
    db.master("insert into visits values ('a third')");
    wait_archived(&db, &directory.join("db/wal"));
    let password = password(&ns);

    let key = ns.export().join("age.key");
    fs::write(&key, AGE_IDENTITY).unwrap();
    let (clear, sealed): (Vec<_>, Vec<_>) =
        files(&directory.join("db")).into_iter().partition(|file| file.extension().is_some_and(|it| it == "json"));
    assert!(sealed.len() > 4, "{sealed:?}");
    for file in &sealed {
        assert!(fs::read(file).unwrap().starts_with(b"age-encryption.org/v1\n"), "{}", file.display());
        let mut age = std::process::Command::new("age");
        let output = age.args(["--decrypt", "--identity"]).arg(&key).arg(file).output().unwrap();
        assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
        let is_manifest = file.ends_with("backup_manifest");
        assert!(
            is_manifest || output.stdout.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]),
            "{} is not zstd's",
            file.display()
        );
    }
    for file in &clear {
        let text = fs::read_to_string(file).unwrap();
        assert!(!text.contains(AGE_IDENTITY), "{}", file.display());
        assert!(!file.ends_with("backup.json") || text.contains(RECIPIENT), "it says for which key: {text}");
    }

    ns.apply(&mounted(set("copy").replicas(1).annotation("pgset.dev/restore-from", "file:///backup/db")).manifest());
    ns.wait_event(START, "copy", "RestoreFailed", "AGE_IDENTITY");
    give_key(&ns, "copy");
    ns.wait_ready("copy", 1);
    let copy = ns.database_as("copy", "postgres", &password, "postgres");
    copy.wait_for("copy-master", "select count(*) from visits", "3");
    let said = verify(&ns).unwrap();
    assert!(said.trim_end().ends_with(", answer: 3"), "{said}");
    let delete =
        |backup: &Value| pgset(&format!("backup delete sts/pgset {} -n {}", backup["id"].as_str().unwrap(), ns.name));
    let why = delete(&full).unwrap_err().err;
    assert!(why.contains("stands: delete that one first"), "{why}");
    delete(&upon).unwrap();
    assert_eq!(names(&directory.join("db/backups")), [full["id"].as_str().unwrap()]);
    let seen = ns.kubectl("get events,leases,statefulsets,pods --output=yaml") + &told.to_string();
    assert!(!seen.contains(AGE_IDENTITY));
    for pod in ["pgset-0", "pgset-1", "copy-0"] {
        assert!(!ns.kubectl(&format!("logs {pod} --all-containers")).contains(AGE_IDENTITY), "{pod}'s log");
    }
}

#[test]
fn a_new_key_is_written_with_once_it_stands_first_and_after_a_full_backup_the_old_one_may_go() {
    let lab = lab::shared();
    let ns = lab.namespace("keys");
    let directory = store(&ns);
    give_key(&ns, "pgset");
    ns.shared_claim("pgset-pvc");
    ns.apply(&backed_up(mounted(set("pgset").replicas(1)), "file:///backup/db").manifest());
    wait_backups(&ns, "pgset", 1);
    let db = ns.database("pgset");
    db.master("create table visits as select 1 as n");
    wait_archived(&db, &directory.join("db/wal"));
    let lives_before = lives(&ns, "pgset");

    give_keys(&ns, "pgset", &format!("{NEXT_AGE_IDENTITY}\n{AGE_IDENTITY}\n"));
    wait_until(BROUGHT, "the new key is written with", || {
        // Whatever is archived next says so.
        db.master(END_SEGMENT);
        let owner = fs::read_to_string(directory.join("db/set.json")).map_err(|error| error.to_string())?;
        if owner.contains(NEXT_RECIPIENT) { Ok(()) } else { Err(owner) }
    });
    let now = || pgset(&format!("backup now sts/pgset -n {} --wait --timeout 120", ns.name)).unwrap();
    now();
    let told = wait_backups(&ns, "pgset", 2);
    let full = &told["backups"][1];
    assert!(full["parent"].is_null(), "it stands upon nothing that takes the old key: {told}");
    db.master("insert into visits values (2)");
    wait_archived(&db, &directory.join("db/wal"));

    give_keys(&ns, "pgset", NEXT_AGE_IDENTITY);
    wait_until(BROUGHT, "the old key is gone from the pod", || {
        let keys = ns.shell("pgset-0", "postgres", "cat /etc/pgset/backup/AGE_IDENTITY").map_err(|said| said.err)?;
        if keys.out.trim() == NEXT_AGE_IDENTITY { Ok(()) } else { Err("it is still there".to_owned()) }
    });
    now();
    let told = wait_backups(&ns, "pgset", 3);
    assert_eq!(told["backups"][2]["parent"], full["id"], "{told}");
    assert!(told["trouble"].is_null(), "{told}");
    db.master("insert into visits values (3)");
    wait_archived(&db, &directory.join("db/wal"));
    assert_eq!(lives(&ns, "pgset"), lives_before, "nothing was restarted");

    give_keys(&ns, "copy", NEXT_AGE_IDENTITY);
    ns.apply(&mounted(set("copy").replicas(1).annotation("pgset.dev/restore-from", "file:///backup/db")).manifest());
    ns.wait_ready("copy", 1);
    let copy = ns.database_as("copy", "postgres", &password(&ns), "postgres");
    copy.wait_for("copy-master", "select string_agg(n::text, ',' order by n) from visits", "1,2,3");
}

/// A set whose backups go to such a server, and a new set that is made from them alone.
fn goes_there_and_comes_back(kind: Kind, theme: &str, port: u16, image: &str) {
    let lab = lab::shared();
    let ns = lab.namespace(theme);
    let set = |name: &str| set(name).replicas(1).container("image", json!(image));
    let server = Server::start(kind, &ns, "pgset", port);
    let location = server.location("db");
    ns.shared_claim("pgset-pvc");
    ns.apply(&backed_up(set("pgset"), &location).manifest());
    let told = wait_backups(&ns, "pgset", 1);
    assert_eq!(told["location"], location);
    assert!(told["trouble"].is_null(), "{told}");
    let db = ns.database("pgset");
    for n in 1..=3 {
        let statement = if n == 1 { "create table visits as select" } else { "insert into visits select" };
        db.master(&format!("{statement} {n} as n"));
        wait_told_archived(&ns, &db);
    }

    pgset(&format!("backup now sts/pgset -n {} --wait", ns.name)).unwrap();
    let told = wait_backups(&ns, "pgset", 2);
    let knows_changes = !image.ends_with(":15");
    assert_eq!(told["backups"][1]["parent"].is_string(), knows_changes, "{told}");
    let said = verify(&ns).unwrap();
    assert!(said.contains(", answer: 3"), "{said}");

    let restored = |name: &str, image: &str| {
        server.give(&ns, name);
        let from = set(name).container("image", json!(image)).annotation("pgset.dev/restore-from", &location);
        ns.apply(&from.manifest());
    };
    let other = if image == "postgres:15" { "postgres:17" } else { "postgres:15" };
    restored("other", other);
    ns.wait_event(START, "other", "RestoreFailed", "of that major version");
    restored("copy", image);
    ns.wait_ready("copy", 1);
    let copy = ns.database_as("copy", "postgres", &password(&ns), "postgres");
    copy.wait_for("copy-master", "select string_agg(n::text, ',' order by n) from visits", "1,2,3");
    copy.master("insert into visits values (4)");
    assert_eq!(db.master("select count(*) from visits"), "3", "the original is as it was");
}

#[test]
#[ignore = "make stores: it takes programs of three more registries"]
fn what_moto_keeps_as_s3_does_comes_back() {
    goes_there_and_comes_back(Kind::Moto, "moto", 17071, "postgres:15");
}

#[test]
#[ignore = "make stores: it takes programs of three more registries"]
fn what_fake_gcs_server_keeps_as_google_does_comes_back() {
    goes_there_and_comes_back(Kind::FakeGcs, "gcs", 17072, "postgres:17");
}

#[test]
#[ignore = "make stores: it takes programs of three more registries"]
fn what_azurite_keeps_as_azure_does_comes_back() {
    goes_there_and_comes_back(Kind::Azurite, "azurite", 17073, "postgres:17");
}

/// Its backups are made and put together by programs of its own, which do some things differently (`pg_combinebackup` links files), and
/// the copy's volume is where the official image has one from 18 on.
#[test]
#[ignore = "make stores: it takes an image of Debian's testing release"]
fn what_versitygw_keeps_of_postgresql_18_comes_back_as_it_was_at_a_moment() {
    let lab = lab::shared();
    let ns = lab.namespace("eighteen");
    let server = Server::start(Kind::Versitygw, &ns, "pgset", 17081);
    let location = server.location("db");
    let of_18 = |set: Set| set.container("image", json!("postgres:18"));
    let db = ns.two_members(&backed_up(of_18(set("pgset")), &location));
    assert_eq!(db.master("select current_setting('server_version_num')::int / 10000"), "18");
    wait_backups(&ns, "pgset", 1);
    db.master("create table visits as select 'first' as what");
    pgset(&format!("switchover sts/pgset -n {} --wait", ns.name)).unwrap();
    db.master("insert into visits values ('second')");
    pgset(&format!("backup now sts/pgset -n {} --wait", ns.name)).unwrap();
    let told = wait_backups(&ns, "pgset", 2);
    let [full, upon] = [0, 1].map(|at| told["backups"][at].clone());
    assert!(full["parent"].is_null(), "the first one holds all: {told}");
    assert_eq!(upon["parent"], full["id"], "it holds what has changed: {told}");
    assert!(upon["stored"].as_u64() < full["stored"].as_u64().map(|stored| stored / 4), "{told}");
    db.master("insert into visits values ('third')");
    let then = moment(&db);
    db.master("insert into visits values ('fourth')");
    wait_archived(&db, &server.objects("db/wal"));
    let said = verify(&ns).unwrap();
    assert!(said.contains("restorable to 20") && said.trim_end().ends_with(", answer: 4"), "{said}");

    server.give(&ns, "copy");
    let volume = ns.volume_for("data-copy-0");
    let copy = of_18(plain("copy"))
        .replicas(1)
        .annotation("pgset.dev/inject", "enabled")
        .own_volume("data", "/var/lib/postgresql")
        .annotation("pgset.dev/restore-from", &location)
        .annotation("pgset.dev/recover-to", &then);
    ns.apply(&copy.manifest());
    ns.wait_ready("copy", 1);
    assert!(volume.join("18/docker/PG_VERSION").exists(), "{:#?}", names(&volume));
    let copy = ns.database_as("copy", "postgres", &password(&ns), "postgres");
    let rows = "select string_agg(what, ', ' order by what) from visits";
    copy.wait_for("copy-master", rows, "first, second, third");
    copy.master("insert into visits values ('of the copy')");
    assert_eq!(db.master("select count(*) from visits"), "4", "the original is as it was");
}

/// The commands of `docs/restore-by-hand.md`, with what the page leaves to its reader.
fn by_hand(id: &str, moment: &str) -> String {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/restore-by-hand.md")).unwrap();
    let commands = page.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    for word in ["/ID/", "2026-11-24 14:03:00+00", "/backup/db"] {
        assert!(commands.contains(word), "{word} is not in the page any more");
    }
    format!("set -e\n{commands}").replace("/ID/", &format!("/{id}/")).replace("2026-11-24 14:03:00+00", moment)
}

#[test]
fn the_page_on_restoring_by_hand_does_what_it_says_to_the_letter() {
    let lab = lab::shared();
    let ns = lab.namespace("by-hand");
    store(&ns);
    let db = ns.two_members(&backed_up(mounted(set("pgset")), "file:///backup/db"));
    let told = wait_backups(&ns, "pgset", 1);
    db.master("create table visits as select 'first' as what");
    let then = moment(&db);
    db.master("insert into visits values ('second')");
    wait_archived(&db, &ns.export().join("backups/db/wal"));
    ns.kubectl("delete statefulset pgset --timeout=60s");

    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "by-hand"},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": "lab"}, "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsUser": 999, "runAsGroup": 999, "fsGroup": 999},
            "containers": [{
                "name": "by-hand", "image": "postgres:17", "command": ["sleep", "infinity"],
                "volumeMounts": [{"name": "backups", "mountPath": "/backup"}, {"name": "restore", "mountPath": "/restore"}],
            }],
            "volumes": [
                {"name": "backups", "persistentVolumeClaim": {"claimName": "backups"}},
                {"name": "restore", "emptyDir": {}},
            ],
        },
    });
    ns.apply(&pod.to_string());
    ns.kubectl("wait --for=condition=Ready pod/by-hand --timeout=60s");
    let id = told["backups"][0]["id"].as_str().unwrap();
    let script = by_hand(id, &then.replace('T', " ").replace('Z', "+00"));
    let quiet = format!("({script}) >/restore/log 2>&1 || {{ cat /restore/log; exit 1; }}");
    let said = ns.shell("by-hand", "by-hand", &quiet);
    said.unwrap_or_else(|said| panic!("{}{}\n{script}", said.out, said.err));
    let rows = "psql -U postgres -XAtc \"select string_agg(what, ', ') from visits\" -c 'select pg_is_in_recovery()'";
    wait_until(SOON, "the restored server has the rows of that moment", || {
        let seen = ns.shell("by-hand", "by-hand", rows).map_err(|said| said.err)?.out;
        if seen == "first\nf" { Ok(()) } else { Err(seen) }
    });
}
