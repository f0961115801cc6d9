//! A node that is gone holds nothing: neither its port nor its store.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use quorate_node::anti_entropy::AntiEntropyConfig;
use quorate_node::cert::{Ca, VALIDITY};
use quorate_node::env::Env;
use quorate_node::node::{Mechanisms, Node, NodeConfig};
use quorate_node::store::{self, Durability, Identity, MemoryStore, Opened, SledOptions, Store, StoreError, Tree};
use quorate_transport::Seams;
use quorate_transport::tls::Credentials;
use quorate_wire::ids::{ClusterId, DiskId, NodeId};

/// How a node ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Shutdown,
    Drop,
    /// The runtime goes first, as in `quorate dev kill`.
    Runtime,
}

#[test]
fn a_node_that_is_gone_holds_neither_port_nor_store() {
    for end in [End::Shutdown, End::Drop, End::Runtime] {
        let store: Arc<Mutex<Option<Weak<dyn Store>>>> = Arc::default();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("starts");
        let node = runtime.block_on(start(Arc::clone(&store)));
        let addr = node.addr();
        match end {
            End::Shutdown => runtime.block_on(node.shutdown(Duration::from_secs(5))).expect("syncs"),
            End::Drop => {}
            End::Runtime => runtime.shutdown_background(),
        }
        drop(node);
        let weak = store.lock().expect("not poisoned").clone().expect("the store was opened");
        let free = || weak.upgrade().is_none() && std::net::UdpSocket::bind(addr).is_ok();
        let waits = (0..200).find(|_| {
            std::thread::sleep(Duration::from_millis(50));
            free()
        });
        assert!(
            waits.is_some(),
            "{end:?}: 10 s later the store has {} holders and the port is {}",
            weak.strong_count(),
            if std::net::UdpSocket::bind(addr).is_ok() { "free" } else { "taken" }
        );
    }
}

/// A store that was closed takes no sync any more, and that is no failure.
#[tokio::test]
async fn a_node_that_was_shut_down_does_not_claim_that_a_sync_failed() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = dir.path().to_owned();
    let kept: Arc<Mutex<Option<Arc<dyn Store>>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let node = start_with(Durability::Interval, Duration::from_secs(1), move || {
        let random = Seams::system().random;
        let opened = store::open(&disk, ClusterId(7), name(), &random, &SledOptions::default())?;
        *keep.lock().expect("not poisoned") = Some(Arc::clone(&opened.store));
        Ok(opened)
    });
    let node = node.await;
    let store = kept.lock().expect("not poisoned").take().expect("opened");
    store.insert(Tree::Meta, b"what the next sync", b"would be for").expect("there is room");
    node.shutdown(Duration::from_secs(5)).await.expect("syncs");
    let stopped = tokio::time::timeout(Duration::from_millis(1500), node.stopped()).await;
    assert_eq!(stopped.ok(), None);
}

async fn start(opened: Arc<Mutex<Option<Weak<dyn Store>>>>) -> Node {
    let open = move || {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        *opened.lock().expect("not poisoned") = Some(Arc::downgrade(&store));
        let identity = Identity { cluster: ClusterId(7), node: name(), disk: DiskId(1), boot: 1, clean: true };
        Ok(Opened { store, identity, quarantined: None })
    };
    start_with(Durability::Group, Duration::from_millis(100), open).await
}

fn name() -> NodeId {
    NodeId::new("n1").expect("legal")
}

async fn start_with(
    durability: Durability,
    sync_interval: Duration,
    open: impl Fn() -> Result<Opened, StoreError> + Send + Sync + 'static,
) -> Node {
    let seams = Seams::system();
    let now = (seams.wall_clock)();
    let ca = Ca::make(&seams.random, ClusterId(7), now, VALIDITY).expect("makes a CA");
    let issued = ca.issue_node(&seams.random, name(), now, VALIDITY).expect("issues");
    let credentials =
        Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes()).expect("fit");
    let config = NodeConfig {
        node: name(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        advertise: None,
        http: None,
        join: Vec::new(),
        credentials,
        durability,
        sync_interval,
        mechanisms: Mechanisms::default(),
        anti_entropy: AntiEntropyConfig::default(),
        layout_changes: false,
    };
    Node::start(config, Env::system(Arc::new(open))).await.expect("starts")
}
