//! Every name that pgset writes or reads in a cluster, once: annotations, labels, environment, objects, paths, ports.

/// The prefix of every annotation and label of ours, with its slash.
pub const PREFIX: &str = "pgset.dev/";

/// The Event by which a member says why it does not follow an order, and by which the commands hear it.
pub const ORDER_REFUSED: &str = "OrderRefused";

/// Annotations that a user writes on the `StatefulSet`, or on a Service of his own (`follow`).
pub mod annotation {
    /// `enabled` asks for injection; absent, pgset never sees the object.
    pub const INJECT: &str = "pgset.dev/inject";
    /// Who implements `PG_MODE=set` inside the container: `agent` or `image`.
    pub const CONTRACT: &str = "pgset.dev/contract";
    /// The name of the PostgreSQL container.
    pub const CONTAINER: &str = "pgset.dev/container";
    /// A shared `PersistentVolumeClaim` of the namespace for the data of all members.
    pub const CLAIM: &str = "pgset.dev/claim";
    /// The name of the template's volume that holds the data.
    pub const VOLUME: &str = "pgset.dev/volume";
    /// The service account that members run as.
    pub const SERVICE_ACCOUNT: &str = "pgset.dev/service-account";
    /// The Secret with the passwords.
    pub const CREDENTIALS: &str = "pgset.dev/credentials";
    /// The key of the label that carries a member's role.
    pub const ROLE_LABEL: &str = "pgset.dev/role-label";
    /// Whether a replica may be promoted when the master is lost: `automatic` or `manual`.
    pub const FAILOVER: &str = "pgset.dev/failover";
    /// How many replicas must confirm a commit.
    pub const SYNCHRONOUS: &str = "pgset.dev/synchronous";
    /// Whether commits wait also while fewer replicas stream than must confirm them: `true` or `false`.
    pub const SYNCHRONOUS_STRICT: &str = "pgset.dev/synchronous-strict";
    /// Bytes that a failover may lose, where commits wait for nobody.
    pub const MAXIMUM_LAG: &str = "pgset.dev/maximum-lag";
    /// Who is to lead next: `any`, or a member's name; whatever follows makes it another order.
    pub const SWITCHOVER: &str = "pgset.dev/switchover";
    /// For how many seconds the master's Lease is good after its last renewal.
    pub const LEASE_SECONDS: &str = "pgset.dev/lease-seconds";
    /// Where base backups and the WAL go; absent, none are made.
    pub const BACKUP: &str = "pgset.dev/backup";
    /// When base backups are made.
    pub const BACKUP_SCHEDULE: &str = "pgset.dev/backup-schedule";
    /// How far back every moment can be restored.
    pub const BACKUP_KEEP: &str = "pgset.dev/backup-keep";
    /// Whatever makes it another order than the last: a base backup is made now.
    pub const BACKUP_NOW: &str = "pgset.dev/backup-now";
    /// After so long what a quiet database has written is archived as well.
    pub const ARCHIVE_TIMEOUT: &str = "pgset.dev/archive-timeout";
    /// How much WAL may wait on the volume for a store that does not take it.
    pub const ARCHIVE_LIMIT: &str = "pgset.dev/archive-limit";
    /// How fast a base backup may be read.
    pub const BACKUP_RATE: &str = "pgset.dev/backup-rate";
    /// The name of a base backup that is to go before its time.
    pub const BACKUP_DELETE: &str = "pgset.dev/backup-delete";
    /// How old the full base backup may be that others are made upon.
    pub const FULL_BACKUP_EVERY: &str = "pgset.dev/full-backup-every";
    /// Where the backups are that a new set begins with.
    pub const RESTORE_FROM: &str = "pgset.dev/restore-from";
    /// Up to which moment a new set repeats the history of the one that it is restored from.
    pub const RECOVER_TO: &str = "pgset.dev/recover-to";
    /// A recovery in place: what is restored beside the set's data, what the set goes on from, and what it lets go.
    pub const RECOVER: &str = "pgset.dev/recover";
    /// The version of the injection that the set is pinned to; written by the webhook, `latest` asks for an upgrade.
    pub const REVISION: &str = "pgset.dev/revision";
    /// What was injected, so that exactly that can be taken out again; written by the webhook.
    pub const INJECTED: &str = "pgset.dev/injected";
    /// What the controller last saw; written by the controller, trusted by nobody.
    pub const STATUS: &str = "pgset.dev/status";
    /// On a user's own Service: `master` or `replica` lets the controller keep that role in its selector.
    pub const FOLLOW: &str = "pgset.dev/follow";
}

