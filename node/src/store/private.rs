//! Nobody but the node's user reads its data: directories are 0700 and files 0600, whatever the umask was when they were made.

use std::ffi::OsStr;
use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::sidecar;

/// Takes from everybody but the owner what they may do with a data directory and what a node makes in it; other files that
/// somebody keeps there stay as they are. Says so if there was something to take, and if it cannot be taken: a file system may
/// have no permissions, or the directory another owner. To be called by whoever holds the directory's lock and knows whose it is.
pub(super) fn tighten(dir: &Path, new: bool) {
    match data_directory(dir) {
        Ok(0) => {}
        Ok(count) if !new => {
            tracing::warn!(dir = %dir.display(), count, "other users could read the data directory; it is for its owner only now");
        }
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(dir = %dir.display(), "other users may be able to read the data directory: {error}");
        }
    }
}

/// How many permissions were changed.
fn data_directory(dir: &Path) -> io::Result<u64> {
    // The directory itself may be named by a link.
    let dir = dir.canonicalize()?;
    let mut count = own(&dir, &fs::symlink_metadata(&dir)?)?;
    for entry in fs::read_dir(&dir)? {
        let entry = entry?;
        if is_ours(&entry.file_name()) {
            count += if_there(tightened(&entry.path()))?;
        }
    }
    Ok(count)
}

/// Whether a node makes something of this name in its data directory.
pub(super) fn is_ours(name: &OsStr) -> bool {
    let begins = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
    name == "lock" || name == "ballast" || begins(sidecar::FILE_NAME) || name == "sled" || begins("sled.damaged")
}

fn tightened(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    // What a link leads to was put there by somebody who had a reason.
    let mut count = if metadata.is_symlink() { 0 } else { own(path, &metadata)? };
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            count += if_there(tightened(&entry?.path()))?;
        }
    }
    Ok(count)
}

fn own(path: &Path, metadata: &Metadata) -> io::Result<u64> {
    if metadata.permissions().mode() & 0o077 == 0 {
        return Ok(0);
    }
    let mode = if metadata.is_dir() { 0o700 } else { 0o600 };
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(1)
}

/// A file may be one of the engine's that it has just removed.
fn if_there(changed: io::Result<u64>) -> io::Result<u64> {
    match changed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        changed => changed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_others_can_read_is_for_its_owner_only_afterwards() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("data");
        fs::create_dir_all(root.join("sled/blobs")).expect("made");
        fs::write(root.join("sled/blobs/1"), b"secret").expect("written");
        let modes = [("", 0o755), ("sled", 0o777), ("sled/blobs", 0o750), ("sled/blobs/1", 0o644)];
        for (path, mode) in modes {
            fs::set_permissions(root.join(path), Permissions::from_mode(mode)).expect("set");
        }
        tighten(&root, false);
        let mode = |path: &str| fs::metadata(root.join(path)).expect("there").permissions().mode() & 0o7777;
        assert_eq!(modes.map(|(path, _)| mode(path)), [0o700, 0o700, 0o700, 0o600]);
        assert_eq!(data_directory(&root).expect("readable"), 0);
    }

    #[test]
    fn what_no_node_has_made_stays_as_it_is_and_a_link_to_the_directory_is_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("data");
        fs::create_dir_all(root.join("public/sled")).expect("made");
        fs::create_dir_all(root.join("sled.damaged")).expect("made");
        for file in ["lock", "ballast", "quorate.json", "quorate.json.new", "notes", "public/index"] {
            fs::write(root.join(file), b"text").expect("written");
            fs::set_permissions(root.join(file), Permissions::from_mode(0o644)).expect("set");
        }
        for directory in ["", "sled.damaged", "public", "public/sled"] {
            fs::set_permissions(root.join(directory), Permissions::from_mode(0o755)).expect("set");
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&root, &link).expect("linked");
        tighten(&link, false);
        let mode = |path: &str| fs::metadata(root.join(path)).expect("there").permissions().mode() & 0o7777;
        assert_eq!(["", "sled.damaged"].map(mode), [0o700; 2]);
        assert_eq!(["lock", "ballast", "quorate.json", "quorate.json.new"].map(mode), [0o600; 4]);
        assert_eq!(["public", "public/sled"].map(mode), [0o755; 2]);
        assert_eq!(["notes", "public/index"].map(mode), [0o644; 2]);
    }
}
