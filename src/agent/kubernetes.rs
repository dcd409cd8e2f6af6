//! The member's way to the API server: the injected token, not the pod's default one, which a cluster may withhold.

use std::path::{Path, PathBuf};
use std::{env, io};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::config::AuthInfo;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;

use super::slots::Members;
use crate::election::order::Order;
use crate::names;
use crate::set::backup::{Backup, Restore};
use crate::set::entries;
use crate::set::recovery::RecoveryOrder;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not in a pod.
    #[error("the variable {0} is not set: the agent runs in a pod only")]
    Variable(&'static str),
    /// The cluster's certificate authority.
    #[error("failed to read the cluster's certificate authority in {}: {reason}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The API server's address.
    #[error("the API server's address {0:?} is not valid")]
    Address(String),
    /// The client.
    #[error("failed to make a client for the API server")]
    Client(#[from] kube::Error),
    /// The file of the token.
    #[error("failed to find the token")]
    Token(#[from] io::Error),
}

/// A client with the injected token, which is read anew as the kubelet renews it.
pub fn client(namespace: &str) -> Result<Client, Error> {
    let variable = |name: &'static str| env::var(name).map_err(|_| Error::Variable(name));
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let address = format!("https://{host}:{port}");
    let access = Path::new(names::pod::ACCESS_PATH);
    let path = access.join(names::pod::CA_FILE);
    let wrong = |reason: String| Error::Authority { path: path.clone(), reason };
    let authorities = CertificateDer::pem_file_iter(&path)
        .map_err(|error| wrong(error.to_string()))?
        .map(|certificate| certificate.map(|der| der.to_vec()).map_err(|error| wrong(error.to_string())))
        .collect::<Result<Vec<_>, _>>()?;
    let mut config = Config::new(address.parse().map_err(|_| Error::Address(address.clone()))?);
    namespace.clone_into(&mut config.default_namespace);
    config.root_cert = Some(authorities);
    let token = access.join(names::pod::TOKEN_FILE);
    config.auth_info = AuthInfo { token_file: Some(token.to_string_lossy().into_owned()), ..AuthInfo::default() };
    Ok(Client::try_from(config)?)
}

/// What the set's owner wants, as the `StatefulSet` says it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Which members there should be.
    pub members: Members,
    /// Bytes that may be lost at a failover, where commits wait for nobody.
    pub maximum_lag: u64,
    /// Commits wait also while fewer replicas stream than must confirm them.
    pub synchronous_strict: bool,
    /// Its members are made one after the other, the next when the one before it is Ready.
    pub is_ordered: bool,
    /// Who is to lead next.
    pub order: Option<Order>,
    /// The backups.
    pub backup: Option<Backup>,
    /// With what a new set begins.
    pub restore: Option<Restore>,
    /// A recovery in place.
    pub recovery: Option<RecoveryOrder>,
}

impl Wishes {
    fn of(name: &str, found: StatefulSet) -> Self {
        let annotations = found.metadata.annotations.unwrap_or_default();
        let spec = found.spec.unwrap_or_default();
        let is_ordered = spec.pod_management_policy.as_deref().is_none_or(|policy| policy == "OrderedReady");
        let first = spec.ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0);
        let count = spec.replicas.unwrap_or(1);
        Self {
            members: Members {
                set: name.to_owned(),
                first: u32::try_from(first).unwrap_or(0),
                count: u32::try_from(count).unwrap_or(0),
            },
            maximum_lag: entries::MAXIMUM_LAG.among(&annotations),
            synchronous_strict: entries::SYNCHRONOUS_STRICT.among(&annotations),
            is_ordered,
            backup: Backup::among(&annotations),
            restore: Restore::among(&annotations),
            recovery: entries::RECOVER.among(&annotations),
            order: annotations.get(names::annotation::SWITCHOVER).and_then(|text| Order::parse(text)),
        }
    }
}

/// Follows what the set's owner wants.
pub fn follow_set(
    client: Client,
    namespace: &str,
    set: String,
) -> (watch::Receiver<Option<Wishes>>, tokio::task::JoinHandle<()>) {
    let (publish, wishes) = watch::channel(None);
    let api: Api<StatefulSet> = Api::namespaced(client, namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={set}"));
    let task = tokio::spawn(async move {
        let mut events = std::pin::pin!(watcher(api, config).default_backoff().applied_objects());
        while let Some(event) = events.next().await {
            match event {
                Ok(found) => {
                    let new = Some(Wishes::of(&set, found));
                    publish.send_if_modified(|old| {
                        let changed = *old != new;
                        old.clone_from(&new);
                        changed
                    });
                }
                Err(error) => tracing::debug!(%error, "the watch of the set was interrupted"),
            }
        }
    });
    (wishes, task)
}
