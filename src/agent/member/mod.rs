//! The main loop of a member: what it meets becomes an event, and what [`step`] makes of that is done.

mod archiving;
mod candidacy;
mod ending;
mod facts;
mod from_store;
mod handover;
mod look;
mod master_ended;
mod ordered;
mod others;
mod postgres;
mod reconcile;
mod record;
mod recovered;
mod refusing;
mod replicas;
mod returning;
mod seen;
mod starting;

use std::collections::VecDeque;
use std::time::Duration;

use kube::Client;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

pub use self::candidacy::Asked;
use self::candidacy::{Ballots, PACE};
use self::master_ended::MasterEnded;
use self::ordered::Ordered;
use self::postgres::{Postgres, Role, Running};
use self::refusing::{is_refusal, patience};
use super::as_before::{Found, Refusal};
use super::configuration::Configuration;
use super::data::Fingerprint;
use super::electorate::Electorate;
use super::events::{Reason, Teller};
use super::in_place::Accepted;
use super::kubernetes::Wishes;
use super::notes::{Leadership, Notes};
use super::processes::end_container;
use super::promises::Promises;
use super::provisioner::Provisioner;
use super::status::StatusHandle;
use super::synchronous::Shortage;
use super::{leadership, postmasters, role_label, route};
use crate::election::lease_record::LastWord;
use crate::election::state::{State, Time};
use crate::election::step::{Decision, Effect, Event, step};
use crate::election::vote::Version;
use crate::election::way_out::way_out;
use crate::election::{Action, DataState, Lease, Master, Waiting};
use crate::errors::with_causes;
use crate::names;

/// The loop's pace when all is well, and when PostgreSQL is about to accept connections.
const LOOP_INTERVAL: Duration = Duration::from_secs(1);
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
    pub provisioner: Provisioner,
    /// The API server.
    pub client: Client,
    /// The Lease.
    pub leadership: leadership::Handle,
    /// The role label.
    pub label: role_label::Handle,
    /// Where the master is.
    pub route: route::Handle,
    /// The member's own account.
    pub status_handle: StatusHandle,
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
    /// What was recovered beside its data, and accepted.
    pub accepted: Accepted,
}

/// A member of a set.
pub struct Member {
    provisioner: Provisioner,
    client: Client,
    leadership: leadership::Handle,
    label: role_label::Handle,
    route: route::Handle,
    status_handle: StatusHandle,
    teller: Teller,
    found: Found,
    set: watch::Receiver<Option<Wishes>>,
    promises: Promises,
    notes: Notes,
    electorate: Electorate,
    ballots: Ballots,
    ordered: Ordered,
    master_ended: MasterEnded,
    noted_vote: Option<Version>,
    noted_leadership: Option<Leadership>,
    was_promoted: bool,
    woken_at: Instant,
    /// When this replica heard of the master that it follows, or lost its stream.
    hurries_since: Instant,
    report_due: Instant,
    refusal: Option<Refusal>,
    shortage: Shortage,
    oldest_wal_due: Instant,
    archiving: archiving::Archiving,
    accepted: Accepted,
    recovered: recovered::Recovered,
    from_store: from_store::FromStore,
    /// What it remembers.
    state: State<Instant>,
    postgres: Postgres,
    data: Option<DataState>,
    fingerprint: Option<Fingerprint>,
    waiting: Option<Waiting>,
    way_out: Option<String>,
    waits_since: Instant,
    last_failure: String,
}

// === impl Member ===

