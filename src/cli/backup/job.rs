//! The Job of a trial restore, made of the set's own `StatefulSet`: its image and the credentials of the store, and nothing else of it. Pure.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{
    cli::cluster::{items, text},
    inject::store_items,
    names::{self, label, pod},
    set::backup::{Location, Schedule, Store},
};

/// Where the volume of the trial restore is mounted.
const PLACE: &str = "/pgset-verification";
const VOLUME: &str = "restored";
/// The label by which the pods of a set's trial restores are found. Not the set's own, by which pods are its members.
pub const VERIFIES: &str = "pgset.dev/verifies";
/// Tries while there is no backup yet or the store does not answer: an hour and more, by Kubernetes' growing pauses.
const TRIES: u32 = 12;
/// How long a Job stays for people to look at.
const STAYS_SECONDS: u32 = 86_400;

/// What is wished of a trial restore.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Where the backups are.
    pub location: Location,
    /// What the restored database is asked.
    pub query: Option<String>,
    /// In which database.
    pub database: String,
    /// The size of the volume, as Kubernetes writes it.
    pub size: String,
    /// The class of the volume; without one it is an `emptyDir`.
    pub storage_class: Option<String>,
    /// Memory, as Kubernetes writes it.
    pub memory: String,
    /// Processor, as Kubernetes writes it.
    pub cpu: String,
}

/// Why there is no such Job.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The template is not injected.
    #[error(
        "the set's template has no container {0} of pgset's: a trial restore runs what the injection brings (pgset explain says what is there)"
    )]
    NotInjected(&'static str),
    /// The backups are on a volume of one member's.
    #[error(
        "{0} is on the volume {1}, of which each member has its own: a trial restore can't be given that. Back up to a volume that all share, or to \
         an object store"
    )]
    OwnVolume(String, String),
    /// The backups are on no volume.
    #[error("{0} is on no volume of the set's PostgreSQL container")]
    NoVolume(String),
}

/// A Job that runs once, now.
pub fn job(set: &Value, wish: &Wish) -> Result<Value, Error> {
    let mut spec = job_spec(set, wish)?;
    spec.insert("ttlSecondsAfterFinished".to_owned(), json!(STAYS_SECONDS));
    let mut metadata = metadata(set);
    metadata.insert("generateName".to_owned(), json!(format!("{}-", name(set))));
    Ok(json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}))
}

/// One that runs again and again.
pub fn cron_job(set: &Value, wish: &Wish, schedule: &Schedule) -> Result<Value, Error> {
    let mut metadata = metadata(set);
    metadata.insert("name".to_owned(), json!(name(set)));
    Ok(json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata,
        "spec": {
            "schedule": schedule.as_str(), "timeZone": "Etc/UTC", "concurrencyPolicy": "Forbid",
            "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1,
            "jobTemplate": {"metadata": {"labels": labels(set)}, "spec": job_spec(set, wish)?},
        },
    }))
}

/// A Job's pods have eleven letters more, and its name is a label's value, of at most 63.
fn name(set: &Value) -> String {
    let name: String = text(set, "/metadata/name").chars().take(35).collect();
    format!("{}-pgset-verify", name.trim_end_matches(['-', '.']))
}

fn labels(set: &Value) -> Value {
    json!({label::MANAGED_BY: names::MANAGER, VERIFIES: text(set, "/metadata/name")})
}

fn metadata(set: &Value) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("namespace".to_owned(), json!(text(set, "/metadata/namespace")));
    metadata.insert("labels".to_owned(), labels(set));
    metadata.insert(
        "ownerReferences".to_owned(),
        json!([{
            "apiVersion": "apps/v1", "kind": "StatefulSet", "name": text(set, "/metadata/name"), "uid": text(set, "/metadata/uid"),
        }]),
    );
    metadata
}

fn job_spec(set: &Value, wish: &Wish) -> Result<Map<String, Value>, Error> {
    let template = json!({"metadata": {"labels": labels(set)}, "spec": pod_spec(set, wish)?});
    let spec = json!({
        "backoffLimit": TRIES,
        // What the trial restore found is no reason to try again.
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"containerName": "postgres", "operator": "In", "values": [FOUND]}}]},
        "template": template,
    });
    Ok(spec.as_object().cloned().unwrap_or_default())
}

/// The exit code of a trial restore that found something wrong.
const FOUND: i32 = 1;

