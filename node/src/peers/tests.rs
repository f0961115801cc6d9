//! The pool over real connections on loopback.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use quorate_transport::quic;
use quorate_transport::tls::Credentials;
use quorate_transport::{Gate, Link as LinkKind, Seams};
use quorate_wire::ids::{DiskId, LayoutVersion};
use quorate_wire::{ALPN_CLIENT, BucketId, Key};

use super::*;
use crate::cert::{Ca, Issued, VALIDITY};
use crate::peer_wire::{GetLayout, KeepHint, Replicate};
use crate::request_memory::RequestMemory;
use crate::store::{Committer, Durability, Executor, MemoryStore, Store};

const SECOND: Duration = Duration::from_secs(1);
pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a legal name")
}

fn now() -> SystemTime {
    (Seams::system().wall_clock)()
}

fn ca() -> Ca {
    Ca::make(&Random::from_seed(1), CLUSTER, now(), VALIDITY).expect("a CA")
}

fn credentials(issued: Issued) -> Credentials {
    Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes()).expect("usable")
}

/// A node that is nothing but its pool and its accept loop.
pub(crate) struct Node {
    pub(crate) peers: Peers,
    pub(crate) addr: SocketAddr,
    endpoint: Endpoint,
    socket: std::sync::Weak<dyn quinn::AsyncUdpSocket>,
    gossip: mpsc::Receiver<(NodeId, Bytes)>,
    accepting: tokio::task::JoinHandle<()>,
}

/// The boots of all nodes, so that a node that is started again has a higher one.
static BOOTS: AtomicU64 = AtomicU64::new(1);

impl Node {
    fn start(name: &str) -> Self {
        Self::start_with(name, "127.0.0.1:0".parse().expect("an address"), Arc::new(|_| Ok(())))
    }

    fn start_with(name: &str, addr: SocketAddr, check: HelloCheck) -> Self {
        let node = Self::bare(name, addr, check);
        // Answers with the name of who asked, so that the tests see that it is known.
        node.peers.set_handler(Arc::new(|from, request, _, _| {
            Box::pin(async move {
                let why = format!("{from} asked {}", request.request_id);
                PeerReply::Refused(NotApplied::Refused { why })
            })
        }));
        node
    }

    /// One that has no handler yet.
    pub(crate) fn bare(name: &str, addr: SocketAddr, check: HelloCheck) -> Self {
        let (seams, me) = (Seams::system(), id(name));
        let own = credentials(ca().issue_node(&seams.random, me, now(), VALIDITY).expect("issued"));
        let server = tls::server_config(&seams, &own, &[ALPN_PEER, ALPN_CLIENT]).expect("a server configuration");
        let bound = quic::bind_system(addr).expect("binds");
        let socket = Arc::downgrade(&bound);
        let endpoint = quic::endpoint(&seams, bound, Some(server)).expect("an endpoint");
        let addr = endpoint.local_addr().expect("bound");
        let boot = BOOTS.fetch_add(1, Ordering::SeqCst);
        let hello = move |_| Hello {
            cluster: CLUSTER,
            node: me,
            disk: DiskId(1),
            boot,
            addr,
            layout: LayoutVersion::NONE,
            first_layout: None,
            release: "test".into(),
            life: boot,
            beacon: 0,
            remembers: Vec::new(),
        };
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let committer = Committer::start(
            store.clone(),
            Executor::Inline,
            Durability::Group,
            SECOND,
            Arc::new(|why| panic!("{why}")),
        );
        let beacons = Beacons::open(&*store, boot, committer);
        let (datagrams, gossip) = mpsc::channel(16);
        let peers = Peers::start(PeersConfig {
            me,
            cluster: CLUSTER,
            endpoint: endpoint.clone(),
            dial: tls::client_config(&seams, &own, ALPN_PEER, LinkKind::Peer).expect("a client configuration"),
            random: Random::from_seed(boot),
            hello: Arc::new(hello),
            beacons,
            check,
            datagrams,
            pools: Pools::new(RequestMemory::default()),
        });
        let (listening, adopting) = (endpoint.clone(), peers.clone());
        let accepting = tokio::spawn(async move {
            let gate = Gate::new();
            while let Some(incoming) = listening.accept().await {
                let (Some(admitted), adopting) = (gate.admit(incoming, |_| false), adopting.clone()) else { continue };
                tokio::spawn(async move {
                    if let Ok(connection) = admitted.handshake().await {
                        adopting.adopt(connection);
                    }
                });
            }
        });
        Self { peers, addr, endpoint, socket, gossip, accepting }
    }

