//! `pgset serve`: the webhook with its certificates, or the controller. Two processes with an account each, so that neither holds
//! the other's rights.

mod controller;
mod webhook;

use std::{io::IsTerminal as _, net::SocketAddr, time::Duration};

use axum_server::Handle;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::{JoinError, JoinSet, LocalSet},
};

use super::CommandResult;
use crate::{
    errors::with_causes,
    webhook::{health::Readiness, server},
};

/// Threads of the webhook: it answers in well below a millisecond, and more threads are more memory.
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
    #[command(subcommand)]
    service: Service,
}

/// What this process does.
#[derive(Debug, clap::Subcommand)]
enum Service {
    /// Answer API servers, and keep the certificate that they see.
    Webhook(webhook::Arguments),
    /// Keep right what surrounds each set; of several controllers one acts.
    Controller(controller::Arguments),
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
pub fn run(arguments: Arguments) -> CommandResult {
    log_to_standard_error();
    super::install_crypto_provider()?;
    Ok(match arguments.service {
        Service::Webhook(arguments) => {
            let mut threads = tokio::runtime::Builder::new_multi_thread();
            let runtime = threads.worker_threads(THREADS).enable_all().build().map_err(Error::Start)?;
            runtime.block_on(webhook::serve(arguments))
        }
        Service::Controller(arguments) => {
            // Its work is waiting for the API server: one thread does it, with the memory of one.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
            runtime.block_on(LocalSet::new().run_until(controller::serve(arguments)))
        }
    }?)
}

/// The cluster that this process serves.
async fn cluster() -> Result<kube::Client, Error> {
    kube::Client::try_default().await.map_err(|error| Error::Cluster(Box::new(error)))
}

/// Parts that run until a signal: none of them may end before, nor go on long after.
struct Process {
    signals: Signals,
    parts: JoinSet<Ended>,
    stop: watch::Sender<bool>,
    readiness: Readiness,
}

/// What is closed after the order to stop.
struct Draining<Begin: FnOnce()> {
    /// What is to be done at once.
    begin: Begin,
    /// The server that API servers call; they go on calling for a while.
    reviews: Option<Handle<SocketAddr>>,
    /// The server of probes and metrics.
    admin: Handle<SocketAddr>,
}

// === impl Process ===

impl Process {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            signals: Signals::new().map_err(Error::Start)?,
            parts: JoinSet::new(),
            stop: watch::channel(false).0,
            readiness: Readiness::new(),
        })
    }

    /// Tells of the order to stop.
    fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    fn spawn<E: std::error::Error + 'static>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.parts.spawn(part(name, work));
    }

    /// The same for what stays on this thread.
    fn spawn_local<E: std::error::Error + 'static>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(), E>> + 'static,
    ) {
        self.parts.spawn_local(part(name, work));
    }

    /// Waits for a signal, then stops in order.
    async fn run<Begin: FnOnce()>(self, draining: Draining<Begin>) -> Result<(), Error> {
        let Self { mut signals, mut parts, stop, readiness } = self;
        let Draining { begin, reviews, admin } = draining;
        // Cancel-safe: both arms only wait.
        tokio::select! {
            name = signals.next() => tracing::info!(signal = name, "stopping"),
            ended = parts.join_next() => return Err(unexpected_exit(ended)),
        }
        readiness.set("serve", Some("shutting down".to_owned()));
        begin();
        let _ = stop.send(true);
        let stopping = async {
            if let Some(reviews) = reviews {
                tokio::time::sleep(GRACE).await;
                reviews.graceful_shutdown(Some(DRAIN));
            }
            admin.graceful_shutdown(Some(Duration::from_secs(1)));
            let all = async { while parts.join_next().await.is_some() {} };
            tokio::time::timeout(DRAIN + REST, all).await.map_err(|_elapsed| Error::Stuck)
        };
        tokio::select! {
            stopped = stopping => stopped,
            _ = signals.next() => Err(Error::Aborted),
        }
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
fn unexpected_exit(ended: Option<Result<Ended, JoinError>>) -> Error {
    match ended {
        Some(Ok((part, ended))) => {
            Error::Ended { part, reason: ended.err().unwrap_or_else(|| "it had nothing more to do".to_owned()) }
        }
        Some(Err(panic)) => Error::Panicked(panic),
        None => Error::Ended { part: "process", reason: "nothing runs".to_owned() },
    }
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
