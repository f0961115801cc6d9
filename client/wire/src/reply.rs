//! What a node answers: data, and how certain it is.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::admin::{LayoutReport, Located, NodeStatus, RepairReport};
use crate::codec::Blob;
use crate::evidence::Evidence;
use crate::failure::Failure;
use crate::ids::{LayoutVersion, NodeId};
use crate::key::Key;
use crate::request::ScanPosition;

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
    /// To [`RequestBody::Write`](crate::RequestBody::Write).
    Written(Written),
    /// To [`RequestBody::Read`](crate::RequestBody::Read); also when the key is absent, then without values.
    Found(Found),
    /// To [`RequestBody::Scan`](crate::RequestBody::Scan).
    Scanned(Scanned),
    /// To [`RequestBody::Route`](crate::RequestBody::Route).
    Route(RouteTable),
    /// To [`RequestBody::Locate`](crate::RequestBody::Locate).
    Located(Located),
    /// To [`RequestBody::Status`](crate::RequestBody::Status).
    Status(Box<NodeStatus>),
    /// To [`RequestBody::Layout`](crate::RequestBody::Layout).
    Layout(Box<LayoutReport>),
    /// To [`RequestBody::Repair`](crate::RequestBody::Repair).
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
    /// The context has grown above [`CONTEXT_LEN_WARN`](crate::CONTEXT_LEN_WARN).
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
    pub key: Key,
    /// Its live values, at least one; none with [`Scan::keys_only`](crate::Scan::keys_only).
    pub values: Vec<Blob>,
    /// As [`Found::context`]; with [`Scan::keys_only`](crate::Scan::keys_only) one that has seen nothing.
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
