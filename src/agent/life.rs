//! The life of the first process of the container: what has to be so before a member can begin, and what becomes of it if it is not so.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, warn};

use super::as_before::{self, Found, Kind, Refusal};
use super::backup::Keeper;
use super::binaries::Binaries;
use super::configuration::{self, Configuration, run_directory};
use super::data::{self, DataDirectory};
use super::electorate::{Electorate, Question, Reply};
use super::events::{Reason, Teller};
use super::member::{Member, Parting, Parts};
use super::mounts::OffVolume;
use super::notes::Notes;
use super::owner::{self, Lost, Ownership};
use super::processes::{Processes, end_container};
use super::promises::Promises;
use super::provisioner::Provisioner;
use super::responder::Responder;
use super::status::StatusHandle;
use super::{
    Ending, Error, fencing, in_place, instance, kubernetes, leadership, peers, postmasters, privileges, role_label,
    route,
};
use crate::election::SystemIdentifier;
use crate::election::lease_record::{HolderIdentity, LeaseRecord};
use crate::election::promise::Attempt;
use crate::errors::with_causes;
use crate::names;
use crate::set::OLDEST_POSTGRESQL;

/// How often a data directory that another container still holds is tried again: a killed container's lock ends with it.
const LOCK_RETRY: Duration = Duration::from_secs(1);
/// How often the mounted Secret is looked at while it lacks a password.
const PASSWORDS_RETRY: Duration = Duration::from_millis(500);
/// A new set's Secret is a moment younger than its first pod; after so long its lack is worth an Event.
const PASSWORDS_EXPECTED: Duration = Duration::from_secs(10);
/// How long the API server may take to say what the set is, when the agent is about to run the image as it was.
const LEASE_LIMIT: Duration = Duration::from_secs(5);
/// How long the agent stays after an error that ends it, so that the Event that tells it is written.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// So many candidates may ask at once; there are never more than a few.
const BALLOTS: usize = 16;
/// What the other members ask.
pub type Questions = mpsc::Receiver<peers::Asked<Question, Reply>>;

/// Why the agent has not become the PostgreSQL user.
#[derive(Debug)]
pub enum Unsettled {
    /// The data directory is not on the data volume.
    OffVolume(OffVolume),
    /// There is no such user, or the data is not his.
    User(privileges::Error),
}

/// What all stages of the agent's life use.
#[derive(Clone, Debug)]
pub struct Life {
    /// The member's configuration.
    pub configuration: Configuration,
    /// All child processes.
    pub processes: Processes,
    /// The member's own account.
    pub status_handle: StatusHandle,
    /// Its Events.
    pub teller: Teller,
    /// How it asks the other members.
    pub peers: peers::Client,
}

