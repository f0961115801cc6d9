//! What nodes say to each other when they compare and exchange what they hold: one node asks (it *initiates*), the other one
//! answers. Everything goes by the class of bulk, and every question names the label that it is made under.
//!
//! ```text
//!   Roots      up to 256 partitions at once         which of them differ
//!   Groups     16 inner sums of one partition       the leaves of the groups that differ
//!   List       some leaves, a page                  (key, digest) of what it holds there
//!   Exchange   whole records, or keys that are wanted      what it holds, where that still differs
//!   Recount    some leaves, whose lists are equal   they are summed up anew
//!   GetSaid    nothing                              what it says of its part in a change of layout
//!   BeginPush  a partition that the asker gets      whether what it holds is all that it will ever hold of older writes
//!   EndPush    the same, exchanged completely       whether it counts
//! ```

use std::fmt;

use quorate_wire::codec::Blob;
use quorate_wire::ids::{LayoutVersion, Partition};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use super::Refused;
use quorate_core::live::Said;
use quorate_core::merkle::Leaves;

/// A digest, or a sum of some, in 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum(pub u128);

/// A question, tied to its answer.
pub trait HealAsk: Into<HealRequest> {
    /// What answers it, unless the peer refuses.
    type Answer: TryFrom<HealReply, Error = HealReply>;
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HealRequest {
    /// See [`Roots`].
    Roots(Roots),
    /// See [`Groups`].
    Groups(Groups),
    /// See [`List`].
    List(List),
    /// See [`Exchange`].
    Exchange(Exchange),
    /// See [`Recount`].
    Recount(Recount),
    /// See [`GetSaid`].
    GetSaid(GetSaid),
    /// See [`BeginPush`].
    BeginPush(BeginPush),
    /// See [`EndPush`].
    EndPush(EndPush),
    /// See [`GetReadiness`].
    GetReadiness(GetReadiness),
}

/// Which of these partitions have another root: at most [`ROOTS_MAX`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roots {
    /// Partitions and their roots, as far as they are known.
    pub roots: Vec<(Partition, Option<Sum>)>,
}

/// What the leaves are of those groups that differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Groups {
    /// The partition.
    pub partition: Partition,
    /// Its inner nodes; what is not known counts as different.
    pub groups: Vec<Option<Sum>>,
}

/// A page of what the receiver holds in some leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct List {
    /// The partition.
    pub partition: Partition,
    /// Of which leaves.
    pub leaves: LeafSet,
    /// The page begins after this key.
    pub after: Option<Blob>,
}

/// To merge records durably, and to give back what differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// The partition.
    pub partition: Partition,
    /// At most [`OFFERS_MAX`].
    pub offers: Vec<Offer>,
}

/// The lists of these leaves are equal and their sums are not: one of the sums is wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recount {
    /// The partition.
    pub partition: Partition,
    /// The leaves.
    pub leaves: LeafSet,
}

/// What the receiver says of its part in the change of layout under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetSaid {
    /// Of what the asker knows: it need not be sent again.
    pub digest: u64,
}

/// The asker, a new owner, is about to take over what the receiver, an older one, holds of a partition (rule L4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginPush {
    /// The partition.
    pub partition: Partition,
}

/// The asker holds durably what the receiver held of a partition when it was told so by [`PushBegun`], and is about to note that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndPush {
    /// The partition.
    pub partition: Partition,
    /// The version that the push is for.
    pub version: LayoutVersion,
    /// As in [`PushBegun`].
    pub losses: (u64, u64),
}

/// For which live versions the receiver is ready, of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetReadiness {
    /// The partition.
    pub partition: Partition,
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
    /// See [`RootsCompared`].
    Roots(RootsCompared),
    /// See [`GroupsCompared`].
    Groups(GroupsCompared),
    /// See [`Listed`].
    Listed(Listed),
    /// See [`Exchanged`].
    Exchanged(Exchanged),
    /// See [`Recounting`].
    Recounting(Recounting),
    /// See [`SaidNow`].
    Said(SaidNow),
    /// See [`PushBegun`].
    PushBegun(PushBegun),
    /// See [`PushEnded`].
    PushEnded(PushEnded),
    /// See [`Readiness`].
    Readiness(Readiness),
}

/// To [`Roots`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootsCompared {
    /// Those that differ.
    pub differ: Vec<Partition>,
    /// Those that cannot be compared, because a root is not known.
    pub unknown: Vec<Partition>,
}

/// To [`Groups`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupsCompared {
    /// The groups that differ or are not known, each with its leaves.
    pub groups: Vec<(u8, Vec<Option<Sum>>)>,
    /// The leaves for which the answering node cannot speak at the moment, because it has lost what it held there.
    pub recovering: LeafSet,
}

