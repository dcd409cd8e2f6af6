//! A proxy before a server that keeps objects: it does what stores do on bad days.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{Method, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    time::sleep,
};

use crate::store::Server;

/// Bytes a second that a slow store passes on, of each request.
const SLOW: f64 = 200_000.0;
/// How long a slow store thinks about each request.
const THINKS: Duration = Duration::from_millis(1500);

/// How the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As it is.
    Well,
    /// Whoever asks has no right to.
    Refuses,
    /// The same of the WAL alone.
    RefusesWal,
    /// Too many ask.
    Busy,
    /// Too many ask, two times of three.
    OftenBusy,
    /// It takes nothing more, and shows what it has.
    Full,
    /// Each request takes its time, on the way there and back.
    Slow,
}

/// The proxy, until it is dropped.
pub struct Proxy {
    way: Arc<Way>,
    _runtime: Runtime,
}

struct Way {
    to: String,
    mode: Mutex<Mode>,
    asked: AtomicU32,
}

impl Proxy {
    /// Stands at a port before a server, for whoever is given its credentials from now on.
    pub fn before(server: &mut Server, port: u16) -> Self {
        let [at, to] = server.asked_at(port);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let way = Arc::new(Way { to, mode: Mutex::new(Mode::Well), asked: AtomicU32::new(0) });
        let listener = runtime.block_on(TcpListener::bind(at)).unwrap();
        let router = Router::new().fallback(answer).with_state(way.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { way, _runtime: runtime }
    }

    /// From now on the store is like that.
    pub fn turn(&self, mode: Mode) {
        *self.way.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }
}

async fn answer(State(way): State<Arc<Way>>, request: Request) -> Response {
    let mode = *way.mode.lock().unwrap_or_else(PoisonError::into_inner);
    let is_third = way.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(3);
    match mode {
        Mode::Refuses => refuses(request).await,
        Mode::RefusesWal if request.uri().path().contains("/wal/") => refuses(request).await,
        Mode::Busy => busy(request).await,
        Mode::OftenBusy if !is_third => busy(request).await,
        // As MinIO says it.
        Mode::Full if [Method::PUT, Method::POST].contains(request.method()) => {
            let message =
                "Storage backend has reached its minimum free drive threshold. Please delete a few objects to proceed.";
            says(request, StatusCode::INSUFFICIENT_STORAGE, "XMinioStorageFull", message).await
        }
        Mode::Slow => {
            sleep(THINKS).await;
            let answer = passed_on(&way.to, request.map(slowed)).await;
            answer.map(slowed)
        }
        Mode::Well | Mode::RefusesWal | Mode::OftenBusy | Mode::Full => passed_on(&way.to, request).await,
    }
}

async fn refuses(request: Request) -> Response {
    says(request, StatusCode::FORBIDDEN, "AccessDenied", "Access Denied").await
}

async fn busy(request: Request) -> Response {
    says(request, StatusCode::SERVICE_UNAVAILABLE, "SlowDown", "Please reduce your request rate.").await
}

/// As S3 says no.
async fn says(request: Request, status: StatusCode, code: &str, message: &str) -> Response {
    // Who is not heard to the end does not hear the answer.
    let _ = to_bytes(request.into_body(), usize::MAX).await;
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
         <RequestId>4442587FB7D0A2F9</RequestId></Error>"
    );
    (status, [(CONTENT_TYPE, "application/xml")], text).into_response()
}

/// The store's answer. All headers stay as they are: the signature is of the name by which the proxy is asked, too.
async fn passed_on(to: &str, request: Request) -> Response {
    let asked = async {
        let stream = TcpStream::connect(to).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(sender.send_request(request).await?)
    };
    match asked.await {
        Ok(answer) => answer.map(Body::new),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

fn slowed(body: Body) -> Body {
    Body::from_stream(body.into_data_stream().then(|piece| async {
        let length = u32::try_from(piece.as_ref().map_or(0, Bytes::len)).unwrap_or(u32::MAX);
        sleep(Duration::from_secs_f64(f64::from(length) / SLOW)).await;
        piece
    }))
}
