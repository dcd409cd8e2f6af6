//! Which replication slots the master should have. Pure.

use super::sql::Slot;
use crate::names;

/// The members that the set should have, from the `StatefulSet` itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The set's name.
    pub set: String,
    /// `spec.ordinals.start`.
    pub first: u32,
    /// `spec.replicas`.
    pub count: u32,
}

/// One change of the slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A member has none yet.
    Create(String),
    /// PostgreSQL has given it up, with the WAL that it kept, and lets nobody use it again.
    Renew(String),
    /// Its member is gone: a slot that nobody reads would keep the master's WAL for ever.
    Drop(String),
}

impl Members {
    /// The pods, without this one.
    pub fn others<'a>(&'a self, me: &'a str) -> impl Iterator<Item = String> + 'a {
        (self.first..self.first.saturating_add(self.count))
            .map(|ordinal| format!("{}-{ordinal}", self.set))
            .filter(move |pod| pod != me)
    }
}

/// The changes that are due, new slots first. A slot in use stays until its member has left.
#[must_use]
pub fn changes(have: &[Slot], members: &Members, me: &str) -> Vec<Change> {
    if members.count == 0 {
        // The set pauses; its members come back and go on where they stopped.
        return Vec::new();
    }
    let wanted: Vec<String> = members.others(me).map(|pod| names::slot(&pod)).collect();
    let create = wanted.iter().filter(|name| !have.iter().any(|slot| slot.name == **name)).cloned().map(Change::Create);
    let renew = have
        .iter()
        .filter(|slot| slot.is_lost && !slot.active && wanted.contains(&slot.name))
        .map(|slot| Change::Renew(slot.name.clone()));
    let drop = have
        .iter()
        .filter(|slot| !slot.active && !wanted.contains(&slot.name))
        .map(|slot| Change::Drop(slot.name.clone()));
    create.chain(renew).chain(drop).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: u32) -> Members {
        Members { set: "my-db".into(), first: 3, count }
    }

    fn slot(name: &str, active: bool) -> Slot {
        Slot { name: name.into(), active, is_lost: false }
    }

    #[test]
    fn every_other_member_gets_a_slot() {
        assert_eq!(
            changes(&[], &members(3), "my-db-3"),
            [Change::Create("pgset_my_db_4".into()), Change::Create("pgset_my_db_5".into())]
        );
    }

    #[test]
    fn a_member_that_left_loses_its_slot_once_it_is_not_in_use() {
        let have = [slot("pgset_my_db_4", true), slot("pgset_my_db_5", true)];
        assert_eq!(changes(&have, &members(2), "my-db-3"), []);
        let have = [slot("pgset_my_db_4", true), slot("pgset_my_db_5", false)];
        assert_eq!(changes(&have, &members(2), "my-db-3"), [Change::Drop("pgset_my_db_5".into())]);
    }

    #[test]
    fn a_set_scaled_to_nothing_keeps_its_slots() {
        assert_eq!(changes(&[slot("pgset_my_db_4", false)], &members(0), "my-db-3"), []);
    }

    #[test]
    fn a_slot_that_postgresql_has_given_up_is_made_anew_for_a_member_and_dropped_for_a_stranger() {
        let lost = |name: &str, active| Slot { is_lost: true, ..slot(name, active) };
        let have = [lost("pgset_my_db_4", false), lost("pgset_my_db_5", true), lost("pgset_my_db_9", false)];
        assert_eq!(
            changes(&have, &members(3), "my-db-3"),
            [Change::Renew("pgset_my_db_4".into()), Change::Drop("pgset_my_db_9".into())]
        );
    }
}
