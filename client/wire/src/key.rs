//! The name of a record, in the one form that messages, disks and contexts have for it.
//!
//! ```text
//!   bucket, u32 BE | partition key, 00 written as 00 FF | 00 01 | sort key
//! ```
//!
//! Whoever talks to users (a client, a door of a node) makes it and takes it apart. To everything between, from a coordinator to
//! the trees of a store, it is an opaque string of bytes, so that whatever is bound to a key (a context, a hint, a digest, what is
//! remembered of an operation) is bound to its bucket and sort key as well. The order of these bytes is that of (bucket, partition
//! key, sort key), each of them in the order of its own bytes: the escape is the one of FoundationDB's tuple layer. A record without a
//! sort key comes before those of the same partition key that have one.
//!
//! [`key_hash`] covers bucket and partition key alone. So all records of one partition key are in one partition, and lie side by
//! side in it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use memchr::memchr;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::codec::Blob;

/// The longest key of a user, in bytes: partition key and sort key together. A partition key has at least one.
pub const KEY_LEN_MAX: usize = 1024;

/// The longest encoded key: every byte of the partition key may need an escape.
pub const ENCODED_KEY_LEN_MAX: usize = BUCKET_LEN + 2 * KEY_LEN_MAX + END.len();

/// A bucket: keys of different buckets have nothing to do with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BucketId(pub u32);

impl BucketId {
    /// The bucket of all keys that name none.
    pub const DEFAULT: Self = Self(0);
}

impl fmt::Display for BucketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An encoded key. It dereferences to its bytes; their length is not that of the user's key, which [`parts`](Self::parts) tells.
///
/// Decoding one from a message checks its form and not its length, so that whoever serves it can say what the limit is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Blob);

impl Key {
    /// Encodes a key. An empty sort key is none.
    pub fn new(bucket: BucketId, partition_key: &[u8], sort_key: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(BUCKET_LEN + partition_key.len() + END.len() + sort_key.len());
        bytes.extend_from_slice(&bucket.0.to_be_bytes());
        escape_into(&mut bytes, partition_key);
        bytes.extend_from_slice(&END);
        bytes.extend_from_slice(sort_key);
        Self(Blob(bytes.into()))
    }

    /// A key of the default bucket without a sort key.
    pub fn plain(key: impl AsRef<[u8]>) -> Self {
        Self::new(BucketId::DEFAULT, key.as_ref(), &[])
    }

    /// From its encoded form, which is kept without a copy.
    ///
    /// # Errors
    /// When the bytes are no encoded key.
    pub fn from_encoded(encoded: Blob) -> Result<Self, MalformedKey> {
        KeyParts::of(&encoded)?;
        Ok(Self(encoded))
    }

    /// What it consists of.
    pub fn parts(&self) -> KeyParts<'_> {
        KeyParts::of(&self.0).expect("its form was checked when it was made")
    }

    /// The partition key; a slice of this key's bytes if it needs no escape.
    pub fn partition_key(&self) -> Bytes {
        match self.parts().partition_key() {
            Cow::Borrowed(inside) => self.0.slice_ref(inside),
            Cow::Owned(copied) => copied.into(),
        }
    }

    /// Its encoded form.
    pub fn encoded(&self) -> &Blob {
        &self.0
    }
}

impl Deref for Key {
    type Target = Blob;
    fn deref(&self) -> &Blob {
        &self.0
    }
}

impl From<Key> for Blob {
    fn from(key: Key) -> Self {
        key.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.parts())
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_encoded(Blob::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// What an encoded key consists of. Displays the user's key, with bucket and sort key if they are not the default and none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyParts<'a> {
    bucket: BucketId,
    escaped: &'a [u8],
    /// How many bytes of it are there for the escape alone.
    escapes: usize,
    sort_key: &'a [u8],
}

impl<'a> KeyParts<'a> {
    /// Takes an encoded key apart.
    ///
    /// # Errors
    /// When the bytes are no encoded key. Any bytes may be given.
    pub fn of(encoded: &'a [u8]) -> Result<Self, MalformedKey> {
        match divide(encoded)? {
            Divided { bucket, escaped, escapes, behind: Some(sort_key) } => {
                Ok(Self { bucket, escaped, escapes, sort_key })
            }
            Divided { behind: None, .. } => Err(MalformedKey),
        }
    }

