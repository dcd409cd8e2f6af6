//! What the controller tells the user, as an Event on the set: a fixed reason and one sentence with the cure.

use crate::children::event::cut;

/// Why an Event was written. A fixed list, so that people can alert on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Objects were made for the set.
    Created,
    /// Objects were put right after they had been changed.
    Restored,
    /// Objects that the set no longer needs were removed.
    Removed,
    /// The role label of a member was set (contract `image`).
    RoleLabelled,
    /// A user's own Service follows a role, as its annotation asks.
    ServiceFollows,
    /// The set's annotations contradict something.
    InvalidSet,
    /// The set is annotated, but the webhook has not seen it.
    NotInjected,
    /// A Service of somebody else's has the name of one of ours and can't stand in for it.
    ServiceUnfit,
    /// A Service of the user's own sends clients to replicas as well.
    ServiceReachesReplicas,
    /// `pgset.dev/follow` has a value that means nothing.
    InvalidFollow,
    /// Somebody else's object has the name of one of ours, and can't stand in for it or is not kept right.
    NameTaken,
    /// There is no Service that gives the members names in the DNS, and pgset makes none of that name.
    NoGoverningService,
    /// The Secret with the passwords was gone from a set that runs already, and was made anew.
    CredentialsReplaced,
    /// Somebody else keeps changing an object back.
    Contended,
    /// The API server refused an object.
    Refused,
}

impl Reason {
    /// The reason as it stands in the Event.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::Restored => "Restored",
            Self::Removed => "Removed",
            Self::RoleLabelled => "RoleLabelled",
            Self::ServiceFollows => "ServiceFollows",
            Self::InvalidSet => "InvalidSet",
            Self::NotInjected => "NotInjected",
            Self::ServiceUnfit => "ServiceUnfit",
            Self::ServiceReachesReplicas => "ServiceReachesReplicas",
            Self::InvalidFollow => "InvalidFollow",
            Self::NameTaken => "NameTaken",
            Self::NoGoverningService => "NoGoverningService",
            Self::CredentialsReplaced => "CredentialsReplaced",
            Self::Contended => "Contended",
            Self::Refused => "Refused",
        }
    }

    /// Whether the user has something to do about it.
    #[must_use]
    pub const fn is_warning(self) -> bool {
        !matches!(self, Self::Created | Self::Restored | Self::Removed | Self::RoleLabelled | Self::ServiceFollows)
    }
}

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetEvent {
    /// Why.
    pub reason: Reason,
    /// What, and what to do about it.
    pub note: String,
}

impl SetEvent {
    /// An Event, cut to the length that the API server takes.
    #[must_use]
    pub fn new(reason: Reason, note: impl Into<String>) -> Self {
        Self { reason, note: cut(note.into()) }
    }
}
