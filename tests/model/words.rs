//! From the model's numbers to the words of the code that runs, and back. Every decision about the Lease is made on real objects.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease as LeaseObject, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use pgset::election::lease_record::{
    self, HolderIdentity, LastWord, LeaseRecord, LeaseTimings, Progress, Taking, Told,
};
use pgset::election::lineage::{self, Database, Lineage, Reached};
use pgset::election::step::Seen;
use pgset::election::vote::{self, Answer, Position};
use pgset::election::{Lsn, Master, SystemIdentifier};
use pgset::names::lease as notes;

use crate::world::{Ballot, Described, Pod, Pods, Quorum, Row, Said, Version, Wal, World, each, only};

const SYSTEM: SystemIdentifier = SystemIdentifier(7);
const DURATION: Duration = Duration::from_secs(6);
const TIMES: LeaseTimings = LeaseTimings { duration: DURATION };

pub fn pod(pod: Pod) -> String {
    ["db-0", "db-1", "db-2"][pod].to_owned()
}

pub fn number(pod: &str) -> Pod {
    pod.strip_prefix("db-").unwrap().parse().unwrap()
}

pub fn candidate(number: Pod) -> HolderIdentity {
    HolderIdentity { pod: pod(number), uid: "u".to_owned() }
}

pub fn lsn(at: u8) -> Lsn {
    Lsn(u64::from(at))
}

fn small(number: impl TryInto<u8>) -> u8 {
    number.try_into().ok().unwrap()
}

pub fn version(number: Version) -> vote::Version {
    vote::Version::new("uid", &number.to_string())
}

fn names(pods: Pods) -> BTreeSet<String> {
    each(pods).map(pod).collect()
}

fn pods(names: &BTreeSet<String>) -> Pods {
    names.iter().map(|name| only(number(name))).sum()
}

pub fn quorum(quorum: Quorum) -> vote::Quorum {
    vote::Quorum { names: names(quorum.names), confirm: u32::from(quorum.confirm) }
}

pub fn small_quorum(quorum: &vote::Quorum) -> Quorum {
    Quorum { names: pods(&quorum.names), confirm: small(quorum.confirm) }
}

pub fn told(voters: Pods, quorum: &vote::Quorum) -> Told {
    Told { voters: names(voters), quorum: quorum.clone(), ..Told::default() }
}

pub fn position(timeline: u8, at: u8) -> Position {
    Position { timeline: u32::from(timeline), at: lsn(at) }
}

pub fn master(described: Described) -> Master {
    let Described { pod: number, timeline, begins } = described;
    Master {
        pod: pod(number),
        address: pod(number),
        port: 5432,
        system: SYSTEM,
        timeline: u32::from(timeline),
        oldest_wal: None,
        begins: begins.map(lsn),
    }
}

pub fn described(master: &Master) -> Described {
    Described {
        pod: number(&master.pod),
        timeline: small(master.timeline),
        begins: master.begins.map(|begins| small(begins.0)),
    }
}

pub fn database(reached: Option<Reached>) -> Database {
    Database { system: SYSTEM, reached }
}

/// The database of a leadership, as its note has it.
pub fn lineage_of(master: Described) -> Database {
    let Described { timeline, begins, .. } = master;
    database(Some(Reached { timeline: u32::from(timeline), begins: begins.map(lsn), flushed: None, stopped_at: None }))
}

pub fn system() -> SystemIdentifier {
    SYSTEM
}

pub fn answers(ballot: &Ballot) -> BTreeMap<String, Answer> {
    let said = ballot.answers.iter().enumerate().filter_map(|(number, said)| Some((pod(number), (*said)?)));
    let answer = |said| match said {
        Said::Granted { timeline, at } => Answer::Granted(position(timeline, at)),
        Said::Returns => Answer::Returns,
    };
    said.map(|(pod, said)| (pod, answer(said))).collect()
}

pub fn said(answer: &Answer) -> Option<Said> {
    match answer {
        Answer::Granted(Position { timeline, at }) => {
            Some(Said::Granted { timeline: small(*timeline), at: small(at.0) })
        }
        Answer::Returns => Some(Said::Returns),
        Answer::Refused(_) => None,
    }
}

/// Where a log stands in the history, as its files say it.
pub fn lineage(world: &World, wal: Wal, stopped_at: Option<u8>) -> Lineage {
    let mut branches = Vec::new();
    let mut branch = world.branch(wal.branch);
    while branch.timeline > 1 {
        let parent = world.branch(branch.parent);
        branches.push(lineage::Branch { timeline: u32::from(parent.timeline), left_at: lsn(branch.at) });
        branch = parent;
    }
    branches.reverse();
    Lineage { timeline: u32::from(world.timeline(wal)), stopped_at: stopped_at.map(lsn), branches, unrewindable: None }
}

