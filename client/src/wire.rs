//! What clients and nodes say to each other: requests, replies, error codes and limits, and how they become bytes.
//!
//! A message is one frame of a lane (see [`crate::rpc`]): a version byte and one MessagePack value. The node decodes it with
//! limits on size and depth; a variant or a version that it does not know gets [`NotApplied::Unsupported`], never a guess.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::codec::Blob;
use crate::ids::{ClusterId, DiskId, LayoutVersion, NodeId, OpId, Partition};
use crate::options::Quorum;

/// The application protocol that clients ask for in the TLS handshake.
pub const ALPN_CLIENT: &[u8] = b"quorate-client/1";

/// The longest key, in bytes; a key has at least one.
pub const KEY_LEN_MAX: usize = 1024;
/// The largest value, in bytes.
pub const VALUE_LEN_MAX: usize = 1 << 20;
/// The largest context, in bytes.
pub const CONTEXT_LEN_MAX: usize = 64 << 10;
/// A context above this is reported in [`Written::context_large`]: its key has been coordinated by very many actors.
pub const CONTEXT_LEN_WARN: usize = 1 << 10;
/// A key with as many siblings refuses writes that would add one more.
pub const SIBLINGS_MAX: usize = 100;
/// From here on a key's siblings are worth a warning.
pub const SIBLINGS_WARN: usize = 10;

/// A request of a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The newest layout that the client's route table was made from; 0 if it has none.
    pub layout: LayoutVersion,
    /// Ties together the log lines of one request on every node that it touches.
    pub request_id: u64,
    /// What is asked for.
    pub body: RequestBody,
}

/// What a client can ask for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RequestBody {
    /// Writes or deletes a key.
    Write(Write),
    /// Reads a key.
    Read(Read),
    /// One page of the live records of some partitions, in key-hash order, each read from R primaries.
    Scan(Scan),
    /// The current route table.
    Route,
    /// Where a key lives.
    Locate {
        /// The key.
        key: Blob,
    },
    /// What the answering node knows of itself and of its peers.
    Status,
    /// Shows or changes the layout; needs an administrator's certificate.
    Layout(LayoutCommand),
    /// Shows or steers how the answering node compares itself with others; all but showing needs an administrator's certificate.
    Repair(RepairCommand),
}

/// A put (with a value) or a delete (without one).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Write {
    /// 1 to [`KEY_LEN_MAX`] bytes.
    pub key: Blob,
    /// The new value, or nothing for a delete.
    pub value: Option<Blob>,
    /// What the writer has seen of the key: the context of a read or of a write. Nothing means that it has seen nothing.
    pub context: Option<Blob>,
    /// The same in every retry of this write.
    pub op_id: OpId,
    /// An earlier attempt may have been minted somewhere: how long ago, in milliseconds, the first one was sent at most. Only who
    /// knows the operation may mint it then, or a primary that remembers everything since: a second dot could outlive what has
    /// replaced the first one.
    pub first_sent_ms: Option<u64>,
    /// How many replicas must hold the write durably before it is acknowledged; the server's default if absent.
    pub w: Option<Quorum>,
    /// Only primaries count for W.
    pub strict: bool,
    /// Ask for [`Evidence`].
    pub explain: bool,
}

/// A read of one key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Read {
    /// 1 to [`KEY_LEN_MAX`] bytes.
    pub key: Blob,
    /// How many replicas must answer; the server's default if absent.
    pub r: Option<Quorum>,
    /// Only primaries count for R.
    pub strict: bool,
    /// Answer once what is returned is durable on N - R + 1 of the primaries, and on a majority of them at least, so that no later
    /// read of as many replicas, or of a majority, misses it.
    pub monotonic: bool,
    /// Ask for [`Evidence`].
    pub explain: bool,
}

