//! `pgset backup verify`: a trial restore in a pod of its own, by the rights of whoever asks for it.
//!
//! pgset's own controller may make no pods: whoever stole its token could let one bring the credentials of every store.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;

use super::{
    Place, Which,
    job::{self, Wish},
};
use crate::{
    backup::{summary::Summary, verification::Verification},
    cli::{
        cluster::{Unread, items, text},
        inject::manifest::to_yaml,
        status::told::plain,
    },
    names::annotation,
    set::backup::{Location, Schedule},
};

/// How often it is looked whether it has ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The smallest volume, and what is added for the WAL that PostgreSQL writes while it recovers.
const LEAST_GIB: u64 = 2;
/// So much of what is needed the volume has.
const SPARE_PERCENT: u64 = 105;
/// The volume where no backup is known yet.
const UNKNOWN_GIB: u64 = 10;

type Error = Box<dyn std::error::Error>;

#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    #[command(flatten)]
    which: Which,
    /// Do it again and again: five fields as in a crontab, in UTC ("0 5 * * 0" is every Sunday)
    #[arg(long, value_name = "SCHEDULE", value_parser = schedule)]
    schedule: Option<Schedule>,
    /// What the restored database is asked; the first line of the answer is told with the result
    #[arg(long, value_name = "SQL")]
    query: Option<String>,
    /// The database that is asked
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    database: String,
    /// The size of the volume that it restores to [default: twice the database and 2Gi]
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// The class of that volume [default: the node's own disk (emptyDir)]
    #[arg(long, value_name = "NAME")]
    storage_class: Option<String>,
    /// How much memory it is given
    #[arg(long, value_name = "SIZE", default_value = "1Gi")]
    memory: String,
    /// How much of a processor it asks for
    #[arg(long, value_name = "AMOUNT", default_value = "250m")]
    cpu: String,
    /// Print the manifest, and change nothing
    #[arg(long)]
    print: bool,
    /// Wait for the result
    #[arg(short, long, conflicts_with_all = ["schedule", "print"])]
    wait: bool,
    /// For how long to wait; it goes on after that
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,
}

fn schedule(text: &str) -> Result<Schedule, String> {
    Schedule::parse(text).ok_or_else(|| format!("{text:?} is not five fields of a crontab"))
}

// === impl Verify ===

impl Verify {
    pub(super) async fn order(&self) -> Result<Result<(), String>, Error> {
        let place = Place::of(&self.which).await?;
        let set = match place.set().await? {
            Ok(set) => set,
            Err(why) => return Ok(Err(why)),
        };
        let told = text(&set, &super::pointer(annotation::BACKUP));
        let Some(location) = Location::parse(told) else {
            return Ok(Err(format!("{} on {} is no place for backups: {told:?}", annotation::BACKUP, place.name)));
        };
        let wish = Wish {
            location,
            query: self.query.clone(),
            database: self.database.clone(),
            size: self.size.clone().unwrap_or_else(|| size(None)),
            storage_class: self.storage_class.clone(),
            memory: self.memory.clone(),
            cpu: self.cpu.clone(),
        };
        // The Lease is asked only where it is needed: it takes a right.
        let wish = match &self.size {
            Some(_) => wish,
            None => Wish { size: size(place.summary().await?.as_ref()), ..wish },
        };
        let made = match &self.schedule {
            Some(schedule) => job::cron_job(&set, &wish, schedule),
            None => job::job(&set, &wish),
        };
        let mut made = match made {
            Ok(made) => made,
            Err(why) => return Ok(Err(format!("{}: {why}", place.name))),
        };
        if self.print {
            if let Some(metadata) = made.pointer_mut("/metadata").and_then(Value::as_object_mut) {
                metadata.remove("ownerReferences");
            }
            print!("{}", to_yaml(&made)?);
            return Ok(Ok(()));
        }
        let path = format!("/apis/batch/v1/namespaces/{}", place.namespace);
        if self.schedule.is_some() {
            let name = text(&made, "/metadata/name");
            let path = format!("{path}/cronjobs/{name}?force=true&fieldManager=pgset");
            let applied = place.cluster.apply(&path, &made).await;
            applied.map_err(|why| {
                format!(
                    "failed to apply CronJob {name}, which takes the right to patch and create cronjobs.batch: {why}"
                )
            })?;
            println!("CronJob {name} tries the newest backup again and again; kubectl delete cronjob {name} ends that");
            return Ok(Ok(()));
        }
        let posted = place.cluster.post(&format!("{path}/jobs"), &made).await;
        let posted =
            posted.map_err(|why| format!("failed to make a Job, which takes the right to create jobs.batch: {why}"))?;
        let name = text(&posted.value, "/metadata/name").to_owned();
        println!("Job {name} tries the newest backup");
        if self.wait { self.wait_for(&place, &name).await } else { Ok(Ok(())) }
    }