/// Where `pg_rewind` finds that two histories part: it goes by the numbers of timelines and where they begin.
pub fn parts_at(world: &World, here: Wal, there: Wal) -> u8 {
    let history = |wal: Wal| {
        let lineage = lineage(world, wal, None);
        let ends = lineage.branches.iter().map(|branch| (branch.timeline, branch.left_at));
        let ends: Vec<_> = ends.chain([(lineage.timeline, lsn(wal.len))]).collect();
        let begins: Vec<_> = std::iter::once(lsn(0)).chain(ends.iter().map(|(_, end)| *end)).collect();
        ends.into_iter().zip(begins).collect::<Vec<_>>()
    };
    let (here, there) = (history(here), history(there));
    let both =
        here.iter().zip(&there).take_while(|(((mine, _), from), ((theirs, _), since))| mine == theirs && from == since);
    both.last().map_or(0, |(((_, mine), _), ((_, theirs), _))| small((*mine).min(*theirs).0))
}

// The Lease.

pub fn lease_record(row: &Row) -> LeaseRecord {
    LeaseRecord::read(&object(row), DURATION)
}

/// The Lease as the API server has it.
pub fn object(row: &Row) -> LeaseObject {
    let quorum = format!("{} of {}", row.quorum.confirm, join(row.quorum.names));
    let mut annotations = BTreeMap::from([
        (notes::SYSTEM_IDENTIFIER.to_owned(), SYSTEM.to_string()),
        (notes::TIMELINE.to_owned(), row.timeline.to_string()),
        (notes::VOTERS.to_owned(), join(row.voters)),
        (notes::QUORUM.to_owned(), quorum),
    ]);
    let positions =
        [(notes::TIMELINE_BEGINS, row.begins), (notes::FLUSHED, row.flushed), (notes::STOPPED_AT, row.stopped_at)];
    for (key, at) in positions {
        annotations.extend(at.map(|at| (key.to_owned(), lsn(at).to_string())));
    }
    if let (Some(holder), Some(life)) = (row.holder, row.instance) {
        annotations.insert(notes::INSTANCE.to_owned(), instance(holder, life));
    }
    if let Some(holder) = row.holder.filter(|_| row.is_announced) {
        annotations.insert(notes::ADDRESS.to_owned(), pod(holder));
        annotations.insert(notes::PORT.to_owned(), "5432".to_owned());
    }
    let spec = LeaseSpec {
        holder_identity: row.holder.map(|holder| candidate(holder).to_string()),
        lease_transitions: Some(i32::from(row.epoch)),
        lease_duration_seconds: Some(6),
        ..LeaseSpec::default()
    };
    let metadata = ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() };
    LeaseObject { metadata, spec: Some(spec) }
}

/// The same, in the state of that number.
pub fn object_at(row: &Row, version: Version) -> LeaseObject {
    let mut lease = object(row);
    lease.metadata.resource_version = Some(version.to_string());
    lease
}

fn join(pods: Pods) -> String {
    names(pods).into_iter().collect::<Vec<_>>().join(",")
}

/// What a Lease says, in the model's numbers; `branch` is what only the model knows of it.
pub fn row(lease: &LeaseObject, branch: u8) -> Row {
    let lease_record = LeaseRecord::read(lease, DURATION);
    let reached = lease_record.set.and_then(|set| set.reached).unwrap();
    Row {
        holder: lease_record.holder.as_deref().and_then(HolderIdentity::parse).map(|candidate| number(&candidate.pod)),
        epoch: small(lease_record.record.epoch),
        is_announced: lease_record.master.is_some(),
        timeline: small(reached.timeline),
        begins: reached.begins.map(|at| small(at.0)),
        flushed: reached.flushed.map(|at| small(at.0)),
        stopped_at: reached.stopped_at.map(|at| small(at.0)),
        voters: pods(&lease_record.record.voters),
        quorum: small_quorum(&lease_record.record.quorum),
        instance: lease_record.instance.and_then(|word| Some(word.split_once(" of ")?.0.parse().unwrap())),
        branch,
    }
}

/// The word of a life of a member's container.
pub fn instance(pod: Pod, life: u8) -> String {
    format!("{life} of {pod}")
}

pub fn acquired(seen: &Row, by: Pod, taking: &Taking) -> LeaseObject {
    lease_record::acquired(&object(seen), &candidate(by).to_string(), taking, TIMES, Timestamp::UNIX_EPOCH)
}

/// As a member writes it, in that life.
pub fn by(lease: LeaseObject, pod: Pod, life: u8) -> LeaseObject {
    lease_record::by(lease, &candidate(pod).to_string(), Some(&instance(pod, life)))
}

/// The Lease as it was read.
pub fn seen(row: &Row, number: Version) -> Seen {
    let lease_record = lease_record(row);
    let LeaseRecord { holder, record, instance, successor, order_done, .. } = lease_record;
    Seen { version: version(number), holder, record, instance, successor, order_done }
}

pub fn renewed(held: &LeaseObject, announced: Option<(Described, u8)>, told: Option<&Told>) -> LeaseObject {
    let announced = announced.map(|(described, flushed)| {
        let begins = described.begins.map(lsn);
        (master(described), Progress { begins, flushed: Some(lsn(flushed)) })
    });
    let announced = announced.as_ref().map(|(master, progress)| (master, *progress));
    lease_record::renewed(held, announced, told, TIMES, Timestamp::UNIX_EPOCH)
}

pub fn released(held: &Row, last_word: Option<&LastWord>) -> LeaseObject {
    lease_record::released(&object(held), last_word, Timestamp::UNIX_EPOCH)
}
