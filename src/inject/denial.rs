//! Why an object is refused. Every message says what was found, why it can't be, and what to do.

use std::fmt;

use serde_json::Value;

use crate::{
    names::{annotation, env, label, pod},
    set::{self, error::named},
};

/// A refusal: the object, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    object: String,
    reason: Reason,
    /// The namespace of a set that is stored: the annotation can't just be left out there, so the way past pgset is told.
    bypass_hint: Option<String>,
}

impl Denial {
    pub(super) fn new(object: &Value, is_stored_set: bool, reason: Reason) -> Self {
        let field = |key: &str| object.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Value::as_str);
        let name = match (field("name"), field("generateName")) {
            (None | Some(""), Some(prefix)) => named(&format!("{prefix}...")),
            (name, _) => named(name.unwrap_or_default()),
        };
        let namespace = field("namespace").map(named);
        let object = namespace.as_ref().map_or(name.clone(), |namespace| format!("{namespace}/{name}"));
        Self { object, reason, bypass_hint: namespace.filter(|_| is_stored_set) }
    }

    /// A short, fixed name for metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.reason.code()
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        &self.reason
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "StatefulSet {}: {}", self.object, self.reason)?;
        match &self.bypass_hint {
            Some(namespace) => {
                let key = label::WEBHOOK;
                write!(formatter, " (past pgset, in an emergency: kubectl label namespace {namespace} {key}=disabled)")
            }
            None => Ok(()),
        }
    }
}

impl std::error::Error for Denial {}

