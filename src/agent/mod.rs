//! The agent: the first process of the PostgreSQL container. It gets the data, starts and stops PostgreSQL, replicates, labels its pod.

mod arguments;
mod birth;
mod configuration;
mod data;
mod kubernetes;
mod label;
mod leadership;
mod member;
mod nameless;
mod privileges;
mod processes;
mod programs;
mod server;
mod settings;
mod slots;
mod sql;
pub mod stand_in;
mod status;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

pub use configuration::Flags;
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use crate::names;

/// How often a data directory that another container still holds is tried again: a killed container's lock ends with it.
const LOCK_RETRY: Duration = Duration::from_secs(1);

/// Why the agent ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What it was told.
    #[error(transparent)]
    Configuration(#[from] configuration::Error),
    /// The user that PostgreSQL runs as.
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
    /// The image.
    #[error(transparent)]
    Programs(#[from] programs::Missing),
    /// The data directory.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// The API server.
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::Error),
    /// The agent's own directory.
    #[error("failed to make {}: is the injected volume {} mounted there?", path.display(), names::pod::RUN_VOLUME)]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The port.
    #[error("failed to listen on port {}", names::pod::AGENT_PORT)]
    Listen(#[source] std::io::Error),
    /// The runtime.
    #[error("failed to start")]
    Start(#[source] std::io::Error),
    /// A part that should live as long as the agent does.
    #[error("the {0} ended by itself")]
    Ended(&'static str),
}

/// Runs a member until SIGTERM.
pub fn run(flags: Flags) -> Result<(), Error> {
    let configuration = configuration::Configuration::new(flags)?;
    let home = privileges::settle(&configuration.data_directory)?;
    // One thread is enough for a loop that turns once a second, and costs the least memory in every database pod.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    let outcome = runtime.block_on(live(configuration, home));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn live(configuration: configuration::Configuration, home: Option<PathBuf>) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Start)?;
    let run_directory = configuration::run_directory();
    fs::create_dir_all(&run_directory).map_err(|source| Error::RunDirectory { path: run_directory, source })?;

    let programs = programs::Programs::find(home)?;
    let processes = processes::Processes::default();
    let publisher = status::Publisher::new(&configuration.set, &configuration.me.pod);
    let listener = status::listen().await.map_err(Error::Listen)?;
    let web = tokio::spawn(axum::serve(listener, publisher.clone().router()).into_future());
    let reaper = tokio::spawn(processes.clone().reap_orphans());

    let data = data::DataDirectory::open(configuration.data_directory.clone())?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let mut shutdown = std::pin::pin!(shutdown);
    let lock = tokio::select! {
        lock = locked(&data, &publisher) => lock?,
        () = &mut shutdown => return Ok(()),
    };
    data.recover()?;

    let client = kubernetes::client(&configuration.namespace)?;
    let (leadership, keeper) = leadership::start(
        client.clone(),
        &configuration.namespace,
        names::leader(&configuration.set),
        configuration.me.clone(),
        configuration.times,
    );
    let (label, labeller) = label::start(
        client.clone(),
        &configuration.namespace,
        configuration.me.clone(),
        configuration.role_label.clone(),
    );
    let midwife = birth::Midwife { configuration, programs, processes, data };
    let member = member::Member::new(midwife, client, leadership, label, publisher);
    // A part that ends takes the agent with it: the container starts anew, and PostgreSQL ends with its first process.
    tokio::select! {
        () = member.live(shutdown) => {
            drop(lock);
            Ok(())
        }
        _ = web => Err(Error::Ended("web server")),
        _ = reaper => Err(Error::Ended("reaper of orphans")),
        _ = keeper => Err(Error::Ended("keeper of the Lease")),
        _ = labeller => Err(Error::Ended("labeller")),
    }
}

async fn locked(data: &data::DataDirectory, publisher: &status::Publisher) -> Result<data::Lock, data::Error> {
    let mut told = false;
    loop {
        match data.lock() {
            Err(error @ data::Error::Locked { .. }) => {
                if !told {
                    warn!("{error}; waiting");
                    told = true;
                }
                publisher.update(|status| {
                    status.doing = error.to_string();
                    status.turned_at = Some(tokio::time::Instant::now());
                });
                tokio::time::sleep(LOCK_RETRY).await;
            }
            outcome => return outcome,
        }
    }
}
