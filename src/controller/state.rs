//! What the controller remembers of a set between two looks at it, so that it neither asks nor says the same thing again.
//! Nothing here has to survive: a new controller asks and says everything once.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::event::SetEvent;
use super::route::Doubt;
use crate::children::Kind;

/// How long an answer about somebody else's object is good: such an object is not watched, and its owner waits after he removed it.
const FOREIGN_FOR: Duration = Duration::from_secs(60);
/// How long a warning that stands is not repeated: Kubernetes forgets Events after an hour.
const WARNED_FOR: Duration = Duration::from_secs(3300);
/// How long the same news, or a warning that comes and goes, is not repeated.
const TOLD_FOR: Duration = Duration::from_secs(300);
/// How many times an object is put right within [`REVERTS_WITHIN`] before pgset gives it up: whoever edits by hand stops before.
const MOST_REVERTS: u32 = 5;
/// See [`MOST_REVERTS`]. What deploys from a repository comes back every few minutes.
const REVERTS_WITHIN: Duration = Duration::from_secs(3600);
/// How long a Secret that was refused is not tried again: a quota or a policy changes by hand.
const SECRET_REFUSED_FOR: Duration = Duration::from_secs(60);
/// How long the Secret is taken to be there after pods of the set have changed: whoever deletes it then wants new passwords.
const SECRET_LATELY_FOR: Duration = Duration::from_secs(600);
/// How long the Secret is taken to be there as long as nobody needs it: with ten thousand sets, a request every few seconds.
const SECRET_FOR: Duration = Duration::from_secs(6 * 3600);
/// How long a set is let be that goes with its namespace.
const TERMINATING_FOR: Duration = Duration::from_secs(300);
/// How long an endpoint is in doubt before it is closed: whoever leads next replaces it sooner, and kube-proxy, which acts on one change a
/// second, is to be free for that.
const DOUBTED_FOR: Duration = Duration::from_secs(10);
/// How long a master may have its label and not have written the slice, before its Service has a selector again.
const UNREACHABLE_FOR: Duration = Duration::from_secs(5);
/// The longest pause after errors.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// When the Secret is needed: for a generation of the set, and for each of its pods. Only whether it is the same matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretTrigger(u64);

impl SecretTrigger {
    /// The generation of the set, and the UIDs of its pods.
    pub fn new<'a>(generation: Option<i64>, pods: impl Iterator<Item = &'a str>) -> Self {
        let mut pods: Vec<&str> = pods.collect();
        pods.sort_unstable();
        Self(hash(&(generation, pods)))
    }
}

/// How often somebody changed an object back lately, and from what.
struct RevertCount {
    since: Instant,
    rounds: u32,
    /// A hash of what was wanted.
    wanted: u64,
}

impl RevertCount {
    fn is_given_up(&self) -> bool {
        self.rounds > MOST_REVERTS
    }
}

/// What is remembered of one set.
#[derive(Default)]
pub struct ReconcileState {
    foreign: HashMap<(Kind, String), (Instant, Value)>,
    told: Vec<(SetEvent, Instant)>,
    reverts: HashMap<(Kind, String), RevertCount>,
    failures: u32,
    /// On which trigger the Secret was there last, and until when that is good.
    secret: Option<(SecretTrigger, Instant)>,
    /// Why the Secret was refused, and until when it is not tried again.
    refused: Option<(SetEvent, Instant)>,
    /// When the namespace was found to be going away.
    namespace_terminating: Option<Instant>,
    /// The endpoint that is in doubt, and since when.
    doubt: Option<(Doubt, Instant)>,
    /// Since when clients have had no way to a master that there is.
    unreachable: Option<Instant>,
}

impl ReconcileState {
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

    /// Whether an object may be put right once more; `false` if somebody keeps changing it back: then it is let be until it is right
    /// (see [`ReconcileState::wrong`]) or something else is wanted. Putting it right to say something else, as when a set is scaled, does
    /// not count.
    pub fn may_restore(&mut self, place: &(Kind, String), wanted: &Value, now: Instant) -> bool {
        self.forget_reverts(now);
        let wanted = hash(&wanted.to_string());
        let fresh = || RevertCount { since: now, rounds: 0, wanted };
        let reverts = self.reverts.entry(place.clone()).or_insert_with(fresh);
        if reverts.wanted != wanted {
            *reverts = fresh();
        }
        reverts.rounds = reverts.rounds.saturating_add(1);
        !reverts.is_given_up()
    }

    /// Remembers which objects are wrong now: of the others, none is given up any more.
    pub fn wrong(&mut self, places: &[(Kind, String)]) {
        self.reverts.retain(|place, reverts| !reverts.is_given_up() || places.contains(place));
    }

