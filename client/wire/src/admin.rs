//! What operators ask for and are shown: the layout, the state of a node, where a key lives, repair.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, DiskId, LayoutVersion, NodeId, Partition};

/// Changes of the layout, and looking at it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum LayoutCommand {
    /// The current layout, what is staged, and what applying it would do.
    Show,
    /// The layouts that the node still knows, and how each differs from the one before.
    History,
    /// Stages a member. The node asks the member at `addr` for its disk id, so that it must be reachable.
    StageJoin {
        /// Who joins.
        node: NodeId,
        /// Where it listens.
        addr: SocketAddr,
        /// Its failure domain: replicas go to different zones while there are any.
        zone: String,
        /// Its share of the data, relative to the other members.
        weight: u32,
    },
    /// Stages that a member leaves: what it owns goes to the others. Only once a layout is in force.
    StageLeave {
        /// Who leaves.
        node: NodeId,
    },
    /// Stages that a node takes the place of a member, dead or alive, so that nothing else moves. Only once a layout is in force.
    StageReplace {
        /// Who goes.
        old: NodeId,
        /// Who comes; no member has this name.
        new: NodeId,
        /// Where it listens; it is asked for its disk id.
        addr: SocketAddr,
    },
    /// Stages another share of the data for a member. Only once a layout is in force.
    StageWeight {
        /// Whose.
        node: NodeId,
        /// The new one.
        weight: u32,
    },
    /// Stages another failure domain for a member. Only once a layout is in force.
    StageZone {
        /// Whose.
        node: NodeId,
        /// The new one.
        zone: String,
    },
    /// Sets N, Q and the floors; what is absent stays as it is. Q can be set for the first layout only.
    StageSettings {
        /// Replicas of each record.
        n: Option<u8>,
        /// How many partitions the hash space is cut into; never changes later.
        partitions: Option<u16>,
        /// The read floor.
        r: Option<u8>,
        /// The write floor.
        w: Option<u8>,
    },
    /// Forgets what is staged.
    Revert,
    /// Makes what is staged the layout of this version. The answer is a report also when only a minority of the members could
    /// be reached: they have then accepted it for ever, and [`LayoutReport::current`] still has the version before. Of later versions than
    /// the first one, [`LayoutReport::applied`] tells what has come of it.
    Apply {
        /// Must be the current version plus one: so that what was looked at is what is applied.
        version: LayoutVersion,
    },
    /// Ends the change under way: makes a layout that is equal to the one before the newest the layout of this version. What is staged
    /// stays staged. Without a version the report only [says](LayoutReport::abort) what that would be.
    Abort {
        /// The newest version plus one: so that what was looked at is what is ended.
        version: Option<LayoutVersion>,
    },
    /// Makes a new secret with which nodes mark the contexts that they give to clients. Contexts that were given out before are
    /// taken until three more have been made; then they are refused with [`NotApplied::BadContext`](crate::NotApplied::BadContext).
    RotateContextKey,
}

impl LayoutCommand {
    /// Whether it changes anything, be it only what is staged.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Show | Self::History | Self::Abort { version: None })
    }
}

/// What an operator can tell a node's anti-entropy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RepairCommand {
    /// To begin a pass now, also if it was paused or is switched off.
    Start,
    /// To report.
    Status,
    /// To make no passes until it is resumed or the node starts again.
    Pause,
    /// To go on.
    Resume,
}

impl RepairCommand {
    /// Whether it changes anything.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Status)
    }
}

/// Where a key lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Located {
    /// The key's hash.
    pub hash: u64,
    /// The partition that it falls into.
    pub partition: Partition,
    /// The layout.
    pub layout: LayoutVersion,
    /// All members in the order in which the ring offers the partition to them; the first `n` are its primaries.
    pub preference: Vec<Located1>,
    /// How many of them are primaries.
    pub n: u8,
}

/// One place of a preference list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Located1 {
    /// Who.
    pub node: NodeId,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its zone.
    pub zone: String,
    /// Whether the answering node believes that it is up.
    pub up: bool,
}

