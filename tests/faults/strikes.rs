//! The faults, each with its end.

use std::fs;
use std::ops::Range;
use std::time::Duration;

use crate::MEMBERS;
use crate::chance::Chance;
use crate::lab::Namespace;
use crate::node;
use crate::nodes::{Cut, Node, Undo};
use crate::storage::{self, Export};

/// No fault is held for longer, with the time that it takes to end it.
pub const LONGEST: Duration = Duration::from_secs(16);

const CONTAINER: &str = "postgres";
const NO_EXPORT: &str = "the export has no disk of its own";
/// How its command begins.
const POSTMASTER: &str = "/usr/lib/postgresql/";

/// Whom a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    Master,
    /// Another member, by its place among them.
    Replica(usize),
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    PostmasterIsKilled,
    FencerIsKilled,
    ContainerIsKilled,
    AgentIsStopped,
    PostmasterIsStopped,
    /// As a virtual machine is that stands still: all that is in the container.
    IsFrozen,
    PodIsDeleted,
    PodIsDeletedByForce,
    IsCutOffFromTheApiServer,
    IsIsolated,
    IsOrderedToLead,
    IsPromotedByHand,
    LastMemberLeavesAndReturns,
    /// And comes back at the end, as its power does.
    NodeIsKilled,
    NodeIsFrozen,
    NodeIsCutOff(Cut),
    /// As a cluster's operator does who believes it lost: no pod is to start there, and its pod is deleted by force. It was not lost.
    NodeIsCutOffAndGivenUp,
    NodeIsFrozenAndGivenUp,
    ApiServerIsStopped,
    ExportIsFull,
    ExportIsStalled,
}

/// Which of them there are to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    /// What a lab of one node has in each run.
    Members,
    /// What all members, and all sets, have in common.
    WithSurroundings,
    WithNodes,
}

/// In a lab of one node; the same seed draws the same of these for ever.
const ALL: [What; 13] = [
    What::PostmasterIsKilled,
    What::FencerIsKilled,
    What::ContainerIsKilled,
    What::AgentIsStopped,
    What::PostmasterIsStopped,
    What::IsFrozen,
    What::PodIsDeleted,
    What::PodIsDeletedByForce,
    What::IsCutOffFromTheApiServer,
    What::IsIsolated,
    What::IsOrderedToLead,
    What::IsPromotedByHand,
    What::LastMemberLeavesAndReturns,
];

/// Where there are several, about every second fault is one of these.
const OF_NODES: [What; 9] = [
    What::NodeIsKilled,
    What::NodeIsFrozen,
    What::NodeIsCutOff(Cut::All),
    What::NodeIsCutOff(Cut::From),
    What::NodeIsCutOff(Cut::To),
    What::NodeIsCutOff(Cut::ApiServer),
    What::NodeIsCutOff(Cut::Others),
    What::NodeIsCutOffAndGivenUp,
    What::NodeIsFrozenAndGivenUp,
];

const OF_SURROUNDINGS: [What; 3] = [What::ApiServerIsStopped, What::ExportIsFull, What::ExportIsStalled];

/// A fault.
#[derive(Clone, Copy, Debug)]
pub struct Strike {
    what: What,
    whom: Whom,
    /// What tells an order from the last one.
    order: Duration,
}

/// A fault that has begun, with what has to be done to end it.
pub struct Struck(Option<End>);

