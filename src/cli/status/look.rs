//! The edge: what is read of sets. It only reads.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, future, stream};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tokio::time::sleep;

use super::{lease::Leadership, view::Facts};
use crate::{
    cli::{
        check::{
            sets::is_member,
            snapshot::{read_date, speaks_of_pgset},
        },
        cluster::{Cluster, Read, Unread, text, title},
    },
    names::{self, annotation},
    set::{Contract, Set},
};

/// How many requests are under way at once.
const AT_ONCE: usize = 8;
/// The longest Lease that a set may have, by which a second look is limited.
const LONGEST_LEASE: Duration = Duration::from_secs(60);

/// Which sets are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One.
    Set {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// All of a namespace.
    Namespace(String),
    /// All.
    Everywhere,
}

/// Why there is nothing to say.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such set.
    #[error(
        "there is no StatefulSet {namespace}/{name}; name its namespace by -n, or see all sets by: pgset status -A"
    )]
    Absent {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// It is none of pgset's.
    #[error(
        "StatefulSet {namespace}/{name} is no set: it has no annotation {}: enabled (pgset explain sts/{name} -n {namespace} says more)",
        annotation::INJECT
    )]
    NotASet {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// It can't be read.
    #[error("failed to read {what}, which takes the right to {right}")]
    Unread {
        /// What.
        what: String,
        /// What it takes.
        right: &'static str,
        /// Why not.
        #[source]
        source: Unread,
    },
}

/// Looks at sets, and remembers of their Leases what it takes to tell a silent holder from a clock that is wrong.
pub struct Looker<'a> {
    cluster: &'a Cluster,
    scope: Scope,
    /// Whether it looks time and again.
    is_watching: bool,
    pulses: BTreeMap<String, Pulse>,
}

/// What was seen of a Lease's renewals.
#[derive(Clone, Debug)]
struct Pulse {
    renewal: String,
    witnessed: Option<Instant>,
}

// === impl Pulse ===

impl Pulse {
    fn of(lease: &Value, before: Option<&Self>) -> Self {
        let renewal = format!("{} {}", text(lease, "/spec/holderIdentity"), text(lease, "/spec/renewTime"));
        let witnessed = match before {
            Some(before) if before.renewal == renewal => before.witnessed,
            Some(_) => Some(Instant::now()),
            None => None,
        };
        Self { renewal, witnessed }
    }
}

// === impl Scope ===

impl Scope {
    fn path(&self, group: &str, resource: &str) -> String {
        match self {
            Self::Set { namespace, .. } | Self::Namespace(namespace) => {
                format!("/{group}/namespaces/{namespace}/{resource}")
            }
            Self::Everywhere => format!("/{group}/{resource}"),
        }
    }

    fn pods(&self) -> String {
        let selector = match self {
            Self::Set { name, .. } => format!("{}={name}", names::label::SET),
            _ => names::label::SET.to_owned(),
        };
        self.path("api/v1", &format!("pods?labelSelector={selector}"))
    }

    fn events(&self) -> String {
        let name = match self {
            Self::Set { name, .. } => format!(",regarding.name={name}"),
            _ => String::new(),
        };
        self.path("apis/events.k8s.io/v1", &format!("events?fieldSelector=regarding.kind=StatefulSet{name}"))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Namespace(namespace) => write!(f, "in the namespace {namespace}"),
            Self::Everywhere => f.write_str("in any namespace"),
        }
    }
}

// === impl Looker ===

impl<'a> Looker<'a> {
    /// One that has not looked yet.
    pub fn new(cluster: &'a Cluster, scope: Scope, is_watching: bool) -> Self {
        Self { cluster, scope, is_watching, pulses: BTreeMap::new() }
    }