/// What a node knows of itself and its peers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its disk.
    pub disk: DiskId,
    /// The release that it runs.
    pub release: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// The storage engine and the durability mode.
    pub storage: String,
    /// Records in its store (an estimate), and bytes on disk.
    pub records: u64,
    /// Bytes on disk, 0 for the engine in memory.
    pub disk_bytes: u64,
    /// Why it does not serve data, if it does not: no layout yet, not a member, store quarantined.
    pub not_serving: Option<String>,
    /// The layout that it knows, and the first 16 hex digits of its hash.
    pub layout: LayoutVersion,
    /// See `layout`.
    pub layout_hash: String,
    /// Replicas of each record; 0 without a layout.
    pub n: u8,
    /// The layout's floors for R and W; 0 without a layout.
    pub r: u8,
    /// See `r`.
    pub w: u8,
    /// Partitions.
    pub partitions: u16,
    /// Itself, the members of the layout and every peer that it has met, by name.
    pub peers: Vec<PeerStatus>,
    /// What it keeps for nodes that did not take it, by target.
    pub hints: Vec<HintStatus>,
    /// What hints may take in all, in bytes of keys and values; beyond it they are refused.
    pub hint_bytes_max: u64,
    /// What it has lost and is bringing back.
    pub recovering: Option<Recovering>,
    /// How many partitions have how many reachable primaries: `reachable[k]` of them have k.
    pub reachable: Vec<u32>,
    /// Monotonic counters by name, the ones that `/metrics` shows.
    pub counters: BTreeMap<String, u64>,
    /// Why it takes no new values for want of room on its disk, if it does not; reads go on.
    #[serde(default)]
    pub disk_full: Option<String>,
    /// Seconds until its certificate expires, below 0 afterwards; unknown of older releases.
    #[serde(default)]
    pub certificate_left_s: Option<i64>,
    /// Seconds until the cluster's CA certificate, as the node has it, expires.
    #[serde(default)]
    pub authority_left_s: Option<i64>,
    /// The nodes that it has met and cannot talk to, because they have accepted another layout 1, by name.
    #[serde(default)]
    pub other_layouts: Vec<OtherLayout>,
    /// How far the change of the layout under way is, if there is one.
    #[serde(default)]
    pub change: Option<Progress>,
    /// What it moves because of a change of the layout, while there is anything to tell.
    #[serde(default)]
    pub transfers: Option<Transfers>,
}

/// A node that has accepted another layout 1 than the one who tells of it: the two belong to different layouts for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherLayout {
    /// Who.
    pub node: NodeId,
    /// Where it says that it listens.
    pub addr: SocketAddr,
    /// The first 16 hex digits of the hash of its layout 1.
    pub hash: String,
    /// Those of the hash of the layout 1 of the node that tells.
    pub own: String,
}

/// What one node keeps for another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintStatus {
    /// For whom.
    pub target: NodeId,
    /// How many keys.
    pub count: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// How long the oldest has waited, in milliseconds.
    pub oldest_ms: u64,
    /// How many are handed over a second now; 0 when none are.
    pub per_second: u64,
    /// Why handing them over ended early the last time; empty if it did not.
    pub failed: String,
}

/// One node as another one sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub node: NodeId,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Whether the layout names it.
    pub member: bool,
    /// Zone and weight, if the layout names it.
    pub zone: String,
    /// See `zone`.
    pub weight: u32,
    /// How many partitions it is a primary of.
    pub primaries: u32,
    /// The debounced verdict of the failure detector.
    pub up: bool,
    /// How long the verdict has stood, in milliseconds.
    pub since_ms: u64,
    /// The layout version that it last said it holds.
    pub layout: Option<LayoutVersion>,
}

/// How a node's anti-entropy stands. What is counted is counted since the node's start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepairReport {
    /// The node.
    pub node: NodeId,
    /// It makes passes of its own accord.
    pub enabled: bool,
    /// An operator has paused it.
    pub paused: bool,
    /// A pass is under way.
    pub running: bool,
    /// The number of the newest pass.
    pub pass: u64,
    /// Partitions that the node owns.
    pub partitions: u32,
    /// Of the newest pass: comparisons of one partition with one other owner. Of two owners one compares.
    pub compared: u64,
    /// Those of them that differed, writes on their way included.
    pub differing: u64,
    /// Those that could not be compared, because a hash tree has still to be summed up.
    pub unknown: u64,
    /// Records that were repaired here because a write, or its hint, had not arrived.
    pub repaired_missed: u64,
    /// Records that were repaired here because they were corrupt.
    pub repaired_corrupt: u64,
    /// Records that were repaired here because the disk had lost them.
    pub repaired_wiped: u64,
    /// Bytes of lists of keys that were compared.
    pub bytes_listed: u64,
    /// Bytes of records that were sent to be merged.
    pub bytes_sent: u64,
    /// Bytes of records that came back.
    pub bytes_received: u64,
    /// How long ago, in milliseconds, the newest pass ended that had reached every other owner.
    pub last_pass_ms: Option<u64>,
    /// Records that the scrub has read since the node's start.
    pub scrubbed: u64,
    /// Corrupt records that it has found.
    pub scrub_found: u64,
    /// How long ago, in milliseconds, the scrub had last read everything.
    pub last_scrub_ms: Option<u64>,
    /// How many records there were then, tombstones included.
    pub records: Option<u64>,
    /// How many of them were tombstones: records of deleted keys, which are kept so that nothing late brings the keys back.
    pub tombstones: Option<u64>,
    /// Hash trees that have still to be summed up, as after an unclean stop.
    pub rebuild_left: u32,
    /// How long that will take, in milliseconds, at the pace so far.
    pub rebuild_eta_ms: Option<u64>,
    /// What it has lost and is bringing back.
    pub recovering: Option<Recovering>,
}

