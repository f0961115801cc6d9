//! What nodes say to each other; a compatibility promise of its own, beside that of [`quorate_wire`].
//!
//! A message is one frame of a lane, as between clients and nodes. Keys are encoded ones ([`quorate_wire::key`]). Every question about
//! data names the layout versions that it is made under, and a replica refuses what it may no longer serve.

pub mod heal;

use std::net::SocketAddr;

use quorate_wire as wire;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId, Partition};
use serde::{Deserialize, Serialize};

use self::heal::{Exchange, HealReply, HealRequest};
use crate::beacons::Remembered;
use quorate_core::chain::{Accepted, Ballot};
use quorate_core::context_keys::ContextKeys;
use quorate_core::layout::{Layout, LayoutHash};
pub use quorate_core::ownership::Label;
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

/// A question, tied to its answer and to the class of lanes that it goes by. [`Peers::ask`](crate::peers::Peers::ask) puts it.
pub trait Ask: Into<PeerBody> {
    /// What answers it, unless the peer refuses.
    type Answer: TryFrom<PeerReply, Error = PeerReply>;
    /// See [`class`].
    const CLASS: u8;
}

/// What a node can ask of another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerBody {
    /// Introduces itself; answered with [`PeerReply::Hello`]. It begins a connection, so that nobody can ask it later.
    Hello(Hello),
    /// See [`Replicate`].
    Replicate(Replicate),
    /// See [`KeepHint`].
    Hint(KeepHint),
    /// See [`HandOver`].
    Handoff(HandOver),
    /// See [`Fetch`].
    Fetch(Fetch),
    /// See [`FetchHint`].
    FetchHint(FetchHint),
    /// See [`FetchRange`].
    FetchRange(FetchRange),
    /// See [`Heal`].
    Heal(Heal),
    /// See [`Forward`].
    Forward(Forward),
    /// See [`AcceptFirstLayout`].
    AcceptFirstLayout(AcceptFirstLayout),
    /// See [`GetLayout`].
    LayoutState(GetLayout),
    /// See [`ShareKeys`].
    ContextKeys(ShareKeys),
    /// See [`PrepareLayout`].
    PrepareLayout(PrepareLayout),
    /// See [`AcceptLayout`].
    AcceptLayout(AcceptLayout),
    /// See [`LearnLayouts`].
    LearnLayouts(LearnLayouts),
    /// See [`GetLayouts`].
    GetLayouts(GetLayouts),
}

/// To merge a record, and to acknowledge when it is durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replicate {
    /// See [`Label`].
    pub label: Label,
    /// The key.
    pub key: Blob,
    /// The record, as [`quorate_core::record::Record::encode`] makes it.
    pub record: Blob,
}

/// To keep a record for a primary of its key that did not take it, and to acknowledge when that is durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeepHint {
    /// See [`Label`].
    pub label: Label,
    /// The primary that is to have it.
    pub target: NodeId,
    /// The key.
    pub key: Blob,
    /// The record.
    pub record: Blob,
}

/// Hints that the receiver is the target of: to merge them, and to acknowledge when they are durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HandOver {
    /// See [`Label`].
    pub label: Label,
    /// Keys and encoded records.
    pub entries: Vec<(Blob, Blob)>,
}

/// The record of a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fetch {
    /// The version whose owners are asked (rule L6).
    pub at: LayoutVersion,
    /// The newest version that a write would name. What is held durably counts for those only that know no newer one: what they hold
    /// after they have raised their fence need not reach its owners.
    pub under: LayoutVersion,
    /// The key.
    pub key: Blob,
    /// The digest of the record that the asker holds: the same one need not be sent.
    pub held: Option<u128>,
    /// To be answered once what is answered is durable here.
    pub durable: bool,
    /// How many replicas the read asks: a replica that is partly recovered does not answer all reads.
    pub r: u8,
}

/// What the receiver keeps of a key for its primaries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FetchHint {
    /// The key.
    pub key: Blob,
}

