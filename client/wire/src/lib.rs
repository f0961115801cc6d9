//! What Quorate's clients and nodes say to each other: ids, requests, replies, refusals and limits, and how they become bytes.
//!
//! A message is a version byte and one MessagePack value ([`codec`]). A node decodes it with limits on size and depth; a variant
//! or a version that it does not know gets [`NotApplied::Unsupported`], never a guess. What nodes say to one another is in the
//! node's crate: two files, two promises of compatibility.
//!
//! Here too is what all crates share and nothing else needs: the source of randomness, the story of a key, the points at which
//! a simulation interferes.

pub mod address;
pub mod codec;
pub mod fault_points;
pub mod ids;
pub mod key;
pub mod random;
pub mod story;
pub mod text;

mod admin;
mod evidence;
mod failure;
mod quorum;
mod reply;
mod request;
mod time;

pub use admin::{
    Abort, Applied, Flow, Gets, HintStatus, LayoutCommand, LayoutReport, LayoutView, Load, Located, Located1,
    MemberView, Moves, NodeStatus, OtherLayout, PastLayout, PeerStatus, Progress, Receiver, Recovering, RepairCommand,
    RepairReport, Stopped, Transfer, Transfers, UnderWay, Wait,
};
pub use evidence::{Asked, Evidence, Role};
pub use failure::{Failure, NotApplied};
pub use key::{BucketId, ENCODED_KEY_LEN_MAX, KEY_LEN_MAX, Key, KeyPrefix};
pub use quorum::Quorum;
pub use reply::{Acks, Found, QuorumReport, Reply, Response, RouteTable, ScanEntry, Scanned, Written};
pub use request::{Read, Request, RequestBody, Scan, ScanPosition, Write};
pub use time::{parse_time, time_text};

/// The application protocol that clients ask for in the TLS handshake.
pub const ALPN_CLIENT: &[u8] = b"quorate-client/1";

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

/// The longest that a request may be asked to take: half of the ten minutes for which nodes remember operation ids, so that
/// no retry of a write arrives after its id was forgotten (rule V6).
pub const TIMEOUT_MAX: std::time::Duration = std::time::Duration::from_secs(300);
