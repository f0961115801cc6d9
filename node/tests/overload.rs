//! What clients and operators are told by a node whose disk hangs or fails: a node whose disk hangs refuses writes instead of
//! gathering them without end, and what a failed sync leaves unknown is not called undone.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quorate_client::error::Error;
use quorate_client::options::RequestOptions;
use quorate_client::{Blind, Client};
use quorate_node::anti_entropy::AntiEntropyConfig;
use quorate_node::cert::{Ca, Issued, VALIDITY};
use quorate_node::env::Env;
use quorate_node::node::{Mechanisms, Node, NodeConfig};
use quorate_node::store::{Durability, Identity, MemoryStore, Opened, Stats, Store, StoreError, Tree, Writes};
use quorate_transport::Seams;
use quorate_transport::tls::Credentials;
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId};
use quorate_wire::{LayoutCommand, NotApplied, RequestBody, VALUE_LEN_MAX};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_hangs_refuses_writes_before_they_pile_up() {
    let disk = FaultyStore::default();
    let (node, db) = cluster_of_one(&disk).await;
    db.put("before", "1", Blind).await.expect("the disk works");

    disk.hang(true);
    let value = Bytes::from(vec![7; VALUE_LEN_MAX]);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..12 {
        let (db, value) = (db.clone(), value.clone());
        writers.spawn(async move {
            let mut refused = 0;
            for round in 0..60 {
                let key = format!("{writer}/{round}");
                match db.put(key, value.clone(), Blind).timeout(Duration::from_millis(150)).await {
                    Err(Error::NotApplied(NotApplied::Overloaded { .. })) => refused += 1,
                    Err(Error::Indeterminate { .. }) => {}
                    other => panic!("the disk hangs: {other:?}"),
                }
            }
            refused
        });
    }
    let refused: u32 = writers.join_all().await.into_iter().sum();
    assert!(refused > 0, "720 writes of 1 MiB were begun, and none of them can have ended");

    disk.hang(false);
    db.put("after", "1", Blind).timeout(Duration::from_secs(20)).await.expect("the disk works again");
    node.shutdown(Duration::from_secs(5)).await.expect("syncs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_sync_fails_is_not_said_to_have_changed_nothing() {
    let disk = FaultyStore::default();
    let (_node, db) = cluster_of_one(&disk).await;
    disk.sync_fails.store(true, Ordering::SeqCst);
    let command = RequestBody::Layout(LayoutCommand::RotateContextKey);
    let options = RequestOptions::default().timeout(Duration::from_secs(2));
    let error = db.request(command, options).await.expect_err("the sync fails");
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
}

/// A store in memory whose writes of records can be made to hang, and whose syncs can be made to fail.
#[derive(Debug, Clone, Default)]
struct FaultyStore {
    memory: MemoryStore,
    hangs: Arc<(Mutex<bool>, Condvar)>,
    sync_fails: Arc<AtomicBool>,
}

impl FaultyStore {
    fn hang(&self, hang: bool) {
        *self.hangs.0.lock().expect("not poisoned") = hang;
        self.hangs.1.notify_all();
    }
}

impl Store for FaultyStore {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.memory.get(tree, key)
    }

    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if tree == Tree::Data {
            let hangs = self.hangs.0.lock().expect("not poisoned");
            drop(self.hangs.1.wait_while(hangs, |hangs| *hangs).expect("not poisoned"));
        }
        self.memory.insert(tree, key, value)
    }

    fn remove(&self, tree: Tree, key: &[u8]) -> Result<(), StoreError> {
        self.memory.remove(tree, key)
    }

    fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.memory.scan(tree, from, to, limit, bytes_max)
    }

    fn keys(&self, tree: Tree, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        self.memory.keys(tree, from, to, limit)
    }

    fn sync(&self) -> Result<(), StoreError> {
        if self.sync_fails.load(Ordering::SeqCst) {
            return Err(StoreError::Io("the disk is broken".into()));
        }
        self.memory.sync()
    }

    fn writes(&self) -> Option<Writes> {
        self.memory.writes()
    }

    fn stats(&self) -> Stats {
        self.memory.stats()
    }
}

/// One node that holds everything, and a client of it.
async fn cluster_of_one(store: &FaultyStore) -> (Node, Client) {
    let seams = Seams::system();
    let now = (seams.wall_clock)();
    let ca = Ca::make(&seams.random, ClusterId(7), now, VALIDITY).expect("makes a CA");
    let credentials = |issued: Issued| {
        Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes()).expect("fit")
    };
    let node = NodeId::new("n1").expect("legal");
    let config = NodeConfig {
        node,
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        advertise: None,
        http: None,
        join: Vec::new(),
        credentials: credentials(ca.issue_node(&seams.random, node, now, VALIDITY).expect("issues")),
        durability: Durability::Group,
        sync_interval: Duration::from_millis(100),
        mechanisms: Mechanisms::default(),
        anti_entropy: AntiEntropyConfig::default(),
        layout_changes: false,
    };
    let store = store.clone();
    let open = move || {
        let identity = Identity { cluster: ClusterId(7), node, disk: DiskId(1), boot: 1, clean: true };
        Ok(Opened { store: Arc::new(store.clone()), identity, quarantined: None })
    };
    let running = Node::start(config, Env::system(Arc::new(open))).await.expect("starts");

    let admin = credentials(ca.issue_client(&seams.random, "admin", true, now, VALIDITY).expect("issues"));
    let db = Client::builder([running.addr()]).credentials(admin).connect().await.expect("connects");
    let options = RequestOptions::default().timeout(Duration::from_secs(10));
    for command in [
        LayoutCommand::StageJoin { node, addr: running.addr(), zone: "z".into(), weight: 1 },
        LayoutCommand::StageSettings { n: Some(1), partitions: Some(8), r: None, w: None },
        LayoutCommand::Apply { version: LayoutVersion(1) },
    ] {
        db.request(RequestBody::Layout(command), options).await.expect("carried out");
    }
    (running, db)
}
