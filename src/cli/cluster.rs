//! The cluster, for commands that ask it: one connection, requests on raw JSON, and answers that say what could not be read.

use std::{path::PathBuf, time::Duration};

use axum::http::{HeaderMap, Request, header};
use kube::{
    Client, Config,
    api::ApiResource,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersion,
    discovery::{self, ApiCapabilities},
};
use serde_json::{Value, json};

use crate::errors::with_causes;

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many objects one page of a list holds.
const PAGE: u32 = 500;

/// Which cluster is asked: the flags that these commands share.
#[derive(Debug, clap::Args)]
pub struct Connection {
    /// The kubeconfig file [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// Why there is no cluster to ask.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig.
    #[error("no usable kubeconfig; give one by --kubeconfig or KUBECONFIG, and its context by --context")]
    Configuration(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A client can't be made of it.
    #[error("failed to use the kubeconfig")]
    Client(#[source] Box<kube::Error>),
    /// The thread that waits for answers.
    #[error("failed to start")]
    Runtime(#[from] std::io::Error),
}

/// Why something could not be read or done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It is not there.
    #[error("it does not exist")]
    Absent,
    /// RBAC says no.
    #[error("forbidden: {0}")]
    Forbidden(String),
    /// The API server refused it.
    #[error("{0}")]
    Refused(String),
    /// The API server knows nobody of that name and key.
    #[error("the API server does not accept the credentials of the kubeconfig")]
    Stranger,
    /// No answer of an API server.
    #[error("the API server does not answer: {0}")]
    Unreachable(String),
}

/// What was read, or why not.
pub type Read<T> = Result<T, Unread>;

/// An answer of the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The object.
    pub value: Value,
    /// The warnings that came with it.
    pub warnings: Vec<String>,
    /// The API server's time, as the header Date has it.
    pub date: Option<String>,
}

/// A connection to a cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

/// Runs the work of a command to its end.
pub fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Error> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

// === impl Cluster ===

impl Cluster {
    /// Reads the kubeconfig; asks nothing yet.
    pub async fn connect(connection: &Connection) -> Result<Self, Error> {
        let Connection { kubeconfig, context } = connection;
        let refused = |error| Error::Configuration(Box::new(error));
        let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
        let mut config = match (kubeconfig, context) {
            (Some(file), _) => {
                let read = Kubeconfig::read_from(file).map_err(refused)?;
                Config::from_custom_kubeconfig(read, &options).await.map_err(refused)?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(refused)?,
            (None, None) => Config::infer().await.map_err(|error| Error::Configuration(Box::new(error)))?,
        };
        config.read_timeout = Some(PATIENCE);
        Ok(Self { client: Client::try_from(config).map_err(|error| Error::Client(Box::new(error)))? })
    }

    /// The namespace of the context.
    pub fn namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// One object, or anything else at a path.
    pub async fn get(&self, path: &str) -> Read<Value> {
        Ok(self.send("GET", path, "application/json", Vec::new()).await?.value)
    }

    /// All objects of a list, page by page.
    pub async fn list(&self, path: &str) -> Read<Vec<Value>> {
        let mut items = Vec::new();
        let mut next = String::new();
        let separator = if path.contains('?') { '&' } else { '?' };
        loop {
            let mut page = self.get(&format!("{path}{separator}limit={PAGE}{next}")).await?;
            if let Some(Value::Array(more)) = page.get_mut("items").map(Value::take) {
                items.extend(more);
            }
            match page.pointer("/metadata/continue").and_then(Value::as_str).filter(|token| !token.is_empty()) {
                Some(token) => next = format!("&continue={token}"),
                None => return Ok(items),
            }
        }
    }

    /// Sends an object.
    pub async fn post(&self, path: &str, object: &Value) -> Read<Answer> {
        self.send("POST", path, "application/json", object.to_string().into_bytes()).await
    }

    /// Replaces an object.
    pub async fn put(&self, path: &str, object: &Value) -> Read<Answer> {
        self.send("PUT", path, "application/json", object.to_string().into_bytes()).await
    }

    /// Applies an object, server-side.
    pub async fn apply(&self, path: &str, object: &Value) -> Read<Answer> {
        // JSON is YAML.
        self.send("PATCH", path, "application/apply-patch+yaml", object.to_string().into_bytes()).await
    }

    /// Merges something into an object.
    pub async fn merge(&self, path: &str, change: &Value) -> Read<Answer> {
        self.send("PATCH", path, "application/merge-patch+json", change.to_string().into_bytes()).await
    }

    /// Changes an object step by step, all or nothing.
    pub async fn patch(&self, path: &str, steps: &Value) -> Read<Answer> {
        self.send("PATCH", path, "application/json-patch+json", steps.to_string().into_bytes()).await
    }

    /// Whether the user of the kubeconfig may do something.
    pub async fn may(&self, attributes: &Value) -> Read<bool> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        });
        let answer = self.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await?;
        Ok(answer.value.pointer("/status/allowed") == Some(&Value::Bool(true)))
    }

    /// What is served under an `apiVersion`: nothing, where that can't be read.
    pub async fn resources(&self, version: &str) -> Vec<(ApiResource, ApiCapabilities)> {
        let Ok(version) = version.parse::<GroupVersion>() else { return Vec::new() };
        let group = discovery::pinned_group(&self.client, &version).await;
        group.map(|group| group.versioned_resources(&version.version)).unwrap_or_default()
    }

    /// What the API server says at a path, with its time.
    pub async fn answer(&self, path: &str) -> Read<Answer> {
        self.send("GET", path, "application/json", Vec::new()).await
    }

    async fn send(&self, method: &str, path: &str, content_type: &str, body: Vec<u8>) -> Read<Answer> {
        let unreachable = |error: &dyn std::error::Error| Unread::Unreachable(error.to_string());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type)
            .header(header::ACCEPT, "application/json")
            .body(Body::from(body))
            .map_err(|error| unreachable(&error))?;
        let response = self.client.send(request).await.map_err(|error| Unread::Unreachable(with_causes(&error)))?;
        let (head, body) = response.into_parts();
        let bytes = body.collect_bytes().await.map_err(|error| Unread::Unreachable(with_causes(&error)))?;
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if !head.status.is_success() {
            let message = value.get("message").and_then(Value::as_str).map(str::to_owned);
            let message = message.unwrap_or_else(|| format!("{method} {path}: status {}", head.status));
            return Err(match head.status.as_u16() {
                401 => Unread::Stranger,
                // A webhook's denial is a 403 of another kind: RBAC's says what is forbidden to whom.
                403 if message.contains("forbidden: User ") => Unread::Forbidden(message),
                404 => Unread::Absent,
                _ => Unread::Refused(message),
            });
        }
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Answer { value, warnings: warnings(&head.headers), date: text(header::DATE) })
    }
}