/// To [`List`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// Keys and digests, in the order of (key hash, key).
    pub entries: Vec<(Blob, Sum)>,
    /// Nothing follows.
    pub done: bool,
    /// As in [`GroupsCompared`].
    pub recovering: LeafSet,
}

/// To [`Exchange`]. What was offered is merged and durable at the answering node, but for what was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exchanged {
    /// How many of the offers were looked at, the first ones: at least one.
    pub processed: u32,
    /// Of these the records that differ from what was offered. Of what was only asked for: nothing if there is none.
    pub records: Vec<(Blob, Option<Blob>)>,
    /// What its disk did not take of what was offered: above all values, while there is little room.
    pub refused: Refused,
}

/// To [`Recount`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recounting;

/// To [`GetSaid`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SaidNow {
    /// Nothing if it is what the asker knows.
    pub said: Option<Said>,
}

/// To [`BeginPush`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushBegun {
    /// The version that the answering node refuses older writes for: the push counts for that one.
    pub fence: LayoutVersion,
    /// It is ready for the version before.
    pub strong: bool,
    /// Leaves of which it has lost something: what it holds is not all then.
    pub lost: LeafSet,
    /// Changes whenever something of the partition is lost there, and with every start of the node.
    pub losses: (u64, u64),
}

/// To [`EndPush`]: the push counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushEnded;

/// To [`GetReadiness`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// It owns the partition under these, is ready for them, and still holds its copy.
    pub ready: Vec<LayoutVersion>,
    /// The leaves of which it has lost something.
    pub lost: LeafSet,
    /// Changes whenever something of the partition is lost there, and with every start of the node.
    pub losses: (u64, u64),
}

/// Ties each question to its answer, and both to their variants.
macro_rules! asks {
    ($($ask:ident => $variant:ident($answer:ident);)*) => {$(
        impl From<$ask> for HealRequest {
            fn from(ask: $ask) -> Self {
                Self::$ask(ask)
            }
        }

        impl HealAsk for $ask {
            type Answer = $answer;
        }

        impl From<$answer> for HealReply {
            fn from(answer: $answer) -> Self {
                Self::$variant(answer)
            }
        }

        impl TryFrom<HealReply> for $answer {
            type Error = HealReply;

            fn try_from(reply: HealReply) -> Result<Self, HealReply> {
                match reply {
                    HealReply::$variant(answer) => Ok(answer),
                    other => Err(other),
                }
            }
        }
    )*};
}

asks! {
    Roots => Roots(RootsCompared);
    Groups => Groups(GroupsCompared);
    List => Listed(Listed);
    Exchange => Exchanged(Exchanged);
    Recount => Recounting(Recounting);
    GetSaid => Said(SaidNow);
    BeginPush => PushBegun(PushBegun);
    EndPush => PushEnded(PushEnded);
    GetReadiness => Readiness(Readiness);
}

/// A set of leaves as 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafSet(pub Leaves);

impl HealRequest {
    /// The partitions that it is about.
    pub fn partitions(&self) -> Vec<Partition> {
        match self {
            Self::Roots(Roots { roots }) => roots.iter().map(|(partition, _)| *partition).collect(),
            Self::Groups(Groups { partition, .. })
            | Self::List(List { partition, .. })
            | Self::Exchange(Exchange { partition, .. })
            | Self::Recount(Recount { partition, .. })
            | Self::BeginPush(BeginPush { partition })
            | Self::GetReadiness(GetReadiness { partition })
            | Self::EndPush(EndPush { partition, .. }) => vec![*partition],
            Self::GetSaid(_) => Vec::new(),
        }
    }
}

/// The most partitions of one [`Roots`]: 6 KiB.
pub const ROOTS_MAX: usize = 256;
/// The most keys of one [`Exchange`].
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
        let request = HealRequest::Roots(Roots { roots });
        let encoded = codec::encode(&request);
        assert!(encoded.len() / ROOTS_MAX < 24, "{} bytes for {ROOTS_MAX} partitions", encoded.len());
        assert_eq!(codec::decode::<HealRequest>(&encoded).expect("the same"), request);
    }

    #[test]
    fn sums_and_leaves_survive_the_wire_and_other_lengths_are_refused() {
        let leaves = LeafSet([3, 200].into_iter().collect());
        let reply =
            HealReply::Groups(GroupsCompared { groups: vec![(1, vec![Some(Sum(7)), None])], recovering: leaves });
        assert_eq!(codec::decode::<HealReply>(&codec::encode(&reply)).expect("the same"), reply);
        let short = codec::encode(&Blob::copy_from(&[1; 15]));
        assert!(codec::decode::<Sum>(&short).is_err());
        assert!(codec::decode::<LeafSet>(&short).is_err());
    }
}
