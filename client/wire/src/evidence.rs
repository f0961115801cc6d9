//! The evidence of one request: who was asked, what each said, and what decided.

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, Partition};

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
