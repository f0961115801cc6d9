//! From a seed to everything that is going to happen: a plain value that can be printed, kept, changed and shrunk.
//!
//! Plans are drawn "swarm style": each life leaves classes of faults and kinds of operations out, because faults mask each
//! other's bugs, and what is rare among everything is common among few. (Groce et al., "Swarm Testing", 2012.)
//!
//! Each part of a plan is drawn from a generator of its own, so that a change in how one is drawn leaves the others as they
//! were.

use std::collections::BTreeSet;
use std::fmt;

use quorate_core::ring::{Ring, RingMember};
use quorate_node::fault_points::TABLES;
use quorate_wire::fault_points::{self, Effect, Point};
use quorate_wire::ids::NodeId;
use quorate_wire::{Key, Quorum};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::socket::PacketFaults;

mod stories;

/// One life of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Seeds what the plan does not say: nodes, clients, network and disks draw from generators that come from it.
    pub seed: u64,
    /// The zone of each member of the first layout; nodes are counted from 0 and named `n1`, `n2`, ..
    pub zones: Vec<u8>,
    /// Nodes that are in no layout at first; they are counted on from the members.
    #[serde(default)]
    pub spares: Vec<Spare>,
    /// Replicas of each key.
    pub n: u8,
    /// The layout's floors; nothing for what a layout has if nobody asks for others.
    #[serde(default)]
    pub floors: Option<Floors>,
    /// How many partitions the ring has; few, so that keys share them.
    pub partitions: u16,
    /// When a node acknowledges.
    pub durability: Durability,
    /// The network while nothing is wrong with it.
    pub network: Network,
    /// What the clients do.
    pub workload: Workload,
    /// What each node's requests may take of its memory, in KiB. With little every bound is met.
    #[serde(default = "plenty_kib")]
    pub request_memory_kib: u32,
    /// What goes wrong, in the order of time.
    pub faults: Vec<Fault>,
    /// What operators do to the layout while the cluster runs, in the order of time.
    #[serde(default)]
    pub changes: Vec<LayoutChange>,
    /// Disks lose what the faults say, though no clean copy is left then: for plans that are made by hand, to see what happens.
    /// A plan that is drawn spares enough copies that every acknowledged write must survive.
    #[serde(default)]
    pub reckless: bool,
    /// Any disk may lose what the faults say, one after the other: once as many others hold again what they had lost.
    #[serde(default)]
    pub in_turn: bool,
    /// Where the code itself misbehaves, until the faults are over.
    pub points: Points,
    /// What the cluster does to heal itself.
    pub mechanisms: Mechanisms,
    /// What stays broken for a while when the faults are over; nothing if all is mended at once.
    pub aftermath: Option<Aftermath>,
    /// How long the clients and the faults go on, in milliseconds of simulated time.
    pub active_ms: u32,
    /// How long the cluster then has to settle before it is judged.
    pub settle_ms: u32,
}

/// A node that is in no layout at first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spare {
    /// Its zone.
    pub zone: u8,
    /// When it starts, in milliseconds from when the clients begin; nothing if it runs from the first moment.
    #[serde(default)]
    pub from_ms: Option<u32>,
}

/// An operator's wish: what the next layout is to differ in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutChange {
    /// When the operator begins, in milliseconds.
    pub at_ms: u32,
    /// To which node the operator speaks.
    pub at: u8,
    /// What is staged, in this order, and applied as one version.
    pub stage: Vec<Staging>,
    /// Nodes that are no members any more are stopped for good, once nothing lies on them.
    #[serde(default)]
    pub stops: bool,
    /// When another layout gets the version that this one was meant for, the operator wants the same of the next one.
    #[serde(default)]
    pub insists: bool,
}

/// One difference between a layout and the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Staging {
    /// A node becomes a member.
    Join(u8),
    /// A member goes.
    Leave(u8),
    /// A node takes the place of a member.
    Replace {
        /// Who goes.
        old: u8,
        /// Who comes.
        new: u8,
    },
    /// A member gets another share of the data.
    Weight {
        /// Whose.
        node: u8,
        /// Which; members begin with 1.
        weight: u32,
    },
}

impl Staging {
    /// The member that is none any more by it.
    pub fn goes(&self) -> Option<u8> {
        match self {
            Self::Leave(node) | Self::Replace { old: node, .. } => Some(*node),
            Self::Join(_) | Self::Weight { .. } => None,
        }
    }

    /// The nodes that it names.
    pub fn nodes(&self) -> BTreeSet<u8> {
        match self {
            Self::Join(node) | Self::Leave(node) | Self::Weight { node, .. } => [*node].into(),
            Self::Replace { old, new } => [*old, *new].into(),
        }
    }
}

/// The least quorums of which the layout promises what it does: R + W > N.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floors {
    /// Of reads.
    pub r: u8,
    /// Of writes.
    pub w: u8,
}

/// Which of [the points of misbehaviour](quorate_wire::fault_points) are on, and how often one that is passed fires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Points {
    /// The names of those that are on.
    pub on: BTreeSet<String>,
    /// In how many of a thousand cases one fires.
    pub per_mille: u16,
}

/// What a cluster does to heal itself. They mask each other's bugs, so that some lives do without one or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mechanisms {
    /// A healthy node stands in for a primary that is down or late.
    pub fallbacks: bool,
    /// Whoever stood in keeps a hint and hands it over.
    pub hints: bool,
    /// A read mends the stale replicas that it has met.
    pub read_repair: bool,
    /// Replicas compare their partitions and exchange what differs.
    pub anti_entropy: bool,
}

/// A minority of nodes that stays broken when all other faults are over, so that the rest has to serve without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aftermath {
    /// Which nodes.
    pub broken: BTreeSet<u8>,
    /// In what way.
    pub how: Broken,
    /// Everything is mended first, and these nodes break just before the others are asked to serve without them. Else the others have
    /// had the time to notice.
    pub sudden: bool,
    /// Just before the others are asked, some records of one of them are damaged, if there are copies enough.
    #[serde(default)]
    pub rots: bool,
}

/// How nodes stay broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Broken {
    /// Their processes are dead.
    Down,
    /// They hear and are heard by each other only.
    Cut,
    /// They hear everybody, and nobody hears them.
    Mute,
    /// Everybody hears them, and they hear nobody.
    Deaf,
    /// They neither send nor receive; all of it arrives at the end.
    Paused,
    /// They reach clients, and of the other nodes what is said.
    FromPeers(Hearing),
}

/// What a node that is cut off from all other nodes, but not from clients, has left of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hearing {
    /// Nothing.
    Neither,
    /// They hear it, and it hears nobody.
    Deaf,
    /// It hears them, and nobody hears it.
    Mute,
}

/// The durability modes whose promise holds through crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// A sync for each write.
    Always,
    /// A sync for many writes.
    Group,
}

/// Latencies between any two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The least, in milliseconds.
    pub latency_min_ms: u32,
    /// The most, in milliseconds.
    pub latency_max_ms: u32,
    /// Ten times the steepness of the distribution: large ones keep most latencies near the least.
    pub curve_x10: u32,
}

/// What the clients do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// How many clients there are; each does one thing at a time.
    pub clients: u8,
    /// How many operations each does at most.
    pub operations: u32,
    /// How many keys there are.
    pub keys: u32,
    /// A thousand times the exponent of the keys' Zipf distribution; 0 is uniform.
    pub skew_x1000: u32,
    /// The shortest value, in bytes; a value carries its operation's number, so at least 8.
    pub value_len_min: u32,
    /// The longest value, in bytes.
    pub value_len_max: u32,
    /// What kinds of operations, by weight.
    pub mix: Mix,
    /// The longest pause between two operations of a client, in milliseconds.
    pub pause_max_ms: u32,
    /// After so many operations a client forgets what it has seen.
    pub session_len: u32,
    /// The quorums of reads and writes; each operation takes one pair of them.
    pub quorums: Vec<(Quorum, Quorum)>,
    /// How many of a hundred operations are strict.
    pub strict_percent: u8,
    /// How many of a hundred reads are monotonic.
    pub monotonic_percent: u8,
    /// The deadline of an operation, in milliseconds.
    pub timeout_ms: u32,
    /// How many of a hundred writes send a context that no node has issued for their key, which must be refused. If any do, the audit
    /// forges contexts as well.
    pub foreign_percent: u8,
    /// How many of a hundred operations read a whole partition.
    pub scan_percent: u8,
    /// How many of a hundred puts and deletes whose outcome is unknown are repeated, some time later, by their operation ids.
    pub repeat_percent: u8,
    /// They are repeated by another client, which does not know to whom they had gone.
    pub repeat_elsewhere: bool,
    /// How often a new context key is made; of all that are made nodes know the newest four.
    #[serde(default)]
    pub rotations: u8,
}

/// Weights of the kinds of operations; 0 leaves a kind out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// Reads.
    pub get: u8,
    /// Writes with the newest context that the session has of the key.
    pub put: u8,
    /// Writes without a context.
    pub blind_put: u8,
    /// Deletes with the newest context that the session has of the key.
    pub delete: u8,
    /// Reads, and at once writes what was read and one's own.
    pub update: u8,
}

/// Something that goes wrong for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When it begins, in milliseconds.
    pub at_ms: u32,
    /// How long it lasts.
    pub for_ms: u32,
    /// What it is.
    pub kind: FaultKind,
}

