//! Where the master is, for clients: the leader writes itself into the `EndpointSlice` of the Service `<set>-master`, in one write, so that
//! there is never none and never two (kube-proxy acts on the second of two changes a second later). What it wrote it looks at again once a
//! minute: pgset's controller closes the endpoint of a pod that is not Ready, and never opens one.
//!
//! A former leader writes nothing over its successor's. It writes only while it leads by its own clock, looks at that after it has read
//! the slice, and replaces what it read and nothing newer: so whatever a successor has written by then or writes later stands. Where its
//! clock stood still with it (a virtual machine that was frozen), the epoch on the slice tells it that it is late.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::configuration::Configuration;
use super::leadership::LeaseSnapshot;
use crate::children::route::AddressType;
use crate::children::services::PORT_NAME;
use crate::election::epoch::Epoch;
use crate::errors::with_causes;
use crate::invariants::Invariant;
use crate::names;

/// How soon what failed is tried again, the first time and in the end.
const RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// In the end, where there is no slice or it may not be written: a set with a Service of the user's own has none.
const SELDOM: Duration = Duration::from_secs(30);
/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(3);
/// How soon after a write the slice is looked at once more: the controller may have thought the same moment that the pod is not Ready.
const SOON: Duration = Duration::from_secs(3);
/// How often it is looked at: one request a minute, of the forty that a set of three may cost.
const REGULARLY: Duration = Duration::from_secs(60);

/// What the main loop wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wish {
    /// In which leadership clients are to come here.
    lead: Option<Epoch>,
    /// How many times it could be used again.
    look: u64,
    /// Nobody answers here any more, and nobody follows.
    closed: bool,
}

/// The main loop's end.
#[derive(Debug)]
pub struct Handle {
    wishes: watch::Sender<Wish>,
    closed: watch::Receiver<bool>,
}

impl Handle {
    /// Clients are to come here, from now on: written as soon as it can be, as long as that leadership lasts. Once said, saying it again
    /// costs nothing.
    pub fn lead_here(&self, epoch: Epoch) {
        self.wishes.send_if_modified(|wish| {
            let changed = wish.lead.as_ref() != Some(&epoch);
            wish.lead = Some(epoch);
            changed
        });
    }

    /// This member can be used again: what the controller has closed meanwhile is opened.
    pub fn look_again(&self) {
        self.wishes.send_modify(|wish| wish.look += 1);
    }

    /// Nobody answers here any more, and nobody follows: told as well as it can be, within a moment.
    pub async fn close(&mut self) {
        self.wishes.send_modify(|wish| wish.closed = true);
        let _ = timeout(LIMIT, self.closed.wait_for(|closed| *closed)).await;
    }
}

/// Starts the task. `leads` is what the keeper of the Lease last knew.
pub fn start(
    client: &Client,
    configuration: &Configuration,
    leads: watch::Receiver<LeaseSnapshot>,
) -> (Handle, tokio::task::JoinHandle<()>) {
    let (wishes, inbox) = watch::channel(Wish::default());
    let (done, closed) = watch::channel(false);
    let keeper = Keeper {
        slices: Api::namespaced(client.clone(), &configuration.namespace),
        pods: Api::namespaced(client.clone(), &configuration.namespace),
        name: names::master(&configuration.set),
        here: Here::of(configuration),
        leads,
        written: None,
        overtaken: None,
        pause: RETRY,
        told: false,
    };
    (Handle { wishes, closed }, tokio::spawn(keeper.run(inbox, done)))
}

/// Where clients are to come.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Here {
    namespace: String,
    pod: String,
    uid: String,
    address: String,
    port: u16,
    node: Option<String>,
}

/// Why it is not written.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to {0} it: {1}")]
    Api(&'static str, Box<kube::Error>),
    #[error("there is no answer to the request to {0} it")]
    Slow(&'static str),
    #[error(
        "it is for {slice} addresses, which can't be changed on it, and this pod has {address}: pgset's controller makes it anew"
    )]
    Family { slice: String, address: String },
}

/// What became of a look at the slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It says that clients come here.
    Here,
    /// It was made to say so.
    Written,
    /// This member leads no longer.
    Over,
    /// It says that a later leadership has begun.
    Overtaken,
}

