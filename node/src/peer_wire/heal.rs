//! What nodes say to each other when they compare and exchange what they hold: one node asks (it *initiates*), the other one
//! answers. Everything goes by the class of bulk, and every question names the label that it is made under.
//!
//! ```text
//!   Roots      up to 256 partitions at once         which of them differ
//!   Groups     16 inner sums of one partition       the leaves of the groups that differ
//!   List       some leaves, a page                  (key, digest) of what it holds there
//!   Exchange   whole records, or keys that are wanted      what it holds, where that still differs
//!   Recount    some leaves, whose lists are equal   they are summed up anew
//! ```

use std::fmt;

use quorate_wire::codec::Blob;
use quorate_wire::ids::Partition;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use super::Refused;
use quorate_core::merkle::Leaves;

/// A digest, or a sum of some, in 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum(pub u128);

/// A question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HealRequest {
    /// Which of these partitions have another root: at most [`ROOTS_MAX`].
    Roots {
        /// Partitions and their roots, as far as they are known.
        roots: Vec<(Partition, Option<Sum>)>,
    },
    /// What the leaves are of those groups that differ.
    Groups {
        /// The partition.
        partition: Partition,
        /// Its inner nodes; what is not known counts as different.
        groups: Vec<Option<Sum>>,
    },
    /// A page of what it holds in some leaves.
    List {
        /// The partition.
        partition: Partition,
        /// Of which leaves.
        leaves: LeafSet,
        /// The page begins after this key.
        after: Option<Blob>,
    },
    /// To merge records durably, and to give back what differs.
    Exchange {
        /// The partition.
        partition: Partition,
        /// At most [`OFFERS_MAX`].
        offers: Vec<Offer>,
    },
    /// The lists of these leaves are equal and their sums are not: one of the sums is wrong.
    Recount {
        /// The partition.
        partition: Partition,
        /// The leaves.
        leaves: LeafSet,
    },
}

/// One key of an exchange.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The key.
    pub key: Blob,
    /// The digest of what the asker holds; nothing if it has no record.
    pub digest: Option<Sum>,
    /// That record; nothing if it is only asked for the other one's.
    pub record: Option<Blob>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HealReply {
    /// To [`HealRequest::Roots`].
    Roots {
        /// Those that differ.
        differ: Vec<Partition>,
        /// Those that cannot be compared, because a root is not known.
        unknown: Vec<Partition>,
    },
    /// To [`HealRequest::Groups`].
    Groups {
        /// The groups that differ or are not known, each with its leaves.
        groups: Vec<(u8, Vec<Option<Sum>>)>,
        /// The leaves for which it cannot speak at the moment, because it has lost what it held there.
        recovering: LeafSet,
    },
    /// To [`HealRequest::List`].
    Listed {
        /// Keys and digests, in the order of (key hash, key).
        entries: Vec<(Blob, Sum)>,
        /// Nothing follows.
        done: bool,
        /// As in [`HealReply::Groups`].
        recovering: LeafSet,
    },
    /// To [`HealRequest::Exchange`]. What was offered is merged and durable here, but for what was refused.
    Exchanged {
        /// How many of the offers were looked at, the first ones: at least one.
        processed: u32,
        /// Of these the records that differ from what was offered. Of what was only asked for: nothing if there is none.
        records: Vec<(Blob, Option<Blob>)>,
        /// What its disk did not take of what was offered: above all values, while there is little room.
        refused: Refused,
    },
    /// To [`HealRequest::Recount`].
    Recounting,
}

/// A set of leaves as 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafSet(pub Leaves);

impl HealRequest {
    /// The partitions that it is about.
    pub fn partitions(&self) -> Vec<Partition> {
        match self {
            Self::Roots { roots } => roots.iter().map(|(partition, _)| *partition).collect(),
            Self::Groups { partition, .. }
            | Self::List { partition, .. }
            | Self::Exchange { partition, .. }
            | Self::Recount { partition, .. } => vec![*partition],
        }
    }
}

/// The most partitions of one [`HealRequest::Roots`]: 6 KiB.
pub const ROOTS_MAX: usize = 256;
/// The most keys of one [`HealRequest::Exchange`].
pub const OFFERS_MAX: usize = 1024;
/// The most records of a page of a list.
pub const LISTED_MAX: usize = 4096;

impl Serialize for Sum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0.to_be_bytes())
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = deserializer.deserialize_bytes(FixedBytes::<16>)?;
        Ok(Self(u128::from_be_bytes(bytes)))
    }
}

impl Serialize for LeafSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0.to_bytes())
    }
}

impl<'de> Deserialize<'de> for LeafSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = deserializer.deserialize_bytes(FixedBytes::<32>)?;
        Ok(Self(Leaves::from_bytes(&bytes).expect("as many bytes as a set of leaves has")))
    }
}

struct FixedBytes<const N: usize>;

impl<const N: usize> de::Visitor<'_> for FixedBytes<N> {
    type Value = [u8; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{N} bytes")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<[u8; N], E> {
        bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))
    }
}

#[cfg(test)]
mod tests {
    use quorate_wire::codec;

    use super::*;

    #[test]
    fn equal_replicas_cost_little() {
        let roots =
            (0..ROOTS_MAX as u16).map(|partition| (Partition(30_000 + partition), Some(Sum(u128::MAX)))).collect();
        let request = HealRequest::Roots { roots };
        let encoded = codec::encode(&request);
        assert!(encoded.len() / ROOTS_MAX < 24, "{} bytes for {ROOTS_MAX} partitions", encoded.len());
        assert_eq!(codec::decode::<HealRequest>(&encoded).expect("the same"), request);
    }

    #[test]
    fn sums_and_leaves_survive_the_wire_and_other_lengths_are_refused() {
        let leaves = LeafSet([3, 200].into_iter().collect());
        let reply = HealReply::Groups { groups: vec![(1, vec![Some(Sum(7)), None])], recovering: leaves };
        assert_eq!(codec::decode::<HealReply>(&codec::encode(&reply)).expect("the same"), reply);
        let short = codec::encode(&Blob::copy_from(&[1; 15]));
        assert!(codec::decode::<Sum>(&short).is_err());
        assert!(codec::decode::<LeafSet>(&short).is_err());
    }
}
