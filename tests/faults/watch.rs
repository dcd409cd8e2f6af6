//! What can be seen from outside while faults strike: who accepts writes, and how the Lease goes from hand to hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::MEMBERS;
use crate::clients::Write;
use crate::lab::{Database, Namespace, kubectl, now, run};
use crate::node::Container;

/// Between two looks at the Lease.
const PAUSE: Duration = Duration::from_millis(200);
/// A renewal may have been asked for, and what was written meanwhile be told by it, so long before it is seen.
const SEEN_WITHIN: f64 = 1.5;
/// A server that was promoted by hand is stopped within a second of accepting writes; a probe of it may take the rest.
const STOPPED_WITHIN: f64 = 1.5;

/// A watcher.
pub struct Watch {
    stop: Arc<AtomicBool>,
    leases: JoinHandle<BTreeMap<u64, f64>>,
    namespace: String,
}

/// Asks a member by way of its node, which may be cut off from all that watch by the network.
pub struct Inside {
    stop: Arc<AtomicBool>,
    answers: JoinHandle<Vec<Writer>>,
}

/// When it was asked, when it had answered that it accepts writes, which member.
type Writer = (f64, f64, String);

/// What it has seen.
#[derive(Debug)]
pub struct Seen {
    /// The last renewal in each epoch, by the machine's clock.
    renewals: BTreeMap<u64, f64>,
    /// Who accepted writes, in the order of the answers.
    writers: Vec<Writer>,
    /// Whose server was promoted by hand, and when.
    by_hand: Vec<(f64, String)>,
}

impl Watch {
    pub fn start(ns: &Namespace<'_>, db: &Database<'_>) -> Self {
        for pod in MEMBERS {
            ns.script(&format!("ask-{pod}"), &db.psql(&format!("{pod}.pgset"), "select pg_is_in_recovery()"));
            let line = format!(
                "while [ ! -e /tmp/stop ]; do began=$(date +%s.%N); if [ x$(timeout 2 sh /tmp/ask-{pod} 2>/dev/null) = xf ]; then \
                 echo $began $(date +%s.%N) {pod} >> /tmp/writers; fi; sleep 0.2; done",
            );
            ns.shell("client", "client", &format!("({line}) >/dev/null 2>&1 &")).unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (ends, namespace) = (stop.clone(), ns.name.clone());
        let leases = thread::spawn(move || {
            let mut renewals = BTreeMap::new();
            while !ends.load(Ordering::Relaxed) {
                let lease = ["--namespace", &namespace, "get", "lease", "pgset-leader", "--output=json"];
                if let Ok(said) = run(kubectl().args(lease), None)
                    && let Ok(lease) = serde_json::from_str::<Value>(&said.out)
                    && let Some(epoch) = lease["spec"]["leaseTransitions"].as_u64()
                    && let Some(at) =
                        lease["spec"]["renewTime"].as_str().and_then(|text| text.parse::<Timestamp>().ok())
                {
                    renewals.insert(epoch, at.as_duration().as_secs_f64());
                }
                thread::sleep(PAUSE);
            }
            renewals
        });
        Self { stop, leases, namespace: ns.name.clone() }
    }

    /// The machine's clock, as what is seen is noted.
    pub fn time(&self) -> String {
        format!("{:.1} {}", now(), self.namespace)
    }

    /// With what was seen by way of nodes.
    pub fn stop(self, by_hand: Vec<(f64, String)>, inside: Vec<Writer>) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let renewals = self.leases.join().unwrap();
        let words = ["--namespace", &self.namespace, "exec", "client", "--", "cat", "/tmp/writers"];
        let text = run(kubectl().args(words), None).unwrap().out;
        let mut writers: Vec<Writer> = text
            .lines()
            .map(|line| {
                let mut words = line.split(' ');
                let mut number = || words.next().unwrap().parse().unwrap();
                (number(), number(), line.rsplit(' ').next().unwrap().to_owned())
            })
            .chain(inside)
            .collect();
        writers.sort_by(|one, other| one.1.total_cmp(&other.1));
        Seen { renewals, writers, by_hand }
    }
}

impl Inside {
    /// `name` is what its answers are noted under.
    pub fn start(container: Container, db: &Database<'_>, name: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ends, line) = (stop.clone(), db.psql("localhost", "select pg_is_in_recovery()"));
        let answers = thread::spawn(move || {
            let mut answers = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                let began = now();
                if container.shell(&line).is_ok_and(|said| said.trim() == "f") {
                    answers.push((began, now(), name.clone()));
                }
                thread::sleep(PAUSE);
            }
            answers
        });
        Self { stop, answers }
    }

    pub fn stop(self) -> Vec<Writer> {
        self.stop.store(true, Ordering::Relaxed);
        self.answers.join().unwrap()
    }
}

impl Seen {
    pub fn epochs(&self) -> usize {
        self.renewals.len()
    }

    /// Whether a write to a set whose commits wait for nobody may be lost: it came after the last renewal of an epoch that has ended, for
    /// no longer than its master may write after that.
    pub fn may_lack(&self, write: &Write) -> bool {
        let last = self.renewals.keys().last().copied();
        let ended = self.renewals.iter().filter(|(epoch, _)| Some(**epoch) != last);
        ended.map(|(_, renewed)| *renewed).any(|renewed| {
            // Its clock and the client's are one here.
            (renewed - SEEN_WITHIN..renewed + crate::strikes::LONGEST.as_secs_f64()).contains(&write.at)
        })
    }

    /// Two that accept writes at one time would be seen so: one answers, then the other, then the first again. Who was promoted by hand
    /// accepts them until it is stopped.
    pub fn assert_one_writer(&self) {
        let writers: Vec<_> = self.writers.iter().filter(|writer| !self.is_just_promoted_by_hand(writer)).collect();
        for window in writers.windows(3) {
            let [(first, _, one), (_, _, other), (_, last, again)] = window else { continue };
            let is_two = one == again && one != other && last - first < 2.0;
            assert!(!is_two, "two members accept writes: {window:?}, promoted by hand: {:?}", self.by_hand);
        }
        assert!(!self.writers.is_empty(), "nobody was ever seen to accept writes");
    }

    /// Counted from its first answer after the promotion: PostgreSQL may take seconds until it begins.
    fn is_just_promoted_by_hand(&self, (began, _, pod): &(f64, f64, String)) -> bool {
        self.by_hand.iter().filter(|(_, promoted)| promoted == pod).any(|(at, _)| {
            let first = self.writers.iter().find(|(_, answered, writer)| writer == pod && answered > at);
            first.is_some_and(|(first, ..)| (*at..first + STOPPED_WITHIN).contains(began))
        })
    }
}
