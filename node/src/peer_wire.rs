//! What nodes say to each other; a compatibility promise of its own, beside that of [`quorate_wire`].
//!
//! A message is one frame of a lane, as between clients and nodes. Keys are encoded ones ([`quorate_wire::key`]). Every question about data names the layout versions that
//! it is made under, and a replica refuses what it may no longer serve.

pub mod heal;

use std::net::SocketAddr;

use quorate_wire as wire;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId, Partition};
use serde::{Deserialize, Serialize};

use self::heal::{HealReply, HealRequest};
use crate::beacons::Remembered;
use quorate_core::context_keys::ContextKeys;
use quorate_core::layout::{Layout, LayoutHash};
use quorate_core::record::{DecodeError, Record};

/// The application protocol that nodes ask for in the TLS handshake; it takes a node's certificate.
pub const ALPN_PEER: &[u8] = b"quorate-peer/1";

/// Classes of lanes. Each has a budget of its own, so that replication never waits behind forwarded requests: those wait for
/// replication, and would otherwise wait for themselves.
pub mod class {
    /// Hellos and layouts.
    pub const CONTROL: u8 = 0;
    /// Merging and fetching single records: whoever serves these never waits for a peer.
    pub const REPLICATE: u8 = 1;
    /// Clients' requests, passed on to a primary.
    pub const FORWARD: u8 = 2;
    /// Pages of records, and what replicas compare and exchange.
    pub const BULK: u8 = 3;
    /// Hints on their way home: a class of its own, so that a page of them never stands before a client's write.
    pub const HANDOFF: u8 = 4;
}

/// The first thing that is said on a connection, by both ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster; the certificate must say the same.
    pub cluster: ClusterId,
    /// The node; the certificate must say the same.
    pub node: NodeId,
    /// Its data directory.
    pub disk: DiskId,
    /// How often it has started on this disk.
    pub boot: u64,
    /// Where others reach it.
    pub addr: SocketAddr,
    /// The layout in force for it; 0 if there is none.
    pub layout: LayoutVersion,
    /// The hash of the version 1 that it has accepted, if any. Two nodes with different ones have nothing to say to each other.
    pub first_layout: Option<LayoutHash>,
    /// The release that it runs, for people.
    pub release: String,
    /// This life of the node: random, drawn at its start. See [`crate::beacons`].
    pub life: u64,
    /// How far its disk was when it started.
    pub beacon: u64,
    /// What it remembers of the disks of the node that it says hello to.
    pub remembers: Vec<Remembered>,
}

/// The live layout versions that a question about data names, both ends included (rule L1 of the layout change). As long as
/// version 1 is the only one, both ends are 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The oldest version whose owners are asked.
    pub low: LayoutVersion,
    /// The newest one; a replica that knows a newer one refuses.
    pub high: LayoutVersion,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerRequest {
    /// Of the client's request that caused it; 0 if none did.
    pub request_id: u64,
    /// How far the asker's disk is, durably. See [`crate::beacons`].
    pub beacon: u64,
    /// What is asked.
    pub body: PeerBody,
}

/// An answer, and how far the disk of the answering node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerAnswer {
    /// Durably, at the time of the answer. See [`crate::beacons`].
    pub beacon: u64,
    /// The answer.
    pub reply: PeerReply,
}

