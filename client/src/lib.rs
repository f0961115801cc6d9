//! Client of Quorate, a leaderless key-value cluster. So far: what clients and nodes share.

pub mod ids;
pub mod options;
pub mod wire;

pub mod codec;
pub mod frame;
pub mod quic;
pub mod random;
pub mod rpc;
pub mod tls;
