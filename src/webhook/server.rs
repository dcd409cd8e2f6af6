//! The ports: TLS, timeouts, draining.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use axum_server::{Handle, Server};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::server::{ResolvesServerCert, ServerConfig};

use super::accept::{Plain, Tls};
pub use super::connections::Limits;

/// How long a connection may take over the header of a request, idle keep-alive included. It exceeds the 90 s after which the
/// API server itself closes idle connections, so that we never close one just as it sends.
const HEADER: Duration = Duration::from_secs(120);

/// How long a new connection may take to its first request: port scanners hold none open.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// How much of a header is kept in an agent's memory, which is the database's.
const HEAD_OF_MEMBER: usize = 16 << 10;

/// How many files the process may need: one for each connection, and as many again for those that are just closing and for all else.
const FILES: u64 = 4096;

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

/// Lets the process have a file for each connection: a container may start with as few as 1,024, and where
/// those are used up nobody is let in, not even a probe.
pub fn allow_connections() {
    let allowed = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = FILES.min(hard).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).map(|()| wanted)
    });
    match allowed {
        Ok(files) if files >= FILES => {}
        Ok(files) => {
            tracing::warn!(
                files,
                wanted = FILES,
                "too few open files are allowed for a flood: raise the container's hard limit (nofile)"
            );
        }
        Err(error) => tracing::warn!(%error, "failed to raise the limit of open files (nofile)"),
    }
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
        let server = self.server(handle)?.acceptor(Plain::new(Limits::PLAIN));
        server.serve(router.into_make_service()).await.map_err(Error::Serve)
    }

    /// Serves plain HTTP to the members of a set, for as long as the process lives.
    pub async fn serve_members(self, router: Router) -> Result<(), Error> {
        let mut server = self.server(Handle::new())?.acceptor(Plain::new(Limits::MEMBERS));
        server.http_builder().http1().max_buf_size(HEAD_OF_MEMBER);
        server.serve(router.into_make_service()).await.map_err(Error::Serve)
    }

    /// Serves HTTPS until the handle says stop; the resolver gives each new connection its certificate.
    pub async fn serve_https(
        self,
        router: Router,
        certificates: Arc<dyn ResolvesServerCert>,
        handle: Handle<SocketAddr>,
    ) -> Result<(), Error> {
        let server = self.server(handle)?.acceptor(Tls::new(tls(certificates)?));
        server.serve(router.into_make_service()).await.map_err(Error::Serve)
    }

    /// What both have in common. HTTP/1.1 only: it is all that the API server speaks to webhooks (kubernetes#82090).
    fn server(self, handle: Handle<SocketAddr>) -> Result<Server<SocketAddr>, Error> {
        let mut server = axum_server::from_tcp(self.listener)
            .map_err(Error::Serve)?
            .handle(handle)
            .first_request_timeout(FIRST_REQUEST)
            .accept_error_handler(|peer, error| tracing::debug!(?peer, %error, "a connection failed"))
            .http1_only();
        server.http_builder().http1().header_read_timeout(HEADER);
        Ok(server)
    }
}

/// TLS 1.3 only: every API server that has `matchConditions` speaks it.
fn tls(certificates: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_file_for_each_connection_of_all_ports() {
        allow_connections();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(soft >= FILES.min(hard));
        let connections = Limits::REVIEWS.most + Limits::HANDSHAKES.most + 2 * Limits::PLAIN.most;
        assert!(u64::try_from(2 * connections).unwrap() <= FILES);
    }
}
