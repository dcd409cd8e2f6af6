//! Why an annotated `StatefulSet` is not a set. Each message names the field, what was found, what is allowed and what to do.

use crate::names::{annotation, env, label};

/// What is said where PGDATA may be set and can't be seen: what runs has to say it first, or its rows would seem to move.
const PGDATA_UNSEEN: &str =
    " (if the image or envFrom sets PGDATA to a directory there: write that under env first, and annotate after it)";

/// Why an annotated `StatefulSet` is not a set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field holds another type than Kubernetes gives it.
    #[error("{field} is {found}, but must be {expected}; correct {field}")]
    Type {
        /// The field's path.
        field: String,
        /// The type that it must have.
        expected: &'static str,
        /// The type that was found; never the value, which may be secret.
        found: &'static str,
    },
    /// A number is out of its range.
    #[error("{field} is {found}, but must be a whole number from {low} to {high}; correct {field}")]
    Range {
        /// The field's path.
        field: String,
        /// The number.
        found: String,
        /// The lowest value allowed.
        low: i64,
        /// The highest value allowed.
        high: i64,
    },
    /// `metadata.name` can't carry the names that are made of it.
    #[error(
        "metadata.name is {name}: a set's name also names Services and pods, so it must start with a letter, hold only \
         lower-case letters, digits and dashes, end with a letter or digit, and have at most 52 characters; choose such \
         a name"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The API server is to make the name, and does so only after admission.
    #[error(
        "metadata.generateName leaves the name to the API server, which makes it too late: a set's Services and pods, and \
         with them its settings, are named after the set; write metadata.name"
    )]
    GeneratedName,
    /// `spec.serviceName` is no Service's name.
    #[error("spec.serviceName is {name}, which can't name a Service; use a name such as {set}")]
    ServiceName {
        /// The name.
        name: String,
        /// The set.
        set: String,
    },
    /// `pgset.dev/inject` has another value than `enabled`.
    #[error(
        "annotation {key} is {value}: the only value is \"enabled\"; write {key}: enabled, or remove the annotation",
        key = annotation::INJECT
    )]
    Inject {
        /// The value.
        value: String,
    },
    /// An annotation's value is outside its grammar.
    #[error("annotation {annotation} is {value}: allowed is {allowed}; correct or remove the annotation")]
    Annotation {
        /// The annotation's key.
        annotation: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// An annotation with our prefix that pgset does not know.
    #[error("annotation {annotation} is unknown{suggestion}; correct or remove it", suggestion = did_you_mean(*.suggestion))]
    Unknown {
        /// The annotation's key.
        annotation: String,
        /// The annotation that was probably meant.
        suggestion: Option<&'static str>,
    },
    /// `pgset.dev/follow` stands on the set.
    #[error("annotation {key} belongs on a Service, not on a StatefulSet; move it there", key = annotation::FOLLOW)]
    Follow,
    /// Nothing says which container runs PostgreSQL.
    #[error(
        "spec.template.spec.containers has {names}: which one runs PostgreSQL? {why}; say so with the annotation {key}: <name>",
        key = annotation::CONTAINER
    )]
    WhichContainer {
        /// The names of those that may be it.
        names: String,
        /// Why none of them is singled out.
        why: &'static str,
    },
    /// The annotation names a container that is not there.
    #[error(
        "annotation {key} is {value}, but spec.template.spec.containers has {names}; name one of these",
        key = annotation::CONTAINER
    )]
    NoSuchContainer {
        /// The annotation's value.
        value: String,
        /// The names of the containers.
        names: String,
    },
    /// A container can't be told from another: the API server would refuse it too.
    #[error("spec.template.spec.containers are {names}: each needs a name of its own; correct the names")]
    ContainerNames {
        /// The names of the containers.
        names: String,
    },
    /// There is no container at all.
    #[error("spec.template.spec.containers is empty; add the PostgreSQL container")]
    NoContainer,
    /// The set selects on the label that carries the role.
    #[error(
        "spec.selector selects on the label {key}, which carries the member's role: as soon as a member becomes master, \
         the StatefulSet would lose it and could not make it again (kubernetes/kubernetes#46901); select on other labels \
         only, or name another key with the annotation {annotation}", annotation = annotation::ROLE_LABEL
    )]
    Selector {
        /// The label's key.
        key: String,
    },
    /// The template gives the role label another value than a replica's.
    #[error(
        "spec.template.metadata.labels has {key}: {found}, but this label carries the member's role and must start as \
         {replica}; remove the label, or name another key with the annotation {annotation}",
        annotation = annotation::ROLE_LABEL
    )]
    RoleLabel {
        /// The label's key.
        key: String,
        /// The template's value.
        found: String,
        /// The value that a replica has.
        replica: String,
    },
    /// The template gives the set's label another value than the set's name.
    #[error(
        "spec.template.metadata.labels has {key}: {found}, but this label names the set, {set}; remove the label, pgset adds it",
        key = label::SET
    )]
    SetLabel {
        /// The template's value.
        found: String,
        /// The set.
        set: String,
    },
    /// The annotation and the template name different service accounts.
    #[error(
        "annotation {key} is {annotation}, but the template's serviceAccountName is {template}; remove one of the two",
        key = annotation::SERVICE_ACCOUNT
    )]
    ServiceAccount {
        /// The annotation's value.
        annotation: String,
        /// The template's account.
        template: String,
    },
    /// The claim and a data volume of the set's own.
    #[error(
        "annotation {key} is {claim}, but the set has a volume for its data already: {volume}, mounted at {mount_path}; \
         remove the annotation to use that volume, or remove the volume's mount to use the claim",
        key = annotation::CLAIM
    )]
    ClaimAndVolume {
        /// The claim.
        claim: String,
        /// The volume.
        volume: String,
        /// Where it is mounted.
        mount_path: String,
    },
    /// Nobody in the container makes backups.
    #[error(
        "annotation {key} asks pgset's agent for something, but contract image runs no agent: back the database up by the image's own means, or \
         write {contract}: agent, and remove the annotation otherwise",
        contract = annotation::CONTRACT
    )]
    BackupByImage {
        /// The annotation.
        key: &'static str,
    },
    /// The set's injection is of a pgset that knew no backups.
    #[error(
        "annotation {key} asks for what the injection of 0.1.0 has not: move the set to a later one first, which restarts its members one by one: \
         write {revision}: {current}",
        revision = annotation::REVISION,
        current = env!("CARGO_PKG_VERSION")
    )]
    BackupBeforeRevision {
        /// The annotation.
        key: &'static str,
    },
    /// The backups that a set is made of would be mixed with its own.
    #[error(
        "annotation {to} is {backup}, and {from} is {restore}: a restored set goes on in a history of its own, and would mix it with the one that \
         it comes from; give it a place of its own in {to}",
        to = annotation::BACKUP,
        from = annotation::RESTORE_FROM
    )]
    RestoreIntoOriginal {
        /// The place of its own backups.
        backup: String,
        /// Where it comes from.
        restore: String,
    },
    /// The annotation names a volume that the container does not mount.
    #[error(
        "annotation {key} is {volume}, but container {container} mounts {mounted}; name one of these, or mount the volume",
        key = annotation::VOLUME
    )]
    NotMounted {
        /// The annotation's value.
        volume: String,
        /// The container.
        container: String,
        /// The volumes that it mounts.
        mounted: String,
    },
    /// The volume cannot hold data.
    #[error("annotation {key} is {volume}, which is a {kind} and can't hold data; name another volume", key = annotation::VOLUME)]
    NotForData {
        /// The annotation's value.
        volume: String,
        /// The volume's type.
        kind: String,
    },
    /// There is nowhere to put the data.
    #[error(
        "container {container} mounts no volume for its data (looked {place}); either name a shared claim of this \
         namespace with the annotation {key}: <claim>, or add a volume to the StatefulSet and mount it at {usual}",
        key = annotation::CLAIM
    )]
    NoData {
        /// The container.
        container: String,
        /// Where a mount was looked for.
        place: String,
        /// The image's usual data directory.
        usual: String,
    },
    /// A volume is mounted where PostgreSQL never writes.
    #[error(
        "container {container} mounts volume {volume} at {mount_path}, where PostgreSQL of its image never writes: it keeps its data in \
         {usual}, so that the rows of a pod that runs are in its container, and go with it; save them first with pg_dumpall, and then \
         mount {volume} at {usual_mount}, or write PGDATA: {mount_path}/data under env{}", if *.is_unsure { PGDATA_UNSEEN } else { "" }
    )]
    DataElsewhere {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
        /// Where it is mounted.
        mount_path: String,
        /// The image's usual data directory.
        usual: String,
        /// Where it should be mounted.
        usual_mount: &'static str,
        /// Whether PGDATA may be set where it can't be seen.
        is_unsure: bool,
    },
    /// There is a volume, and the container has no mount of it.
    #[error(
        "container {container} does not mount volume {volume}, so that the rows of a pod that runs are in its container, and go with it; \
         save them first with pg_dumpall, and then mount {volume} at {place} under volumeMounts"
    )]
    NeverMounted {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
        /// Where it should be mounted.
        place: String,
    },
    /// A mount's volume is nowhere: the API server would refuse that too.
    #[error(
        "container {container} mounts volume {volume} at {mount_path}, but neither spec.volumeClaimTemplates nor \
         spec.template.spec.volumes has a volume of that name; add it, or correct the name under volumeMounts"
    )]
    Undeclared {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
        /// Where it is mounted.
        mount_path: String,
    },
    /// A shared volume is mounted with one fixed sub-path: all members would write to one directory.
    #[error(
        "container {container} mounts the shared volume {volume} at {mount_path} with subPath: {sub_path}: all members \
         would write to this one directory; replace it by subPathExpr: {sub_path}/$({variable})",
        variable = env::POD_NAME
    )]
    FixedSubPath {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
        /// Where it is mounted.
        mount_path: String,
        /// The fixed sub-path.
        sub_path: String,
    },
    /// A shared volume is mounted with a sub-path that does not differ between members.
    #[error(
        "container {container} mounts the shared volume {volume} at {mount_path} with subPathExpr: {expression}, which \
         does not tell the members apart; let it contain the pod's name, as in subPathExpr: $({variable})",
        variable = env::POD_NAME
    )]
    SharedSubPath {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
        /// Where it is mounted.
        mount_path: String,
        /// The expression.
        expression: String,
    },
    /// PGDATA does not lie on the data volume.
    #[error(
        "PGDATA of container {container} is {pgdata}, but the data volume is mounted at {mount_path}, so that the rows of a pod that runs \
         are in its container, and go with it; save them first with pg_dumpall, and then remove PGDATA, or let it be a directory below \
         {mount_path}"
    )]
    PgdataElsewhere {
        /// The container.
        container: String,
        /// PGDATA.
        pgdata: String,
        /// Where the volume is mounted.
        mount_path: String,
    },
    /// PGDATA would have to be set, but may be set already where pgset can't see it.
    #[error(
        "container {container} mounts its data at {mount_path}, which is not where its image keeps data ({usual}), and \
         PGDATA may come from envFrom, where pgset can't see it; write PGDATA under env"
    )]
    PgdataUnseen {
        /// The container.
        container: String,
        /// Where the volume is mounted.
        mount_path: String,
        /// The image's usual data directory.
        usual: String,
    },
    /// PGDATA is on a volume that the image declares below the mount.
    #[error(
        "PGDATA of container {container} is {pgdata}, and the data volume is mounted at {mount_path}, above a volume that the image \
         itself declares: the data would be in the container, and lost with it; mount the volume at the image's own directory, or \
         let PGDATA be another one, such as {other}"
    )]
    PgdataHidden {
        /// The container.
        container: String,
        /// PGDATA.
        pgdata: String,
        /// Where the volume is mounted.
        mount_path: String,
        /// A directory that nothing hides.
        other: String,
    },
    /// The record was written by a later pgset.
    #[error(
        "annotation {key} was written by a later version of pgset (version {found} of the record, this one knows {known}); install \
         that version again, or a newer one", key = annotation::INJECTED
    )]
    LaterRecord {
        /// The version of the record.
        found: u32,
        /// The newest that this pgset knows.
        known: u32,
    },
    /// The record of the injection can't be read.
    #[error(
        "annotation {key} is not a record that this version of pgset wrote; write it back as it was, or take out what \
         pgset injected and remove the annotation", key = annotation::INJECTED
    )]
    Record,
}

