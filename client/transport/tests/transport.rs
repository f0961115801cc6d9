//! Lanes and certificates over real loopback sockets: what holds, and what a broken or hostile other end can cost.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_transport::budget::{Budget, NoRoom, Pot};
use quorate_transport::close;
use quorate_transport::frame::{Direction, Framer, PART_LEN};
use quorate_transport::quic;
use quorate_transport::rpc::{self, Arrived, CallError, ClassLimits, Handler, Lanes, LanesConfig, ServeLimits, class};
use quorate_transport::tls::{self, Credentials, Subject};
use quorate_transport::{Gate, Link, Seams};
use quorate_wire::ids::NodeId;
use rcgen::ExtendedKeyUsagePurpose;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use support::{Ca, Pair, pair};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// Answers with the request; the first byte can ask for more.
#[derive(Clone, Default)]
struct Echo {
    started: Arc<AtomicUsize>,
    finished: Arc<AtomicUsize>,
}

const SLEEP: u8 = b's';
const PANIC: u8 = b'p';
const LARGE: u8 = b'l';
const LARGE_LEN: usize = 5 << 20;
const REFUSAL: &[u8] = b"refused";

impl Handler for Echo {
    async fn handle(&self, Arrived { body, timeout, room, .. }: Arrived) -> Bytes {
        self.started.fetch_add(1, Ordering::SeqCst);
        match body.first() {
            Some(&SLEEP) => tokio::time::sleep(Duration::from_secs(30)).await,
            Some(&PANIC) => panic!("asked to"),
            Some(&LARGE) => match room.take(LARGE_LEN, Instant::now() + timeout * 3 / 4).await {
                Ok(()) => return vec![LARGE; LARGE_LEN].into(),
                Err(NoRoom) => return self.refuse(0),
            },
            _ => {}
        }
        self.finished.fetch_add(1, Ordering::SeqCst);
        body
    }

    fn refuse(&self, _class: u8) -> Bytes {
        Bytes::from_static(REFUSAL)
    }
}

async fn echo() -> (Pair, Lanes, Echo, tokio::task::JoinHandle<String>) {
    let pair = pair(Link::Client).await;
    let echo = Echo::default();
    let served = tokio::spawn(rpc::serve(pair.server.clone(), echo.clone(), ServeLimits::client()));
    let lanes = Lanes::new(pair.client.clone(), LanesConfig::default());
    (pair, lanes, echo, served)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_calls_of_all_sizes_get_their_own_answers() {
    let (_pair, lanes, _, _) = echo().await;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..1000usize {
        let lanes = lanes.clone();
        calls.spawn(async move {
            let len = if i % 50 == 0 { 300_000 + i } else { 20 + i };
            let body = Bytes::from(vec![(i % 97) as u8; len]);
            let answer = lanes.call((i % 2) as u8, body.clone(), 20 * SECOND).await.expect("an answer");
            assert!(answer == body, "the answer to another request");
        });
    }
    while let Some(done) = calls.join_next().await {
        done.expect("answered");
    }
    assert_eq!(lanes.in_flight(), 0);
}

#[tokio::test]
async fn a_large_answer_does_not_hold_up_small_ones() {
    let pair = pair(Link::Client).await;
    tokio::spawn(rpc::serve(pair.server.clone(), Echo::default(), ServeLimits::client()));
    let lanes = Lanes::new(pair.client.clone(), LanesConfig { lanes_per_class: 1, ..LanesConfig::default() });
    let large = tokio::spawn({
        let lanes = lanes.clone();
        async move { lanes.call(class::REQUEST, Bytes::from_static(&[LARGE]), 20 * SECOND).await }
    });
    let mut before = 0;
    while !large.is_finished() {
        lanes.call(class::REQUEST, Bytes::from_static(b"x"), 5 * SECOND).await.expect("an answer");
        before += 1;
    }
    assert_eq!(large.await.expect("no panic").expect("an answer").len(), 5 << 20);
    assert!(before > 3, "only {before} small answers came beside a large one on the same lane");
}

#[tokio::test]
async fn a_late_answer_is_unknown_and_its_request_is_dropped() {
    let (pair, lanes, echo, _) = echo().await;
    let error = lanes.call(class::REQUEST, Bytes::from_static(&[SLEEP]), SECOND / 5).await.expect_err("late");
    assert!(matches!(&error, CallError::Unknown(why) if why.contains("200ms")), "{error:?}");
    assert_eq!(lanes.in_flight(), 0, "the call was forgotten");
    lanes.call(class::REQUEST, Bytes::from_static(b"x"), SECOND).await.expect("the connection lives");
    assert!(pair.client.close_reason().is_none());
    assert_eq!((echo.started.load(Ordering::SeqCst), echo.finished.load(Ordering::SeqCst)), (2, 1));
}

#[tokio::test]
async fn a_call_over_a_closed_connection_is_not_sent() {
    let (pair, lanes, ..) = echo().await;
    pair.server.close(close::SHUTDOWN, b"n1 is stopping");
    pair.client.closed().await;
    let error = lanes.call(class::REQUEST, Bytes::from_static(b"x"), SECOND).await.expect_err("closed");
    assert!(matches!(&error, CallError::NotSent(why) if why.contains("n1 is stopping")), "{error:?}");
}

#[tokio::test]
async fn a_call_that_waits_when_the_connection_breaks_is_unknown() {
    let (pair, lanes, echo, _) = echo().await;
    let call = lanes.call(class::REQUEST, Bytes::from_static(&[SLEEP]), 20 * SECOND);
    let break_it = async {
        while echo.started.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(SECOND / 100).await;
        }
        pair.server.close(close::SHUTDOWN, b"gone");
    };
    let (result, ()) = tokio::join!(call, break_it);
    let error = result.expect_err("broken");
    assert!(matches!(&error, CallError::Unknown(why) if why.contains("gone")), "{error:?}");
}

