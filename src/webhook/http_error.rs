//! What is answered when there is no decision: an HTTP error with a `metav1.Status`, so that the API server shows the text
//! and the webhook's failure policy decides.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::BODY_LIMIT;

/// Why a request got no decision.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// Another content type.
    #[error("the body must be application/json, not {found:?}")]
    ContentType {
        /// What the header says.
        found: String,
    },
    /// The body is too long.
    #[error("the review is longer than {BODY_LIMIT} bytes")]
    TooLarge,
    /// The body has more values than any object that is stored.
    #[error("the review has more than {limit} values")]
    TooMany {
        /// How many are read.
        limit: usize,
    },
    /// The body did not arrive.
    #[error("the body was not there within {deadline:?}")]
    SlowBody {
        /// How long it had.
        deadline: Duration,
    },
    /// The body broke off.
    #[error("the body could not be read")]
    Unreadable,
    /// The body is not a review.
    #[error("the body is not an admission.k8s.io/v1 AdmissionReview: {reason}")]
    Malformed {
        /// What is wrong, without quoting the object.
        reason: String,
    },
    /// The deadline has passed.
    #[error("the review took longer than {deadline:?}")]
    TooSlow {
        /// The deadline that was set for it.
        deadline: Duration,
    },
    /// No room for another request.
    #[error("too many reviews at once; try again in a second")]
    Overloaded,
    /// A bug of ours.
    #[error("pgset failed on this object, which is a bug; its log says where, please report it (request {uid:?})")]
    Bug {
        /// Names the request in the log.
        uid: String,
    },
    /// A bug of ours.
    #[error("failed to write the answer")]
    Answer(#[source] serde_json::Error),
}

// === impl Problem ===

impl HttpError {
    fn code(&self) -> StatusCode {
        match self {
            Self::ContentType { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge | Self::TooMany { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unreadable | Self::Malformed { .. } => StatusCode::BAD_REQUEST,
            Self::SlowBody { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::TooSlow { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::Bug { .. } | Self::Answer(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The `reason` of Kubernetes' own errors with this code.
    fn reason(&self) -> &'static str {
        match self {
            Self::ContentType { .. } => "UnsupportedMediaType",
            Self::TooLarge | Self::TooMany { .. } => "RequestEntityTooLarge",
            Self::Unreadable | Self::Malformed { .. } => "BadRequest",
            Self::SlowBody { .. } | Self::TooSlow { .. } => "Timeout",
            Self::Overloaded => "ServiceUnavailable",
            Self::Bug { .. } | Self::Answer(_) => "InternalError",
        }
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let code = self.code();
        let status = json!({
            "apiVersion": "v1",
            "kind": "Status",
            "metadata": {},
            "status": "Failure",
            "message": format!("pgset: {self}"),
            "reason": self.reason(),
            "code": code.as_u16(),
        });
        let mut response = (code, Json(status)).into_response();
        if code == StatusCode::SERVICE_UNAVAILABLE {
            // The API server's client tries again after this many seconds, as long as its own timeout allows.
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