impl Error {
    /// A short, fixed name for metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Type { .. } => "type",
            Self::Range { .. } => "range",
            Self::Name { .. } | Self::GeneratedName | Self::ServiceName { .. } => "name",
            Self::Inject { .. } => "inject_value",
            Self::Annotation { .. } => "annotation_value",
            Self::Unknown { .. } => "unknown_annotation",
            Self::Follow => "misplaced_annotation",
            Self::WhichContainer { .. }
            | Self::NoSuchContainer { .. }
            | Self::ContainerNames { .. }
            | Self::NoContainer => "container",
            Self::Selector { .. } => "selector",
            Self::RoleLabel { .. } => "role_label",
            Self::SetLabel { .. } => "set_label",
            Self::ServiceAccount { .. } => "service_account",
            Self::ClaimAndVolume { .. } => "claim_and_volume",
            Self::BackupByImage { .. } | Self::BackupBeforeRevision { .. } | Self::RestoreIntoOriginal { .. } => {
                "backup"
            }
            Self::NotMounted { .. } | Self::NotForData { .. } | Self::Undeclared { .. } => "volume",
            Self::NoData { .. } | Self::DataElsewhere { .. } | Self::NeverMounted { .. } => "no_data_volume",
            Self::FixedSubPath { .. } | Self::SharedSubPath { .. } => "shared_sub_path",
            Self::PgdataElsewhere { .. } | Self::PgdataUnseen { .. } | Self::PgdataHidden { .. } => "pgdata",
            Self::Record | Self::LaterRecord { .. } => "record",
        }
    }
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |annotation| format!(" (did you mean {annotation}?)"))
}

/// A user's text as messages show it: quoted, on one line, without control characters, and not endless. Only ASCII is ever
/// allowed where it stands, so all else is spelled out: of two letters that look alike, one sees which is wrong.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 64;
    let mut quoted = String::new();
    for c in text.chars() {
        if quoted.len() >= LONGEST {
            quoted.push('…');
            break;
        }
        if c.is_ascii() {
            quoted.extend(c.escape_debug());
        } else {
            quoted.extend(c.escape_unicode());
        }
    }
    format!("\"{quoted}\"")
}

/// Several names as messages show them: the first few.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const MOST: usize = 8;
    let names: Vec<&str> = names.into_iter().collect();
    let text = names.iter().take(MOST).map(|name| named(name)).collect::<Vec<_>>().join(", ");
    if names.len() > MOST { format!("{text} and {} more", names.len() - MOST) } else { text }
}

/// A user's name as messages show it: bare where it is harmless, else as [`quoted`].
pub(crate) fn named(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_./$()".contains(c);
    if !text.is_empty() && text.len() <= 128 && text.chars().all(harmless) { text.to_owned() } else { quoted(text) }
}
