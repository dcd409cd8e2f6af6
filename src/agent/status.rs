//! What a member tells anybody, on the port where [the other members ask it](super::peers): whether it is well, and metrics.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::events::{Reason, Teller};
use crate::backup::in_place::Told;
use crate::backup::report::Report;
use crate::errors::with_causes;
use crate::invariants::{self, Invariant};
use crate::names;
use crate::webhook::server::Bound;

/// The main loop turns every second; after so long without a turn the member is stuck, and its container is better begun anew.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// How long an answer to the startup probe may take; the injected probe waits for two seconds.
const STARTUP_PATIENCE: Duration = Duration::from_millis(1500);

/// How often a port that another process has is tried again.
const LISTEN_RETRY: Duration = Duration::from_secs(10);

/// A member's own account.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each of them is told by itself")]
pub struct Status {
    /// `master`, `replica` or `none`.
    pub role: &'static str,
    /// What it does, or what it waits for.
    pub message: String,
    /// PostgreSQL accepted connections in its role, once.
    pub started: bool,
    /// It can serve its role now.
    pub ready: bool,
    /// It is not, and says that it is: a later member is made only then, and this one waits for that.
    pub makes_way: bool,
    /// It holds the set's Lease.
    pub leads: bool,
    /// PostgreSQL's system identifier.
    pub system_identifier: Option<String>,
    /// The timeline that it writes or receives.
    pub timeline: Option<u32>,
    /// Bytes received and not yet replayed (replica).
    pub replay_lag_bytes: i64,
    /// PostgreSQL leaves its archive to pgset; not known before its first start.
    pub archives: Option<bool>,
    /// How the archive is, where backups are wanted.
    pub backup: Option<Box<Report>>,
    /// What is told of a recovery in place.
    pub recovery: Option<Box<Told>>,
    /// When the main loop last turned; absent while it waits for something without a limit, such as PostgreSQL's shutdown.
    pub last_tick: Option<Instant>,
}

/// Counts over the life of this container.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Clones that were completed.
    pub clones: Counter<u64, AtomicU64>,
    /// Rewinds of a former master's data that were completed.
    pub rewinds: Counter<u64, AtomicU64>,
    /// New databases that were made.
    pub bootstraps: Counter<u64, AtomicU64>,
    /// Starts of PostgreSQL.
    pub starts: Counter<u64, AtomicU64>,
    /// Times that PostgreSQL was stopped because the Lease could not be kept.
    pub fences: Counter<u64, AtomicU64>,
    /// Times that this member was promoted.
    pub promotions: Counter<u64, AtomicU64>,
}

/// The main loop's end: publish.
#[derive(Clone, Debug)]
pub struct StatusHandle {
    status: Arc<ArcSwap<Status>>,
    /// What happened so far.
    pub counts: Counts,
}

// === impl StatusHandle ===

impl StatusHandle {
    /// Of a member that has done nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let status = Status {
            role: "none",
            message: "starting".to_owned(),
            started: false,
            ready: false,
            makes_way: false,
            leads: false,
            system_identifier: None,
            timeline: None,
            replay_lag_bytes: 0,
            archives: None,
            backup: None,
            recovery: None,
            last_tick: Some(Instant::now()),
        };
        Self { status: Arc::new(ArcSwap::from_pointee(status)), counts: Counts::default() }
    }

    /// Changes the account.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        let mut status = Status::clone(&self.status.load());
        change(&mut status);
        self.status.store(Arc::new(status));
    }

    /// The account as it is.
    #[must_use]
    pub fn current(&self) -> Arc<Status> {
        self.status.load_full()
    }

    /// The probes and metrics.
    pub fn router(self) -> Router {
        Router::new()
            .route("/livez", get(live))
            .route("/startupz", get(started))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self)
    }
}

