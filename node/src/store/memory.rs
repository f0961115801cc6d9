//! An engine without a disk: for `quorate dev`, and for tests.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::envelope;
use super::{Stats, Store, StoreError, Tree, WriteCount, Writes};

/// Ordered maps in memory. Clones share one content, so that a node which is stopped and started inside one process finds
/// its data again; the end of the process loses all of it, and so does nothing else.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Values are kept sealed, so that a read is checked here like anywhere else.
    trees: [Mutex<Map>; Tree::ALL.len()],
    writes: WriteCount,
}

#[derive(Debug, Default)]
struct Map {
    entries: BTreeMap<Bytes, Bytes>,
    bytes: u64,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Flips one bit of a stored value, to show that reads notice. False when there is no such key.
    #[cfg(any(test, feature = "testing"))]
    pub fn flip_bit(&self, tree: Tree, key: &[u8]) -> bool {
        let mut map = self.map(tree);
        let Some(sealed) = map.entries.get_mut(key) else { return false };
        let mut raw = sealed.to_vec();
        *raw.last_mut().expect("a sealed value is at least a checksum long") ^= 1;
        *sealed = raw.into();
        true
    }

    fn map(&self, tree: Tree) -> MutexGuard<'_, Map> {
        // Every change under the lock is complete before anything can panic.
        self.shared.trees[tree.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let sealed = self.map(tree).entries.get(key).cloned();
        sealed.map(|sealed| open(tree, key, &sealed)).transpose()
    }

    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let sealed = Bytes::from(envelope::seal(tree, key, value));
        self.shared.writes.count(|| {
            let mut map = self.map(tree);
            map.bytes += (key.len() + sealed.len()) as u64;
            if let Some(old) = map.entries.insert(Bytes::copy_from_slice(key), sealed) {
                map.bytes -= (key.len() + old.len()) as u64;
            }
        });
        Ok(())
    }

    fn remove(&self, tree: Tree, key: &[u8]) -> Result<(), StoreError> {
        self.shared.writes.count(|| {
            let mut map = self.map(tree);
            if let Some(old) = map.entries.remove(key) {
                map.bytes -= (key.len() + old.len()) as u64;
            }
        });
        Ok(())
    }

    fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        let map = self.map(tree);
        for (key, sealed) in
            map.entries.range::<[u8], _>((Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded)))
        {
            if found.len() >= limit || (bytes >= bytes_max && !found.is_empty()) {
                break;
            }
            let value = open(tree, key, sealed)?;
            bytes += key.len() + value.len();
            found.push((key.clone(), value));
        }
        Ok(found)
    }

    fn keys(&self, tree: Tree, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let map = self.map(tree);
        let range = (Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded));
        Ok(map.entries.range::<[u8], _>(range).take(limit).map(|(key, _)| key.clone()).collect())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn writes(&self) -> Option<Writes> {
        Some(self.shared.writes.get())
    }

    fn stats(&self) -> Stats {
        let records_estimate = self.map(Tree::Data).entries.len() as u64;
        let disk_bytes = Tree::ALL.iter().map(|tree| self.map(*tree).bytes).sum();
        Stats { records_estimate, disk_bytes, engine: "memory" }
    }
}

/// Checks a sealed value and shares its bytes.
fn open(tree: Tree, key: &[u8], sealed: &Bytes) -> Result<Bytes, StoreError> {
    envelope::open(tree, key, sealed).map(|value| sealed.slice_ref(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{self, Subject};

    struct Memory(MemoryStore);

    impl Subject for Memory {
        fn store(&self) -> Arc<dyn Store> {
            Arc::new(self.0.clone())
        }
        fn reopen(&mut self) {
            self.0 = self.0.clone();
        }
        fn flip_bit(&self, tree: Tree, key: &[u8]) -> bool {
            self.0.flip_bit(tree, key)
        }
    }

    #[test]
    fn memory_keeps_the_contract() {
        contract::check(&mut || Box::new(Memory(MemoryStore::new())));
    }

    #[test]
    fn clones_share_one_content() {
        let store = MemoryStore::new();
        let again = store.clone();
        store.insert(Tree::Data, b"k", b"v").expect("memory takes everything");
        drop(store);
        assert_eq!(again.get(Tree::Data, b"k").expect("intact").as_deref(), Some(&b"v"[..]));
    }

    #[test]
    fn bytes_are_those_of_what_is_there() {
        let store = MemoryStore::new();
        assert_eq!(store.stats().disk_bytes, 0);
        store.insert(Tree::Data, b"k", &[0; 100]).expect("memory takes everything");
        store.insert(Tree::Data, b"k", &[0; 10]).expect("memory takes everything");
        assert_eq!(store.stats().disk_bytes, 1 + 10 + envelope::OVERHEAD as u64);
        store.remove(Tree::Data, b"k").expect("memory takes everything");
        assert_eq!(store.stats().disk_bytes, 0);
    }
}
