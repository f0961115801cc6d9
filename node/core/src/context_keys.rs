//! Rule V5: who may have issued a context, and how a node knows it.
//!
//! A context says what has been seen of a key, and a node that takes it believes it: a mint drops what it covers and hands the claim on to
//! every replica. A client that could make one up could claim dots that nobody has minted yet, so that they would be dropped when they
//! come, or so many that the key could never be written again. So a context is taken only if a node of this cluster has issued it for
//! this very key. Nodes share secrets that clients do not know, and what a client gets carries a message authentication code:
//!
//! ```text
//!   version u8 = 4 | number of the secret u32 | its id u64 | what Context::seal makes | tag, 16 bytes
//!   tag: the first 16 bytes of HMAC-SHA256(secret, length of the key u64 | the key | all that stands before the tag)
//! ```
//!
//! The key itself goes into the code and not its hash: whoever chooses two keys can choose them with the same XXH3-128.
//!
//! # The secrets
//!
//! The first one comes with the first layout. A rotation adds one, and the highest seals; a few older ones still open. Their names are
//! ordered by (number, id), where the id follows from the secret, so that two rotations at once give two names and the same set
//! everywhere: [`ContextKeys::merge`] is commutative, associative and idempotent.

use std::collections::BTreeMap;
use std::fmt;

use ::ring::{digest, hmac};
use bytes::Bytes;
use quorate_wire::CONTEXT_LEN_MAX;
use quorate_wire::codec::Blob;
use quorate_wire::ids::ClusterId;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use xxhash_rust::xxh3::xxh3_64;

use super::version::Context;

/// The secrets that this node knows: at most [`KEYS_MAX`], the highest names. It prints as their names.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(into = "Vec<(u32, Blob)>", try_from = "Vec<(u32, Blob)>")]
pub struct ContextKeys(BTreeMap<KeyName, Secret>);

/// What a secret is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyName {
    /// Counted from 1: the first one, then one more with each rotation.
    pub number: u32,
    /// Follows from the secret, and does not tell it.
    pub id: u64,
}

#[derive(Clone)]
struct Secret {
    bytes: [u8; SECRET_LEN],
    mac: hmac::Key,
}

/// Why a context is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejected {
    /// It names a secret that this node does not know. Another node may have it, as after a rotation of a moment ago.
    UnknownKey(KeyName),
    /// It is not of this cluster and key, or damaged, or nobody has issued it: the text says which, as far as that can be known.
    Bad(String),
}

/// As many secrets are known at a time: contexts that were issued before the last three rotations are refused.
pub const KEYS_MAX: usize = 4;

/// The bytes of a secret; as many as SHA-256 gives.
pub const SECRET_LEN: usize = 32;

impl ContextKeys {
    /// Those of a new cluster. The secret must come from a cryptographically secure generator.
    pub fn first(secret: [u8; SECRET_LEN]) -> Self {
        let mut keys = Self::default();
        keys.add(1, secret);
        keys
    }

    /// These and a new one, which seals from then on; nothing if there are none yet, or no number is left. The oldest one is
    /// given up for it when there are [`KEYS_MAX`].
    pub fn rotated(&self, secret: [u8; SECRET_LEN]) -> Option<Self> {
        let mut keys = self.clone();
        keys.add(self.newest()?.number.checked_add(1)?, secret);
        Some(keys)
    }

