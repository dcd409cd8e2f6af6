//! Tests of who is let in and who gives way.

use std::{net::Ipv6Addr, task::Waker};

use super::*;

const LIMITS: Limits = Limits { most: 4, of_one_peer: 3 };

fn peer(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

/// So many connections of a peer, the first of them idle for longest.
fn admitted(connections: &Connections, number: u8, count: u64) -> Vec<Place> {
    let admit = |order| {
        let place = connections.admit(peer(number)).unwrap();
        place.connection.moved.store(order, Ordering::Relaxed);
        place
    };
    (0..count).map(admit).collect()
}

/// The same, each in the middle of a request.
fn asking(connections: &Connections, number: u8, count: u64) -> Vec<Place> {
    let places = admitted(connections, number, count);
    for place in &places {
        place.requests().begun();
        place.connection.moved.store(connections.now(), Ordering::Relaxed);
    }
    places
}

/// Whether a connection is open: one that gives way is broken off at its next read or write.
fn is_open(place: &Place) -> bool {
    place.note::<()>(&Context::from_waker(Waker::noop()), Poll::Pending).is_pending()
}

fn open(places: &[Place]) -> Vec<bool> {
    places.iter().map(is_open).collect()
}

fn count(connections: &Connections) -> usize {
    connections.peers().values().map(Vec::len).sum()
}

#[test]
fn a_peer_beyond_its_share_loses_its_own_longest_idle_connection() {
    let connections = Connections::new(LIMITS);
    let other = admitted(&connections, 2, 1);
    let mut places = admitted(&connections, 1, 3);
    places[1].connection.moved.store(0, Ordering::Relaxed);
    places[0].connection.moved.store(7, Ordering::Relaxed);
    places.extend(admitted(&connections, 1, 1));
    assert_eq!((open(&places), open(&other)), (vec![true, false, true, true], vec![true]));
    assert_eq!(count(&connections), 4, "who gives way has no place any more");
}

#[test]
fn when_all_places_are_taken_the_peer_with_the_most_loses_its_longest_idle_connection() {
    let connections = Connections::new(LIMITS);
    let alone = admitted(&connections, 1, 1);
    let many = admitted(&connections, 2, 3);
    alone[0].connection.moved.store(0, Ordering::Relaxed);
    many[2].connection.moved.store(0, Ordering::Relaxed);
    many[0].connection.moved.store(9, Ordering::Relaxed);
    let new = admitted(&connections, 3, 1);
    assert_eq!((open(&alone), open(&many), open(&new)), (vec![true], vec![true, true, false], vec![true]));
}

#[test]
fn who_is_in_a_request_gives_way_to_nobody_before_it_has_stalled() {
    let connections = Connections::new(LIMITS);
    let one = asking(&connections, 1, 2);
    let (other, idle) = (asking(&connections, 2, 1), admitted(&connections, 2, 1));
    let new = asking(&connections, 2, 1);
    assert_eq!((open(&one), open(&other), open(&idle)), (vec![true; 2], vec![true], vec![false]), "the idle one first");
    assert_eq!(connections.admit(peer(1)).unwrap_err(), Full, "nobody can go");
    assert_eq!(connections.admit(peer(2)).unwrap_err(), Full);

    one[1].answers();
    let next = admitted(&connections, 2, 1);
    assert_eq!((open(&one), open(&next)), (vec![true, false], vec![true]), "who is answered is idle");
    assert_eq!(open(&new), [true]);
}

#[test]
fn two_peers_whose_requests_never_end_cannot_keep_a_third_one_out() {
    let connections = Connections::new(LIMITS);
    let (one, other) = (asking(&connections, 1, 2), asking(&connections, 2, 2));
    let new = asking(&connections, 3, 1);
    assert_eq!(open(&one).into_iter().chain(open(&other)).filter(|open| *open).count(), 3);
    let back = connections.admit(peer(2));
    assert!(open(&new)[0] && back.is_err(), "and they don't get it back");
}

#[test]
fn a_request_that_has_stalled_gives_way() {
    let connections = Connections(Arc::new(Table {
        limits: LIMITS,
        since: Instant::now().checked_sub(2 * STALLED).unwrap(),
        peers: Mutex::default(),
    }));
    let asking = admitted(&connections, 1, 3);
    for place in &asking {
        place.requests().begun();
    }
    asking[0].connection.moved.store(connections.now(), Ordering::Relaxed);
    let new = admitted(&connections, 1, 1);
    assert_eq!((open(&asking), open(&new)), (vec![true, false, true], vec![true]), "moved just now, and at 1 and 2");
}

#[test]
fn who_ends_frees_its_place() {
    let connections = Connections::new(LIMITS);
    for round in 0..10 {
        let places = admitted(&connections, round % 2, 3);
        assert_eq!(open(&places), [true; 3]);
    }
    assert_eq!(count(&connections), 0);
    assert!(connections.peers().is_empty(), "nothing is kept of who is gone");
}

#[test]
fn an_address_is_one_peer_however_the_socket_tells_it() {
    let connections = Connections::new(LIMITS);
    let mapped = IpAddr::from(Ipv6Addr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 1]));
    let first = connections.admit(mapped).unwrap();
    let others = admitted(&connections, 1, 3);
    assert_eq!((is_open(&first), open(&others)), (true, vec![false, true, true]));
}