impl Member {
    /// A member that has done nothing yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { provisioner, client, leadership, label, route, status_handle, teller, found, .. } = parts;
        let Parts { set, promises, notes, electorate, ballots, accepted, .. } = parts;
        Self {
            provisioner,
            client,
            leadership,
            label,
            route,
            status_handle,
            teller,
            found,
            set,
            archiving: archiving::Archiving::of(notes.backup()),
            accepted,
            recovered: recovered::Recovered::default(),
            from_store: from_store::FromStore::default(),
            noted_vote: promises.voted(),
            promises,
            notes,
            electorate,
            ballots: Ballots::new(ballots),
            ordered: Ordered::default(),
            master_ended: MasterEnded::default(),
            noted_leadership: None,
            was_promoted: false,
            woken_at: Instant::now(),
            hurries_since: Instant::now(),
            report_due: Instant::now(),
            refusal: None,
            shortage: Shortage::default(),
            oldest_wal_due: Instant::now(),
            state: State::default(),
            postgres: Postgres::Stopped,
            data: None,
            fingerprint: None,
            waiting: None,
            way_out: None,
            waits_since: Instant::now(),
            last_failure: String::new(),
        }
    }

    fn configuration(&self) -> &Configuration {
        &self.provisioner.configuration
    }

    /// Lives until `shutdown` completes, then stops PostgreSQL and gives the Lease back; or until it is clear that the image has to run
    /// the database as before.
    pub async fn live(mut self, shutdown: impl Future<Output = ()>) -> Parting {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let (fence_strikes, pace) = (self.leadership.fence_strikes(), self.pace());
            tokio::select! {
                biased;
                () = fence_strikes => {}
                () = &mut shutdown => break,
                ended = self.postgres.ended() => self.handle_exit(ended).await,
                () = self.leadership.changed() => {}
                event = self.ballots.changed() => {
                    let effects = self.happens(event);
                    self.run(effects).await;
                }
                () = sleep(pace) => {}
            }
            self.status_handle.update(|status| status.last_tick = Some(Instant::now()));
            self.stop_server_of_others().await;
            self.turn().await;
            self.stand_down();
            if let Some(refusal) = self.refused() {
                self.release(None).await;
                return Parting::Refused(refusal);
            }
            // Questions to the server may take their time; the fence does not wait for them, and does not cut off what takes longer than a
            // renewal.
            let fence_strikes = self.leadership.fence_strikes();
            tokio::select! {
                biased;
                () = fence_strikes => {}
                () = &mut shutdown => break,
                () = self.look_after() => {}
            }
        }
        self.shut_down().await
    }

    fn pace(&self) -> Duration {
        let is_elected = |role: &Role| matches!(role, Role::Master { announced: None }) && self.was_promoted;
        match &self.postgres {
            Postgres::Running(Running { role, .. }) if is_elected(role) => PACE,
            Postgres::Running(Running { role: Role::Replica { .. }, .. })
                if self.ballots.is_counting() || self.state.candidacy.is_asked() || self.promises.voted().is_some() =>
            {
                PACE
            }
            Postgres::Running(Running { sql: None, .. }) => TURN_WHILE_STARTING,
            Postgres::Running(Running { role: Role::Replica { .. }, .. }) if !self.status_handle.current().ready => {
                LOOP_INTERVAL / 5
            }
            Postgres::Running(Running { role: Role::Replica { .. }, .. }) => TURN_OF_REPLICA,
            Postgres::Running(Running { role: Role::Promoted, .. }) => Duration::ZERO,
            // Whoever stopped it may start it again.
            Postgres::Stopped if self.state.lets_be(Instant::now()) => LOOP_INTERVAL / 5,
            Postgres::Stopped => match self.state.pauses_until(Instant::now()) {
                Some(until) => LOOP_INTERVAL.min(until.saturating_duration_since(Instant::now())),
                None => LOOP_INTERVAL,
            },
            _ => LOOP_INTERVAL,
        }
    }

    /// What follows from an event, by what this member remembers.
    fn happens(&mut self, event: Event) -> Vec<Effect> {
        step(&mut self.state, event, Instant::now())
    }

    async fn turn(&mut self) {
        self.stand_down();
        if self.state.pauses_until(Instant::now()).is_some() && matches!(self.postgres, Postgres::Stopped) {
            // Nothing is looked at meanwhile: somebody may lead by now.
            self.status_handle.update(|status| status.makes_way = false);
            return;
        }
        let facts = self.look().await;
        let lease = facts.lease.clone();
        let effects = self.happens(Event::Looked(Box::new(facts)));
        self.make_way(&lease).await;
        self.look_after_lost_master(&lease).await;
        let leads = matches!(lease, Lease::Held { .. });
        self.status_handle.update(|status| status.leads = leads);
        self.run(effects).await;
        self.forget_old_vote();
    }

    /// Does what was decided, and what follows from that.
    async fn run(&mut self, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            effects.extend(self.perform(effect).await);
        }
    }

    async fn perform(&mut self, effect: Effect) -> Vec<Effect> {
        match effect {
            Effect::Answer { number, answer } => self.ballots.answer(number, answer),
            Effect::Promise(version) => {
                if let Err(why) = self.promise(version).await {
                    warn!(error = with_causes(why.as_ref()), "failed to promise a candidate its vote");
                }
            }
            Effect::TakeLabelOff { soon: true } => self.label.take_off_soon(),
            Effect::TakeLabelOff { soon: false } => self.label.set(role_label::PublishedRole::None),
            Effect::Act(decision) => return self.try_to(decision).await,
            Effect::EndLeftovers => {
                postmasters::kill_all(self.provisioner.data.path());
            }
            Effect::EndContainer => end_container(),
            Effect::GiveUpStarting => self.give_up_starting(),
            Effect::HandOver { to } => return self.hand_over(&to).await,
            Effect::GoOnFrom(recovered) => self.go_on_from(recovered).await,
            Effect::RefuseOrder { order, why } => self.refuse_order(&order, &why),
        }
        Vec::new()
    }

    async fn try_to(&mut self, decision: Decision) -> Vec<Effect> {
        self.way_out = self.find_way_out(&decision);
        self.note_another_database(&decision);
        let is_start_of_master = decision.action == Action::StartMaster;
        let Err(why) = self.act(decision).await else { return Vec::new() };
        let why = with_causes(why.as_ref());
        error!(error = why, "failed, trying again");
        self.tell(format!("failed, trying again: {why}"));
        self.last_failure = why;
        self.happens(Event::Failed { is_start_of_master })
    }

    fn find_way_out(&self, decision: &Decision) -> Option<String> {
        let (Action::Wait(waiting) | Action::ReleaseLease(waiting)) = &decision.action else { return None };
        let Configuration { namespace, set, .. } = self.configuration();
        way_out(waiting, &decision.ground, namespace, &names::leader(set))
    }

    async fn act(&mut self, decision: Decision) -> Result<(), Box<dyn std::error::Error>> {
        let (about, epoch) = (decision.version().cloned(), decision.epoch());
        // Whoever asks for votes again still waits for the same.
        if !matches!(decision.action, Action::Wait(_) | Action::ReleaseLease(_) | Action::AskForVotes(_)) {
            self.waiting = None;
        }
        match decision.action {
            Action::Stay => {}
            Action::Wait(waiting) => self.wait(waiting),
            Action::TakeLease(taking) => self.take_lease(about, taking).await?,
            Action::Promise(version) => self.promise(version).await?,
            Action::AskForVotes(ballot) => self.ask_for_votes(&ballot),
            Action::StartStandby => {
                self.provisioner.prepare_to_wait()?;
                self.write_names_of_standby()?;
                self.start(Role::Replica { follows: None, stalled_lsn: None }, None).await?;
            }
            Action::Promote(timeline) => self.promote(timeline, epoch.as_ref()).await?,
            // Another leadership has begun meanwhile, or this one is over.
            Action::ReleaseLease(_) | Action::NameDatabase(_) if self.leadership.epoch() != epoch => {}
            Action::ReleaseLease(waiting) => {
                self.release(None).await;
                self.wait(waiting);
            }
            Action::NameDatabase(database) => {
                info!(system = %database.system, "the Lease knew no database: this replica's is the set's, and its master may lead");
                self.release(Some(LastWord { database: Some(database), ..LastWord::default() })).await;
            }
            Action::Bootstrap => self.bootstrap()?,
            Action::Clone(master) => self.clone_from(master),
            Action::Rewind(master) => self.rewind(master),
            Action::Reinitialize(master) => self.reinitialize(master, &decision.ground.data).await,
            Action::StartMaster => {
                self.write_synchronous_names()?;
                self.start(Role::Master { announced: None }, epoch.as_ref()).await?;
            }
            Action::StartReplica(master) => {
                // With a readiness probe of the user's own the label alone says whether this member may be read.
                self.label.set_and_wait(role_label::PublishedRole::None).await;
                self.provisioner.prepare_to_follow(&master)?;
                self.write_names_of_standby()?;
                self.start(Role::Replica { follows: Some(master), stalled_lsn: None }, None).await?;
            }
            Action::Follow(master) => self.follow(master)?,
            Action::Fence => self.fence().await,
            Action::AbandonClone => self.stop_at_once().await,
        }
        Ok(())
    }

    /// Makes the set's database, or brings that of another set's backups.
    fn bootstrap(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let Some(wishes) = self.set.borrow().clone() else {
            return Err("the set was not heard of yet: it says with which data it begins".into());
        };
        let provisioner = self.provisioner.clone();
        let task = match wishes.restore {
            None => {
                self.tell("making a new database");
                tokio::spawn(provisioner.bootstrap())
            }
            Some(restore) => {
                self.tell(format!("restoring {} to {}", restore.from, restore.target));
                tokio::spawn(provisioner.restore(self.set.clone(), self.teller.clone(), self.status_handle.clone()))
            }
        };
        self.postgres = Postgres::Bootstrapping(task);
        Ok(())
    }

    fn clone_from(&mut self, master: Master) {
        self.tell(format!("cloning {}", master.pod));
        let task = tokio::spawn(self.provisioner.clone().clone_from(master.clone()));
        self.postgres = Postgres::Cloning { from: master, task };
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

    fn tell(&self, message: impl Into<String>) {
        let message = message.into();
        self.status_handle.update(|status| status.message = message);
    }
}

impl Time for Instant {
    fn after(self, time: Duration) -> Self {
        self + time
    }
}