struct Keeper {
    slices: Api<EndpointSlice>,
    pods: Api<Pod>,
    name: String,
    here: Here,
    leads: watch::Receiver<LeaseSnapshot>,
    /// Which leadership is written.
    written: Option<Epoch>,
    /// Since when the slice says that a later one has begun.
    overtaken: Option<Instant>,
    /// Before the next try.
    pause: Duration,
    told: bool,
}

// === impl Keeper ===

impl Keeper {
    async fn run(mut self, mut wishes: watch::Receiver<Wish>, closed: watch::Sender<bool>) {
        // Before it is needed.
        self.find_node().await;
        let mut due = None;
        loop {
            tokio::select! {
                changed = wishes.changed() => if changed.is_err() {
                    return;
                },
                () = until(due) => {}
            }
            let Wish { lead, closed: ends, .. } = wishes.borrow_and_update().clone();
            if ends {
                self.close(lead.as_ref()).await;
                closed.send_replace(true);
                // Its end would be the agent's, which has yet to give the Lease back.
                return std::future::pending().await;
            }
            due = match lead {
                Some(epoch) => self.turn(epoch).await.map(|pause| Instant::now() + pause),
                None => None,
            };
        }
    }

    /// Has the slice lead here; answers when to look again.
    async fn turn(&mut self, epoch: Epoch) -> Option<Duration> {
        let is_news = self.written.as_ref() != Some(&epoch);
        if is_news {
            self.overtaken = None;
        }
        match self.write(&epoch).await {
            Ok(Outcome::Over) => {
                self.written = None;
                None
            }
            Ok(outcome) => {
                if outcome == Outcome::Written {
                    info!(service = %self.name, address = %self.here.address, %epoch, "clients of the master come here");
                }
                if outcome == Outcome::Overtaken {
                    self.overtaken.get_or_insert_with(Instant::now);
                } else {
                    self.overtaken = None;
                }
                (self.written, self.pause, self.told) = (Some(epoch), RETRY, false);
                Some(if is_news && self.overtaken.is_none() { SOON } else { REGULARLY })
            }
            Err(why) => {
                self.tell(&why);
                let pause = self.pause;
                self.pause = (self.pause * 2).min(if why.is_for_others() { SELDOM } else { LONGEST_RETRY });
                Some(pause)
            }
        }
    }

    fn tell(&mut self, why: &Error) {
        let (slice, error) = (self.name.as_str(), with_causes(why));
        match (self.told, why.is_for_others()) {
            (true, _) => debug!(slice, error, "the EndpointSlice does not lead here yet, trying again"),
            (false, true) => {
                info!(
                    slice,
                    error, "there is no EndpointSlice for this member to write: clients find the master by its label"
                );
            }
            (false, false) => warn!(slice, error, "the EndpointSlice does not lead here yet, trying again"),
        }
        self.told = true;
    }

    fn leads(&self, epoch: &Epoch) -> bool {
        self.leads.borrow().epoch(Instant::now()).as_ref() == Some(epoch)
    }

    /// Has the slice lead here. Nobody leads a minute after it was overtaken: what says so then was never true.
    async fn write(&mut self, epoch: &Epoch) -> Result<Outcome, Error> {
        if !self.leads(epoch) || !self.goes_forward(epoch) {
            return Ok(Outcome::Over);
        }
        self.find_node().await;
        let mut slice = answer("read", self.slices.get(&self.name)).await?;
        if leads_to(&slice, &self.here, epoch) {
            return Ok(Outcome::Here);
        }
        // Asking may have taken its time.
        if !self.leads(epoch) {
            return Ok(Outcome::Over);
        }
        let is_disproved = self.overtaken.is_some_and(|since| since.elapsed() >= REGULARLY);
        if is_later(&slice, epoch) && !is_disproved {
            warn!(service = %self.name, %epoch, "another member has led since: its endpoint stays");
            return Ok(Outcome::Overtaken);
        }
        point(&mut slice, &self.here, epoch, Timestamp::now())?;
        // With the version that was read: a newer word is never written over.
        answer("replace", self.slices.replace(&self.name, &PostParams::default(), &slice)).await?;
        Ok(Outcome::Written)
    }

