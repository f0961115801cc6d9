//! The partitions of a node: where the [state](PartitionState) of each lies, each under a lock of its own.
//!
//! A lock is held for one transition: never while waiting for a key's lock or for the disk, and never two at a time. What makes a
//! write and its transitions one thing is the key's lock, which the [replica](crate::replica) holds around all of them. A look-up
//! takes no lock: states are made when they are first needed, and stay.
//!
//! How many superseded operations and corrupt records are remembered is bounded for the node as a whole. Each partition has a share
//! of that room for itself; the rest is for those that need it, and counted without a lock.
//!
//! Hash trees are saved at a clean stop. Saved trees name the start that saved them. They are taken only by the very next start, and
//! only if the stop between was clean, so that a tree is never ahead of the data.

use std::fmt;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use quorate_wire::buggify;
use quorate_wire::ids::Partition;
use tokio::time::Instant;

use crate::store::{Store, StoreError, Tree};
use quorate_core::merkle::{HashTree, Leaves, LiveTree};
use quorate_core::partition::PartitionState;

/// The states of a node's partitions. Clones share them.
#[derive(Clone)]
pub struct Partitions(Arc<Shared>);

struct Shared {
    /// Times in the states are counted from here.
    started: Instant,
    /// How many partitions there are; 0 until the layout is known.
    count: AtomicU16,
    /// By the two bytes of the partition's number.
    states: Box<[OnceLock<Chunk>]>,
    /// Room that superseded operations take, and corrupt records, in all of them.
    operations: AtomicUsize,
    corrupt: AtomicUsize,
}

type Chunk = Box<[OnceLock<Box<Mutex<PartitionState>>>]>;

/// What there is room for in one partition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    operations: usize,
    corrupt: bool,
}

impl Room {
    /// How many superseded operations it may remember.
    pub(crate) fn operations(&self) -> usize {
        buggify!("replica: few superseded operations are remembered", self.operations, 8)
    }

    /// Whether another corrupt record may be known.
    pub(crate) fn corrupt(&self) -> bool {
        self.corrupt
    }
}

impl Default for Partitions {
    fn default() -> Self {
        Self(Arc::new(Shared {
            started: Instant::now(),
            count: AtomicU16::new(0),
            states: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
            operations: AtomicUsize::new(0),
            corrupt: AtomicUsize::new(0),
        }))
    }
}

impl Partitions {
    /// Tells how many partitions there are; the layout knows, and the number never changes. Until then nothing is known of hash trees.
    ///
    /// # Panics
    /// When it was another number before.
    pub fn set_count(&self, partitions: u16) {
        let before = self.0.count.swap(partitions, Ordering::Relaxed);
        assert!(before == 0 || before == partitions, "Q never changes, but went from {before} to {partitions}");
    }

    /// How many partitions there are, once the layout is known.
    pub fn count(&self) -> Option<u16> {
        Some(self.0.count.load(Ordering::Relaxed)).filter(|count| *count > 0)
    }

