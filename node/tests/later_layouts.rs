//! Layouts after the first one, over whole nodes that gossip: who was away, who joins and who only looks on learns them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::Client;
use quorate_client::options::RequestOptions;
use quorate_node::anti_entropy::AntiEntropyConfig;
use quorate_node::cert::{Ca, Issued, VALIDITY};
use quorate_node::env::Env;
use quorate_node::node::{Mechanisms, Node, NodeConfig};
use quorate_node::store::{Durability, Identity, MemoryStore, Opened};
use quorate_transport::Seams;
use quorate_transport::tls::Credentials;
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId};
use quorate_wire::{Applied, LayoutCommand, LayoutReport, Reply, RequestBody};

const CLUSTER: ClusterId = ClusterId(7);
/// How often something that takes a moment is looked at, ten times a second.
const RETRIES: u32 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_learns_the_next_layout() {
    let mut cluster = Cluster::new();
    for at in 0..4 {
        cluster.run(at).await;
    }
    for at in 0..3 {
        cluster.layout(0, cluster.join(at)).await.expect("staged");
    }
    let settings = LayoutCommand::StageSettings { n: Some(3), partitions: Some(8), r: None, w: None };
    cluster.layout(0, settings).await.expect("staged");
    cluster.layout(0, LayoutCommand::Apply { version: LayoutVersion(1) }).await.expect("applied");
    for at in 0..4 {
        cluster.knows(at, 1).await;
    }
    cluster.layout(0, cluster.join(3)).await.expect("staged");
    let apply = LayoutCommand::Apply { version: LayoutVersion(2) };
    if !cfg!(feature = "simulation") {
        // As it ships.
        let refused = cluster.layout(0, apply).await.expect_err("no data would move");
        assert!(refused.contains("cannot be changed yet"), "{refused}");
        return;
    }

    cluster.stop(2).await;
    let report = cluster.layout(0, apply).await.expect("two of three decide");
    assert_eq!(report.applied, Some(Applied::AsStaged), "{report:?}");
    let hash = report.current.hash;
    cluster.run(2).await;
    cluster.run(4).await;
    for at in 0..5 {
        let report = cluster.knows(at, 2).await;
        // The older one goes as soon as every partition has moved.
        assert_eq!((&report.current.hash, report.live.last()), (&hash, Some(&LayoutVersion(2))));
        assert_eq!(report.context_keys.len(), 1, "n{at} learns the keys with it");
    }
    // A node that has started again says so too, before it has talked to anybody.
    cluster.stop(3).await;
    cluster.run(3).await;
    assert_eq!(cluster.layout(3, LayoutCommand::Show).await.expect("shown").current.hash, hash);
    assert_eq!(cluster.not_serving(3).await, None);
    assert_eq!(cluster.not_serving(4).await.as_deref(), Some("n4 is no member of layout 2"));
}

fn node(at: usize) -> NodeId {
    NodeId::new(&format!("n{at}")).expect("legal")
}

fn options() -> RequestOptions {
    RequestOptions::default().timeout(Duration::from_secs(10))
}

struct Cluster {
    ca: Ca,
    seams: Seams,
    stores: [MemoryStore; 5],
    addrs: [SocketAddr; 5],
    nodes: [Option<Node>; 5],
    boots: [u64; 5],
}

impl Cluster {
    fn new() -> Self {
        let seams = Seams::system();
        let ca = Ca::make(&seams.random, CLUSTER, (seams.wall_clock)(), VALIDITY).expect("makes a CA");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { ca, seams, stores: Default::default(), addrs: [any; 5], nodes: Default::default(), boots: [0; 5] }
    }

    async fn run(&mut self, at: usize) {
        let now = (self.seams.wall_clock)();
        let issued = self.ca.issue_node(&self.seams.random, node(at), now, VALIDITY).expect("issues");
        let config = NodeConfig {
            node: node(at),
            listen: self.addrs[at],
            advertise: None,
            http: None,
            join: self.addrs.iter().copied().filter(|addr| addr.port() != 0 && *addr != self.addrs[at]).collect(),
            credentials: credentials(&issued),
            durability: Durability::Group,
            sync_interval: Duration::from_millis(100),
            mechanisms: Mechanisms::default(),
            anti_entropy: AntiEntropyConfig::default(),
        };
        self.boots[at] += 1;
        let (store, boot) = (self.stores[at].clone(), self.boots[at]);
        let open = move || {
            let identity =
                Identity { cluster: CLUSTER, node: node(at), disk: DiskId(at as u128 + 1), boot, clean: true };
            Ok(Opened { store: Arc::new(store.clone()), identity, quarantined: None })
        };
        // Tasks of the run before let go of the port when they are next scheduled.
        for _ in 0..500 {
            if std::net::UdpSocket::bind(self.addrs[at]).is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let started = Node::start(config, Env::system(Arc::new(open))).await.expect("starts");
        self.addrs[at] = started.addr();
        self.nodes[at] = Some(started);
    }

    async fn stop(&mut self, at: usize) {
        let node = self.nodes[at].take().expect("it runs");
        node.shutdown(Duration::from_secs(5)).await.expect("syncs");
    }

    fn join(&self, at: usize) -> LayoutCommand {
        LayoutCommand::StageJoin { node: node(at), addr: self.addrs[at], zone: format!("z{at}"), weight: 1 }
    }

    async fn layout(&self, at: usize, command: LayoutCommand) -> Result<LayoutReport, String> {
        let body = RequestBody::Layout(command);
        match self.admin(at).await.request_at(self.addrs[at], body, options()).await {
            Ok(Reply::Layout(report)) => Ok(*report),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The node comes to know this version as the newest one.
    async fn knows(&self, at: usize, version: u64) -> LayoutReport {
        for _ in 0..RETRIES {
            let report = self.layout(at, LayoutCommand::Show).await.expect("shown");
            if report.current.version == LayoutVersion(version) {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("n{at} does not come to know layout {version}");
    }

    async fn not_serving(&self, at: usize) -> Option<String> {
        self.admin(at).await.status_at(self.addrs[at]).await.expect("a status").not_serving
    }

    async fn admin(&self, at: usize) -> Client {
        let now = (self.seams.wall_clock)();
        let issued = self.ca.issue_client(&self.seams.random, "admin", true, now, VALIDITY).expect("issues");
        Client::builder([self.addrs[at]]).credentials(credentials(&issued)).connect().await.expect("connects")
    }
}

fn credentials(issued: &Issued) -> Credentials {
    Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes()).expect("fit")
}