/// What a node can ask of another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerBody {
    /// Introduces itself; answered with [`PeerReply::Hello`].
    Hello(Hello),
    /// To merge a record, and to acknowledge when it is durable.
    Replicate {
        /// See [`Label`].
        label: Label,
        /// The key.
        key: Blob,
        /// The record, as [`quorate_core::record::Record::encode`] makes it.
        record: Blob,
    },
    /// To keep a record for a primary of its key that did not take it, and to acknowledge when that is durable; answered with
    /// [`PeerReply::Replicated`].
    Hint {
        /// See [`Label`].
        label: Label,
        /// The primary that is to have it.
        target: NodeId,
        /// The key.
        key: Blob,
        /// The record.
        record: Blob,
    },
    /// Hints that the receiver is the target of: to merge them, and to acknowledge when they are durable.
    Handoff {
        /// See [`Label`].
        label: Label,
        /// Keys and encoded records.
        entries: Vec<(Blob, Blob)>,
    },
    /// The record of a key.
    Fetch {
        /// See [`Label`].
        label: Label,
        /// The key.
        key: Blob,
        /// The digest of the record that the asker holds: the same one need not be sent.
        held: Option<u128>,
        /// To be answered once what is answered is durable here.
        durable: bool,
        /// How many replicas the read asks: a replica that is partly recovered answers not all reads.
        r: u8,
    },
    /// What the receiver keeps of a key for its primaries; answered with [`PeerReply::Fetched`].
    FetchHint {
        /// See [`Label`].
        label: Label,
        /// The key.
        key: Blob,
    },
    /// One page of a partition's records, in the order of (key hash, key).
    FetchRange {
        /// See [`Label`].
        label: Label,
        /// The partition.
        partition: Partition,
        /// The last key of the page before.
        after: Option<Blob>,
        /// At most so many records; the page is bounded in bytes as well.
        limit: u32,
        /// How many replicas the read asks.
        r: u8,
    },
    /// To compare and exchange what two owners hold.
    Heal {
        /// See [`Label`].
        label: Label,
        /// What is asked.
        request: HealRequest,
    },
    /// To run a client's request. It is never passed on again.
    Forward {
        /// The request.
        request: wire::Request,
    },
    /// To accept the first layout durably, once and for ever (rule L14).
    AcceptFirstLayout {
        /// The layout.
        layout: Layout,
        /// The secrets that come with it, at least one (rule V5).
        keys: ContextKeys,
    },
    /// Which first layout it has accepted.
    LayoutState,
    /// To take in these secrets durably, and to tell which ones it knows.
    ContextKeys {
        /// What the asker knows.
        keys: ContextKeys,
    },
}

impl PeerBody {
    /// The keys that it is about, as far as it names them.
    pub(crate) fn keys(&self) -> Vec<&Blob> {
        match self {
            Self::Replicate { key, .. }
            | Self::Hint { key, .. }
            | Self::Fetch { key, .. }
            | Self::FetchHint { key, .. } => vec![key],
            Self::Forward { request } => match &request.body {
                wire::RequestBody::Write(write) => vec![&write.key],
                wire::RequestBody::Read(read) => vec![&read.key],
                _ => Vec::new(),
            },
            Self::Handoff { entries, .. } => entries.iter().map(|(key, _)| key).collect(),
            Self::Heal { request: HealRequest::Exchange { offers, .. }, .. } => {
                offers.iter().map(|offer| &offer.key).collect()
            }
            Self::Hello(_)
            | Self::FetchRange { .. }
            | Self::Heal { .. }
            | Self::AcceptFirstLayout { .. }
            | Self::LayoutState
            | Self::ContextKeys { .. } => Vec::new(),
        }
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Replicate { .. } => "replicate",
            Self::Hint { .. } => "keep a hint",
            Self::Handoff { .. } => "handoff",
            Self::Fetch { .. } => "fetch",
            Self::FetchHint { .. } => "fetch hints",
            Self::FetchRange { .. } => "fetch a page",
            Self::Heal { request: HealRequest::Exchange { .. }, .. } => "exchange",
            Self::Heal { .. } => "compare",
            Self::Forward { .. } => "forward",
            Self::AcceptFirstLayout { .. } => "accept the first layout",
            Self::LayoutState => "layout state",
            Self::ContextKeys { .. } => "context keys",
        }
    }
}

/// Those of several records that a store did not take, or that the receiver is too old for. Nothing is said of them; they may be sent again
/// at any time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Whose.
    pub keys: Vec<Blob>,
    /// Why the first one was refused, for people; empty if none was.
    pub why: String,
}

impl Refused {
    /// Takes note of a record that was not merged, if it is the store that refused that one: others may be taken all the same.
    ///
    /// # Errors
    /// What was said, if it is about the node or the request.
    pub(crate) fn note(&mut self, key: &Blob, refusal: wire::NotApplied) -> Result<(), wire::NotApplied> {
        let wire::NotApplied::Storage { .. } = refusal else { return Err(refusal) };
        self.push(key, || refusal.to_string());
        Ok(())
    }

