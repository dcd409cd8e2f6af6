//! The certificate that new connections get; connections that are open keep theirs.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use k8s_openapi::jiff::Timestamp;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::certificate::Certificate;

/// Why a certificate is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to serve the certificate: it is not valid before {}, which by this machine's clock is still to come: set the clocks of the \
    nodes that pgset runs on; until then the certificate before stays, if there is one",
    utc(*.begins)
)]
pub struct NotYetValid {
    /// Its first second, in Unix time.
    pub begins: u64,
}

/// Unix time, for people.
fn utc(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or_else(|| seconds.to_string(), |time| time.to_string())
}

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

    /// Serves a certificate from now on, unless it is not valid yet: another machine with another clock has made it, and API servers
    /// may go by this one. Tells whether it is another one than before.
    pub fn serve(&self, certificate: Certificate, now: u64) -> Result<bool, NotYetValid> {
        let begins = certificate.begins();
        if begins > now {
            return Err(NotYetValid { begins });
        }
        let changed = self.0.load().as_ref().is_none_or(|served| !served.is(&certificate));
        if changed {
            self.0.store(Some(Arc::new(certificate)));
        }
        Ok(changed)
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
