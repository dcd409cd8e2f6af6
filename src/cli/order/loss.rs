//! What is given up where a person says so, as far as the Lease tells it: pure.

use std::time::Duration;

use crate::{
    cli::status::told::{bytes, seconds},
    election::{Lsn, lineage::Database, members::Seen},
};

/// What is known of a set that nobody leads.
#[derive(Clone, Debug)]
pub struct Loss {
    /// What it has reached, by the last word of its master.
    pub database: Database,
    /// How old that word is.
    pub age: Option<Duration>,
    /// How many replicas had to confirm commits.
    pub synchronous: u32,
    /// What the last master told of the others. Some of it may be old.
    pub seen: Vec<Seen>,
}

// === impl Loss ===

impl Loss {
    /// Of the members that are there, the one that had most.
    pub fn best(&self, is_there: impl Fn(&str) -> bool) -> Option<String> {
        let known = self.seen.iter().filter(|seen| is_there(&seen.pod)).filter(|seen| seen.flushed.is_some());
        known.max_by_key(|seen| seen.flushed).map(|seen| seen.pod.clone())
    }

    /// What is lost if this member leads, a sentence each.
    pub fn words(&self, target: &str) -> Vec<String> {
        let reached = self.database.reached.and_then(|reached| reached.stopped_at.max(reached.flushed));
        let flushed = self.seen.iter().find(|seen| seen.pod == target).and_then(|seen| seen.flushed);
        let ago = self.age.map(|age| format!(", {} ago", seconds(age))).unwrap_or_default();
        let mut words = vec![match (reached, flushed) {
            (Some(reached), Some(flushed)) => format!(
                "the last master had written up to {reached} by its last word{ago}, and {target} had {flushed} then: {} at the most \
                 of that is given up, and whatever was written since",
                bytes(missing(reached, flushed))
            ),
            (Some(reached), None) => format!(
                "the last master had written up to {reached} by its last word{ago}; how much of that {target} has is not known: \
                 all that it lacks is given up, and whatever was written since"
            ),
            (None, _) => format!("what the set has reached is not known: all that {target} lacks is given up"),
        }];
        let more: Vec<String> = self.seen.iter().filter(|seen| seen.flushed > flushed).map(at).collect();
        if !more.is_empty() {
            words.push(format!("more than {target} had {}: what only they have is given up as well", more.join(", ")));
        }
        if self.synchronous > 0 {
            words.push("commits were confirmed by replicas: those that are given up may be among them".to_owned());
        }
        words
    }
}

fn at(seen: &Seen) -> String {
    format!("{} ({})", seen.pod, seen.flushed.unwrap_or(Lsn(0)))
}

fn missing(Lsn(reached): Lsn, Lsn(has): Lsn) -> u64 {
    reached.saturating_sub(has)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::{SystemIdentifier, lineage::Reached};

    fn seen(pod: &str, flushed: u64) -> Seen {
        Seen { flushed: Some(Lsn(flushed)), ..Seen::absent(pod.to_owned()) }
    }

    fn loss(seen: Vec<Seen>) -> Loss {
        let reached = Reached { timeline: 1, begins: None, flushed: Some(Lsn(0x5000)), stopped_at: None };
        let database = Database { system: SystemIdentifier(7), reached: Some(reached) };
        Loss { database, age: Some(Duration::from_secs(35)), synchronous: 1, seen }
    }

    #[test]
    fn what_is_given_up_is_told_with_the_positions_and_with_who_has_more() {
        let words = loss(vec![seen("db-1", 0x3000), seen("db-2", 0x4000)]).words("db-1");
        assert!(
            words[0].contains("up to 0/5000")
                && words[0].contains("35 s ago")
                && words[0].contains("db-1 had 0/3000 then: 8.0 kB"),
            "{words:?}"
        );
        assert!(words[1].contains("db-2 (0/4000)"), "{words:?}");
        assert!(words[2].contains("confirmed"), "{words:?}");
    }

    #[test]
    fn what_is_not_known_is_said() {
        assert!(loss(vec![]).words("db-1")[0].contains("how much of that db-1 has is not known"));
    }

    #[test]
    fn of_those_that_are_there_the_one_that_had_most_is_the_best() {
        let loss = loss(vec![seen("db-1", 3), seen("db-2", 4), Seen::absent("db-3".to_owned())]);
        assert_eq!(loss.best(|_| true).as_deref(), Some("db-2"));
        assert_eq!(loss.best(|pod| pod != "db-2").as_deref(), Some("db-1"));
        assert_eq!(loss.best(|pod| pod == "db-3"), None, "what it has is not known");
    }
}
