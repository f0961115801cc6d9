//! Hash trees: what two replicas of a partition compare to find out where they differ.
//!
//! ```text
//!   root          the sum of all
//!   16 groups     the sums of 16 leaves each          root and groups are computed when they are asked for
//!   256 leaves    each the sum, mod 2^128, of the digests of the records in its 1/256 of the partition's hash range
//! ```
//!
//! A sum takes no order, and a write changes it by the difference of two digests, in O(1). The digests are 128 bits of a
//! keyless hash: they tell replicas apart that failed, and are no defence against somebody who forges records.
//! (Bellare, Micciancio, "A New Paradigm for Collision-free Hashing: Incrementality at Reduced Cost", 1997: AdHash.)
//!
//! A leaf whose sum may be wrong is **unknown**: it takes no more changes, compares with nothing, and has to be summed up
//! anew from the data. Invariant: a known leaf is exactly the sum of what the data holds, or behind it by an operation that
//! holds its key's lock.

use std::fmt;

use quorate_wire::ids::Partition;

/// Leaves of one tree.
pub const LEAVES: usize = 256;
/// Inner nodes of one tree.
pub const GROUPS: usize = 16;
/// Leaves of each inner node.
pub const LEAVES_PER_GROUP: usize = LEAVES / GROUPS;

/// A set of leaves.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leaves([u64; LEAVES / 64]);

impl Leaves {
    /// None of them.
    pub const NONE: Self = Self([0; LEAVES / 64]);
    /// All of them.
    pub const ALL: Self = Self([u64::MAX; LEAVES / 64]);

    /// Whether a leaf is in it.
    pub fn contains(&self, leaf: u8) -> bool {
        self.0[usize::from(leaf) / 64] >> (leaf % 64) & 1 == 1
    }

    /// Puts a leaf in.
    pub fn insert(&mut self, leaf: u8) {
        self.0[usize::from(leaf) / 64] |= 1 << (leaf % 64);
    }

    /// Takes a leaf out.
    pub fn remove(&mut self, leaf: u8) {
        self.0[usize::from(leaf) / 64] &= !(1 << (leaf % 64));
    }

    /// How many are in it.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether none is in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    /// Those that are in both.
    pub fn and(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// Those that are in either.
    pub fn or(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    /// Those that are in this one only.
    pub fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u8> + use<> {
        let leaves = *self;
        (0..=u8::MAX).filter(move |leaf| leaves.contains(*leaf))
    }

    /// For disk and peers: leaf `i` is bit `i % 8` of byte `i / 8`.
    pub fn to_bytes(&self) -> [u8; LEAVES / 8] {
        let mut bytes = [0; LEAVES / 8];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What [`to_bytes`](Self::to_bytes) made; nothing if it is of another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEAVES / 8] = bytes.try_into().ok()?;
        let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("eight bytes"));
        Some(Self(std::array::from_fn(word)))
    }
}

impl FromIterator<u8> for Leaves {
    fn from_iter<I: IntoIterator<Item = u8>>(leaves: I) -> Self {
        let mut set = Self::NONE;
        leaves.into_iter().for_each(|leaf| set.insert(leaf));
        set
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} leaves", self.len())
    }
}

/// The leaf that a hash falls into, within its partition.
pub fn leaf_of(hash: u64, partitions: u16) -> u8 {
    // A partition is a slice of Q, a leaf one of 256 x Q: the same multiplication, eight bits further.
    let slice = (u128::from(hash) * u128::from(partitions) * LEAVES as u128) >> 64;
    (slice % LEAVES as u128) as u8
}

/// The smallest hash that falls into a leaf; leaf 256 is the first one of the next partition, and nothing if there is none.
pub fn first_hash(partition: Partition, leaf: u16, partitions: u16) -> Option<u64> {
    let slices = u128::from(partitions) * LEAVES as u128;
    let slice = u128::from(partition.0) * LEAVES as u128 + u128::from(leaf);
    u64::try_from((slice << 64).div_ceil(slices)).ok()
}

