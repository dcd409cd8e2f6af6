//! The main loop of a member: observe, decide, act. What to do is [`election::decide`]'s word; here it is done.

use std::time::{Duration, SystemTime};

use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use super::birth::{self, Midwife};
use super::configuration::{Configuration, Passwords};
use super::server::{Server, Stop};
use super::slots::{self, Change, Members};
use super::sql::{self, Sql};
use super::status::Publisher;
use super::{kubernetes, label, leadership};
use crate::election::{self, Action, Data, Lsn, Master, Observation, Waiting};
use crate::errors::with_causes;

/// The loop's pace when all is well, and when PostgreSQL is about to accept connections.
const TURN: Duration = Duration::from_secs(1);
const TURN_WHILE_STARTING: Duration = Duration::from_millis(50);
/// What failed is tried again after the first of these, doubled each time up to the second.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(15);
/// After a `pg_ctl stop` from outside: SIGTERM follows a `preStop` hook at once. Without one, somebody wanted a restart.
const HOOK_LIMIT: Duration = Duration::from_secs(10);

/// What this member's PostgreSQL does, with what belongs to it.
enum State {
    Stopped,
    StoppedByOthers { until: Instant },
    Bootstrapping(Task),
    Cloning { from: Master, task: Task },
    Running(Running),
}

type Task = JoinHandle<Result<(), birth::Error>>;

struct Running {
    server: Server,
    sql: Option<Sql>,
    role: Role,
    access_rules_at: Option<SystemTime>,
}

enum Role {
    Master { announced: Option<Master> },
    Replica { follows: Master, stuck_at: Option<Lsn> },
}

/// A member of a set.
pub struct Member {
    midwife: Midwife,
    client: Client,
    leadership: leadership::Handle,
    label: label::Handle,
    publisher: Publisher,
    members: Option<watch::Receiver<Option<Members>>>,
    state: State,
    data: Option<Data>,
    retry: Retry,
}

/// A pause after a failure.
struct Retry {
    not_before: Instant,
    pause: Duration,
}

impl Retry {
    fn none() -> Self {
        Self { not_before: Instant::now(), pause: FIRST_RETRY }
    }

    fn later(&mut self) {
        self.not_before = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LAST_RETRY);
    }
}

impl Role {
    fn name(&self) -> &'static str {
        match self {
            Self::Master { .. } => "master",
            Self::Replica { .. } => "replica",
        }
    }
}

// === impl Member ===

impl Member {
    /// A member that has done nothing yet.
    #[must_use]
    pub fn new(
        midwife: Midwife,
        client: Client,
        leadership: leadership::Handle,
        label: label::Handle,
        publisher: Publisher,
    ) -> Self {
        Self {
            midwife,
            client,
            leadership,
            label,
            publisher,
            members: None,
            state: State::Stopped,
            data: None,
            retry: Retry::none(),
        }
    }

    fn configuration(&self) -> &Configuration {
        &self.midwife.configuration
    }

