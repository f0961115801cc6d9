//! The form in which every engine keeps a value: a checksum, then the value.
//!
//! ```text
//!   0      4                 4 + n
//!   | crc  | value           |        crc = CRC32C(tree tag | key length u32 BE | key | value), little-endian
//! ```
//!
//! Tree and key are under the checksum, so that a value which turns up in the wrong place is found as well as a bad bit.

use super::{StoreError, Tree};

/// Bytes that the envelope adds to a value.
pub const OVERHEAD: usize = 4;

/// Puts a value into its envelope.
pub fn seal(tree: Tree, key: &[u8], value: &[u8]) -> Vec<u8> {
    seal_tagged(tree.tag(), key, value)
}

/// Takes a value out of its envelope.
///
/// # Errors
/// [`StoreError::Corrupt`], which names tree and key, when it is not what was sealed for this tree and key.
pub fn open<'a>(tree: Tree, key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], StoreError> {
    open_tagged(tree.tag(), key, sealed).ok_or_else(|| {
        StoreError::Corrupt(format!(
            "the value of key {} in tree {tree} ({} bytes) fails its checksum",
            tree.shown(key),
            sealed.len()
        ))
    })
}

pub(crate) fn seal_tagged(tag: u8, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(OVERHEAD + value.len());
    sealed.extend_from_slice(&checksum(tag, key, value).to_le_bytes());
    sealed.extend_from_slice(value);
    sealed
}

pub(crate) fn open_tagged<'a>(tag: u8, key: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (stored, value) = sealed.split_first_chunk::<OVERHEAD>()?;
    (u32::from_le_bytes(*stored) == checksum(tag, key, value)).then_some(value)
}

fn checksum(tag: u8, key: &[u8], value: &[u8]) -> u32 {
    let length = u32::try_from(key.len()).expect("keys are at most a few KiB long");
    let crc = crc32c::crc32c(&[tag]);
    let crc = crc32c::crc32c_append(crc, &length.to_be_bytes());
    let crc = crc32c::crc32c_append(crc, key);
    crc32c::crc32c_append(crc, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_only_at_its_tree_and_key_and_unchanged() {
        let sealed = seal(Tree::Data, b"key", b"value");
        assert_eq!(open(Tree::Data, b"key", &sealed).expect("intact"), b"value");
        assert!(matches!(open(Tree::Meta, b"key", &sealed), Err(StoreError::Corrupt(_))));
        assert!(matches!(open(Tree::Data, b"kez", &sealed), Err(StoreError::Corrupt(_))));
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(Tree::Data, b"key", &flipped).is_err(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(open(Tree::Data, b"key", &sealed[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn the_border_between_key_and_value_is_under_the_checksum() {
        let sealed = seal(Tree::Data, b"ab", b"c");
        let mut moved = sealed[..OVERHEAD].to_vec();
        moved.extend_from_slice(b"bc");
        assert!(open(Tree::Data, b"a", &moved).is_err());
    }

    #[test]
    fn the_format_on_disk_is_fixed_for_ever() {
        assert_eq!(seal(Tree::Data, b"greeting", b"hello"), SEALED_HELLO);
    }

    const SEALED_HELLO: &[u8] = &[66, 146, 5, 56, b'h', b'e', b'l', b'l', b'o'];
}
