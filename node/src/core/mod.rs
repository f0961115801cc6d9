//! The pure core: std, bytes, serde and hashing. It knows no tokio, quinn, sled, socket, clock or global randomness.

pub mod bootstrap;
mod compact;
pub mod layout;
pub mod mint;
pub mod record;
pub mod ring;
pub mod staging;
pub mod version;

pub mod exchange;
pub mod merkle;

pub mod get;
pub mod put;
pub mod quorum;
pub mod scan;
