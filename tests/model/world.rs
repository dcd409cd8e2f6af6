//! The state of the model: a Lease, the members, and what nobody of them knows but the properties need.
//!
//! Write-ahead log is counted in records. Who has the same branch and the same length has the same records, because one member at most
//! writes a branch: so a log is a branch and a length. Branches are told apart here even where their timelines have one number.

use std::hash::Hash;

use crate::rules::Rules;

/// A member, by its ordinal.
pub type Pod = usize;
/// A set of members, a bit for each.
pub type Pods = u8;
/// A state of the Lease: an index into [`World::rows`].
pub type Version = u8;

/// No set has more in the model.
pub const MEMBERS: usize = 3;

/// A set of one member.
pub fn only(pod: Pod) -> Pods {
    1 << pod
}

/// Whether a set of members has this one.
pub fn has(pods: Pods, pod: Pod) -> bool {
    pods & only(pod) != 0
}

/// The members of a set.
pub fn each(pods: Pods) -> impl Iterator<Item = Pod> {
    (0..MEMBERS).filter(move |pod| has(pods, *pod))
}

/// What one state of the Lease says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub holder: Option<Pod>,
    pub epoch: u8,
    /// The holder has said that it answers.
    pub is_announced: bool,
    pub timeline: u8,
    pub begins: Option<u8>,
    pub flushed: Option<u8>,
    pub stopped_at: Option<u8>,
    pub voters: Pods,
    pub quorum: Quorum,
    /// Which life of its container the holder is.
    pub instance: Option<u8>,
    /// Which branch the last master that told its position wrote. Nobody knows this.
    pub branch: u8,
}

/// Whose confirmations count, and how many of them are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Quorum {
    pub names: Pods,
    pub confirm: u8,
}

/// A branch of the history: it goes on from another one's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Branch {
    pub timeline: u8,
    pub parent: u8,
    pub at: u8,
    /// Up to here its master has acknowledged what it wrote there; 0 if nothing.
    pub acknowledged: u8,
}

/// What a member has on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wal {
    pub branch: u8,
    pub len: u8,
}

/// How long ago the last extension of a leadership was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Age {
    Fresh,
    /// The agent must have stopped PostgreSQL.
    Fenced,
    /// The fencer must have killed it. Only now another member's wait can be over.
    Killed,
}

/// What becomes of a member's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    Runs,
    /// The agent is stopped; PostgreSQL and the fencer go on.
    AgentFrozen,
    /// The whole node is.
    Frozen,
    /// The node has just thawed, and the fencer has not got its turn yet.
    Thawed,
    Down,
    /// The set has become smaller.
    Gone,
}

/// What PostgreSQL does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PostgresState {
    Off,
    Standby,
    Master,
}

/// A master, as it described itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Described {
    pub pod: Pod,
    pub timeline: u8,
    pub begins: Option<u8>,
}

/// What a member knows of its own ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ballot {
    pub version: Version,
    pub timeline: u8,
    pub at: u8,
    pub answers: [Option<Said>; MEMBERS],
}

/// An answer that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Said {
    Granted { timeline: u8, at: u8 },
    Returns,
}

/// What a leadership needs after a restart without the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leadership {
    pub epoch: u8,
    pub voters: Pods,
    pub master: Described,
}

/// A leave that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leave {
    pub to: Pod,
    pub master: Option<Described>,
}

/// One member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    // On its disk.
    pub wal: Wal,
    pub standby: bool,
    pub stopped_at: Option<u8>,
    pub noted_vote: Option<Version>,
    pub noted_leadership: Option<Leadership>,
    /// The last epoch in which it may have led.
    pub noted_epoch: u8,
    /// The highest timeline of which it has a history.
    pub knows: u8,
    /// What its commits wait for, as a master.
    pub names: Quorum,
    // Its processes.
    pub life: Life,
    /// So many lives of its container have ended.
    pub lives: u8,
    pub server: PostgresState,
    pub follows: Option<Described>,
    pub receiver: Option<Pod>,
    // Its agent's memory.
    pub seen: Option<Version>,
    pub is_silent: bool,
    pub voted: Option<Version>,
    pub leave: Option<Leave>,
    pub holds: bool,
    pub epoch: u8,
    pub is_announced: bool,
    pub ballot: Option<Ballot>,
    /// What its commits wait for, by the Lease that it took and has not led by yet.
    pub taken_with: Option<Quorum>,
    /// What the server waits for since the Lease says something else, and how far the replicas have to come before it may say this.
    pub catch_up: Option<(Quorum, Option<u8>)>,
    /// Who may stand and what commits wait for, as the keeper of the Lease was told it last.
    pub told: Option<(Pods, Quorum)>,
    /// The life of a holder's container that the kubelet has said is over.
    pub ended: Option<(Pod, u8)>,
    /// Who has confirmed the round in which it asks for leave.
    pub asking: Option<Pods>,
    // By the clock.
    pub age: Option<Age>,
    /// The last extension was by leave of these.
    pub by_leave_of: Pods,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    TwoInOneEpoch,
    LostMoreThanAllowed,
    /// Two histories with one timeline number were taken for one.
    Mistaken,
}