    /// Takes in what another node knows. Tells whether anything of it is news. Commutative, associative and idempotent.
    pub fn merge(&mut self, other: &Self) -> bool {
        let before = self.names();
        self.0.extend(other.0.iter().map(|(name, secret)| (*name, secret.clone())));
        self.trim();
        self.names() != before
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one that seals.
    pub fn newest(&self) -> Option<KeyName> {
        self.0.last_key_value().map(|(name, _)| *name)
    }

    /// Their names, the newest first.
    pub fn names(&self) -> Vec<KeyName> {
        self.0.keys().rev().copied().collect()
    }

    /// Whether this one is known.
    pub fn knows(&self, name: &KeyName) -> bool {
        self.0.contains_key(name)
    }

    /// Tells sets that differ apart. It tells nothing of the secrets.
    pub fn digest(&self) -> u64 {
        let names: Vec<u8> = self.0.keys().flat_map(|name| name.to_bytes()).collect();
        xxh3_64(&names)
    }

    /// To what clients get.
    ///
    /// # Panics
    /// When there are none: a node has the first one with its layout, and issues nothing before.
    pub fn seal(&self, context: &Context, cluster: ClusterId, key: &[u8]) -> Bytes {
        let (name, secret) = self.0.last_key_value().expect("a node has a secret before it issues contexts");
        let mut sealed = Vec::with_capacity(sealed_len(context));
        sealed.push(VERSION);
        sealed.extend_from_slice(&name.to_bytes());
        context.seal_into(&mut sealed, cluster, key);
        let tag = secret.tag(&sealed, key);
        sealed.extend_from_slice(&tag);
        sealed.into()
    }

    /// From what clients send. The code is checked before anything else is believed.
    ///
    /// # Errors
    /// When no node of this cluster has issued it for this key, or nobody knows any more whether one has.
    pub fn open(&self, sealed: &Bytes, cluster: ClusterId, key: &[u8]) -> Result<Context, Rejected> {
        let Parts { name, body, tag } = Parts::of(sealed).map_err(Rejected::Bad)?;
        let Some(secret) = self.0.get(&name) else {
            // What it says of itself is believed where that is a reason to refuse it.
            Context::check(&body, cluster, key).map_err(Rejected::Bad)?;
            let oldest = self.0.first_key_value().filter(|_| self.0.len() == KEYS_MAX);
            if oldest.is_some_and(|(oldest, _)| name < *oldest) {
                let why = format!("it was issued under context key {name}, which has been retired since");
                return Err(Rejected::Bad(why));
            }
            return Err(Rejected::UnknownKey(name));
        };
        let right = secret.tag(&sealed[..sealed.len() - TAG_LEN], key);
        if !bool::from(right.ct_eq(tag.as_ref())) {
            let said = Context::check(&body, cluster, key).err();
            return Err(Rejected::Bad(said.unwrap_or_else(|| NOBODY_ISSUED_IT.to_owned())));
        }
        Context::open(&body, cluster, key).map_err(Rejected::Bad)
    }

    fn add(&mut self, number: u32, secret: [u8; SECRET_LEN]) {
        let (name, secret) = Secret::new(number, secret);
        self.0.insert(name, secret);
        self.trim();
    }

    fn trim(&mut self) {
        while self.0.len() > KEYS_MAX {
            self.0.pop_first();
        }
    }
}

/// How many bytes [`ContextKeys::seal`] makes.
pub fn sealed_len(context: &Context) -> usize {
    AROUND_LEN + context.sealed_len()
}

/// What stands before the body, the body as [`Context::seal`] made it, and the tag; without asking who has issued it. For whoever looks at
/// what clients hold, or forges it.
///
/// # Errors
/// When it has not the shape of what clients get.
#[doc(hidden)]
pub fn taken_apart(sealed: &Bytes) -> Result<[Bytes; 3], String> {
    Parts::of(sealed).map(|Parts { body, tag, .. }| [sealed.slice(..1 + NAME_LEN), body, tag])
}

impl PartialEq for ContextKeys {
    /// The names tell: each follows from its secret.
    fn eq(&self, other: &Self) -> bool {
        self.0.keys().eq(other.0.keys())
    }
}

impl Eq for ContextKeys {}

impl fmt::Debug for ContextKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl From<ContextKeys> for Vec<(u32, Blob)> {
    fn from(keys: ContextKeys) -> Self {
        keys.0.iter().map(|(name, secret)| (name.number, Blob::copy_from(&secret.bytes))).collect()
    }
}

impl TryFrom<Vec<(u32, Blob)>> for ContextKeys {
    type Error = String;

    fn try_from(encoded: Vec<(u32, Blob)>) -> Result<Self, String> {
        if encoded.len() > KEYS_MAX {
            return Err(format!("{} context keys, at most {KEYS_MAX} are possible", encoded.len()));
        }
        let mut keys = Self::default();
        for (number, secret) in encoded {
            let secret = secret.as_ref().try_into();
            keys.add(number, secret.map_err(|_| format!("a context key has {SECRET_LEN} bytes"))?);
        }
        Ok(keys)
    }
}

impl KeyName {
    fn to_bytes(self) -> [u8; NAME_LEN] {
        let mut bytes = [0; NAME_LEN];
        bytes[..4].copy_from_slice(&self.number.to_be_bytes());
        bytes[4..].copy_from_slice(&self.id.to_be_bytes());
        bytes
    }
}

impl fmt::Display for KeyName {
    /// As `2 (91c0f3..)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:06x}..)", self.number, self.id >> 40)
    }
}

