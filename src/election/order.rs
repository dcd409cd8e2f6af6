//! What a person asks for by the annotation `pgset.dev/switchover`: who is to lead next. Pure.
//!
//! `db-1`, `any`, with ` accept-loss` behind it what that member lacks is given up; whatever else follows makes it another order than the
//! last one, because the same is not followed twice.

/// Whoever is best.
const ANY: &str = "any";
/// What the target lacks is given up.
const ACCEPT_LOSS: &str = "accept-loss";

/// An order to switch over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The annotation's value, by which an order is known again.
    pub text: String,
    /// Who is to lead; absent if that is left to the set.
    pub target: Option<String>,
    /// What the target lacks is given up.
    pub accepts_loss: bool,
}

impl Order {
    /// Reads the annotation's value; absent if nothing is ordered.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let target = words.next()?;
        Some(Self {
            text: text.to_owned(),
            target: (target != ANY).then(|| target.to_owned()),
            accepts_loss: words.any(|word| word == ACCEPT_LOSS),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_a_member_or_leaves_that_to_the_set() {
        let order = Order::parse("db-1 2026-11-25T05:00:00Z").unwrap();
        assert_eq!((order.target.as_deref(), order.accepts_loss), (Some("db-1"), false));
        assert_eq!(Order::parse("any").unwrap().target, None);
        assert!(Order::parse("db-2 7 accept-loss").unwrap().accepts_loss);
        assert_eq!(Order::parse(" "), None);
    }
}
