//! After all faults, with a store that was killed again and again as well, any moment can be restored: with every row that was acknowledged by then,
//! and none that was begun later.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::chance::Chance;
use crate::clients::{Write, present_at};
use crate::lab::{self, Namespace, pgset, wait_until};
use crate::manifests::{Set, set};
use crate::store::{Kind, Server};
use crate::{Beside, endure, number, the_lab};

/// So many moments are restored.
const MOMENTS: u32 = 20;
/// A base backup, or what waits for a store that was away.
const STORED: std::time::Duration = std::time::Duration::from_secs(300);

/// A set's store, which is killed with every other fault.
struct Store<'ns> {
    ns: &'ns Namespace<'ns>,
    server: Server,
    faults: u32,
}

impl Beside for Store<'_> {
    fn set(&self, set: Set) -> Set {
        set.annotation("pgset.dev/backup", &self.server.location("db")).annotation("pgset.dev/archive-timeout", "5s")
    }

    fn ready(&mut self) {
        wait_until(STORED, "a base backup", || {
            let told = listed(self.ns)?;
            if told["count"].as_u64() >= Some(1) { Ok(()) } else { Err(told.to_string()) }
        });
    }

    fn struck(&mut self) {
        self.faults += 1;
        if self.faults.is_multiple_of(2) {
            println!("  and the store is killed");
            self.server.stop();
        }
    }

    fn ended(&mut self) {
        if self.faults.is_multiple_of(2) {
            self.server.start_again();
        }
        // Some moments are to be restored from what changed since a full backup.
        if self.faults.is_multiple_of(4) {
            match pgset(&format!("backup now sts/pgset -n {}", self.ns.name)) {
                Ok(_) => println!("  and a base backup is ordered"),
                Err(said) => println!("  no base backup is ordered: {}", said.err),
            }
        }
    }
}

fn listed(ns: &Namespace<'_>) -> Result<Value, String> {
    let said = pgset(&format!("backup list sts/pgset -n {} -o json", ns.name)).map_err(|said| said.err)?;
    serde_json::from_str(&said.out).map_err(|error| error.to_string())
}

fn time(seconds: f64) -> Timestamp {
    Timestamp::UNIX_EPOCH + std::time::Duration::from_secs_f64(seconds)
}

/// What must be there at a moment and is not, and what is there and was begun later.
fn wrong(writes: &[Write], there: &BTreeSet<u64>, moment: f64) -> (Vec<Write>, Vec<Write>) {
    let missing = writes.iter().filter(|write| write.at < moment && !there.contains(&write.number));
    let early = writes.iter().filter(|write| write.began > moment && there.contains(&write.number));
    (missing.copied().collect(), early.copied().collect())
}

#[test]
#[ignore = "make moments: it takes as long as its faults, and twenty restores"]
fn after_faults_any_moment_can_be_restored() {
    let lab = the_lab();
    let ns = lab.namespace("moments");
    let seed = number("PGSET_FAULTS_SEED").unwrap_or(1);
    println!("PGSET_FAULTS_SEED={seed}");
    let server = Server::start(Kind::Versitygw, &ns, "pgset", 17075);
    let mut store = Store { ns: &ns, server, faults: 0 };
    let writes = endure(&ns, seed, true, &mut store);

    let db = ns.database("pgset");
    let last = db.master(lab::END_SEGMENT);
    wait_until(STORED, &format!("{last} is stored"), || {
        let told = listed(&ns)?;
        let archived = told["archived"].as_str().unwrap_or_default();
        let is_stored = archived >= last.as_str() && told["waiting"] == 0 && told["trouble"].is_null();
        if is_stored { Ok(()) } else { Err(told.to_string()) }
    });
    let timeline = &last[..8];
    let backups = listed(&ns).unwrap()["backups"].clone();
    let kinds: Vec<_> = backups.as_array().unwrap().iter().map(|it| it["parent"].is_string()).collect();
    let upon = kinds.iter().filter(|it| **it).count();
    println!(
        "{} writes, up to timeline {timeline}; {} backups, {upon} of them of what had changed",
        writes.len(),
        kinds.len()
    );
    let secret = &ns.get("secret pgset-pgset-credentials")["data"]["postgres-password"];
    let password = lab::decoded(secret.as_str().unwrap()).unwrap();
    let times: Vec<f64> = writes.iter().map(|write| write.at).collect();
    let (first, end) = times.iter().fold((f64::MAX, 0.0_f64), |(low, high), at| (low.min(*at), high.max(*at)));
    let mut chance = Chance::of(seed);
    for n in 0..MOMENTS {
        let moment = first + (end - first) * f64::from(u32::try_from(chance.below(1_000_000)).unwrap()) / 1e6;
        let name = format!("at-{n}");
        let from = set(&name).replicas(1).annotation("pgset.dev/restore-from", &store.server.location("db"));
        store.server.give(&ns, &name);
        ns.apply(&from.annotation("pgset.dev/recover-to", &time(moment).to_string()).manifest());
        ns.wait_ready(&name, 1);
        let copy = ns.database_as(&name, "postgres", &password, "postgres");
        let there = present_at(&copy, &format!("{name}-master"));
        let (missing, early) = wrong(&writes, &there, moment);
        println!("{}: {} rows, {} missing, {} too early", time(moment), there.len(), missing.len(), early.len());
        assert!(missing.is_empty() && early.is_empty(), "missing {missing:?}, too early {early:?}");
        ns.kubectl(&format!("delete statefulset {name} --cascade=foreground --timeout=60s"));
    }
}
