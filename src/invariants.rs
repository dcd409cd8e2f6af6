//! What holds by design, and is looked at all the same while pgset runs.
//!
//! One that is broken is a bug, in pgset or in what it relies on. It is logged, with the fields of the span that it happened in, and counted
//! in a metric that should stay 0; whoever asked then takes the safe way. Nothing here ends a process.

use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::error;

/// A statement that always holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Invariant {
    /// What the injection has made it leaves as it is. Looked at for some of the reviews.
    InjectionIsStable,
    /// The injection changes annotations and the pod template, and so nothing that can't be changed.
    PatchStaysInTemplate,
    /// What is made for a set is in its namespace and, but for the Lease, owned by it.
    ChildIsTheSets,
    /// A change names the very object that it was planned for.
    ChangeNamesItsObject,
    /// The API server stores a Lease as its holder wrote it: with that holder, in that epoch.
    LeaseIsAsWritten,
    /// No two members lead in one epoch.
    EpochHasOneLeader,
    /// A server that is started as a standby has `standby.signal`.
    StandbyHasSignal,
    /// Clients of the master are never sent to an earlier leadership than before.
    RouteGoesForward,
}

/// A process has one registry, and so one count.
static BROKEN: LazyLock<Family<[(&'static str, &'static str); 1], Counter>> = LazyLock::new(Family::default);

// === impl Invariant ===

impl Invariant {
    /// The webhook's.
    pub const OF_WEBHOOK: [Self; 2] = [Self::InjectionIsStable, Self::PatchStaysInTemplate];
    /// The controller's.
    pub const OF_CONTROLLER: [Self; 2] = [Self::ChildIsTheSets, Self::ChangeNamesItsObject];
    /// A member's.
    pub const OF_MEMBER: [Self; 4] =
        [Self::LeaseIsAsWritten, Self::EpochHasOneLeader, Self::StandbyHasSignal, Self::RouteGoesForward];

    /// In a word, for logs and the metric.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InjectionIsStable => "injection_is_stable",
            Self::PatchStaysInTemplate => "patch_stays_in_template",
            Self::ChildIsTheSets => "child_is_the_sets",
            Self::ChangeNamesItsObject => "change_names_its_object",
            Self::LeaseIsAsWritten => "lease_is_as_written",
            Self::EpochHasOneLeader => "epoch_has_one_leader",
            Self::StandbyHasSignal => "standby_has_signal",
            Self::RouteGoesForward => "route_goes_forward",
        }
    }

    /// Whether it holds, as whoever looked says. If not, that is told with what was found, which quotes no object.
    #[must_use]
    pub fn holds(self, holds: bool, found: impl FnOnce() -> String) -> bool {
        if !holds {
            self.is_broken(&found());
        }
        holds
    }

    /// Tells that it does not hold.
    pub fn is_broken(self, found: &str) {
        BROKEN.get_or_create(&self.label()).inc();
        error!(invariant = self.as_str(), found, "what always holds does not, which is a bug in pgset");
    }

    /// How many times it was broken in the life of this process.
    #[must_use]
    pub fn count(self) -> u64 {
        BROKEN.get_or_create(&self.label()).get()
    }

    const fn label(self) -> [(&'static str, &'static str); 1] {
        [("invariant", self.as_str())]
    }
}

/// Adds the count to the metrics of a process that looks at these, from 0 on: a first time is an increase.
pub fn register(registry: &mut Registry, invariants: &[Invariant]) {
    for invariant in invariants {
        drop(BROKEN.get_or_create(&invariant.label()));
    }
    registry.register("invariants_broken", "Times that something did not hold that always does", BROKEN.clone());
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use serde_json::json;

    use super::*;
    use crate::logged::Log;

    #[test]
    fn what_does_not_hold_is_counted_and_logged_with_the_fields_of_its_span() {
        let (before, log) = (Invariant::InjectionIsStable.count(), Log::start());
        let member = tracing::error_span!("member", set = "db", pod = "db-0").entered();
        assert!(Invariant::InjectionIsStable.holds(true, || unreachable!()));
        assert!(!Invariant::InjectionIsStable.holds(false, || "it changes".to_owned()));
        drop(member);
        assert!(Invariant::InjectionIsStable.count() > before);
        let line = log.line("what always holds does not, which is a bug in pgset");
        assert_eq!((&line["level"], &line["invariant"]), (&json!("ERROR"), &json!("injection_is_stable")), "{line}");
        assert_eq!((&line["found"], &line["span"]["pod"]), (&json!("it changes"), &json!("db-0")), "{line}");
    }

    #[test]
    fn each_is_told_from_the_start_and_is_in_the_documentation() {
        let all = [&Invariant::OF_WEBHOOK[..], &Invariant::OF_CONTROLLER, &Invariant::OF_MEMBER].concat();
        let mut registry = Registry::with_prefix("pgset");
        register(&mut registry, &all);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for invariant in all {
            let word = invariant.as_str();
            assert!(
                text.contains(&format!("pgset_invariants_broken_total{{invariant=\"{word}\"}} ")),
                "{word}: {text}"
            );
            assert!(include_str!("../docs/metrics.md").contains(&format!("`{word}`")), "{word}");
        }
    }
}
