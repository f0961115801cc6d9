//! The pure core: std, bytes, serde, hashes and message authentication codes. It knows no tokio, quinn, sled, socket, clock or global randomness.
//!
//! # The rules of versions
//!
//! Comments and tests name them. `tests/record_model.rs` leaves each of them out in turn and finds what goes wrong then.
//!
//! - **V1 An actor never outlives its records.** An actor is (node, random incarnation), drawn in memory for one partition; it is given
//!   up before a record or a hint of the partition is lost or dropped in any way other than a mint or a merge, and never used again
//!   after a restart. What was lost is noted once for each record that is found to be corrupt, and each such loss begins the recovery of
//!   its partition anew: what other owners had told before need not cover it.
//! - **V2 One mint.** One coordinator mints the dot of a write, at a node that then holds the record, under the key's lock: it drops what
//!   the writer's context covers, joins that context and the new dot, and adds the value. Everybody else only merges.
//! - **V3 Merge** keeps the dots that both sides have and each dot that the other side's context does not cover; contexts join. Whoever
//!   sends a context names every dot of its record.
//! - **V4 A reply's context covers what its client has seen, and no more.**
//! - **V5 A context is taken only if a node of this cluster has issued it for this key.** What clients get and send back carries a message
//!   authentication code over the cluster, the key and the context, made with a secret that only nodes know ([`context_keys`]); the node
//!   that a client asks and the one that coordinates both check it before anything else happens. Nothing else has a client's word: what
//!   replicas tell each other comes from mints. Even so, a context that knows later dots of an actor than that actor has minted (a
//!   process whose memory was set back) is not believed: a coordinator that is shown one draws a new actor; a replica that merges one
//!   draws a new actor too, and keeps the values that the claim would replace, under new dots.
//! - **V6 Retries.** Every write has an operation id. A coordinator looks for it among the record's dots, then among the operations that
//!   it remembers as superseded, and mints only if neither has it. Where it may have forgotten - it has started, lost or dropped
//!   something, or evicted an operation since the first attempt was sent - its answer is "unknown", unless it has been up all the time
//!   and its record proves that no earlier attempt was minted here. A merge drops dots of operations that were superseded in that
//!   record.
//! - **V7 Names.** An operation id is a second name of its write. A mint or a merge that drops a dot names its operation in the record's
//!   context; a context that a client gets names the operations of the values that it covers, and a mint with it names them, too. Merges
//!   join the names of both sides and drop every dot of an operation that is named. So a second dot of a write never outlives what has
//!   replaced the first one where its name has come, and a coordinator answers a retry with what the record says, its own or that of
//!   another primary, also after a restart. Names are [forgotten in time](names): one that is not there proves nothing.
//!
//! # The rules of reading what was lost
//!
//! R + W > N promises to a read of R every write that N - R + 1 owners have acknowledged. A replica that has lost something answers
//! such a read when it has exchanged what it lost with enough owners to have heard of all these writes (see `quorate_node::recovery`); a
//! monotonic read returns what N - R + 1 owners hold ([`quorum::write_back`]).
//!
//! # The rules of a change of owners
//!
//! They are L1 to L11 in [`transition`], and `tests/layout_change.rs` leaves each of them out in turn; L13, how the next layout is
//! decided, is in [`chain`] and `tests/layout_chain.rs`.

pub mod bootstrap;
pub mod chain;
pub mod changes;
mod compact;
pub mod layout;
pub mod live;
pub mod mint;
pub mod names;
pub mod progress;
pub mod record;
pub mod ring;
pub mod staging;
pub mod transition;
pub mod version;

pub mod context_keys;

pub mod exchange;
pub mod keyspace;
pub mod merkle;

pub mod losses;
pub mod operations;
pub mod ownership;
pub mod partition;

pub mod get;
pub mod put;
pub mod quorum;
pub mod scan;
