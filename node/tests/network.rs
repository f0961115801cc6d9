//! What clients and strangers can cost a node: bytes are bounded, nobody else is kept waiting, and all of it is given back.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_client::codec::{self, Blob};
use quorate_client::error::Error;
use quorate_client::ids::{ClusterId, DiskId, LayoutVersion, NodeId};
use quorate_client::options::{Quorum, RequestOptions};
use quorate_client::quic::{self, Link, Seams};
use quorate_client::tls::{self, Credentials};
use quorate_client::wire::{ALPN_CLIENT, LayoutCommand, NotApplied, Read, Request, RequestBody, VALUE_LEN_MAX};
use quorate_client::{Blind, Client};
use quorate_node::anti_entropy::AntiEntropyConfig;
use quorate_node::cert::{Ca, Issued, VALIDITY};
use quorate_node::env::Env;
use quorate_node::node::{Mechanisms, Node, NodeConfig};
use quorate_node::request_memory::RequestMemory;
use quorate_node::store::{Durability, Executor, Identity, Latency, MemoryStore, Opened};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

struct Cluster {
    nodes: Vec<Node>,
    ca: Ca,
    seams: Seams,
}

impl Cluster {
    /// So many nodes, each of which holds everything.
    async fn start(count: u8, change: impl Fn(&mut Env)) -> Self {
        let seams = Seams::system();
        let now = (seams.wall_clock)();
        let ca = Ca::make(&seams.random, ClusterId(7), now, VALIDITY).expect("makes a CA");
        let mut nodes: Vec<Node> = Vec::new();
        for at in 1..=count {
            let node = NodeId::new(&format!("n{at}")).expect("legal");
            let config = NodeConfig {
                node,
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                advertise: None,
                join: nodes.iter().map(Node::addr).collect(),
                credentials: credentials(ca.issue_node(&seams.random, node, now, VALIDITY).expect("issues")),
                durability: Durability::Group,
                sync_interval: SECOND / 10,
                mechanisms: Mechanisms::default(),
                anti_entropy: AntiEntropyConfig::default(),
            };
            let store = MemoryStore::new();
            let open = move || {
                let identity = Identity { cluster: ClusterId(7), node, disk: DiskId(at.into()), boot: 1, clean: true };
                Ok(Opened { store: Arc::new(store.clone()), identity, quarantined: None })
            };
            let mut env = Env::system(Arc::new(open));
            change(&mut env);
            nodes.push(Node::start(config, env).await.expect("starts"));
        }
        let cluster = Self { nodes, ca, seams };
        let admin =
            credentials(cluster.ca.issue_client(&cluster.seams.random, "admin", true, now, VALIDITY).expect("issues"));
        let db = Client::builder([cluster.nodes[0].addr()]).credentials(admin).connect().await.expect("connects");
        let options = RequestOptions::default().timeout(10 * SECOND);
        let joins = cluster.nodes.iter().map(|node| LayoutCommand::StageJoin {
            node: node.id(),
            addr: node.addr(),
            zone: node.id().to_string(),
            weight: 1,
        });
        let settings = LayoutCommand::StageSettings { n: Some(count), partitions: Some(8), r: None, w: None };
        let apply = LayoutCommand::Apply { version: LayoutVersion(1) };
        for command in joins.chain([settings, apply]) {
            db.request_at(cluster.nodes[0].addr(), RequestBody::Layout(command), options).await.expect("carried out");
        }
        for node in &cluster.nodes {
            while node.status().not_serving.is_some() {
                tokio::time::sleep(SECOND / 50).await;
            }
        }
        cluster
    }

    fn credentials(&self, name: &str) -> Credentials {
        let now = (self.seams.wall_clock)();
        credentials(self.ca.issue_client(&self.seams.random, name, false, now, VALIDITY).expect("issues"))
    }

    async fn client(&self, name: &str) -> Client {
        self.client_at(0, name).await
    }

    async fn client_at(&self, node: usize, name: &str) -> Client {
        let builder = Client::builder([self.nodes[node].addr()]).credentials(self.credentials(name));
        builder.timeout(10 * SECOND).connect().await.expect("connects")
    }

