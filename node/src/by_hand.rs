//! For tests: nodes over real connections on loopback that do nothing by themselves.
//!
//! Nobody gossips, compares, recovers or hands over unless the test has it done, so that a test sees what one step does. Every node is
//! an owner of every partition when there are as many nodes as replicas.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_transport::Seams;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{DiskId, NodeId, OpId, Partition};
use quorate_wire::random::Random;
use quorate_wire::{Key, NotApplied, Quorum};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::anti_entropy::{AntiEntropy, AntiEntropyConfig, Parts};
use crate::beacons::Beacons;
use crate::coordinator::{Coordinator, CoordinatorParts, Defaults, Mechanisms};
use crate::layouts::{self, Current, LayoutStore, Layouts};
use crate::membership::{Liveness, Membership, PeerState};
use crate::peer_wire::{GetLayout, Heal, PeerBody, PeerReply};
use crate::peers::Peers;
use crate::peers::tests::{CLUSTER, Node as Bare, id};
use crate::recovery::Recovery;
use crate::replica::Replica;
use crate::replica_service::ReplicaService;
use crate::store::room::{DiskRoom, Space};
use crate::store::{Committer, DiskReserve, Durability, Executor, MemoryStore, Store};
use quorate_core::bootstrap::Me;
use quorate_core::mint;
use quorate_core::record::Record;
use quorate_core::staging::{Staged, StagedMember};
use quorate_core::version::{Actor, Context, Dot};

/// What kind of cluster it is.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) nodes: usize,
    /// So many more, the last ones, that the layout does not name.
    pub(crate) spare: usize,
    pub(crate) n: u8,
    pub(crate) r: u8,
    pub(crate) w: u8,
    pub(crate) mechanisms: Mechanisms,
    pub(crate) durability: Durability,
}

impl Kind {
    /// As many nodes as replicas, majorities as floors, no fallbacks.
    pub(crate) const fn of(n: u8) -> Self {
        let majority = n / 2 + 1;
        let mechanisms = Mechanisms { fallbacks: false, read_repair: true };
        Self { nodes: n as usize, spare: 0, n, r: majority, w: majority, mechanisms, durability: Durability::Group }
    }

    /// Five nodes and three replicas of each record, with stand-ins.
    pub(crate) const FIVE: Self = {
        let mechanisms = Mechanisms { fallbacks: true, read_repair: true };
        Self { nodes: 5, mechanisms, ..Self::of(3) }
    };
}

/// One node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) addr: std::net::SocketAddr,
    pub(crate) store: MemoryStore,
    pub(crate) replica: Replica,
    pub(crate) anti_entropy: AntiEntropy,
    pub(crate) coordinator: Coordinator,
    pub(crate) current: Arc<Current>,
    pub(crate) peers: Peers,
    pub(crate) layouts: Layouts,
    /// Tells how far its disk is.
    pub(crate) committer: Committer,
    pub(crate) liveness: watch::Sender<Arc<Liveness>>,
    heard: Arc<Heard>,
    _bare: Bare,
}

/// What others have asked of a node.
struct Heard {
    manner: watch::Sender<Manner>,
    asked: Mutex<Vec<(NodeId, PeerBody)>>,
}

/// How a node treats what others ask of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Answers,
    /// As one that serves nothing now.
    Refuses,
    /// It answers once it has another manner.
    Silent,
}

/// Starts nodes n1, n2, .. that know each other and their layout.
pub(crate) async fn start(kind: Kind) -> Vec<Node> {
    let names: Vec<String> = (1..=kind.nodes + kind.spare).map(|i| format!("n{i}")).collect();
    let anywhere = "127.0.0.1:0".parse().expect("an address");
    let bare: Vec<Bare> = names.iter().map(|name| Bare::bare(name, anywhere, Arc::new(|_| Ok(())))).collect();
    let mut staged = Staged::default();
    for (at, (name, bare)) in names.iter().zip(&bare).enumerate().take(kind.nodes) {
        let member = StagedMember { disk: disk(at), addr: bare.addr, zone: name.clone(), weight: 1 };
        staged.join(id(name), member);
    }
    staged.settings(Some(kind.n), Some(PARTITIONS), Some(kind.r), Some(kind.w));
    let layout = staged.layout(CLUSTER);
    let addrs: Vec<_> = bare.iter().map(|bare| bare.addr).collect();
    let mut nodes = Vec::new();
    for (at, (name, bare)) in names.iter().zip(bare).enumerate() {
        let me = id(name);
        for (name, addr) in names.iter().zip(&addrs) {
            bare.peers.learn(id(name), *addr);
        }
        let store = MemoryStore::new();
        layouts::store_chosen(&store, layout.clone());
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let failed = Arc::new(|why| panic!("{why}"));
        let (executor, seldom) = (Executor::Inline, Duration::from_secs(3600));
        let committer = Committer::start(shared.clone(), executor.clone(), kind.durability, seldom, failed.clone());
        let random = Random::from_seed(at as u64 + 1);
        let recovery = Recovery::open(shared.clone()).expect("readable");
        let replica = Replica::new(me, shared.clone(), executor.clone(), committer.clone(), random.fork(), recovery);
        replica.set_partitions(PARTITIONS);
        let (liveness, believed) = watch::channel(Arc::<Liveness>::default());
        let membership = Membership::told(believed);
        let who = Me { node: me, disk: disk(at), cluster: CLUSTER };
        let kept =
            LayoutStore::open(shared.clone(), (executor.clone(), executor), who, failed).await.expect("readable");
        let layouts = Layouts::start(Arc::new(kept), bare.peers.clone(), &membership, random.fork());
        let current = layouts.current().expect("it was chosen");
        let coordinator = Coordinator::new(CoordinatorParts {
            me,
            cluster: CLUSTER,
            layouts: layouts.clone(),
            membership: membership.clone(),
            replica: replica.clone(),
            peers: bare.peers.clone(),
            defaults: Defaults { r: Quorum::Majority, w: Quorum::Majority },
            mechanisms: kind.mechanisms,
            wall_clock: Seams::system().wall_clock,
        });
        let anti_entropy = AntiEntropy::without_tasks(Parts {
            me,
            config: AntiEntropyConfig::default(),
            layouts: layouts.clone(),
            membership,
            replica: replica.clone(),
            peers: bare.peers.clone(),
            beacons: Beacons::open(&store, 1, committer.clone()),
            random,
        });
        let service = ReplicaService::new(me, layouts.clone(), replica.clone(), coordinator.clone());
        let heard = Arc::new(Heard { manner: watch::Sender::new(Manner::Answers), asked: Mutex::default() });
        let peers = bare.peers.clone();
        peers.set_handler({
            let (heard, healing, layouts) = (heard.clone(), anti_entropy.clone(), layouts.clone());
            Arc::new(move |from, request, timeout, room| {
                let (heard, healing, layouts) = (heard.clone(), healing.clone(), layouts.clone());
                let service = service.clone();
                Box::pin(async move {
                    heard.asked.lock().expect("no panic").push((from, request.body.clone()));
                    let mut manner = heard.manner.subscribe();
                    let manner = *manner.wait_for(|manner| *manner != Manner::Silent).await.expect("it is kept");
                    match request.body {
                        PeerBody::LayoutState(GetLayout) => layouts.state().into(),
                        _ if manner == Manner::Refuses => {
                            let why = "the test wants it so".into();
                            PeerReply::Refused(NotApplied::NotServing { node: me, why })
                        }
                        PeerBody::Heal(Heal { label, request }) => {
                            healing.answer(from, label, request, timeout).await.into()
                        }
                        body => service.serve_peer(from, body, timeout, room).await,
                    }
                })
            })
        });
        nodes.push(Node {
            id: me,
            addr: bare.addr,
            store,
            replica,
            anti_entropy,
            coordinator,
            current,
            peers,
            layouts,
            committer,
            liveness,
            heard,
            _bare: bare,
        });
    }
    nodes
}