    fn forget_reverts(&mut self, now: Instant) {
        self.reverts.retain(|_, reverts| reverts.is_given_up() || now.duration_since(reverts.since) < REVERTS_WITHIN);
    }

    /// Those of the events that are worth an Event now, and remembers them.
    pub fn news(&mut self, events: &[SetEvent], now: Instant) -> Vec<SetEvent> {
        self.told.retain(|(event, told)| {
            let good_for = if event.reason.is_warning() && events.contains(event) { WARNED_FOR } else { TOLD_FOR };
            now.duration_since(*told) < good_for
        });
        let is_news = |event: &&SetEvent| !self.told.iter().any(|(told, _)| told == *event);
        let news: Vec<SetEvent> = events.iter().filter(is_news).cloned().collect();
        self.told.extend(news.iter().map(|event| (event.clone(), now)));
        news
    }

    /// Whether to see to the Secret. It is not watched, because nobody should have to let pgset read Secrets: trying to make it
    /// again whenever a pod needs it, and once in a while, is enough.
    #[must_use]
    pub fn wants_secret(&self, trigger: SecretTrigger, now: Instant) -> bool {
        if self.refusal(now).is_some() {
            return false;
        }
        !self.secret.is_some_and(|(last, good_until)| last == trigger && now < good_until)
    }

    /// Remembers that the Secret was refused, so that it is neither tried again at every change nor told anew.
    pub fn secret_refused(&mut self, why: SetEvent, now: Instant) {
        self.refused = Some((why, now + SECRET_REFUSED_FOR));
    }

    /// Why the Secret was refused lately, and when to try again.
    #[must_use]
    pub fn refusal(&self, now: Instant) -> Option<(&SetEvent, Duration)> {
        let (why, until) = self.refused.as_ref()?;
        let rest = until.checked_duration_since(now).filter(|rest| !rest.is_zero())?;
        Some((why, rest))
    }

    /// Remembers that the Secret is there, and answers whether it was known to be there before. `set` is any word that is
    /// another one for each set, so that not all of them ask again in one moment.
    pub fn has_secret(&mut self, trigger: SecretTrigger, set: &str, now: Instant) -> bool {
        self.refused = None;
        let changed = self.secret.is_some_and(|(last, _)| last != trigger);
        let good_for = if changed { SECRET_LATELY_FOR } else { SECRET_FOR };
        self.secret.replace((trigger, now + jitter(set, good_for))).is_some()
    }

    /// Remembers whether the endpoint is in doubt, and answers for how long it still has to be before it is closed.
    pub fn doubts(&mut self, doubt: Option<&Doubt>, now: Instant) -> Option<Duration> {
        let since = self.doubt.take().filter(|(known, _)| Some(known) == doubt).map_or(now, |(_, since)| since);
        self.doubt = doubt.map(|doubt| (doubt.clone(), since));
        doubt.and_then(|_| DOUBTED_FOR.checked_sub(now.duration_since(since))).filter(|rest| !rest.is_zero())
    }

    /// Remembers whether clients have no way to the master, and answers for how long that still has to be before they get one.
    pub fn is_unreachable(&mut self, is_so: bool, now: Instant) -> Option<Duration> {
        self.unreachable = is_so.then(|| self.unreachable.unwrap_or(now));
        UNREACHABLE_FOR.checked_sub(now.duration_since(self.unreachable?)).filter(|rest| !rest.is_zero())
    }

    /// Remembers that the namespace goes away, and answers how long to let the set be.
    pub fn namespace_terminating(&mut self, now: Instant) -> Duration {
        self.namespace_terminating = Some(now);
        TERMINATING_FOR
    }

    /// How long to let the set be, because its namespace goes away: whatever is deleted in it meanwhile is not made again.
    #[must_use]
    pub fn backoff_remaining(&self, now: Instant) -> Option<Duration> {
        let passed = now.duration_since(self.namespace_terminating?);
        TERMINATING_FOR.checked_sub(passed).filter(|rest| !rest.is_zero())
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
        self.namespace_terminating = None;
    }

    /// Gives room back that was for what is past.
    pub fn shrink(&mut self, now: Instant) {
        self.forget_reverts(now);
        self.reverts.shrink_to_fit();
        self.told.shrink_to_fit();
        self.foreign.shrink_to_fit();
    }
}

