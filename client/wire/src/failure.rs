//! Why a request was not answered, and whether anything may have happened.

use serde::{Deserialize, Serialize};

use crate::KEY_LEN_MAX;
use crate::ids::{LayoutVersion, NodeId, OpId};
use crate::reply::Acks;

/// Why a request was not answered with a [`Reply`](crate::Reply). The variants differ in what may have happened.
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
    /// The key has [`SIBLINGS_MAX`](crate::SIBLINGS_MAX) siblings and this write would add one.
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