/// One page of a partition's records, in the order of (key hash, key).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FetchRange {
    /// The version whose owners are asked (rule L6).
    pub at: LayoutVersion,
    /// The partition.
    pub partition: Partition,
    /// The last key of the page before.
    pub after: Option<Blob>,
    /// At most this many records; the page is bounded in bytes as well.
    pub limit: u32,
    /// How many replicas the read asks.
    pub r: u8,
}

/// To compare and exchange what two owners hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heal {
    /// See [`Label`].
    pub label: Label,
    /// What is asked.
    pub request: HealRequest,
}

/// To run a client's request. It is never passed on again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// The request.
    pub request: wire::Request,
}

/// To accept the first layout durably, once and for ever (rule L14).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AcceptFirstLayout {
    /// The layout.
    pub layout: Layout,
    /// The secrets that come with it, at least one (rule V5).
    pub keys: ContextKeys,
}

/// Which first layout the receiver has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetLayout;

/// To take in these secrets durably, and to tell which ones the receiver knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShareKeys {
    /// What the asker knows.
    pub keys: ContextKeys,
}

/// To promise a ballot of the decision on the version after a layout, durably (rule L13).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrepareLayout {
    /// The version that is to be decided.
    pub version: LayoutVersion,
    /// The hash of the layout before, whose members decide.
    pub previous: LayoutHash,
    /// The ballot.
    pub ballot: Ballot,
}

/// To accept a layout under a ballot as the one that follows, durably (rule L13).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AcceptLayout {
    /// The ballot.
    pub ballot: Ballot,
    /// The layout.
    pub layout: Layout,
}

/// To take over layouts that were chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnLayouts {
    /// Those that are live, oldest first.
    pub chain: LiveLayouts,
}

/// Which layouts the receiver knows to be live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetLayouts {
    /// The newest version that the asker knows: it is told those after it.
    pub after: LayoutVersion,
}

/// Ties each kind of question to its variant of [`PeerBody`], its class and its answer.
macro_rules! asks {
    ($($variant:ident($ask:ident), $class:ident => $answer:ty;)*) => {$(
        impl From<$ask> for PeerBody {
            fn from(ask: $ask) -> Self {
                Self::$variant(ask)
            }
        }

        impl Ask for $ask {
            type Answer = $answer;
            const CLASS: u8 = class::$class;
        }
    )*};
}

asks! {
    Replicate(Replicate), REPLICATE => Replicated;
    Hint(KeepHint), REPLICATE => Replicated;
    Handoff(HandOver), HANDOFF => HandedOff;
    Fetch(Fetch), REPLICATE => Fetched;
    FetchHint(FetchHint), REPLICATE => Fetched;
    FetchRange(FetchRange), BULK => FetchedRange;
    Heal(Heal), BULK => HealReply;
    Forward(Forward), FORWARD => wire::Response;
    AcceptFirstLayout(AcceptFirstLayout), CONTROL => FirstLayoutAccepted;
    LayoutState(GetLayout), CONTROL => LayoutState;
    ContextKeys(ShareKeys), CONTROL => KnownKeys;
    PrepareLayout(PrepareLayout), CONTROL => Vote;
    AcceptLayout(AcceptLayout), CONTROL => Vote;
    LearnLayouts(LearnLayouts), CONTROL => LayoutsLearned;
    GetLayouts(GetLayouts), CONTROL => KnownLayouts;
}

