//! `pgset serve controller`: one of the controllers, of which one acts.

use std::sync::Arc;

use axum_server::Handle;
use prometheus_client::{encoding::text::encode, metrics::info::Info, registry::Registry};

use super::{Draining, Error, Process, until_set};
use crate::{
    controller::{self, Settings},
    invariants::{self, Invariant},
    names,
    webhook::{health, server::Bound},
};

/// The flags of `pgset serve controller`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The port of /livez and /readyz, for the kubelet, and of /metrics.
    #[arg(long, default_value_t = 8081)]
    health_port: u16,
    /// The namespace that pgset runs in.
    #[arg(long, default_value = names::SYSTEM_NAMESPACE)]
    namespace: String,
}

/// Serves until a signal.
pub async fn serve(arguments: Arguments) -> Result<(), Error> {
    let Arguments { health_port, namespace } = arguments;
    let mut process = Process::new()?;
    let client = super::cluster().await?;
    let health = Bound::new(health_port)?;
    let admin_handle = Handle::new();

    tracing::info!(version = env!("CARGO_PKG_VERSION"), health = %health.address(), "the controller serves");
    // A candidate is ready: it does what it is there for.
    let router = health::probes(process.readiness.clone()).merge(health::metered(metrics()));
    process.spawn("probes", health.serve_http(router, admin_handle.clone()));
    let settings = Settings { namespace, identity: identity() };
    process.spawn_local("controller", controller::run(client, settings, until_set(process.stopped())));
    process.run(Draining { begin: || {}, reviews: None, admin: admin_handle }).await
}

/// What is counted. So little that it needs no port of its own.
fn metrics() -> impl Fn() -> Result<String, std::fmt::Error> + Clone + Send + Sync + 'static {
    let mut registry = Registry::with_prefix("pgset");
    invariants::register(&mut registry, &Invariant::OF_CONTROLLER);
    registry.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    let registry = Arc::new(registry);
    move || {
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controller_tells_its_version_and_what_it_counted() {
        let text = metrics()().unwrap();
        for name in ["pgset_invariants_broken_total{invariant=\"child_is_the_sets\"} ", "pgset_build_info{version="] {
            assert!(text.contains(name), "{name} in {text}");
        }
    }
}