/// What can go wrong. Nodes are counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum FaultKind {
    /// Nobody of these and nobody of the others hear each other. Clients are on the others' side.
    Partition(BTreeSet<u8>),
    /// The same, but this one node of the others is heard by all and hears all.
    Bridge {
        /// One side.
        side: BTreeSet<u8>,
        /// The node in the middle.
        bridge: u8,
    },
    /// What the one sends does not reach the other; the other way round it does.
    OneWay {
        /// Who is not heard.
        from: u8,
        /// Who does not hear.
        to: u8,
    },
    /// The node's cable is bad.
    Packets {
        /// Whose.
        node: u8,
        /// In what way.
        faults: PacketFaults,
    },
    /// What the node sends and receives takes longer by so much, in milliseconds.
    Latency {
        /// Which node.
        node: u8,
        /// By how much.
        more_ms: u32,
    },
    /// The node neither sends nor receives; all of it arrives at the end.
    Pause(u8),
    /// The node dies with what it has not synced, and starts again at the end.
    Crash {
        /// Which node.
        node: u8,
        /// The write that was under way is torn.
        torn: bool,
    },
    /// The node dies, starts, and dies again so many milliseconds later: in the middle of its recovery.
    CrashInRecovery {
        /// Which node.
        node: u8,
        /// How long after its start.
        again_after_ms: u32,
    },
    /// All of these die at the same moment, as in a power cut; they start again at the end.
    PowerCut(BTreeSet<u8>),
    /// One node after the other is stopped cleanly and started again; the time is shared among them.
    RollingRestart,
    /// The node's next sync fails, which ends it; it starts again at the end.
    FailedSync(u8),
    /// The insert of the node's next record fails; whether the record is there all the same nobody knows.
    FailedInsert(u8),
    /// The node's disk takes half of the nodes' reserve more than it holds now; there is room again at the end.
    FullDisk(u8),
    /// Each call to the node's disk takes so many milliseconds.
    SlowDisk {
        /// Which node.
        node: u8,
        /// How long each takes.
        latency_ms: u32,
    },
    /// The node's wall clock is wrong by so many milliseconds.
    WrongClock {
        /// Which node.
        node: u8,
        /// By how much.
        offset_ms: i64,
    },
    /// A record on the node's disk is damaged.
    CorruptRecord(u8),
    /// The node dies and starts again at the end with an empty disk and its old name.
    EmptyDisk(u8),
    /// The node dies and starts again at the end with its disk as it was so many milliseconds before.
    RolledBackDisk {
        /// Which node.
        node: u8,
        /// How far back.
        back_ms: u32,
    },
    /// All owners of one partition die at the same moment and stay away, so that others have to stand in for all of them.
    OwnersDown(BTreeSet<u8>),
    /// The node is cut off from everybody and back again, a second each.
    Flap(u8),
    /// A record on the node's disk is damaged, and at the end another one of the same leaf of its hash tree: in the middle of a recovery.
    CorruptLeaf(u8),
    /// The node's disk acknowledges syncs and keeps nothing of them; then its power fails, and it starts again at the end.
    LyingDisk(u8),
    /// The node is cut off from all other nodes. Clients reach it as before.
    CutFromPeers {
        /// Which node.
        node: u8,
        /// What it has left of them.
        hearing: Hearing,
    },
    /// Nobody of the one and nobody of the other hear each other. All others, clients included, hear both.
    Apart {
        /// Some nodes.
        one: BTreeSet<u8>,
        /// Others.
        other: BTreeSet<u8>,
    },
    /// The node dies with its disk, and never comes back.
    DiesForGood(u8),
    /// The node dies, and starts again at the end at another address.
    Moves(u8),
    /// A client asks the node for more and more, and takes no answer.
    UnreadAnswers(u8),
    /// A client begins more and more requests at the node, and completes none.
    UnfinishedRequests(u8),
}

/// The kinds of faults without their details: what a life has or leaves out, and what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FaultClass {
    /// [`FaultKind::Partition`].
    Partition,
    /// [`FaultKind::Bridge`].
    Bridge,
    /// [`FaultKind::OneWay`].
    OneWay,
    /// [`FaultKind::Packets`].
    Packets,
    /// [`FaultKind::Latency`].
    Latency,
    /// [`FaultKind::Pause`].
    Pause,
    /// [`FaultKind::Crash`].
    Crash,
    /// [`FaultKind::CrashInRecovery`].
    CrashInRecovery,
    /// [`FaultKind::PowerCut`].
    PowerCut,
    /// [`FaultKind::RollingRestart`].
    RollingRestart,
    /// [`FaultKind::FailedSync`].
    FailedSync,
    /// [`FaultKind::FailedInsert`].
    FailedInsert,
    /// [`FaultKind::FullDisk`].
    FullDisk,
    /// [`FaultKind::SlowDisk`].
    SlowDisk,
    /// [`FaultKind::WrongClock`].
    WrongClock,
    /// [`FaultKind::CorruptRecord`].
    CorruptRecord,
    /// [`FaultKind::EmptyDisk`].
    EmptyDisk,
    /// [`FaultKind::RolledBackDisk`].
    RolledBackDisk,
    /// [`FaultKind::OwnersDown`].
    OwnersDown,
    /// [`FaultKind::Flap`].
    Flap,
    /// [`FaultKind::CorruptLeaf`].
    CorruptLeaf,
    /// [`FaultKind::LyingDisk`].
    LyingDisk,
    /// [`FaultKind::CutFromPeers`], also as an aftermath.
    CutFromPeers,
    /// [`FaultKind::Apart`].
    Apart,
    /// [`FaultKind::DiesForGood`].
    DiesForGood,
    /// [`FaultKind::Moves`].
    Moves,
    /// [`FaultKind::UnreadAnswers`].
    UnreadAnswers,
    /// [`FaultKind::UnfinishedRequests`].
    UnfinishedRequests,
    /// [`LayoutChange`]: no fault, but drawn and left out as they are.
    LayoutChange,
}

impl FaultClass {
    /// Every class.
    pub const ALL: [Self; 29] = [
        Self::Partition,
        Self::Bridge,
        Self::OneWay,
        Self::Packets,
        Self::Latency,
        Self::Pause,
        Self::Crash,
        Self::CrashInRecovery,
        Self::PowerCut,
        Self::RollingRestart,
        Self::FailedSync,
        Self::FailedInsert,
        Self::FullDisk,
        Self::SlowDisk,
        Self::WrongClock,
        Self::CorruptRecord,
        Self::EmptyDisk,
        Self::RolledBackDisk,
        Self::OwnersDown,
        Self::Flap,
        Self::CorruptLeaf,
        Self::LyingDisk,
        Self::CutFromPeers,
        Self::Apart,
        Self::DiesForGood,
        Self::Moves,
        Self::UnreadAnswers,
        Self::UnfinishedRequests,
        Self::LayoutChange,
    ];

    /// Those that came when lives had names already: they are drawn by themselves, so that the others are drawn as before.
    const LATER: [Self; 2] = [Self::CorruptLeaf, Self::LyingDisk];

    /// Whether it is a client that misbehaves.
    pub fn is_of_a_client(self) -> bool {
        matches!(self, Self::UnreadAnswers | Self::UnfinishedRequests)
    }

    /// Whether it is drawn by itself.
    fn is_later(self) -> bool {
        Self::LATER.contains(&self)
            || self.is_of_a_client()
            || matches!(self, Self::CutFromPeers | Self::Moves)
            || self.is_of_a_change()
    }

    /// Whether it is drawn only where the layout changes.
    pub fn is_of_a_change(self) -> bool {
        matches!(self, Self::Apart | Self::DiesForGood | Self::LayoutChange)
    }

    /// Whether something takes longer by it than anybody can tell, or is done only in part.
    pub fn slows(self) -> bool {
        self.is_of_a_client() || matches!(self, Self::SlowDisk | Self::Packets | Self::Latency)
    }

    /// Whether it destroys what was synced, so that a node has to be healed by its peers.
    pub fn destroys(self) -> bool {
        matches!(
            self,
            Self::CorruptRecord
                | Self::EmptyDisk
                | Self::RolledBackDisk
                | Self::CorruptLeaf
                | Self::LyingDisk
                | Self::DiesForGood
        )
    }

    /// Whether a node forgets by it what it keeps in memory only.
    pub fn forgets(self) -> bool {
        match self {
            Self::Crash
            | Self::CrashInRecovery
            | Self::PowerCut
            | Self::RollingRestart
            | Self::FailedSync
            | Self::FailedInsert
            | Self::CorruptRecord
            | Self::EmptyDisk
            | Self::RolledBackDisk
            | Self::CorruptLeaf
            | Self::LyingDisk
            | Self::DiesForGood
            | Self::Moves
            | Self::OwnersDown => true,
            Self::Partition
            | Self::Bridge
            | Self::OneWay
            | Self::Packets
            | Self::Latency
            | Self::Pause
            | Self::FullDisk
            | Self::SlowDisk
            | Self::WrongClock
            | Self::Flap
            | Self::CutFromPeers
            | Self::Apart
            | Self::UnreadAnswers
            | Self::UnfinishedRequests
            | Self::LayoutChange => false,
        }
    }

