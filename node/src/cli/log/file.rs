//! A log file that is rotated by size: `node.log`, and the ones before it as `node.log.1`, `node.log.2`, ..

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_node::config::LogFile;
use tokio::time::Instant;

use super::write_line;

/// The file that is written to, and its rotation.
pub(super) struct RotatedFile {
    config: LogFile,
    /// None while it cannot be opened.
    file: Option<File>,
    len: u64,
    torn: bool,
    /// When opening or rotating may be tried again after it has failed.
    next_try: Option<Instant>,
    /// It was to be opened anew, which has failed.
    reopen_due: bool,
}

impl RotatedFile {
    /// Opens it, or makes it. A disk that is full is no reason not to start: then it is tried again later.
    pub(super) fn open(config: &LogFile) -> io::Result<Self> {
        let mut new =
            Self { config: config.clone(), file: None, len: 0, torn: false, next_try: None, reopen_due: false };
        match new.reopened() {
            Err(error) if !is_full(&error) => Err(error),
            Ok(()) | Err(_) => Ok(new),
        }
    }

    /// Writes a line; one that makes the file longer than it may be goes to a new one.
    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let bytes = line.len() as u64;
        let full = self.len > 0 && self.len + bytes > self.config.max_bytes;
        if (full || self.file.is_none() || self.reopen_due) && self.next_try.is_none_or(|at| Instant::now() >= at) {
            let done = if full { self.rotate() } else { self.reopened() };
            // The old file goes on if it can.
            self.next_try = done.is_err().then(|| Instant::now() + TRY_AGAIN);
        }
        // Without rotation the file must not grow for ever.
        if self.len.saturating_add(bytes) > self.config.max_bytes.saturating_mul(2) && self.len > 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        write_line(file, &mut self.torn, line)?;
        self.len += bytes;
        Ok(())
    }

    /// Opens the file by its name again: somebody else may have moved it. If that fails it is tried again with later lines, and
    /// the old one goes on, unless it has no name any more: then nobody would read what is written to it.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let done = self.reopened();
        if done.is_err() {
            (self.reopen_due, self.next_try) = (true, Some(Instant::now() + TRY_AGAIN));
            let nameless = |file: &File| file.metadata().is_ok_and(|file| file.nlink() == 0);
            if self.file.as_ref().is_some_and(nameless) {
                self.file = None;
            }
        }
        done
    }

    pub(super) fn path(&self) -> &Path {
        &self.config.path
    }

    fn reopened(&mut self) -> io::Result<()> {
        let file = open(&self.config.path)?;
        self.len = file.metadata()?.len();
        // What is in the file may have been cut in the middle of a line by an earlier process.
        self.torn = false;
        self.reopen_due = false;
        self.file = Some(file);
        Ok(())
    }

    /// Every file gets the next number, the oldest goes, and a new one begins. Needs no room but for the new file's name; if
    /// there is none the files are put back.
    fn rotate(&mut self) -> io::Result<()> {
        let path = self.config.path.clone();
        for number in (1..self.config.keep).rev() {
            rename(&numbered(&path, number), &numbered(&path, number + 1))?;
        }
        let first = numbered(&path, 1);
        if self.config.keep == 0 {
            gone(fs::remove_file(&path))?;
        } else {
            rename(&path, &first)?;
        }
        let opened = self.reopened();
        if opened.is_err() && self.config.keep > 0 {
            rename(&first, &path)?;
        }
        opened
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

/// One that is not there needs no other name.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    gone(fs::rename(from, to))
}

