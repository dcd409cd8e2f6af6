//! How many replicas commits wait for where fewer stream than the user asked for (`pgset.dev/synchronous-strict`). Pure.

use std::time::Duration;

use tokio::time::Instant;

/// A replica that restarts is back within seconds. Whoever prefers that commits go on without it takes that into account; a shorter time
/// would give up synchronous replication at every rolling update.
const GIVES_UP_AFTER: Duration = Duration::from_secs(10);

/// So many replicas confirm a commit now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strictness {
    lowered: Option<u32>,
    short_since: Option<Instant>,
}

// === impl Strictness ===

impl Strictness {
    /// Of `wanted` replicas as many as stream, once they have been too few for a while; more again as soon as they do. Strictly, all of them.
    pub fn look(&mut self, wanted: u32, is_strict: bool, streaming: u32, now: Instant) -> u32 {
        let asked = self.lowered.unwrap_or(wanted).min(wanted);
        let there = streaming.min(wanted);
        if is_strict || there >= asked {
            *self = Self { lowered: (!is_strict && there < wanted).then_some(there), short_since: None };
        } else if now.saturating_duration_since(*self.short_since.get_or_insert(now)) >= GIVES_UP_AFTER {
            *self = Self { lowered: Some(there), short_since: None };
        }
        self.lowered.unwrap_or(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked for at these seconds, with so many replicas that stream, where two are wanted.
    fn asked(is_strict: bool, story: &[(u64, u32)]) -> Vec<u32> {
        let (mut asked, start) = (Strictness::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        story.iter().map(|(seconds, streaming)| asked.look(2, is_strict, *streaming, at(*seconds))).collect()
    }

    #[test]
    fn commits_wait_for_all_that_are_wanted_where_that_is_strict() {
        assert_eq!(asked(true, &[(0, 2), (1, 0), (99, 0), (999, 1)]), [2, 2, 2, 2]);
    }

    #[test]
    fn commits_go_on_with_those_that_stream_when_the_others_have_been_away_for_long() {
        assert_eq!(asked(false, &[(0, 2), (1, 1), (10, 1), (11, 1)]), [2, 2, 2, 1]);
        assert_eq!(asked(false, &[(0, 2), (1, 0), (11, 0), (12, 0)]), [2, 2, 0, 0]);
        assert_eq!(asked(false, &[(0, 2), (1, 0), (11, 1)]), [2, 2, 1], "as many as stream then");
        assert_eq!(asked(false, &[(0, 1), (10, 1), (11, 0), (20, 0), (21, 0)]), [2, 1, 1, 1, 0], "each has its time");
    }

    #[test]
    fn a_replica_that_restarts_costs_no_confirmation() {
        assert_eq!(asked(false, &[(0, 2), (1, 1), (9, 2), (10, 1), (19, 1)]), [2, 2, 2, 2, 2]);
    }

    #[test]
    fn commits_wait_again_as_soon_as_the_replicas_stream() {
        assert_eq!(asked(false, &[(0, 0), (10, 0), (11, 1), (12, 2), (13, 1)]), [2, 0, 1, 2, 2]);
    }

    #[test]
    fn a_set_that_becomes_strict_again_waits_at_once_and_a_smaller_wish_is_met_at_once() {
        let (mut asked, now) = (Strictness::default(), Instant::now());
        asked.look(2, false, 0, now);
        assert_eq!(asked.look(2, false, 0, now + GIVES_UP_AFTER), 0);
        assert_eq!(asked.look(2, true, 0, now + GIVES_UP_AFTER), 2);
        assert_eq!(asked.look(1, false, 1, now + GIVES_UP_AFTER), 1);
    }
}