    /// Every class that a cluster survives: all of them, as long as a copy of what was acknowledged is left.
    pub fn survivable() -> BTreeSet<Self> {
        Self::ALL.into_iter().collect()
    }
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FaultKind {
    /// Its class.
    pub fn class(&self) -> FaultClass {
        match self {
            Self::Partition(_) => FaultClass::Partition,
            Self::Bridge { .. } => FaultClass::Bridge,
            Self::OneWay { .. } => FaultClass::OneWay,
            Self::Packets { .. } => FaultClass::Packets,
            Self::Latency { .. } => FaultClass::Latency,
            Self::Pause(_) => FaultClass::Pause,
            Self::Crash { .. } => FaultClass::Crash,
            Self::CrashInRecovery { .. } => FaultClass::CrashInRecovery,
            Self::PowerCut(_) => FaultClass::PowerCut,
            Self::OwnersDown(_) => FaultClass::OwnersDown,
            Self::Flap(_) => FaultClass::Flap,
            Self::CutFromPeers { .. } => FaultClass::CutFromPeers,
            Self::Apart { .. } => FaultClass::Apart,
            Self::DiesForGood(_) => FaultClass::DiesForGood,
            Self::Moves(_) => FaultClass::Moves,
            Self::UnreadAnswers(_) => FaultClass::UnreadAnswers,
            Self::UnfinishedRequests(_) => FaultClass::UnfinishedRequests,
            Self::RollingRestart => FaultClass::RollingRestart,
            Self::FailedSync(_) => FaultClass::FailedSync,
            Self::FailedInsert(_) => FaultClass::FailedInsert,
            Self::FullDisk(_) => FaultClass::FullDisk,
            Self::SlowDisk { .. } => FaultClass::SlowDisk,
            Self::WrongClock { .. } => FaultClass::WrongClock,
            Self::CorruptRecord(_) => FaultClass::CorruptRecord,
            Self::CorruptLeaf(_) => FaultClass::CorruptLeaf,
            Self::LyingDisk(_) => FaultClass::LyingDisk,
            Self::EmptyDisk(_) => FaultClass::EmptyDisk,
            Self::RolledBackDisk { .. } => FaultClass::RolledBackDisk,
        }
    }

    /// The nodes that it names.
    pub fn nodes(&self) -> BTreeSet<u8> {
        match self {
            Self::Partition(nodes) | Self::PowerCut(nodes) | Self::OwnersDown(nodes) => nodes.clone(),
            Self::Flap(node) | Self::UnreadAnswers(node) | Self::UnfinishedRequests(node) => [*node].into(),
            Self::Bridge { side, bridge } => side.iter().copied().chain([*bridge]).collect(),
            Self::OneWay { from, to } => [*from, *to].into(),
            Self::Apart { one, other } => one.union(other).copied().collect(),
            Self::RollingRestart => BTreeSet::new(),
            Self::Packets { node, .. }
            | Self::Latency { node, .. }
            | Self::Pause(node)
            | Self::Crash { node, .. }
            | Self::CrashInRecovery { node, .. }
            | Self::FailedSync(node)
            | Self::FailedInsert(node)
            | Self::FullDisk(node)
            | Self::SlowDisk { node, .. }
            | Self::WrongClock { node, .. }
            | Self::CorruptRecord(node)
            | Self::CorruptLeaf(node)
            | Self::LyingDisk(node)
            | Self::EmptyDisk(node)
            | Self::DiesForGood(node)
            | Self::Moves(node)
            | Self::CutFromPeers { node, .. }
            | Self::RolledBackDisk { node, .. } => [*node].into(),
        }
    }
}

impl Plan {
    /// The plan of a seed, with faults of these classes only: [`FaultClass::survivable`], for a cluster that does not heal
    /// itself.
    pub fn draw(seed: u64, allowed: &BTreeSet<FaultClass>) -> Self {
        let rng = &mut rng(seed, "cluster");
        let nodes = rng.random_range(3..=7_u8);
        let n = *[2, 3, 3, 3, 3, 4, 5].get(rng.random_range(0..7)).expect("in range");
        let n = n.min(nodes);
        // Zones are rare: they make some partitions impossible to balance, and so others likelier.
        let zones = if rng.random_bool(0.3) { rng.random_range(2..=3) } else { nodes };
        let zones = (0..nodes).map(|node| node % zones).collect();
        let partitions = *[1, 8, 64].get(rng.random_range(0..3)).expect("in range");
        let durability = if rng.random_bool(0.3) { Durability::Always } else { Durability::Group };
        let active_ms = rng.random_range(20_000..=40_000);
        let workload = draw_workload(seed, n);
        let mut plan = Self {
            seed,
            zones,
            spares: Vec::new(),
            n,
            floors: draw_floors(seed, n, &workload),
            partitions,
            durability,
            network: draw_network(seed),
            workload,
            request_memory_kib: draw_request_memory(seed),
            faults: Vec::new(),
            changes: Vec::new(),
            reckless: false,
            in_turn: draw_in_turn(seed),
            points: draw_points(seed),
            mechanisms: draw_mechanisms(seed),
            aftermath: draw_aftermath(seed, nodes),
            active_ms,
            settle_ms: 20_000,
        };
        if plan.repeats_elsewhere() {
            plan.repeat_elsewhere();
        }
        if plan.workload.scan_percent > 0 {
            // Replicas that hold the same end their pages at the same place, unless something makes them.
            plan.points.on.insert(SHORT_PAGES.to_owned());
            plan.points.per_mille = plan.points.per_mille.max(50);
            plan.workload.keys = plan.workload.keys.max(10);
        }
        plan.faults = plan.draw_faults(allowed);
        if !plan.repeats_elsewhere() {
            plan.take_turns(allowed);
        }
        plan.faults.extend(plan.draw_bad_clients(allowed));
        plan.cut_from_peers(allowed);
        plan.faults.extend(plan.draw_moves(allowed));
        plan.part_for_long(allowed);
        plan.change_layouts(allowed);
        plan.faults.sort_by_key(|fault| fault.at_ms);
        let last = plan.faults.iter().map(|fault| fault.at_ms + fault.for_ms).max();
        plan.active_ms = plan.active_ms.max(last.unwrap_or(0));
        if plan.faults.iter().any(|fault| fault.kind.class() == FaultClass::OwnersDown) {
            // Somebody has to ask for what only others can give then, and to wait for it.
            plan.workload.strict_percent = 0;
            plan.workload.timeout_ms = plan.workload.timeout_ms.max(1000);
            // Who is left is seldom a majority. What a fallback has minted must be told from what it mints later, and a delete is an
            // excuse for whatever goes.
            if seed.is_multiple_of(2) && !plan.classes().iter().any(|class| class.destroys()) {
                plan.workload.quorums.push((Quorum::One, Quorum::One));
                (plan.workload.mix.delete, plan.workload.mix.blind_put) = (0, plan.workload.mix.blind_put.max(5));
            }
        }
        plan
    }

    /// Makes it a life in which a write is often sent to a second coordinator while the first one may have minted it, and in which nobody
    /// forgets what was superseded: so long something is promised of such repetitions.
    fn repeat_elsewhere(&mut self) {
        self.points.on = [ANY_PRIMARY, CUT_SHORT].map(str::to_owned).into();
        self.points.per_mille = 500;
        let workload = &mut self.workload;
        (workload.keys, workload.timeout_ms) = (workload.keys.max(10), 300);
        // A node that has hardly lived cannot know what it has forgotten, and mints no repetition. What travels fast overtakes what
        // travels slowly.
        self.active_ms = 60_000;
        (self.network.latency_max_ms, self.network.curve_x10) = (100, 10);
        // Two dots a write make many siblings; of the largest values such a network does not carry them in time.
        workload.value_len_max = workload.value_len_max.min(2000);
        if let Some(aftermath) = &mut self.aftermath {
            aftermath.rots = false;
            aftermath.how = if aftermath.how == Broken::Down { Broken::Cut } else { aftermath.how };
        }
    }

    /// The same life without what lives had not when some older seeds were named: for regressions.
    pub fn plain(mut self) -> Self {
        self.points.on.clear();
        self.mechanisms = Mechanisms::ALL;
        (self.floors, self.aftermath) = (None, None);
        (self.spares, self.changes) = (Vec::new(), Vec::new());
        self.request_memory_kib = plenty_kib();
        self.faults.retain(|fault| !fault.kind.class().is_of_a_client());
        let workload = &mut self.workload;
        (workload.foreign_percent, workload.scan_percent, workload.repeat_percent) = (0, 0, 0);
        workload.rotations = 0;
        workload.repeat_elsewhere = false;
        self
    }

    /// The ring that the first layout of this life makes.
    ///
    /// # Panics
    /// When the plan has [problems](Self::problems).
    pub fn ring(&self) -> Ring {
        let member = |(i, zone): (u8, &u8)| {
            let node = NodeId::new(&crate::cluster::name(i)).expect("a legal name");
            RingMember { node, token_seed: node, zone: crate::cluster::zone(*zone), weight: 1 }
        };
        let members: Vec<RingMember> = (0..).zip(&self.zones).map(member).collect();
        Ring::build(&members, self.n, self.partitions).expect("a plan without problems has a ring")
    }

    /// Whether nodes have as much memory for requests as in production, so that none is refused for want of it.
    pub fn has_plenty_of_memory(&self) -> bool {
        self.request_memory_kib == plenty_kib()
    }

    /// Whether a point is on that does this.
    pub fn has_point(&self, effect: Effect) -> bool {
        points().any(|point| point.effect == effect && self.points.on.contains(point.name))
    }

    /// Whether unknown writes are repeated by clients that do not know to whom they had gone.
    pub fn repeats_elsewhere(&self) -> bool {
        self.workload.repeat_percent > 0 && self.workload.repeat_elsewhere
    }

    /// Whether every node remembers all that it has superseded.
    pub fn nobody_forgets(&self) -> bool {
        let whole = |after: &Aftermath| after.how != Broken::Down && !after.rots;
        !self.has_point(Effect::Forgets)
            && self.classes().iter().all(|class| !class.forgets())
            && self.aftermath.as_ref().is_none_or(whole)
    }

    /// The layout's floors.
    pub fn floors(&self) -> Floors {
        let majority = Quorum::Majority.count(self.n);
        self.floors.unwrap_or(Floors { r: majority, w: majority })
    }

    /// How many nodes there are, spares included.
    pub fn nodes(&self) -> u8 {
        u8::try_from(self.zones.len() + self.spares.len()).expect("a plan has few nodes")
    }

    /// How many nodes the first layout has: those before the spares.
    pub fn members(&self) -> u8 {
        u8::try_from(self.zones.len()).expect("a plan has few nodes")
    }

    /// The zone of each node, spares included.
    pub fn all_zones(&self) -> Vec<u8> {
        self.zones.iter().copied().chain(self.spares.iter().map(|spare| spare.zone)).collect()
    }

    /// The classes of its faults.
    pub fn classes(&self) -> BTreeSet<FaultClass> {
        let change = self.changes.iter().map(|_| FaultClass::LayoutChange);
        self.faults.iter().map(|fault| fault.kind.class()).chain(change).collect()
    }

