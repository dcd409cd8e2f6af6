//! Before the Lease can be read: who led in an earlier life of its container leads on while all other members confirm it.

use std::collections::BTreeSet;

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::handle::Command;
use super::{Keeper, RETRY, Sent};
use crate::election::claim::{self, Claim};
use crate::election::leave;

impl Keeper {
    pub(super) async fn wait_until_readable(&mut self, inbox: &mut mpsc::Receiver<Command>) {
        let mut told = false;
        loop {
            let read = self.read();
            let answer = tokio::select! {
                answer = read => answer,
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
                Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => Some(self.forbidden("read", &status)),
                Ok(Err(_)) | Err(_) => {
                    self.lead_on_unread().await;
                    None
                }
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
            Command::Take(..) | Command::Renew | Command::HolderHasEnded(_) => {}
        }
    }

    /// An earlier life of this container led, and the API server does not answer: while all the other members confirm that, it goes on.
    async fn lead_on_unread(&mut self) {
        let Some(earlier) = &self.earlier else { return };
        let is_due = self.held.as_ref().is_none_or(|held| Instant::now() >= held.renew_at);
        if !is_due || !self.fencer.is_there() {
            return;
        }
        let (epoch, voters) = (earlier.epoch, earlier.voters.clone());
        self.ask_leave(epoch, voters).await;
    }

    /// The first look at the Lease. Who has led on without it has to find itself in it.
    fn observe_first(&mut self, lease: LeaseObject) {
        if self.held.is_some() {
            let Claim { holder, record, .. } = Claim::read(&lease, self.times.duration);
            let epoch = self.earlier.as_ref().map_or(record.epoch, |earlier| earlier.epoch);
            if holder.as_deref() != Some(self.identity.as_str()) || record.epoch != epoch {
                warn!(lease = %self.name, ?holder, "another member leads now, or has led meanwhile");
                self.lose();
            } else if let Some(version) = claim::version(&lease) {
                self.promises.see(&version);
                self.seen = Some(lease);
                return;
            }
        }
        self.observe(lease);
    }

    /// Asks every other member for leave to lead on. Without any other, nobody has to be asked.
    pub(super) async fn ask_leave(&mut self, epoch: u32, voters: BTreeSet<String>) -> bool {
        if !voters.contains(&self.me.pod) {
            return false;
        }
        let others: Vec<String> = voters.into_iter().filter(|pod| *pod != self.me.pod).collect();
        let request = leave::Request { holder: self.me.clone(), epoch, master: self.master.clone() };
        let sent = Sent::now();
        let limit = self.times.request_timeout();
        let confirmed = timeout(limit, self.electorate.all_confirm(&request, &others)).await.unwrap_or(false);
        if confirmed {
            if !self.by_leave {
                warn!(lease = %self.name, ?others, "the API server does not answer: this member leads on, by leave of all others");
            }
            self.by_leave = true;
            self.extend(sent);
        }
        confirmed
    }
}
