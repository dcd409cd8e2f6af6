//! A certificate as it is served: with its chain and its key, and the question whether an API server accepts it.

use std::{sync::Arc, time::Duration};

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject as _},
    },
    sign::CertifiedKey,
};

use super::validity::{Unreadable, Validity};

/// The names of the texts: keys of a Secret, and files where it is mounted.
pub(super) mod key {
    pub(in crate::certs) const AUTHORITY: &str = "ca.crt";
    pub(in crate::certs) const AUTHORITY_KEY: &str = "ca.key";
    pub(in crate::certs) const LEAF: &str = "tls.crt";
    pub(in crate::certs) const LEAF_KEY: &str = "tls.key";
    pub(in crate::certs) const BUNDLE: &str = "ca-bundle.crt";
}

/// Why certificates could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// rcgen refused.
    #[error("failed to make a certificate")]
    Generate(#[from] rcgen::Error),
    /// One of the texts is absent or no text.
    #[error("{key} is absent or is not text")]
    Absent {
        /// Which one.
        key: &'static str,
    },
    /// A certificate or key is not PEM of the right kind.
    #[error("{key} holds no readable PEM")]
    Pem {
        /// Which one.
        key: &'static str,
        /// What the reader says.
        #[source]
        source: pem::Error,
    },
    /// A certificate's dates can't be read.
    #[error("failed to read the dates of a certificate")]
    Dates(#[from] Unreadable),
    /// The certificate does not belong to its key.
    #[error("tls.key is not the key of tls.crt")]
    Pair(#[source] rustls::Error),
    /// A client that trusts the bundle would break off: another authority, another name, another time.
    #[error("whoever trusts this bundle refuses the certificate that is served")]
    Refused(#[source] rustls::Error),
    /// The bundle holds no authority.
    #[error("the bundle can't be used to verify")]
    Bundle(#[source] rustls::client::VerifierBuilderError),
    /// A name that a certificate can't carry.
    #[error("{name:?} is neither a DNS name nor an address")]
    Name {
        /// The name.
        name: String,
    },
}

/// A certificate with its chain and key, which belong together. Its `Debug` shows no key.
#[derive(Clone, Debug)]
pub struct Certificate {
    certified_key: Arc<CertifiedKey>,
    validity: Validity,
}

// === impl Certificate ===

impl Certificate {
    /// From PEM: the certificate first and then what leads from it to the authority, and its key; an error if they don't
    /// belong together.
    pub fn from_pem(chain: &str, private_key: &str) -> Result<Self, Error> {
        let chain = certificates(key::LEAF, chain)?;
        let validity = Validity::of(chain.first().map_or(&[], |leaf| leaf.as_ref()))?;
        let private = PrivateKeyDer::from_pem_slice(private_key.as_bytes())
            .map_err(|source| Error::Pem { key: key::LEAF_KEY, source })?;
        let provider = rustls::crypto::ring::default_provider();
        let certified_key = CertifiedKey::from_der(chain, private, &provider).map_err(Error::Pair)?;
        Ok(Self { certified_key: Arc::new(certified_key), validity })
    }

    /// For rustls.
    #[must_use]
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified_key.clone()
    }

    /// Whether it is the same one.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.certified_key.cert == other.certified_key.cert
    }

    /// Its first second, in Unix time.
    #[must_use]
    pub fn begins(&self) -> u64 {
        self.validity.not_before
    }

    /// Its last second, in Unix time.
    #[must_use]
    pub fn ends(&self) -> u64 {
        self.validity.not_after
    }

    /// Whether a client that trusts the bundle (in PEM) accepts it for the name, as an API server would.
    pub fn verifies(&self, bundle: &[u8], name: &str, now: u64) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        for root in certificates(key::BUNDLE, bundle)? {
            roots.add(root).map_err(Error::Refused)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(Error::Bundle)?;
        let server = ServerName::try_from(name).map_err(|_| Error::Name { name: name.to_owned() })?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let Some((leaf, intermediates)) = self.certified_key.cert.split_first() else {
            return Err(Error::Absent { key: key::LEAF });
        };
        verifier.verify_server_cert(leaf, intermediates, &server, &[], now).map(|_| ()).map_err(Error::Refused)
    }
}

// === reading ===

/// The first certificate of a text.
pub(super) fn certificate(key: &'static str, pem: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|source| Error::Pem { key, source })
}

/// All certificates of a text, of which there must be one.
pub(super) fn certificates(key: &'static str, pem: impl AsRef<[u8]>) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_ref()).collect();
    // A text without any certificate is no error to the reader, and no bundle to us.
    read.and_then(|found| if found.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(found) })
        .map_err(|source| Error::Pem { key, source })
}
