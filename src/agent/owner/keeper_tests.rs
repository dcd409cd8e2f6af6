//! Lives of a pod on one directory without locks, beside and after each other, with faults of its volume.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use tokio::time::sleep;

use super::super::Volume;
use super::*;
use crate::agent::fencer::Order;

/// Thirty times as fast as it is.
const FAST: Times = Times {
    beat: Duration::from_millis(30),
    stop_after: Duration::from_secs(1),
    kill_after: Duration::from_millis(1050),
    take_over_after: Duration::from_millis(1500),
    claim_within: Duration::from_millis(300),
    claim_settles: Duration::from_millis(400),
};

/// A volume that can stall, be slow to write, be full, or take no operation after so many.
#[derive(Clone)]
struct Faulty {
    volume: Volume,
    faults: Arc<Faults>,
}

struct Faults {
    stalls: AtomicBool,
    is_slow: AtomicBool,
    is_full: AtomicBool,
    left: AtomicUsize,
}

impl Faulty {
    fn before(&self) -> io::Result<()> {
        while self.faults.stalls.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        let left = self.faults.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| io::Error::other("the machine is gone"))
    }
}

impl Slate for Faulty {
    fn prepare(&mut self, text: &str) -> io::Result<()> {
        self.before()?;
        if self.faults.is_slow.load(Ordering::SeqCst) {
            // The other half is for a machine that is busy.
            thread::sleep(FAST.stop_after / 2);
        }
        self.volume.prepare(text)
    }

    fn read(&self) -> io::Result<Option<String>> {
        self.before()?;
        self.volume.read()
    }

    fn put_first(&self) -> io::Result<bool> {
        self.before()?;
        self.volume.put_first()
    }

    fn put_over(&self) -> io::Result<()> {
        self.before()?;
        if self.faults.is_full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.volume.put_over()
    }

    fn remove(&self) -> io::Result<()> {
        self.before()?;
        self.volume.remove()
    }

    fn tidy(&self) {
        if self.before().is_ok() {
            self.volume.tidy();
        }
    }
}

/// A life of a container.
struct Life {
    ownership: Ownership,
    faults: Arc<Faults>,
    fencer: fencing::Handle,
    _fencers_end: std::os::unix::net::UnixStream,
    lost: mpsc::Receiver<Lost>,
}

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join(".pgset-owner")
    }

    fn begin(&self, uid: &str, token: &str) -> Life {
        self.begin_with(uid, token, false, usize::MAX)
    }

    fn begin_with(&self, uid: &str, token: &str, lock_proves: bool, operations: usize) -> Life {
        let faults = Faults {
            stalls: AtomicBool::new(false),
            is_slow: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            left: AtomicUsize::new(operations),
        };
        let faults = Arc::new(faults);
        let slate = Faulty { volume: Volume::new(self.file(), uid, true), faults: faults.clone() };
        let me = Note { pod: "db-0".into(), uid: uid.into(), token: token.into(), beat: 0 };
        let (fencer, end_of_fencer) = fencing::tests::obedient();
        let (tell, lost) = mpsc::channel();
        let ownership = Ownership::start(slate, me, lock_proves, FAST, fencer.clone(), move |why| {
            let _ = tell.send(why);
        });
        Life { ownership: ownership.unwrap(), faults, fencer, _fencers_end: end_of_fencer, lost }
    }

    fn owner(&self) -> Option<String> {
        match Note::read(std::fs::read_to_string(self.file()).ok()) {
            super::super::Found::Note(note) => Some(note.token),
            _ => None,
        }
    }
}

impl Life {
    async fn owns_within(&mut self, limit: Duration) -> Option<Duration> {
        let began = Instant::now();
        timeout(limit, self.ownership.taken(drop)).await.ok()?.unwrap();
        Some(began.elapsed())
    }

    async fn owns(&mut self) -> Duration {
        self.owns_within(FAST.take_over_after * 4).await.expect("it never owns the directory")
    }