#[tokio::test]
async fn a_stalled_lane_tells_calls_that_were_never_sent() {
    let pair = pair(Link::Client).await;
    // Nobody reads at the other end: a stream's window fills up.
    let lanes = Lanes::new(pair.client.clone(), LanesConfig { lanes_per_class: 1, ..LanesConfig::default() });
    let body = Bytes::from(vec![0; 8 << 20]);
    let large = lanes.call(class::REQUEST, body, SECOND);
    let small = async {
        tokio::time::sleep(SECOND / 2).await;
        lanes.call(class::REQUEST, Bytes::from_static(b"x"), SECOND / 4).await
    };
    let (large, small) = tokio::join!(large, small);
    assert!(matches!(large, Err(CallError::Unknown(_))), "{large:?}");
    assert!(matches!(&small, Err(CallError::NotSent(why)) if why.contains("stalled")), "{small:?}");
}

#[tokio::test]
async fn a_missed_deadline_closes_a_connection_that_is_dead() {
    let (pair, lanes, ..) = echo().await;
    lanes.call(class::REQUEST, Bytes::from_static(b"x"), SECOND).await.expect("alive");
    // The server moves to another port; the client takes nothing from there, and its own packets fall into a hole.
    let elsewhere = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    let old = pair.endpoints[0].local_addr().expect("bound");
    pair.endpoints[0].rebind(elsewhere).expect("moves");
    let _hole = std::net::UdpSocket::bind(old).ok();
    let mut closed = false;
    let begun = Instant::now();
    for _ in 0..10 {
        let error = lanes.call(class::REQUEST, Bytes::from_static(b"x"), SECOND / 4).await.expect_err("dead");
        if matches!(error, CallError::NotSent(_)) {
            closed = true;
            break;
        }
    }
    assert!(closed, "ten deadlines passed and the connection was kept");
    assert!(begun.elapsed() < 3 * SECOND, "closed after {:?}", begun.elapsed());
}

#[tokio::test]
async fn calls_beyond_the_bound_are_not_sent() {
    let pair = pair(Link::Client).await;
    tokio::spawn(rpc::serve(pair.server.clone(), Echo::default(), ServeLimits::client()));
    let config = LanesConfig { lanes_per_class: 1, in_flight_max: 3, ..LanesConfig::default() };
    let lanes = Lanes::new(pair.client.clone(), config);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let lanes = lanes.clone();
        calls.spawn(async move { lanes.call(0, Bytes::from_static(&[SLEEP]), SECOND / 4).await });
    }
    let errors: Vec<_> = calls.join_all().await.into_iter().map(|result| result.expect_err("late")).collect();
    let refused = errors.iter().filter(|error| matches!(error, CallError::NotSent(why) if why.starts_with("3 calls")));
    assert_eq!(refused.count(), 2, "{errors:?}");
}

#[tokio::test]
async fn too_many_requests_wait_and_are_not_lost() {
    let pair = pair(Link::Client).await;
    let limits = ServeLimits { classes: vec![ClassLimits::unbounded(1 << 20, 2)], counts: Arc::default() };
    tokio::spawn(rpc::serve(pair.server.clone(), Echo::default(), limits));
    let lanes = Lanes::new(pair.client.clone(), LanesConfig::default());
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..100u8 {
        let lanes = lanes.clone();
        // Larger than all of the budget: goes alone.
        calls.spawn(async move { lanes.call(0, vec![i; 60_000].into(), 10 * SECOND).await.map(|body| body[0]) });
    }
    let mut answers: Vec<u8> = calls.join_all().await.into_iter().map(|answer| answer.expect("an answer")).collect();
    answers.sort_unstable();
    assert_eq!(answers, (0..100).collect::<Vec<u8>>());
}

#[tokio::test]
async fn a_handlers_panic_costs_one_lane() {
    let (pair, lanes, ..) = echo().await;
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let error = lanes.call(class::REQUEST, Bytes::from_static(&[PANIC]), 5 * SECOND).await.expect_err("a panic");
    std::panic::set_hook(hook);
    assert!(matches!(&error, CallError::Unknown(why) if why.contains("ended the lane")), "{error:?}");
    for _ in 0..4 {
        lanes.call(class::REQUEST, Bytes::from_static(b"x"), SECOND).await.expect("other lanes, and a new one");
    }
    assert!(pair.client.close_reason().is_none());
}

