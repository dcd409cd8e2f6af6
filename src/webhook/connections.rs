//! Who is connected to a port, and who gives way when there are too many: nobody can fill the places, nor hold what he doesn't use.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;

/// How long a connection in the middle of a request may move no byte before it may have to give way. A review waits for nothing but
/// its own body and, if it is a large one, its turn: without a flood it is answered within milliseconds.
const STALLED: Duration = Duration::from_secs(1);

/// How many connections there are at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub most: usize,
    /// From one address.
    pub of_one_peer: usize,
}

impl Limits {
    /// Of the webhook, each with its TLS done. An API server keeps one open for each review that it sends at the same time. In a
    /// managed cluster all API servers may come through one address, so one has half. 40 kB each: 40 MB.
    pub const REVIEWS: Self = Self { most: 1024, of_one_peer: 512 };
    /// Of TLS handshakes under way. An API server's cold start brings as many at once as it handles mutating requests (200 unless
    /// told otherwise); each is done in milliseconds. 15 kB each, and 60 kB with a hello that never ends: 30 MB.
    pub const HANDSHAKES: Self = Self { most: 512, of_one_peer: 256 };
    /// Of a port for probes or metrics: the kubelet, Prometheus and a person need a handful. They cost next to nothing.
    pub const PLAIN: Self = Self { most: 64, of_one_peer: 16 };
    /// Of an agent's port, to which each other member of the largest set keeps a connection. With hostNetwork, the members on a node have one
    /// address. 30 kB each at worst: 8 MB.
    pub const MEMBERS: Self = Self { most: 256, of_one_peer: 32 };
}

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to find a place: whoever could give way is in the middle of a request")]
pub(super) struct Full;

impl From<Full> for io::Error {
    fn from(full: Full) -> Self {
        Self::other(full)
    }
}

/// The places of a port. They are locked where a connection comes or goes, never while it works.
#[derive(Clone, Debug)]
pub(super) struct Connections(Arc<Table>);

#[derive(Debug)]
struct Table {
    limits: Limits,
    since: Instant,
    peers: Mutex<HashMap<IpAddr, Vec<Arc<Connection>>>>,
}

/// What is known of a connection.
#[derive(Debug)]
struct Connection {
    peer: IpAddr,
    /// When it last moved bytes, in microseconds of [`Table::since`].
    moved: AtomicU64,
    /// From the header of a request to the first byte of its answer.
    in_request: AtomicBool,
    gives_way: AtomicBool,
    waker: AtomicWaker,
}

/// A connection's place, for as long as this lives.
#[derive(Debug)]
pub(super) struct Place {
    connection: Arc<Connection>,
    connections: Connections,
}

/// Marks that a request of the connection is being answered.
#[derive(Clone, Debug)]
pub(super) struct Requests(Arc<Connection>);

/// Who gives way first: who is in no request, then who comes from the address with the most, then who moved nothing for longest.
/// By the address before the time, or else a peer that lets single bytes drip would outlast one that has nothing to say.
type Order = (bool, std::cmp::Reverse<usize>, u64);

// === impl Connections ===

impl Connections {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Table { limits, since: Instant::now(), peers: Mutex::default() }))
    }

    /// Lets a connection in. Where there is no place left, in all or for its peer, another one gives way.
    pub(super) fn admit(&self, peer: IpAddr) -> Result<Place, Full> {
        // A socket for IPv6 and IPv4 tells an IPv4 address as one of IPv6.
        let peer = peer.to_canonical();
        let connection = Arc::new(Connection {
            peer,
            moved: AtomicU64::new(self.now()),
            in_request: AtomicBool::new(false),
            gives_way: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        let mut peers = self.peers();
        let of_peer = peers.get(&peer).map_or(0, Vec::len);
        let give_way = if of_peer >= self.0.limits.of_one_peer {
            Some(self.first_to_go(peers.get(&peer), of_peer))
        } else if peers.values().map(Vec::len).sum::<usize>() >= self.0.limits.most {
            Some(self.first_to_go(peers.values(), of_peer))
        } else {
            None
        };
        if let Some(found) = give_way {
            let found = found.ok_or(Full)?;
            remove(&mut peers, &found);
            found.give_way();
        }
        peers.entry(peer).or_default().push(connection.clone());
        drop(peers);
        Ok(Place { connection, connections: self.clone() })
    }

    /// Of those that may have to give way to a peer that has so many. In the middle of a request it is who has stalled, or whose peer
    /// has more than its share even then: or else two peers could hold all places by bodies that drip.
    fn first_to_go<'a>(
        &self,
        of: impl IntoIterator<Item = &'a Vec<Arc<Connection>>>,
        of_peer: usize,
    ) -> Option<Arc<Connection>> {
        let stalled = self.now().saturating_sub(microseconds(STALLED));
        of.into_iter()
            .flat_map(|all| all.iter().map(|connection| (connection, connection.order(all.len()))))
            .filter(|(_, (in_request, of_its_peer, moved))| {
                !in_request || *moved <= stalled || of_its_peer.0 > of_peer + 1
            })
            .min_by_key(|(_, order)| *order)
            .map(|(connection, _)| connection.clone())
    }

    fn now(&self) -> u64 {
        microseconds(self.0.since.elapsed())
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<IpAddr, Vec<Arc<Connection>>>> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Removes a connection if it is still there.
fn remove(peers: &mut HashMap<IpAddr, Vec<Arc<Connection>>>, connection: &Arc<Connection>) {
    let Some(of_peer) = peers.get_mut(&connection.peer) else { return };
    if let Some(index) = of_peer.iter().position(|other| Arc::ptr_eq(other, connection)) {
        of_peer.swap_remove(index);
    }
    if of_peer.is_empty() {
        peers.remove(&connection.peer);
    }
}

// === impl Connection ===

impl Connection {
    fn order(&self, of_its_peer: usize) -> Order {
        let (in_request, moved) = (self.in_request.load(Ordering::Relaxed), self.moved.load(Ordering::Relaxed));
        (in_request, std::cmp::Reverse(of_its_peer), moved)
    }

    /// Its task finds it out at its next read or write, and is woken for it.
    fn give_way(&self) {
        self.gives_way.store(true, Ordering::Release);
        self.waker.wake();
    }
}

// === impl Place ===

impl Place {
    /// What marks the requests of this connection.
    pub(super) fn requests(&self) -> Requests {
        Requests(self.connection.clone())
    }

    /// Bytes are about to be written: whatever was asked is being answered.
    pub(super) fn answers(&self) {
        self.connection.in_request.store(false, Ordering::Relaxed);
    }

    /// Notes a read or write, and breaks it off if the connection has to give way.
    pub(super) fn note<T>(&self, context: &Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_pending() {
            self.connection.waker.register(context.waker());
        } else {
            self.connection.moved.store(self.connections.now(), Ordering::Relaxed);
        }
        // After the waker is there: whoever orders it later wakes it.
        if self.connection.gives_way.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::Error::other("the connection gives way to another one")));
        }
        outcome
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&mut self.connections.peers(), &self.connection);
    }
}

// === impl Requests ===

impl Requests {
    /// The header of a request is read.
    pub(super) fn begun(&self) {
        self.0.in_request.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
