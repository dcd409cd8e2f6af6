//! What a member does when the set has no master: its own candidacy, and its answers to the others'. What is right to do is
//! [`election::candidate`](crate::election::candidate)'s word.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::Member;
use super::postgres::{Postgres, Role, Running};
use crate::agent::electorate::Electorate;
use crate::agent::leadership::LeaseSnapshot;
use crate::agent::sql::StandbyFacts;
use crate::election::epoch::Epoch;
use crate::election::lease_record::Taking;
use crate::election::promise::Attempt;
use crate::election::step::Event;
use crate::election::vote::{Answer, Ballot, Version};
use crate::errors::with_causes;

/// A member that wants votes looks this often whether its receiver has ended, and is asked this often again.
pub(super) const PACE: Duration = Duration::from_millis(20);
/// How long a look at one pod may take: where it is not known, the address that was heard last is as good.
const POD_LIMIT: Duration = Duration::from_millis(500);

/// Another member that asks for this one's vote.
pub struct Asked {
    /// What it asks.
    pub ballot: Ballot,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
}

/// The ballots on their way: those of others, and this member's own.
pub(super) struct Ballots {
    inbox: mpsc::Receiver<Asked>,
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    next: u64,
    task: Option<JoinHandle<BTreeMap<String, Answer>>>,
    /// What this replica has, where something depends on it.
    pub(super) facts: Option<StandbyFacts>,
}

// === impl Ballots ===

impl Ballots {
    pub(super) fn new(inbox: mpsc::Receiver<Asked>) -> Self {
        Self { inbox, waiting: BTreeMap::new(), next: 0, task: None, facts: None }
    }