    /// The bucket.
    pub fn bucket(&self) -> BucketId {
        self.bucket
    }

    /// The partition key; copied only if it needs an escape.
    pub fn partition_key(&self) -> Cow<'a, [u8]> {
        unescaped(self.escaped, self.escapes)
    }

    /// How long the partition key is.
    pub fn partition_key_len(&self) -> usize {
        self.escaped.len() - self.escapes
    }

    /// The sort key; empty if there is none.
    pub fn sort_key(&self) -> &'a [u8] {
        self.sort_key
    }

    /// How long the user's key is: partition key and sort key together.
    pub fn len(&self) -> usize {
        self.partition_key_len() + self.sort_key.len()
    }

    /// Whether the user's key is empty, which no node takes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A key of the default bucket without a sort key: what this release serves.
    pub fn is_plain(&self) -> bool {
        self.bucket == BucketId::DEFAULT && self.sort_key.is_empty()
    }
}

impl fmt::Display for KeyParts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.partition_key().escape_ascii())?;
        if !self.sort_key.is_empty() {
            write!(f, ", sort key {}", self.sort_key.escape_ascii())?;
        }
        if self.bucket != BucketId::DEFAULT {
            write!(f, ", bucket {}", self.bucket)?;
        }
        Ok(())
    }
}

/// How encoded keys begin: a bucket and the first bytes of a partition key, or a whole one and the first bytes of a sort key.
///
/// Exactly the keys that [begin with](<[u8]>::starts_with) its bytes are those that it means.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPrefix(Blob);

impl KeyPrefix {
    /// The keys of a bucket whose partition key begins so; all of them if it is empty.
    pub fn new(bucket: BucketId, partition_key_prefix: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(BUCKET_LEN + partition_key_prefix.len());
        bytes.extend_from_slice(&bucket.0.to_be_bytes());
        escape_into(&mut bytes, partition_key_prefix);
        Self(Blob(bytes.into()))
    }

    /// The records of one partition key whose sort key begins so; all of them, the one without a sort key included, if it is empty.
    pub fn of_partition_key(bucket: BucketId, partition_key: &[u8], sort_key_prefix: &[u8]) -> Self {
        Self(Key::new(bucket, partition_key, sort_key_prefix).0)
    }

    /// The bucket.
    pub fn bucket(&self) -> BucketId {
        self.divided().bucket
    }

    /// The first bytes of the sort key, if it names a whole partition key.
    pub fn sort_key_prefix(&self) -> Option<&[u8]> {
        self.divided().behind
    }

    /// It means all keys of its bucket.
    pub fn is_whole_bucket(&self) -> bool {
        self.0.len() == BUCKET_LEN
    }

    /// How many bytes of a user's keys it names.
    pub fn len(&self) -> usize {
        let Divided { escaped, escapes, behind, .. } = self.divided();
        escaped.len() - escapes + behind.map_or(0, <[u8]>::len)
    }

    /// It names none of the bytes of a user's keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an encoded key begins so.
    pub fn matches(&self, encoded: &[u8]) -> bool {
        encoded.starts_with(&self.0)
    }

    fn divided(&self) -> Divided<'_> {
        divide(&self.0).expect("its form was checked when it was made")
    }
}

impl Default for KeyPrefix {
    /// All keys of the default bucket.
    fn default() -> Self {
        Self(Blob(Bytes::from_static(&[0; BUCKET_LEN])))
    }
}

impl fmt::Debug for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"..", self.0.escape_ascii())
    }
}

impl Serialize for KeyPrefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for KeyPrefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let encoded = Blob::deserialize(deserializer)?;
        divide(&encoded).map_err(de::Error::custom)?;
        Ok(Self(encoded))
    }
}