    /// A bare connection.
    async fn dial(&self, name: &str) -> (quinn::Endpoint, quinn::Connection) {
        let socket = quic::bind_system("127.0.0.1:0".parse().expect("an address")).expect("binds");
        let endpoint = quic::endpoint(&self.seams, socket, None).expect("an endpoint");
        let config = tls::client_config(&self.seams, &self.credentials(name), ALPN_CLIENT, Link::Client);
        let config = config.expect("a configuration");
        let connecting = endpoint.connect_with(config, self.nodes[0].addr(), tls::ANY_NODE).expect("dials");
        let connection = connecting.await.expect("connects");
        (endpoint, connection)
    }

    fn metric(&self, name: &str) -> u64 {
        self.metric_at(0, name)
    }

    fn metric_at(&self, node: usize, name: &str) -> u64 {
        *self.nodes[node].watched().metrics.snapshot().get(name).unwrap_or_else(|| panic!("there is no metric {name}"))
    }

    /// Every byte was given back.
    async fn is_idle(&self) {
        let used = || self.metric("request_memory_used_bytes") + self.metric("request_memory_large_bytes");
        for _ in 0..1000 {
            if used() == 0 && self.metric("clients_connected") == 0 && self.metric("requests_under_way") == 0 {
                return;
            }
            tokio::time::sleep(SECOND / 50).await;
        }
        panic!("{} bytes are not given back; {} connections", used(), self.metric("clients_connected"));
    }
}

fn credentials(issued: Issued) -> Credentials {
    Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes()).expect("fit")
}

fn memory(mib: u64) -> impl Fn(&mut Env) {
    move |env| env.request_memory = RequestMemory::mib(mib).expect("legal")
}

fn value(fill: u8) -> Bytes {
    vec![fill; VALUE_LEN_MAX].into()
}

/// A key with so many values of 1 MiB.
async fn siblings(db: &Client, key: &str, count: u8) {
    for fill in 1..=count {
        db.put(key, value(fill), Blind).await.expect("written");
    }
}

