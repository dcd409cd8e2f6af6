//! What a person asks for by the annotation `pgset.dev/switchover`: who is to lead next. Pure.
//!
//! `db-1`, `any`, with ` accept-loss` behind it what that member lacks is given up; whatever else follows makes it another order than the
//! last one, because the same is not followed twice.

use std::fmt;

use crate::names;

/// Whoever is best.
const ANY: &str = "any";
/// What the target lacks is given up.
const ACCEPT_LOSS: &str = "accept-loss";
/// A replica that has more bytes than this still to receive is handed nothing: the master waits for it with its writes stopped.
pub const MOST_BEHIND: u64 = 16 << 20;
/// Replicas that differ by less are as good as each other: what is missing they receive before the master has stopped.
const ABREAST: u64 = 1 << 20;

/// An order to switch over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The annotation's value, by which an order is known again.
    pub text: String,
    /// Who is to lead; absent if that is left to the set.
    pub target: Option<String>,
    /// What the target lacks is given up.
    pub accepts_loss: bool,
}

/// A replica that streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Streaming {
    /// Its pod.
    pub pod: String,
    /// Bytes of WAL that the master has on its disk and the replica has not.
    pub behind: u64,
}

/// Why a master hands nothing over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The set has no such member.
    NoMember {
        /// Who is meant.
        target: String,
        /// Who could be.
        members: Vec<String>,
    },
    /// The target does not stream from the master.
    NotStreaming {
        /// Who.
        target: String,
        /// Who does.
        others: Vec<String>,
    },
    /// No member streams from the master.
    NobodyStreams,
    /// The target has too much still to receive.
    Behind(Streaming),
}

// === impl Order ===

impl Order {
    /// An order that differs from all others by its token.
    #[must_use]
    pub fn new(target: Option<&str>, token: &str, accepts_loss: bool) -> Self {
        let loss = if accepts_loss { format!(" {ACCEPT_LOSS}") } else { String::new() };
        let text = format!("{} {token}{loss}", target.unwrap_or(ANY));
        Self { text, target: target.map(str::to_owned), accepts_loss }
    }

    /// Reads the annotation's value; absent if nothing is ordered.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let target = words.next()?;
        Some(Self {
            text: text.to_owned(),
            target: (target != ANY).then(|| target.to_owned()),
            accepts_loss: words.any(|word| word == ACCEPT_LOSS),
        })
    }

    /// Whether it may be followed by letting this member lead.
    #[must_use]
    pub fn names(&self, pod: &str) -> bool {
        self.target.as_deref().is_none_or(|target| target == pod)
    }

    /// To whom a master hands over. `streaming` are the replicas that stream from it, the best first; `members` are all others of the set.
    pub fn successor(&self, members: &[String], streaming: &[Streaming]) -> Result<String, Refusal> {
        let mut stays = streaming.iter().filter(|replica| members.contains(&replica.pod));
        let found = match &self.target {
            Some(target) if !members.contains(target) => {
                return Err(Refusal::NoMember { target: target.clone(), members: members.to_vec() });
            }
            Some(target) => stays.clone().find(|replica| replica.pod == *target).ok_or_else(|| Refusal::NotStreaming {
                target: target.clone(),
                others: stays.map(|replica| replica.pod.clone()).collect(),
            }),
            None => stays.next().ok_or(Refusal::NobodyStreams),
        }?;
        if found.behind > MOST_BEHIND { Err(Refusal::Behind(found.clone())) } else { Ok(found.pod.clone()) }
    }
}

/// To whom a master hands over that is asked to stop, of the replicas that stream from it, the best first. A rolling update goes from the
/// highest ordinal to the lowest: who stands above this member has been updated, and the lowest comes last, so that the master moves
/// twice at most, and once if it is the first one.
#[must_use]
pub fn successor_at_stop(set: &str, me: &str, streaming: &[Streaming]) -> Option<String> {
    let best = streaming.first()?;
    let abreast = || streaming.iter().filter(|replica| replica.behind.saturating_sub(best.behind) <= ABREAST);
    let above = abreast()
        .filter(|replica| names::ordinal(&replica.pod, set) > names::ordinal(me, set))
        .max_by_key(|replica| names::ordinal(&replica.pod, set));
    above
        .or_else(|| abreast().min_by_key(|replica| names::ordinal(&replica.pod, set)))
        .map(|replica| replica.pod.clone())
}

// === impl Refusal ===

impl Refusal {
    /// A little time may mend it: a replica that has just lost its master is about to follow the next one.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::NoMember { .. })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMember { target, members } if members.is_empty() => {
                write!(f, "{target} is no member of this set, which has no replica to hand over to: scale it up")
            }
            Self::NoMember { target, members } => {
                write!(f, "{target} is no other member of this set: name one of {}", members.join(", "))
            }
            Self::NotStreaming { target, others } if others.is_empty() => {
                write!(
                    f,
                    "{target} does not stream from the master, nor does any other member: see the log of {target}"
                )
            }
            Self::NotStreaming { target, others } => {
                let others = others.join(", ");
                write!(
                    f,
                    "{target} does not stream from the master: see its log, or name another one that does ({others})"
                )
            }
            Self::NobodyStreams => {
                write!(f, "no other member streams from the master: see the logs of the replicas, or scale the set up")
            }
            Self::Behind(Streaming { pod, behind }) => write!(
                f,
                "{pod} has {behind} bytes of WAL still to receive, for which writes would stop: wait until there are less than \
                 {MOST_BEHIND}, or name another member"
            ),
        }
    }
}

// === the note on the Lease ===

/// How the Lease tells that an order was refused, and why.
#[must_use]
pub fn refused(text: &str, why: &Refusal) -> String {
    format!("{text}: {why}")
}

