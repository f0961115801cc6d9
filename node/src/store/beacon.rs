//! A number that grows on disk with every sync, so that others can tell a disk that was rolled back.
//!
//! It is written before a sync and counts as reached once the sync is done. It lies in two places by turns, so that a torn
//! write of one of them leaves the other.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Store, StoreError, Tree};

/// The beacon of one store.
#[derive(Debug)]
pub(crate) struct Beacon {
    /// The newest number that was written. Locked while one is, so that a later one is never overwritten by an earlier one.
    written: Mutex<u64>,
    durable: AtomicU64,
}

impl Beacon {
    /// Goes on from what the store holds. What cannot be read counts as not there.
    pub(crate) fn open(store: &dyn Store) -> Self {
        let read = |key| {
            let value = store.get(Tree::Meta, key).ok().flatten()?;
            Some(u64::from_be_bytes(value.as_ref().try_into().ok()?))
        };
        let found = KEYS.into_iter().filter_map(read).max().unwrap_or(0);
        Self { written: Mutex::new(found), durable: AtomicU64::new(found) }
    }

    /// Writes the next number; to be followed by a sync and [`reached`](Self::reached).
    ///
    /// # Errors
    /// When the store does not take it: then the sync goes without.
    pub(crate) fn write_next(&self, store: &dyn Store) -> Result<u64, StoreError> {
        let mut written = self.written.lock().expect("nothing panics while it is locked");
        let next = *written + 1;
        store.insert(Tree::Meta, KEYS[(next % 2) as usize], &next.to_be_bytes())?;
        *written = next;
        Ok(next)
    }

    /// This number is durable.
    pub(crate) fn reached(&self, number: u64) {
        self.durable.fetch_max(number, Ordering::SeqCst);
    }

    /// The highest number that is durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::SeqCst)
    }

    /// The next number is above this one.
    pub(crate) fn pass(&self, number: u64) {
        let mut written = self.written.lock().expect("nothing panics while it is locked");
        *written = number.max(*written);
    }
}

/// In [`Tree::Meta`], for even and odd numbers.
const KEYS: [&[u8]; 2] = [b"beacon/0", b"beacon/1"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn it_grows_over_restarts_and_survives_a_torn_write() {
        let store = MemoryStore::new();
        let beacon = Beacon::open(&store);
        for number in 1..=5 {
            assert_eq!(beacon.write_next(&store).expect("room"), number);
        }
        assert_eq!(beacon.durable(), 0, "not before a sync");
        beacon.reached(5);
        beacon.reached(4);
        assert_eq!((beacon.durable(), Beacon::open(&store).durable()), (5, 5));
        assert!(store.flip_bit(Tree::Meta, KEYS[1]));
        assert_eq!(Beacon::open(&store).durable(), 4);
        beacon.pass(90);
        assert_eq!(beacon.write_next(&store).expect("room"), 91);
        assert_eq!(Beacon::open(&store).durable(), 91);
    }
}
