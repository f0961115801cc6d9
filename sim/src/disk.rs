//! A disk that can fail: what was synced survives a crash, of the rest a beginning does.
//!
//! ```text
//!   insert, remove ──> content (what reads see)
//!                  └─> unsynced: how to undo each, in order         sync: forget these
//!                                                                   crash: undo them from the end back to a drawn place
//! ```
//!
//! A disk that lies acknowledges a sync and keeps what was synced in its own memory: a process that dies loses nothing of it, a loss of
//! power all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_core::keyspace::key_of_data;
use quorate_node::store::{Identity, Opened, Space, Stats, Store, StoreError, Tree, WriteCount, Writes};
use quorate_wire::ids::{ClusterId, DiskId, NodeId};
use quorate_wire::random::Random;
use quorate_wire::{story, tell};
use serde::{Deserialize, Serialize};

/// A disk. It outlives the node's processes; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    random: Random,
}

/// How often what was done to a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounts {
    /// Crashes with the store open.
    pub crashes: u64,
    /// Inserts and removes that crashes undid.
    pub writes_lost: u64,
    /// Values that a crash cut in the middle.
    pub torn: u64,
    /// Values that were damaged.
    pub corrupted: u64,
    /// Syncs that failed.
    pub syncs_failed: u64,
    /// Inserts that failed.
    pub inserts_failed: u64,
    /// Writes that a full disk refused.
    pub full: u64,
    /// Writes that were acknowledged as synced and lost with the power.
    pub lied: u64,
}

/// What a crash does to what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Crash {
    /// A drawn number of the oldest writes survives.
    Clean,
    /// The same, and the next write after these reached the disk in part: its value fails its checksum.
    Torn,
}

/// A copy of a disk, to roll it back to.
#[derive(Debug, Clone)]
pub struct Image {
    content: Content,
    identity: Identity,
}

type Content = BTreeMap<(Tree, Bytes), Stored>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    value: Bytes,
    /// It would fail its checksum.
    damaged: bool,
}

struct State {
    content: Content,
    unsynced: Vec<Undo>,
    /// It lies about syncs: whose disk it was when that began, as a loss of power leaves it.
    lying: Option<Identity>,
    /// What it has said to be synced since, and is not: older than what is unsynced.
    claimed: Vec<Undo>,
    identity: Identity,
    /// Counts the times it was opened; a handle of another time is dead.
    opened: u64,
    open: bool,
    /// The process that has it open is done with it: reads go on, nothing is written any more.
    closed: bool,
    quarantined: Option<String>,
    bytes: u64,
    bytes_max: Option<u64>,
    fail_next_sync: bool,
    fail_next_insert: bool,
    /// After a failed sync nobody knows what is on the disk, and asking again proves nothing.
    sync_failed: bool,
    latency: Duration,
    counts: DiskCounts,
    /// The hints that were removed, if somebody wants to know.
    let_go: Option<Vec<(Bytes, Bytes)>>,
}

/// What a crash now would surely leave of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Durable {
    /// Nothing.
    Absent,
    /// A value that fails its checksum.
    Damaged,
    /// This value.
    Value(Bytes),
}

#[derive(Debug)]
struct Undo {
    slot: (Tree, Bytes),
    before: Option<Stored>,
}

