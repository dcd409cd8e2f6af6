//! Which of the controllers acts: the one that holds the Lease, taken and kept by compare-and-swap on its version.
//!
//! Time is this process's own, monotonic: a Lease has run out when its version has not changed for its whole length under
//! our eyes, so that clocks of different machines are never compared.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::requests::said;
use crate::names;

/// One second; in tests a small part of one.
const SECOND: u64 = if cfg!(test) { 20 } else { 1000 };
/// For how long the Lease is good after its last renewal.
const LENGTH: Duration = Duration::from_millis(15 * SECOND);
/// How often the holder renews, and the others look.
const PERIOD: Duration = Duration::from_millis(5 * SECOND);
/// When the holder gives up: well before [`LENGTH`], so that it stops before anyone else starts.
const DEADLINE: Duration = Duration::from_millis(10 * SECOND);
/// How long to wait after a failed request.
const RETRY: Duration = Duration::from_millis(SECOND);

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

/// What was last seen of a Lease, and since when it is so.
struct Sight {
    version: Option<String>,
    since: Instant,
}

impl Leadership {
    /// Leadership by the Lease in a namespace.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, identity: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), identity: identity.to_owned() }
    }

    /// Waits until the Lease is ours, and returns it as stored. Cancel-safe: a Lease taken and forgotten runs out.
    pub async fn acquire(&self) -> Lease {
        let mut sight = Sight { version: None, since: Instant::now() };
        loop {
            match timeout(DEADLINE, self.try_acquire(&mut sight)).await {
                Ok(Ok(Some(lease))) => {
                    info!(lease = names::CONTROLLER_LEASE, "this controller is the active one");
                    return lease;
                }
                Ok(Ok(None)) => sleep(PERIOD).await,
                Ok(Err(error)) => {
                    warn!(lease = names::CONTROLLER_LEASE, error = said(&error), "failed to take the Lease");
                    sleep(PERIOD).await;
                }
                Err(_) => warn!(lease = names::CONTROLLER_LEASE, "the API server does not answer"),
            }
        }
    }

    async fn try_acquire(&self, sight: &mut Sight) -> Result<Option<Lease>, kube::Error> {
        let taken = match self.api.get_opt(names::CONTROLLER_LEASE).await? {
            None => {
                let metadata = ObjectMeta { name: Some(names::CONTROLLER_LEASE.to_owned()), ..ObjectMeta::default() };
                let lease = claimed(Lease { metadata, spec: None }, &self.identity);
                self.api.create(&PostParams::default(), &lease).await
            }
            Some(lease) => {
                if lease.metadata.resource_version != sight.version {
                    *sight = Sight { version: lease.metadata.resource_version.clone(), since: Instant::now() };
                }
                if !may_take(&lease, &self.identity, sight.since.elapsed()) {
                    return Ok(None);
                }
                self.api.replace(names::CONTROLLER_LEASE, &PostParams::default(), &claimed(lease, &self.identity)).await
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
    pub async fn hold(&self, mut lease: Lease) -> Error {
        let mut renewed = Instant::now();
        let mut pause = PERIOD;
        loop {
            sleep(pause.min(DEADLINE.saturating_sub(renewed.elapsed()))).await;
            let Some(left) = DEADLINE.checked_sub(renewed.elapsed()).filter(|left| !left.is_zero()) else {
                return Error::Overdue;
            };
            // Counted from before the request: the server may have stored it at any moment since.
            let asked = Instant::now();
            match timeout(left, self.renew(&lease)).await {
                Ok(Ok(stored)) => (lease, renewed, pause) = (stored, asked, PERIOD),
                Ok(Err(Renewal::Taken(holder))) => return Error::Taken { holder },
                Ok(Err(Renewal::Changed(current))) => (lease, pause) = (*current, Duration::ZERO),
                Ok(Err(Renewal::Failed(error))) => {
                    warn!(lease = names::CONTROLLER_LEASE, error = said(&error), "failed to renew the Lease");
                    pause = RETRY;
                }
                Err(_) => return Error::Overdue,
            }
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, Renewal> {
        let renewed = claimed(lease.clone(), &self.identity);
        match self.api.replace(names::CONTROLLER_LEASE, &PostParams::default(), &renewed).await {
            Ok(stored) => Ok(stored),
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                let current = self.api.get(names::CONTROLLER_LEASE).await.map_err(Renewal::Failed)?;
                // Somebody edited it, or our own earlier renewal arrived without its answer.
                if holder(&current) == self.identity {
                    Err(Renewal::Changed(Box::new(current)))
                } else {
                    Err(Renewal::Taken(holder(&current).to_owned()))
                }
            }
            // Deleted: anyone may make a new one.
            Err(kube::Error::Api(status)) if status.is_not_found() => Err(Renewal::Taken(String::new())),
            Err(error) => Err(Renewal::Failed(error)),
        }
    }

    /// Gives the Lease back, so that the next controller need not wait until it runs out. Best effort.
    pub async fn release(&self) {
        let release = async {
            let Some(mut lease) = self.api.get_opt(names::CONTROLLER_LEASE).await? else { return Ok(()) };
            if holder(&lease) != self.identity {
                return Ok(());
            }
            lease.spec.get_or_insert_default().holder_identity = None;
            self.api.replace(names::CONTROLLER_LEASE, &PostParams::default(), &lease).await.map(drop)
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

/// How a renewal can end without one.
enum Renewal {
    Taken(String),
    Changed(Box<Lease>),
    Failed(kube::Error),
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
