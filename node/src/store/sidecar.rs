//! A small readable file beside the engine's: whose data this is, and what must be found in the engine.
//!
//! sled may open a damaged log without a word and find nothing in it (measured: a log cut to half opened with 0 of 20,000
//! keys), so the knowledge that there was data has to live outside. What damage takes from sled is always the end of its
//! log. So the sidecar counts **stamps**: a number that is written into the engine and synced, and only then noted here. An
//! engine whose stamp is behind the sidecar's has lost its end, and with it everything that came after that stamp.
//!
//! The file is replaced as a whole: written beside, synced, renamed, directory synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use quorate_wire::ids::{ClusterId, DiskId, NodeId};
use serde::{Deserialize, Serialize};

use super::{StoreError, with_descriptors};

/// The file's name inside a data directory.
pub const FILE_NAME: &str = "quorate.json";

/// What the sidecar says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The format of this file and of the directory: [`FORMAT`].
    pub format: u32,
    /// The cluster that the node is of.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// This data directory.
    pub disk: DiskId,
    /// Starts so far.
    pub boot: u64,
    /// The last stop was in order, with everything synced.
    pub clean: bool,
    /// Set, durably, before the first record is inserted; taken back only by a clean stop with no record left.
    pub has_data: bool,
    /// The engine holds at least this stamp. 0: the engine's files have not been completely made yet.
    pub stamp: u64,
    /// How many records there were when the stamp was made.
    pub records: u64,
    /// Why the data is not to be trusted; once set the engine's files are not touched any more.
    pub quarantined: Option<String>,
}

/// The version of the directory's format that this code writes, and the only one that it reads: of this file, of the keys and values in the
/// engine, and of what they are called there.
///
/// Format 1 had users' keys where format 2 has encoded ones ([`quorate_wire::key`]), and records without types and times;
/// format 2 had records that name no operations.
pub const FORMAT: u32 = 3;

#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(flatten)]
    content: Content,
    /// CRC32C over the content as compact JSON, in hex.
    checksum: String,
}

impl Document {
    fn new(content: Content) -> Self {
        let compact = serde_json::to_vec(&content).expect("numbers, texts and booleans have a JSON form");
        Self { content, checksum: format!("{:08x}", crc32c::crc32c(&compact)) }
    }
}

/// Where the sidecar of a data directory is.
pub fn path(dir: &Path) -> PathBuf {
    dir.join(FILE_NAME)
}

/// Reads the sidecar of a data directory; `None` when there is none.
///
/// # Errors
/// [`StoreError::Corrupt`] when there is a file that is not a whole sidecar, [`StoreError::Io`] when it is of another
/// format or cannot be read.
pub fn read(dir: &Path) -> Result<Option<Content>, StoreError> {
    read_at(&path(dir))
}

/// Where the sidecar of a disk is kept whose engine was given up.
pub fn kept_path(dir: &Path, disk: DiskId) -> PathBuf {
    dir.join(format!("{FILE_NAME}.{disk}"))
}

/// As [`read()`], of a disk whose engine was given up.
///
/// # Errors
/// As [`read()`].
pub fn kept(dir: &Path, disk: DiskId) -> Result<Option<Content>, StoreError> {
    read_at(&kept_path(dir, disk))
}

/// Keeps a sidecar by the name of its disk, durably, and lets those go that were given up longest ago, but for the newest [`KEPT_MAX`].
///
/// # Errors
/// As [`write()`].
pub fn keep(dir: &Path, content: &Content) -> Result<(), StoreError> {
    write_at(dir, &kept_path(dir, content.disk), content)?;
    let mut others: Vec<(u64, DiskId)> = kept_disks(dir)
        .into_iter()
        .filter(|disk| *disk != content.disk)
        // One that cannot be read describes no disk.
        .map(|disk| (kept(dir, disk).ok().flatten().map_or(0, |kept| kept.boot), disk))
        .collect();
    others.sort_unstable_by(|one, other| other.cmp(one));
    for (_, disk) in others.into_iter().skip(KEPT_MAX - 1) {
        let path = kept_path(dir, disk);
        match fs::remove_file(&path) {
            Ok(()) => {
                tracing::info!(path = %path.display(), "what described a disk that was given up long ago is removed")
            }
            Err(error) => tracing::warn!(path = %path.display(), "it cannot be removed: {error}"),
        }
    }
    Ok(())
}

/// The disks whose sidecars are kept.
fn kept_disks(dir: &Path) -> Vec<DiskId> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let disk =
        |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix(FILE_NAME)?.strip_prefix('.')?.parse().ok();
    entries.filter_map(disk).collect()
}

/// Disks that were given up and may still be put back. Each is a file of some hundred bytes; a node that has lost more of them than this
/// has a problem that none of them solves.
pub const KEPT_MAX: usize = 8;

fn read_at(path: &Path) -> Result<Option<Content>, StoreError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::from_io(&format!("reading {}", path.display()), &error)),
    };
    let damaged = |how: &str| {
        StoreError::Corrupt(format!(
            "{} {how}, so nobody can say whose data this is: restore the file from a copy, or move the whole directory away to \
             begin with an empty disk",
            path.display()
        ))
    };
    // The format comes first: a newer one may have other fields, and that is no damage.
    let document: serde_json::Value = serde_json::from_slice(&text).map_err(|_| damaged("is not JSON"))?;
    match document.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format > u64::from(FORMAT) => {
            return Err(StoreError::Io(format!(
                "{} has format {format}; this version reads {FORMAT}: start a newer version of quorate",
                path.display()
            )));
        }
        Some(format) if format < u64::from(FORMAT) => {
            return Err(StoreError::Io(format!(
                "{} has format {format}, which an older version of quorate has written; this version reads {FORMAT} and has changed \
                 nothing: start the older version and `quorate export` the records, or move the whole directory away to begin with \
                 an empty disk",
                path.display()
            )));
        }
        Some(_) | None => {}
    }
    let document: Document =
        serde_json::from_value(document).map_err(|error| damaged(&format!("is damaged ({error})")))?;
    let found = document.checksum.clone();
    let expected = Document::new(document.content.clone()).checksum;
    if found != expected {
        return Err(damaged(&format!("fails its checksum ({found}, computed {expected})")));
    }
    Ok(Some(document.content))
}

