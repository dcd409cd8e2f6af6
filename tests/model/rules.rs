//! The rules that the model can do without, one at a time, and what a run of it begins with.

use crate::steps::Step;
use crate::world::*;

/// The rules. Each of them, switched off, lets something happen that must not.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A voter has stopped receiving before it answers.
    pub voters_stop_receiving: bool,
    /// A vote is on the disk before it is given.
    pub votes_are_noted: bool,
    /// The Lease is taken at the version that was decided about.
    pub takes_what_it_saw: bool,
    /// The leave to lead on takes every member's word, not a majority's.
    pub asks_all: bool,
    /// Whoever has given leave does not vote or stand, and whoever has voted gives no leave.
    pub leave_excludes_votes: bool,
    /// A candidate counts votes against the quorum that commits waited for.
    pub needs_a_quorum: bool,
    /// The holder has stopped before another's wait is over.
    pub fences_in_time: bool,
    /// Data that was a master's is compared with what the Lease says that the set has reached.
    pub reads_before_it_writes: bool,
    /// A holder that has to write the Lease anew, and does not know yet what its commits wait for, leaves that as it is.
    pub conflicts_keep_the_quorum: bool,
    /// A holder whose renewal was refused looks at the epoch, not at the holder alone.
    pub notices_another_epoch: bool,
    /// Who has to be asked for leave is noted before the Lease says that he may stand.
    pub notes_before_it_records: bool,
    /// A member notes an epoch on its disk before it takes the Lease for it, and confirms no master of an earlier one.
    pub notes_before_it_takes: bool,
    /// Whoever was elected and died before it was promoted leads by that election, as long as nobody else has.
    pub elected_stays_elected: bool,
    /// No promotion begins a timeline of a number that the Lease has had.
    pub numbers_are_new: bool,
    /// The record of what commits wait for is narrowed when those that are left have all that was confirmed before.
    pub narrows_when_caught_up: bool,
    /// What a member has seen of the Lease never goes back.
    pub goes_forward: bool,
    /// What was told in one leadership is not told in the next.
    pub tells_anew: bool,
    /// How far replicas had come in one leadership says nothing of the next.
    pub catches_up_anew: bool,
    /// A member that does not know whom its earlier life gave leave does not take the kubelet's word yet.
    pub remembers_leaves: bool,
    /// The kubelet's word is about one life of a container.
    pub ends_are_of_a_life: bool,
}

impl Rules {
    pub const ALL: Self = Self {
        voters_stop_receiving: true,
        votes_are_noted: true,
        takes_what_it_saw: true,
        asks_all: true,
        leave_excludes_votes: true,
        needs_a_quorum: true,
        fences_in_time: true,
        reads_before_it_writes: true,
        conflicts_keep_the_quorum: true,
        notices_another_epoch: true,
        notes_before_it_records: true,
        notes_before_it_takes: true,
        elected_stays_elected: true,
        numbers_are_new: true,
        narrows_when_caught_up: true,
        goes_forward: true,
        tells_anew: true,
        catches_up_anew: true,
        remembers_leaves: true,
        ends_are_of_a_life: true,
    };
}

/// How a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The first member leads, and the others stream from it.
    Well,
    /// Its node has frozen, and the others have waited for long enough.
    MasterFrozen,
    /// It has died and will not come back, and the others have waited for long enough.
    MasterLost,
    /// The last member is yet to come.
    OneToCome,
}

/// What a run begins with, and how far it goes.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub start: Start,
    pub members: usize,
    /// So many replicas confirm a commit.
    pub confirm: u8,
    /// Records that may be lost where commits wait for nobody.
    pub maximum_lag: u8,
    pub budget: Budget,
    /// The last epoch that is looked at.
    pub epochs: u8,
    /// The members that faults may hit.
    pub hit: Pods,
    /// What has happened before every order of events is looked at.
    pub after: &'static [Step],
}

/// The model: the set's election by these rules.
#[derive(Clone, Copy, Debug)]
pub struct Election {
    pub rules: Rules,
    pub setup: Setup,
}

impl Election {
    /// The first member leads, the others stream from it, and all have its first record.
    pub fn begin(&self) -> World {
        let late = if self.setup.start == Start::OneToCome { only(self.setup.members - 1) } else { 0 };
        let everybody: Pods = (0..self.setup.members).map(only).sum::<Pods>() & !late;
        let wal = Wal { branch: 0, len: 1 };
        let quorum = if self.setup.confirm == 0 {
            Quorum::default()
        } else {
            Quorum { names: everybody & !only(0), confirm: self.setup.confirm }
        };
        let row = Row {
            holder: Some(0),
            epoch: 1,
            is_announced: true,
            timeline: 1,
            begins: None,
            flushed: Some(1),
            stopped_at: None,
            voters: everybody,
            quorum,
            instance: Some(0),
            branch: 0,
        };
        let described = Described { pod: 0, timeline: 1, begins: None };
        let mut world = World {
            rows: vec![row],
            now: 0,
            members: [Member::replica(wal); MEMBERS],
            wanted: everybody,
            confirm: self.setup.confirm,
            cut_off: 0,
            branches: vec![Branch { timeline: 1, parent: 0, at: 0, acknowledged: 0 }],
            writers: vec![None; usize::from(self.setup.epochs) + 2],
            wrong: None,
            left: self.setup.budget,
        };
        for (pod, member) in world.members.iter_mut().enumerate() {
            if !has(everybody, pod) {
                member.life = Life::Gone;
                continue;
            }
            member.seen = Some(0);
            member.server = PostgresState::Standby;
            member.follows = Some(described);
            member.receiver = Some(0);
        }
        let leadership = Leadership { epoch: 1, voters: everybody, master: described };
        let replica = world.members[0];
        world.members[0] = Member {
            standby: false,
            noted_leadership: Some(leadership),
            noted_epoch: 1,
            server: PostgresState::Master,
            follows: None,
            receiver: None,
            names: quorum,
            holds: true,
            epoch: 1,
            is_announced: true,
            told: Some((everybody, quorum)),
            age: Some(Age::Fresh),
            ..replica
        };
        self.begin_late(&mut world);
        for step in self.setup.after {
            world = self.happen(&world, *step).unwrap_or_else(|| panic!("{step:?} can't happen"));
        }
        world
    }

    fn begin_late(&self, world: &mut World) {
        let master = &mut world.members[0];
        match self.setup.start {
            Start::Well | Start::OneToCome => return,
            Start::MasterFrozen => (master.life, master.age) = (Life::Frozen, Some(Age::Killed)),
            Start::MasterLost => master.crash(Life::Gone),
        }
        for replica in &mut world.members[1..self.setup.members] {
            replica.is_silent = true;
            replica.receiver = None;
        }
    }
}
