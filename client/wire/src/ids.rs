//! The names of things that clients and nodes agree on: nodes, clusters, disks, layout versions, partitions, operations.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

pub use crate::key::key_hash;

/// The name of a node: 1 to 31 characters, lower-case letters, digits and `-`, beginning and ending with a letter or digit.
///
/// An operator chooses it; the node's certificate binds it. It is the same after a restart and with a new disk, so nothing
/// that must be unique hangs on it alone: dots carry an incarnation and the layout names the disk beside it.
///
/// Stored inline, so that it is `Copy`; ordered as its text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId {
    len: u8,
    bytes: [u8; NodeId::LEN_MAX],
}

impl NodeId {
    /// The longest name, in bytes; fits a DNS label with room for a suffix.
    pub const LEN_MAX: usize = 31;

    /// Parses a name.
    ///
    /// # Errors
    /// When the text is not a legal name; the error says what is allowed.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let edge = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
        let raw = text.as_bytes();
        if raw.len() > Self::LEN_MAX || !raw.iter().copied().all(legal) || !edge(raw.first()) || !edge(raw.last()) {
            return Err(InvalidId {
                what: "node id",
                got: text.chars().take(80).collect(),
                allowed: "1 to 31 lower-case letters, digits and '-', not beginning or ending with '-'",
            });
        }
        let mut bytes = [0; Self::LEN_MAX];
        bytes[..raw.len()].copy_from_slice(raw);
        Ok(Self { len: raw.len() as u8, bytes })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("a node id is ASCII by construction")
    }
}

impl Ord for NodeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl PartialOrd for NodeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Borrow<str> for NodeId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for NodeId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = NodeId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a node id")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<NodeId, E> {
                NodeId::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {got:?} is not valid: {allowed}")]
pub struct InvalidId {
    what: &'static str,
    got: String,
    allowed: &'static str,
}

/// 128 bits that print as 32 hex digits: the common part of [`ClusterId`], [`DiskId`] and [`OpId`].
macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
                match u128::from_str_radix(text, 16) {
                    Ok(value) if hex => Ok(Self(value)),
                    _ => Err(InvalidId {
                        what: $what,
                        got: text.chars().take(80).collect(),
                        allowed: "exactly 32 hexadecimal digits",
                    }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0.to_be_bytes())
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a ", $what, " of 128 bits"))
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<$name, E> {
                        let raw: [u8; 16] = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
                        Ok($name(u128::from_be_bytes(raw)))
                    }
                }
                if deserializer.is_human_readable() {
                    deserializer.deserialize_str(Visitor)
                } else {
                    deserializer.deserialize_bytes(Visitor)
                }
            }
        }
    };
}

id128!(
    /// A cluster: drawn when its certificate authority is made, named in every certificate, carried in every context.
    ClusterId,
    "cluster id"
);
id128!(
    /// A data directory: drawn when it is first written. The layout names members by `(NodeId, DiskId)`, so that a node with
    /// an empty or exchanged disk is noticed.
    DiskId,
    "disk id"
);
id128!(
    /// One write operation of a client, the same in every retry, so that a retry is recognised (rules V6 and V7).
    ///
    /// Those that clients [make](OpId::new) are UUIDs of version 7 (RFC 9562), which tell when they were made. Any other 128 bits will do
    /// as well; but how long a node can recognise a retry after its restart depends on it, see [`begun_ms`](OpId::begun_ms).
    OpId,
    "operation id"
);

impl OpId {
    /// A new one: a UUID of version 7, of the milliseconds since 1970 and 74 of the random bits.
    pub fn new(now_ms: u64, random: u128) -> Self {
        let kept = random & !(0xffff_ffff_ffff << 80 | 0xf << 76 | 0b11 << 62);
        Self(u128::from(now_ms) << 80 | 7 << 76 | 0b10 << 62 | kept)
    }

    /// When it was made by its client's clock, in milliseconds since 1970, if it is a UUID of version 7 of a time before the year 2248.
    ///
    /// It orders the operations that a record names (rule V7): those that began first are forgotten first. Where the clocks of a key's
    /// clients are ten minutes apart, the writes of those that are behind are not named at all; what rule V6 promises of retries holds
    /// all the same.
    pub fn begun_ms(&self) -> Option<u64> {
        let begun_ms = (self.0 >> 80) as u64;
        let is_v7 = (self.0 >> 76) & 0xf == 7 && (self.0 >> 62) & 0b11 == 0b10;
        (is_v7 && begun_ms < BEGUN_MS_END).then_some(begun_ms)
    }
}

/// 2^43 milliseconds after 1970. Of 2,048 operation ids that are random bits one is taken for one that tells its time.
const BEGUN_MS_END: u64 = 1 << 43;

/// The version of a layout: 1 is the first that a cluster agrees on, 0 means that there is none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayoutVersion(pub u64);

impl LayoutVersion {
    /// No layout yet.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for LayoutVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the Q equal slices of the hash space, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(pub u16);

impl Partition {
    /// The partition that holds a key's hash when the hash space is cut into `partitions` slices.
    ///
    /// Slice p holds the hashes from `ceil(p * 2^64 / Q)` on, so that this is a multiplication and a shift.
    pub fn of(hash: u64, partitions: u16) -> Self {
        Self(((u128::from(hash) * u128::from(partitions)) >> 64) as u16)
    }

    /// The smallest hash that falls into this partition.
    pub fn first_hash(self, partitions: u16) -> u64 {
        ((u128::from(self.0) << 64).div_ceil(u128::from(partitions))) as u64
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn node_ids_are_checked() {
        for good in ["n1", "a", "eu-west-1a-07", "0123456789012345678901234567890"] {
            assert_eq!(NodeId::new(good).expect("legal").as_str(), good);
        }
        for bad in ["", "N1", "n_1", "-n", "n-", "01234567890123456789012345678901", "n 1", "ü"] {
            let error = NodeId::new(bad).expect_err("not legal").to_string();
            assert!(error.contains("1 to 31"), "{error}");
        }
    }

    #[test]
    fn an_operation_id_tells_when_it_was_made() {
        let made = OpId::new(1_764_288_000_123, u128::MAX);
        assert_eq!(made.to_string(), "019ac7c2707b7fffbfffffffffffffff");
        assert_eq!(made.begun_ms(), Some(1_764_288_000_123));
        assert_eq!(OpId::new(0, 0).begun_ms(), Some(0));
        assert_ne!(OpId::new(1, 1), OpId::new(1, 2));
        // Of another version, of another variant, and of a time that is none.
        for other in [OpId(7), OpId(made.0 ^ 1 << 76), OpId(made.0 ^ 1 << 62), OpId::new(BEGUN_MS_END, 0)] {
            assert_eq!(other.begun_ms(), None, "{other}");
        }
        assert_eq!(OpId::new(BEGUN_MS_END - 1, 0).begun_ms(), Some(BEGUN_MS_END - 1));
    }

    #[test]
    fn hex_ids_are_checked() {
        let id = OpId(0xab);
        assert_eq!(id.to_string().parse::<OpId>().expect("round trip"), id);
        for bad in ["", "ab", "+0000000000000000000000000000000", "zz"] {
            assert!(bad.parse::<OpId>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn partitions_cut_the_hash_space_evenly(hash: u64, partitions in 1u16..=32768) {
            let partition = Partition::of(hash, partitions);
            prop_assert!(partition.0 < partitions);
            prop_assert!(partition.first_hash(partitions) <= hash);
            if partition.0 + 1 < partitions {
                prop_assert!(hash < Partition(partition.0 + 1).first_hash(partitions));
            }
        }
    }
}
