//! Operations by name (rule V7): which writes a record has seen superseded, and which ones a client has seen.
//!
//! An operation id is a second name of its write. The dots of a record cover the mint that was superseded; its name covers every other mint
//! of the same operation as well, wherever a repetition has brought one about. So it is kept with the record, and outlives restarts and
//! the ten minutes of [`super::operations`] on the nodes that hold the record.
//!
//! # How many are kept
//!
//! Only operations that [tell when they began](OpId::begun_ms) are named: a repetition is served by its name until [`NAMES_WINDOW_MS`] is
//! over, and what is older is forgotten. "Older" is not a matter of any node's clock: a name goes when the record holds or names an
//! operation that began so much later. So a record that is overwritten less often names nothing but its last change, and one that was never
//! overwritten names nothing. Of the rest the [`NAMES_MAX`] that began last are kept. What this costs is 17 to 20 bytes a name.
//!
//! A name that is not there says nothing: it may have been forgotten. Only names that are there are acted upon.
//!
//! Laws: [`join`](Names::join) followed by `trim` is commutative, associative and idempotent.

use std::collections::BTreeMap;

use quorate_wire::ids::OpId;

use super::compact::{Sink, Source};
use super::version::{Actor, Dot};

/// Operations, each with the lowest of its dots that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Names(BTreeMap<OpId, Dot>);

impl Names {
    /// The dot of an operation that is named.
    pub fn dot_of(&self, op_id: &OpId) -> Option<Dot> {
        self.0.get(op_id).copied()
    }

    /// Whether an operation is named.
    pub fn contains(&self, op_id: &OpId) -> bool {
        self.0.contains_key(op_id)
    }

    /// How many operations are named.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no operation is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The operations, and their dots.
    pub fn iter(&self) -> impl Iterator<Item = (&OpId, &Dot)> {
        self.0.iter()
    }

    /// Names an operation, if it tells when it began. Returns whether that changed anything.
    pub fn insert(&mut self, op_id: OpId, dot: Dot) -> bool {
        if op_id.begun_ms().is_none() {
            return false;
        }
        let news = self.0.get(&op_id).is_none_or(|known| dot < *known);
        if news {
            self.0.insert(op_id, dot);
        }
        news
    }

    /// Names what the other side names. Returns whether that changed anything.
    pub fn join(&mut self, other: &Names) -> bool {
        other.0.iter().fold(false, |changed, (op_id, dot)| changed | self.insert(*op_id, *dot))
    }

    /// Names it no more.
    pub(crate) fn remove(&mut self, op_id: &OpId) {
        self.0.remove(op_id);
    }

    /// Forgets what began [`NAMES_WINDOW_MS`] or longer before the newest operation, one that is named or `newest`, and the oldest beyond
    /// [`NAMES_MAX`].
    pub(crate) fn trim(&mut self, newest: Option<u64>) {
        let Some((last, _)) = self.0.last_key_value() else { return };
        let newest = last.begun_ms().max(newest).unwrap_or(0);
        while let Some((oldest, _)) = self.0.first_key_value() {
            let over = oldest.begun_ms().is_none_or(|begun| begun + NAMES_WINDOW_MS <= newest);
            if !over && self.0.len() <= NAMES_MAX {
                break;
            }
            self.0.pop_first();
        }
    }

    /// Their number, and for each in its order: 16 bytes, the index of its dot's actor among `actors`, the counter.
    pub(crate) fn encode(&self, sink: &mut impl Sink, actors: &[Actor]) {
        sink.put_number(self.0.len() as u64);
        for (op_id, dot) in &self.0 {
            let index =
                actors.binary_search(&dot.actor).expect("a context covers the dots of the operations that it names");
            sink.put(&op_id.0.to_be_bytes());
            sink.put_number(index as u64);
            sink.put_number(dot.counter);
        }
    }

