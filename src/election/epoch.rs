//! The number of a leadership, as it stands on what a leader writes beside its Lease.

use std::fmt;

use super::vote::Version;

/// A leadership: the Lease, and the number that grows there with every change of the holder. A Lease made anew counts anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    lease: String,
    number: u32,
}

// === impl Epoch ===

impl Epoch {
    /// Of the Lease in that state.
    #[must_use]
    pub fn new(version: &Version, number: u32) -> Self {
        Self { lease: version.lease().to_owned(), number }
    }

    /// As a leader wrote it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (lease, number) = text.rsplit_once('/')?;
        Some(Self { lease: lease.to_owned(), number: number.parse().ok()? })
    }

    /// Whether it is over where `other` has begun. Of two Leases nothing is known.
    #[must_use]
    pub fn is_before(&self, other: &Self) -> bool {
        self.lease == other.lease && self.number < other.number
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.lease, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leadership_is_before_the_next_one_of_its_lease_and_before_no_other() {
        let epoch = |lease: &str, number| Epoch::new(&Version::new(lease, "77"), number);
        assert!(epoch("a", 3).is_before(&epoch("a", 4)));
        assert!(!epoch("a", 4).is_before(&epoch("a", 4)) && !epoch("a", 5).is_before(&epoch("a", 4)));
        assert!(!epoch("a", 3).is_before(&epoch("b", 4)));
        assert_eq!(Epoch::parse(&epoch("a", 4).to_string()), Some(epoch("a", 4)));
        assert_eq!((Epoch::parse("a/-1"), Epoch::parse("4"), Epoch::parse("")), (None, None, None));
    }
}
