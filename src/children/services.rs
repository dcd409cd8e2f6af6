//! The three Services of a set.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::route::Route;
use super::{Owner, members_of, owned};
use crate::names;
use crate::set::Set;

/// What the port is called in every Service.
pub const PORT_NAME: &str = "postgres";

/// What may end the name of a governing Service that pgset makes; people call theirs so.
const GOVERNING: [&str; 6] = ["-headless", "-hl", "-svc", "-service", "-pods", "-members"];

/// What the Service that `spec.serviceName` names is to pgset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoverningService {
    /// One of the set's own names: pgset makes it where there is none.
    Made,
    /// The set's own Service to the master or to the replicas, which serves as it is.
    ToRole,
    /// A name that another set's Service has or may get.
    OfAnotherSet,
    /// Any other name: a Service of the user's, if he has made one.
    Users,
}

/// Whether pgset makes the Service that a set's `spec.serviceName` names. A name belongs to one set at most, whichever sets there
/// are or will be: else whoever may make a set could have a Service made over his own pods where another set's was about to come.
#[must_use]
pub fn governing_service(set: &str, service_name: &str) -> GoverningService {
    let is_with =
        |ends: &[&str]| ends.iter().any(|end| service_name.strip_suffix(end).is_some_and(|name| !name.is_empty()));
    match service_name.strip_prefix(set) {
        _ if names::set_of_role_service(service_name) == Some(set) => GoverningService::ToRole,
        _ if names::is_kept_for_another_set(service_name, set) => GoverningService::OfAnotherSet,
        Some(end) if GOVERNING.contains(&end) => GoverningService::Made,
        // It may be the governing Service of a set with a shorter name.
        Some("") if is_with(&GOVERNING) => GoverningService::OfAnotherSet,
        Some("") => GoverningService::Made,
        _ => GoverningService::Users,
    }
}

/// The governing Service: a DNS name for each member, also before it is ready, because members look for each other then.
#[must_use]
pub fn headless(set: &Set, owner: &Owner) -> Service {
    service(
        owner,
        set.headless_service.clone(),
        ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            ..chooses(set, members_of(set))
        },
    )
}

/// The Service to the master, whichever member that is.
#[must_use]
pub fn master(set: &Set, owner: &Owner, route: Route) -> Service {
    let mut service = to_role(set, owner, names::master(&set.name), &set.role_label.master);
    if set.routed {
        // Before the selector goes, so that Kubernetes has it on what it leaves behind.
        let labels = service.metadata.labels.get_or_insert_default();
        labels.insert(names::slice::SKIP_MIRROR.to_owned(), "true".to_owned());
    }
    if !route.selector
        && let Some(spec) = &mut service.spec
    {
        // Said, so that one is taken off.
        spec.selector = Some(BTreeMap::new());
    }
    service
}

/// The Service to the replicas.
#[must_use]
pub fn replica(set: &Set, owner: &Owner) -> Service {
    to_role(set, owner, names::replica(&set.name), &set.role_label.replica)
}

/// What chooses the set's members in a role.
#[must_use]
pub fn in_role(set: &Set, role: &str) -> BTreeMap<String, String> {
    let mut selector = members_of(set);
    selector.insert(set.role_label.key.clone(), role.to_owned());
    selector
}

fn to_role(set: &Set, owner: &Owner, name: String, role: &str) -> Service {
    let selector = in_role(set, role);
    // A member that is not ready answers no client: said, so that an edit to the contrary is taken back.
    let spec = ServiceSpec { publish_not_ready_addresses: Some(false), ..chooses(set, selector) };
    service(owner, name, spec)
}

fn chooses(set: &Set, selector: BTreeMap<String, String>) -> ServiceSpec {
    let port = i32::from(set.port);
    ServiceSpec {
        // Said, so that nobody opens the database to the world by editing a Service of ours: a Service of his own can do that.
        type_: Some("ClusterIP".to_owned()),
        selector: Some(selector),
        ports: Some(vec![ServicePort {
            name: Some(PORT_NAME.to_owned()),
            protocol: Some("TCP".to_owned()),
            port,
            target_port: Some(IntOrString::Int(port)),
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    }
}

fn service(owner: &Owner, name: String, spec: ServiceSpec) -> Service {
    Service { metadata: owned(name, owner), spec: Some(spec), status: None }
}