    async fn wait_for(&self, place: &Place, job: &str) -> Result<Result<(), String>, Error> {
        let namespace = &place.namespace;
        let path = format!("/apis/batch/v1/namespaces/{namespace}/jobs/{job}");
        let pods = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=batch.kubernetes.io/job-name%3D{job}");
        let since = Instant::now();
        let mut last = String::from("nothing is known of its pod");
        while since.elapsed() < Duration::from_secs(self.timeout.into()) {
            let object = match place.cluster.get(&path).await {
                Ok(object) => object,
                Err(Unread::Absent) => return Ok(Err(format!("Job {job} is gone"))),
                Err(why) => return Err(format!("failed to read Job {job}: {why}").into()),
            };
            let pods = place.cluster.list(&pods).await;
            let pods = pods.map_err(|why| format!("failed to read the pods of Job {job}: {why}"))?;
            if let Some(told) = pods.iter().filter_map(word).next_back() {
                last = told;
            }
            let ended = |condition: &str| {
                items(&object, "/status/conditions")
                    .any(|it| text(it, "/type") == condition && text(it, "/status") == "True")
            };
            if ended("Complete") {
                println!("{}", plain(&last));
                return Ok(Ok(()));
            }
            if ended("Failed") {
                return Ok(Err(plain(&last)));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(Err(format!("Job {job} has not ended within {} s, and goes on: {}", self.timeout, plain(&last))))
    }
}

/// What a pod says, or what is said of it.
fn word(pod: &Value) -> Option<String> {
    let state = items(pod, "/status/containerStatuses").next().and_then(|it| it.get("state"));
    let message = state.map(|state| text(state, "/terminated/message")).unwrap_or_default();
    if let Ok(found) = serde_json::from_str::<Verification>(message) {
        return Some(found.in_words());
    }
    let waiting = state.map(|state| text(state, "/waiting/message")).unwrap_or_default();
    let scheduled = items(pod, "/status/conditions").find(|it| text(it, "/type") == "PodScheduled");
    let unscheduled = scheduled.map(|it| text(it, "/message")).unwrap_or_default();
    [message, waiting, unscheduled].into_iter().find(|text| !text.is_empty()).map(str::to_owned)
}

/// Room for the newest backup and the full one upon which it stands, for what they become together or grew by since, and for the WAL.
fn size(summary: Option<&Summary>) -> String {
    let backups = summary.map_or(&[][..], |summary| &summary.backups);
    let whole = backups.last().map_or(UNKNOWN_GIB, |newest| {
        let parent = backups.iter().find(|it| Some(&it.id) == newest.parent.as_ref());
        let parts = newest.size + parent.map_or(0, |parent| parent.size);
        // A file system keeps some of a volume for itself.
        (parts.saturating_mul(2) / 100 * SPARE_PERCENT).div_ceil(1 << 30) + LEAST_GIB
    });
    format!("{whole}Gi")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_says_what_it_found_or_why_it_does_not_run() {
        let pod = |state: Value, condition: &str| json!({"status": {"containerStatuses": [{"state": state}], "conditions": [{"type": "PodScheduled", "message": condition}]}});
        let found = r#"{"format": 1, "started": "2026-11-30T05:00:00Z", "seconds": 41}"#;
        assert_eq!(word(&pod(json!({"terminated": {"message": found}}), "")).as_deref(), Some("restorable, took 41 s"));
        assert_eq!(word(&pod(json!({"waiting": {"message": "no image"}}), "")).as_deref(), Some("no image"));
        assert_eq!(word(&pod(json!({}), "0/3 nodes")).as_deref(), Some("0/3 nodes"));
        assert_eq!(word(&pod(json!({"running": {}}), "")), None);
    }

    #[test]
    fn the_volume_has_room_for_twice_the_database() {
        assert_eq!(size(None), "10Gi");
        let mut summary = Summary::default();
        let told = json!({"id": "a", "ended": "2026-11-30T05:00:00Z", "seconds": 1, "timeline": 1, "size": 5u64 << 30, "stored": 1});
        summary.backups.push(serde_json::from_value(told).unwrap());
        assert_eq!(size(Some(&summary)), "13Gi");
        let upon = json!({"id": "b", "ended": "2026-11-30T05:00:00Z", "seconds": 1, "timeline": 1, "size": 1u64 << 30, "stored": 1, "parent": "a"});
        summary.backups.push(serde_json::from_value(upon).unwrap());
        assert_eq!(size(Some(&summary)), "15Gi");
    }
}
