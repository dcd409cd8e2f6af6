//! The main loop of a member: observe, decide, act. What to do is [`election::decide`]'s word; here it is done.

mod candidacy;
mod ending;
mod handover;
mod look;
mod master_ended;
mod ordered;
mod others;
mod record;
mod refusing;
mod replicas;
mod returning;
mod seen;
mod state;
mod upkeep;

use std::time::Duration;

use kube::Client;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info};

pub use self::candidacy::Asked;
use self::candidacy::{Candidacy, PACE};
use self::handover::Handover;
use self::master_ended::MasterEnded;
use self::ordered::Ordered;
use self::refusing::{Starts, is_refusal, patience};
use self::returning::Return;
use self::state::{Retry, Role, Running, State};
use super::as_before::{Found, Refusal};
use super::birth::{self, Midwife};
use super::configuration::Configuration;
use super::data::Fingerprint;
use super::electorate::Electorate;
use super::events::{Reason, Teller};
use super::kubernetes::Wishes;
use super::notes::{Leadership, Notes};
use super::promises::Promises;
use super::server::{Ready, Server};
use super::status::Publisher;
use super::strictness::Strictness;
use super::synchronous::{CatchUp, Shortage};
use super::{label, leadership, postmasters, route};
use crate::election::claim::LastWord;
use crate::election::vote::{Quorum, Version};
use crate::election::way_out::way_out;
use crate::election::{self, Action, Data, Master, Observation, Waiting};
use crate::errors::with_causes;
use crate::names;

/// The loop's pace when all is well, and when PostgreSQL is about to accept connections.
const TURN: Duration = Duration::from_secs(1);
const TURN_WHILE_STARTING: Duration = Duration::from_millis(50);
/// The pace of a replica: a promotion by hand is noticed, and ended, within a second.
const TURN_OF_REPLICA: Duration = Duration::from_millis(500);

/// How a member's life ends.
pub enum Parting {
    /// It was asked to.
    Stopped,
    /// It was asked to, and what makes its database ends with the container only.
    Left,
    /// It can't take over the database that it found, and the image runs it as before.
    Refused(Refusal),
}

/// What a member works with.
pub struct Parts {
    /// The data, and how a member comes to it.
    pub midwife: Midwife,
    /// The API server.
    pub client: Client,
    /// The Lease.
    pub leadership: leadership::Handle,
    /// The role label.
    pub label: label::Handle,
    /// Where the master is.
    pub route: route::Handle,
    /// The member's own account.
    pub publisher: Publisher,
    /// Its Events.
    pub teller: Teller,
    /// What it found on the volume.
    pub found: Found,
    /// What the set's owner wants.
    pub set: watch::Receiver<Option<Wishes>>,
    /// What it has promised.
    pub promises: Promises,
    /// What it notes on the volume.
    pub notes: Notes,
    /// The other members.
    pub electorate: Electorate,
    /// Those of them that ask for its vote.
    pub ballots: mpsc::Receiver<Asked>,
}

/// A member of a set.
pub struct Member {
    midwife: Midwife,
    client: Client,
    leadership: leadership::Handle,
    label: label::Handle,
    route: route::Handle,
    publisher: Publisher,
    teller: Teller,
    found: Found,
    set: watch::Receiver<Option<Wishes>>,
    promises: Promises,
    notes: Notes,
    electorate: Electorate,
    candidacy: Candidacy,
    handover: Handover,
    ordered: Ordered,
    master_ended: MasterEnded,
    noted_vote: Option<Version>,
    noted_leadership: Option<Leadership>,
    was_promoted: bool,
    woken_at: Instant,
    report_due: Instant,
    starts: Starts,
    refusal: Option<Refusal>,
    shortage: Shortage,
    strictness: Strictness,
    catch_up: CatchUp,
    /// What its commits wait for from the start, by the Lease that it took and has not led by yet.
    taken_with: Option<Quorum>,
    coming_back: Return,
    oldest_wal_due: Instant,
    state: State,
    data: Option<Data>,
    fingerprint: Option<Fingerprint>,
    waiting: Option<Waiting>,
    retry: Retry,
    way_out: Option<String>,
    waits_since: Instant,
}

