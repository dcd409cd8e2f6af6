//! How many members may be taken away on purpose.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Owner, members_of, owned};
use crate::set::Set;

/// One member at a time, so that draining nodes never takes the master and the replica that would follow it.
#[must_use]
pub fn budget(set: &Set, owner: &Owner) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: owned(owner.name.clone(), owner),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector { match_labels: Some(members_of(set)), match_expressions: None }),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
