//! What a master tells of the other members, along with its renewals.

use std::time::Duration;

use super::Member;
use crate::agent::slots::Members;
use crate::agent::sql::Walsender;
use crate::election::members::{Connection, Seen};
use crate::names;
use crate::set::MOST_MEMBERS;

impl Member {
    /// For those who look at the set.
    pub(super) fn note_members(&self, members: &Members, found: &[Walsender]) {
        self.leadership.note_members(seen(members, &self.configuration().me.pod, found));
    }
}

/// The set's members beside this one, by what is connected to it under their names.
fn seen(members: &Members, me: &str, found: &[Walsender]) -> Vec<Seen> {
    members.others(me).take(MOST_MEMBERS as usize).map(|pod| one(pod, found)).collect()
}

fn one(pod: String, found: &[Walsender]) -> Seen {
    let clone = names::clone_application(&pod);
    // A connection whose other side is gone stays for a while beside the new one, which is further on.
    let best = found
        .iter()
        .filter_map(|walsender| Some((connection(walsender, &pod, &clone)?, walsender)))
        .max_by_key(|(state, walsender)| (*state, walsender.flushed));
    match best {
        None => Seen::absent(pod),
        // How far a copy has come is nobody's position.
        Some((Connection::Cloning, _)) => Seen { state: Connection::Cloning, ..Seen::absent(pod) },
        Some((state, Walsender { flushed, replayed, synchronous, lag, is_abreast, .. })) => Seen {
            pod,
            state,
            flushed: *flushed,
            replayed: *replayed,
            synchronous: *synchronous,
            lag: if *is_abreast { Some(Duration::ZERO) } else { *lag },
        },
    }
}

fn connection(walsender: &Walsender, pod: &str, clone: &str) -> Option<Connection> {
    match walsender.state.as_str() {
        _ if walsender.name == clone => Some(Connection::Cloning),
        _ if walsender.name != pod => None,
        "streaming" => Some(Connection::Streaming),
        "backup" => None,
        _ => Some(Connection::CatchingUp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::Lsn;

    fn walsender(name: &str, state: &str, at: u64) -> Walsender {
        let (flushed, replayed) = (Some(Lsn(at)), Some(Lsn(at)));
        Walsender { name: name.to_owned(), state: state.to_owned(), flushed, replayed, ..Walsender::default() }
    }

    fn seen_among(found: &[Walsender]) -> Vec<Seen> {
        seen(&Members { set: "db".to_owned(), first: 0, count: 3 }, "db-0", found)
    }

    #[test]
    fn each_other_member_is_told_by_its_exact_name() {
        let found = [
            Walsender { synchronous: true, lag: Some(Duration::from_secs(2)), ..walsender("db-1", "streaming", 9) },
            walsender("db-11", "streaming", 9),
            walsender("pg_receivewal", "streaming", 9),
        ];
        let first = Seen {
            pod: "db-1".to_owned(),
            state: Connection::Streaming,
            flushed: Some(Lsn(9)),
            replayed: Some(Lsn(9)),
            synchronous: true,
            lag: Some(Duration::from_secs(2)),
        };
        assert_eq!(seen_among(&found), [first, Seen::absent("db-2".to_owned())]);
    }

    #[test]
    fn a_clone_under_way_is_told_as_one_and_has_no_position() {
        let found = [walsender("clone_db-1", "backup", 0), walsender("clone_db-1", "streaming", 9)];
        let expected = Seen { state: Connection::Cloning, ..Seen::absent("db-1".to_owned()) };
        assert_eq!(seen_among(&found)[0], expected);
    }

    #[test]
    fn of_two_connections_the_one_that_is_further_on_counts() {
        let stale =
            [walsender("db-1", "streaming", 5), walsender("db-1", "streaming", 8), walsender("db-1", "catchup", 9)];
        let told = &seen_among(&stale)[0];
        assert_eq!((told.state, told.flushed), (Connection::Streaming, Some(Lsn(8))));
        assert_eq!(seen_among(&[walsender("db-1", "startup", 5)])[0].state, Connection::CatchingUp);
    }

    #[test]
    fn who_has_replayed_all_is_not_late_whatever_was_measured_before() {
        let abreast =
            Walsender { lag: Some(Duration::from_secs(9)), is_abreast: true, ..walsender("db-1", "streaming", 9) };
        assert_eq!(seen_among(&[abreast])[0].lag, Some(Duration::ZERO));
        assert_eq!(seen_among(&[walsender("db-1", "streaming", 9)])[0].lag, None);
    }
}