impl Life {
    /// Lives until `shutdown` completes, or until something ends that can't go on.
    pub async fn live(
        self,
        user: Result<Option<PathBuf>, Unsettled>,
        questions: Questions,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Ending, Error> {
        let place = &self.configuration.place;
        let found = || Found::at(&place.directory, self.configuration.brings_database);
        let home = match user {
            Ok(home) => home,
            Err(Unsettled::OffVolume(why)) => return self.refuse(&why, shutdown).await,
            Err(Unsettled::User(why)) => return self.leave(found(), Kind::User, why.into(), None, shutdown).await,
        };
        // Again, as the user who can see every directory on the way, and now that all of them are there.
        if let Err(why) = place.check() {
            return self.refuse(&why, shutdown).await;
        }
        let run = run_directory();
        fs::create_dir_all(&run).map_err(|source| Error::RunDirectory { path: run, source })?;
        let data = DataDirectory::open(place)?;
        let lock = tokio::select! {
            lock = self.lock(&data) => lock?,
            () = &mut shutdown => return Ok(Ending::Stopped),
        };
        let fencer = fencing::Handle::new();
        let mut ownership = self.start_to_own(&data, &lock, &fencer)?;
        let life = async {
            let (ending, may_let_go) =
                self.own(&mut ownership, data.clone(), fencer.clone(), home, questions, shutdown.as_mut()).await?;
            let _ = postmasters::end_all(data.recovered().path()).await;
            if may_let_go && self.processes.are_ended().await && postmasters::all(data.path()).is_empty() {
                ownership.release().await;
            }
            Ok(ending)
        };
        let ending = tokio::select! {
            ending = life => ending,
            () = fencer.clone().keep(self.processes.clone()) => Err(Error::Ended("keeper of the fencer")),
        };
        drop(lock);
        ending
    }

    /// What says, beside the lock, that the data directory is this life's. It is known from another life of this pod by a random token.
    fn start_to_own(
        &self,
        data: &DataDirectory,
        lock: &data::Lock,
        fencer: &fencing::Handle,
    ) -> Result<Ownership, Error> {
        let path = data.owner_file();
        let token = instance::random().map_err(Error::Start)?;
        let HolderIdentity { pod, uid } = self.configuration.me.clone();
        let lock_proves = lock.is_held() && owner::has_locks_for_all(data.path());
        let slate = owner::Volume::new(path, &uid, !lock_proves);
        let me = owner::Note { pod, uid, token, beat: 0 };
        Ownership::start(slate, me, lock_proves, owner::TIMES, fencer.clone(), |lost: Lost| {
            // With the first process of the container everything in it ends.
            error!("{lost}: the container ends");
            end_container()
        })
        .map_err(Error::Start)
    }

    /// Owns the data directory, and lives there. Returns how it ended, and whether nothing of this life writes there any more.
    async fn own(
        &self,
        ownership: &mut Ownership,
        data: DataDirectory,
        fencer: fencing::Handle,
        home: Option<PathBuf>,
        questions: Questions,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(Ending, bool), Error> {
        tokio::select! {
            outcome = ownership.taken(|why| self.wait(why)) => outcome?,
            () = &mut shutdown => return Ok((Ending::Stopped, true)),
        }
        data.recover()?;
        data.remove_released();
        let place = &self.configuration.place;
        let found = Found::at(&place.directory, self.configuration.brings_database);
        let binaries = match Binaries::find(home.clone()) {
            Ok(binaries) => binaries,
            Err(why) => {
                let ending = self.leave(found, Kind::Binaries, why.into(), home.as_deref(), shutdown).await?;
                return Ok((ending, ending == Ending::Stopped));
            }
        };
        binaries.prepare_image(&self.processes, &place.directory).await;
        let outcome = tokio::select! {
            outcome = self.prepare(found, &data) => outcome,
            () = &mut shutdown => return Ok((Ending::Stopped, true)),
        };
        let outcome = match outcome {
            Ok(()) => {
                Box::pin(self.be_a_member(found, data, binaries.clone(), fencer.clone(), questions, shutdown.as_mut()))
                    .await?
            }
            Err(refusal) => Parting::Refused(refusal),
        };
        match outcome {
            Parting::Stopped => Ok((Ending::Stopped, true)),
            Parting::Left => Ok((Ending::Stopped, false)),
            Parting::Refused(refusal) => {
                // What the image runs needs no Lease, only the directory.
                fencer.stand();
                let server = Some(binaries.path("postgres"));
                let ending = self.run_as_before(&refusal, server, home.as_deref(), shutdown).await?;
                // An image that ended by itself may have left anything; the next life of its container takes over at once.
                Ok((ending, ending == Ending::Stopped))
            }
        }
    }

    /// What a member needs before it looks at anything else.
    async fn prepare(&self, found: Found, data: &DataDirectory) -> Result<(), Refusal> {
        if let Some(version) = data.too_old() {
            let why = format!(
                "the database in {} is of PostgreSQL {version}, and the agent knows {OLDEST_POSTGRESQL} and newer",
                data.path().display()
            );
            // Otherwise the member says it, and waits.
            if as_before::is_due(found, Kind::Version, Duration::ZERO, None) {
                return Err(Refusal { kind: Kind::Version, why });
            }
        }
        self.wait_for_passwords(found).await
    }

    async fn be_a_member(
        &self,
        found: Found,
        data: DataDirectory,
        binaries: Binaries,
        fencer: fencing::Handle,
        questions: Questions,
        shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Parting, Error> {
        let Self { configuration, processes, status_handle, teller, .. } = self.clone();
        let client = kubernetes::client(&configuration.namespace)?;
        let notes = Notes::of(&data);
        let earlier = notes.leadership();
        let led = earlier.clone().map(|led| Attempt { lease: String::new(), holder: led.holder, epoch: led.epoch });
        let attempt = notes.attempt().into_iter().chain(led).max_by_key(|attempt| attempt.epoch);
        let promises = Promises::new(notes.vote(), attempt);
        let addresses = earlier.as_ref().map(|earlier| earlier.addresses.clone()).unwrap_or_default();
        let electorate = Electorate::new(Arc::new(self.peers.clone()), addresses);
        let (leadership, keeper) = leadership::start(leadership::Parts {
            client: client.clone(),
            namespace: configuration.namespace.clone(),
            name: names::leader(&configuration.set),
            me: configuration.me.clone(),
            times: configuration.times,
            fencer,
            instance: instance::write(),
            promises: promises.clone(),
            electorate: electorate.clone(),
            earlier,
        });
        let Configuration { namespace, me, role_label, .. } = &configuration;
        let (label, labeller) = role_label::start(client.clone(), namespace, me.clone(), role_label.clone());
        let (route, router) = route::start(&client, &configuration, leadership.watch());
        let (set, follower) = kubernetes::follow_set(client.clone(), namespace, configuration.set.clone());
        let (ballot, ballots) = mpsc::channel(BALLOTS);
        let responder = Responder {
            view: leadership.watch(),
            promises: promises.clone(),
            electorate: electorate.clone(),
            times: configuration.times,
            ballots: ballot,
        };
        let authentication = binaries.authentication(&processes).await;
        let provisioner = Provisioner { configuration, binaries, processes, data, authentication };
        let recovery = in_place::Keeper::new(&provisioner, &set, leadership.watch(), &teller, &status_handle, &notes);
        let parts = Parts {
            accepted: recovery.accepted(),
            provisioner,
            client,
            leadership,
            label,
            route,
            status_handle,
            teller,
            found,
            set,
            promises,
            notes,
            electorate,
            ballots,
        };
        let archiver = Keeper::of(&parts);
        let member = Member::new(parts);
        tokio::select! {
            parting = member.live(shutdown) => Ok(parting),
            _ = keeper => Err(Error::Ended("keeper of the Lease")),
            _ = labeller => Err(Error::Ended("labeller")),
            _ = follower => Err(Error::Ended("watch of the set")),
            () = responder.run(questions) => Err(Error::Ended("responder")),
            _ = router => Err(Error::Ended("keeper of the route")),
            () = archiver.run() => Err(Error::Ended("keeper of the archiver")),
            () = recovery.run() => Err(Error::Ended("keeper of a recovery")),
        }
    }

    async fn lock(&self, data: &DataDirectory) -> Result<data::Lock, data::Error> {
        let mut told = false;
        loop {
            match data.lock() {
                Err(error @ data::Error::Locked { .. }) => {
                    if !told {
                        warn!("{error}; waiting");
                        told = true;
                    }
                    self.wait(error.to_string());
                    sleep(LOCK_RETRY).await;
                }
                outcome => return outcome,
            }
        }
    }

    fn wait(&self, message: String) {
        self.status_handle.update(|status| {
            status.message = message;
            status.last_tick = Some(Instant::now());
        });
    }

    /// The Secret is not needed to start the pod, so that a Secret that lacks a key keeps no database from starting.
    async fn wait_for_passwords(&self, found: Found) -> Result<(), Refusal> {
        let since = Instant::now();
        let mut nudge: Option<Option<AbortHandle>> = None;
        loop {
            let missing = configuration::missing_keys(found.is_for_a_new_database());
            if missing.is_empty() {
                // Or it would take off the label of a member.
                if let Some(nudge) = nudge.flatten() {
                    nudge.abort();
                }
                return Ok(());
            }
            let why = format!(
                "the Secret {} (pgset.dev/credentials) lacks the keys {}: pgset's controller makes those of a Secret of its own; to one of \
                 your own, add them",
                self.configuration.credentials,
                missing.join(", ")
            );
            if nudge.is_none() {
                warn!("waiting: {why}");
                // A changed pod lets the kubelet look at its Secrets at once, instead of within a minute.
                nudge = Some(as_before::take_label_off(&self.configuration));
            }
            if since.elapsed() >= PASSWORDS_EXPECTED {
                self.teller.tell(Reason::CredentialsIncomplete, &why);
            }
            if as_before::is_due(found, Kind::Passwords, since.elapsed(), None)
                && as_before::is_due(found, Kind::Passwords, since.elapsed(), self.known_set().await)
            {
                return Err(Refusal { kind: Kind::Passwords, why });
            }
            self.wait(why);
            sleep(PASSWORDS_RETRY).await;
        }
    }

    /// Tells why nothing is made or started, until somebody changes the set.
    async fn refuse(&self, why: &OffVolume, shutdown: Pin<&mut impl Future<Output = ()>>) -> Result<Ending, Error> {
        let why = why.to_string();
        warn!("no database is made or started: {why}");
        self.teller.tell(Reason::DataRefused, &why);
        self.status_handle.update(|status| {
            status.message = why;
            status.last_tick = None;
        });
        shutdown.await;
        Ok(Ending::Stopped)
    }

    /// The agent can't go on: the image does, if that is due, or the container ends with the reason, to begin anew.
    async fn leave(
        &self,
        found: Found,
        kind: Kind,
        why: Error,
        home: Option<&Path>,
        shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Ending, Error> {
        let text = with_causes(&why);
        let set = if found.is_adopted() { self.known_set().await } else { None };
        if as_before::is_due(found, kind, Duration::ZERO, set) {
            return self.run_as_before(&Refusal { kind, why: text }, None, home, shutdown).await;
        }
        self.teller.tell(Reason::DataRefused, &text);
        sleep(LAST_WORDS).await;
        Err(why)
    }

    async fn run_as_before(
        &self,
        refusal: &Refusal,
        server: Option<PathBuf>,
        home: Option<&Path>,
        shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Ending, Error> {
        as_before::run(self, server, home, refusal, shutdown).await.map_err(Error::Image)
    }

    /// The database that the Lease says the set is; absent if nobody says so in time.
    async fn known_set(&self) -> Option<SystemIdentifier> {
        let Configuration { namespace, set, times, .. } = &self.configuration;
        let leases: Api<Lease> = Api::namespaced(kubernetes::client(namespace).ok()?, namespace);
        let lease = timeout(LEASE_LIMIT, leases.get_opt(&names::leader(set))).await.ok()?.ok()??;
        LeaseRecord::read(&lease, times.duration).set.map(|set| set.system)
    }
}