/// What the node did to a connection on which these bytes came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_read_slowly_hold_up_further_requests() {
    /// Gives many times what it was sent, from memory that all answers share.
    #[derive(Clone, Default)]
    struct Amplify(Arc<AtomicUsize>);

    impl Handler for Amplify {
        async fn handle(&self, _request: Arrived) -> Bytes {
            static ANSWER: [u8; 256 << 10] = [7; 256 << 10];
            self.0.fetch_add(1, Ordering::SeqCst);
            Bytes::from_static(&ANSWER)
        }

        fn refuse(&self, _class: u8) -> Bytes {
            unreachable!("its room has no bound")
        }
    }

    const REQUESTS: usize = 6000;
    let pair = pair(Link::Client).await;
    let amplify = Amplify::default();
    tokio::spawn(rpc::serve(pair.server.clone(), amplify.clone(), ServeLimits::client()));
    let (mut send, mut recv) = pair.client.open_bi().await.expect("a stream");
    let writing = tokio::spawn(async move {
        let mut framer = Framer::new(Direction::Request);
        send.write_all(&[class::REQUEST]).await.expect("open");
        for id in 0..REQUESTS {
            framer.push(id as u64, 60_000, Bytes::from_static(b"x"));
            send.write_all_chunks(&mut framer.take()).await.expect("open");
        }
        send
    });
    let mut part = vec![0; 64 << 10];
    for _ in 0..100 {
        recv.read_exact(&mut part).await.expect("an answer's part");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut started = 0;
    while started != amplify.0.load(Ordering::SeqCst) {
        started = amplify.0.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(started < 2000, "{started} answers of 256 KiB were made for somebody who has read 25");
    writing.abort();
}

async fn sent_raw(bytes: &[u8], finish: bool) -> (String, Pair) {
    let pair = pair(Link::Client).await;
    let served = tokio::spawn(rpc::serve(pair.server.clone(), Echo::default(), ServeLimits::client()));
    let (mut send, _recv) = pair.client.open_bi().await.expect("a stream");
    send.write_all(bytes).await.expect("written");
    if finish {
        send.finish().expect("open");
        send.stopped().await.expect("acknowledged");
        pair.client.close(close::DONE, b"done");
    }
    let why = tokio::time::timeout(5 * SECOND, served).await.expect("the connection ended").expect("no panic");
    (why, pair)
}

#[tokio::test]
async fn an_oversize_frame_loses_the_connection_and_says_so() {
    let mut bytes = vec![class::REQUEST];
    bytes.extend(0x7fff_ffffu32.to_be_bytes());
    bytes.extend([0; 12]);
    let (why, pair) = sent_raw(&bytes, false).await;
    assert!(why.contains("at most 65536"), "{why}");
    let told = close::explain_connection_error(&pair.client.closed().await);
    assert!(told.contains("at most 65536"), "{told}");
}

#[tokio::test]
async fn garbage_loses_the_connection() {
    let garbage: Vec<u8> = (0..4000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (why, _) = sent_raw(&[&[class::REQUEST], &garbage[..]].concat(), false).await;
    assert!(why.contains("bytes"), "{why}");
    let (why, _) = sent_raw(&[9], false).await;
    assert!(why.contains("class 9"), "{why}");
}

#[tokio::test]
async fn half_a_frame_and_the_end_of_the_stream_harm_nobody() {
    let (why, _) = sent_raw(&[class::REQUEST, 0, 0, 0, 10, 1], true).await;
    assert!(why.contains("done"), "{why}");
}

#[tokio::test]
async fn a_frame_that_is_never_completed_loses_the_connection() {
    let pair = pair(Link::Client).await;
    let served = tokio::spawn(rpc::serve(pair.server.clone(), Echo::default(), ServeLimits::client()));
    let (mut send, _recv) = pair.client.open_bi().await.expect("a stream");
    send.write_all(&[class::REQUEST, 0, 0, 0, 10, 1]).await.expect("written");
    let begun = Instant::now();
    let why = tokio::time::timeout(rpc::STALL + 5 * SECOND, served).await.expect("ended").expect("no panic");
    assert!(why.contains("did not go on"), "{why}");
    assert!(begun.elapsed() >= rpc::STALL);
}

/// What a connection may keep here, and how much of it is in use.
#[derive(Clone)]
struct Memory {
    arriving: Budget,
    serving: Budget,
    answering: Budget,
    limits: ServeLimits,
}

impl Memory {
    fn of(arriving: u64, serving: u64, answering: u64) -> Self {
        let (arriving, serving, answering) = (Budget::new(arriving), Budget::new(serving), Budget::new(answering));
        let pot = |small: &Budget| Pot { small: small.clone(), ..Pot::unbounded() };
        let mut limits = ServeLimits::client();
        for class in &mut limits.classes {
            (class.arriving, class.serving, class.answering) = (arriving.clone(), pot(&serving), pot(&answering));
        }
        Self { arriving, serving, answering, limits }
    }

    async fn serve(&self) -> (Pair, Echo, tokio::task::JoinHandle<String>) {
        let (pair, echo) = (pair(Link::Client).await, Echo::default());
        let served = tokio::spawn(rpc::serve(pair.server.clone(), echo.clone(), self.limits.clone()));
        (pair, echo, served)
    }

    fn counts(&self) -> [u64; 4] {
        let rpc::Counts { refused, expired, arrivals_cut, departures_cut } = &*self.limits.counts;
        [refused, expired, arrivals_cut, departures_cut].map(|count| count.load(Ordering::SeqCst))
    }

    /// Nothing is in use any more; what is on its way there takes a moment, and as long as a stall may last if the packet that closes the
    /// connection is lost. As long as somebody holds a connection, also one that is closed, QUIC keeps what it has not sent.
    async fn is_free(&self, pair: Pair) {
        drop(pair);
        let used = || [&self.arriving, &self.serving, &self.answering].map(Budget::used);
        let until = Instant::now() + rpc::STALL + 5 * SECOND;
        while Instant::now() < until {
            if used() == [0; 3] {
                return;
            }
            tokio::time::sleep(SECOND / 100).await;
        }
        panic!("{:?} bytes are not given back", used());
    }
}

const MIB: u64 = 1 << 20;

/// A lane on which somebody writes by hand.
async fn lane(pair: &Pair, class: u8) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut send, recv) = pair.client.open_bi().await.expect("a stream");
    send.write_all(&[class]).await.expect("open");
    (send, recv)
}

