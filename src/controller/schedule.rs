//! Which set is looked at next: a namespace after the other, so that what happens in one never keeps the others waiting.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use tokio::time::Instant;

use super::cache::labels::Place;

/// How many sets are looked at at once. Each may have four requests under way, and a connection for each takes memory.
const CONCURRENCY: usize = 8;
/// How many of one namespace: a quota or a webhook that is slow there leaves room for the others.
const PER_NAMESPACE: usize = 6;

/// What waits and what is under way in one namespace.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Place>,
    under_way: Vec<Place>,
    /// What something happened to while it was looked at.
    again: Vec<Place>,
    /// Whether its turn comes.
    queued: bool,
}

impl Lane {
    fn may_begin(&self) -> bool {
        !self.waiting.is_empty() && self.under_way.len() < PER_NAMESPACE
    }
}

/// All sets that are to be looked at, now or later.
#[derive(Default)]
pub struct Schedule {
    lanes: HashMap<Box<str>, Lane>,
    turns: VecDeque<Box<str>>,
    /// When sets are looked at though nothing has happened.
    later: BTreeSet<(Instant, Place)>,
    planned: HashMap<Place, Instant>,
    waiting: HashSet<Place>,
    under_way: usize,
}

impl Schedule {
    /// Has a set looked at as soon as its turn comes.
    pub fn ask(&mut self, place: &Place) {
        self.unplan(place);
        let lane = self.lanes.entry(namespace(place).into()).or_default();
        if lane.under_way.contains(place) {
            if !lane.again.contains(place) {
                lane.again.push(Place::clone(place));
            }
        } else if self.waiting.insert(Place::clone(place)) {
            lane.waiting.push_back(Place::clone(place));
        }
        self.queue(namespace(place));
    }

    /// Has a set looked at in a while, if nothing happens to it before.
    fn plan(&mut self, place: &Place, at: Instant) {
        if self.waiting.contains(place) {
            return;
        }
        self.unplan(place);
        self.planned.insert(Place::clone(place), at);
        self.later.insert((at, Place::clone(place)));
    }

    fn unplan(&mut self, place: &Place) {
        if let Some(at) = self.planned.remove(place) {
            self.later.remove(&(at, Place::clone(place)));
        }
    }

    /// Takes over those whose time has come; answers when the next one's does.
    fn due(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, place)) = self.later.first().cloned() {
            if at > now {
                return Some(at);
            }
            self.ask(&place);
        }
        None
    }

    /// The next set to be looked at, if there is room.
    fn begin(&mut self) -> Option<Place> {
        if self.under_way >= CONCURRENCY {
            return None;
        }
        let turn = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&turn)?;
        lane.queued = false;
        let place = lane.waiting.pop_front()?;
        lane.under_way.push(Place::clone(&place));
        self.waiting.remove(&place);
        self.under_way += 1;
        self.queue(&turn);
        Some(place)
    }

    /// A set was looked at; again in a while, if that is said.
    fn end(&mut self, place: &Place, again_at: Option<Instant>) {
        let Some(lane) = self.lanes.get_mut(namespace(place)) else { return };
        lane.under_way.retain(|other| other != place);
        let again = lane.again.iter().position(|other| other == place).map(|at| lane.again.swap_remove(at));
        self.under_way = self.under_way.saturating_sub(1);
        match (again, again_at) {
            (Some(place), _) => self.ask(&place),
            (None, Some(at)) => self.plan(place, at),
            (None, None) => {}
        }
        self.queue(namespace(place));
    }

    /// Queues a namespace for its turn, or forgets it.
    fn queue(&mut self, namespace: &str) {
        let Some(lane) = self.lanes.get_mut(namespace) else { return };
        if lane.may_begin() && !lane.queued {
            lane.queued = true;
            self.turns.push_back(namespace.into());
        } else if lane.waiting.is_empty() && lane.under_way.is_empty() {
            self.lanes.remove(namespace);
        }
    }
}

fn namespace(place: &Place) -> &str {
    place.split_once('/').map_or("", |(namespace, _)| namespace)
}

