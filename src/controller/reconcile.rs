//! One look at one set: read what is known, plan, do it, publish it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::{Client, ResourceExt};
use serde_json::Value;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::event::{Reason, SetEvent};
use super::plan::{self, Observed, Plan, Step};
use super::requests::{Error, Requests};
use super::route;
use super::state::{ReconcileState, SecretTrigger, jitter};
use super::view::{SetState, View};
use super::watches::Stores;
use super::words::Place;
use crate::children::compare::{Ownership, ownership};
use crate::children::{self, Grants, Kind, Owner, credentials, leader};
use crate::names;
use crate::set::Set;

/// How often a set is looked at though nothing has changed: for what is not watched, and against a missed event.
const RESYNC: Duration = Duration::from_secs(10 * 60);
/// How often where somebody else's object is in the way: when that goes, no event says so.
const RESYNC_IN_THE_WAY: Duration = Duration::from_secs(60);
/// How many requests for one set are under way at once.
const PARALLEL: usize = 4;
/// From how many remembered sets on the forgotten ones are looked for.
const FORGET_FROM: usize = 64;

/// What every look needs.
pub struct Context {
    /// The client.
    pub client: Client,
    /// The cluster as last seen.
    pub stores: Stores,
    /// Who reports Events.
    pub identity: String,
    /// What is remembered, by the sets' UIDs.
    pub states: Mutex<HashMap<String, ReconcileState>>,
}

/// Looks at one set; answers when to look again though nothing has changed. Errors end here: they are logged, told to the user
/// where he can do something, and tried again later.
pub async fn reconcile(place: Place, context: &Context) -> Option<Duration> {
    let view = context.stores.set(&place)?;
    let uid = view.uid();
    let means = view.means();
    // What belongs to a set that goes away goes with it.
    if uid.is_empty() || matches!(means, SetState::Other | SetState::Leaving) {
        context.forget(uid);
        return None;
    }
    // The schedule never has one set looked at twice at a time.
    let mut state = context.remember(uid);
    let pause = match state.backoff_remaining(Instant::now()) {
        Some(rest) => rest,
        None => match look(&view, means, context, &mut state).await {
            Ok(again_in) => {
                state.succeeded();
                jitter(uid, again_in)
            }
            Err(error) => failed(&view, &error, &mut state),
        },
    };
    state.shrink(Instant::now());
    context.keep(uid, state);
    Some(pause)
}

/// Logs an error; answers how long to wait.
fn failed(view: &View, error: &Error, state: &mut ReconcileState) -> Duration {
    let (namespace, set, code) = (view.namespace().unwrap_or_default(), view.name_any(), error.code());
    if error.is_namespace_terminating() {
        debug!(namespace, set, %error, "the set goes with its namespace");
        return state.namespace_terminating(Instant::now());
    }
    let pause = state.failed();
    if code == "conflict" {
        // Somebody changed it at the same moment; the change is on its way to us.
        debug!(namespace, set, %error, again_in = ?pause, "changed by somebody else");
    } else {
        warn!(namespace, set, code, %error, again_in = ?pause, "failed to look after the set");
    }
    pause
}

/// Looks at a set that is there and annotated; answers when to look again though nothing has changed.
async fn look(view: &View, means: SetState, context: &Context, state: &mut ReconcileState) -> Result<Duration, Error> {
    let namespace = view.namespace().unwrap_or_default();
    let owner = Owner { namespace, name: view.name_any(), uid: view.uid().to_owned() };
    let requests = Requests { client: &context.client, owner: &owner, identity: &context.identity };
    let in_the_way = match means {
        SetState::Injected(set) => return look_after(&set, view.generation, &requests, &context.stores, state).await,
        SetState::NotInjected(set) => Some(plan::not_injected(&set)),
        SetState::Invalid(reason) => Some(SetEvent::new(Reason::InvalidSet, reason)),
        SetState::Other | SetState::Leaving => None,
    };
    publish(&requests, state, in_the_way.as_slice()).await;
    Ok(RESYNC)
}