    /// Why it cannot be run, if it was made by hand.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut demand = |holds: bool, what: String| {
            if !holds {
                problems.push(what);
            }
        };
        let (members, n, workload) = (self.zones.len(), usize::from(self.n), &self.workload);
        let nodes = members + self.spares.len();
        demand((1..=32).contains(&nodes), format!("1 to 32 nodes are possible, not {nodes}"));
        demand((1..=members).contains(&n), format!("n is {n}, 1 to {members} are possible"));
        demand(self.partitions > 0, "a ring needs a partition".to_owned());
        demand(workload.clients > 0, "a workload needs a client: `clients` is 0".to_owned());
        demand(workload.keys > 0, "a workload needs a key".to_owned());
        demand(!workload.quorums.is_empty(), "a workload needs a pair of quorums".to_owned());
        demand(workload.mix.total() > 0, "the mix is empty".to_owned());
        demand(workload.session_len > 0, "a session needs an operation".to_owned());
        let lengths = (workload.value_len_min, workload.value_len_max);
        demand(8 <= lengths.0 && lengths.0 <= lengths.1, format!("values of {} to {} bytes", lengths.0, lengths.1));
        for (r, w) in &workload.quorums {
            let possible = |quorum: &Quorum| (1..=self.n).contains(&quorum.count(self.n));
            demand(possible(r) && possible(w), format!("quorums {r} and {w} of {n} replicas"));
        }
        let Floors { r, w } = self.floors();
        let (floors, n) = (1..=self.n, u16::from(self.n));
        demand(floors.contains(&r) && floors.contains(&w), format!("floors of {r} and {w} of {n} replicas"));
        demand(u16::from(r) + u16::from(w) > n, format!("floors of {r} and {w} do not overlap in {n} replicas"));
        let latencies = (self.network.latency_min_ms, self.network.latency_max_ms);
        demand(latencies.0 <= latencies.1, format!("latencies of {} to {} ms", latencies.0, latencies.1));
        for point in &self.points.on {
            let known = points().any(|known| known.name == point);
            demand(known, format!("there is no point {point:?}"));
        }
        demand(self.points.per_mille <= 1000, format!("points fire {} times of 1000", self.points.per_mille));
        if let Some(Aftermath { broken, .. }) = &self.aftermath {
            demand(broken.iter().all(|node| usize::from(*node) < nodes), format!("{broken:?} names no node"));
            demand(broken.len() < nodes, "the aftermath leaves nobody".to_owned());
        }
        let outlasts = |ms: u32| ms > self.active_ms;
        for spare in self.spares.iter().filter(|spare| spare.from_ms.is_some_and(outlasts)) {
            demand(false, format!("{spare:?} starts after the {} ms of activity", self.active_ms));
        }
        for change in &self.changes {
            let mut named: BTreeSet<u8> = change.stage.iter().flat_map(Staging::nodes).collect();
            named.insert(change.at);
            demand(named.iter().all(|node| usize::from(*node) < nodes), format!("{change:?} names no node"));
            demand(!change.stage.is_empty(), format!("{change:?} changes nothing"));
            demand(!outlasts(change.at_ms), format!("{change:?} begins after the {} ms of activity", self.active_ms));
        }
        for fault in &self.faults {
            let FaultKind::DiesForGood(node) = fault.kind else { continue };
            let removes = |change: &LayoutChange| {
                let goes = change.stage.iter().any(|staging| staging.goes() == Some(node));
                goes && change.insists && change.at != node && change.at_ms >= fault.at_ms
            };
            let removed = self.reckless || self.changes.iter().any(removes);
            demand(removed, format!("node {node} dies for good, and nobody insists afterwards that it goes"));
        }
        let alone = self.changes.is_empty() || self.aftermath.is_none();
        demand(alone, "a life has an aftermath or changes of its layout, not both".to_owned());
        for fault in &self.faults {
            let named = fault.kind.nodes();
            demand(named.iter().all(|node| usize::from(*node) < nodes), format!("{:?} names no node", fault.kind));
            let ends = fault.at_ms.checked_add(fault.for_ms);
            demand(
                ends.is_some_and(|ends| ends <= self.active_ms),
                format!("{:?} outlasts the {} ms of activity", fault.kind, self.active_ms),
            );
        }
        problems
    }

    /// Plans that are simpler by one step, the largest steps first: fewer faults, clients, operations, keys, nodes.
    ///
    /// Whoever shrinks tries them in this order, goes on from the first that fails in the same way, and ends when none does.
    pub fn simpler(&self) -> Vec<Self> {
        let mut plans = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut plan = self.clone();
            change(&mut plan);
            if plan != *self && plan.problems().is_empty() {
                plans.push(plan);
            }
        };
        let faults = self.faults.len();
        if faults > 1 {
            with(&|plan| plan.faults.clear());
            with(&|plan| plan.faults.truncate(faults / 2));
            with(&|plan| drop(plan.faults.drain(..faults / 2)));
        }
        for i in 0..faults {
            with(&|plan| drop(plan.faults.remove(i)));
        }
        let points = self.points.on.len();
        if points > 1 {
            with(&|plan| plan.points.on.clear());
            with(&|plan| plan.points.on = self.points.on.iter().take(points / 2).cloned().collect());
            with(&|plan| plan.points.on = self.points.on.iter().skip(points / 2).cloned().collect());
        }
        for point in &self.points.on {
            with(&|plan| plan.points.on.retain(|on| on != point));
        }
        with(&|plan| (plan.changes, plan.spares) = (Vec::new(), Vec::new()));
        for i in 0..self.changes.len() {
            with(&|plan| drop(plan.changes.remove(i)));
            for j in 0..self.changes[i].stage.len() {
                with(&|plan| _ = plan.changes[i].stage.remove(j));
            }
            with(&|plan| plan.changes[i].stops = false);
            with(&|plan| plan.changes[i].insists = false);
        }
        with(&|plan| plan.spares.iter_mut().for_each(|spare| spare.from_ms = None));
        with(&|plan| _ = plan.spares.pop());
        with(&|plan| plan.aftermath = None);
        with(&|plan| plan.aftermath.iter_mut().for_each(|after| after.rots = false));
        for node in self.aftermath.iter().flat_map(|aftermath| &aftermath.broken) {
            with(&|plan| plan.aftermath.iter_mut().for_each(|after| after.broken.retain(|broken| broken != node)));
        }
        with(&|plan| plan.mechanisms = Mechanisms::ALL);
        with(&|plan| plan.floors = None);
        with(&|plan| plan.in_turn = false);
        with(&|plan| plan.request_memory_kib = plenty_kib());
        with(&|plan| plan.workload.foreign_percent = 0);
        with(&|plan| plan.workload.rotations = 0);
        with(&|plan| plan.workload.scan_percent = 0);
        with(&|plan| plan.workload.repeat_percent = 0);
        with(&|plan| plan.workload.repeat_elsewhere = false);
        with(&|plan| plan.workload.clients = (plan.workload.clients / 2).max(1));
        with(&|plan| plan.workload.clients = (plan.workload.clients - 1).max(1));
        with(&|plan| plan.workload.operations = (plan.workload.operations / 2).max(1));
        with(&|plan| plan.workload.operations = (plan.workload.operations * 9 / 10).max(1));
        with(&|plan| plan.workload.keys = (plan.workload.keys / 2).max(1));
        with(&|plan| plan.workload.quorums.truncate(1));
        for kind in 0..Mix::KINDS {
            with(&|plan| *plan.workload.mix.weights_mut()[kind] = 0);
        }
        // Spares are counted from the last member.
        with(&|plan| plan.zones.truncate(plan.zones.len() - usize::from(plan.spares.is_empty())));
        with(&|plan| plan.partitions = 1);
        with(&|plan| plan.zones = (0..plan.members()).collect());
        with(&|plan| plan.workload.value_len_max = plan.workload.value_len_min);
        with(&|plan| plan.network.latency_max_ms = plan.network.latency_min_ms);
        for i in 0..faults {
            with(&|plan| plan.faults[i].for_ms /= 2);
        }
        let begun = self.changes.iter().map(|change| change.at_ms);
        let begun = begun.chain(self.spares.iter().filter_map(|spare| spare.from_ms));
        let last = self.faults.iter().map(|fault| fault.at_ms + fault.for_ms).chain(begun).max().unwrap_or(0);
        with(&|plan| plan.active_ms = (plan.active_ms / 2).max(last).max(1000));
        plans
    }

    fn draw_faults(&self, allowed: &BTreeSet<FaultClass>) -> Vec<Fault> {
        let rng = &mut rng(self.seed, "faults");
        let earlier = || allowed.iter().copied().filter(|class| !class.is_later());
        let mut classes: Vec<FaultClass> = earlier().filter(|_| rng.random_bool(0.4)).collect();
        // What was acknowledged by W nodes must survive on one of them, or nothing could be judged.
        let w_least = self.workload.quorums.iter().map(|(_, w)| w.count(self.n)).min().unwrap_or(1);
        let mut victims: BTreeSet<u8> = draw_nodes(rng, self.nodes(), w_least - 1);
        if self.in_turn && !victims.is_empty() {
            victims = (0..self.nodes()).collect();
        }
        if victims.is_empty() {
            classes.retain(|class| !class.destroys());
        }
        // Where every node is an owner of everything this would be a power cut.
        if self.nodes() == self.n {
            classes.retain(|class| *class != FaultClass::OwnersDown);
        }
        if self.repeats_elsewhere() {
            classes.retain(|class| !class.forgets());
        }
        if classes.len() == earlier().count() {
            classes.pop();
        }
        if classes.is_empty() {
            return Vec::new();
        }
        let count = rng.random_range(1..=8);
        let faults: Vec<Fault> = (0..count)
            .map(|_| {
                let class = *classes.get(rng.random_range(0..classes.len())).expect("in range");
                // The first two seconds belong to joining; the last fault ends with the activity.
                let at_ms = rng.random_range(2_000..self.active_ms * 4 / 5);
                let longest = (self.active_ms - at_ms).min(15_000);
                // That all owners of a key are down has to be noticed before it means anything.
                let least = if class == FaultClass::OwnersDown { longest.max(100) * 2 / 3 } else { 100 };
                let for_ms = rng.random_range(least..=longest.max(100)).min(self.active_ms - at_ms);
                Fault { at_ms, for_ms, kind: self.draw_kind(rng, class, &victims) }
            })
            .collect();
        let mut faults: Vec<Fault> = faults.into_iter().flat_map(Self::twice).collect();
        faults.extend(self.draw_later(allowed, &victims));
        faults.sort_by_key(|fault| fault.at_ms);
        faults
    }

    /// In some lives operators change the layout while all of it goes on, and some of what goes wrong is about the nodes that come and go.
    fn change_layouts(&mut self, allowed: &BTreeSet<FaultClass>) {
        let unhealed = rng(self.seed, "healing in a change").random_bool(0.25);
        let rng = &mut rng(self.seed, "layout changes");
        if !allowed.contains(&FaultClass::LayoutChange) || self.repeats_elsewhere() || !rng.random_bool(0.3) {
            return;
        }
        if self.tell_a_story(allowed) {
            return;
        }
        self.aftermath = None;
        // Nothing else makes up for what a change has lost.
        self.mechanisms.anti_entropy &= !unhealed;
        // Somebody always asks for something while it goes on.
        let workload = &mut self.workload;
        workload.clients = workload.clients.max(3);
        workload.operations = workload.operations.max(300);
        workload.pause_max_ms = workload.pause_max_ms.min(50);
        workload.keys = workload.keys.max(5);
        let members = self.members();
        let zones: BTreeSet<u8> = self.zones.iter().copied().collect();
        for spare in 0..rng.random_range(1..=3) {
            let fresh = zones.len() == usize::from(members);
            let zone = if fresh { members + spare } else { self.zones[rng.random_range(0..self.zones.len())] };
            let late = rng.random_bool(0.4);
            let from_ms = rng.random_range(0..self.active_ms / 2);
            self.spares.push(Spare { zone, from_ms: late.then_some(from_ms) });
        }
        // Who is a member if every change is decided.
        let mut model: BTreeSet<u8> = (0..members).collect();
        let mut at_ms = rng.random_range(2_500..self.active_ms / 3);
        for _ in 0..rng.random_range(1..=3) {
            let operators = draw_of(rng, &model, 2);
            let first = *operators.first().expect("a layout has members");
            let stops = rng.random_bool(0.4);
            let mut after = model.clone();
            let stage = self.draw_stage(rng, &mut after);
            // Another operator wants something else of the same version.
            if let Some(second) = operators.last().filter(|second| **second != first && rng.random_bool(0.3)) {
                let stage = self.draw_stage(rng, &mut model.clone());
                let at_ms = at_ms + rng.random_range(0..600);
                self.changes.push(LayoutChange { at_ms, at: *second, stage, stops: false, insists: false });
            }
            self.changes.push(LayoutChange { at_ms, at: first, stage, stops, insists: false });
            model = after;
            self.faults.extend(self.draw_beside(rng, allowed, at_ms));
            at_ms += rng.random_range(500..self.active_ms / 3);
            if at_ms > self.active_ms * 4 / 5 {
                break;
            }
        }
        self.changes.sort_by_key(|change| change.at_ms);
        self.faults.extend(self.draw_parts_crash(allowed));
    }

    /// What one operator wants, if these are the members; afterwards they are those that there will be.
    fn draw_stage(&self, rng: &mut StdRng, members: &mut BTreeSet<u8>) -> Vec<Staging> {
        let mut stage = Vec::new();
        let mut touched = BTreeSet::new();
        // All that can be at once, now and then.
        let count = if rng.random_bool(0.2) { 6 } else { rng.random_range(1..=2) };
        for _ in 0..count {
            let free: BTreeSet<u8> = (0..self.nodes()).filter(|node| !members.contains(node)).collect();
            let free: BTreeSet<u8> = free.difference(&touched).copied().collect();
            let old: BTreeSet<u8> = members.difference(&touched).copied().collect();
            let new = draw_of(rng, &free, 1).first().copied();
            let old = draw_of(rng, &old, 1).first().copied();
            let one = match (rng.random_range(0..10), new, old) {
                (0..=2, Some(new), _) => Staging::Join(new),
                (3..=6, Some(new), Some(old)) => Staging::Replace { old, new },
                (0..=7, _, Some(old)) if members.len() > usize::from(self.n) => Staging::Leave(old),
                (_, _, Some(node)) => Staging::Weight { node, weight: rng.random_range(1..=4) },
                (_, _, None) => continue,
            };
            touched.extend(one.nodes());
            match &one {
                Staging::Join(new) => drop(members.insert(*new)),
                Staging::Leave(old) => drop(members.remove(old)),
                Staging::Replace { old, new } => {
                    members.remove(old);
                    members.insert(*new);
                }
                Staging::Weight { .. } => {}
            }
            stage.push(one);
        }
        stage
    }

    /// What goes wrong while a change is under way that begins then.
    fn draw_beside(&self, rng: &mut StdRng, allowed: &BTreeSet<FaultClass>, at_ms: u32) -> Vec<Fault> {
        let ways = [
            FaultClass::Partition,
            FaultClass::Crash,
            FaultClass::Crash,
            FaultClass::Pause,
            FaultClass::OneWay,
            FaultClass::CrashInRecovery,
            FaultClass::PowerCut,
        ];
        let ways: Vec<FaultClass> = ways.into_iter().filter(|way| allowed.contains(way)).collect();
        let count = rng.random_range(0..=3);
        if ways.is_empty() {
            return Vec::new();
        }
        (0..count)
            .map(|_| {
                let way = ways[rng.random_range(0..ways.len())];
                let kind = self.draw_kind(rng, way, &BTreeSet::new());
                let at_ms = (at_ms + rng.random_range(0..4_000)).min(self.active_ms) - rng.random_range(0..500);
                let for_ms = rng.random_range(300..8_000).min(self.active_ms - at_ms);
                Fault { at_ms, for_ms, kind }
            })
            .collect()
    }

    /// Faults of the classes that are drawn by themselves.
    fn draw_later(&self, allowed: &BTreeSet<FaultClass>, victims: &BTreeSet<u8>) -> Vec<Fault> {
        let rng = &mut rng(self.seed, "later faults");
        let mut faults = Vec::new();
        if victims.is_empty() || self.repeats_elsewhere() {
            return faults;
        }
        for class in FaultClass::LATER.into_iter().filter(|class| allowed.contains(class)) {
            let count = if rng.random_bool(0.2) { rng.random_range(1..=2) } else { 0 };
            for _ in 0..count {
                let at_ms = rng.random_range(2_000..self.active_ms * 4 / 5);
                let longest = (self.active_ms - at_ms).min(10_000);
                // What a disk that lies has lost is noticed by what others remember of it: they hear of it every second.
                let for_ms = rng.random_range(longest / 2..=longest);
                faults.push(Fault { at_ms, for_ms, kind: self.draw_kind(rng, class, victims) });
            }
        }
        faults
    }

    /// In part of all lives the owners of a key take turns at being away, and just when they change over a disk loses something.
    ///
    /// First those are away that writes can do without. What W owners acknowledge meanwhile is what the change is about: at that moment
    /// the disks of some of these W lose it, those that were away come back, and the others go. What is lost is now with those that are
    /// away only; whoever serves too early does so without it, and the quorum of a read is just met by those who are there.
    ///
    /// A disk that is set back is as it was before the first ones went: they have to remember it further ahead, as nobody else is there who
    /// could. An old disk, which comes back after the node has lived with another one, is remembered by nobody further ahead than it is.
    fn take_turns(&mut self, allowed: &BTreeSet<FaultClass>) {
        let rng = &mut rng(self.seed, "turns");
        let losses = allowed.iter().copied().filter(|class| class.destroys() && !class.is_of_a_change());
        let losses: Vec<FaultClass> = losses.collect();
        let ways = [FaultClass::Crash, FaultClass::Partition, FaultClass::Pause];
        let ways: Vec<FaultClass> = ways.into_iter().filter(|class| allowed.contains(class)).collect();
        if !rng.random_bool(0.15) || !allowed.contains(&FaultClass::EmptyDisk) || ways.is_empty() {
            return;
        }
        self.n = *[3, 3, 3, 4, 5, 5].get(rng.random_range(0..6)).expect("in range");
        let nodes = self.n + rng.random_range(0..=1);
        self.zones = (0..nodes).collect();
        let leaves = losses.contains(&FaultClass::CorruptLeaf) && rng.random_bool(0.3);
        // Leaves that hold two records take many keys of one partition.
        self.partitions = if leaves { 1 } else { *[1, 1, 8].get(rng.random_range(0..3)).expect("in range") };
        self.aftermath = draw_aftermath(self.seed, nodes);
        let majority = Quorum::Majority.count(self.n);
        // Half of the time the floors are as drawn, and reads and writes just meet.
        let (w, r) = if rng.random_bool(0.5) {
            let w = rng.random_range(2..=self.n);
            (w, self.n + 1 - w)
        } else {
            (majority, majority)
        };
        self.floors = Some(Floors { r, w }).filter(|_| (r, w) != (majority, majority));
        self.in_turn = false;
        let workload = &mut self.workload;
        workload.quorums = vec![(Quorum::Exactly(r), Quorum::Exactly(w))];
        workload.strict_percent = 100;
        workload.clients = workload.clients.clamp(3, 5);
        workload.operations = 250;
        workload.keys = if leaves { 60 } else { workload.keys.min(10) };
        workload.skew_x1000 = 0;
        (workload.pause_max_ms, workload.timeout_ms) = (workload.pause_max_ms.min(20), 300);
        workload.value_len_max = workload.value_len_max.min(2000);
        // A delete excuses whatever is missing.
        workload.mix = Mix { get: 6, put: 4, blind_put: 2, delete: 0, update: workload.mix.update.min(1) };
        (workload.foreign_percent, workload.scan_percent, workload.repeat_percent) = (0, 0, 0);
        self.network.latency_max_ms = self.network.latency_max_ms.min(10);

        let owners = self.owners_of(&crate::workload::key_text(0));
        // A majority holds what a monotonic read has returned, whatever writes need.
        let holders = if w > majority && rng.random_bool(0.5) { majority } else { w };
        if holders < w {
            self.workload.monotonic_percent = 50;
            self.workload.quorums.push((Quorum::Exactly(self.n + 1 - majority), Quorum::Exactly(w)));
        }
        let count = rng.random_range(1..holders);
        let victims = draw_of(rng, &owners, count);
        let mut faults = Vec::new();
        let mut at_ms = rng.random_range(3_000..5_000);
        // Where a node has lived with an old disk: drawn by itself, so that the other turns stay as they are.
        let mut old_disk = draw_old_disk(self.seed, victims.first().copied()).filter(|_| !leaves && holders < self.n);
        if let Some(OldDisk { node, emptied_ms, .. }) = old_disk {
            // The new one is filled before the turns begin.
            faults.push(Fault { at_ms: emptied_ms, for_ms: 300, kind: FaultKind::EmptyDisk(node) });
            at_ms = emptied_ms + 4_000;
        }
        while at_ms < TURNS_UNTIL_MS {
            let spared: BTreeSet<u8> = owners.difference(&victims).copied().collect();
            let first = draw_of(rng, &spared, self.n - holders);
            let others: BTreeSet<u8> = spared.difference(&first).copied().collect();
            let least = if leaves { 5_000 } else { 3_000 };
            let change_ms = at_ms + rng.random_range(least..7_000);
            // They have to be missed before anything can be served without them.
            let back_ms = change_ms + rng.random_range(8_000..14_000);
            faults.extend(away(rng, &ways, &first, at_ms, change_ms));
            // Disks that are emptied at the same time are equal, and tell each other nothing.
            let alike = rng.random_bool(0.5).then(|| losses[rng.random_range(0..losses.len())]);
            for victim in &victims {
                let other = losses[rng.random_range(0..losses.len())];
                let loss = if leaves { FaultClass::CorruptLeaf } else { alike.unwrap_or(other) };
                let sets_back = matches!(loss, FaultClass::LyingDisk | FaultClass::RolledBackDisk);
                let loss = if sets_back && first.is_empty() { FaultClass::EmptyDisk } else { loss };
                let before_ms = rng.random_range(1_500..2_500);
                let off_ms = rng.random_range(100..1_000);
                let (at_ms, for_ms, kind) = match loss {
                    _ if old_disk.is_some_and(|old| old.node == *victim) => {
                        let OldDisk { emptied_ms, before_ms, .. } = old_disk.take().expect("seen a line above");
                        let back_ms = change_ms - emptied_ms + before_ms;
                        (change_ms, off_ms, FaultKind::RolledBackDisk { node: *victim, back_ms })
                    }
                    // The second one is damaged just then. The first one has to be noticed, and exchanged with those who go.
                    FaultClass::CorruptLeaf => {
                        let before_ms = before_ms * 2;
                        (change_ms - before_ms, before_ms, FaultKind::CorruptLeaf(*victim))
                    }
                    // The power fails when three quarters of the time are over.
                    FaultClass::LyingDisk => {
                        let lies_ms = change_ms - at_ms + before_ms;
                        (at_ms - before_ms, lies_ms + lies_ms / 3, FaultKind::LyingDisk(*victim))
                    }
                    FaultClass::RolledBackDisk => {
                        let back_ms = change_ms - at_ms + before_ms;
                        (change_ms, off_ms, FaultKind::RolledBackDisk { node: *victim, back_ms })
                    }
                    FaultClass::CorruptRecord => (change_ms, 0, FaultKind::CorruptRecord(*victim)),
                    _ => (change_ms, off_ms, FaultKind::EmptyDisk(*victim)),
                };
                faults.push(Fault { at_ms, for_ms, kind });
            }
            if rng.random_bool(0.6) || !allowed.contains(&FaultClass::SlowDisk) {
                faults.extend(away(rng, &ways, &others, change_ms, back_ms));
            } else {
                // They are asked before they have summed up what they hold.
                for node in others {
                    let for_ms = rng.random_range(500..4_000);
                    faults.extend(away(rng, &ways, &[node].into(), change_ms, change_ms + for_ms));
                    let kind = FaultKind::SlowDisk { node, latency_ms: rng.random_range(20..=100) };
                    faults.push(Fault { at_ms: change_ms, for_ms: back_ms - change_ms, kind });
                }
            }
            at_ms = back_ms + rng.random_range(2_000..4_000);
        }
        faults.sort_by_key(|fault| fault.at_ms);
        self.active_ms = at_ms;
        self.faults = faults;
    }

    /// The owners of a key.
    fn owners_of(&self, key: &str) -> BTreeSet<u8> {
        let ring = self.ring();
        let owners = ring.primaries(ring.partition_of(&Key::plain(key)));
        (0..self.nodes())
            .filter(|node| owners.iter().any(|owner| owner.as_str() == crate::cluster::name(*node)))
            .collect()
    }

    /// In part of all lives a node is cut off from the others and not from clients: for a while, or when all other faults are over.
    fn cut_from_peers(&mut self, allowed: &BTreeSet<FaultClass>) {
        if !allowed.contains(&FaultClass::CutFromPeers) {
            return;
        }
        let rng = &mut rng(self.seed, "cut from peers");
        let hearing = |rng: &mut StdRng| [Hearing::Neither, Hearing::Deaf, Hearing::Mute][rng.random_range(0..3)];
        if rng.random_bool(0.3) {
            let at_ms = rng.random_range(2_000..self.active_ms * 4 / 5);
            let for_ms = rng.random_range(500..=15_000).min(self.active_ms - at_ms);
            let kind = FaultKind::CutFromPeers { node: rng.random_range(0..self.nodes()), hearing: hearing(rng) };
            self.faults.push(Fault { at_ms, for_ms, kind });
        }
        // A node that has just been cut off does not know yet that it can do nothing.
        if let Some(aftermath) = self.aftermath.as_mut().filter(|_| rng.random_bool(0.4)) {
            (aftermath.how, aftermath.sudden) = (Broken::FromPeers(hearing(rng)), false);
        }
    }

    /// In part of all lives the code does what it can, nobody is slow, and nodes are parted for so long that everybody has noticed: then
    /// whoever can serve a request has to. See [`crate::checker::served`].
    fn part_for_long(&mut self, allowed: &BTreeSet<FaultClass>) {
        let ways = [FaultClass::Partition, FaultClass::Bridge, FaultClass::OneWay, FaultClass::CutFromPeers];
        let rng = &mut rng(self.seed, "parted for long");
        let spoils = |fault: &Fault| fault.kind.class().destroys();
        let other_kind = self.repeats_elsewhere() || self.faults.iter().any(spoils);
        if !rng.random_bool(0.2) || other_kind || !ways.iter().all(|way| allowed.contains(way)) {
            return;
        }
        let means_it = |name: &str| points().any(|point| point.name == name && point.effect == Effect::Slows);
        self.points.on.retain(|name| means_it(name));
        self.faults.retain(|fault| !fault.kind.class().slows());
        self.network.latency_max_ms = self.network.latency_max_ms.min(10);
        self.request_memory_kib = plenty_kib();
        self.workload.timeout_ms = self.workload.timeout_ms.max(1000);
        for _ in 0..rng.random_range(1..=2) {
            let way = ways[rng.random_range(0..ways.len())];
            let kind = self.draw_kind(rng, way, &BTreeSet::new());
            let (at_ms, for_ms) = (rng.random_range(3_000..6_000), rng.random_range(12_000..20_000));
            self.faults.push(Fault { at_ms, for_ms, kind });
        }
    }

    /// In part of all lives one node moves, perhaps several times. The others stay where join lists say that they are.
    fn draw_moves(&self, allowed: &BTreeSet<FaultClass>) -> Vec<Fault> {
        let rng = &mut rng(self.seed, "moves");
        if !allowed.contains(&FaultClass::Moves) || self.repeats_elsewhere() || !rng.random_bool(0.25) {
            return Vec::new();
        }
        let (node, count) = (rng.random_range(0..self.nodes()), rng.random_range(1..=3));
        let mut draw = || {
            let at_ms = rng.random_range(2_000..self.active_ms * 4 / 5);
            let for_ms = rng.random_range(100..=5_000).min(self.active_ms - at_ms);
            Fault { at_ms, for_ms, kind: FaultKind::Moves(node) }
        };
        (0..count).map(|_| draw()).collect()
    }

    /// In half of all lives two clients misbehave, half of them for as long as they can: longer than a node lets them.
    fn draw_bad_clients(&self, allowed: &BTreeSet<FaultClass>) -> Vec<Fault> {
        let rng = &mut rng(self.seed, "bad clients");
        let classes: Vec<FaultClass> = allowed.iter().copied().filter(|class| class.is_of_a_client()).collect();
        if classes.is_empty() || rng.random_bool(0.5) {
            return Vec::new();
        }
        let mut draw = || {
            let class = *classes.get(rng.random_range(0..classes.len())).expect("in range");
            let at_ms = rng.random_range(2_000..self.active_ms / 3);
            let longest = self.active_ms - at_ms;
            let for_ms = if rng.random_bool(0.5) { longest } else { rng.random_range(3_000..=longest.max(3_000)) };
            Fault { at_ms, for_ms: for_ms.min(longest), kind: self.draw_kind(rng, class, &BTreeSet::new()) }
        };
        (0..2).map(|_| draw()).collect()
    }

    /// Half of all owners that are away come back in between, for as long as it takes to hand over what was kept for them, so that the same
    /// nodes stand in for them twice.
    fn twice(fault: Fault) -> Vec<Fault> {
        if !matches!(fault.kind, FaultKind::OwnersDown(_)) || fault.at_ms.is_multiple_of(2) {
            return vec![fault];
        }
        let again = Fault { at_ms: fault.at_ms + AWAY_MS + BACK_MS, for_ms: AWAY_MS, kind: fault.kind.clone() };
        vec![Fault { for_ms: AWAY_MS, ..fault }, again]
    }

    fn draw_kind(&self, rng: &mut StdRng, class: FaultClass, victims: &BTreeSet<u8>) -> FaultKind {
        let nodes = self.nodes();
        let node = rng.random_range(0..nodes);
        let other = (node + rng.random_range(1..nodes)) % nodes;
        let count = rng.random_range(1..nodes);
        let some = draw_nodes(rng, nodes, count);
        let victim = victims.iter().nth(rng.random_range(0..victims.len().max(1))).copied();
        let victim = || victim.expect("classes that destroy are drawn only when there is a victim");
        match class {
            FaultClass::Partition => FaultKind::Partition(some),
            FaultClass::Bridge => {
                // The other one is on the side for certain, so that the bridge has two ends.
                let side = some.into_iter().chain([other]).filter(|member| *member != node).collect();
                FaultKind::Bridge { side, bridge: node }
            }
            FaultClass::OneWay => FaultKind::OneWay { from: node, to: other },
            FaultClass::OwnersDown => {
                // Of a popular key, so that somebody asks for it.
                let key = crate::workload::key_text(rng.random_range(0..self.workload.keys.min(3)));
                FaultKind::OwnersDown(self.owners_of(&key))
            }
            FaultClass::Flap => FaultKind::Flap(node),
            FaultClass::CutFromPeers => FaultKind::CutFromPeers { node, hearing: Hearing::Neither },
            FaultClass::Apart => {
                let other = (0..nodes).filter(|node| !some.contains(node)).collect();
                FaultKind::Apart { one: some, other }
            }
            FaultClass::DiesForGood => FaultKind::DiesForGood(victim()),
            FaultClass::Moves => FaultKind::Moves(node),
            FaultClass::UnreadAnswers => FaultKind::UnreadAnswers(node),
            FaultClass::UnfinishedRequests => FaultKind::UnfinishedRequests(node),
            FaultClass::Packets => FaultKind::Packets { node, faults: draw_packets(rng) },
            FaultClass::Latency => FaultKind::Latency { node, more_ms: rng.random_range(20..=1500) },
            FaultClass::Pause => FaultKind::Pause(node),
            FaultClass::Crash => FaultKind::Crash { node, torn: rng.random_bool(0.3) },
            FaultClass::CrashInRecovery => {
                FaultKind::CrashInRecovery { node, again_after_ms: rng.random_range(1..=2000) }
            }
            FaultClass::PowerCut => FaultKind::PowerCut(if rng.random_bool(0.5) { (0..nodes).collect() } else { some }),
            FaultClass::RollingRestart => FaultKind::RollingRestart,
            FaultClass::FailedSync => FaultKind::FailedSync(node),
            FaultClass::FailedInsert => FaultKind::FailedInsert(node),
            FaultClass::FullDisk => FaultKind::FullDisk(node),
            FaultClass::SlowDisk => FaultKind::SlowDisk { node, latency_ms: rng.random_range(1..=200) },
            FaultClass::WrongClock => {
                FaultKind::WrongClock { node, offset_ms: rng.random_range(-86_400_000..=86_400_000) }
            }
            FaultClass::CorruptRecord => FaultKind::CorruptRecord(victim()),
            FaultClass::CorruptLeaf => FaultKind::CorruptLeaf(victim()),
            FaultClass::LyingDisk => FaultKind::LyingDisk(victim()),
            FaultClass::EmptyDisk => FaultKind::EmptyDisk(victim()),
            FaultClass::RolledBackDisk => {
                FaultKind::RolledBackDisk { node: victim(), back_ms: rng.random_range(100..=20_000) }
            }
            FaultClass::LayoutChange => unreachable!("nothing goes wrong by it"),
        }
    }
}