/// Up to half as long again, always the same for one set, so that many sets are not looked at in one moment.
#[must_use]
pub fn jitter(set: &str, pause: Duration) -> Duration {
    let thousandths = u32::try_from(hash(&set) % 500).unwrap_or_default();
    pause + pause / 1000 * thousandths
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::event::Reason;
    use super::*;

    #[test]
    fn a_standing_warning_is_told_again_only_after_kubernetes_forgot_it() {
        let mut state = ReconcileState::default();
        let warning = [SetEvent::new(Reason::NotInjected, "nothing happens")];
        let start = Instant::now();
        assert_eq!(state.news(&warning, start).len(), 1);
        assert_eq!(state.news(&warning, start + Duration::from_secs(3240)).len(), 0);
        assert_eq!(state.news(&warning, start + Duration::from_secs(3360)).len(), 1);
    }

    #[test]
    fn a_warning_that_comes_and_goes_is_told_once_in_a_while() {
        let mut state = ReconcileState::default();
        let warning = [SetEvent::new(Reason::NotInjected, "nothing happens")];
        let start = Instant::now();
        assert_eq!(state.news(&warning, start).len(), 1);
        assert_eq!(state.news(&[], start + Duration::from_secs(1)).len(), 0);
        assert_eq!(state.news(&warning, start + Duration::from_secs(2)).len(), 0);
        assert_eq!(state.news(&[], start + Duration::from_secs(360)).len(), 0);
        assert_eq!(state.news(&warning, start + Duration::from_secs(420)).len(), 1);
    }

    #[test]
    fn whoever_keeps_changing_an_object_back_is_let_be_until_it_is_right() {
        let mut state = ReconcileState::default();
        let place = (Kind::Service, "pgset-master".to_owned());
        let one = Value::from("one");
        let start = Instant::now();
        assert!((0..MOST_REVERTS).all(|_| state.may_restore(&place, &one, start)));
        let later = start + 10 * REVERTS_WITHIN;
        assert!(!state.may_restore(&place, &one, start) && !state.may_restore(&place, &one, later), "peace");
        assert!(state.may_restore(&place, &Value::from("two"), later), "something else is wanted");
        assert!((0..MOST_REVERTS).all(|_| state.may_restore(&place, &one, later)));
        state.wrong(std::slice::from_ref(&place));
        assert!(!state.may_restore(&place, &one, later));
        state.wrong(&[]);
        assert!(state.may_restore(&place, &one, later), "it was right in the meantime");
    }

    #[test]
    fn a_deployment_that_comes_back_every_three_minutes_is_given_up_and_an_edit_a_day_is_not() {
        let place = (Kind::Service, "pgset-master".to_owned());
        let (one, start) = (Value::from("one"), Instant::now());
        let rounds = |pause: u64| {
            let mut state = ReconcileState::default();
            (0..100).filter(|round| state.may_restore(&place, &one, start + Duration::from_secs(pause * round))).count()
        };
        assert_eq!((rounds(180), rounds(24 * 3600)), (5, 100));
    }

    #[test]
    fn a_refused_secret_is_tried_again_after_a_minute_and_told_meanwhile() {
        let (mut state, now) = (ReconcileState::default(), Instant::now());
        state.secret_refused(SetEvent::new(Reason::Refused, "exceeded quota"), now);
        let soon = now + Duration::from_secs(59);
        assert!(!state.wants_secret(trigger(1, &["pod"]), soon) && state.refusal(soon).is_some());
        let later = now + SECRET_REFUSED_FOR;
        assert!(state.wants_secret(trigger(1, &["pod"]), later) && state.refusal(later).is_none());
        state.has_secret(trigger(1, &["pod"]), "set", later);
        assert!(state.refusal(now).is_none());
    }

    #[test]
    fn a_set_that_is_scaled_many_times_a_minute_is_not_given_up() {
        let mut state = ReconcileState::default();
        let place = (Kind::Role, "pgset-sa".to_owned());
        let start = Instant::now();
        assert!((0..20).all(|members| state.may_restore(&place, &Value::from(members), start)));
    }

    #[test]
    fn pauses_after_errors_grow_to_five_minutes_and_start_again_after_success() {
        let mut state = ReconcileState::default();
        let pauses: Vec<u64> = (0..12).map(|_| state.failed().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        state.succeeded();
        assert_eq!(state.failed(), Duration::from_secs(1));
    }

    fn trigger(generation: i64, pods: &[&str]) -> SecretTrigger {
        SecretTrigger::new(Some(generation), pods.iter().copied())
    }

    #[test]
    fn the_secret_is_seen_to_whenever_a_pod_needs_it() {
        let (mut state, now) = (ReconcileState::default(), Instant::now());
        assert!(state.wants_secret(trigger(1, &[]), now));
        assert!(!state.has_secret(trigger(1, &[]), "set", now), "it was not known before");
        assert!(!state.wants_secret(trigger(1, &[]), now));
        assert!(state.wants_secret(trigger(1, &["pod"]), now), "a pod");
        assert!(state.has_secret(trigger(1, &["pod"]), "set", now));
        assert!(state.wants_secret(trigger(2, &["pod"]), now), "another template");
        assert!(state.wants_secret(trigger(1, &["another pod"]), now), "a pod made anew");
        assert_eq!(trigger(1, &["a", "b"]), trigger(1, &["b", "a"]));
    }

    #[test]
    fn the_secret_of_a_set_at_rest_is_seen_to_every_six_to_nine_hours() {
        let (mut state, start) = (ReconcileState::default(), Instant::now());
        state.has_secret(trigger(1, &["pod"]), "set", start);
        let after = |hours: u64| start + Duration::from_secs(3600 * hours);
        assert!(
            !state.wants_secret(trigger(1, &["pod"]), after(6)) && state.wants_secret(trigger(1, &["pod"]), after(9))
        );
    }

    #[test]
    fn the_secret_is_seen_to_once_more_soon_after_pods_have_changed() {
        let (mut state, start) = (ReconcileState::default(), Instant::now());
        state.has_secret(trigger(1, &[]), "set", start);
        state.has_secret(trigger(1, &["pod"]), "set", start);
        let later = start + Duration::from_secs(900);
        assert!(state.wants_secret(trigger(1, &["pod"]), later));
        state.has_secret(trigger(1, &["pod"]), "set", later);
        assert!(!state.wants_secret(trigger(1, &["pod"]), later + Duration::from_secs(3600)));
    }

    #[test]
    fn sets_are_spread_over_half_as_long_again() {
        let pauses: Vec<u64> =
            (0..1000).map(|set| jitter(&set.to_string(), Duration::from_secs(1000)).as_secs()).collect();
        assert!(pauses.iter().all(|pause| (1000..1500).contains(pause)));
        let in_second_half = pauses.iter().filter(|pause| **pause >= 1250).count();
        assert!((400..600).contains(&in_second_half), "{in_second_half}");
    }

    #[test]
    fn a_set_that_goes_with_its_namespace_is_let_be_for_five_minutes() {
        let (mut state, start) = (ReconcileState::default(), Instant::now());
        assert_eq!(state.backoff_remaining(start), None);
        assert_eq!(state.namespace_terminating(start), Duration::from_secs(300));
        assert_eq!(state.backoff_remaining(start + Duration::from_secs(100)), Some(Duration::from_secs(200)));
        assert_eq!(state.backoff_remaining(start + Duration::from_secs(300)), None);
    }

    #[test]
    fn an_endpoint_is_closed_when_it_has_been_in_the_same_doubt_for_ten_seconds() {
        let (mut state, start) = (ReconcileState::default(), Instant::now());
        let doubt = |pod: &str| Doubt {
            slice: "s".to_owned(),
            pod: pod.to_owned(),
            pod_uid: "u".to_owned(),
            written_at: String::new(),
            why: "is gone",
        };
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(state.doubts(Some(&doubt("db-0")), start), Some(Duration::from_secs(10)));
        assert_eq!(state.doubts(Some(&doubt("db-0")), after(4)), Some(Duration::from_secs(6)));
        assert_eq!(state.doubts(Some(&doubt("db-0")), after(10)), None, "now");
        assert_eq!(state.doubts(Some(&doubt("db-1")), after(11)), Some(Duration::from_secs(10)), "another");
        assert_eq!(state.doubts(None, after(12)), None);
        assert_eq!(state.doubts(Some(&doubt("db-1")), after(30)), Some(Duration::from_secs(10)), "again");
    }

    #[test]
    fn a_master_that_has_not_written_the_slice_for_five_seconds_is_found_by_its_label() {
        let (mut state, start) = (ReconcileState::default(), Instant::now());
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(state.is_unreachable(true, start), Some(Duration::from_secs(5)));
        assert_eq!(state.is_unreachable(true, after(2)), Some(Duration::from_secs(3)));
        assert_eq!(state.is_unreachable(true, after(5)), None, "now");
        assert_eq!(state.is_unreachable(false, after(6)), None);
        assert_eq!(state.is_unreachable(true, after(7)), Some(Duration::from_secs(5)), "again");
    }

    #[test]
    fn of_reverts_that_are_past_nothing_is_kept() {
        let (mut state, start) = (ReconcileState::default(), Instant::now());
        state.may_restore(&(Kind::Service, "pgset-master".to_owned()), &Value::from("one"), start);
        state.shrink(start);
        assert_eq!(state.reverts.len(), 1);
        state.shrink(start + REVERTS_WITHIN);
        assert_eq!(state.reverts.capacity(), 0);
    }
}
