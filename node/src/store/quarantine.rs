//! The store of a node whose data must not be trusted.

use bytes::Bytes;

use super::{Stats, Store, StoreError, Tree};

/// Stands in for a damaged store, so that the node can come up, say why it does not serve, and be asked about it.
///
/// It knows nothing and takes nothing: reads of records and hints fail, because "not found" would be a guess; metadata reads
/// as empty; every write fails. Since nothing can be inserted, a sync has nothing to do and succeeds. The damaged files are
/// not touched any more.
#[derive(Debug)]
pub struct QuarantinedStore {
    reason: String,
}

impl QuarantinedStore {
    /// A store that answers with this reason.
    pub fn new(reason: String) -> Self {
        Self { reason }
    }

    fn refuse<T>(&self) -> Result<T, StoreError> {
        Err(StoreError::Quarantined(self.reason.clone()))
    }
}

impl Store for QuarantinedStore {
    fn get(&self, tree: Tree, _key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match tree {
            Tree::Data | Tree::Hints | Tree::HashTree => self.refuse(),
            Tree::Meta => Ok(None),
        }
    }

    fn insert(&self, _tree: Tree, _key: &[u8], _value: &[u8]) -> Result<(), StoreError> {
        self.refuse()
    }

    fn remove(&self, _tree: Tree, _key: &[u8]) -> Result<(), StoreError> {
        self.refuse()
    }

    fn scan(
        &self,
        tree: Tree,
        _from: &[u8],
        _to: Option<&[u8]>,
        _limit: usize,
        _bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        match tree {
            Tree::Data | Tree::Hints | Tree::HashTree => self.refuse(),
            Tree::Meta => Ok(Vec::new()),
        }
    }

    fn keys(&self, tree: Tree, _from: &[u8], _to: Option<&[u8]>, _limit: usize) -> Result<Vec<Bytes>, StoreError> {
        match tree {
            Tree::Data | Tree::Hints | Tree::HashTree => self.refuse(),
            Tree::Meta => Ok(Vec::new()),
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn stats(&self) -> Stats {
        Stats { records_estimate: 0, disk_bytes: 0, engine: "quarantined" }
    }
}