/// A node that has lost something which it had acknowledged: it takes writes and answers no reads of these partitions until
/// other owners have told it what it held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovering {
    /// Why, for people.
    pub why: String,
    /// Partitions that are not whole yet.
    pub left: u32,
    /// Partitions of which something was lost.
    pub total: u32,
    /// How long it will take, in milliseconds, at the pace so far.
    pub eta_ms: Option<u64>,
}

/// The layout, what is staged, and what applying it would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayoutReport {
    /// The current layout; version 0 without members if there is none.
    pub current: LayoutView,
    /// What is staged on the answering node, if anything.
    pub staged: Option<LayoutView>,
    /// Why the staged layout could not be applied as it stands.
    pub problems: Vec<String>,
    /// After an apply: members that do not hold it yet, and why. After a rotation: those that do not hold the new context key.
    pub missing: Vec<(NodeId, String)>,
    /// After an apply: members that hold it durably. After a rotation: those that hold the new context key.
    pub holding: Vec<NodeId>,
    /// Things that deserve a second look.
    pub warnings: Vec<String>,
    /// The names of the context keys that the answering node knows, the newest first; none before there is a layout.
    pub context_keys: Vec<String>,
    /// The versions that are live, oldest first: more than one while a change of the layout is under way.
    #[serde(default)]
    pub live: Vec<LayoutVersion>,
    /// What applying the staged layout would move, if a layout is in force and the staged one is possible.
    #[serde(default)]
    pub moves: Option<Moves>,
    /// After an apply of a later version than the first one, or an abort: what has come of it.
    #[serde(default)]
    pub applied: Option<Applied>,
    /// Answers [`LayoutCommand::History`], oldest first.
    #[serde(default)]
    pub history: Vec<PastLayout>,
    /// How far the change under way is, if there is one.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// Answers [`LayoutCommand::Abort`] without a version.
    #[serde(default)]
    pub abort: Option<Abort>,
    /// Answers [`LayoutCommand::Show`] while a change is under way: what it moves.
    #[serde(default)]
    pub under_way: Option<UnderWay>,
}

/// A change under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnderWay {
    /// The oldest layout that is live: the change leads from it to the newest one.
    pub from: LayoutView,
    /// What it moves in all.
    pub moves: Moves,
}

/// What it would be to end the change under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Abort {
    /// The layout that it would make.
    pub layout: LayoutView,
    /// The version that this one is equal to.
    pub like: LayoutVersion,
    /// How it differs from the newest layout, for people.
    pub what: String,
    /// What it would move if all had moved already that the change moves.
    pub moves: Option<Moves>,
    /// Why it is not possible as things stand.
    pub problems: Vec<String>,
}

/// How far a change of the layout is, as the answering node knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How many partitions have moved.
    pub moved: u32,
    /// How many there are.
    pub partitions: u32,
    /// For whom the others wait, by name.
    pub waits: Vec<Wait>,
    /// Who takes something over, by name.
    #[serde(default)]
    pub receivers: Vec<Receiver>,
}

/// How far a node is that takes something over in a change of the layout, as far as the answering node knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    /// Who.
    pub node: NodeId,
    /// For so many partitions it has all that it needs.
    pub done: u32,
    /// So many it owns now and cannot do without what others hold.
    pub of: u32,
}

/// What one node moves because of a change of the layout. What is counted is counted since the change began, or since the node's start if that
/// was later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfers {
    /// The oldest layout that is live.
    pub from: LayoutVersion,
    /// The newest one; the same when the change is over.
    pub to: LayoutVersion,
    /// For so many partitions it has all that it needs.
    pub done: u32,
    /// So many it owns now and cannot do without what others hold.
    pub of: u32,
    /// How long what is left will take, in milliseconds, at the pace so far; unknown while nothing moves.
    pub eta_ms: Option<u64>,
    /// From whom it takes over, by name.
    pub sources: Vec<Flow>,
    /// To whom it hands over what it owns no more, by name.
    pub targets: Vec<Flow>,
    /// In how many partitions of other owners something may lie here still; unknown before it has been looked.
    pub left: Option<u32>,
    /// What has failed, and has not been made up for yet.
    pub stopped: Vec<Stopped>,
}

