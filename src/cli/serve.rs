//! `pgset serve`: the webhook, its certificates and the controller, in one process.

use std::{io::IsTerminal as _, path::PathBuf, sync::Arc, time::Duration};

use axum_server::Handle;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::{JoinError, JoinSet, LocalSet},
};

use super::{Outcome, install::Image};
use crate::{
    certs::{self, Files, Resolver, Upkeep},
    controller,
    errors::with_causes,
    inject, names,
    webhook::{
        self, State,
        health::{self, Readiness},
        metrics::{Certificates, Metrics},
        server::{self, Bound},
    },
};

/// Threads for everything: the webhook answers in well below a millisecond, and more threads are more memory.
const THREADS: usize = 2;

/// How long requests are taken after the order to stop: until every node knows that this pod is no endpoint any more. It takes
/// kube-proxy a second or two, and more than 5 s where the processor is short.
const GRACE: Duration = Duration::from_secs(10);

/// How long open requests may then take; the API server waits no longer for them.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the rest (releasing the controller's Lease) may take.
const REST: Duration = Duration::from_secs(5);

/// The flags of `pgset serve`.
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

/// Why pgset stopped serving.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The runtime, or a signal handler.
    #[error("failed to start")]
    Start(#[source] std::io::Error),
    /// There is no cluster to talk to.
    #[error("failed to find the cluster: neither a service account nor a kubeconfig is usable")]
    Cluster(#[source] Box<kube::Error>),
    /// A port.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// A part that should run for ever.
    #[error("the {part} ended: {reason}")]
    Ended { part: &'static str, reason: String },
    /// A part that panicked; the log says where.
    #[error("a part of pgset panicked")]
    Panicked(#[source] JoinError),
    /// Somebody is in a hurry.
    #[error("aborted by a second signal")]
    Aborted,
    /// A part that does not stop.
    #[error("stopping took too long")]
    Stuck,
}

/// What a part of the process answers when it ends.
type Ended = (&'static str, Result<(), String>);

/// Runs the command.
pub fn run(arguments: Arguments) -> Outcome {
    log_to_standard_error();
    super::install_crypto_provider()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(Error::Start)?;
    // The controller stays on this thread; the webhook has the others.
    Ok(runtime.block_on(LocalSet::new().run_until(serve(arguments)))?)
}

async fn serve(arguments: Arguments) -> Result<(), Error> {
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
    let mut signals = Signals::new().map_err(Error::Start)?;
    let client = kube::Client::try_default().await.map_err(|error| Error::Cluster(Box::new(error)))?;
    let (https, http, health) = (Bound::new(https_port)?, Bound::new(http_port)?, Bound::new(health_port)?);
    let (review_handle, admin_handle) = (Handle::new(), Handle::new());

    let metrics = Arc::new(Metrics::new());
    let readiness = Readiness::new();
    let resolver = Arc::new(Resolver::new());
    let (stop, stopped) = watch::channel(false);
    let (report, reports) = watch::channel(certs::Report::default());
    let settings = inject::Settings { agent_image: agent_image.as_str().to_owned() };
    let state = State::new(webhook::by_injection(settings), metrics.clone());

    tracing::info!(version = env!("CARGO_PKG_VERSION"), https = %https.address(), http = %http.address(), health = %health.address(),
        "pgset serves");
    let mut parts = JoinSet::new();
    parts.spawn(part("report", tell(reports, readiness.clone(), metrics.clone(), stopped.clone())));
    parts.spawn(part("metrics", http.serve_http(health::router(readiness.clone(), metrics), admin_handle.clone())));
    parts.spawn(part("probes", health.serve_http(health::probes(readiness.clone()), admin_handle.clone())));
    parts.spawn(part(
        "webhook",
        https.serve_https(webhook::router(state.clone()), resolver.clone(), review_handle.clone()),
    ));
    let names = certs::Settings::new(&namespace, &webhook_configuration);
    let certificates = certificates(client.clone(), certificate_directory, names, resolver, report);
    parts.spawn(part("certificates", until(stopped.clone(), certificates)));
    let controller = controller::Settings { namespace, identity: identity() };
    let stop_controller = until_set(stopped.clone());
    parts.spawn_local(part("controller", controller::run(client, controller, stop_controller)));
    drop(stopped);

    // Cancel-safe: both arms only wait.
    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, "stopping"),
        ended = parts.join_next() => return Err(early(ended)),
    }

    readiness.set("serve", Some("shutting down".to_owned()));
    state.drain();
    let _ = stop.send(true);
    let stopping = async {
        tokio::time::sleep(GRACE).await;
        review_handle.graceful_shutdown(Some(DRAIN));
        admin_handle.graceful_shutdown(Some(Duration::from_secs(1)));
        let all = async { while parts.join_next().await.is_some() {} };
        tokio::time::timeout(DRAIN + REST, all).await.map_err(|_elapsed| Error::Stuck)
    };
    tokio::select! {
        stopped = stopping => stopped,
        _ = signals.next() => Err(Error::Aborted),
    }
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
        None => Upkeep::new(client, settings, resolver, report).run().await,
        Some(directory) => Files::new(client, directory, settings, resolver, report).run().await,
    }
}

/// Who this process is among the controllers: its host name, which in a pod is the pod's name.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match std::process::id() {
        1 => host.trim().to_owned(),
        // Outside of a pod several may run on one host.
        other => format!("{}-{other}", host.trim()),
    }
}

/// Gives a part its name, and its error the form in which it is told.
async fn part<E: std::error::Error + 'static>(name: &'static str, work: impl Future<Output = Result<(), E>>) -> Ended {
    let ended = work.await.map_err(|error| with_causes(&error));
    if let Err(error) = &ended {
        tracing::error!(part = name, error, "a part of pgset ended");
    }
    (name, ended)
}

/// What it means that a part ended before the order to stop. No part may die in silence while the others go on.
fn early(ended: Option<Result<Ended, JoinError>>) -> Error {
    match ended {
        Some(Ok((part, ended))) => {
            Error::Ended { part, reason: ended.err().unwrap_or_else(|| "it had nothing more to do".to_owned()) }
        }
        Some(Err(panic)) => Error::Panicked(panic),
        None => Error::Ended { part: "process", reason: "nothing runs".to_owned() },
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

/// Work, until the order to stop.
async fn until<E>(stopped: watch::Receiver<bool>, work: impl Future<Output = Result<(), E>>) -> Result<(), E> {
    tokio::select! {
        ended = work => ended,
        () = until_set(stopped) => Ok(()),
    }
}

/// Until the order to stop, or until nobody is left to give it.
async fn until_set(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// The signals that mean stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

// === impl Signals ===

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Logs to standard error: JSON for machines, text for a terminal.
fn log_to_standard_error() {
    let form = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        super::start_logging_as(form);
    } else {
        super::start_logging_as(form.json().flatten_event(true).with_span_list(false));
    }
    // The place of a panic, without its text: that may quote an object.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a panic, which is a bug in pgset");
    }));
}
