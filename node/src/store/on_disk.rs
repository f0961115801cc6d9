//! The store over an engine on disk: what an engine lacks for a promise that holds through a power cut.
//!
//! - Every value is sealed with a checksum over its tree, its key and itself (see [`envelope`]).
//! - The sidecar knows of data before the first record is in, and of a **stamp** that must be found in the engine (see [`sidecar`]).
//! - The first write or sync that fails is the last one that is tried. Syncs run on a thread of their own which is waited for with a
//!   bound, and after a failure the engine is never dropped: its end may wait for ever for what has failed. The process has to end, which
//!   is what a failed sync means anyway.
//! - A panic in the engine is an error, and a call that does not come back for a minute ends the process (see [`Watch`]).
//! - Records are counted here.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use quorate_wire::ids::DiskId;

use super::engine::{Engine, EngineError, EngineTree, panic_text};
use super::envelope;
use super::sidecar::{self, Content};
use super::stuck::Watch;
use super::{Stats, Store, StoreError, Tree, WriteCount, Writes};

/// An engine with checksums, counts and a sidecar. Made by [`open`](super::directory::open).
#[derive(Debug)]
pub(super) struct DiskStore<E: Engine> {
    core: Arc<Core<E>>,
    syncer: Option<Syncer>,
}

impl<E: Engine> DiskStore<E> {
    /// `lock` is that of the directory; the engine holds what `content` says.
    pub(super) fn start(
        dir: &Path,
        engine: E,
        content: Content,
        stamp_bytes: u64,
        lock: File,
    ) -> Result<Self, StoreError> {
        let failed = |e: &io::Error| StoreError::from_io(&format!("opening {}", dir.display()), e);
        let core = Arc::new(Core {
            has_data: AtomicBool::new(content.has_data),
            records: AtomicI64::new(i64::try_from(content.records).unwrap_or(0)),
            sidecar: Mutex::new(content),
            writes: WriteCount::default(),
            unstamped_bytes: AtomicU64::new(0),
            stamp_bytes: stamp_bytes.max(1),
            closed: AtomicBool::new(false),
            failed: OnceLock::new(),
            engine,
            watch: Watch::start(format!("a call into the store in {}", dir.display())),
            dir: dir.to_owned(),
            _lock: lock,
        });
        sidecar::sync_dir(dir).map_err(|e| failed(&e))?;
        core.stamp(false)?;

        let (requests, queue) = sync_channel(SYNCS_WAITING_MAX);
        let thread = thread::Builder::new()
            .name("quorate-sync".to_owned())
            .spawn({
                let core = Arc::clone(&core);
                move || core.serve_syncs(&queue)
            })
            .map_err(|e| failed(&e))?;
        Ok(Self { core, syncer: Some(Syncer { requests, thread }) })
    }

    fn request(&self, work: Work) -> Result<(), StoreError> {
        self.core.check_writable()?;
        let syncer = self.syncer.as_ref().expect("the thread is taken by drop only");
        let (reply, result) = sync_channel(1);
        // The thread ends early only after a failure, and then says so below.
        let _ = syncer.requests.send(Request { work, reply });
        for _ in 0..SYNC_WAITS_MAX {
            match result.recv_timeout(SYNC_WAIT) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.core.check_failed()?;
                    self.core.check_engine()?;
                }
            }
        }
        let waited = SYNC_WAIT * SYNC_WAITS_MAX;
        Err(self
            .core
            .fail(StoreError::Io(format!("a sync of {} did not end within {waited:?}", self.core.dir.display()))))
    }

    /// Flips one bit of a stored value, to show that reads notice. False when there is no such key.
    #[cfg(test)]
    pub(super) fn flip_bit(&self, tree: Tree, key: &[u8]) -> bool {
        let (engine, tree) = (&self.core.engine, EngineTree::Store(tree));
        let Some(sealed) = engine.get(tree, key).expect("the engine reads") else { return false };
        let mut sealed = sealed.to_vec();
        *sealed.last_mut().expect("a sealed value is at least a checksum long") ^= 1;
        engine.insert(tree, key, sealed).expect("the engine writes");
        true
    }
}

