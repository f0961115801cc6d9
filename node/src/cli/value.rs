//! Where a value comes from: the argument itself, a file, or stdin.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use quorate_client::wire::VALUE_LEN_MAX;

use super::failure::{Failure, Outcome};

/// What a VALUE argument names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source<'a> {
    /// These very bytes.
    Text(&'a str),
    /// The content of a file.
    File(&'a Path),
    /// All of stdin.
    Stdin,
}

impl<'a> Source<'a> {
    /// `-` is stdin, `@path` a file, `@@text` is `@text`, everything else is itself.
    pub(crate) fn of(argument: &'a str) -> Self {
        match argument.strip_prefix('@') {
            None if argument == "-" => Self::Stdin,
            None => Self::Text(argument),
            Some(rest) if rest.starts_with('@') => Self::Text(rest),
            Some(path) => Self::File(Path::new(path)),
        }
    }

    /// The bytes; never more than a value may have.
    pub(crate) fn read(&self) -> Outcome<Bytes> {
        match self {
            Self::Text(text) => bounded(text.as_bytes(), "the value").map_err(Into::into),
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

    #[test]
    fn an_argument_names_its_source() {
        assert_eq!(Source::of("hello"), Source::Text("hello"));
        assert_eq!(Source::of(""), Source::Text(""));
        assert_eq!(Source::of("-"), Source::Stdin);
        assert_eq!(Source::of("--"), Source::Text("--"));
        assert_eq!(Source::of("@photo.jpg"), Source::File(Path::new("photo.jpg")));
        assert_eq!(Source::of("@-"), Source::File(Path::new("-")));
        assert_eq!(Source::of("@@alice"), Source::Text("@alice"));
        assert_eq!(Source::of("@@@"), Source::Text("@@"));
        assert_eq!(Source::of("a@b"), Source::Text("a@b"));
    }

    #[test]
    fn a_file_gives_its_exact_bytes() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(b"\x00\xff\r\n").expect("written");
        let argument = format!("@{}", file.path().display());
        assert_eq!(Source::of(&argument).read().expect("readable"), &b"\x00\xff\r\n"[..]);
    }

    #[test]
    fn a_missing_file_says_how_to_write_an_at_sign() {
        let failure = Source::of("@/no/such/file").read().expect_err("missing");
        assert!(failure.message.contains("/no/such/file") && failure.hint.contains("@@"), "{failure:?}");
        assert_eq!(Source::of("@").read().expect_err("no name").exit, Exit::Usage);
    }

    #[test]
    fn an_endless_source_is_refused_after_the_limit() {
        let failure = Source::of("@/dev/zero").read().expect_err("too large");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("1048576"), "{failure:?}");
        let largest = "x".repeat(VALUE_LEN_MAX);
        assert_eq!(Source::of(&largest).read().expect("just legal").len(), VALUE_LEN_MAX);
    }
}
