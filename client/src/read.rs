//! What requests give back: the values of a read, the receipt of a write, and the context that ties one to the next.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::de::{self, DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::Error;
use crate::value;
use quorate_wire::ids::OpId;
use quorate_wire::{self as wire, CONTEXT_LEN_MAX, Evidence, QuorumReport};

/// The values of one key as R replicas hold them: none, one, or several siblings that concurrent writers left.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    key: Bytes,
    values: Vec<Bytes>,
    context: Context,
    quorum: QuorumReport,
    evidence: Option<Box<Evidence>>,
}

impl Read {
    pub(crate) fn new(key: Bytes, found: wire::Found) -> Result<Self, Error> {
        Ok(Self {
            key,
            values: found.values.into_iter().map(|blob| blob.0).collect(),
            context: Context::from_bytes(found.context.0)?,
            quorum: found.quorum,
            evidence: found.evidence,
        })
    }

    /// The key that was read.
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// The one value.
    ///
    /// # Errors
    /// [`Error::NotFound`] without a value, [`Error::Siblings`] with several: then [`siblings`](Self::siblings) or
    /// [`resolve`](Self::resolve) is the way.
    pub fn one(&self) -> Result<&Bytes, Error> {
        match &self.values[..] {
            [value] => Ok(value),
            [] => Err(self.not_found()),
            several => {
                Err(Error::Siblings { key: self.key.clone(), count: several.len(), context: self.context.clone() })
            }
        }
    }

    /// The one value, moved out.
    ///
    /// # Errors
    /// As [`one`](Self::one).
    pub fn into_one(mut self) -> Result<Bytes, Error> {
        self.one()?;
        Ok(self.values.remove(0))
    }

    /// All values, in an order that is the same on every replica. More than one means that their writers did not know of
    /// each other.
    pub fn siblings(&self) -> &[Bytes] {
        &self.values
    }

    /// No value is there; only reads that [allow it](crate::Get::allow_absent) and updates come to see this.
    pub fn is_absent(&self) -> bool {
        self.values.is_empty()
    }

    /// The one value, decoded from what [`Typed`](crate::Typed) stored.
    ///
    /// # Errors
    /// As [`one`](Self::one), and [`Error::Codec`] when the value is no `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        value::decode(self.one()?)
    }

    /// All values, decoded from what [`Typed`](crate::Typed) stored; an absent key gives none.
    ///
    /// # Errors
    /// [`Error::Codec`] when one of the values is no `T`.
    pub fn decode_all<T: DeserializeOwned>(&self) -> Result<Vec<T>, Error> {
        self.values.iter().map(value::decode).collect()
    }

    /// Decodes all values and merges them into one, two at a time. To make it last, put the result with this read as its
    /// cause.
    ///
    /// # Errors
    /// [`Error::NotFound`] without a value, [`Error::Codec`] when one of the values is no `T`.
    pub fn resolve<T: DeserializeOwned>(&self, merge: impl FnMut(T, T) -> T) -> Result<T, Error> {
        self.decode_all()?.into_iter().reduce(merge).ok_or_else(|| self.not_found())
    }

    /// Covers exactly what this read returned: a put or delete that carries it replaces these values and no others.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Who answered, in which role, and whether the promise of R + W > N holds for this read.
    pub fn quorum(&self) -> &QuorumReport {
        &self.quorum
    }

    /// How the read was answered, if the request asked to [explain](crate::Get::explain).
    pub fn evidence(&self) -> Option<&Evidence> {
        self.evidence.as_deref()
    }

    pub(crate) fn not_found(&self) -> Error {
        Error::NotFound { key: self.key.clone(), context: self.context.clone(), quorum: self.quorum.clone() }
    }

    /// The same read with other values; for updates, which take their own earlier attempt out of what they merge.
    pub(crate) fn with_values(mut self, values: Vec<Bytes>) -> Self {
        self.values = values;
        self
    }
}

/// The receipt of a write that W replicas acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    key: Bytes,
    op_id: OpId,
    context: Context,
    siblings: u32,
    replaced: u32,
    synced: bool,
    context_large: bool,
    quorum: QuorumReport,
    evidence: Option<Box<Evidence>>,
}

