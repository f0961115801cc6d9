//! What a node keeps: an ordered map on disk behind one small seam, the threads that blocking calls run on, and the
//! group commit that makes inserts durable.
//!
//! ```text
//!   replica ── Executor::run(insert) ──> Store ── engine (sled, memory, the simulator's disk)
//!      │                                   ^
//!      └── Committer::ticket().durable() ──┘ sync: one for everybody who waits
//! ```
//!
//! There is no atomicity across keys: whoever writes a record and something derived from it writes the record first, so
//! that derived state can be behind the data (and is repaired by a scan) but never ahead of it.

pub mod ballast;
pub mod envelope;

mod directory;
mod engine;
pub mod memory;
mod on_disk;
#[cfg(test)]
mod plain_engine;
pub mod quarantine;
pub mod room;
pub mod sidecar;
pub mod sled;
mod stuck;

mod beacon;
pub mod committer;
pub mod executor;
mod private;

#[cfg(any(test, feature = "testing"))]
pub mod contract;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_core::keyspace;
use quorate_wire::ids::{ClusterId, DiskId, NodeId};
use quorate_wire::story;

pub use committer::{Committer, Durability, SyncFailed, Ticket};
pub use executor::{Executor, Latency, Threads};
pub use memory::MemoryStore;
pub use room::{AskSpace, DiskReserve, DiskRoom, Space};
pub use sled::{SledOptions, check_ours, open, open_once_locked};

/// The separate key spaces of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tree {
    /// Records; a partition is one sequential scan. Where: [`quorate_core::keyspace`].
    Data,
    /// Writes kept for others; those for one node are one scan. Where: [`quorate_core::keyspace`].
    Hints,
    /// What the node knows of itself and its cluster: layouts, for example.
    Meta,
    /// Hash-tree leaves, derived from the data.
    HashTree,
}

impl Tree {
    /// Every tree.
    pub const ALL: [Self; 4] = [Self::Data, Self::Hints, Self::Meta, Self::HashTree];

    /// The byte that stands for this tree in checksums; fixed for ever.
    pub(crate) const fn tag(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Hints => 2,
            Self::Meta => 3,
            Self::HashTree => 4,
        }
    }

    /// The tree's name on disk; fixed for ever.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Hints => "hints",
            Self::Meta => "meta",
            Self::HashTree => "tree",
        }
    }

    /// What lies at a place, for people: the user's key of a record or a hint, and the bytes in other trees.
    pub fn shown(self, place: &[u8]) -> String {
        let place = Bytes::copy_from_slice(place);
        match self {
            Self::Data => match keyspace::key_of_data(&place) {
                key if key.is_empty() => place.escape_ascii().to_string(),
                key => story::text(&key).to_string(),
            },
            Self::Hints => match keyspace::target_and_key_of_hint(&place) {
                Some((target, key)) => format!("{} kept for {target}", story::text(&key)),
                None => place.escape_ascii().to_string(),
            },
            Self::Meta | Self::HashTree => place.escape_ascii().to_string(),
        }
    }

    pub(crate) const fn index(self) -> usize {
        self.tag() as usize - 1
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An ordered map with a few trees. Blocking; may be called from any thread at once.
///
/// Every value carries a CRC32C over its tree, its key and itself (see [`envelope`]), so that a damaged or misplaced value
/// is [`StoreError::Corrupt`] and never a wrong answer. One contract suite (`contract`) holds every engine to the same
/// behaviour.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// The value of a key, `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when there is one that fails its checksum; [`StoreError::Io`] when it cannot be read.
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Sets a key. Later reads see it at once; it survives a crash once a [`sync`](Self::sync) that began afterwards is done.
    ///
    /// # Errors
    /// After any error the value may or may not be there, and may or may not survive; but for [`StoreError::Full`] a read tells: if
    /// what was there before is there after it, nothing of the value is on the disk, and it will never be there.
    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError>;

    /// Takes a key away; no error when there is none.
    ///
    /// # Errors
    /// As for [`insert`](Self::insert).
    fn remove(&self, tree: Tree, key: &[u8]) -> Result<(), StoreError>;

    /// Entries with `from <= key < to` (`to` None: to the end) in key order. Stops after `limit` entries, or after the entry
    /// with which keys and values together reach `bytes_max`: with a limit above 0 there is always at least one entry if
    /// the range holds one.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when one of the values fails its checksum.
    fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// The keys with `from <= key < to`, at most `limit` of them, in order; also those whose values are damaged, which
    /// [`scan`](Self::scan) cannot pass by.
    ///
    /// # Errors
    /// When they cannot be read.
    fn keys(&self, tree: Tree, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, StoreError>;

    /// When it returns `Ok`, all that was inserted or removed before the call survives a power cut.
    ///
    /// # Errors
    /// Any error is fatal to the process: after a failed sync nobody knows what is on disk, and asking again proves nothing.
    fn sync(&self) -> Result<(), StoreError>;

    /// Syncs, and notes on disk that the shutdown was clean. Writes and syncs after it are refused; reads go on.
    ///
    /// # Errors
    /// As for [`sync`](Self::sync); the next start then finds an unclean shutdown.
    fn close(&self) -> Result<(), StoreError> {
        self.sync()
    }

    /// How many inserts and removes have begun and how many have returned, if the engine counts them: lets the
    /// [`Committer`] see that a record which did not change is durable already.
    fn writes(&self) -> Option<Writes> {
        None
    }

    /// Figures for metrics; cheap enough for a scrape every few seconds.
    fn stats(&self) -> Stats;
}

/// Figures about a store.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Keys in [`Tree::Data`]: exact after clean shutdowns, else off by what changed shortly before a crash.
    pub records_estimate: u64,
    /// Bytes in files; for an engine without files, of keys and values.
    pub disk_bytes: u64,
    /// The engine's name.
    pub engine: &'static str,
}