/// The texts of the headers `Warning: 299 - "the text"`.
fn warnings(headers: &HeaderMap) -> Vec<String> {
    let text = |value: &str| {
        let (_, quoted) = value.split_once('"')?;
        Some(quoted.strip_suffix('"').unwrap_or(quoted).replace("\\\"", "\"").replace("\\\\", "\\"))
    };
    headers.get_all(header::WARNING).iter().filter_map(|value| text(value.to_str().ok()?)).collect()
}

// === raw objects ===

/// The text at a JSON pointer, empty if there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The number at a JSON pointer.
pub fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

/// The items at a JSON pointer, none if there is no list.
pub fn items<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// `namespace/name`, or the name alone.
pub fn title(object: &Value) -> String {
    let name = text(object, "/metadata/name");
    match text(object, "/metadata/namespace") {
        "" => name.to_owned(),
        namespace => format!("{namespace}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_what_stands_between_the_quotes() {
        let mut headers = HeaderMap::new();
        headers.append(header::WARNING, r#"299 - "annotation \"a\" does nothing""#.parse().unwrap());
        headers.append(header::WARNING, r#"299 - "a second one""#.parse().unwrap());
        assert_eq!(warnings(&headers), [r#"annotation "a" does nothing"#, "a second one"]);
    }

    #[test]
    fn what_is_not_there_is_empty() {
        let object = json!({"metadata": {"name": "db"}});
        assert_eq!((text(&object, "/metadata/namespace"), number(&object, "/spec/replicas")), ("", None));
        assert_eq!((items(&object, "/spec/volumes").count(), title(&object)), (0, "db".to_owned()));
    }
}
