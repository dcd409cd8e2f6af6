//! Admissions at a steady pace, each of which must succeed.

#![allow(dead_code)] // each test file uses its part

use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde_json::Value;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval_at},
};

/// How many admissions are asked for in a second.
pub const RATE: u32 = 100;

/// Who asks, each in turn: so many requests may be open before the pace slackens.
const WORKERS: u32 = 25;

/// Admissions that go on until they are told to stop.
pub struct Load {
    stop: watch::Sender<bool>,
    workers: JoinSet<Tally>,
    started: Instant,
}

/// What became of them.
#[derive(Debug, Default)]
pub struct Tally {
    pub answered: u32,
    /// When and why, of the first ones.
    pub failures: Vec<String>,
    pub slowest: Duration,
    pub time: Duration,
}

impl Load {
    /// Begins to create an annotated `StatefulSet`, without storing it.
    pub fn start(client: &Client, namespace: &str, object: &Value) -> Self {
        let (stop, stopped) = watch::channel(false);
        let path = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets?dryRun=All");
        let started = Instant::now();
        let mut workers = JoinSet::new();
        for number in 0..WORKERS {
            let (client, path, object) = (client.clone(), path.clone(), object.to_string());
            workers.spawn(work(client, path, object, number, started, stopped.clone()));
        }
        Self { stop, workers, started }
    }

    /// Stops, and tells what became of all of them.
    pub async fn stop(self) -> Tally {
        let _ = self.stop.send(true);
        let mut sum = Tally::default();
        for tally in self.workers.join_all().await {
            sum.answered += tally.answered;
            sum.failures.extend(tally.failures);
            sum.slowest = sum.slowest.max(tally.slowest);
        }
        sum.time = self.started.elapsed();
        sum
    }
}

impl Tally {
    /// None failed. The pace is told: a busy machine does not keep it, and at a fifth of it shows nothing.
    pub fn assert_perfect(&self) {
        let Self { answered, failures, slowest, time } = self;
        let pace = f64::from(*answered) / time.as_secs_f64();
        let failed = failures.len();
        eprintln!(
            "{answered} admissions in {time:.1?}, {pace:.0} a second; {failed} failed; the slowest took {slowest:.1?}"
        );
        assert!(failures.is_empty(), "{failed} of {answered} failed:\n{}", failures[..failed.min(20)].join("\n"));
        assert!(pace > f64::from(RATE) / 5.0, "only {pace:.0} a second: this machine is too busy to tell");
    }
}

async fn work(
    client: Client,
    path: String,
    object: String,
    number: u32,
    started: Instant,
    mut stopped: watch::Receiver<bool>,
) -> Tally {
    let period = Duration::from_secs(1) * WORKERS / RATE;
    let mut ticks = interval_at(tokio::time::Instant::from_std(started) + period * number / WORKERS, period);
    // What a stall has delayed is made up for: the pace holds on average.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut tally = Tally::default();
    while !*stopped.borrow() {
        // Cancel-safe: both arms only wait.
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.changed() => break,
        }
        let asked = Instant::now();
        if let Err(why) = admit(&client, &path, &object).await {
            tally.failures.push(format!("after {:.2?}: {why}", started.elapsed()));
        }
        tally.answered += 1;
        tally.slowest = tally.slowest.max(asked.elapsed());
    }
    tally
}

/// One admission: an error unless the API server accepts the object and the injection is in it.
async fn admit(client: &Client, path: &str, object: &str) -> Result<(), String> {
    let request = axum::http::Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(object.as_bytes().to_vec()))
        .map_err(|error| error.to_string())?;
    let response = client.send(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    if status.is_success() && text.contains("pgset-agent") { Ok(()) } else { Err(format!("{status}: {text:.400}")) }
}
