//! `POST /mutate`.

use std::time::Instant;

use axum::{
    body::Bytes,
    extract::{State as Extracted, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};

use super::{
    State,
    problem::Problem,
    review::{Answer, Review},
};

/// Answers a review. What the user did wrong is a denial, what we did wrong an HTTP error.
pub(super) async fn handle(
    Extracted(state): Extracted<State>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let started = Instant::now();
    answer(&state, &headers, body, started).unwrap_or_else(|problem| {
        tracing::warn!(%problem, "a review without a decision");
        state.metrics.failed();
        problem.into_response()
    })
}

fn answer(
    state: &State,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    started: Instant,
) -> Result<Response, Problem> {
    require_json(headers)?;
    let body = body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { Problem::TooLarge } else { Problem::Unreadable }
    })?;
    let review: Review<'_> = serde_json::from_slice(&body).map_err(|error| Problem::Malformed {
        // serde's text may quote the body, so only the place is told.
        reason: format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()),
    })?;
    let request = review.into_request().map_err(|reason| Problem::Malformed { reason })?;
    drop(body);

    let decision = request.stateful_sets().map(|sets| (state.decide)(&sets)).unwrap_or_default();
    let answer = Answer::new(&request, &decision).and_then(|answer| serde_json::to_vec(&answer));
    let answer = answer.map_err(Problem::Answer)?;

    let elapsed = started.elapsed();
    state.metrics.decided(request.operation(), &decision, elapsed);
    tracing::info!(
        uid = request.uid,
        namespace = request.namespace,
        name = request.name,
        operation = request.operation(),
        decision = decision.word(),
        reason = decision.code(),
        microseconds = elapsed.as_micros(),
        "reviewed"
    );
    Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], answer).into_response())
}

/// The API server sends JSON and says so; whatever says otherwise is not the API server.
fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let found = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = found.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Problem::ContentType { found: found.chars().take(80).collect() })
    }
}
