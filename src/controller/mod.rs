//! The controller: keeps right what surrounds each set, and says by Events what it did and what stands in the way.
//!
//! Of several controllers one acts, by a Lease. It watches; as long as nothing changes it asks the API server for nothing.

mod cache;
mod event;
mod leadership;
mod plan;
mod reconcile;
mod requests;
mod route;
mod schedule;
mod selection;
mod state;
mod taken;
mod watches;

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use futures::StreamExt;
use kube::Client;
use tracing::warn;

use cache::labels::Place;
use leadership::Leadership;
use reconcile::Context;
use watches::{Queue, Stores};

/// How the controller runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The namespace of pgset itself, with the Lease.
    pub namespace: String,
    /// Who this controller is: its pod's name.
    pub identity: String,
}

/// Why the controller ended without having been asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A watch ended.
    #[error(transparent)]
    Watch(#[from] watches::Ended),
    /// The work ended, which it never should.
    #[error("the controller's queue ended")]
    Queue,
}

/// How a time as the active controller ended.
enum Term {
    /// Somebody wants this process to stop.
    Stopped,
    /// Another controller may act now.
    Lost(leadership::Error),
    /// What should go on for ever has ended.
    Broken(Error),
}

/// Waits for the Lease and looks after all sets, as often as it loses the Lease anew, until `shutdown` completes; then the Lease is
/// given back.
pub async fn run(client: Client, settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let Settings { namespace, identity } = settings;
    let leadership = Leadership::new(client.clone(), &namespace, &identity);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        // Every arm may be dropped at any moment: a write either reached the API server or is planned again by the next controller.
        let held = tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            held = leadership.acquire() => held,
        };
        let term = tokio::select! {
            biased;
            () = &mut shutdown => Term::Stopped,
            lost = leadership.hold(held) => Term::Lost(lost),
            ended = work(client.clone(), identity.clone()) => Term::Broken(ended),
        };
        match term {
            Term::Lost(error) => warn!(%error, "this controller is a candidate again"),
            Term::Stopped => {
                leadership.release().await;
                return Ok(());
            }
            Term::Broken(error) => {
                leadership.release().await;
                return Err(error);
            }
        }
    }
}

/// Looks after all sets, and returns only if something ends that never should.
async fn work(client: Client, identity: String) -> Error {
    let (stores, mut queue, mut watches) = Stores::start(&client);
    let early = match seen(&stores, &mut queue).await {
        Ok(early) => early,
        Err(ended) => return ended.into(),
    };
    let queue = futures::stream::iter(early).chain(queue);
    let context = Context { client, stores, identity, states: Mutex::new(HashMap::new()) };
    tokio::select! {
        () = schedule::run(queue, |place| reconcile::reconcile(place, &context)) => Error::Queue,
        _ = watches.join_next() => watches::Ended.into(),
    }
}

/// Waits until everything has been seen: before, what is there would look absent. Answers the sets that it was about. The queue
/// has to be emptied meanwhile: a watch that waits for room in it would never have seen everything.
async fn seen(stores: &Stores, queue: &mut Queue) -> Result<HashSet<Place>, watches::Ended> {
    let mut sets = HashSet::new();
    let mut ready = std::pin::pin!(stores.ready());
    loop {
        // Cancel-safe: a channel's `next` loses nothing.
        tokio::select! {
            seen = &mut ready => return seen.map(|()| sets),
            Some(set) = queue.next() => {
                sets.insert(set);
            }
        }
    }
}
