//! Deterministic simulation of whole Quorate clusters.
//!
//! A life is a function of a [`Plan`](plan::Plan), and a plan of a seed. The nodes and clients in it are the real ones;
//! what is simulated is what they stand on: the network ([`socket`] over turmoil), the disk ([`disk`]), time and entropy
//! ([`interpose`]). What happened is kept twice: as a hash of everything ([`trace`]), which says whether two runs were the
//! same, and as what the clients saw ([`history`]), which the [`checker`]s judge.
//!
//! One life runs on one thread of its own, from start to end.

pub mod plan;

pub mod interpose;

pub mod disk;
pub mod socket;
pub mod trace;

pub mod cluster;
pub mod nemesis;
pub mod workload;

pub mod life;

pub mod story;
pub mod tale;

pub mod explain;
pub mod report;

pub mod shrink;

pub mod scenario;
pub mod scenarios;

pub mod history;

pub mod checker;