impl SimDisk {
    /// An empty disk. `random` decides what crashes leave and draws the disks' names.
    pub fn new(cluster: ClusterId, node: NodeId, random: Random) -> Self {
        let identity = Identity { cluster, node, disk: DiskId(random.u128()), boot: 0, clean: true };
        let state = State {
            content: Content::new(),
            unsynced: Vec::new(),
            lying: None,
            claimed: Vec::new(),
            identity,
            opened: 0,
            open: false,
            closed: false,
            quarantined: None,
            bytes: 0,
            bytes_max: None,
            fail_next_sync: false,
            fail_next_insert: false,
            sync_failed: false,
            latency: Duration::ZERO,
            counts: DiskCounts::default(),
            let_go: None,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), random }))
    }

    /// Opens it, as a process does at its start.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another process has it open.
    pub fn open(&self) -> Result<Opened, StoreError> {
        let mut state = self.state();
        if state.open && !state.closed {
            return Err(StoreError::Locked(format!("of {}", state.identity.node)));
        }
        state.open = true;
        state.closed = false;
        state.opened += 1;
        state.identity.boot += 1;
        let identity = state.identity.clone();
        // It is unclean until it is closed.
        state.identity.clean = false;
        let quarantined = state.quarantined.clone();
        let (disk, opened, writes) = (self.clone(), state.opened, WriteCount::default());
        let store = SimStore { disk, opened, quarantined: quarantined.clone(), writes };
        Ok(Opened { store: Arc::new(store), identity, quarantined })
    }

    /// Whether a process has it open and has not closed it: what has to [`crash`](Self::crash) before the next can open it.
    pub fn is_open(&self) -> bool {
        let state = self.state();
        state.open && !state.closed
    }

    /// The process or its machine dies. Undoes nothing when the disk was closed before.
    pub fn crash(&self, crash: Crash) {
        let mut state = self.state();
        let was_open = state.open && !state.closed;
        state.open = false;
        if !was_open {
            return;
        }
        state.sync_failed = false;
        (state.fail_next_sync, state.fail_next_insert) = (false, false);
        state.counts.crashes += 1;
        let kept = self.0.random.below(state.unsynced.len() as u64 + 1) as usize;
        let lost = state.unsynced.split_off(kept);
        state.settle();
        state.counts.writes_lost += lost.len() as u64;
        let torn = (crash == Crash::Torn).then(|| lost.first().map(|undo| undo.slot.clone())).flatten();
        for Undo { slot, before } in lost.into_iter().rev() {
            state.tell(&slot, "loses a write that was not synced");
            state.put(slot, before);
        }
        if let Some(slot) = torn {
            state.counts.torn += 1;
            state.tell(&slot, "has a torn record");
            state.put(slot, Some(Stored { value: Bytes::from_static(b"torn"), damaged: true }));
        }
    }

    /// From now on it acknowledges syncs and keeps nothing of them, until it [loses power](Self::lose_power); or not any more: what it
    /// holds is durable then.
    pub fn set_lying(&self, lying: bool) {
        let mut state = self.state();
        if lying {
            let identity = state.identity.clone();
            state.lying.get_or_insert(identity);
        } else {
            state.lying = None;
            state.claimed.clear();
        }
    }

    /// Whether it lies about syncs.
    pub fn is_lying(&self) -> bool {
        self.state().lying.is_some()
    }

    /// The power fails, after its process was ended by that. A disk that has lied is as it was when that began, and lies no more.
    ///
    /// # Panics
    /// When it is open.
    pub fn lose_power(&self) {
        let mut state = self.state();
        assert!(!state.open || state.closed, "the process that has it open dies first");
        let Some(identity) = state.lying.take() else { return };
        state.identity = identity;
        let claimed = std::mem::take(&mut state.claimed);
        state.counts.lied += claimed.len() as u64;
        for Undo { slot, before } in claimed.into_iter().rev() {
            state.tell(&slot, "loses a write that its disk had said to be synced");
            state.put(slot, before);
        }
    }

    /// Damages one drawn value of a tree; says whether there was one.
    pub fn corrupt_one(&self, tree: Tree) -> bool {
        let mut state = self.state();
        let count = state.content.range(whole(tree)).count() as u64;
        if count == 0 {
            return false;
        }
        let at = self.0.random.below(count) as usize;
        let (slot, stored) = state.content.range_mut(whole(tree)).nth(at).expect("it was drawn from as many");
        stored.damaged = true;
        let slot = slot.clone();
        state.tell(&slot, "has a damaged record");
        state.counts.corrupted += 1;
        true
    }

    /// Damages the value of a key; says whether there is one.
    pub fn corrupt(&self, tree: Tree, key: &[u8]) -> bool {
        let mut state = self.state();
        let Some(stored) = state.content.get_mut(&(tree, Bytes::copy_from_slice(key))) else { return false };
        stored.damaged = true;
        state.counts.corrupted += 1;
        true
    }

    /// The next sync fails, and all after it until the process has ended.
    pub fn fail_next_sync(&self) {
        self.state().fail_next_sync = true;
    }

    /// Whether the next insert of a record fails; it is drawn whether the record is there all the same.
    pub fn set_fail_next_insert(&self, fail: bool) {
        self.state().fail_next_insert = fail;
    }

    /// How many bytes of keys and values it holds at most; nothing for a disk without end.
    pub fn set_bytes_max(&self, bytes_max: Option<u64>) {
        self.state().bytes_max = bytes_max;
    }

    /// How full it is.
    pub fn space(&self) -> Space {
        let state = self.state();
        let total = state.bytes_max.unwrap_or(u64::MAX);
        Space { free: total.saturating_sub(state.bytes), total }
    }

    /// How many bytes of keys and values it holds.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// How long each call takes. Calls are synchronous, so whoever runs them has to wait for so long before.
    pub fn set_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// See [`set_latency`](Self::set_latency).
    pub fn latency(&self) -> Duration {
        self.state().latency
    }

    /// A copy of what a crash now would surely leave: for [`roll_back`](Self::roll_back).
    pub fn image(&self) -> Image {
        let state = self.state();
        let mut content = state.content.clone();
        for Undo { slot, before } in state.claimed.iter().chain(&state.unsynced).rev() {
            match before {
                Some(stored) => content.insert(slot.clone(), stored.clone()),
                None => content.remove(slot),
            };
        }
        let identity = state.lying.as_ref().unwrap_or(&state.identity).clone();
        Image { content, identity }
    }

    /// Puts an older state back, name and start counter included, as an operator does with a backup.
    ///
    /// # Panics
    /// When it is open.
    pub fn roll_back(&self, image: &Image) {
        let mut state = self.state();
        assert!(!state.open || state.closed, "an open disk cannot be exchanged");
        state.open = false;
        state.identity = image.identity.clone();
        state.replace(image.content.clone());
    }

    /// An empty disk takes its place, with a name of its own.
    ///
    /// # Panics
    /// When it is open.
    pub fn wipe(&self) {
        let mut state = self.state();
        assert!(!state.open || state.closed, "an open disk cannot be exchanged");
        state.open = false;
        state.identity.disk = DiskId(self.0.random.u128());
        state.identity.boot = 0;
        state.identity.clean = true;
        state.quarantined = None;
        state.replace(Content::new());
    }

    /// Its content vanishes or cannot be read any more, and the next start notices that there was some.
    ///
    /// # Panics
    /// When it is open.
    pub fn lose_content(&self, why: &str) {
        let mut state = self.state();
        assert!(!state.open || state.closed, "an open disk cannot be exchanged");
        state.open = false;
        state.quarantined = Some(why.to_owned());
        state.replace(Content::new());
    }

    /// All that reads would find in a tree, without reading: for the judgement at the end of a life. Damaged values are left out.
    pub fn content(&self, tree: Tree) -> Vec<(Bytes, Bytes)> {
        let state = self.state();
        let intact = state.content.range(whole(tree)).filter(|(_, stored)| !stored.damaged);
        intact.map(|((_, key), stored)| (key.clone(), stored.value.clone())).collect()
    }

    /// What is durable under a key.
    pub fn durable(&self, tree: Tree, key: &[u8]) -> Durable {
        let state = self.state();
        let slot = (tree, Bytes::copy_from_slice(key));
        state.durable(&slot, state.content.get(&slot))
    }

    /// What a read of a key would find, without reading; nothing if that is damaged.
    pub fn present(&self, tree: Tree, key: &[u8]) -> Option<Bytes> {
        let state = self.state();
        let stored = state.content.get(&(tree, Bytes::copy_from_slice(key)));
        stored.filter(|stored| !stored.damaged).map(|stored| stored.value.clone())
    }

    /// What is durable in a tree, by key.
    pub fn durable_content(&self, tree: Tree) -> Vec<(Bytes, Durable)> {
        let state = self.state();
        let mut content: BTreeMap<&Bytes, Option<&Stored>> =
            state.content.range(whole(tree)).map(|((_, key), stored)| (key, Some(stored))).collect();
        let unsynced = state.claimed.iter().chain(&state.unsynced).rev().filter(|undo| undo.slot.0 == tree);
        content.extend(unsynced.map(|undo| (&undo.slot.1, undo.before.as_ref())));
        content.into_iter().map(|(key, stored)| (key.clone(), Durable::of(stored))).collect()
    }

    /// From now on notes the hints that are removed: for [`let_go`](Self::let_go), which is to be asked often then.
    pub fn watch_hints(&self) {
        self.state().let_go.get_or_insert_default();
    }

    /// The hints that were removed since it was last asked, with their values. Damaged ones are left out.
    pub fn let_go(&self) -> Vec<(Bytes, Bytes)> {
        self.state().let_go.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The keys of a tree whose values are damaged.
    pub fn damaged(&self, tree: Tree) -> Vec<Bytes> {
        let state = self.state();
        let damaged = state.content.range(whole(tree)).filter(|(_, stored)| stored.damaged);
        damaged.map(|((_, key), _)| key.clone()).collect()
    }

    /// What was done to it.
    pub fn counts(&self) -> DiskCounts {
        self.state().counts
    }

    /// Whose it is.
    pub fn identity(&self) -> Identity {
        self.state().identity.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere fails the run; every change under the lock is complete before anything can panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "SimDisk({}, {} entries)", state.identity.node, state.content.len())
    }
}

