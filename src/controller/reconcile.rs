//! One look at one set: read what is known, plan, do it, tell it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::Client;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::cache::labels::Place;
use super::cache::set::{CachedSet, SetState};
use super::event::{Reason, SetEvent};
use super::plan::{self, Observed, Plan, Step};
use super::requests::{Error, Requests};
use super::route;
use super::state::{ReconcileState, SecretTrigger, jitter};
use super::watches::Stores;
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

/// What every look needs.
pub struct Context {
    /// The client.
    pub client: Client,
    /// The cluster as last seen.
    pub stores: Stores,
    /// Who reports Events.
    pub identity: String,
    /// What is remembered of each set, beside its UID.
    pub states: Mutex<HashMap<Place, (String, ReconcileState)>>,
}

/// Looks at one set; answers when to look again though nothing has changed. Errors end here: they are logged, told to the user
/// where he can do something, and tried again later.
pub async fn reconcile(place: Place, context: &Context) -> Option<Duration> {
    let known = context.lock().remove(&place);
    let (namespace, name) = place.split_once('/')?;
    let set = context.stores.set(namespace, name)?;
    // What belongs to a set that goes away goes with it.
    if set.uid.is_empty() || matches!(set.state, SetState::Other | SetState::Leaving) {
        return None;
    }
    // The schedule never has one set looked at twice at a time.
    let mut state = known.filter(|(uid, _)| *uid == set.uid).map(|(_, state)| state).unwrap_or_default();
    let owner = Owner { namespace: namespace.to_owned(), name: name.to_owned(), uid: set.uid.clone() };
    let requests = Requests { client: &context.client, owner: &owner, identity: &context.identity };
    let pause = match state.backoff_remaining(Instant::now()) {
        Some(rest) => rest,
        None => match look(&set, &requests, &context.stores, &mut state).await {
            Ok(again_in) => {
                state.succeeded();
                jitter(&owner.uid, again_in)
            }
            Err(error) => failed(&owner, &error, &mut state),
        },
    };
    state.shrink(Instant::now());
    context.lock().insert(place, (owner.uid, state));
    Some(pause)
}

/// Logs an error; answers how long to wait.
fn failed(owner: &Owner, error: &Error, state: &mut ReconcileState) -> Duration {
    let Owner { namespace, name: set, .. } = owner;
    if error.is_namespace_terminating() {
        debug!(namespace, set, %error, "the set goes with its namespace");
        return state.namespace_terminating(Instant::now());
    }
    let (pause, code) = (state.failed(), error.code());
    if code == "conflict" {
        // Somebody changed it at the same moment; the change is on its way to us.
        debug!(namespace, set, %error, again_in = ?pause, "changed by somebody else");
    } else {
        warn!(namespace, set, code, %error, again_in = ?pause, "failed to look after the set");
    }
    pause
}

