//! What the tests of the injection share: asking, applying, and what the API server does to an object that it stores.

#![allow(clippy::result_large_err)] // nobody waits for a test
#![allow(dead_code)] // each test file uses its part

use std::{fs, path::Path};

use pgset::{
    cli::inject::manifest,
    inject::{Denial, Outcome, Request, Settings, eject, inject},
};
use serde_json::{Map, Value, json};

pub const IMAGE: &str = "pgset.dev/pgset:0.2.0";

/// The one object of a file below `tests/golden`.
pub fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let documents = manifest::read(&fs::read_to_string(&path).unwrap()).unwrap();
    documents.into_iter().map(|it| it.value).find(|it| !it.is_null()).unwrap()
}

pub fn ask_with(image: &str, object: &Value, old: Option<&Value>) -> Outcome {
    inject(&Request { object, old, settings: &Settings { agent_image: image.to_owned() } })
}

pub fn ask(object: &Value, old: Option<&Value>) -> Outcome {
    ask_with(IMAGE, object, old)
}

pub fn applied(object: &Value, patch: &json_patch::Patch) -> Value {
    let mut object = object.clone();
    json_patch::patch(&mut object, patch).unwrap();
    object
}

/// The object as the API server goes on with it.
pub fn admitted_with(image: &str, object: &Value, old: Option<&Value>) -> Result<Value, Denial> {
    match ask_with(image, object, old) {
        Outcome::Untouched { .. } => Ok(object.clone()),
        Outcome::Patched { patch, .. } => Ok(applied(object, &patch)),
        Outcome::Denied { reason } => Err(reason),
    }
}

pub fn admitted(object: &Value, old: Option<&Value>) -> Value {
    admitted_with(IMAGE, object, old).unwrap()
}

pub fn denied(object: &Value, old: Option<&Value>) -> Denial {
    admitted_with(IMAGE, object, old).unwrap_err()
}

/// What is stored after `kubectl create` of a user's file.
pub fn stored(object: &Value) -> Value {
    defaulted(&admitted(&defaulted(object), None))
}

pub fn ejected(object: &Value) -> Value {
    applied(object, &eject(object))
}

/// The container of a name.
pub fn container<'a>(object: &'a mut Value, name: &str) -> &'a mut Value {
    let containers = object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut).unwrap();
    containers.iter_mut().find(|container| container["name"] == name).unwrap()
}

pub fn annotate(object: &mut Value, key: &str, value: &str) {
    object["metadata"]["annotations"][key] = json!(value);
}

pub fn remove_annotation(object: &mut Value, key: &str) {
    object["metadata"]["annotations"].as_object_mut().unwrap().shift_remove(key);
}

/// The defaults that the API server fills in, and the empty fields that it drops, as far as they touch what pgset writes.
pub fn defaulted(object: &Value) -> Value {
    let mut object = object.clone();
    default(&mut object["spec"], "replicas", json!(1));
    default(&mut object["spec"], "podManagementPolicy", json!("OrderedReady"));
    let pod = &mut object["spec"]["template"]["spec"];
    let account = ["serviceAccountName", "serviceAccount"].into_iter().find_map(|key| pod.get(key).cloned());
    if let Some(account) = account {
        pod["serviceAccountName"] = account.clone();
        pod["serviceAccount"] = account;
    }
    default(pod, "restartPolicy", json!("Always"));
    default(pod, "securityContext", json!({}));
    for list in ["initContainers", "containers"] {
        for container in items(pod, list) {
            default_container(container);
        }
    }
    for volume in items(pod, "volumes") {
        for kind in ["configMap", "secret", "projected", "downwardAPI"] {
            if let Some(source) = volume.get_mut(kind) {
                default(source, "defaultMode", json!(420));
            }
        }
    }
    for list in ["initContainers", "volumes"] {
        drop_empty(pod, list);
    }
    object
}

fn default_container(container: &mut Value) {
    default(container, "terminationMessagePath", json!("/dev/termination-log"));
    default(container, "terminationMessagePolicy", json!("File"));
    default(container, "imagePullPolicy", json!("Always"));
    default(container, "resources", json!({}));
    for variable in items(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            default(field, "apiVersion", json!("v1"));
        }
        if variable.get("value") == Some(&json!("")) {
            variable.as_object_mut().unwrap().shift_remove("value");
        }
    }
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) {
            default(probe, "successThreshold", json!(1));
            default(probe, "periodSeconds", json!(10));
            default(probe, "timeoutSeconds", json!(1));
            default(probe, "failureThreshold", json!(3));
            if let Some(get) = probe.get_mut("httpGet") {
                default(get, "scheme", json!("HTTP"));
            }
        }
    }
    for list in ["env", "volumeMounts", "command", "args"] {
        drop_empty(container, list);
    }
}

fn default(object: &mut Value, key: &str, value: Value) {
    let object = object.as_object_mut().unwrap();
    if object.get(key).is_none_or(Value::is_null) {
        object.insert(key.to_owned(), value);
    }
}

fn items<'a>(object: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
}

fn drop_empty(object: &mut Value, key: &str) {
    let is_empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    if object.get(key).is_some_and(is_empty) {
        object.as_object_mut().map(|object: &mut Map<String, Value>| object.shift_remove(key));
    }
}
