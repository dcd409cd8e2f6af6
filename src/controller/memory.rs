//! What the controller remembers of a set between two looks at it, so that it neither asks nor says the same thing again.
//! Nothing here has to survive: a new controller asks and says everything once.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::notice::Notice;
use crate::children::Kind;

/// How long an answer about somebody else's object is good: such an object is not watched.
const FOREIGN_FOR: Duration = Duration::from_secs(600);
/// How long a warning that stands is not repeated: Kubernetes forgets Events after an hour.
const WARNED_FOR: Duration = Duration::from_secs(3300);
/// How long the same news, or a warning that comes and goes, is not repeated.
const TOLD_FOR: Duration = Duration::from_secs(300);
/// How many times an object is put right within [`CONTEST`] before pgset lets it be for as long.
const CONTEST_ROUNDS: u32 = 5;
/// See [`CONTEST_ROUNDS`].
pub const CONTEST: Duration = Duration::from_secs(60);
/// The longest pause after errors.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// When the Secret is needed: for the generation of the set, and for each of its pods, by UID.
pub type Occasion = (Option<i64>, Vec<String>);

/// How often an object was put right lately, and to say what.
struct Contest {
    since: Instant,
    rounds: u32,
    wanted: Value,
}

/// What is remembered of one set.
#[derive(Default)]
pub struct Memory {
    foreign: HashMap<(Kind, String), (Instant, Value)>,
    told: BTreeMap<Notice, Instant>,
    contests: HashMap<(Kind, String), Contest>,
    failures: u32,
    secret: Option<(Instant, Occasion)>,
}

impl Memory {
    /// Somebody else's object, if it was seen lately.
    #[must_use]
    pub fn foreign(&self, place: &(Kind, String), now: Instant) -> Option<&Value> {
        let (seen, object) = self.foreign.get(place)?;
        (now.duration_since(*seen) < FOREIGN_FOR).then_some(object)
    }

    /// Remembers somebody else's object.
    pub fn found_foreign(&mut self, place: (Kind, String), object: Value, now: Instant) {
        self.foreign.insert(place, (now, object));
    }

    /// Forgets what was under a name: now it is ours, or nothing.
    pub fn not_foreign(&mut self, place: &(Kind, String)) {
        self.foreign.remove(place);
    }

    /// Whether an object may be put right once more; `false` if somebody keeps changing it back. Putting it right to say
    /// something else, as when a set is scaled, is no contest.
    pub fn may_restore(&mut self, place: &(Kind, String), wanted: &Value, now: Instant) -> bool {
        let fresh = || Contest { since: now, rounds: 0, wanted: wanted.clone() };
        let contest = self.contests.entry(place.clone()).or_insert_with(fresh);
        if now.duration_since(contest.since) >= CONTEST || contest.wanted != *wanted {
            *contest = fresh();
        }
        contest.rounds = contest.rounds.saturating_add(1);
        contest.rounds <= CONTEST_ROUNDS
    }

    /// Those of the notices that are worth an Event now, and remembers them.
    pub fn news(&mut self, notices: &[Notice], now: Instant) -> Vec<Notice> {
        self.told.retain(|notice, told| {
            let good_for = if notice.reason.is_warning() && notices.contains(notice) { WARNED_FOR } else { TOLD_FOR };
            now.duration_since(*told) < good_for
        });
        let news: Vec<Notice> = notices.iter().filter(|notice| !self.told.contains_key(*notice)).cloned().collect();
        self.told.extend(news.iter().map(|notice| (notice.clone(), now)));
        news
    }

    /// Whether to see to the Secret. It is not watched, because nobody should have to let pgset read Secrets: trying to make it
    /// again whenever a pod needs it, and once in a while, is enough.
    #[must_use]
    pub fn wants_secret(&self, occasion: &Occasion, now: Instant) -> bool {
        let known = |(seen, last): &(Instant, Occasion)| last == occasion && now.duration_since(*seen) < FOREIGN_FOR;
        !self.secret.as_ref().is_some_and(known)
    }

    /// Remembers that the Secret is there, and answers whether it was known to be there before.
    pub fn has_secret(&mut self, occasion: Occasion, now: Instant) -> bool {
        self.secret.replace((now, occasion)).is_some()
    }

    /// The pause after one more error.
    pub fn failed(&mut self) -> Duration {
        let pause = Duration::from_secs(1).saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        pause.min(LONGEST_PAUSE)
    }

    /// Everything went well.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::notice::Reason;
    use super::*;

    #[test]
    fn a_standing_warning_is_told_again_only_after_kubernetes_forgot_it() {
        let mut memory = Memory::default();
        let warning = [Notice::new(Reason::NotInjected, "nothing happens")];
        let start = Instant::now();
        assert_eq!(memory.news(&warning, start).len(), 1);
        assert_eq!(memory.news(&warning, start + Duration::from_secs(3240)).len(), 0);
        assert_eq!(memory.news(&warning, start + Duration::from_secs(3360)).len(), 1);
    }

    #[test]
    fn a_warning_that_comes_and_goes_is_told_once_in_a_while() {
        let mut memory = Memory::default();
        let warning = [Notice::new(Reason::NotInjected, "nothing happens")];
        let start = Instant::now();
        assert_eq!(memory.news(&warning, start).len(), 1);
        assert_eq!(memory.news(&[], start + Duration::from_secs(1)).len(), 0);
        assert_eq!(memory.news(&warning, start + Duration::from_secs(2)).len(), 0);
        assert_eq!(memory.news(&[], start + Duration::from_secs(360)).len(), 0);
        assert_eq!(memory.news(&warning, start + Duration::from_secs(420)).len(), 1);
    }

    #[test]
    fn whoever_keeps_changing_an_object_back_is_let_be_for_a_minute() {
        let mut memory = Memory::default();
        let place = (Kind::Service, "pgset-master".to_owned());
        let one = Value::from("one");
        let start = Instant::now();
        assert!((0..CONTEST_ROUNDS).all(|_| memory.may_restore(&place, &one, start)));
        assert!(!memory.may_restore(&place, &one, start));
        assert!(memory.may_restore(&place, &one, start + CONTEST));
    }

    #[test]
    fn a_set_that_is_scaled_many_times_a_minute_is_no_contest() {
        let mut memory = Memory::default();
        let place = (Kind::Role, "pgset-sa".to_owned());
        let start = Instant::now();
        assert!((0..20).all(|members| memory.may_restore(&place, &Value::from(members), start)));
    }

    #[test]
    fn pauses_after_errors_grow_to_five_minutes_and_start_again_after_success() {
        let mut memory = Memory::default();
        let pauses: Vec<u64> = (0..12).map(|_| memory.failed().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        memory.succeeded();
        assert_eq!(memory.failed(), Duration::from_secs(1));
    }
}
