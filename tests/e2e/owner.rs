//! Two pods of one name on one directory, where no lock keeps them apart.

use std::thread;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::fencing::{servers, told};
use crate::lab::{self, Namespace, START, open_to_all, wait_until};
use crate::manifests::set;
use crate::mount::Mount;

fn uid(ns: &Namespace<'_>) -> String {
    ns.get("pod pgset-0")["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn restarts(ns: &Namespace<'_>) -> Option<u64> {
    ns.get("pod pgset-0")["status"]["containerStatuses"][0]["restartCount"].as_u64()
}

/// Of this life of the container and the one before.
fn log(ns: &Namespace<'_>) -> String {
    let words = ["logs pgset-0 --container=postgres --previous", "logs pgset-0 --container=postgres"];
    words.map(|words| ns.try_kubectl(words).map_or_else(|said| said.err, |said| said.out)).join("\n")
}

fn wait_for_line(ns: &Namespace<'_>, words: &str) -> Timestamp {
    wait_until(START, words, || {
        let log = log(ns);
        told(&log, words).ok_or(log)
    })
}

#[test]
fn a_pod_is_dead_before_the_next_of_its_name_has_its_directory_though_no_lock_keeps_them_apart() {
    let lab = lab::shared();
    // One namespace has a name once. The two know each other by the pod's name and UID alone.
    let (old, new) = (lab.namespace("cut-off"), lab.namespace("successor"));
    let directory = old.export().join("files");
    open_to_all(&directory);
    let olds = Mount::of(&directory, old.export().join("mount"));
    let news = Mount::of(&directory, new.export().join("mount"));
    let manifest = set("pgset").replicas(1).manifest();
    old.claim_on("pgset-pvc", &olds.path);
    old.apply(&manifest);
    old.wait_ready("pgset", 1);
    let db = old.database("pgset");
    db.write_numbers();

    new.claim_on("pgset-pvc", &news.path);
    new.apply(&manifest);
    wait_for_line(&new, &format!("UID {} may still write", uid(&old)));
    thread::sleep(Duration::from_secs(5));
    db.master("insert into numbers values (0)");
    assert_eq!(servers(&new, "pgset-0"), 0, "beside the one that lives");

    olds.stall();
    let stalled = Timestamp::now();

    let owned = wait_for_line(&new, "the data directory is this pod's now");
    let ended = wait_for_line(&old, "has not taken a write for 30 s");
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64();
    assert!((28.0..32.0).contains(&seconds(stalled, ended)), "ended {} s after the stall", seconds(stalled, ended));
    assert!(seconds(ended, owned) > 10.0, "owned {} s after the end", seconds(ended, owned));
    new.wait_ready("pgset", 1);
    let successors = db.from(&new);
    successors.master("insert into numbers values (0)");
    assert!(db.at("pgset-0.pgset", "insert into numbers values (0)").is_err(), "two servers");

    olds.go_on();

    wait_for_line(&old, &format!("UID {} may still write", uid(&new)));
    assert_eq!(servers(&old, "pgset-0"), 0, "beside the one that has taken over");
    successors.master("insert into numbers values (0)");
    assert_eq!(restarts(&new), Some(0));

    new.kubectl("delete statefulset pgset --cascade=foreground --timeout=60s");
    let let_go = Timestamp::now();
    let again = wait_for_line(&old, "the data directory is this pod's now");
    assert!(seconds(let_go, again) < 5.0, "a pod that has let go is not waited for: {} s", seconds(let_go, again));
    old.wait_ready("pgset", 1);
    db.wait_for("pgset-master", "select count(*) from numbers", "10003");
}