/// Labels.
pub mod label {
    /// On every member and on everything made for a set: the set's name.
    pub const SET: &str = "pgset.dev/set";
    /// The default key of the role label.
    pub const ROLE: &str = "pgset.dev/role";
    /// The article's key of the role label, hard-coded in images that implement `PG_MODE=set`.
    pub const ARTICLE_ROLE: &str = "name";
    /// The standard label that says who looks after an object.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// On a namespace, with the value `disabled`: its `StatefulSets` are not sent to the webhook.
    pub const WEBHOOK: &str = "pgset.dev/webhook";
}

/// The field manager of whatever the controller writes, and the value of [`label::MANAGED_BY`].
pub const MANAGER: &str = "pgset";

/// Environment of the PostgreSQL container. Those with `PGSET_` are private: a user who sets one is told to rename it.
pub mod env {
    /// The prefix of the private ones.
    pub const PRIVATE_PREFIX: &str = "PGSET_";
    /// The contract's switch; its value is `set`.
    pub const PG_MODE: &str = "PG_MODE";
    /// The Service to the master; with contract `image` also the label value of the master.
    pub const PG_MASTER_HOST: &str = "PG_MASTER_HOST";
    /// The master's port.
    pub const PG_MASTER_PORT: &str = "PG_MASTER_PORT";
    /// The replication role.
    pub const PG_MASTER_USER: &str = "PG_MASTER_USER";
    /// The replication role's password (contract `image`, or written by the user).
    pub const PG_MASTER_PASSWORD: &str = "PG_MASTER_PASSWORD";
    /// From 1.6 on, the `PG_MODE` family says primary where it said master.
    pub const PG_PRIMARY_HOST: &str = "PG_PRIMARY_HOST";
    /// The newer name of [`PG_MASTER_PORT`].
    pub const PG_PRIMARY_PORT: &str = "PG_PRIMARY_PORT";
    /// The newer name of [`PG_MASTER_USER`].
    pub const PG_PRIMARY_USER: &str = "PG_PRIMARY_USER";
    /// The newer name of [`PG_MASTER_PASSWORD`].
    pub const PG_PRIMARY_PASSWORD: &str = "PG_PRIMARY_PASSWORD";
    /// The label value of a replica in the `PG_MODE` family of images.
    pub const PG_REPLICA_HOST: &str = "PG_REPLICA_HOST";
    /// The application's role in the `PG_MODE` family of images.
    pub const PG_USER: &str = "PG_USER";
    /// The password of [`PG_USER`].
    pub const PG_PASSWORD: &str = "PG_PASSWORD";
    /// The application's database in the `PG_MODE` family of images.
    pub const PG_DATABASE: &str = "PG_DATABASE";
    /// The port, for PostgreSQL and its clients.
    pub const PGPORT: &str = "PGPORT";
    /// Where clients in the container look for the server's socket.
    pub const PGHOST: &str = "PGHOST";
    /// The namespace, as the `PG_MODE` family of images reads it.
    pub const CCP_NAMESPACE: &str = "CCP_NAMESPACE";
    /// The superuser's password in the official image.
    pub const POSTGRES_PASSWORD: &str = "POSTGRES_PASSWORD";
    /// The superuser's password in the `PG_MODE` family of images.
    pub const PG_ROOT_PASSWORD: &str = "PG_ROOT_PASSWORD";
    /// The data directory.
    pub const PGDATA: &str = "PGDATA";
    /// The member's pod name, from the downward API; the volume's sub-path is made of it.
    pub const POD_NAME: &str = "PGSET_POD_NAME";
    /// The member's pod UID, from the downward API: a pod of the same name made anew is another candidate.
    pub const POD_UID: &str = "PGSET_POD_UID";
    /// The member's pod address, from the downward API.
    pub const POD_IP: &str = "PGSET_POD_IP";
    /// The member's namespace, from the downward API.
    pub const NAMESPACE: &str = "PGSET_NAMESPACE";
    /// The private ones, and the field of the pod that each of them is.
    pub const FIELDS: [(&str, &str); 4] = [
        (NAMESPACE, "metadata.namespace"),
        (POD_NAME, "metadata.name"),
        (POD_UID, "metadata.uid"),
        (POD_IP, "status.podIP"),
    ];
}

