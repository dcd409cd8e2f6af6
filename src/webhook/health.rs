//! Whether this process lives, and whether it may be asked: the plain HTTP port.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};

use super::metrics::Metrics;

/// Who is not ready, and why. A part that never spoke is ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, String>>>);

// === impl Readiness ===

impl Readiness {
    /// Nobody has a reason against it yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets or clears the reason why a part is not ready.
    pub fn set(&self, part: &'static str, reason: Option<String>) {
        let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => reasons.insert(part, reason),
            None => reasons.remove(part),
        };
    }

    /// The reasons against, one a line; `None` when ready.
    #[must_use]
    pub fn reasons(&self) -> Option<String> {
        let reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = reasons.iter().flat_map(|(part, reason)| [part, ": ", reason.as_str(), "\n"]);
        (!reasons.is_empty()).then(|| lines.collect())
    }
}

/// The routes of the HTTP port: `/livez`, `/readyz`, `/metrics`.
pub fn router(readiness: Readiness, metrics: Arc<Metrics>) -> Router {
    Router::new()
        // To answer is to live: what does not get better by a restart belongs into `/readyz`.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready).with_state(readiness))
        .route("/metrics", get(scrape).with_state(metrics))
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, String) {
    match readiness.reasons() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons),
    }
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.text() {
        Ok(text) => {
            ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
