//! From the injection's outcome to the webhook's decision.

use super::review::{Decision, StatefulSets};
use crate::inject::{self, Outcome};

/// Decides by the injection: what `pgset serve` gives to [`super::State::new`].
pub fn by_injection(settings: inject::Settings) -> impl Fn(&StatefulSets<'_>) -> Decision + Send + Sync + 'static {
    move |sets| {
        let request = inject::Request { object: sets.object, old: sets.old, settings: &settings };
        match inject::inject(&request) {
            Outcome::Untouched { warnings } if warnings.is_empty() => Decision::Untouched,
            Outcome::Untouched { warnings } => Decision::Allowed { warnings },
            Outcome::Patched { patch, warnings, audit } => Decision::Patched { patch, warnings, audit },
            Outcome::Denied { reason } => Decision::Denied { code: reason.code(), reason: reason.to_string() },
        }
    }
}