/// Names inside the pod.
pub mod pod {
    /// The init container that copies the agent in.
    pub const INIT_CONTAINER: &str = "pgset-agent";
    /// The `emptyDir` that holds the agent's binary and its run-time files.
    pub const RUN_VOLUME: &str = "pgset-run";
    /// Where [`RUN_VOLUME`] is mounted.
    pub const RUN_PATH: &str = "/pgset";
    /// The agent's binary in the PostgreSQL container.
    pub const AGENT_PATH: &str = "/pgset/pgset";
    /// The agent's binary in its own image.
    pub const AGENT_PATH_IN_IMAGE: &str = "/pgset";
    /// Where [`RUN_VOLUME`] is mounted in [`INIT_CONTAINER`].
    pub const COPY_PATH: &str = "/pgset-run";
    /// The agent's binary as [`INIT_CONTAINER`] copies it.
    pub const AGENT_COPY_PATH: &str = "/pgset-run/pgset";
    /// The projected volume with the service account's token, the cluster's CA and the passwords.
    pub const ACCESS_VOLUME: &str = "pgset-access";
    /// Where [`ACCESS_VOLUME`] is mounted.
    pub const ACCESS_PATH: &str = "/etc/pgset";
    /// The volume that `pgset.dev/claim` adds.
    pub const DATA_VOLUME: &str = "pgset-data";
    /// Where [`DATA_VOLUME`] is mounted.
    pub const DATA_PATH: &str = "/pgdata";
    /// The directory below a data mount that PGDATA becomes, where the image's own default is not on the mount.
    pub const DATA_DIRECTORY: &str = "data";
    /// The directory below a mount at `/var/lib/postgresql` that PGDATA becomes where the image may declare a volume at
    /// `/var/lib/postgresql/data`, which would hide the mount.
    pub const UNHIDDEN_DIRECTORY: &str = "pgdata";
    /// The directory below a shared mount in which the members other than the in-place one have theirs. PGDATA may be the mount
    /// itself, so that it lies inside of a data directory: `pg_basebackup` and `pg_rewind` leave out what begins with `pgsql_tmp`
    /// (PostgreSQL's documentation, Streaming Replication Protocol, `BASE_BACKUP`).
    pub const MEMBERS_DIRECTORY: &str = "pgsql_tmp.pgset";
    /// The folder below [`ACCESS_PATH`] with the passwords of a Secret that is called as 0.1.0 called it.
    pub const OLDER_CREDENTIALS: &str = "older";
    /// The folder below [`ACCESS_PATH`] with the keys of the Secret for backups.
    pub const BACKUP_CREDENTIALS: &str = "backup";
    /// The agent's port: probes, metrics and what members ask each other. Patroni's number, which people have in their
    /// network policies already.
    pub const AGENT_PORT: u16 = 8008;
    /// The port of PostgreSQL where the container names none.
    pub const POSTGRES_PORT: u16 = 5432;
    /// File names below [`ACCESS_PATH`].
    pub const TOKEN_FILE: &str = "token";
    /// The cluster's CA certificate.
    pub const CA_FILE: &str = "ca.crt";
}

/// On the `EndpointSlice` of the Service to the master.
pub mod slice {
    /// The label by which kube-proxy finds the Service that a slice belongs to.
    pub const SERVICE: &str = "kubernetes.io/service-name";
    /// The label that says which program fills a slice.
    pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
    /// The value of [`MANAGED_BY`] on the one that members fill.
    pub const MANAGER: &str = "pgset.dev";
    /// The value of [`MANAGED_BY`] on those that Kubernetes itself fills, for Services with a selector.
    pub const BY_KUBERNETES: &str = "endpointslice-controller.k8s.io";
    /// A label of the Service to the master, copied to whatever Kubernetes makes for it. Its meaning is: what is left in the old `Endpoints`
    /// when the selector goes is not mirrored into a slice. And it tells the master's slices from all others.
    pub const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
    /// The annotation that says when a member last wrote where the master is. It is Kubernetes' own, and in kube-proxy's metrics.
    pub const WRITTEN_AT: &str = "endpoints.kubernetes.io/last-change-trigger-time";
    /// The annotation that says in which leadership it was written: one that is over writes nothing over its successor's.
    pub const EPOCH: &str = "pgset.dev/epoch";
}

/// Keys of the `<set>-pgset-credentials` Secret, which are also the file names below [`pod::ACCESS_PATH`].
pub mod credential {
    /// The superuser's password, used once at the first bootstrap where the environment gives none.
    pub const SUPERUSER: &str = "postgres-password";
    /// The password of the replication role.
    pub const REPLICATION: &str = "replication-password";
    /// The password of the agent's own role, [`super::role::AGENT`].
    pub const AGENT: &str = "agent-password";
    /// The password of `PG_USER` (contract `image`).
    pub const USER: &str = "user-password";
    /// All keys, in the order of the Secret.
    pub const ALL: [&str; 4] = [SUPERUSER, REPLICATION, AGENT, USER];
}