impl State {
    fn put(&mut self, slot: (Tree, Bytes), stored: Option<Stored>) -> Option<Stored> {
        let key_len = slot.1.len() as u64;
        let size = |stored: &Option<Stored>| stored.as_ref().map_or(0, |stored| key_len + stored.value.len() as u64);
        self.bytes += size(&stored);
        let before = match stored {
            Some(stored) => self.content.insert(slot, stored),
            None => self.content.remove(&slot),
        };
        self.bytes -= size(&before);
        before
    }

    /// What would be left of a slot that holds `now`.
    fn durable(&self, slot: &(Tree, Bytes), now: Option<&Stored>) -> Durable {
        let undone = self.claimed.iter().chain(&self.unsynced).find(|undo| undo.slot == *slot);
        Durable::of(undone.map_or(now, |undo| undo.before.as_ref()))
    }

    fn write(&mut self, slot: (Tree, Bytes), stored: Option<Stored>) {
        let before = self.put(slot.clone(), stored);
        self.unsynced.push(Undo { slot, before });
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        if std::mem::take(&mut self.fail_next_sync) {
            self.sync_failed = true;
            self.counts.syncs_failed += 1;
        }
        if self.sync_failed {
            return Err(StoreError::Io("sync: input/output error".to_owned()));
        }
        self.settle();
        Ok(())
    }

