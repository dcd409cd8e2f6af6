//! What a member makes of the Lease as it has seen it: whose it is, and whether it may be taken. Pure: time is already judged.

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;

use super::claim::{Candidate, Claim};
use super::lineage::Database;
use super::{Lease, Master};

/// What a member knows of the Lease, and what time has done to it.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// This member.
    pub me: &'a Candidate,
    /// What it has read last; absent if nothing yet.
    pub claim: Option<&'a Claim>,
    /// It holds the Lease by its own account, and its fence has not struck.
    pub holds: bool,
    /// The database of a leadership that an earlier life of its container had.
    pub earlier: Option<Database>,
    /// What a master was promised, while that lasts: as the master described itself.
    pub leave: Option<Option<&'a Master>>,
    /// The Lease was deleted and made anew, and is left to whoever may still hold the old one.
    pub is_reserved: bool,
    /// Its holder has been silent for the whole duration, as seen from here, and a look at the API server itself said the same.
    pub is_silent: bool,
}

/// Whose the Lease is, as far as this member can tell.
#[must_use]
pub fn judge(sight: &Sight<'_>) -> Lease {
    let Sight { me, claim, holds, earlier, leave, is_reserved, is_silent } = *sight;
    let Some(claim) = claim else {
        if holds {
            return Lease::Mine { set: earlier };
        }
        // By the word of the master itself: the API server does not answer.
        return leave.flatten().map_or(Lease::Unknown, |master| Lease::Other { master: Some(master.clone()) });
    };
    if holds {
        return Lease::Mine { set: claim.set };
    }
    match claim.holder.as_deref() {
        None if is_reserved => Lease::Unknown,
        None => Lease::Vacant { set: claim.set },
        // This container's earlier life held it. All of its processes are gone with it.
        Some(holder) if holder == me.to_string() => Lease::Vacant { set: claim.set },
        Some(_) if is_silent && leave.is_none() => Lease::Vacant { set: claim.set },
        Some(holder) => match Candidate::parse(holder) {
            Some(candidate) if candidate.pod == me.pod => Lease::Predecessor,
            _ => Lease::Other { master: claim.master.clone() },
        },
    }
}

/// Whether a holder whose write was refused has lost the Lease, as it stands now. An annotation by hand or a Lease made anew is no loss of
/// it; another holder is.
#[must_use]
pub fn is_lost(me: &Candidate, now: &LeaseObject) -> bool {
    let holder = now.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty());
    holder.is_some_and(|holder| holder != me.to_string())
}
