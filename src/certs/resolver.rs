//! The certificate that new connections get; connections that are open keep theirs.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::certificate::Certificate;

/// Holds the certificate that is served. Reading it takes no lock: handshakes never wait for a renewal.
#[derive(Debug, Default)]
pub struct Resolver(ArcSwapOption<Certificate>);

// === impl Resolver ===

impl Resolver {
    /// Serves nothing yet: handshakes fail until [`Resolver::serve`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves a certificate from now on. Tells whether it is another one than before.
    pub fn serve(&self, certificate: Certificate) -> bool {
        let changed = self.0.load().as_ref().is_none_or(|served| !served.is(&certificate));
        if changed {
            self.0.store(Some(Arc::new(certificate)));
        }
        changed
    }

    /// What is served now.
    #[must_use]
    pub fn served(&self) -> Option<Arc<Certificate>> {
        self.0.load_full()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Whatever name the client asks for: one program, one certificate.
        self.0.load().as_ref().map(|served| served.certified_key())
    }
}