impl Mechanisms {
    /// As a cluster runs if nobody interferes.
    pub const ALL: Self = Self { fallbacks: true, hints: true, read_repair: true, anti_entropy: true };

    fn switches_mut(&mut self) -> [&mut bool; 4] {
        [&mut self.fallbacks, &mut self.hints, &mut self.read_repair, &mut self.anti_entropy]
    }
}

impl Mix {
    const KINDS: usize = 5;

    /// The sum of the weights.
    pub fn total(&self) -> u32 {
        let mut mix = *self;
        mix.weights_mut().iter().map(|weight| u32::from(**weight)).sum()
    }

    fn weights_mut(&mut self) -> [&mut u8; Self::KINDS] {
        [&mut self.get, &mut self.put, &mut self.blind_put, &mut self.delete, &mut self.update]
    }
}

fn draw_network(seed: u64) -> Network {
    let rng = &mut rng(seed, "network");
    let latency_min_ms = rng.random_range(0..=2);
    // From one rack to two continents.
    let latency_max_ms = *[1, 3, 10, 30, 100].get(rng.random_range(0..5)).expect("in range");
    Network {
        latency_min_ms,
        latency_max_ms: latency_max_ms.max(latency_min_ms),
        curve_x10: rng.random_range(10..=100),
    }
}

