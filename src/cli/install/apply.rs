//! `pgset install --apply`: what `kubectl apply --server-side` does, and an owner for what stands outside of pgset's namespace.
//!
//! A webhook configuration that outlives its webhook would hold up every set, and `kubectl delete namespace` is how many uninstall. An
//! owner is named by its UID, which no manifest can know, and which no running part of pgset should have the right to write.

use serde_json::{Value, json};

use crate::cli::{
    CommandResult,
    check::snapshot::Resources,
    cluster::{self, Cluster, Connection, Unread, text, title},
    install_crypto_provider,
};

/// The field manager of what is installed.
const MANAGER: &str = "pgset-install";
/// The group of what holds up others.
const ADMISSION: &str = "admissionregistration.k8s.io/";

/// Why something is not installed.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The cluster has no such kind.
    #[error("failed to apply {0}: this cluster does not serve its kind; Kubernetes 1.30 or newer does")]
    Unserved(String),
    /// The API server refused it, or does not answer.
    #[error("failed to apply {object}; \"pgset check --before\" tells what is missing")]
    Refused {
        /// Which object.
        object: String,
        /// What the API server said.
        #[source]
        source: Unread,
    },
}

/// Applies manifests in their order, which begins with the namespace.
pub fn apply(connection: &Connection, manifests: &str) -> CommandResult {
    install_crypto_provider()?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(manifests)?;
    cluster::block_on(async {
        let cluster = Cluster::connect(connection).await?;
        apply_all(&cluster, objects).await.map_err(Into::into)
    })?
}

async fn apply_all(cluster: &Cluster, objects: Vec<Value>) -> Result<(), Error> {
    let resources = Resources::of(cluster, &objects).await;
    let mut namespace = Value::Null;
    for mut object in objects {
        let name = format!("{} {}", text(&object, "/kind"), title(&object));
        let path = resources.path(&object).ok_or_else(|| Error::Unserved(name.clone()))?;
        give_owner(&mut object, &namespace);
        let path = format!("{path}?fieldManager={MANAGER}&force=true");
        let answer =
            cluster.apply(&path, &object).await.map_err(|source| Error::Refused { object: name.clone(), source })?;
        for warning in answer.warnings {
            eprintln!("pgset: {name}: {warning}");
        }
        println!("{name} applied");
        if text(&object, "/kind") == "Namespace" {
            namespace = answer.value;
        }
    }
    Ok(())
}

/// Lets an object that is asked at every admission go with the namespace. Nothing waits for its end: a deletion must not hang on what
/// it deletes.
fn give_owner(object: &mut Value, namespace: &Value) {
    let (name, uid) = (text(namespace, "/metadata/name"), text(namespace, "/metadata/uid"));
    if !text(object, "/apiVersion").starts_with(ADMISSION) || uid.is_empty() {
        return;
    }
    object["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Namespace", "name": name, "uid": uid}]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_at_admissions_goes_with_the_namespace_and_nothing_else_has_an_owner() {
        let namespace = json!({"kind": "Namespace", "metadata": {"name": "pgset-system", "uid": "its-uid"}});
        let owners = |version: &str| {
            let mut object = json!({"apiVersion": version, "metadata": {"name": "pgset"}});
            give_owner(&mut object, &namespace);
            object["metadata"]["ownerReferences"].take()
        };
        let owner = json!({"apiVersion": "v1", "kind": "Namespace", "name": "pgset-system", "uid": "its-uid"});
        assert_eq!(owners("admissionregistration.k8s.io/v1"), json!([owner]));
        assert_eq!(owners("rbac.authorization.k8s.io/v1"), Value::Null);
    }
}
