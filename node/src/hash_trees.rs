//! The hash trees of a node's partitions: kept in step with the data by the [replica](crate::replica), saved at a clean stop.
//!
//! A tree is made when it is first needed and then begins unknown. Its lock is held for nanoseconds and never while waiting
//! for a key's lock or the disk; what makes a write and its change of the tree one thing is the key's lock, which the replica
//! holds around both.
//!
//! Saved trees name the start that saved them. They are taken only by the very next start, and only if the stop between was
//! clean, so that a tree is never ahead of the data.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use quorate_wire::ids::{Partition, key_hash};

use crate::store::{Store, StoreError, Tree};
use quorate_core::merkle::{self, HashTree, Leaves};

/// The trees. Clones share them.
#[derive(Clone, Default)]
pub struct HashTrees(Arc<OnceLock<Box<[Mutex<Slot>]>>>);

/// One partition's tree.
#[derive(Default)]
struct Slot {
    tree: Option<Box<HashTree>>,
    building: Option<Building>,
}

/// A leaf that is being summed up, page by page, while writes go on.
struct Building {
    leaf: u8,
    /// Where in the data the next page begins: what lies before it is in the sum, and changes of it change the sum.
    next: Vec<u8>,
    sum: u128,
}

impl HashTrees {
    /// Tells how many partitions there are. Until then there is no tree, and no write is noted: all trees begin unknown.
    pub fn set_partitions(&self, partitions: u16) {
        let slots = self.0.get_or_init(|| (0..partitions).map(|_| Mutex::default()).collect());
        assert_eq!(slots.len(), usize::from(partitions), "the number of partitions never changes");
    }

    /// A record took the place of another one, by their digests. `data_key` is where it lies in [`Tree::Data`].
    pub(crate) fn replaced(&self, partition: Partition, data_key: &[u8], old: Option<u128>, new: Option<u128>) {
        self.with_leaf_of(partition, data_key, |slot, leaf| {
            if let Some(tree) = &mut slot.tree {
                tree.replace(leaf, old, new);
            }
            if let Some(building) = &mut slot.building
                && building.leaf == leaf
                && data_key < building.next.as_slice()
            {
                building.sum = building.sum.wrapping_sub(old.unwrap_or(0)).wrapping_add(new.unwrap_or(0));
            }
        });
    }

    /// Nobody knows what lies at `data_key` now: an insert whose outcome is unknown, a record that is damaged.
    pub(crate) fn doubt(&self, partition: Partition, data_key: &[u8]) {
        self.with_leaf_of(partition, data_key, |slot, leaf| slot.forget(leaf));
    }

    /// The sums of these leaves may be wrong.
    pub fn forget(&self, partition: Partition, leaves: &Leaves) {
        if let Some(mut slot) = self.slot(partition) {
            leaves.iter().for_each(|leaf| slot.forget(leaf));
        }
    }

    /// The leaves that are not known; all of them if the partition has no tree yet.
    pub fn unknown(&self, partition: Partition) -> Leaves {
        self.read(partition, |tree| Leaves::ALL.without(&tree.known())).unwrap_or(Leaves::ALL)
    }

    /// The root of a partition's tree, if all of it is known.
    pub fn root(&self, partition: Partition) -> Option<u128> {
        self.read(partition, HashTree::root).flatten()
    }

    /// The inner nodes of a partition's tree.
    pub fn groups(&self, partition: Partition) -> Vec<Option<u128>> {
        self.read(partition, HashTree::groups).unwrap_or_else(|| HashTree::unknown().groups())
    }

    /// The leaves of a group of a partition's tree.
    pub fn leaves(&self, partition: Partition, group: u8) -> Vec<Option<u128>> {
        self.read(partition, |tree| tree.leaves(group)).unwrap_or_else(|| HashTree::unknown().leaves(group))
    }

    /// A partition was summed up as a whole, with all its keys locked.
    pub(crate) fn set_all(&self, partition: Partition, tree: HashTree) {
        if let Some(mut slot) = self.slot(partition) {
            *slot = Slot { tree: Some(Box::new(tree)), building: None };
        }
    }

