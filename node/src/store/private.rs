//! Nobody but the node's user reads its data: directories are 0700 and files 0600, whatever the umask was when they were made.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Takes from everybody but the owner what they may do with a directory and all in it. Says so if there was something to take,
/// and if it cannot be taken: a file system may have no permissions, or the directory another owner.
pub(super) fn tighten(dir: &Path, new: bool) {
    match tightened(dir) {
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
fn tightened(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    // What a link leads to was put there by somebody who had a reason, unless it is the directory itself.
    let mut count = 0;
    if metadata.permissions().mode() & 0o077 != 0 && !metadata.is_symlink() {
        let mode = if metadata.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        count += 1;
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            match tightened(&entry?.path()) {
                Ok(more) => count += more,
                // A file of the engine's that it has just removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(count)
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
        assert_eq!(tightened(&root).expect("readable"), 0);
    }
}