/// Looks after a set that the webhook has done its work on.
async fn look_after(
    set: &Set,
    generation: Option<i64>,
    requests: &Requests<'_>,
    stores: &Stores,
    state: &mut ReconcileState,
) -> Result<Duration, Error> {
    let owner = requests.owner;
    let mut observed = observe(requests, stores, state, set).await?;
    let is_unreachable = route::is_unreachable(set, &observed);
    let unreachable_for = state.is_unreachable(is_unreachable, Instant::now());
    observed.by_label = is_unreachable && unreachable_for.is_none();
    let members = plan::role_members(set, &observed.members);
    let route = route::route(set, owner, &observed);
    let grants = Grants { members: &members, lease: plan::may_grant_lease(owner, &observed), route };
    let Plan { steps, mut events } = plan::plan(set, owner, children::desired(set, owner, &grants)?, &observed);
    let steps = uncontested(steps, state, &mut events);
    let (steps, doubted_for) = past_doubt(steps, state);

    let trigger = SecretTrigger::new(generation, observed.members.iter().map(|member| member.uid.as_str()));
    let mut created = Vec::new();
    // First the Secret: as soon as the account is there, pods start. One that the user names is his to make.
    if credentials::is_made(set) && state.wants_secret(trigger, Instant::now()) {
        match requests.create_secret(&set.credentials).await {
            Ok(made) => {
                let known = state.has_secret(trigger, &owner.uid, Instant::now());
                if made {
                    created.push(format!("Secret {}", set.credentials));
                }
                if made && (known || has_leader(&observed, set)) {
                    events.push(credentials_replaced(set));
                }
            }
            // Refused for good, it keeps nobody from the rest: a member that lacks it says so.
            Err(error) => match error.refusal() {
                Some(why) => state.secret_refused(SetEvent::new(Reason::Refused, why), Instant::now()),
                None => return Err(error),
            },
        }
    }
    let refusal = state.refusal(Instant::now()).map(|(why, rest)| (why.clone(), rest));
    events.extend(refusal.iter().map(|(why, _)| why.clone()));

    let mut done = Vec::new();
    let mut failure = None;
    for (step, outcome) in take_all(requests, &steps).await {
        match outcome {
            Ok(()) => done.push(step),
            Err(error) => {
                events.extend(error.refusal().map(|refusal| SetEvent::new(Reason::Refused, refusal)));
                failure = failure.or(Some(error));
            }
        }
    }
    events.extend(summarize(created, &done, set));
    publish(requests, state, &events).await;
    let is_in_the_way = events.iter().any(|event| event.reason == Reason::NameTaken);
    let pause = if is_in_the_way { RESYNC_IN_THE_WAY } else { RESYNC };
    let pause = [doubted_for, unreachable_for].into_iter().flatten().fold(pause, Duration::min);
    failure.map_or(Ok(refusal.map_or(pause, |(_, rest)| rest.min(pause))), Err)
}

/// Takes steps together, and last those that give the Role away: not at all if this look failed to make the Role what it has to be.
async fn take_all<'a>(requests: &Requests<'_>, steps: &'a [Step]) -> Vec<(&'a Step, Result<(), Error>)> {
    let (last, first): (Vec<_>, Vec<_>) = steps.iter().partition(|step| step.needs_role());
    let mut taken = take(requests, first).await;
    if !taken.iter().any(|(step, outcome)| step.kind() == Some(Kind::Role) && outcome.is_err()) {
        taken.extend(take(requests, last).await);
    }
    taken
}

/// Takes steps together, a few at a time.
async fn take<'a>(requests: &Requests<'_>, steps: Vec<&'a Step>) -> Vec<(&'a Step, Result<(), Error>)> {
    let work: Vec<_> = steps.iter().map(|step| requests.take(step)).collect();
    let outcomes: Vec<_> = futures::stream::iter(work).buffered(PARALLEL).collect().await;
    steps.into_iter().zip(outcomes).collect()
}

