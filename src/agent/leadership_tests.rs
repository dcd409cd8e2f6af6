//! The keeper of the Lease against an API server that answers by the test's orders. Time stands still but for what is awaited, so a
//! sentence about seconds is exact.

use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::agent::electorate::tests::{answering, nobody};
use crate::agent::electorate::{Question, Reply};
use crate::agent::fencer::Order;
use crate::election::lease_record::{LastWord, Progress, Taking};
use crate::election::leave;
use crate::election::lineage::{Database, Reached};
use crate::election::vote::{self, Version};
use crate::election::{Lsn, SystemIdentifier};
use crate::invariants::Invariant;

const SECOND: Duration = Duration::from_secs(1);

/// What the API server does with requests, and the Lease that it keeps.
#[derive(Clone)]
struct ApiServer(Arc<Mutex<World>>);

struct World {
    lease: Value,
    version: u64,
    reachable: bool,
    writes: Vec<Value>,
    /// Whom it stores as the holder, whoever was written.
    meddles: Option<&'static str>,
}

impl ApiServer {
    fn new(spec: &Value) -> Self {
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "pgset-leader", "namespace": "shop", "resourceVersion": "1"}, "spec": spec});
        Self(Arc::new(Mutex::new(World { lease, version: 1, reachable: true, writes: Vec::new(), meddles: None })))
    }

    fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.0.lock().unwrap());
    }

    /// Somebody else writes the Lease.
    fn write(&self, spec: Value) {
        self.change(|world| {
            world.version += 1;
            world.lease["metadata"]["resourceVersion"] = json!(world.version.to_string());
            world.lease["spec"] = spec;
        });
    }

    fn holder(&self) -> Option<String> {
        self.0.lock().unwrap().lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }

    fn lease_record(&self) -> LeaseRecord {
        let stored: LeaseObject = serde_json::from_value(self.0.lock().unwrap().lease.clone()).unwrap();
        LeaseRecord::read(&stored, SECOND)
    }

    fn remembers(&self) -> Option<Database> {
        self.lease_record().set
    }

    fn client(&self) -> Client {
        let (service, mut handle) = tower_test::mock::pair::<axum::http::Request<Body>, axum::http::Response<Body>>();
        let world = self.0.clone();
        tokio::spawn(async move {
            while let Some((request, respond)) = handle.next_request().await {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let watches = parts.uri.query().is_some_and(|query| query.contains("watch="));
                let mut world = world.lock().unwrap();
                if !world.reachable || watches {
                    // Neither an answer nor an end: what a network does that drops packets, and a watch without events.
                    std::mem::forget(respond);
                    continue;
                }
                let (code, answer) = world.answer(parts.method.as_str(), parts.uri.path(), &body);
                respond.send_response(
                    axum::http::Response::builder()
                        .status(code)
                        .body(Body::from(answer.to_string().into_bytes()))
                        .unwrap(),
                );
            }
        });
        Client::new(service, "shop")
    }

    fn start(&self, pod: &str, uid: &str) -> Handle {
        let me = HolderIdentity { pod: pod.to_owned(), uid: uid.to_owned() };
        self.start_with(me, fencing::tests::obedient().0)
    }

    fn parts(&self, me: HolderIdentity, fencer: fencing::Handle) -> Parts {
        Parts {
            client: self.client(),
            namespace: "shop".to_owned(),
            name: "pgset-leader".to_owned(),
            me,
            times: LeaseTimings::of_seconds(6),
            fencer,
            instance: None,
            promises: Promises::default(),
            electorate: nobody(),
            earlier: None,
        }
    }

    fn start_with(&self, me: HolderIdentity, fencer: fencing::Handle) -> Handle {
        start(self.parts(me, fencer)).0
    }
}

impl World {
    fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        if method == "PUT" {
            let mut sent: Value = serde_json::from_slice(body).unwrap();
            if sent["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"] {
                return (
                    409,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409, "reason": "Conflict", "message": "changed"}),
                );
            }
            self.version += 1;
            sent["metadata"]["resourceVersion"] = json!(self.version.to_string());
            if let Some(holder) = self.meddles {
                sent["spec"]["holderIdentity"] = json!(holder);
            }
            self.writes.push(sent.clone());
            self.lease = sent;
        } else if !path.ends_with("/pgset-leader") {
            return (
                200,
                json!({"kind": "LeaseList", "apiVersion": "coordination.k8s.io/v1", "metadata": {"resourceVersion": self.version.to_string()}, "items": [self.lease]}),
            );
        }
        (200, self.lease.clone())
    }
}