/// What is to be out of the way may be so already, by another's hand or an earlier try.
fn gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// How soon opening and rotating are tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, max_bytes: u64, keep: u32) -> LogFile {
        LogFile { path: dir.join("node.log"), max_bytes, keep }
    }

    fn text(dir: &Path, name: &str) -> Option<String> {
        fs::read_to_string(dir.join(name)).ok()
    }

    #[test]
    fn it_is_rotated_by_size_and_the_oldest_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut file = RotatedFile::open(&config(dir.path(), 10, 2)).expect("opens");
        for line in ["one\n", "two\n", "three\n", "four\n", "a line that is longer than all\n", "six\n"] {
            file.write(line.as_bytes()).expect("writes");
        }
        assert_eq!(text(dir.path(), "node.log").as_deref(), Some("six\n"));
        assert_eq!(text(dir.path(), "node.log.1").as_deref(), Some("a line that is longer than all\n"));
        assert_eq!(text(dir.path(), "node.log.2").as_deref(), Some("four\n"));
        assert_eq!(text(dir.path(), "node.log.3"), None);
    }

    #[test]
    fn it_goes_on_in_a_new_file_after_it_was_moved_and_begins_where_it_ended() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut file = RotatedFile::open(&config(dir.path(), 100, 2)).expect("opens");
        file.write(b"before\n").expect("writes");
        fs::rename(dir.path().join("node.log"), dir.path().join("moved")).expect("moves");
        file.write(b"still the old one\n").expect("writes");
        file.reopen().expect("opens");
        file.write(b"after\n").expect("writes");
        assert_eq!(text(dir.path(), "moved").as_deref(), Some("before\nstill the old one\n"));
        assert_eq!(text(dir.path(), "node.log").as_deref(), Some("after\n"));
        drop(file);
        let mut file = RotatedFile::open(&config(dir.path(), 100, 2)).expect("opens");
        file.write(b"later\n").expect("writes");
        assert_eq!(text(dir.path(), "node.log").as_deref(), Some("after\nlater\n"));
    }

    /// A directory stands where the old file is to go, so that no rotation succeeds.
    #[test]
    fn without_rotation_it_goes_on_to_twice_its_size_and_no_further() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("node.log.1/in the way")).expect("a directory");
        let mut file = RotatedFile::open(&config(dir.path(), 10, 1)).expect("opens");
        let written = (0..10).filter(|_| file.write(b"line\n").is_ok()).count();
        assert_eq!(written, 4);
        assert_eq!(text(dir.path(), "node.log").map(|text| text.len()), Some(20));
        fs::remove_dir_all(dir.path().join("node.log.1")).expect("goes");
        file.next_try = None;
        file.write(b"line\n").expect("it is rotated now");
        assert_eq!(text(dir.path(), "node.log").as_deref(), Some("line\n"));
    }

    /// As after a rotation that removed the file, and then could not open a new one.
    #[test]
    fn a_file_that_is_gone_already_keeps_no_rotation_from_opening_a_new_one() {
        for keep in [0, 1] {
            let dir = tempfile::tempdir().expect("a directory");
            let mut file = RotatedFile::open(&config(dir.path(), 10, keep)).expect("opens");
            file.write(b"lost line\n").expect("writes");
            fs::remove_file(dir.path().join("node.log")).expect("goes");
            file.write(b"new\n").expect("writes");
            assert_eq!(text(dir.path(), "node.log").as_deref(), Some("new\n"), "keep: {keep}");
        }
    }

    #[test]
    fn lines_go_to_no_file_that_nobody_can_read_and_to_the_next_one_that_can_be_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let logs = dir.path().join("logs");
        fs::create_dir(&logs).expect("made");
        let mut file = RotatedFile::open(&config(&logs, 100, 2)).expect("opens");
        file.write(b"before\n").expect("writes");
        fs::remove_dir_all(&logs).expect("goes");
        file.reopen().expect_err("there is no directory");
        file.write(b"lost\n").expect_err("it is counted, and not written to a deleted file");
        fs::create_dir(&logs).expect("made");
        file.next_try = None;
        file.write(b"after\n").expect("it is tried again");
        assert_eq!(text(&logs, "node.log").as_deref(), Some("after\n"));

        // One that was only moved goes on meanwhile.
        let away = dir.path().join("away");
        fs::rename(&logs, &away).expect("moved");
        file.reopen().expect_err("there is no directory");
        file.write(b"moved\n").expect("the old one goes on");
        fs::create_dir(&logs).expect("made");
        file.next_try = None;
        file.write(b"new\n").expect("it is tried again");
        assert_eq!(text(&away, "node.log").as_deref(), Some("after\nmoved\n"));
        assert_eq!(text(&logs, "node.log").as_deref(), Some("new\n"));
    }

    #[test]
    fn a_directory_that_is_not_there_is_said_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(RotatedFile::open(&config(&dir.path().join("no such"), 10, 1)).is_err());
    }
}
