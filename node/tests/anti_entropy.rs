//! Three nodes in one process whose stores differ, and what comparing them costs.
//!
//! The measurement (`-- --ignored --nocapture`) prepares 100,000 records a node, one in a hundred of which differs.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "it measures, and prints what it has measured")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::Client;
use quorate_client::options::RequestOptions;
use quorate_core::keyspace::data_key;
use quorate_core::record::Record;
use quorate_core::version::{Actor, Context, Dot};
use quorate_node::anti_entropy::AntiEntropyConfig;
use quorate_node::cert::{Ca, Issued, VALIDITY};
use quorate_node::env::Env;
use quorate_node::node::{Mechanisms, Node, NodeConfig};
use quorate_node::store::{Durability, Identity, MemoryStore, Opened, Store, Tree};
use quorate_transport::Seams;
use quorate_transport::tls::Credentials;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId, OpId};
use quorate_wire::{Key, LayoutCommand, RepairCommand, RepairReport, Reply, RequestBody};
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_differ_become_equal_and_each_repair_is_counted() {
    let stores = stores(2_000, 100, 100);
    let cluster = Cluster::start(&stores, 64, Duration::from_millis(300)).await;
    cluster.until_equal(&stores, Duration::from_secs(60)).await;
    let reports = cluster.reports().await;
    let sum = |of: fn(&RepairReport) -> u64| reports.iter().map(of).sum::<u64>();
    // Every store lacks a third of the hundred records.
    assert_eq!(sum(|report| report.repaired_missed), 100, "{reports:?}");
    assert_eq!((sum(|report| report.repaired_corrupt), sum(|report| report.repaired_wiped)), (0, 0));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_node_makes_no_pass_until_it_is_told_to() {
    let stores = stores(300, 100, 50);
    let cluster = Cluster::start(&stores, 16, Duration::from_secs(3600)).await;
    // The first pass is over, and found what lasts or nothing; an hour is long.
    for at in 0..3 {
        assert!(cluster.repair(at, RepairCommand::Pause).await.paused);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_ne!(content(&stores[0]), content(&stores[1]), "one pass repairs nothing");
    for _ in 0..3 {
        for at in 0..3 {
            assert!(!cluster.repair(at, RepairCommand::Start).await.paused);
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    cluster.until_equal(&stores, Duration::from_secs(30)).await;
    cluster.shutdown().await;
}

#[ignore = "a measurement, of about a minute"]
#[expect(clippy::print_stdout, reason = "what a measurement is for")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measure_a_hundred_thousand_records() {
    let value_len = 1024;
    let stores = stores(100_000, value_len, 1_000);
    let began = Instant::now();
    let cluster = Cluster::start(&stores, 1024, AntiEntropyConfig::default().interval).await;
    println!("{:.1} s until there is a layout", began.elapsed().as_secs_f64());
    let began = Instant::now();
    cluster.until_equal(&stores, Duration::from_secs(300)).await;
    let took = began.elapsed();
    let reports = cluster.reports().await;
    let sum = |of: fn(&RepairReport) -> u64| reports.iter().map(of).sum::<u64>();
    let shipped = sum(|report| report.bytes_sent + report.bytes_received);
    let listed = sum(|report| report.bytes_listed);
    let repaired = sum(|report| report.repaired_missed);
    let divergent = repaired * value_len as u64;
    println!(
        "{repaired} records repaired in {took:.1?}; {shipped} bytes of records shipped, {:.2} times what was divergent; {listed} \
         bytes of lists",
        shipped as f64 / divergent as f64
    );
    assert_eq!(repaired, 1_000);
    assert!(took < Duration::from_secs(60), "{took:?}");
    // 64 KiB for each of the 3 x 1024 pairs of replicas that may differ, where about one thousand do.
    assert!(shipped + listed < 3 * divergent + (64 << 10) * 1_000, "{shipped} + {listed} bytes for {divergent}");
    cluster.shutdown().await;
}

/// Three stores with as many records, of which some are missing from one or two of them.
fn stores(records: u32, value_len: usize, differing: u32) -> Vec<MemoryStore> {
    let stores: Vec<MemoryStore> = (0..3).map(|_| MemoryStore::new()).collect();
    let every = records / differing.max(1);
    for i in 0..records {
        let key = format!("key-{i}");
        let mut record = Record::default();
        let dot = Dot { actor: Actor { node: name(0), incarnation: 7 }, counter: u64::from(i) + 1 };
        let value = Blob::copy_from(&vec![i as u8; value_len]);
        record.mint(dot, OpId(u128::from(i)), Some(value), &Context::new());
        let place = data_key(&Key::plain(&key));
        for (at, store) in stores.iter().enumerate() {
            let lacks = i % every == 0 && (i / every) as usize % 3 == at;
            if !lacks {
                store.insert(Tree::Data, &place, &record.encode()).expect("memory takes everything");
            }
        }
    }
    stores
}

fn content(store: &MemoryStore) -> Vec<(bytes::Bytes, bytes::Bytes)> {
    store.scan(Tree::Data, b"", None, usize::MAX, usize::MAX).expect("readable")
}

fn name(at: usize) -> NodeId {
    NodeId::new(&format!("n{}", at + 1)).expect("legal")
}

struct Cluster {
    nodes: Vec<Node>,
    admin: Client,
}

impl Cluster {
    /// Starts a node on each store, as after an unclean stop, and makes the layout.
    async fn start(stores: &[MemoryStore], partitions: u16, interval: Duration) -> Self {
        let seams = Seams::system();
        let now = (seams.wall_clock)();
        let ca = Ca::make(&seams.random, ClusterId(7), now, VALIDITY).expect("makes a CA");
        let credentials = |issued: Issued| {
            Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes())
                .expect("fit")
        };
        let mut nodes: Vec<Node> = Vec::new();
        for (at, store) in stores.iter().enumerate() {
            let node = name(at);
            let config = NodeConfig {
                node,
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                advertise: None,
                http: None,
                join: nodes.iter().map(Node::addr).collect(),
                credentials: credentials(ca.issue_node(&seams.random, node, now, VALIDITY).expect("issues")),
                durability: Durability::Group,
                sync_interval: Duration::from_millis(100),
                mechanisms: Mechanisms::default(),
                anti_entropy: AntiEntropyConfig { enabled: true, interval, ..AntiEntropyConfig::default() },
                layout_changes: false,
            };
            let store = store.clone();
            let open = move || {
                let identity =
                    Identity { cluster: ClusterId(7), node, disk: DiskId(at as u128), boot: 2, clean: false };
                Ok(Opened { store: Arc::new(store.clone()), identity, quarantined: None })
            };
            nodes.push(Node::start(config, Env::system(Arc::new(open))).await.expect("starts"));
        }
        let admin = credentials(ca.issue_client(&seams.random, "admin", true, now, VALIDITY).expect("issues"));
        let admin = Client::builder([nodes[0].addr()]).credentials(admin).connect().await.expect("connects");
        let options = RequestOptions::default().timeout(Duration::from_secs(10));
        let joins = nodes.iter().map(|node| LayoutCommand::StageJoin {
            node: node.id(),
            addr: node.addr(),
            zone: node.id().to_string(),
            weight: 1,
        });
        let settings = LayoutCommand::StageSettings { n: Some(3), partitions: Some(partitions), r: None, w: None };
        let apply = LayoutCommand::Apply { version: LayoutVersion(1) };
        for command in joins.chain([settings, apply]) {
            admin.request_at(nodes[0].addr(), RequestBody::Layout(command), options).await.expect("carried out");
        }
        let cluster = Self { nodes, admin };
        while cluster.reports().await.iter().any(|report| report.partitions == 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cluster
    }

    async fn repair(&self, at: usize, command: RepairCommand) -> RepairReport {
        let options = RequestOptions::default().timeout(Duration::from_secs(10));
        match self.admin.request_at(self.nodes[at].addr(), RequestBody::Repair(command), options).await {
            Ok(Reply::Repair(report)) => *report,
            other => panic!("{other:?}"),
        }
    }

    async fn reports(&self) -> Vec<RepairReport> {
        let mut reports = Vec::new();
        for at in 0..self.nodes.len() {
            reports.push(self.repair(at, RepairCommand::Status).await);
        }
        reports
    }

    async fn until_equal(&self, stores: &[MemoryStore], limit: Duration) {
        let began = Instant::now();
        loop {
            let reference = content(&stores[0]);
            if stores.iter().all(|store| content(store) == reference) {
                return;
            }
            assert!(began.elapsed() < limit, "not equal after {limit:?}: {:?}", self.reports().await);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn shutdown(self) {
        for node in &self.nodes {
            node.shutdown(Duration::from_secs(5)).await.expect("syncs");
        }
    }
}
