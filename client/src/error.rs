//! Why a request failed, and the two questions that every failure answers: is it retryable, may it have been applied?

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::read::Context;
use quorate_wire::ids::OpId;
use quorate_wire::time_text;
use quorate_wire::{Acks, NotApplied, QuorumReport};

/// Why a request did not end well.
///
/// Two questions decide what to do with one: [`is_retryable`](Self::is_retryable) and
/// [`may_have_applied`](Self::may_have_applied). The text says what was needed, what was had, and what to try next.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cluster refused definitely: nothing was changed and nothing will be.
    #[error("{}{}", .0, advice_after(.0))]
    NotApplied(#[from] NotApplied),

    /// The write may or may not have been applied, and may still take effect. Retry it with the same operation id (the
    /// `op_id` of the put or delete builder) and the same bytes, at most five minutes after its first attempt; or read the
    /// key and look.
    #[error(
        "the outcome of write {op_id} is unknown: {} acknowledgements were needed, {} arrived in time ({why}); \
         retry it with the same operation id, or read the key and look",
        OrUnknown(*need),
        acks.total()
    )]
    Indeterminate {
        /// The write; a retry with this id is recognised as the same write.
        op_id: OpId,
        /// Acknowledgements needed; nothing if no node has told yet how many replicas there are.
        need: Option<u8>,
        /// Acknowledgements that are known to have arrived.
        acks: Acks,
        /// What went wrong, for people.
        why: String,
    },

    /// A command (of the layout) was sent, and it is not known whether it was carried out. Look before doing it again.
    #[error(
        "it is not known whether the command was carried out ({why}); look with `quorate layout show` before repeating it"
    )]
    OutcomeUnknown {
        /// What went wrong, for people.
        why: String,
    },

    /// The key has no value: R replicas said so.
    #[error("key {} is not there ({} of {} replicas said so)", KeyText(key), quorum.acks.total(), quorum.need)]
    NotFound {
        /// The key.
        key: Bytes,
        /// What was seen: a put that carries it says "I know that there was nothing".
        context: Context,
        /// How the absence was established.
        quorum: QuorumReport,
    },

    /// The key has more than one value: writers were concurrent, and the reader asked for the one.
    #[error(
        "key {} has {count} siblings, one value was asked for: merge them (`siblings`, `resolve`) and put the result with \
         this read as its cause",
        KeyText(key)
    )]
    Siblings {
        /// The key.
        key: Bytes,
        /// How many values there are.
        count: usize,
        /// Covers all of them: a put that carries it replaces them.
        context: Context,
    },

    /// An update met a concurrent writer in every round, or could not go on after a round that did. Its change was
    /// acknowledged, but it stands as one sibling beside others; whoever merges next takes it up. Calling `update` again would apply the change a second time.
    #[error(
        "key {} was contended: {attempts} rounds of read, merge and write each met another writer; the change is stored as \
         one of the key's siblings: read and merge them when fewer writers compete for the key",
        KeyText(key)
    )]
    Contended {
        /// The key.
        key: Bytes,
        /// Rounds that were tried.
        attempts: u32,
    },

    /// The caller's own function gave up; see [`Error::abort`].
    #[error("given up: {why}; nothing was changed by this round")]
    Aborted {
        /// The caller's reason.
        why: String,
    },

    /// A value could not be encoded, or is not what it was decoded as.
    #[error("{why}")]
    Codec {
        /// Which value, and what to do.
        why: String,
    },

    /// No node could be reached, so that nothing was sent.
    #[error(
        "no node could be reached, nothing was sent; tried {}; check the addresses and that the cluster runs",
        TriedText(tried)
    )]
    NoNodeReachable {
        /// Who was tried, and what happened.
        tried: Vec<Tried>,
    },

    /// A request that changes nothing was sent, and no answer came in time.
    #[error("no answer in {}; tried {}; try again or allow more time", time_text(*waited), TriedText(tried))]
    NoAnswer {
        /// How long was waited in all.
        waited: Duration,
        /// Who was tried, and what happened.
        tried: Vec<Tried>,
    },

    /// The client was told something that it cannot do; nothing was sent.
    #[error("{why}")]
    Misuse {
        /// What is wrong, and what is allowed.
        why: String,
    },
}

