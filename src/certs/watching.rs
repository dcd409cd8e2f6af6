//! What both sources of certificates need: an object as a watch last told it, and whether API servers accept what is served.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::Stream;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher},
};

use super::{Settings, certificate::Certificate, configuration};

/// How long after its publication a new authority's certificate is served. Each API server learns of it by a watch of its own and
/// nobody can ask them all: a watch that works takes milliseconds, and the old certificate is as good until then.
pub(super) const SPREAD: Duration = Duration::from_secs(10);

/// An object as the watch last told it.
#[derive(Debug, Default)]
pub(super) enum Seen<K> {
    #[default]
    Unknown,
    Absent,
    Present(K),
}

// === impl Seen ===

impl<K> From<Option<K>> for Seen<K> {
    fn from(object: Option<K>) -> Self {
        object.map_or(Self::Absent, Self::Present)
    }
}

impl Seen<MutatingWebhookConfiguration> {
    /// Why API servers would refuse the certificate; `None` if they accept it.
    pub(super) fn refusal(&self, certificate: Option<&Certificate>, settings: &Settings) -> Option<String> {
        let Some(certificate) = certificate else { return Some("there is no certificate to serve yet".to_owned()) };
        match self {
            Self::Unknown => Some("the webhook configuration is not read yet".to_owned()),
            // Nobody calls a webhook that is not configured.
            Self::Absent => None,
            Self::Present(found) => configuration::refusal(found, certificate, settings.called_by(), now()),
        }
    }
}

/// One object, by a watch that never gives up. Its field selector makes `resourceNames` in the Role suffice.
pub(super) fn watched<K>(api: Api<K>, name: &str) -> impl Stream<Item = watcher::Result<Option<K>>> + use<K>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watcher::watch_object(api, name).default_backoff()
}

/// What is behind a failure of a watch, whose own text is an answer of the API server in full.
pub(super) fn cause(error: watcher::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Box::new(error),
        other => Box::new(other),
    }
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