    /// What is not undone by then is durable, or said to be.
    fn settle(&mut self) {
        let settled = std::mem::take(&mut self.unsynced);
        if self.lying.is_some() {
            self.claimed.extend(settled);
        }
    }

    /// What became of a key's record, for the story of the key.
    fn tell(&self, (tree, key): &(Tree, Bytes), act: &str) {
        if *tree == Tree::Data {
            let key = key_of_data(key);
            let key = story::text(&key);
            tell!(act, %key, node = %self.identity.node);
        }
    }

    fn replace(&mut self, content: Content) {
        if story::is_told() {
            let gone = self.content.iter().filter(|(slot, stored)| content.get(slot) != Some(stored));
            for (slot, _) in gone {
                self.tell(slot, "loses what its disk held");
            }
        }
        self.bytes = content.iter().map(|((_, key), stored)| (key.len() + stored.value.len()) as u64).sum();
        self.content = content;
        self.unsynced.clear();
        // Another disk, which does not lie.
        (self.lying, self.claimed) = (None, Vec::new());
    }
}

/// The store as one process has it open.
#[derive(Debug)]
struct SimStore {
    disk: SimDisk,
    opened: u64,
    quarantined: Option<String>,
    writes: WriteCount,
}

impl SimStore {
    /// The disk, unless the process that opened it is dead: nothing that outlives a crash may touch the disk.
    fn state(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.disk.state();
        if !state.open || state.opened != self.opened {
            return Err(StoreError::Io("the process that opened this store has ended".to_owned()));
        }
        Ok(state)
    }

    /// The disk for a write or a sync.
    fn writable(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.state()?;
        if state.closed {
            return Err(StoreError::Io("the store is closed".to_owned()));
        }
        Ok(state)
    }

    fn not_quarantined(&self, tree: Tree) -> Result<(), StoreError> {
        match &self.quarantined {
            Some(why) if tree != Tree::Meta => Err(StoreError::Quarantined(why.clone())),
            _ => Ok(()),
        }
    }
}