/// Keys of the `<set>-pgset-backup` Secret, which the set's owner makes: they are called as the clouds' own tools call them in their
/// environment. Each is a file below [`pod::BACKUP_CREDENTIALS`].
pub mod store {
    /// The certificate authorities that a store's certificate may be of, besides those that everybody knows.
    pub const CA_BUNDLE: &str = "AWS_CA_BUNDLE";
    /// The key of a Google service account.
    pub const GOOGLE_KEY: &str = "GOOGLE_APPLICATION_CREDENTIALS_JSON";
    /// The keys that everything is encrypted with, as `age-keygen` writes them.
    pub const AGE_IDENTITY: &str = "AGE_IDENTITY";
    /// All keys.
    pub const ALL: [&str; 12] = [
        AGE_IDENTITY,
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
        CA_BUNDLE,
        GOOGLE_KEY,
        "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_ENDPOINT",
    ];
}

/// Roles inside PostgreSQL.
pub mod role {
    /// The agent's own superuser: over the local socket only, so that the name of the user's superuser need not be known.
    pub const AGENT: &str = "pgset";
    /// The replication role where the user names none by `PG_MASTER_USER`.
    pub const REPLICATION: &str = "pgset_replication";
}

/// Annotations on the set's Lease, by which members learn of the master, and what the set has reached. Only the Lease's holder writes them.
pub mod lease {
    /// The master's pod address.
    pub const ADDRESS: &str = "pgset.dev/address";
    /// The master's PostgreSQL port.
    pub const PORT: &str = "pgset.dev/port";
    /// The timeline that the master writes.
    pub const TIMELINE: &str = "pgset.dev/timeline";
    /// From which byte of the WAL on the master still has it: a replica that needs an older one has to be cloned anew.
    pub const OLDEST_WAL: &str = "pgset.dev/oldest-wal";
    /// PostgreSQL's system identifier: which database cluster this set is.
    pub const SYSTEM_IDENTIFIER: &str = "pgset.dev/system-identifier";
    /// Where [`TIMELINE`] branched off from the one before: two promotions to one number are told apart by it.
    pub const TIMELINE_BEGINS: &str = "pgset.dev/timeline-begins";
    /// Up to which byte of the WAL the master had written to disk at its last renewal.
    pub const FLUSHED: &str = "pgset.dev/flushed";
    /// The position of the checkpoint with which the last master stopped cleanly; absent while one leads, or if it did not.
    pub const STOPPED_AT: &str = "pgset.dev/stopped-at";
    /// The members that may stand for the leadership, separated by commas.
    pub const VOTERS: &str = "pgset.dev/voters";
    /// How many of which replicas confirm each commit: `1 of db-1,db-2`.
    pub const QUORUM: &str = "pgset.dev/quorum";
    /// Which life of its container the holder is, by the word that the kubelet tells at its end.
    pub const INSTANCE: &str = "pgset.dev/instance";
    /// To whom the last master handed over; the others let it go first.
    pub const SUCCESSOR: &str = "pgset.dev/successor";
    /// The last order to switch over that was seen to: it is not followed twice.
    pub const ORDER_DONE: &str = "pgset.dev/order-done";
    /// Why the last order to switch over was refused, with its text before it.
    pub const ORDER_REFUSED: &str = "pgset.dev/order-refused";
    /// What the master knows of the other members: a list in JSON, for people and programs that look at the set.
    pub const MEMBERS: &str = "pgset.dev/members";
    /// What the master knows of the set's backups: JSON, for people and programs that look at the set.
    pub const BACKUPS: &str = "pgset.dev/backups";
    /// What the master tells of a recovery in place: JSON, for people and programs that look at the set.
    pub const RECOVERY: &str = "pgset.dev/recovery";
    /// Those that come and go with masters, and that the controller has no use for.
    pub const OF_THE_MASTER: [&str; 15] = [
        ADDRESS,
        PORT,
        TIMELINE,
        OLDEST_WAL,
        TIMELINE_BEGINS,
        FLUSHED,
        STOPPED_AT,
        VOTERS,
        QUORUM,
        SUCCESSOR,
        ORDER_DONE,
        ORDER_REFUSED,
        MEMBERS,
        BACKUPS,
        RECOVERY,
    ];
}