    async fn ask(&self, to: &str, number: u64) -> Result<String, AskError> {
        match self.peers.call(id(to), class::CONTROL, number, GetLayout.into(), 5 * SECOND).await? {
            PeerReply::Refused(NotApplied::Refused { why }) => Ok(why),
            other => panic!("unexpected: {other:?}"),
        }
    }

    /// As a killed process does it: everything ends, nothing is waited for.
    async fn stop(self) -> SocketAddr {
        self.peers.shutdown();
        self.accepting.abort();
        assert!(quic::close(self.endpoint, "stopped", self.socket, 5 * SECOND).await, "the port is free");
        self.addr
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < 10 * SECOND, "not in time: {what}");
        tokio::time::sleep(SECOND / 50).await;
    }
}

#[tokio::test]
async fn one_connection_serves_both_ways() {
    let (n1, mut n2) = (Node::start("n1"), Node::start("n2"));
    n1.peers.learn(id("n2"), n2.addr);
    assert_eq!(n1.ask("n2", 7).await.expect("an answer"), "n1 asked 7");
    // n2 was never told where n1 is.
    assert_eq!(n2.ask("n1", 8).await.expect("an answer"), "n2 asked 8");
    assert_eq!(n1.endpoint.open_connections(), 1);
    assert!(n1.peers.rtt(id("n2")).is_some());
    n1.peers.send_datagram(id("n2"), Bytes::from_static(b"gossip"));
    let gossip = timeout(5 * SECOND, n2.gossip.recv()).await.expect("in time");
    assert_eq!(gossip, Some((id("n1"), Bytes::from_static(b"gossip"))));
}

#[tokio::test]
async fn nodes_that_dial_each_other_at_once_both_get_answers() {
    let (n1, n2) = (Node::start("n1"), Node::start("n2"));
    n1.peers.learn(id("n2"), n2.addr);
    n2.peers.learn(id("n1"), n1.addr);
    for round in 0..20 {
        let (a, b) = tokio::join!(n1.ask("n2", round), n2.ask("n1", round));
        assert_eq!(a.expect("an answer"), format!("n1 asked {round}"));
        assert_eq!(b.expect("an answer"), format!("n2 asked {round}"));
    }
    eventually("one connection is left", || n1.endpoint.open_connections() == 1).await;
    assert_eq!(n2.ask("n1", 9).await.expect("an answer"), "n2 asked 9");
}

#[tokio::test]
async fn a_dead_port_is_not_sent_and_the_next_calls_fail_fast() {
    let n1 = Node::start("n1");
    let dead = Node::start("n2").stop().await;
    n1.peers.learn(id("n2"), dead);
    let error = n1.ask("n2", 1).await.expect_err("nobody is there");
    assert!(matches!(&error, AskError::NotSent(why) if why.contains(&dead.to_string())), "{error:?}");
    let begun = Instant::now();
    let error = n1.ask("n2", 2).await.expect_err("nobody is there");
    assert!(matches!(&error, AskError::NotSent(why) if why.contains("next try in")), "{error:?}");
    assert!(begun.elapsed() < SECOND / 10);
    assert!(n1.peers.status()[&id("n2")].next_try_in.is_some());
    let error = n1.ask("n3", 3).await.expect_err("unknown");
    assert!(matches!(&error, AskError::NotSent(why) if why.contains("not known")), "{error:?}");
}

#[tokio::test]
async fn a_peer_that_is_started_again_on_its_port_is_redialed_also_after_a_clean_close() {
    let n1 = Node::start("n1");
    let mut n2 = Node::start("n2");
    n1.peers.learn(id("n2"), n2.addr);
    n1.peers.keep_connected([id("n2")].into());
    for _ in 0..2 {
        eventually("n1 is connected", || n1.peers.connected(id("n2"))).await;
        let addr = n2.stop().await;
        eventually("n1 has noticed", || !n1.peers.connected(id("n2"))).await;
        n2 = Node::start_with("n2", addr, Arc::new(|_| Ok(())));
    }
    eventually("n1 is connected again", || n1.peers.connected(id("n2"))).await;
    assert_eq!(n1.ask("n2", 3).await.expect("an answer"), "n1 asked 3");
}

#[tokio::test]
async fn a_peer_whose_hello_is_refused_stays_out_and_is_told_why() {
    let n1 = Node::start("n1");
    let strict: HelloCheck = Arc::new(|hello| Err(format!("{} has another first layout", hello.node)));
    let n2 = Node::start_with("n2", "127.0.0.1:0".parse().expect("an address"), strict);
    n1.peers.learn(id("n2"), n2.addr);
    let error = n1.ask("n2", 1).await.expect_err("refused");
    assert!(matches!(&error, AskError::NotSent(why) if why.contains("n1 has another first layout")), "{error:?}");
    assert!(!n1.peers.connected(id("n2")) && !n2.peers.connected(id("n1")));
}

