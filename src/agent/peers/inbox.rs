//! The answering side: from a request to the member's loop and back.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::challenge::Challenges;
use super::key::Key;
use super::wire::{self, Question, Received};
use super::{ANSWERED_WITHIN, BODY_LIMIT, Membership, PATH};
use crate::election::lease_record::HolderIdentity;

/// How many questions are read and answered at once: all other members of the largest set. Only members come so far; with
/// [`BODY_LIMIT`] it bounds the memory.
const AT_ONCE: usize = 100;
/// How many questions wait for the member's loop.
const WAITING: usize = 16;

/// A member's question.
#[derive(Debug)]
pub struct Asked<Q, A> {
    /// Who asks.
    pub from: HolderIdentity,
    /// What.
    pub question: Q,
    /// Where the answer goes; closed when the asker has given up. Dropped without an answer, the asker hears [`super::Error::Busy`].
    pub answer: oneshot::Sender<A>,
}

/// Where members' questions come in.
pub struct Inbox<Q, A>(Arc<Inner<Q, A>>);

struct Inner<Q, A> {
    set: Membership,
    challenges: Challenges,
    at_once: Semaphore,
    to_loop: mpsc::Sender<Asked<Q, A>>,
}

/// Why a question gets no answer.
enum Unanswered {
    /// Nobody that is known, or nothing that he may ask.
    Refused,
    /// Of a member with another version.
    NotUnderstood,
    /// The loop does not come to it.
    Busy,
}

// === impl Inbox ===

impl<Q, A> Inbox<Q, A>
where
    Q: DeserializeOwned + Send + 'static,
    A: Serialize + Send + 'static,
{
    /// An inbox, and the end at which the member's loop takes questions out of it.
    pub fn new(set: Membership) -> Result<(Self, mpsc::Receiver<Asked<Q, A>>), getrandom::Error> {
        let (to_loop, asked) = mpsc::channel(WAITING);
        let at_once = Semaphore::new(AT_ONCE);
        Ok((Self(Arc::new(Inner { set, challenges: Challenges::new()?, at_once, to_loop })), asked))
    }

    /// The route, for the agent's port.
    pub fn router(&self) -> Router {
        Router::new().route(PATH, get(challenge::<Q, A>).post(receive::<Q, A>)).with_state(self.0.clone())
    }
}

impl<Q, A> fmt::Debug for Inbox<Q, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Inbox").field(&self.0.set.me).finish_non_exhaustive()
    }
}

/// For whoever has none yet.
async fn challenge<Q, A>(State(inbox): State<Arc<Inner<Q, A>>>) -> Response {
    (StatusCode::NO_CONTENT, [(wire::CHALLENGE, inbox.challenges.give())]).into_response()
}

async fn receive<Q: DeserializeOwned, A: Serialize>(
    State(inbox): State<Arc<Inner<Q, A>>>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let answered = timeout(ANSWERED_WITHIN, inbox.answer(&head.headers, body)).await;
    answered.unwrap_or(Err(Unanswered::Busy)).unwrap_or_else(|why| {
        let code = match why {
            Unanswered::Refused => StatusCode::FORBIDDEN,
            Unanswered::NotUnderstood => StatusCode::UNPROCESSABLE_ENTITY,
            Unanswered::Busy => StatusCode::SERVICE_UNAVAILABLE,
        };
        (code, [(wire::CHALLENGE, inbox.challenges.give())]).into_response()
    })
}

// === impl Inner ===

impl<Q: DeserializeOwned, A: Serialize> Inner<Q, A> {
    async fn answer(&self, headers: &HeaderMap, body: Body) -> Result<Response, Unanswered> {
        let Some((question, key)) = self.admit(headers) else {
            drain(body).await;
            return Err(Unanswered::Refused);
        };
        let _permit = self.at_once.acquire().await.map_err(|_closed| Unanswered::Busy)?;
        let body = to_bytes(body, BODY_LIMIT).await.map_err(|_too_long| Unanswered::Refused)?;
        if !question.is_of(&body) {
            return Err(Unanswered::Refused);
        }
        let asked = serde_json::from_slice(&body).map_err(|_unknown| Unanswered::NotUnderstood)?;
        let (answer, answered) = oneshot::channel();
        let asked = Asked { from: question.from.clone(), question: asked, answer };
        self.to_loop.send(asked).await.map_err(|_gone| Unanswered::Busy)?;
        let answer = answered.await.map_err(|_dropped| Unanswered::Busy)?;
        let answer = serde_json::to_vec(&answer).map_err(|_unspeakable| Unanswered::Busy)?;
        let next = self.challenges.give();
        let tag = question.sign_answer(&self.set, &key, &next, &answer);
        Ok(([(wire::ANSWER, tag), (wire::CHALLENGE, next)], answer).into_response())
    }

    /// A member's question to this one, for the first time: by the header alone, so that nothing of a stranger's is kept or waits.
    fn admit(&self, headers: &HeaderMap) -> Option<(Question, Key)> {
        let received = Received::read(headers).filter(|received| received.question.to == self.set.me.pod)?;
        let key = self.set.keys.good().into_iter().find(|key| received.is_signed(&self.set, key))?;
        self.challenges.use_up(&received.question.challenge).then_some((received.question, key))
    }
}

/// Reads a short body to its end and forgets it: a connection that is closed with something unread loses the answer on its way.
async fn drain(body: Body) {
    let (mut stream, mut left) = (body.into_data_stream(), BODY_LIMIT);
    while let Some(Ok(piece)) = stream.next().await {
        let Some(less) = left.checked_sub(piece.len()) else { return };
        left = less;
    }
}
