//! Whether this process lives, and whether it may be asked: the plain HTTP ports.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse as _,
    routing::get,
};

use super::metrics::Metrics;

/// Who is not ready, and why. A part that never spoke is ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Conditions>>);

/// What the parts have said.
#[derive(Debug, Default)]
struct Conditions {
    reasons: BTreeMap<&'static str, String>,
    remarks: BTreeMap<&'static str, String>,
}

// === impl Readiness ===

impl Readiness {
    /// Nobody has a reason against it yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets or clears the reason why a part is not ready.
    pub fn set(&self, part: &'static str, reason: Option<String>) {
        note(&mut self.conditions().reasons, part, reason);
    }

    /// Sets or clears what is wrong with a part that may be ready all the same.
    pub fn remark(&self, part: &'static str, remark: Option<String>) {
        note(&mut self.conditions().remarks, part, remark);
    }

    /// The reasons against, one a line; `None` when ready.
    #[must_use]
    pub fn reasons(&self) -> Option<String> {
        let conditions = self.conditions();
        (!conditions.reasons.is_empty()).then(|| lines(&conditions.reasons))
    }

    /// The remarks, one a line.
    #[must_use]
    pub fn remarks(&self) -> String {
        lines(&self.conditions().remarks)
    }

    fn conditions(&self) -> MutexGuard<'_, Conditions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(texts: &mut BTreeMap<&'static str, String>, part: &'static str, text: Option<String>) {
    match text {
        Some(text) => texts.insert(part, text),
        None => texts.remove(part),
    };
}

fn lines(texts: &BTreeMap<&'static str, String>) -> String {
    texts.iter().flat_map(|(part, text)| [part, ": ", text.as_str(), "\n"]).collect()
}

/// The routes of the port for probes: `/livez`, `/readyz`. It is the kubelet's alone, so that nobody's scrapes stand in its way.
pub fn probes(readiness: Readiness) -> Router {
    Router::new()
        // To answer is to live: what does not get better by a restart belongs into `/readyz`.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready).with_state(readiness))
}

/// The routes of the port for metrics: `/metrics`, and what the probes see, for people.
pub fn router(readiness: Readiness, metrics: Arc<Metrics>) -> Router {
    probes(readiness).merge(metered(move || metrics.text()))
}

/// The route of metrics that are such a text.
pub fn metered(text: impl Fn() -> Result<String, std::fmt::Error> + Clone + Send + Sync + 'static) -> Router {
    const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let scrape = || async move {
        match text() {
            Ok(text) => ([(CONTENT_TYPE, KIND)], text).into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    };
    Router::new().route("/metrics", get(scrape))
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let remarks = readiness.remarks();
    match readiness.reasons() {
        None => (StatusCode::OK, format!("ok\n{remarks}")),
        Some(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons + &remarks),
    }
}
