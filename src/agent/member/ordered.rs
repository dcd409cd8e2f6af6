//! A set whose members are made one after the other (`podManagementPolicy: OrderedReady`): who waits for the data of a later one must not
//! keep it from being made.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::time::{Instant, timeout};
use tracing::info;

use super::Member;
use super::look::Look;
use crate::agent::slots::Members;
use crate::election::Lease;
use crate::names;

/// Whoever can lead does by then; only who can't shows itself as Ready without being it.
const NOBODY_LEADS_FOR: Duration = Duration::from_secs(5);
/// How often the later members' pods are looked for meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long that may take.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// What a member knows of later ones while nobody leads.
#[derive(Debug, Default)]
pub(super) struct Ordered {
    since: Option<Instant>,
    look: Look<Option<bool>>,
}

impl Member {
    /// While nobody leads, and a later member that may have what this one lacks has no pod, this one is shown as Ready: Kubernetes makes
    /// the next only then. It serves nobody: its label is off.
    pub(super) async fn make_way(&mut self, lease: &Lease) {
        let later = match (lease, self.set.borrow().as_ref()) {
            (Lease::Vacant { .. }, Some(set)) if set.is_ordered => self.later(&set.members),
            _ => Vec::new(),
        };
        if later.is_empty() {
            if self.ordered.since.is_some() {
                self.ordered = Ordered::default();
                self.status_handle.update(|status| status.makes_way = false);
            }
            return;
        }
        let since = *self.ordered.since.get_or_insert_with(Instant::now);
        if let Some(Some(is_missing)) = self.ordered.look.seen().await {
            self.show(is_missing, &later);
        }
        if since.elapsed() >= NOBODY_LEADS_FOR && self.ordered.look.is_due(LOOK_EVERY) {
            let namespace = self.configuration().namespace.clone();
            self.ordered.look.begin(is_one_missing(self.client.clone(), namespace, later));
        }
    }

    fn later(&self, members: &Members) -> Vec<String> {
        let view = self.leadership.view();
        view.seen().map(|seen| later(members, &self.configuration().me.pod, &seen.record.voters)).unwrap_or_default()
    }

    fn show(&self, is_missing: bool, later: &[String]) {
        if is_missing && !self.status_handle.current().makes_way {
            info!(?later, "nobody leads, and a later member has no pod: shown as Ready, so that it is made");
        }
        self.status_handle.update(|status| status.makes_way = is_missing);
    }
}

/// Those that are made after this member and may have what it lacks, the next one first.
fn later(members: &Members, me: &str, voters: &BTreeSet<String>) -> Vec<String> {
    let is_later =
        |pod: &String| names::ordinal(pod, &members.set) > names::ordinal(me, &members.set) && voters.contains(pod);
    members.others(me).filter(is_later).collect()
}

/// Absent where the API server does not say.
async fn is_one_missing(client: Client, namespace: String, pods: Vec<String>) -> Option<bool> {
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let looks = pods.iter().map(|pod| timeout(LOOK_LIMIT, api.get_metadata_opt(pod)));
    let found: Vec<bool> =
        join_all(looks).await.into_iter().filter_map(|look| Some(look.ok()?.ok()?.is_some())).collect();
    (found.len() == pods.len() || found.contains(&false)).then(|| found.contains(&false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_later_members_that_may_stand_are_waited_for() {
        let members = Members { set: "db".into(), first: 0, count: 4 };
        let voters: BTreeSet<String> = ["db-0", "db-1", "db-2", "db-9"].map(str::to_owned).into();
        assert_eq!(later(&members, "db-0", &voters), ["db-1", "db-2"]);
        assert_eq!(later(&members, "db-1", &voters), ["db-2"]);
        assert_eq!(later(&members, "db-2", &voters), [""; 0], "db-3 has no data yet, and db-9 is to have no pod");
    }
}
