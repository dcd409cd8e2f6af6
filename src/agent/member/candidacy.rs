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
use super::state::{Role, Running, State};
use crate::agent::electorate::Electorate;
use crate::agent::leadership::View;
use crate::agent::sql::StandbyFacts;
use crate::election::candidate::{Copy, Mandate, Response, Standing, Voter, Votes, respond};
use crate::election::claim::Taking;
use crate::election::promise::Attempt;
use crate::election::vote::{Answer, Ballot, Version};
use crate::election::{Lease, Observation};
use crate::errors::with_causes;

/// A member that wants votes looks this often whether its receiver has ended, and is asked this often again.
pub(super) const PACE: Duration = Duration::from_millis(20);
/// So many looks in a row have to find no receiver: one may have been asked for, by the old settings, and not be seen yet.
const LOOKS: u32 = 2;
/// After so long a candidate that may not lead asks again: somebody may have come back.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// So long a voter keeps a candidate waiting while its receiver ends; the candidate waits a little longer.
const ANSWER_WITHIN: Duration = Duration::from_millis(700);
/// So long whoever was handed the set is let go first. It streams, and needs some tens of milliseconds.
const SUCCESSOR_GOES_FIRST: Duration = Duration::from_secs(3);
/// How long a look at one pod may take: where it is not known, the address that was heard last is as good.
const POD_LIMIT: Duration = Duration::from_millis(500);

/// Another member that asks for this one's vote.
pub struct Asked {
    /// What it asks.
    pub ballot: Ballot,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
}

/// What a member knows while the set has no master.
pub(super) struct Candidacy {
    inbox: mpsc::Receiver<Asked>,
    waiting: Vec<(Instant, Asked)>,
    facts: Option<StandbyFacts>,
    quiet: u32,
    votes: Votes,
    counted_at: Instant,
    task: Option<JoinHandle<BTreeMap<String, Answer>>>,
    handed_over: Option<(Version, Instant)>,
}

// === impl Candidacy ===

impl Candidacy {
    pub(super) fn new(inbox: mpsc::Receiver<Asked>) -> Self {
        Self {
            inbox,
            waiting: Vec::new(),
            facts: None,
            quiet: 0,
            votes: Votes::None,
            counted_at: Instant::now(),
            task: None,
            handed_over: None,
        }
    }

    /// Completes when somebody asks for this member's vote, or the others have answered. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        let counted = async {
            match &mut self.task {
                Some(task) => task.await.unwrap_or_default(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(asked) = self.inbox.recv() => self.waiting.push((Instant::now() + ANSWER_WITHIN, asked)),
            answers = counted => {
                self.task = None;
                self.counted_at = Instant::now();
                if let Votes::Pending(ballot) = &self.votes {
                    info!(?answers, "the other members have answered");
                    self.votes = Votes::Counted(ballot.clone(), answers);
                }
            }
            else => std::future::pending().await,
        }
    }

    pub(super) fn is_hurried(&self) -> bool {
        !self.waiting.is_empty() || self.task.is_some()
    }

    fn votes(&mut self) -> Votes {
        if matches!(self.votes, Votes::Counted(..)) && self.counted_at.elapsed() >= ASK_AGAIN {
            self.votes = Votes::None;
        }
        self.votes.clone()
    }

    /// To whom the last master handed over, while that one is let go first.
    fn successor(&mut self, view: &View, me: &str) -> Option<String> {
        let seen = view.seen().filter(|seen| seen.holder.is_none())?;
        let successor = seen.successor.clone().filter(|successor| successor != me)?;
        if self.handed_over.as_ref().is_none_or(|(version, _)| *version != seen.version) {
            self.handed_over = Some((seen.version.clone(), Instant::now()));
        }
        let since = self.handed_over.as_ref().map(|(_, since)| *since)?;
        (since.elapsed() < SUCCESSOR_GOES_FIRST).then_some(successor)
    }
}

impl Member {
    /// What this member knows of its chances to lead.
    pub(super) fn standing(&mut self, view: &View) -> Standing {
        let now = Instant::now();
        let configuration = self.configuration();
        let (me, holder) = (configuration.me.pod.clone(), configuration.me.to_string());
        let fails_over = configuration.fails_over;
        let wishes = self.set.borrow().clone();
        let quorum = self.midwife.quorum_at_start(wishes.as_ref().map(|set| &set.members));
        self.forget_old_order();
        let order = self.order(view);
        let mandate = match order.filter(|order| order.target.as_ref().is_none_or(|target| *target == me)) {
            // Of any member nobody can know what it lacks.
            Some(order) if order.accepts_loss && order.target.is_some() => Mandate::AcceptsLoss,
            Some(_) => Mandate::Votes,
            None if fails_over => Mandate::Votes,
            None => Mandate::None,
        };
        let seen = view.seen();
        if seen.and_then(|seen| seen.holder.as_ref()).is_some_and(|leads| *leads != holder) {
            self.handover.goes_on();
        }
        Standing {
            mandate,
            version: seen.map(|seen| seen.version.clone()),
            record: seen.map(|seen| seen.record.clone()).unwrap_or_default(),
            voted: self.promises.voted(),
            gave_leave: self.promises.leave(now).is_some(),
            fails_to_start: self.starts.are_failing(now),
            is_last_holder: seen.is_some_and(|seen| seen.holder.as_deref() == Some(holder.as_str())),
            successor: self.candidacy.successor(view, &me).or_else(|| self.handover.waits_for()),
            votes: self.candidacy.votes(),
            quorum,
            maximum_lag: wishes.map_or(crate::set::MAXIMUM_LAG, |set| set.maximum_lag),
            next_timeline: self.candidacy.facts.map_or(0, |facts| facts.next_timeline),
            me,
        }
    }

