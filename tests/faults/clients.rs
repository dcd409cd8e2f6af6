//! Clients that write unique numbers through the Service, each in its own transaction, and note which were acknowledged and when.

use std::collections::BTreeSet;

use crate::lab::{Database, Namespace, SOON, wait_until};

/// So many write beside each other.
const WRITERS: u64 = 3;
/// Each has numbers of its own.
const NUMBERS: u64 = 1_000_000;

/// The writers, in the pod `client`.
pub struct Clients<'ns>(&'ns Namespace<'ns>);

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    pub number: u64,
    /// When its client began with it, in seconds of the machine's clock.
    pub began: f64,
    /// When it had the acknowledgement.
    pub at: f64,
}

impl<'ns> Clients<'ns> {
    pub fn start(ns: &'ns Namespace<'ns>, db: &Database<'_>) -> Self {
        ns.script("write", &db.psql("pgset-master", "insert into numbers values ($1)"));
        for writer in 0..WRITERS {
            // A client that gives up closes its connection: the server may commit all the same, and nobody was told.
            let line = format!(
                "n={}; while [ ! -e /tmp/stop ]; do n=$((n+1)); b=$(date +%s.%N); if timeout 8 sh /tmp/write $n >/dev/null 2>&1; then \
                 echo $n $b $(date +%s.%N) >> /tmp/acknowledged-{writer}; else sleep 0.05; fi; done; touch /tmp/stopped-{writer}",
                writer * NUMBERS,
            );
            ns.shell("client", "client", &format!("({line}) >/dev/null 2>&1 &")).unwrap();
        }
        Self(ns)
    }

    /// Ends them, and tells what was acknowledged to them.
    pub fn stop(self) -> Vec<Write> {
        let shell = |line: &str| self.0.shell("client", "client", line).map_err(|said| said.err);
        shell("touch /tmp/stop").unwrap();
        wait_until(SOON, "the clients have ended", || shell(&format!("test $(ls /tmp/stopped-* | wc -l) = {WRITERS}")));
        let text = shell("cat /tmp/acknowledged-*").unwrap().out;
        text.lines()
            .map(|line| {
                let mut words = line.split(' ');
                let mut word = || words.next().unwrap();
                let (number, began, at) = (word(), word(), word());
                Write { number: number.parse().unwrap(), began: began.parse().unwrap(), at: at.parse().unwrap() }
            })
            .collect()
    }
}

/// How long no client was acknowledged anything, at the longest, between two times.
pub fn longest_gap(acknowledged: &[Write], from: f64, to: f64) -> f64 {
    let mut times: Vec<f64> = acknowledged.iter().map(|write| write.at).filter(|at| (from..to).contains(at)).collect();
    times.extend([from, to]);
    times.sort_by(f64::total_cmp);
    times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
}

/// The numbers that are there.
pub fn present(db: &Database<'_>) -> BTreeSet<u64> {
    present_at(db, "pgset-master")
}

/// The numbers that are there, by the word of a server.
pub fn present_at(db: &Database<'_>, host: &str) -> BTreeSet<u64> {
    db.at(host, "select n from numbers").unwrap().lines().map(|line| line.parse().unwrap()).collect()
}
