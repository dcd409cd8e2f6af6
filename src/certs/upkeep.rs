//! Keeps the Secret, the `caBundle` and the certificate that is served in step, for as long as the process runs.
//!
//! Level-triggered: whatever wakes it, [`CertificateRotator`] looks at what it last saw of both objects and does what is missing. Every
//! replica runs it; what they write is the same, and the Secret's resource version decides who writes a new one.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use tokio::{sync::watch, time::Instant};

use super::{
    NotYetValid, Report, Resolver, Settings, configuration,
    material::{self, Due, Material},
    watching::{SPREAD, Seen, cause, now, watched},
};
use crate::names;

/// How often it looks at the clock: the wall clock, because timers stand still while a machine sleeps.
const CHECK: Duration = Duration::from_secs(60);

/// The field manager of the bundle: not the controller's, so that `kubectl` shows who wrote it.
const MANAGER: &str = "pgset-certificates";

/// How long to wait after something failed.
const RETRY: Duration = Duration::from_secs(2);

/// Why the certificates could not be kept up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No certificate could be made.
    #[error("failed to make certificates")]
    Material(#[from] material::Error),
    /// The Secret could not be read or written.
    #[error("failed to keep Secret {namespace}/{name}")]
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The bundle could not be published.
    #[error("failed to write caBundle into MutatingWebhookConfiguration {name}")]
    Configuration {
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// Another replica, by another clock, has made what can't be served yet.
    #[error(transparent)]
    Clock(#[from] NotYetValid),
    /// An object could not be watched; it is tried again.
    #[error("failed to watch {what}")]
    Watch {
        /// Which object.
        what: &'static str,
        /// What the API server said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A watch ended, which it never does.
    #[error("a watch ended")]
    Ended,
}

/// The upkeep of the certificates.
pub struct CertificateRotator {
    settings: Settings,
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    resolver: Arc<Resolver>,
    report: watch::Sender<Report>,

    secret: Seen<Secret>,
    configuration: Seen<MutatingWebhookConfiguration>,
    /// What the Secret holds, checked.
    material: Option<Material>,
    /// The bundle under which the served certificate verifies.
    served_bundle: Option<String>,
    /// Since when the present bundle is in every entry.
    published: Option<Instant>,
    /// What failed last, so that it is logged once and not at every attempt.
    failure: Option<String>,
}

// === impl CertificateRotator ===

impl std::fmt::Debug for CertificateRotator {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CertificateRotator").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl CertificateRotator {
    /// An upkeep that serves through the resolver and reports to the channel.
    pub fn new(client: Client, settings: Settings, resolver: Arc<Resolver>, report: watch::Sender<Report>) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &settings.namespace),
            configurations: Api::all(client),
            settings,
            resolver,
            report,
            secret: Seen::Unknown,
            configuration: Seen::Unknown,
            material: None,
            served_bundle: None,
            published: None,
            failure: None,
        }
    }

    /// Runs until the watches end, which they don't: every failure is reported, logged and tried again.
    pub async fn run(mut self) -> Result<(), Error> {
        let mut secrets = pin!(watched(self.secrets.clone(), &self.settings.secret));
        let mut configurations = pin!(watched(self.configurations.clone(), &self.settings.configuration));
        let mut wake = CHECK;
        loop {
            // Cancel-safe: a stream's `next` loses nothing, and the steps run outside of the select.
            let mut failed = tokio::select! {
                secret = secrets.next() => match secret.ok_or(Error::Ended)? {
                    Ok(secret) => { self.secret = secret.into(); None }
                    Err(error) => Some(Error::Watch { what: "the Secret", source: cause(error) }),
                },
                configuration = configurations.next() => match configuration.ok_or(Error::Ended)? {
                    Ok(configuration) => { self.configuration = configuration.into(); None }
                    Err(error) => Some(Error::Watch { what: "the webhook configuration", source: cause(error) }),
                },
                () = tokio::time::sleep(wake) => None,
            };
            wake = match self.step().await {
                Ok(wake) => wake,
                Err(error) => {
                    failed = Some(error);
                    RETRY
                }
            };
            self.tell(failed);
        }
    }

    /// Does what is missing. Tells when to look again.
    async fn step(&mut self) -> Result<Duration, Error> {
        self.load().await?;
        let Some(mut material) = self.material.clone() else { return Ok(CHECK) };
        if let Seen::Present(found) = &self.configuration
            && !configuration::is_in_sync(found, material.bundle())
        {
            // The other replica may have published what this one has not been told of yet: never write an old bundle over it.
            self.secret = self.secrets.get_opt(&self.settings.secret).await.map_err(|e| self.secret_failed(e))?.into();
            self.load().await?;
            material = self.material.clone().unwrap_or(material);
            self.publish(material.bundle()).await?;
        }

        let published =
            matches!(&self.configuration, Seen::Present(found) if configuration::is_in_sync(found, material.bundle()));
        self.published = if published { self.published.or_else(|| Some(Instant::now())) } else { None };
        self.serve(&material, now())
    }

    /// Serves the certificate as soon as API servers can verify it. Tells when to look again.
    fn serve(&mut self, material: &Material, now: u64) -> Result<Duration, Error> {
        let name = self.settings.called_by();
        // At once: the first of this process, one of an authority that API servers know, and one that nobody calls for.
        let known = matches!(self.configuration, Seen::Absent)
            || self.served_bundle.as_deref().is_none_or(|served| material.verifies(served, name, now).is_ok());
        let spread = self.published.map(|since| SPREAD.saturating_sub(since.elapsed()));
        match spread {
            Some(left) if !known && !left.is_zero() => return Ok(left),
            None if !known => return Ok(CHECK),
            _ => {}
        }
        if self.resolver.serve(material.certificate()?, now)? {
            tracing::info!(ends = material.leaf_ends(), "a new certificate is served");
        }
        self.served_bundle = Some(material.bundle().to_owned());
        Ok(CHECK)
    }

    /// Brings [`CertificateRotator::material`] up to date with the Secret, and the Secret with the clock.
    async fn load(&mut self) -> Result<(), Error> {
        let now = now();
        let names = &self.settings.names;
        // What is known makes the overlap where the Secret no longer says it: deleting it is how to ask for a new authority.
        let anew = || match &self.material {
            None => Material::new(names, now),
            Some(known) => known.renewed(Due::Authority, names, now),
        };
        let (new, resource_version) = match &self.secret {
            Seen::Unknown => return Ok(()),
            Seen::Absent => {
                tracing::info!("there are no certificates: making them");
                (anew()?, None)
            }
            Seen::Present(secret) => {
                let version = secret.metadata.resource_version.clone();
                match Material::from_secret(secret.data.as_ref().unwrap_or(&BTreeMap::new())) {
                    Ok(found) => match found.due(names, now) {
                        None => {
                            if self.material.as_ref().is_none_or(|known| known.bundle() != found.bundle()) {
                                self.published = None;
                            }
                            self.material = Some(found);
                            return Ok(());
                        }
                        Some(due) => {
                            tracing::info!(?due, "renewing certificates");
                            (found.renewed(due, names, now)?, version)
                        }
                    },
                    Err(error) => {
                        let error = crate::errors::with_causes(&error);
                        tracing::warn!(error, "the Secret with the certificates is damaged: making them anew");
                        (anew()?, version)
                    }
                }
            }
        };
        self.store(&new, resource_version).await
    }

    /// Writes the Secret, on the condition that nobody else has since it was read. What is stored is used only once the
    /// watch has told it, whoever won.
    async fn store(&mut self, new: &Material, resource_version: Option<String>) -> Result<(), Error> {
        let name = &self.settings.secret;
        let mut secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some([(names::label::MANAGED_BY.to_owned(), names::MANAGER.to_owned())].into()),
                resource_version,
                ..ObjectMeta::default()
            },
            data: Some(new.to_secret()),
            ..Secret::default()
        };
        let parameters = PostParams::default();
        let written = match &self.secret {
            Seen::Present(old) => {
                // What others have written on it (labels, annotations) stays.
                secret.metadata.labels.clone_from(&old.metadata.labels);
                secret.metadata.annotations.clone_from(&old.metadata.annotations);
                secret.type_.clone_from(&old.type_);
                self.secrets.replace(name, &parameters, &secret).await
            }
            _ => self.secrets.create(&parameters, &secret).await,
        };
        match written {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() || status.is_conflict() => {
                tracing::info!("another replica was first to write the certificates");
            }
            Err(source) => return Err(self.secret_failed(source)),
        }
        // Until the watch tells of it, do not try again.
        self.secret = Seen::Unknown;
        Ok(())
    }

    fn secret_failed(&self, source: kube::Error) -> Error {
        let Settings { namespace, secret, .. } = &self.settings;
        Error::Secret { namespace: namespace.clone(), name: secret.clone(), source: Box::new(source) }
    }

    /// Writes the bundle into every entry of the configuration that lacks it.
    async fn publish(&mut self, bundle: &str) -> Result<(), Error> {
        let Seen::Present(found) = &self.configuration else { return Ok(()) };
        let Some(patch) = configuration::patch(found, bundle) else { return Ok(()) };
        let name = &self.settings.configuration;
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match self.configurations.patch(name, &parameters, &Patch::Json::<()>(patch)).await {
            Ok(stored) => {
                tracing::info!(configuration = name, "caBundle written");
                self.configuration = Seen::Present(stored);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                self.configuration = Seen::Absent;
                Ok(())
            }
            Err(source) => Err(Error::Configuration { name: name.clone(), source: Box::new(source) }),
        }
    }

    /// Tells whether API servers trust what is served. A failure that does not stand against that is only logged: who is
    /// trusted may be asked, even while the API server itself is away.
    fn tell(&mut self, failed: Option<Error>) {
        let failure = failed.map(|error| crate::errors::with_causes(&error));
        if let Some(error) = failure.as_ref().filter(|_| self.failure != failure) {
            tracing::warn!(error, "the certificates are not in order; trying again");
        }
        self.failure = failure;

        let served = self.resolver.served();
        let new = Report {
            trouble: self.configuration.refusal(served.as_deref(), &self.settings),
            failure: self.failure.clone(),
            in_sync: self.published.is_some(),
            authority_ends: self.material.as_ref().map(Material::authority_ends),
            leaf_ends: served.map(|served| served.ends()),
        };
        self.report.send_if_modified(|old| std::mem::replace(old, new.clone()) != new);
    }
}

#[cfg(test)]
#[path = "upkeep_tests.rs"]
mod tests;
