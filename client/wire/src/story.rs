//! What happened to a key, step by step: for people, be it of a simulation or of a running cluster.
//!
//! [`tell!`](crate::tell) makes a `tracing` event of the target [`TARGET`] at the level TRACE. The simulator listens to it for
//! `run --explain` and `run --report`; an operator gets the same lines of a real node with `quorate::story=trace` as its log
//! filter. That is why it is an event and no macro that only a simulation fills, as those of [`crate::fault_points`] are: the node
//! that runs is the node that is explained.
//!
//! # Cost
//! As long as no subscriber asks for the level TRACE, an event is one relaxed load of `tracing`'s level and a branch that is
//! not taken; its fields are expressions that are evaluated only if somebody listens.
//!
//! # Vocabulary
//! Every event has the fields `act` and, where there is one, `key`. What a node does names it in `node`. Four acts are a question
//! and its answer, on both ends; `request` is the client's request that they serve, and the same in all of them:
//!
//! ```text
//!   ask { node, to, request, what } ──> asked { node, from, request, what }
//!   told { node, from, request, said } <── tell { node, to, request, said, ok }
//! ```
//!
//! A client asks and is told without a `node`; `to` and `from` are then addresses. Whatever else is told has an `act` that can
//! be read as a predicate: "n1 *mints*", "n2 *keeps a hint*". Listeners show acts that they do not know with all their fields.

use std::fmt::{self, Display};

use crate::key::KeyParts;
use crate::{Failure, Reply, RequestBody};

/// The target of all events.
pub const TARGET: &str = "quorate::story";

/// Tells that something happened to a key: fields as of `tracing::trace!`, `act` among them.
#[doc(hidden)]
#[macro_export]
macro_rules! tell {
    ($($fields:tt)+) => {
        ::tracing::trace!(target: $crate::story::TARGET, $($fields)+)
    };
}

/// Whether anybody listens: for what has to be kept aside to be told later.
pub fn is_told() -> bool {
    tracing::enabled!(target: TARGET, tracing::Level::TRACE)
}

/// An encoded [`Key`](crate::Key) as its user knows it; any other bytes as text.
pub fn text(bytes: &[u8]) -> impl Display + '_ {
    struct Text<'a>(&'a [u8]);
    impl Display for Text<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match KeyParts::of(self.0) {
                Ok(parts) => parts.fmt(f),
                Err(_) => self.0.escape_ascii().fmt(f),
            }
        }
    }
    Text(bytes)
}

/// What a request asks for, and of which key; nothing for requests that are about no single key's data.
pub fn asked(body: &RequestBody) -> Option<(&'static str, &[u8])> {
    match body {
        RequestBody::Write(write) if write.value.is_some() => Some(("put", &write.key)),
        RequestBody::Write(write) => Some(("delete", &write.key)),
        RequestBody::Read(read) => Some(("get", &read.key)),
        RequestBody::Scan(_)
        | RequestBody::Route
        | RequestBody::Locate { .. }
        | RequestBody::Status
        | RequestBody::Repair(_)
        | RequestBody::Layout(_) => None,
    }
}

/// A node's answer, in a few words.
pub fn said(answer: &Result<Reply, Failure>) -> String {
    match answer {
        Ok(Reply::Written(written)) => {
            let quorum = &written.quorum;
            format!("written: {} of the {} that were needed", quorum.acks.total(), quorum.need)
        }
        Ok(Reply::Found(found)) => match found.values.len() {
            0 => "found nothing".to_owned(),
            1 => "found 1 value".to_owned(),
            values => format!("found {values} siblings"),
        },
        Ok(_) => "answered".to_owned(),
        Err(failure) => failure.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NotApplied, Read};

    #[test]
    fn requests_and_answers_are_said_in_a_few_words() {
        let read = Read { key: crate::Key::plain(b"k\n"), r: None, strict: false, explain: false, monotonic: false };
        let body = RequestBody::Read(read);
        let (what, key) = asked(&body).expect("it is about a key");
        assert_eq!((what, text(key).to_string().as_str()), ("get", "k\\n"));
        assert_eq!(asked(&RequestBody::Status), None);
        let refused = said(&Err(NotApplied::EmptyKey.into()));
        assert!(refused.contains("key"), "{refused}");
    }
}
