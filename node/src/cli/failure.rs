//! What can go wrong with a command: the message, the exit code, and the next thing to try.
//!
//! The exit codes are a promise to scripts. This is the only place that maps anything to one:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed in a way that has no code of its own |
//! | 2 | the command as it was given cannot work: wrong usage, a file that is not there, a limit, an impossible quorum, a foreign context |
//! | 3 | the key is not there (`get` and `del`) |
//! | 4 | unavailable: **nothing was applied** and the same command may work later; also a read that timed out |
//! | 5 | timed out: **the outcome of the write is unknown** |
//! | 6 | siblings: a read found several values, a write was not made because of them, or stands beside others |
//! | 7 | degraded (`check`, `status --check`), or not every node has answered (`repair`) |
//! | 130 | ended by a signal |
//! | 141 | the reader of stdout went away, as a death by SIGPIPE would say |

use std::io;
use std::process::ExitCode;

use quorate_client::error::{Error, Tried};
use quorate_node::config::layers::{ConfigError, Origin};
use quorate_wire::NotApplied;
use serde::Serialize;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done,
    /// Failed in a way that has no code of its own.
    Failed,
    /// The command as it was given cannot work.
    Usage,
    /// The key is not there.
    NotFound,
    /// Nothing was applied, and trying again may help.
    Unavailable,
    /// The outcome of the write is unknown.
    Unknown,
    /// Siblings, or a concurrent write.
    Siblings,
    /// Something is not as it should be.
    Degraded,
    /// Ended by a signal.
    Interrupted,
    /// The reader of stdout went away.
    BrokenPipe,
}

impl Exit {
    /// The number.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Unavailable => 4,
            Self::Unknown => 5,
            Self::Siblings => 6,
            Self::Degraded => 7,
            Self::Interrupted => 130,
            Self::BrokenPipe => 141,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// How the process ends.
    pub(crate) exit: Exit,
    /// What happened: what was needed, what was had, whether anything was changed.
    pub(crate) message: String,
    /// The next thing to try.
    pub(crate) hint: String,
    /// The same command may succeed when it is simply repeated.
    pub(crate) retryable: bool,
    /// Something was changed, in whole or in part, or may have been.
    pub(crate) may_have_applied: bool,
}

/// As every command returns it.
pub(crate) type Outcome<T = Exit> = Result<T, Failure>;

impl Failure {
    /// A failure without a code of its own.
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            message: message.into(),
            hint: hint.into(),
            retryable: false,
            may_have_applied: false,
        }
    }

    /// The command as it was given cannot work.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::new(message, hint) }
    }

    /// A file or directory could not be read or written. One that is not there was named wrongly, by the command or in a setting.
    pub(crate) fn file(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check the permissions",
            io::ErrorKind::StorageFull => "make room on the disk",
            _ => "check the path and its permissions",
        };
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::Usage } else { Exit::Failed };
        Self { exit, ..Self::new(format!("cannot {doing} {}: {error}", path.display()), hint) }
    }

    /// Adds where settings came from: of each what it is, how it is named in messages, and its origin.
    pub(crate) fn with_origins(mut self, settings: &[(&str, String, &Origin)]) -> Self {
        let mut told: Vec<String> = Vec::new();
        for (what, value, origin) in settings {
            let text = format!("{what} from {origin}");
            if **origin != Origin::Default && self.message.contains(value.as_str()) && !told.contains(&text) {
                told.push(text);
            }
        }
        if !told.is_empty() {
            self.message = format!("{} ({})", self.message, told.join(", "));
        }
        self
    }

    /// Of a request that changes nothing: that nothing was changed need not be said.
    pub(crate) fn of_read(error: Error) -> Self {
        let failure = Self::from(error);
        Self { message: failure.message.replace("; nothing was changed", ""), ..failure }
    }

    /// Of what goes wrong after a write was acknowledged: it stands, only its result cannot be told.
    pub(crate) fn after_write(self) -> Self {
        let message = format!("the write was applied, only its result could not be printed: {}", self.message);
        Self { message, retryable: false, may_have_applied: true, ..self }
    }

    /// As programs read it.
    pub(crate) fn as_json(&self) -> impl Serialize {
        #[derive(Serialize)]
        struct Json<'a> {
            schema: &'static str,
            error: &'a str,
            hint: &'a str,
            exit_code: u8,
            retryable: bool,
            may_have_applied: bool,
        }
        Json {
            schema: "quorate.error.v1",
            error: &self.message,
            hint: &self.hint,
            exit_code: self.exit.code(),
            retryable: self.retryable,
            may_have_applied: self.may_have_applied,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let hint = error.to_do().unwrap_or("correct the value").to_owned();
        Self::usage(error.to_string(), hint)
    }
}

