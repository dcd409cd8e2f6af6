//! What a member refuses, told where people look: as an Event on the set. One that can't be written stands in the log alone.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::configuration::Configuration;
use super::kubernetes;
use crate::children::Owner;
use crate::children::event::{self, Report};
use crate::errors::with_causes;
use crate::names;

/// What the reporting member was about, in the Event's own words.
const ACTION: &str = "Serve";
/// How often an Event is tried: the controller makes the Role that allows it within a second or two of the set.
const TRIES: u32 = 6;
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(5);
/// How long one try may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Why an Event was written. A fixed list, so that people can alert on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The member makes or starts no database with what it found.
    DataRefused,
    /// The Secret lacks passwords.
    CredentialsIncomplete,
    /// Another process has the agent's port.
    PortTaken,
    /// The image runs as it did before the set was annotated.
    RunsAsBefore,
    /// Fewer replicas confirm commits than the user asked for.
    CommitsWait,
    /// Fewer replicas confirm commits than the user asked for, and by his choice commits don't wait for more.
    CommitsDoNotWait,
    /// A former master's data was rewound: what it had written on its own is not the set's.
    Rewound,
    /// A member's data is cloned anew.
    Reinitialized,
    /// An order to switch over is not followed.
    OrderRefused,
    /// Backups are asked for, and can't be made.
    BackupRefused,
    /// A base backup was not made.
    BackupFailed,
    /// A base backup is complete.
    BackupComplete,
    /// A trial restore failed.
    VerificationFailed,
    /// The WAL is not archived.
    ArchiveFailing,
    /// WAL was let go.
    ArchiveGap,
    /// What is in the archive is not this set's.
    ArchiveAlarm,
    /// A new set can't be made of the backups that it is to be made of.
    RestoreFailed,
    /// A recovery in place does not go on.
    RecoveryFailed,
    /// A moment is restored beside the set's data, and can be looked at.
    RecoveryReady,
    /// The set goes on from it.
    RecoveryAccepted,
}

impl Reason {
    /// The reason as it stands in the Event.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DataRefused => "DataRefused",
            Self::CredentialsIncomplete => "CredentialsIncomplete",
            Self::PortTaken => "PortTaken",
            Self::RunsAsBefore => "RunsAsBefore",
            Self::CommitsWait => "CommitsWait",
            Self::CommitsDoNotWait => "CommitsDoNotWait",
            Self::Rewound => "Rewound",
            Self::Reinitialized => "Reinitialized",
            Self::OrderRefused => names::ORDER_REFUSED,
            Self::BackupRefused => "BackupRefused",
            Self::BackupFailed => "BackupFailed",
            Self::BackupComplete => "BackupComplete",
            Self::VerificationFailed => "VerificationFailed",
            Self::ArchiveFailing => "ArchiveFailing",
            Self::ArchiveGap => "ArchiveGap",
            Self::ArchiveAlarm => "ArchiveAlarm",
            Self::RestoreFailed => "RestoreFailed",
            Self::RecoveryFailed => "RecoveryFailed",
            Self::RecoveryReady => "RecoveryReady",
            Self::RecoveryAccepted => "RecoveryAccepted",
        }
    }

    /// Whether somebody has something to do about it.
    const fn is_warning(self) -> bool {
        !matches!(self, Self::BackupComplete | Self::RecoveryReady | Self::RecoveryAccepted)
    }
}

/// Writes a member's Events, each of them once in the life of its container.
#[derive(Clone, Debug)]
pub struct Teller {
    namespace: String,
    set: String,
    pod: String,
    told: Arc<Mutex<HashSet<(Reason, String)>>>,
}

// === impl Teller ===

impl Teller {
    /// Of a member.
    #[must_use]
    pub fn new(configuration: &Configuration) -> Self {
        Self {
            namespace: configuration.namespace.clone(),
            set: configuration.set.clone(),
            pod: configuration.me.pod.clone(),
            told: Arc::default(),
        }
    }

    /// Tells it, in the background: nothing waits for an Event.
    pub fn tell(&self, reason: Reason, note: &str) {
        let note = event::cut(format!("{}: {note}", self.pod));
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert((reason, note.clone())) {
            tokio::spawn(self.clone().write(reason, note));
        }
    }

    async fn write(self, reason: Reason, note: String) {
        let client = match kubernetes::client(&self.namespace) {
            Ok(client) => client,
            Err(error) => return warn!(error = with_causes(&error), "failed to write an Event on the set"),
        };
        for _ in 0..TRIES {
            match timeout(LIMIT, self.try_to_write(&client, reason, &note)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => debug!(%error, reason = reason.as_str(), "the Event is not written, trying again"),
                Err(_) => debug!(reason = reason.as_str(), "no answer to the Event, trying again"),
            }
            sleep(PAUSE).await;
        }
        warn!(reason = reason.as_str(), "failed to write an Event on the set; what it says stands above");
    }

    async fn try_to_write(&self, client: &Client, reason: Reason, note: &str) -> kube::Result<()> {
        // An Event is shown with its object only if it names the UID.
        let sets: Api<StatefulSet> = Api::namespaced(client.clone(), &self.namespace);
        let uid = sets.get(&self.set).await?.metadata.uid;
        let events: Api<Event> = Api::namespaced(client.clone(), &self.namespace);
        events.create(&PostParams::default(), &self.event(reason, note, uid, Timestamp::now())).await.map(drop)
    }

    fn event(&self, reason: Reason, note: &str, uid: Option<String>, now: Timestamp) -> Event {
        let set = Owner { namespace: self.namespace.clone(), name: self.set.clone(), uid: uid.unwrap_or_default() };
        let (reporter, is_warning, reason) = (self.pod.as_str(), reason.is_warning(), reason.as_str());
        event::event(&set, &Report { name: reporter, reporter, action: ACTION, reason, is_warning, note }, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn teller() -> Teller {
        Teller { namespace: "shop".into(), set: "db".into(), pod: "db-0".into(), told: Arc::default() }
    }

    #[test]
    fn an_event_is_the_sets_own_and_says_which_member_tells_it() {
        let event = teller().event(Reason::DataRefused, "db-0: why", Some("uid".into()), Timestamp::UNIX_EPOCH);
        let about = event.regarding.unwrap();
        assert_eq!((about.kind.as_deref(), about.name.as_deref()), (Some("StatefulSet"), Some("db")));
        assert_eq!(about.uid.as_deref(), Some("uid"));
        assert_eq!(event.reporting_controller.as_deref(), Some("pgset"));
        assert_eq!(event.reporting_instance.as_deref(), Some("db-0"));
        assert_eq!(event.note.as_deref(), Some("db-0: why"));
    }
}
