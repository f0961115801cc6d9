//! Where records and hints lie in the ordered trees of a store; nothing else knows.
//!
//! ```text
//!   data     hash of the key, u64 BE | key                                   a partition is one range, and so is a leaf of its tree
//!   hints    length of the target's name, u8 | name | hash, u64 BE | key     those for one node are one range
//! ```
//!
//! Both are formats on disks: test vectors hold them. The key is an encoded one ([`quorate_wire::key`]): its hash covers bucket and
//! partition key, so that all records of a partition key lie side by side, in the order of their sort keys.

use bytes::Bytes;
use quorate_wire::ids::{NodeId, Partition, key_hash};

use crate::merkle;

/// Places with `from <= place`, and `place < to` if there is an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first place.
    pub from: Vec<u8>,
    /// The first place behind it; nothing if there is none.
    pub to: Option<Vec<u8>>,
}

impl Range {
    /// What is left of it behind the record or hint that lies at `place`; nothing if that is nothing for sure.
    pub fn after(self, place: &[u8]) -> Option<Self> {
        // The smallest place that is larger.
        let from = [place, &[0]].concat().max(self.from);
        let is_empty = self.to.as_ref().is_some_and(|to| from >= *to);
        (!is_empty).then_some(Self { from, to: self.to })
    }
}

/// Where the record of a key lies.
pub fn data_key(key: &[u8]) -> Vec<u8> {
    [&key_hash(key).to_be_bytes()[..], key].concat()
}

/// The key of the record that lies there; empty if no record can.
pub fn key_of_data(place: &Bytes) -> Bytes {
    place.slice(HASH_LEN.min(place.len())..)
}

/// The records of one of `partitions` partitions.
pub fn partition(partition: Partition, partitions: u16) -> Range {
    let first = |partition: Partition| partition.first_hash(partitions).to_be_bytes().to_vec();
    let next = partition.0 + 1;
    Range { from: first(partition), to: (next < partitions).then(|| first(Partition(next))) }
}

/// The records of the leaves from `first` to the one before `end` of a partition's hash tree.
///
/// # Panics
/// When there is no leaf `first`.
pub fn leaves(partition: Partition, first: u16, end: u16, partitions: u16) -> Range {
    let place = |leaf: u16| merkle::first_hash(partition, leaf, partitions).map(|hash| hash.to_be_bytes().to_vec());
    Range { from: place(first).expect("a leaf begins somewhere"), to: place(end) }
}

/// Where the hint of a key lies that is kept for `target`.
pub fn hint_key(target: NodeId, key: &[u8]) -> Vec<u8> {
    [&target_prefix(target)[..], &key_hash(key).to_be_bytes(), key].concat()
}

/// All hints for a node.
pub fn hints(target: NodeId) -> Range {
    let from = target_prefix(target);
    // Names are ASCII and of the length that stands before them, so that nothing of another target lies before this.
    let mut to = from.clone();
    *to.last_mut().expect("a name is not empty") += 1;
    Range { from, to: Some(to) }
}

/// For whom the hint is kept that lies there, and its key; nothing if no hint can lie there.
pub fn target_and_key_of_hint(place: &Bytes) -> Option<(NodeId, Bytes)> {
    let (len, rest) = place.split_first()?;
    let name = std::str::from_utf8(rest.get(..usize::from(*len))?).ok()?;
    let behind = 1 + name.len() + HASH_LEN;
    Some((NodeId::new(name).ok()?, place.slice(behind.min(place.len())..)))
}

fn target_prefix(target: NodeId) -> Vec<u8> {
    let name = target.as_str().as_bytes();
    let len = u8::try_from(name.len()).expect("a node's name has at most 64 bytes");
    [&[len], name].concat()
}

