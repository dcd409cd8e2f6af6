//! `AdmissionReview`, in and out.
//!
//! Own types instead of kube's: objects stay raw JSON, so that fields unknown to this build survive; the patch leaves as
//! base64 rather than as an array of numbers (kube-rs#1781); and the answer does not tie us to kube's JSON Patch types.

use std::{borrow::Cow, collections::BTreeMap};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::inject::Outcome;

/// The version of reviews that is spoken.
const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// The longest warning that Kubernetes promises to show in full.
const WARNING_LENGTH: usize = 120;
/// The most warnings in one answer: the API server cuts off at 4 KiB in total.
const WARNINGS: usize = 20;

/// A review as the API server sends it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Review<'a> {
    api_version: Cow<'a, str>,
    kind: Cow<'a, str>,
    request: Option<Request>,
}

/// The request in a review: what pgset needs of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    /// Names the request; repeated in the answer and in the log.
    pub uid: String,
    kind: Kind,
    #[serde(default)]
    sub_resource: String,
    /// Empty where the API server is to make the name.
    #[serde(default)]
    pub name: String,
    /// The object's namespace.
    #[serde(default)]
    pub namespace: String,
    operation: String,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    old_object: Value,
}

#[derive(Debug, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the API's names")]
struct Kind {
    group: String,
    version: String,
    kind: String,
}

/// The `StatefulSet` of a review, and what it was before.
#[derive(Clone, Copy, Debug)]
pub struct StatefulSets<'a> {
    /// As it is to be stored.
    pub object: &'a Value,
    /// As it is stored; there is none at CREATE.
    pub old: Option<&'a Value>,
}

// === impl Review ===

impl Review<'_> {
    /// The request, if this is a review that can be answered.
    pub(super) fn into_request(self) -> Result<Request, String> {
        if self.api_version != API_VERSION || self.kind != KIND {
            // Both are cut: they are the sender's text.
            return Err(format!("it is a {:.40} of {:.40}", self.kind, self.api_version));
        }
        self.request.ok_or_else(|| "it has no request".to_owned())
    }
}

// === impl Request ===

impl Request {
    /// The operation as a word for logs; anything unheard of is `other`.
    pub(super) fn operation(&self) -> &'static str {
        match self.operation.as_str() {
            "CREATE" => "create",
            "UPDATE" => "update",
            "DELETE" => "delete",
            "CONNECT" => "connect",
            _ => "other",
        }
    }

    /// The `StatefulSet` that is to be decided on; `None` for anything else that a foreign configuration may send us.
    pub(super) fn stateful_sets(&self) -> Option<StatefulSets<'_>> {
        let Kind { group, version, kind } = &self.kind;
        if (group.as_str(), version.as_str(), kind.as_str()) != ("apps", "v1", "StatefulSet")
            || !self.sub_resource.is_empty()
            || !self.object.is_object()
        {
            return None;
        }
        let old = match self.operation.as_str() {
            "CREATE" => None,
            "UPDATE" => Some(&self.old_object).filter(|old| old.is_object()),
            _ => return None,
        };
        Some(StatefulSets { object: &self.object, old })
    }
}

// === the answer ===

/// A review as it is sent back.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: BTreeMap<&'static str, &'a str>,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the API's names")]
struct Status<'a> {
    status: &'static str,
    message: String,
    reason: &'static str,
    details: Details<'a>,
    code: u16,
}

#[derive(Debug, Serialize)]
struct Details<'a> {
    name: &'a str,
    group: &'static str,
    kind: &'static str,
}