impl Error {
    /// Whether the same request may succeed when it is made again, without harm.
    ///
    /// An [`Indeterminate`](Self::Indeterminate) write is retryable with [its operation id](Self::op_id) and only so.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotApplied(refusal) => is_passing(refusal),
            Self::Indeterminate { .. } | Self::NoNodeReachable { .. } | Self::NoAnswer { .. } => true,
            Self::OutcomeUnknown { .. }
            | Self::NotFound { .. }
            | Self::Siblings { .. }
            | Self::Contended { .. }
            | Self::Aborted { .. }
            | Self::Codec { .. }
            | Self::Misuse { .. } => false,
        }
    }

    /// Whether the cluster may have been changed by the request, now or later.
    pub fn may_have_applied(&self) -> bool {
        match self {
            Self::Indeterminate { .. } | Self::OutcomeUnknown { .. } | Self::Contended { .. } => true,
            Self::NotApplied(_)
            | Self::NotFound { .. }
            | Self::Siblings { .. }
            | Self::Aborted { .. }
            | Self::Codec { .. }
            | Self::NoNodeReachable { .. }
            | Self::NoAnswer { .. }
            | Self::Misuse { .. } => false,
        }
    }

    /// The operation id with which an indeterminate write must be retried.
    pub fn op_id(&self) -> Option<OpId> {
        match self {
            Self::Indeterminate { op_id, .. } => Some(*op_id),
            _ => None,
        }
    }

    /// How many replicas were needed, where that was the trouble.
    pub fn need(&self) -> Option<u8> {
        match self {
            Self::NotApplied(NotApplied::Unavailable { need, .. } | NotApplied::TimedOut { need, .. }) => Some(*need),
            Self::Indeterminate { need, .. } => *need,
            _ => None,
        }
    }

    /// How many replicas were had, where that was the trouble.
    pub fn had(&self) -> Option<u8> {
        match self {
            Self::NotApplied(NotApplied::Unavailable { alive, .. }) => Some(*alive),
            Self::NotApplied(NotApplied::TimedOut { had, .. }) => Some(*had),
            Self::Indeterminate { acks, .. } => Some(acks.total()),
            _ => None,
        }
    }

    /// The context that the failed request has seen, where it has seen one.
    pub fn context(&self) -> Option<&Context> {
        match self {
            Self::NotFound { context, .. } | Self::Siblings { context, .. } => Some(context),
            _ => None,
        }
    }

    /// For the function of an [`update`](crate::Client::update) that finds that it must not change anything, for example
    /// because too little is in stock.
    pub fn abort(why: impl fmt::Display) -> Self {
        Self::Aborted { why: why.to_string() }
    }

    pub(crate) fn misuse(why: impl Into<String>) -> Self {
        Self::Misuse { why: why.into() }
    }
}

/// One attempt of a request: whom it went to, and what happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The address, with the name where it is known.
    pub node: String,
    /// What happened, for people.
    pub what: String,
}

impl Tried {
    /// Whether there was too little time to connect, so that it says nothing of the node.
    pub fn was_cut_short(&self) -> bool {
        self.what.starts_with(NOT_CONNECTED)
    }
}

/// What is said of such an attempt.
pub(crate) const NOT_CONNECTED: &str = "not connected within";

/// Whether a refusal may pass when time goes by or another node is asked.
pub(crate) fn is_passing(refusal: &NotApplied) -> bool {
    match refusal {
        NotApplied::Unavailable { .. }
        | NotApplied::TimedOut { .. }
        | NotApplied::Overloaded { .. }
        | NotApplied::StaleLayout { .. }
        | NotApplied::NotServing { .. }
        | NotApplied::Storage { .. } => true,
        NotApplied::TooLarge { .. }
        | NotApplied::EmptyKey
        | NotApplied::QuorumImpossible { .. }
        | NotApplied::BadContext { .. }
        | NotApplied::TooManySiblings { .. }
        | NotApplied::Forbidden { .. }
        | NotApplied::Unsupported { .. }
        | NotApplied::Refused { .. } => false,
    }
}

