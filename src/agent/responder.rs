//! Answers the other members. What can't wait for the main loop, which may be busy with PostgreSQL, is answered here.

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, info};

use super::electorate::{Electorate, Question, Reply};
use super::leadership::LeaseSnapshot;
use super::member::Asked;
use super::peers;
use super::promises::Promises;
use crate::election::lease_record::LeaseTimings;
use crate::election::leave;
use crate::invariants::Invariant;

/// What it answers with.
pub struct Responder {
    /// What is known of the Lease.
    pub view: watch::Receiver<LeaseSnapshot>,
    /// What this member has promised.
    pub promises: Promises,
    /// Where the other members are.
    pub electorate: Electorate,
    /// How long a promise to a master lasts.
    pub times: LeaseTimings,
    /// The main loop.
    pub ballots: mpsc::Sender<Asked>,
}

impl Responder {
    /// Answers until nobody can ask any more.
    pub async fn run(self, mut inbox: mpsc::Receiver<peers::Asked<Question, Reply>>) {
        while let Some(asked) = inbox.recv().await {
            match asked.question {
                Question::Report { address } => {
                    if self.electorate.note(&asked.from.pod, &address) {
                        debug!(pod = %asked.from.pod, address, "a member is there");
                    }
                    let _ = asked.answer.send(Reply::Noted);
                }
                Question::Leave(request) => {
                    // A member speaks for itself only.
                    let answer =
                        if request.holder == asked.from { self.leave(&request) } else { leave::Answer::Refused };
                    let _ = asked.answer.send(Reply::Leave(answer));
                }
                Question::Vote(ballot) => {
                    let (answer, answered) = oneshot::channel();
                    if self.ballots.try_send(Asked { ballot, answer }).is_ok() {
                        tokio::spawn(async move {
                            if let Ok(answer) = answered.await {
                                let _ = asked.answer.send(Reply::Vote(answer));
                            }
                        });
                    }
                }
            }
        }
    }

    fn leave(&self, request: &leave::Request) -> leave::Answer {
        let view = self.view.borrow().clone();
        let mine = view.seen().filter(|_| view.epoch(Instant::now()).is_some()).map(|seen| seen.record.epoch);
        let found = || format!("{} says that it leads in epoch {}, as this member does", request.holder, request.epoch);
        if !Invariant::EpochHasOneLeader.holds(mine != Some(request.epoch), found) {
            return leave::Answer::Refused;
        }
        let read = view.seen().map(|seen| leave::Read {
            version: &seen.version,
            holder: seen.holder.as_deref(),
            epoch: seen.record.epoch,
        });
        let now = Instant::now();
        let first = self.promises.leave(now).is_none();
        let answer = self.promises.answer_leave(request, read, now + self.times.duration);
        if first && answer == leave::Answer::Confirmed {
            info!(master = %request.holder.pod, epoch = request.epoch, "the master can't reach the API server: this member does not stand for now");
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::electorate::tests::nobody;
    use crate::agent::leadership;
    use crate::election::lease_record::HolderIdentity;

    #[tokio::test(start_paused = true)]
    async fn who_says_that_it_leads_in_this_members_epoch_is_refused_and_counts_as_a_bug() {
        let responder = Responder {
            view: watch::channel(leadership::tests::leading_in(7)).1,
            promises: Promises::default(),
            electorate: nobody(),
            times: LeaseTimings::of_seconds(6),
            ballots: mpsc::channel(1).0,
        };
        let asks = |epoch| {
            let holder = HolderIdentity { pod: "db-1".into(), uid: "b".into() };
            responder.leave(&leave::Request { holder, epoch, master: None })
        };
        let before = Invariant::EpochHasOneLeader.count();
        assert_eq!(asks(6), leave::Answer::Refused, "an earlier leader asks whether it may lead on");
        assert_eq!(Invariant::EpochHasOneLeader.count(), before);
        assert_eq!(asks(7), leave::Answer::Refused);
        assert_eq!(Invariant::EpochHasOneLeader.count(), before + 1);
    }
}