impl Store for SimStore {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.not_quarantined(tree)?;
        let state = self.state()?;
        let stored = state.content.get(&(tree, Bytes::copy_from_slice(key)));
        stored.map(|stored| stored.read(tree, key)).transpose()
    }

    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.not_quarantined(tree)?;
        self.writes.count(|| {
            let mut state = self.writable()?;
            let more = (key.len() + value.len()) as u64;
            if state.bytes_max.is_some_and(|bytes_max| state.bytes + more > bytes_max) {
                state.counts.full += 1;
                return Err(StoreError::Full(format!("{} bytes are in use and {more} are needed", state.bytes)));
            }
            let fails = tree == Tree::Data && std::mem::take(&mut state.fail_next_insert);
            if !fails || self.disk.0.random.below(2) == 0 {
                let stored = Stored { value: Bytes::copy_from_slice(value), damaged: false };
                state.write((tree, Bytes::copy_from_slice(key)), Some(stored));
            }
            if fails {
                state.counts.inserts_failed += 1;
                return Err(StoreError::Io("insert: input/output error".to_owned()));
            }
            Ok(())
        })
    }

    fn remove(&self, tree: Tree, key: &[u8]) -> Result<(), StoreError> {
        self.not_quarantined(tree)?;
        self.writes.count(|| {
            let mut state = self.writable()?;
            let slot = (tree, Bytes::copy_from_slice(key));
            let held = state.content.get(&slot).filter(|held| tree == Tree::Hints && !held.damaged);
            let held = held.map(|held| (slot.1.clone(), held.value.clone()));
            if let Some(let_go) = &mut state.let_go {
                let_go.extend(held);
            }
            state.write(slot, None);
            Ok(())
        })
    }

    fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.not_quarantined(tree)?;
        let state = self.state()?;
        let mut found = Vec::new();
        let mut bytes = 0;
        let start = (tree, Bytes::copy_from_slice(from));
        for ((at, key), stored) in state.content.range((Bound::Included(start), Bound::Unbounded)) {
            let outside = *at != tree || to.is_some_and(|to| key.as_ref() >= to);
            if outside || found.len() >= limit || (bytes >= bytes_max && !found.is_empty()) {
                break;
            }
            let value = stored.read(tree, key)?;
            bytes += key.len() + value.len();
            found.push((key.clone(), value));
        }
        Ok(found)
    }

    fn keys(&self, tree: Tree, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        self.not_quarantined(tree)?;
        let state = self.state()?;
        let start = (tree, Bytes::copy_from_slice(from));
        let entries = state.content.range((Bound::Included(start), Bound::Unbounded)).map(|(slot, _)| slot);
        let inside = entries.take_while(|(at, key)| *at == tree && to.is_none_or(|to| key.as_ref() < to));
        Ok(inside.take(limit).map(|(_, key)| key.clone()).collect())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.writable()?.sync()
    }

    fn close(&self) -> Result<(), StoreError> {
        let mut state = self.state()?;
        if !state.closed {
            state.sync()?;
            state.closed = true;
            state.identity.clean = true;
        }
        Ok(())
    }

    fn writes(&self) -> Option<Writes> {
        Some(self.writes.get())
    }

    fn stats(&self) -> Stats {
        let state = self.disk.state();
        let records = state.content.range(whole(Tree::Data)).count() as u64;
        Stats { records_estimate: records, disk_bytes: state.bytes, engine: "simulated" }
    }
}

impl Durable {
    fn of(stored: Option<&Stored>) -> Self {
        match stored {
            None => Self::Absent,
            Some(Stored { damaged: true, .. }) => Self::Damaged,
            Some(Stored { value, .. }) => Self::Value(value.clone()),
        }
    }
}

impl Stored {
    fn read(&self, tree: Tree, key: &[u8]) -> Result<Bytes, StoreError> {
        if self.damaged {
            let key = tree.shown(key);
            return Err(StoreError::Corrupt(format!("the value of key {key} in tree {tree:?} fails its checksum")));
        }
        Ok(self.value.clone())
    }
}

fn whole(tree: Tree) -> impl std::ops::RangeBounds<(Tree, Bytes)> {
    let end = match tree {
        Tree::Data => Bound::Excluded((Tree::Hints, Bytes::new())),
        Tree::Hints => Bound::Excluded((Tree::Meta, Bytes::new())),
        Tree::Meta => Bound::Excluded((Tree::HashTree, Bytes::new())),
        Tree::HashTree => Bound::Unbounded,
    };
    (Bound::Included((tree, Bytes::new())), end)
}

#[cfg(test)]
mod tests {
    use quorate_node::store::contract::{self, Subject};

    use super::*;

    struct Simulated {
        disk: SimDisk,
        store: Arc<dyn Store>,
    }

    impl Subject for Simulated {
        fn store(&self) -> Arc<dyn Store> {
            self.store.clone()
        }
        fn reopen(&mut self) {
            self.disk.crash(Crash::Torn);
            self.store = open(&self.disk);
        }
        fn flip_bit(&self, tree: Tree, key: &[u8]) -> bool {
            self.disk.corrupt(tree, key)
        }
    }

    #[test]
    fn it_keeps_the_contract_of_every_engine() {
        contract::check(&mut || {
            let disk = disk(1);
            let store = open(&disk);
            Box::new(Simulated { disk, store })
        });
    }

    fn disk(seed: u64) -> SimDisk {
        SimDisk::new(ClusterId(1), NodeId::new("n1").expect("legal"), Random::from_seed(seed))
    }

    fn open(disk: &SimDisk) -> Arc<dyn Store> {
        disk.open().expect("it opens").store
    }