/// What to try next; empty where the refusal itself says it.
fn advice_after(refusal: &NotApplied) -> &'static str {
    match refusal {
        NotApplied::Unavailable { .. } => {
            "; try again, ask for fewer replicas, or make the request sloppy if it was strict"
        }
        NotApplied::TimedOut { .. } => "; try again, allow more time, or ask for fewer replicas",
        NotApplied::StaleLayout { .. } => "; try again",
        NotApplied::NotServing { .. } => "; look at `quorate status`",
        NotApplied::TooLarge { .. } => "; make it smaller or divide it among several keys",
        NotApplied::BadContext { .. } => "; read the key again and use the context of that read",
        NotApplied::Forbidden { .. } => "; use a certificate that allows it",
        NotApplied::Unsupported { .. } => "; client and node may be of different releases",
        NotApplied::Storage { .. } => "; try again, and look at the disk of that node",
        NotApplied::Overloaded { .. }
        | NotApplied::EmptyKey
        | NotApplied::QuorumImpossible { .. }
        | NotApplied::TooManySiblings { .. }
        | NotApplied::Refused { .. } => "",
    }
}

/// A key as people read it: text where it is text, shortened to 64 characters.
pub(crate) struct KeyText<'a>(pub(crate) &'a [u8]);

impl fmt::Display for KeyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(64)];
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if shown.len() < self.0.len() { f.write_str("..") } else { Ok(()) }
    }
}

struct OrUnknown(Option<u8>);

impl fmt::Display for OrUnknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(count) => count.fmt(f),
            None => f.write_str("an unknown number of"),
        }
    }
}

struct TriedText<'a>(&'a [Tried]);

impl fmt::Display for TriedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nobody");
        }
        for (i, (node, what)) in tried_last(self.0).into_iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{node} ({what})")?;
        }
        Ok(())
    }
}

