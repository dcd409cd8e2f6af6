//! Certificates that somebody else renews (cert-manager, or a person), from a directory: usually a Secret mounted into the pod.
//!
//! The directory is looked at again and again instead of watched: kubelet swaps a symbolic link, and a watch of the files that
//! were there never hears of it. Nothing is written, neither a Secret nor `caBundle`: whoever makes the certificates does that.

use std::{io, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::{Api, Client};
use tokio::{sync::watch, time::Instant};

use super::{
    Report, Resolver, Settings,
    certificate::{self, Certificate, certificate, key},
    upkeep,
    validity::Validity,
    watching::{SPREAD, Seen, cause, now, watched},
};
use crate::errors::with_causes;

/// How often the directory is looked at. Kubelet itself takes up to a minute or two to bring a new Secret.
const LOOK: Duration = Duration::from_secs(5);

/// What the directory held at a look: text of the files, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Contents {
    chain: String,
    key: String,
    authority: Option<String>,
}

/// Certificates from a directory.
pub struct Files {
    directory: PathBuf,
    settings: Settings,
    configurations: Api<MutatingWebhookConfiguration>,
    resolver: Arc<Resolver>,
    report: watch::Sender<Report>,

    configuration: Seen<MutatingWebhookConfiguration>,
    /// What the directory held when it was last looked at.
    seen: Option<Result<Contents, String>>,
    /// The last of them that can be served.
    candidate: Option<Certificate>,
    authority_ends: Option<u64>,
    /// Since when every entry's bundle verifies the candidate.
    verified: Option<Instant>,
    /// What is wrong with the directory, or the watch.
    failure: Option<String>,
    /// What was logged last.
    logged: Option<String>,
}

// === impl Files ===

impl std::fmt::Debug for Files {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Files").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Files {
    /// A source that serves through the resolver and reports to the channel.
    pub fn new(
        client: Client,
        directory: PathBuf,
        settings: Settings,
        resolver: Arc<Resolver>,
        report: watch::Sender<Report>,
    ) -> Self {
        Self {
            directory,
            settings,
            configurations: Api::all(client),
            resolver,
            report,
            configuration: Seen::Unknown,
            seen: None,
            candidate: None,
            authority_ends: None,
            verified: None,
            failure: None,
            logged: None,
        }
    }

    /// Runs until the watch ends, which it doesn't: every failure is reported, logged and tried again.
    pub async fn run(mut self) -> Result<(), upkeep::Error> {
        let mut configurations = pin!(watched(self.configurations.clone(), &self.settings.configuration));
        let mut looks = tokio::time::interval(LOOK);
        let mut unwatched = None;
        loop {
            // Cancel-safe: neither a stream's `next` nor a tick loses anything.
            tokio::select! {
                configuration = configurations.next() => match configuration.ok_or(upkeep::Error::Ended)? {
                    Ok(configuration) => {
                        self.configuration = configuration.into();
                        unwatched = None;
                    }
                    Err(error) => {
                        let error = upkeep::Error::Watch { what: "the webhook configuration", source: cause(error) };
                        unwatched = Some(with_causes(&error));
                    }
                },
                _ = looks.tick() => self.look().await,
            }
            self.serve();
            self.tell(unwatched.as_deref());
        }
    }

    /// Reads the directory, and takes over what can be served.
    async fn look(&mut self) {
        let contents = self.read().await;
        let again = self.seen.as_ref() == Some(&contents);
        let pair = contents.clone().and_then(|contents| {
            let certificate = Certificate::from_pem(&contents.chain, &contents.key).map_err(|e| with_causes(&e))?;
            Ok((certificate, contents.authority))
        });
        self.seen = Some(contents);
        match pair {
            Ok((certificate, authority)) => {
                self.failure = None;
                self.authority_ends = authority.as_deref().and_then(end_of);
                if self.candidate.as_ref().is_none_or(|known| !known.is(&certificate)) {
                    tracing::info!(ends = certificate.ends(), "the directory has a new certificate");
                    self.candidate = Some(certificate);
                    self.verified = None;
                }
            }
            // It may have been read in the middle of a write: told if it is still so at the next look.
            Err(_) if !again && self.candidate.is_some() => {}
            Err(reason) => {
                let kept = if self.candidate.is_some() { "; the certificate before stays" } else { "" };
                self.failure = Some(format!("{}: {reason}{kept}", self.directory.display()));
            }
        }
    }