    /// Begins to sum up a leaf at `from`, the first place of it in the data. One leaf of a partition at a time.
    pub(crate) fn begin(&self, partition: Partition, leaf: u8, from: Vec<u8>) {
        if let Some(mut slot) = self.slot(partition) {
            slot.forget(leaf);
            slot.building = Some(Building { leaf, next: from, sum: 0 });
        }
    }

    /// A page of a leaf was summed up, with its keys locked; the next one begins at `next`, or this was the last one. False if
    /// the leaf fell into doubt since it was begun: then it has to begin anew.
    pub(crate) fn add_page(&self, partition: Partition, leaf: u8, sum: u128, next: Option<Vec<u8>>) -> bool {
        let Some(mut slot) = self.slot(partition) else { return false };
        let Some(building) = slot.building.as_mut().filter(|building| building.leaf == leaf) else { return false };
        building.sum = building.sum.wrapping_add(sum);
        match next {
            Some(next) => building.next = next,
            None => {
                let sum = building.sum;
                slot.building = None;
                slot.tree.get_or_insert_with(|| Box::new(HashTree::unknown())).set(leaf, sum);
            }
        }
        true
    }

    /// Keeps every tree for the next start. Nothing may be written to the data any more. Blocking.
    ///
    /// # Errors
    /// When the store takes them not; the next start then sums up anew.
    pub(crate) fn save(&self, store: &dyn Store, boot: u64) -> Result<(), StoreError> {
        let Some(slots) = self.0.get() else { return Ok(()) };
        for (partition, slot) in (0u16..).zip(slots.iter()) {
            let encoded = lock(slot).tree.as_ref().map(|tree| tree.encode());
            if let Some(encoded) = encoded {
                let value = [&[FORMAT][..], &boot.to_be_bytes(), &encoded].concat();
                store.insert(Tree::HashTree, &partition.to_be_bytes(), &value)?;
            }
        }
        Ok(())
    }

    /// Takes the trees that the start before this one has saved; tells how many. To be called before the first write, and only
    /// if that start ended cleanly. Blocking. What cannot be read is summed up anew, as if it had not been there.
    pub(crate) fn load(&self, store: &dyn Store, boot: u64) -> usize {
        let Some(slots) = self.0.get() else { return 0 };
        let mut loaded = 0;
        for (partition, slot) in (0u16..).zip(slots.iter()) {
            let saved = store.get(Tree::HashTree, &partition.to_be_bytes()).ok().flatten();
            if let Some(tree) = saved.and_then(|saved| decode(&saved, boot)) {
                *lock(slot) = Slot { tree: Some(Box::new(tree)), building: None };
                loaded += 1;
            }
        }
        loaded
    }

    fn with_leaf_of(&self, partition: Partition, data_key: &[u8], change: impl FnOnce(&mut Slot, u8)) {
        let Some(slots) = self.0.get() else { return };
        let Some(mut slot) = self.slot(partition) else { return };
        let hash = data_key.first_chunk().map_or_else(|| key_hash(data_key), |hash| u64::from_be_bytes(*hash));
        change(&mut slot, merkle::leaf_of(hash, slots.len() as u16));
    }

    fn read<T>(&self, partition: Partition, look: impl FnOnce(&HashTree) -> T) -> Option<T> {
        self.slot(partition)?.tree.as_deref().map(look)
    }

    fn slot(&self, partition: Partition) -> Option<MutexGuard<'_, Slot>> {
        self.0.get()?.get(usize::from(partition.0)).map(lock)
    }
}

impl fmt::Debug for HashTrees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashTrees({})", self.0.get().map_or(0, |slots| slots.len()))
    }
}

impl Slot {
    fn forget(&mut self, leaf: u8) {
        if let Some(tree) = &mut self.tree {
            tree.forget(leaf);
        }
        if self.building.as_ref().is_some_and(|building| building.leaf == leaf) {
            self.building = None;
        }
    }
}

