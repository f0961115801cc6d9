//! Quorate's node.
//!
//! Modules in reading order, above the pure core, which is a crate of its own: what it takes from outside and keeps data in, how it talks to other nodes, who
//! they are and who owns what, how requests are run, and what is around it.

#[doc(hidden)]
pub mod fault_points;

pub mod env;
pub mod request_memory;
pub mod store;
pub mod supervise;

pub mod beacons;
pub mod peer_wire;
pub mod peers;

pub(crate) mod addresses;
pub mod layouts;
pub mod membership;
pub(crate) mod showing;

pub(crate) mod calls;
pub mod coordinator;
pub mod partitions;
pub mod recovery;
pub mod replica;

pub mod anti_entropy;
pub(crate) mod replica_service;

pub(crate) mod handoff;

pub mod node;
pub(crate) mod server;
pub(crate) mod status;

pub mod cert;
pub mod certificate;
pub mod config;
pub mod http;
pub mod metrics;

#[cfg(test)]
pub(crate) mod by_hand;