/// What stands under the names of the desired objects. What is not in a store is asked for once: it may be somebody else's.
async fn observe(
    requests: &Requests<'_>,
    stores: &Stores,
    state: &mut ReconcileState,
    set: &Set,
) -> Result<Observed, Error> {
    let now = Instant::now();
    let owner = requests.owner;
    let mut observed =
        Observed { members: stores.members(owner), slices: stores.other_slices(owner), ..Observed::default() };
    let mut unknown = Vec::new();
    let places = children::places(set);
    // What the set may have had, and what its user may have made for it, is only looked for among what is known.
    let others = [
        (Kind::PodDisruptionBudget, set.name.clone()),
        (Kind::Service, set.headless_service.clone()),
        (Kind::EndpointSlice, names::master(&set.name)),
    ];
    let others: Vec<_> = others.into_iter().filter(|place| !places.contains(place)).collect();
    for (place, is_desired) in
        places.into_iter().map(|place| (place, true)).chain(others.into_iter().map(|p| (p, false)))
    {
        if let Some(live) = stores.child(place.0, &owner.namespace, &place.1) {
            state.not_foreign(&place);
            observed.children.insert(place, live);
        } else if let Some(foreign) = state.foreign(&place, now) {
            observed.children.insert(place, foreign.clone());
        } else if is_desired {
            unknown.push(place);
        }
    }
    let questions: Vec<_> = unknown.iter().map(|(kind, name)| requests.get(*kind, name)).collect();
    let found: Vec<_> = futures::stream::iter(questions).buffered(PARALLEL).try_collect().await?;
    for (place, found) in unknown.into_iter().zip(found) {
        let Some(live) = found.as_ref().map(value) else { continue };
        // Services are all watched: one that is not in the store yet will be in a moment.
        if ownership(place.0, &live, owner) == Ownership::Foreign && place.0 != Kind::Service {
            state.found_foreign(place.clone(), live.clone(), now);
        }
        observed.children.insert(place, live);
    }
    observed.services = stores.foreign_services(set);
    Ok(observed)
}

/// The steps without those that somebody else keeps undoing.
fn uncontested(steps: Vec<Step>, state: &mut ReconcileState, events: &mut Vec<SetEvent>) -> Vec<Step> {
    let contested: Vec<_> = steps.iter().filter_map(contestable).map(|(place, _)| place).collect();
    state.wrong(&contested);
    let mut free = |step: &Step| {
        let Some((place, wanted)) = contestable(step) else { return true };
        let free = state.may_restore(&place, &wanted, Instant::now());
        if !free {
            let (kind, name) = place;
            let note = format!(
                "somebody keeps changing {kind} {name} back; pgset lets it be until it is right again or something else is wanted. \
                 Take it out of what deploys it, then delete it, and pgset makes its own"
            );
            events.push(SetEvent::new(Reason::Contended, note));
        }
        free
    };
    steps.into_iter().filter(|step| free(step)).collect()
}

/// The steps without one that closes an endpoint which has not been in doubt for long; and for how long it still has to be.
fn past_doubt(mut steps: Vec<Step>, state: &mut ReconcileState) -> (Vec<Step>, Option<Duration>) {
    let doubt = steps.iter().find_map(|step| if let Step::Close(doubt) = step { Some(doubt) } else { None });
    let rest = state.doubts(doubt, Instant::now());
    if rest.is_some() {
        steps.retain(|step| !matches!(step, Step::Close(_)));
    }
    (steps, rest)
}

/// What a step puts right that somebody else may want otherwise, and what it is to say.
fn contestable(step: &Step) -> Option<((Kind, String), Value)> {
    match step {
        Step::Restore { child, .. } => Some(((child.kind, child.name.clone()), child.body.clone())),
        Step::Follow { service, value, .. } => {
            Some(((Kind::Service, service.name.clone()), Value::from(value.as_str())))
        }
        Step::Create(_) | Step::Remove { .. } | Step::Label { .. } | Step::Close(_) => None,
    }
}