/// One page of some partitions that follow each other. A page goes on across partitions until it is full, so that many small
/// partitions do not cost a round trip each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scan {
    /// Where to begin: the [`Scanned::next`] of the page before.
    pub from: ScanPosition,
    /// The partition before which the scan ends; the number of partitions for all of them.
    pub until: Partition,
    /// At most so many records (1 to 10,000); a page is also bounded by bytes and by time.
    pub limit: u32,
    /// Only keys that begin with these bytes.
    pub prefix: Option<Blob>,
    /// Send keys without values.
    pub keys_only: bool,
    /// How many replicas each record is read from.
    pub r: Option<Quorum>,
}

/// A place in a scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanPosition {
    /// The partition.
    pub partition: Partition,
    /// After this key of it; nothing: at its beginning.
    pub after: Option<Blob>,
}

impl ScanPosition {
    /// The beginning of a partition.
    pub fn start_of(partition: Partition) -> Self {
        Self { partition, after: None }
    }
}

/// Changes of the layout, and looking at it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum LayoutCommand {
    /// The current layout, what is staged, and what applying it would do.
    Show,
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
    /// Sets N, Q and the floors for the first layout; what is absent stays as it is.
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
    /// be reached: they have then accepted it for ever, and [`LayoutReport::current`] still has the version before.
    Apply {
        /// Must be the current version plus one: so that what was looked at is what is applied.
        version: LayoutVersion,
    },
    /// Makes a new secret with which nodes mark the contexts that they give to clients. Contexts that were given out before are
    /// taken until three more have been made; then they are refused with [`NotApplied::BadContext`].
    RotateContextKey,
}

impl LayoutCommand {
    /// Whether it changes anything, be it only what is staged.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Show)
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

/// A node's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// A newer route table than the one that the request was made with.
    pub table: Option<RouteTable>,
    /// The answer.
    pub body: Result<Reply, Failure>,
}

/// Answers to requests that were carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`RequestBody::Write`].
    Written(Written),
    /// To [`RequestBody::Read`]; also when the key is absent, then without values.
    Found(Found),
    /// To [`RequestBody::Scan`].
    Scanned(Scanned),
    /// To [`RequestBody::Route`].
    Route(RouteTable),
    /// To [`RequestBody::Locate`].
    Located(Located),
    /// To [`RequestBody::Status`].
    Status(Box<NodeStatus>),
    /// To [`RequestBody::Layout`].
    Layout(Box<LayoutReport>),
    /// To [`RequestBody::Repair`].
    Repair(Box<RepairReport>),
}

/// Which replicas acknowledged, by the role in which they did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acks {
    /// Owners of the key.
    pub primary: u8,
    /// Stand-ins for owners.
    pub fallback: u8,
}

impl Acks {
    /// All that acknowledged.
    pub fn total(self) -> u8 {
        self.primary.saturating_add(self.fallback)
    }
}

/// What a reply says of the quorum that made it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumReport {
    /// How many acknowledgements were needed.
    pub need: u8,
    /// Who had acknowledged when the reply was made.
    pub acks: Acks,
    /// Not all of the quorum were primaries: the promise of R + W > N does not hold for this reply.
    pub degraded: bool,
    /// The request asked for less than the layout's floor: what R + W > N promises does not hold across a change of the layout.
    pub below_floor: bool,
    /// The layout that the quorum was counted in.
    pub layout: LayoutVersion,
}

/// A write that was acknowledged by W replicas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// What the writer has now seen: its own context and this write.
    pub context: Blob,
    /// How many live values the key has at the coordinator, this write's included.
    pub siblings: u32,
    /// How many live values this write replaced or deleted at the coordinator.
    pub replaced: u32,
    /// Every counted acknowledgement was given after a sync to disk (false in the durability mode `interval`).
    pub synced: bool,
    /// The context has grown above [`CONTEXT_LEN_WARN`].
    pub context_large: bool,
    /// The quorum.
    pub quorum: QuorumReport,
    /// If it was asked for.
    pub evidence: Option<Box<Evidence>>,
}