    async fn read(&self) -> Result<Contents, String> {
        let text = async |file: &'static str| match tokio::fs::read(self.directory.join(file)).await {
            Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| format!("{file} is not text")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{file} can't be read: {error}")),
        };
        let required = async |file| text(file).await?.ok_or_else(|| format!("there is no {file}"));
        Ok(Contents {
            chain: required(key::LEAF).await?,
            key: required(key::LEAF_KEY).await?,
            authority: text(key::AUTHORITY).await?,
        })
    }

    /// Serves the candidate, if it is time.
    fn serve(&mut self) {
        let Some(candidate) = &self.candidate else { return };
        let served = self.resolver.served();
        if served.as_ref().is_some_and(|served| served.is(candidate)) {
            return;
        }
        let refused = |certificate| self.configuration.refusal(Some(certificate), &self.settings);
        let refusal = refused(candidate);
        self.verified = if refusal.is_none() { self.verified.or_else(|| Some(Instant::now())) } else { None };
        // Without a configuration nobody calls, and nobody could be surprised.
        let nobody_trusts_the_served = matches!(self.configuration, Seen::Absent)
            || served.as_deref().is_none_or(|served| refused(served).is_some());
        let verified_for = self.verified.map(|since| since.elapsed());
        if may_be_served(nobody_trusts_the_served, verified_for) {
            match self.resolver.serve(candidate.clone(), now()) {
                Ok(_) => tracing::info!(ends = candidate.ends(), "a new certificate is served"),
                Err(error) => self.failure = Some(format!("{}: {error}", self.directory.display())),
            }
        } else {
            tracing::debug!(refusal, "a new certificate waits until API servers trust it");
        }
    }

    /// Tells whether API servers trust what is served, and what is wrong with the directory if that matters now.
    fn tell(&mut self, unwatched: Option<&str>) {
        let failure = match (&self.failure, unwatched) {
            (Some(files), Some(watch)) => Some(format!("{files}; {watch}")),
            (files, watch) => files.as_deref().or(watch).map(str::to_owned),
        };
        if self.logged != failure {
            if let Some(error) = &failure {
                tracing::error!(error, "the certificates are not in order; trying again");
            }
            self.logged.clone_from(&failure);
        }
        let served = self.resolver.served();
        let trouble = self.configuration.refusal(served.as_deref(), &self.settings);
        let new = Report {
            // The bundle is somebody else's to write: the right one is one that verifies what is served.
            in_sync: trouble.is_none() && matches!(self.configuration, Seen::Present(_)),
            trouble,
            failure,
            authority_ends: self.authority_ends,
            leaf_ends: served.map(|served| served.ends()),
        };
        self.report.send_if_modified(|old| std::mem::replace(old, new.clone()) != new);
    }
}

/// Whether a new certificate is served now. Not before API servers trust it and had time to hear of that, unless the one that is
/// served is worth nothing to them either.
fn may_be_served(nobody_trusts_the_served: bool, verified_for: Option<Duration>) -> bool {
    nobody_trusts_the_served || verified_for.is_some_and(|verified| verified >= SPREAD)
}

/// When the first certificate of a text ends, if it can be read.
fn end_of(authority: &str) -> Option<u64> {
    let read =
        || -> Result<u64, certificate::Error> { Ok(Validity::of(&certificate(key::AUTHORITY, authority)?)?.not_after) };
    read().ok()
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