    #[test]
    fn a_disk_that_lies_loses_with_the_power_what_it_had_said_to_be_synced() {
        let disk = disk(1);
        let store = open(&disk);
        let insert = |store: &Arc<dyn Store>, i| {
            store.insert(Tree::Data, &key(i), b"value").expect("room");
            store.sync().expect("it says so");
        };
        insert(&store, 1);
        let before = disk.identity();
        disk.set_lying(true);
        insert(&store, 2);
        assert_eq!(disk.durable(Tree::Data, &key(2)), Durable::Absent);
        assert_eq!(disk.image().content.len(), 1);
        disk.crash(Crash::Clean);
        let store = open(&disk);
        assert_eq!(
            store.get(Tree::Data, &key(2)).expect("readable").as_deref(),
            Some(&b"value"[..]),
            "the power was on"
        );
        insert(&store, 3);
        disk.crash(Crash::Clean);
        disk.lose_power();
        assert_eq!((disk.identity(), disk.counts().lied, disk.is_lying()), (before, 2, false));
        let store = open(&disk);
        assert_eq!(store.keys(Tree::Data, &[], None, 9).expect("readable"), [&key(1)[..]]);
        insert(&store, 4);
        disk.crash(Crash::Clean);
        disk.lose_power();
        assert_eq!(disk.content(Tree::Data).len(), 2, "it has learnt to tell the truth");
    }

    #[test]
    fn a_disk_that_has_lied_and_is_flushed_loses_nothing() {
        let disk = disk(1);
        let store = open(&disk);
        disk.set_lying(true);
        store.insert(Tree::Data, &key(1), b"value").expect("room");
        store.sync().expect("it says so");
        disk.set_lying(false);
        assert_eq!(disk.durable(Tree::Data, &key(1)), Durable::Value(Bytes::from_static(b"value")));
        disk.crash(Crash::Clean);
        disk.lose_power();
        assert_eq!(disk.content(Tree::Data).len(), 1);
    }

    fn key(i: u32) -> [u8; 4] {
        i.to_be_bytes()
    }