    /// The container is gone, as it was.
    fn crash(self) {
        self.faults.left.store(0, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn after_a_pod_that_let_go_the_next_one_does_not_wait() {
    let directory = Directory::new();
    let mut first = directory.begin("one", "a");
    first.owns().await;
    first.ownership.release().await;
    assert_eq!(directory.owner(), None);
    assert_eq!(fencing::tests::storage_in_force(&first.fencer), Order::Stand);
    let waited = directory.begin("two", "b").owns().await;
    assert!(waited < FAST.take_over_after / 2, "{waited:?}");
    assert_eq!(std::fs::read_dir(directory.0.path()).unwrap().count(), 1, "only the file itself");
}

#[tokio::test]
async fn the_next_life_of_a_container_that_was_killed_does_not_wait() {
    let directory = Directory::new();
    let mut first = directory.begin("one", "a");
    first.owns().await;
    first.crash();
    let waited = directory.begin("one", "b").owns().await;
    assert!(waited < FAST.take_over_after / 2, "{waited:?}");
}

#[tokio::test]
async fn another_pod_waits_until_the_first_one_is_surely_dead_and_says_for_whom() {
    let directory = Directory::new();
    let mut first = directory.begin("one", "a");
    first.owns().await;
    first.crash();
    let mut second = directory.begin("two", "b");
    let said = Arc::new(Mutex::new(String::new()));
    let listener = said.clone();
    let began = Instant::now();
    second.ownership.taken(move |why| *listener.lock().unwrap() += &why).await.unwrap();
    assert!(began.elapsed() >= FAST.take_over_after);
    assert!(said.lock().unwrap().contains("UID one may still write"), "{said:?}");
}

#[tokio::test]
async fn a_lock_that_proves_the_first_one_dead_spares_the_wait() {
    let directory = Directory::new();
    let mut first = directory.begin("one", "a");
    first.owns().await;
    first.crash();
    let waited = directory.begin_with("two", "b", true, usize::MAX).owns().await;
    assert!(waited < FAST.take_over_after / 2, "{waited:?}");
}

#[tokio::test]
async fn nobody_takes_the_directory_of_one_that_lives_and_the_end_of_the_wait_is_its_letting_go() {
    let directory = Directory::new();
    let mut first = directory.begin("one", "a");
    first.owns().await;
    let mut second = directory.begin("two", "b");
    assert_eq!(second.owns_within(FAST.take_over_after * 2).await, None);
    assert!(first.lost.try_recv().is_err(), "nor is it disturbed");
    first.ownership.release().await;
    assert!(second.owns().await < FAST.take_over_after / 2);
}

#[tokio::test]
async fn whose_storage_stalls_is_dead_by_the_fencers_deadline_before_another_owns_and_writes_nothing_after() {
    let directory = Directory::new();
    let mut first = directory.begin("one", "a");
    first.owns().await;
    first.faults.stalls.store(true, Ordering::SeqCst);
    let mut second = directory.begin("two", "b");
    let lost = first.lost.recv_timeout(FAST.take_over_after);
    assert_eq!(lost, Ok(Lost::Overdue(FAST.stop_after)), "though the thread that beats hangs");
    second.owns().await;
    let Order::KillAt(deadline) = fencing::tests::storage_in_force(&first.fencer) else { panic!("nothing kills") };
    assert!(Moment::now().since(deadline) + FAST.kill_after + FAST.beat * 3 >= FAST.take_over_after);

    first.faults.stalls.store(false, Ordering::SeqCst);
    let lost = first.lost.recv_timeout(Duration::from_secs(2)).unwrap();
    assert!(matches!(lost, Lost::Overtaken(_) | Lost::Overdue(_)), "{lost:?}");
    assert_eq!(directory.owner().as_deref(), Some("b"));
    assert!(second.lost.try_recv().is_err());
}

#[tokio::test]
async fn one_that_is_overtaken_ends_at_once_by_the_fencer_first() {
    let directory = Directory::new();
    let mut first = directory.begin("one", "a");
    first.owns().await;
    let later = Note { pod: "db-0".into(), uid: "two".into(), token: "b".into(), beat: 1 };
    let mut hand = Volume::new(directory.file(), "two", true);
    hand.prepare(&later.to_text()).unwrap();
    hand.put_over().unwrap();
    let lost = first.lost.recv_timeout(Duration::from_secs(2)).unwrap();
    assert_eq!(lost, Lost::Overtaken(later));
    let Order::KillAt(deadline) = fencing::tests::storage_in_force(&first.fencer) else { panic!("nothing kills") };
    assert!(deadline <= Moment::now());
    assert_eq!(directory.owner().as_deref(), Some("b"));
}

#[tokio::test]
async fn of_two_newcomers_one_owns_after_a_pod_that_let_go_and_after_one_that_died() {
    for dies in [false, true] {
        let directory = Directory::new();
        if dies {
            let mut first = directory.begin("one", "a");
            first.owns().await;
            first.crash();
        }
        let (mut second, mut third) = (directory.begin("two", "b"), directory.begin("three", "c"));
        let limit = FAST.take_over_after * 3;
        let owners = tokio::join!(second.owns_within(limit), third.owns_within(limit));
        assert!(owners.0.is_some() != owners.1.is_some(), "{owners:?}");
        assert!(second.lost.try_recv().is_err() && third.lost.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_crash_at_any_step_keeps_nobody_out_for_good_nor_lets_another_in_early() {
    for (uid, is_fresh) in [("one", true), ("one", false), ("two", false)] {
        for operations in 0..6 {
            let directory = Directory::new();
            if !is_fresh {
                let mut dead = directory.begin("one", "a");
                dead.owns().await;
                dead.crash();
            }
            let mut crashes = directory.begin_with("one", "b", false, operations);
            crashes.owns_within(FAST.beat * 3).await;
            crashes.crash();
            let there = directory.owner();
            let mut next = directory.begin(uid, "c");
            let waited = next.owns().await;
            let may_be_at_once = there.is_none() || uid == "one";
            assert_eq!(waited < FAST.take_over_after, may_be_at_once, "after {operations} operations: {waited:?}");
        }
    }
}

#[tokio::test]
async fn a_volume_that_takes_long_for_each_write_is_not_gone() {
    let directory = Directory::new();
    let mut first = directory.begin("one", "a");
    first.owns().await;
    first.faults.is_slow.store(true, Ordering::SeqCst);
    sleep(FAST.stop_after * 4).await;
    assert!(first.lost.try_recv().is_err());
}

#[tokio::test]
async fn a_volume_that_is_full_is_not_gone() {
    let directory = Directory::new();
    let mut first = directory.begin("one", "a");
    first.owns().await;
    first.faults.is_full.store(true, Ordering::SeqCst);
    sleep(FAST.stop_after * 2).await;
    assert!(first.lost.try_recv().is_err());
}

#[tokio::test]
async fn a_file_that_somebody_removed_is_made_again() {
    let directory = Directory::new();
    let mut first = directory.begin("one", "a");
    first.owns().await;
    std::fs::remove_file(directory.file()).unwrap();
    sleep(FAST.stop_after * 2).await;
    assert_eq!(directory.owner().as_deref(), Some("a"));
    assert!(first.lost.try_recv().is_err());
}

#[tokio::test]
async fn a_pod_that_is_told_to_stop_while_it_waits_stops_and_leaves_the_file_alone() {
    let directory = Directory::new();
    let mut first = directory.begin("one", "a");
    first.owns().await;
    let second = directory.begin("two", "b");
    let began = Instant::now();
    second.ownership.release().await;
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(directory.owner().as_deref(), Some("a"));
}
