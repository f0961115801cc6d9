//! What the load of the kill -9 laboratory and its judge agree on: who, which keys, and what a version of a key looks like.

use quorate_wire::ids::{ClusterId, NodeId};
use quorate_wire::random::Random;

/// The cluster of the data directory.
pub const CLUSTER: ClusterId = ClusterId(0x9);

/// The node of the data directory.
pub fn node() -> NodeId {
    NodeId::new("victim").expect("legal")
}

/// Few enough that a round overwrites many of them, so that sled consolidates and collects pages under the kill.
pub const KEYS_PER_WRITER: u32 = 32;

/// A writer's key.
pub fn key(writer: u32, number: u32) -> String {
    format!("{writer:02}-{number:03}")
}

/// The one value of this version of this key: 8 bytes of version, then 100 B to 64 KiB that follow from key and version.
pub fn encode(key: &str, version: u64) -> Vec<u8> {
    let random = Random::from_seed(key.bytes().fold(version, |seed, byte| seed.wrapping_mul(257) + u64::from(byte)));
    // Most values are small, as most are in life; each power of two of size is as likely as the next.
    let most = 100 << random.below(10);
    let mut value = vec![0; 8 + 100 + random.below(most.min(64 << 10) - 99) as usize];
    random.fill(&mut value[8..]);
    value[..8].copy_from_slice(&version.to_be_bytes());
    value
}

/// The version of a value.
///
/// # Errors
/// When the value is not the one that its version has.
pub fn decode(key: &str, value: &[u8]) -> Result<u64, String> {
    let version = value.first_chunk().map(|version| u64::from_be_bytes(*version)).ok_or("shorter than a version")?;
    if encode(key, version) == value { Ok(version) } else { Err(format!("{key} holds what was never written")) }
}
