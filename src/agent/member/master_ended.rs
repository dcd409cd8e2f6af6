//! A master that its replicas hear no more: has its container ended? The kubelet says so long before the Lease runs out.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::time::{Instant, timeout};
use tracing::info;

use super::Member;
use super::look::Look;
use super::postgres::{Postgres, Role, Running};
use crate::agent::instance::{self, End};
use crate::election::Lease;
use crate::election::lease_record::HolderIdentity;
use crate::election::step::Seen;

/// How often its pod is looked at: a few times before its Lease has run out, and after that nobody looks.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// How long a look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// What a member asks about the master that it lost.
#[derive(Debug, Default)]
pub(super) struct MasterEnded {
    lives_since: Option<Instant>,
    look: Look<(HolderIdentity, String, Option<End>)>,
}

impl Member {
    /// A broken connection is a reason to look, and no more. Whose container starts again in a moment is waited for, unless commits wait for
    /// replicas: then one of them has all that was acknowledged.
    pub(super) async fn look_after_lost_master(&mut self, lease: &Lease) {
        if let Some((holder, word, Some(end))) = self.master_ended.look.seen().await {
            self.note_end_of_master(&holder, word, end).await;
        }
        // A master that can't reach the API server may lead on by the leave of this member's own earlier life, in a life of which the Lease
        // does not know. After a whole Lease that leave is over.
        let lives_since = *self.master_ended.lives_since.get_or_insert_with(Instant::now);
        let remembers_all = lives_since.elapsed() >= self.configuration().times.duration;
        let is_lost = matches!(self.postgres, Postgres::Running(Running { role: Role::Replica { .. }, .. }))
            && !self.status_handle.current().ready
            && matches!(lease, Lease::HeldByOther { .. })
            && self.configuration().fails_over
            && remembers_all;
        if !is_lost || !self.master_ended.look.is_due(LOOK_EVERY) {
            return;
        }
        let view = self.leadership.view();
        let Some((holder, word)) = view.seen().and_then(|seen| Some((seen.holder.clone()?, seen.instance.clone()?)))
        else {
            return;
        };
        let Some(holder) = HolderIdentity::parse(&holder) else { return };
        let namespace = self.configuration().namespace.clone();
        self.master_ended.look.begin(look(self.client.clone(), namespace, holder, word));
    }

    async fn note_end_of_master(&mut self, holder: &HolderIdentity, word: String, end: End) {
        let (view, holder) = (self.leadership.view(), holder.to_string());
        let is_he = |seen: &&Seen| seen.holder.as_ref() == Some(&holder) && seen.instance.as_ref() == Some(&word);
        let Some(seen) = view.seen().filter(is_he) else { return };
        if end == End::StartsAgain && seen.record.quorum.confirm == 0 {
            return;
        }
        info!(master = holder, "the kubelet says that the master's container has ended: its Lease is not waited for");
        self.leadership.holder_has_ended(holder, word).await;
    }
}

/// What the kubelet says of the holder's container, with the word that it was asked by.
async fn look(
    client: Client,
    namespace: String,
    holder: HolderIdentity,
    word: String,
) -> (HolderIdentity, String, Option<End>) {
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let found = timeout(LOOK_LIMIT, pods.get_opt(&holder.pod)).await;
    let pod = found.ok().and_then(Result::ok).flatten();
    let end = pod.and_then(|pod| instance::end(&pod, &holder.uid, &word));
    (holder, word, end)
}
