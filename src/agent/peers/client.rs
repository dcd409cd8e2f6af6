//! The asking side.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use futures::StreamExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::wire::{self, Question};
use super::{BODY_LIMIT, Error, Membership, PATH, Peer};
use crate::set::MOST_MEMBERS;

/// The longest header that is read of somebody who may be anybody.
const HEAD_LIMIT: usize = 16 << 10;
/// How many connections are kept.
const KEPT: usize = MOST_MEMBERS as usize;
/// The longest challenge that is sent back.
const CHALLENGE_LIMIT: usize = 256;

/// Asks other members, and keeps a connection to each.
#[derive(Clone, Debug)]
pub struct Client {
    set: Membership,
    idle: Arc<Mutex<HashMap<String, Line>>>,
}

/// A connection on which nothing is under way.
#[derive(Debug)]
struct Line {
    address: SocketAddr,
    requests: SendRequest<Body>,
    _task: Task,
    /// For the next question.
    challenge: Option<String>,
}

/// What moves the connection's bytes, for as long as somebody has the connection.
#[derive(Debug)]
struct Task(JoinHandle<()>);

// === impl Client ===

impl Client {
    /// Of a member.
    #[must_use]
    pub fn new(set: Membership) -> Self {
        Self { set, idle: Arc::default() }
    }

    /// Asks a member, for so long. The question may have arrived, even twice, when this fails or is dropped.
    pub async fn ask<Q, A>(&self, peer: &Peer, question: &Q, limit: Duration) -> Result<A, Error>
    where
        Q: Serialize,
        A: DeserializeOwned,
    {
        let body = serde_json::to_vec(question).map_err(|_unspeakable| Error::NotAsked("it is no JSON"))?;
        if body.len() > BODY_LIMIT {
            return Err(Error::NotAsked("it is too long"));
        }
        let exchange = self.exchange(peer, body.into());
        let answer = timeout(limit, exchange).await.map_err(|_elapsed| Error::TimedOut)??;
        serde_json::from_slice(&answer).map_err(|_other| Error::Garbled)
    }

    async fn exchange(&self, peer: &Peer, body: Bytes) -> Result<Bytes, Error> {
        if let Some(line) = self.take(peer) {
            match self.converse(line, peer, &body).await {
                // Closed meanwhile, by a peer that is another process now or had too many.
                Err(Error::Unreachable(_)) => {}
                outcome => return outcome,
            }
        }
        let line = Line::open(peer.address).await.map_err(Error::Unreachable)?;
        self.converse(line, peer, &body).await
    }

    /// Asks with the key of the password as it is now, or, while the change has not reached that member, with the one before.
    async fn converse(&self, mut line: Line, peer: &Peer, body: &Bytes) -> Result<Bytes, Error> {
        let mut keys = self.set.keys.good().into_iter();
        let mut key = keys.next().ok_or(Error::NotAsked("the set's password can't be read"))?;
        // One that came with the answer before may be too old by now; one that came with a refusal is not.
        let mut is_fresh = line.challenge.is_none();
        loop {
            let challenge = match line.challenge.take() {
                Some(challenge) => challenge,
                None => line.challenge().await?,
            };
            let question = Question::new(&self.set.me, &peer.pod, challenge, body)
                .map_err(|_none| Error::NotAsked("the system gives no random numbers"))?;
            let head = question.signed(&self.set, &key).ok_or(Error::NotAsked("a pod's name can't be sent"))?;
            let (code, headers, answer) = line.send(Method::POST, Some(head), body.clone()).await?;
            let next = line.note_challenge(&headers);
            match code {
                StatusCode::OK if question.is_answered_by(&self.set, &key, &headers, &next, &answer) => {
                    self.keep(peer, line);
                    return Ok(answer);
                }
                StatusCode::FORBIDDEN if is_fresh => key = keys.next().ok_or(Error::Refused)?,
                StatusCode::FORBIDDEN => is_fresh = true,
                StatusCode::SERVICE_UNAVAILABLE => return Err(Error::Busy),
                _ => return Err(Error::Garbled),
            }
        }
    }

    fn take(&self, peer: &Peer) -> Option<Line> {
        self.idle().remove(&peer.pod).filter(|line| line.address == peer.address && !line.requests.is_closed())
    }

    fn keep(&self, peer: &Peer, line: Line) {
        let mut idle = self.idle();
        if idle.len() >= KEPT {
            idle.retain(|_, line| !line.requests.is_closed());
        }
        if idle.len() < KEPT {
            idle.insert(peer.pod.clone(), line);
        }
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<String, Line>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Line ===

impl Line {
    async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let connected = http1::Builder::new().max_buf_size(HEAD_LIMIT).handshake(TokioIo::new(stream)).await;
        let (requests, connection) = connected.map_err(io::Error::other)?;
        let task = Task(tokio::spawn(async move {
            // Whoever waits on the connection hears how it ended.
            let _ended = connection.await;
        }));
        Ok(Self { address, requests, _task: task, challenge: None })
    }

    async fn challenge(&mut self) -> Result<String, Error> {
        let (_, headers, _) = self.send(Method::GET, None, Bytes::new()).await?;
        self.note_challenge(&headers);
        self.challenge.take().ok_or(Error::Garbled)
    }

    /// Keeps the challenge for the next question.
    fn note_challenge(&mut self, headers: &HeaderMap) -> String {
        self.challenge = wire::text(headers, &wire::CHALLENGE)
            .filter(|challenge| challenge.len() <= CHALLENGE_LIMIT)
            .map(str::to_owned);
        self.challenge.clone().unwrap_or_default()
    }

    async fn send(
        &mut self,
        method: Method,
        question: Option<HeaderValue>,
        body: Bytes,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Error> {
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_static(PATH);
        let host = HeaderValue::from_str(&self.address.to_string()).map_err(|_never| Error::Garbled)?;
        request.headers_mut().insert(HOST, host);
        if let Some(question) = question {
            request.headers_mut().insert(wire::QUESTION, question);
        }
        self.requests.ready().await.map_err(broken)?;
        let (head, body) = self.requests.send_request(request).await.map_err(broken)?.into_parts();
        Ok((head.status, head.headers, read(body).await?))
    }
}

async fn read(body: Incoming) -> Result<Bytes, Error> {
    let (mut stream, mut whole) = (Body::new(body).into_data_stream(), Vec::new());
    while let Some(piece) = stream.next().await {
        whole.extend_from_slice(&piece.map_err(broken)?);
        if whole.len() > BODY_LIMIT {
            return Err(Error::Garbled);
        }
    }
    Ok(whole.into())
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Unreachable(io::Error::other(error))
}

// === impl Task ===

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
