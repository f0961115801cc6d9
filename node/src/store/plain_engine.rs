//! A second engine, for tests: maps in memory that a sync writes to a file as a whole. It shows that what the directory promises
//! does not come from sled, and what a new engine has to bring along.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;

use bytes::Bytes;

use super::engine::{Engine, EngineError, EngineTree, Entry, Refusal};
use super::sidecar;

/// See the module.
#[derive(Debug)]
pub(super) struct PlainEngine {
    file: PathBuf,
    trees: Mutex<Trees>,
    /// It fails by itself at the next sync, as sled can: that never comes back.
    fails: AtomicBool,
}

/// By the number of the tree and the key.
type Trees = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

impl PlainEngine {
    fn trees(&self) -> MutexGuard<'_, Trees> {
        self.trees.lock().expect("no panic while it is locked")
    }
}

impl Engine for PlainEngine {
    const NAME: &'static str = "plain";

    /// After how many bytes it is stamped.
    type Options = u64;

    fn stamp_bytes(options: &u64) -> u64 {
        *options
    }

    fn is_there(dir: &Path) -> io::Result<bool> {
        fs::metadata(dir.join("all")).map(|_| true)
    }

    fn open(dir: &Path, _options: &u64) -> Result<Self, Refusal> {
        let failed = |error| Refusal::of(EngineError::Io(error), dir);
        fs::create_dir_all(dir).map_err(failed)?;
        let file = dir.join("all");
        let trees = match fs::read(&file) {
            Ok(bytes) => rmp_serde::from_slice(&bytes).map_err(|error| Refusal::Damaged(error.to_string()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Trees::new(),
            Err(error) => return Err(failed(error)),
        };
        sidecar::sync_dir(dir).map_err(failed)?;
        Ok(Self { file, trees: Mutex::new(trees), fails: AtomicBool::new(false) })
    }

    fn get(&self, tree: EngineTree, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.trees().get(&(tree.index(), key.to_vec())).map(|value| Bytes::copy_from_slice(value)))
    }

    fn insert(&self, tree: EngineTree, key: &[u8], value: Vec<u8>) -> Result<bool, EngineError> {
        self.fails.fetch_or(key == FAILS_KEY, Ordering::SeqCst);
        Ok(self.trees().insert((tree.index(), key.to_vec()), value).is_some())
    }

    fn remove(&self, tree: EngineTree, key: &[u8]) -> Result<bool, EngineError> {
        Ok(self.trees().remove(&(tree.index(), key.to_vec())).is_some())
    }

    fn range(&self, tree: EngineTree, from: &[u8], to: Option<&[u8]>) -> impl Iterator<Item = Entry> {
        let end = match to {
            Some(to) => Bound::Excluded((tree.index(), to.to_vec())),
            None => Bound::Excluded((tree.index() + 1, Vec::new())),
        };
        let entries: Vec<Entry> = self
            .trees()
            .range((Bound::Included((tree.index(), from.to_vec())), end))
            .map(|((_, key), value)| Ok((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))))
            .collect();
        entries.into_iter()
    }

    fn keys(
        &self,
        tree: EngineTree,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<Bytes, EngineError>> {
        self.range(tree, from, to).map(|entry| entry.map(|(key, _)| key))
    }

    fn sync(&self) -> Result<(), EngineError> {
        while self.fails.load(Ordering::SeqCst) {
            thread::park();
        }
        let bytes = rmp_serde::to_vec(&*self.trees()).expect("maps of bytes have a form");
        let new = self.file.with_extension("new");
        fs::write(&new, bytes)
            .and_then(|()| fs::File::open(&new)?.sync_all())
            .and_then(|()| fs::rename(&new, &self.file))
            .map_err(EngineError::Io)
    }

    fn check(&self) -> Result<(), EngineError> {
        match self.fails.load(Ordering::SeqCst) {
            true => Err(EngineError::Io(io::ErrorKind::StorageFull.into())),
            false => Ok(()),
        }
    }

    fn disk_bytes(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |file| file.len())
    }
}

/// Whoever writes it makes the engine fail.
const FAILS_KEY: &[u8] = b"fails";

mod tests {
    use quorate_wire::ids::{ClusterId, NodeId};
    use quorate_wire::random::Random;

    use super::*;
    use crate::store::contract;
    use crate::store::directory::{self, tests::OnDisk};
    use crate::store::{Opened, StoreError, Tree};

    fn open_in(dir: &Path) -> Opened {
        let node = NodeId::new("n1").expect("legal");
        directory::open::<PlainEngine>(dir, ClusterId(1), node, &Random::from_seed(1), &STAMP_BYTES, || ())
            .expect("it opens")
    }

    const STAMP_BYTES: u64 = 1 << 10;

    #[test]
    fn another_engine_keeps_the_contract() {
        contract::check(&mut || Box::new(OnDisk::<PlainEngine>::new(STAMP_BYTES)));
    }

    #[test]
    fn a_sync_that_never_comes_back_ends_with_what_the_engine_has_met_meanwhile() {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = open_in(dir.path());
        opened.store.insert(Tree::Meta, FAILS_KEY, b"").expect("room");
        let error = opened.store.sync().expect_err("it never comes back");
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        let refused = opened.store.insert(Tree::Data, b"k", b"v").expect_err("after a failed sync");
        assert!(matches!(refused, StoreError::Full(_)), "{refused}");
    }

    #[test]
    fn an_older_copy_of_another_engine_is_set_aside_and_the_next_one_quarantined() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("plain/all");
        let opened = open_in(dir.path());
        opened.store.insert(Tree::Data, b"k", b"v").expect("room");
        opened.store.sync().expect("synced");
        let old = fs::read(&file).expect("written");
        opened.store.insert(Tree::Data, b"k", &[7; 2 << 10]).expect("room");
        opened.store.sync().expect("synced, and stamped");
        let disk = opened.identity.disk;
        drop(opened);

        fs::write(&file, &old).expect("room");
        let opened = open_in(dir.path());
        assert_eq!((opened.quarantined, opened.identity.disk == disk), (None, false), "it begins anew");
        assert_eq!(opened.store.get(Tree::Data, b"k").expect("empty"), None);
        assert!(dir.path().join("plain.damaged/all").exists(), "the evidence is kept");
        drop(opened.store);

        fs::write(&file, b"noise").expect("room");
        let opened = open_in(dir.path());
        let reason = opened.quarantined.expect("noticed");
        assert!(reason.contains("plain.damaged away and start again"), "{reason}");
        assert!(matches!(opened.store.get(Tree::Data, b"k"), Err(StoreError::Quarantined(_))));
    }
}
