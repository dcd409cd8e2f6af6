//! Where the master is, for clients: the leader writes itself into the `EndpointSlice` of the Service `<set>-master`, in one write, so that
//! there is never none and never two (kube-proxy acts on the second of two changes a second later). What it wrote it looks at again once a
//! minute: pgset's controller closes the endpoint of a pod that is not Ready, and never opens one.

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
use super::leadership::View;
use crate::children::route::AddressType;
use crate::children::services::PORT_NAME;
use crate::election::Lease;
use crate::errors::with_causes;
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wish {
    /// How many times this member has begun to lead.
    lead: u64,
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
    /// Clients are to come here, from now on: written as soon as it can be, as long as this member leads.
    pub fn lead_here(&self) {
        self.wishes.send_modify(|wish| wish.lead += 1);
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
    leads: watch::Receiver<View>,
) -> (Handle, tokio::task::JoinHandle<()>) {
    let (wishes, inbox) = watch::channel(Wish::default());
    let (done, closed) = watch::channel(false);
    let keeper = Keeper {
        slices: Api::namespaced(client.clone(), &configuration.namespace),
        pods: Api::namespaced(client.clone(), &configuration.namespace),
        name: names::master(&configuration.set),
        here: Here::of(configuration),
        leads,
        written: 0,
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
    /// It is not this member's to write.
    NotMine,
}

struct Keeper {
    slices: Api<EndpointSlice>,
    pods: Api<Pod>,
    name: String,
    here: Here,
    leads: watch::Receiver<View>,
    /// Which time of leading is written.
    written: u64,
    /// Before the next try.
    pause: Duration,
    told: bool,
}

// === impl Keeper ===

impl Keeper {
    async fn run(mut self, mut wishes: watch::Receiver<Wish>, closed: watch::Sender<bool>) {
        let mut due = None;
        loop {
            tokio::select! {
                changed = wishes.changed() => if changed.is_err() {
                    return;
                },
                () = until(due) => {}
            }
            let wish = *wishes.borrow_and_update();
            if wish.closed {
                self.close().await;
                closed.send_replace(true);
                return;
            }
            due = self.turn(wish).await.map(|pause| Instant::now() + pause);
        }
    }

    /// Does what is wanted; answers when to look again.
    async fn turn(&mut self, wish: Wish) -> Option<Duration> {
        if !self.leads() {
            // Whoever leads writes it; leading once more is another wish.
            self.written = wish.lead;
            return None;
        }
        if wish.lead == 0 {
            return None;
        }
        let is_news = wish.lead > self.written;
        match self.write(is_news).await {
            Ok(outcome) => {
                if outcome == Outcome::Written {
                    info!(service = %self.name, address = %self.here.address, "clients of the master come here");
                }
                (self.written, self.pause, self.told) = (wish.lead, RETRY, false);
                Some(if is_news { SOON } else { REGULARLY })
            }
            Err(why) => {
                self.tell(&why);
                let pause = if is_news { self.pause } else { REGULARLY };
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

    fn leads(&self) -> bool {
        matches!(self.leads.borrow().at(Instant::now()), Lease::Mine { .. })
    }

    /// Has the slice lead here. One that names another pod is replaced only by a member that has just begun to lead.
    async fn write(&mut self, is_news: bool) -> Result<Outcome, Error> {
        self.find_node().await;
        let mut slice = answer("read", self.slices.get(&self.name)).await?;
        if !is_news && leads_elsewhere(&slice, &self.here) {
            return Ok(Outcome::NotMine);
        }
        if leads_to(&slice, &self.here) {
            return Ok(Outcome::Here);
        }
        point(&mut slice, &self.here, Timestamp::now())?;
        // Asking may have taken its time. With the version that was read: a newer word is never written over.
        if !self.leads() {
            return Ok(Outcome::NotMine);
        }
        answer("replace", self.slices.replace(&self.name, &PostParams::default(), &slice)).await?;
        Ok(Outcome::Written)
    }

    /// Best effort: where it can't be done, the controller does it.
    async fn close(&self) {
        let Ok(mut slice) = answer("read", self.slices.get(&self.name)).await else { return };
        if !leads_to(&slice, &self.here) {
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
fn leads_to(slice: &EndpointSlice, here: &Here) -> bool {
    slice.endpoints == [here.endpoint()] && slice.ports.as_ref() == Some(&here.ports())
}

/// Whether it names another pod, be it one of the same name.
fn leads_elsewhere(slice: &EndpointSlice, here: &Here) -> bool {
    slice.endpoints.iter().any(|endpoint| {
        endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()) != Some(here.uid.as_str())
    })
}

fn point(slice: &mut EndpointSlice, here: &Here, now: Timestamp) -> Result<(), Error> {
    if slice.address_type != AddressType::of(&here.address).as_str() {
        return Err(Error::Family { slice: slice.address_type.clone(), address: here.address.clone() });
    }
    slice.endpoints = vec![here.endpoint()];
    slice.ports = Some(here.ports());
    let notes = slice.metadata.annotations.get_or_insert_default();
    notes.insert(names::slice::WRITTEN_AT.to_owned(), now.to_string());
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
    use super::*;

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

    #[test]
    fn clients_come_to_the_one_that_leads_and_to_no_other() {
        let mut slice = empty("IPv4");
        assert!(!leads_to(&slice, &here()) && !leads_elsewhere(&slice, &here()), "nobody's");
        point(&mut slice, &Here { uid: "before".into(), ..here() }, Timestamp::UNIX_EPOCH).unwrap();
        assert!(leads_elsewhere(&slice, &here()));
        point(&mut slice, &here(), Timestamp::UNIX_EPOCH).unwrap();
        assert!(leads_to(&slice, &here()) && !leads_elsewhere(&slice, &here()));
        let said = serde_json::to_value(&slice).unwrap();
        let endpoint = serde_json::json!([{"addresses": ["10.0.0.2"], "conditions": {"ready": true}, "nodeName": "one",
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "db-1", "uid": "uid-1"}}]);
        assert_eq!(said["endpoints"], endpoint);
        assert_eq!(said["ports"], serde_json::json!([{"name": "postgres", "port": 5432, "protocol": "TCP"}]));
        assert_eq!(said["metadata"]["annotations"][names::slice::WRITTEN_AT], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn what_the_controller_has_closed_is_this_members_to_open() {
        let mut slice = empty("IPv4");
        point(&mut slice, &here(), Timestamp::UNIX_EPOCH).unwrap();
        slice.endpoints[0].conditions = Some(conditions(false));
        assert!(!leads_to(&slice, &here()) && !leads_elsewhere(&slice, &here()));
    }

    #[test]
    fn a_slice_of_the_other_family_is_left_and_the_reason_told() {
        let mut slice = empty("IPv4");
        let why = point(&mut slice, &Here { address: "fd00::2".into(), ..here() }, Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(why.to_string().contains("IPv4 addresses") && why.to_string().contains("fd00::2"), "{why}");
        assert!(slice.endpoints.is_empty());
    }
}
