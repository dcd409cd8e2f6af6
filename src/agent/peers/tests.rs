use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, advance, sleep};
use tower::ServiceExt;

use super::key::Key;
use super::wire::{self, Question as Head};
use super::*;
use crate::agent::status::StatusHandle;
use crate::webhook::server::Bound;

const SOON: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Question {
    epoch: u64,
    padding: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    epoch: u64,
    asker: String,
}

type Questions = mpsc::Receiver<Asked<Question, Answer>>;
type Password = Arc<Mutex<String>>;

fn question(epoch: u64) -> Question {
    Question { epoch, padding: String::new() }
}

fn pod(ordinal: u32) -> HolderIdentity {
    HolderIdentity { pod: format!("pgset-{ordinal}"), uid: format!("uid-{ordinal}") }
}

fn member_with(password: &Password, ordinal: u32) -> Membership {
    let password = password.clone();
    Membership::new("default", "pgset", pod(ordinal), move || Some(password.lock().unwrap().clone()))
}

fn password(text: &str) -> Password {
    Arc::new(Mutex::new(text.to_owned()))
}

fn member(ordinal: u32) -> Membership {
    member_with(&password("secret"), ordinal)
}

fn client() -> Client {
    Client::new(member(0))
}

/// A loop that answers all that it is asked, and counts.
fn answering(set: Membership) -> (Router, Arc<AtomicUsize>) {
    let (inbox, mut asked): (_, Questions) = Inbox::new(set).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Some(Asked { from, question, answer }) = asked.recv().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = answer.send(Answer { epoch: question.epoch, asker: from.to_string() });
        }
    });
    (inbox.router(), count)
}

fn serve(router: Router) -> Peer {
    let port = Bound::new(0).unwrap();
    let address = SocketAddr::new([127, 0, 0, 1].into(), port.address().port());
    tokio::spawn(port.serve_members(router));
    Peer { pod: "pgset-1".to_owned(), address }
}

/// A wire that somebody sits on: he sees all bytes, and may change those that come back.
async fn wire_to(peer: &Peer, change: fn(&mut Vec<u8>)) -> (Peer, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tapped = Peer { address: listener.local_addr().unwrap(), ..peer.clone() };
    let (record, to) = (Arc::<Mutex<Vec<u8>>>::default(), peer.address);
    let seen = record.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (mut from_near, mut to_near) = near.into_split();
            let (mut from_far, mut to_far) = TcpStream::connect(to).await.unwrap().into_split();
            let record = record.clone();
            tokio::spawn(async move {
                let mut bytes = vec![0; 65536];
                while let Ok(count @ 1..) = from_near.read(&mut bytes).await {
                    record.lock().unwrap().extend_from_slice(&bytes[..count]);
                    to_far.write_all(&bytes[..count]).await.unwrap();
                }
            });
            tokio::spawn(async move {
                let mut bytes = vec![0; 65536];
                while let Ok(count @ 1..) = from_far.read(&mut bytes).await {
                    let mut piece = bytes[..count].to_vec();
                    change(&mut piece);
                    to_near.write_all(&piece).await.unwrap();
                }
            });
        }
    });
    (tapped, seen)
}

fn replace(bytes: &mut Vec<u8>, from: &str, to: &str) {
    let text = String::from_utf8(std::mem::take(bytes)).unwrap();
    *bytes = text.replace(from, to).into_bytes();
}

