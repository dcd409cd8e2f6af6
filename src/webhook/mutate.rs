//! `POST /mutate`.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use axum::{
    body::Bytes,
    extract::{FromRequest as _, Request as HttpRequest, State as Extracted},
    http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use json_patch::{PatchOperation, jsonptr::Pointer};

use super::{
    SMALL, State,
    http_error::HttpError,
    review::{Answer, Request, Review},
};
use crate::{inject::Outcome, invariants::Invariant, set::edits::ANNOTATIONS};

/// How long a body may take to arrive. The API server sends it in one go. Less than our `timeoutSeconds` of 5 s, or else which of the
/// two ends the request, and with which reason, is chance.
const BODY: Duration = Duration::from_secs(4);

/// The most values that a review is made of: a `StatefulSet` of the largest size has a fifth of it. In memory each takes up to 50 times
/// of what `0,` takes in the body.
const VALUES: usize = 500_000;

/// Answers a review. What the user did wrong is a denial, what we did wrong an HTTP error.
pub(super) async fn handle(Extracted(state): Extracted<State>, request: HttpRequest) -> Response {
    let body = read(request).await;
    let started = Instant::now();
    let refused = |http_error: HttpError| {
        tracing::warn!(problem = %http_error, "a review without a decision");
        state.metrics.failed();
        http_error.into_response()
    };
    match body.and_then(|body| parse(&body)) {
        Ok(request) => span(&request).in_scope(|| answer(&state, &request, started).unwrap_or_else(refused)),
        Err(http_error) => refused(http_error),
    }
}

/// What stands on every line of the log that is about a review: by the UID it is found in the API server's audit log. An error's, so that no
/// filter takes it from one.
fn span(request: &Request) -> tracing::Span {
    tracing::error_span!("review", uid = request.uid, namespace = request.namespace, set = request.name)
}

async fn read(request: HttpRequest) -> Result<Bytes, HttpError> {
    require_json(request.headers())?;
    match tokio::time::timeout(BODY, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(HttpError::TooLarge),
        Ok(Err(_)) => Err(HttpError::Unreadable),
        Err(_elapsed) => Err(HttpError::SlowBody { deadline: BODY }),
    }
}

fn parse(body: &Bytes) -> Result<Request, HttpError> {
    // A small body can't hold many.
    if body.len() > SMALL && values(body) > VALUES {
        return Err(HttpError::TooMany { limit: VALUES });
    }
    let review: Review<'_> = serde_json::from_slice(body).map_err(|error| HttpError::Malformed {
        // serde's text may quote the body, so only the place is told.
        reason: format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()),
    })?;
    review.into_request().map_err(|reason| HttpError::Malformed { reason })
}

fn answer(state: &State, request: &Request, started: Instant) -> Result<Response, HttpError> {
    let outcome = decide(state, request)?;
    if let Some(place) = stray(&outcome) {
        Invariant::PatchStaysInTemplate.is_broken(place.as_str());
        return Err(HttpError::Bug { uid: request.uid.clone() });
    }
    let answer = Answer::new(request, &outcome).and_then(|answer| serde_json::to_vec(&answer));
    let answer = answer.map_err(HttpError::Answer)?;

    let elapsed = started.elapsed();
    state.metrics.decided(request.operation(), &outcome, elapsed);
    tracing::info!(
        operation = request.operation(),
        decision = outcome.word(),
        reason = outcome.code(),
        // as a number: JSON has none of 128 bits
        microseconds = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        "reviewed"
    );
    Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], answer).into_response())
}

/// Where a patch changes what it never may: in the spec of a set that is stored all but the template can't be changed, or is the user's.
fn stray(outcome: &Outcome) -> Option<&Pointer> {
    const PLACES: [&Pointer; 2] = [ANNOTATIONS, Pointer::from_static("/spec/template")];
    let Outcome::Patched { patch, .. } = outcome else { return None };
    let is_stray = |place: &&Pointer| !PLACES.iter().any(|allowed| place.starts_with(allowed));
    patch.0.iter().map(PatchOperation::path).find(is_stray)
}

/// The decision. A panic is ours alone: it is told with the request's name, and the next request finds all in order.
fn decide(state: &State, request: &Request) -> Result<Outcome, HttpError> {
    let decided = catch_unwind(AssertUnwindSafe(|| request.stateful_sets().map(|sets| (state.decide)(&sets))));
    // Its payload may quote the object: the panic hook has logged the place, and that is what is needed.
    let nothing_to_do = Outcome::Untouched { warnings: Vec::new() };
    decided.map(|outcome| outcome.unwrap_or(nothing_to_do)).map_err(|_payload| {
        state.metrics.panic();
        HttpError::Bug { uid: request.uid.clone() }
    })
}

/// How many values a JSON text has at most: each follows a bracket or a comma, or a key that does.
fn values(json: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// The API server sends JSON and says so; whatever says otherwise is not the API server.
fn require_json(headers: &HeaderMap) -> Result<(), HttpError> {
    let found = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = found.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(HttpError::ContentType { found: found.chars().take(80).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings() {
        for (json, count) in [("0", 1), ("[0,0,0]", 4), (r#"{"a":[{},1],"b":null}"#, 6), (r#""[,\\\",{""#, 1)] {
            assert_eq!(values(json.as_bytes()), count, "{json}");
        }
    }
}
