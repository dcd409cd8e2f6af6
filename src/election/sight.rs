//! What a member makes of the Lease as it has seen it: whose it is, and whether it may be taken. Pure: time is already judged.

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;

use super::lease_record::{HolderIdentity, LeaseRecord};
use super::lineage::Database;
use super::{Lease, Master};

/// What a member knows of the Lease, and what time has done to it.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// This member.
    pub me: &'a HolderIdentity,
    /// What it has read last; absent if nothing yet.
    pub lease_record: Option<&'a LeaseRecord>,
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
    /// The life of a container that the kubelet says has ended.
    pub ended: Option<&'a str>,
}

/// Whose the Lease is, as far as this member can tell.
#[must_use]
pub fn classify(sight: &Sight<'_>) -> Lease {
    let Sight { me, lease_record, holds, earlier, leave, is_reserved, is_silent, ended } = *sight;
    let Some(lease_record) = lease_record else {
        if holds {
            return Lease::Held { set: earlier };
        }
        // By the word of the master itself: the API server does not answer.
        return leave.flatten().map_or(Lease::Unknown, |master| Lease::HeldByOther { master: Some(master.clone()) });
    };
    if holds {
        return Lease::Held { set: lease_record.set };
    }
    let has_ended = ended.is_some() && lease_record.instance.as_deref() == ended;
    match lease_record.holder.as_deref() {
        None if is_reserved => Lease::Unknown,
        None => Lease::Vacant { set: lease_record.set },
        // This container's earlier life held it. All of its processes are gone with it.
        Some(holder) if holder == me.to_string() => Lease::Vacant { set: lease_record.set },
        Some(_) if (is_silent || has_ended) && leave.is_none() => Lease::Vacant { set: lease_record.set },
        Some(holder) => match HolderIdentity::parse(holder) {
            Some(candidate) if candidate.pod == me.pod => Lease::HeldByPreviousPod,
            _ => Lease::HeldByOther { master: lease_record.master.clone() },
        },
    }
}

/// Whether a holder whose write was refused has lost the Lease, as it stands now; `held` is how it wrote it last. An annotation by hand or
/// a Lease made anew is no loss of it. Another holder is, and so is another epoch: somebody has led meanwhile, and given it back.
#[must_use]
pub fn is_lost(me: &HolderIdentity, held: &LeaseObject, now: &LeaseObject) -> bool {
    let spec = |lease: &LeaseObject| lease.spec.clone().unwrap_or_default();
    let epoch = |lease: &LeaseObject| spec(lease).lease_transitions.unwrap_or(0);
    let is_the_same = held.metadata.uid == now.metadata.uid;
    match spec(now).holder_identity.filter(|holder| !holder.is_empty()) {
        Some(holder) if holder != me.to_string() => true,
        _ if is_the_same => epoch(held) != epoch(now),
        Some(_) => false,
        None => epoch(now) > 0,
    }
}

/// Whether a watch tells old news: a state of the Lease from before the one that was seen. One that hung may do so.
#[must_use]
pub fn is_older(told: &LeaseObject, seen: &LeaseObject) -> bool {
    // Kubernetes promises numbers that grow. Where they are none, nothing is known of their order.
    let number =
        |lease: &LeaseObject| lease.metadata.resource_version.as_deref().and_then(|text| text.parse::<u64>().ok());
    told.metadata.uid == seen.metadata.uid
        && matches!((number(told), number(seen)), (Some(told), Some(seen)) if told < seen)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::election::lease_record;

    fn lease(uid: &str, version: &str, holder: Option<&str>, epoch: i32) -> LeaseObject {
        let (uid, resource_version) = (Some(uid.to_owned()), Some(version.to_owned()));
        let holder_identity = holder.map(str::to_owned);
        LeaseObject {
            metadata: ObjectMeta { uid, resource_version, ..ObjectMeta::default() },
            spec: Some(LeaseSpec { holder_identity, lease_transitions: Some(epoch), ..LeaseSpec::default() }),
        }
    }

    #[test]
    fn a_lease_is_lost_to_another_holder_and_to_one_that_has_come_and_gone() {
        let me = HolderIdentity { pod: "db-0".into(), uid: "a".into() };
        let held = lease("u", "7", Some("db-0/a"), 3);
        for (now, lost) in [
            (lease("u", "9", Some("db-0/a"), 3), false),
            (lease("u", "9", Some("db-1/b"), 4), true),
            (lease("u", "9", Some("db-1/b"), 3), true),
            (lease("u", "9", None, 4), true),
            (lease("u", "9", None, 3), false),
            (lease("u", "9", Some("db-0/a"), 5), true),
            (lease("anew", "9", None, 0), false),
            (lease("anew", "9", Some("db-0/a"), 1), false),
            (lease("anew", "9", None, 1), true),
            (lease("anew", "9", Some("db-1/b"), 1), true),
        ] {
            assert_eq!(is_lost(&me, &held, &now), lost, "{now:?}");
        }
    }

    #[test]
    fn a_lease_is_free_when_the_life_that_holds_it_has_ended_and_not_when_another_one_has() {
        let me = HolderIdentity { pod: "db-1".into(), uid: "b".into() };
        let holder = |instance| {
            let lease = lease_record::by(lease("u", "7", Some("db-0/a"), 3), "db-0/a", instance);
            LeaseRecord::read(&lease, Duration::from_secs(6))
        };
        let sees = |lease_record: &LeaseRecord, ended, leave| {
            let silence = Sight {
                me: &me,
                lease_record: Some(lease_record),
                holds: false,
                earlier: None,
                leave,
                is_reserved: false,
                is_silent: false,
                ended,
            };
            matches!(classify(&silence), Lease::Vacant { .. })
        };
        assert!(!sees(&holder(Some("one")), None, None));
        assert!(sees(&holder(Some("one")), Some("one"), None));
        assert!(!sees(&holder(Some("two")), Some("one"), None), "it has begun again");
        assert!(!sees(&holder(None), Some("one"), None), "nothing would be told of its end");
        assert!(!sees(&holder(Some("one")), Some("one"), Some(None)), "it was promised not to stand");
    }

    #[test]
    fn who_writes_the_lease_says_which_life_it_is_or_that_nothing_is_known() {
        let old = lease_record::by(lease("u", "7", Some("db-0/a"), 3), "db-0/a", Some("one"));
        let instance = |lease: &LeaseObject| LeaseRecord::read(lease, Duration::from_secs(6)).instance;
        assert_eq!(instance(&old).as_deref(), Some("one"));
        assert_eq!(instance(&lease_record::by(old.clone(), "db-0/a", None)), None);
        assert_eq!(instance(&lease_record::by(lease("u", "8", None, 3), "db-0/a", Some("one"))), None);
    }

    #[test]
    fn old_news_is_of_the_same_lease_and_of_a_smaller_number() {
        let seen = lease("u", "100", None, 1);
        assert!(is_older(&lease("u", "99", None, 1), &seen));
        for news in [
            lease("u", "100", None, 1),
            lease("u", "101", None, 1),
            lease("anew", "3", None, 0),
            lease("u", "x", None, 1),
        ] {
            assert!(!is_older(&news, &seen), "{news:?}");
        }
    }
}
