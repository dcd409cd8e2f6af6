//! The certificate that new connections get; connections that are open keep theirs.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

/// Holds the certificate that is served. Reading it takes no lock: handshakes never wait for a renewal.
#[derive(Debug, Default)]
pub struct Resolver(ArcSwapOption<CertifiedKey>);

// === impl Resolver ===

impl Resolver {
    /// Serves nothing yet: handshakes fail until [`Resolver::serve`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves a certificate from now on. Tells whether it is another one than before.
    pub fn serve(&self, certificate: Arc<CertifiedKey>) -> bool {
        let changed = self.0.load().as_ref().is_none_or(|served| served.cert != certificate.cert);
        if changed {
            self.0.store(Some(certificate));
        }
        changed
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Whatever name the client asks for: one program, one certificate.
        self.0.load_full()
    }
}