    /// Completes when somebody asks for this member's vote, or the others have answered. Cancel-safe.
    pub(super) async fn changed(&mut self) -> Event {
        let counted = async {
            match &mut self.task {
                Some(task) => task.await.unwrap_or_default(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(Asked { ballot, answer }) = self.inbox.recv() => {
                self.next += 1;
                self.waiting.insert(self.next, answer);
                Event::Asked(self.next, ballot)
            }
            answers = counted => {
                self.task = None;
                info!(?answers, "the other members have answered");
                Event::Answered(answers)
            }
            else => std::future::pending().await,
        }
    }

    /// The others are being asked.
    pub(super) fn is_counting(&self) -> bool {
        self.task.is_some()
    }

    /// Answers whoever asked by that number; with nothing, he hears that nobody answers.
    pub(super) fn answer(&mut self, number: u64, answer: Option<Answer>) {
        if let (Some(asked), Some(answer)) = (self.waiting.remove(&number), answer) {
            debug!(?answer, "answered a candidate");
            let _ = asked.send(answer);
        }
    }
}

impl Member {
    /// What a running replica has, where something depends on it.
    pub(super) async fn look_at_wal(&mut self, view: &LeaseSnapshot) {
        self.ballots.facts = None;
        let Postgres::Running(Running { sql: Some(sql), role: Role::Replica { follows, .. }, .. }) = &self.postgres
        else {
            return;
        };
        let (lease, voted) = (view.at(Instant::now()), self.promises.voted());
        if !self.state.candidacy.needs_position(&lease, follows.as_ref(), voted.as_ref()) {
            return;
        }
        match sql.standby_facts().await {
            Ok(mut facts) => {
                facts.receives = self.state.candidacy.may_receive(facts.receives);
                // It follows nobody by now; what is left of its receiver would go on for as long as the old master sends.
                if let (true, None, Some(receiver)) = (facts.follows_nobody, follows, facts.receiver) {
                    let _ = kill(Pid::from_raw(receiver), Signal::SIGTERM);
                }
                self.ballots.facts = Some(facts);
            }
            Err(why) => debug!(error = with_causes(&why), "what this replica has is not known"),
        }
    }

    pub(super) fn wal(&self) -> StandbyFacts {
        self.ballots.facts.unwrap_or(StandbyFacts { receives: true, ..StandbyFacts::default() })
    }

    /// From now on, and after any restart, nothing is received while the Lease stands at that version.
    pub(super) async fn promise(&mut self, version: Version) -> Result<(), Box<dyn std::error::Error>> {
        if !self.promises.vote(&version, Instant::now()) {
            return Ok(());
        }
        let (notes, about) = (self.notes.clone(), version.clone());
        let outcome = tokio::task::spawn_blocking(move || notes.write_vote(&about)).await;
        if !matches!(outcome, Ok(Ok(()))) {
            self.promises.take_back(&version);
        }
        outcome??;
        if let Postgres::Running(Running { server, role: Role::Replica { follows, .. }, .. }) = &mut self.postgres {
            info!("this replica receives nothing while the set has no master");
            self.provisioner.write_no_master()?;
            server.reload();
            *follows = None;
        }
        Ok(())
    }

    /// Asks for the Lease as it was seen. The attempt is noted first: whoever may hold the Lease, and can't read it after a restart,
    /// confirms no master of an earlier epoch.
    pub(super) async fn take_lease(
        &mut self,
        about: Option<Version>,
        taking: Taking,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let view = self.leadership.view();
        let Some((seen, version)) = view.seen().zip(about).filter(|(seen, about)| seen.version == *about) else {
            return Ok(());
        };
        let holder = self.configuration().me.to_string();
        let is_new = seen.holder.as_ref() != Some(&holder);
        let epoch = seen.record.epoch.saturating_add(u32::from(is_new));
        let attempt = Attempt { lease: version.lease().to_owned(), holder, epoch };
        let (notes, about) = (self.notes.clone(), attempt.clone());
        tokio::task::spawn_blocking(move || notes.write_attempt(&about)).await??;
        self.promises.attempt(attempt);
        self.state.commits.taken_with = Some(taking.quorum.clone());
        self.leadership.take(version, taking).await;
        Ok(())
    }

    /// A vote that is over needs no note; one that stays by mistake is over when it is read.
    pub(super) fn forget_old_vote(&mut self) {
        let voted = self.promises.voted();
        if self.noted_vote.is_some() && voted.is_none() {
            let notes = self.notes.clone();
            tokio::task::spawn_blocking(move || {
                notes.remove_vote().map_err(|why| warn!(error = with_causes(&why), "the note of a vote stays"))
            });
        }
        self.noted_vote = voted;
    }

    pub(super) fn ask_for_votes(&mut self, ballot: &Ballot) {
        let view = self.leadership.view();
        let Some(seen) = view.seen() else { return };
        let configuration = self.configuration();
        let others: BTreeSet<String> =
            seen.record.voters.iter().filter(|pod| **pod != configuration.me.pod).cloned().collect();
        let last = seen.holder.as_deref().and_then(|holder| holder.split_once('/')).map(|(pod, _)| pod.to_owned());
        info!(?others, position = %ballot.position.at, timeline = ballot.position.timeline, "the set has no master: asking for votes");
        let (client, namespace) = (self.client.clone(), configuration.namespace.clone());
        self.ballots.task =
            Some(tokio::spawn(ask(client, namespace, others, last, ballot.clone(), self.electorate.clone())));
    }

    /// Lets the standby become the master. It accepts writes from some moment on: from here it is looked upon as one.
    pub(super) async fn promote(
        &mut self,
        timeline: u32,
        decided_in: Option<&Epoch>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let Some(facts) = self.ballots.facts else { return Ok(()) };
        self.write_synchronous_names()?;
        match facts.position {
            Some(from) if from.timeline.saturating_add(1) < timeline => {
                info!(timeline, "another member may have been promoted before, unheard: its timeline is passed over");
                let data = self.provisioner.data.clone();
                tokio::task::spawn_blocking(move || data.pass_over_timelines(from, timeline)).await??;
            }
            // Another look tells from where.
            None if facts.next_timeline < timeline => return Ok(()),
            Some(_) | None => {}
        }
        let Postgres::Running(Running { server, sql: Some(sql), role, .. }) = &mut self.postgres else { return Ok(()) };
        server.reload();
        // What was asked took its time.
        let Some(permit) = self.leadership.permit(decided_in) else { return Ok(()) };
        info!("this member was elected: it is promoted");
        *role = Role::Master { announced: None };
        self.status_handle.update(|status| {
            status.role = "master";
            status.ready = false;
            "is promoted".clone_into(&mut status.message);
        });
        self.status_handle.counts.promotions.inc();
        self.was_promoted = true;
        self.woken_at = Instant::now();
        Ok(sql.promote(&permit).await?)
    }
}

/// Asks every other member that may vote, wherever it is now.
async fn ask(
    client: Client,
    namespace: String,
    others: BTreeSet<String>,
    last: Option<String>,
    ballot: Ballot,
    electorate: Electorate,
) -> BTreeMap<String, Answer> {
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let heard = electorate.addresses();
    let looks = others.iter().map(|pod| {
        let (pods, heard) = (pods.clone(), heard.get(pod).cloned());
        async move {
            let found = timeout(POD_LIMIT, pods.get_opt(pod)).await;
            let address = match found {
                Ok(Ok(found)) => found.and_then(|pod| pod.status).and_then(|status| status.pod_ip),
                Ok(Err(_)) | Err(_) => heard,
            };
            Some((pod.clone(), address?))
        }
    });
    let members = join_all(looks).await.into_iter().flatten().collect();
    electorate.votes(&ballot, &members, last.as_deref()).await
}
