//! How many connections there are: one more than that is closed at once, so that a flood of them takes no memory from those that
//! are there.

use std::{
    future::{Ready, ready},
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_server::accept::Accept;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// The most connections to the webhook. An API server keeps one open for each review that it sends at the same time; each takes some
/// 40 kB here.
pub(super) const MOST: usize = 1024;

/// Accepts so many connections, and sends what is written at once.
#[derive(Clone, Debug)]
pub(super) struct Bounded(Arc<Semaphore>);

/// A connection that counts as long as it is open.
#[derive(Debug)]
pub(super) struct Counted {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl Bounded {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    fn admit(&self, stream: TcpStream) -> io::Result<Counted> {
        let too_many = |_| io::Error::other("there are too many connections");
        let permit = self.0.clone().try_acquire_owned().map_err(too_many)?;
        stream.set_nodelay(true)?;
        Ok(Counted { stream, _permit: permit })
    }
}

impl<S> Accept<TcpStream, S> for Bounded {
    type Stream = Counted;
    type Service = S;
    type Future = Ready<io::Result<(Counted, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.admit(stream).map(|stream| (stream, service)))
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_another_takes_the_place_of_one_that_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = Bounded::new(2);
        let connect = async || {
            let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            acceptor.accept(listener.accept().await.unwrap().0, ()).await
        };
        let (first, _second) = (connect().await.unwrap(), connect().await.unwrap());
        assert_eq!(connect().await.unwrap_err().to_string(), "there are too many connections");
        drop(first);
        connect().await.unwrap();
    }
}