fn read(key: &str, id: u64) -> Vec<u8> {
    let key = Blob::copy_from(key.as_bytes());
    let body = RequestBody::Read(Read { key, r: Some(Quorum::One), strict: false, monotonic: false, explain: false });
    let body = codec::encode(&Request { layout: LayoutVersion(1), request_id: id, body });
    [&(body.len() as u32).to_be_bytes()[..], &id.to_be_bytes(), &60_000u32.to_be_bytes(), &body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_and_records_get_through_however_little_memory_there_is() {
    // A message above 4 MiB is large then: the record, on its way to the others and to its reader.
    let cluster = Cluster::start(3, memory(64)).await;
    let db = cluster.client("joe").await;
    for fill in 1..=12 {
        db.put("big", value(fill), Blind).w(Quorum::All).strict().await.expect("written");
    }
    let found = db.get("big").r(Quorum::All).strict().await.expect("read");
    let mut fills: Vec<u8> = found.siblings().iter().map(|value| value[0]).collect();
    fills.sort_unstable();
    assert_eq!(fills, (1..=12).collect::<Vec<u8>>());
    assert!(found.siblings().iter().all(|value| value.len() == VALUE_LEN_MAX));
    db.put("big", "resolved", &found).w(Quorum::All).await.expect("written");
    let found = db.get("big").await.expect("read");
    assert_eq!(found.siblings(), [b"resolved".as_slice()]);
    db.close().await;
    cluster.is_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_requests_at_once_wait_for_each_other_and_are_served() {
    let cluster = Cluster::start(1, memory(64)).await;
    let db = cluster.client("joe").await;
    let mut requests = JoinSet::new();
    for i in 0..48 {
        let db = db.clone();
        requests.spawn(async move {
            let key = format!("k{i}");
            db.put(key.clone(), value(i), Blind).timeout(20 * SECOND).await.expect("written");
            let found = db.get(key).timeout(20 * SECOND).await.expect("read");
            assert_eq!(found.siblings(), [&value(i)[..]]);
        });
    }
    while let Some(done) = requests.join_next().await {
        done.expect("served");
        assert!(cluster.metric("request_memory_used_bytes") <= 64 * MIB);
    }
    db.close().await;
    cluster.is_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_cost_a_share_and_leave_the_rest_to_others() {
    let cluster = Cluster::start(1, memory(128)).await;
    let joe = cluster.client("joe").await;
    // Of 6 MiB each: one connection may have 8 MiB of answers, one client 12.
    siblings(&joe, "big", 6).await;
    let mut kept = Vec::new();
    for _ in 0..4 {
        let (endpoint, connection) = cluster.dial("eve").await;
        let (mut send, recv) = connection.open_bi().await.expect("a stream");
        send.write_all(&[0]).await.expect("the class");
        for id in 0..50 {
            send.write_all(&read("big", id)).await.expect("sent");
        }
        kept.push((endpoint, connection, send, recv));
    }
    // In all of this time, until the node has enough of it, nobody else notices.
    let mut most = 0;
    while cluster.metric("departures_cut") < 4 {
        most = most.max(cluster.metric("request_memory_used_bytes"));
        let found = joe.get("big").timeout(2 * SECOND).await.expect("another client is served");
        assert_eq!(found.siblings().len(), 6);
    }
    assert!(most > 12 * MIB, "{most}: they were not answered at all");
    // Her 12 MiB of answers, her requests, and what joe has under way.
    assert!(most <= 32 * MIB, "{most} bytes");
    drop(kept);
    joe.close().await;
    cluster.is_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_never_completed_cost_a_share_and_leave_the_rest_to_others() {
    let cluster = Cluster::start(1, memory(64)).await;
    let joe = cluster.client("joe").await;
    let part = |len: usize| {
        let word = 1u32 << 31 | len as u32;
        [&word.to_be_bytes()[..], &1u64.to_be_bytes(), &60_000u32.to_be_bytes(), &vec![7; len]].concat()
    };
    let mut kept = Vec::new();
    // 4 MiB of requests on their way may one client have, 1 MiB one connection.
    for _ in 0..8 {
        let (endpoint, connection) = cluster.dial("eve").await;
        let mut lanes = Vec::new();
        for _ in 0..16 {
            let (mut send, recv) = connection.open_bi().await.expect("a stream");
            send.write_all(&[0]).await.expect("the class");
            for _ in 0..16 {
                send.write_all(&part(64 << 10)).await.expect("it is taken, or thrown away");
            }
            lanes.push((send, recv));
        }
        kept.push((endpoint, connection, lanes));
    }
    assert!(
        cluster.metric("requests_no_memory") >= 100,
        "{} of 128 were refused",
        cluster.metric("requests_no_memory")
    );
    let mut most = 0;
    while cluster.metric("arrivals_cut") < 8 {
        most = most.max(cluster.metric("request_memory_used_bytes"));
        // One byte is no progress.
        for (send, _) in kept.iter_mut().flat_map(|(_, _, lanes)| lanes) {
            let _ = send.write_all(&part(1)).await;
        }
        joe.put("k", value(1), Blind).timeout(5 * SECOND).await.expect("another client is served");
        tokio::time::sleep(SECOND / 5).await;
    }
    assert!((MIB..=16 * MIB).contains(&most), "{most} bytes");
    drop(kept);
    joe.close().await;
    cluster.is_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_waited_for_any_more_is_given_back() {
    let cluster = Cluster::start(3, memory(64)).await;
    let db = cluster.client("joe").await;
    siblings(&db, "big", 5).await;
    // Times that are over at every stage of a request.
    let mut requests = JoinSet::new();
    for ms in 1..=60 {
        let db = db.clone();
        requests.spawn(async move {
            let timeout = Duration::from_millis(ms);
            let _ = db.get("big").timeout(timeout).await;
            let _ = db.put(format!("k{ms}"), value(1), Blind).timeout(timeout).await;
        });
    }
    requests.join_all().await;
    // Clients that go without a word, in the middle of it.
    for ms in [0, 5, 20, 50] {
        let other = cluster.client("eve").await;
        let reading = tokio::spawn({
            let other = other.clone();
            async move { other.get("big").await }
        });
        let writing = tokio::spawn(async move { other.put("big", value(9), Blind).await });
        tokio::time::sleep(Duration::from_millis(ms)).await;
        reading.abort();
        writing.abort();
    }
    db.close().await;
    cluster.is_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_datagrams_loses_its_connection() {
    let cluster = Cluster::start(1, |_| ()).await;
    let (_endpoint, connection) = cluster.dial("eve").await;
    connection.send_datagram(Bytes::from_static(b"kept for nobody")).expect("sent");
    let why = tls::explain_connection_error(&connection.closed().await);
    assert!(why.contains("sends no datagrams"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layouts_that_are_shown_hold_up_nobody_and_only_so_many_wait_for_one() {
    // A ring takes three seconds.
    let slow = |env: &mut Env| env.computing = Executor::Slow(Latency(Arc::new(|| 3 * SECOND)));
    let cluster = Cluster::start(2, slow).await;
    let (joe, eve) = (cluster.client("joe").await, cluster.client("eve").await);
    // The other node has shown it to its operator already.
    let node = cluster.nodes[1].addr();
    let show = |db: Client| async move {
        let options = RequestOptions::default().timeout(20 * SECOND);
        let shown = db.request_at(node, RequestBody::Layout(LayoutCommand::Show), options).await;
        assert!(matches!(shown, Ok(_) | Err(Error::NotApplied(NotApplied::Overloaded { .. }))), "{shown:?}");
        shown.is_ok()
    };
    let mut shows = JoinSet::new();
    for _ in 0..200 {
        shows.spawn(show(eve.clone()));
    }
    while cluster.metric_at(1, "requests_overloaded") == 0 {
        tokio::time::sleep(SECOND / 100).await;
    }
    for i in 0..20 {
        joe.put(format!("k{i}"), "v", Blind).w(Quorum::All).timeout(5 * SECOND).await.expect("written");
        assert!(!shows.is_empty() && shows.try_join_next().is_none_or(|shown| !shown.expect("no panic")), "{i}");
    }
    let shown = shows.join_all().await.into_iter().filter(|shown| *shown).count();
    assert!(shown >= 64, "{shown}");
}

/// Lets the first packet of a handshake through, and the second one after a Retry; what the dialer says later is lost.
async fn half_a_handshake(node: SocketAddr) -> SocketAddr {
    let down = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let up = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    up.connect(node).await.expect("possible");
    let addr = down.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut passed, mut may, mut from) = (0, 1, None);
        let (mut one, mut two) = ([0; 2048], [0; 2048]);
        loop {
            tokio::select! {
                biased;
                Ok((len, peer)) = down.recv_from(&mut one) => {
                    from = Some(peer);
                    if passed < may {
                        passed += 1;
                        let _ = up.send(&one[..len]).await;
                    }
                }
                Ok(len) = up.recv(&mut two) => {
                    may += i32::from(two[0] & 0xf0 == 0xf0);
                    if let Some(peer) = from {
                        let _ = down.send_to(&two[..len], peer).await;
                    }
                }
            }
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_handshakes_keep_neither_clients_nor_peers_out() {
    let cluster = Cluster::start(2, |_| ()).await;
    let node = cluster.nodes[0].addr();
    // Of another cluster: it is never asked that far.
    let now = (cluster.seams.wall_clock)();
    let foreign = Ca::make(&cluster.seams.random, ClusterId(8), now, VALIDITY).expect("makes a CA");
    let eve = credentials(foreign.issue_client(&cluster.seams.random, "eve", false, now, VALIDITY).expect("issues"));
    let mut strangers = JoinSet::new();
    for _ in 0..200 {
        let (eve, seams) = (eve.clone(), Seams::system());
        strangers.spawn(async move {
            loop {
                let to = half_a_handshake(node).await;
                let socket = quic::bind_system("127.0.0.1:0".parse().expect("an address")).expect("binds");
                let endpoint = quic::endpoint(&seams, socket, None).expect("an endpoint");
                let config = tls::client_config(&seams, &eve, ALPN_CLIENT, Link::Client).expect("a configuration");
                let dial = endpoint.connect_with(config, to, tls::ANY_NODE).expect("dials");
                let _ = tokio::time::timeout(5 * SECOND, dial).await;
            }
        });
    }
    while cluster.metric("handshakes_retried") == 0 || cluster.metric("handshakes_failed") == 0 {
        tokio::time::sleep(SECOND / 20).await;
    }
    for _ in 0..8 {
        let builder = Client::builder([node]).credentials(cluster.credentials("joe")).connect_timeout(5 * SECOND);
        let db = builder.connect().await.expect("an honest client gets in");
        db.put("k", "v", Blind).w(Quorum::All).timeout(5 * SECOND).await.expect("written on both nodes");
        db.close().await;
    }
    strangers.shutdown().await;
}