/// Inserts and removes since an engine was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writes {
    /// Those that have begun: whatever a reader sees was counted here before.
    pub begun: u64,
    /// Those of them that have returned, with or without success.
    pub finished: u64,
}

/// An engine's counter of [`Writes`].
#[derive(Debug, Default)]
pub struct WriteCount {
    begun: AtomicU64,
    finished: AtomicU64,
}

impl WriteCount {
    /// Runs one insert or remove between the two counts; a panic in it counts as its end.
    pub fn count<T>(&self, write: impl FnOnce() -> T) -> T {
        struct Finish<'a>(&'a AtomicU64);
        impl Drop for Finish<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.begun.fetch_add(1, Ordering::SeqCst);
        let _finish = Finish(&self.finished);
        write()
    }

    /// Both counts. Equal counts mean that no write was under way when the call began.
    pub fn get(&self) -> Writes {
        // This order matters: read the other way round, a write that begins and ends in between would hide one that is
        // still under way.
        let finished = self.finished.load(Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        Writes { begun, finished }
    }
}

/// Why a store could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The engine itself ran into the end of the file system, a quota or a file size limit. The write may have been applied in
    /// memory, and is not durable; an engine need not be able to go on, which its next sync tells.
    #[error("the disk is full: {0}")]
    Full(String),
    /// There is too little room on the disk, so that the engine was not asked: nothing was written, and the same call can succeed
    /// once there is room.
    #[error("nothing was written, {0}")]
    NoRoom(String),
    /// Somebody else has the data directory open.
    #[error("the data directory {0} is in use by another process")]
    Locked(String),
    /// What is stored is not what was written.
    #[error("corrupt data: {0}")]
    Corrupt(String),
    /// The store was damaged, or vanished, in a way that makes every "not found" from it a guess.
    #[error("the store is quarantined: {0}")]
    Quarantined(String),
    /// The data directory is of another node or cluster.
    #[error("the data directory belongs to {0}")]
    Foreign(String),
    /// The directory holds other things, and no data of a node.
    #[error("{0}")]
    Occupied(String),
    /// Anything else, with what was tried.
    #[error("storage failed: {0}")]
    Io(String),
}

impl StoreError {
    /// Sorts an I/O error: full disk, or other. `what` says what was tried, with the path.
    pub(crate) fn from_io(what: &str, error: &io::Error) -> Self {
        let text = format!("{what}: {error}");
        match error.kind() {
            // A file size limit and a quota are the operator's way of saying how large the disk is.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Self::Full(text),
            _ => Self::Io(text),
        }
    }
}

/// Makes a call that opens files, again and again while this process or the machine has no descriptor left: that is over in a
/// moment, and no reason to give a disk up. Blocks.
pub(crate) fn with_descriptors<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..DESCRIPTOR_TRIES {
        match call() {
            Err(error) if is_short_of_descriptors(&error) => std::thread::sleep(DESCRIPTOR_WAIT),
            done => return done,
        }
    }
    call()
}

fn is_short_of_descriptors(error: &io::Error) -> bool {
    let short = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    short.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Ten seconds in all.
const DESCRIPTOR_TRIES: u32 = 200;
const DESCRIPTOR_WAIT: Duration = Duration::from_millis(50);

/// Who a data directory belongs to: the sidecar's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster that the node is of.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The data directory itself: drawn when it was made.
    pub disk: DiskId,
    /// Starts counted in the sidecar, this one included, so at least 1: membership's generation.
    pub boot: u64,
    /// The shutdown before this start was clean (or there was none).
    pub clean: bool,
}

/// A store that was opened.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The store; when quarantined, one that refuses every write and every read of records.
    pub store: Arc<dyn Store>,
    /// Whose it is.
    pub identity: Identity,
    /// Why the data in it must not be served (store damaged or vanished), if so, and what to do about it.
    pub quarantined: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_that_are_short_for_a_moment_are_waited_for() {
        let mut tries = 0;
        let opened = with_descriptors(|| {
            tries += 1;
            if tries < 4 {
                Err(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()))
            } else {
                Ok(tries)
            }
        });
        assert_eq!(opened.expect("they are there again"), 4);
        let mut tries = 0;
        let failed: io::Result<()> = with_descriptors(|| {
            tries += 1;
            Err(io::ErrorKind::NotFound.into())
        });
        assert_eq!((failed.map_err(|error| error.kind()), tries), (Err(io::ErrorKind::NotFound), 1));
    }
}