impl<'a> Answer<'a> {
    /// The answer to a request.
    pub(super) fn new(request: &'a Request, outcome: &'a Outcome) -> Result<Self, serde_json::Error> {
        let mut response = Response {
            uid: &request.uid,
            allowed: true,
            status: None,
            patch_type: None,
            patch: None,
            warnings: Vec::new(),
            audit_annotations: BTreeMap::new(),
        };
        match outcome {
            // Not ours, or nothing to do or to say.
            Outcome::Untouched { warnings } if warnings.is_empty() => {
                return Ok(Self { api_version: API_VERSION, kind: KIND, response });
            }
            Outcome::Untouched { warnings } => response.warnings = presentable(warnings),
            Outcome::Patched { patch, warnings, audit } => {
                response.patch_type = Some("JSONPatch");
                response.patch = Some(STANDARD.encode(serde_json::to_vec(patch)?));
                response.warnings = presentable(warnings);
                response.audit_annotations = audit.iter().map(|(key, value)| (*key, value.as_str())).collect();
            }
            Outcome::Denied { reason } => {
                response.allowed = false;
                response.audit_annotations.insert("reason", reason.code());
                // Not `Invalid` (422): kubectl then prints the causes in the details, and not the message.
                response.status = Some(Status {
                    status: "Failure",
                    message: reason.to_string(),
                    reason: "Forbidden",
                    details: Details { name: &request.name, group: "apps", kind: "StatefulSet" },
                    code: 403,
                });
            }
        }
        // For whoever reads the audit log: the API server puts the webhook's name before each key.
        response.audit_annotations.insert("decision", outcome.word());
        // The audit log has names of its own for requests: by this one it leads to the line in our log.
        response.audit_annotations.insert("request", &request.uid);
        Ok(Self { api_version: API_VERSION, kind: KIND, response })
    }
}

/// Warnings as the API server passes them on: one with a control character is dropped without a word, one of more than 120
/// characters may be cut.
fn presentable(warnings: &[String]) -> Vec<String> {
    warnings.iter().flat_map(|warning| warning.lines()).flat_map(broken_into_lines).take(WARNINGS).collect()
}

/// Breaks a text at spaces, at most [`WARNING_LENGTH`] characters a piece.
fn broken_into_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut length = 0;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        let mut word: Vec<char> = word.chars().collect();
        while !word.is_empty() {
            let gap = usize::from(length > 0);
            if length > 0 && length + gap + word.len() > WARNING_LENGTH {
                lines.push(std::mem::take(&mut line));
                length = 0;
                continue;
            }
            if gap == 1 {
                line.push(' ');
            }
            let rest = word.split_off(word.len().min(WARNING_LENGTH));
            length += gap + word.len();
            line.extend(word);
            word = rest;
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_split_cleaned_and_bounded() {
        let long = "word ".repeat(60);
        let warnings = presentable(&["one\ntwo\r\n\tthree\u{7}four".to_owned(), long, "x".repeat(300)]);
        assert_eq!(warnings[..3], ["one", "two", "three four"]);
        assert!(warnings.iter().all(|w| w.chars().count() <= WARNING_LENGTH && !w.chars().any(char::is_control)));
        assert_eq!(warnings.iter().filter(|w| w.contains("word")).map(|w| w.split(' ').count()).sum::<usize>(), 60);
        assert_eq!(warnings.iter().filter(|w| w.contains('x')).map(String::len).sum::<usize>(), 300);
        assert_eq!(presentable(&["\n".repeat(99)]), Vec::<String>::new());
        assert_eq!(presentable(&["a\n".repeat(99)]).len(), WARNINGS);
    }

    #[test]
    fn the_patch_is_a_base64_string_and_the_uid_comes_back() {
        let request: Request = serde_json::from_value(serde_json::json!({
            "uid": "u", "kind": {"group": "apps", "version": "v1", "kind": "StatefulSet"}, "operation": "CREATE",
            "object": {}, "oldObject": null
        }))
        .unwrap();
        let outcome = Outcome::Patched {
            patch: json_patch::Patch(Vec::new()),
            warnings: Vec::new(),
            audit: vec![("revision", "1".to_owned())],
        };
        let answer = serde_json::to_value(Answer::new(&request, &outcome).unwrap()).unwrap();
        assert_eq!(
            answer,
            serde_json::json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {
                "uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": "W10=",
                "auditAnnotations": {"decision": "injected", "request": "u", "revision": "1"}}})
        );
    }
}
