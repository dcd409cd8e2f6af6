//! Which of the controllers acts: the one that holds the Lease, taken and kept by compare-and-swap on its version.
//!
//! Time is this process's own, monotonic: a Lease has run out when its version has not changed for its whole length under
//! our eyes, so that clocks of different machines are never compared.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{info, warn};

use super::requests::said;
use crate::names;

/// For how long the Lease is good after its last renewal.
const LENGTH: Duration = Duration::from_secs(15);
/// How often the holder renews, and the others look.
const PERIOD: Duration = Duration::from_secs(5);
/// When the holder gives up: well before [`LENGTH`], so that it stops before anyone else starts.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait after a failed renewal.
const RETRY: Duration = Duration::from_secs(1);

/// Why this controller may act no longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else holds the Lease.
    #[error("lost the Lease {} to {holder:?}", names::CONTROLLER_LEASE)]
    Taken {
        /// Who.
        holder: String,
    },
    /// The Lease could not be renewed in time.
    #[error("failed to renew the Lease {} for {}s", names::CONTROLLER_LEASE, DEADLINE.as_secs())]
    Overdue,
}

/// The Lease, and who we are.
pub struct Leadership {
    api: Api<Lease>,
    identity: String,
}

/// The Lease as stored while it is ours.
pub struct Held {
    lease: Lease,
    /// Before the request that stored it was sent: the server may have stored it at any moment since.
    asked: Instant,
}

/// Which version of a Lease was seen last, and since when.
struct LastSeen {
    version: Option<String>,
    since: Instant,
}

impl Leadership {
    /// Leadership by the Lease in a namespace.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, identity: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), identity: identity.to_owned() }
    }

    /// Waits until the Lease is ours. Cancel-safe: a Lease taken and forgotten runs out.
    pub async fn acquire(&self) -> Held {
        let mut seen = LastSeen { version: None, since: Instant::now() };
        loop {
            let asked = Instant::now();
            match timeout(DEADLINE, self.try_acquire(&mut seen)).await {
                Ok(Ok(Some(lease))) => {
                    info!(lease = names::CONTROLLER_LEASE, "this controller is the active one");
                    return Held { lease, asked };
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    warn!(lease = names::CONTROLLER_LEASE, error = said(&error), "failed to take the Lease");
                }
                Err(_) => warn!(lease = names::CONTROLLER_LEASE, "the API server does not answer"),
            }
            sleep_until(asked + PERIOD).await;
        }
    }

    async fn try_acquire(&self, seen: &mut LastSeen) -> kube::Result<Option<Lease>> {
        let taken = match self.api.get_opt(names::CONTROLLER_LEASE).await? {
            None => {
                let metadata = ObjectMeta { name: Some(names::CONTROLLER_LEASE.to_owned()), ..ObjectMeta::default() };
                let lease = claimed(Lease { metadata, spec: None }, &self.identity);
                self.api.create(&PostParams::default(), &lease).await
            }
            Some(lease) => {
                if lease.metadata.resource_version != seen.version {
                    *seen = LastSeen { version: lease.metadata.resource_version.clone(), since: Instant::now() };
                }
                if !may_take(&lease, &self.identity, seen.since.elapsed()) {
                    return Ok(None);
                }
                self.replace(&claimed(lease, &self.identity)).await
            }
        };
        match taken {
            Ok(lease) => Ok(Some(lease)),
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps the Lease, and returns only when it is lost.
    pub async fn hold(&self, mut held: Held) -> Error {
        loop {
            sleep_until(held.asked + PERIOD).await;
            let asked = Instant::now();
            match timeout_at(held.asked + DEADLINE, self.renew(held.lease)).await {
                Ok(Ok(lease)) => held = Held { lease, asked },
                Ok(Err(holder)) => return Error::Taken { holder },
                Err(_) => return Error::Overdue,
            }
        }
    }

    /// Renews the Lease, however often that has to be tried; or answers who holds it instead.
    async fn renew(&self, mut lease: Lease) -> Result<Lease, String> {
        loop {
            let error = match self.replace(&claimed(lease.clone(), &self.identity)).await {
                Ok(stored) => return Ok(stored),
                Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                    match self.api.get_opt(names::CONTROLLER_LEASE).await {
                        // Somebody edited it, or our own earlier renewal arrived without its answer.
                        Ok(Some(current)) if holder(&current) == self.identity => {
                            lease = current;
                            continue;
                        }
                        // If it was deleted, anyone may make a new one.
                        Ok(current) => return Err(current.as_ref().map(holder).unwrap_or_default().to_owned()),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            warn!(lease = names::CONTROLLER_LEASE, error = said(&error), "failed to renew the Lease");
            sleep(RETRY).await;
        }
    }

    /// Stores the Lease, if it still is the version that was changed.
    async fn replace(&self, lease: &Lease) -> kube::Result<Lease> {
        self.api.replace(names::CONTROLLER_LEASE, &PostParams::default(), lease).await
    }

    /// Gives the Lease back, so that the next controller need not wait until it runs out. Best effort.
    pub async fn release(&self) {
        let release = async {
            let Some(mut lease) = self.api.get_opt(names::CONTROLLER_LEASE).await? else { return Ok(()) };
            if holder(&lease) != self.identity {
                return Ok(());
            }
            lease.spec.get_or_insert_default().holder_identity = None;
            self.replace(&lease).await.map(drop)
        };
        match timeout(PERIOD, release).await {
            Ok(Ok(())) => info!(lease = names::CONTROLLER_LEASE, "gave the Lease back"),
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() => {}
            Ok(Err(error)) => {
                warn!(lease = names::CONTROLLER_LEASE, error = said(&error), "failed to give the Lease back");
            }
            Err(_) => warn!(lease = names::CONTROLLER_LEASE, "the API server does not answer"),
        }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

/// Whether a Lease that has not changed for a while may be taken.
fn may_take(lease: &Lease, identity: &str, unchanged_for: Duration) -> bool {
    // A container that restarts in the same pod has the same identity, and its predecessor is gone.
    [identity, ""].contains(&holder(lease)) || unchanged_for >= LENGTH
}

/// The Lease with us as its holder, from now on. Its version stays: that is what makes the write a compare-and-swap.
fn claimed(mut lease: Lease, identity: &str) -> Lease {
    let now = MicroTime(Timestamp::now());
    let held = holder(&lease) == identity;
    let spec = lease.spec.get_or_insert_default();
    let LeaseSpec { holder_identity, lease_duration_seconds, renew_time, acquire_time, lease_transitions, .. } = spec;
    if !held {
        *holder_identity = Some(identity.to_owned());
        *acquire_time = Some(now.clone());
        *lease_transitions = Some(lease_transitions.unwrap_or(0).saturating_add(1));
    }
    // What it says is for people: every candidate counts by its own clock.
    *lease_duration_seconds = i32::try_from(LENGTH.as_secs()).ok();
    *renew_time = Some(now);
    lease
}

#[cfg(test)]
#[path = "leadership_tests.rs"]
mod tests;
