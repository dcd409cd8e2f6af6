//! Before the Lease can be read: who led in an earlier life of its container leads on while all other members confirm it.

use std::collections::BTreeSet;
use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::handle::Command;
use super::{LeaderElector, RETRY, Sent, forbidden};
use crate::election::lease_record::{self, LeaseRecord};
use crate::election::leave;

impl LeaderElector {
    pub(super) async fn wait_until_readable(&mut self, inbox: &mut mpsc::Receiver<Command>) {
        let mut told = false;
        loop {
            let (read, confirmation) = (self.read(), self.leave_of_earlier());
            let is_away = |answer: &Result<kube::Result<_>, _>| match answer {
                Ok(Err(kube::Error::Api(status))) => !status.is_forbidden(),
                Ok(answer) => answer.is_err(),
                Err(_) => true,
            };
            let (answer, _) = tokio::select! {
                answer = self.answer_or_leave(read, confirmation, is_away) => answer,
                command = inbox.recv() => match command {
                    Some(command) => {
                        self.obey_unread(command).await;
                        self.publish();
                        continue;
                    }
                    None => return,
                },
            };
            let trouble = match answer {
                Ok(Ok(Some(lease))) => {
                    self.trouble = None;
                    return self.observe_first(lease);
                }
                Ok(Ok(None)) => {
                    Some(format!("there is no Lease {}: pgset's controller makes it, is it running?", self.name))
                }
                Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => {
                    Some(forbidden("read", &self.name, &status))
                }
                Ok(Err(_)) | Err(_) => None,
            };
            if let Some(why) = trouble.as_ref().filter(|_| !told) {
                info!(lease = %self.name, "waiting for the Lease: {why}");
                told = true;
            }
            self.set_trouble(trouble);
            self.publish();
            let pause = sleep(RETRY);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    command = inbox.recv() => match command {
                        Some(command) => {
                            self.obey_unread(command).await;
                            self.publish();
                        }
                        None => return,
                    },
                }
            }
        }
    }

    /// What has no Lease yet has none to give back, and so keeps nobody from ending.
    async fn obey_unread(&mut self, command: Command) {
        match command {
            Command::Announce(master) => self.master = Some(master),
            Command::Release(last_word, done) => {
                self.release(last_word).await;
                let _ = done.send(());
            }
            // The view says that the Lease is not known: whoever asks for it all the same asks again.
            Command::Take(..) | Command::Renew | Command::HolderHasEnded(..) => {}
        }
    }

    /// The leave of those with whom an earlier life of this container led: while they all confirm that, it goes on.
    fn leave_of_earlier(&self) -> impl Future<Output = Sent> + use<> {
        let may_lead = self.fencer.is_there();
        let due = self.held.as_ref().map_or(self.times.patience(), |held| held.renew_at - Instant::now());
        let earlier = self.earlier.as_ref().filter(|_| may_lead);
        let (epoch, voters) = earlier.map(|earlier| (earlier.epoch, earlier.voters.clone())).unwrap_or_default();
        self.leave(due, epoch, voters)
    }

    /// The first look at the Lease. Who has led on without it has to find itself in it.
    fn observe_first(&mut self, lease: LeaseObject) {
        if self.held.is_some() {
            let LeaseRecord { holder, record, .. } = LeaseRecord::read(&lease, self.times.duration);
            let epoch = self.earlier.as_ref().map_or(record.epoch, |earlier| earlier.epoch);
            if holder.as_deref() != Some(self.identity.as_str()) || record.epoch != epoch {
                warn!(lease = %self.name, ?holder, "another member leads now, or has led meanwhile");
                self.lose();
            } else if let Some(version) = lease_record::version(&lease) {
                self.promises.see(&version);
                self.seen = Some(lease);
                return;
            }
        }
        self.observe(lease);
    }

    /// Waits for an answer of the API server. When that takes its time, or none comes, this member leads on by leave of the others. Returns
    /// whether they gave it.
    pub(super) async fn answer_or_leave<T>(
        &mut self,
        request: impl Future<Output = T>,
        leave: impl Future<Output = Sent>,
        is_away: impl Fn(&T) -> bool,
    ) -> (T, bool) {
        let (mut request, mut leave) = (pin!(request), pin!(leave));
        let mut leads_on = false;
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut request => break answer,
                sent = &mut leave, if !leads_on => leads_on = self.lead_by_leave(sent),
            }
        };
        if is_away(&answer)
            && !leads_on
            && let Ok(sent) = timeout(self.times.request_timeout(), leave).await
        {
            leads_on = self.lead_by_leave(sent);
        }
        (answer, leads_on)
    }

    /// Asks every other member for leave to lead on, after so long, and again until all give it. Returns when that question was asked.
    /// Without any other, nobody has to be asked; who is not recorded has nobody to ask.
    pub(super) fn leave(
        &self,
        patience: Duration,
        epoch: u32,
        voters: BTreeSet<String>,
    ) -> impl Future<Output = Sent> + use<> {
        let is_recorded = voters.contains(&self.me.pod);
        let others: Vec<String> = voters.into_iter().filter(|pod| *pod != self.me.pod).collect();
        let request = leave::Request { holder: self.me.clone(), epoch, master: self.master.clone() };
        let electorate = self.electorate.clone();
        async move {
            if !is_recorded {
                return pending().await;
            }
            sleep(patience).await;
            loop {
                let sent = Sent::now();
                if electorate.all_confirm(&request, &others).await {
                    return sent;
                }
                sleep(RETRY).await;
            }
        }
    }

    fn lead_by_leave(&mut self, sent: Sent) -> bool {
        if self.held.as_ref().is_some_and(|held| Instant::now() >= held.fence_at) {
            return false;
        }
        if !self.by_leave {
            warn!(lease = %self.name, "the API server does not answer: this member leads on, by leave of all others");
        }
        self.by_leave = true;
        self.extend(sent);
        self.publish();
        true
    }
}