/// Why an order was refused, if the note on the Lease is about it and not about an earlier one.
#[must_use]
pub fn why_refused<'a>(note: &'a str, text: &str) -> Option<&'a str> {
    note.strip_prefix(text)?.strip_prefix(": ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::election::lease_record::{self, LeaseRecord, LeaseTimings, Told};

    #[test]
    fn a_rolling_update_moves_the_master_twice_at_most_and_once_from_the_first_member() {
        for first in 0..5_u32 {
            let (mut master, mut moves) = (first, 0);
            for rolled in (0..5_u32).rev() {
                if rolled == master {
                    let others = (0..5).filter(|other| *other != master);
                    let streaming: Vec<_> = others
                        .map(|other| Streaming { pod: format!("db-{other}"), behind: u64::from(other) })
                        .collect();
                    let next = successor_at_stop("db", &format!("db-{master}"), &streaming).unwrap();
                    master = next.trim_start_matches("db-").parse().unwrap();
                    moves += 1;
                }
            }
            assert!(moves <= if first == 0 { 1 } else { 2 }, "from db-{first}: {moves} moves");
        }
    }

    #[test]
    fn who_is_far_behind_is_handed_over_to_only_if_the_others_are_as_well() {
        let at = |pod: &str, behind| Streaming { pod: pod.to_owned(), behind };
        let streaming = [at("db-1", 0), at("db-2", ABREAST + 1)];
        assert_eq!(successor_at_stop("db", "db-0", &streaming).as_deref(), Some("db-1"));
        assert_eq!(successor_at_stop("db", "db-0", &streaming[1..]).as_deref(), Some("db-2"));
        assert_eq!(successor_at_stop("db", "db-0", &[]), None);
    }

    #[test]
    fn an_order_names_a_member_or_leaves_that_to_the_set() {
        let order = Order::parse("db-1 2026-11-25T05:00:00Z").unwrap();
        assert_eq!((order.target.as_deref(), order.accepts_loss), (Some("db-1"), false));
        assert_eq!(Order::parse("any").unwrap().target, None);
        assert!(Order::parse("db-2 7 accept-loss").unwrap().accepts_loss);
        assert_eq!(Order::parse(" "), None);
    }

    #[test]
    fn an_order_is_read_as_it_was_written() {
        for (target, accepts_loss) in [(None, false), (Some("db-1"), false), (Some("db-1"), true)] {
            let order = Order::new(target, "2026-11-25T05:00:00Z", accepts_loss);
            assert_eq!(Order::parse(&order.text), Some(order));
        }
    }

    fn streaming(pod: &str, behind: u64) -> Streaming {
        Streaming { pod: pod.to_owned(), behind }
    }

    fn chosen(order: &str, replicas: &[Streaming]) -> Result<String, String> {
        let members = ["db-1", "db-2"].map(str::to_owned);
        Order::parse(order).unwrap().successor(&members, replicas).map_err(|why| why.to_string())
    }

    #[test]
    fn a_master_hands_over_to_the_member_that_was_named_or_to_the_best() {
        let both = [streaming("db-2", 0), streaming("db-1", MOST_BEHIND)];
        assert_eq!(chosen("db-1", &both).unwrap(), "db-1");
        assert_eq!(chosen("any", &both).unwrap(), "db-2");
        assert_eq!(chosen("any", &[streaming("db-7", 0), streaming("db-1", 0)]).unwrap(), "db-1", "db-7 is to leave");
    }

    #[test]
    fn whoever_can_not_take_over_is_named_with_the_way() {
        let why = |order: &str, replicas: &[Streaming]| chosen(order, replicas).unwrap_err();
        assert_eq!(why("db-9", &[]), "db-9 is no other member of this set: name one of db-1, db-2");
        let other = why("db-1", &[streaming("db-2", 0)]);
        assert!(other.contains("db-1 does not stream") && other.contains("another one that does (db-2)"), "{other}");
        assert!(why("db-1", &[]).contains("nor does any other"));
        assert!(why("any", &[streaming("db-7", 0)]).contains("no other member streams"));
        let behind = why("db-1", &[streaming("db-1", 20_000_000)]);
        assert!(behind.contains("db-1 has 20000000 bytes") && behind.contains("less than 16777216"), "{behind}");
    }

    #[test]
    fn a_refusal_is_told_of_its_own_order_only() {
        let note = refused("db-9 1", &Refusal::NobodyStreams);
        assert!(why_refused(&note, "db-9 1").unwrap().starts_with("no other member"));
        assert_eq!(why_refused(&note, "db-9 2"), None);
        assert_eq!(why_refused(&note, "db-9"), None);
    }

    #[test]
    fn what_became_of_an_order_stands_on_the_lease_until_another_is_done() {
        let renew = |lease: &LeaseObject, done: &str, refused: Option<&str>| {
            let (order_done, order_refused) = (Some(done.to_owned()), refused.map(str::to_owned));
            let told = Told { order_done, order_refused, ..Told::default() };
            lease_record::renewed(lease, None, Some(&told), LeaseTimings::of_seconds(6), Timestamp::UNIX_EPOCH)
        };
        let why = |lease: &LeaseObject, order: &str| {
            let lease_record = LeaseRecord::read(lease, Duration::ZERO);
            (lease_record.order_done.as_deref() == Some(order)).then(|| {
                lease_record.order_refused.as_deref().and_then(|note| why_refused(note, order)).map(str::to_owned)
            })
        };
        let refused = renew(&LeaseObject::default(), "db-9 1", Some("db-9 1: no member"));
        assert_eq!(why(&refused, "db-9 1"), Some(Some("no member".to_owned())));
        let followed = renew(&refused, "db-1 2", None);
        assert_eq!((why(&followed, "db-9 1"), why(&followed, "db-1 2")), (None, Some(None)));
    }
}