fn draw_workload(seed: u64, n: u8) -> Workload {
    let rng = &mut rng(seed, "workload");
    let mut mix = Mix { get: 0, put: 0, blind_put: 0, delete: 0, update: 0 };
    for weight in mix.weights_mut() {
        *weight = if rng.random_bool(0.75) { rng.random_range(1..=10) } else { 0 };
    }
    // Without reads nothing is learnt, and without writes nothing happens.
    mix.get = mix.get.max(1);
    mix.put = mix.put.max(1);
    let majority = (Quorum::Majority, Quorum::Majority);
    let quorums = match rng.random_range(0..10) {
        0..5 => vec![majority],
        5 => vec![(Quorum::One, Quorum::All)],
        6 => vec![(Quorum::All, Quorum::One)],
        7 => vec![majority, (Quorum::One, Quorum::One)],
        8 => {
            let (r, w): (u8, u8) = (rng.random_range(1..=n), rng.random_range(1..=n));
            // Half of these just overlap.
            let r = if r.is_multiple_of(2) { n + 1 - w } else { r };
            vec![(Quorum::Exactly(r), Quorum::Exactly(w))]
        }
        _ => vec![majority, (Quorum::One, Quorum::All), (Quorum::All, Quorum::Majority)],
    };
    let value_len_min = 8;
    // A hundred siblings of the largest are still a record that a healthy network carries in time.
    let value_len_max = *[8, 100, 2000, 20_000].get(rng.random_range(0..4)).expect("in range");
    Workload {
        clients: rng.random_range(1..=8),
        operations: rng.random_range(20..=400),
        keys: *[1, 3, 10, 100].get(rng.random_range(0..4)).expect("in range"),
        skew_x1000: *[0, 800, 1200].get(rng.random_range(0..3)).expect("in range"),
        value_len_min,
        value_len_max,
        mix,
        pause_max_ms: *[0, 20, 200, 1000].get(rng.random_range(0..4)).expect("in range"),
        session_len: *[1, 10, 1000].get(rng.random_range(0..3)).expect("in range"),
        quorums,
        strict_percent: *[0, 50, 100].get(rng.random_range(0..3)).expect("in range"),
        monotonic_percent: *[0, 0, 50].get(rng.random_range(0..3)).expect("in range"),
        timeout_ms: *[300, 1000, 3000].get(rng.random_range(0..3)).expect("in range"),
        foreign_percent: *[0, 0, 5].get(rng.random_range(0..3)).expect("in range"),
        scan_percent: *[0, 0, 20].get(rng.random_range(0..3)).expect("in range"),
        repeat_percent: *[0, 80].get(rng.random_range(0..2)).expect("in range"),
        repeat_elsewhere: rng.random_bool(0.3),
        rotations: *[0, 0, 1, 3].get(rng.random_range(0..4)).expect("in range"),
    }
}

