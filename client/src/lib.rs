//! Client of Quorate, a leaderless key-value cluster after Amazon's Dynamo: tunable consistency, siblings instead of silent
//! overwrites, and outcomes that are never guessed.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use quorate_client::{Blind, Client, Error, Profile, Quorum, Typed};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Cart {
//!     items: Vec<String>,
//! }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // `quorate dev` writes such a file; `Client::builder(seeds)` does without one.
//! let db = Client::from_config("client.toml")?.profile(Profile::Balanced).connect().await?;
//!
//! // Bytes and text are stored as they are. `Blind` says: I have seen nothing, replace nothing.
//! db.put("greeting", "hello", Blind).await?;
//!
//! // What was read is the cause of what is written next: it replaces exactly that.
//! let read = db.get("greeting").r(Quorum::One).timeout(Duration::from_millis(200)).await?;
//! println!("{:?}, from {} primaries", read.one()?, read.quorum().acks.primary);
//! db.put("greeting", "hello, world", &read).w(Quorum::All).await?;
//!
//! // Anything that serde knows; siblings of concurrent writers are merged.
//! db.update("cart/ada", |seen| {
//!     let mut cart = Cart::default();
//!     cart.items.extend(seen.decode_all::<Cart>()?.into_iter().flat_map(|cart| cart.items));
//!     cart.items.push("milk".into());
//!     cart.items.sort();
//!     cart.items.dedup();
//!     Ok(Typed(cart))
//! })
//! .await?;
//!
//! // Every failure answers two questions.
//! match db.put("greeting", "bye", &read).await {
//!     Ok(written) if written.quorum().degraded => println!("written, for now with a stand-in"),
//!     Ok(_) => println!("written"),
//!     Err(error) if error.may_have_applied() => println!("perhaps written: {error}"),
//!     Err(error) if error.is_retryable() => println!("not written, worth another try: {error}"),
//!     Err(error) => println!("not written: {error}"),
//! }
//!
//! match db.get("nothing here").await {
//!     Err(Error::NotFound { .. }) => {}
//!     other => println!("{other:?}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What each mode promises
//!
//! A profile, or each request, chooses R (replicas that must answer a read), W (replicas that must hold a write) and
//! whether only primaries count (`strict`).
//!
//! | mode | promise |
//! |---|---|
//! | `.strict()`, R + W > N | a read that starts after a write was acknowledged returns that write or one that causally follows it - through crashes, restarts and lost disks. Not linearizable: two reads may see a write in flight in opposite order |
//! | the same, `.monotonic()` reads | and once a read of R has returned a write, no later read of R or of a majority misses it: it is on N - R + 1 owners by then |
//! | sloppy (default), R + W > N | the same for every write and read whose reply is **not** flagged `degraded` (its quorum was all primaries); beyond that writes still succeed wherever W nodes can be reached, and reads may miss them until handoff - each such reply says so |
//! | R + W <= N | eventual: every acknowledged write reaches all N replicas |
//! | all | an acknowledged write is never lost unless W disks that hold it are; concurrent writes are kept as siblings; a write that names its cause replaces exactly what it names; a deleted value does not come back |
//!
//! All of it holds for any R and W. The layout's floors r and w, a majority of N each unless an operator has staged others, say what is
//! safe across a change of the layout too; the reply to a request below its floor is flagged
//! [`below_floor`](wire::QuorumReport::below_floor).
//!
//! # Retries
//!
//! The client retries by itself where it is safe, within the request's time, and within a budget of a tenth of the requests
//! made. A read may be retried anywhere. A write that was certainly not carried out is as free; one whose outcome is unknown
//! goes to the same coordinator again with the same operation id, and nowhere else. What then remains unknown is
//! [`Error::Indeterminate`], never "failed"; the application may repeat it with the error's [operation id](request::Put::op_id), at
//! [another coordinator](request::Put::any_coordinator) too if it likes.

pub mod client;
mod config;
pub mod error;
pub mod options;
pub mod read;
pub mod request;
pub mod scan;
pub mod value;

#[doc(hidden)]
pub mod fault_points;
mod pool;
mod retry;
mod route;
mod unsettled;

#[cfg(test)]
mod client_test;

/// What names things: nodes, clusters, layouts, partitions, operations.
pub mod ids {
    pub use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId, OpId, Partition};
}

/// What replies and errors are made of, and the limits of what is sent.
pub mod wire {
    pub use quorate_wire::{
        Acks, Asked, CONTEXT_LEN_MAX, CONTEXT_LEN_WARN, Evidence, KEY_LEN_MAX, Located, Located1, NodeStatus,
        NotApplied, QuorumReport, Role, RouteTable, SIBLINGS_MAX, VALUE_LEN_MAX,
    };
}

/// Certificates: who a client is, and whose word it takes.
pub mod tls {
    pub use quorate_transport::tls::{Credentials, Subject, TlsError};
}

pub use client::{Client, ClientBuilder, Seed};
pub use error::{Error, Tried};
pub use options::{Profile, Quorum, RequestOptions};
pub use read::{Blind, Cause, Context, InvalidContext, Read, Written};
pub use request::{Delete, Get, Put, Update};
pub use scan::{Page, Scanner};
pub use value::{Change, IntoChange, IntoValue, Typed};