impl Written {
    pub(crate) fn new(key: Bytes, op_id: OpId, written: wire::Written) -> Result<Self, Error> {
        Ok(Self {
            key,
            op_id,
            context: Context::from_bytes(written.context.0)?,
            siblings: written.siblings,
            replaced: written.replaced,
            synced: written.synced,
            context_large: written.context_large,
            quorum: written.quorum,
            evidence: written.evidence,
        })
    }

    /// The key that was written.
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// The operation id that the write was made with.
    pub fn op_id(&self) -> OpId {
        self.op_id
    }

    /// What the writer has now seen: its cause and this write. Good as the cause of the next write to the key.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// How many values the key has now, this one included; above 1 (for a delete: above 0) another writer was concurrent.
    pub fn siblings(&self) -> u32 {
        self.siblings
    }

    /// How many values this write replaced or deleted.
    pub fn replaced(&self) -> u32 {
        self.replaced
    }

    /// Every counted acknowledgement came after a sync to disk.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// The key's context is above 1 KiB: very many different coordinators have written it.
    pub fn context_large(&self) -> bool {
        self.context_large
    }

    /// Who acknowledged, in which role.
    pub fn quorum(&self) -> &QuorumReport {
        &self.quorum
    }

    /// How the write went, if the request asked to [explain](crate::Put::explain).
    pub fn evidence(&self) -> Option<&Evidence> {
        self.evidence.as_deref()
    }
}

/// What has been seen of a key: opaque bytes that a read or a write returns and that the next write carries.
///
/// It belongs to one key of one cluster; nodes refuse it for any other. It prints as base64url without padding, and so
/// travels through web pages and command lines.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Context(Bytes);

impl Context {
    /// Takes back what [`to_bytes`](Self::to_bytes) gave.
    ///
    /// # Errors
    /// When it is empty or longer than [`CONTEXT_LEN_MAX`]. What is inside is for the nodes to judge.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, InvalidContext> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(InvalidContext("it is empty".into())),
            1..=CONTEXT_LEN_MAX => Ok(Self(bytes)),
            len => Err(InvalidContext(format!("it has {len} bytes, at most {CONTEXT_LEN_MAX} are allowed"))),
        }
    }

    /// The bytes, to be kept anywhere; without a copy.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(&self.0))
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({self})")
    }
}

impl FromStr for Context {
    type Err = InvalidContext;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Checked before decoding, so that a huge text costs nothing.
        if text.len() > CONTEXT_LEN_MAX.div_ceil(3) * 4 {
            return Err(InvalidContext(format!("it has {} characters, which is too long", text.len())));
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidContext("it is no base64url".into()))?;
        Self::from_bytes(bytes)
    }
}

impl Serialize for Context {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Context {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            let blob = quorate_wire::codec::Blob::deserialize(deserializer)?;
            Self::from_bytes(blob.0).map_err(de::Error::custom)
        }
    }
}

/// Why bytes or a text are not a context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not a context: {0}; take the one that a read or a write returned, whole")]
pub struct InvalidContext(String);

impl From<InvalidContext> for Error {
    fn from(error: InvalidContext) -> Self {
        Self::Misuse { why: error.to_string() }
    }
}

/// What a write follows from; decides what it replaces.
///
/// Made from a [`Read`], a [`Written`], a [`Context`], or the word [`Blind`].
#[derive(Debug, Clone, PartialEq)]
pub struct Cause(pub(crate) Known);

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Known {
    Nothing,
    Seen {
        context: Context,
        /// The key that the context is of, where it is known.
        key: Option<Bytes>,
        /// It came from a read that found no value.
        absent: bool,
    },
}

impl Cause {
    /// The context to send for a write of this key.
    pub(crate) fn context_for(&self, key: &[u8]) -> Result<Option<&Context>, Error> {
        match &self.0 {
            Known::Nothing => Ok(None),
            Known::Seen { context, key: of, .. } => match of {
                Some(of) if of != key => Err(Error::misuse(format!(
                    "the cause is of key {}, the write is of key {}; a cause must be of the same key",
                    crate::error::KeyText(of),
                    crate::error::KeyText(key)
                ))),
                _ => Ok(Some(context)),
            },
        }
    }
}

/// The cause of a write by somebody who has seen nothing of the key: it replaces nothing, and a value that is there stays
/// beside it as a sibling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blind;

