//! The requests by which the controller changes the cluster: one small function each, always within one namespace.

use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};
use tracing::info;

use super::cache::interner::Interner;
use super::cache::pod::CachedPod;
use super::event::SetEvent;
use super::plan::Step;
use super::route::{Doubt, doubt_of};
use super::watches::resource;
use crate::children::credentials::{Passwords, secret};
use crate::children::event::{self, Report};
use crate::children::{Child, Kind, Owner};
use crate::names;

/// What an Event says that pgset was doing.
const ACTION: &str = "Reconcile";
/// The cause that the API server gives when nothing can be made in a namespace any more (`corev1.NamespaceTerminatingCause`).
const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";

/// A change that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused it, or could not be reached.
    #[error("failed to {verb} {kind} {name}: {}", said(cause))]
    Request {
        /// What was tried.
        verb: &'static str,
        /// The object's kind.
        kind: &'static str,
        /// The object's name.
        name: String,
        /// What the API server or the network said.
        cause: Box<kube::Error>,
    },
    /// The operating system gave no random bytes for the passwords.
    #[error("failed to draw random passwords for Secret {name}: {cause}")]
    Random {
        /// The Secret's name.
        name: String,
        /// What the operating system said.
        cause: getrandom::Error,
    },
    /// The desired objects could not be written down.
    #[error(transparent)]
    Children(#[from] crate::children::Error),
}

impl Error {
    fn request(verb: &'static str, kind: &'static str, name: &str, cause: kube::Error) -> Self {
        Self::Request { verb, kind, name: name.to_owned(), cause: Box::new(cause) }
    }

    /// A fixed word for each kind of error, for logs and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Request { cause, .. } => match cause.as_ref() {
                kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() => "conflict",
                kube::Error::Api(status) if status.is_not_found() => "not_found",
                kube::Error::Api(status) if status.is_forbidden() => "forbidden",
                kube::Error::Api(status) if status.is_invalid() => "invalid",
                kube::Error::Api(_) => "api",
                _ => "transport",
            },
            Self::Random { .. } => "random",
            Self::Children(_) => "encode",
        }
    }

    /// Whether the namespace is going away: it refuses whatever is to be made in it, and takes the set with it.
    #[must_use]
    pub fn is_namespace_terminating(&self) -> bool {
        let Self::Request { cause, .. } = self else { return false };
        let kube::Error::Api(status) = cause.as_ref() else { return false };
        status.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == NAMESPACE_TERMINATING)
    }

    /// The API server's own words where it refused for good: something that the user has to know.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let Self::Request { verb, kind, name, cause } = self else { return None };
        let kube::Error::Api(status) = cause.as_ref() else { return None };
        let refused = matches!(status.code, 400 | 403 | 422) && !self.is_namespace_terminating();
        refused.then(|| format!("the API server refused to {verb} {kind} {name}: {}", status.message))
    }
}

/// An error of the client in a few words: its own would print the whole answer.
pub fn said(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error { status.message.clone() } else { error.to_string() }
}

/// A client that changes one namespace on behalf of one set.
pub struct Requests<'a> {
    /// The client.
    pub client: &'a Client,
    /// The set.
    pub owner: &'a Owner,
    /// Who reports Events.
    pub identity: &'a str,
}

