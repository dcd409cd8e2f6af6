//! The ports: TLS, timeouts, draining.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use axum_server::{
    Handle,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use rustls::server::{ResolvesServerCert, ServerConfig};

use super::connections::{self, Bounded};

/// How long a connection may take over its TLS handshake. The API server takes milliseconds.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long a connection may take over the header of a request, idle keep-alive included. It exceeds the 90 s after which the
/// API server itself closes idle connections, so that we never close one just as it sends.
const HEADER: Duration = Duration::from_secs(120);

/// How long a new connection may take to its first request: port scanners hold none open.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Why a port could not be opened or a server not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The port is taken or not allowed.
    #[error("failed to listen on port {port}")]
    Bind {
        /// The port that was asked for.
        port: u16,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error("failed to set up TLS")]
    Tls(#[from] rustls::Error),
    /// The server broke off.
    #[error("failed to serve")]
    Serve(#[source] io::Error),
}

/// A port that is open and not yet served.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

// === impl Bound ===

impl Bound {
    /// Opens a port on all addresses, IPv6 and IPv4; 0 takes a free one.
    pub fn new(port: u16) -> Result<Self, Error> {
        let failed = |source| Error::Bind { port, source };
        // A kernel without IPv6 has no dual-stack socket to offer.
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind(("0.0.0.0", port)))
            .map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves plain HTTP until the handle says stop.
    pub async fn serve_http(self, router: Router, handle: Handle<SocketAddr>) -> Result<(), Error> {
        let mut server = axum_server::from_tcp(self.listener)
            .map_err(Error::Serve)?
            .acceptor(Bounded::new(connections::MOST))
            .handle(handle)
            .first_request_timeout(FIRST_REQUEST)
            .http1_only();
        server.http_builder().http1().header_read_timeout(HEADER);
        server.serve(router.into_make_service()).await.map_err(Error::Serve)
    }

    /// Serves HTTPS until the handle says stop; the resolver gives each new connection its certificate.
    pub async fn serve_https(
        self,
        router: Router,
        certificates: Arc<dyn ResolvesServerCert>,
        handle: Handle<SocketAddr>,
    ) -> Result<(), Error> {
        let config = RustlsConfig::from_config(Arc::new(tls(certificates)?));
        let acceptor =
            RustlsAcceptor::new(config).handshake_timeout(HANDSHAKE).acceptor(Bounded::new(connections::MOST));
        let mut server = axum_server::from_tcp(self.listener)
            .map_err(Error::Serve)?
            .acceptor(acceptor)
            .handle(handle)
            .first_request_timeout(FIRST_REQUEST)
            .accept_error_handler(|peer, error| tracing::debug!(?peer, %error, "a connection failed"))
            .http1_only();
        server.http_builder().http1().header_read_timeout(HEADER);
        server.serve(router.into_make_service()).await.map_err(Error::Serve)
    }
}

/// TLS 1.3 only: every API server that has `matchConditions` speaks it. HTTP/1.1 only: it is all that the API server speaks
/// to webhooks (kubernetes#82090).
fn tls(certificates: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
