//! An Event on a set: what pgset tells its user where he looks.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

use super::Owner;
use crate::names;

/// The longest note that the API server takes.
const NOTE_LIMIT: usize = 1024;

/// What is told, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// What the Event is named after.
    pub name: &'a str,
    /// Which process tells it: its pod's name.
    pub reporter: &'a str,
    /// What that was doing.
    pub action: &'static str,
    /// Why, of a fixed list.
    pub reason: &'static str,
    /// Whether the user has something to do about it.
    pub is_warning: bool,
    /// What, and what to do about it; no longer than [`cut`] leaves it.
    pub note: &'a str,
}

/// The Event, on the very set: without its UID it is not shown with it.
#[must_use]
pub fn event(set: &Owner, report: &Report<'_>, now: Timestamp) -> Event {
    let Report { name, reporter, action, reason, is_warning, note } = *report;
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: Some(set.namespace.clone()),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some("apps/v1".to_owned()),
            kind: Some("StatefulSet".to_owned()),
            name: Some(set.name.clone()),
            namespace: Some(set.namespace.clone()),
            uid: Some(set.uid.clone()),
            ..ObjectReference::default()
        }),
        event_time: Some(MicroTime(now)),
        type_: Some(if is_warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(reason.to_owned()),
        action: Some(action.to_owned()),
        note: Some(note.to_owned()),
        reporting_controller: Some(names::MANAGER.to_owned()),
        reporting_instance: Some(reporter.to_owned()),
        ..Event::default()
    }
}

/// A note, cut to the length that the API server takes.
#[must_use]
pub fn cut(mut note: String) -> String {
    if note.len() > NOTE_LIMIT {
        let end = (0..=NOTE_LIMIT - '…'.len_utf8()).rev().find(|&at| note.is_char_boundary(at)).unwrap_or(0);
        note.truncate(end);
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_to_what_the_api_server_takes() {
        let note = cut("ä".repeat(NOTE_LIMIT));
        assert!(note.len() <= NOTE_LIMIT && note.ends_with('…'));
        assert_eq!(cut("short".to_owned()), "short");
    }
}
