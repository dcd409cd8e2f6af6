//! The role label on the member's own pod: it is in a Service exactly while it can do that Service's work.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::election::lease_record::HolderIdentity;
use crate::set::RoleLabel;

/// How soon a label that could not be written is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How long a replica that no longer streams keeps its label, if it can still be read: as long as its readiness probe takes to say so. At a
/// change of master it streams again before that, and the first change that kube-proxy sees is where the new master is. On a second one,
/// within a second, it would act a second later.
const GRACE: Duration = Duration::from_secs(2);
/// How long one try may take.
const LIMIT: Duration = Duration::from_secs(3);

/// What the pod can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishedRole {
    /// Writes.
    Master,
    /// Reads: it streams from the leader's timeline.
    Replica,
    /// Neither, yet or any more.
    None,
}

/// What the main loop wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    role: PublishedRole,
    not_before: Instant,
}

/// The main loop's end.
#[derive(Debug)]
pub struct Handle {
    wanted: watch::Sender<Option<Wish>>,
    written: watch::Receiver<Option<PublishedRole>>,
}

impl Handle {
    /// Wants a role; the task writes it as soon as it can.
    pub fn set(&self, role: PublishedRole) {
        self.want(Wish { role, not_before: Instant::now() });
    }

    /// Wants no role after a while, unless another one is wanted by then.
    pub fn take_off_soon(&self) {
        self.want(Wish { role: PublishedRole::None, not_before: Instant::now() + GRACE });
    }

    /// What was wanted before is not put off by wanting it again.
    fn want(&self, wish: Wish) {
        self.wanted.send_if_modified(|wanted| {
            let stands = wanted.is_some_and(|before| before.role == wish.role && before.not_before <= wish.not_before);
            if !stands {
                *wanted = Some(wish);
            }
            !stands
        });
    }

    /// Wants a role and waits a while until it is written.
    pub async fn set_and_wait(&mut self, role: PublishedRole) {
        self.set(role);
        let _ = timeout(LIMIT, self.written.wait_for(|written| *written == Some(role))).await;
    }
}

/// Starts the task.
pub fn start(
    client: Client,
    namespace: &str,
    me: HolderIdentity,
    label: RoleLabel,
) -> (Handle, tokio::task::JoinHandle<()>) {
    let (wanted, wishes) = watch::channel(None);
    let (done, written) = watch::channel(None);
    let task = tokio::spawn(keep(Api::namespaced(client, namespace), me, label, wishes, done));
    (Handle { wanted, written }, task)
}

async fn keep(
    api: Api<Pod>,
    me: HolderIdentity,
    label: RoleLabel,
    mut wishes: watch::Receiver<Option<Wish>>,
    done: watch::Sender<Option<PublishedRole>>,
) {
    while wishes.changed().await.is_ok() {
        loop {
            let Some(Wish { role, not_before }) = *wishes.borrow_and_update() else { break };
            if *done.borrow() == Some(role) {
                break;
            }
            tokio::select! {
                changed = wishes.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = sleep_until(not_before) => {}
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
pub async fn remove(client: Client, namespace: &str, me: &HolderIdentity, label: &RoleLabel) {
    let api = Api::namespaced(client, namespace);
    for _ in 0..REMOVALS {
        match timeout(LIMIT, write(&api, me, label, PublishedRole::None)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => debug!(%error, "failed to take the role label off this pod, trying again"),
            Err(_) => debug!("no answer to taking the role label off this pod, trying again"),
        }
        sleep(RETRY * 4).await;
    }
    warn!(label = %label.key, "failed to take the role label off this pod");
}

/// The UID goes along: a pod of the same name made anew is not this one.
async fn write(api: &Api<Pod>, me: &HolderIdentity, label: &RoleLabel, role: PublishedRole) -> kube::Result<()> {
    let value = match role {
        PublishedRole::Master => Some(&label.master),
        PublishedRole::Replica => Some(&label.replica),
        PublishedRole::None => None,
    };
    let patch = json!({"metadata": {"uid": me.uid, "labels": {&label.key: value}}});
    api.patch(&me.pod, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> Handle {
        Handle { wanted: watch::channel(None).0, written: watch::channel(None).1 }
    }

    fn wanted(handle: &Handle) -> (PublishedRole, bool) {
        let wish = handle.wanted.borrow().unwrap();
        (wish.role, wish.not_before > Instant::now())
    }

    #[test]
    fn a_label_that_goes_soon_goes_no_later_by_being_asked_for_again_and_at_once_by_being_asked_for_at_once() {
        let handle = handle();
        handle.set(PublishedRole::Replica);
        handle.take_off_soon();
        let first = *handle.wanted.borrow();
        handle.take_off_soon();
        assert_eq!((*handle.wanted.borrow(), wanted(&handle)), (first, (PublishedRole::None, true)));
        handle.set(PublishedRole::None);
        assert_eq!(wanted(&handle), (PublishedRole::None, false));
        handle.take_off_soon();
        assert_eq!(wanted(&handle), (PublishedRole::None, false), "it is not put off");
        handle.set(PublishedRole::Master);
        assert_eq!(wanted(&handle), (PublishedRole::Master, false));
    }
}