/// The tree of one partition, 4 KiB.
#[derive(Clone, PartialEq, Eq)]
pub struct HashTree {
    sums: [u128; LEAVES],
    known: Leaves,
}

impl HashTree {
    /// Of data that nobody has looked at.
    pub fn unknown() -> Self {
        Self { sums: [0; LEAVES], known: Leaves::NONE }
    }

    /// Of a partition without a record.
    pub fn empty() -> Self {
        Self { sums: [0; LEAVES], known: Leaves::ALL }
    }

    /// A record took the place of another one, by their digests; nothing stands for no record. An unknown leaf stays so.
    pub fn replace(&mut self, leaf: u8, old: Option<u128>, new: Option<u128>) {
        if self.known.contains(leaf) {
            let sum = &mut self.sums[usize::from(leaf)];
            *sum = sum.wrapping_sub(old.unwrap_or(0)).wrapping_add(new.unwrap_or(0));
        }
    }

    /// The sum of a leaf is known from now on.
    pub fn set(&mut self, leaf: u8, sum: u128) {
        self.sums[usize::from(leaf)] = sum;
        self.known.insert(leaf);
    }

    /// The sum of a leaf may be wrong.
    pub fn forget(&mut self, leaf: u8) {
        self.sums[usize::from(leaf)] = 0;
        self.known.remove(leaf);
    }

    /// The leaves whose sums are known.
    pub fn known(&self) -> Leaves {
        self.known
    }

    /// The sum of a leaf, if it is known.
    pub fn leaf(&self, leaf: u8) -> Option<u128> {
        self.known.contains(leaf).then(|| self.sums[usize::from(leaf)])
    }

    /// The sum of a group, if all of it is known.
    ///
    /// # Panics
    /// When there is no such group.
    pub fn group(&self, group: u8) -> Option<u128> {
        leaves_of(group).try_fold(0u128, |sum, leaf| Some(sum.wrapping_add(self.leaf(leaf)?)))
    }

    /// The sum of everything, if all of it is known.
    pub fn root(&self) -> Option<u128> {
        let all = || self.sums.iter().fold(0u128, |sum, leaf| sum.wrapping_add(*leaf));
        (self.known == Leaves::ALL).then(all)
    }

    /// The inner nodes, for a peer to compare with.
    pub fn groups(&self) -> Vec<Option<u128>> {
        (0..GROUPS as u8).map(|group| self.group(group)).collect()
    }

    /// The leaves of a group, for a peer to compare with.
    pub fn leaves(&self, group: u8) -> Vec<Option<u128>> {
        leaves_of(group).map(|leaf| self.leaf(leaf)).collect()
    }

    /// For disk: which leaves are known, then the sums of those, big-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.known.to_bytes().to_vec();
        for leaf in self.known.iter() {
            bytes.extend_from_slice(&self.sums[usize::from(leaf)].to_be_bytes());
        }
        bytes
    }

    /// What [`encode`](Self::encode) made; nothing if it is anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (known, sums) = bytes.split_at_checked(LEAVES / 8)?;
        let mut tree = Self::unknown();
        let known = Leaves::from_bytes(known)?;
        if sums.len() != 16 * known.len() {
            return None;
        }
        for (leaf, sum) in known.iter().zip(sums.chunks_exact(16)) {
            tree.set(leaf, u128::from_be_bytes(sum.try_into().expect("sixteen bytes")));
        }
        Some(tree)
    }
}

impl fmt::Debug for HashTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashTree({} of {LEAVES} leaves known, root {:?})", self.known.len(), self.root())
    }
}

/// The tree of one partition, kept in step with data that changes meanwhile. It begins unknown; 4 KiB are taken when the first leaf
/// is known.
#[derive(Debug, Clone, Default)]
pub struct LiveTree {
    tree: Option<Box<HashTree>>,
    building: Option<Building>,
}