impl PeerBody {
    /// The keys that it is about, as far as it names them.
    pub(crate) fn keys(&self) -> Vec<&Blob> {
        match self {
            Self::Replicate(Replicate { key, .. })
            | Self::Hint(KeepHint { key, .. })
            | Self::Fetch(Fetch { key, .. })
            | Self::FetchHint(FetchHint { key, .. }) => vec![key],
            Self::Forward(Forward { request }) => match &request.body {
                wire::RequestBody::Write(write) => vec![&write.key],
                wire::RequestBody::Read(read) => vec![&read.key],
                _ => Vec::new(),
            },
            Self::Handoff(HandOver { entries, .. }) => entries.iter().map(|(key, _)| key).collect(),
            Self::Heal(Heal { request: HealRequest::Exchange(Exchange { offers, .. }), .. }) => {
                offers.iter().map(|offer| &offer.key).collect()
            }
            Self::Hello(_)
            | Self::FetchRange(_)
            | Self::Heal(_)
            | Self::AcceptFirstLayout(_)
            | Self::LayoutState(_)
            | Self::ContextKeys(_)
            | Self::PrepareLayout(_)
            | Self::AcceptLayout(_)
            | Self::LearnLayouts(_)
            | Self::GetLayouts(_) => Vec::new(),
        }
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Replicate(_) => "replicate",
            Self::Hint(_) => "keep a hint",
            Self::Handoff(_) => "handoff",
            Self::Fetch(_) => "fetch",
            Self::FetchHint(_) => "fetch hints",
            Self::FetchRange(_) => "fetch a page",
            Self::Heal(Heal { request: HealRequest::Exchange(_), .. }) => "exchange",
            Self::Heal(_) => "compare",
            Self::Forward(_) => "forward",
            Self::AcceptFirstLayout(_) => "accept the first layout",
            Self::LayoutState(_) => "layout state",
            Self::ContextKeys(_) => "context keys",
            Self::PrepareLayout(_) => "prepare a layout",
            Self::AcceptLayout(_) => "accept a layout",
            Self::LearnLayouts(_) => "learn layouts",
            Self::GetLayouts(_) => "live layouts",
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
    /// See [`Replicated`].
    Replicated(Replicated),
    /// See [`Fetched`].
    Fetched(Fetched),
    /// See [`HandedOff`].
    HandedOff(HandedOff),
    /// See [`FetchedRange`].
    Range(FetchedRange),
    /// To [`Heal`].
    Healed(HealReply),
    /// To [`Forward`].
    Forwarded(wire::Response),
    /// See [`FirstLayoutAccepted`].
    FirstLayoutAccepted(FirstLayoutAccepted),
    /// See [`LayoutState`].
    LayoutState(LayoutState),
    /// See [`KnownKeys`].
    ContextKeys(KnownKeys),
    /// See [`Vote`].
    Vote(Vote),
    /// See [`LayoutsLearned`].
    LayoutsLearned(LayoutsLearned),
    /// See [`KnownLayouts`].
    KnownLayouts(KnownLayouts),
    /// Nothing was acknowledged, and why. What was asked for may have been done in part: a merge whose sync failed.
    Refused(wire::NotApplied),
}

/// To [`Replicate`] and [`KeepHint`]: the record is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicated {
    /// It survives a power cut (false in the durability mode `interval`).
    pub synced: bool,
    /// The merge changed something.
    pub changed: bool,
}

/// To [`Fetch`] and [`FetchHint`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fetched {
    /// The encoded record; nothing if this primary has never heard of the key, or this fallback keeps nothing of it.
    Record(Option<Blob>),
    /// The record is the one that the asker of a [`Fetch`] holds.
    Same,
}

/// To [`HandOver`]: all of it is merged and durable, but for what was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOff {
    /// The next page is welcome after this many milliseconds: the receiver grants the rate.
    pub pause_ms: u32,
    /// What its disk did not take: above all values, while there is little room.
    pub refused: Refused,
}

/// To [`FetchRange`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchedRange {
    /// Keys and encoded records.
    pub entries: Vec<(Blob, Blob)>,
    /// There is nothing after them.
    pub done: bool,
}

/// To [`AcceptFirstLayout`]: it is durable at the answering node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstLayoutAccepted;

/// To [`GetLayout`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayoutState {
    /// What the answering node has accepted.
    pub accepted: Option<Layout>,
    /// It knows that a majority of the named members has accepted the same.
    pub chosen: bool,
    /// The secrets that it holds with it.
    pub keys: ContextKeys,
}

/// To [`ShareKeys`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnownKeys {
    /// All that the answering node knows; what the asker has sent is durable there.
    pub keys: ContextKeys,
}