/// Why an object is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It can't be read as a set.
    #[error(transparent)]
    Set(#[from] set::Error),
    /// It uses a name that only pgset gives.
    #[error(
        "it has a {part}, a name that pgset gives to what it injects, but the annotation {key} does not account for it; \
         rename or remove the {part}", key = annotation::INJECTED
    )]
    Reserved {
        /// What has the name.
        part: String,
    },
    /// It is injected, but no longer asks for it.
    #[error(
        "it carries an injection (annotation {injected}), but not the annotation {inject}: enabled; add that, or take the \
         injection out with: pgset eject -f <file>", injected = annotation::INJECTED, inject = annotation::INJECT
    )]
    OrphanedInjection,
    /// The user sets a private variable.
    #[error(
        "container {container} sets {name}: the prefix {prefix} is pgset's own; rename the variable",
        prefix = env::PRIVATE_PREFIX
    )]
    PrivateVariable {
        /// The container.
        container: String,
        /// The variable.
        name: String,
    },
    /// The user sets a variable of the contract to something else than it must be.
    #[error(
        "container {container} sets {name} to {found}, but in this set it must be {expected}; remove or correct it"
    )]
    Variable {
        /// The container.
        container: String,
        /// The variable.
        name: &'static str,
        /// Its value, or where it comes from.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// The container starts something else than PostgreSQL.
    #[error(
        "container {container} starts {program}, but the agent must start PostgreSQL itself; let command and args be \
         PostgreSQL's own (args: [\"-c\", \"max_connections=300\"]){cure}, or use an image that implements PG_MODE=set with the \
         annotation {key}: image", key = annotation::CONTRACT
    )]
    Command {
        /// The container.
        container: String,
        /// The program.
        program: String,
        /// What else to do.
        cure: &'static str,
    },
    /// The data directory is an argument.
    #[error("container {container} sets the data directory by the argument {argument}; set PGDATA under env instead")]
    DataArgument {
        /// The container.
        container: String,
        /// The argument.
        argument: String,
    },
    /// The port that PostgreSQL is told is not the container's port.
    #[error(
        "container {container} is given the port {found} by {by}, but its containerPort is {port}; make them equal \
         (the containerPort named postgres counts)"
    )]
    Port {
        /// The container.
        container: String,
        /// What tells it.
        by: &'static str,
        /// The port that it tells.
        found: String,
        /// The port of the container.
        port: u16,
    },
    /// Somebody else in the pod listens where the agent does.
    #[error("container {container} has the containerPort {port}, which the agent listens on; use another port", port = pod::AGENT_PORT)]
    AgentPort {
        /// The container.
        container: String,
    },
    /// The user mounts something where the agent is mounted.
    #[error(
        "container {container} mounts volume {volume} at {mount_path}, where pgset mounts its own; mount it elsewhere"
    )]
    MountPath {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
        /// The path.
        mount_path: String,
    },
    /// A mount inside the data directory, which is replaced as a whole when a member is cloned or made anew.
    #[error(
        "container {container} mounts volume {volume} at {mount_path}, inside the data directory {pgdata}, which could then be neither \
         made, cloned nor replaced; {cure}"
    )]
    MountInData {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
        /// Where it is mounted.
        mount_path: String,
        /// PGDATA.
        pgdata: String,
        /// What to do.
        cure: String,
    },
    /// The pod's containers share their processes.
    #[error(
        "spec.template.spec.{field} is true, but pgset's agent must be the first process of its container: only so everything that may \
         write ends with it; remove {field} (to look into the container: kubectl debug POD --image=IMAGE --target=CONTAINER)"
    )]
    SharedProcesses {
        /// The field.
        field: &'static str,
    },
    /// Something else starts and replicates PostgreSQL.
    #[error(
        "container {container} runs {manager} ({how}), which starts, configures and replicates PostgreSQL in its own way, where pgset's \
         agent would; leave out the annotation {key} to keep it, or make a new set with the official image of the same major version \
         (postgres:<version>) and move the rows by pg_dump", key = annotation::INJECT
    )]
    ClusterManager {
        /// The container.
        container: String,
        /// What it runs.
        manager: &'static str,
        /// What shows it.
        how: String,
    },
    /// The revision is one that this pgset can't write.
    #[error(
        "its revision is {found}, but this pgset writes {known}; write annotation {key}: {newest} to move the set to this pgset's \
         revision (its members restart one by one), or install the pgset that knows it", key = annotation::REVISION
    )]
    Revision {
        /// The revision found.
        found: String,
        /// The revisions known.
        known: String,
        /// The newest of them.
        newest: &'static str,
    },
    /// A request without an end: kept in a file, it would restart the database after each upgrade of pgset.
    #[error(
        "annotation {key} is \"latest\", which in a file would restart the members at the first apply after each upgrade of pgset; \
         write {key}: {newest}, which is this pgset's revision", key = annotation::REVISION
    )]
    Latest {
        /// The newest revision.
        newest: &'static str,
    },
    /// The image's PostgreSQL is older than the agent can run.
    #[error(
        "image {image} is PostgreSQL {major}, and pgset's agent needs {oldest} or newer; leave out the annotation {key}, or make a \
         new set with an image of PostgreSQL {oldest} or newer and move the rows by pg_dump", key = annotation::INJECT
    )]
    TooOld {
        /// The image.
        image: String,
        /// Its major version.
        major: u32,
        /// The oldest that works.
        oldest: u32,
    },
    /// `spec.serviceName` is what another set's Service is called.
    #[error(
        "spec.serviceName is {name}: that name is kept for the Service of another set, whose clients would be sent to this one; \
         write spec.serviceName: {set}-pods"
    )]
    ServiceNameKept {
        /// The name.
        name: String,
        /// The set.
        set: String,
    },
    /// The pod is made anew, and with it goes its volume.
    #[error(
        "the data volume is {kind}, and with this change the pod of {name} is made anew: all rows would be lost; save them with \
         pg_dumpall, run: kubectl scale statefulset {name}{namespace} --replicas=0, then make this change, best with a volume that \
         stays, and load them again"
    )]
    DataInPod {
        /// What the volume is.
        kind: &'static str,
        /// The set's name.
        name: String,
        /// ` --namespace=...`.
        namespace: String,
    },
    /// The image declares a volume that hides the mount: the rows are in the container.
    #[error(
        "the data volume is mounted at {mount_path}, and the image {how} a volume at {declared}, which hides it: the rows are {how_sure}in \
         the container and would be lost with this change; {otherwise}save them with pg_dumpall, run: kubectl scale statefulset \
         {name}{namespace} --replicas=0, then make this change, and load them again",
        how = if *.surely { "declares" } else { "may declare" }, how_sure = if *.surely { "" } else { "perhaps " },
        otherwise = if *.surely {
            String::new()
        } else {
            format!("if they are on the mount, write PGDATA with their directory under env of container {container}; else ")
        }
    )]
    DataBehindImage {
        /// The container.
        container: String,
        /// Where the volume is mounted.
        mount_path: String,
        /// What hides it.
        declared: &'static str,
        /// Whether the image is known to do so.
        surely: bool,
        /// The set's name.
        name: String,
        /// ` --namespace=...`.
        namespace: String,
    },
    /// Several servers that know nothing of each other can't become one set.
    #[error(
        "it runs {replicas} servers, each with rows of its own or a copy that pgset did not make, and a set has one database: its first \
         member's; run: kubectl scale \
         statefulset {name}{namespace} --replicas=1, then annotate it, and scale it up again, with empty volumes for the others"
    )]
    SeveralDatabases {
        /// How many.
        replicas: u64,
        /// The set's name.
        name: String,
        /// ` --namespace=...`.
        namespace: String,
    },
    /// The injection would be taken out of a running set.
    #[error(
        "removing the annotation {key} takes out what makes its {replicas} members one set: {why}; first run: kubectl scale \
         statefulset {name}{namespace} --replicas={limit}", key = annotation::INJECT
    )]
    StillRunning {
        /// The set's name.
        name: String,
        /// ` --namespace=...`.
        namespace: String,
        /// How many members it has.
        replicas: u32,
        /// How many it may have.
        limit: u32,
        /// Why.
        why: &'static str,
    },
    /// The data would vanish from view.
    #[error(
        "with this change the data of {member} is looked for in {to}, but it is in {from}, so it would vanish from view; undo \
         the change, or run: kubectl scale statefulset {name}{namespace} --replicas=0, then move the data there yourself, and \
         then make this change"
    )]
    DataMoves {
        /// The set's name.
        name: String,
        /// ` --namespace=...`.
        namespace: String,
        /// The member whose data counts.
        member: String,
        /// Where the data is.
        from: String,
        /// Where it would be looked for.
        to: String,
    },
    /// There was no volume: what rows there are would go with the old container.
    #[error(
        "PostgreSQL of this set writes to no volume so far, so that its data is inside the container and would be lost with this change; \
         save it with pg_dumpall, run: kubectl scale statefulset {name}{namespace} --replicas=0, then make this change, and load it again"
    )]
    DataInContainer {
        /// The set's name.
        name: String,
        /// ` --namespace=...`.
        namespace: String,
    },
    /// The data stays on its volume, but would be looked for in another directory.
    #[error(
        "with this change PGDATA becomes {to}, but the data is in {from} as far as pgset can see; undo the change, or, before you annotate, \
         write PGDATA under env of container {container}, with the directory that the data is in"
    )]
    PgdataMoves {
        /// The container.
        container: String,
        /// Where the data is.
        from: String,
        /// Where it would be looked for.
        to: String,
    },
    /// PostgreSQL of one major version can't start on the data of another.
    #[error(
        "image {image} is PostgreSQL {to}, but the data is of PostgreSQL {from}, on which it can't start; keep the major version, \
         or make another set with the new image and move the data by pg_dump"
    )]
    MajorVersion {
        /// The new image.
        image: String,
        /// The old version.
        from: u32,
        /// The new version.
        to: u32,
    },
}

impl Reason {
    fn code(&self) -> &'static str {
        match self {
            Self::Set(error) => error.code(),
            Self::Reserved { .. } => "reserved_name",
            Self::OrphanedInjection => "leftover",
            Self::PrivateVariable { .. } | Self::Variable { .. } => "environment",
            Self::Command { .. } => "command",
            Self::DataArgument { .. } | Self::Port { .. } => "arguments",
            Self::AgentPort { .. } => "agent_port",
            Self::MountPath { .. } | Self::MountInData { .. } => "mount_path",
            Self::SharedProcesses { .. } => "shared_processes",
            Self::ClusterManager { .. } => "cluster_manager",
            Self::Revision { .. } | Self::Latest { .. } => "revision",
            Self::TooOld { .. } => "version",
            Self::ServiceNameKept { .. } => "service_name",
            Self::SeveralDatabases { .. } => "several_databases",
            Self::StillRunning { .. } => "still_running",
            Self::DataMoves { .. } | Self::DataInContainer { .. } | Self::PgdataMoves { .. } => "data_moves",
            Self::DataInPod { .. } | Self::DataBehindImage { .. } => "data_lost",
            Self::MajorVersion { .. } => "major_version",
        }
    }
}