impl From<Blind> for Cause {
    fn from(_: Blind) -> Self {
        Self(Known::Nothing)
    }
}

impl From<&Read> for Cause {
    fn from(read: &Read) -> Self {
        let (key, absent) = (Some(read.key.clone()), read.is_absent());
        Self(Known::Seen { context: read.context.clone(), key, absent })
    }
}

impl From<Read> for Cause {
    fn from(read: Read) -> Self {
        (&read).into()
    }
}

impl From<&Written> for Cause {
    fn from(written: &Written) -> Self {
        let key = Some(written.key.clone());
        Self(Known::Seen { context: written.context.clone(), key, absent: false })
    }
}

impl From<Written> for Cause {
    fn from(written: Written) -> Self {
        (&written).into()
    }
}

impl From<Context> for Cause {
    fn from(context: Context) -> Self {
        Self(Known::Seen { context, key: None, absent: false })
    }
}

impl From<&Context> for Cause {
    fn from(context: &Context) -> Self {
        context.clone().into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::value::{IntoValue, Typed};
    use quorate_wire::codec::Blob;

    fn read(values: &[&[u8]]) -> Read {
        let found = wire::Found {
            values: values.iter().map(|value| Blob::copy_from(value)).collect(),
            context: Blob::copy_from(b"seen"),
            quorum: QuorumReport::default(),
            evidence: None,
        };
        Read::new(Bytes::from_static(b"k"), found).expect("well formed")
    }

    #[test]
    fn one_is_refused_for_none_and_for_several() {
        assert_eq!(read(&[b"a"]).one().expect("one"), "a");
        assert_eq!(read(&[b"a"]).into_one().expect("one"), "a");
        assert!(matches!(read(&[]).one(), Err(Error::NotFound { .. })));
        let error = read(&[b"a", b"b"]).into_one().expect_err("two");
        assert!(matches!(&error, Error::Siblings { count: 2, context, .. } if context == read(&[]).context()));
    }

    #[test]
    fn siblings_are_resolved_by_the_callers_merge() {
        let [one, two] = [3u32, 5].map(|n| Typed(n).into_value().expect("plain"));
        let both = read(&[&one, &two]);
        assert_eq!(both.resolve(u32::max).expect("numbers"), 5);
        assert_eq!(both.decode_all::<u32>().expect("numbers"), [3, 5]);
        assert!(matches!(both.decode::<u32>(), Err(Error::Siblings { .. })));
        assert!(matches!(read(&[]).resolve(u32::max), Err(Error::NotFound { .. })));
        assert_eq!(read(&[]).decode_all::<u32>().expect("none"), [0_u32; 0]);
    }

    #[test]
    fn a_cause_of_another_key_is_refused_before_anything_is_sent() {
        let cause = Cause::from(&read(&[b"a"]));
        assert!(cause.context_for(b"k").expect("same key").is_some());
        let error = cause.context_for(b"other").expect_err("another key");
        assert!(error.to_string().contains("\"other\""), "{error}");
        assert_eq!(Cause::from(Blind).context_for(b"other"), Ok(None));
        assert!(Cause::from(read(&[]).context()).context_for(b"other").is_ok(), "nodes judge a bare context");
    }

    #[test]
    fn what_is_no_context_is_refused() {
        assert!(Context::from_bytes(Bytes::new()).is_err());
        assert!(Context::from_bytes(vec![0; CONTEXT_LEN_MAX]).is_ok());
        assert!(Context::from_bytes(vec![0; CONTEXT_LEN_MAX + 1]).is_err());
        for bad in ["", "a", "a=", "a b", "++", "AAAA\n"] {
            assert!(bad.parse::<Context>().is_err(), "{bad:?}");
        }
        assert!("A".repeat(1 << 20).parse::<Context>().expect_err("long").to_string().contains("too long"));
    }

    proptest! {
        #[test]
        fn contexts_survive_text_and_serde(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            let context = Context::from_bytes(bytes).expect("short");
            prop_assert_eq!(&context.to_string().parse::<Context>().expect("printed"), &context);
            let packed = Typed(&context).into_value().expect("plain");
            prop_assert_eq!(&value::decode::<Context>(&packed).expect("packed"), &context);
        }
    }
}