    /// Lives until `shutdown` completes, then stops PostgreSQL and gives the Lease back.
    pub async fn live(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let (fence_at, pace) = (self.leadership.view().fence_at(), self.pace());
            tokio::select! {
                biased;
                () = at(fence_at) => {}
                () = &mut shutdown => break,
                ended = self.state.ended() => self.note_end(ended),
                () = self.leadership.changed() => {}
                () = sleep(pace) => {}
            }
            self.publisher.update(|status| status.turned_at = Some(Instant::now()));
            self.turn().await;
            // Questions to the server may take their time; the fence does not wait for them.
            let fence_at = self.leadership.view().fence_at();
            tokio::select! {
                biased;
                () = at(fence_at) => {}
                () = &mut shutdown => break,
                () = self.look_after() => {}
            }
        }
        self.shut_down().await;
    }

    fn pace(&self) -> Duration {
        match &self.state {
            State::Running(Running { sql: None, .. }) => TURN_WHILE_STARTING,
            State::Running(Running { role: Role::Replica { .. }, .. }) if !self.publisher.current().ready => TURN / 5,
            _ => TURN,
        }
    }

    async fn turn(&mut self) {
        if Instant::now() < self.retry.not_before && matches!(self.state, State::Stopped) {
            return;
        }
        let observation = self.observe().await;
        let leads = matches!(observation.lease, election::Lease::Mine { .. });
        self.publisher.update(|status| status.leads = leads);
        let action = election::decide(&observation);
        if let Err(why) = self.act(action).await {
            error!(error = with_causes(why.as_ref()), "failed, trying again");
            self.tell(format!("failed, trying again: {}", with_causes(why.as_ref())));
            self.retry.later();
        }
    }

    async fn observe(&mut self) -> Observation {
        let server = match &self.state {
            State::Stopped => election::Server::Stopped,
            State::StoppedByOthers { until } if Instant::now() >= *until => {
                self.state = State::Stopped;
                election::Server::Stopped
            }
            State::StoppedByOthers { .. } => election::Server::StoppedByOthers,
            State::Bootstrapping(_) => election::Server::Bootstrapping,
            State::Cloning { from, .. } => election::Server::Cloning { from: from.clone() },
            State::Running(Running { role: Role::Master { .. }, .. }) => election::Server::Master,
            State::Running(Running { role: Role::Replica { follows, stuck_at }, .. }) => {
                election::Server::Replica { follows: follows.clone(), stuck_at: *stuck_at }
            }
        };
        let data = match (&server, &self.data) {
            // Only a stopped member's data can change hands; what can't be used is looked at again, as somebody may mend it.
            (election::Server::Stopped, None | Some(Data::Unusable(_))) => {
                let found = self.midwife.data.inspect(&self.midwife.programs, &self.midwife.processes).await;
                self.data.insert(found).clone()
            }
            (_, Some(data)) => data.clone(),
            (_, None) => Data::Empty,
        };
        let first = self.configuration().ordinal == self.configuration().first_ordinal;
        Observation { lease: self.leadership.view().at(Instant::now()), data, server, first }
    }

    async fn act(&mut self, action: Action) -> Result<(), Box<dyn std::error::Error>> {
        match action {
            Action::Stay => {}
            Action::Wait(waiting) => self.wait(&waiting),
            Action::TakeLease => self.leadership.take().await,
            Action::ReleaseLease(waiting) => {
                self.leadership.release().await;
                self.wait(&waiting);
            }
            Action::Bootstrap => {
                self.tell("making a new database");
                self.state = State::Bootstrapping(tokio::spawn(self.midwife.clone().bootstrap()));
            }
            Action::Clone(master) => self.clone_from(master),
            Action::CloneAnew(master) => {
                warn!(master = %master.pod, "the master has thrown away WAL that this replica needs: it is cloned anew, the old data stays until then");
                self.stop_at_once().await;
                self.clone_from(master);
            }
            Action::StartMaster => self.start(Role::Master { announced: None }).await?,
            Action::StartReplica(master) => {
                // With a readiness probe of the user's own the label alone says whether this member may be read.
                self.label.set_and_wait(label::Role::None).await;
                self.midwife.prepare_to_follow(&master)?;
                self.start(Role::Replica { follows: master, stuck_at: None }).await?;
            }
            Action::Follow(master) => self.follow(master)?,
            Action::Fence => self.fence().await,
            Action::AbandonClone => self.stop_at_once().await,
        }
        Ok(())
    }

    fn clone_from(&mut self, master: Master) {
        self.tell(format!("cloning {}", master.pod));
        let task = tokio::spawn(self.midwife.clone().clone_from(master.clone()));
        self.state = State::Cloning { from: master, task };
    }

    fn wait(&self, waiting: &Waiting) {
        let text = waiting.to_string();
        if self.publisher.current().doing != text {
            info!("{text}");
            self.tell(text);
        }
    }

    fn tell(&self, doing: impl Into<String>) {
        let doing = doing.into();
        self.publisher.update(|status| status.doing = doing);
    }

    async fn start(&mut self, role: Role) -> Result<(), Box<dyn std::error::Error>> {
        let Midwife { configuration, programs, processes, data } = &self.midwife;
        data.remove_stale_pid_file()?;
        info!(role = role.name(), "starting PostgreSQL");
        let server = Server::start(configuration, data, programs, processes).await?;
        self.publisher.counts.starts.inc();
        let name = role.name();
        self.publisher.update(|status| {
            status.role = name;
            "PostgreSQL is starting".clone_into(&mut status.doing);
        });
        let access_rules_at = server.settings.access_rules_changed_at();
        self.state = State::Running(Running { server, sql: None, role, access_rules_at });
        Ok(())
    }

    /// The master is elsewhere: the same one in a new pod, or another one.
    fn follow(&mut self, master: Master) -> Result<(), birth::Error> {
        let State::Running(Running { server, role: Role::Replica { follows, .. }, .. }) = &mut self.state else {
            return Ok(());
        };
        if follows.address != master.address || follows.port != master.port {
            info!(master = %master.pod, address = %master.address, "following the master at its new address");
            self.midwife.write_master(&master)?;
            server.reload();
        }
        *follows = master;
        Ok(())
    }

    async fn fence(&mut self) {
        warn!("this member does not hold the Lease: PostgreSQL stops now");
        self.publisher.counts.fences.inc();
        self.label.set(label::Role::None);
        self.stop_at_once().await;
        self.tell("stopped: the Lease could not be kept");
    }

    async fn stop_at_once(&mut self) {
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Running(mut running) => running.server.stop(Stop::Immediate).await,
            // An entry point's children are out of reach: its temporary server leaves the process group. All of them end with us.
            State::Bootstrapping(_) => std::process::exit(1),
            // The task owns its child process, which is killed with it.
            State::Cloning { task, .. } => {
                task.abort();
                let _ = task.await;
            }
            State::Stopped | State::StoppedByOthers { .. } => {}
        }
        self.not_serving();
    }

    fn not_serving(&mut self) {
        self.data = None;
        self.publisher.update(|status| {
            status.role = "none";
            status.ready = false;
        });
    }

    /// Something ended by itself: the server, a bootstrap or a clone.
    fn note_end(&mut self, ended: Ended) {
        self.not_serving();
        self.state = State::Stopped;
        match ended {
            Ended::Server(status) if status.success() => {
                info!("PostgreSQL was stopped from outside");
                self.state = State::StoppedByOthers { until: Instant::now() + HOOK_LIMIT };
            }
            Ended::Server(status) => {
                error!(%status, "PostgreSQL ended, starting it again");
                self.tell(format!("PostgreSQL ended with {status}"));
                self.retry.later();
            }
            Ended::Birth(how, Ok(())) => {
                match how {
                    Birth::Bootstrap => self.publisher.counts.bootstraps.inc(),
                    Birth::Clone => self.publisher.counts.clones.inc(),
                };
                self.retry = Retry::none();
            }
            Ended::Birth(_, Err(why)) => {
                error!(error = why, "the data was not made, trying again");
                self.tell(format!("the data was not made, trying again: {why}"));
                self.retry.later();
            }
        }
    }

    /// What a running server needs from time to time.
    async fn look_after(&mut self) {
        let State::Running(running) = &mut self.state else { return };
        if let Err(why) = running.follow_access_rules(&self.midwife.configuration).await {
            warn!(error = with_causes(why.as_ref()), "failed to bring the access rules up to date");
        }
        match running.connect(self.midwife.configuration.port).await {
            Ok(()) => {}
            Err(sql::Error::NoRole) => return self.adopt().await,
            Err(sql::Error::Starting) => return self.not_ready("PostgreSQL does not accept connections yet"),
            Err(why) => return self.not_ready(&with_causes(&why)),
        }
        let outcome = match &running.role {
            Role::Master { .. } => self.look_after_master().await,
            Role::Replica { .. } => self.look_after_replica().await,
        };
        if let Err(why) = outcome {
            self.not_ready(&with_causes(&why));
            if let State::Running(running) = &mut self.state {
                running.sql = None;
            }
        }
    }

    fn not_ready(&self, why: &str) {
        self.publisher.update(|status| {
            status.ready = false;
            why.clone_into(&mut status.doing);
        });
    }

    /// The data comes from elsewhere and lacks the agent's role, or the Secret was made anew: once, a restart through single-user mode.
    /// A replica gets the role by replication.
    async fn adopt(&mut self) {
        let State::Running(Running { server, role: Role::Master { .. }, .. }) = &mut self.state else {
            return self.not_ready("waiting for the master to make the agent's role");
        };
        info!("the database lacks the agent's role: stopping PostgreSQL once to make it");
        server.stop(Stop::Fast).await;
        self.state = State::Stopped;
        self.not_serving();
        if let Err(why) = self.midwife.make_agent_role(self.midwife.data.path()).await {
            error!(error = with_causes(&why), "failed to make the agent's role, trying again");
            self.retry.later();
        }
    }

    async fn look_after_master(&mut self) -> Result<(), sql::Error> {
        let State::Running(Running { sql: Some(sql), role: Role::Master { announced }, .. }) = &mut self.state else {
            return Ok(());
        };
        if announced.is_none() {
            let facts = sql.master_facts().await?;
            if facts.in_recovery {
                return Ok(());
            }
            let configuration = &self.midwife.configuration;
            sql.ensure_replication_role(&configuration.replication_user, &Passwords::read()?.replication).await?;
            self.label.set(label::Role::Master);
            let master = Master {
                pod: configuration.me.pod.clone(),
                address: configuration.address.clone(),
                port: configuration.port,
                system: facts.system,
                timeline: facts.timeline,
                oldest_wal: sql.oldest_wal().await?,
            };
            *announced = Some(master.clone());
            self.leadership.announce(master).await;
            self.retry = Retry::none();
            info!(system = %facts.system, timeline = facts.timeline, "this member is the master and accepts writes");
            self.publisher.update(|status| {
                status.started = true;
                status.ready = true;
                status.timeline = Some(facts.timeline);
                status.system_identifier = Some(facts.system.to_string());
                "accepts writes".clone_into(&mut status.doing);
            });
        }
        if let Some(announced) = announced {
            let oldest_wal = sql.oldest_wal().await?;
            if announced.oldest_wal != oldest_wal {
                announced.oldest_wal = oldest_wal;
                self.leadership.announce(announced.clone()).await;
            }
        }
        self.keep_members().await
    }

    /// Slots and synchronous replication follow the set's size.
    async fn keep_members(&mut self) -> Result<(), sql::Error> {
        let configuration = &self.midwife.configuration;
        let members = self.members.get_or_insert_with(|| {
            // The task ends with its stream, which this process outlives only when it ends itself.
            kubernetes::follow_members(self.client.clone(), &configuration.namespace, configuration.set.clone()).0
        });
        let Some(members) = members.borrow().clone() else { return Ok(()) };
        let State::Running(Running { sql: Some(sql), .. }) = &self.state else { return Ok(()) };
        let me = &configuration.me.pod;
        for change in slots::changes(&sql.slots().await?, &members, me) {
            info!(?change, "the members changed");
            match change {
                Change::Create(name) => sql.create_slot(&name).await?,
                Change::Drop(name) => sql.drop_slot(&name).await?,
            }
        }
        let wanted = members.synchronous_names(me, configuration.synchronous);
        let now = sql.synchronous_names().await?;
        if now != wanted && (!wanted.is_empty() || members.wrote_synchronous_names(&now)) {
            info!(was = now, now = wanted, "the replicas that confirm a commit changed");
            sql.set_synchronous_names(&wanted).await?;
        }
        Ok(())
    }

    async fn look_after_replica(&mut self) -> Result<(), sql::Error> {
        let State::Running(Running { sql: Some(sql), role: Role::Replica { follows, stuck_at }, .. }) = &mut self.state
        else {
            return Ok(());
        };
        let facts = sql.replica_facts().await?;
        let streams = facts.streaming_timeline == Some(follows.timeline);
        *stuck_at = facts.replayed.filter(|_| facts.streaming_timeline.is_none());
        let (system, pod) = (follows.system.to_string(), follows.pod.clone());
        self.label.set(if streams { label::Role::Replica } else { label::Role::None });
        if streams && !self.publisher.current().ready {
            self.retry = Retry::none();
            let data = self.midwife.data.clone();
            tokio::task::spawn_blocking(move || {
                data.remove_old().map_err(|why| warn!(error = with_causes(&why), "old data was not removed"))
            });
        }
        self.publisher.update(|status| {
            if streams != status.ready {
                info!(streams, master = %pod, "replication");
            }
            status.started |= streams;
            status.ready = streams;
            status.system_identifier = Some(system);
            status.timeline = facts.streaming_timeline;
            status.replay_lag_bytes = facts.replay_lag_bytes;
            status.doing =
                if streams { format!("streams from {pod}") } else { format!("does not stream from {pod} yet") };
        });
        Ok(())
    }

    async fn shut_down(mut self) {
        info!("stopping");
        self.publisher.update(|status| {
            status.ready = false;
            status.turned_at = None;
            "stopping".clone_into(&mut status.doing);
        });
        let fence_at = self.leadership.view().fence_at();
        if let State::Running(running) = &mut self.state {
            let mut fence_at = fence_at;
            // Renewals go on meanwhile; should they fail, the rest of the shutdown happens at once.
            while let Some(deadline) = fence_at {
                tokio::select! {
                    () = running.server.stop(Stop::Fast) => break,
                    () = sleep_until(deadline) => fence_at = self.leadership.view().fence_at().filter(|at| *at > Instant::now()),
                }
            }
            let how = if fence_at.is_none() && matches!(running.role, Role::Master { .. }) {
                Stop::Immediate
            } else {
                Stop::Fast
            };
            running.server.stop(how).await;
        }
        if matches!(self.state, State::Bootstrapping(_)) {
            // Not given back: what the entry point started ends with this process only, and the Lease by itself soon after.
            return;
        }
        if matches!(self.state, State::Cloning { .. }) {
            self.stop_at_once().await;
        }
        self.leadership.release().await;
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What ended by itself.
enum Ended {
    Server(std::process::ExitStatus),
    Birth(Birth, Result<(), String>),
}

enum Birth {
    Bootstrap,
    Clone,
}

impl State {
    /// Completes when what runs has ended. Cancel-safe.
    async fn ended(&mut self) -> Ended {
        match self {
            Self::Stopped | Self::StoppedByOthers { .. } => std::future::pending().await,
            Self::Bootstrapping(task) => Ended::Birth(Birth::Bootstrap, outcome(task).await),
            Self::Cloning { task, .. } => Ended::Birth(Birth::Clone, outcome(task).await),
            Self::Running(running) => match running.server.ended().await {
                Ok(status) => Ended::Server(status),
                Err(_) => std::future::pending().await,
            },
        }
    }
}

async fn outcome(task: &mut Task) -> Result<(), String> {
    match task.await {
        Ok(result) => result.map_err(|why| with_causes(&why)),
        Err(why) => Err(why.to_string()),
    }
}

// === impl Running ===

impl Running {
    async fn connect(&mut self, port: u16) -> Result<(), sql::Error> {
        if self.sql.as_ref().is_some_and(|sql| !sql.is_closed()) {
            return Ok(());
        }
        self.sql = None;
        if !self.server.accepts_connections() {
            return Err(sql::Error::Starting);
        }
        let passwords = Passwords::read()?;
        self.sql = Some(Sql::connect(&self.server.settings.socket_directory, port, &passwords.agent).await?);
        Ok(())
    }

    /// The user edits his `pg_hba.conf` as ever; the file that PostgreSQL reads is ours with a copy of his.
    async fn follow_access_rules(&mut self, configuration: &Configuration) -> Result<(), Box<dyn std::error::Error>> {
        let changed_at = self.server.settings.access_rules_changed_at();
        if changed_at == self.access_rules_at {
            return Ok(());
        }
        self.access_rules_at = changed_at;
        if self.server.settings.write_access_rules(&configuration.replication_user)?
            && let Some(sql) = &self.sql
        {
            sql.reload().await?;
        }
        Ok(())
    }
}
