//! Which replicas confirm a commit, and what is said while they are too few. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::slots::{self, Change, Members};
use super::sql::Slot;
use crate::election::vote::Quorum;
use crate::names;

/// PostgreSQL's setting.
pub const SETTING: &str = "synchronous_standby_names";

/// A replica that restarts is back within seconds; commits that have waited for longer are worth an Event.
const PATIENCE: Duration = Duration::from_secs(30);

// === impl Members ===

impl Members {
    /// The value of `synchronous_standby_names` for so many confirming replicas. A set with too few replicas names those that it would
    /// have next: its commits wait for them, as an empty list would not.
    #[must_use]
    pub fn synchronous_names(&self, me: &str, confirmations: u32) -> String {
        if confirmations == 0 {
            return String::new();
        }
        let enough = Self { count: self.count.max(confirmations.saturating_add(1)), ..self.clone() };
        names(confirmations, enough.others(me))
    }

    /// From what the master has to what the set's size asks for, in an order in which it may be broken off anywhere: a member has its slot
    /// before its confirmation counts, and counts no more when it loses its slot.
    #[must_use]
    pub fn steps(&self, now: &Standing, me: &str, confirmations: u32) -> Vec<Step> {
        let names = self.synchronous_names(me, confirmations);
        let is_ours = confirmations > 0 || is_the_agents(&now.names, &self.set);
        let is_due = !now.names_are_fixed && is_ours && now.names != names;
        let (drops, makes): (Vec<Change>, Vec<Change>) =
            slots::changes(&now.slots, self, me).into_iter().partition(|change| matches!(change, Change::Drop(_)));
        let makes = makes.into_iter().map(Step::Slot);
        makes.chain(is_due.then_some(Step::Names(names))).chain(drops.into_iter().map(Step::Slot)).collect()
    }
}

/// What a master has for its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The members' slots.
    pub slots: Vec<Slot>,
    /// `synchronous_standby_names`.
    pub names: String,
    /// The user has it on the server's command line: it is not ours to change.
    pub names_are_fixed: bool,
}

/// One step from what a master has to what it should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A slot.
    Slot(Change),
    /// `synchronous_standby_names`.
    Names(String),
}

/// A value of `synchronous_standby_names` that an agent wrote: a list of this set's members.
#[must_use]
pub fn is_the_agents(value: &str, set: &str) -> bool {
    value.starts_with("ANY ") && value.contains(&format!("(\"{set}-"))
}

/// The replicas that a value of `synchronous_standby_names` lists, and how many of them confirm a commit; nobody where it is not the
/// agent's: what the user keeps there himself, pgset promises nothing of.
#[must_use]
pub fn quorum(value: &str) -> Quorum {
    let parts = || {
        let (confirm, names) = value.strip_prefix("ANY ")?.split_once(" (")?;
        let names = names.strip_suffix(')')?.split(',').map(|name| name.trim().trim_matches('"').to_owned());
        Some(Quorum { names: names.collect(), confirm: confirm.parse().ok()? })
    };
    parts().unwrap_or_default()
}

/// The value of `synchronous_standby_names` for that; empty where commits wait for nobody.
#[must_use]
pub fn value(quorum: &Quorum) -> String {
    if quorum.confirm == 0 { String::new() } else { names(quorum.confirm, quorum.names.iter()) }
}

fn names(confirmations: u32, pods: impl Iterator<Item = impl std::fmt::Display>) -> String {
    let names: Vec<String> = pods.map(|pod| format!("\"{pod}\"")).collect();
    format!("ANY {confirmations} ({})", names.join(", "))
}

/// What a master starts with, absent if its commits wait for nobody. While the set's size is not known, what an earlier start wrote is as
/// good as it was then, and without that the lowest ordinals: it may wait for a moment, and never confirms too early.
#[must_use]
pub fn names_at_start(
    members: Option<&Members>,
    set: &str,
    me: &str,
    confirmations: u32,
    last: Option<&str>,
) -> Option<String> {
    if confirmations == 0 {
        return None;
    }
    let is_good = |last: &&str| is_the_agents(last, set) && last.starts_with(&format!("ANY {confirmations} ("));
    Some(match (members, last.filter(is_good)) {
        (Some(members), _) => members.synchronous_names(me, confirmations),
        (None, Some(last)) => last.to_owned(),
        (None, None) => Members { set: set.to_owned(), first: 0, count: 0 }.synchronous_names(me, confirmations),
    })
}

/// Commits that wait because too few replicas confirm them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shortage {
    since: Option<Instant>,
    is_told: bool,
}

/// How many replicas there are to confirm a commit.
#[derive(Clone, Copy, Debug)]
pub struct Confirmations {
    /// As many as the annotation says.
    pub wanted: u32,
    /// As many as commits wait for: fewer where they go on without those that are missing.
    pub asked: u32,
    /// They never go on without those that are missing.
    pub is_strict: bool,
    /// As many do.
    pub confirming: u32,
    /// As many replicas the set should have.
    pub replicas: u32,
}

// === impl Confirmations ===