/// A leaf that is being summed up, page by page, while writes go on.
#[derive(Debug, Clone)]
struct Building {
    leaf: u8,
    /// Where in the data the next page begins: what lies before it is in the sum, and changes of it change the sum.
    next: Vec<u8>,
    sum: u128,
}

/// Where a record is in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InTree<'a> {
    /// Its leaf.
    pub leaf: u8,
    /// Where it lies in the data, whose order is that of the leaves.
    pub data_key: &'a [u8],
}

impl LiveTree {
    /// Of data that was summed up as a whole, or as it was saved.
    pub fn of(tree: HashTree) -> Self {
        Self { tree: Some(Box::new(tree)), building: None }
    }

    /// The tree as far as it is known; nothing if no leaf ever was.
    pub fn known(&self) -> Option<&HashTree> {
        self.tree.as_deref()
    }

    /// The leaves that are not known.
    pub fn unknown(&self) -> Leaves {
        self.tree.as_ref().map_or(Leaves::ALL, |tree| Leaves::ALL.without(&tree.known()))
    }

    /// A record took the place of another one, by their digests; nothing stands for no record.
    pub fn replaced(&mut self, at: InTree<'_>, old: Option<u128>, new: Option<u128>) {
        if let Some(tree) = &mut self.tree {
            tree.replace(at.leaf, old, new);
        }
        if let Some(building) = &mut self.building
            && building.leaf == at.leaf
            && at.data_key < building.next.as_slice()
        {
            building.sum = building.sum.wrapping_sub(old.unwrap_or(0)).wrapping_add(new.unwrap_or(0));
        }
    }

    /// The sum of a leaf may be wrong: it is not known what lies there.
    pub fn doubt(&mut self, leaf: u8) {
        if let Some(tree) = &mut self.tree {
            tree.forget(leaf);
        }
        if self.building.as_ref().is_some_and(|building| building.leaf == leaf) {
            self.building = None;
        }
    }

    /// Begins to sum up a leaf at `from`, the first place of it in the data. One leaf at a time.
    pub fn begin(&mut self, leaf: u8, from: Vec<u8>) {
        self.doubt(leaf);
        self.building = Some(Building { leaf, next: from, sum: 0 });
    }

    /// A page of a leaf was summed up, with its keys locked; the next one begins at `next`, or this was the last one. False if the
    /// leaf fell into doubt since it was begun: then it has to begin anew.
    pub fn add_page(&mut self, leaf: u8, sum: u128, next: Option<Vec<u8>>) -> bool {
        let Some(building) = self.building.as_mut().filter(|building| building.leaf == leaf) else { return false };
        building.sum = building.sum.wrapping_add(sum);
        match next {
            Some(next) => building.next = next,
            None => {
                let sum = building.sum;
                self.building = None;
                self.tree.get_or_insert_with(|| Box::new(HashTree::unknown())).set(leaf, sum);
            }
        }
        true
    }
}

/// The leaves of a group, in order.
pub fn leaves_of(group: u8) -> impl Iterator<Item = u8> {
    assert!(usize::from(group) < GROUPS, "group {group} of {GROUPS}");
    let first = group * LEAVES_PER_GROUP as u8;
    first..=first + (LEAVES_PER_GROUP as u8 - 1)
}