    /// What [`encode`](Self::encode) wrote; anything else is refused. Whether the dots are covered is left to the caller.
    pub(crate) fn decode(source: &mut Source, actors: &[Actor]) -> Result<Self, String> {
        let count = source.number("the number of operations")?;
        if count > DECODED_NAMES_MAX {
            return Err(format!("{count} named operations are above the limit of {DECODED_NAMES_MAX}"));
        }
        let mut names = BTreeMap::new();
        for _ in 0..count {
            let op_id = OpId(u128::from_be_bytes(source.array("a named operation")?));
            if names.last_key_value().is_some_and(|(last, _)| *last >= op_id) {
                return Err(format!("the named operation {op_id} is out of order"));
            }
            if op_id.begun_ms().is_none() {
                return Err(format!("the named operation {op_id} does not tell when it began"));
            }
            let index = source.number("a named operation's actor")?;
            let actor = usize::try_from(index).ok().and_then(|index| actors.get(index)).copied();
            let actor = actor.ok_or_else(|| format!("a named operation has actor {index} of {}", actors.len()))?;
            names.insert(op_id, Dot { actor, counter: source.number("a named operation's counter")? });
        }
        Ok(Self(names))
    }
}

/// As many operations a record names at most: 320 bytes at the worst.
pub const NAMES_MAX: usize = 16;
/// A name is kept until an operation is known that began so much later. As long as a superseded operation is
/// [remembered](super::operations::OPERATION_WINDOW).
pub const NAMES_WINDOW_MS: u64 = 600_000;
/// The most names that are decoded: bounds memory when the bytes are garbage. A client's context names as many as there are siblings: a
/// coordinator mints up to 100, a merge joins those of at most 255.
const DECODED_NAMES_MAX: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::version::tests::dot;
    use super::*;

    fn op(begun_ms: u64, random: u128) -> OpId {
        OpId::new(begun_ms, random)
    }

    #[test]
    fn what_does_not_tell_when_it_began_is_not_named() {
        let mut names = Names::default();
        assert!(!names.insert(OpId(7), dot(0, 1)) && names.is_empty());
        assert!(names.insert(op(7, 7), dot(0, 2)));
        assert!(!names.insert(op(7, 7), dot(0, 3)), "the lowest dot stays");
        assert!(names.insert(op(7, 7), dot(0, 1)));
        assert_eq!((names.len(), names.dot_of(&op(7, 7)), names.dot_of(&op(7, 8))), (1, Some(dot(0, 1)), None));
    }

    #[test]
    fn the_oldest_names_go_and_those_whose_time_is_over() {
        let mut names = Names::default();
        for begun in 0..NAMES_MAX as u64 + 3 {
            names.insert(op(begun, 0), dot(0, 1));
        }
        names.trim(None);
        assert_eq!((names.len(), names.contains(&op(2, 0)), names.contains(&op(3, 0))), (NAMES_MAX, false, true));
        names.trim(Some(NAMES_WINDOW_MS + 3));
        assert_eq!((names.len(), names.contains(&op(3, 0)), names.contains(&op(4, 0))), (NAMES_MAX - 1, false, true));
        names.insert(op(2 * NAMES_WINDOW_MS, 0), dot(0, 1));
        names.trim(Some(5));
        assert_eq!(names.len(), 1);
        let mut none = Names::default();
        none.trim(Some(1));
        assert!(none.is_empty());
    }

    fn names() -> impl Strategy<Value = Names> {
        vec((0..6u64, 0..4u128, 1..4u64), 0..40).prop_map(|named| {
            let mut names = Names::default();
            for (begun, random, counter) in named {
                names.insert(op(begun * NAMES_WINDOW_MS / 4, random), dot(0, counter));
            }
            names.trim(None);
            names
        })
    }

    fn joined(a: &Names, b: &Names) -> Names {
        let mut joined = a.clone();
        let changed = joined.join(b);
        assert_eq!(changed, joined != *a);
        joined.trim(None);
        joined
    }

    proptest! {
        #[test]
        fn join_and_trim_are_commutative_associative_and_idempotent(a in names(), b in names(), c in names()) {
            prop_assert_eq!(joined(&a, &b), joined(&b, &a));
            prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
            prop_assert_eq!(&joined(&a, &a), &a);
            prop_assert_eq!(&joined(&joined(&a, &b), &b), &joined(&a, &b));
        }

        #[test]
        fn names_come_back_from_their_bytes(a in names()) {
            let mut bytes = Vec::new();
            let actors = [dot(0, 1).actor];
            a.encode(&mut bytes, &actors);
            let mut source = Source::new(bytes.into());
            prop_assert_eq!(Names::decode(&mut source, &actors), Ok(a));
            prop_assert_eq!(source.end(), Ok(()));
        }
    }
}