impl Node {
    /// From now on it treats so what others ask of it.
    pub(crate) fn is(&self, manner: Manner) {
        self.heard.manner.send_replace(manner);
    }

    /// From now on it believes that these are down, and all others up.
    pub(crate) fn believes_down(&self, down: &[NodeId]) {
        let state = |member: &quorate_core::layout::Member| {
            let up = !down.contains(&member.node);
            (member.node, PeerState { addr: member.addr, up, since: Instant::now() })
        };
        let current = self.layouts.current().expect("it was chosen");
        let members = current.live().versions().iter().flat_map(|placed| &placed.layout.members);
        self.liveness.send_replace(Arc::new(members.map(state).collect()));
    }

    /// What others have asked since this was last called.
    pub(crate) fn asked(&self) -> Vec<(NodeId, PeerBody)> {
        std::mem::take(&mut *self.heard.asked.lock().expect("no panic"))
    }

    /// Has it hold a record, as if a coordinator had sent it.
    pub(crate) async fn hold(&self, key: &Blob, record: &Record) {
        let merged = self.replica.merge(self.partition_of(key), key, record.clone()).await.expect("merged");
        merged.ticket.durable().await.expect("durable");
    }

    /// What lies there, served or not.
    pub(crate) async fn held(&self, key: &Blob) -> Option<Record> {
        self.replica.held(self.partition_of(key), key).await.expect("readable")
    }

    /// Lets its disk, of 1,000 bytes of which 800 are kept free, have so much room; the number can be changed.
    pub(crate) fn has_room(&self, free: u64) -> (Arc<AtomicU64>, DiskRoom) {
        let left = Arc::new(AtomicU64::new(free));
        let asked = left.clone();
        let ask = Arc::new(move || Ok(Space { free: asked.load(Ordering::Relaxed), total: 1000 }));
        let room = DiskRoom::new(Some(ask), DiskReserve::Bytes(800));
        self.replica.set_room(room.clone());
        (left, room)
    }

    pub(crate) fn partition_of(&self, key: &[u8]) -> Partition {
        self.current.partition_of(key)
    }
}

/// An encoded key of a partition.
pub(crate) fn key_in(node: &Node, partition: Partition, number: u32) -> Blob {
    let keys = (0..).map(|i: u32| Blob::from(Key::plain(format!("key-{i}"))));
    let mut inside = keys.filter(|key| node.partition_of(key) == partition);
    inside.nth(number as usize).expect("there are as many as one likes")
}

/// A record with one value that writer number `by` has written without having seen anything.
pub(crate) fn record(by: u32, value: &str) -> Record {
    let actor = Actor { node: id(&format!("writer{by}")), incarnation: 1 };
    let (dot, value) = (Dot { actor, counter: 1 }, Some(Blob::copy_from(value.as_bytes())));
    mint::mint(Record::default(), dot, OpId(by.into()), value, &Context::new()).record
}

/// A record of a key that writer number `by` has deleted without having seen anything.
pub(crate) fn deletion(by: u32) -> Record {
    let actor = Actor { node: id(&format!("writer{by}")), incarnation: 1 };
    mint::mint(Record::default(), Dot { actor, counter: 1 }, OpId(by.into()), None, &Context::new()).record
}

fn disk(at: usize) -> DiskId {
    DiskId(at as u128 + 1)
}

/// Few, so that a tree of each is summed up in no time.
const PARTITIONS: u16 = 4;