fn pod_spec(set: &Value, wish: &Wish) -> Result<Value, Error> {
    let spec = set.pointer("/spec/template/spec").unwrap_or(&Value::Null);
    let bring = items(spec, "/initContainers").find(|it| text(it, "/name") == pod::INIT_CONTAINER);
    let bring = bring.ok_or(Error::NotInjected(pod::INIT_CONTAINER))?;
    let runs_agent = |it: &&Value| items(it, "/command").any(|word| word == pod::AGENT_PATH);
    let postgres = items(spec, "/containers").find(runs_agent).ok_or(Error::NotInjected("with its agent"))?;

    let mut volumes = vec![json!({"name": pod::RUN_VOLUME, "emptyDir": {}}), restored(wish), credentials(set)];
    let mut mounts = vec![
        json!({"name": pod::RUN_VOLUME, "mountPath": pod::RUN_PATH}),
        json!({"name": VOLUME, "mountPath": PLACE}),
        json!({"name": pod::ACCESS_VOLUME, "mountPath": pod::ACCESS_PATH, "readOnly": true}),
    ];
    if wish.location.store == Store::Directory {
        let (volume, mount) = mounted(set, postgres, &wish.location)?;
        volumes.push(volume);
        mounts.push(mount);
    }
    let resources = json!({"requests": {"cpu": wish.cpu, "memory": wish.memory}, "limits": {"memory": wish.memory}});
    let container = [
        ("name", json!("postgres")),
        ("command", json!(command(postgres, wish))),
        ("resources", resources.clone()),
        ("volumeMounts", json!(mounts)),
    ];
    let mut bring = bring.clone();
    bring["resources"] = resources;
    bring["volumeMounts"] = json!([{"name": pod::RUN_VOLUME, "mountPath": pod::COPY_PATH}]);
    let pod = [
        // A cloud knows the pod by its account; Kubernetes' API does not: it has no token.
        ("automountServiceAccountToken", json!(false)),
        ("enableServiceLinks", json!(false)),
        ("restartPolicy", json!("Never")),
        ("initContainers", json!([bring])),
        ("containers", json!([with(postgres, &["image", "imagePullPolicy", "securityContext"], container)])),
        ("volumes", json!(volumes)),
    ];
    let kept = [
        "serviceAccountName",
        "imagePullSecrets",
        "securityContext",
        "nodeSelector",
        "tolerations",
        "runtimeClassName",
    ];
    Ok(with(spec, &kept, pod))
}

/// Some fields of an object, and others.
fn with<const N: usize>(object: &Value, kept: &[&str], others: [(&str, Value); N]) -> Value {
    let kept = kept.iter().filter_map(|key| Some(((*key).to_owned(), object.get(key)?.clone())));
    Value::Object(kept.chain(others.map(|(key, value)| (key.to_owned(), value))).collect())
}

fn restored(wish: &Wish) -> Value {
    match &wish.storage_class {
        None => json!({"name": VOLUME, "emptyDir": {"sizeLimit": wish.size}}),
        Some(class) => json!({"name": VOLUME, "ephemeral": {"volumeClaimTemplate": {"spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": wish.size}},
        }}}}),
    }
}

fn credentials(set: &Value) -> Value {
    let secret = names::backup_credentials(text(set, "/metadata/name"));
    json!({"name": pod::ACCESS_VOLUME, "secret": {"secretName": secret, "optional": true, "items": store_items()}})
}

/// The volume that a directory is on, and its mount as the members have it.
fn mounted(set: &Value, postgres: &Value, location: &Location) -> Result<(Value, Value), Error> {
    let path = Path::new("/").join(&location.prefix);
    let covers = |mount: &&Value| path.starts_with(text(mount, "/mountPath"));
    let mount = items(postgres, "/volumeMounts").filter(covers).max_by_key(|it| text(it, "/mountPath").len());
    let mount = mount.ok_or_else(|| Error::NoVolume(location.to_string()))?;
    let name = text(mount, "/name");
    let volume = items(set, "/spec/template/spec/volumes").find(|volume| text(volume, "/name") == name);
    let is_shared = |volume: &&Value| {
        ["persistentVolumeClaim", "nfs", "csi", "hostPath", "cephfs", "azureFile"]
            .iter()
            .any(|kind| volume.get(kind).is_some())
    };
    let volume = volume.filter(is_shared);
    let volume = volume.ok_or_else(|| Error::OwnVolume(location.to_string(), name.to_owned()))?;
    let kept = with(mount, &["name", "mountPath", "subPath"], []);
    Ok((volume.clone(), kept))
}