/// The key's hash before the key.
const HASH_LEN: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use quorate_wire::{BucketId, Key};

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    /// Disks hold it.
    #[test]
    fn places_are_fixed_for_ever() {
        for (key, place) in [(Key::plain("k"), DATA_K), (Key::new(BucketId(1), b"k", b"s"), DATA_K_S_IN_BUCKET_1)] {
            assert_eq!(data_key(&key).escape_ascii().to_string(), place);
            assert_eq!(hint_key(node("n1"), &key).escape_ascii().to_string(), format!("\\x02n1{place}"));
        }
    }

    const DATA_K: &str = "\\xa9!\\xe3pO\\xda\\x88\\x1d\\x00\\x00\\x00\\x00k\\x00\\x01";
    const DATA_K_S_IN_BUCKET_1: &str = "\\xfe$\\xb3i\\x8b\\\\<\\x0e\\x00\\x00\\x00\\x01k\\x00\\x01s";

    #[test]
    fn nothing_is_left_behind_the_last_place() {
        let range = Range { from: b"b".to_vec(), to: Some(b"c\0".to_vec()) };
        assert_eq!(range.clone().after(b"a"), Some(range.clone()), "it lies before all of it");
        assert_eq!(range.clone().after(b"b"), Some(Range { from: b"b\0".to_vec(), to: Some(b"c\0".to_vec()) }));
        assert_eq!(range.clone().after(b"c"), None);
        assert_eq!(range.after(b"d"), None);
    }

    #[test]
    fn what_no_record_or_hint_has_for_a_place_is_read_without_harm() {
        assert_eq!(key_of_data(&Bytes::from_static(b"short")), Bytes::new());
        for place in [&b""[..], b"\x05n1", b"\x02\xff\xff12345678k", b"\x00"] {
            assert_eq!(target_and_key_of_hint(&Bytes::copy_from_slice(place)), None, "{place:?}");
        }
        let cut = target_and_key_of_hint(&Bytes::from_static(b"\x02n1123"));
        assert_eq!(cut, Some((node("n1"), Bytes::new())));
    }

    fn lies_in(range: &Range, place: &[u8]) -> bool {
        *range.from <= *place && range.to.as_ref().is_none_or(|to| place < &to[..])
    }

    proptest! {
        #[test]
        fn a_record_lies_in_its_partition_and_its_leaf_and_nowhere_else(
            key in prop::collection::vec(any::<u8>(), 1..30), partitions in 1..=512u16,
        ) {
            let place = data_key(&key);
            prop_assert_eq!(key_of_data(&place.clone().into()), &key);
            let own = Partition::of(key_hash(&key), partitions);
            for other in (0..partitions).map(Partition) {
                prop_assert_eq!(lies_in(&partition(other, partitions), &place), other == own);
            }
            let in_leaf: Vec<u16> =
                (0..256).filter(|leaf| lies_in(&leaves(own, *leaf, leaf + 1, partitions), &place)).collect();
            prop_assert_eq!(in_leaf.len(), 1);
            prop_assert!(lies_in(&leaves(own, 0, 256, partitions), &place));
        }

        /// What lies between two records of a partition key is of that partition key as well.
        #[test]
        fn records_of_a_partition_key_lie_side_by_side_in_the_order_of_their_sort_keys(
            bucket in 0..3u32, name in prop::collection::vec(0..3u8, 0..4), sort_keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 2),
            other in (0..3u32, prop::collection::vec(0..3u8, 0..4), prop::collection::vec(any::<u8>(), 0..4)),
        ) {
            let place = |sort_key: &[u8]| data_key(&Key::new(BucketId(bucket), &name, sort_key));
            let (one, two) = (place(&sort_keys[0]), place(&sort_keys[1]));
            prop_assert_eq!(one.cmp(&two), sort_keys[0].cmp(&sort_keys[1]));
            let (first, last) = (one.clone().min(two.clone()), one.max(two));
            let (of_bucket, of_name, of_sort_key) = &other;
            let stranger = data_key(&Key::new(BucketId(*of_bucket), of_name, of_sort_key));
            prop_assert!(!(first < stranger && stranger < last) || (*of_bucket, of_name) == (bucket, &name));
            let hint = |place: &[u8]| hint_key(node("n1"), &key_of_data(&Bytes::copy_from_slice(place)));
            prop_assert_eq!(hint(&first).cmp(&hint(&last)), first.cmp(&last), "hints lie alike");
            prop_assert_eq!(hint(&first) == hint(&stranger), first == stranger, "each record has a hint of its own");
        }

        #[test]
        fn a_hint_lies_with_those_for_its_target(
            key in prop::collection::vec(any::<u8>(), 1..30), target in "[a-z0-9]{1,9}", other in "[a-z0-9]{1,9}",
        ) {
            let place = hint_key(node(&target), &key);
            prop_assert_eq!(target_and_key_of_hint(&place.clone().into()), Some((node(&target), key.into())));
            prop_assert_eq!(lies_in(&hints(node(&other)), &place), other == target);
        }
    }
}