/// Only stdout is written with bare `?` on an [`io::Error`]; files go through [`Failure::file`].
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { exit: Exit::BrokenPipe, ..Self::new("the reader of stdout went away", "read all of it") };
        }
        Self::new(
            format!("cannot write to stdout: {error}"),
            "check where the output goes, and whether that disk is full",
        )
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let foreign = matches!(&error, Error::NoNodeReachable { tried } if foreign(tried));
        let retryable = error.is_retryable() && !foreign;
        let may_have_applied = error.may_have_applied();
        let (exit, message, hint) = match error {
            Error::NotApplied(refusal) => {
                let (exit, hint) = of_refusal(&refusal);
                (exit, refusal.to_string(), hint.to_owned())
            }
            Error::Indeterminate { op_id, need, acks, why } => (
                Exit::Unknown,
                match need {
                    Some(need) => format!(
                        "timed out, the outcome of the write is unknown: {need} acknowledgements were needed, {} arrived in time ({why}); \
                         operation {op_id}",
                        acks.total()
                    ),
                    None => format!("timed out, the outcome of the write is unknown ({why}); operation {op_id}"),
                },
                "read the key and look: the write may be there, or may still appear; or allow more time with --timeout".to_owned(),
            ),
            error @ Error::NotFound { .. } => (Exit::NotFound, error.to_string(), "check the key's spelling".to_owned()),
            error @ Error::Siblings { .. } => (Exit::Siblings, error.to_string(), SIBLINGS_HINT.to_owned()),
            error @ Error::Contended { .. } => (Exit::Siblings, error.to_string(), SIBLINGS_HINT.to_owned()),
            error @ Error::OutcomeUnknown { .. } => (
                Exit::Unknown,
                error.to_string(),
                "look at `quorate layout show`: it may have been carried out; repeating it does no harm".to_owned(),
            ),
            error if foreign => (
                Exit::Usage,
                error.to_string(),
                "valid certificates of this cluster are needed; `quorate config show --origin` shows which were used here".to_owned(),
            ),
            error @ Error::NoNodeReachable { .. } => (
                Exit::Unavailable,
                error.to_string(),
                "is the cluster running? `quorate dev` starts one here; `quorate config show --origin` shows what was used".to_owned(),
            ),
            error @ Error::NoAnswer { .. } => (
                Exit::Unavailable,
                error.to_string(),
                "try again, allow more time with --timeout, or look at `quorate status`".to_owned(),
            ),
            error @ Error::Misuse { .. } => (
                Exit::Usage,
                error.to_string(),
                "the command's --help shows what is possible, `quorate config show --origin` what was used".to_owned(),
            ),
            error @ (Error::Aborted { .. } | Error::Codec { .. }) => (
                Exit::Failed,
                error.to_string(),
                "nodes and this tool may be of different releases: `quorate --version`, `quorate node ls`".to_owned(),
            ),
            other => (Exit::Failed, other.to_string(), "look at `quorate status`".to_owned()),
        };
        Self { exit, message, hint, retryable, may_have_applied }
    }
}

/// Why one node that was asked has not answered, in few words.
pub(crate) fn reason_of(error: Error) -> String {
    match error {
        Error::NoNodeReachable { tried } | Error::NoAnswer { tried, .. } => {
            // The end of the time cuts the last attempt short, which says less than one that ended by itself.
            let telling = tried.iter().rev().find(|tried| !tried.was_cut_short()).or(tried.last());
            telling.map_or_else(|| "it was not reached".to_owned(), |tried| tried.what.clone())
        }
        Error::NotApplied(refusal) => refusal.reason(),
        other => Failure::of_read(other).message,
    }
}

/// Whether it is the certificates that keep everybody away. The last attempt at a node may have been cut short.
fn foreign(tried: &[Tried]) -> bool {
    let refuses = |tried: &Tried| tried.what.contains("certificate");
    let refused = |node: &str| tried.iter().any(|other| other.node == node && refuses(other));
    !tried.is_empty() && tried.iter().all(|tried| refuses(tried) || tried.was_cut_short() && refused(&tried.node))
}