// === impl Member ===

impl Member {
    /// A member that has done nothing yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { midwife, client, leadership, label, route, publisher, teller, found, .. } = parts;
        let Parts { set, promises, notes, electorate, ballots, .. } = parts;
        Self {
            midwife,
            client,
            leadership,
            label,
            route,
            publisher,
            teller,
            found,
            set,
            noted_vote: promises.voted(),
            promises,
            notes,
            electorate,
            candidacy: Candidacy::new(ballots),
            handover: Handover::default(),
            ordered: Ordered::default(),
            master_ended: MasterEnded::default(),
            noted_leadership: None,
            was_promoted: false,
            woken_at: Instant::now(),
            report_due: Instant::now(),
            starts: Starts::default(),
            refusal: None,
            shortage: Shortage::default(),
            strictness: Strictness::default(),
            catch_up: CatchUp::default(),
            taken_with: None,
            coming_back: Return::default(),
            oldest_wal_due: Instant::now(),
            state: State::Stopped,
            data: None,
            fingerprint: None,
            waiting: None,
            retry: Retry::none(),
            way_out: None,
            waits_since: Instant::now(),
        }
    }

    fn configuration(&self) -> &Configuration {
        &self.midwife.configuration
    }

    /// Lives until `shutdown` completes, then stops PostgreSQL and gives the Lease back; or until it is clear that the image has to run
    /// the database as before.
    pub async fn live(mut self, shutdown: impl Future<Output = ()>) -> Parting {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let (fence_at, pace) = (self.leadership.view().fence_at(), self.pace());
            tokio::select! {
                biased;
                () = at(fence_at) => {}
                () = &mut shutdown => break,
                ended = self.state.ended() => self.note_end(ended),
                () = self.leadership.changed() => {}
                () = self.candidacy.changed() => {}
                () = sleep(pace) => {}
            }
            self.publisher.update(|status| status.turned_at = Some(Instant::now()));
            self.stop_server_of_others().await;
            self.turn().await;
            self.stand_down();
            if let Some(refusal) = self.refused() {
                self.release(None).await;
                return Parting::Refused(refusal);
            }
            // Questions to the server may take their time; the fence does not wait for them.
            let fence_at = self.leadership.view().fence_at();
            tokio::select! {
                biased;
                () = at(fence_at) => {}
                () = &mut shutdown => break,
                () = self.look_after() => {}
            }
        }
        self.shut_down().await
    }

    fn pace(&self) -> Duration {
        let is_elected = |role: &Role| matches!(role, Role::Master { announced: None }) && self.was_promoted;
        match &self.state {
            State::Running(Running { role, .. }) if is_elected(role) => PACE,
            State::Running(Running { role: Role::Replica { .. }, .. })
                if self.candidacy.is_hurried() || self.promises.voted().is_some() =>
            {
                PACE
            }
            State::Running(Running { sql: None, .. }) => TURN_WHILE_STARTING,
            State::Running(Running { role: Role::Replica { .. }, .. }) if !self.publisher.current().ready => TURN / 5,
            State::Running(Running { role: Role::Replica { .. }, .. }) => TURN_OF_REPLICA,
            State::Running(Running { role: Role::Promoted, .. }) => Duration::ZERO,
            // Whoever stopped it may start it again.
            State::StoppedByOthers { .. } => TURN / 5,
            _ => TURN,
        }
    }

    async fn turn(&mut self) {
        self.stand_down();
        if Instant::now() < self.retry.not_before && matches!(self.state, State::Stopped) {
            // Nothing is looked at meanwhile: somebody may lead by now.
            self.publisher.update(|status| status.makes_way = false);
            return;
        }
        let observation = self.observe().await;
        self.answer_ballots(&observation).await;
        self.forget_old_vote();
        self.make_way(&observation.lease).await;
        self.look_after_lost_master(&observation.lease).await;
        let leads = matches!(observation.lease, election::Lease::Mine { .. });
        self.publisher.update(|status| status.leads = leads);
        let action = election::decide(&observation);
        self.way_out = self.find_way_out(&observation, &action);
        self.note_another_database(&observation.lease, &action);
        let starts_master = action == Action::StartMaster;
        if let Err(why) = self.act(action, observation.standing.version).await {
            let why = with_causes(why.as_ref());
            error!(error = why, "failed, trying again");
            self.tell(format!("failed, trying again: {why}"));
            self.retry.later();
            if starts_master {
                self.note_failed_start(why);
            }
        }
    }

    fn find_way_out(&self, observation: &Observation, action: &Action) -> Option<String> {
        let (Action::Wait(waiting) | Action::ReleaseLease(waiting)) = action else { return None };
        let Configuration { namespace, set, .. } = self.configuration();
        way_out(waiting, observation, namespace, &names::leader(set))
    }

    async fn observe(&mut self) -> Observation {
        let view = self.leadership.view();
        self.look_at_wal(&view).await;
        let server = match &self.state {
            State::Stopped => election::Server::Stopped,
            State::StoppedByOthers { until } if Instant::now() >= *until => {
                self.state = State::Stopped;
                election::Server::Stopped
            }
            State::StoppedByOthers { .. } => election::Server::StoppedByOthers,
            State::Bootstrapping(_) => election::Server::Bootstrapping,
            State::Cloning { from, .. } => election::Server::Cloning { from: from.clone() },
            State::Rewinding { from, .. } => election::Server::Rewinding { from: from.clone() },
            State::Running(Running { role: Role::Master { .. }, .. }) => election::Server::Master,
            State::Running(Running { role: Role::Promoted, .. }) => election::Server::Promoted,
            State::Running(Running { role: Role::Replica { follows, stuck_at }, .. }) => {
                let (follows, stuck_at, wal) = (follows.clone(), *stuck_at, self.wal());
                election::Server::Replica { follows, stuck_at, receives: wal.receives, position: wal.position }
            }
        };
        if server == election::Server::Stopped {
            self.look_at_data().await;
        }
        let data = self.coming_back.know(self.data.clone().unwrap_or(Data::Empty));
        let first = self.configuration().brings_database;
        let standing = self.standing(&view);
        Observation { lease: view.at(Instant::now()), data, server, first, standing }
    }

    /// Only a stopped member's data can change hands: somebody may move it away, bring it back, or mend what can't be used.
    async fn look_at_data(&mut self) {
        let data = self.midwife.data.clone();
        let fingerprint = tokio::task::spawn_blocking(move || data.fingerprint()).await.ok();
        if matches!(self.data, None | Some(Data::Unusable(_))) || fingerprint != self.fingerprint {
            self.data = Some(self.midwife.data.inspect(&self.midwife.programs, &self.midwife.processes).await);
            // From before it was looked at, so that no change falls in between. A move that was finished meanwhile is looked at again.
            self.fingerprint = fingerprint;
        }
    }

    /// `about`: the state of the Lease that this was decided about.
    async fn act(&mut self, action: Action, about: Option<Version>) -> Result<(), Box<dyn std::error::Error>> {
        // Whoever asks for votes again still waits for the same.
        if !matches!(action, Action::Wait(_) | Action::ReleaseLease(_) | Action::AskForVotes(_)) {
            self.waiting = None;
        }
        if label::is_stale(&action) {
            self.take_label_off(&action);
        }
        match action {
            Action::Stay => {}
            Action::Wait(waiting) => self.wait(waiting),
            Action::TakeLease(taking) => {
                self.note_order_to_lead();
                self.take_lease(about, taking).await?;
            }
            Action::Promise(version) => self.promise(version).await?,
            Action::AskForVotes(ballot) => self.ask_for_votes(&ballot),
            Action::StartStandby => {
                self.label.set(label::Role::None);
                self.midwife.prepare_to_wait()?;
                self.write_names_of_standby()?;
                self.start(Role::Replica { follows: None, stuck_at: None }).await?;
            }
            Action::Promote(timeline) => self.promote(timeline).await?,
            Action::ReleaseLease(waiting) => {
                self.release(None).await;
                self.wait(waiting);
            }
            Action::NameDatabase(database) => {
                info!(system = %database.system, "the Lease knew no database: this replica's is the set's, and its master may lead");
                self.release(Some(LastWord { database: Some(database), ..LastWord::default() })).await;
            }
            Action::Bootstrap => {
                self.tell("making a new database");
                self.state = State::Bootstrapping(tokio::spawn(self.midwife.clone().bootstrap()));
            }
            Action::Clone(master) => self.clone_from(master),
            Action::Rewind(master) => self.rewind(master),
            Action::CloneAnew(master) => self.clone_anew(master).await,
            Action::StartMaster => {
                self.write_synchronous_names()?;
                self.start(Role::Master { announced: None }).await?;
            }
            Action::StartReplica(master) => {
                // With a readiness probe of the user's own the label alone says whether this member may be read.
                self.label.set_and_wait(label::Role::None).await;
                self.midwife.prepare_to_follow(&master)?;
                self.write_names_of_standby()?;
                self.start(Role::Replica { follows: Some(master), stuck_at: None }).await?;
            }
            Action::Follow(master) => self.follow(master)?,
            Action::Fence => self.fence().await,
            Action::AbandonClone => self.stop_at_once().await,
        }
        Ok(())
    }

    /// A replica that waits for a master can be read meanwhile.
    fn take_label_off(&self, action: &Action) {
        let is_replica = matches!(self.state, State::Running(Running { role: Role::Replica { .. }, .. }));
        if is_replica && matches!(action, Action::Wait(_) | Action::Promise(_) | Action::AskForVotes(_)) {
            self.label.take_off_soon();
        } else {
            self.label.set(label::Role::None);
        }
    }

    fn clone_from(&mut self, master: Master) {
        self.tell(format!("cloning {}", master.pod));
        let task = tokio::spawn(self.midwife.clone().clone_from(master.clone()));
        self.state = State::Cloning { from: master, task };
    }

    fn wait(&mut self, waiting: Waiting) {
        let text = self.in_words(&waiting);
        // What a running server does is told in between.
        if self.waiting.as_ref() != Some(&waiting) {
            info!("{text}");
            self.waits_since = Instant::now();
        }
        self.tell_what_order_waits_for(&waiting);
        if is_refusal(&waiting) && self.waits_since.elapsed() >= patience(&waiting) {
            self.teller.tell(Reason::DataRefused, &text);
        }
        self.waiting = Some(waiting);
        self.tell(text);
    }

    /// Why it waits, and what a person can do about it.
    fn in_words(&self, waiting: &Waiting) -> String {
        match &self.way_out {
            Some(way_out) => format!("{waiting}; {way_out}"),
            None => waiting.to_string(),
        }
    }

    fn tell(&self, doing: impl Into<String>) {
        let doing = doing.into();
        self.publisher.update(|status| status.doing = doing);
    }

    async fn start(&mut self, role: Role) -> Result<(), Box<dyn std::error::Error>> {
        let Midwife { configuration, programs, processes, data, .. } = &self.midwife;
        // A server that was killed may have left backends, and its pid file.
        postmasters::end_all(data.path()).await?;
        data.remove_stale_pid_file()?;
        if !matches!(role, Role::Master { .. }) {
            data.forget_passed_over()?;
        }
        let ready = Ready::ask(configuration, data, programs, processes).await?;
        let server = if matches!(role, Role::Master { .. }) {
            // What was asked took its time.
            let Some(permit) = self.leadership.permit() else { return Ok(()) };
            Server::start_master(ready, &permit)?
        } else {
            Server::start_standby(ready)?
        };
        info!(role = role.name(), "starting PostgreSQL");
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
        if follows.as_ref().is_none_or(|before| before.address != master.address || before.port != master.port) {
            info!(master = %master.pod, address = %master.address, "following the master at its new address");
            self.midwife.write_master(&master)?;
            server.reload();
        }
        *follows = Some(master);
        Ok(())
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