impl Requests<'_> {
    fn api(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.owner.namespace, &resource(kind))
    }

    /// What stands under a name.
    pub async fn get(&self, kind: Kind, name: &str) -> Result<Option<DynamicObject>, Error> {
        self.api(kind).get_opt(name).await.map_err(|cause| Error::request("get", kind.as_str(), name, cause))
    }

    /// Does one step of a plan.
    pub async fn take(&self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Create(child) => self.create(child).await,
            Step::Restore { child, patch } => self.restore(child, patch).await,
            Step::Remove { kind, name, uid } => self.remove(*kind, name, uid).await,
            Step::Label { member, key, value } => {
                // With the version that was seen: a role is never written over a newer one, nor onto another pod of this name.
                let patch = json!({"metadata": {"uid": member.uid, "resourceVersion": member.resource_version,
                    "labels": {key: value}}});
                let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.owner.namespace);
                let patched = api.patch_metadata(&member.name, &manager(), &Patch::Merge(patch)).await;
                patched.map(drop).map_err(|cause| Error::request("label", "Pod", &member.name, cause))
            }
            Step::Follow { service, key, value } => {
                let patch = json!({"metadata": {"uid": service.uid, "resourceVersion": service.resource_version},
                    "spec": {"selector": {key: value}}});
                let api: Api<Service> = Api::namespaced(self.client.clone(), &self.owner.namespace);
                let patched = api.patch(&service.name, &manager(), &Patch::Merge(patch)).await;
                patched.map(drop).map_err(|cause| Error::request("patch", "Service", &service.name, cause))
            }
            Step::Close(doubt) => self.close(doubt).await,
        }
    }

    /// Makes an object. By a POST, which never changes what is there: if somebody made one of that name just now, it is a conflict.
    async fn create(&self, child: &Child) -> Result<(), Error> {
        let failed = |cause| Error::request("create", child.kind.as_str(), &child.name, cause);
        let object = serde_json::from_value::<DynamicObject>(child.body.clone());
        let object = object.map_err(|cause| failed(kube::Error::SerdeError(cause)))?;
        self.api(child.kind).create(&creator(), &object).await.map(drop).map_err(failed)
    }

    /// Puts an object right, by a patch that names the very object.
    async fn restore(&self, child: &Child, patch: &Value) -> Result<(), Error> {
        let patched = self.api(child.kind).patch(&child.name, &manager(), &Patch::Merge(patch)).await;
        patched.map(drop).map_err(|cause| Error::request("update", child.kind.as_str(), &child.name, cause))
    }

    async fn remove(&self, kind: Kind, name: &str, uid: &str) -> Result<(), Error> {
        let only_this = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let deleted = self.api(kind).delete(name, &DeleteParams::default().preconditions(only_this)).await;
        match deleted {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(cause) => Err(Error::request("delete", kind.as_str(), name, cause)),
        }
    }

    /// Lets no client be sent to an endpoint. First it is asked whether that is still true: one watch may be behind the other.
    async fn close(&self, doubt: &Doubt) -> Result<(), Error> {
        let (kind, name) = (Kind::EndpointSlice, names::master(&self.owner.name));
        let failed = |verb, cause| Error::request(verb, kind.as_str(), &name, cause);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let pod = pods.get_opt(&doubt.pod).await.map_err(|cause| Error::request("get", "Pod", &doubt.pod, cause))?;
        let member = pod.and_then(|pod| CachedPod::new(&pod, &Interner::default()));
        let member = member.filter(|pod| pod.is_of(&self.owner.uid)).map(|pod| pod.member(doubt.pod.clone()));
        let Some(mut slice) = self.get(kind, &name).await? else { return Ok(()) };
        let live = serde_json::to_value(&slice).unwrap_or_default();
        if doubt_of(&live, |_| member.as_ref()).as_ref() != Some(doubt) {
            return Ok(());
        }
        if let Some(endpoint) = slice.data.pointer_mut("/endpoints/0").and_then(Value::as_object_mut) {
            let conditions = endpoint.entry("conditions").or_insert_with(|| json!({}));
            if let Some(conditions) = conditions.as_object_mut() {
                conditions.insert("ready".to_owned(), Value::Bool(false));
            }
        }
        match self.api(kind).replace(&name, &creator(), &slice).await {
            Ok(_) => {
                let Owner { namespace, name: set, .. } = self.owner;
                info!(namespace, set, pod = doubt.pod, "the master's pod {}: no client is sent there", doubt.why);
                Ok(())
            }
            // Somebody leads now.
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(()),
            Err(cause) => Err(failed("update", cause)),
        }
    }

    /// Makes the Secret with new passwords; answers whether there was none.
    pub async fn create_secret(&self, name: &str) -> Result<bool, Error> {
        let passwords = passwords().map_err(|cause| Error::Random { name: name.to_owned(), cause })?;
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        match api.create(&creator(), &secret(self.owner, name, &passwords)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
            Err(cause) => Err(Error::request("create", "Secret", name, cause)),
        }
    }

    /// Writes an Event on the set.
    pub async fn publish(&self, event: &SetEvent) -> Result<(), Error> {
        let owner = self.owner;
        let report = Report {
            name: &owner.name,
            reporter: self.identity,
            action: ACTION,
            reason: event.reason.as_str(),
            is_warning: event.reason.is_warning(),
            note: &event.note,
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &owner.namespace);
        let created = api.create(&PostParams::default(), &event::event(owner, &report, Timestamp::now())).await;
        created.map(drop).map_err(|cause| Error::request("create", "Event", &owner.name, cause))
    }
}

fn creator() -> PostParams {
    PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() }
}

fn manager() -> PatchParams {
    PatchParams::apply(names::MANAGER)
}

/// Letters and digits only, so that a password needs no quoting anywhere.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// The length of a password: 190 bits.
const PASSWORD_LENGTH: usize = 32;

fn passwords() -> Result<Passwords, getrandom::Error> {
    let mut passwords = [const { String::new() }; names::credential::ALL.len()];
    for word in &mut passwords {
        while word.len() < PASSWORD_LENGTH {
            let mut bytes = [0; 2 * PASSWORD_LENGTH];
            getrandom::fill(&mut bytes)?;
            // Bytes that would favour the first letters are left out.
            let fair = bytes.iter().map(|&byte| usize::from(byte)).filter(|&byte| byte < 4 * ALPHABET.len());
            let missing = PASSWORD_LENGTH - word.len();
            word.extend(fair.map(|byte| char::from(ALPHABET[byte % ALPHABET.len()])).take(missing));
        }
    }
    Ok(Passwords(passwords))
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
