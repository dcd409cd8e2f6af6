//! How much WAL may wait on the volume while the store does not take it, so that a store that is away does not take the database with it. Pure.

use crate::set::backup::Limit;

/// What a volume has left for the database, whatever waits: a tenth of it.
pub const LEFT_FREE: u64 = 10;

/// How a file system is filled, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its size.
    pub size: u64,
    /// What is free.
    pub free: u64,
}

/// Whether so little is free that PostgreSQL is to keep no WAL only so that later backups hold less: half of what stays free when WAL that waits for
/// the store is let go, so that it is not that which makes it so; after that until all of it is free again, as it would go to and fro.
#[must_use]
pub fn is_tight(was_tight: bool, room: Room) -> bool {
    let enough = room.size / LEFT_FREE;
    room.free < if was_tight { enough } else { enough / 2 }
}

/// How many bytes more may wait, beside those that do; absent where there is no limit.
#[must_use]
pub fn left(limit: Limit, waiting: u64, room: Room) -> Option<u64> {
    let of_volume = room.free.saturating_sub(room.size / LEFT_FREE);
    match limit {
        Limit::None => None,
        Limit::Volume => Some(of_volume),
        Limit::Bytes(bytes) => Some(bytes.saturating_sub(waiting).min(of_volume)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_tight_until_more_is_free_than_made_it_so() {
        let room = |free| Room { size: 1000, free };
        assert!(!is_tight(false, room(50)) && is_tight(false, room(49)));
        assert!(is_tight(true, room(99)) && !is_tight(true, room(100)));
    }

    #[test]
    fn a_tenth_of_the_volume_stays_free_and_no_more_waits_than_may() {
        let room = Room { size: 1000, free: 300 };
        assert_eq!(left(Limit::Volume, 500, room), Some(200));
        assert_eq!(left(Limit::Bytes(600), 500, room), Some(100));
        assert_eq!(left(Limit::Bytes(6000), 500, room), Some(200), "the volume is smaller");
        assert_eq!(left(Limit::Bytes(400), 500, room), Some(0));
        assert_eq!(left(Limit::Volume, 0, Room { size: 1000, free: 99 }), Some(0));
        assert_eq!(left(Limit::None, 500, Room { size: 1000, free: 0 }), None);
    }
}
