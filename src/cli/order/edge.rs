//! The edge: writes an order, looks what becomes of it, and leaves no order behind.

use std::{
    collections::BTreeSet,
    io::Write as _,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{signal::ctrl_c, time::sleep};

use super::{
    course::{Course, End, Look},
    plan::{Kind, Plan, Wish, plan},
};
use crate::{
    cli::{
        check::sets::pointer,
        cluster::{Cluster, Unread, text},
        status::{
            look::{self, Looker, Scope},
            told::plain,
            view::{Health, View},
        },
    },
    election::order::Order,
    names::{self, annotation},
};

/// How often the Lease is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// How often the Events are.
const LISTEN_EVERY: Duration = Duration::from_secs(1);
/// A member may have been about to follow an order that is taken back.
const LAST_LOOK_AFTER: Duration = Duration::from_secs(2);

/// What is done for one set.
pub struct Errand<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// The set's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How long is waited for an outcome.
    pub limit: Duration,
    /// Whether to wait for the other members as well.
    pub is_to_wait: bool,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
#[error("StatefulSet {set}: {why}")]
pub struct Undone {
    set: String,
    why: String,
}

/// Why it could not be ordered or told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The set.
    #[error(transparent)]
    Look(#[from] look::Error),
    /// Something that this takes a right for.
    #[error("failed to {what}, which takes the right to {right}")]
    Unread {
        /// What.
        what: String,
        /// The right.
        right: &'static str,
        /// Why not.
        #[source]
        source: Unread,
    },
}

/// What became of an order, as far as it was waited for.
enum Outcome {
    Ended(End),
    /// The time is over, or somebody does not want to wait for longer.
    Open(&'static str),
}

// === impl Errand ===

impl Errand<'_> {
    /// Does it, and says on standard output what happens.
    pub async fn run(&self, wish: &Wish) -> Result<Result<(), Undone>, Error> {
        let Some(facts) = Looker::new(self.cluster, self.scope(), false).look().await?.pop() else {
            return Ok(self.undone("it is gone".to_owned()));
        };
        if let Some(why) = facts.lease.as_ref().err().filter(|why| **why != Unread::Absent) {
            return Err(self.unread_lease(why.clone()));
        }
        let (order, before, says) = match plan(wish, &facts) {
            Ok(Plan::Done(pod)) => {
                say(&format!("{pod} leads already"));
                return self.wait_for_others(&pod).await;
            }
            Ok(Plan::Order { order, before, says }) => (order, before, says),
            Err(refused) => return Ok(self.undone(refused.to_string())),
        };
        for words in says {
            say(&words);
        }
        if let Err(why) = self.write(&order).await? {
            return Ok(self.undone(why));
        }
        say(&format!("ordered: {} {:?} on StatefulSet {}", annotation::SWITCHOVER, order.text, self.title()));
        let mut watch = Watch::new(self, Course::new(order.clone(), before), &order);
        let outcome = watch.wait(self.limit).await;
        self.take_back(&order).await;
        let outcome = match outcome? {
            open @ Outcome::Open(_) => watch.last_look(open).await?,
            ended @ Outcome::Ended(_) => ended,
        };
        let pod = match self.told(wish, &order, outcome, &watch.heard) {
            Ok(pod) => pod,
            Err(undone) => return Ok(Err(undone)),
        };
        self.wait_for_others(&pod).await
    }

    fn scope(&self) -> Scope {
        Scope::Set { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn place(&self) -> String {
        format!("sts/{} -n {}", self.name, self.namespace)
    }

    fn undone<T>(&self, why: String) -> Result<T, Undone> {
        Err(Undone { set: self.title(), why })
    }

    fn path(&self) -> String {
        let Self { namespace, name, .. } = self;
        format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}?fieldManager=pgset-order")
    }

    /// Writes the order. What refuses the change of the set, such as a webhook that does not answer, is told as it says it.
    async fn write(&self, order: &Order) -> Result<Result<(), String>, Error> {
        let patch = json!({"metadata": {"annotations": {annotation::SWITCHOVER: order.text}}});
        match self.cluster.merge(&self.path(), &patch).await {
            Ok(_) => Ok(Ok(())),
            Err(Unread::Refused(why)) => Ok(Err(format!(
                "the annotation {} {:?} can't be written: {why}; pgset check says whether pgset's webhook is well",
                annotation::SWITCHOVER,
                order.text
            ))),
            Err(source) => Err(Error::Unread {
                what: format!("write the annotation {} on StatefulSet {}", annotation::SWITCHOVER, self.title()),
                right: "patch statefulsets.apps",
                source,
            }),
        }
    }

    /// An order that has been seen to does nothing any more, and one that has not is to do nothing later. Somebody else's stays.
    async fn take_back(&self, order: &Order) {
        let path = pointer(annotation::SWITCHOVER);
        let steps = json!([
            {"op": "test", "path": path, "value": order.text},
            {"op": "remove", "path": path},
        ]);
        if let Err(why) = self.cluster.patch(&self.path(), &steps).await {
            eprintln!("pgset: failed to take the order {:?} off the set: {why}", order.text);
        }
    }

    async fn look(&self) -> Result<Option<Look>, Error> {
        let lease = names::leader(&self.name);
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases/{lease}", self.namespace);
        match self.cluster.get(&path).await {
            Ok(lease) => Ok(Some(Look::at(&lease))),
            // It may be back before the time is over.
            Err(Unread::Unreachable(_) | Unread::Refused(_)) => Ok(None),
            Err(why) => Err(self.unread_lease(why)),
        }
    }

    fn unread_lease(&self, source: Unread) -> Error {
        let what = format!("read the Lease {}/{}", self.namespace, names::leader(&self.name));
        Error::Unread { what, right: "get leases.coordination.k8s.io", source }
    }

    /// Who leads, if it is as it was ordered.
    fn told(&self, wish: &Wish, order: &Order, outcome: Outcome, heard: &BTreeSet<String>) -> Result<String, Undone> {
        let place = self.place();
        let field = format!("{} {:?}", annotation::SWITCHOVER, order.text);
        let logs = |pod: &str| format!("kubectl logs {pod} -n {} says more", self.namespace);
        match outcome {
            Outcome::Ended(End::Leads { pod, took }) => {
                say(&format!("{pod} leads and accepts writes: {took}"));
                Ok(pod)
            }
            Outcome::Ended(End::Refused { by, why: Some(why) }) => {
                self.undone(format!("{field} is refused by {by}: {why}"))
            }
            Outcome::Ended(End::Refused { by, why: None }) => self
                .undone(format!("{field} is not followed by {by}, which leads on and does not say why: {}", logs(&by))),
            Outcome::Ended(End::Other { pod, why }) => {
                let why = why.unwrap_or_else(|| logs(order.target.as_deref().unwrap_or(&pod)));
                self.undone(format!("{field}: {pod} leads, and accepts writes, instead: {why}"))
            }
            Outcome::Open(over) => {
                let said: Vec<&str> = heard.iter().map(String::as_str).collect();
                let said = if said.is_empty() { String::new() } else { format!("; {}", said.join("; ")) };
                let cure = match wish.kind {
                    Kind::Switchover => format!("pgset status {place} says how the master does"),
                    Kind::Failover { accepts_loss: false } => format!(
                        "pgset status {place} says what is waited for; to give up for good what one member lacks: pgset failover {place} \
                         --to POD --accept-loss"
                    ),
                    Kind::Failover { accepts_loss: true } => format!("pgset status {place} says how that member does"),
                };
                self.undone(format!("{field} is not followed {over}, and was taken back{said}; {cure}"))
            }
        }
    }

    /// All other members follow, or it is told what is waited for, if somebody wants to know.
    async fn wait_for_others(&self, master: &str) -> Result<Result<(), Undone>, Error> {
        if !self.is_to_wait {
            return Ok(Ok(()));
        }
        let mut looker = Looker::new(self.cluster, self.scope(), true);
        let started = Instant::now();
        loop {
            let views: Vec<View> = looker.look().await?.iter().map(View::of).collect();
            if views.iter().all(|view| view.health() == Health::Healthy) {
                say(&format!("all members follow {master}"));
                return Ok(Ok(()));
            }
            if started.elapsed() >= self.limit {
                let waits: Vec<String> =
                    views.iter().flat_map(|view| &view.waits).map(|wait| wait.says.clone()).collect();
                let why = format!("{master} leads; not all others follow it yet: {}", waits.join("; "));
                return Ok(self.undone(format!("{why}; pgset status {} --watch", self.place())));
            }
            sleep(LISTEN_EVERY).await;
        }
    }
}

/// An order that is waited for.
struct Watch<'a> {
    errand: &'a Errand<'a>,
    course: Course,
    text: String,
    since: Instant,
    /// What members said of it.
    heard: BTreeSet<String>,
    may_listen: bool,
}

// === impl Watch ===

impl<'a> Watch<'a> {
    fn new(errand: &'a Errand<'a>, course: Course, order: &Order) -> Self {
        let text = order.text.clone();
        Self { errand, course, text, since: Instant::now(), heard: BTreeSet::new(), may_listen: true }
    }

    async fn wait(&mut self, limit: Duration) -> Result<Outcome, Error> {
        let mut interrupted = std::pin::pin!(ctrl_c());
        let mut listened = Instant::now();
        loop {
            if let Some(end) = self.look().await? {
                return Ok(Outcome::Ended(end));
            }
            if self.since.elapsed() >= limit {
                return Ok(Outcome::Open("in time"));
            }
            if listened.elapsed() >= LISTEN_EVERY {
                self.listen().await;
                listened = Instant::now();
            }
            tokio::select! {
                _ = &mut interrupted => return Ok(Outcome::Open("yet")),
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn last_look(&mut self, open: Outcome) -> Result<Outcome, Error> {
        sleep(LAST_LOOK_AFTER).await;
        Ok(self.look().await?.map_or(open, Outcome::Ended))
    }

    async fn look(&mut self) -> Result<Option<End>, Error> {
        let Some(look) = self.errand.look().await? else { return Ok(None) };
        let (says, end) = self.course.see(&look, self.since.elapsed());
        if let Some(words) = says {
            say(&words);
        }
        Ok(end)
    }

    /// Members that do not lead can't write the Lease: they say by an Event what they wait for.
    async fn listen(&mut self) {
        if !self.may_listen {
            return;
        }
        let Errand { cluster, namespace, name, .. } = self.errand;
        let selector = format!("regarding.kind=StatefulSet,regarding.name={name},reason={}", names::ORDER_REFUSED);
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events?fieldSelector={selector}");
        match cluster.list(&path).await {
            Ok(events) => {
                let about = |event: &&Value| text(event, "/note").contains(&format!("{:?}", self.text));
                let notes: Vec<String> = events.iter().filter(about).map(|event| plain(text(event, "/note"))).collect();
                for note in notes {
                    if self.heard.insert(note.clone()) {
                        say(&note);
                    }
                }
            }
            Err(why) => {
                self.may_listen = false;
                eprintln!(
                    "pgset: what members say of the order can't be read, which takes the right to list events.events.k8s.io: {why}"
                );
            }
        }
    }
}

/// Whoever reads no more has not called the order off.
fn say(words: &str) {
    let _ = writeln!(std::io::stdout(), "{words}");
}
