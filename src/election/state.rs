//! What a member remembers from one moment to the next, beside what its disk and its promises say. Pure: every time is an argument.

pub mod candidacy;
pub mod commits;
pub mod handover;

use std::time::Duration;

use self::candidacy::Candidacy;
use self::commits::Commits;
use self::handover::Handover;
use super::DataState;

/// After so long what failed is tried again; after the last of these from then on. A server that was killed starts at once, as clients wait
/// for it; what fails again is given time, before it has failed [`STARTS`] times.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(1400),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(15),
];
/// After a `pg_ctl stop` from outside: SIGTERM follows a `preStop` hook at once. Without one, somebody wanted a restart.
pub(super) const HOOK_LIMIT: Duration = Duration::from_secs(10);
/// So often a database may fail to start before it is run as before the annotation, or another member may lead: what fails by chance does
/// not fail three times.
const STARTS: u32 = 3;
/// So long the others are let lead then, before one more start is tried: an election takes a second or two, and what a person mends may be
/// mended at any time.
const STARTS_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// A moment by a member's own clock, which never goes back.
pub trait Time: Copy + Ord {
    /// So much later.
    #[must_use]
    fn after(self, time: Duration) -> Self;
}

/// The time since some moment or other.
impl Time for Duration {
    fn after(self, time: Duration) -> Self {
        self.saturating_add(time)
    }
}

/// What a member remembers.
#[derive(Clone, Debug)]
pub struct State<T> {
    /// Its own votes, and who waits for its vote.
    pub candidacy: Candidacy<T>,
    /// A change of the master by plan.
    pub handover: Handover<T>,
    /// What its commits wait for.
    pub commits: Commits<T>,
    pub(super) pause: Pause<T>,
    pub(super) starts: Starts<T>,
    pub(super) way_back: WayBack,
    /// PostgreSQL was stopped by somebody else, and is let be until then.
    pub(super) let_be_until: Option<T>,
}

/// A pause after a failure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause<T> {
    until: Option<T>,
    failed: usize,
}

/// The starts as the master that failed in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Starts<T> {
    failed: u32,
    last: Option<T>,
}

/// How a member whose data left the set's history comes back.
#[derive(Clone, Debug, Default)]
pub(super) struct WayBack {
    unrewindable: Option<String>,
    /// It was rewound and has not streamed yet, and its server has ended so often since.
    ended: Option<u32>,
}

// === impl State ===

impl<T> Default for State<T> {
    fn default() -> Self {
        Self {
            candidacy: Candidacy::default(),
            handover: Handover::default(),
            commits: Commits::default(),
            pause: Pause::default(),
            starts: Starts::default(),
            way_back: WayBack::default(),
            let_be_until: None,
        }
    }
}

impl<T: Time> State<T> {
    /// Until when what failed is not tried again.
    #[must_use]
    pub fn pauses_until(&self, now: T) -> Option<T> {
        self.pause.until.filter(|until| now < *until)
    }

    /// PostgreSQL was stopped by somebody else (`pg_ctl stop` in a `preStop` hook), who may end the pod now.
    #[must_use]
    pub fn lets_be(&self, now: T) -> bool {
        self.let_be_until.is_some_and(|until| now < until)
    }

    /// What is known of the data beyond what is on the disk.
    pub(super) fn know(&self, mut data: DataState) -> DataState {
        if let DataState::Cluster { lineage, .. } = &mut data {
            lineage.unrewindable.clone_from(&self.way_back.unrewindable);
        }
        data
    }
}

// === impl Pause ===

impl<T> Default for Pause<T> {
    fn default() -> Self {
        Self { until: None, failed: 0 }
    }
}

impl<T: Time> Pause<T> {
    pub(super) fn begin(&mut self, now: T) {
        let last = PAUSES.len() - 1;
        *self = Self { until: Some(now.after(PAUSES[self.failed.min(last)])), failed: self.failed.saturating_add(1) };
    }
}

// === impl Starts ===

impl<T: Time> Starts<T> {
    pub(super) fn note_failed(&mut self, now: T) {
        *self = Self { failed: self.failed.saturating_add(1), last: Some(now) };
    }

    /// Too many, and the last one not long ago.
    pub(super) fn are_failing(&self, now: T) -> bool {
        self.failed >= STARTS && self.last.is_some_and(|last| now < last.after(STARTS_AGAIN_AFTER))
    }
}

impl<T> Default for Starts<T> {
    fn default() -> Self {
        Self { failed: 0, last: None }
    }
}

// === impl WayBack ===

impl WayBack {
    pub(super) fn rewound() -> Self {
        Self { ended: Some(0), ..Self::default() }
    }

    pub(super) fn impossible(why: String) -> Self {
        Self { unrewindable: Some(why), ended: None }
    }

    /// A server has ended by itself. One that starts is past what a rewind could have left undone.
    pub(super) fn note_end(&mut self) {
        let Some(ended) = &mut self.ended else { return };
        *ended = ended.saturating_add(1);
        if *ended >= STARTS {
            self.unrewindable = Some("PostgreSQL does not start on the rewound data; its log says why".to_owned());
        }
    }
}