/// How often what may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub writes: u8,
    pub crashes: u8,
    /// Agents that are stopped.
    pub stops: u8,
    /// Nodes that freeze.
    pub freezes: u8,
    pub outages: u8,
    /// Requests that are done and never answered.
    pub unanswered: u8,
    pub handovers: u8,
    pub scalings: u8,
    pub late_events: u8,
    /// Changes of how many replicas confirm a commit.
    pub rewrites: u8,
    /// Ends of containers that the kubelet reports.
    pub ends: u8,
}

/// All there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub rows: Vec<Row>,
    /// Which of the rows is the Lease now.
    pub now: Version,
    pub members: [Member; MEMBERS],
    /// The members that the set should have.
    pub wanted: Pods,
    /// So many replicas should confirm a commit.
    pub confirm: u8,
    /// The members that can't reach the API server.
    pub cut_off: Pods,
    pub branches: Vec<Branch>,
    /// Who has written in which epoch.
    pub writers: Vec<Option<Pod>>,
    pub wrong: Option<Wrong>,
    pub left: Budget,
}

// === impl Life ===

impl Life {
    /// The agent does something.
    pub fn acts(self) -> bool {
        matches!(self, Self::Runs | Self::Thawed)
    }

    /// PostgreSQL does something.
    pub fn serves(self) -> bool {
        matches!(self, Self::Runs | Self::Thawed | Self::AgentFrozen)
    }
}

// === impl Member ===

impl Member {
    /// A replica that has the set's first record and was never started.
    pub fn replica(wal: Wal) -> Self {
        Self {
            wal,
            standby: true,
            stopped_at: None,
            noted_vote: None,
            noted_leadership: None,
            noted_epoch: 0,
            knows: 1,
            life: Life::Runs,
            server: PostgresState::Off,
            follows: None,
            receiver: None,
            names: Quorum::default(),
            lives: 0,
            seen: None,
            is_silent: false,
            voted: None,
            leave: None,
            holds: false,
            epoch: 0,
            is_announced: false,
            ballot: None,
            taken_with: None,
            catch_up: None,
            told: None,
            ended: None,
            asking: None,
            age: None,
            by_leave_of: 0,
        }
    }

    /// All processes end; what is on the disk stays.
    pub fn crash(&mut self, life: Life) {
        let Self { wal, standby, stopped_at, noted_vote, noted_leadership, noted_epoch, knows, names, .. } = *self;
        let on_disk =
            Self { standby, stopped_at, noted_vote, noted_leadership, noted_epoch, knows, names, ..Self::replica(wal) };
        *self = Self { life, lives: self.lives + 1, ..on_disk };
    }

    /// PostgreSQL ends at once.
    pub fn kill_server(&mut self) {
        self.server = PostgresState::Off;
        self.follows = None;
        self.receiver = None;
        self.is_announced = false;
    }

    /// It leads by the leave of members that include this one, and has not had to stop yet.
    pub fn leads_by_leave_of(&self, pod: Pod) -> bool {
        has(self.by_leave_of, pod) && self.age.is_some_and(|age| age < Age::Killed)
    }

    /// So it does, or it may in a moment: a round of questions takes a sixth of the Lease's length at most.
    pub fn was_confirmed_by(&self, pod: Pod) -> bool {
        self.leads_by_leave_of(pod) || self.asking.is_some_and(|asked| has(asked, pod))
    }

    /// It accepts writes at this moment, and nothing is about to end that.
    pub fn writes(&self) -> bool {
        self.server == PostgresState::Master && matches!(self.life, Life::Runs | Life::AgentFrozen)
    }
}

// === impl World ===

impl World {
    pub fn row(&self, version: Version) -> &Row {
        &self.rows[usize::from(version)]
    }

    pub fn lease(&self) -> &Row {
        self.row(self.now)
    }

    pub fn reaches(&self, pod: Pod) -> bool {
        !has(self.cut_off, pod)
    }

    pub fn branch(&self, branch: u8) -> &Branch {
        &self.branches[usize::from(branch)]
    }

