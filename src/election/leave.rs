//! The leave to lead on while the API server is away. A master that can't renew its Lease asks every recorded member; while all of them
//! confirm it at its epoch, and so promise not to stand, nobody can take the Lease, whoever reaches the API server. Pure.
//!
//! All, and not a majority: the Lease, not a vote, makes a master. One member that was not asked, and reaches the API server while the
//! master does not, could take it by itself.
//!
//! The arithmetic, with a Lease of duration D: a member promises from the moment that it answers, for D. The master counts from before it
//! asked: it fences at two thirds of D, is killed at five sixths, and asks again every fourth. So it has stopped before the first promise
//! is over, as it has before its Lease is.

use serde::{Deserialize, Serialize};

use super::Master;
use super::lease_record::HolderIdentity;
use super::promise::Attempt;
use super::vote::Version;

/// What a master asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who it is.
    pub holder: HolderIdentity,
    /// The epoch in which it holds the Lease.
    pub epoch: u32,
    /// Where it answers, if it does: for members that can't read the Lease.
    pub master: Option<Master>,
}

/// What a member answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It confirms this master, and does not stand for as long as a Lease lasts.
    Confirmed,
    /// It knows of another one, or has promised something else.
    Refused,
}

/// The Lease as a member has read it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read<'a> {
    /// Which state of it.
    pub version: &'a Version,
    /// Who held it.
    pub holder: Option<&'a str>,
    /// In which epoch.
    pub epoch: u32,
}

/// What a member knows of the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known<'a> {
    /// It has not read it since it started, and so can't take it either.
    Nothing,
    /// What it read last, or what it tried since.
    Lease {
        /// Who holds it.
        holder: Option<&'a str>,
        /// In which epoch.
        epoch: u32,
    },
}

// === impl Known ===

impl<'a> Known<'a> {
    /// By what this member itself tried.
    pub(super) fn attempted(own: &'a Attempt) -> Self {
        Self::Lease { holder: Some(&own.holder), epoch: own.epoch }
    }
}

/// What a member answers. `has_voted`: it has promised a candidate to receive nothing from that master, and does not know that this is
/// over.
#[must_use]
pub fn answer(request: &Request, known: Known<'_>, has_voted: bool) -> Answer {
    let agrees = match known {
        Known::Nothing => true,
        Known::Lease { holder, epoch } => {
            let is_holder = holder == Some(request.holder.to_string().as_str());
            // A later epoch than the one it has seen is news to it; an earlier one is over.
            is_holder && epoch <= request.epoch || epoch < request.epoch
        }
    };
    if agrees && !has_voted { Answer::Confirmed } else { Answer::Refused }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(epoch: u32) -> Request {
        Request { holder: HolderIdentity { pod: "db-0".into(), uid: "a".into() }, epoch, master: None }
    }

    fn held_by(holder: &str, epoch: u32) -> Known<'_> {
        Known::Lease { holder: Some(holder), epoch }
    }

    #[test]
    fn a_member_confirms_the_master_that_it_knows() {
        assert_eq!(answer(&request(4), held_by("db-0/a", 4), false), Answer::Confirmed);
        assert_eq!(answer(&request(4), held_by("db-1/b", 3), false), Answer::Confirmed, "its news is older");
    }

    #[test]
    fn a_member_that_has_read_nothing_can_take_nothing_and_confirms() {
        assert_eq!(answer(&request(4), Known::Nothing, false), Answer::Confirmed);
    }

    #[test]
    fn a_member_refuses_a_master_whose_time_is_over() {
        assert_eq!(answer(&request(4), held_by("db-1/b", 5), false), Answer::Refused);
        assert_eq!(answer(&request(4), held_by("db-0/another", 4), false), Answer::Refused, "another pod of its name");
        let released = Known::Lease { holder: None, epoch: 4 };
        assert_eq!(answer(&request(4), released, false), Answer::Refused);
    }

    #[test]
    fn a_member_that_has_voted_refuses() {
        assert_eq!(answer(&request(4), held_by("db-0/a", 4), true), Answer::Refused);
        assert_eq!(answer(&request(4), Known::Nothing, true), Answer::Refused);
    }
}
