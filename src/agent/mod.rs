//! The agent: the first process of the PostgreSQL container. It gets the data, starts and stops PostgreSQL, replicates, labels its pod.

mod arguments;
mod as_before;
mod backup;
mod binaries;
mod configuration;
mod control;
mod data;
mod electorate;
mod events;
pub mod fencer;
mod fencing;
mod in_place;
pub mod instance;
mod kubernetes;
mod leadership;
mod life;
mod member;
mod mounts;
mod notes;
mod nss_wrapper;
mod owner;
pub mod peers;
mod place;
pub mod postgres_shim;
mod postmasters;
mod privileges;
mod processes;
mod promises;
mod provisioner;
mod recovery;
mod responder;
mod rewind;
mod role_label;
mod route;
mod search;
mod server;
mod settings;
mod slots;
mod sql;
mod status;
mod synchronous;
pub mod verification;

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

pub use configuration::Flags;
pub use recovery::{AWAY, NOT_NOW};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing::Span;

use crate::names;

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
    Binaries(#[from] binaries::Missing),
    /// The data directory.
    #[error(transparent)]
    DataState(#[from] data::Error),
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
    /// The image, which should run as it did before the set was annotated.
    #[error("failed to run the image as it was")]
    Image(#[source] std::io::Error),
    /// The owner of the data directory.
    #[error(transparent)]
    Owner(#[from] owner::Ended),
    /// The runtime.
    #[error("failed to start")]
    Start(#[source] std::io::Error),
    /// A part that should live as long as the agent does.
    #[error("the {0} ended by itself")]
    Ended(&'static str),
}

/// How the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was asked to.
    Stopped,
    /// The image, which ran as it did before the set was annotated, ended like this.
    Image(ExitStatus),
}

/// Runs a member until SIGTERM.
pub fn run(flags: Flags) -> Result<Ending, Error> {
    let configuration = configuration::Configuration::new(flags)?;
    let member = span(&configuration);
    let _entered = member.enter();
    // Before anything is made anywhere, and before any thread starts.
    let user = match configuration.place.check() {
        Ok(()) => privileges::settle(&configuration.place.directory).map_err(life::Unsettled::User),
        Err(why) => Err(life::Unsettled::OffVolume(why)),
    };
    let runtime = runtime(&member).map_err(Error::Start)?;
    let outcome = runtime.block_on(live(configuration, user));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// What stands on every line of the log. An error's, so that no filter takes it from one.
fn span(configuration: &configuration::Configuration) -> Span {
    let configuration::Configuration { namespace, set, me, .. } = configuration;
    tracing::error_span!("member", namespace, set, pod = me.pod)
}

/// One thread is enough for a loop that turns once a second, and costs the least memory in every database pod. It is in the span from now
/// on, whichever task it works on; those beside it, for what would hold it up, are for as long as they live.
fn runtime(member: &Span) -> std::io::Result<Runtime> {
    let member = member.clone();
    let enter = move || std::mem::forget(member.clone().entered());
    tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(enter).build()
}

async fn live(
    configuration: configuration::Configuration,
    user: Result<Option<PathBuf>, life::Unsettled>,
) -> Result<Ending, Error> {
    if std::process::id() != 1 {
        // With `shareProcessNamespace`, orphans would be the pause process' children: neither reaped here nor within the fencer's reach.
        nix::sys::prctl::set_child_subreaper(true).map_err(|error| Error::Start(error.into()))?;
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Start)?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let membership = peers::Membership::of(&configuration);
    let (inbox, questions) = peers::Inbox::new(membership.clone())
        .map_err(|error| Error::Start(std::io::Error::other(error.to_string())))?;
    let life = life::Life {
        processes: processes::Processes::default(),
        status_handle: status::StatusHandle::new(),
        teller: events::Teller::new(&configuration),
        peers: peers::Client::new(membership),
        configuration,
    };
    let router = life.status_handle.clone().router().merge(inbox.router());
    let web = tokio::spawn(status::serve(router, life.teller.clone()));
    let reaper = tokio::spawn(life.processes.clone().reap_orphans());
    let shutdown = std::pin::pin!(shutdown);
    // A part that ends takes the agent with it: the container starts anew, and PostgreSQL ends with its first process.
    tokio::select! {
        outcome = life.live(user, questions, shutdown) => outcome,
        _ = web => Err(Error::Ended("web server")),
        _ = reaper => Err(Error::Ended("reaper of orphans")),
    }
}

#[cfg(test)]
mod tests {
    use tracing::{dispatcher, error_span, info};

    use super::*;
    use crate::logged::Log;

    #[test]
    fn every_line_says_which_member_it_is_about_whichever_task_or_thread_writes_it() {
        let log = Log::start();
        let member = error_span!("member", namespace = "shop", set = "db", pod = "db-0");
        let _entered = member.enter();
        runtime(&member).unwrap().block_on(async {
            info!("the main loop");
            tokio::spawn(async { info!("a task") }).await.unwrap();
            // In a test, the log is this thread's.
            let log = dispatcher::get_default(Clone::clone);
            let work = move || dispatcher::with_default(&log, || info!("a thread"));
            tokio::task::spawn_blocking(work).await.unwrap();
        });
        for message in ["the main loop", "a task", "a thread"] {
            let line = log.line(message);
            let about = ["namespace", "set", "pod"].map(|field| line["span"][field].clone());
            assert_eq!(about, ["shop", "db", "db-0"], "{line}");
        }
    }
}