/// A part of a body that goes on.
fn part(timeout_ms: u32, len: usize) -> Vec<u8> {
    let word = 1u32 << 31 | len as u32;
    [&word.to_be_bytes()[..], &1u64.to_be_bytes(), &timeout_ms.to_be_bytes(), &vec![7; len]].concat()
}

fn request(id: u64, timeout_ms: u32, body: &'static [u8]) -> Vec<u8> {
    let mut framer = Framer::new(Direction::Request);
    framer.push(id, timeout_ms, Bytes::from_static(body));
    framer.take().concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_does_not_fit_is_refused_at_once_and_harms_nothing_else() {
    // A byte less than both take.
    let memory = Memory::of(3 * MIB / 2 - 1, 64 * MIB, 64 * MIB);
    let (pair, ..) = memory.serve().await;
    // Another one takes half a MiB: as a body grows, twice as much is set aside for it each time.
    let (mut other, recv) = lane(&pair, class::REQUEST).await;
    other.write_all(&[part(60_000, PART_LEN).as_slice(); 7].concat()).await.expect("taken");
    while memory.arriving.used() < MIB / 2 {
        tokio::time::sleep(SECOND / 100).await;
    }
    let lanes = Lanes::new(pair.client.clone(), LanesConfig::default());
    let small = lanes.call(class::REQUEST, Bytes::from_static(b"x"), 5 * SECOND).await;
    assert_eq!(small.as_deref(), Ok(&b"x"[..]), "what takes no room is served");
    let large = Bytes::from(vec![b'x'; 1 << 20]);
    let refused = lanes.call(class::REQUEST, large.clone(), 5 * SECOND).await;
    assert_eq!(refused.as_deref(), Ok(REFUSAL), "a definite answer");
    assert!(memory.arriving.used() < 3 * MIB / 4, "nothing is kept of what is refused");
    assert_eq!(memory.counts(), [1, 0, 0, 0]);
    other.reset(0u32.into()).expect("open");
    drop(recv);
    while memory.arriving.used() > MIB / 4 {
        tokio::time::sleep(SECOND / 100).await;
    }
    let answer =
        lanes.call(class::REQUEST, large.clone(), 5 * SECOND).await.expect("there is room, and the lane lives");
    assert!(answer == large);
    pair.client.close(close::DONE, b"done");
    memory.is_free(pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_have_arrived_wait_for_room_for_a_moment_and_are_refused() {
    let memory = Memory::of(64 * MIB, 1, 64 * MIB);
    let (pair, echo, _) = memory.serve().await;
    let lanes = Lanes::new(pair.client.clone(), LanesConfig::default());
    let call = |class, timeout| lanes.call(class, Bytes::from_static(b"x"), timeout);
    let first = lanes.call(class::REQUEST, Bytes::from_static(&[SLEEP]), 2 * SECOND);
    let others = async {
        while echo.started.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(SECOND / 100).await;
        }
        let bulk = async {
            // An eighth of its time; those behind it are not held up for as long again.
            let begun = Instant::now();
            let refused = tokio::join!(call(class::BULK, SECOND), call(class::BULK, SECOND), call(class::BULK, SECOND));
            assert!(begun.elapsed() < SECOND);
            [refused.0, refused.1, refused.2].map(|answer| answer.expect("a definite answer"))
        };
        tokio::join!(call(class::REQUEST, 60 * SECOND), bulk)
    };
    let (first, (waits, refused)) = tokio::join!(first, others);
    assert!(matches!(&first, Err(CallError::Unknown(_))), "{first:?}");
    assert_eq!(waits.as_deref(), Ok(&b"x"[..]), "it was its turn when the first one's time was over");
    assert_eq!(refused, [REFUSAL; 3]);
    assert_eq!(echo.started.load(Ordering::SeqCst), 2, "what was refused was not looked at");
    pair.client.close(close::DONE, b"done");
    memory.is_free(pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_are_bounded_in_bytes_and_cut_off() {
    let memory = Memory::of(MIB, MIB, 16 * MIB);
    let (pair, _, served) = memory.serve().await;
    let (mut send, _recv) = lane(&pair, class::REQUEST).await;
    for id in 0..100 {
        send.write_all(&request(id, 60_000, &[LARGE])).await.expect("taken");
    }
    let begun = Instant::now();
    let mut most = 0;
    while !served.is_finished() {
        // 100 answers of 5 MiB were asked for; three of them fit. The rest waits, and holds nothing.
        most = most.max(memory.answering.used());
        assert!(memory.serving.used() <= MIB, "{}", memory.serving.used());
        assert!(begun.elapsed() < 4 * rpc::STALL, "nobody cuts it off");
        tokio::time::sleep(SECOND / 20).await;
    }
    assert!((15 * MIB..=16 * MIB).contains(&most), "{most}");
    assert!(begun.elapsed() >= rpc::STALL);
    let why = served.await.expect("no panic");
    assert!(why.contains("answers were not taken"), "{why}");
    assert_eq!(memory.counts(), [0, 0, 0, 1]);
    memory.is_free(pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_taken_a_byte_at_a_time_are_cut_off() {
    let memory = Memory::of(MIB, MIB, 16 * MIB);
    let (pair, _, served) = memory.serve().await;
    let (mut send, mut recv) = lane(&pair, class::REQUEST).await;
    send.write_all(&request(0, 60_000, &[LARGE])).await.expect("taken");
    let begun = Instant::now();
    let mut byte = [0];
    while !served.is_finished() {
        assert!(begun.elapsed() < 4 * rpc::STALL, "one byte every half second is enough for it");
        // What has arrived already can be read to its end.
        let _ = recv.read_exact(&mut byte).await;
        tokio::time::sleep(SECOND / 2).await;
    }
    let why = served.await.expect("no panic");
    assert!(why.contains("answers were not taken"), "{why}");
    memory.is_free(pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_arrive_a_byte_at_a_time_are_cut_off() {
    let memory = Memory::of(MIB, MIB, MIB);
    let (pair, _, served) = memory.serve().await;
    let (mut send, _recv) = lane(&pair, class::REQUEST).await;
    send.write_all(&[part(60_000, PART_LEN), part(60_000, PART_LEN)].concat()).await.expect("taken");
    let begun = Instant::now();
    while send.write_all(&part(60_000, 1)).await.is_ok() {
        assert!(begun.elapsed() < 4 * rpc::STALL, "one byte every half second is enough for it");
        tokio::time::sleep(SECOND / 2).await;
    }
    assert!(begun.elapsed() >= rpc::STALL);
    let why = served.await.expect("no panic");
    assert!(why.contains("did not go on"), "{why}");
    assert_eq!(memory.counts(), [0, 0, 1, 0]);
    memory.is_free(pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_time_is_over_before_it_has_arrived_is_not_kept() {
    let memory = Memory::of(MIB, MIB, MIB);
    let (pair, ..) = memory.serve().await;
    let (mut send, mut recv) = lane(&pair, class::REQUEST).await;
    let only_the_lane = memory.arriving.clone();
    send.write_all(&[part(500, PART_LEN), part(500, PART_LEN)].concat()).await.expect("taken");
    while memory.arriving.used() < 2 * PART_LEN as u64 {
        tokio::time::sleep(SECOND / 100).await;
    }
    while only_the_lane.used() > PART_LEN as u64 {
        tokio::time::sleep(SECOND / 100).await;
    }
    assert_eq!(memory.counts(), [0, 1, 0, 0]);
    // Its caller still sends the rest, and goes on.
    let last = [&(5u32).to_be_bytes()[..], &1u64.to_be_bytes(), &500u32.to_be_bytes(), &[7; 5]].concat();
    send.write_all(&last).await.expect("taken");
    send.write_all(&request(2, 5000, b"x")).await.expect("taken");
    let mut answer = [0; 13];
    recv.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(answer, [&[0, 0, 0, 1][..], &2u64.to_be_bytes(), b"x"].concat()[..]);
    pair.client.close(close::DONE, b"done");
    memory.is_free(pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_becomes_of_a_request_its_room_is_given_back() {
    let memory = Memory::of(64 * MIB, 64 * MIB, 64 * MIB);
    let (pair, echo, _) = memory.serve().await;
    let lanes = Lanes::new(pair.client.clone(), LanesConfig::default());
    let large = Bytes::from(vec![b'x'; 1 << 20]);
    lanes.call(class::REQUEST, large.clone(), 5 * SECOND).await.expect("an answer");
    lanes.call(class::REQUEST, Bytes::from_static(&[LARGE]), 5 * SECOND).await.expect("a large answer");
    let mut sleeps = vec![b'x'; 1 << 20];
    sleeps[0] = SLEEP;
    let sleeps = Bytes::from(sleeps);
    lanes.call(class::REQUEST, sleeps.clone(), SECOND / 5).await.expect_err("its time is over");
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    lanes.call(class::REQUEST, Bytes::from_static(&[PANIC]), 5 * SECOND).await.expect_err("a panic");
    std::panic::set_hook(hook);
    let idle = async {
        while memory.serving.used() > 0 || memory.answering.used() > 0 {
            tokio::time::sleep(SECOND / 100).await;
        }
    };
    tokio::time::timeout(5 * SECOND, idle).await.expect("with the connection still open");
    // The connection breaks while requests arrive, are served and are answered.
    let (mut half, _recv) = lane(&pair, class::BULK).await;
    half.write_all(&part(60_000, PART_LEN)).await.expect("taken");
    let before = echo.started.load(Ordering::SeqCst);
    let (mut unread, _recv) = lane(&pair, class::REQUEST).await;
    unread.write_all(&request(0, 60_000, &[LARGE])).await.expect("taken");
    let served = tokio::spawn(async move { lanes.call(class::REQUEST, sleeps, 20 * SECOND).await });
    while echo.started.load(Ordering::SeqCst) < before + 2 || memory.answering.used() == 0 {
        tokio::time::sleep(SECOND / 100).await;
    }
    pair.client.close(close::DONE, b"done");
    served.await.expect("no panic").expect_err("broken");
    memory.is_free(pair).await;
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_loses_the_connection() {
    let pair = pair(Link::Client).await;
    let lanes = Lanes::new(pair.client.clone(), LanesConfig::default());
    let hostile = async {
        let (mut send, _recv) = pair.server.accept_bi().await.expect("a lane");
        send.write_all(&[&[0, 0, 0, 0][..], &77u64.to_be_bytes()].concat()).await.expect("written");
        pair.server.closed().await
    };
    let (result, closed) = tokio::join!(lanes.call(0, Bytes::from_static(b"x"), 5 * SECOND), hostile);
    assert!(matches!(result, Err(CallError::Unknown(_))), "{result:?}");
    let told = close::explain_connection_error(&closed);
    assert!(told.contains("never made"), "{told}");
}

/// Dials and says what the dialing side is told.
async fn dial(server: &Credentials, dialer: &Credentials, name: &str) -> Result<quinn::Connection, String> {
    let (listening, addr) = support::server(server);
    let (dialing, config) = support::client(dialer, Link::Client);
    tokio::spawn(async move {
        let gate = Gate::new();
        let incoming = listening.accept().await.expect("open");
        let connection = gate.admit(incoming, |_| false).expect("room").handshake().await;
        if let Ok(connection) = connection {
            connection.closed().await;
        }
    });
    let connection = dialing.connect_with(config, addr, name).expect("dials").await;
    let connection = connection.map_err(|error| close::explain_connection_error(&error))?;
    // In TLS 1.3 the dialer is done before the server has looked at its certificate.
    match tokio::time::timeout(SECOND / 2, connection.closed()).await {
        Ok(error) => Err(close::explain_connection_error(&error)),
        Err(_) => Ok(connection),
    }
}

#[tokio::test]
async fn both_ends_know_who_the_other_one_is() {
    let ca = Ca::new(7);
    let node = NodeId::new("n1").expect("legal");
    let connection =
        dial(&ca.node("n1"), &ca.client("alice"), &tls::node_name(node, ca.cluster)).await.expect("connects");
    assert_eq!(tls::peer_subject(&connection).expect("a subject"), Subject::Node { cluster: ca.cluster, node });
    assert_eq!(tls::alpn(&connection), quorate_wire::ALPN_CLIENT);
    let pair = pair(Link::Client).await;
    let subject = tls::peer_subject(&pair.server).expect("a subject");
    assert!(matches!(subject, Subject::Client { ref name, admin: false, .. } if name == "test"), "{subject}");
}

#[tokio::test]
async fn another_clusters_certificate_is_refused_with_a_reason() {
    let (ours, theirs) = (Ca::new(7), Ca::new(8));
    let error = dial(&theirs.node("n1"), &ours.client("alice"), tls::ANY_NODE).await.expect_err("another cluster");
    assert!(error.contains("another cluster") && error.contains(&theirs.cluster.to_string()), "{error}");
    // A server that trusts only its own authority; the dialer accepts it because it is given that authority too.
    let mut pems =
        theirs.issue_pem(&Subject::parse(&format!("eve.{}.client.quorate", ours.cluster)).expect("ok"), 0, 9);
    pems[0] = ours.issue_pem(ours.client("x").subject(), 0, 9)[0].clone();
    let error = Credentials::from_pem(pems[0].as_bytes(), pems[1].as_bytes(), pems[2].as_bytes()).expect_err("mixed");
    assert!(error.to_string().contains("not signed by the CA"), "{error}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_a_reason_on_either_end() {
    let ca = Ca::new(7);
    let node = Subject::parse(&format!("n1.{}.node.quorate", ca.cluster)).expect("a name");
    let expired = ca.issue(&node, -7200, -3600);
    let error = dial(&expired, &ca.client("alice"), tls::ANY_NODE).await.expect_err("expired");
    assert!(error.contains("refused here") && error.contains("expired at"), "{error}");
    let client = Subject::parse(&format!("alice.{}.client.quorate", ca.cluster)).expect("a name");
    let expired = ca.issue(&client, -7200, -3600);
    let error = dial(&ca.node("n1"), &expired, tls::ANY_NODE).await.expect_err("expired");
    assert!(error.contains("refuses this side's certificate") && error.contains("expired at"), "{error}");
    assert!(expired.check_validity(support::now()).expect_err("expired").to_string().contains("expired at"));
    assert!(ca.node("n1").check_validity(support::now()).is_ok());
}

#[tokio::test]
async fn a_node_that_is_not_the_one_dialed_is_refused() {
    let ca = Ca::new(7);
    let n2 = tls::node_name(NodeId::new("n2").expect("legal"), ca.cluster);
    let error = dial(&ca.node("n1"), &ca.client("alice"), &n2).await.expect_err("n1 is there");
    assert!(error.contains(&n2) && error.contains("n1."), "{error}");
}

#[tokio::test]
async fn a_clients_certificate_makes_no_server() {
    let ca = Ca::new(7);
    let error = tls::server_config(&Seams::system(), &ca.client("alice"), &[]).expect_err("a client's");
    assert!(error.to_string().contains("a client's certificate and not a node's"), "{error}");
}

#[tokio::test]
async fn an_unknown_protocol_is_explained() {
    let ca = Ca::new(7);
    let (listening, addr) = support::server(&ca.node("n1"));
    let (dialing, _) = support::client(&ca.client("alice"), Link::Client);
    let config = tls::client_config(&Seams::system(), &ca.client("alice"), b"newer/9", Link::Client).expect("a config");
    tokio::spawn(async move { listening.accept().await.expect("open").await.map(drop) });
    let error = dialing.connect_with(config, addr, tls::ANY_NODE).expect("dials").await.expect_err("unknown");
    let why = close::explain_connection_error(&error);
    assert!(why.contains("does not speak this protocol"), "{why}");
}

#[tokio::test]
async fn credentials_say_which_file_is_wrong() {
    let ca = Ca::new(7);
    let subject = ca.client("alice").subject().clone();
    let [authority, certificate, key] = ca.issue_pem(&subject, 0, 9);
    let other_key = ca.issue_pem(&subject, 0, 9)[2].clone();
    for (files, expected) in [
        (
            [&authority, &certificate, &certificate],
            "the private key file holds no PEM private key: it holds a certificate; two files may be swapped",
        ),
        ([&key, &certificate, &key], "the CA certificate file holds no PEM certificate: it holds a private key"),
        ([&authority, &key, &key], "the certificate file holds no PEM certificate: it holds a private key"),
        ([&certificate, &certificate, &key], "not that of an authority, it is alice."),
        ([&authority, &certificate, &other_key], "does not belong to the certificate alice."),
        ([&authority, &authority, &key], "where that of a node or a client is needed"),
        (
            [&authority, &[&*authority, &certificate].concat(), &key],
            "begins with the certificate of an authority (CN=quorate",
        ),
    ] {
        let [ca, certificate, key] = files.map(|pem| pem.as_bytes());
        let error = Credentials::from_pem(ca, certificate, key).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    // In their order a chain is fine, and in binary each is told what it is.
    let chain = [&*certificate, &authority].concat();
    Credentials::from_pem(authority.as_bytes(), chain.as_bytes(), key.as_bytes())
        .expect("the holder's own comes first");
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("one");
    for (what, files) in [
        ("certificate", [authority.as_bytes(), &der, key.as_bytes()]),
        ("CA certificate", [&der, certificate.as_bytes(), key.as_bytes()]),
    ] {
        let error = Credentials::from_pem(files[0], files[1], files[2]).expect_err("binary").to_string();
        let wanted =
            format!("the {what} file holds no PEM certificate: it holds a certificate in binary (DER): `openssl x509");
        assert!(error.contains(&wanted), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_for_another_use_is_told_by_whose_it_is_and_how_to_make_the_right_one() {
    let ca = Ca::new(7);
    let [node, client] =
        ["node", "client"].map(|kind| Subject::parse(&format!("n1.{}.{kind}.quorate", ca.cluster)).expect("a name"));
    let (serves, dials) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
    for (subject, usages, lacks, command) in [
        (&node, vec![dials.clone()], "serverAuth", "`quorate cert node n1`"),
        (&node, vec![serves.clone()], "clientAuth", "`quorate cert node n1`"),
        (&client, vec![serves.clone()], "clientAuth", "`quorate cert client n1`"),
    ] {
        let pems = ca.issue_for(subject, usages, 0, 9);
        let error = Credentials::from_pem(pems[0].as_bytes(), pems[1].as_bytes(), pems[2].as_bytes());
        let error = error.expect_err("it lacks one").to_string();
        assert!(error.contains(lacks) && error.contains(command), "{error}");
    }
    let unlimited = ca.issue_for(&node, Vec::new(), 0, 9);
    Credentials::from_pem(unlimited[0].as_bytes(), unlimited[1].as_bytes(), unlimited[2].as_bytes()).expect("for all");

    // On the wire, where the other end may have looked at nothing: whoever sees it says so, to itself and to the other end.
    let error = dial_listener(&ca, &client, &ca.client("alice")).await;
    assert!(error.contains("refused here") && error.contains("a client's certificate and not a node's"), "{error}");
    assert!(error.contains("`quorate cert node NAME`"), "{error}");
    let error = dialer_refused(&ca, &ca.issue_for(&client, vec![serves], 0, 9)).await;
    assert!(error.contains("refuses this side's certificate") && error.contains("clientAuth"), "{error}");
    assert!(error.contains("`quorate cert client n1`"), "{error}");
}

/// Dials a node with a certificate that no client would take for its own.
async fn dialer_refused(ca: &Ca, [authority, own, key]: &[String; 3]) -> String {
    let certificate = |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).expect("one");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate(authority)).expect("an authority");
    let mut tls = rustls::ClientConfig::builder_with_provider(Seams::system().crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("possible")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate(own)], PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("one"))
        .expect("they fit");
    tls.alpn_protocols = vec![quorate_wire::ALPN_CLIENT.to_vec()];
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("possible");
    let (listening, addr) = support::server(&ca.node("n1"));
    let accepting = tokio::spawn(async move { listening.accept().await.expect("open").await.map(drop) });
    let (dialing, _) = support::client(&ca.client("alice"), Link::Client);
    let name = tls::node_name(NodeId::new("n1").expect("legal"), ca.cluster);
    let config = quinn::ClientConfig::new(Arc::new(config));
    let error = match dialing.connect_with(config, addr, &name).expect("dials").await {
        // In TLS 1.3 the dialer is done before the node has looked at its certificate.
        Ok(connection) => connection.closed().await,
        Err(error) => error,
    };
    accepting.await.expect("no panic").expect_err("refused");
    close::explain_connection_error(&error)
}

/// Dials whoever listens with the certificate of a subject that no node would listen with.
async fn dial_listener(ca: &Ca, listener: &Subject, own: &Credentials) -> String {
    let [_, certificate, key] = ca.issue_pem(listener, 0, 9);
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("one")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("one");
    let mut tls = rustls::ServerConfig::builder_with_provider(Seams::system().crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("possible")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they fit");
    tls.alpn_protocols = vec![quorate_wire::ALPN_CLIENT.to_vec()];
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("possible");
    let socket = quic::bind_system("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let config = quinn::ServerConfig::with_crypto(Arc::new(config));
    let listening = quic::endpoint(&Seams::system(), socket, Some(config)).expect("an endpoint");
    let addr = listening.local_addr().expect("bound");
    tokio::spawn(async move { listening.accept().await.expect("open").await.map(drop) });
    let (dialing, config) = support::client(own, Link::Client);
    let error = dialing.connect_with(config, addr, tls::ANY_NODE).expect("dials").await.expect_err("refused");
    close::explain_connection_error(&error)
}

#[tokio::test]
async fn half_open_handshakes_are_bounded_and_others_still_get_in() {
    let ca = Ca::new(7);
    let (listening, addr) = support::server(&ca.node("n1"));
    let gate = Gate::new();
    tokio::spawn(async move {
        while let Some(incoming) = listening.accept().await {
            let Some(admitted) = gate.admit(incoming, |_| false) else { continue };
            tokio::spawn(async move {
                if let Ok(connection) = admitted.handshake().await {
                    connection.closed().await;
                }
            });
        }
    });
    // Many first packets whose senders never go on.
    for _ in 0..300 {
        let (dialing, config) = support::client(&ca.client("flood"), Link::Client);
        let connecting = dialing.connect_with(config, addr, tls::ANY_NODE).expect("dials");
        tokio::task::yield_now().await;
        drop(connecting);
        drop(dialing);
    }
    let (dialing, config) = support::client(&ca.client("alice"), Link::Client);
    let connection = dialing.connect_with(config, addr, tls::ANY_NODE).expect("dials").await;
    connection.expect("an honest client gets in");
}