    /// Decodes a record. One that a newer release has written is not merged, which says nothing of the others either.
    ///
    /// # Errors
    /// When it is damaged.
    pub(crate) fn decode(&mut self, key: &Blob, record: &Blob) -> Result<Option<Record>, String> {
        match Record::decode(record) {
            Ok(record) => Ok(Some(record)),
            Err(newer @ DecodeError::Newer(_)) => {
                self.push(key, || format!("a record cannot be decoded: {newer}"));
                Ok(None)
            }
            Err(DecodeError::Damaged(why)) => Err(format!("a record cannot be decoded: {why}")),
        }
    }

    fn push(&mut self, key: &Blob, why: impl FnOnce() -> String) {
        if self.keys.is_empty() {
            self.why = why();
        }
        self.keys.push(key.clone());
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerReply {
    /// To [`PeerBody::Hello`].
    Hello(Hello),
    /// To [`PeerBody::Replicate`]: the record is merged.
    Replicated {
        /// It survives a power cut (false in the durability mode `interval`).
        synced: bool,
        /// The merge changed something.
        changed: bool,
    },
    /// To [`PeerBody::Fetch`].
    Fetched {
        /// The encoded record; nothing if this primary has never heard of the key, or this fallback keeps nothing of it.
        record: Option<Blob>,
    },
    /// To [`PeerBody::Fetch`]: the record is the one that the asker holds.
    FetchedSame,
    /// To [`PeerBody::Handoff`]: all of it is merged and durable, but for what was refused.
    HandedOff {
        /// The next page is welcome after so many milliseconds: the receiver grants the rate.
        pause_ms: u32,
        /// What its disk did not take: above all values, while there is little room.
        refused: Refused,
    },
    /// To [`PeerBody::FetchRange`].
    Range {
        /// Keys and encoded records.
        entries: Vec<(Blob, Blob)>,
        /// There is nothing after them.
        done: bool,
    },
    /// To [`PeerBody::Heal`].
    Healed(HealReply),
    /// To [`PeerBody::Forward`].
    Forwarded(wire::Response),
    /// To [`PeerBody::AcceptFirstLayout`]: it is durable here.
    FirstLayoutAccepted,
    /// To [`PeerBody::LayoutState`].
    LayoutState {
        /// What it has accepted.
        accepted: Option<Layout>,
        /// It knows that a majority of the named members has accepted the same.
        chosen: bool,
        /// The secrets that it holds with it.
        keys: ContextKeys,
    },
    /// To [`PeerBody::ContextKeys`].
    ContextKeys {
        /// All that it knows; what the asker has sent is durable here.
        keys: ContextKeys,
    },
    /// Nothing was acknowledged, and why. What was asked for may have been done in part: a merge whose sync failed.
    Refused(wire::NotApplied),
}

impl PeerReply {
    /// Whether what was asked for was done, for people.
    pub(crate) fn is_ok(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Forwarded(wire::Response { body: Err(_), .. }))
    }

    /// What it says, in a few words, for people.
    pub(crate) fn said(&self) -> String {
        match self {
            Self::Replicated { changed: true, .. } => "merged it".to_owned(),
            Self::Replicated { changed: false, .. } => "had it already".to_owned(),
            Self::Fetched { record: Some(_) } => "a record".to_owned(),
            Self::Fetched { record: None } => "no record".to_owned(),
            Self::FetchedSame => "the same record".to_owned(),
            Self::Forwarded(response) => quorate_wire::story::said(&response.body),
            Self::Refused(refusal) => format!("refused: {refusal}"),
            Self::HandedOff { refused, .. } if refused.keys.is_empty() => "merged all of it".to_owned(),
            Self::HandedOff { refused, .. } => format!("merged all but {}: {}", refused.keys.len(), refused.why),
            Self::Hello(_)
            | Self::Range { .. }
            | Self::Healed(_)
            | Self::FirstLayoutAccepted
            | Self::LayoutState { .. }
            | Self::ContextKeys { .. } => "answered".to_owned(),
        }
    }
}