#[tokio::test]
async fn a_client_certificate_does_not_get_in_by_the_peers_protocol() {
    let n1 = Node::start("n1");
    let seams = Seams::system();
    let own = ca().issue_client(&seams.random, "eve", true, now(), VALIDITY).expect("issued");
    let config = tls::client_config(&seams, &credentials(own), ALPN_PEER, LinkKind::Peer).expect("a configuration");
    let socket = quic::bind_system("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let endpoint = quic::endpoint(&seams, socket, None).expect("an endpoint");
    let connection = endpoint.connect_with(config, n1.addr, tls::ANY_NODE).expect("dials").await.expect("connects");
    let told = explain_connection_error(&connection.closed().await);
    assert!(told.contains("eve") && told.contains("not a node"), "{told}");
}

#[tokio::test]
async fn an_unknown_request_is_refused_and_costs_nothing() {
    let n1 = Node::start("n1");
    let seams = Seams::system();
    let own = ca().issue_node(&seams.random, id("n2"), now(), VALIDITY).expect("issued");
    let config = tls::client_config(&seams, &credentials(own), ALPN_PEER, LinkKind::Peer).expect("a configuration");
    let socket = quic::bind_system("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let endpoint = quic::endpoint(&seams, socket, None).expect("an endpoint");
    let name = tls::node_name(id("n1"), CLUSTER);
    let connection = endpoint.connect_with(config, n1.addr, &name).expect("dials").await.expect("connects");
    let lanes = Lanes::new(connection.clone(), LanesConfig::default());
    for unknown in [codec::encode(&(1u64, "Teleport")), Bytes::from_static(&[9, 1]), Bytes::new()] {
        let reply = lanes.call(class::CONTROL, unknown, SECOND).await.expect("an answer");
        let reply = codec::decode::<PeerAnswer>(&reply).expect("a reply").reply;
        assert!(matches!(reply, PeerReply::Refused(NotApplied::Unsupported { .. })), "{reply:?}");
    }
    // The release before this one, which had version 1.
    let mut older =
        codec::encode(&PeerRequest { request_id: 1, beacon: 0, body: PeerBody::LayoutState(GetLayout) }).to_vec();
    older[0] = 1;
    let reply = lanes.call(class::CONTROL, older.into(), SECOND).await.expect("an answer");
    let told = match codec::decode::<PeerAnswer>(&reply).expect("a reply").reply {
        PeerReply::Refused(refusal) => refusal.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(told.contains("message version 1 is unknown, this side speaks 2"), "{told}");
    // Known, but nobody has said hello: it waits, and then the connection is refused.
    let request = codec::encode(&PeerRequest { request_id: 1, beacon: 0, body: PeerBody::LayoutState(GetLayout) });
    assert!(lanes.call(class::CONTROL, request, SECOND / 4).await.is_err());
    let told = explain_connection_error(&connection.closed().await);
    assert!(told.contains("no acceptable hello"), "{told}");
}

/// As they are sent, with the places for a bucket and a sort key.
#[test]
fn messages_about_a_key_are_fixed_for_ever() {
    let label = crate::peer_wire::Label { low: LayoutVersion(1), high: LayoutVersion(1) };
    let key = codec::Blob::from(Key::new(BucketId(1), b"k", b"s"));
    let (target, record) = (id("n1"), codec::Blob::copy_from(b"r"));
    for (body, expected) in [
        (PeerBody::Replicate(Replicate { label, key: key.clone(), record: record.clone() }), REPLICATE),
        (PeerBody::Hint(KeepHint { label, target, key: key.clone(), record }), HINT),
    ] {
        assert_eq!(body.keys(), [&key]);
        let frame = codec::encode(&PeerRequest { request_id: 1, beacon: 2, body });
        assert_eq!(frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), expected);
    }
}

const REPLICATE: &str = "0293010281a95265706c696361746593920101c408000000016b000173c40172";
const HINT: &str = "0293010281a448696e7494920101a26e31c408000000016b000173c40172";

#[tokio::test]
async fn hello_at_finds_out_who_listens_somewhere() {
    let (n1, n2) = (Node::start("n1"), Node::start("n2"));
    let hello = n1.peers.hello_at(n2.addr, 5 * SECOND).await.expect("an answer");
    assert_eq!((hello.node, hello.addr), (id("n2"), n2.addr));
    assert_eq!(n1.ask("n2", 1).await.expect("known and connected"), "n1 asked 1");
    let own = n1.peers.hello_at(n1.addr, 5 * SECOND).await.expect("an answer");
    assert_eq!(own.node, id("n1"));
    assert!(!n1.peers.status().contains_key(&id("n1")), "a node is no peer of itself");
    let dead = Node::start("n3").stop().await;
    let error = n1.peers.hello_at(dead, SECOND).await.expect_err("nobody");
    assert!(error.to_string().contains(&dead.to_string()), "{error}");
}

#[tokio::test]
async fn a_peer_that_stops_answering_gives_unknown_and_loses_its_connection() {
    let n1 = Node::start("n1");
    let (told, addr) = oneshot::channel();
    let (freeze, frozen) = std::sync::mpsc::sync_channel::<()>(1);
    // A process of its own, as far as a test can have one: a runtime that stops altogether.
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let n2 = Node::start("n2");
            told.send(n2.addr).expect("the test waits");
            while frozen.try_recv().is_err() {
                tokio::time::sleep(SECOND / 100).await;
            }
            // Blocks the runtime's only thread until the test is over.
            let _ = frozen.recv();
            drop(n2);
        });
    });
    n1.peers.learn(id("n2"), addr.await.expect("an address"));
    assert_eq!(n1.ask("n2", 1).await.expect("an answer"), "n1 asked 1");
    freeze.send(()).expect("n2 waits");
    tokio::time::sleep(SECOND / 10).await;
    let call = |number| n1.peers.call(id("n2"), class::CONTROL, number, GetLayout.into(), SECOND * 3 / 5);
    let error = call(2).await.expect_err("no answer");
    assert!(matches!(error, AskError::Unknown(_)), "{error:?}");
    eventually("the dead connection is closed", || !n1.peers.connected(id("n2"))).await;
    let error = call(3).await.expect_err("no connection");
    assert!(matches!(error, AskError::NotSent(_)), "{error:?}");
    drop(freeze);
    other.join().expect("no panic");
}

