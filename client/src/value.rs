//! Values on their way into the store: raw bytes as they are, or typed through serde.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// What can be stored: bytes and text as they are, and anything that serde can serialize as [`Typed`].
///
/// Nothing is serialized without being asked to be, so that what is stored never depends on a type by accident:
///
/// ```compile_fail,E0277
/// # async fn example(db: quorate_client::Client) -> Result<(), quorate_client::Error> {
/// db.put("basket", vec!["apple", "pear"], quorate_client::Blind).await?; // write `Typed(vec![..])`
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "a `{Self}` is neither bytes nor text, and is not stored as it is",
    label = "wrap it in `Typed`",
    note = "`Typed(value)` stores whatever serde can serialize, as MessagePack; `Read::decode` reads it back"
)]
pub trait IntoValue {
    /// The bytes to store.
    ///
    /// # Errors
    /// [`Error::Codec`] when the value cannot be serialized.
    fn into_value(self) -> Result<Bytes, Error>;
}

/// A value that is stored as MessagePack, structs as maps with named fields, so that fields can be added later.
///
/// `Typed(&cart)` and `Typed(cart)` both work. Read it back with [`Read::decode`](crate::Read::decode).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Typed<T>(pub T);

impl<T: Serialize> IntoValue for Typed<T> {
    fn into_value(self) -> Result<Bytes, Error> {
        rmp_serde::to_vec_named(&self.0).map(Bytes::from).map_err(|error| Error::Codec {
            why: format!("a {} cannot be stored: {error}", std::any::type_name::<T>()),
        })
    }
}

/// Decodes what [`Typed`] stored.
pub(crate) fn decode<T: DeserializeOwned>(value: &Bytes) -> Result<T, Error> {
    let whole = &mut &value[..];
    let decoded = rmp_serde::from_read(&mut *whole);
    let why = match decoded {
        Ok(decoded) if whole.is_empty() => return Ok(decoded),
        Ok(_) => format!("{} bytes follow it", whole.len()),
        Err(error) => error.to_string(),
    };
    Err(Error::Codec {
        why: format!(
            "the value ({} bytes) is not a {} in MessagePack: {why}; a value that was put without `Typed` is read with \
             `one` or `siblings`",
            value.len(),
            std::any::type_name::<T>()
        ),
    })
}

/// What the function of an [`update`](crate::Client::update) decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Store this in place of all that was seen.
    Put(Bytes),
    /// Delete all that was seen.
    Delete,
    /// Leave everything as it is; the update ends well without a write.
    Keep,
}

/// What the function of an [`update`](crate::Client::update) may return: a value, an `Option` of one (`None` deletes), a
/// [`Change`], or a `Result` of any of these.
#[diagnostic::on_unimplemented(
    message = "a `{Self}` says nothing about what is to be stored",
    label = "wrap it in `Typed`, or return bytes, text, an `Option` or a `Change`",
    note = "`Typed(value)` stores whatever serde can serialize, as MessagePack; `None` and `Change::Delete` delete"
)]
pub trait IntoChange {
    /// The decision.
    ///
    /// # Errors
    /// [`Error::Codec`] when a value cannot be serialized, or the function's own error.
    fn into_change(self) -> Result<Change, Error>;
}

impl IntoChange for Change {
    fn into_change(self) -> Result<Change, Error> {
        Ok(self)
    }
}

impl<V: IntoValue> IntoChange for Option<V> {
    fn into_change(self) -> Result<Change, Error> {
        self.map_or(Ok(Change::Delete), |value| value.into_value().map(Change::Put))
    }
}

impl<C: IntoChange> IntoChange for Result<C, Error> {
    fn into_change(self) -> Result<Change, Error> {
        self?.into_change()
    }
}

impl<T: Serialize> IntoChange for Typed<T> {
    fn into_change(self) -> Result<Change, Error> {
        self.into_value().map(Change::Put)
    }
}

macro_rules! raw_values {
    ($($type:ty => |$value:ident| $bytes:expr;)*) => {$(
        impl IntoValue for $type {
            fn into_value(self) -> Result<Bytes, Error> {
                let $value = self;
                Ok($bytes)
            }
        }

        impl IntoChange for $type {
            fn into_change(self) -> Result<Change, Error> {
                self.into_value().map(Change::Put)
            }
        }
    )*};
}

raw_values! {
    Bytes => |value| value;
    &Bytes => |value| value.clone();
    Vec<u8> => |value| value.into();
    &Vec<u8> => |value| Bytes::copy_from_slice(value);
    &[u8] => |value| Bytes::copy_from_slice(value);
    String => |value| value.into();
    &String => |value| Bytes::copy_from_slice(value.as_bytes());
    &str => |value| Bytes::copy_from_slice(value.as_bytes());
}

impl<const N: usize> IntoValue for &[u8; N] {
    fn into_value(self) -> Result<Bytes, Error> {
        Ok(Bytes::copy_from_slice(self))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Point {
        x: i64,
        y: i64,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct PointWithColour {
        y: i64,
        x: i64,
        #[serde(default)]
        colour: Option<String>,
    }

    #[test]
    fn bytes_are_stored_without_a_copy() {
        let value = Bytes::from(vec![1, 2, 3]);
        let at = value.as_ptr();
        assert_eq!(value.into_value().expect("raw").as_ptr(), at);
        let text = String::from("hello");
        let at = text.as_ptr();
        assert_eq!(text.into_value().expect("raw").as_ptr(), at);
    }

    #[test]
    fn typed_values_have_named_fields() {
        let bytes = Typed(&Point { x: 1, y: 2 }).into_value().expect("plain");
        assert_eq!(decode::<Point>(&bytes).expect("same type"), Point { x: 1, y: 2 });
        let wider: PointWithColour = decode(&bytes).expect("fields were added and reordered");
        assert_eq!(wider, PointWithColour { x: 1, y: 2, colour: None });
    }

    #[test]
    fn raw_values_are_not_decoded_as_typed_ones() {
        let text = decode::<Point>(&Bytes::from_static(b"hello")).expect_err("raw").to_string();
        assert!(text.contains("5 bytes") && text.contains("without `Typed`"), "{text}");
        // 'h' is a MessagePack number, after which bytes are left over.
        assert!(decode::<u8>(&Bytes::from_static(b"hello")).is_err());
        assert!(decode::<u8>(&Bytes::new()).is_err());
    }

    #[test]
    fn what_cannot_be_serialized_is_an_error() {
        struct Odd;
        impl Serialize for Odd {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("never"))
            }
        }
        assert!(matches!(Typed(Odd).into_value(), Err(Error::Codec { why }) if why.contains("never")));
    }

    #[test]
    fn updates_return_what_reads_well() {
        assert_eq!("a".into_change(), Ok(Change::Put(Bytes::from_static(b"a"))));
        assert_eq!(Some("a").into_change(), Ok(Change::Put(Bytes::from_static(b"a"))));
        assert_eq!(None::<&str>.into_change(), Ok(Change::Delete));
        assert_eq!(Ok::<_, Error>(Change::Keep).into_change(), Ok(Change::Keep));
        assert_eq!(Err::<Change, _>(Error::abort("no")).into_change(), Err(Error::abort("no")));
        let map = BTreeMap::from([("k", 1)]);
        assert!(matches!(Ok::<_, Error>(Some(Typed(map))).into_change(), Ok(Change::Put(_))));
    }
}