impl Confirmations {
    /// What the master says of itself while its commits wait.
    #[must_use]
    pub fn shortage(self) -> Option<String> {
        let Self { wanted, asked, confirming, .. } = self;
        if self.are_fewer_asked() {
            return Some(format!("commits wait for {asked} of {wanted} replicas: no more stream"));
        }
        (confirming < wanted).then(|| format!("commits wait: {confirming} of {wanted} replicas confirm them"))
    }

    /// Commits go on without those that are missing.
    #[must_use]
    pub fn are_fewer_asked(self) -> bool {
        self.asked < self.wanted
    }
}

// === impl Shortage ===

impl Shortage {
    /// What an Event should say now: once, until there are enough again.
    #[must_use]
    pub fn tell(&mut self, set: &str, has: Confirmations, now: Instant) -> Option<String> {
        let Confirmations { wanted, asked, is_strict, confirming, replicas } = has;
        if confirming >= wanted {
            *self = Self::default();
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if !is_strict {
            let is_due = has.are_fewer_asked() && !self.is_told;
            self.is_told |= is_due;
            return is_due.then(|| {
                format!(
                    "commits wait for {asked} of the {wanted} replicas that {} says, as no more stream: what is written meanwhile may be \
                     lost with the master. They wait for all again as soon as those stream; with {} \"true\" they wait all along",
                    names::annotation::SYNCHRONOUS,
                    names::annotation::SYNCHRONOUS_STRICT,
                )
            });
        }
        // No time brings a replica that the set does not have.
        let is_due = replicas < wanted || now.saturating_duration_since(since) >= PATIENCE;
        if self.is_told || !is_due {
            return None;
        }
        self.is_told = true;
        let annotation = names::annotation::SYNCHRONOUS;
        Some(if replicas < wanted {
            format!(
                "commits wait: {annotation} {wanted} needs {wanted} replicas beside the master, and the set has {replicas}: \
                 kubectl scale statefulset {set} --replicas={}, or write a smaller number",
                wanted.saturating_add(1)
            )
        } else {
            format!(
                "commits wait: fewer replicas stream from this master than the {wanted} that {annotation} asks for: see why the others \
                 are not Ready, or write a smaller number"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(names: &[&str], confirm: u32) -> Quorum {
        Quorum { names: names.iter().map(|&name| name.to_owned()).collect(), confirm }
    }

    #[test]
    fn the_quorum_is_read_from_what_the_agent_wrote_and_from_nothing_else() {
        let members = Members { set: "db".into(), first: 0, count: 3 };
        assert_eq!(quorum(&members.synchronous_names("db-0", 1)), asks(&["db-1", "db-2"], 1));
        assert_eq!(quorum("FIRST 1 (s1)"), Quorum::default());
        assert_eq!(quorum(""), Quorum::default());
    }

    #[test]
    fn what_is_written_into_the_servers_settings_reads_as_it_was_meant() {
        for asked in [asks(&["db-1", "db-2"], 1), asks(&["db-1", "db-10", "db-2"], 2), Quorum::default()] {
            assert_eq!(quorum(&value(&asked)), asked);
        }
    }

    fn members(count: u32) -> Members {
        Members { set: "my-db".into(), first: 3, count }
    }

    #[test]
    fn the_other_members_confirm_commits() {
        assert_eq!(members(3).synchronous_names("my-db-3", 1), r#"ANY 1 ("my-db-4", "my-db-5")"#);
        assert_eq!(members(3).synchronous_names("my-db-4", 2), r#"ANY 2 ("my-db-3", "my-db-5")"#);
        assert_eq!(members(3).synchronous_names("my-db-3", 0), "");
    }

    #[test]
    fn a_set_with_too_few_replicas_waits_for_those_that_it_would_have_next() {
        assert_eq!(members(1).synchronous_names("my-db-3", 1), r#"ANY 1 ("my-db-4")"#);
        assert_eq!(members(0).synchronous_names("my-db-3", 1), r#"ANY 1 ("my-db-4")"#);
        assert_eq!(members(2).synchronous_names("my-db-3", 2), r#"ANY 2 ("my-db-4", "my-db-5")"#);
    }

    #[test]
    fn a_list_of_members_is_the_agents_and_any_other_value_the_users() {
        assert!(is_the_agents(r#"ANY 1 ("my-db-4", "my-db-5")"#, "my-db"));
        assert!(!is_the_agents("FIRST 1 (walreceiver)", "my-db"));
        assert!(!is_the_agents(r#"ANY 1 ("other-4")"#, "my-db"));
    }

    #[test]
    fn a_master_starts_with_the_replicas_that_confirm_its_first_commit() {
        let at_start =
            |members: Option<&Members>, wanted, last| names_at_start(members, "my-db", "my-db-3", wanted, last);
        let last = r#"ANY 1 ("my-db-4")"#;
        assert_eq!(at_start(Some(&members(3)), 1, Some(last)).as_deref(), Some(r#"ANY 1 ("my-db-4", "my-db-5")"#));
        assert_eq!(at_start(None, 1, Some(last)).as_deref(), Some(last), "the set's size is not known yet");
        let lowest = r#"ANY 2 ("my-db-0", "my-db-1", "my-db-2")"#;
        assert_eq!(at_start(None, 2, Some(last)).as_deref(), Some(lowest), "it was for another number");
        assert_eq!(at_start(None, 2, Some("s1")).as_deref(), Some(lowest), "somebody else's value confirms nothing");
        assert_eq!(at_start(Some(&members(3)), 0, None), None);
    }

    fn standing(names: &str) -> Standing {
        Standing { slots: Vec::new(), names: names.to_owned(), names_are_fixed: false }
    }

    fn take(now: &mut Standing, step: Step) {
        match step {
            Step::Slot(Change::Create(name)) => now.slots.push(Slot { name, active: false, is_lost: false }),
            Step::Slot(Change::Renew(name) | Change::Drop(name)) => now.slots.retain(|slot| slot.name != name),
            Step::Names(names) => now.names = names,
        }
    }

    fn confirm(now: &Standing, members: &Members, me: &str) -> Vec<String> {
        members.others(me).filter(|pod| now.names.contains(&format!("\"{pod}\""))).collect()
    }

    fn grow_or_shrink(from: u32, to: u32, crash_after: usize) {
        let mut now = standing("");
        let all = |now: &Standing, count| members(count).steps(now, "my-db-3", 1);
        for step in all(&now, from) {
            take(&mut now, step);
        }
        for step in all(&now, to).into_iter().take(crash_after) {
            take(&mut now, step);
            for pod in confirm(&now, &members(from.max(to)), "my-db-3") {
                let is_padding = from.min(to) == 1 && pod == "my-db-4";
                assert!(is_padding || now.slots.iter().any(|slot| slot.name == names::slot(&pod)), "{pod}: {now:?}");
            }
        }
        for step in all(&now, to) {
            take(&mut now, step);
        }
        assert_eq!(now.names, members(to).synchronous_names("my-db-3", 1));
        assert_eq!(all(&now, to), [], "from {from} to {to}, broken off after {crash_after}");
    }

    #[test]
    fn a_replica_that_confirms_has_its_slot_wherever_growing_or_shrinking_is_broken_off() {
        for from in 1..=4 {
            for to in 1..=4 {
                for crash_after in 0..=8 {
                    grow_or_shrink(from, to, crash_after);
                }
            }
        }
    }

    #[test]
    fn what_the_user_wrote_is_his() {
        let steps = |now: &Standing, wanted| members(1).steps(now, "my-db-3", wanted);
        assert_eq!(steps(&Standing { names_are_fixed: true, ..standing("s1") }, 1), []);
        assert_eq!(steps(&standing("s1"), 0), []);
        assert_eq!(steps(&standing(r#"ANY 1 ("my-db-4")"#), 0), [Step::Names(String::new())], "the annotation is gone");
    }

    fn has(confirming: u32, replicas: u32) -> Confirmations {
        Confirmations { wanted: 1, asked: 1, is_strict: true, confirming, replicas }
    }

    #[test]
    fn commits_that_wait_for_long_are_told_once_until_they_do_not() {
        let (mut shortage, start) = (Shortage::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(shortage.tell("db", has(0, 2), at(0)), None, "a replica that restarts is no news");
        assert_eq!(shortage.tell("db", has(0, 2), at(29)), None);
        assert!(shortage.tell("db", has(0, 2), at(30)).unwrap().contains("pgset.dev/synchronous"));
        assert_eq!(shortage.tell("db", has(0, 2), at(99)), None);
        assert_eq!(shortage.tell("db", has(1, 2), at(100)), None);
        assert_eq!(shortage.tell("db", has(0, 2), at(101)), None);
        assert!(shortage.tell("db", has(0, 2), at(131)).is_some());
    }

    #[test]
    fn commits_that_go_on_without_a_replica_are_told_once_and_are_no_commits_that_wait() {
        let (mut shortage, start) = (Shortage::default(), Instant::now());
        let short = Confirmations { is_strict: false, ..has(0, 0) };
        assert_eq!(shortage.tell("db", short, start), None);
        let alone = Confirmations { asked: 0, ..short };
        let note = shortage.tell("db", alone, start).unwrap();
        assert!(
            note.starts_with("commits wait for 0 of the 1 replicas") && note.contains("synchronous-strict"),
            "{note}"
        );
        assert_eq!(shortage.tell("db", alone, start + PATIENCE), None);
        assert_eq!(alone.shortage().as_deref(), Some("commits wait for 0 of 1 replicas: no more stream"));
    }

    #[test]
    fn a_set_that_has_too_few_replicas_is_told_at_once_how_many_it_needs() {
        let note = Shortage::default().tell("db", has(0, 0), Instant::now()).unwrap();
        assert!(note.contains("kubectl scale statefulset db --replicas=2"), "{note}");
        assert_eq!(has(0, 0).shortage().as_deref(), Some("commits wait: 0 of 1 replicas confirm them"));
        assert_eq!(has(1, 1).shortage(), None);
    }
}