    /// The time as the states count it: since they began.
    pub fn now(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// One transition of a partition. It must not wait, nor look at another partition.
    pub(crate) fn with<T>(&self, partition: Partition, transition: impl FnOnce(&mut PartitionState, Room) -> T) -> T {
        let mut state = lock(self.made(partition));
        let before = (state.operations().room_taken(), state.corrupt());
        let room = self.room(before.0);
        let done = transition(&mut state, room);
        let after = (state.operations().room_taken(), state.corrupt());
        shift(&self.0.operations, before.0, after.0);
        shift(&self.0.corrupt, before.1, after.1);
        done
    }

    /// A look at a partition's state; at that of an untouched one if it has none yet.
    pub(crate) fn look<T>(&self, partition: Partition, look: impl FnOnce(&PartitionState) -> T) -> T {
        match self.find(partition) {
            Some(state) => look(&lock(state)),
            None => look(&PartitionState::default()),
        }
    }

    /// A look at every state that there is, in order, at one after the other.
    pub(crate) fn look_at_all<T>(&self, mut look: impl FnMut(Partition, &PartitionState) -> T) -> Vec<T> {
        let mut found = Vec::new();
        for (high, chunk) in (0..).zip(&self.0.states) {
            for (low, state) in (0..).zip(chunk.get().into_iter().flatten()) {
                if let Some(state) = state.get() {
                    found.push(look(Partition(high * CHUNK as u16 + low), &lock(state)));
                }
            }
        }
        found
    }

    /// Takes what an earlier process has left of a partition. To be called before it is used.
    pub(crate) fn restore(&self, partition: Partition, state: PartitionState) {
        *lock(self.made(partition)) = state;
    }

    /// Forgets the superseded operations whose time is over; and, if there is no room for more, half of what each partition has beyond
    /// its share, so that one which was busy makes room for others. Tells how many went before their time. To be called now and then.
    pub(crate) fn trim_operations(&self) -> u64 {
        let now = self.now();
        let (full, share) = (self.0.operations.load(Ordering::Relaxed) >= OPERATIONS_MAX, self.share());
        let partitions = self.look_at_all(|partition, state| (partition, state.operations().room_taken()));
        let trim = |(partition, taken): (Partition, usize)| {
            let most = if full { taken.min(share + taken.saturating_sub(share) / 2) } else { usize::MAX };
            self.with(partition, |state, _| state.trim_operations(now, most))
        };
        partitions.into_iter().filter(|(_, taken)| *taken > 0).map(trim).sum()
    }

    /// How many superseded operations are remembered.
    pub(crate) fn operations(&self) -> u64 {
        self.look_at_all(|_, state| state.operations().len() as u64).into_iter().sum()
    }

    // The hash trees.

    /// The sums of these leaves may be wrong.
    pub fn forget_sums(&self, partition: Partition, leaves: &Leaves) {
        self.with(partition, |state, _| leaves.iter().for_each(|leaf| state.tree_mut().doubt(leaf)));
    }

    /// The leaves whose sums are not known.
    pub fn unknown(&self, partition: Partition) -> Leaves {
        self.look(partition, |state| state.tree().unknown())
    }

    /// The root of a partition's tree, if all of it is known.
    pub fn root(&self, partition: Partition) -> Option<u128> {
        self.look(partition, |state| state.tree().known().and_then(HashTree::root))
    }

    /// The inner nodes of a partition's tree.
    pub fn groups(&self, partition: Partition) -> Vec<Option<u128>> {
        let groups = self.look(partition, |state| state.tree().known().map(HashTree::groups));
        groups.unwrap_or_else(|| HashTree::unknown().groups())
    }

    /// The leaves of a group of a partition's tree.
    pub fn leaves(&self, partition: Partition, group: u8) -> Vec<Option<u128>> {
        let leaves = self.look(partition, |state| state.tree().known().map(|tree| tree.leaves(group)));
        leaves.unwrap_or_else(|| HashTree::unknown().leaves(group))
    }

    /// Keeps every tree for the next start, but for those of partitions that hold what a newer release has written: the next start is to find
    /// these records. Nothing may be written to the data any more. Blocking.
    ///
    /// # Errors
    /// When the store does not take them; the next start then sums up anew.
    pub(crate) fn save_trees(&self, store: &dyn Store, boot: u64) -> Result<(), StoreError> {
        for partition in (0..self.count().unwrap_or(0)).map(Partition) {
            let whole = |state: &PartitionState| state.newer().is_empty();
            let encode = |state: &PartitionState| state.tree().known().filter(|_| whole(state)).map(HashTree::encode);
            let encoded = self.look(partition, encode);
            if let Some(encoded) = encoded {
                let value = [&[FORMAT][..], &boot.to_be_bytes(), &encoded].concat();
                store.insert(Tree::HashTree, &partition.0.to_be_bytes(), &value)?;
            }
        }
        Ok(())
    }

    /// Takes the trees that the start before this one has saved; tells how many. To be called before the first write, and only
    /// if that start ended cleanly. Blocking. What cannot be read is summed up anew, as if it had not been there.
    pub(crate) fn load_trees(&self, store: &dyn Store, boot: u64) -> usize {
        let mut loaded = 0;
        for partition in (0..self.count().unwrap_or(0)).map(Partition) {
            let saved = store.get(Tree::HashTree, &partition.0.to_be_bytes()).ok().flatten();
            if let Some(tree) = saved.and_then(|saved| decode(&saved, boot)) {
                self.with(partition, |state, _| *state.tree_mut() = LiveTree::of(tree));
                loaded += 1;
            }
        }
        loaded
    }

    fn room(&self, operations: usize) -> Room {
        let left = OPERATIONS_MAX.saturating_sub(self.0.operations.load(Ordering::Relaxed));
        Room {
            operations: self.share().max(operations + left),
            corrupt: self.0.corrupt.load(Ordering::Relaxed) < CORRUPT_MAX,
        }
    }

    /// How many operations a partition may remember in any case.
    fn share(&self) -> usize {
        OPERATIONS_SHARED_OUT / usize::from(self.count().unwrap_or(1))
    }

    fn chunk(&self, partition: Partition) -> &OnceLock<Chunk> {
        &self.0.states[usize::from(partition.0) / CHUNK]
    }

    fn find(&self, partition: Partition) -> Option<&Mutex<PartitionState>> {
        let state = self.chunk(partition).get()?[usize::from(partition.0) % CHUNK].get();
        state.map(|state| &**state)
    }

    fn made(&self, partition: Partition) -> &Mutex<PartitionState> {
        let chunk = self.chunk(partition).get_or_init(|| (0..CHUNK).map(|_| OnceLock::new()).collect());
        chunk[usize::from(partition.0) % CHUNK].get_or_init(Box::default)
    }
}

impl fmt::Debug for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Partitions({:?})", self.count())
    }
}

