//! Chance that can be had again: a generator with a seed.

use std::ops::Range;
use std::time::Duration;

/// `SplitMix64`: small, and good enough to choose faults by.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// One of these.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let count = u64::try_from(all.len()).unwrap();
        &all[usize::try_from(self.next() % count).unwrap()]
    }

    /// A time of so many seconds, to the tenth.
    pub fn seconds(&mut self, range: Range<u64>) -> Duration {
        let tenths = (range.end - range.start) * 10;
        Duration::from_millis(range.start * 1000 + self.next() % tenths * 100)
    }
}
