//! Nodes of one cluster over real connections on loopback, with stores in memory that outlive them.

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
use quorate_wire::LayoutCommand;
use quorate_wire::ids::{ClusterId, DiskId, NodeId};

pub(crate) const CLUSTER: ClusterId = ClusterId(7);

/// How often something that takes a moment is looked at, ten times a second.
pub(crate) const RETRIES: u32 = 300;

pub(crate) fn node(at: usize) -> NodeId {
    NodeId::new(&format!("n{}", at + 1)).expect("legal")
}

pub(crate) fn options() -> RequestOptions {
    RequestOptions::default().timeout(Duration::from_secs(10))
}

pub(crate) struct Cluster {
    ca: Ca,
    pub(crate) seams: Seams,
    pub(crate) stores: Vec<MemoryStore>,
    addrs: Vec<SocketAddr>,
    nodes: Vec<Option<Node>>,
    boots: Vec<u64>,
}

impl Cluster {
    /// None of them runs yet.
    pub(crate) fn new(count: usize) -> Self {
        let seams = Seams::system();
        let ca = Ca::make(&seams.random, CLUSTER, (seams.wall_clock)(), VALIDITY).expect("makes a CA");
        let stores = (0..count).map(|_| MemoryStore::new()).collect();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let nodes = (0..count).map(|_| None).collect();
        Self { ca, seams, stores, addrs: vec![any; count], nodes, boots: vec![0; count] }
    }

    pub(crate) async fn run(&mut self, at: usize) {
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
            layout_changes: true,
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

    pub(crate) async fn stop(&mut self, at: usize) {
        let node = self.nodes[at].take().expect("it runs");
        node.shutdown(Duration::from_secs(5)).await.expect("syncs");
    }

    /// Stages one of them as a member.
    pub(crate) fn join(&self, at: usize) -> LayoutCommand {
        LayoutCommand::StageJoin { node: node(at), addr: self.addr(at), zone: format!("z{at}"), weight: 1 }
    }

    /// Those that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|at| self.nodes[*at].is_some()).collect()
    }

    pub(crate) fn addr(&self, at: usize) -> SocketAddr {
        self.addrs[at]
    }

    pub(crate) async fn client(&self, admin: bool) -> Client {
        let now = (self.seams.wall_clock)();
        let name = if admin { "admin" } else { "joe" };
        let issued = self.ca.issue_client(&self.seams.random, name, admin, now, VALIDITY).expect("issues");
        let running = self.running().into_iter().map(|at| self.addr(at));
        Client::builder(running).credentials(credentials(&issued)).connect().await.expect("connects")
    }
}

fn credentials(issued: &Issued) -> Credentials {
    Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes()).expect("fit")
}