/// Refusals differ in what helps. All of them leave everything as it was.
fn of_refusal(refusal: &NotApplied) -> (Exit, &'static str) {
    match refusal {
        NotApplied::Unavailable { .. } => {
            (Exit::Unavailable, "try again, ask for fewer replicas (--r, --w), or look at `quorate status`")
        }
        NotApplied::TimedOut { .. } => {
            (Exit::Unavailable, "try again, allow more time (--timeout), or look at `quorate status`")
        }
        NotApplied::Overloaded { .. } => (Exit::Unavailable, "try again a little later, with fewer requests at a time"),
        NotApplied::StaleLayout { .. } => (Exit::Unavailable, "try again: the layout is changing"),
        NotApplied::NotServing { .. } => (
            Exit::Unavailable,
            "look at `quorate status`; a new cluster needs a layout first: `quorate layout stage join --help`",
        ),
        NotApplied::TooLarge { .. } => (Exit::Usage, "make it smaller, or divide it among several keys"),
        NotApplied::EmptyKey => (Exit::Usage, "name a key"),
        NotApplied::QuorumImpossible { .. } => {
            (Exit::Usage, "ask for no more replicas than there are: --r and --w, in a layout --floor-r and --floor-w")
        }
        NotApplied::BadContext { .. } => (
            Exit::Usage,
            "take the context of a fresh read of this very key: `quorate get KEY -o json` shows the values and their context",
        ),
        NotApplied::TooManySiblings { .. } => (Exit::Siblings, SIBLINGS_HINT),
        NotApplied::Forbidden { .. } => (
            Exit::Failed,
            "use a certificate that allows it: `quorate cert client NAME --admin` makes an administrator's",
        ),
        NotApplied::Unsupported { .. } => {
            (Exit::Failed, "compare the releases: `quorate --version`, `quorate node ls`")
        }
        NotApplied::Refused { .. } => {
            (Exit::Failed, "`quorate layout show` tells what is in force, what is staged, and what stands against it")
        }
        NotApplied::Storage { .. } => (Exit::Failed, "look at that node's disk and log"),
    }
}

/// What to do about siblings. The context must be that of the read whose values are merged: a later one covers values that
/// nobody has merged, and a write that names it would discard them.
pub(crate) const SIBLINGS_HINT: &str = "take values and context from one read, `quorate get KEY -o json`, merge the values into one and write it with: \
                                        quorate put KEY MERGED --context CONTEXT";