    /// This member's own leaderships follow each other.
    fn goes_forward(&self, epoch: &Epoch) -> bool {
        let Some(later) = self.written.as_ref().filter(|written| epoch.is_before(written)) else { return true };
        Invariant::RouteGoesForward.is_broken(&format!("{epoch} was to be written after {later}"));
        false
    }

    /// Best effort: where it can't be done, the controller does it.
    async fn close(&self, epoch: Option<&Epoch>) {
        let Some(epoch) = epoch else { return };
        let Ok(mut slice) = answer("read", self.slices.get(&self.name)).await else { return };
        if !leads_to(&slice, &self.here, epoch) {
            return;
        }
        for endpoint in &mut slice.endpoints {
            endpoint.conditions = Some(conditions(false));
        }
        if let Err(why) = answer("replace", self.slices.replace(&self.name, &PostParams::default(), &slice)).await {
            debug!(error = with_causes(&why), "the endpoint is not closed");
        }
    }

    /// Which node it is on: a Service that keeps to the client's own node, or prefers its zone, goes by that.
    async fn find_node(&mut self) {
        if self.here.node.is_some() {
            return;
        }
        match answer("read", self.pods.get(&self.here.pod)).await {
            Ok(pod) => self.here.node = pod.spec.and_then(|spec| spec.node_name),
            Err(why) => debug!(error = with_causes(&why), "the node of this pod is not known"),
        }
    }
}

// === impl Here ===

impl Here {
    fn of(configuration: &Configuration) -> Self {
        Self {
            namespace: configuration.namespace.clone(),
            pod: configuration.me.pod.clone(),
            uid: configuration.me.uid.clone(),
            address: configuration.address.clone(),
            port: configuration.port,
            node: None,
        }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint {
            addresses: vec![self.address.clone()],
            conditions: Some(conditions(true)),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: Some(self.namespace.clone()),
                name: Some(self.pod.clone()),
                uid: Some(self.uid.clone()),
                ..ObjectReference::default()
            }),
            node_name: self.node.clone(),
            ..Endpoint::default()
        }
    }

    /// By the name of the port kube-proxy finds which of the Service's it is.
    fn ports(&self) -> Vec<EndpointPort> {
        vec![EndpointPort {
            name: Some(PORT_NAME.to_owned()),
            port: Some(i32::from(self.port)),
            protocol: Some("TCP".to_owned()),
            app_protocol: None,
        }]
    }
}

// === impl Error ===

impl Error {
    /// Whether time alone does not mend it: there is no slice, or it may not be written.
    fn is_for_others(&self) -> bool {
        match self {
            Self::Api(_, why) => {
                matches!(why.as_ref(), kube::Error::Api(status) if status.is_not_found() || status.is_forbidden())
            }
            Self::Slow(_) | Self::Family { .. } => false,
        }
    }
}

// === the slice ===

fn conditions(ready: bool) -> EndpointConditions {
    EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }
}

/// Whether the slice says just what this member would write.
fn leads_to(slice: &EndpointSlice, here: &Here, epoch: &Epoch) -> bool {
    slice.endpoints == [here.endpoint()]
        && slice.ports.as_ref() == Some(&here.ports())
        && epoch_of(slice).as_ref() == Some(epoch)
}

/// Whether a later leader has written it.
fn is_later(slice: &EndpointSlice, epoch: &Epoch) -> bool {
    epoch_of(slice).is_some_and(|written| epoch.is_before(&written))
}

fn epoch_of(slice: &EndpointSlice) -> Option<Epoch> {
    Epoch::parse(slice.metadata.annotations.as_ref()?.get(names::slice::EPOCH)?)
}

fn point(slice: &mut EndpointSlice, here: &Here, epoch: &Epoch, now: Timestamp) -> Result<(), Error> {
    if slice.address_type != AddressType::of(&here.address).as_str() {
        return Err(Error::Family { slice: slice.address_type.clone(), address: here.address.clone() });
    }
    slice.endpoints = vec![here.endpoint()];
    slice.ports = Some(here.ports());
    let notes = slice.metadata.annotations.get_or_insert_default();
    notes.insert(names::slice::WRITTEN_AT.to_owned(), now.to_string());
    notes.insert(names::slice::EPOCH.to_owned(), epoch.to_string());
    Ok(())
}

