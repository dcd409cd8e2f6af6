//! How what commits wait for is exchanged for something else: on the server, and in the Lease's record of it. Pure.

use super::vote::Quorum;

/// What a change of what commits wait for needs next, so that the Lease's record is never bolder than what the servers did: it is widened
/// before the server is, and narrowed after it, when those that count from now on have all that was confirmed before. That commits wait at
/// all is recorded when the replicas have what was acknowledged before they did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuorumStep {
    /// The Lease has to say this first.
    Record(Quorum),
    /// The server may do it now.
    Enable,
    /// The server does it. The Lease is to say it when the replicas have caught up.
    CatchUp,
    /// Nothing.
    Done,
}

/// The next step from what is recorded and what the server does to what is wanted. `are_caught_up`: as many replicas as confirm a commit
/// on the server now have all that it had written when it began to wait for them.
#[must_use]
pub fn quorum_step(recorded: &Quorum, on_server: &Quorum, wanted: &Quorum, are_caught_up: bool) -> QuorumStep {
    if on_server == wanted {
        let promises_more = wanted.confirm > 0 && !are_caught_up;
        return match recorded == wanted {
            true => QuorumStep::Done,
            false if promises_more => QuorumStep::CatchUp,
            false => QuorumStep::Record(wanted.clone()),
        };
    }
    // Where the Lease promises nothing yet, nothing has to be as careful as it: it begins to when the replicas have caught up.
    if on_server.confirm == 0 || wanted.confirm == 0 || recorded.confirm == 0 {
        return QuorumStep::Enable;
    }
    let both = on_server.widest(wanted);
    let is_recorded = recorded.names.is_superset(&both.names) && recorded.confirm <= both.confirm;
    if is_recorded { QuorumStep::Enable } else { QuorumStep::Record(both) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(names: &[&str], confirm: u32) -> Quorum {
        Quorum { names: names.iter().map(|&name| name.to_owned()).collect(), confirm }
    }

    #[test]
    fn what_only_a_member_that_leaves_has_confirmed_is_reached_by_the_others_before_the_record_forgets_it() {
        let (before, after) = (asks(&["a", "b"], 1), asks(&["a"], 1));
        assert_eq!(quorum_step(&before, &after, &after, false), QuorumStep::CatchUp);
        assert_eq!(quorum_step(&before, &after, &after, true), QuorumStep::Record(after.clone()));
        let nothing = asks(&[], 0);
        assert_eq!(
            quorum_step(&nothing, &after, &after, false),
            QuorumStep::CatchUp,
            "they lack what waited for nobody"
        );
        assert_eq!(quorum_step(&nothing, &after, &after, true), QuorumStep::Record(after));
    }

    #[test]
    fn replicas_that_come_one_after_the_other_promise_nothing_before_they_have_caught_up() {
        let (nothing, one, two) = (asks(&[], 0), asks(&["a", "b"], 1), asks(&["a", "b"], 2));
        assert_eq!(quorum_step(&nothing, &one, &two, false), QuorumStep::Enable);
        assert_eq!(quorum_step(&nothing, &two, &two, false), QuorumStep::CatchUp);
    }

    #[test]
    fn wherever_a_change_breaks_off_the_record_is_as_careful_as_the_server() {
        let all = [
            asks(&[], 0),
            asks(&["a"], 1),
            asks(&["a", "b"], 1),
            asks(&["b", "c"], 1),
            asks(&["a", "b", "c"], 2),
            asks(&["c", "d"], 2),
        ];
        for (from, to) in all.iter().flat_map(|from| all.iter().map(move |to| (from, to))) {
            let (mut recorded, mut server) = (from.clone(), from.clone());
            for turn in 0.. {
                let is_careful = recorded.names.is_superset(&server.names) && recorded.confirm <= server.confirm;
                // Where nothing waited before, or nothing will, nothing that waited is in question.
                assert!(
                    is_careful || from.confirm == 0 || to.confirm == 0,
                    "{from:?} to {to:?}: {recorded:?}, {server:?}"
                );
                match quorum_step(&recorded, &server, to, turn > 2) {
                    QuorumStep::Record(quorum) => recorded = quorum,
                    QuorumStep::Enable => server = to.clone(),
                    QuorumStep::CatchUp => assert!(turn <= 2),
                    QuorumStep::Done => break,
                }
                assert!(turn < 5, "{from:?} to {to:?} never ends");
            }
            assert_eq!((&recorded, &server), (to, to));
        }
    }
}
