//! The admission webhook: HTTP in, a pure decision, HTTP out.
//!
//! [`router`] does no I/O and knows nothing of TLS, so that tests call it in process; [`server`] puts it on a port. What is
//! injected is decided by the function in [`State`]: no API calls, no clock, no randomness (docs/rules.md, 3).

mod accept;
mod connections;
pub mod health;
mod http_error;
pub mod metrics;
mod mutate;
pub mod review;
pub mod server;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{
        HeaderValue,
        header::{CONNECTION, CONTENT_LENGTH},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use json_patch::Patch;
use serde_json::Value;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

use self::{http_error::HttpError, metrics::Metrics, review::StatefulSets};
use crate::{
    inject::{self, Outcome},
    invariants::Invariant,
};

/// The largest review that is read. The API server accepts objects of 3 MiB and an UPDATE carries two of them; axum's own
/// limit of 2 MB would turn legal objects away.
pub const BODY_LIMIT: usize = 8 << 20;

/// The longest review of the usual kind. Only longer ones, and those that don't say how long they are, wait for their turn.
const SMALL: usize = 64 << 10;

/// How many reviews may be on their way at once. More are turned away and told to come again, which API servers do. With [`SMALL`] it
/// bounds the memory: 64 MiB, if all of them were as long as that.
const IN_FLIGHT: usize = 1024;

/// How many of the longer ones are read and decided at once: with [`BODY_LIMIT`] it bounds theirs.
const LARGE_IN_FLIGHT: usize = 8;

/// How long one review may take, from header to answer, where the API server does not say.
const DEADLINE: Duration = Duration::from_secs(10);

/// The longest `timeoutSeconds` that Kubernetes allows, and so the longest deadline that is believed.
const DEADLINE_LIMIT: Duration = Duration::from_secs(30);

/// What makes the decision on a `StatefulSet`.
pub type Decide = dyn Fn(&StatefulSets<'_>) -> Outcome + Send + Sync;

/// Of so many injections one is looked at again: all would double the time of a review.
const LOOKED_AT: u64 = 256;

/// Decides by the injection: what `pgset serve` gives to [`State::new`].
pub fn by_injection(settings: inject::Settings) -> impl Fn(&StatefulSets<'_>) -> Outcome + Send + Sync + 'static {
    let injections = AtomicU64::new(0);
    move |&StatefulSets { object, old }| {
        let outcome = inject::inject(&inject::Request { object, old, settings: &settings });
        if let Outcome::Patched { patch, .. } = &outcome
            && injections.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOKED_AT)
            && !is_stable(object, patch, &settings)
        {
            // This answer is no worse for it: what will go wrong is the next review of the object.
            Invariant::InjectionIsStable.is_broken("injected once more, the object changes again");
        }
        outcome
    }
}

/// Whether the injection leaves alone what a patch makes of an object.
fn is_stable(object: &Value, patch: &Patch, settings: &inject::Settings) -> bool {
    let mut patched = object.clone();
    let again = json_patch::patch(&mut patched, patch)
        .map(|()| inject::inject(&inject::Request { object: &patched, old: None, settings }));
    matches!(again, Ok(Outcome::Untouched { .. }))
}

/// What the handlers share.
#[derive(Clone)]
pub struct State {
    decide: Arc<Decide>,
    metrics: Arc<Metrics>,
    in_flight: Arc<Semaphore>,
    large: Arc<Semaphore>,
    draining: Arc<AtomicBool>,
}

// === impl State ===

impl State {
    /// The state of a webhook that decides by `decide`.
    pub fn new(decide: impl Fn(&StatefulSets<'_>) -> Outcome + Send + Sync + 'static, metrics: Arc<Metrics>) -> Self {
        Self {
            decide: Arc::new(decide),
            metrics,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            large: Arc::new(Semaphore::new(LARGE_IN_FLIGHT)),
            draining: Arc::new(AtomicBool::new(false)),
        }
    }

    /// From now on every answer closes its connection: API servers keep idle ones to a pod that ends, and send their next
    /// review into it (kubernetes#127335).
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").finish_non_exhaustive()
    }
}

/// The routes of the HTTPS port.
pub fn router(state: State) -> Router {
    let panics = state.metrics.clone();
    let limits = state.clone();
    Router::new()
        .route("/mutate", post(mutate::handle))
        .with_state(state)
        .layer(CatchPanicLayer::custom(move |_payload| {
            // Of a panic outside of the decision, which has no request yet to be named by.
            panics.panic();
            panics.failed();
            HttpError::Bug { uid: String::new() }.into_response()
        }))
        .layer(middleware::from_fn(move |request, next| within_limits(limits.clone(), request, next)))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
}

/// Bounds the time of a request (the API server has long given up after its own timeout) and how many there are at once.
async fn within_limits(state: State, request: Request, next: Next) -> Response {
    let mut response = match state.in_flight.try_acquire() {
        Ok(_permit) => {
            let _counted = state.metrics.in_flight();
            within_time(&state, request, next).await
        }
        Err(_none_left) => {
            state.metrics.failed();
            HttpError::Overloaded.into_response()
        }
    };
    if state.draining.load(Ordering::Relaxed) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn within_time(state: &State, request: Request, next: Next) -> Response {
    let deadline = deadline(request.uri().query().unwrap_or_default());
    let work = async {
        // Before its body is read. A small one waits for nobody: slow clients hold up only large ones.
        let _turn = if is_small(&request) { None } else { state.large.acquire().await.ok() };
        next.run(request).await
    };
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_elapsed| {
        state.metrics.failed();
        HttpError::TooSlow { deadline }.into_response()
    })
}

/// Whether the request says that its body is a small one. The server holds it to that.
fn is_small(request: &Request) -> bool {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    length.is_some_and(|length: usize| length <= SMALL)
}

/// The deadline from the API server's `?timeout=5s`, its way of telling the webhook's `timeoutSeconds`.
fn deadline(query: &str) -> Duration {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("timeout="))
        .and_then(go_duration)
        .filter(|duration| !duration.is_zero())
        .map_or(DEADLINE, |duration| duration.min(DEADLINE_LIMIT))
}

/// Reads a Go duration (`5s`, `1m30s`, `1.5s`, `500ms`). kube has one that panics at a number too large, and this comes from anybody.
fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 6] = [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, factor) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        seconds += number * factor;
        rest = &rest[unit.len()..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_api_servers_timeout_is_the_deadline() {
        assert_eq!(deadline("timeout=5s"), Duration::from_secs(5));
        assert_eq!(deadline("dryRun=All&timeout=1m0s"), DEADLINE_LIMIT);
        assert_eq!(deadline("timeout=1.5s"), Duration::from_millis(1500));
        assert_eq!(deadline("timeout=250ms"), Duration::from_millis(250));
        for nonsense in
            ["", "timeout=", "timeout=5", "timeout=-5s", "timeout=s", "timeout=1e9s", "timeout=5x", "timeout=0s"]
        {
            assert_eq!(deadline(nonsense), DEADLINE, "{nonsense}");
        }
    }

    #[test]
    fn a_patch_after_which_the_injection_changes_something_again_is_not_stable() {
        let settings = inject::Settings { agent_image: "pgset:1".to_owned() };
        let object = json!({"metadata": {"name": "db", "annotations": {"pgset.dev/inject": "enabled"}},
            "spec": {"selector": {"matchLabels": {"app": "db"}}, "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "postgres",
                    "image": "postgres:17", "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}]}]}}}});
        let outcome = inject::inject(&inject::Request { object: &object, old: None, settings: &settings });
        let Outcome::Patched { mut patch, .. } = outcome else { panic!("{outcome:?}") };
        assert!(is_stable(&object, &patch, &settings));
        patch.0.truncate(1);
        assert!(!is_stable(&object, &patch, &settings));
    }
}