/// Every point of nodes and clients.
fn points() -> impl Iterator<Item = &'static Point> {
    TABLES.iter().flat_map(|table| table.points)
}

/// In half of the lives of which the quorums can all be at or above floors that overlap, these are the floors; else they are majorities,
/// and part of the requests is below them.
fn draw_floors(seed: u64, n: u8, workload: &Workload) -> Option<Floors> {
    let least = |of: fn(&(Quorum, Quorum)) -> Quorum| workload.quorums.iter().map(|pair| of(pair).count(n)).min();
    let (r, w) = (least(|(r, _)| *r)?, least(|(_, w)| *w)?);
    (r + w > n && rng(seed, "floors").random_bool(0.5)).then_some(Floors { r, w })
}

/// In a quarter of all lives the code does what it says, unless their kind wants a point; in the others a quarter of the points are on.
fn draw_points(seed: u64) -> Points {
    let rng = &mut rng(seed, "points");
    let per_mille = *[10, 50, 250].get(rng.random_range(0..3)).expect("in range");
    let none = rng.random_bool(0.25);
    // Each point is drawn by its name, so that one more leaves the others as they are.
    let names = if none { Vec::new() } else { fault_points::drawn(&TABLES, seed) };
    Points { on: names.into_iter().map(str::to_owned).collect(), per_mille }
}

/// In a third of all lives nodes have so little that a few clients fill it.
fn draw_request_memory(seed: u64) -> u32 {
    let rng = &mut rng(seed, "memory");
    if rng.random_bool(0.33) { rng.random_range(512..=4096) } else { plenty_kib() }
}

/// As in production.
fn plenty_kib() -> u32 {
    256 << 10
}

fn draw_mechanisms(seed: u64) -> Mechanisms {
    let rng = &mut rng(seed, "mechanisms");
    let mut mechanisms = Mechanisms::ALL;
    if rng.random_bool(0.4) {
        for on in mechanisms.switches_mut() {
            *on = rng.random_bool(0.6);
        }
    }
    // In part of all lives there is only one that brings replicas together.
    if rng.random_bool(0.15) {
        let only = rng.random_range(0..3);
        let [fallbacks, hints, read_repair, anti_entropy] = mechanisms.switches_mut();
        (*hints, *read_repair, *anti_entropy) = (only == 0, only == 1, only == 2);
        *fallbacks |= *hints;
    }
    mechanisms
}

fn draw_aftermath(seed: u64, nodes: u8) -> Option<Aftermath> {
    let rng = &mut rng(seed, "aftermath");
    let minority = (nodes - 1) / 2;
    let count = rng.random_range(1..=minority.max(1));
    let broken = draw_nodes(rng, nodes, count);
    let ways = [Broken::Down, Broken::Cut, Broken::Mute, Broken::Deaf, Broken::Paused];
    let how = *ways.get(rng.random_range(0..ways.len())).expect("in range");
    let sudden = rng.random_bool(0.4);
    let there_is_one = minority > 0 && rng.random_bool(0.6);
    let rots = rng.random_bool(0.4);
    there_is_one.then_some(Aftermath { broken, how, sudden, rots })
}

fn draw_packets(rng: &mut StdRng) -> PacketFaults {
    let mut rate = || if rng.random_bool(0.5) { rng.random_range(1_000..=150_000) } else { 0 };
    let [loss, duplication, corruption, truncation, reordering] = std::array::from_fn(|_| rate());
    PacketFaults { loss, duplication, corruption, truncation, reordering, delay_max_ms: rng.random_range(1..=200) }
}

/// So many different nodes.
fn draw_nodes(rng: &mut StdRng, nodes: u8, count: u8) -> BTreeSet<u8> {
    let mut drawn = BTreeSet::new();
    while drawn.len() < usize::from(count.min(nodes)) {
        drawn.insert(rng.random_range(0..nodes));
    }
    drawn
}

/// So many of some nodes.
fn draw_of(rng: &mut StdRng, nodes: &BTreeSet<u8>, count: u8) -> BTreeSet<u8> {
    let drawn = draw_nodes(rng, nodes.len() as u8, count);
    nodes.iter().zip(0..).filter(|(_, i)| drawn.contains(i)).map(|(node, _)| *node).collect()
}

/// What keeps some nodes away for a time.
fn away(rng: &mut StdRng, ways: &[FaultClass], nodes: &BTreeSet<u8>, from_ms: u32, to_ms: u32) -> Vec<Fault> {
    if nodes.is_empty() {
        return Vec::new();
    }
    let way = ways[rng.random_range(0..ways.len())];
    let fault = |kind| Fault { at_ms: from_ms, for_ms: to_ms - from_ms, kind };
    match way {
        FaultClass::Partition => vec![fault(FaultKind::Partition(nodes.clone()))],
        FaultClass::Pause => nodes.iter().map(|node| fault(FaultKind::Pause(*node))).collect(),
        _ => nodes.iter().map(|node| fault(FaultKind::Crash { node: *node, torn: false })).collect(),
    }
}

/// A disk that is taken from a node, and that comes back.
#[derive(Debug, Clone, Copy)]
struct OldDisk {
    node: u8,
    /// When an empty one takes its place.
    emptied_ms: u32,
    /// How much older it is when it comes back than it was then.
    before_ms: u32,
}

/// In a quarter of the lives whose owners take turns the first of the nodes that lose something gets an old disk back.
fn draw_old_disk(seed: u64, node: Option<u8>) -> Option<OldDisk> {
    let rng = &mut rng(seed, "old disk");
    let there_is_one = rng.random_bool(0.25);
    // What it had told last, others may remember: then it is found to be set back, and else it is not.
    let old = |node| OldDisk { node, emptied_ms: rng.random_range(2_000..4_000), before_ms: rng.random_range(1..=200) };
    node.map(old).filter(|_| there_is_one)
}

/// In part of all lives any disk may lose something, if the others have what they had lost.
fn draw_in_turn(seed: u64) -> bool {
    rng(seed, "in turn").random_bool(0.2)
}

/// Turns that begin until then end while the clients still work.
const TURNS_UNTIL_MS: u32 = 16_000;

/// The point at which a client does not begin with the primary that all others begin with.
const ANY_PRIMARY: &str = "client: writes go to any primary first";

/// The point at which a replica gives a part of the page that it is asked for.
const SHORT_PAGES: &str = "replica: a page ends early";

/// The point at which a client waits for too short a time.
const CUT_SHORT: &str = "client: an attempt's time is cut short";

/// Owners are taken for down after 6 s at the latest; a part of the time is left in which others stand in.
const AWAY_MS: u32 = 10_000;

/// How long it takes that they are taken for up again and are handed what was kept for them.
const BACK_MS: u32 = 5_000;

