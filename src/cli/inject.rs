//! `pgset inject`: what the webhook makes of manifests, without a cluster.

pub mod manifest;

use std::{
    io::{Read, Write},
    path::PathBuf,
};

use json_patch::{Patch, PatchError, PatchOperation, RemoveOperation};
use serde_json::Value;

use self::manifest::{Document, Notation};
use super::CommandResult;
use crate::{
    inject::{self, Request, Settings},
    names,
};

/// The flags of `pgset inject`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The file with the manifests, YAML or JSON; - for standard input
    #[arg(short, long, value_name = "FILE")]
    filename: PathBuf,
    /// How to print the result; left out, as the file is written
    #[arg(short, long, value_enum)]
    output: Option<Output>,
    /// A file with what is stored, as `kubectl get -o yaml` prints it: a set in it is answered as its update would be
    #[arg(long, value_name = "FILE")]
    stored: Option<PathBuf>,
    /// The agent's image for sets that are not injected yet
    #[arg(long, value_name = "IMAGE", default_value = names::IMAGE)]
    agent_image: String,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// All documents, the changed ones as YAML
    Yaml,
    /// All documents as JSON
    Json,
    /// A JSON patch for each changed set, one a line
    Patch,
}

/// What may be wrong with manifests, besides their notation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read.
    #[error("failed to read {file}")]
    File {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Some objects are refused; standard error has said which and why.
    #[error("{count} of the objects can't be injected")]
    Denied {
        /// How many.
        count: usize,
    },
    /// The patch of an object does not apply: a fault of pgset's.
    #[error("failed to apply the patch of {object}")]
    Patch {
        /// The object.
        object: String,
        /// Why.
        #[source]
        source: PatchError,
    },
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> CommandResult {
    let Arguments { filename, output, stored, agent_image } = arguments;
    let settings = Settings { agent_image: agent_image.clone() };
    let stored = stored.as_ref().map(stored_sets).transpose()?.unwrap_or_default();
    let mut denied = 0;
    let text = transform(&read_file(filename)?, *output, &mut |object: &Value, place: &str| {
        let old = stored.iter().find(|stored| is_of(stored, object));
        let (patch, warnings) = match inject::inject(&Request { object, old, settings: &settings }) {
            inject::Outcome::Untouched { warnings } => (None, warnings),
            inject::Outcome::Patched { patch, warnings, .. } => (Some(patch), warnings),
            inject::Outcome::Denied { reason } => {
                denied += 1;
                eprintln!("pgset: {place}: {}", reason.reason());
                (None, Vec::new())
            }
        };
        for warning in warnings {
            eprintln!("pgset: {place}: warning: {warning}");
        }
        patch
    })?;
    if denied > 0 {
        return Err(Error::Denied { count: denied }.into());
    }
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// The `StatefulSets` of a file.
fn stored_sets(file: &PathBuf) -> Result<Vec<Value>, Box<dyn std::error::Error>> {
    let mut documents = manifest::read(&read_file(file)?)?;
    Ok(documents.iter_mut().flat_map(|document| objects(&mut document.value)).map(Value::take).collect())
}

/// Whether `stored` is what the cluster has of `object`, whose file may leave the namespace to kubectl.
fn is_of(stored: &Value, object: &Value) -> bool {
    let of = |object: &Value, field: &str| object.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let namespace = of(object, "/metadata/namespace");
    of(stored, "/metadata/name") == of(object, "/metadata/name")
        && (namespace.is_empty() || of(stored, "/metadata/namespace") == namespace)
}

/// Reads a file, or standard input for `-`.
pub(super) fn read_file(file: &PathBuf) -> Result<String, Error> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|source| Error::File { file: file.display().to_string(), source })?;
    Ok(text)
}

/// Gives each `StatefulSet` of a file to `change`, with words for its place, and prints all documents with the patches applied.
/// Other objects pass through, and what is not changed keeps its text.
pub(super) fn transform(
    text: &str,
    output: Option<Output>,
    change: &mut dyn FnMut(&Value, &str) -> Option<Patch>,
) -> Result<String, Box<dyn std::error::Error>> {
    let mut printed = String::new();
    for mut document in manifest::read(text)? {
        let mut patches = Vec::new();
        let number = document.number;
        for object in objects(&mut document.value) {
            let place = format!("document {number}, {}", title(object));
            if let Some(patch) = change(object, &place).filter(|patch| !patch.0.is_empty()) {
                apply(object, &patch).map_err(|source| Error::Patch { object: place, source })?;
                patches.push(patch);
            }
        }
        match output {
            Some(Output::Patch) => {
                for patch in patches {
                    printed.push_str(&serde_json::to_string(&patch)?);
                    printed.push('\n');
                }
            }
            _ => print(&mut printed, &document, output, !patches.is_empty())?,
        }
    }
    Ok(printed)
}

/// Applies a patch and keeps the order of what stays, which the crate that does the rest would not.
fn apply(object: &mut Value, patch: &Patch) -> Result<(), PatchError> {
    for operation in &patch.0 {
        if let PatchOperation::Remove(RemoveOperation { path }) = operation
            && let Some((parent, key)) = path.split_back()
            && let Some(Value::Object(members)) = object.pointer_mut(parent.as_str())
            && members.shift_remove(key.decoded().as_ref()).is_some()
        {
            continue;
        }
        json_patch::patch(object, std::slice::from_ref(operation))?;
    }
    Ok(())
}

fn print(
    printed: &mut String,
    document: &Document,
    output: Option<Output>,
    is_changed: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let wanted = if output == Some(Output::Json) { Notation::Json } else { Notation::Yaml };
    let notation = if output.is_none() { document.notation } else { wanted };
    if document.value.is_null() && notation == Notation::Json {
        return Ok(());
    }
    if !is_changed && notation == document.notation {
        printed.push_str(&document.text);
        return Ok(());
    }
    if !printed.is_empty() && !printed.ends_with('\n') {
        printed.push('\n');
    }
    match notation {
        Notation::Json => {
            printed.push_str(&serde_json::to_string_pretty(&document.value)?);
            printed.push('\n');
        }
        Notation::Yaml => {
            let head = if document.notation == Notation::Yaml { manifest::head(&document.text) } else { String::new() };
            if document.number > 1 && !head.contains("---") {
                printed.push_str("---\n");
            }
            printed.push_str(&head);
            printed.push_str(&manifest::to_yaml(&document.value)?);
        }
    }
    Ok(())
}

/// The `StatefulSets` of a document: itself, or the items of a list.
fn objects(document: &mut Value) -> Vec<&mut Value> {
    if document.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List")) {
        let items = document.get_mut("items").and_then(Value::as_array_mut);
        items.into_iter().flatten().filter(|item| is_stateful_set(item)).collect()
    } else if is_stateful_set(document) {
        vec![document]
    } else {
        Vec::new()
    }
}

fn is_stateful_set(object: &Value) -> bool {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    text("kind") == "StatefulSet" && text("apiVersion").starts_with("apps/")
}

fn title(object: &Value) -> String {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("without a name");
    format!("StatefulSet {}", crate::set::error::named(name))
}

#[cfg(test)]
mod tests;