/// Replaces the sidecar, durably: when it returns, the new content survives a power cut; after an error or a crash either the
/// old or the new one is there, whole.
///
/// # Errors
/// [`StoreError::Full`] or [`StoreError::Io`].
pub fn write(dir: &Path, content: &Content) -> Result<(), StoreError> {
    write_at(dir, &path(dir), content)
}

fn write_at(dir: &Path, path: &Path, content: &Content) -> Result<(), StoreError> {
    let mut text = serde_json::to_vec_pretty(&Document::new(content.clone()))
        .expect("numbers, texts and booleans have a JSON form");
    text.push(b'\n');
    let beside = dir.join(concat!("quorate.json", ".new"));
    let replace = || -> io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        sync_dir(dir)
    };
    with_descriptors(replace).map_err(|error| StoreError::from_io(&format!("writing {}", path.display()), &error))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Content {
        Content {
            format: FORMAT,
            cluster: ClusterId(1),
            node: NodeId::new("n1").expect("legal"),
            disk: DiskId(2),
            boot: 3,
            clean: true,
            has_data: true,
            stamp: 4,
            records: 5,
            quarantined: None,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path()).expect("no file is no error"), None);
        for quarantined in [None, Some("a \"reason\"\nof two lines".to_owned())] {
            let content = Content { quarantined, ..content() };
            write(dir.path(), &content).expect("room");
            assert_eq!(read(dir.path()).expect("whole"), Some(content));
        }
    }

    #[test]
    fn of_disks_that_were_given_up_the_newest_are_kept_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().expect("a directory");
        let others = [FILE_NAME.to_owned(), format!("{FILE_NAME}.new"), format!("{FILE_NAME}.bak"), "notes".to_owned()];
        for name in &others {
            fs::write(dir.path().join(name), b"mine").expect("room");
        }
        let unreadable = kept_path(dir.path(), DiskId(999));
        fs::write(&unreadable, b"{").expect("room");
        // Their ids say nothing of their age.
        let given_up = |boot: u64| Content { disk: DiskId(u128::from(boot * 7 % 23)), boot, ..content() };
        for boot in 1..=20 {
            keep(dir.path(), &given_up(boot)).expect("room");
            assert_eq!(kept(dir.path(), given_up(boot).disk).expect("whole"), Some(given_up(boot)));
        }
        for boot in 1..=20 {
            let there = kept(dir.path(), given_up(boot).disk).expect("whole").is_some();
            assert_eq!(there, boot > 20 - KEPT_MAX as u64, "given up at start {boot}");
        }
        assert!(!unreadable.exists());
        // One that is given up again is the newest.
        keep(dir.path(), &Content { boot: 21, ..given_up(13) }).expect("room");
        keep(dir.path(), &given_up(22)).expect("room");
        assert!(kept(dir.path(), given_up(13).disk).expect("whole").is_some());
        assert_eq!(kept(dir.path(), given_up(14).disk).expect("whole"), None);
        for name in others {
            // The first was replaced by what is written beside it.
            assert!(dir.path().join(&name).exists() || name.ends_with(".new"), "{name}");
        }
    }

    #[test]
    fn any_changed_or_missing_byte_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), &content()).expect("room");
        let whole = fs::read(path(dir.path())).expect("written");
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(path(dir.path()), &changed).expect("room");
            match read(dir.path()) {
                Err(StoreError::Corrupt(_)) => {}
                // Changed white space is no damage, and a changed format number is another format.
                Ok(Some(read)) => assert_eq!(read, content(), "byte {at}"),
                Err(StoreError::Io(text)) => assert!(text.contains("format"), "{text}"),
                other => panic!("byte {at}: {other:?}"),
            }
            fs::write(path(dir.path()), &whole[..at]).expect("room");
            let cut = read(dir.path());
            assert!(matches!(cut, Err(StoreError::Corrupt(_))) || at + 1 == whole.len(), "cut to {at}: {cut:?}");
        }
    }

    #[test]
    fn a_newer_format_is_named_and_is_not_called_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(path(dir.path()), br#"{"format": 4, "other": "fields"}"#).expect("room");
        let error = read(dir.path()).expect_err("newer").to_string();
        assert!(error.contains("format 4") && error.contains("reads 3") && error.contains("newer version"), "{error}");
    }

    /// As the release before wrote it, checksum and all.
    #[test]
    fn an_older_format_is_refused_with_what_to_do_and_is_not_called_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), &Content { format: 2, ..content() }).expect("room");
        let before = fs::read(path(dir.path())).expect("written");
        let error = read(dir.path()).expect_err("older");
        assert!(matches!(&error, StoreError::Io(_)), "{error:?}");
        let error = error.to_string();
        assert!(error.contains("format 2") && error.contains("older version") && error.contains("export"), "{error}");
        assert_eq!(fs::read(path(dir.path())).expect("still there"), before);
    }
}