/// The generator of one part of a plan.
fn rng(seed: u64, part: &str) -> StdRng {
    StdRng::seed_from_u64(xxh3_64_with_seed(part.as_bytes(), seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: u64 = 500;

    fn all() -> BTreeSet<FaultClass> {
        FaultClass::ALL.into_iter().collect()
    }

    #[test]
    fn a_seed_always_gives_the_same_plan_and_no_plan_has_problems() {
        let mut seen = BTreeSet::new();
        for seed in 0..SEEDS {
            let plan = Plan::draw(seed, &all());
            assert_eq!(plan, Plan::draw(seed, &all()));
            assert_eq!(plan.problems(), [] as [String; 0], "seed {seed}");
            seen.insert(format!("{plan:?}").replace(&format!("seed: {seed}"), ""));
        }
        assert_eq!(seen.len() as u64, SEEDS, "plans differ in more than their seed");
    }

    #[test]
    fn every_class_comes_up_and_every_life_leaves_some_out() {
        let mut seen = BTreeSet::new();
        for seed in 0..SEEDS {
            let classes = Plan::draw(seed, &all()).classes();
            assert!(classes.len() < FaultClass::ALL.len());
            seen.extend(classes);
        }
        assert_eq!(seen, all());
        let quiet = (0..SEEDS).filter(|seed| Plan::draw(*seed, &all()).faults.is_empty()).count();
        assert!(quiet < 25, "{quiet} lives without any fault");
    }

    #[test]
    fn every_point_mechanism_and_aftermath_comes_up_and_is_left_out() {
        let plans: Vec<Plan> = (0..SEEDS).map(|seed| Plan::draw(seed, &all())).collect();
        for point in points() {
            let lives = plans.iter().filter(|plan| plan.points.on.contains(point.name)).count();
            // Some kinds of lives always have theirs.
            let most = if [ANY_PRIMARY, CUT_SHORT, SHORT_PAGES].contains(&point.name) { 300 } else { 150 };
            assert!((50..most).contains(&lives), "{} is on in {lives} lives", point.name);
        }
        let calm = plans.iter().filter(|plan| plan.points.on.is_empty()).count();
        assert!((60..160).contains(&calm), "{calm} lives without a point");
        for switch in 0..4 {
            let off = plans.iter().filter(|plan| {
                let mut mechanisms = plan.mechanisms;
                !*mechanisms.switches_mut()[switch]
            });
            let off = off.count();
            assert!((40..220).contains(&off), "mechanism {switch} is off in {off} lives");
        }
        let only = |wanted: fn(&Mechanisms) -> bool| {
            let healers = |of: &Mechanisms| u8::from(of.hints) + u8::from(of.read_repair) + u8::from(of.anti_entropy);
            plans.iter().filter(|plan| healers(&plan.mechanisms) == 1 && wanted(&plan.mechanisms)).count()
        };
        let alone = [only(|of| of.hints && of.fallbacks), only(|of| of.read_repair), only(|of| of.anti_entropy)];
        assert!(alone.iter().all(|lives| *lives >= 20), "a healer is the only one in {alone:?} lives");
        for how in [Broken::Down, Broken::Cut, Broken::Mute, Broken::Deaf, Broken::Paused] {
            let lives = plans.iter().filter(|plan| plan.aftermath.as_ref().is_some_and(|after| after.how == how));
            assert!(lives.count() > 15, "{how:?}");
        }
        for hearing in [Hearing::Neither, Hearing::Deaf, Hearing::Mute] {
            let how = Broken::FromPeers(hearing);
            let lives = plans.iter().filter(|plan| plan.aftermath.as_ref().is_some_and(|after| after.how == how));
            assert!(lives.count() > 15, "{how:?}");
        }
        for plan in &plans {
            let broken = plan.aftermath.as_ref().map_or(0, |after| after.broken.len());
            assert!(2 * broken < usize::from(plan.nodes()), "seed {}: {broken} broken", plan.seed);
        }
    }

    #[test]
    fn floors_are_the_least_quorums_or_majorities() {
        let (mut own, mut below) = (BTreeSet::new(), 0);
        for plan in (0..SEEDS).map(|seed| Plan::draw(seed, &all())) {
            let Floors { r, w } = plan.floors();
            let at_floors = |(one, other): &(Quorum, Quorum)| one.count(plan.n) >= r && other.count(plan.n) >= w;
            let all_at_floors = plan.workload.quorums.iter().all(at_floors);
            // Lives whose owners go away may ask for one replica beside what was drawn.
            let asks_for_one = plan.workload.quorums.contains(&(Quorum::One, Quorum::One));
            assert!(all_at_floors || plan.floors.is_none() || asks_for_one, "seed {}", plan.seed);
            own.extend(plan.floors.map(|_| (plan.n, r, w)));
            below += u32::from(!all_at_floors);
        }
        assert!(own.contains(&(5, 4, 2)) && own.contains(&(3, 1, 3)) && own.len() > 8, "{own:?}");
        assert!(below > 50, "{below} lives with requests below a floor");
    }

    #[test]
    fn a_plan_of_before_there_were_floors_can_be_read() {
        let mut plan = Plan::draw(42, &all());
        plan.floors = None;
        let mut text = serde_json::to_value(&plan).expect("plain data");
        text.as_object_mut().expect("a plan is an object").remove("floors").expect("it has them");
        assert_eq!(serde_json::from_value::<Plan>(text).expect("it is one"), plan);
    }

    #[test]
    fn only_what_is_allowed_is_drawn() {
        let allowed = FaultClass::survivable();
        for seed in 0..SEEDS {
            assert!(Plan::draw(seed, &allowed).classes().is_subset(&allowed), "seed {seed}");
            assert_eq!(Plan::draw(seed, &BTreeSet::new()).faults, []);
        }
    }

    #[test]
    fn owners_take_turns_in_some_lives_and_a_disk_loses_something_when_they_change() {
        let (mut turns, mut several, mut leaves, mut old) = (0, 0, 0, 0);
        for plan in (0..SEEDS).map(|seed| Plan::draw(seed, &all())) {
            let Floors { r, w } = plan.floors();
            let losses = plan.faults.iter().filter(|fault| fault.kind.class().destroys());
            let victims: BTreeSet<u8> = losses.flat_map(|fault| fault.kind.nodes()).collect();
            if plan.workload.operations != 250 || plan.workload.strict_percent != 100 || victims.is_empty() {
                continue;
            }
            assert!(r + w > plan.n && victims.len() < usize::from(w), "seed {}: {victims:?}", plan.seed);
            turns += 1;
            several += u32::from(victims.len() > 1);
            leaves += u32::from(plan.classes().contains(&FaultClass::CorruptLeaf));
            let emptied = |node: u8, before_ms: u32| {
                let of_it = |fault: &&Fault| fault.kind == FaultKind::EmptyDisk(node) && fault.at_ms < before_ms;
                plan.faults.iter().filter(of_it).map(|fault| fault.at_ms).max()
            };
            old += u32::from(plan.faults.iter().any(|fault| match fault.kind {
                FaultKind::RolledBackDisk { node, back_ms } => {
                    emptied(node, fault.at_ms).is_some_and(|emptied_ms| fault.at_ms - back_ms < emptied_ms)
                }
                _ => false,
            }));
        }
        assert!(old > 5, "an old disk comes back in {old} lives");
        assert!(turns > 40 && several > 10 && leaves > 10, "{turns} lives, {several} with victims, {leaves} leaves");
    }

    #[test]
    fn in_some_lives_nodes_are_parted_for_long_and_nothing_is_slow() {
        let parted = |plan: &Plan| {
            let long = |fault: &Fault| {
                let class = fault.kind.class();
                fault.for_ms >= 12_000
                    && matches!(class, FaultClass::Partition | FaultClass::Bridge | FaultClass::CutFromPeers)
            };
            let means_it = !plan.has_point(Effect::Refuses) && !plan.has_point(Effect::Forgets);
            means_it && plan.faults.iter().any(long) && !plan.classes().into_iter().any(FaultClass::slows)
        };
        let lives = (0..SEEDS).filter(|seed| parted(&Plan::draw(*seed, &all()))).count();
        assert!((25..100).contains(&lives), "{lives}");
    }

    #[test]
    fn one_of_w_copies_is_always_spared() {
        for seed in 0..SEEDS {
            let plan = Plan::draw(seed, &all());
            let destroyed = plan.faults.iter().filter(|fault| fault.kind.class().destroys());
            let victims: BTreeSet<u8> = destroyed.flat_map(|fault| fault.kind.nodes()).collect();
            let w_least = plan.workload.quorums.iter().map(|(_, w)| w.count(plan.n)).min().expect("there is one");
            // Else it is the nemesis that waits until what is lost has come back.
            let spared = plan.in_turn && w_least > 1;
            assert!(spared || victims.len() < usize::from(w_least), "seed {seed}: {victims:?} of {w_least}");
        }
    }

    #[test]
    fn plans_survive_a_file() {
        let plan = Plan::draw(42, &all());
        let text = serde_json::to_string_pretty(&plan).expect("plain data");
        assert_eq!(serde_json::from_str::<Plan>(&text).expect("it is one"), plan);
        for (field, misspelt) in
            [("in_turn", "in_trun"), ("rotations", "rotation"), ("latency_min_ms", "latency_min_s")]
        {
            let wrong = text.replacen(&format!("\"{field}\":"), &format!("\"{misspelt}\": 0, \"{field}\":"), 1);
            let error = serde_json::from_str::<Plan>(&wrong).expect_err("nobody reads it").to_string();
            assert!(error.contains(misspelt), "{error}");
        }
    }

    #[test]
    fn a_plan_without_clients_is_none() {
        let mut plan = Plan::draw(42, &all());
        plan.workload.clients = 0;
        let problems = plan.problems().join("; ");
        assert!(problems.contains("`clients` is 0"), "{problems}");
    }

    #[test]
    fn shrinking_ends_at_a_plan_that_still_fails() {
        // A stand-in for a bug that needs a crash of node 0 and two clients.
        let fails = |plan: &Plan| {
            let crash = |fault: &Fault| matches!(fault.kind, FaultKind::Crash { node: 0, .. });
            plan.faults.iter().any(crash) && plan.workload.clients >= 2
        };
        let mut shrunk = 0;
        for seed in 0..300 {
            let mut plan = Plan::draw(seed, &all());
            if !fails(&plan) {
                continue;
            }
            let mut steps = 0;
            while let Some(simpler) = plan.simpler().into_iter().find(fails) {
                plan = simpler;
                steps += 1;
                assert!(steps < 500, "seed {seed} shrinks for ever");
            }
            assert_eq!((plan.faults.len(), plan.workload.clients, plan.workload.operations), (1, 2, 1), "seed {seed}");
            assert_eq!(plan.nodes(), plan.n.max(1));
            assert_eq!((&plan.points.on, &plan.aftermath), (&BTreeSet::new(), &None), "seed {seed}");
            shrunk += 1;
        }
        assert!(shrunk > 3, "{shrunk}");
    }

    #[test]
    fn nonsense_is_told() {
        let mut plan = Plan::draw(1, &BTreeSet::new());
        plan.n = 9;
        plan.faults = vec![Fault { at_ms: 0, for_ms: u32::MAX, kind: FaultKind::Pause(40) }];
        let problems = plan.problems().join("; ");
        for part in ["n is 9", "names no node", "outlasts"] {
            assert!(problems.contains(part), "{problems}");
        }
    }
}
