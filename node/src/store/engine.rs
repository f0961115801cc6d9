//! What an engine has to offer so that a data directory can be made of it: ordered trees of bytes, and a sync.
//!
//! A second engine is one file beside [`sled`](super::sled) that implements [`Engine`]. Whose directory it is, how damage is noticed and
//! set aside, checksums, counts, stamps and the thread that syncs are the same for all of them: see [`directory`](super::directory) and
//! [`on_disk`](super::on_disk).

use std::any::Any;
use std::fmt;
use std::io;
use std::path::Path;

use bytes::Bytes;

use super::{StoreError, Tree};

/// An ordered map of bytes with a few trees in files. Blocking; may be called from any thread at once.
///
/// A call may panic, or never come back: both are dealt with outside.
pub(super) trait Engine: Send + Sync + fmt::Debug + Sized + 'static {
    /// Its name in figures, and of its folder in the data directory; fixed for ever.
    const NAME: &'static str;

    /// How it is run.
    type Options;

    /// After so many inserted bytes a sync also stamps the engine and the sidecar.
    fn stamp_bytes(options: &Self::Options) -> u64;

    /// Whether its folder holds files of it with anything in them, which this process may open. `NotFound` says no as well; any other
    /// error that nobody can tell.
    fn is_there(dir: &Path) -> io::Result<bool>;

    /// Opens what is in its folder, or makes it; the names of the files that it makes survive a power cut.
    ///
    /// # Errors
    /// See [`Refusal`].
    fn open(dir: &Path, options: &Self::Options) -> Result<Self, Refusal>;

    /// The value of a key.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get(&self, tree: EngineTree, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Sets a key; whether it had a value before.
    ///
    /// # Errors
    /// After any error the value may or may not be there.
    fn insert(&self, tree: EngineTree, key: &[u8], value: Vec<u8>) -> Result<bool, EngineError>;

    /// Takes a key away; whether it was there.
    ///
    /// # Errors
    /// After any error it may or may not be there.
    fn remove(&self, tree: EngineTree, key: &[u8]) -> Result<bool, EngineError>;

    /// The entries with `from <= key < to` (`to` None: to the end) in key order. `from` is below `to`.
    fn range(&self, tree: EngineTree, from: &[u8], to: Option<&[u8]>) -> impl Iterator<Item = Entry>;

    /// As [`range`](Self::range), without the values.
    fn keys(
        &self,
        tree: EngineTree,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<Bytes, EngineError>>;

    /// When it returns `Ok`, all writes that had returned before the call survive a power cut. Called from one thread at a time.
    ///
    /// # Errors
    /// Nobody knows what is on disk then; it is not called again.
    fn sync(&self) -> Result<(), EngineError>;

    /// What the engine has met on a thread of its own, if anything: a [`sync`](Self::sync) that was under way then may never come back.
    ///
    /// # Errors
    /// That. No call after it writes anything.
    fn check(&self) -> Result<(), EngineError>;

    /// Bytes in files.
    fn disk_bytes(&self) -> u64;
}

/// A key and its value.
pub(super) type Entry = Result<(Bytes, Bytes), EngineError>;

/// The trees of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EngineTree {
    /// One of the store's.
    Store(Tree),
    /// That in which the directory keeps its stamp.
    Directory,
}

impl EngineTree {
    /// How many there are.
    pub(super) const COUNT: usize = Tree::ALL.len() + 1;

    /// Every tree, in the order of their [`index`](Self::index).
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Tree::ALL.into_iter().map(Self::Store).chain([Self::Directory])
    }

    /// Its name on disk; fixed for ever.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Store(tree) => tree.name(),
            Self::Directory => "engine",
        }
    }

    /// Its place in [`all`](Self::all).
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Store(tree) => tree.index(),
            Self::Directory => Tree::ALL.len(),
        }
    }
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum EngineError {
    /// The operating system said so.
    Io(io::Error),
    /// What is in the files is not what was written.
    Corrupt(String),
    /// Anything else.
    Other(String),
}

impl EngineError {
    /// `what` says what was tried, with the path.
    pub(super) fn into_store_error(self, what: &str) -> StoreError {
        match self {
            Self::Io(error) => StoreError::from_io(what, &error),
            Self::Corrupt(why) => StoreError::Corrupt(format!("{what}: {why}")),
            Self::Other(why) => StoreError::Io(format!("{what}: {why}")),
        }
    }
}

/// Why an engine did not open.
#[derive(Debug)]
pub(super) enum Refusal {
    /// What is in its files cannot be used. They are set aside, and the node begins with an empty disk.
    Damaged(String),
    /// The system around it does not let it open; the files say nothing of that.
    Failed(StoreError),
}

impl Refusal {
    /// Of an error that was met while the engine in this folder was opened, or while it was read for the first time.
    pub(super) fn of(error: EngineError, dir: &Path) -> Self {
        match error {
            EngineError::Io(error) if is_of_the_files(&error) => Self::Damaged(error.to_string()),
            error @ EngineError::Io(_) => Self::Failed(error.into_store_error(&format!("opening {}", dir.display()))),
            EngineError::Corrupt(why) | EngineError::Other(why) => Self::Damaged(why),
        }
    }

    /// Of a panic of the engine in this folder.
    pub(super) fn of_panic<E: Engine>(panic: &(dyn Any + Send), dir: &Path) -> Self {
        let text = panic_text(panic);
        if is_want(text) {
            Self::Failed(StoreError::Io(format!("opening {}: {text}", dir.display())))
        } else {
            Self::Damaged(format!("{} panicked: {text}", E::NAME))
        }
    }
}

/// Whether an error says something about what is in the files, and not about the system around them.
fn is_of_the_files(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotFound
    )
}

/// Whether a panic tells of something that has run out, such as threads, or is not allowed, and says nothing of the data.
fn is_want(text: &str) -> bool {
    // EPERM, EAGAIN, ENOMEM, EACCES, ENFILE, EMFILE, ENOSPC and EROFS, as a Rust error is written.
    [1, 11, 12, 13, 23, 24, 28, 30].iter().any(|code| text.contains(&format!("Os {{ code: {code},")))
}

/// What a panic says.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "no message",
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// As sled says it when a thread is not to be had.
    #[test]
    fn a_want_is_no_damage() {
        for code in [1, 11, 12, 13, 23, 24, 28, 30] {
            let spawn = || -> io::Result<()> { Err(io::Error::from_raw_os_error(code)) };
            let panic = catch_unwind(AssertUnwindSafe(|| spawn().unwrap())).expect_err("an unwrap of an error");
            assert!(is_want(panic_text(&*panic)), "{}", panic_text(&*panic));
        }
        assert!(!is_want("assertion failed: Os { code: 5, kind: Uncategorized }"));
        assert!(!is_want("index out of bounds: the len is 11"));
    }
}