/// A saved tree, if the start before `boot` has saved it.
fn decode(saved: &Bytes, boot: u64) -> Option<HashTree> {
    let (&format, rest) = saved.split_first()?;
    let (by, tree) = rest.split_first_chunk()?;
    (format == FORMAT && u64::from_be_bytes(*by).checked_add(1)? == boot).then(|| HashTree::decode(tree))?
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().expect("nothing panics while it holds this lock")
}

/// The format of saved trees.
const FORMAT: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    const PARTITION: Partition = Partition(3);

    fn trees() -> HashTrees {
        let trees = HashTrees::default();
        trees.set_partitions(8);
        trees
    }

    fn data_key(leaf: u16, last: u8) -> Vec<u8> {
        let hash = merkle::first_hash(PARTITION, leaf, 8).expect("in range");
        [&hash.to_be_bytes()[..], &[last]].concat()
    }

    #[test]
    fn writes_during_a_rebuild_count_once_wherever_they_fall() {
        let trees = trees();
        trees.set_all(PARTITION, HashTree::empty());
        // Keys 1, 4 and 9 of the leaf are there with digests 10, 40 and 90; the first page ends behind key 4.
        trees.begin(PARTITION, 7, data_key(7, 0));
        assert!(trees.unknown(PARTITION).contains(7));
        assert!(trees.add_page(PARTITION, 7, 50, Some(data_key(7, 5))));
        trees.replaced(PARTITION, &data_key(7, 2), None, Some(20));
        trees.replaced(PARTITION, &data_key(7, 4), Some(40), Some(44));
        trees.replaced(PARTITION, &data_key(7, 9), Some(90), Some(99));
        trees.replaced(PARTITION, &data_key(8, 1), None, Some(1000));
        assert!(trees.add_page(PARTITION, 7, 99, None));
        assert_eq!(trees.root(PARTITION), Some(10 + 20 + 44 + 99 + 1000));
        trees.replaced(PARTITION, &data_key(7, 9), Some(99), None);
        assert_eq!(trees.root(PARTITION), Some(10 + 20 + 44 + 1000));
    }

    #[test]
    fn a_doubt_ends_a_rebuild() {
        let trees = trees();
        trees.begin(PARTITION, 7, data_key(7, 0));
        assert!(trees.add_page(PARTITION, 7, 50, Some(data_key(7, 5))));
        trees.doubt(PARTITION, &data_key(7, 8));
        assert!(!trees.add_page(PARTITION, 7, 1, None));
        trees.begin(PARTITION, 7, data_key(7, 0));
        assert!(trees.add_page(PARTITION, 7, 3, None));
        assert_eq!(trees.unknown(PARTITION).len(), merkle::LEAVES - 1);
        trees.doubt(PARTITION, &data_key(7, 1));
        assert_eq!(trees.unknown(PARTITION), Leaves::ALL);
    }

    #[test]
    fn only_the_next_start_takes_what_was_saved() {
        let store = MemoryStore::new();
        let saved = trees();
        saved.set_all(PARTITION, HashTree::empty());
        saved.replaced(PARTITION, &data_key(7, 1), None, Some(5));
        saved.doubt(PARTITION, &data_key(9, 1));
        saved.save(&store, 4).expect("room");
        for (boot, taken) in [(4, 0), (5, 1), (6, 0)] {
            let trees = trees();
            assert_eq!(trees.load(&store, boot), taken, "start {boot}");
            assert_eq!(trees.unknown(PARTITION).len(), if taken == 1 { 1 } else { merkle::LEAVES });
        }
        store.flip_bit(Tree::HashTree, &PARTITION.0.to_be_bytes());
        assert_eq!(trees().load(&store, 5), 0, "damage is not taken");
    }

    #[test]
    fn before_the_layout_there_is_no_tree_and_everything_begins_unknown() {
        let trees = HashTrees::default();
        trees.replaced(PARTITION, &data_key(7, 1), None, Some(5));
        trees.doubt(PARTITION, &data_key(7, 1));
        assert_eq!((trees.unknown(PARTITION), trees.root(PARTITION)), (Leaves::ALL, None));
        trees.set_partitions(8);
        assert_eq!(trees.unknown(PARTITION), Leaves::ALL);
        assert_eq!(trees.unknown(Partition(8)), Leaves::ALL, "no such partition");
    }
}