/// Looks at a set that is there and annotated; answers when to look again though nothing has changed.
async fn look(
    cached: &CachedSet,
    requests: &Requests<'_>,
    stores: &Stores,
    state: &mut ReconcileState,
) -> Result<Duration, Error> {
    let in_the_way = match &cached.state {
        SetState::Injected(set) => return look_after(set, cached.generation, requests, stores, state).await,
        SetState::NotInjected(set) => Some(plan::not_injected(set)),
        SetState::Invalid(reason) => Some(SetEvent::new(Reason::InvalidSet, reason.as_str())),
        SetState::Other | SetState::Leaving => None,
    };
    publish(requests, state, in_the_way.as_slice()).await;
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
    let mut observed = observe(requests, stores, state, set).await?;
    let (mut plan, again_in) = decide(set, requests.owner, &mut observed, state)?;
    let events = std::mem::take(&mut plan.events);
    let mut outcome = Outcome::default();
    // First the Secret: as soon as the account is there, pods start.
    make_secret(set, generation, &observed, requests, state, &mut outcome).await?;
    execute(requests, &plan, &mut outcome).await;
    let pause = report(set, events, &mut outcome, requests, state).await;
    outcome.failure.map_or(Ok(again_in.into_iter().fold(pause, Duration::min)), Err)
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

/// What is to be done about a set now, and how soon to look again at what has to last a while before anything is done about it.
fn decide(
    set: &Set,
    owner: &Owner,
    observed: &mut Observed,
    state: &mut ReconcileState,
) -> Result<(Plan, Option<Duration>), Error> {
    let now = Instant::now();
    let is_unreachable = route::is_unreachable(set, observed);
    let unreachable_for = state.is_unreachable(is_unreachable, now);
    observed.by_label = is_unreachable && unreachable_for.is_none();
    let members = plan::role_members(set, &observed.members);
    let route = route::route(set, owner, observed);
    let grants = Grants { members: &members, lease: plan::may_grant_lease(owner, observed), route };
    let mut plan = plan::plan(set, owner, children::desired(set, owner, &grants)?, observed);
    leave_contested(&mut plan, state, now);
    let doubted_for = leave_doubted(&mut plan, state, now);
    Ok((plan, [doubted_for, unreachable_for].into_iter().flatten().min()))
}

/// Takes those steps out of a plan that somebody else keeps undoing, and says so.
fn leave_contested(plan: &mut Plan, state: &mut ReconcileState, now: Instant) {
    let contested: Vec<_> = plan.steps().filter_map(contestable).map(|(place, _)| place).collect();
    state.wrong(&contested);
    let mut events = Vec::new();
    plan.retain(|step| {
        let Some((place, wanted)) = contestable(step) else { return true };
        let may_restore = state.may_restore(&place, &wanted, now);
        if !may_restore {
            let (kind, name) = place;
            let note = format!(
                "somebody keeps changing {kind} {name} back; pgset lets it be until it is right again or something else is wanted. \
                 Take it out of what deploys it, then delete it, and pgset makes its own"
            );
            events.push(SetEvent::new(Reason::Contended, note));
        }
        may_restore
    });
    plan.events.append(&mut events);
}

/// Takes the step out of a plan that closes an endpoint which has not been in doubt for long; answers for how long it still has to be.
fn leave_doubted(plan: &mut Plan, state: &mut ReconcileState, now: Instant) -> Option<Duration> {
    let doubt = plan.steps().find_map(|step| if let Step::Close(doubt) = step { Some(doubt) } else { None });
    let rest = state.doubts(doubt, now)?;
    plan.retain(|step| !matches!(step, Step::Close(_)));
    Some(rest)
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

/// What became of a plan.
#[derive(Default)]
struct Outcome<'a> {
    /// The Secret, if it was made.
    secret: Option<String>,
    done: Vec<&'a Step>,
    /// What is to be told besides.
    events: Vec<SetEvent>,
    /// The first error.
    failure: Option<Error>,
}

/// Makes the Secret if a pod may need it. One that the user names is his to make.
async fn make_secret(
    set: &Set,
    generation: Option<i64>,
    observed: &Observed,
    requests: &Requests<'_>,
    state: &mut ReconcileState,
    outcome: &mut Outcome<'_>,
) -> Result<(), Error> {
    let trigger = SecretTrigger::new(generation, observed.members.iter().map(|member| member.uid.as_str()));
    if !credentials::is_made(set) || !state.wants_secret(trigger, Instant::now()) {
        return Ok(());
    }
    match requests.create_secret(&set.credentials).await {
        Ok(made) => {
            let was_known = state.has_secret(trigger, &requests.owner.uid, Instant::now());
            outcome.secret = made.then(|| set.credentials.clone());
            if made && (was_known || has_leader(observed, set)) {
                outcome.events.push(credentials_replaced(set));
            }
        }
        // Refused for good, it keeps nobody from the rest: a member that lacks it says so.
        Err(error) => match error.refusal() {
            Some(why) => state.secret_refused(SetEvent::new(Reason::Refused, why), Instant::now()),
            None => return Err(error),
        },
    }
    Ok(())
}

/// Takes the steps of a plan, those of one stage together. The Role is given away only if this look did not fail to make it what it has
/// to be.
async fn execute<'a>(requests: &Requests<'_>, plan: &'a Plan, outcome: &mut Outcome<'a>) {
    for stage in [&plan.objects, &plan.grants] {
        let work: Vec<_> = stage.iter().map(|step| requests.take(step)).collect();
        let results: Vec<_> = futures::stream::iter(work).buffered(PARALLEL).collect().await;
        let mut is_role_right = true;
        for (step, result) in stage.iter().zip(results) {
            match result {
                Ok(()) => outcome.done.push(step),
                Err(error) => {
                    is_role_right &= step.kind() != Some(Kind::Role);
                    outcome.events.extend(error.refusal().map(|refusal| SetEvent::new(Reason::Refused, refusal)));
                    outcome.failure.get_or_insert(error);
                }
            }
        }
        if !is_role_right {
            return;
        }
    }
}

/// Tells what was done and what stands in the way; answers when to look again though nothing has changed.
async fn report(
    set: &Set,
    mut events: Vec<SetEvent>,
    outcome: &mut Outcome<'_>,
    requests: &Requests<'_>,
    state: &mut ReconcileState,
) -> Duration {
    events.append(&mut outcome.events);
    let refusal = state.refusal(Instant::now()).map(|(why, rest)| (why.clone(), rest));
    events.extend(refusal.iter().map(|(why, _)| why.clone()));
    events.extend(summarize(outcome, set));
    publish(requests, state, &events).await;
    let is_in_the_way = events.iter().any(|event| event.reason == Reason::NameTaken);
    let pause = if is_in_the_way { RESYNC_IN_THE_WAY } else { RESYNC };
    refusal.map_or(pause, |(_, rest)| rest.min(pause))
}

/// What was done, one Event for each kind of action.
fn summarize(outcome: &Outcome<'_>, set: &Set) -> Vec<SetEvent> {
    let mut done: BTreeMap<Reason, Vec<String>> = BTreeMap::new();
    let mut note = |reason, object| done.entry(reason).or_default().push(object);
    if let Some(secret) = &outcome.secret {
        note(Reason::Created, format!("Secret {secret}"));
    }
    for step in &outcome.done {
        match step {
            Step::Create(child) => note(Reason::Created, format!("{} {}", child.kind, child.name)),
            Step::Restore { child, .. } => note(Reason::Restored, format!("{} {}", child.kind, child.name)),
            Step::Remove { kind, name, .. } => note(Reason::Removed, format!("{kind} {name}")),
            Step::Label { member, key, value } => {
                note(Reason::RoleLabelled, format!("{} ({key}={value})", member.name));
            }
            Step::Follow { service, key, value } => {
                note(Reason::ServiceFollows, format!("{} ({key}={value})", service.name));
            }
            // It says so itself, if it was done.
            Step::Close(_) => {}
        }
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
    done.into_iter().map(sentence).collect()
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
    let Owner { namespace, name: set, .. } = requests.owner;
    for event in state.news(events, Instant::now()) {
        info!(namespace, set, reason = event.reason.as_str(), note = event.note, "event");
        if let Err(error) = requests.publish(&event).await
            && !error.is_namespace_terminating()
        {
            warn!(namespace, set, code = error.code(), %error, "failed to write an Event");
        }
    }
}

impl Context {
    fn lock(&self) -> MutexGuard<'_, HashMap<Place, (String, ReconcileState)>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Objects that came as JSON become JSON again.
fn value(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}
