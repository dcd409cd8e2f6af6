//! The other members, as this one asks them: where they are, and what they answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::debug;

use super::peers::{self, Peer};
use crate::election::{leave, vote};
use crate::errors::with_causes;

/// How long one member may take to answer. Members of a set are a network hop apart; one that is overloaded is as good as away.
pub const ANSWER_LIMIT: Duration = Duration::from_millis(800);
/// The last master's answer is waited for so long: if its agent lives, it is as near as any other.
const LAST_MASTER_LIMIT: Duration = Duration::from_millis(100);

/// What members ask each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// A replica tells the master where it is.
    Report {
        /// Its pod's address.
        address: String,
    },
    /// The master asks for leave to lead on.
    Leave(leave::Request),
    /// A candidate asks for a vote.
    Vote(vote::Ballot),
}

/// What they answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To a report.
    Noted,
    /// To a master.
    Leave(leave::Answer),
    /// To a candidate.
    Vote(vote::Answer),
}

/// How a member is asked; absent if there is no answer that counts.
pub trait Ask: Send + Sync {
    /// Asks the member `pod` at `address`.
    fn ask(&self, pod: &str, address: &str, question: Question) -> BoxFuture<'static, Option<Reply>>;
}

impl Ask for peers::Client {
    fn ask(&self, pod: &str, address: &str, question: Question) -> BoxFuture<'static, Option<Reply>> {
        let (client, pod, address) = (self.clone(), pod.to_owned(), address.parse());
        Box::pin(async move {
            let peer = Peer::new(&pod, address.ok()?);
            match peers::Client::ask(&client, &peer, &question, ANSWER_LIMIT).await {
                Ok(reply) => Some(reply),
                Err(why) => {
                    debug!(pod, error = with_causes(&why), "a member does not answer");
                    None
                }
            }
        })
    }
}

/// The other members.
#[derive(Clone)]
pub struct Electorate {
    ask: Arc<dyn Ask>,
    addresses: Arc<Mutex<BTreeMap<String, String>>>,
}

impl fmt::Debug for Electorate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Electorate").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

// === impl Electorate ===

impl Electorate {
    /// Members that are asked in this way, and where some of them were.
    #[must_use]
    pub fn new(ask: Arc<dyn Ask>, addresses: BTreeMap<String, String>) -> Self {
        Self { ask, addresses: Arc::new(Mutex::new(addresses)) }
    }

    /// Where the members were heard last.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<String, String> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A member is there now. Returns whether that is news.
    pub fn note(&self, pod: &str, address: &str) -> bool {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.insert(pod.to_owned(), address.to_owned()).as_deref() != Some(address)
    }

    /// Tells a master where this member is; returns whether it heard.
    pub async fn report(&self, master: &str, master_address: &str, address: &str) -> bool {
        let question = Question::Report { address: address.to_owned() };
        self.ask.ask(master, master_address, question).await == Some(Reply::Noted)
    }

    /// Whether every one of these members confirms a master. Nobody's answer is guessed: one that can't be asked does not.
    pub async fn all_confirm(&self, request: &leave::Request, members: &[String]) -> bool {
        let addresses = self.addresses();
        let answers = members.iter().map(|pod| {
            let asked = addresses.get(pod).map(|address| self.ask.ask(pod, address, Question::Leave(request.clone())));
            async { asked?.await }
        });
        join_all(answers).await.into_iter().all(|answer| answer == Some(Reply::Leave(leave::Answer::Confirmed)))
    }

    /// What these members answer a candidate; those that don't are left out. `last` led last and is gone as far as anybody knows: when
    /// only its answer is missing, it is not waited for.
    pub async fn votes(
        &self,
        ballot: &vote::Ballot,
        members: &BTreeMap<String, String>,
        last: Option<&str>,
    ) -> BTreeMap<String, vote::Answer> {
        let mut pending: BTreeSet<&str> = members.keys().map(String::as_str).collect();
        let mut asked: FuturesUnordered<_> = members
            .iter()
            .map(|(pod, address)| {
                let asked = self.ask.ask(pod, address, Question::Vote(ballot.clone()));
                async move { (pod, asked.await) }
            })
            .collect();
        let mut answers = BTreeMap::new();
        loop {
            let is_enough = pending.iter().all(|pod| Some(*pod) == last);
            let next = if is_enough {
                timeout(LAST_MASTER_LIMIT, asked.next()).await.ok().flatten()
            } else {
                asked.next().await
            };
            let Some((pod, answer)) = next else { return answers };
            pending.remove(pod.as_str());
            if let Some(Reply::Vote(answer)) = answer {
                answers.insert(pod.clone(), answer);
            }
        }
    }
}

/// What stands in for the other members in the tests of others.
#[cfg(test)]
pub mod tests {
    use super::*;

    type Answers = dyn Fn(&str, Question) -> Option<Reply> + Send + Sync;

    struct Scripted(Box<Answers>);

    impl Ask for Scripted {
        fn ask(&self, pod: &str, _address: &str, question: Question) -> BoxFuture<'static, Option<Reply>> {
            let answer = (self.0)(pod, question);
            Box::pin(async move { answer })
        }
    }

    /// Members that answer so, all of them at hand.
    pub fn answering(
        members: &[&str],
        answers: impl Fn(&str, Question) -> Option<Reply> + Send + Sync + 'static,
    ) -> Electorate {
        let addresses = members.iter().map(|pod| ((*pod).to_owned(), format!("{pod}.test"))).collect();
        Electorate::new(Arc::new(Scripted(Box::new(answers))), addresses)
    }

    /// Nobody else.
    pub fn nobody() -> Electorate {
        answering(&[], |_, _| None)
    }

    #[tokio::test]
    async fn a_master_needs_the_word_of_every_member() {
        let request = leave::Request {
            holder: crate::election::lease_record::HolderIdentity { pod: "db-0".into(), uid: "a".into() },
            epoch: 1,
            master: None,
        };
        let confirm = |_: &str, _| Some(Reply::Leave(leave::Answer::Confirmed));
        let members = ["db-1".to_owned(), "db-2".to_owned()];
        assert!(answering(&["db-1", "db-2"], confirm).all_confirm(&request, &members).await);
        assert!(!answering(&["db-1"], confirm).all_confirm(&request, &members).await, "nobody knows where db-2 is");
        let one_refuses = |pod: &str, _| {
            Some(Reply::Leave(if pod == "db-1" { leave::Answer::Refused } else { leave::Answer::Confirmed }))
        };
        assert!(!answering(&["db-1", "db-2"], one_refuses).all_confirm(&request, &members).await);
        let one_is_silent = |pod: &str, _| (pod == "db-1").then_some(Reply::Leave(leave::Answer::Confirmed));
        assert!(!answering(&["db-1", "db-2"], one_is_silent).all_confirm(&request, &members).await);
        assert!(nobody().all_confirm(&request, &[]).await, "alone, nobody has to be asked");
    }
}
