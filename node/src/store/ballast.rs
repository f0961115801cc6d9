//! Ballast: a file that takes room on the disk so that a start can have it.
//!
//! A start has to write before it can serve anything: who opened the directory, how often, and that it was not closed. On a disk that
//! others have filled to the last byte there is no room for that. So the directory holds a file of no use, which a start on a
//! full disk cuts in half, and which is made again by a start that finds room.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::room::{DiskReserve, Space};

/// Where the ballast of a data directory lies.
fn path(dir: &Path) -> PathBuf {
    dir.join("ballast")
}

/// To be called before anything is written in a data directory, by whoever holds its lock: a node that runs there needs its
/// ballast for its own next start. Makes room if there is none. Half of the ballast is thrown off each time, so
/// that there is some left for the next start: the engine spends what it finds, also when it only reads.
pub fn before_start(dir: &Path, space: io::Result<Space>) {
    let Ok(space) = space else { return };
    if space.free >= length(space) / 4 {
        return;
    }
    match halved(&path(dir)) {
        Ok(left) => tracing::warn!(dir = %dir.display(), left,
            "the disk is full: half of the ballast was thrown off, so that this start can note what it must"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::warn!(dir = %dir.display(), "the disk is full, and there is no ballast left to throw off");
        }
        Err(error) => {
            tracing::warn!(dir = %dir.display(), "the disk is full, and the ballast cannot be thrown off: {error}");
        }
    }
}

/// How much is left of it.
fn halved(path: &Path) -> io::Result<u64> {
    let left = fs::metadata(path)?.len() / 2;
    if left < LEAST {
        fs::remove_file(path)?;
        return Ok(0);
    }
    File::options().write(true).open(path)?.set_len(left)?;
    Ok(left)
}

/// To be called once a data directory is open: takes ballast if there is none, and room.
pub fn after_start(dir: &Path, space: io::Result<Space>) {
    let Ok(space) = space else { return };
    let (path, length) = (path(dir), length(space));
    let there = fs::metadata(&path).map_or(0, |file| file.len());
    if there >= length || space.free < DiskReserve::Auto.of(space.total) + length {
        return;
    }
    // Without it a start on a full disk may fail, which is no reason for this one to fail.
    if let Err(error) = take(&path, length) {
        let _ = fs::remove_file(&path);
        tracing::warn!(file = %path.display(), "no ballast can be taken: {error}");
    }
}

fn take(path: &Path, length: u64) -> io::Result<()> {
    let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(path)?;
    // Blocks, not only a length.
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length)?;
    file.sync_all()
}

/// Enough for some starts of sled with millions of records: its snapshot, a stamp, and our own small file.
fn length(space: Space) -> u64 {
    (space.total / 16).min(64 << 20)
}

/// Less than this is thrown off as a whole.
const LEAST: u64 = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_where_there_is_room_and_thrown_off_where_there_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let ballast = || fs::metadata(path(dir.path())).ok().map(|file| file.len());
        let disk = |free: u64| Ok(Space { free, total: 64 << 20 });
        after_start(dir.path(), disk(9 << 20));
        assert_eq!(ballast(), None, "it would cut into the reserve");
        after_start(dir.path(), disk(32 << 20));
        assert_eq!(ballast(), Some(4 << 20));
        before_start(dir.path(), disk(1 << 20));
        assert_eq!(ballast(), Some(4 << 20), "there is room for a start");
        let thrown_off = (0..5).map(|_| {
            before_start(dir.path(), disk(0));
            ballast()
        });
        assert_eq!(
            thrown_off.collect::<Vec<_>>(),
            [Some(2 << 20), Some(1 << 20), Some(512 << 10), Some(256 << 10), None]
        );
        before_start(dir.path(), disk(0));
        before_start(dir.path(), Err(io::ErrorKind::Other.into()));
        after_start(dir.path(), disk(32 << 20));
        assert_eq!(ballast(), Some(4 << 20), "it is taken again");
    }
}