/// What was done, one Event for each kind of action.
fn summarize(mut created: Vec<String>, done: &[&Step], set: &Set) -> Vec<SetEvent> {
    let mut news: BTreeMap<Reason, Vec<String>> = BTreeMap::new();
    for step in done {
        match step {
            Step::Create(child) => created.push(format!("{} {}", child.kind, child.name)),
            Step::Restore { child, .. } => {
                news.entry(Reason::Restored).or_default().push(format!("{} {}", child.kind, child.name));
            }
            Step::Remove { kind, name, .. } => news.entry(Reason::Removed).or_default().push(format!("{kind} {name}")),
            Step::Label { member, key, value } => {
                news.entry(Reason::RoleLabelled).or_default().push(format!("{} ({key}={value})", member.name));
            }
            Step::Follow { service, key, value } => {
                news.entry(Reason::ServiceFollows).or_default().push(format!("{} ({key}={value})", service.name));
            }
            // It says so itself, if it was done.
            Step::Close(_) => {}
        }
    }
    if !created.is_empty() {
        news.insert(Reason::Created, created);
    }
    let sentence = |(reason, objects): (Reason, Vec<String>)| {
        let objects = objects.join(", ");
        let note = match reason {
            Reason::Restored => format!("Brought into line with set {}: {objects}", set.name),
            Reason::Removed => format!("No longer needed and removed: {objects}"),
            Reason::RoleLabelled => format!("Put the role on {objects}"),
            Reason::ServiceFollows => {
                format!("Put the role into the selector of Service {objects}, as its annotation asks")
            }
            _ => format!("Made {objects}"),
        };
        SetEvent::new(reason, note)
    };
    news.into_iter().map(sentence).collect()
}

fn credentials_replaced(set: &Set) -> SetEvent {
    SetEvent::new(
        Reason::CredentialsReplaced,
        format!(
            "Secret {0} was gone and was made anew with new passwords. The database still has the old ones: put the Secret \
             back from a copy if there is one; members take the new ones over as they restart",
            set.credentials
        ),
    )
}

/// Whether a member has ever held the set's Lease, also of an earlier set of this name: then there is a database, and its passwords are
/// those of the Secret.
fn has_leader(observed: &Observed, set: &Set) -> bool {
    let lease = observed.children.get(&(Kind::Lease, names::leader(&set.name)));
    let holder = lease.and_then(|lease| lease.pointer("/spec/holderIdentity")).and_then(Value::as_str);
    holder.is_some_and(|holder| !holder.is_empty()) || lease.is_some_and(leader::remembers_a_database)
}

/// Writes those Events that are news. One that can't be written is logged: the work itself is done.
async fn publish(requests: &Requests<'_>, state: &mut ReconcileState, events: &[SetEvent]) {
    let owner = requests.owner;
    for event in state.news(events, Instant::now()) {
        let reason = event.reason.as_str();
        info!(namespace = owner.namespace, set = owner.name, reason, note = event.note, "event");
        if let Err(error) = requests.publish(&event).await
            && !error.is_namespace_terminating()
        {
            warn!(namespace = owner.namespace, set = owner.name, code = error.code(), %error, "failed to write an Event");
        }
    }
}

impl Context {
    fn remember(&self, uid: &str) -> ReconcileState {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).remove(uid).unwrap_or_default()
    }

    fn forget(&self, uid: &str) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn keep(&self, uid: &str, state: ReconcileState) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.insert(uid.to_owned(), state);
        // Sets that were deleted outright are not looked at again.
        if states.len() > FORGET_FROM.max(2 * self.stores.sets.len()) {
            let sets = self.stores.sets.state();
            let there: HashSet<&str> = sets.iter().map(|set| set.uid()).collect();
            states.retain(|uid, _| there.contains(uid.as_str()));
        }
    }
}

/// Objects that came as JSON become JSON again.
fn value(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}