async fn answer<T>(what: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match timeout(LIMIT, request).await {
        Ok(answer) => answer.map_err(|why| Error::Api(what, Box::new(why))),
        Err(_) => Err(Error::Slow(what)),
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use kube::client::Body;

    use super::*;
    use crate::agent::leadership;

    fn here() -> Here {
        Here {
            namespace: "shop".into(),
            pod: "db-1".into(),
            uid: "uid-1".into(),
            address: "10.0.0.2".into(),
            port: 5432,
            node: Some("one".into()),
        }
    }

    fn empty(family: &str) -> EndpointSlice {
        EndpointSlice { address_type: family.into(), ..EndpointSlice::default() }
    }

    fn epoch(number: u32) -> Epoch {
        Epoch::parse(&format!("lease/{number}")).unwrap()
    }

    #[test]
    fn clients_come_to_the_one_that_leads_and_to_no_other() {
        let mut slice = empty("IPv4");
        assert!(!leads_to(&slice, &here(), &epoch(1)), "nobody's");
        point(&mut slice, &Here { uid: "before".into(), ..here() }, &epoch(1), Timestamp::UNIX_EPOCH).unwrap();
        assert!(!leads_to(&slice, &here(), &epoch(1)));
        point(&mut slice, &here(), &epoch(2), Timestamp::UNIX_EPOCH).unwrap();
        assert!(leads_to(&slice, &here(), &epoch(2)));
        let said = serde_json::to_value(&slice).unwrap();
        let endpoint = serde_json::json!([{"addresses": ["10.0.0.2"], "conditions": {"ready": true}, "nodeName": "one",
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "db-1", "uid": "uid-1"}}]);
        assert_eq!(said["endpoints"], endpoint);
        assert_eq!(said["ports"], serde_json::json!([{"name": "postgres", "port": 5432, "protocol": "TCP"}]));
        let notes =
            serde_json::json!({names::slice::WRITTEN_AT: "1970-01-01T00:00:00Z", names::slice::EPOCH: "lease/2"});
        assert_eq!(said["metadata"]["annotations"], notes);
    }

    #[test]
    fn a_former_leader_finds_its_successors_word_and_a_leader_what_is_older() {
        let mut slice = empty("IPv4");
        assert!(!is_later(&slice, &epoch(1)), "nobody's");
        point(&mut slice, &here(), &epoch(2), Timestamp::UNIX_EPOCH).unwrap();
        assert!(is_later(&slice, &epoch(1)));
        assert!(!is_later(&slice, &epoch(2)) && !is_later(&slice, &epoch(3)));
        assert!(!leads_to(&slice, &here(), &epoch(3)), "the same pod says that it leads anew");
    }

    #[test]
    fn what_the_controller_has_closed_is_this_members_to_open() {
        let mut slice = empty("IPv4");
        point(&mut slice, &here(), &epoch(1), Timestamp::UNIX_EPOCH).unwrap();
        slice.endpoints[0].conditions = Some(conditions(false));
        assert!(!leads_to(&slice, &here(), &epoch(1)) && !is_later(&slice, &epoch(1)));
    }

    #[test]
    fn a_slice_of_the_other_family_is_left_and_the_reason_told() {
        let mut slice = empty("IPv4");
        let six = Here { address: "fd00::2".into(), ..here() };
        let why = point(&mut slice, &six, &epoch(1), Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(why.to_string().contains("IPv4 addresses") && why.to_string().contains("fd00::2"), "{why}");
        assert!(slice.endpoints.is_empty());
    }

    #[tokio::test]
    async fn clients_are_not_sent_back_to_an_earlier_leadership_and_that_counts_as_a_bug() {
        let (service, _) = tower_test::mock::pair::<axum::http::Request<Body>, axum::http::Response<Body>>();
        let client = Client::new(service, "shop");
        let mut keeper = Keeper {
            slices: Api::namespaced(client.clone(), "shop"),
            pods: Api::namespaced(client, "shop"),
            name: "db-master".into(),
            here: here(),
            leads: watch::channel(leadership::tests::leading_in(7)).1,
            written: Some(epoch(8)),
            overtaken: None,
            pause: RETRY,
            told: false,
        };
        let before = Invariant::RouteGoesForward.count();
        assert_eq!(keeper.write(&epoch(7)).await.unwrap(), Outcome::Over);
        assert_eq!(Invariant::RouteGoesForward.count(), before + 1);
    }
}
