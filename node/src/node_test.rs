//! How a node stops while its disk is still to be judged.

use std::net::Ipv4Addr;

use quorate_transport::Seams;
use quorate_wire::ids::ClusterId;
use tokio::time::sleep;

use super::*;
use crate::beacons::Remembered;
use crate::by_hand;
use crate::cert::{Ca, VALIDITY};
use crate::layouts;
use crate::store::{self, DiskReserve, SledOptions, Space};
use quorate_core::staging::{Staged, StagedMember};

const CLUSTER: ClusterId = ClusterId(7);

fn name() -> NodeId {
    NodeId::new("n1").expect("legal")
}

async fn start(dir: &std::path::Path, around: impl FnOnce(Env) -> Env) -> Node {
    let seams = Seams::system();
    let now = (seams.wall_clock)();
    let ca = Ca::make(&seams.random, CLUSTER, now, VALIDITY).expect("makes a CA");
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
        durability: Durability::Interval,
        sync_interval: Duration::from_secs(1),
        mechanisms: Mechanisms::default(),
        anti_entropy: AntiEntropyConfig::default(),
        layout_changes: false,
    };
    let dir = dir.to_owned();
    let open = move || store::open(&dir, CLUSTER, name(), &Seams::system().random, &SledOptions::default());
    Node::start(config, around(Env::system(Arc::new(open)))).await.expect("starts")
}

/// Whether the last stop was a clean one. A node that is gone lets go of its store some moments later.
async fn was_clean(dir: &std::path::Path) -> bool {
    let open = || store::open(dir, CLUSTER, name(), &Seams::system().random, &SledOptions::default());
    let mut opened = open();
    for _ in 0..200 {
        if !matches!(opened, Err(StoreError::Locked(_))) {
            break;
        }
        sleep(Duration::from_millis(50)).await;
        opened = open();
    }
    let opened = opened.expect("opens");
    let clean = opened.identity.clean;
    if clean {
        opened.store.close().expect("closes");
    }
    clean
}

/// What a disk lacks after a crash in `interval` mode cannot be noted on it while it is full. A stop must not look clean then: the
/// next start would take the disk for whole.
#[tokio::test]
async fn a_node_whose_disk_could_not_be_judged_is_not_stopped_cleanly() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let limit = Duration::from_secs(5);
    {
        let opened =
            store::open(dir, CLUSTER, name(), &Seams::system().random, &SledOptions::default()).expect("opens");
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7400));
        let mut staged = Staged::default();
        staged.join(name(), StagedMember { disk: opened.identity.disk, addr, zone: "z".into(), weight: 1 });
        staged.settings(Some(1), Some(8), None, None);
        layouts::store_chosen(&*opened.store, staged.layout(CLUSTER));
        opened.store.close().expect("closes");
    }
    let node = start(dir, |env| env).await;
    node.shutdown(limit).await.expect("syncs");
    drop(node);
    assert!(was_clean(dir).await);
    // It dies.
    drop(start(dir, |env| env).await);
    assert!(!was_clean(dir).await);
    let full = |env: Env| env.on_disk(Arc::new(|| Ok(Space { free: 0, total: 1 << 30 })), DiskReserve::Bytes(1 << 20));
    let node = start(dir, full).await;
    node.shutdown(limit).await.expect("syncs");
    drop(node);
    assert!(!was_clean(dir).await, "nothing of what it lacks is noted");
    let node = start(dir, |env| env).await;
    node.shutdown(limit).await.expect("syncs");
    drop(node);
    assert!(was_clean(dir).await);
}

#[tokio::test]
async fn a_disk_that_was_set_back_has_no_vote_from_before_its_data_is_brought_back() {
    let nodes = by_hand::start(by_hand::Kind::of(3)).await;
    let node = &nodes[0];
    let beacons = Beacons::open(&node.store, 1, node.committer.clone());
    let disk = quorate_wire::ids::DiskId(1);
    node.replica.recovery().doubt(Doubt::SetBack);
    assert!(beacons.told(&[Remembered { disk, life: 2, beacon: beacons.start() + 9 }]));
    beacons.announce_set_back();
    let (layouts, replica) = (node.layouts.clone(), node.replica.clone());
    let behind = layouts.watch_behind();
    assert!(!*behind.borrow());
    let follow = tokio::spawn(follow::set_backs(node.id, layouts, replica.clone(), beacons));
    while replica.recovery().must_be_judged() {
        sleep(Duration::from_millis(5)).await;
    }
    assert!(replica.recovery().progress().is_some_and(|progress| progress.reason == Reason::RolledBack));
    assert!(*behind.borrow(), "it was noted before");
    follow.abort();
}