/// The place of an encoded key on the ring: XXH3-64 of its escaped partition key, with the bucket as seed. Fixed for ever by a test
/// vector.
///
/// For a key of the default bucket without a byte 00 that is XXH3-64 of the user's key with seed 0. Bytes that are no encoded key have a
/// place as well, XXH3-64 of all of them: nothing that serves requests takes such a key.
pub fn key_hash(key: &[u8]) -> u64 {
    match KeyParts::of(key) {
        Ok(parts) => xxh3_64_with_seed(parts.escaped, parts.bucket.0.into()),
        Err(MalformedKey) => xxh3_64(key),
    }
}

/// Bytes that are no encoded key, or no beginning of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a malformed key: it needs a bucket of 4 bytes, a partition key in which 00 is written as 00 FF, and 00 01 behind that"
)]
pub struct MalformedKey;

/// What stands before and behind the end of a partition key. Without an end: what an encoded key may begin with.
struct Divided<'a> {
    bucket: BucketId,
    escaped: &'a [u8],
    escapes: usize,
    behind: Option<&'a [u8]>,
}

fn divide(encoded: &[u8]) -> Result<Divided<'_>, MalformedKey> {
    let (bucket, rest) = encoded.split_first_chunk::<BUCKET_LEN>().ok_or(MalformedKey)?;
    let bucket = BucketId(u32::from_be_bytes(*bucket));
    let (mut from, mut escapes) = (0, 0);
    while let Some(nul) = memchr(0, &rest[from..]) {
        let at = from + nul;
        match rest.get(at + 1) {
            Some(&ESCAPED) => (from, escapes) = (at + 2, escapes + 1),
            Some(1) => return Ok(Divided { bucket, escaped: &rest[..at], escapes, behind: Some(&rest[at + 2..]) }),
            Some(_) | None => return Err(MalformedKey),
        }
    }
    Ok(Divided { bucket, escaped: rest, escapes, behind: None })
}

fn escape_into(bytes: &mut Vec<u8>, plain: &[u8]) {
    let mut rest = plain;
    while let Some(nul) = memchr(0, rest) {
        bytes.extend_from_slice(&rest[..nul]);
        bytes.extend_from_slice(&[0, ESCAPED]);
        rest = &rest[nul + 1..];
    }
    bytes.extend_from_slice(rest);
}

fn unescaped(escaped: &[u8], escapes: usize) -> Cow<'_, [u8]> {
    if escapes == 0 {
        return Cow::Borrowed(escaped);
    }
    let mut plain = Vec::with_capacity(escaped.len() - escapes);
    let mut rest = escaped;
    while let Some(nul) = memchr(0, rest) {
        plain.extend_from_slice(&rest[..=nul]);
        rest = &rest[nul + 2..];
    }
    plain.extend_from_slice(rest);
    Cow::Owned(plain)
}

