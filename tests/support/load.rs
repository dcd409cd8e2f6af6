//! Admissions at a steady pace, each of which must succeed: server-side dry runs of one object, from several clients at once.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kube::Client;
use serde_json::Value;
use tokio::{task::JoinHandle, time::MissedTickBehavior};

/// How many clients there are.
const CLIENTS: u32 = 10;
/// As many admissions in a second, all clients together.
pub const RATE: u32 = 100;

/// Admissions that go on until they are stopped.
pub struct Load {
    done: Arc<Mutex<Figures>>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
    started: Instant,
}

/// What became of them.
#[derive(Clone, Default)]
pub struct Figures {
    times: Vec<Duration>,
    pub failures: Vec<String>,
    lasted: Duration,
}

impl Load {
    /// Creates an object in a namespace [`RATE`] times a second, without storing it.
    pub fn start(client: &Client, namespace: &str, object: &Value) -> Self {
        let (done, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let started = Instant::now();
        let path = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets?dryRun=All");
        let clients = (0..CLIENTS).map(|n| {
            let (client, path, body) = (client.clone(), path.clone(), object.to_string());
            let (done, stop): (Arc<Mutex<Figures>>, Arc<AtomicBool>) = (Arc::clone(&done), Arc::clone(&stop));
            tokio::spawn(async move {
                let pace = Duration::from_secs(1) * CLIENTS / RATE;
                let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + pace * n / CLIENTS, pace);
                // A slow answer is no reason for fewer questions.
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                while !stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let request = axum::http::Request::post(&path).header("content-type", "application/json");
                    let asked = Instant::now();
                    let answer = client.request::<Value>(request.body(body.clone().into_bytes()).unwrap()).await;
                    let mut done = done.lock().unwrap();
                    match answer {
                        Ok(_) => done.times.push(asked.elapsed()),
                        Err(error) => {
                            let (at, after) = (started.elapsed().as_secs_f64(), asked.elapsed().as_secs_f64());
                            done.failures.push(format!("at {at:.3} s, after {after:.3} s: {error}"));
                        }
                    }
                }
            })
        });
        let clients = clients.collect();
        Self { done, stop, clients, started }
    }

    /// What became of them so far.
    pub fn so_far(&self) -> Figures {
        Figures { lasted: self.started.elapsed(), ..self.done.lock().unwrap().clone() }
    }

    /// Stops, and tells what became of all.
    pub async fn stop(self) -> Figures {
        let lasted = self.started.elapsed();
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        Figures { lasted, ..self.done.lock().unwrap().clone() }
    }
}

impl Figures {
    /// None failed, and there was something to fail: the pace was kept, by and large.
    pub fn assert_whole(&self, what: &str) {
        println!("{what}: {self}");
        assert!(self.failures.is_empty(), "{what}: {self}\n{}", self.failures[..self.failures.len().min(5)].join("\n"));
        let wanted = self.lasted.as_secs_f64() * f64::from(RATE);
        assert!(self.times.len() as f64 > wanted / 2.0, "{what}: {self}, far from {RATE} a second");
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times = self.times.clone();
        times.sort();
        let at = |part: usize| times.get((times.len() * part / 1000).min(times.len().saturating_sub(1))).copied();
        let [half, nearly_all, slowest] = [500, 990, 1000].map(|part| at(part).unwrap_or_default().as_secs_f64() * 1e3);
        let (count, seconds) = (times.len(), self.lasted.as_secs_f64());
        write!(
            formatter,
            "{count} admissions in {seconds:.1} s ({:.0} a second), {} failures; p50 {half:.1} ms, p99 {nearly_all:.1} ms, slowest {slowest:.0} ms",
            count as f64 / seconds,
            self.failures.len(),
        )
    }
}