    fn present(store: &dyn Store) -> Vec<u32> {
        let entries = store.scan(Tree::Data, &[], None, usize::MAX, usize::MAX).expect("a scan");
        entries.iter().map(|(key, _)| u32::from_be_bytes(key[..].try_into().expect("4 bytes"))).collect()
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_beginning_of_the_rest() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let disk = disk(seed);
            let store = open(&disk);
            (0..10).for_each(|i| store.insert(Tree::Data, &key(i), b"synced").expect("an insert"));
            store.sync().expect("a sync");
            (10..20).for_each(|i| store.insert(Tree::Data, &key(i), b"not").expect("an insert"));
            assert_eq!(present(&*store).len(), 20, "reads see everything before the crash");
            disk.crash(Crash::Clean);
            let found = present(&*open(&disk));
            assert!(found.len() >= 10, "seed {seed}: synced writes are lost");
            assert!(found.iter().copied().eq(0..found.len() as u32), "seed {seed}: not a beginning");
            lengths.insert(found.len());
        }
        assert!(lengths.len() > 5, "{lengths:?}");
    }

    #[test]
    fn what_is_durable_is_what_was_synced_last() {
        let disk = disk(1);
        let store = open(&disk);
        let value = |text: &'static [u8]| Durable::Value(Bytes::from_static(text));
        store.insert(Tree::Hints, b"a", b"1").expect("an insert");
        assert_eq!(disk.durable(Tree::Hints, b"a"), Durable::Absent);
        store.sync().expect("a sync");
        store.insert(Tree::Hints, b"a", b"2").expect("an insert");
        store.insert(Tree::Hints, b"a", b"3").expect("an insert");
        store.insert(Tree::Hints, b"b", b"1").expect("an insert");
        store.insert(Tree::Data, b"c", b"1").expect("an insert");
        assert_eq!(disk.durable(Tree::Hints, b"a"), value(b"1"));
        let content = [(b"a"[..].into(), value(b"1")), (b"b"[..].into(), Durable::Absent)];
        assert_eq!(disk.durable_content(Tree::Hints), content);
        store.remove(Tree::Hints, b"a").expect("a removal");
        assert_eq!(disk.durable(Tree::Hints, b"a"), value(b"1"));
        store.sync().expect("a sync");
        assert_eq!(disk.durable(Tree::Hints, b"a"), Durable::Absent);
        assert!(disk.corrupt(Tree::Hints, b"b"));
        assert_eq!(disk.durable_content(Tree::Hints), [(b"b"[..].into(), Durable::Damaged)]);
    }

    #[test]
    fn hints_that_are_let_go_are_noted_for_whoever_watches() {
        let disk = disk(1);
        let store = open(&disk);
        let write_and_remove = |tree| {
            store.insert(tree, b"a", b"1").expect("an insert");
            store.remove(tree, b"a").expect("a removal");
        };
        write_and_remove(Tree::Hints);
        assert_eq!(disk.let_go(), [], "nobody watches");
        disk.watch_hints();
        write_and_remove(Tree::Data);
        write_and_remove(Tree::Hints);
        assert_eq!(disk.let_go(), [(b"a"[..].into(), b"1"[..].into())]);
        assert_eq!(disk.let_go(), []);
    }

    #[test]
    fn a_crash_also_undoes_overwriting_and_removing() {
        let disk = disk(1);
        let store = open(&disk);
        store.insert(Tree::Data, b"a", b"1").expect("an insert");
        store.insert(Tree::Data, b"b", b"1").expect("an insert");
        store.sync().expect("a sync");
        let image = disk.image();
        loop {
            let store = disk.open().map_or_else(|_| store.clone(), |opened| opened.store);
            store.insert(Tree::Data, b"a", b"2").expect("an insert");
            store.remove(Tree::Data, b"b").expect("a removal");
            store.insert(Tree::Data, b"a", b"3").expect("an insert");
            let lost = disk.counts().writes_lost;
            disk.crash(Crash::Clean);
            if disk.counts().writes_lost - lost == 3 {
                break;
            }
            disk.roll_back(&image);
        }
        assert_eq!(disk.content(Tree::Data), [(b"a"[..].into(), b"1"[..].into()), (b"b"[..].into(), b"1"[..].into())]);
    }

    #[test]
    fn a_torn_value_is_corrupt_and_never_wrong() {
        let mut torn = 0;
        for seed in 0..40 {
            let disk = disk(seed);
            let store = open(&disk);
            (0..5).for_each(|i| store.insert(Tree::Data, &key(i), b"value").expect("an insert"));
            disk.crash(Crash::Torn);
            let store = open(&disk);
            for i in 0..5 {
                match store.get(Tree::Data, &key(i)) {
                    Ok(value) => assert!(value.is_none_or(|value| value == b"value"[..])),
                    Err(StoreError::Corrupt(why)) => {
                        assert!(why.contains("checksum"), "{why}");
                        torn += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            assert!(disk.counts().torn <= 1);
        }
        assert!(torn > 10, "{torn}");
    }

    #[test]
    fn nothing_that_outlives_a_crash_touches_the_disk() {
        let disk = disk(1);
        let old = open(&disk);
        assert!(matches!(disk.open(), Err(StoreError::Locked(_))));
        disk.crash(Crash::Clean);
        old.insert(Tree::Data, b"a", b"1").expect_err("its process is dead");
        let new = open(&disk);
        old.sync().expect_err("its process is dead");
        old.insert(Tree::Data, b"a", b"1").expect_err("its process is dead");
        assert_eq!(new.get(Tree::Data, b"a").expect("a read"), None);
    }

    #[test]
    fn boots_are_counted_and_a_clean_end_is_noted() {
        let disk = disk(1);
        let start = |disk: &SimDisk| disk.open().expect("it opens").identity;
        let first = disk.open().expect("it opens");
        assert_eq!((first.identity.boot, disk.identity().clean), (1, false));
        first.store.close().expect("a clean end");
        assert!(!disk.is_open());
        first.store.insert(Tree::Data, b"a", b"1").expect_err("it is closed");
        let second = start(&disk);
        assert_eq!((second.boot, second.clean), (2, true));
        disk.crash(Crash::Clean);
        let third = start(&disk);
        assert_eq!((third.boot, third.clean), (3, false));
        disk.crash(Crash::Clean);
        disk.wipe();
        let wiped = start(&disk);
        assert_eq!(wiped.boot, 1);
        assert_ne!(wiped.disk, third.disk);
    }

    #[test]
    fn a_failed_insert_is_there_or_not_and_the_next_one_succeeds() {
        let mut there = BTreeMap::new();
        for seed in 0..20 {
            let disk = disk(seed);
            let store = open(&disk);
            disk.set_fail_next_insert(true);
            store.insert(Tree::Meta, b"m", b"v").expect("only records are hit");
            store.insert(Tree::Data, b"k", b"v").expect_err("that was asked for");
            let found = store.get(Tree::Data, b"k").expect("reads go on");
            *there.entry(found.is_some()).or_insert(0) += 1;
            store.insert(Tree::Data, b"k", b"w").expect("once is enough");
            assert_eq!(disk.counts().inserts_failed, 1);
        }
        assert_eq!(there.len(), 2, "{there:?}");
    }

    #[test]
    fn a_failed_sync_stays_failed_and_promises_nothing() {
        let disk = disk(3);
        let store = open(&disk);
        store.insert(Tree::Data, b"a", b"1").expect("an insert");
        disk.fail_next_sync();
        store.sync().expect_err("this one fails");
        store.sync().expect_err("and so do all after it");
        store.close().expect_err("this is no clean end");
        assert!(!disk.identity().clean);
    }

    #[test]
    fn a_full_disk_refuses_and_keeps_what_it_has() {
        let disk = disk(4);
        let store = open(&disk);
        store.insert(Tree::Data, b"a", b"12345").expect("an insert");
        disk.set_bytes_max(Some(8));
        assert!(matches!(store.insert(Tree::Data, b"b", b"12345"), Err(StoreError::Full(_))));
        assert_eq!(store.get(Tree::Data, b"b").expect("a read"), None);
        store.remove(Tree::Data, b"a").expect("removing makes room");
        store.insert(Tree::Data, b"b", b"12345").expect("an insert");
        assert_eq!((disk.bytes(), disk.counts().full), (6, 1));
    }

    #[test]
    fn a_rolled_back_disk_is_as_it_was_with_its_name() {
        let disk = disk(5);
        let store = open(&disk);
        store.insert(Tree::Data, b"a", b"1").expect("an insert");
        store.sync().expect("a sync");
        store.insert(Tree::Data, b"b", b"1").expect("an insert, not synced");
        let image = disk.image();
        store.insert(Tree::Data, b"c", b"1").expect("an insert");
        store.sync().expect("a sync");
        disk.crash(Crash::Clean);
        disk.open().expect("a second life");
        disk.crash(Crash::Clean);
        disk.roll_back(&image);
        let opened = disk.open().expect("it opens");
        assert_eq!((opened.identity.boot, opened.identity.disk), (2, disk.identity().disk));
        assert_eq!(disk.content(Tree::Data), [(b"a"[..].into(), b"1"[..].into())]);
    }

    #[test]
    fn lost_content_is_noticed() {
        let disk = disk(6);
        let store = open(&disk);
        store.insert(Tree::Data, b"a", b"1").expect("an insert");
        store.close().expect("a clean end");
        disk.lose_content("the store is empty, but the sidecar says that it held data");
        let opened = disk.open().expect("it opens");
        assert!(opened.quarantined.is_some());
        assert!(matches!(opened.store.get(Tree::Data, b"a"), Err(StoreError::Quarantined(_))));
        assert_eq!(opened.store.get(Tree::Meta, b"a").expect("what the node knows of itself may be read"), None);
    }

    #[test]
    fn damage_is_noticed_by_gets_and_scans_and_mended_by_writing() {
        let disk = disk(7);
        let store = open(&disk);
        assert!(!disk.corrupt_one(Tree::Data));
        store.insert(Tree::Meta, b"x", b"1").expect("an insert");
        store.insert(Tree::Data, b"a", b"1").expect("an insert");
        assert!(disk.corrupt_one(Tree::Data));
        assert!(matches!(store.get(Tree::Data, b"a"), Err(StoreError::Corrupt(_))));
        assert!(matches!(store.scan(Tree::Data, &[], None, 9, 99), Err(StoreError::Corrupt(_))));
        assert!(store.get(Tree::Meta, b"x").expect("another tree").is_some());
        store.insert(Tree::Data, b"a", b"2").expect("an insert");
        assert_eq!(store.get(Tree::Data, b"a").expect("a read").as_deref(), Some(&b"2"[..]));
    }

    #[test]
    fn scans_keep_their_limits() {
        let disk = disk(8);
        let store = open(&disk);
        (0..10).for_each(|i| store.insert(Tree::Data, &key(i), b"1234").expect("an insert"));
        store.insert(Tree::Hints, b"h", b"1").expect("an insert");
        let count = |from: &[u8], to: Option<&[u8]>, limit, bytes_max| {
            store.scan(Tree::Data, from, to, limit, bytes_max).expect("a scan").len()
        };
        assert_eq!(count(&[], None, usize::MAX, usize::MAX), 10, "the other tree is not scanned");
        assert_eq!(count(&key(2), Some(&key(5)), usize::MAX, usize::MAX), 3);
        assert_eq!(count(&key(5), Some(&key(2)), usize::MAX, usize::MAX), 0);
        assert_eq!(count(&[], None, 4, usize::MAX), 4);
        assert_eq!(count(&[], None, usize::MAX, 0), 1);
        assert_eq!(count(&[], None, usize::MAX, 16), 2);
        assert_eq!(count(&[], None, 0, usize::MAX), 0);
    }
}