/// What R replicas hold of a key, merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The live values, in the order of their dots; none if the key is absent or deleted.
    pub values: Vec<Blob>,
    /// Covers exactly these values and what they replaced; also there when the key is absent.
    pub context: Blob,
    /// The quorum.
    pub quorum: QuorumReport,
    /// If it was asked for.
    pub evidence: Option<Box<Evidence>>,
}

/// One page of a scan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scanned {
    /// Live records, in the order of their key hashes.
    pub entries: Vec<ScanEntry>,
    /// Where the next page begins; nothing if this was the last one. A page may hold less than was asked for, even nothing,
    /// although there are more: then the node has run out of time, or met a partition that could not be read.
    pub next: Option<ScanPosition>,
    /// The least that any record of this page was read with.
    pub quorum: QuorumReport,
}

/// A record of a scan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanEntry {
    /// The key.
    pub key: Blob,
    /// Its live values, at least one; none with [`Scan::keys_only`].
    pub values: Vec<Blob>,
    /// As [`Found::context`]; with [`Scan::keys_only`] one that has seen nothing.
    pub context: Blob,
}

/// Which member to send a request for a key to: the primaries of each partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// The layout that it was made from.
    pub version: LayoutVersion,
    /// The members and where they listen.
    pub members: Vec<(NodeId, SocketAddr)>,
    /// How many partitions there are.
    pub partitions: u16,
    /// How many primaries each has.
    pub n: u8,
    /// `n` indices into `members` for each partition, partition 0 first, best primary first.
    pub primaries: Vec<u16>,
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

/// Why a request was not answered with a [`Reply`]. The variants differ in what may have happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// Nothing was changed and nothing will be: always safe to try again.
    #[error("{0}")]
    NotApplied(#[from] NotApplied),
    /// The write was minted and may or may not have reached replicas; it may still take effect. Safe to retry with the
    /// same operation id, and only so.
    #[error(
        "the outcome of write {op_id} is unknown: {need} acknowledgements were needed, {} arrived in time ({why})",
        acks.total()
    )]
    Indeterminate {
        /// The write.
        op_id: OpId,
        /// Acknowledgements needed.
        need: u8,
        /// Acknowledgements that arrived.
        acks: Acks,
        /// What went wrong, for people.
        why: String,
    },
}

