//! What tells this life of the container from all others: a random word in the file from which the kubelet takes a container's last message.
//! When the kubelet reports a container's end with that word, it is this container that has ended, whatever else a pod's status says.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tracing::info;

/// Where the kubelet reads it, unless the container names another file: then nothing is known of its end.
const MESSAGE_FILE: &str = "/dev/termination-log";
/// What stands before the word, for people who see it by `kubectl describe`.
const PREFIX: &str = "pgset instance ";

/// Writes this life's word, and returns it. Absent where the kubelet would not read it, or where the end of this process is not the end
/// of all others (`shareProcessNamespace`).
#[must_use]
pub fn write() -> Option<String> {
    if std::process::id() != 1 {
        return None;
    }
    let outcome = random().and_then(|word| write_to(Path::new(MESSAGE_FILE), &word).map(|()| word));
    outcome
        .inspect_err(|why| info!(%why, "the kubelet's word on this container's end will not be known to the others"))
        .ok()
}

/// A word that no other life has.
pub(super) fn random() -> io::Result<String> {
    let mut token = [0; 16];
    getrandom::fill(&mut token).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(token)))
}

/// Into a file that is there: one that is not there is not the kubelet's.
fn write_to(path: &Path, word: &str) -> io::Result<()> {
    OpenOptions::new().write(true).truncate(true).open(path)?.write_all(format!("{PREFIX}{word}").as_bytes())
}

/// What the kubelet says of a life of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has ended, and another one is about to begin.
    StartsAgain,
    /// It has ended, and no other one begins soon.
    Ended,
}

/// The kubelet's word on the life that wrote `word`, in this pod; absent if it says nothing of its end.
#[must_use]
pub fn end(pod: &Pod, uid: &str, word: &str) -> Option<End> {
    let status = pod.status.as_ref().filter(|_| pod.metadata.uid.as_deref() == Some(uid))?;
    let container = status.container_statuses.iter().flatten().find(|container| says(container, word))?;
    let is_over =
        pod.metadata.deletion_timestamp.is_some() || matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    let backs_off = || {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("CrashLoopBackOff"))
    };
    Some(if is_over || backs_off() { End::Ended } else { End::StartsAgain })
}

/// By this a container runtime says that a container is not there any more, and that it has not seen its end.
const LOST: i32 = 255;

/// What the kubelet writes itself of a container that it has lost does not say the word.
fn says(container: &ContainerStatus, word: &str) -> bool {
    let states = [&container.state, &container.last_state];
    let ended = states.into_iter().flatten().filter_map(|state| state.terminated.as_ref());
    ended
        .filter(|ended| ended.exit_code != LOST)
        .filter_map(|ended| ended.message.as_deref())
        .any(|message| message.strip_prefix(PREFIX) == Some(word))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(status: &Value, deleted: Option<&str>) -> Option<End> {
        let pod = json!({"metadata": {"uid": "u", "deletionTimestamp": deleted}, "status": status});
        end(&serde_json::from_value(pod).unwrap(), "u", "cafe")
    }

    fn container(state: &Value, last: &Value) -> Value {
        let image = json!({"name": "postgres", "image": "", "imageID": "", "ready": false, "restartCount": 0});
        let mut container = image;
        container["state"] = state.clone();
        container["lastState"] = last.clone();
        json!({"phase": "Running", "containerStatuses": [container]})
    }

    fn ended(message: &str) -> Value {
        json!({"terminated": {"exitCode": 137, "message": message}})
    }

    #[test]
    fn a_container_that_runs_has_not_ended_whatever_ended_before_it() {
        assert_eq!(told(&container(&json!({"running": {}}), &json!({})), None), None);
        assert_eq!(told(&container(&json!({"running": {}}), &ended("pgset instance beef")), None), None);
        assert_eq!(told(&container(&ended("pgset instance cafe1"), &json!({})), None), None, "another word");
        assert_eq!(told(&container(&ended("The container could not be located"), &json!({})), None), None);
    }

    #[test]
    fn a_life_that_has_ended_is_known_and_whether_another_one_begins_soon() {
        let this = || ended("pgset instance cafe");
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        assert_eq!(told(&container(&this(), &json!({})), None), Some(End::StartsAgain));
        assert_eq!(told(&container(&json!({"running": {}}), &this()), None), Some(End::StartsAgain));
        assert_eq!(told(&container(&waiting("ContainerCreating"), &this()), None), Some(End::StartsAgain));
        assert_eq!(told(&container(&waiting("CrashLoopBackOff"), &this()), None), Some(End::Ended));
        assert_eq!(told(&container(&this(), &json!({})), Some("2026-11-25T12:00:00Z")), Some(End::Ended));
        let mut failed = container(&this(), &json!({}));
        failed["phase"] = json!("Failed");
        assert_eq!(told(&failed, None), Some(End::Ended));
    }

    #[test]
    fn a_container_that_its_runtime_has_lost_may_run() {
        let lost = json!({"terminated": {"exitCode": 255, "reason": "Unknown", "message": "pgset instance cafe"}});
        assert_eq!(told(&container(&lost, &json!({})), None), None);
    }

    #[test]
    fn a_pod_that_was_made_anew_says_nothing_of_the_last_one() {
        let pod = json!({"metadata": {"uid": "other"}, "status": container(&ended("pgset instance cafe"), &json!({}))});
        assert_eq!(end(&serde_json::from_value(pod).unwrap(), "u", "cafe"), None);
    }

    #[test]
    fn the_word_is_written_over_what_stands_there_and_into_no_file_of_its_own() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("termination-log");
        assert!(write_to(&path, "cafe").is_err());
        std::fs::write(&path, "something longer than the word, from before").unwrap();
        write_to(&path, "cafe").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "pgset instance cafe");
    }
}
