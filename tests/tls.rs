//! The webhook's port, over real TLS: certificates that change and connections that end.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/reviews.rs"]
mod reviews;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use axum_server::Handle;
use pgset::{
    certs::Resolver,
    inject::Outcome,
    webhook::{self, State, metrics::Metrics, server::Bound},
};
use rustls::{ClientConnection, StreamOwned, pki_types::ServerName};

use reviews::{HEAD, NAME, REVIEW, blocking, material, now, trusting};

struct Server {
    state: State,
    resolver: Arc<Resolver>,
    handle: Handle<SocketAddr>,
    address: SocketAddr,
    stopped: tokio::task::JoinHandle<()>,
}

fn serve() -> Server {
    let state = State::new(|_| Outcome::Untouched { warnings: Vec::new() }, Arc::new(Metrics::new()));
    let (resolver, handle) = (Arc::new(Resolver::new()), Handle::new());
    let bound = Bound::new(0).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], bound.address().port()));
    let serving = bound.serve_https(webhook::router(state.clone()), resolver.clone(), handle.clone());
    let stopped = tokio::spawn(async move { serving.await.unwrap() });
    Server { state, resolver, handle, address, stopped }
}

/// A client as the API server is one: trusts a bundle, and keeps its connection.
struct Client(StreamOwned<ClientConnection, TcpStream>);

impl Client {
    fn connect(address: SocketAddr, bundle: &str) -> Self {
        let mut config = trusting(bundle);
        // What Go offers where HTTP/2 is on; the API server turns it off for webhooks.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tls = ClientConnection::new(Arc::new(config), ServerName::try_from(NAME).unwrap()).unwrap();
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(StreamOwned::new(tls, tcp))
    }

    /// One request; the whole answer, or the error.
    fn ask(&mut self) -> std::io::Result<String> {
        self.send()?;
        self.answer()
    }

    fn send(&mut self) -> std::io::Result<()> {
        reviews::send(&mut self.0)
    }

    fn answer(&mut self) -> std::io::Result<String> {
        reviews::answer(&mut self.0)
    }

    /// Until the server closes: how long that took.
    fn closed(&mut self) -> Duration {
        let started = Instant::now();
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        started.elapsed()
    }
}

#[tokio::test]
async fn new_connections_get_the_new_certificate_and_open_ones_go_on() {
    let server = serve();
    let address = server.address;
    let (old, new) = (material(), material());
    let (old_bundle, new_bundle) = (old.bundle().to_owned(), new.bundle().to_owned());

    let nothing_yet = old_bundle.clone();
    assert!(blocking(move || Client::connect(address, &nothing_yet).ask()).await.is_err());

    assert!(server.resolver.serve(old.certificate().unwrap(), now()).unwrap());
    assert!(!server.resolver.serve(old.certificate().unwrap(), now()).unwrap(), "the same is no news");
    let bundle = old_bundle.clone();
    let mut open = blocking(move || {
        let mut client = Client::connect(address, &bundle);
        let answer = client.ask().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(client.0.conn.alpn_protocol(), Some(b"http/1.1".as_slice()));
        client
    })
    .await;

    assert!(server.resolver.serve(new.certificate().unwrap(), now()).unwrap());
    blocking(move || {
        open.ask().unwrap();
        Client::connect(address, &new_bundle).ask().unwrap();
        Client::connect(address, &old_bundle).ask().unwrap_err();
    })
    .await;
}

#[tokio::test]
async fn a_draining_webhook_answers_and_closes_and_then_ends_idle_connections_too() {
    let Server { state, resolver, handle, address, stopped } = serve();
    let made = material();
    resolver.serve(made.certificate().unwrap(), now()).unwrap();
    let bundle = made.bundle().to_owned();
    let (mut busy, mut idle) = blocking(move || {
        let mut pair = (Client::connect(address, &bundle), Client::connect(address, &bundle));
        assert!(!pair.0.ask().unwrap().contains("connection: close"));
        pair.1.ask().unwrap();
        pair
    })
    .await;

    state.drain();
    blocking(move || {
        assert!(busy.ask().unwrap().contains("connection: close"));
        assert!(busy.closed() < Duration::from_secs(1));
    })
    .await;
    let waiting = tokio::task::spawn_blocking(move || idle.closed());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    handle.graceful_shutdown(Some(Duration::from_secs(5)));
    assert!(waiting.await.unwrap() < Duration::from_secs(2));
    stopped.await.unwrap();
    assert!(TcpStream::connect(address).is_err());
}

#[tokio::test]
async fn who_says_nothing_or_half_a_header_or_half_a_body_is_cut_off_while_others_are_answered() {
    let Server { resolver, address, .. } = serve();
    let made = material();
    resolver.serve(made.certificate().unwrap(), now()).unwrap();
    let bundle = made.bundle().to_owned();
    let half_a_body = format!("{HEAD}content-length: {}\r\n\r\n{}", REVIEW.len(), &REVIEW[..40]);
    let slow = ["", "POST /mutate HTTP/1.1\r\nhost: web", &half_a_body].map(|sent| {
        let (sent, bundle) = (sent.to_owned(), bundle.clone());
        tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(address, &bundle);
            client.0.sock.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let started = Instant::now();
            client.0.write_all(sent.as_bytes()).unwrap();
            client.0.flush().unwrap();
            // A connection that is cut ends without TLS's own good-bye.
            let mut answer = Vec::new();
            let _ = client.0.read_to_end(&mut answer);
            (String::from_utf8(answer).unwrap(), started.elapsed())
        })
    });
    // A plain port scanner, that does not even speak TLS.
    let silent = tokio::task::spawn_blocking(move || {
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let started = Instant::now();
        let _ = tcp.read_to_end(&mut Vec::new());
        started.elapsed()
    });
    blocking(move || Client::connect(address, &bundle).ask().unwrap()).await;

    assert!(silent.await.unwrap() < Duration::from_secs(8));
    let [nothing, header, body] = slow;
    for quiet in [nothing, header] {
        let (answer, took) = quiet.await.unwrap();
        assert!(took < Duration::from_secs(14) && !answer.contains("200 OK"), "{took:?} {answer}");
    }
    let (answer, took) = body.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && took < Duration::from_secs(14), "{took:?} {answer}");
    assert!(answer.contains("the body was not there within 4s"), "{answer}");
}

#[tokio::test]
async fn four_hundred_open_connections_are_all_answered() {
    let Server { resolver, address, .. } = serve();
    let made = material();
    resolver.serve(made.certificate().unwrap(), now()).unwrap();
    let bundle = made.bundle().to_owned();
    blocking(move || {
        let ask = |_| {
            let mut client = Client::connect(address, &bundle);
            client.send().unwrap();
            client
        };
        let mut clients: Vec<_> = (0..400).map(ask).collect();
        for client in &mut clients {
            client.answer().unwrap();
        }
    })
    .await;
}