/// Definite refusals: said before a write is minted, or when no byte of it was sent; and every failure of a read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum NotApplied {
    /// Too few replicas could be reached.
    #[error("unavailable: {need} replicas are needed, {alive} can be reached ({why}); nothing was changed")]
    Unavailable {
        /// Replicas needed.
        need: u8,
        /// Replicas that answered or that could be reached.
        alive: u8,
        /// Who failed and how, for people.
        why: String,
    },
    /// A read got too few answers before its deadline.
    #[error("timed out: {need} answers were needed, {had} arrived in time ({why}); nothing was changed")]
    TimedOut {
        /// Answers needed.
        need: u8,
        /// Answers that arrived.
        had: u8,
        /// Who was late, for people.
        why: String,
    },
    /// The node has more work than it can queue.
    #[error("overloaded: try again in {retry_after_ms} ms; nothing was changed")]
    Overloaded {
        /// When to come back.
        retry_after_ms: u32,
    },
    /// The request was made with a layout that this replica may no longer serve.
    #[error("the request was made for layout {had}, this replica is at {need}; nothing was changed")]
    StaleLayout {
        /// The layout that it needs.
        need: LayoutVersion,
        /// The layout that it was made for.
        had: LayoutVersion,
    },
    /// There is no layout yet, or this node does not serve.
    #[error("{node} does not serve data: {why}; nothing was changed")]
    NotServing {
        /// Who refuses.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// A key, value, context or record beyond its limit.
    #[error("the {what} has {got} bytes, at most {limit} are allowed; nothing was changed")]
    TooLarge {
        /// Key, value, context, record.
        what: String,
        /// The most that is allowed, in bytes.
        limit: u64,
        /// What was sent, in bytes.
        got: u64,
    },
    /// The key is empty.
    #[error("the key is empty, it needs 1 to {KEY_LEN_MAX} bytes; nothing was changed")]
    EmptyKey,
    /// R or W is 0 or above N.
    #[error("{what}={asked} is not possible with N={n}: 1 to {n} are allowed; nothing was changed")]
    QuorumImpossible {
        /// `R` or `W`.
        what: String,
        /// What was asked for.
        asked: u8,
        /// The replicas that there are.
        n: u8,
    },
    /// No node of this cluster has issued the context for this key, or so long ago that nobody can tell: it is made up, damaged, of
    /// another key or cluster, or was issued under a key that has been replaced since.
    #[error("the context is refused: {why}; nothing was changed")]
    BadContext {
        /// What is wrong with it.
        why: String,
    },
    /// The key has [`SIBLINGS_MAX`] siblings and this write would add one.
    #[error(
        "the key has {got} siblings, at most {limit} are allowed: resolve them with a put that carries the context of a read; nothing was changed"
    )]
    TooManySiblings {
        /// How many there are.
        got: u32,
        /// How many are allowed.
        limit: u32,
    },
    /// The certificate does not allow it.
    #[error("not allowed: {why}; nothing was changed")]
    Forbidden {
        /// What would be needed.
        why: String,
    },
    /// The request is malformed, or of a kind or version that this node does not know.
    #[error("not understood: {why}; nothing was changed")]
    Unsupported {
        /// What was wrong, and what is understood.
        why: String,
    },
    /// A command that cannot be carried out as things stand (layout commands).
    #[error("refused: {why}; nothing was changed")]
    Refused {
        /// What stands against it, and what to do.
        why: String,
    },
    /// The store failed before anything was written.
    #[error("storage failed on {node}: {why}; nothing was changed")]
    Storage {
        /// On which node.
        node: NodeId,
        /// How.
        why: String,
    },
}

impl NotApplied {
    /// What was wrong, for a text that says otherwise whether anything was changed.
    pub fn reason(&self) -> String {
        let text = self.to_string();
        text.strip_suffix("; nothing was changed").map(str::to_owned).unwrap_or(text)
    }
}

/// How a request was answered: whom the coordinator asked, in which role, what each said and when, and what decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The node that ran the request.
    pub coordinator: NodeId,
    /// The node that passed it on, if the client did not ask a primary.
    pub forwarded_by: Option<NodeId>,
    /// Where the key lives.
    pub partition: Partition,
    /// All members in preference order; the first `n` are primaries.
    pub preference: Vec<NodeId>,
    /// How many of them are primaries.
    pub n: u8,
    /// Every question, in the order in which it was asked.
    pub asked: Vec<Asked>,
    /// Whose answer completed the quorum.
    pub decided_by: Option<NodeId>,
    /// The dot of the write, or the live dots of the read, for people.
    pub dots: Vec<String>,
    /// How many replicas were asked because others were late.
    pub hedges: u32,
    /// Hints that were kept, or asked to be kept, when the reply was made: (holder, for whom). A write's coordinator may be a
    /// holder itself.
    pub hints: Vec<(NodeId, NodeId)>,
    /// Replicas that were seen to lack something when the reply was made, and are repaired after it.
    pub repairs: Vec<NodeId>,
    /// Whole microseconds from the coordinator's first look at the request to its reply.
    pub took_us: u64,
}

/// One question to one replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Who was asked.
    pub node: NodeId,
    /// In which role.
    pub role: Role,
    /// For a fallback, the primary that it stands in for.
    pub instead_of: Option<NodeId>,
    /// Microseconds after the start of the request.
    pub sent_us: u64,
    /// Microseconds after the start; nothing if it had not answered when the reply was made.
    pub answered_us: Option<u64>,
    /// What it said, for people: `ack`, `2 values`, `connection refused`, ..
    pub said: String,
    /// Whether it counted for the quorum.
    pub counted: bool,
}

/// In which role a replica was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// An owner of the key.
    Primary,
    /// A stand-in.
    Fallback,
}