/// Answers on the agent's port for as long as the agent lives. PostgreSQL does not wait for it: a port that another process of the pod
/// has is told and tried again, and the database runs meanwhile.
pub async fn serve(router: Router, teller: Teller) {
    loop {
        let outcome = match Bound::new(names::pod::AGENT_PORT) {
            Ok(port) => port.serve_members(router.clone()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            let note = format!(
                "{}: another process in this pod, or on its node with hostNetwork, has it; PostgreSQL \
                 runs all the same, but the injected probes get no answer, so the pod does not become Ready; give the other one another port",
                with_causes(&error)
            );
            warn!("{note}");
            teller.tell(Reason::PortTaken, &note);
        }
        sleep(LISTEN_RETRY).await;
    }
}

/// A word, and no more: whoever asks may be a stranger.
fn answer(good: bool) -> impl IntoResponse {
    if good { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}

async fn live(State(status_handle): State<StatusHandle>) -> impl IntoResponse {
    let silent = status_handle.current().last_tick.map_or(Duration::ZERO, |at| at.elapsed());
    answer(silent < STUCK_AFTER)
}

/// Answers as soon as PostgreSQL has started: the kubelet asks once a second, and a set of many members would wait for each of them
/// up to a second longer than it has to.
async fn started(State(status_handle): State<StatusHandle>) -> impl IntoResponse {
    let asked = Instant::now();
    let has_started = || status_handle.current().started || status_handle.current().makes_way;
    while !has_started() && asked.elapsed() < STARTUP_PATIENCE {
        sleep(STARTUP_PATIENCE / 50).await;
    }
    answer(has_started())
}

async fn ready(State(status_handle): State<StatusHandle>) -> impl IntoResponse {
    let status = status_handle.current();
    answer(status.ready || status.makes_way)
}

async fn metrics(State(status_handle): State<StatusHandle>) -> impl IntoResponse {
    let status = status_handle.current();
    let mut registry = Registry::with_prefix("pgset");
    let role = Family::<[(&str, &str); 1], Gauge>::default();
    for name in ["master", "replica"] {
        role.get_or_create(&[("role", name)]).set(i64::from(status.role == name));
    }
    registry.register("role", "1 for the role that this member has", role);
    let mut gauge = |name: &str, help: &str, value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    gauge("ready", "1 while this member can serve its role", status.ready.into());
    gauge("leads", "1 while this member holds the set's Lease", status.leads.into());
    gauge("timeline", "The timeline that this member writes or receives", status.timeline.unwrap_or(0).into());
    gauge("replay_lag_bytes", "Bytes received and not yet replayed", status.replay_lag_bytes);
    let Counts { clones, rewinds, bootstraps, starts, fences, promotions } = status_handle.counts.clone();
    registry.register("clones", "Clones completed since the container started", clones);
    registry.register("rewinds", "Rewinds of a former master's data since the container started", rewinds);
    registry.register("bootstraps", "Databases made since the container started", bootstraps);
    registry.register("postgres_starts", "Starts of PostgreSQL since the container started", starts);
    registry.register("promotions", "Promotions since the container started", promotions);
    registry.register("fences", "Stops of PostgreSQL because the Lease could not be kept", fences);
    if let Some(report) = &status.backup {
        backups(&mut registry, report);
    }
    invariants::register(&mut registry, &Invariant::OF_MEMBER);
    let mut text = String::new();
    let code = if encode(&mut text, &registry).is_ok() { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (code, [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

/// How the archive is, as this member knows it.
fn backups(registry: &mut Registry, report: &Report) {
    let mut gauge = |name: &str, help: &str, value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    gauge("backups", "Complete base backups of the set", i64::try_from(report.backups.len()).unwrap_or(i64::MAX));
    if let Some(newest) = report.backups.last() {
        gauge(
            "backup_completed_timestamp_seconds",
            "When the newest base backup was complete",
            newest.ended.as_second(),
        );
        gauge("backup_size_bytes", "Bytes of the database in the newest base backup", bytes(newest.size));
        gauge("backup_stored_bytes", "Bytes that the newest base backup takes in the store", bytes(newest.stored));
    }
    if let Some((_, at)) = &report.archived {
        gauge(
            "wal_archived_timestamp_seconds",
            "When this member last saw a file of the WAL safely stored",
            at.as_second(),
        );
    }
    gauge(
        "wal_waiting_files",
        "Files of the WAL that wait to be archived on this member's volume",
        i64::try_from(report.waiting).unwrap_or(i64::MAX),
    );
    if let Some(left) = report.left {
        gauge("wal_waiting_left_bytes", "Bytes of the WAL more that may wait before they are let go", bytes(left));
    }
    let is_gap = i64::from(report.gap.is_some());
    gauge("wal_gap", "1 from when this member let WAL go until there is a base backup behind it", is_gap);
    let is_well = report.trouble.is_none() && report.alarm.is_none();
    gauge("wal_archiving_ok", "1 while nothing goes wrong with the archiving of the WAL", is_well.into());
    gauge("backup_ok", "0 if this member's last base backup failed", report.failed.is_none().into());
    if let Some(found) = &report.verified {
        gauge("backup_verified_timestamp_seconds", "When the last trial restore began", found.started.as_second());
        gauge("backup_verified_ok", "0 if the last trial restore failed", found.failed.is_none().into());
        gauge("backup_verified_seconds", "How long the last trial restore took", bytes(found.seconds));
        if let Some(to) = found.restorable_to {
            gauge("backup_restorable_timestamp_seconds", "The last commit that it had", to.as_second());
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(status_handle: &StatusHandle, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = status_handle.clone().router().oneshot(request).await.unwrap();
        let code = response.status();
        (code, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_serves_its_role_is_ready_and_a_stranger_hears_no_more_than_that() {
        let status_handle = StatusHandle::new();
        status_handle.update(|status| "waiting for the master to start".clone_into(&mut status.message));
        for path in ["/readyz", "/startupz"] {
            assert_eq!(ask(&status_handle, path).await, (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()));
        }
        status_handle.update(|status| (status.started, status.ready) = (true, true));
        for path in ["/readyz", "/startupz", "/livez"] {
            assert_eq!(ask(&status_handle, path).await, (StatusCode::OK, "ok\n".to_owned()));
        }
        assert_eq!(ask(&status_handle, "/status").await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test(start_paused = true)]
    async fn the_startup_probe_is_answered_the_moment_that_postgresql_has_started() {
        let status_handle = StatusHandle::new();
        let began = Instant::now();
        assert_eq!(ask(&status_handle, "/startupz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert!(began.elapsed() < Duration::from_secs(2), "longer than the probe waits");

        let later = status_handle.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(300)).await;
            later.update(|status| status.started = true);
        });
        let began = Instant::now();
        assert_eq!(ask(&status_handle, "/startupz").await.0, StatusCode::OK);
        assert!(began.elapsed() < Duration::from_millis(400));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_member_is_not_alive_and_one_that_shuts_down_for_long_is() {
        let status_handle = StatusHandle::new();
        sleep(STUCK_AFTER + Duration::from_secs(1)).await;
        assert_eq!(ask(&status_handle, "/livez").await.0, StatusCode::SERVICE_UNAVAILABLE);
        status_handle.update(|status| status.last_tick = None);
        assert_eq!(ask(&status_handle, "/livez").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn metrics_tell_of_backups_where_there_are_to_be_some() {
        let status_handle = StatusHandle::new();
        assert!(!ask(&status_handle, "/metrics").await.1.contains("pgset_backups"));
        let trouble = Some(("no route".to_owned(), k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        status_handle
            .update(|status| status.backup = Some(Box::new(Report { waiting: 3, trouble, ..Report::default() })));
        let (_, text) = ask(&status_handle, "/metrics").await;
        for line in ["pgset_backups 0", "pgset_wal_waiting_files 3", "pgset_wal_archiving_ok 0", "pgset_backup_ok 1"] {
            assert!(text.lines().any(|it| it == line), "{line} in {text}");
        }
    }

    #[tokio::test]
    async fn metrics_tell_the_role_and_the_clones() {
        let status_handle = StatusHandle::new();
        status_handle.update(|status| status.role = "replica");
        status_handle.counts.clones.inc();
        let (_, text) = ask(&status_handle, "/metrics").await;
        for line in [
            "pgset_role{role=\"replica\"} 1",
            "pgset_role{role=\"master\"} 0",
            "pgset_clones_total 1",
            "pgset_invariants_broken_total{invariant=\"epoch_has_one_leader\"} ",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