/// To [`PrepareLayout`] and [`AcceptLayout`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Vote {
    /// Nothing is accepted under an older ballot any more; what was accepted last.
    Promised(Option<Accepted>),
    /// It is accepted.
    Accepted,
    /// A later ballot was promised.
    Outrun(Ballot),
    /// See [`Decided`].
    Decided(Decided),
}

/// The answering node knows the layout of this version: it was chosen before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// Whose proposal the answering node has accepted, if that is what was chosen.
    pub by: Option<NodeId>,
    /// The layouts that it knows to be live.
    pub chain: LiveLayouts,
}

/// To [`LearnLayouts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutsLearned {
    /// The newest version that the answering node knows now, durably.
    pub newest: LayoutVersion,
}

/// To [`GetLayouts`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnownLayouts {
    /// Those after the version that was named.
    pub chain: LiveLayouts,
    /// The newest version for which the answering node has accepted a layout, which may have been chosen without its knowledge; 0 if there is
    /// none.
    pub accepted: LayoutVersion,
}

/// Layouts that were chosen and are live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveLayouts {
    /// Oldest first.
    pub layouts: Vec<Layout>,
    /// The oldest live version: every change up to it is over. 0 if the node that says this knows no layout.
    pub oldest: LayoutVersion,
}

/// Ties each kind of answer to its variant of [`PeerReply`].
macro_rules! answers {
    ($($variant:ident($answer:ty);)*) => {$(
        impl From<$answer> for PeerReply {
            fn from(answer: $answer) -> Self {
                Self::$variant(answer)
            }
        }

        impl TryFrom<PeerReply> for $answer {
            type Error = PeerReply;

            fn try_from(reply: PeerReply) -> Result<Self, PeerReply> {
                match reply {
                    PeerReply::$variant(answer) => Ok(answer),
                    other => Err(other),
                }
            }
        }
    )*};
}

answers! {
    Replicated(Replicated);
    Fetched(Fetched);
    HandedOff(HandedOff);
    Range(FetchedRange);
    Healed(HealReply);
    Forwarded(wire::Response);
    FirstLayoutAccepted(FirstLayoutAccepted);
    LayoutState(LayoutState);
    ContextKeys(KnownKeys);
    Vote(Vote);
    LayoutsLearned(LayoutsLearned);
    KnownLayouts(KnownLayouts);
}

impl<A: Into<PeerReply>> From<Result<A, wire::NotApplied>> for PeerReply {
    fn from(served: Result<A, wire::NotApplied>) -> Self {
        served.map_or_else(Self::Refused, A::into)
    }
}

impl PeerReply {
    /// Whether what was asked for was done, for people.
    pub(crate) fn is_ok(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Forwarded(wire::Response { body: Err(_), .. }))
    }

    /// What it says, in a few words, for people.
    pub(crate) fn said(&self) -> String {
        match self {
            Self::Replicated(Replicated { changed: true, .. }) => "merged it".to_owned(),
            Self::Replicated(Replicated { changed: false, .. }) => "had it already".to_owned(),
            Self::Fetched(Fetched::Record(Some(_))) => "a record".to_owned(),
            Self::Fetched(Fetched::Record(None)) => "no record".to_owned(),
            Self::Fetched(Fetched::Same) => "the same record".to_owned(),
            Self::Forwarded(response) => quorate_wire::story::said(&response.body),
            Self::Refused(refusal) => format!("refused: {refusal}"),
            Self::HandedOff(HandedOff { refused, .. }) if refused.keys.is_empty() => "merged all of it".to_owned(),
            Self::HandedOff(HandedOff { refused, .. }) => {
                format!("merged all but {}: {}", refused.keys.len(), refused.why)
            }
            Self::Hello(_)
            | Self::Range(_)
            | Self::Healed(_)
            | Self::FirstLayoutAccepted(_)
            | Self::LayoutState(_)
            | Self::ContextKeys(_)
            | Self::Vote(_)
            | Self::LayoutsLearned(_)
            | Self::KnownLayouts(_) => "answered".to_owned(),
        }
    }
}
