//! What an injected set carries, told from its record.

use serde_json::{Value, json};

use crate::{
    children,
    cli::{
        check::sets::pointer,
        cluster::{items, text},
    },
    inject::REVISION,
    names::{annotation, env, pod},
    set::{Contract, DataSource, Set, record::Record, shape::IMAGE_ARGUMENT},
};

/// What was injected, and what stands beside the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    /// The revision that the set is pinned to.
    pub revision: String,
    /// Who implements `PG_MODE=set`.
    pub contract: &'static str,
    /// The PostgreSQL container.
    pub container: String,
    /// The agent's image, with contract `agent`.
    pub agent_image: String,
    /// What was added, one line for each sort.
    pub added: Vec<String>,
    /// Where the data is.
    pub data: String,
    /// The key of the role label, and its values.
    pub role_label: [String; 3],
    /// What the members run as.
    pub service_account: String,
    /// The Secret with the passwords.
    pub credentials: String,
    /// The objects beside the set, with their kinds.
    pub beside: Vec<String>,
}

impl Injection {
    /// Reads what an injected object says of itself; `None` if it says nothing, or nothing that can be read.
    pub fn of(object: &Value) -> Option<Self> {
        let record = Record::to_look_at(object).ok()??;
        let set = Set::parse(object).ok()?;
        let mut init_containers = items(object, "/spec/template/spec/initContainers");
        let agent = init_containers.find(|container| text(container, "/name") == pod::INIT_CONTAINER);
        Some(Self {
            revision: text(object, &pointer(annotation::REVISION)).to_owned(),
            contract: match set.contract {
                Contract::Agent => "agent",
                Contract::Image => "image",
            },
            agent_image: agent.map(|agent| text(agent, "/image").to_owned()).unwrap_or_default(),
            added: added(&record, container(&set, object)),
            data: data(&set, object),
            role_label: [set.role_label.key.clone(), set.role_label.master.clone(), set.role_label.replica.clone()],
            service_account: set.service_account.clone(),
            credentials: set.credentials.clone(),
            beside: beside(&set),
            container: set.container,
        })
    }

    /// Whether this version gives another revision to new sets.
    pub fn is_behind(&self) -> bool {
        self.revision != REVISION
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let [key, master, replica] = &self.role_label;
        json!({
            "revision": self.revision,
            "presentRevision": REVISION,
            "contract": self.contract,
            "container": self.container,
            "agentImage": self.agent_image,
            "added": self.added,
            "data": self.data,
            "roleLabel": {"key": key, "master": master, "replica": replica},
            "serviceAccount": self.service_account,
            "credentials": self.credentials,
            "beside": self.beside,
        })
    }

    /// For people: a heading and what it says, one line each.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let revision = if self.is_behind() {
            format!(
                "{}; this version gives {REVISION} to new sets. To move this one, which restarts its members one by one, annotate \
                 it with {}={REVISION}",
                self.revision,
                annotation::REVISION
            )
        } else {
            format!("{}, the present one", self.revision)
        };
        let [key, master, replica] = &self.role_label;
        let mut lines =
            vec![("revision", revision), ("contract", format!("{}, in container {}", self.contract, self.container))];
        if !self.agent_image.is_empty() {
            lines.push(("agent", self.agent_image.clone()));
        }
        lines.extend(self.added.iter().map(|added| ("added", added.clone())));
        lines.push(("data", self.data.clone()));
        lines.push(("role", format!("label {key}: {master} or {replica}")));
        lines.push(("runs as", format!("ServiceAccount {}", self.service_account)));
        lines.push(("passwords", format!("Secret {}", self.credentials)));
        lines.push(("beside it", self.beside.join(", ")));
        lines
    }
}

/// What the record names, sort by sort.
fn added(record: &Record, container: &Value) -> Vec<String> {
    let mut added = Vec::new();
    let mut sort = |name: &str, found: Vec<String>| {
        if !found.is_empty() {
            added.push(format!("{name} {}", found.join(", ")));
        }
    };
    sort("labels of the pods", record.labels.iter().map(|(key, value)| format!("{key}={value}")).collect());
    sort("service account", record.service_account_name.iter().cloned().collect());
    sort("volumes", record.volumes.clone());
    sort("init containers", record.init_containers.clone());
    if record.command {
        sort("before the container's command", vec![pod::AGENT_PATH.to_owned()]);
        let words = items(container, "/command").filter_map(Value::as_str);
        let kept = words.filter_map(|word| word.strip_prefix(IMAGE_ARGUMENT)).collect::<Vec<_>>().join(" ");
        sort("from the image's CMD", Some(kept).into_iter().filter(|kept| !kept.is_empty()).collect());
    }
    sort("environment", record.env.keys().cloned().collect());
    sort("mounts", record.volume_mounts.clone());
    sort("sub-path of the mount", record.sub_paths.clone());
    sort("in place, where it is without pgset: the data of", record.in_place.iter().cloned().collect());
    sort("probes", record.probes.iter().map(|probe| probe.field().to_owned()).collect());
    added
}

/// The PostgreSQL container.
fn container<'a>(set: &Set, object: &'a Value) -> &'a Value {
    let mut containers = items(object, "/spec/template/spec/containers");
    containers.find(|it| text(it, "/name") == set.container).unwrap_or(&Value::Null)
}

fn data(set: &Set, object: &Value) -> String {
    let place = match &set.data {
        DataSource::Claim { claim } => format!("claim {claim}, mounted at {}, one directory a member", pod::DATA_PATH),
        DataSource::Shared { volume, mount_path } => {
            format!("shared volume {volume}, mounted at {mount_path}, one directory a member")
        }
        DataSource::Own { volume, mount_path } => format!("volume {volume}, mounted at {mount_path}"),
    };
    let pgdata = items(container(set, object), "/env").find(|variable| text(variable, "/name") == env::PGDATA);
    match pgdata.map(|variable| text(variable, "/value")).filter(|path| !path.is_empty()) {
        Some(path) => format!("{place}; PGDATA is {path}"),
        None => place,
    }
}

/// What the controller keeps beside the set, without those that it would not make for this one.
fn beside(set: &Set) -> Vec<String> {
    children::places(set).into_iter().map(|(kind, name)| format!("{kind} {name}")).collect()
}
