//! Whether a master may go on from a database that was restored beside its own, by the order of the set's owner. It is the one way by which a member
//! with less leads. Pure.

use super::lineage::{Database, Reached};

/// Why it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is another database.
    #[error("what was recovered is another database than the set's")]
    OtherDatabase,
    /// It was not stopped cleanly on a timeline of its own.
    #[error("what was recovered was not stopped cleanly on a timeline of its own")]
    NotWhole,
    /// The set has used the number of its timeline, or a later one, meanwhile: two histories of one number can't be told apart.
    #[error("the set went on to timeline {reached} meanwhile, and what was recovered is on {found}: order it again")]
    OldTimeline {
        /// Its own.
        found: u32,
        /// The set's.
        reached: u32,
    },
}

/// What the Lease is to say of a set that goes on from it: that its master has stopped there. From then on nobody leads who has not all of that, and
/// what was written beyond the moment that was recovered counts for nothing.
pub fn goes_on_from(recovered: &Database, set: &Database) -> Result<Database, Unfit> {
    if recovered.system != set.system {
        return Err(Unfit::OtherDatabase);
    }
    let Some(Reached { timeline, begins: Some(begins), stopped_at: Some(stopped_at), .. }) = recovered.reached else {
        return Err(Unfit::NotWhole);
    };
    let reached = set.reached.map_or(u32::MAX, |reached| reached.timeline);
    if timeline <= reached {
        return Err(Unfit::OldTimeline { found: timeline, reached });
    }
    // A member that is further than where its timeline begins might lead while nothing is known to be written since.
    if stopped_at <= begins {
        return Err(Unfit::NotWhole);
    }
    let reached = Reached { timeline, begins: Some(begins), flushed: Some(stopped_at), stopped_at: Some(stopped_at) };
    Ok(Database { system: recovered.system, reached: Some(reached) })
}

/// Whether the Lease says that the set goes on from it: who has it beside its data puts it in its place, and nobody has led since.
#[must_use]
pub fn is_the_sets(recovered: &Database, set: &Database) -> bool {
    let (Some(here), Some(there)) = (recovered.reached, set.reached) else { return false };
    recovered.system == set.system
        && (here.timeline, here.begins) == (there.timeline, there.begins)
        && here.stopped_at.is_some()
        && here.stopped_at == there.flushed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::lineage::{Branch, Lineage};
    use crate::election::vote::{Answer, Position, Record, Verdict, tally};
    use crate::election::{Lsn, SystemIdentifier};

    fn database(timeline: u32, begins: u64, stopped_at: Option<u64>) -> Database {
        let stopped_at = stopped_at.map(Lsn);
        let reached = Reached { timeline, begins: Some(Lsn(begins)), flushed: stopped_at, stopped_at };
        Database { system: SystemIdentifier(1), reached: Some(reached) }
    }

    /// The set is on timeline 2, at 900.
    fn set() -> Database {
        let reached = Reached { timeline: 2, begins: Some(Lsn(300)), flushed: Some(Lsn(900)), stopped_at: None };
        Database { system: SystemIdentifier(1), reached: Some(reached) }
    }

    #[test]
    fn a_master_goes_on_from_a_newer_timeline_only_that_was_stopped_cleanly() {
        let recovered = database(3, 500, Some(600));
        assert_eq!(goes_on_from(&recovered, &set()), Ok(recovered));
        let old = Unfit::OldTimeline { found: 2, reached: 2 };
        assert_eq!(goes_on_from(&database(2, 500, Some(600)), &set()), Err(old));
        assert_eq!(goes_on_from(&database(3, 500, None), &set()), Err(Unfit::NotWhole));
        assert_eq!(goes_on_from(&database(3, 500, Some(500)), &set()), Err(Unfit::NotWhole));
        let other = Database { system: SystemIdentifier(2), ..recovered };
        assert_eq!(goes_on_from(&other, &set()), Err(Unfit::OtherDatabase));
        let of_0_1_0 = Database { reached: None, ..set() };
        assert!(goes_on_from(&recovered, &of_0_1_0).is_err(), "nothing is known of its timeline");
    }

    #[test]
    fn from_the_lease_on_nobody_leads_with_what_was_given_up_and_who_has_it_does() {
        let now = goes_on_from(&database(3, 500, Some(600)), &set()).unwrap();
        let reached = now.reached.unwrap();
        // Replicas of the old timeline, behind, at and beyond the moment, whatever commits wait for.
        for at in [400, 500, 550, 600, 900] {
            let position = Position { timeline: 2, at: Lsn(at) };
            for confirm in [0, 1] {
                let mut record = Record { voters: ["db-1".to_owned()].into(), ..Record::default() };
                record.quorum.confirm = confirm;
                record.quorum.names = ["db-1".to_owned()].into();
                let verdict =
                    tally("db-1", position, &now, &record, u64::MAX, &std::iter::empty::<(String, Answer)>().collect());
                assert_eq!(verdict, Verdict::OtherHistory, "at {at}");
            }
        }
        let branches = vec![Branch { timeline: 1, left_at: Lsn(300) }, Branch { timeline: 2, left_at: Lsn(500) }];
        let recovered = Lineage { timeline: 3, stopped_at: Some(Lsn(600)), branches, unrewindable: None };
        assert_eq!(recovered.continues(&reached), Ok(()));
        let branches = vec![Branch { timeline: 1, left_at: Lsn(300) }];
        let old = Lineage { timeline: 2, stopped_at: Some(Lsn(900)), branches, unrewindable: None };
        assert!(old.continues(&reached).is_err(), "nor does its own old data");
    }

    #[test]
    fn what_the_lease_says_is_known_again_also_when_it_was_taken_since() {
        let recovered = database(3, 500, Some(600));
        let now = goes_on_from(&recovered, &set()).unwrap();
        assert!(is_the_sets(&recovered, &now) && !is_the_sets(&recovered, &set()));
        let taken = Database { reached: now.reached.map(|it| Reached { stopped_at: None, ..it }), ..now };
        assert!(is_the_sets(&recovered, &taken));
        let written = Reached { flushed: Some(Lsn(700)), ..taken.reached.unwrap() };
        assert!(!is_the_sets(&recovered, &Database { reached: Some(written), ..now }), "somebody has written since");
        assert!(!is_the_sets(&database(3, 501, Some(600)), &now), "another recovery");
    }
}
