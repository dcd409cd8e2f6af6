//! What a person can do where a set waits by what its Lease remembers.

use super::{Lease, Observation, Waiting};

/// The command by which a set forgets what it was, and what comes of it; absent where that is no way out, or where a master leads.
/// Only the first member may bring the set another database, so that only it is told so.
#[must_use]
pub fn way_out(waiting: &Waiting, observation: &Observation, namespace: &str, lease: &str) -> Option<String> {
    if !matches!(observation.lease, Lease::Vacant { set: Some(_) } | Lease::Held { set: Some(_) }) {
        return None;
    }
    let command = format!("kubectl --namespace {namespace} delete lease {lease}");
    match waiting {
        Waiting::DataLost => Some(format!(
            "to begin anew with an empty database, where the old one is given up and no other member has a copy: {command}"
        )),
        Waiting::OtherDatabase { .. } if observation.first => {
            Some(format!("or, if this is what the set is to be from now on: {command}"))
        }
        Waiting::Diverged(_) if observation.first => Some(format!(
            "if the member with the later data is lost for good and the set is to go on with this: {command} (members that are \
             further then have to be cloned: remove their data)"
        )),
        Waiting::Diverged(_) => Some("start the member that led last".to_owned()),
        _ => None,
    }
}
