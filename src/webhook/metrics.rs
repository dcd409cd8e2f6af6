//! What is counted. Label values are words of this program only, never text of a request: the number of series is fixed.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use super::review::Decision;

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
}

// === impl Metrics ===

impl Metrics {
    /// Metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("pgset");
        let requests = Family::default();
        registry.register("admission_requests", "Reviews by operation and outcome", requests.clone());
        let denials = Family::default();
        registry.register("admission_denied", "Denied reviews by reason", denials.clone());
        let duration = Histogram::new(BUCKETS);
        registry.register_with_unit("admission_duration", "Time of a review", Unit::Seconds, duration.clone());
        let in_flight = Gauge::default();
        registry.register("admission_in_flight", "Reviews that are on their way", in_flight.clone());
        let panics = Counter::default();
        registry.register("panics", "Requests that ended in a panic", panics.clone());
        let certificate_expiry = Family::default();
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When the certificate ends, in Unix time",
            Unit::Seconds,
            certificate_expiry.clone(),
        );
        let in_sync = Gauge::default();
        registry.register(
            "webhook_configuration_in_sync",
            "Whether the API server trusts the certificate that is served",
            in_sync.clone(),
        );
        registry.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry, requests, denials, duration, in_flight, panics, certificate_expiry, in_sync }
    }

    /// A review was decided.
    pub(super) fn decided(&self, operation: &'static str, decision: &Decision, elapsed: Duration) {
        self.requests.get_or_create(&[("operation", operation), ("outcome", decision.word())]).inc();
        if let Some(code) = decision.code() {
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

    /// Notes when the certificates end (Unix seconds; what is not known has no series) and whether the API server trusts them.
    pub fn certificates(&self, authority: Option<u64>, leaf: Option<u64>, in_sync: bool) {
        for (kind, expiry) in [("ca", authority), ("leaf", leaf)] {
            if let Some(expiry) = expiry {
                #[expect(clippy::cast_precision_loss, reason = "Unix seconds are far below 2^52")]
                self.certificate_expiry.get_or_create(&[("kind", kind)]).set(expiry as f64);
            }
        }
        self.in_sync.set(i64::from(in_sync));
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