type End = Box<dyn FnOnce(&Namespace<'_>) -> Result<(), String>>;

/// One of these.
fn one_of<T: Copy>(chance: &mut Chance, all: &[T]) -> T {
    all[chance.below(all.len())]
}

/// A time of so many seconds, to the tenth.
pub fn seconds(chance: &mut Chance, range: Range<u64>) -> Duration {
    let tenths = usize::try_from((range.end - range.start) * 10).unwrap();
    Duration::from_millis(range.start * 1000 + u64::try_from(chance.below(tenths)).unwrap() * 100)
}

impl Strike {
    /// Every second one strikes the master.
    pub fn choose(chance: &mut Chance, kinds: Kinds) -> Self {
        let list = match kinds {
            Kinds::Members => &ALL[..],
            Kinds::WithSurroundings => one_of(chance, &[&ALL[..], &ALL, &OF_SURROUNDINGS]),
            Kinds::WithNodes => one_of(chance, &[&OF_NODES[..], &OF_NODES, &OF_NODES, &ALL, &ALL, &OF_SURROUNDINGS]),
        };
        let what = one_of(chance, list);
        let whom = one_of(chance, &[Whom::Master, Whom::Master, Whom::Replica(0), Whom::Replica(1)]);
        // A master can't be ordered to lead, nor promoted.
        let whom = if matches!(what, What::IsOrderedToLead | What::IsPromotedByHand) {
            one_of(chance, &[Whom::Replica(0), Whom::Replica(1)])
        } else {
            whom
        };
        Self { what, whom, order: seconds(chance, 1000..900_000) }
    }

    /// Its server accepts writes though it may not, until it is stopped.
    pub fn is_by_hand(self) -> bool {
        self.what == What::IsPromotedByHand
    }

    /// Under which name it is to be asked by way of its node, if clients don't reach it. A pod that is given up has a successor of its name.
    pub fn hides_from_clients(self, pod: &str) -> Option<String> {
        match self.what {
            What::NodeIsCutOff(_) => Some(pod.to_owned()),
            What::NodeIsCutOffAndGivenUp => Some(format!("{pod}, given up")),
            _ => None,
        }
    }

    pub fn begin(self, ns: &Namespace<'_>, pod: &str, export: Option<&Export>) -> Struck {
        // A member that is just being made has no process to strike.
        self.strike(ns, pod, export).unwrap_or_else(|why| {
            println!("  which could not be struck: {why}");
            Struck(None)
        })
    }

    /// Which pod that is now.
    pub fn pod(self, ns: &Namespace<'_>) -> String {
        let holder = ns
            .try_get("lease pgset-leader")
            .ok()
            .and_then(|lease| lease["spec"]["holderIdentity"].as_str().map(str::to_owned));
        let master = holder
            .as_deref()
            .and_then(|holder| holder.split('/').next())
            .filter(|pod| !pod.is_empty())
            .unwrap_or(MEMBERS[0]);
        let chosen = match self.whom {
            Whom::Master => master,
            Whom::Replica(place) => MEMBERS.iter().filter(|pod| **pod != master).nth(place).unwrap(),
        };
        // A node that may not be struck: another member's.
        let mut others = MEMBERS.into_iter().filter(|pod| *pod != chosen);
        if OF_NODES.contains(&self.what) && Node::of(ns, chosen).is_err() {
            return others.find(|pod| Node::of(ns, pod).is_ok()).unwrap_or(chosen).to_owned();
        }
        chosen.to_owned()
    }

    fn strike(self, ns: &Namespace<'_>, pod: &str, export: Option<&Export>) -> Result<Struck, String> {
        let first = |command| {
            let found = node::running(ns, pod, CONTAINER, command)?;
            found.first().copied().ok_or_else(|| format!("there is no {command}"))
        };
        let kubectl = |words: &str| ns.try_kubectl(words).map(drop).map_err(|said| said.err);
        match self.what {
            What::PostmasterIsKilled => node::signal_process(first(POSTMASTER)?, "KILL")?,
            What::FencerIsKilled => node::signal_process(first("pgset fencer")?, "KILL")?,
            What::ContainerIsKilled => node::kill(ns, pod, CONTAINER)?,
            What::AgentIsStopped => return stopped(node::first_process(ns, pod, CONTAINER)?),
            What::PostmasterIsStopped => return stopped(first(POSTMASTER)?),
            What::IsFrozen => {
                let container = node::freeze(ns, pod, CONTAINER)?;
                return Ok(Struck::until(move |_| node::thaw(&container)));
            }
            What::PodIsDeleted => kubectl(&format!("delete pod {pod} --wait=false"))?,
            What::PodIsDeletedByForce => kubectl(&format!("delete pod {pod} --wait=false --force --grace-period=0"))?,
            What::IsCutOffFromTheApiServer => {
                let network = node::cut_off(ns, pod, CONTAINER)?;
                return Ok(Struck::until(move |_| network.heal()));
            }
            What::IsIsolated => {
                let network = node::isolate(ns, pod, CONTAINER)?;
                return Ok(Struck::until(move |_| network.heal()));
            }
            What::IsOrderedToLead => {
                let order = format!("pgset.dev/switchover={pod} {}", self.order.as_millis());
                let words = ["annotate", "statefulset", "pgset", "--overwrite", &order];
                ns.try_kubectl_with(&words, None).map_err(|said| said.err)?;
            }
            What::IsPromotedByHand => {
                ns.shell("client", "client", &format!("sh /tmp/promote-{pod}")).map_err(|said| said.err)?;
                return Ok(Struck::until(|ns| {
                    put_away(ns);
                    Ok(())
                }));
            }
            What::LastMemberLeavesAndReturns => {
                kubectl("scale statefulset pgset --replicas=2")?;
                return Ok(Struck::until(|ns| {
                    ns.try_kubectl("scale statefulset pgset --replicas=3").map(drop).map_err(|said| said.err)
                }));
            }
            What::NodeIsKilled => return Node::of(ns, pod)?.kill().map(Struck::undone),
            What::NodeIsFrozen => return Node::of(ns, pod)?.freeze().map(Struck::undone),
            What::NodeIsCutOff(what) => return Node::of(ns, pod)?.cut(what).map(Struck::undone),
            What::NodeIsCutOffAndGivenUp => return given_up(ns, pod, Node::of(ns, pod)?.cut(Cut::All)?),
            What::NodeIsFrozenAndGivenUp => return given_up(ns, pod, Node::of(ns, pod)?.freeze()?),
            What::ApiServerIsStopped => return stopped(node::api_server()?),
            What::ExportIsStalled => return stopped(export.ok_or(NO_EXPORT)?.server()),
            What::ExportIsFull => {
                let disk = export.ok_or(NO_EXPORT)?.disk().to_owned();
                storage::fill(&disk)?;
                return Ok(Struck::until(move |_| storage::empty(&disk)));
            }
        }
        Ok(Struck(None))
    }
}

/// A member's server, with its agent.
pub fn container(ns: &Namespace<'_>, pod: &str) -> Result<node::Container, String> {
    node::Container::of(ns, pod, CONTAINER)
}

fn given_up(ns: &Namespace<'_>, pod: &str, mut undo: Undo) -> Result<Struck, String> {
    undo.cordon()?;
    ns.try_kubectl(&format!("delete pod {pod} --wait=false --force --grace-period=0")).map_err(|said| said.err)?;
    Ok(Struck::undone(undo))
}

impl Struck {
    fn until(end: impl FnOnce(&Namespace<'_>) -> Result<(), String> + 'static) -> Self {
        Self(Some(Box::new(end)))
    }

    fn undone(undo: Undo) -> Self {
        Self::until(|_| undo.now())
    }

    /// What was struck may be gone by then, and that is as good.
    pub fn end(self, ns: &Namespace<'_>) {
        if let Some(Err(why)) = self.0.map(|end| end(ns)) {
            println!("  which has ended by itself: {why}");
        }
    }
}

/// Data that was promoted by hand is left alone, and its member waits, until a person moves it away.
pub fn put_away(ns: &Namespace<'_>) {
    for pod in MEMBERS {
        let data = ns.export().join(pod).join("data");
        if data.join("pgset-promoted").exists() {
            let place = (0..100)
                .map(|number| ns.export().join(format!("{pod}-promoted-{number}")))
                .find(|place| !place.exists());
            println!("  the data of {pod} is moved away: it was promoted by hand");
            fs::rename(&data, place.unwrap()).unwrap();
        }
    }
}

/// Its number may be another's by the time that it is to go on; going on harms nobody.
fn stopped(process: u32) -> Result<Struck, String> {
    node::signal_process(process, "STOP")?;
    Ok(Struck::until(move |_| node::signal_process(process, "CONT")))
}
