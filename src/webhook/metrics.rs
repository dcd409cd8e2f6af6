//! What is counted. Label values are words of this program only, never text of a request: the number of series is fixed.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::{
    inject::Outcome,
    invariants::{self, Invariant},
};

/// Bounds in seconds, fine where an admission webhook lives: the API server's own histogram begins at 5 ms.
const BUCKETS: [f64; 12] = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.010, 0.025, 0.050, 0.100, 0.500, 2.5];

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics of `pgset serve`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels<2>, Counter>,
    denials: Family<Labels<1>, Counter>,
    duration: Histogram,
    in_flight: Gauge,
    panics: Counter,
    certificate_expiry: Family<Labels<1>, Gauge<f64, AtomicU64>>,
    in_sync: Gauge,
    trusted: Gauge,
    kept: Gauge,
}

/// What is told of the certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificates {
    /// When the authority ends, in Unix seconds.
    pub authority_ends: Option<u64>,
    /// When the certificate that is served ends, in Unix seconds.
    pub leaf_ends: Option<u64>,
    /// Whether every entry of the webhook configuration has the `caBundle` that it should have.
    pub in_sync: bool,
    /// Whether API servers can verify the certificate that is served.
    pub trusted: bool,
    /// Whether the upkeep works: no renewal, file or watch fails.
    pub kept: bool,
}

// === impl Metrics ===

impl Metrics {
    /// Metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("pgset");
        let requests = Family::<Labels<2>, Counter>::default();
        // From 0 on, so that a first event is an increase.
        for operation in ["create", "update"] {
            for outcome in ["injected", "unchanged", "denied"] {
                drop(requests.get_or_create(&[("operation", operation), ("outcome", outcome)]));
            }
        }
        drop(requests.get_or_create(&[("operation", "unknown"), ("outcome", "error")]));
        registry.register("admission_requests", "Reviews by operation and outcome", requests.clone());
        let denials = Family::default();
        registry.register("admission_denied", "Denied reviews by reason", denials.clone());
        let duration = Histogram::new(BUCKETS);
        registry.register_with_unit("admission_duration", "Time of a review", Unit::Seconds, duration.clone());
        let panics = Counter::default();
        registry.register("panics", "Requests that ended in a panic", panics.clone());
        let certificate_expiry = Family::default();
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When the certificate ends, in Unix time",
            Unit::Seconds,
            certificate_expiry.clone(),
        );
        let mut gauge = |name, help| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let in_flight = gauge("admission_in_flight", "Reviews that are being answered");
        let in_sync = gauge(
            "webhook_configuration_in_sync",
            "Whether the webhook configuration is there and has the right caBundle in every entry",
        );
        let trusted = gauge("certificate_trusted", "Whether API servers can verify the certificate that is served");
        let kept = gauge("certificate_upkeep_ok", "Whether no renewal, file or watch of the certificates fails");
        invariants::register(&mut registry, &Invariant::OF_WEBHOOK);
        registry.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry, requests, denials, duration, in_flight, panics, certificate_expiry, in_sync, trusted, kept }
    }

    /// A review was decided.
    pub(super) fn decided(&self, operation: &'static str, outcome: &Outcome, elapsed: Duration) {
        self.requests.get_or_create(&[("operation", operation), ("outcome", outcome.word())]).inc();
        if let Some(code) = outcome.code() {
            self.denials.get_or_create(&[("reason", code)]).inc();
        }
        self.duration.observe(elapsed.as_secs_f64());
    }

    /// A request is on its way for as long as the answer lives, however it ends.
    pub(super) fn in_flight(&self) -> InFlight<'_> {
        self.in_flight.inc();
        InFlight(&self.in_flight)
    }

    /// A request got an HTTP error.
    pub(super) fn failed(&self) {
        self.requests.get_or_create(&[("operation", "unknown"), ("outcome", "error")]).inc();
    }

    /// A decision panicked.
    pub(super) fn panic(&self) {
        self.panics.inc();
    }

    /// Notes the state of the certificates. An end that is not known has no series: 0 would be an alarm.
    pub fn certificates(&self, state: &Certificates) {
        for (kind, expiry) in [("ca", state.authority_ends), ("leaf", state.leaf_ends)] {
            let labels = [("kind", kind)];
            match expiry {
                #[expect(clippy::cast_precision_loss, reason = "Unix seconds are far below 2^52")]
                Some(expiry) => {
                    self.certificate_expiry.get_or_create(&labels).set(expiry as f64);
                }
                None => {
                    self.certificate_expiry.remove(&labels);
                }
            }
        }
        self.in_sync.set(i64::from(state.in_sync));
        self.trusted.set(i64::from(state.trusted));
        self.kept.set(i64::from(state.kept));
    }

    /// The `OpenMetrics` text.
    pub(super) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Counts a request until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight<'a>(&'a Gauge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(metrics: &Metrics, start: &str) -> Option<String> {
        metrics.text().unwrap().lines().find(|line| line.starts_with(start)).map(str::to_owned)
    }

    #[test]
    fn every_metric_is_in_the_documentation() {
        let metrics = Metrics::new();
        metrics.denials.get_or_create(&[("reason", "environment")]).inc();
        metrics.certificates(&Certificates {
            authority_ends: Some(1),
            leaf_ends: Some(1),
            in_sync: true,
            trusted: true,
            kept: true,
        });
        let text = metrics.text().unwrap();
        let documentation = include_str!("../../docs/metrics.md");
        let mut count = 0;
        for declared in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = declared.split_once(' ').unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            assert!(documentation.contains(&format!("| `{name}{suffix}` |")), "{declared}");
            count += 1;
        }
        assert_eq!(count, 11, "{text}");
    }

    #[test]
    fn a_request_is_in_flight_until_it_is_dropped() {
        let metrics = Metrics::new();
        let (first, second) = (metrics.in_flight(), metrics.in_flight());
        assert_eq!(line(&metrics, "pgset_admission_in_flight").unwrap(), "pgset_admission_in_flight 2");
        drop((first, second));
        assert_eq!(line(&metrics, "pgset_admission_in_flight").unwrap(), "pgset_admission_in_flight 0");
    }

    #[test]
    fn an_end_that_is_not_known_has_no_series() {
        let metrics = Metrics::new();
        let mut state = Certificates {
            authority_ends: None,
            leaf_ends: Some(1_800_000_000),
            in_sync: true,
            trusted: true,
            kept: false,
        };
        metrics.certificates(&state);
        let expiry = "pgset_certificate_expiry_timestamp_seconds{kind=";
        assert_eq!(line(&metrics, &format!("{expiry}\"leaf\"")).unwrap(), format!("{expiry}\"leaf\"}} 1800000000.0"));
        assert_eq!(line(&metrics, &format!("{expiry}\"ca\"")), None);
        assert_eq!(line(&metrics, "pgset_certificate_trusted").unwrap(), "pgset_certificate_trusted 1");
        assert_eq!(line(&metrics, "pgset_certificate_upkeep_ok").unwrap(), "pgset_certificate_upkeep_ok 0");
        state.leaf_ends = None;
        metrics.certificates(&state);
        assert_eq!(line(&metrics, expiry), None);
    }
}