    /// Looks once.
    pub async fn look(&mut self) -> Result<Vec<Facts>, Error> {
        let sets = self.sets().await?;
        let (pods, events) =
            future::join(self.cluster.list(&self.scope.pods()), self.cluster.list(&self.scope.events())).await;
        let this = &*self;
        let facts: Vec<(Facts, Option<Pulse>)> =
            stream::iter(sets).map(|object| this.facts(object, &pods, &events)).buffered(AT_ONCE).collect().await;
        self.pulses = facts.iter().filter_map(|(facts, pulse)| Some((title(&facts.object), pulse.clone()?))).collect();
        Ok(facts.into_iter().map(|(facts, _)| facts).collect())
    }

    async fn sets(&self) -> Result<Vec<Value>, Error> {
        let unread = |what: String, right: &'static str| move |source| Error::Unread { what, right, source };
        match &self.scope {
            Scope::Set { namespace, name } => {
                let path = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}");
                let (namespace, name) = (namespace.clone(), name.clone());
                match self.cluster.get(&path).await {
                    Ok(object) if speaks_of_pgset(&object) => Ok(vec![object]),
                    Ok(_) => Err(Error::NotASet { namespace, name }),
                    Err(Unread::Absent) => Err(Error::Absent { namespace, name }),
                    Err(why) => Err(unread(format!("StatefulSet {namespace}/{name}"), "get statefulsets.apps")(why)),
                }
            }
            scope => {
                let found = self.cluster.list(&scope.path("apis/apps/v1", "statefulsets")).await;
                let sets = found.map_err(unread("StatefulSets".to_owned(), "list statefulsets.apps"))?;
                Ok(sets.into_iter().filter(speaks_of_pgset).collect())
            }
        }
    }

    async fn facts(&self, object: Value, pods: &Read<Vec<Value>>, events: &Read<Vec<Value>>) -> (Facts, Option<Pulse>) {
        let own = |pods: &Vec<Value>| pods.iter().filter(|pod| is_member(pod, &object)).cloned().collect();
        let pods = pods.as_ref().map(own).map_err(Clone::clone);
        let before = self.pulses.get(&title(&object)).cloned();
        let mut facts = Facts {
            pods,
            lease: Err(Unread::Absent),
            events: events.clone(),
            now: Timestamp::now(),
            heard: None,
            object,
        };
        let Some(set) = Set::parse(&facts.object).ok().filter(|set| set.contract == Contract::Agent) else {
            return (facts, None);
        };
        let mut pulse = self.read_lease(&set, &mut facts, before.as_ref()).await;
        let looks_silent = |facts: &Facts| {
            let lease = facts.lease.as_ref().ok()?;
            let leadership = Leadership::read(lease, &set, facts.now, facts.heard);
            leadership.is_silent.then_some(leadership.duration)
        };
        if !self.is_watching
            && let Some(duration) = looks_silent(&facts)
        {
            // Renewals come every third of the duration. One that comes meanwhile means that a clock is wrong, and nothing else.
            sleep(duration.min(LONGEST_LEASE) / 3 + Duration::from_secs(1)).await;
            pulse = self.read_lease(&set, &mut facts, pulse.as_ref()).await;
        }
        (facts, pulse)
    }

    async fn read_lease(&self, set: &Set, facts: &mut Facts, before: Option<&Pulse>) -> Option<Pulse> {
        let namespace = text(&facts.object, "/metadata/namespace");
        let lease = names::leader(&set.name);
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{lease}");
        let answer = self.cluster.answer(&path).await;
        let date = answer.as_ref().ok().and_then(|answer| answer.date.as_deref()).and_then(read_date);
        let date = date.and_then(|seconds| Timestamp::from_second(i64::try_from(seconds).ok()?).ok());
        facts.now = date.unwrap_or_else(Timestamp::now);
        facts.lease = answer.map(|answer| answer.value);
        let pulse = facts.lease.as_ref().ok().map(|lease| Pulse::of(lease, before));
        facts.heard = pulse.as_ref().and_then(|pulse| pulse.witnessed).map(|witnessed| witnessed.elapsed());
        pulse
    }
}