/// Looks at what the queue says, and again when a look asks for it, until the queue ends.
pub async fn run<L>(queue: impl Stream<Item = Place>, look: impl Fn(Place) -> L)
where
    L: Future<Output = Option<Duration>>,
{
    let mut queue = std::pin::pin!(queue);
    let mut schedule = Schedule::default();
    let mut looks = FuturesUnordered::new();
    loop {
        let next = schedule.due(Instant::now());
        while let Some(place) = schedule.begin() {
            let looked = look(Place::clone(&place));
            looks.push(async move { (place, looked.await) });
        }
        // Every arm is cancel-safe: neither a channel's nor a set of futures' `next` loses anything.
        tokio::select! {
            asked = queue.next() => match asked {
                Some(place) => schedule.ask(&place),
                None => return,
            },
            Some((place, again_in)) = looks.next() => {
                schedule.end(&place, again_in.map(|pause| Instant::now() + pause));
            }
            () = at(next) => {}
        }
    }
}

/// Waits until then; for ever if there is no such time.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::labels::place;
    use super::*;

    fn names(schedule: &mut Schedule) -> Vec<String> {
        std::iter::from_fn(|| schedule.begin()).map(|place| place.to_string()).collect()
    }

    #[test]
    fn a_flood_in_one_namespace_keeps_nobody_elses_set_waiting() {
        let mut schedule = Schedule::default();
        (0..1000).for_each(|number| schedule.ask(&place("flood", &number.to_string())));
        let busy = names(&mut schedule);
        assert_eq!(busy.len(), PER_NAMESPACE);
        schedule.ask(&place("shop", "db"));
        assert_eq!(names(&mut schedule), ["shop/db"], "there is room for it at once");
    }

    #[test]
    fn namespaces_take_turns() {
        let mut schedule = Schedule::default();
        for namespace in ["a", "b", "c"] {
            (0..4).for_each(|number| schedule.ask(&place(namespace, &number.to_string())));
        }
        assert_eq!(names(&mut schedule), ["a/0", "b/0", "c/0", "a/1", "b/1", "c/1", "a/2", "b/2"]);
        schedule.end(&place("a", "0"), None);
        assert_eq!(names(&mut schedule), ["c/2"]);
    }

    #[test]
    fn a_set_is_looked_at_by_one_at_a_time_and_once_more_after_whatever_happened_meanwhile() {
        let mut schedule = Schedule::default();
        let db = place("shop", "db");
        (0..3).for_each(|_| schedule.ask(&db));
        assert_eq!(names(&mut schedule), ["shop/db"]);
        (0..3).for_each(|_| schedule.ask(&db));
        assert_eq!(names(&mut schedule), [""; 0]);
        schedule.end(&db, Some(Instant::now()));
        assert_eq!(names(&mut schedule), ["shop/db"]);
        schedule.end(&db, None);
        assert_eq!(names(&mut schedule), [""; 0]);
    }

    #[test]
    fn a_set_is_looked_at_again_when_its_time_has_come_and_then_nothing_is_kept_of_it() {
        let mut schedule = Schedule::default();
        let (db, now) = (place("shop", "db"), Instant::now());
        schedule.ask(&db);
        assert_eq!(schedule.begin(), Some(Place::clone(&db)));
        let then = now + Duration::from_secs(600);
        schedule.end(&db, Some(then));
        assert_eq!((schedule.due(now), schedule.begin()), (Some(then), None));
        assert_eq!(schedule.due(then), None);
        assert_eq!(schedule.begin(), Some(Place::clone(&db)));
        schedule.end(&db, None);
        assert!(schedule.lanes.is_empty() && schedule.planned.is_empty() && schedule.waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn looks_that_hang_in_one_namespace_hold_up_no_other() {
        let (mut sender, queue) = futures::channel::mpsc::channel(64);
        for number in 0..50 {
            sender.try_send(place("slow", &number.to_string())).unwrap();
        }
        sender.try_send(place("shop", "db")).unwrap();
        let (seen, mut looked) = tokio::sync::mpsc::unbounded_channel();
        let look = |place: Place| {
            let seen = seen.clone();
            async move {
                if place.starts_with("slow/") {
                    std::future::pending::<()>().await;
                }
                seen.send(place).unwrap();
                None
            }
        };
        tokio::select! {
            () = run(queue, look) => panic!("the queue is open"),
            place = tokio::time::timeout(Duration::from_secs(1), looked.recv()) => {
                assert_eq!(place.unwrap().as_deref(), Some("shop/db"));
            }
        }
    }
}