const BUCKET_LEN: usize = 4;
/// What follows on a byte 00 of a partition key. Greater than what follows on the 00 that ends it, so that a partition key comes before
/// those that begin with it.
const ESCAPED: u8 = 0xff;
/// Ends a partition key.
const END: [u8; 2] = [0, 1];

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::codec;
    use crate::ids::Partition;

    /// Disks and messages hold it.
    #[test]
    fn encoded_keys_are_fixed_for_ever() {
        let hex = |key: Key| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(Key::plain("k")), "000000006b0001");
        assert_eq!(hex(Key::plain("")), "000000000001");
        assert_eq!(hex(Key::plain(b"a\0\x01")), "0000000061".to_owned() + "00ff01" + "0001");
        assert_eq!(hex(Key::new(BucketId(0x0102_0304), b"k", b"\0s")), "010203046b0001".to_owned() + "0073");
    }

    /// A change of it would move every key of every cluster.
    #[test]
    fn key_hash_is_fixed_for_ever() {
        assert_eq!(key_hash(&Key::plain("greeting")), 2_290_091_270_614_255_425);
        assert_eq!(key_hash(&Key::plain("")), 0x2d06_8005_38d3_94c2);
        assert_eq!(key_hash(&Key::plain(b"nul\0")), NUL_HASH);
        assert_eq!(key_hash(&Key::new(BucketId(1), b"greeting", b"")), GREETING_IN_BUCKET_1);
        assert_eq!(key_hash(&Key::plain("k".repeat(1000))), LONG_HASH);
        assert_eq!(key_hash(&Key::new(BucketId(7), "k".repeat(1000).as_bytes(), b"s")), LONG_IN_BUCKET_7);
        for place in [&b"k"[..], b"", b"\0\0\0\0k", b"\0\0\0\0k\0", b"\0\0\0\0k\0\x02"] {
            assert_eq!(key_hash(place), xxh3_64(place), "no encoded key");
        }
    }

    const NUL_HASH: u64 = 9_621_628_539_369_572_947;
    const GREETING_IN_BUCKET_1: u64 = 10_641_500_418_675_610_315;
    const LONG_HASH: u64 = 3_498_420_548_713_998_201;
    const LONG_IN_BUCKET_7: u64 = 5_799_829_548_023_479_501;

    #[test]
    fn a_key_is_shown_as_its_user_knows_it() {
        let shown = |bucket, partition_key: &[u8], sort_key: &[u8]| {
            Key::new(BucketId(bucket), partition_key, sort_key).parts().to_string()
        };
        assert_eq!(shown(0, b"k\n", b""), "k\\n");
        assert_eq!(shown(0, b"a\0b", b""), "a\\x00b");
        assert_eq!(shown(0, b"k", b"s\xff"), "k, sort key s\\xff");
        assert_eq!(shown(3, b"k", b"s"), "k, sort key s, bucket 3");
        assert_eq!(format!("{:?}", Key::plain("k")), "\"k\"");
    }

    #[test]
    fn a_malformed_key_is_refused_with_what_is_needed() {
        for bytes in [&b""[..], b"k", b"\0\0\0\0", b"\0\0\0\0k", b"\0\0\0\0k\0", b"\0\0\0\0k\0\0", b"\0\0\0\0\0\xff"] {
            let error = Key::from_encoded(Blob::copy_from(bytes)).expect_err("no key").to_string();
            assert!(error.contains("bucket of 4 bytes"), "{error}");
            let frame = codec::encode(&Blob::copy_from(bytes));
            let error = codec::decode::<Key>(&frame).expect_err("no key").to_string();
            assert!(error.contains("a malformed key"), "{error}");
        }
        for bytes in [&b""[..], b"\0\0\0", b"\0\0\0\0k\0", b"\0\0\0\0k\0\x02"] {
            let frame = codec::encode(&Blob::copy_from(bytes));
            codec::decode::<KeyPrefix>(&frame).expect_err("no key begins so");
        }
    }

    #[test]
    fn a_plain_key_is_taken_apart_without_a_copy() {
        let key = Key::plain("greeting");
        assert!(key.as_ptr_range().contains(&key.partition_key().as_ptr()));
        assert_eq!(key.partition_key(), "greeting");
    }

    /// Short ones of few bytes, so that the same and those that begin with each other turn up.
    fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![vec(prop_oneof![Just(0), Just(1), Just(0xff), Just(b'a')], 0..5), vec(any::<u8>(), 0..40)]
    }

    fn some_bucket() -> impl Strategy<Value = BucketId> {
        prop_oneof![Just(0), 0..3u32, any::<u32>()].prop_map(BucketId)
    }

    type Plain = (BucketId, Vec<u8>, Vec<u8>);

    fn some_key() -> impl Strategy<Value = Plain> {
        (some_bucket(), some_bytes(), some_bytes())
    }

    fn encoded((bucket, partition_key, sort_key): &Plain) -> Key {
        Key::new(*bucket, partition_key, sort_key)
    }

    proptest! {
        #[test]
        fn keys_come_back_from_their_bytes(plain in some_key()) {
            let key = encoded(&plain);
            let again: Key = codec::decode(&codec::encode(&key)).expect("a key");
            prop_assert_eq!(&again, &key);
            let parts = again.parts();
            prop_assert_eq!(parts.bucket(), plain.0);
            prop_assert_eq!(&*parts.partition_key(), &plain.1[..]);
            prop_assert_eq!(&again.partition_key(), &plain.1);
            prop_assert_eq!(parts.sort_key(), &plain.2[..]);
            prop_assert_eq!((parts.partition_key_len(), parts.len()), (plain.1.len(), plain.1.len() + plain.2.len()));
            prop_assert_eq!(parts.is_plain(), plain.0 == BucketId::DEFAULT && plain.2.is_empty());
        }

        #[test]
        fn encoded_keys_have_the_order_of_bucket_partition_key_and_sort_key(a in some_key(), b in some_key()) {
            prop_assert_eq!(encoded(&a).cmp(&encoded(&b)), a.cmp(&b));
        }

        /// No key of another partition key lies between two of the same one.
        #[test]
        fn records_of_one_partition_key_lie_side_by_side(
            bucket in some_bucket(), partition_key in some_bytes(), first in some_bytes(), second in some_bytes(), other in some_key(),
        ) {
            let in_it = |sort_key: &[u8]| Key::new(bucket, &partition_key, sort_key);
            let (first, second) = (in_it(&first).min(in_it(&second)), in_it(&first).max(in_it(&second)));
            let between = first < encoded(&other) && encoded(&other) < second;
            prop_assert!(!between || (other.0 == bucket && other.1 == partition_key));
            prop_assert!(in_it(b"") <= first, "a record without a sort key is the first one");
        }

        #[test]
        fn the_hash_is_that_of_bucket_and_partition_key(plain in some_key(), sort_key in some_bytes(), partitions in 1..512u16) {
            let (bucket, partition_key, _) = &plain;
            let sibling = Key::new(*bucket, partition_key, &sort_key);
            prop_assert_eq!(key_hash(&encoded(&plain)), key_hash(&sibling));
            let partition = |key: &Key| Partition::of(key_hash(key), partitions);
            prop_assert_eq!(partition(&encoded(&plain)), partition(&sibling));
            if partition_key.len() > 8 {
                let elsewhere = Key::new(BucketId(bucket.0 ^ 1), partition_key, &sort_key);
                prop_assert_ne!(key_hash(&sibling), key_hash(&elsewhere));
            }
        }

        #[test]
        fn a_prefix_means_the_keys_that_begin_so_and_no_others(bucket in some_bucket(), prefix in some_bytes(), plain in some_key()) {
            let key = encoded(&plain);
            let by_partition_key: KeyPrefix =
                codec::decode(&codec::encode(&KeyPrefix::new(bucket, &prefix))).expect("a prefix");
            prop_assert_eq!(by_partition_key.matches(&key), plain.0 == bucket && plain.1.starts_with(&prefix));
            prop_assert_eq!((by_partition_key.bucket(), by_partition_key.sort_key_prefix()), (bucket, None));
            prop_assert_eq!((by_partition_key.len(), by_partition_key.is_whole_bucket()), (prefix.len(), prefix.is_empty()));
            let by_sort_key = KeyPrefix::of_partition_key(plain.0, &plain.1, &prefix);
            prop_assert_eq!(by_sort_key.matches(&key), plain.2.starts_with(&prefix));
            prop_assert_eq!((by_sort_key.bucket(), by_sort_key.sort_key_prefix()), (plain.0, Some(&prefix[..])));
            prop_assert_eq!(by_sort_key.len(), plain.1.len() + prefix.len());
        }

        #[test]
        fn any_bytes_are_one_key_or_none(bytes in some_bytes(), ended: bool) {
            let bytes = if ended { [&[0; BUCKET_LEN][..], &bytes, &END].concat() } else { bytes };
            key_hash(&bytes);
            if let Ok(parts) = KeyParts::of(&bytes) {
                let again = Key::new(parts.bucket(), &parts.partition_key(), parts.sort_key());
                prop_assert_eq!(&again[..], &bytes[..]);
            }
        }
    }
}
