//! The pure core: std, bytes, serde and hashing. It knows no tokio, quinn, sled, socket, clock or global randomness.

pub mod bootstrap;
pub mod layout;
pub mod ring;
pub mod staging;