impl Secret {
    fn new(number: u32, bytes: [u8; SECRET_LEN]) -> (KeyName, Self) {
        let mut id = digest::Context::new(&digest::SHA256);
        id.update(b"quorate context key id");
        id.update(&bytes);
        let id = id.finish();
        let id = u64::from_be_bytes(*id.as_ref().first_chunk().expect("SHA-256 has 32 bytes"));
        (KeyName { number, id }, Self { bytes, mac: hmac::Key::new(hmac::HMAC_SHA256, &bytes) })
    }

    fn tag(&self, before: &[u8], key: &[u8]) -> [u8; TAG_LEN] {
        let mut tag = hmac::Context::with_key(&self.mac);
        tag.update(&(key.len() as u64).to_be_bytes());
        tag.update(key);
        tag.update(before);
        *tag.sign().as_ref().first_chunk().expect("SHA-256 has 32 bytes")
    }
}

/// What a client's bytes consist of.
struct Parts {
    name: KeyName,
    body: Bytes,
    tag: Bytes,
}

impl Parts {
    fn of(sealed: &Bytes) -> Result<Self, String> {
        if sealed.len() > CONTEXT_LEN_MAX {
            return Err(format!("it has {} bytes, at most {CONTEXT_LEN_MAX} are allowed", sealed.len()));
        }
        match sealed.first() {
            None => return Err("it is empty; leave it out if nothing has been seen".into()),
            Some(&VERSION) => {}
            Some(version) => return Err(format!("version {version} is unknown, this node speaks {VERSION}")),
        }
        if sealed.len() <= AROUND_LEN {
            return Err(format!("it is damaged: {} bytes are too few", sealed.len()));
        }
        let (number, id) = (sealed[1..].first_chunk(), sealed[5..].first_chunk());
        let (number, id) = (number.expect("checked above"), id.expect("checked above"));
        let name = KeyName { number: u32::from_be_bytes(*number), id: u64::from_be_bytes(*id) };
        let end = sealed.len() - TAG_LEN;
        Ok(Self { name, body: sealed.slice(1 + NAME_LEN..end), tag: sealed.slice(end..) })
    }
}

/// The version of what clients get. Version 1 was the body alone, which anybody can make; version 2 was of a user's key, not of an encoded
/// one; version 3 named no operations.
const VERSION: u8 = 4;
/// A name's number and id.
const NAME_LEN: usize = 4 + 8;
/// Half of what HMAC-SHA256 gives: nobody guesses 128 bits.
const TAG_LEN: usize = 16;
/// What stands around the body.
const AROUND_LEN: usize = 1 + NAME_LEN + TAG_LEN;

