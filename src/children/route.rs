//! How clients come to the master: one `EndpointSlice`, which the leader replaces in one write, behind a Service without selector.
//!
//! A selector on the role label costs clients a second or two at each change of master: the label goes off one pod and on another, and
//! kube-proxy acts on the second of two changes a second after the first.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;

use super::{Owner, owned};
use crate::names;

/// How clients come to the master of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Whether the Service selects on the role label: as long as no member has written the slice.
    pub selector: bool,
    /// The slice that stands beside the Service, if one does.
    pub slice: Option<AddressType>,
}

/// The family of the addresses in a slice. It can't be changed on one that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressType {
    /// Four bytes.
    #[default]
    Ipv4,
    /// Sixteen.
    Ipv6,
}

impl AddressType {
    /// Of a pod's address.
    #[must_use]
    pub fn of(address: &str) -> Self {
        if address.contains(':') { Self::Ipv6 } else { Self::Ipv4 }
    }

    /// Of a slice.
    #[must_use]
    pub fn of_slice(live: &Value) -> Self {
        if live.get("addressType").and_then(Value::as_str) == Some("IPv6") { Self::Ipv6 } else { Self::Ipv4 }
    }

    /// As Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }
}

/// The slice without a word about endpoints: those are the members' own business, and applying this never touches them.
#[must_use]
pub fn slice(owner: &Owner, family: AddressType) -> EndpointSlice {
    let name = names::master(&owner.name);
    let mut metadata = owned(name.clone(), owner);
    let says = [
        (names::slice::SERVICE, name.as_str()),
        (names::slice::MANAGED_BY, names::slice::MANAGER),
        (names::slice::SKIP_MIRROR, "true"),
    ];
    metadata.labels.get_or_insert_default().extend(says.map(|(key, value)| (key.to_owned(), value.to_owned())));
    EndpointSlice { metadata, address_type: family.as_str().to_owned(), endpoints: Vec::new(), ports: None }
}

/// Whether a slice belongs to the Service of that name.
#[must_use]
pub fn is_behind(slice: &Value, service: &str) -> bool {
    label(slice, names::slice::SERVICE) == Some(service)
}

/// Whether Kubernetes fills a slice, by a selector.
#[must_use]
pub fn is_filled_by_kubernetes(slice: &Value) -> bool {
    label(slice, names::slice::MANAGED_BY) == Some(names::slice::BY_KUBERNETES)
}

/// Whether a member has ever written where the master is.
#[must_use]
pub fn is_filled(slice: &Value) -> bool {
    slice.pointer("/endpoints/0").is_some()
}

fn label<'a>(live: &'a Value, key: &str) -> Option<&'a str> {
    live.pointer("/metadata/labels")?.get(key)?.as_str()
}
