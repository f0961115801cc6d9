//! Lanes and certificates over real loopback sockets: what holds, and what a broken or hostile other end can cost.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_client::frame::{Direction, Framer};
use quorate_client::ids::NodeId;
use quorate_client::quic::{Gate, Link, Seams};
use quorate_client::rpc::{self, CallError, ClassLimits, Handler, Lanes, LanesConfig, ServeLimits, class};
use quorate_client::tls::{self, Credentials, Subject};
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

impl Handler for Echo {
    async fn handle(&self, _class: u8, body: Bytes, _timeout: Duration) -> Bytes {
        self.started.fetch_add(1, Ordering::SeqCst);
        match body.first() {
            Some(&SLEEP) => tokio::time::sleep(Duration::from_secs(30)).await,
            Some(&PANIC) => panic!("asked to"),
            Some(&LARGE) => return vec![LARGE; 5 << 20].into(),
            _ => {}
        }
        self.finished.fetch_add(1, Ordering::SeqCst);
        body
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
    pair.server.close(rpc::close::SHUTDOWN, b"n1 is stopping");
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
        pair.server.close(rpc::close::SHUTDOWN, b"gone");
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
    let limits = ServeLimits { classes: vec![ClassLimits { request_max: 1 << 20, in_flight_max: 2 }] };
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
        async fn handle(&self, _class: u8, _body: Bytes, _timeout: Duration) -> Bytes {
            static ANSWER: [u8; 256 << 10] = [7; 256 << 10];
            self.0.fetch_add(1, Ordering::SeqCst);
            Bytes::from_static(&ANSWER)
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
        pair.client.close(rpc::close::DONE, b"done");
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
    let told = tls::explain_connection_error(&pair.client.closed().await);
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
    assert!(why.contains("not completed"), "{why}");
    assert!(begun.elapsed() >= rpc::STALL);
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
    let told = tls::explain_connection_error(&closed);
    assert!(told.contains("never made"), "{told}");
}

/// Dials and says what the dialing side is told.
async fn dial(server: &Credentials, dialer: &Credentials, name: &str) -> Result<quinn::Connection, String> {
    let (listening, addr) = support::server(server);
    let (dialing, config) = support::client(dialer, Link::Client);
    tokio::spawn(async move {
        let gate = Gate::new();
        let incoming = listening.accept().await.expect("open");
        let connection = gate.admit(incoming).expect("room").handshake().await;
        if let Ok(connection) = connection {
            connection.closed().await;
        }
    });
    let connection = dialing.connect_with(config, addr, name).expect("dials").await;
    let connection = connection.map_err(|error| tls::explain_connection_error(&error))?;
    // In TLS 1.3 the dialer is done before the server has looked at its certificate.
    match tokio::time::timeout(SECOND / 2, connection.closed()).await {
        Ok(error) => Err(tls::explain_connection_error(&error)),
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
    assert_eq!(tls::alpn(&connection), quorate_client::wire::ALPN_CLIENT);
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
    assert!(error.to_string().contains("not a node's certificate"), "{error}");
}

#[tokio::test]
async fn an_unknown_protocol_is_explained() {
    let ca = Ca::new(7);
    let (listening, addr) = support::server(&ca.node("n1"));
    let (dialing, _) = support::client(&ca.client("alice"), Link::Client);
    let config = tls::client_config(&Seams::system(), &ca.client("alice"), b"newer/9", Link::Client).expect("a config");
    tokio::spawn(async move { listening.accept().await.expect("open").await.map(drop) });
    let error = dialing.connect_with(config, addr, tls::ANY_NODE).expect("dials").await.expect_err("unknown");
    let why = tls::explain_connection_error(&error);
    assert!(why.contains("does not speak this protocol"), "{why}");
}

#[tokio::test]
async fn credentials_say_which_file_is_wrong() {
    let ca = Ca::new(7);
    let subject = ca.client("alice").subject().clone();
    let [authority, certificate, key] = ca.issue_pem(&subject, 0, 9);
    let other_key = ca.issue_pem(&subject, 0, 9)[2].clone();
    for (files, expected) in [
        ([&authority, &certificate, &certificate], "the private key file holds no PEM"),
        ([&key, &certificate, &key], "the CA certificate file holds no PEM"),
        ([&authority, &key, &key], "the certificate file holds no PEM"),
        ([&certificate, &certificate, &key], "not that of an authority"),
        ([&authority, &certificate, &other_key], "does not belong to the certificate alice."),
        ([&authority, &authority, &key], "names no node or client"),
    ] {
        let [ca, certificate, key] = files.map(|pem| pem.as_bytes());
        let error = Credentials::from_pem(ca, certificate, key).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn half_open_handshakes_are_bounded_and_others_still_get_in() {
    let ca = Ca::new(7);
    let (listening, addr) = support::server(&ca.node("n1"));
    let gate = Gate::new();
    tokio::spawn(async move {
        while let Some(incoming) = listening.accept().await {
            let Some(admitted) = gate.admit(incoming) else { continue };
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