const NOBODY_ISSUED_IT: &str = "no node of this cluster has issued it for this key";

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use quorate_wire::codec;
    use quorate_wire::ids::OpId;
    use quorate_wire::{BucketId, Key};
    use xxhash_rust::xxh3::xxh3_128;

    use super::super::version::tests::{contexts, dot};
    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);
    const KEY: &[u8] = b"key";

    fn keys(secret: u8) -> ContextKeys {
        ContextKeys::first([secret; SECRET_LEN])
    }

    fn context() -> Context {
        let mut context = Context::new();
        context.insert(dot(0, 3));
        context.advance(super::super::version::tests::actor(1), 7);
        context.names_mut().insert(OpId::new(9, 1), dot(0, 3));
        context
    }

    fn why(keys: &ContextKeys, sealed: impl Into<Bytes>, cluster: ClusterId, key: &[u8]) -> String {
        match keys.open(&sealed.into(), cluster, key).expect_err("refused") {
            Rejected::Bad(why) => why,
            Rejected::UnknownKey(name) => format!("unknown key {name}"),
        }
    }

    /// The same bytes around another body, as somebody makes them who does not know the secret.
    fn with_body(sealed: &Bytes, body: &[u8]) -> Vec<u8> {
        [&sealed[..1 + NAME_LEN], body, &sealed[sealed.len() - TAG_LEN..]].concat()
    }

    #[test]
    fn a_refused_context_says_what_is_wrong() {
        let (keys, context) = (keys(1), context());
        let sealed = keys.seal(&context, CLUSTER, KEY);
        assert_eq!(keys.open(&sealed, CLUSTER, KEY), Ok(context.clone()));
        assert_eq!(why(&keys, sealed.clone(), CLUSTER, b"other"), "it belongs to another key");
        assert!(why(&keys, sealed.clone(), ClusterId(8), KEY).contains("another cluster"));
        assert!(why(&keys, vec![], CLUSTER, KEY).contains("empty"));
        for len in 1..sealed.len() {
            let why = why(&keys, sealed.slice(..len), CLUSTER, KEY);
            assert!(why.contains("damaged"), "{len} bytes: {why}");
        }
        let longer = [&sealed[..], &[0]].concat();
        assert!(why(&keys, longer, CLUSTER, KEY).contains("damaged"));
        assert!(why(&keys, vec![VERSION; CONTEXT_LEN_MAX + 1], CLUSTER, KEY).contains("at most 65536"));
        // As they were before there were codes: anybody can make them.
        let old = context.seal(CLUSTER, KEY);
        assert_eq!(why(&keys, old, CLUSTER, KEY), "version 2 is unknown, this node speaks 4");
    }

    #[test]
    fn a_made_up_context_is_refused_whatever_it_says() {
        let (keys, context) = (keys(1), context());
        let genuine = keys.seal(&context, CLUSTER, KEY);
        let mut claim = context.clone();
        claim.insert(dot(0, 1000));
        // A good body with the code of another one, with no code, and with the code of a stranger's secret.
        let body = claim.seal(CLUSTER, KEY);
        assert_eq!(why(&keys, with_body(&genuine, &body), CLUSTER, KEY), NOBODY_ISSUED_IT);
        let mut none = with_body(&genuine, &body);
        let at = none.len() - TAG_LEN;
        none[at..].fill(0);
        assert_eq!(why(&keys, none, CLUSTER, KEY), NOBODY_ISSUED_IT);
        let stranger = self::keys(2).seal(&claim, CLUSTER, KEY);
        assert!(why(&keys, stranger.clone(), CLUSTER, KEY).starts_with("unknown key 1 "));
        let mut posing = stranger.to_vec();
        posing[..1 + NAME_LEN].copy_from_slice(&genuine[..1 + NAME_LEN]);
        assert_eq!(why(&keys, posing, CLUSTER, KEY), NOBODY_ISSUED_IT);
        // That of another key and of another cluster, said to be of this one.
        for genuine in [keys.seal(&context, CLUSTER, b"other"), keys.seal(&context, ClusterId(8), KEY)] {
            let posing = with_body(&genuine, &context.seal(CLUSTER, KEY));
            assert_eq!(why(&keys, posing, CLUSTER, KEY), NOBODY_ISSUED_IT);
        }
    }

    /// XXH3 is no cryptographic hash. Where the low half of a lane is the secret's, its product is 0 and only the sum of the high
    /// halves counts, so that one may be a little less and another one as much more.
    #[test]
    fn keys_that_were_chosen_to_have_the_same_hash_have_contexts_of_their_own() {
        let key = |first: u8, second: u8| {
            let mut key = vec![b'k'; 300];
            key[..8].copy_from_slice(&[0xb8, 0xfe, 0x6c, 0x39, first, 0, 0, 0]);
            key[64..72].copy_from_slice(&[0x7c, 0x01, 0x81, 0x2c, second, 0, 0, 0]);
            key
        };
        let (mine, theirs) = (key(1, 2), key(2, 1));
        assert_ne!(mine, theirs);
        assert_eq!(xxh3_128(&mine), xxh3_128(&theirs), "or this shows nothing");
        let sealed = keys(1).seal(&context(), CLUSTER, &mine);
        assert_eq!(why(&keys(1), sealed, CLUSTER, &theirs), NOBODY_ISSUED_IT);
    }

    #[test]
    fn older_keys_open_until_they_are_retired() {
        let first = keys(0);
        let sealed = first.seal(&context(), CLUSTER, KEY);
        let mut now = first.clone();
        for secret in 1..KEYS_MAX as u8 {
            now = now.rotated([secret; SECRET_LEN]).expect("there is a first one");
            assert_eq!(now.open(&sealed, CLUSTER, KEY), Ok(context()));
            let newest = now.seal(&context(), CLUSTER, KEY);
            assert_eq!(first.open(&newest, CLUSTER, KEY), Err(Rejected::UnknownKey(now.newest().expect("there"))));
            assert_eq!(now.open(&newest, CLUSTER, KEY), Ok(context()));
        }
        let now = now.rotated([9; SECRET_LEN]).expect("there is one");
        assert_eq!(now.names().len(), KEYS_MAX);
        assert!(why(&now, sealed.clone(), CLUSTER, KEY).contains("retired"), "{}", why(&now, sealed, CLUSTER, KEY));
        assert!(ContextKeys::default().rotated([1; SECRET_LEN]).is_none());
    }

    #[test]
    fn two_rotations_at_once_end_in_the_same_set() {
        let first = keys(0);
        let (mut a, mut b) = (first.rotated([1; SECRET_LEN]), first.rotated([2; SECRET_LEN]));
        let (a, b) = (a.as_mut().expect("rotated"), b.as_mut().expect("rotated"));
        let (of_a, of_b) = (a.seal(&context(), CLUSTER, KEY), b.seal(&context(), CLUSTER, KEY));
        assert!(a.merge(&b.clone()) && b.merge(a));
        assert!(!a.merge(b), "nothing new");
        assert_eq!((a.names(), a.digest()), (b.names(), b.digest()));
        assert_ne!(a.digest(), first.digest());
        for keys in [a, b] {
            assert_eq!(keys.names().len(), 3);
            assert_eq!(keys.open(&of_a, CLUSTER, KEY), Ok(context()));
            assert_eq!(keys.open(&of_b, CLUSTER, KEY), Ok(context()));
        }
    }

    #[test]
    fn secrets_are_for_the_wire_and_the_disk_and_for_no_eyes() {
        let keys = keys(0xab).rotated([0xcd; SECRET_LEN]).expect("there is a first one");
        let shown = format!("{keys:?} {:?} {}", keys.names(), keys.newest().expect("there"));
        for secret in ["171", "205", "0xab", "abab", "ABAB", "cdcd"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        let again: ContextKeys = codec::decode(&codec::encode(&keys)).expect("the same");
        assert_eq!(again, keys);
        let sealed = keys.seal(&context(), CLUSTER, KEY);
        assert_eq!(again.open(&sealed, CLUSTER, KEY), Ok(context()));
        let short = vec![(1u32, Blob::copy_from(&[7; SECRET_LEN - 1]))];
        assert!(codec::decode::<ContextKeys>(&codec::encode(&short)).is_err());
        let many: Vec<_> = (0..=KEYS_MAX as u8).map(|i| (1u32, Blob::copy_from(&[i; SECRET_LEN]))).collect();
        assert!(codec::decode::<ContextKeys>(&codec::encode(&many)).is_err());
    }

    /// Fixed for ever: what clients have kept must open after an update of the node.
    #[test]
    fn what_was_sealed_once_opens() {
        let hex = |key: &[u8]| {
            let sealed = keys(5).seal(&context(), CLUSTER, key);
            sealed.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(hex(KEY), SEALED);
        assert_eq!(hex(&Key::plain("key")), SEALED_PLAIN);
        assert_eq!(hex(&Key::new(BucketId(1), b"key", b"s")), SEALED_S_IN_BUCKET_1);
    }

    const SEALED_PLAIN: &str = "040000000194d0d84fcbbab97b02000000000000000000000000000000073c8c88879d88aef8a2d77590569\
        7879b02026e30010000000000000000000101026e31010000000000000000070001000000000009700080000000000000010003236d1\
        f48306ab9636565fc056e1c421725ff87a6";
    const SEALED_S_IN_BUCKET_1: &str = "040000000194d0d84fcbbab97b02000000000000000000000000000000073363aee5acca9d907a7\
        5d14f17b75ad602026e30010000000000000000000101026e31010000000000000000070001000000000009700080000000000000010\
        003ae1847fbb43df47de87f9153b39eae19094689fc";

    #[test]
    fn a_context_is_of_one_bucket_and_of_one_sort_key() {
        let named = |bucket, sort_key: &[u8]| Key::new(BucketId(bucket), b"key", sort_key);
        let all = [named(0, b""), named(1, b""), named(0, b"s"), named(1, b"s"), named(0, b"t")];
        for (at, key) in all.iter().enumerate() {
            let sealed = keys(1).seal(&context(), CLUSTER, key);
            for (of, other) in all.iter().enumerate() {
                match of == at {
                    true => assert_eq!(keys(1).open(&sealed, CLUSTER, other), Ok(context())),
                    false => assert_eq!(why(&keys(1), sealed.clone(), CLUSTER, other), "it belongs to another key"),
                }
            }
        }
    }

    const SEALED: &str = "040000000194d0d84fcbbab97b0200000000000000000000000000000007a4bdf4e564564cf8bbea0d63a05165e30\
        2026e30010000000000000000000101026e31010000000000000000070001000000000009700080000000000000010003e55de2b6ac8\
        5b07b81a7b2ac83083e5fb2ad36c4";

    fn some_keys() -> impl Strategy<Value = ContextKeys> {
        vec((1..4u32, 0..5u8), 0..=KEYS_MAX).prop_map(|keys| {
            let encoded: Vec<_> =
                keys.into_iter().map(|(number, secret)| (number, Blob::copy_from(&[secret; SECRET_LEN]))).collect();
            ContextKeys::try_from(encoded).expect("few of the right length")
        })
    }

    fn merged(a: &ContextKeys, b: &ContextKeys) -> ContextKeys {
        let mut merged = a.clone();
        assert_eq!(merged.merge(b), merged != *a, "merge says whether it changed something");
        merged
    }

    proptest! {
        #[test]
        fn merge_is_commutative_associative_and_idempotent(a in some_keys(), b in some_keys(), c in some_keys()) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(&merged(&a, &a), &a);
            prop_assert!(merged(&a, &b).names().len() <= KEYS_MAX);
            prop_assert_eq!(a.digest() == b.digest(), a == b);
        }

        #[test]
        fn a_sealed_context_comes_back(context in contexts(), key in vec(any::<u8>(), 1..40)) {
            let sealed = keys(1).seal(&context, CLUSTER, &key);
            prop_assert_eq!(sealed.len(), sealed_len(&context));
            let [head, body, tag] = taken_apart(&sealed).expect("well formed");
            prop_assert_eq!(&body, &context.seal(CLUSTER, &key));
            prop_assert_eq!(&[head, body, tag].concat()[..], &sealed[..]);
            prop_assert_eq!(keys(1).open(&sealed, CLUSTER, &key), Ok(context));
        }

        #[test]
        fn every_flipped_bit_is_refused(context in contexts()) {
            let keys = keys(1).rotated([2; SECRET_LEN]).expect("there is a first one");
            let sealed = keys.seal(&context, CLUSTER, KEY).to_vec();
            for bit in 0..sealed.len() * 8 {
                let mut flipped = sealed.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(keys.open(&flipped.into(), CLUSTER, KEY).is_err(), "bit {}", bit);
            }
        }

        /// Of two contexts of one key, or two keys' contexts, no mixture opens that is not one of them.
        #[test]
        fn pieces_of_genuine_contexts_make_no_other_one(
            a in contexts(),
            b in contexts(),
            other in any::<bool>(),
            cuts in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        ) {
            let keys = keys(1);
            let genuine = keys.seal(&a, CLUSTER, KEY);
            let giver = keys.seal(&b, CLUSTER, if other { b"other" } else { KEY });
            let (from, to) = (cuts.0.index(giver.len() + 1), cuts.1.index(genuine.len() + 1));
            let mixed = Bytes::from([&giver[..from], &genuine[to..]].concat());
            if mixed != genuine && (other || mixed != giver) {
                prop_assert!(keys.open(&mixed, CLUSTER, KEY).is_err());
            }
        }

        #[test]
        fn any_bytes_are_refused(bytes in vec(any::<u8>(), 0..120), versioned in any::<bool>()) {
            let mut bytes = bytes;
            if let (true, Some(first)) = (versioned, bytes.first_mut()) {
                *first = VERSION;
            }
            prop_assert!(keys(1).open(&bytes.into(), CLUSTER, KEY).is_err());
        }
    }
}
