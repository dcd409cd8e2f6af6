//! From a TCP connection to one that is served: with a place among the handshakes until its TLS is done, and then among the others.

use std::{
    future::{Ready, ready},
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum_server::{
    accept::Accept,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use futures::future::BoxFuture;
use rustls::server::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tower_service::Service;

use super::connections::{Connections, Limits, Place, Requests};

/// How long a connection may take over its TLS handshake. The API server takes milliseconds.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A connection that has a place as long as it is open.
#[derive(Debug)]
pub(super) struct Placed {
    stream: TcpStream,
    place: Place,
}

/// Tells the connection's place of each request.
#[derive(Clone, Debug)]
pub(super) struct Told<S> {
    service: S,
    requests: Requests,
}

/// Gives a connection its place, and sends what is written at once.
#[derive(Clone, Debug)]
pub(super) struct Plain(Connections);

/// The same with TLS. What is no more than a handshake takes no place from those that are through with theirs.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    handshakes: RustlsAcceptor<Plain>,
    connections: Connections,
}

// === impl Plain ===

impl Plain {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Connections::new(limits))
    }

    fn place(&self, stream: TcpStream) -> io::Result<Placed> {
        let place = self.0.admit(stream.peer_addr()?.ip())?;
        stream.set_nodelay(true)?;
        Ok(Placed { stream, place })
    }
}

impl<S> Accept<TcpStream, S> for Plain {
    type Stream = Placed;
    type Service = Told<S>;
    type Future = Ready<io::Result<(Placed, Told<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.place(stream).map(|placed| {
            let requests = placed.place.requests();
            (placed, Told { service, requests })
        }))
    }
}

// === impl Tls ===

impl Tls {
    pub(super) fn new(config: ServerConfig) -> Self {
        let config = RustlsConfig::from_config(Arc::new(config));
        let handshakes =
            RustlsAcceptor::new(config).handshake_timeout(HANDSHAKE).acceptor(Plain::new(Limits::HANDSHAKES));
        Self { handshakes, connections: Connections::new(Limits::REVIEWS) }
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Tls {
    type Stream = <RustlsAcceptor<Plain> as Accept<TcpStream, S>>::Stream;
    type Service = Told<<RustlsAcceptor<Plain> as Accept<TcpStream, S>>::Service>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let connections = self.connections.clone();
        let peer = stream.peer_addr();
        let handshake = self.handshakes.accept(stream, service);
        Box::pin(async move {
            let (mut stream, service) = handshake.await?;
            let place = connections.admit(peer?.ip())?;
            let requests = place.requests();
            stream.get_mut().0.place = place;
            Ok((stream, Told { service, requests }))
        })
    }
}

// === impl Told ===

impl<R, S: Service<R>> Service<R> for Told<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.requests.begun();
        self.service.call(request)
    }
}

// === impl Placed ===

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.place.note(context, outcome)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.place.answers();
        let outcome = Pin::new(&mut self.stream).poll_write(context, buffer);
        self.place.note(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.place.answers();
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.place.note(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