/// The command, with what the set's container asks of the server: a library that it loads has to be loaded here as well.
fn command(postgres: &Value, wish: &Wish) -> Vec<String> {
    let words: Vec<&str> =
        ["/command", "/args"].iter().flat_map(|list| items(postgres, list)).filter_map(Value::as_str).collect();
    let (flags, own) = match words.iter().position(|word| *word == "--") {
        Some(at) => (words.get(..at).unwrap_or_default(), words.get(at + 1..).unwrap_or_default()),
        None => (words.as_slice(), &[][..]),
    };
    let of_image = flags.iter().filter_map(|word| word.strip_prefix("--image-argument="));
    let own: Vec<&str> = if own.is_empty() { of_image.collect() } else { own.to_vec() };
    let location = wish.location.to_string();
    let directory = format!("{PLACE}/data");
    let mut command = vec![pod::AGENT_PATH, "archiver", "verify", "--from", &location, "--directory", &directory];
    if let Some(query) = &wish.query {
        command.extend(["--database", &wish.database, "--query", query]);
    }
    command.push("--");
    command.into_iter().chain(own).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(change: impl FnOnce(&mut Value)) -> Value {
        let mut set = json!({
            "metadata": {"name": "db", "namespace": "shop", "uid": "u"},
            "spec": {"template": {"spec": {
                "serviceAccountName": "db-sa", "nodeName": "n", "securityContext": {"fsGroup": 999},
                "initContainers": [{"name": "mine"}, {"name": pod::INIT_CONTAINER, "image": "pgset", "volumeMounts": []}],
                "containers": [{"name": "sidecar"}, {
                    "name": "db", "image": "postgres:17", "env": [{"name": "POSTGRES_PASSWORD", "value": "secret"}],
                    "command": [pod::AGENT_PATH, "agent", "--set=db", "--", "postgres"], "args": ["-c", "shared_preload_libraries=x"],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "all", "mountPath": "/backup", "subPath": "b", "readOnly": false}],
                }],
                "volumes": [{"name": "all", "persistentVolumeClaim": {"claimName": "backups"}}],
            }}},
        });
        change(&mut set);
        set
    }

    fn wish(location: &str) -> Wish {
        Wish {
            location: Location::parse(location).unwrap(),
            query: Some("select 1".into()),
            database: "shop".into(),
            size: "2Gi".into(),
            storage_class: None,
            memory: "1Gi".into(),
            cpu: "250m".into(),
        }
    }

    #[test]
    fn a_trial_restore_has_the_sets_image_and_neither_its_token_nor_its_passwords() {
        let made = job(&set(|_| ()), &wish("s3://bucket/db")).unwrap();
        let pod_spec = &made["spec"]["template"]["spec"];
        assert_eq!(pod_spec["automountServiceAccountToken"], false);
        assert_eq!((&pod_spec["serviceAccountName"], pod_spec.get("nodeName")), (&json!("db-sa"), None));
        let container = &pod_spec["containers"][0];
        assert_eq!((&container["image"], container.get("env")), (&json!("postgres:17"), None));
        let command = [
            "/pgset/pgset",
            "archiver",
            "verify",
            "--from",
            "s3://bucket/db",
            "--directory",
            "/pgset-verification/data",
            "--database",
            "shop",
            "--query",
            "select 1",
            "--",
            "postgres",
            "-c",
            "shared_preload_libraries=x",
        ];
        assert_eq!(container["command"], json!(command));
        assert!(!made.to_string().contains("secret\","), "{made}");
        assert_eq!(made["metadata"]["labels"].get(label::SET), None, "it is no member");
        assert_eq!(pod_spec["initContainers"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn a_directory_comes_with_its_volume() {
        let made = job(&set(|_| ()), &wish("file:///backup/db")).unwrap();
        let pod_spec = &made["spec"]["template"]["spec"];
        assert_eq!(pod_spec["volumes"][3]["persistentVolumeClaim"]["claimName"], "backups");
        assert_eq!(
            pod_spec["containers"][0]["volumeMounts"][3],
            json!({"name": "all", "mountPath": "/backup", "subPath": "b"})
        );
        let own = job(&set(|_| ()), &wish("file:///data/db"));
        assert_eq!(own, Err(Error::OwnVolume("file:///data/db".into(), "data".into())));
        assert_eq!(job(&set(|_| ()), &wish("file:///x")), Err(Error::NoVolume("file:///x".into())));
    }

    #[test]
    fn a_set_that_is_not_injected_has_none() {
        let bare = set(|it| it["spec"]["template"]["spec"]["initContainers"] = json!([]));
        assert_eq!(job(&bare, &wish("s3://bucket/db")), Err(Error::NotInjected(pod::INIT_CONTAINER)));
    }

    #[test]
    fn the_longest_name_of_a_set_leaves_room_for_that_of_a_cron_jobs_pod() {
        let long = set(|it| it["metadata"]["name"] = json!("d".repeat(60)));
        let schedule = Schedule::parse("0 5 * * 0").unwrap();
        let made = cron_job(&long, &wish("s3://bucket/db"), &schedule).unwrap();
        assert!(text(&made, "/metadata/name").len() <= 52, "{made}");
    }
}