    pub fn timeline(&self, wal: Wal) -> u8 {
        self.branch(wal.branch).timeline
    }

    /// Which branch a log's record is of.
    pub fn branch_at(&self, wal: Wal, at: u8) -> u8 {
        let mut branch = wal.branch;
        while self.branch(branch).at > at {
            branch = self.branch(branch).parent;
        }
        branch
    }

    /// How much of a branch a log has, from the beginning of all; nothing where that branch is no part of it.
    pub fn has_of(&self, wal: Wal, wanted: u8) -> u8 {
        let (mut branch, mut end) = (wal.branch, wal.len);
        loop {
            if branch == wanted {
                return end;
            }
            if branch == 0 {
                return 0;
            }
            let Branch { parent, at, .. } = *self.branch(branch);
            (branch, end) = (parent, at);
        }
    }

    /// Whether one log is the beginning of another.
    pub fn is_prefix(&self, short: Wal, long: Wal) -> bool {
        short.len <= long.len && self.branch_at(long, short.len - 1) == self.branch_at(short, short.len - 1)
    }

    /// What was acknowledged and is not in this log: where the first of it would be.
    pub fn first_missing(&self, wal: Wal) -> Option<u8> {
        let missing = |(number, branch): (usize, &Branch)| {
            let here = self.has_of(wal, u8::try_from(number).unwrap()).max(branch.at);
            (here < branch.acknowledged).then_some(here)
        };
        self.branches.iter().enumerate().filter_map(missing).min()
    }

    /// What is lost with this log is lost, and has been judged.
    pub fn forget_missing(&mut self, wal: Wal) {
        for number in 0..self.branches.len() {
            let here = self.has_of(wal, u8::try_from(number).unwrap());
            let branch = &mut self.branches[number];
            branch.acknowledged = if here > branch.at { branch.acknowledged.min(here) } else { 0 };
        }
    }

    /// What makes no difference any more is as if it had never been, so that states that go on alike are one.
    pub fn tidy(&mut self, rules: &Rules) {
        let epoch = self.lease().epoch;
        for member in &mut self.members {
            if rules.tells_anew && !member.holds {
                member.told = None;
            }
            if rules.catches_up_anew && !member.is_announced {
                member.catch_up = None;
            }
            if !member.holds {
                member.taken_with = None;
            }
            if member.server != PostgresState::Master {
                member.is_announced = false;
            }
            if member.standby {
                member.names = Quorum::default();
            }
            if member.server != PostgresState::Master && !member.holds {
                // There is nothing to fence, and nothing to be waited for: `Member::stand_down`.
                (member.age, member.by_leave_of, member.epoch) = (None, 0, 0);
            }
            if member.holds || member.ballot.is_some_and(|ballot| Some(ballot.version) != member.seen) {
                member.ballot = None;
            }
            member.is_silent &= !member.holds;
        }
        let epochs = self.members.map(|member| usize::from(member.epoch));
        for (number, writer) in self.writers.iter_mut().enumerate() {
            if number < usize::from(epoch) && !epochs.contains(&number) {
                *writer = None;
            }
        }
        // Of lives only those are told apart whose end somebody hears, or has heard.
        if self.left.ends == 0 && self.members.iter().all(|member| member.ended.is_none()) {
            self.members.iter_mut().for_each(|member| member.lives = 0);
            self.rows.iter_mut().for_each(|row| row.instance = row.instance.map(|_| 0));
        }
        // Old news needs something old.
        if self.left.late_events == 0 {
            self.drop_old_rows();
        }
    }

    fn drop_old_rows(&mut self) {
        let mut used = vec![false; self.rows.len()];
        used[usize::from(self.now)] = true;
        for member in &self.members {
            let versions = [member.noted_vote, member.seen, member.voted, member.ballot.map(|ballot| ballot.version)];
            for version in versions.into_iter().flatten() {
                used[usize::from(version)] = true;
            }
        }
        if used.iter().all(|used| *used) {
            return;
        }
        let mut place = 0;
        let places: Vec<u8> = used
            .iter()
            .map(|used| {
                let here = place;
                place += u8::from(*used);
                here
            })
            .collect();
        let moved = |version: &mut Version| *version = places[usize::from(*version)];
        moved(&mut self.now);
        for member in &mut self.members {
            member.noted_vote.iter_mut().for_each(moved);
            member.seen.iter_mut().for_each(moved);
            member.voted.iter_mut().for_each(moved);
            member.ballot.iter_mut().for_each(|ballot| moved(&mut ballot.version));
        }
        let mut used = used.into_iter();
        self.rows.retain(|_| used.next().unwrap_or_default());
    }
}