/// The same for a read whose values have just been shown: with its own context.
pub(crate) fn merge_hint(context: &str) -> String {
    format!(
        "merge these values into one and write it with the context of this read: quorate put KEY MERGED --context {context}"
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_client::error::Tried;
    use quorate_client::read::Context;
    use quorate_wire::ids::{LayoutVersion, NodeId, OpId};
    use quorate_wire::{Acks, QuorumReport};

    use super::*;

    fn node() -> NodeId {
        NodeId::new("n1").expect("legal")
    }

    #[test]
    fn what_fails_after_a_write_does_not_deny_it() {
        let full = || Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        let json = |failure: Failure| serde_json::to_value(failure.as_json()).expect("plain data");
        assert_eq!(json(full())["may_have_applied"], false);
        let after = json(full().after_write());
        assert_eq!((&after["may_have_applied"], &after["exit_code"]), (&true.into(), &1.into()));
        assert!(after["error"].as_str().is_some_and(|text| text.starts_with("the write was applied, only its result")));
    }

    #[test]
    fn every_refusal_has_an_exit_code_and_a_next_thing_to_try() {
        let why = || "why".to_owned();
        for (refusal, code) in [
            (NotApplied::Unavailable { need: 2, alive: 1, why: why() }, 4),
            (NotApplied::TimedOut { need: 2, had: 1, why: why() }, 4),
            (NotApplied::Overloaded { retry_after_ms: 5 }, 4),
            (NotApplied::StaleLayout { need: LayoutVersion(2), had: LayoutVersion(1) }, 4),
            (NotApplied::NotServing { node: node(), why: why() }, 4),
            (NotApplied::TooLarge { what: "value".into(), limit: 1, got: 2 }, 2),
            (NotApplied::EmptyKey, 2),
            (NotApplied::QuorumImpossible { what: "W".into(), asked: 5, n: 3 }, 2),
            (NotApplied::BadContext { why: why() }, 2),
            (NotApplied::TooManySiblings { got: 100, limit: 100 }, 6),
            (NotApplied::Forbidden { why: why() }, 1),
            (NotApplied::Unsupported { why: why() }, 1),
            (NotApplied::Refused { why: why() }, 1),
            (NotApplied::Storage { node: node(), why: why() }, 1),
        ] {
            let failure = Failure::from(Error::NotApplied(refusal.clone()));
            assert_eq!(failure.exit.code(), code, "{refusal:?}");
            assert!(!failure.hint.is_empty(), "{refusal:?}");
            assert_eq!(failure.message, refusal.to_string());
        }
    }

    #[test]
    fn every_error_of_the_client_has_an_exit_code_and_a_next_thing_to_try() {
        let key = || Bytes::from_static(b"k");
        let context = || Context::from_bytes(&b"c"[..]).expect("legal");
        let tried = || vec![Tried { node: "127.0.0.1:1".into(), what: "refused".into() }];
        for (error, code) in [
            (Error::Indeterminate { op_id: OpId(1), need: Some(2), acks: Acks::default(), why: "late".into() }, 5),
            (Error::Indeterminate { op_id: OpId(1), need: None, acks: Acks::default(), why: "late".into() }, 5),
            (Error::NotFound { key: key(), context: context(), quorum: QuorumReport::default() }, 3),
            (Error::Siblings { key: key(), count: 2, context: context() }, 6),
            (Error::Contended { key: key(), attempts: 3 }, 6),
            (Error::Aborted { why: "no".into() }, 1),
            (Error::Codec { why: "no".into() }, 1),
            (Error::NoNodeReachable { tried: tried() }, 4),
            (Error::NoAnswer { waited: std::time::Duration::from_secs(1), tried: tried() }, 4),
            (Error::Misuse { why: "no".into() }, 2),
        ] {
            let (retryable, text) = (error.is_retryable(), format!("{error:?}"));
            let unknown = matches!(error, Error::Indeterminate { .. } | Error::Contended { .. });
            let failure = Failure::from(error);
            assert_eq!(failure.exit.code(), code, "{text}");
            assert!(!failure.hint.is_empty(), "{text}");
            assert_eq!(failure.retryable, retryable, "{text}");
            let json = serde_json::to_value(failure.as_json()).expect("plain data");
            assert_eq!(json["may_have_applied"], unknown, "{text}");
            assert_eq!(json["exit_code"], code);
        }
    }

    #[test]
    fn only_an_unknown_outcome_ends_with_five() {
        // A read that times out has changed nothing: a script may repeat it blindly, which code 5 would forbid.
        let read = Failure::from(Error::NotApplied(NotApplied::TimedOut { need: 2, had: 1, why: String::new() }));
        assert_ne!(read.exit, Exit::Unknown);
    }

    #[test]
    fn a_file_that_is_not_there_is_a_wrong_command_and_one_that_cannot_be_read_is_not() {
        let failure = |kind: io::ErrorKind| Failure::file("read", std::path::Path::new("f"), &kind.into()).exit;
        assert_eq!(failure(io::ErrorKind::NotFound), Exit::Usage);
        assert_eq!(failure(io::ErrorKind::PermissionDenied), Exit::Failed);
        assert_eq!(failure(io::ErrorKind::StorageFull), Exit::Failed);
    }

    #[test]
    fn a_closed_pipe_ends_quietly_as_sigpipe_would() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure.exit.code(), 141);
        assert_eq!(Failure::from(io::Error::other("disk")).exit, Exit::Failed);
    }

    #[test]
    fn a_refused_certificate_is_not_hidden_by_a_later_attempt_that_was_cut_short() {
        let what = |what: &str| Tried { node: "127.0.0.1:7401".into(), what: what.into() };
        let reason = |tried: &[Tried]| reason_of(Error::NoNodeReachable { tried: tried.to_vec() });
        let cut = || what("not connected within 20 ms");
        assert_eq!(
            reason(&[what("first"), what("its certificate is refused here"), cut()]),
            "its certificate is refused here"
        );
        assert_eq!(reason(&[cut()]), "not connected within 20 ms");
        assert_eq!(reason(&[]), "it was not reached");
    }

    #[test]
    fn certificates_of_another_cluster_are_no_outage() {
        let what = |what: &str| Tried { node: "127.0.0.1:7401".into(), what: what.into() };
        let refused =
            || what("its certificate is refused here: the certificate n1.a.node.quorate is of another cluster than b");
        let failure = Failure::from(Error::NoNodeReachable { tried: vec![refused(), refused()] });
        assert_eq!((failure.exit, failure.retryable), (Exit::Usage, false));
        assert!(failure.hint.contains("certificates of this cluster"), "{}", failure.hint);
        let tried = vec![refused(), what("not connected within 20 ms")];
        assert_eq!(Failure::from(Error::NoNodeReachable { tried }).exit, Exit::Usage, "there was no time for more");
        let tried = vec![what("not connected within 20 ms")];
        assert_eq!(Failure::from(Error::NoNodeReachable { tried }).exit, Exit::Unavailable);
        let failure =
            Failure::from(Error::NoNodeReachable { tried: vec![refused(), what("nothing was heard from it")] });
        assert_eq!((failure.exit, failure.retryable), (Exit::Unavailable, true));
    }
}
