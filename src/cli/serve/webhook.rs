//! `pgset serve webhook`: the webhook and its certificates.

use std::{path::PathBuf, sync::Arc};

use axum_server::Handle;
use tokio::sync::watch;

use super::{Draining, Error, Process, until};
use crate::{
    certs::{self, CertificateRotator, Files, Resolver},
    cli::install::Image,
    inject, names,
    webhook::{
        self, State,
        health::{self, Readiness},
        metrics::{Certificates, Metrics},
        server::{self, Bound},
    },
};

/// The flags of `pgset serve webhook`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The image that members copy the agent from.
    #[arg(long, default_value = names::IMAGE)]
    agent_image: Image,
    /// The port of the webhook.
    #[arg(long, default_value_t = 8443)]
    https_port: u16,
    /// The port of /metrics.
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    /// The port of /livez and /readyz, for the kubelet.
    #[arg(long, default_value_t = 8081)]
    health_port: u16,
    /// The namespace that pgset runs in.
    #[arg(long, default_value = names::SYSTEM_NAMESPACE)]
    namespace: String,
    /// The webhook configuration (`MutatingWebhookConfiguration`) by which API servers call.
    #[arg(long, value_name = "NAME", default_value = names::WEBHOOK_CONFIGURATION)]
    webhook_configuration: String,
    /// Take the certificate from tls.crt and tls.key (and its authority from ca.crt) in this directory, and leave caBundle to
    /// whoever puts them there, for instance cert-manager. Without it pgset makes its own.
    #[arg(long, value_name = "DIRECTORY")]
    certificate_directory: Option<PathBuf>,
}

/// Serves until a signal.
pub async fn serve(arguments: Arguments) -> Result<(), Error> {
    let Arguments {
        agent_image,
        https_port,
        http_port,
        health_port,
        namespace,
        webhook_configuration,
        certificate_directory,
    } = arguments;
    server::allow_connections();
    let mut process = Process::new()?;
    let client = super::cluster().await?;
    let (https, http, health) = (Bound::new(https_port)?, Bound::new(http_port)?, Bound::new(health_port)?);
    let (review_handle, admin_handle) = (Handle::new(), Handle::new());

    let metrics = Arc::new(Metrics::new());
    let resolver = Arc::new(Resolver::new());
    let (report, reports) = watch::channel(certs::Report::default());
    let settings = inject::Settings { agent_image: agent_image.as_str().to_owned() };
    let state = State::new(webhook::by_injection(settings), metrics.clone());
    let readiness = process.readiness.clone();

    tracing::info!(version = env!("CARGO_PKG_VERSION"), https = %https.address(), http = %http.address(), health = %health.address(),
        "the webhook serves");
    process.spawn("report", tell(reports, readiness.clone(), metrics.clone(), process.stopped()));
    process.spawn("metrics", http.serve_http(health::router(readiness.clone(), metrics), admin_handle.clone()));
    process.spawn("probes", health.serve_http(health::probes(readiness), admin_handle.clone()));
    let router = webhook::router(state.clone());
    process.spawn("webhook", https.serve_https(router, resolver.clone(), review_handle.clone()));
    let names = certs::Settings::new(&namespace, &webhook_configuration);
    let certificates = certificates(client, certificate_directory, names, resolver, report);
    process.spawn("certificates", until(process.stopped(), certificates));

    let draining = Draining { begin: move || state.drain(), reviews: Some(review_handle), admin: admin_handle };
    process.run(draining).await
}

/// Keeps the certificate that is served up to date, from one source or the other.
async fn certificates(
    client: kube::Client,
    directory: Option<PathBuf>,
    settings: certs::Settings,
    resolver: Arc<Resolver>,
    report: watch::Sender<certs::Report>,
) -> Result<(), certs::Error> {
    match directory {
        None => CertificateRotator::new(client, settings, resolver, report).run().await,
        Some(directory) => Files::new(client, directory, settings, resolver, report).run().await,
    }
}

/// Passes what is known of the certificates on to readiness and metrics.
async fn tell(
    mut reports: watch::Receiver<certs::Report>,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    stopped: watch::Receiver<bool>,
) -> Result<(), std::convert::Infallible> {
    let passing = async {
        loop {
            let report = reports.borrow_and_update().clone();
            metrics.certificates(&Certificates {
                authority_ends: report.authority_ends,
                leaf_ends: report.leaf_ends,
                in_sync: report.in_sync,
                trusted: report.trouble.is_none(),
                kept: report.failure.is_none(),
            });
            readiness.set("certificates", report.trouble);
            readiness.remark("certificates", report.failure);
            if reports.changed().await.is_err() {
                break;
            }
        }
        Ok(())
    };
    until(stopped, passing).await
}
