//! Certificates of the webhook: an authority of our own, kept in one Secret that all replicas share, and the `caBundle` by
//! which API servers trust it. `certs/README.md` tells the whole story.
//!
//! Another source (files, cert-manager) would fill the same [`Resolver`] and send the same [`Report`].

mod configuration;
pub mod material;
mod resolver;
mod upkeep;
mod validity;

use crate::names;

pub use self::{
    material::Material,
    resolver::Resolver,
    upkeep::{Error, Upkeep},
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
    /// Why API servers can't trust the certificate that is served; `None` if they can.
    pub trouble: Option<String>,
    /// When the authority ends, in Unix seconds; 0 before there is one.
    pub authority_ends: u64,
    /// When the certificate ends, in Unix seconds; 0 before there is one.
    pub leaf_ends: u64,
}

// === impl Settings ===

impl Settings {
    /// pgset's own objects in a namespace.
    #[must_use]
    pub fn new(namespace: &str) -> Self {
        let service = format!("{}.{namespace}.svc", names::WEBHOOK_SERVICE);
        Self {
            namespace: namespace.to_owned(),
            secret: names::CERTIFICATES_SECRET.to_owned(),
            configuration: names::WEBHOOK_CONFIGURATION.to_owned(),
            // The first is the one that API servers verify.
            names: vec![service.clone(), format!("{service}.cluster.local")],
        }
    }
}

// === impl Report ===

impl Default for Report {
    fn default() -> Self {
        Self { trouble: Some("the certificates are not loaded yet".to_owned()), authority_ends: 0, leaf_ends: 0 }
    }
}