/// What goes from one node to another one in a change of the layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The other one.
    pub node: NodeId,
    /// Partitions that it has given, or has been handed over, completely.
    pub done: u32,
    /// Of so many; nothing if that is not known.
    pub of: Option<u32>,
    /// Records that were moved.
    pub records: u64,
    /// Bytes of them, keys included.
    pub bytes: u64,
    /// Records a second over the last ten seconds.
    pub records_per_second: u64,
    /// Bytes a second over the last ten seconds.
    pub bytes_per_second: u64,
}

/// Partitions that could not be moved between two nodes, and are tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// What did not succeed.
    pub what: Transfer,
    /// The other node; the node itself if the reason lies there.
    pub with: NodeId,
    /// How many partitions.
    pub partitions: u32,
    /// The one that failed last.
    pub partition: Partition,
    /// Why it did.
    pub why: String,
    /// How long ago that was, in milliseconds.
    pub ago_ms: u64,
}

/// Which way data moves in a change of the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Transfer {
    /// A new owner takes over what older ones hold.
    TakeOver,
    /// Who owns it no more hands it over before it drops it.
    HandOver,
}

/// A node for which the others wait in a change of the layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Who.
    pub node: NodeId,
    /// In how many partitions.
    pub partitions: u32,
    /// What it has still to do, for people.
    pub what: String,
    /// Whether the answering node believes that it is up.
    pub up: bool,
}

/// What has come of an apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// What was staged, or the layout that ends a change, is the layout of this version now.
    AsStaged,
    /// This version was in force before.
    Before,
    /// Another layout than the staged one has this version. What is staged stays staged, for the version after the newest.
    Another {
        /// Whose proposal it was, if that is known.
        by: Option<NodeId>,
        /// How it differs from the layout before, for people.
        what: String,
    },
    /// It is not decided. What was staged may yet become the layout of this version, also if nobody repeats the command.
    Undecided {
        /// Why, for people.
        why: String,
    },
}

/// What a change of the layout moves. Partitions are counted once for each replica.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Moves {
    /// Of each member of either layout, by name.
    pub loads: Vec<Load>,
    /// Which node gets how many partitions in place of which other one, by name.
    pub gets: Vec<Gets>,
    /// How many replicas of partitions are copied.
    pub replicas: u32,
    /// The least that any change to the same loads would copy.
    pub least: u32,
    /// How many partitions keep none of their owners.
    pub all_owners_change: u32,
    /// The largest load of a member in the layout in force, relative to its weight's share; 1 is even.
    pub balance_before: f64,
    /// The same of the staged layout.
    pub balance_after: f64,
}

/// How many partitions a member is a primary of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Who.
    pub node: NodeId,
    /// In the layout in force.
    pub before: u32,
    /// In the staged one.
    pub after: u32,
}

/// How many partitions a node gets in place of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gets {
    /// Who has them; nobody in particular where N grows.
    pub from: Option<NodeId>,
    /// Who gets them.
    pub to: NodeId,
    /// How many.
    pub partitions: u32,
}

/// A layout that is or was in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastLayout {
    /// Its version.
    pub version: LayoutVersion,
    /// Its hash, hexadecimal.
    pub hash: String,
    /// Whether it is live: the newest one, or one that a change under way leads away from.
    pub live: bool,
    /// How many members it has.
    pub members: u32,
    /// N.
    pub n: u8,
    /// The version that it is compared with: the one before it that the node knows; 0 if there is none.
    pub since: LayoutVersion,
    /// The members that it has and that one has not.
    pub added: Vec<NodeId>,
    /// The members that it has not and that one has.
    pub removed: Vec<NodeId>,
}

/// A layout as people look at it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayoutView {
    /// Its version.
    pub version: LayoutVersion,
    /// Its hash, hexadecimal.
    pub hash: String,
    /// Replicas of each record.
    pub n: u8,
    /// Partitions.
    pub partitions: u16,
    /// The floors.
    pub r: u8,
    /// See `r`.
    pub w: u8,
    /// Its members, by name.
    pub members: Vec<MemberView>,
}

/// A member as people look at it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its name.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its failure domain.
    pub zone: String,
    /// Its share, relative to the others.
    pub weight: u32,
    /// Partitions that it is a primary of.
    pub primaries: u32,
}