/// Each node that was tried, once: under its name where an attempt knew it, with what came of the last attempt that tells
/// anything: not of one that was only cut short.
fn tried_last(tried: &[Tried]) -> Vec<(&str, &str)> {
    let addr = |node: &str| node.rsplit(' ').next().unwrap_or(node).to_owned();
    let mut last: Vec<(&str, &str)> = Vec::new();
    for attempt in tried {
        let Tried { node, what } = attempt;
        match last.iter_mut().find(|(known, _)| addr(known) == addr(node)) {
            Some((known, before)) => {
                if !attempt.was_cut_short() {
                    *before = what;
                }
                if node.len() > known.len() {
                    *known = node;
                }
            }
            None => last.push((node, what)),
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_wire::ids::{LayoutVersion, NodeId};

    fn refusals() -> Vec<(NotApplied, bool)> {
        let node = NodeId::new("n1").expect("legal");
        let why = String::from("because");
        vec![
            (NotApplied::Unavailable { need: 2, alive: 1, why: why.clone() }, true),
            (NotApplied::TimedOut { need: 2, had: 1, why: why.clone() }, true),
            (NotApplied::Overloaded { retry_after_ms: 10 }, true),
            (NotApplied::StaleLayout { need: LayoutVersion(2), had: LayoutVersion(1) }, true),
            (NotApplied::NotServing { node, why: why.clone() }, true),
            (NotApplied::Storage { node, why: why.clone() }, true),
            (NotApplied::TooLarge { what: "value".into(), limit: 1, got: 2 }, false),
            (NotApplied::EmptyKey, false),
            (NotApplied::QuorumImpossible { what: "W".into(), asked: 4, n: 3 }, false),
            (NotApplied::BadContext { why: why.clone() }, false),
            (NotApplied::TooManySiblings { got: 100, limit: 100 }, false),
            (NotApplied::Forbidden { why: why.clone() }, false),
            (NotApplied::Unsupported { why: why.clone() }, false),
            (NotApplied::Refused { why }, false),
        ]
    }

    #[test]
    fn every_variant_answers_both_questions() {
        for (refusal, retryable) in refusals() {
            let error = Error::from(refusal);
            assert_eq!((error.is_retryable(), error.may_have_applied()), (retryable, false), "{error}");
        }
        let key = Bytes::from_static(b"k");
        let context = Context::from_bytes(&b"c"[..]).expect("short");
        let quorum = QuorumReport::default();
        let op_id = OpId(7);
        let acks = Acks { primary: 1, fallback: 0 };
        let why = String::from("because");
        let expected = [
            (Error::Indeterminate { op_id, need: Some(2), acks, why: why.clone() }, true, true),
            (Error::OutcomeUnknown { why: why.clone() }, false, true),
            (Error::NotFound { key: key.clone(), context: context.clone(), quorum }, false, false),
            (Error::Siblings { key: key.clone(), count: 2, context }, false, false),
            (Error::Contended { key, attempts: 8 }, false, true),
            (Error::abort("too little in stock"), false, false),
            (Error::Codec { why: why.clone() }, false, false),
            (Error::NoNodeReachable { tried: vec![] }, true, false),
            (Error::NoAnswer { waited: Duration::from_secs(1), tried: vec![] }, true, false),
            (Error::misuse(why), false, false),
        ];
        for (error, retryable, applied) in expected {
            assert_eq!((error.is_retryable(), error.may_have_applied()), (retryable, applied), "{error}");
            assert_eq!(error.op_id().is_some(), matches!(error, Error::Indeterminate { .. }));
        }
    }

    #[test]
    fn texts_say_need_and_had_and_what_to_try() {
        let error = Error::from(NotApplied::Unavailable { need: 2, alive: 1, why: "n2 is down".into() });
        assert_eq!((error.need(), error.had()), (Some(2), Some(1)));
        let text = error.to_string();
        assert!(text.contains("2 replicas are needed, 1 can be reached"), "{text}");
        assert!(text.ends_with("if it was strict"), "{text}");

        let acks = Acks { primary: 1, fallback: 0 };
        let error = Error::Indeterminate { op_id: OpId(0xab), need: None, acks, why: "the connection was lost".into() };
        let text = error.to_string();
        assert!(
            text.contains("000000ab") && text.contains("an unknown number of") && text.contains("same operation id")
        );

        let tried = vec![
            Tried { node: "n1 (10.0.0.1:1)".into(), what: "timed out".into() },
            Tried { node: "n2 (10.0.0.2:1)".into(), what: "refused".into() },
        ];
        let text = Error::NoNodeReachable { tried }.to_string();
        assert!(text.contains("n1 (10.0.0.1:1) (timed out), n2 (10.0.0.2:1) (refused)"), "{text}");
    }

    #[test]
    fn who_was_tried_is_named_once_with_what_came_of_it_last() {
        let tried = |node: &str, what: &str| Tried { node: node.into(), what: what.into() };
        let tried = [
            tried("10.0.0.1:1", "not reached in time"),
            tried("n2 at 10.0.0.2:1", "refused"),
            tried("n1 at 10.0.0.1:1", "no answer within 500ms"),
            tried("10.0.0.1:1", "no answer within 250ms"),
            tried("10.0.0.1:1", "not connected within 20ms"),
        ];
        assert_eq!(
            TriedText(&tried).to_string(),
            "n1 at 10.0.0.1:1 (no answer within 250ms), n2 at 10.0.0.2:1 (refused)"
        );
    }

    #[test]
    fn long_and_binary_keys_stay_readable() {
        assert_eq!(KeyText(b"a\x00\"b").to_string(), r#""a\x00\"b""#);
        let long = KeyText(&[b'x'; 1024]).to_string();
        assert!(long.len() < 80 && long.ends_with(".."), "{long}");
    }
}