/// The namespace that pgset itself runs in.
pub const SYSTEM_NAMESPACE: &str = "pgset-system";
/// The Secret with the certificate authority and the webhook's leaf, in [`SYSTEM_NAMESPACE`].
pub const CERTIFICATES_SECRET: &str = "pgset-webhook-certificates";
/// The webhook's Service, in [`SYSTEM_NAMESPACE`].
pub const WEBHOOK_SERVICE: &str = "pgset-webhook";
/// The name of the `MutatingWebhookConfiguration`.
pub const WEBHOOK_CONFIGURATION: &str = "pgset";
/// The webhook's Deployment and service account, in [`SYSTEM_NAMESPACE`].
pub const WEBHOOK: &str = "pgset-webhook";
/// The controller's Deployment and service account, in [`SYSTEM_NAMESPACE`].
pub const CONTROLLER: &str = "pgset-controller";
/// The Lease by which one of the controllers is active, in [`SYSTEM_NAMESPACE`].
pub const CONTROLLER_LEASE: &str = "pgset-controller";
/// The agent's image where `--agent-image` names none.
pub const IMAGE: &str = concat!("pgset.dev/pgset:", env!("CARGO_PKG_VERSION"));

/// What ends the name of the Service to the master.
const MASTER_END: &str = "-master";
/// What ends the name of the Service to the replicas.
const REPLICA_END: &str = "-replica";

/// `<set>-master`: the Service to the master, and in the article's way the label value of the master.
#[must_use]
pub fn master(set: &str) -> String {
    format!("{set}{MASTER_END}")
}

/// `<set>-primary`: what the article's family of images calls the master from 1.6 on, where the user's own objects do.
#[must_use]
pub fn primary(set: &str) -> String {
    format!("{set}-primary")
}

/// `<set>-replica`: the Service to the replicas, and in the article's way the label value of a replica.
#[must_use]
pub fn replica(set: &str) -> String {
    format!("{set}{REPLICA_END}")
}

/// The set whose Service to the master or to the replicas is called so, whether or not there is one.
#[must_use]
pub fn set_of_role_service(service: &str) -> Option<&str> {
    [MASTER_END, REPLICA_END].into_iter().find_map(|end| service.strip_suffix(end)).filter(|set| !set.is_empty())
}

/// `<set>-sa`: the service account, Role and `RoleBinding`.
#[must_use]
pub fn service_account(set: &str) -> String {
    format!("{set}-sa")
}

/// `<set>-pgset-credentials`: the Secret. Many people have one of their own that is called `<set>-credentials`.
#[must_use]
pub fn credentials(set: &str) -> String {
    format!("{set}-pgset-credentials")
}

/// `<set>-credentials`: what the Secret of a set that 0.1.0 injected is called.
#[must_use]
pub fn older_credentials(set: &str) -> String {
    format!("{set}-credentials")
}

/// `<set>-pgset-backup`: the Secret with the credentials of the store that backups go to.
#[must_use]
pub fn backup_credentials(set: &str) -> String {
    format!("{set}-pgset-backup")
}

/// Whether a Service's name is kept for the master or the replicas of another set than this one: `<another>-master`,
/// `<another>-replica`.
#[must_use]
pub fn is_kept_for_another_set(service: &str, set: &str) -> bool {
    set_of_role_service(service).is_some_and(|other| other != set)
}

/// The ordinal of a member, from its pod's name: the set's own name may hold dashes and digits.
#[must_use]
pub fn ordinal(pod: &str, set: &str) -> Option<u32> {
    pod.strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

/// `<set>-leader`: the Lease.
#[must_use]
pub fn leader(set: &str) -> String {
    format!("{set}-leader")
}

/// What a clone is called on the master while it is made. The name of no member, however long it is and wherever PostgreSQL cuts it off: a pod's
/// has no underscore. So no list of members names it, and no commit takes it for a replica that keeps what it receives.
#[must_use]
pub fn clone_application(pod: &str) -> String {
    format!("clone_{pod}")
}

/// What a base backup is called on the server that it is made of. The name of no member, as a clone's is.
#[must_use]
pub fn backup_application(pod: &str) -> String {
    format!("backup_{pod}")
}

/// The replication slot of a member: `pgset_` and the pod's name, in the letters that PostgreSQL allows in a slot's name.
/// Two pods of one set never share one: their names differ in the digits of the ordinal.
#[must_use]
pub fn slot(pod: &str) -> String {
    let letters = pod.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' });
    "pgset_".chars().chain(letters).take(63).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinal_is_read_behind_a_name_with_dashes_and_digits() {
        assert_eq!(ordinal("my-db-0", "my-db"), Some(0));
        assert_eq!(ordinal("db-2-17", "db-2"), Some(17));
        assert_eq!(ordinal("db-2", "db-2"), None);
        assert_eq!(ordinal("other-0", "db"), None);
    }
}