/// The places at which two lists of sums differ, and those that cannot be compared because a side does not know. Lists of
/// different lengths, from a peer that means something else, differ nowhere: they are not comparable at all.
pub fn compare(ours: &[Option<u128>], theirs: &[Option<u128>]) -> (Vec<u8>, Vec<u8>) {
    let (mut differ, mut unknown) = (Vec::new(), Vec::new());
    for (at, (ours, theirs)) in (0..=u8::MAX).zip(ours.iter().zip(theirs)) {
        match (ours, theirs) {
            (Some(ours), Some(theirs)) if ours == theirs => {}
            (Some(_), Some(_)) => differ.push(at),
            (None, _) | (_, None) => unknown.push(at),
        }
    }
    (differ, unknown)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn tree_of(records: &BTreeMap<u64, u128>) -> HashTree {
        let mut tree = HashTree::empty();
        for (hash, digest) in records {
            tree.replace(leaf_of(*hash, 8), None, Some(*digest));
        }
        tree
    }

    /// The leaves at which two trees differ, found as peers do: by groups, then by leaves.
    fn descend(one: &HashTree, other: &HashTree) -> Vec<u8> {
        if one.root().is_some() && one.root() == other.root() {
            return Vec::new();
        }
        let (mut groups, unknown) = compare(&one.groups(), &other.groups());
        groups.extend(unknown);
        groups.sort_unstable();
        let mut leaves = Vec::new();
        for group in groups {
            let first = group * LEAVES_PER_GROUP as u8;
            let (differ, unknown) = compare(&one.leaves(group), &other.leaves(group));
            leaves.extend(differ.into_iter().chain(unknown).map(|leaf| first + leaf));
        }
        leaves.sort_unstable();
        leaves
    }

    proptest! {
        #[test]
        fn leaves_cut_a_partition_evenly(hash: u64, partitions in 1u16..=32768) {
            let (partition, leaf) = (Partition::of(hash, partitions), leaf_of(hash, partitions));
            let first = first_hash(partition, leaf.into(), partitions).expect("it holds a hash");
            prop_assert!(first <= hash);
            prop_assert_eq!((Partition::of(first, partitions), leaf_of(first, partitions)), (partition, leaf));
            if let Some(next) = first_hash(partition, u16::from(leaf) + 1, partitions) {
                prop_assert!(hash < next);
            } else {
                prop_assert_eq!((partition.0 + 1, leaf), (partitions, u8::MAX));
            }
            prop_assert_eq!(first_hash(partition, 0, partitions), Some(partition.first_hash(partitions)));
        }

        #[test]
        fn updates_in_any_order_make_what_a_rebuild_makes(
            writes in vec((any::<u64>(), any::<Option<u128>>()), 0..60),
            rotate in 0usize..60,
        ) {
            let mut records = BTreeMap::new();
            let mut tree = HashTree::empty();
            for (hash, digest) in &writes {
                let old = match digest {
                    Some(digest) => records.insert(*hash, *digest),
                    None => records.remove(hash),
                };
                tree.replace(leaf_of(*hash, 8), old, *digest);
            }
            prop_assert_eq!(&tree, &tree_of(&records));
            let mut rotated = HashTree::empty();
            let entries: Vec<_> = records.iter().collect();
            for i in 0..entries.len() {
                let (hash, digest) = entries[(i + rotate) % entries.len()];
                rotated.replace(leaf_of(*hash, 8), None, Some(*digest));
            }
            prop_assert_eq!(&tree, &rotated);
            prop_assert_eq!(HashTree::decode(&tree.encode()), Some(tree));
        }

        #[test]
        fn the_descent_finds_exactly_the_leaves_that_differ(
            common in vec((any::<u64>(), any::<u128>()), 0..60),
            changed in vec((any::<u64>(), 1u128..), 0..6),
            forgotten in vec(any::<u8>(), 0..3),
        ) {
            let one = common.into_iter().collect::<BTreeMap<u64, u128>>();
            let mut other = one.clone();
            for (hash, by) in &changed {
                let old = other.get(hash).copied().unwrap_or(0);
                other.insert(*hash, old.wrapping_add(*by));
            }
            let (one_tree, mut other_tree) = (tree_of(&one), tree_of(&other));
            let mut differ: Leaves = (0..=u8::MAX).filter(|leaf| one_tree.leaf(*leaf) != other_tree.leaf(*leaf)).collect();
            for leaf in forgotten {
                other_tree.forget(leaf);
                differ.insert(leaf);
            }
            prop_assert_eq!(descend(&one_tree, &other_tree), differ.iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_unknown_leaf_takes_no_changes_and_makes_all_above_it_unknown() {
        let mut tree = HashTree::empty();
        tree.replace(17, None, Some(5));
        assert_eq!((tree.leaf(17), tree.group(1), tree.root()), (Some(5), Some(5), Some(5)));
        tree.forget(17);
        tree.replace(17, None, Some(9));
        assert_eq!((tree.leaf(17), tree.group(1), tree.root()), (None, None, None));
        assert_eq!((tree.group(0), tree.known().len()), (Some(0), LEAVES - 1));
        tree.set(17, 14);
        assert_eq!(tree.root(), Some(14));
        assert_eq!(HashTree::unknown().known(), Leaves::NONE);
    }

    #[test]
    fn sets_of_leaves_are_sets() {
        let some: Leaves = [0, 63, 64, 255].into_iter().collect();
        assert_eq!(some.iter().collect::<Vec<_>>(), [0, 63, 64, 255]);
        assert_eq!(some.len(), 4);
        assert_eq!(Leaves::from_bytes(&some.to_bytes()), Some(some));
        assert_eq!(Leaves::from_bytes(&[0; 31]), None);
        assert_eq!(Leaves::ALL.without(&some).len(), LEAVES - 4);
        assert_eq!(Leaves::ALL.without(&some).or(&some), Leaves::ALL);
        assert!(Leaves::ALL.without(&some).and(&some).is_empty());
    }

    fn at(leaf: u8, data_key: &[u8]) -> InTree<'_> {
        InTree { leaf, data_key }
    }

    #[test]
    fn writes_while_a_leaf_is_summed_up_count_once_wherever_they_fall() {
        let mut tree = LiveTree::of(HashTree::empty());
        let root = |tree: &LiveTree| tree.known().and_then(HashTree::root);
        // Keys 1, 4 and 9 of the leaf are there with digests 10, 40 and 90; the first page ends behind key 4.
        tree.begin(7, vec![7, 0]);
        assert!(tree.unknown().contains(7));
        assert!(tree.add_page(7, 50, Some(vec![7, 5])));
        tree.replaced(at(7, &[7, 2]), None, Some(20));
        tree.replaced(at(7, &[7, 4]), Some(40), Some(44));
        tree.replaced(at(7, &[7, 9]), Some(90), Some(99));
        tree.replaced(at(8, &[8, 1]), None, Some(1000));
        assert!(tree.add_page(7, 99, None));
        assert_eq!(root(&tree), Some(10 + 20 + 44 + 99 + 1000));
        tree.replaced(at(7, &[7, 9]), Some(99), None);
        assert_eq!(root(&tree), Some(10 + 20 + 44 + 1000));
    }

    #[test]
    fn a_doubt_ends_a_rebuild() {
        let mut tree = LiveTree::default();
        tree.replaced(at(7, &[7, 1]), None, Some(5));
        assert!(tree.unknown() == Leaves::ALL && tree.known().is_none(), "changes of what is unknown tell nothing");
        tree.begin(7, vec![7, 0]);
        assert!(tree.add_page(7, 50, Some(vec![7, 5])));
        tree.doubt(7);
        assert!(!tree.add_page(7, 1, None));
        tree.begin(7, vec![7, 0]);
        tree.doubt(8);
        assert!(!tree.add_page(8, 3, None), "another leaf is being summed up");
        assert!(tree.add_page(7, 3, None));
        assert_eq!(tree.unknown().len(), LEAVES - 1);
        tree.doubt(7);
        assert_eq!(tree.unknown(), Leaves::ALL);
    }

    #[test]
    fn other_bytes_are_no_tree() {
        let whole = HashTree::empty().encode();
        assert_eq!(whole.len(), 32 + 16 * LEAVES);
        for cut in [0, 31, 32, whole.len() - 1] {
            assert_eq!(HashTree::decode(&whole[..cut]), None, "cut to {cut}");
        }
        assert_eq!(HashTree::decode(&HashTree::unknown().encode()), Some(HashTree::unknown()));
    }
}
