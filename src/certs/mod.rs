//! Certificates of the webhook, from one of two sources, and whether API servers trust what is served. `certs/README.md` tells
//! the whole story.
//!
//! [`CertificateRotator`] makes them: an authority of our own, kept in one Secret that all replicas share, and the `caBundle` by which API
//! servers trust it. [`Files`] takes those that somebody else (cert-manager) puts into a directory, and writes nothing.

mod certificate;
mod configuration;
mod files;
pub mod material;
mod resolver;
mod upkeep;
mod validity;
mod watching;

use crate::names;

pub use self::{
    certificate::Certificate,
    files::Files,
    material::Material,
    resolver::{NotYetValid, Resolver},
    upkeep::{CertificateRotator, Error},
};

/// Which objects hold and publish the certificates, and for which names they are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The namespace of the Secret.
    pub namespace: String,
    /// The Secret.
    pub secret: String,
    /// The `MutatingWebhookConfiguration`.
    pub configuration: String,
    /// The names under which API servers call the webhook.
    pub names: Vec<String>,
}

/// What is known of the certificates: for readiness and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Why API servers can't trust the certificate that is served; `None` if they can, and where no webhook is configured: then
    /// nobody calls.
    pub trouble: Option<String>,
    /// What fails at present, though API servers may well trust what is served: a renewal, a file, a watch.
    pub failure: Option<String>,
    /// Whether the webhook configuration is there and every entry of it has the `caBundle` that it should have.
    pub in_sync: bool,
    /// When the authority ends, in Unix seconds, if that is known.
    pub authority_ends: Option<u64>,
    /// When the certificate that is served ends, in Unix seconds, if there is one.
    pub leaf_ends: Option<u64>,
}

// === impl Settings ===

impl Settings {
    /// pgset's own objects in a namespace.
    #[must_use]
    pub fn new(namespace: &str, configuration: &str) -> Self {
        let service = format!("{}.{namespace}.svc", names::WEBHOOK_SERVICE);
        Self {
            namespace: namespace.to_owned(),
            secret: names::CERTIFICATES_SECRET.to_owned(),
            configuration: configuration.to_owned(),
            // The first is the one that API servers verify.
            names: vec![service.clone(), format!("{service}.cluster.local")],
        }
    }

    /// The name by which API servers call, and which they verify.
    fn called_by(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

// === impl Report ===

impl Default for Report {
    fn default() -> Self {
        Self {
            trouble: Some("the certificates are not loaded yet".to_owned()),
            failure: None,
            in_sync: false,
            authority_ends: None,
            leaf_ends: None,
        }
    }
}
