//! Where a value comes from: the argument itself, a file, or stdin.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use quorate_wire::VALUE_LEN_MAX;

use super::failure::{Failure, Outcome};

/// What a VALUE argument names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source<'a> {
    /// These very bytes.
    Text(&'a [u8]),
    /// The content of a file.
    File(&'a Path),
    /// All of stdin.
    Stdin,
}

impl<'a> Source<'a> {
    /// `-` is stdin, `@path` a file, `@@text` is `@text`, everything else is itself.
    pub(crate) fn of(argument: &'a OsStr) -> Self {
        match argument.as_bytes() {
            b"-" => Self::Stdin,
            [b'@', rest @ ..] if rest.starts_with(b"@") => Self::Text(rest),
            [b'@', path @ ..] => Self::File(Path::new(OsStr::from_bytes(path))),
            text => Self::Text(text),
        }
    }

    /// The bytes; never more than a value may have.
    pub(crate) fn read(&self) -> Outcome<Bytes> {
        match self {
            Self::Text(text) => bounded(*text, "the value").map_err(Into::into),
            Self::File(path) => {
                let file = File::open(path).map_err(|error| self.unreadable(&error))?;
                bounded(file, &path.display().to_string()).map_err(|error| self.explain(error))
            }
            Self::Stdin => bounded(io::stdin().lock(), "stdin").map_err(|error| self.explain(error)),
        }
    }

    fn explain(&self, error: ReadError) -> Failure {
        match error {
            ReadError::Io(error) => self.unreadable(&error),
            too_large @ ReadError::TooLarge(_) => too_large.into(),
        }
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        match self {
            Self::File(path) if path.as_os_str().is_empty() => {
                Failure::usage("`@` names no file", "write @FILE for a file, or @@ for a value that begins with @")
            }
            Self::File(path) => {
                let failure = Failure::file("read", path, error);
                Failure { hint: format!("{}; a value that begins with @ is written @@..", failure.hint), ..failure }
            }
            Self::Text(_) | Self::Stdin => {
                Failure::new(format!("cannot read stdin: {error}"), "give the value as an argument or as @FILE")
            }
        }
    }
}

#[derive(Debug)]
enum ReadError {
    Io(io::Error),
    TooLarge(String),
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => Self::new(format!("cannot read the value: {error}"), "try again"),
            ReadError::TooLarge(what) => Self::usage(
                format!(
                    "{what} has more than {VALUE_LEN_MAX} bytes, the most that a value may have; nothing was changed"
                ),
                "make it smaller, or divide it among several keys",
            ),
        }
    }
}

/// Reads at most one byte more than is allowed, so that an endless source costs nothing.
fn bounded(source: impl Read, what: &str) -> Result<Bytes, ReadError> {
    let mut bytes = Vec::new();
    source.take(VALUE_LEN_MAX as u64 + 1).read_to_end(&mut bytes).map_err(ReadError::Io)?;
    if bytes.len() > VALUE_LEN_MAX {
        return Err(ReadError::TooLarge(what.to_owned()));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::cli::failure::Exit;

    fn of(argument: &str) -> Source<'_> {
        Source::of(OsStr::new(argument))
    }

    #[test]
    fn an_argument_names_its_source() {
        assert_eq!(of("hello"), Source::Text(b"hello"));
        assert_eq!(of(""), Source::Text(b""));
        assert_eq!(of("-"), Source::Stdin);
        assert_eq!(of("--"), Source::Text(b"--"));
        assert_eq!(of("@photo.jpg"), Source::File(Path::new("photo.jpg")));
        assert_eq!(of("@-"), Source::File(Path::new("-")));
        assert_eq!(of("@@alice"), Source::Text(b"@alice"));
        assert_eq!(of("@@@"), Source::Text(b"@@"));
        assert_eq!(of("a@b"), Source::Text(b"a@b"));
        assert_eq!(Source::of(OsStr::from_bytes(b"\xff")), Source::Text(b"\xff"));
    }

    #[test]
    fn a_file_gives_its_exact_bytes() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(b"\x00\xff\r\n").expect("written");
        let argument = format!("@{}", file.path().display());
        assert_eq!(of(&argument).read().expect("readable"), &b"\x00\xff\r\n"[..]);
    }

    #[test]
    fn a_missing_file_says_how_to_write_an_at_sign() {
        let failure = of("@/no/such/file").read().expect_err("missing");
        assert!(failure.message.contains("/no/such/file") && failure.hint.contains("@@"), "{failure:?}");
        assert_eq!(of("@").read().expect_err("no name").exit, Exit::Usage);
    }

    #[test]
    fn an_endless_source_is_refused_after_the_limit() {
        let failure = of("@/dev/zero").read().expect_err("too large");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("1048576"), "{failure:?}");
        let largest = "x".repeat(VALUE_LEN_MAX);
        assert_eq!(of(&largest).read().expect("just legal").len(), VALUE_LEN_MAX);
    }
}