    /// What a running replica has, where something depends on it.
    pub(super) async fn look_at_wal(&mut self, view: &View) {
        let State::Running(Running { sql: Some(sql), role: Role::Replica { follows, .. }, .. }) = &self.state else {
            self.candidacy.facts = None;
            return;
        };
        let is_wanted = match view.at(Instant::now()) {
            Lease::Vacant { .. } | Lease::Mine { .. } => true,
            Lease::Other { master: Some(master) } => follows.as_ref() != Some(&master),
            Lease::Other { master: None } | Lease::Predecessor | Lease::Unknown => false,
        };
        if !is_wanted && self.candidacy.waiting.is_empty() && self.promises.voted().is_none() {
            self.candidacy.facts = None;
            return;
        }
        match sql.standby_facts().await {
            Ok(mut facts) => {
                self.candidacy.quiet = if facts.receives { 0 } else { self.candidacy.quiet.saturating_add(1) };
                facts.receives |= self.candidacy.quiet < LOOKS;
                // It follows nobody by now; what is left of its receiver would go on for as long as the old master sends.
                if let (true, None, Some(receiver)) = (facts.follows_nobody, follows, facts.receiver) {
                    let _ = kill(Pid::from_raw(receiver), Signal::SIGTERM);
                }
                self.candidacy.facts = Some(facts);
            }
            Err(why) => {
                debug!(error = with_causes(&why), "what this replica has is not known");
                self.candidacy.facts = None;
            }
        }
    }

    pub(super) fn wal(&self) -> StandbyFacts {
        self.candidacy.facts.unwrap_or(StandbyFacts { receives: true, ..StandbyFacts::default() })
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
        if let State::Running(Running { server, role: Role::Replica { follows, .. }, .. }) = &mut self.state {
            info!("this replica receives nothing while the set has no master");
            self.midwife.write_no_master()?;
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
        self.taken_with = Some(taking.quorum.clone());
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
        self.candidacy.votes = Votes::Pending(ballot.clone());
        self.candidacy.task =
            Some(tokio::spawn(ask(client, namespace, others, last, ballot.clone(), self.electorate.clone())));
    }

    /// Lets the standby become the master. It accepts writes from some moment on: from here it is looked upon as one.
    pub(super) async fn promote(&mut self, timeline: u32) -> Result<(), Box<dyn std::error::Error>> {
        let Some(facts) = self.candidacy.facts else { return Ok(()) };
        self.write_synchronous_names()?;
        match facts.position {
            Some(from) if from.timeline.saturating_add(1) < timeline => {
                info!(timeline, "another member may have been promoted before, unheard: its timeline is passed over");
                let data = self.midwife.data.clone();
                tokio::task::spawn_blocking(move || data.pass_over_timelines(from, timeline)).await??;
            }
            // Another look tells from where.
            None if facts.next_timeline < timeline => return Ok(()),
            Some(_) | None => {}
        }
        let State::Running(Running { server, sql: Some(sql), role, .. }) = &mut self.state else { return Ok(()) };
        server.reload();
        // What was asked took its time.
        let Some(permit) = self.leadership.permit() else { return Ok(()) };
        info!("this member was elected: it is promoted");
        *role = Role::Master { announced: None };
        self.publisher.update(|status| {
            status.role = "master";
            status.ready = false;
            "is promoted".clone_into(&mut status.doing);
        });
        self.publisher.counts.promotions.inc();
        self.was_promoted = true;
        self.woken_at = Instant::now();
        Ok(sql.promote(&permit).await?)
    }

    /// Answers those that wait for this member's vote, as far as that can be done now.
    pub(super) async fn answer_ballots(&mut self, observation: &Observation) {
        if self.candidacy.waiting.is_empty() {
            return;
        }
        let view = self.leadership.view();
        let copy = Copy::of(observation, !self.starts.are_failing(Instant::now()));
        let (voted, gave_leave) = (self.promises.voted(), self.promises.leave(Instant::now()).is_some());
        let mut promise = None;
        for (until, asked) in std::mem::take(&mut self.candidacy.waiting) {
            let asked_for = Voter {
                version: view.seen().map(|seen| &seen.version),
                is_vacant: matches!(observation.lease, Lease::Vacant { .. }),
                voted: voted.as_ref(),
                gave_leave,
                copy,
            };
            match respond(&asked.ballot, &asked_for) {
                Response::Promise if Instant::now() < until => {
                    promise = Some(asked.ballot.version.clone());
                    self.candidacy.waiting.push((until, asked));
                }
                // Another look may be enough.
                Response::Answer(Answer::Refused(_)) if Instant::now() < until => {
                    self.candidacy.waiting.push((until, asked));
                }
                Response::Answer(answer) => {
                    debug!(?answer, "answered a candidate");
                    let _ = asked.answer.send(answer);
                }
                Response::Promise => {}
            }
        }
        if let Some(version) = promise
            && let Err(why) = self.promise(version).await
        {
            warn!(error = with_causes(why.as_ref()), "failed to promise a candidate its vote");
        }
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