/// A saved tree, if the start before `boot` has saved it.
fn decode(saved: &Bytes, boot: u64) -> Option<HashTree> {
    let (&format, rest) = saved.split_first()?;
    let (by, tree) = rest.split_first_chunk()?;
    (format == FORMAT && u64::from_be_bytes(*by).checked_add(1)? == boot).then(|| HashTree::decode(tree))?
}

/// Counts what one partition takes in what all of them take.
fn shift(total: &AtomicUsize, before: usize, after: usize) {
    if after > before {
        total.fetch_add(after - before, Ordering::Relaxed);
    } else if after < before {
        total.fetch_sub(before - after, Ordering::Relaxed);
    }
}

fn lock(state: &Mutex<PartitionState>) -> std::sync::MutexGuard<'_, PartitionState> {
    state.lock().expect("a transition does not panic")
}

/// The format of saved trees.
const FORMAT: u8 = 2;
/// Partitions whose states are found by one look-up, and how many such look-ups there are: 65,536 partitions in all.
const CHUNK: usize = 256;
const CHUNKS: usize = 256;
/// How many superseded operations are remembered on a node: about 60 MB. That is the whole window at 430 overwrites a second, and 13 to
/// 26 seconds at 10,000, when a client's retries end after about a second by default.
const OPERATIONS_MAX: usize = 1 << 18;
/// How many more are shared out evenly, so that each partition may remember some when others have taken all the room: 15 MB at most.
const OPERATIONS_SHARED_OUT: usize = 1 << 16;
/// How many corrupt records are known one by one, about 4 MB. Beyond it each look at another one counts as a loss of its own, so that
/// a disk with more of them gives up its actors and begins its recovery again and again: it serves nothing wrong, and needs replacing.
const CORRUPT_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use quorate_wire::ids::{NodeId, OpId};

    use super::*;
    use crate::store::MemoryStore;
    use quorate_core::merkle::LEAVES;
    use quorate_core::partition::{Change, CopyKind, Event, RecordAt};
    use quorate_core::record::Dropped;
    use quorate_core::version::{Actor, Dot};

    const PARTITION: Partition = Partition(3);

    fn partitions() -> Partitions {
        let partitions = Partitions::default();
        partitions.set_count(8);
        partitions
    }

    /// One more superseded operation is remembered in a partition.
    fn supersede(partitions: &Partitions, partition: Partition, op: u128) -> Vec<Event> {
        let at = RecordAt { key: 1, place: 1, copy: CopyKind::Own(None) };
        let dot = Dot { actor: Actor { node: NodeId::new("n1").expect("legal"), incarnation: 1 }, counter: 1 };
        let dropped = Dropped { writes: vec![(dot, OpId(op))], ..Dropped::default() };
        let now = partitions.now();
        partitions.with(partition, |state, room| state.written(&at, Change::Nothing, dropped, now, room.operations()))
    }

    fn held(partitions: &Partitions, partition: Partition) -> usize {
        partitions.look(partition, |state| state.operations().len())
    }

    #[test]
    fn only_the_next_start_takes_the_trees_that_were_saved() {
        let store = MemoryStore::new();
        let saved = partitions();
        saved.with(PARTITION, |state, _| *state.tree_mut() = LiveTree::of(HashTree::empty()));
        saved.forget_sums(PARTITION, &[9].into_iter().collect());
        saved.save_trees(&store, 4).expect("room");
        for (boot, taken) in [(4, 0), (5, 1), (6, 0)] {
            let partitions = partitions();
            assert_eq!(partitions.load_trees(&store, boot), taken, "start {boot}");
            assert_eq!(partitions.unknown(PARTITION).len(), if taken == 1 { 1 } else { LEAVES });
        }
        assert_eq!(Partitions::default().load_trees(&store, 5), 0, "there is no layout yet");
        assert!(saved.with(PARTITION, |state, _| state.found_newer(9)));
        saved.save_trees(&store, 6).expect("room");
        assert_eq!(partitions().load_trees(&store, 7), 0, "what a newer release has written is looked for again");
        store.flip_bit(Tree::HashTree, &PARTITION.0.to_be_bytes());
        assert_eq!(partitions().load_trees(&store, 5), 0, "damage is not taken");
    }

    #[test]
    fn what_was_never_touched_begins_unknown() {
        let partitions = partitions();
        for partition in [PARTITION, Partition(8), Partition(u16::MAX)] {
            assert_eq!((partitions.unknown(partition), partitions.root(partition)), (Leaves::ALL, None));
            assert_eq!(partitions.groups(partition), vec![None; 16]);
            assert_eq!(partitions.leaves(partition, 3), vec![None; 16]);
        }
        assert_eq!(partitions.look_at_all(|partition, _| partition), [], "a look makes no state");
        for partition in [0, 255, 256, u16::MAX].map(Partition) {
            partitions.forget_sums(partition, &Leaves::ALL);
        }
        assert_eq!(partitions.look_at_all(|partition, _| partition), [0, 255, 256, u16::MAX].map(Partition));
    }

    #[test]
    #[should_panic(expected = "Q never changes")]
    fn the_number_of_partitions_never_changes() {
        partitions().set_count(9);
    }

    #[test]
    fn one_partition_may_take_all_the_room_for_operations_but_for_the_shares_of_others() {
        let partitions = partitions();
        let (busy, other, share) = (Partition(1), Partition(2), OPERATIONS_SHARED_OUT / 8);
        let early = |events: Vec<Event>| events.len();
        let evicted: usize = (0..OPERATIONS_MAX as u128 + 3).map(|op| early(supersede(&partitions, busy, op))).sum();
        assert_eq!((held(&partitions, busy), evicted), (OPERATIONS_MAX, 3));
        let evicted: usize = (0..share as u128 + 2).map(|op| early(supersede(&partitions, other, op))).sum();
        assert_eq!((held(&partitions, other), evicted), (share, 2));
        assert_eq!(partitions.operations(), (OPERATIONS_MAX + share) as u64);
        // No room is left, so that whoever has more than a share gives half of that back.
        let left = share + (OPERATIONS_MAX - share) / 2;
        assert_eq!(partitions.trim_operations(), (OPERATIONS_MAX - left) as u64);
        assert_eq!((held(&partitions, busy), held(&partitions, other)), (left, share));
        assert_eq!(partitions.trim_operations(), 0, "now there is room");
        assert_eq!(early(supersede(&partitions, other, 1 << 100)), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn operations_whose_time_is_over_give_their_room_back() {
        let partitions = partitions();
        supersede(&partitions, PARTITION, 1);
        tokio::time::advance(quorate_core::operations::OPERATION_WINDOW).await;
        assert_eq!((partitions.trim_operations(), partitions.operations()), (0, 0));
        assert_eq!(partitions.0.operations.load(Ordering::Relaxed), 0);
    }
}
