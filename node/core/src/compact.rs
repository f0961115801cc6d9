//! The canonical binary encoding that contexts and records share: one sequence of bytes for each value, and no other.
//!
//! Numbers are LEB128 in as few bytes as possible. Writing goes to a [`Sink`], so that the same code encodes, measures and
//! hashes. Reading takes any bytes: it fails with a text, allocates nothing ahead of what it has read, and never panics.

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

/// Where encoded bytes go.
pub(crate) trait Sink {
    /// Takes the next bytes.
    fn put(&mut self, bytes: &[u8]);

    /// Takes a number, 7 bits a byte, the lowest first.
    fn put_number(&mut self, mut number: u64) {
        let mut bytes = [0; NUMBER_LEN_MAX];
        let mut len = 0;
        loop {
            let more = number > 0x7f;
            bytes[len] = (number & 0x7f) as u8 | if more { 0x80 } else { 0 };
            len += 1;
            number >>= 7;
            if !more {
                return self.put(&bytes[..len]);
            }
        }
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Sink for Xxh3 {
    fn put(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

/// Only counts the bytes.
#[derive(Default)]
pub(crate) struct Length(pub(crate) usize);

impl Sink for Length {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// What is left to be decoded.
pub(crate) struct Source {
    rest: Bytes,
}

impl Source {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }

    /// The next `len` bytes, without a copy.
    pub(crate) fn bytes(&mut self, len: u64, what: &str) -> Result<Bytes, String> {
        match usize::try_from(len) {
            Ok(len) if len <= self.rest.len() => Ok(self.rest.split_to(len)),
            _ => Err(format!("{what} needs {len} bytes, {} are left", self.rest.len())),
        }
    }

    /// The next `LEN` bytes.
    pub(crate) fn array<const LEN: usize>(&mut self, what: &str) -> Result<[u8; LEN], String> {
        let bytes = self.bytes(LEN as u64, what)?;
        Ok(bytes.as_ref().try_into().expect("as many bytes as were asked for"))
    }

    /// The next number; longer forms than the shortest are refused.
    pub(crate) fn number(&mut self, what: &str) -> Result<u64, String> {
        let mut number = 0;
        for (at, byte) in self.rest.iter().copied().enumerate().take(NUMBER_LEN_MAX) {
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * at as u32;
            if (bits << shift) >> shift != bits {
                return Err(format!("{what} does not fit 64 bits"));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && at > 0 {
                    return Err(format!("{what} is not in its shortest form"));
                }
                self.rest = self.rest.split_off(at + 1);
                return Ok(number);
            }
        }
        Err(format!("{what} is cut off or longer than {NUMBER_LEN_MAX} bytes"))
    }

    /// Succeeds if nothing is left.
    pub(crate) fn end(&self) -> Result<(), String> {
        match self.rest.len() {
            0 => Ok(()),
            len => Err(format!("{len} bytes follow the end")),
        }
    }
}

/// 64 bits, 7 at a time.
const NUMBER_LEN_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn longer_forms_and_overflow_are_refused() {
        let number = |bytes: &'static [u8]| Source::new(Bytes::from_static(bytes)).number("it");
        assert_eq!(number(&[0]), Ok(0));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Ok(u64::MAX));
        for bad in [
            &[][..],
            &[0x80],
            &[0x80, 0],
            &[0xff, 0],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1],
        ] {
            assert!(number(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn numbers_come_back(number: u64, small in 0u64..300) {
            for number in [number, small, 1 << (number % 64)] {
                let (mut bytes, mut length) = (Vec::new(), Length::default());
                bytes.put_number(number);
                length.put_number(number);
                prop_assert_eq!(bytes.len(), length.0);
                let mut source = Source::new(bytes.into());
                prop_assert_eq!(source.number("it"), Ok(number));
                prop_assert_eq!(source.end(), Ok(()));
            }
        }
    }
}
