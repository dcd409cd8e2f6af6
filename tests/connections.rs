//! The ports under a flood: who idles in the places, or never ends his handshake, keeps nobody from being answered.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/reviews.rs"]
mod reviews;

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum_server::Handle;
use pgset::{
    certs::Resolver,
    inject::Outcome,
    webhook::{
        self, State,
        health::{self, Readiness},
        metrics::Metrics,
        server::{Bound, Limits},
    },
};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use reviews::{NAME, blocking, material, now, trusting};

/// More than any port has places.
const MANY: usize = 1100;

/// How soon the kubelet and the API server get their answer.
const SOON: Duration = Duration::from_secs(1);

/// Everybody else's patience.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client's source addresses: all of 127.0.0.0/8 is this machine.
type Sources = &'static [u8];
const ONE: Sources = &[66];
const SEVERAL: Sources = &[66, 67, 68, 69, 70];
/// The kubelet's and the API server's, and the one of someone who works.
const CALLER: u8 = 2;

async fn connect_from(source: u8, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, source), 0)))?;
    tokio::time::timeout(PATIENCE, socket.connect(address)).await?
}

/// Connections that say nothing.
async fn idle(count: usize, sources: Sources, address: SocketAddr) -> Vec<TcpStream> {
    let mut open = Vec::with_capacity(count);
    for index in 0..count {
        open.push(connect_from(sources[index % sources.len()], address).await.unwrap());
    }
    open
}

/// How many of them the server has not closed.
fn still_open(connections: &[TcpStream]) -> usize {
    let is_open = |connection: &&TcpStream| {
        let read = connection.try_read(&mut [0; 1]);
        matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    };
    connections.iter().filter(is_open).count()
}

/// Until so many are left open.
async fn until_open(connections: &[TcpStream], expected: RangeInclusive<usize>) {
    let started = Instant::now();
    loop {
        let open = still_open(connections);
        if expected.contains(&open) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{open} are open, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks on an open connection; the answer's head and body.
async fn ask(connection: &mut TcpStream, path: &str) -> std::io::Result<String> {
    connection.write_all(format!("GET {path} HTTP/1.1\r\nhost: pgset\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        let count = connection.read(&mut bytes).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&bytes[..count]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length: usize =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
            if body.len() == length {
                return Ok(text.into_owned());
            }
        }
    }
}

/// What the kubelet does: a new connection each time.
async fn probe(address: SocketAddr, path: &str) {
    let started = Instant::now();
    let answer = ask(&mut connect_from(CALLER, address).await.unwrap(), path).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(started.elapsed() < SOON, "{path} took {:?}", started.elapsed());
}

/// The port for probes and the one for metrics.
struct Plain {
    probes: SocketAddr,
    metrics: SocketAddr,
}

fn local(bound: &Bound) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, bound.address().port()))
}

fn serve_plain() -> Plain {
    let (probes, metrics) = (Bound::new(0).unwrap(), Bound::new(0).unwrap());
    let plain = Plain { probes: local(&probes), metrics: local(&metrics) };
    let readiness = Readiness::new();
    tokio::spawn(probes.serve_http(health::probes(readiness.clone()), Handle::new()));
    tokio::spawn(metrics.serve_http(health::router(readiness, Arc::new(Metrics::new())), Handle::new()));
    plain
}

/// The webhook's port, and a client's configuration that trusts it.
struct Reviews {
    address: SocketAddr,
    client: Arc<ClientConfig>,
}

fn serve_reviews() -> Reviews {
    let material = material();
    let resolver = Arc::new(Resolver::new());
    resolver.serve(material.certificate().unwrap(), now()).unwrap();
    let bound = Bound::new(0).unwrap();
    let address = local(&bound);
    let state = State::new(|_| Outcome::Untouched { warnings: Vec::new() }, Arc::new(Metrics::new()));
    tokio::spawn(bound.serve_https(webhook::router(state), resolver, Handle::new()));
    Reviews { address, client: Arc::new(trusting(material.bundle())) }
}

/// A client with its TLS done.
struct Client(StreamOwned<ClientConnection, std::net::TcpStream>);

impl Reviews {
    async fn connect(&self, source: u8) -> Client {
        let tcp = connect_from(source, self.address).await.unwrap().into_std().unwrap();
        let tls = ClientConnection::new(self.client.clone(), ServerName::try_from(NAME).unwrap()).unwrap();
        blocking(move || {
            tcp.set_nonblocking(false).unwrap();
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut stream = StreamOwned::new(tls, tcp);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock).unwrap();
            }
            Client(stream)
        })
        .await
    }

    /// What an API server does whose connections are all in use.
    async fn review(&self) {
        let started = Instant::now();
        let mut client = self.connect(CALLER).await;
        blocking(move || client.review().unwrap()).await;
        assert!(started.elapsed() < SOON, "a review took {:?}", started.elapsed());
    }
}

