//! The webhook's port, over real TLS: certificates that change and connections that end.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use axum_server::Handle;
use pgset::{
    certs::{Material, Resolver},
    webhook::{self, Decision, State, metrics::Metrics, server::Bound},
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

const NAME: &str = "pgset-webhook.pgset-system.svc";
const REVIEW: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u",
    "kind":{"group":"apps","version":"v1","kind":"StatefulSet"},"operation":"CREATE","object":{"metadata":{}}}}"#;

struct Server {
    state: State,
    resolver: Arc<Resolver>,
    handle: Handle<SocketAddr>,
    address: SocketAddr,
    stopped: tokio::task::JoinHandle<()>,
}

fn material() -> Material {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    Material::new(&[NAME.to_owned()], now).unwrap()
}

fn serve() -> Server {
    let state = State::new(|_| Decision::Untouched, Arc::new(Metrics::new()));
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
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // What Go offers where HTTP/2 is on; the API server turns it off for webhooks.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tls = ClientConnection::new(Arc::new(config), ServerName::try_from(NAME).unwrap()).unwrap();
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(StreamOwned::new(tls, tcp))
    }

    /// One request; the whole answer, or the error.
    fn ask(&mut self) -> std::io::Result<String> {
        let head = "POST /mutate?timeout=5s HTTP/1.1\r\nhost: webhook\r\ncontent-type: application/json\r\n";
        write!(self.0, "{head}content-length: {}\r\n\r\n{REVIEW}", REVIEW.len())?;
        let mut answer = String::new();
        while !answer.contains("\"allowed\":true") {
            let mut bytes = [0; 4096];
            let count = self.0.read(&mut bytes)?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            answer.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        Ok(answer)
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
async fn new_connections_get_the_new_certificate_and_open_ones_go_on() {
    let server = serve();
    let address = server.address;
    let (old, new) = (material(), material());
    let (old_bundle, new_bundle) = (old.bundle().to_owned(), new.bundle().to_owned());

    let nothing_yet = old_bundle.clone();
    assert!(blocking(move || Client::connect(address, &nothing_yet).ask()).await.is_err());

    assert!(server.resolver.serve(old.certificate().unwrap()));
    assert!(!server.resolver.serve(old.certificate().unwrap()), "the same is no news");
    let bundle = old_bundle.clone();
    let mut open = blocking(move || {
        let mut client = Client::connect(address, &bundle);
        let answer = client.ask().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(client.0.conn.alpn_protocol(), Some(b"http/1.1".as_slice()));
        client
    })
    .await;

    assert!(server.resolver.serve(new.certificate().unwrap()));
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
    resolver.serve(made.certificate().unwrap());
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

/// Until the server closes a connection that has sent no more than this: how long that took.
fn cut_off(address: SocketAddr, said: &[u8]) -> Duration {
    let started = Instant::now();
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    tcp.write_all(said).unwrap();
    // An end and a reset are both a cut.
    if let Err(error) = tcp.read_to_end(&mut Vec::new()) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_or_says_it_slowly_is_cut_off_and_holds_up_nobody() {
    let server = serve();
    let address = server.address;
    let made = material();
    server.resolver.serve(made.certificate().unwrap());
    let bundle = made.bundle().to_owned();

    let silent = tokio::task::spawn_blocking(move || cut_off(address, b""));
    let broken = tokio::task::spawn_blocking(move || cut_off(address, b"GET / HTTP/1.1\r\n"));
    let trickling = bundle.clone();
    let slow_header = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(address, &trickling);
        let started = Instant::now();
        client.0.sock.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        // A byte of a header that never ends, twice a second.
        for byte in b"POST /mutate HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'x')) {
            if client.0.write_all(&[*byte]).and_then(|()| client.0.flush()).is_err() {
                break;
            }
            match client.0.read(&mut [0; 512]) {
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                _ended => break,
            }
            assert!(started.elapsed() < Duration::from_secs(30), "a slow header is never cut off");
        }
        started.elapsed()
    });
    blocking(move || Client::connect(address, &bundle).ask().unwrap()).await;

    assert!(broken.await.unwrap() < Duration::from_secs(4), "what is not TLS is cut off at once");
    let silent = silent.await.unwrap();
    assert!((4..9).contains(&silent.as_secs()), "no handshake within 5 s: {silent:?}");
    let slow = slow_header.await.unwrap();
    assert!((9..16).contains(&slow.as_secs()), "no request within 10 s: {slow:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_connections_are_kept_and_answered() {
    let server = serve();
    let address = server.address;
    let made = material();
    server.resolver.serve(made.certificate().unwrap());
    let bundle = made.bundle().to_owned();
    let connecting: Vec<_> = (0..20)
        .map(|_| {
            let bundle = bundle.clone();
            tokio::task::spawn_blocking(move || {
                let connected = |_| {
                    let mut client = Client::connect(address, &bundle);
                    client.ask().unwrap();
                    client
                };
                (0..20).map(connected).collect::<Vec<_>>()
            })
        })
        .collect();
    let mut open = Vec::new();
    for clients in connecting {
        open.extend(clients.await.unwrap());
    }
    assert_eq!(open.len(), 400);
    blocking(move || open.iter_mut().for_each(|client| drop(client.ask().unwrap()))).await;
}