impl<E: Engine> Store for DiskStore<E> {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let sealed = self.core.guard("reading", || self.core.engine.get(EngineTree::Store(tree), key))?;
        sealed.map(|sealed| open_value(tree, key, sealed)).transpose()
    }

    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let sealed = envelope::seal(tree, key, value);
        self.core.check_writable()?;
        if tree == Tree::Data && !self.core.has_data.load(Ordering::SeqCst) {
            self.core.note_first_data()?;
        }
        let bytes = (key.len() + sealed.len()) as u64;
        let replaced = self.core.write("writing", || self.core.engine.insert(EngineTree::Store(tree), key, sealed))?;
        if tree == Tree::Data && !replaced {
            self.core.records.fetch_add(1, Ordering::Relaxed);
        }
        self.core.unstamped_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn remove(&self, tree: Tree, key: &[u8]) -> Result<(), StoreError> {
        self.core.check_writable()?;
        let was_there = self.core.write("removing", || self.core.engine.remove(EngineTree::Store(tree), key))?;
        if tree == Tree::Data && was_there {
            self.core.records.fetch_sub(1, Ordering::Relaxed);
        }
        self.core.unstamped_bytes.fetch_add(key.len() as u64, Ordering::Relaxed);
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
        let mut entries = self.core.engine.range(EngineTree::Store(tree), from, to);
        let mut found = Vec::new();
        let mut bytes = 0;
        while found.len() < limit && (bytes < bytes_max || found.is_empty()) {
            let Some((key, sealed)) = self.core.guard("scanning", || entries.next().transpose())? else { break };
            let value = open_value(tree, &key, sealed)?;
            bytes += key.len() + value.len();
            found.push((key, value));
        }
        Ok(found)
    }

    fn keys(&self, tree: Tree, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let mut keys = self.core.engine.keys(EngineTree::Store(tree), from, to);
        let mut found = Vec::new();
        while found.len() < limit {
            let Some(key) = self.core.guard("scanning", || keys.next().transpose())? else { break };
            found.push(key);
        }
        Ok(found)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.request(Work::Sync)
    }

    fn close(&self) -> Result<(), StoreError> {
        if self.core.closed.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.request(Work::Close)
    }

    fn writes(&self) -> Option<Writes> {
        Some(self.core.writes.get())
    }

    fn stats(&self) -> Stats {
        Stats {
            records_estimate: u64::try_from(self.core.records.load(Ordering::Relaxed)).unwrap_or(0),
            disk_bytes: self.core.engine.disk_bytes(),
            engine: E::NAME,
        }
    }
}