impl Client {
    fn review(&mut self) -> std::io::Result<()> {
        reviews::send(&mut self.0)?;
        reviews::answer(&mut self.0).map(drop)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_to_the_plain_ports_keep_no_probe_and_no_scrape_waiting() {
    for sources in [ONE, SEVERAL] {
        let plain = serve_plain();
        for port in [plain.metrics, plain.probes] {
            let mut held = Vec::new();
            for _ in 0..11 {
                held.extend(idle(MANY / 11, sources, port).await);
                probe(plain.probes, "/livez").await;
                probe(plain.probes, "/readyz").await;
                probe(plain.metrics, "/metrics").await;
            }
            let Limits { most, of_one_peer } = Limits::PLAIN;
            let left = if sources == ONE { of_one_peer } else { most };
            until_open(&held, 0..=left).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_end_keep_no_review_and_no_probe_waiting() {
    for sources in [ONE, SEVERAL] {
        let (plain, reviews) = (serve_plain(), serve_reviews());
        let mut kept = reviews.connect(CALLER).await;
        let mut held = Vec::new();
        for _ in 0..11 {
            held.extend(idle(MANY / 11, sources, reviews.address).await);
            probe(plain.probes, "/livez").await;
            reviews.review().await;
        }
        let Limits { most, of_one_peer } = Limits::HANDSHAKES;
        until_open(&held, 0..=if sources == ONE { of_one_peer } else { most }).await;
        blocking(move || kept.review().unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_whose_tls_is_done_keep_no_review_waiting_and_the_first_of_them_go() {
    let reviews = serve_reviews();
    let mut working = reviews.connect(CALLER).await;
    let mut held = Vec::new();
    for round in 0..11 {
        for _ in 0..Limits::REVIEWS.of_one_peer / 10 {
            held.push(reviews.connect(ONE[0]).await);
        }
        reviews.review().await;
        working = blocking(move || {
            working.review().unwrap();
            working
        })
        .await;
        assert!(held.len() > Limits::REVIEWS.of_one_peer || round < 10);
    }
    blocking(move || {
        held[0].review().unwrap_err();
        held.last_mut().unwrap().review().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_new_connections_keeps_no_review_and_no_probe_waiting() {
    let (plain, reviews) = (serve_plain(), serve_reviews());
    let stop = Arc::new(AtomicBool::new(false));
    let ports = [plain.metrics, plain.probes, reviews.address];
    let floods: Vec<_> = ports
        .into_iter()
        .flat_map(|address| SEVERAL.iter().map(move |source| (address, *source)))
        .map(|(address, source)| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut held = VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    held.push_back(connect_from(source, address).await.unwrap());
                    if held.len() > MANY / SEVERAL.len() {
                        held.pop_front();
                    }
                }
            })
        })
        .collect();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        probe(plain.probes, "/livez").await;
        probe(plain.metrics, "/metrics").await;
        reviews.review().await;
    }
    stop.store(true, Ordering::Relaxed);
    for flood in floods {
        flood.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_that_idles_longest_is_closed_and_one_that_works_never() {
    let plain = serve_plain();
    let mut working = connect_from(CALLER, plain.metrics).await.unwrap();
    ask(&mut working, "/livez").await.unwrap();
    let share = Limits::PLAIN.of_one_peer;
    let mut idle_ones = idle(share - 1, &[CALLER], plain.metrics).await;
    for connection in &mut idle_ones {
        // In this order they begin to idle.
        ask(connection, "/livez").await.unwrap();
    }
    ask(&mut working, "/livez").await.unwrap();

    let one_more = idle(1, &[CALLER], plain.metrics).await;
    until_open(&idle_ones, share - 2..=share - 2).await;
    assert_eq!((still_open(&idle_ones[..1]), still_open(&one_more)), (0, 1), "the first of the idle ones is closed");
    for _ in 0..MANY / 10 {
        idle(1, &[CALLER], plain.metrics).await;
        ask(&mut working, "/livez").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_peer_has_its_share_and_another_one_finds_a_place() {
    let plain = serve_plain();
    let Limits { most, of_one_peer } = Limits::PLAIN;
    let mut held = idle(of_one_peer + 5, &[1], plain.metrics).await;
    until_open(&held, of_one_peer..=of_one_peer).await;
    held.extend(idle(most - of_one_peer, &[3, 4, 5], plain.metrics).await);
    let mut late = connect_from(CALLER, plain.metrics).await.unwrap();
    ask(&mut late, "/metrics").await.unwrap();
    // Of those with the most, one gave way.
    until_open(&held, most - 1..=most - 1).await;
    ask(&mut late, "/metrics").await.unwrap();
}