async fn call(router: &Router, request: Request<Body>) -> (StatusCode, HeaderMap, String) {
    let (head, body) = router.clone().oneshot(request).await.unwrap().into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

async fn challenge_of(router: &Router) -> String {
    let (_, headers, _) = call(router, Request::get(PATH).body(Body::empty()).unwrap()).await;
    wire::text(&headers, &wire::CHALLENGE).unwrap().to_owned()
}

fn newest(set: &Membership) -> Key {
    set.keys.good().remove(0)
}

/// What `set` sends when it asks `to`.
fn signed(set: &Membership, to: &str, challenge: &str, body: &str) -> Request<Body> {
    let head = Head::new(&set.me, to, challenge.to_owned(), body.as_bytes()).unwrap();
    post(&head.signed(set, &newest(set)).unwrap(), body)
}

fn post(head: &axum::http::HeaderValue, body: &str) -> Request<Body> {
    Request::post(PATH).header(wire::QUESTION, head).body(Body::from(body.to_owned())).unwrap()
}

const BODY: &str = r#"{"epoch":7,"padding":""}"#;

#[tokio::test]
async fn a_member_is_answered_and_told_who_asks() {
    let (router, count) = answering(member(1));
    let (peer, client) = (serve(router), client());
    for epoch in 1..=3 {
        let answer: Answer = client.ask(&peer, &question(epoch), SOON).await.unwrap();
        assert_eq!(answer, Answer { epoch, asker: "pgset-0/uid-0".to_owned() });
    }
    assert_eq!(count.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn on_a_kept_connection_a_question_is_one_request_and_a_challenge_is_fetched_once() {
    let (router, _) = answering(member(1));
    let (peer, seen) = wire_to(&serve(router), |_| {}).await;
    let client = client();
    for epoch in 1..=3 {
        client.ask::<_, Answer>(&peer, &question(epoch), SOON).await.unwrap();
    }
    let seen = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
    assert_eq!((seen.matches("GET /members").count(), seen.matches("POST /members").count()), (1, 3), "{seen}");
}

#[tokio::test]
async fn members_ask_each_other_over_ipv6() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else { return };
    let peer = Peer { pod: "pgset-1".to_owned(), address: listener.local_addr().unwrap() };
    let (router, _) = answering(member(1));
    tokio::spawn(async move { axum::serve(listener, router).await });
    client().ask::<_, Answer>(&peer, &question(1), SOON).await.unwrap();
}

#[tokio::test]
async fn a_member_that_came_anew_at_its_address_is_asked_over_a_new_connection() {
    let client = client();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer { pod: "pgset-1".to_owned(), address: listener.local_addr().unwrap() };
    let mut listener = Some(listener);
    for _ in 0..2 {
        let listener = match listener.take() {
            Some(first) => first,
            None => TcpListener::bind(peer.address).await.unwrap(),
        };
        let listener = listener.into_std().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let process = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let (router, _) = answering(member(1));
                tokio::spawn(async move { axum::serve(listener, router).await });
                stopped.await.unwrap();
            });
        });
        client.ask::<_, Answer>(&peer, &question(1), SOON).await.unwrap();
        stop.send(()).unwrap();
        tokio::task::spawn_blocking(|| process.join().unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn a_question_of_any_length_up_to_the_limit_is_answered_even_after_a_refusal() {
    let secret = password("one");
    let (router, _) = answering(member_with(&secret, 1));
    let (peer, client) = (serve(router), Client::new(member_with(&secret, 0)));
    let long = Question { epoch: 1, padding: "x".repeat(60 << 10) };
    client.ask::<_, Answer>(&peer, &long, SOON).await.unwrap();
    let too_long = Question { epoch: 1, padding: "x".repeat(BODY_LIMIT) };
    assert!(matches!(client.ask::<_, Answer>(&peer, &too_long, SOON).await, Err(Error::NotAsked(_))));
    let stranger = Client::new(member_with(&password("other"), 0));
    assert!(matches!(stranger.ask::<_, Answer>(&peer, &long, SOON).await, Err(Error::Refused)));
}

#[tokio::test]
async fn nobody_answers_where_nobody_is_and_nobody_waits_longer_than_he_wants_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer { pod: "pgset-1".to_owned(), address: listener.local_addr().unwrap() };
    let asked = Instant::now();
    let outcome = client().ask::<_, Answer>(&peer, &question(1), Duration::from_millis(100)).await;
    assert!(matches!(outcome, Err(Error::TimedOut)) && asked.elapsed() < Duration::from_secs(1), "{outcome:?}");
    drop(listener);
    let outcome = client().ask::<_, Answer>(&peer, &question(1), SOON).await;
    assert!(matches!(outcome, Err(Error::Unreachable(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_recorded_question_is_refused_and_nothing_is_told() {
    let (router, count) = answering(member(1));
    let peer = serve(router);
    let (tapped, seen) = wire_to(&peer, |_| {}).await;
    client().ask::<_, Answer>(&tapped, &question(1), SOON).await.unwrap();
    let seen = seen.lock().unwrap().clone();
    let mut again = TcpStream::connect(peer.address).await.unwrap();
    again.write_all(&seen).await.unwrap();
    again.shutdown().await.unwrap();
    let mut heard = String::new();
    again.read_to_string(&mut heard).await.unwrap();
    assert!(heard.contains("403 Forbidden") && !heard.contains("200 OK") && !heard.contains("epoch"), "{heard}");
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_question_is_taken_once_and_while_its_challenge_is_new() {
    let (router, count) = answering(member(1));
    let challenge = challenge_of(&router).await;
    assert_eq!(call(&router, signed(&member(0), "pgset-1", &challenge, BODY)).await.0, StatusCode::OK);
    assert_eq!(call(&router, signed(&member(0), "pgset-1", &challenge, BODY)).await.0, StatusCode::FORBIDDEN);
    let old = challenge_of(&router).await;
    advance(CHALLENGE_LIFE + Duration::from_millis(1)).await;
    assert_eq!(call(&router, signed(&member(0), "pgset-1", &old, BODY)).await.0, StatusCode::FORBIDDEN);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn who_is_not_of_this_set_or_asks_another_is_refused_and_told_nothing() {
    let (router, count) = answering(member(1));
    let of =
        |namespace, set, secret: &'static str| Membership::new(namespace, set, pod(0), move || Some(secret.to_owned()));
    for (stranger, to) in [
        (of("other", "pgset", "secret"), "pgset-1"),
        (of("default", "other", "secret"), "pgset-1"),
        (of("default", "pgset", "guessed"), "pgset-1"),
        (of("default", "pgset", "secret"), "pgset-2"),
        (of("default", "pgset", "secret"), "pgset-0"),
    ] {
        let challenge = challenge_of(&router).await;
        let (code, headers, text) = call(&router, signed(&stranger, to, &challenge, BODY)).await;
        assert_eq!((code, text.as_str()), (StatusCode::FORBIDDEN, ""), "{stranger:?} {to}");
        assert!(!headers.contains_key(wire::ANSWER));
    }
    for nothing in ["", "a b c d e f g", "a b c d e f g h", "     "] {
        let request = Request::post(PATH).header(wire::QUESTION, nothing).body(Body::from(BODY)).unwrap();
        assert_eq!(call(&router, request).await.0, StatusCode::FORBIDDEN, "{nothing:?}");
    }
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_question_in_which_anything_was_changed_is_refused() {
    let (router, count) = answering(member(1));
    let set = member(0);
    for place in 0..7 {
        let challenge = challenge_of(&router).await;
        let head = Head::new(&set.me, "pgset-1", challenge, BODY.as_bytes()).unwrap();
        let head = head.signed(&set, &newest(&set)).unwrap();
        let mut words: Vec<_> = head.to_str().unwrap().split(' ').map(str::to_owned).collect();
        let first = if words[place].starts_with('A') { "B" } else { "A" };
        words[place].replace_range(..1, first);
        let changed = axum::http::HeaderValue::from_str(&words.join(" ")).unwrap();
        assert_eq!(call(&router, post(&changed, BODY)).await.0, StatusCode::FORBIDDEN, "word {place}");
    }
    let challenge = challenge_of(&router).await;
    let mut request = signed(&set, "pgset-1", &challenge, BODY);
    *request.body_mut() = Body::from(BODY.replace('7', "8"));
    assert_eq!(call(&router, request).await.0, StatusCode::FORBIDDEN, "the body");
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_answer_that_was_changed_is_not_believed() {
    let (router, _) = answering(member(1));
    let peer = serve(router);
    let changes: [fn(&mut Vec<u8>); 3] = [
        |bytes| replace(bytes, "\"epoch\":1", "\"epoch\":2"),
        |bytes| replace(bytes, "pgset-answer: ", "pgset-answer: A"),
        |bytes| replace(bytes, "pgset-answer", "pgset-nothing"),
    ];
    for change in changes {
        let (tapped, _) = wire_to(&peer, change).await;
        let outcome = client().ask::<_, Answer>(&tapped, &question(1), SOON).await;
        assert!(matches!(outcome, Err(Error::Garbled)), "{outcome:?}");
    }
}

#[tokio::test]
async fn another_member_at_the_address_is_not_taken_for_the_one_that_was_asked() {
    let (router, count) = answering(member(2));
    let outcome = client().ask::<_, Answer>(&serve(router), &question(1), SOON).await;
    assert!(matches!(outcome, Err(Error::Refused)), "{outcome:?}");
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_agent_that_knows_no_questions_or_not_this_one_gives_no_answer() {
    for router in [Router::new(), answering(member(1)).0] {
        let outcome = client().ask::<_, Answer>(&serve(router), &"unheard of", SOON).await;
        assert!(matches!(outcome, Err(Error::Garbled)), "{outcome:?}");
    }
}

#[tokio::test]
async fn while_a_new_password_reaches_one_member_before_the_other_both_can_ask() {
    let passwords = [password("one"), password("one")];
    let sets = [member_with(&passwords[0], 0), member_with(&passwords[1], 1)];
    let (router, _) = answering(sets[1].clone());
    let (peer, client) = (serve(router), Client::new(sets[0].clone()));
    client.ask::<_, Answer>(&peer, &question(1), SOON).await.unwrap();
    for changed in [&passwords[0], &passwords[1]] {
        // First the asker alone has the new one, then both.
        "two".clone_into(&mut changed.lock().unwrap());
        sleep(Duration::from_millis(1100)).await;
        client.ask::<_, Answer>(&peer, &question(2), SOON).await.unwrap();
    }
    "three".clone_into(&mut passwords[1].lock().unwrap());
    sleep(Duration::from_millis(1100)).await;
    client.ask::<_, Answer>(&peer, &question(3), SOON).await.expect("the answerer alone has the new one");
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_does_not_answer_in_time_or_at_all_is_busy() {
    let (inbox, mut asked): (_, Questions) = Inbox::new(member(1)).unwrap();
    let router = inbox.router();
    let challenge = challenge_of(&router).await;
    let began = Instant::now();
    let silent = call(&router, signed(&member(0), "pgset-1", &challenge, BODY)).await;
    assert_eq!((silent.0, began.elapsed()), (StatusCode::SERVICE_UNAVAILABLE, ANSWERED_WITHIN));
    assert!(asked.recv().await.unwrap().answer.is_closed(), "and the loop sees that nobody waits any more");
    drop(asked);
    let challenge = challenge_of(&router).await;
    let gone = call(&router, signed(&member(0), "pgset-1", &challenge, BODY)).await;
    assert_eq!(gone.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_question_that_was_given_up_leaves_the_next_one_alone() {
    let (inbox, mut asked): (_, Questions) = Inbox::new(member(1)).unwrap();
    let (peer, client) = (serve(inbox.router()), client());
    let given_up = client.ask::<_, Answer>(&peer, &question(1), Duration::from_millis(200)).await;
    assert!(matches!(given_up, Err(Error::TimedOut)));
    let first = asked.recv().await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert!(first.answer.is_closed(), "the loop sees that nobody waits for it");
    let answering = async {
        let Asked { question, answer, .. } = asked.recv().await.unwrap();
        answer.send(Answer { epoch: question.epoch, asker: String::new() }).unwrap();
    };
    let second = question(2);
    let (answer, ()) = tokio::join!(client.ask::<_, Answer>(&peer, &second, SOON), answering);
    assert_eq!(answer.unwrap().epoch, 2);
}

/// Somebody with 16 addresses: idle connections, half headers, and bodies that never come.
async fn flood(address: SocketAddr, connections: usize) -> Vec<TcpStream> {
    let openings =
        ["", "GET /livez HTTP/1.1\r\n", "POST /members HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\nx"];
    let mut open = Vec::new();
    for number in 0..connections {
        let socket = TcpSocket::new_v4().unwrap();
        let from = [127, 0, 1, u8::try_from(number % 16).unwrap() + 1];
        socket.bind(SocketAddr::new(from.into(), 0)).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        // It may have had to give way at once.
        let _ = stream.write_all(openings[number % 3].as_bytes()).await;
        open.push(stream);
    }
    open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_flood_of_500_connections_keeps_no_member_and_no_probe_out() {
    let (router, _) = answering(member(1));
    let (peer, client) = (serve(router.merge(StatusHandle::new().router())), client());
    client.ask::<_, Answer>(&peer, &question(0), SOON).await.unwrap();
    let mut open = Vec::new();
    for epoch in 1..=5 {
        open.extend(flood(peer.address, 100).await);
        let asked = Instant::now();
        client.ask::<_, Answer>(&peer, &question(epoch), ANSWERED_WITHIN).await.unwrap();
        Client::new(member(2)).ask::<_, Answer>(&peer, &question(epoch), ANSWERED_WITHIN).await.unwrap();
        let mut probe = TcpStream::connect(peer.address).await.unwrap();
        probe.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut heard = String::new();
        probe.read_to_string(&mut heard).await.unwrap();
        assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
    }
    assert_eq!(open.len(), 500);
}

#[test]
fn neither_password_nor_key_is_shown() {
    let set = member_with(&password("hunter2"), 0);
    assert!(!set.keys.good().is_empty());
    let (inbox, _asked): (Inbox<Question, Answer>, _) = Inbox::new(set.clone()).unwrap();
    let shown = format!("{set:?} {:?} {inbox:?}", Client::new(set.clone()));
    assert!(!shown.contains("hunter2") && shown.contains("Keys { .. }"), "{shown}");
}
