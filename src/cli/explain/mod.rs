//! `pgset explain`: why a `StatefulSet` was or wasn't injected, and what was added.

mod injection;
mod state;
mod told;

use std::{io::Write as _, path::PathBuf};

use serde_json::Value;

use self::{
    state::{Facts, explain},
    told::Explanation,
};
use super::{
    CommandResult,
    cluster::{self, Cluster, Connection, Unread, text},
    inject::{read_file, transform},
    set_name::SetName,
};
use crate::names;

/// The flags of `pgset explain`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The set: sts/NAME
    #[arg(value_name = "sts/NAME", required_unless_present = "filename", conflicts_with = "filename")]
    set: Option<SetName>,
    /// The sets of a file, as if it were applied now; - for standard input
    #[arg(short, long, value_name = "FILE")]
    filename: Option<PathBuf>,
    /// The namespace [default: the one of the context]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON object for each set
    Json,
}

/// Why nothing can be explained.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// It can't be read.
    #[error("failed to read StatefulSet {set}")]
    Set {
        /// Which.
        set: String,
        /// Why.
        #[source]
        source: Unread,
    },
    /// There is nothing to explain.
    #[error("{file} holds no StatefulSet")]
    Empty {
        /// The file.
        file: String,
    },
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> CommandResult {
    let Arguments { set, filename, namespace, output, connection } = arguments;
    let sets = filename.as_ref().map(sets_of).transpose()?;
    super::install_crypto_provider()?;
    let explanations: Vec<Explanation> = cluster::block_on(async {
        let cluster = Cluster::connect(connection).await?;
        let namespace = namespace.as_deref().unwrap_or(cluster.namespace());
        let mut explanations = Vec::new();
        if let Some(SetName(name)) = set {
            explanations.push(explain(&stored(&cluster, namespace, name).await?));
        }
        for set in sets.unwrap_or_default() {
            explanations.push(explain(&written(&cluster, namespace, set).await));
        }
        Ok::<_, Box<dyn std::error::Error>>(explanations)
    })??;
    let mut text = String::new();
    for explanation in &explanations {
        match output {
            Output::Text => text.push_str(&explanation.to_text()),
            Output::Json => {
                text.push_str(&serde_json::to_string_pretty(&explanation.to_json())?);
                text.push('\n');
            }
        }
    }
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// The `StatefulSets` of a file.
fn sets_of(file: &PathBuf) -> Result<Vec<Value>, Box<dyn std::error::Error>> {
    let mut sets = Vec::new();
    transform(&read_file(file)?, None, &mut |object: &Value, _: &str| {
        sets.push(object.clone());
        None
    })?;
    if sets.is_empty() { Err(Error::Empty { file: file.display().to_string() }.into()) } else { Ok(sets) }
}

/// A stored set, and what the API server would say to it now.
async fn stored(cluster: &Cluster, namespace: &str, name: &str) -> Result<Facts, Error> {
    let path = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}");
    let refused = |source| Error::Set { set: format!("{namespace}/{name}"), source };
    let object = cluster.get(&path).await.map_err(refused)?;
    let mut again = object.clone();
    if let Some(metadata) = again.get_mut("metadata").and_then(Value::as_object_mut) {
        // It may be changed meanwhile, by its own status for one.
        metadata.retain(|key, _| !["resourceVersion", "managedFields"].contains(&key.as_str()));
    }
    let again = cluster.put(&format!("{path}?dryRun=All&fieldManager=pgset-explain"), &again).await;
    Ok(facts(cluster, namespace, object, true, again).await)
}

/// A set as it is written in a file, applied without storing it.
async fn written(cluster: &Cluster, namespace: &str, mut object: Value) -> Facts {
    let namespace = match text(&object, "/metadata/namespace") {
        "" => namespace.to_owned(),
        own => own.to_owned(),
    };
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("namespace".to_owned(), Value::String(namespace.clone()));
    }
    let name = text(&object, "/metadata/name");
    let path = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}");
    let again = match name.parse::<SetName>() {
        Ok(_) => cluster.apply(&format!("{path}?dryRun=All&force=true&fieldManager=pgset-explain"), &object).await,
        Err(why) => Err(Unread::Refused(why.to_string())),
    };
    facts(cluster, &namespace, object, false, again).await
}

async fn facts(
    cluster: &Cluster,
    namespace: &str,
    object: Value,
    is_stored: bool,
    again: Result<cluster::Answer, Unread>,
) -> Facts {
    let configuration =
        format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{}", names::WEBHOOK_CONFIGURATION);
    // Of a set that is only written there are none.
    let (slices, members) = if is_stored {
        let service = names::master(text(&object, "/metadata/name"));
        let slices = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector={}={service}",
            names::slice::SERVICE
        );
        let members = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={}", names::label::SET);
        (cluster.list(&slices).await, cluster.list(&members).await)
    } else {
        (Ok(Vec::new()), Ok(Vec::new()))
    };
    Facts {
        object,
        is_stored,
        again,
        namespace: cluster.get(&format!("/api/v1/namespaces/{namespace}")).await,
        configuration: cluster.get(&configuration).await,
        services: cluster.list(&format!("/api/v1/namespaces/{namespace}/services")).await,
        slices,
        members,
    }
}
