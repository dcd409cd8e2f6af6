//! `pgset uninstall`: prints what is to be deleted, in an order in which nothing is held up on the way.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use serde_json::{Value, json};

use super::{
    CommandResult,
    check::snapshot::{shipped, speaks_of_pgset},
    cluster::{self, Cluster, Connection, Read, text, title},
    inject::manifest,
};
use crate::errors::with_causes;

/// The flags of `pgset uninstall`.
#[derive(Debug, clap::Args)]
#[command(after_help = "To delete it: pgset uninstall | kubectl delete --ignore-not-found -f -")]
pub struct Arguments {
    /// Print it even though sets depend on pgset, or though nobody can say whether any do
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Why nothing is printed.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Sets that would be left alone.
    #[error(
        "{} on pgset, so nothing is printed:\n{}delete them, or take them out: kubectl scale statefulset NAME \
         --replicas=1, then kubectl annotate statefulset NAME {key}-; or print it all the same: --force, which says \
         what goes on and what does not", depend(.0), list(.0), key = crate::names::annotation::INJECT
    )]
    Depended(Vec<String>),
    /// Nobody knows.
    #[error("failed to ask the cluster which sets depend on pgset; --force prints it all the same")]
    Unasked(#[source] Box<dyn std::error::Error>),
}

/// What becomes of sets without pgset.
const WITHOUT: &str = "\
What goes on: the members run, replicate and restart by themselves; Services, passwords and data stay.
What does not: what surrounds the sets is no longer kept right. A member that kubectl scale adds gets no
  rights. A new set is stored without the injection, so that its members know nothing of each other: apply none.
To come back: pgset install --image IMAGE | kubectl apply -f -. The sets are taken up again as they are.
";

/// Runs the command.
pub fn run(arguments: &Arguments) -> CommandResult {
    let Arguments { force, connection } = arguments;
    match dependent(connection) {
        Ok(sets) if sets.is_empty() => {}
        Ok(sets) if *force => eprint!("pgset: {} on pgset:\n{}{WITHOUT}", depend(&sets), list(&sets)),
        Ok(sets) => return Err(Error::Depended(sets).into()),
        Err(why) if *force => {
            eprint!("pgset: nobody could say whether sets depend on pgset: {}\n{WITHOUT}", with_causes(why.as_ref()));
        }
        Err(why) => return Err(Error::Unasked(why).into()),
    }
    let mut text = "# kubectl delete --ignore-not-found -f -\n".to_owned();
    let mut installed = older();
    installed.extend(shipped(None)?);
    for object in deletions(installed) {
        text.push_str("---\n");
        text.push_str(&manifest::to_yaml(&object)?);
    }
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// What version 0.1.0 installed under names that are no longer used.
fn older() -> Vec<Value> {
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    let spaced = |version: &str, kind: &str| {
        let metadata = json!({"name": "pgset", "namespace": crate::names::SYSTEM_NAMESPACE});
        json!({"apiVersion": version, "kind": kind, "metadata": metadata})
    };
    let cluster_wide = |kind: &str| json!({"apiVersion": RBAC, "kind": kind, "metadata": {"name": "pgset"}});
    vec![
        spaced("v1", "ServiceAccount"),
        cluster_wide("ClusterRole"),
        cluster_wide("ClusterRoleBinding"),
        spaced(RBAC, "Role"),
        spaced(RBAC, "RoleBinding"),
        spaced("networking.k8s.io/v1", "NetworkPolicy"),
        spaced("apps/v1", "Deployment"),
        spaced("policy/v1", "PodDisruptionBudget"),
    ]
}

/// The sets that pgset looks after, in all namespaces.
fn dependent(connection: &Connection) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    super::install_crypto_provider()?;
    let sets: Read<Vec<Value>> = cluster::block_on(async {
        let cluster = Cluster::connect(connection).await?;
        Ok::<_, cluster::Error>(cluster.list("/apis/apps/v1/statefulsets").await)
    })??;
    Ok(sets?.iter().filter(|set| speaks_of_pgset(set)).map(title).collect())
}

/// What was installed last goes first, and above all what holds up others: the webhook, then the policies; the namespace goes
/// last. Of each object only its name is printed: no more is needed to delete it.
fn deletions(mut installed: Vec<Value>) -> Vec<Value> {
    installed.reverse();
    installed.sort_by_key(|object| match text(object, "/kind") {
        "MutatingWebhookConfiguration" => 0,
        "ValidatingAdmissionPolicyBinding" => 1,
        "ValidatingAdmissionPolicy" => 2,
        "Namespace" => 4,
        _ => 3,
    });
    let name = |object: &Value| {
        let mut metadata = json!({"name": text(object, "/metadata/name")});
        if let Some(namespace) = object.pointer("/metadata/namespace") {
            metadata["namespace"] = namespace.clone();
        }
        json!({"apiVersion": text(object, "/apiVersion"), "kind": text(object, "/kind"), "metadata": metadata})
    };
    installed.iter().map(name).collect()
}

fn depend(sets: &[String]) -> String {
    match sets.len() {
        1 => "1 set depends".to_owned(),
        count => format!("{count} sets depend"),
    }
}

fn list(sets: &[String]) -> String {
    sets.iter().fold(String::new(), |mut list, set| {
        // Writing to a string can't fail.
        let _ = writeln!(list, "  {set}");
        list
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(objects: &[Value]) -> Vec<&str> {
        objects.iter().map(|object| text(object, "/kind")).collect()
    }

    #[test]
    fn everything_that_is_installed_is_deleted_the_webhook_first_and_the_namespace_last() {
        let mut installed = older();
        installed.extend(shipped(None).unwrap());
        let deleted = deletions(installed.clone());
        assert_eq!(deleted.len(), installed.len());
        for object in &installed {
            assert!(deleted.iter().any(|it| it["kind"] == object["kind"] && title(it) == title(object)), "{object}");
        }
        let kinds = kinds(&deleted);
        assert_eq!(kinds.first(), Some(&"MutatingWebhookConfiguration"));
        assert_eq!(kinds.last(), Some(&"Namespace"));
        let place = |kind: &str| kinds.iter().position(|it| *it == kind).unwrap();
        assert!(place("Deployment") < place("ServiceAccount"), "{kinds:?}");
    }

    #[test]
    fn bindings_go_before_their_policies_and_both_before_the_pods() {
        let object = |kind: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "pgset"}, "spec": {}});
        let installed = [
            "Namespace",
            "Deployment",
            "ValidatingAdmissionPolicyBinding",
            "ValidatingAdmissionPolicy",
            "MutatingWebhookConfiguration",
        ];
        let expected = [
            "MutatingWebhookConfiguration",
            "ValidatingAdmissionPolicyBinding",
            "ValidatingAdmissionPolicy",
            "Deployment",
            "Namespace",
        ];
        let deleted = deletions(installed.map(object).to_vec());
        assert_eq!(kinds(&deleted), expected);
        assert_eq!(deleted[0], json!({"apiVersion": "v1", "kind": expected[0], "metadata": {"name": "pgset"}}));
    }

    #[test]
    fn the_refusal_lists_the_sets_and_names_the_ways_out() {
        let refusal = Error::Depended(vec!["shop/db".to_owned(), "shop/other".to_owned()]).to_string();
        assert!(
            refusal.starts_with("2 sets depend on pgset, so nothing is printed:\n  shop/db\n  shop/other\n"),
            "{refusal}"
        );
        assert!(refusal.contains("--force") && refusal.contains("pgset.dev/inject-"), "{refusal}");
    }
}