#[tokio::test]
async fn after_shutdown_calls_fail_and_the_port_is_free() {
    let (n1, n2) = (Node::start("n1"), Node::start("n2"));
    n1.peers.learn(id("n2"), n2.addr);
    n1.ask("n2", 1).await.expect("an answer");
    let peers = n1.peers.clone();
    let addr = n1.stop().await;
    let error = peers.ask(id("n2"), 1, GetLayout, SECOND).await.expect_err("stopped");
    assert!(matches!(&error, AskError::NotSent(why) if why.contains("stopping")), "{error:?}");
    quic::bind_system(addr).expect("the port is free at once");
    eventually("n2 has noticed", || !n2.peers.connected(id("n1"))).await;
}

#[tokio::test]
async fn the_back_off_grows_with_jitter_and_is_bounded() {
    let n1 = Node::start("n1");
    for (failures, whole) in [(0, 50), (1, 50), (2, 100), (3, 200), (6, 1600), (7, 2000), (1000, 2000)] {
        let waits: Vec<u128> = (0..50).map(|_| n1.peers.0.backoff(failures).as_millis()).collect();
        assert!(waits.iter().all(|wait| (whole / 2..=whole).contains(wait)), "{failures}: {waits:?}");
        assert!(waits.iter().min() != waits.iter().max(), "{failures}: no jitter");
    }
}

proptest::proptest! {
    #[test]
    fn noise_is_no_peer_message(bytes: Vec<u8>) {
        let mut bytes = bytes;
        bytes.insert(0, codec::CODEC_VERSION);
        let bytes = Bytes::from(bytes);
        let _ = codec::decode::<PeerRequest>(&bytes);
        let _ = codec::decode::<PeerAnswer>(&bytes);
    }

    #[test]
    fn damaged_peer_messages_do_no_harm(key: Vec<u8>, at: proptest::sample::Index, by: u8) {
        let key = codec::Blob(key.into());
        let label = crate::peer_wire::Label { low: LayoutVersion(1), high: LayoutVersion(1) };
        let body = PeerBody::Replicate(Replicate { label, record: key.clone(), key });
        let request = PeerRequest { request_id: 7, beacon: 0, body };
        let encoded = codec::encode(&request);
        proptest::prop_assert_eq!(&codec::decode::<PeerRequest>(&encoded).expect("a request"), &request);
        let mut bytes = encoded.to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        let _ = codec::decode::<PeerRequest>(&bytes.into());
    }
}
