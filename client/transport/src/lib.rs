//! How Quorate's clients and nodes are connected: QUIC endpoints with bounds that are safe to expose to strangers, certificates and
//! who they speak for, and requests as frames on long-lived streams. It knows nothing of what the requests say.

pub mod fault_points;

pub mod close;
pub mod link;
pub mod seams;

pub mod quic;
pub mod tls;

mod pem;

pub mod gate;

pub mod budget;
pub mod frame;
pub mod rpc;

pub use gate::{Admitted, Gate, GateCounts};
pub use link::Link;
pub use seams::Seams;
