//! Keys on the command line: text, or any bytes in one of three spellings.
//!
//! The store takes keys of any bytes; a command line takes no NUL, a terminal shows no control characters, and a list of lines
//! has no place for a newline. `--key-encoding` says how a key is spelt, where it is read and where it is printed.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use quorate_wire::KEY_LEN_MAX;

use super::failure::{Failure, Outcome};

/// How a key is spelt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyEncoding {
    /// The bytes as they are
    Text,
    /// Text with \n, \t, \r, \\ and \xNN
    Escaped,
    /// Two hexadecimal digits a byte
    Hex,
    /// Base64, as key_b64 in NDJSON
    Base64,
}

/// A key, as commands take it.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeyArgs {
    /// The key, 1 to 1024 bytes; after -- if it begins with a hyphen
    #[arg(value_name = "KEY")]
    key: OsString,
    /// How KEY is spelt
    #[arg(long, value_name = "HOW", default_value = "text", hide_possible_values = true, help = HOW)]
    key_encoding: KeyEncoding,
}

/// The help of `--key-encoding`.
pub(crate) const HOW: &str = "How the key is spelt: text, escaped (\\n \\t \\r \\\\ \\xNN), hex or base64";

impl KeyArgs {
    /// Its bytes.
    pub(crate) fn bytes(&self) -> Outcome<Bytes> {
        let key = self.key_encoding.decode(&self.key, "the key")?;
        let limit = KEY_LEN_MAX;
        let wrong = match key.len() {
            0 => format!("the key is empty, it needs 1 to {limit} bytes"),
            got if got > limit => format!("the key has {got} bytes, at most {limit} are allowed"),
            _ => return Ok(key),
        };
        Err(Failure::usage(wrong, "name a key of 1 to 1024 bytes"))
    }
}

impl KeyEncoding {
    /// The bytes that an argument spells.
    pub(crate) fn decode(self, argument: &OsStr, what: &str) -> Outcome<Bytes> {
        let raw = argument.as_bytes();
        let decoded = match self {
            Self::Text => Ok(raw.to_vec()),
            Self::Escaped => unescape(raw),
            Self::Hex => from_hex(raw),
            Self::Base64 => LENIENT.decode(raw).map_err(|error| format!("it is no base64: {error}")),
        };
        let encoding = self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        decoded.map(Into::into).map_err(|why| {
            Failure::usage(
                format!(
                    "{what} {:?} is not spelt as --key-encoding {encoding} wants it: {why}",
                    argument.to_string_lossy()
                ),
                "as `quorate keys --key-encoding escaped` (or hex, base64) prints them",
            )
        })
    }

    /// As [`decode`](Self::decode) reads it back.
    pub(crate) fn encode(self, key: &[u8]) -> Vec<u8> {
        match self {
            Self::Text => key.to_vec(),
            Self::Escaped => escape(key).into_bytes(),
            Self::Hex => key.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes(),
            Self::Base64 => STANDARD.encode(key).into_bytes(),
        }
    }
}

/// One line of printable text for any bytes, and another one for any others.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\r' => text.push_str("\\r"),
                c if c.is_control() => {
                    c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
                }
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

fn unescape(text: &[u8]) -> Result<Vec<u8>, String> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let [first, after @ ..] = rest {
        (rest, _) = match (first, after) {
            (b'\\', [b'\\', after @ ..]) => (after, bytes.push(b'\\')),
            (b'\\', [b'n', after @ ..]) => (after, bytes.push(b'\n')),
            (b'\\', [b't', after @ ..]) => (after, bytes.push(b'\t')),
            (b'\\', [b'r', after @ ..]) => (after, bytes.push(b'\r')),
            (b'\\', [b'x', high, low, after @ ..]) => (after, bytes.extend(from_hex(&[*high, *low])?)),
            (b'\\', _) => return Err("a backslash is followed by \\, n, t, r or xNN".to_owned()),
            (byte, after) => (after, bytes.push(*byte)),
        };
    }
    Ok(bytes)
}

fn from_hex(text: &[u8]) -> Result<Vec<u8>, String> {
    let digit = |byte: u8| {
        let digit = char::from(byte).to_digit(16);
        digit.map(|digit| digit as u8).ok_or_else(|| format!("{:?} is no hexadecimal digit", char::from(byte)))
    };
    if !text.len().is_multiple_of(2) {
        return Err(format!("{} hexadecimal digits are no whole number of bytes", text.len()));
    }
    text.chunks_exact(2).map(|pair| Ok(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// Base64 with or without its padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_spelt_in_four_ways() {
        let key = b"a\\b\n\x00\xff\xc3\xbc";
        for (encoding, text) in [
            (KeyEncoding::Escaped, "a\\\\b\\n\\x00\\xff\u{fc}"),
            (KeyEncoding::Hex, "615c620a00ffc3bc"),
            (KeyEncoding::Base64, "YVxiCgD/w7w="),
        ] {
            assert_eq!(encoding.encode(key), text.as_bytes());
        }
        let decoded = KeyEncoding::Base64.decode(OsStr::new("YVxiCgD/w7w"), "the key").expect("without padding");
        assert_eq!(decoded, &key[..]);
        assert_eq!(KeyEncoding::Escaped.encode("caf\u{e9} 1".as_bytes()), "caf\u{e9} 1".as_bytes());
    }

    #[test]
    fn a_wrong_spelling_is_refused_with_the_right_one() {
        for (encoding, text, wanted) in [
            (KeyEncoding::Escaped, "a\\", "followed by"),
            (KeyEncoding::Escaped, "a\\q", "followed by"),
            (KeyEncoding::Escaped, "a\\x1", "followed by"),
            (KeyEncoding::Escaped, "a\\xzz", "no hexadecimal digit"),
            (KeyEncoding::Hex, "abc", "whole number"),
            (KeyEncoding::Hex, "xy", "no hexadecimal digit"),
            (KeyEncoding::Base64, "?", "no base64"),
        ] {
            let failure = encoding.decode(OsStr::new(text), "the key").expect_err(text);
            assert!(failure.message.contains(wanted), "{text}: {}", failure.message);
        }
    }

    proptest! {
        #[test]
        fn any_key_is_read_back_as_it_was_printed(key in prop::collection::vec(any::<u8>(), 0..40)) {
            for encoding in [KeyEncoding::Text, KeyEncoding::Escaped, KeyEncoding::Hex, KeyEncoding::Base64] {
                let printed = encoding.encode(&key);
                prop_assert_eq!(&encoding.decode(OsStr::from_bytes(&printed), "the key").expect("legal")[..], &key[..]);
                prop_assert!(encoding == KeyEncoding::Text || !printed.iter().any(u8::is_ascii_control));
            }
        }
    }
}