/// Waits until the view says so, for a limited (paused) time.
async fn until(handle: &Handle, what: &str, says: impl Fn(&Lease) -> bool) {
    for _ in 0..600 {
        if says(&handle.view().at(Instant::now())) {
            return;
        }
        sleep(SECOND / 20).await;
    }
    panic!("{what}: {:?}", handle.view());
}

async fn take(handle: &Handle) {
    let version = handle.view().seen().map(|seen| seen.version.clone()).expect("the Lease was read");
    handle.take(version, Taking::default()).await;
}

fn mine(lease: &Lease) -> bool {
    matches!(lease, Lease::Held { .. })
}

fn vacant(lease: &Lease) -> bool {
    matches!(lease, Lease::Vacant { .. })
}

async fn a_leader(server: &ApiServer) -> Handle {
    let handle = server.start("pgset-0", "a");
    until(&handle, "nobody holds it", vacant).await;
    take(&handle).await;
    until(&handle, "taken", mine).await;
    handle
}

#[tokio::test(start_paused = true)]
async fn a_vacant_lease_is_taken_and_kept() {
    let server = ApiServer::new(&json!({}));
    let handle = a_leader(&server).await;
    sleep(SECOND * 60).await;
    assert!(mine(&handle.view().at(Instant::now())));
    assert_eq!(server.holder().as_deref(), Some("pgset-0/a"));
    let writes = server.0.lock().unwrap().writes.len();
    assert!((28..=33).contains(&writes), "{writes} writes in a minute");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_leading_before_anyone_else_may_begin() {
    let server = ApiServer::new(&json!({}));
    let leader = a_leader(&server).await;
    let candidate = server.start("pgset-1", "b");
    until(&candidate, "another one leads", |lease| matches!(lease, Lease::HeldByOther { .. })).await;
    // The candidate read the Lease a moment ago, after the leader's last renewal.
    server.change(|world| world.reachable = false);
    let cut_off = Instant::now();
    until(&leader, "fenced", |lease| !mine(lease)).await;
    let fenced = cut_off.elapsed();
    server.change(|world| world.reachable = true);
    until(&candidate, "vacant for the candidate", vacant).await;
    let vacant = cut_off.elapsed();
    assert!(fenced <= SECOND * 4 + SECOND / 10, "fenced after {fenced:?}");
    assert!(vacant >= fenced + SECOND, "vacant after {vacant:?}, fenced after {fenced:?}");
}

/// What a member knows that leads in that epoch.
pub fn leading_in(epoch: u32) -> LeaseSnapshot {
    let version = Version::new("lease", "1");
    let record = vote::Record { epoch, ..vote::Record::default() };
    let seen =
        Seen { version, holder: Some("db-0/a".into()), record, instance: None, successor: None, order_done: None };
    let fence_at = Some(Instant::now() + SECOND);
    LeaseSnapshot { lease: Lease::Held { set: None }, fence_at, trouble: None, seen: Some(seen), by_leave: false }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_not_stored_as_it_was_written_ends_leadership_and_counts_as_a_bug() {
    let server = ApiServer::new(&json!({}));
    let leader = a_leader(&server).await;
    let before = Invariant::LeaseIsAsWritten.count();
    server.change(|world| world.meddles = Some("pgset-1/b"));
    until(&leader, "another one's", |lease| matches!(lease, Lease::HeldByOther { .. })).await;
    assert_eq!(Invariant::LeaseIsAsWritten.count(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_another_took_learns_it_at_its_next_renewal() {
    let server = ApiServer::new(&json!({}));
    let leader = a_leader(&server).await;
    server.write(json!({"holderIdentity": "pgset-1/b", "leaseDurationSeconds": 6}));
    until(&leader, "another one leads", |lease| matches!(lease, Lease::HeldByOther { .. })).await;
    assert_eq!(server.holder().as_deref(), Some("pgset-1/b"), "it was not written over");
}

#[tokio::test(start_paused = true)]
async fn a_note_by_somebody_else_does_not_end_leadership() {
    let server = ApiServer::new(&json!({}));
    let leader = a_leader(&server).await;
    let spec = server.0.lock().unwrap().lease["spec"].clone();
    server.write(spec);
    sleep(SECOND * 10).await;
    assert!(mine(&leader.view().at(Instant::now())));
}

#[tokio::test(start_paused = true)]
async fn an_earlier_pod_of_the_same_name_is_waited_for_and_an_earlier_life_of_this_one_is_not() {
    let held = json!({"holderIdentity": "pgset-0/a", "leaseDurationSeconds": 6});
    let successor = ApiServer::new(&held).start("pgset-0", "b");
    until(&successor, "the predecessor", |lease| *lease == Lease::HeldByPreviousPod).await;
    let began = Instant::now();
    until(&successor, "vacant", vacant).await;
    assert!(began.elapsed() >= SECOND * 5, "{:?}", began.elapsed());

    let same = ApiServer::new(&held).start("pgset-0", "a");
    until(&same, "vacant at once", vacant).await;
}

fn master() -> Master {
    Master {
        pod: "pgset-0".into(),
        address: "198.18.0.5".into(),
        port: 5432,
        system: SystemIdentifier(7),
        timeline: 3,
        oldest_wal: None,
        begins: Some(Lsn(50)),
    }
}

#[tokio::test(start_paused = true)]
async fn a_master_tells_where_it_answers_and_takes_it_back_when_it_leaves() {
    let server = ApiServer::new(&json!({}));
    let leader = a_leader(&server).await;
    let master = master();
    let system = master.system;
    leader.note(Progress { begins: Some(Lsn(50)), flushed: Some(Lsn(90)) });
    leader.announce(master.clone()).await;
    let other = server.start("pgset-1", "b");
    until(&other, "the master", |lease| *lease == Lease::HeldByOther { master: Some(master.clone()) }).await;

    leader.note(Progress { begins: Some(Lsn(50)), flushed: Some(Lsn(100)) });
    sleep(SECOND * 3).await;
    let reached = Reached { timeline: 3, begins: Some(Lsn(50)), flushed: Some(Lsn(100)), stopped_at: None };
    assert_eq!(
        server.remembers(),
        Some(Database { system, reached: Some(reached) }),
        "a renewal says how far it has come"
    );

    let stopped = Reached { flushed: Some(Lsn(120)), stopped_at: Some(Lsn(120)), ..reached };
    leader
        .release(Some(LastWord { database: Some(Database { system, reached: Some(stopped) }), ..LastWord::default() }))
        .await;
    let lease_record = server.lease_record();
    assert_eq!((lease_record.holder, lease_record.master), (None, None));
    assert_eq!(
        lease_record.set,
        Some(Database { system, reached: Some(stopped) }),
        "what the set is and has reached stays"
    );

    until(&other, "vacant", vacant).await;
    // The first one reads the Lease again, as no watch told of the release.
    take(&other).await;
    take(&other).await;
    until(&other, "taken", mine).await;
    let begun = Reached { stopped_at: None, ..stopped };
    assert_eq!(server.remembers(), Some(Database { system, reached: Some(begun) }), "from now on it may be written to");
    other.release(None).await;
    assert_eq!(
        server.remembers(),
        Some(Database { system, reached: Some(begun) }),
        "who has led nothing has nothing to say"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_master_knows_of_the_others_goes_along_with_its_renewals_and_ends_with_its_leadership() {
    let server = ApiServer::new(&json!({}));
    let leader = a_leader(&server).await;
    let told = || members::read(&serde_json::from_value(server.0.lock().unwrap().lease.clone()).unwrap());
    let writes = || server.0.lock().unwrap().writes.len();
    let seen = vec![members::Seen::absent("pgset-1".to_owned())];
    leader.note_members(seen.clone());
    sleep(SECOND * 3).await;
    assert_eq!(told(), None, "it does not accept connections yet");

    leader.announce(master()).await;
    sleep(SECOND / 10).await;
    assert_eq!(told(), Some(seen));
    let before = writes();
    leader.note_members(vec![members::Seen::absent("pgset-2".to_owned())]);
    sleep(SECOND).await;
    assert_eq!(writes(), before, "news of the others is no reason for a request");
    sleep(SECOND * 2).await;
    assert_eq!(told().unwrap()[0].pod, "pgset-2");

    leader.release(None).await;
    assert_eq!(told(), None);
}

#[tokio::test(start_paused = true)]
async fn a_replica_names_the_database_of_a_lease_that_knows_none() {
    let server = ApiServer::new(&json!({}));
    let leader = a_leader(&server).await;
    let reached = Reached { timeline: 2, begins: Some(Lsn(50)), flushed: None, stopped_at: None };
    let database = Database { system: SystemIdentifier(7), reached: Some(reached) };
    leader.release(Some(LastWord { database: Some(database), ..LastWord::default() })).await;
    assert_eq!((server.holder(), server.remembers()), (None, Some(database)));
    until(&leader, "vacant", |lease| *lease == Lease::Vacant { set: Some(database) }).await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_is_no_member_is_a_trouble_that_begins_when_it_is_first_seen() {
    let server = ApiServer::new(&json!({"holderIdentity": "somebody-else", "leaseDurationSeconds": 600}));
    let handle = server.start("pgset-0", "uid");
    sleep(SECOND).await;
    let trouble = handle.view().trouble().cloned().unwrap();
    assert!(trouble.why.contains("somebody-else"), "{}", trouble.why);
    sleep(SECOND * 30).await;
    assert_eq!(handle.view().trouble().unwrap().since, trouble.since);
    assert!(trouble.since.elapsed() >= SECOND * 30);
}

#[tokio::test(start_paused = true)]
async fn another_member_that_leads_is_no_trouble() {
    let server = ApiServer::new(&json!({"holderIdentity": "pgset-1/uid", "leaseDurationSeconds": 600}));
    let handle = server.start("pgset-0", "uid");
    sleep(SECOND).await;
    assert_eq!(handle.view().trouble(), None);
}

fn me() -> HolderIdentity {
    HolderIdentity { pod: "pgset-0".into(), uid: "a".into() }
}

#[tokio::test(start_paused = true)]
async fn nobody_leads_without_a_fencer() {
    let server = ApiServer::new(&json!({}));
    let fencer = fencing::Handle::new();
    let handle = server.start_with(me(), fencer);
    until(&handle, "nobody holds it", vacant).await;
    take(&handle).await;
    sleep(SECOND * 10).await;
    assert!(vacant(&handle.view().at(Instant::now())));
    assert_eq!(server.holder(), None);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_no_fencer_knows_of_does_not_count() {
    let server = ApiServer::new(&json!({}));
    let (fencer, other_end) = fencing::tests::obedient();
    let leader = server.start_with(me(), fencer);
    until(&leader, "nobody holds it", vacant).await;
    take(&leader).await;
    until(&leader, "taken", mine).await;
    other_end.shutdown(std::net::Shutdown::Both).unwrap();
    let died = Instant::now();
    until(&leader, "fenced", |lease| !mine(lease)).await;
    assert!(died.elapsed() <= SECOND * 4 + SECOND / 10, "after {:?}", died.elapsed());
    assert_eq!(server.holder().as_deref(), Some("pgset-0/a"), "nobody else may lead before it has expired");
}

#[tokio::test(start_paused = true)]
async fn every_renewal_moves_the_fencers_deadline_and_only_the_end_of_leadership_takes_it_away() {
    let server = ApiServer::new(&json!({}));
    let (fencer, _other_end) = fencing::tests::obedient();
    let leader = server.start_with(me(), fencer.clone());
    until(&leader, "nobody holds it", vacant).await;
    assert_eq!(fencing::tests::in_force(&fencer), Order::Stand);
    take(&leader).await;
    until(&leader, "taken", mine).await;
    let first = fencing::tests::in_force(&fencer);
    sleep(SECOND * 3).await;
    let second = fencing::tests::in_force(&fencer);
    let (Order::KillAt(first), Order::KillAt(second)) = (first, second) else { panic!("{first:?} {second:?}") };
    assert!(second > first);
    leader.stand_down();
    assert_eq!(fencing::tests::in_force(&fencer), Order::KillAt(second), "it leads");

    server.change(|world| world.reachable = false);
    until(&leader, "fenced", |lease| !mine(lease)).await;
    sleep(SECOND).await;
    assert_eq!(fencing::tests::in_force(&fencer), Order::KillAt(second), "PostgreSQL may not have stopped");
    leader.stand_down();
    assert_eq!(fencing::tests::in_force(&fencer), Order::Stand);
}

#[tokio::test(start_paused = true)]
async fn what_takes_long_is_not_cut_off_while_the_lease_is_renewed_and_is_when_it_was_not_in_time() {
    let server = ApiServer::new(&json!({}));
    let leader = server.start_with(me(), fencing::tests::obedient().0);
    until(&leader, "nobody holds it", vacant).await;
    let strikes = leader.fence_strikes();
    let mut strikes = std::pin::pin!(strikes);
    take(&leader).await;
    until(&leader, "taken", mine).await;
    assert!(timeout(SECOND * 60, &mut strikes).await.is_err(), "renewals move the moment");
    server.change(|world| world.reachable = false);
    let cut_off = Instant::now();
    timeout(SECOND * 60, strikes).await.unwrap();
    assert!(cut_off.elapsed() >= SECOND * 2 && cut_off.elapsed() <= SECOND * 4, "{:?}", cut_off.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_given_back_leaves_nothing_to_fence() {
    let server = ApiServer::new(&json!({}));
    let (fencer, _other_end) = fencing::tests::obedient();
    let leader = server.start_with(me(), fencer.clone());
    until(&leader, "nobody holds it", vacant).await;
    take(&leader).await;
    until(&leader, "taken", mine).await;
    leader.release(None).await;
    assert_eq!(fencing::tests::in_force(&fencer), Order::Stand);
}

#[tokio::test(start_paused = true)]
async fn a_member_ends_at_once_while_the_lease_can_not_be_read() {
    let api = ApiServer::new(&json!({}));
    api.change(|world| world.reachable = false);
    let handle = api.start("pgset-0", "a");
    let asked = Instant::now();
    tokio::time::timeout(30 * SECOND, handle.release(None)).await.expect("it waits for a Lease that it does not hold");
    assert!(asked.elapsed() < SECOND, "after {:?}", asked.elapsed());
    // and what it waits for is read all the same, for a member that goes on
    api.change(|world| world.reachable = true);
    until(&handle, "the Lease is read", |lease| matches!(lease, Lease::Vacant { .. })).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_deleted_under_its_holder_is_his_to_take_again() {
    let server = ApiServer::new(&json!({}));
    let me = HolderIdentity { pod: "pgset-0".into(), uid: "a".into() };
    let view = LeaseSnapshot { lease: Lease::Unknown, fence_at: None, trouble: None, seen: None, by_leave: false };
    let (noted, publish) = (watch::channel(Noted::default()).1, watch::channel(view).0);
    let mut elector =
        LeaderElector::new(server.parts(me, fencing::Handle::new()), noted, watch::channel(None).1, publish);
    let lease = |uid: &str, holder: Option<&str>| -> LeaseObject {
        serde_json::from_value(json!({"metadata": {"name": "pgset-leader", "uid": uid, "resourceVersion": uid},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 6}}))
        .unwrap()
    };
    elector.observe(lease("1", Some("pgset-1/b")));
    sleep(SECOND).await;
    elector.observe(lease("2", None));
    assert_eq!(elector.classify(), Lease::Unknown, "an empty member would make another database");
    tokio::time::timeout(SECOND * 6, elector.next_deadline()).await.unwrap();
    assert_eq!(elector.classify(), Lease::Vacant { set: None });
    elector.observe(lease("3", None));
    assert_eq!(elector.classify(), Lease::Vacant { set: None }, "nobody held it");
}

/// The members of a set of three, as a master records them.
fn three() -> Told {
    Told { voters: ["pgset-0", "pgset-1", "pgset-2"].map(str::to_owned).into(), ..Told::default() }
}

/// What the other members answer a master, by their pods.
type Word = fn(&str) -> Option<leave::Answer>;

/// A leader of three members, the other two of which answer so, when the API server goes away.
async fn cut_off(server: &ApiServer, word: impl Fn(&str) -> Option<leave::Answer> + Send + Sync + 'static) -> Handle {
    let mut parts = server.parts(me(), fencing::tests::obedient().0);
    parts.electorate = answering(&["pgset-1", "pgset-2"], move |pod, question| match question {
        Question::Leave(_) => word(pod).map(Reply::Leave),
        _ => None,
    });
    let leader = start(parts).0;
    until(&leader, "nobody holds it", vacant).await;
    take(&leader).await;
    until(&leader, "taken", mine).await;
    leader.tell(three()).await;
    sleep(SECOND / 10).await;
    assert_eq!(server.lease_record().record.voters, three().voters, "who may stand is recorded at once");
    server.change(|world| world.reachable = false);
    leader
}

#[tokio::test(start_paused = true)]
async fn without_the_api_server_a_master_leads_on_while_every_other_member_confirms_it() {
    let server = ApiServer::new(&json!({}));
    let leader = cut_off(&server, |_| Some(leave::Answer::Confirmed)).await;
    for _ in 0..300 {
        sleep(SECOND).await;
        assert!(mine(&leader.view().at(Instant::now())), "{:?}", leader.view());
    }
    assert!(leader.view().is_by_leave());
    server.change(|world| world.reachable = true);
    sleep(SECOND * 4).await;
    assert!(mine(&leader.view().at(Instant::now())) && !leader.view().is_by_leave());
}

#[tokio::test(start_paused = true)]
async fn a_master_leads_on_through_moments_in_which_another_member_is_not_heard() {
    let began = Instant::now();
    let silences = move |_: &str| {
        let is_silent = began.elapsed().as_millis() % 7100 < 1500;
        (!is_silent).then_some(leave::Answer::Confirmed)
    };
    let server = ApiServer::new(&json!({}));
    let leader = cut_off(&server, silences).await;
    for _ in 0..3000 {
        sleep(SECOND / 10).await;
        assert!(mine(&leader.view().at(Instant::now())), "after {:?}: {:?}", began.elapsed(), leader.view());
    }
}

#[tokio::test(start_paused = true)]
async fn one_member_that_does_not_confirm_ends_the_leadership_in_time() {
    let refuses: Word = |pod| Some(if pod == "pgset-1" { leave::Answer::Refused } else { leave::Answer::Confirmed });
    let is_silent: Word = |pod| (pod == "pgset-1").then_some(leave::Answer::Confirmed);
    for word in [refuses, is_silent] {
        let server = ApiServer::new(&json!({}));
        let leader = cut_off(&server, word).await;
        let since = Instant::now();
        until(&leader, "fenced", |lease| !mine(lease)).await;
        assert!(since.elapsed() <= SECOND * 4 + SECOND / 10, "after {:?}", since.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_master_that_is_alone_needs_nobodys_leave_and_one_that_recorded_nothing_has_none() {
    for (voters, leads) in [(vec!["pgset-0".to_owned()], true), (Vec::new(), false)] {
        let server = ApiServer::new(&json!({}));
        let leader = a_leader(&server).await;
        leader.tell(Told { voters: voters.into_iter().collect(), ..Told::default() }).await;
        sleep(SECOND / 10).await;
        server.change(|world| world.reachable = false);
        sleep(SECOND * 60).await;
        assert_eq!(mine(&leader.view().at(Instant::now())), leads);
    }
}

fn earlier(holder: &str, voters: &[&str]) -> Leadership {
    let database = Database { system: SystemIdentifier(7), reached: None };
    let voters = voters.iter().map(|&pod| pod.to_owned()).collect();
    Leadership { holder: holder.into(), epoch: 3, voters, addresses: std::collections::BTreeMap::new(), database }
}

#[tokio::test(start_paused = true)]
async fn a_master_whose_container_starts_anew_without_the_api_server_goes_on_if_it_led_before() {
    for (holder, voters, leads) in [
        ("pgset-0/a", ["pgset-0"].as_slice(), true),
        ("pgset-0/earlier-pod", &["pgset-0"], false),
        ("pgset-0/a", &["pgset-0", "pgset-1"], false),
    ] {
        let server =
            ApiServer::new(&json!({"holderIdentity": "pgset-0/a", "leaseDurationSeconds": 6, "leaseTransitions": 3}));
        server.change(|world| world.reachable = false);
        let mut parts = server.parts(me(), fencing::tests::obedient().0);
        parts.earlier = Some(earlier(holder, voters));
        let handle = start(parts).0;
        sleep(SECOND * 20).await;
        assert_eq!(mine(&handle.view().at(Instant::now())), leads, "{holder} {voters:?}");
        if leads {
            server.change(|world| world.reachable = true);
            sleep(SECOND * 5).await;
            assert!(mine(&handle.view().at(Instant::now())) && !handle.view().is_by_leave());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_master_that_went_on_without_the_api_server_ends_when_it_reads_that_another_leads() {
    let server =
        ApiServer::new(&json!({"holderIdentity": "pgset-1/b", "leaseDurationSeconds": 6, "leaseTransitions": 4}));
    server.change(|world| world.reachable = false);
    let mut parts = server.parts(me(), fencing::tests::obedient().0);
    parts.earlier = Some(earlier("pgset-0/a", &["pgset-0"]));
    let handle = start(parts).0;
    until(&handle, "it goes on", mine).await;
    server.change(|world| world.reachable = true);
    until(&handle, "another leads", |lease| matches!(lease, Lease::HeldByOther { .. })).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_has_given_leave_does_not_find_the_lease_vacant() {
    let server =
        ApiServer::new(&json!({"holderIdentity": "pgset-0/a", "leaseDurationSeconds": 6, "leaseTransitions": 3}));
    let promises = Promises::default();
    let mut parts =
        server.parts(HolderIdentity { pod: "pgset-1".into(), uid: "b".into() }, fencing::tests::obedient().0);
    parts.promises = promises.clone();
    let handle = start(parts).0;
    sleep(SECOND * 5).await;
    let holder = HolderIdentity { pod: "pgset-0".into(), uid: "a".into() };
    let request = leave::Request { holder, epoch: 3, master: None };
    let answer = promises.answer_leave(&request, None, Instant::now() + SECOND * 6);
    assert_eq!(answer, leave::Answer::Confirmed);
    sleep(SECOND * 5).await;
    assert!(matches!(handle.view().at(Instant::now()), Lease::HeldByOther { .. }), "{:?}", handle.view());
    sleep(SECOND * 2).await;
    assert!(vacant(&handle.view().at(Instant::now())), "{:?}", handle.view());
}

#[tokio::test(start_paused = true)]
async fn a_silent_holder_is_gone_only_if_the_api_server_says_so_itself() {
    let server = ApiServer::new(&json!({"holderIdentity": "pgset-0/a", "leaseDurationSeconds": 6}));
    let handle = server.start("pgset-1", "b");
    sleep(SECOND).await;
    server.change(|world| world.reachable = false);
    sleep(SECOND * 30).await;
    assert!(
        matches!(handle.view().at(Instant::now()), Lease::HeldByOther { .. }),
        "it may renew where this member can't see it"
    );
    server.write(
        json!({"holderIdentity": "pgset-0/a", "leaseDurationSeconds": 6, "renewTime": "2026-01-01T00:00:00.000000Z"}),
    );
    server.change(|world| world.reachable = true);
    sleep(SECOND * 3).await;
    assert!(matches!(handle.view().at(Instant::now()), Lease::HeldByOther { .. }), "it had renewed");
    until(&handle, "silent for as long", vacant).await;
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_taken_as_it_was_when_that_was_decided_or_not_at_all() {
    let server = ApiServer::new(&json!({}));
    let handle = server.start("pgset-1", "b");
    until(&handle, "nobody holds it", vacant).await;
    handle.take(Version::new("", "another"), Taking::default()).await;
    sleep(SECOND).await;
    assert_eq!(server.holder(), None);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_before_anything_was_told_leaves_what_commits_wait_for_as_it_was() {
    let server = ApiServer::new(&json!({}));
    server.change(|world| {
        world.lease["metadata"]["annotations"] = json!({"pgset.dev/quorum": "1 of pgset-1,pgset-2"});
    });
    let leader = server.start("pgset-0", "a");
    until(&leader, "nobody holds it", vacant).await;
    let version = leader.view().seen().unwrap().version.clone();
    leader.take(version, Taking { begins: None, quorum: server.lease_record().record.quorum }).await;
    until(&leader, "taken", mine).await;
    let before = server.lease_record().record.quorum;
    assert_eq!((before.confirm, before.names.len()), (1, 2));
    // Somebody else writes the Lease, and this member's next renewal meets a conflict.
    let spec = server.0.lock().unwrap().lease["spec"].clone();
    server.write(spec);
    sleep(SECOND * 5).await;
    assert!(mine(&leader.view().at(Instant::now())));
    assert_eq!(server.lease_record().record.quorum, before);
}
