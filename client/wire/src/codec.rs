//! MessagePack in frames: a version byte, then one value; bytes inside it are borrowed from the frame, not copied.

use std::cell::RefCell;
use std::fmt;
use std::io::ErrorKind;
use std::ops::Deref;

use bytes::Bytes;
use serde::de::{self, DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

/// The version of all encodings of this release. A decoder refuses any other with a clear error.
///
/// Version 1 had users' keys where version 2 has encoded ones ([`crate::key`]).
pub const CODEC_VERSION: u8 = 2;

/// How deeply a message may be nested; the deepest legal one has 12 levels.
const DEPTH_MAX: usize = 24;

/// Bytes inside a message. Decoding them takes a slice of the frame without a copy.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(pub Bytes);

impl Blob {
    /// Copies a slice.
    pub fn copy_from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

impl Deref for Blob {
    type Target = Bytes;
    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

thread_local! {
    /// The frame that is being decoded on this thread, so that blobs can be slices of it.
    static FRAME: RefCell<Bytes> = const { RefCell::new(Bytes::new()) };
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_borrowed_bytes<E: de::Error>(self, bytes: &'de [u8]) -> Result<Blob, E> {
                FRAME.with_borrow(|frame| {
                    let (outer, inner) = (frame.as_ptr_range(), bytes.as_ptr_range());
                    let inside = outer.start <= inner.start && inner.end <= outer.end;
                    Ok(Blob(if inside && !bytes.is_empty() {
                        frame.slice_ref(bytes)
                    } else {
                        Bytes::copy_from_slice(bytes)
                    }))
                })
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(bytes)))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// Encodes a message.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    // Room for most messages: it would grow six times on the way there.
    let mut buffer = Vec::with_capacity(256);
    buffer.push(CODEC_VERSION);
    encode_into(&mut buffer, message);
    buffer.into()
}

/// Appends a message without a version byte, for encodings that carry one of their own.
pub fn encode_into<T: Serialize>(buffer: &mut Vec<u8>, message: &T) {
    rmp_serde::encode::write(buffer, message).expect("messages are plain data, and a Vec takes every byte");
}

/// Decodes a message.
///
/// # Errors
/// When the version is unknown, the bytes are no such message, are nested too deeply or go on after it. Any bytes may be
/// given; memory use is bounded by their length.
pub fn decode<T: DeserializeOwned>(frame: &Bytes) -> Result<T, CodecError> {
    match frame.first() {
        None => Err(CodecError("the message is empty".into())),
        Some(&CODEC_VERSION) => decode_unversioned(&frame.slice(1..)),
        Some(other) => Err(CodecError(format!("message version {other} is unknown, this side speaks {CODEC_VERSION}"))),
    }
}

/// Decodes a message that [`encode_into`] wrote.
///
/// # Errors
/// As [`decode`].
pub fn decode_unversioned<T: DeserializeOwned>(frame: &Bytes) -> Result<T, CodecError> {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            FRAME.set(Bytes::new());
        }
    }
    FRAME.set(frame.clone());
    let _reset = Reset;
    let mut decoder = rmp_serde::Deserializer::from_read_ref(frame);
    decoder.set_max_depth(DEPTH_MAX);
    let message = T::deserialize(&mut decoder).map_err(|error| CodecError(error.to_string()))?;
    // The decoder does not tell where it stopped; at the end of the frame it fails to read one more marker.
    match de::IgnoredAny::deserialize(&mut decoder) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(error)) if error.kind() == ErrorKind::UnexpectedEof => {
            Ok(message)
        }
        _ => Err(CodecError("more bytes follow the message".into())),
    }
}

/// Bytes that are not the message that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(String);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Request;

    #[test]
    fn blobs_are_slices_of_the_frame() {
        let frame = encode(&(Blob(Bytes::from_static(b"some bytes")), 7u8));
        let (blob, seven): (Blob, u8) = decode(&frame).expect("decodes");
        assert_eq!((blob.as_ref(), seven), (b"some bytes".as_ref(), 7));
        assert!(frame.as_ptr_range().contains(&blob.as_ptr()), "no copy was made");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut bytes = vec![CODEC_VERSION];
        bytes.extend(std::iter::repeat_n(0x91, 100_000));
        assert!(decode::<Request>(&bytes.into()).is_err());
    }

    #[test]
    fn versions_and_trailing_bytes_are_refused() {
        let frame = encode(&7u8);
        let mut longer = frame.to_vec();
        longer.push(0);
        let error = decode::<u8>(&longer.into()).expect_err("trailing").to_string();
        assert!(error.contains("bytes follow"), "{error}");
        let error = decode::<u8>(&Bytes::from_static(&[9, 7])).expect_err("version").to_string();
        assert!(error.contains("version 9"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            let _ = decode::<Request>(&bytes.into());
        }
    }
}
