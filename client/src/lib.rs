//! Client of Quorate, a leaderless key-value cluster.

pub mod codec;
pub mod ids;
pub mod options;
pub mod random;
pub mod rpc;
pub mod wire;
