//! The role label on the member's own pod: it is in a Service exactly while it can do that Service's work.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::election::claim::Candidate;
use crate::election::{Action, Waiting};
use crate::set::RoleLabel;

/// How soon a label that could not be written is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How long one try may take.
const LIMIT: Duration = Duration::from_secs(3);

/// What the pod can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Writes.
    Master,
    /// Reads: it streams from the leader's timeline.
    Replica,
    /// Neither, yet or any more.
    None,
}

/// Whether a label that the pod may still have, from an earlier life of the container or from the template, is wrong for a member that is
/// about to do this. Nothing is known before the Lease is read: a master whose container starts anew keeps its label.
#[must_use]
pub fn is_stale(action: &Action) -> bool {
    match action {
        Action::Stay
        | Action::Wait(Waiting::ForLease)
        | Action::TakeLease(_)
        | Action::Promote(_)
        | Action::Bootstrap
        | Action::StartMaster
        | Action::Follow(_)
        | Action::AbandonClone => false,
        Action::Wait(_)
        | Action::ReleaseLease(_)
        | Action::NameDatabase(_)
        | Action::Clone(_)
        | Action::CloneAnew(_)
        | Action::Rewind(_)
        | Action::StartReplica(_)
        | Action::StartStandby
        | Action::Promise(_)
        | Action::AskForVotes(_)
        | Action::Fence => true,
    }
}

/// The main loop's end.
#[derive(Debug)]
pub struct Handle {
    wanted: watch::Sender<Option<Role>>,
    written: watch::Receiver<Option<Role>>,
}

impl Handle {
    /// Wants a role; the task writes it as soon as it can.
    pub fn set(&self, role: Role) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != Some(role);
            *wanted = Some(role);
            changed
        });
    }

    /// Wants a role and waits a while until it is written.
    pub async fn set_and_wait(&mut self, role: Role) {
        self.set(role);
        let _ = timeout(LIMIT, self.written.wait_for(|written| *written == Some(role))).await;
    }
}

/// Starts the task.
pub fn start(
    client: Client,
    namespace: &str,
    me: Candidate,
    label: RoleLabel,
) -> (Handle, tokio::task::JoinHandle<()>) {
    let (wanted, wishes) = watch::channel(None);
    let (done, written) = watch::channel(None);
    let task = tokio::spawn(keep(Api::namespaced(client, namespace), me, label, wishes, done));
    (Handle { wanted, written }, task)
}

async fn keep(
    api: Api<Pod>,
    me: Candidate,
    label: RoleLabel,
    mut wishes: watch::Receiver<Option<Role>>,
    done: watch::Sender<Option<Role>>,
) {
    while wishes.changed().await.is_ok() {
        loop {
            let Some(role) = *wishes.borrow_and_update() else { break };
            if *done.borrow() == Some(role) {
                break;
            }
            match timeout(LIMIT, write(&api, &me, &label, role)).await {
                Ok(Ok(())) => {
                    info!(?role, label = %label.key, "the role label is written");
                    done.send_replace(Some(role));
                    break;
                }
                Ok(Err(error)) => warn!(%error, ?role, "failed to write the role label on this pod, trying again"),
                Err(_) => warn!(?role, "no answer to the role label on this pod, trying again"),
            }
            sleep(RETRY).await;
        }
    }
}

/// How often it is tried to take the label off: two minutes, in which the controller has made the Role that allows it.
const REMOVALS: u32 = 60;

/// Takes the label off a pod that is no member, as well as it can.
pub async fn remove(client: Client, namespace: &str, me: &Candidate, label: &RoleLabel) {
    let api = Api::namespaced(client, namespace);
    for _ in 0..REMOVALS {
        match timeout(LIMIT, write(&api, me, label, Role::None)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => debug!(%error, "failed to take the role label off this pod, trying again"),
            Err(_) => debug!("no answer to taking the role label off this pod, trying again"),
        }
        sleep(RETRY * 4).await;
    }
    warn!(label = %label.key, "failed to take the role label off this pod");
}

/// The UID goes along: a pod of the same name made anew is not this one.
async fn write(api: &Api<Pod>, me: &Candidate, label: &RoleLabel, role: Role) -> kube::Result<()> {
    let value = match role {
        Role::Master => Some(&label.master),
        Role::Replica => Some(&label.replica),
        Role::None => None,
    };
    let patch = json!({"metadata": {"uid": me.uid, "labels": {&label.key: value}}});
    api.patch(&me.pod, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::claim::Taking;

    #[test]
    fn a_member_that_waits_is_nobodys_master() {
        assert!(is_stale(&Action::Wait(Waiting::HalfRewound)));
        assert!(is_stale(&Action::Wait(Waiting::ForMaster)));
        assert!(is_stale(&Action::ReleaseLease(Waiting::DataLost)));
        assert!(is_stale(&Action::Fence));
    }

    #[test]
    fn a_master_that_starts_anew_keeps_its_label() {
        for action in
            [Action::Wait(Waiting::ForLease), Action::TakeLease(Taking::default()), Action::StartMaster, Action::Stay]
        {
            assert!(!is_stale(&action), "{action:?}");
        }
    }
}