impl<E: Engine> Drop for DiskStore<E> {
    fn drop(&mut self) {
        let Some(Syncer { requests, thread }) = self.syncer.take() else { return };
        drop(requests);
        if self.core.failed.get().is_none() {
            // Its panics are caught; and the engine is closed when this returns, so that the directory can be opened again.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Syncer {
    requests: SyncSender<Request>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Request {
    work: Work,
    reply: SyncSender<Result<(), StoreError>>,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Sync,
    Close,
}

/// What the store and its sync thread share. Fields are dropped in order: the lock last.
#[derive(Debug)]
struct Core<E> {
    has_data: AtomicBool,
    records: AtomicI64,
    sidecar: Mutex<Content>,
    writes: WriteCount,
    unstamped_bytes: AtomicU64,
    stamp_bytes: u64,
    closed: AtomicBool,
    failed: OnceLock<StoreError>,
    engine: E,
    dir: PathBuf,
    watch: Watch,
    _lock: File,
}

impl<E: Engine> Core<E> {
    /// Runs a call into the engine; a panic in it (which is how sled meets some kinds of damage) is an error.
    fn guard<T>(&self, what: &str, call: impl FnOnce() -> Result<T, EngineError>) -> Result<T, StoreError> {
        let what = || format!("{what} in {}", self.dir.display());
        match catch_unwind(AssertUnwindSafe(|| self.watch.call(call))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(error.into_store_error(&what())),
            Err(panic) => {
                Err(StoreError::Corrupt(format!("{}: {} panicked: {}", what(), E::NAME, panic_text(&*panic))))
            }
        }
    }

    /// A write: the first one that fails is the last one that is tried.
    fn write<T>(&self, what: &str, call: impl FnOnce() -> Result<T, EngineError>) -> Result<T, StoreError> {
        self.writes.count(|| self.guard(what, call)).map_err(|error| self.fail(error))
    }

    fn check_failed(&self) -> Result<(), StoreError> {
        self.failed.get().cloned().map_or(Ok(()), Err)
    }

    /// Whether the engine has failed by itself, so that a sync may wait for it in vain.
    fn check_engine(&self) -> Result<(), StoreError> {
        let what = || format!("syncing {}", self.dir.display());
        self.engine.check().map_err(|error| self.fail(error.into_store_error(&what())))
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        self.check_failed()?;
        if self.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Io(format!("{} has been closed; nothing was written", self.dir.display())));
        }
        Ok(())
    }

    /// Notes the first failure and gives back the error to report.
    fn fail(&self, error: StoreError) -> StoreError {
        if self.failed.set(error.clone()).is_ok() {
            tracing::error!(%error, "storage failed; nothing is written any more");
        }
        error
    }

    /// Makes the sidecar say, durably, that there is data, before the first of it is inserted.
    fn note_first_data(&self) -> Result<(), StoreError> {
        let mut content = self.content();
        if !content.has_data {
            let noted = Content { has_data: true, ..content.clone() };
            sidecar::write(&self.dir, &noted)?;
            *content = noted;
        }
        self.has_data.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // It is replaced as a whole.
        self.sidecar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_syncs(self: Arc<Self>, queue: &Receiver<Request>) {
        while let Ok(Request { work, reply }) = queue.recv() {
            let done = self.check_writable().and_then(|()| {
                catch_unwind(AssertUnwindSafe(|| match work {
                    Work::Sync => self.sync_and_stamp(),
                    Work::Close => {
                        // Writes that begin from here on are refused, and those that have returned are in this sync.
                        self.closed.store(true, Ordering::SeqCst);
                        self.stamp(true)
                    }
                }))
                .unwrap_or_else(|panic| Err(StoreError::Io(format!("{} panicked: {}", E::NAME, panic_text(&*panic)))))
                .map_err(|error| self.fail(error))
            });
            // Whoever asked may have given up.
            let _ = reply.send(done);
        }
        if self.failed.get().is_some() {
            // Its end may flush (sled's does), which can hang for ever now.
            std::mem::forget(self);
        }
    }

    fn sync_and_stamp(&self) -> Result<(), StoreError> {
        self.sync_engine()?;
        if self.unstamped_bytes.load(Ordering::Relaxed) >= self.stamp_bytes {
            self.stamp(false)?;
        }
        Ok(())
    }

    /// Not watched: whoever asked waits for it with a bound of its own.
    fn sync_engine(&self) -> Result<(), StoreError> {
        self.engine.sync().map_err(|error| error.into_store_error(&format!("syncing {}", self.dir.display())))
    }

    /// Writes the next stamp into the engine, syncs, then notes it in the sidecar.
    fn stamp(&self, clean: bool) -> Result<(), StoreError> {
        self.unstamped_bytes.store(0, Ordering::Relaxed);
        let mut next = self.content().clone();
        next.stamp += 1;
        let value = stamp_value(next.disk, next.stamp);
        self.guard("stamping", || self.engine.insert(EngineTree::Directory, STAMP_KEY, value))?;
        self.sync_engine()?;
        let mut content = self.content();
        // A first record may have been noted meanwhile.
        next.has_data = content.has_data;
        next.records = u64::try_from(self.records.load(Ordering::Relaxed)).unwrap_or(0);
        next.clean = clean;
        if clean {
            let first = || self.engine.keys(EngineTree::Store(Tree::Data), b"", None).next().transpose();
            next.has_data = self.guard("reading", first)?.is_some();
        }
        sidecar::write(&self.dir, &next)?;
        *content = next;
        Ok(())
    }
}

fn open_value(tree: Tree, key: &[u8], sealed: Bytes) -> Result<Bytes, StoreError> {
    envelope::open(tree, key, &sealed)?;
    Ok(sealed.slice(envelope::OVERHEAD..))
}

fn stamp_value(disk: DiskId, stamp: u64) -> Vec<u8> {
    let mut value = disk.0.to_be_bytes().to_vec();
    value.extend_from_slice(&stamp.to_be_bytes());
    envelope::seal_tagged(ENGINE_TAG, STAMP_KEY, &value)
}

/// The disk and the number of a stamp, if it is whole.
pub(super) fn open_stamp(sealed: &[u8]) -> Option<(DiskId, u64)> {
    let value = envelope::open_tagged(ENGINE_TAG, STAMP_KEY, sealed)?;
    let (disk, stamp) = value.split_first_chunk::<16>()?;
    Some((DiskId(u128::from_be_bytes(*disk)), u64::from_be_bytes(stamp.try_into().ok()?)))
}

/// Stands for the directory's own tree in checksums.
const ENGINE_TAG: u8 = 0xff;

/// Where the stamp stands in [`EngineTree::Directory`].
pub(super) const STAMP_KEY: &[u8] = b"stamp";

/// Callers of sync that wait for a place; beyond it they wait without one. At least as many as there are storage threads.
const SYNCS_WAITING_MAX: usize = 64;

/// A minute in all, with a look at whether the store has failed in between: a disk that takes longer for one sync has failed.
const SYNC_WAITS_MAX: u32 = 600;
const SYNC_WAIT: Duration = Duration::from_millis(100);
