//! Actors, dots and contexts: who wrote, what the write is called, and what has been seen.
//!
//! The explicit-dot form of Goncalves, Almeida, Baquero, Fonte, "Concise Server-Wide Causality Management for Eventually
//! Consistent Data Stores" (2015).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use quorate_wire::CONTEXT_LEN_MAX;
use quorate_wire::ids::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::compact::{Length, Sink, Source};
use super::names::Names;

/// Who mints dots in one partition for as long as it has held that partition without a gap (rule V1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Actor {
    /// The node.
    pub node: NodeId,
    /// Random, drawn in memory for each partition, never stored: a restart or a lost record ends it.
    pub incarnation: u64,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:04x}..", self.node, self.incarnation >> 48)
    }
}

/// The unique name of one write to one key. Displays as `n1/3f2a..#17`.
///
/// Counters are partition-wide, so that the dots of one key have gaps; two keys may well have the same dot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// Who minted it.
    pub actor: Actor,
    /// Counted from 1, partition-wide.
    pub counter: u64,
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.actor, self.counter)
    }
}

/// What has been seen of a key: a version vector plus the dots beyond it, and operations by name (rule V7).
///
/// In a record's context these are the operations that were superseded there, as far as they are kept; in a client's, those of the values
/// that it was shown.
///
/// Normalised: no dot that the vector covers, and a dot that continues the vector is folded into it. So two contexts are
/// equal exactly if they cover the same dots and name the same operations. Laws: [`join`](Self::join) is commutative, associative and
/// idempotent, and covers what either side covers. The dot of each operation that it names is covered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Context {
    vector: BTreeMap<Actor, u64>,
    dots: BTreeSet<Dot>,
    names: Names,
}

impl Context {
    /// Nothing has been seen.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing has been seen.
    pub fn is_empty(&self) -> bool {
        self.vector.is_empty() && self.dots.is_empty()
    }

    /// How many entries it has: actors in the vector, and dots beyond it.
    pub fn len(&self) -> usize {
        self.vector.len() + self.dots.len()
    }

    /// The dot has been seen.
    pub fn covers(&self, dot: &Dot) -> bool {
        self.reached(&dot.actor) >= dot.counter || self.dots.contains(dot)
    }

    /// The dot has been seen from now on. Returns whether that is news.
    pub fn insert(&mut self, dot: Dot) -> bool {
        assert!(dot.counter > 0, "counters begin at 1: a dot numbered 0 was never minted");
        if self.covers(&dot) {
            return false;
        }
        self.dots.insert(dot);
        self.fold(dot.actor);
        true
    }

    /// Everything of `actor` up to `counter` counts as seen. Returns whether that is news.
    ///
    /// Only the actor itself may say so of a key, and only of a counter that it has drawn for that key: it holds all that it
    /// ever minted there (rule V1), so that every lower dot of the key has been seen and the gaps are other keys' dots. That
    /// keeps a record's context at one entry an actor.
    pub fn advance(&mut self, actor: Actor, counter: u64) -> bool {
        if counter <= self.reached(&actor) {
            return false;
        }
        self.vector.insert(actor, counter);
        if !self.dots.is_empty() {
            let passed: Vec<Dot> = self.dots_of(actor).take_while(|dot| dot.counter <= counter).copied().collect();
            for dot in passed {
                self.dots.remove(&dot);
            }
            self.fold(actor);
        }
        true
    }

    /// What the other has seen has been seen from now on. Returns whether anything of it is news.
    pub fn join(&mut self, other: &Context) -> bool {
        self.join_dots(other) | self.names.join(&other.names)
    }

    /// The same, but for the operations that the other one names.
    pub(crate) fn join_dots(&mut self, other: &Context) -> bool {
        let mut news = false;
        for (actor, counter) in &other.vector {
            news |= self.advance(*actor, *counter);
        }
        for dot in &other.dots {
            news |= self.insert(*dot);
        }
        news
    }

    /// The operations that it names.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The operations that it names, to be changed by whoever sees to it that it covers their dots.
    pub(crate) fn names_mut(&mut self) -> &mut Names {
        &mut self.names
    }

    /// The same, and no operation by name.
    pub fn without_names(&self) -> Self {
        Self { vector: self.vector.clone(), dots: self.dots.clone(), names: Names::default() }
    }

    /// Whether it covers a dot of one of a node's actors that `other` does not cover.
    pub fn has_news_of(&self, node: NodeId, other: &Context) -> bool {
        let mut seen = other.clone();
        let mut vector = self.vector.iter().filter(|(actor, _)| actor.node == node);
        let mut dots = self.dots.iter().filter(|dot| dot.actor.node == node);
        vector.any(|(actor, counter)| seen.advance(*actor, *counter)) || dots.any(|dot| seen.insert(*dot))
    }

    /// The highest counter of `actor` that is covered anywhere in it; 0 if none (rule V5).
    pub fn highest(&self, actor: &Actor) -> u64 {
        let beyond = self.dots_of(*actor).next_back().map_or(0, |dot| dot.counter);
        self.reached(actor).max(beyond)
    }

    /// To bytes that name cluster and key, versioned and checksummed: the inside of what clients get. Anybody can make them, so
    /// that a client gets and sends them only with a code that nodes alone can make (rule V5, [`super::context_keys`]).
    ///
    /// ```text
    /// version u8 = 2 | cluster id, 16 bytes | XXH3-128 of the key, 16 bytes | the context | CRC32C of all before, 4 bytes
    /// ```
    ///
    /// May come out longer than a client is allowed to send back; a coordinator refuses writes that would lead there, see
    /// [`super::context_keys::sealed_len`].
    pub fn seal(&self, cluster: ClusterId, key: &[u8]) -> Bytes {
        let mut sealed = Vec::with_capacity(self.sealed_len());
        self.seal_into(&mut sealed, cluster, key);
        sealed.into()
    }

    /// Appends what [`seal`](Self::seal) makes.
    pub(crate) fn seal_into(&self, sealed: &mut Vec<u8>, cluster: ClusterId, key: &[u8]) {
        let start = sealed.len();
        sealed.push(SEAL_VERSION);
        sealed.put(&cluster.0.to_be_bytes());
        sealed.put(&xxh3_128(key).to_be_bytes());
        self.encode(sealed);
        let checksum = crc32c::crc32c(&sealed[start..]);
        sealed.put(&checksum.to_be_bytes());
    }

    /// How many bytes [`seal`](Self::seal) makes.
    pub fn sealed_len(&self) -> usize {
        let mut length = Length(SEAL_LEN);
        self.encode(&mut length);
        length.0
    }

    /// From what [`seal`](Self::seal) made, or somebody who knows how: it does not tell who has.
    ///
    /// # Errors
    /// When they are too many, damaged, of an unknown version, or of another cluster or key; the text says which.
    pub fn open(sealed: &Bytes, cluster: ClusterId, key: &[u8]) -> Result<Self, String> {
        let mut source = Self::check(sealed, cluster, key)?;
        let damaged = |why| format!("it is damaged: {why}");
        let context = Self::decode(&mut source).map_err(damaged)?;
        source.end().map_err(damaged)?;
        Ok(context)
    }

    /// All of [`open`](Self::open) but for the context itself, which is left to be decoded.
    pub(crate) fn check(sealed: &Bytes, cluster: ClusterId, key: &[u8]) -> Result<Source, String> {
        if sealed.len() > CONTEXT_LEN_MAX {
            return Err(format!("it has {} bytes, at most {CONTEXT_LEN_MAX} are allowed", sealed.len()));
        }
        match sealed.first() {
            None => return Err("it is empty; leave it out if nothing has been seen".into()),
            Some(&SEAL_VERSION) => {}
            Some(version) => return Err(format!("version {version} is unknown, this node speaks {SEAL_VERSION}")),
        }
        if sealed.len() < SEAL_LEN {
            return Err(format!("it is damaged: {} bytes are too few", sealed.len()));
        }
        let (checked, checksum) = (sealed.slice(..sealed.len() - 4), sealed.slice(sealed.len() - 4..));
        if crc32c::crc32c(&checked).to_be_bytes() != checksum.as_ref() {
            return Err("it is damaged: the checksum does not match".into());
        }
        let mut source = Source::new(checked.slice(1..));
        let other = ClusterId(u128::from_be_bytes(source.array("the cluster id")?));
        if other != cluster {
            return Err(format!("it belongs to another cluster ({other}, not {cluster})"));
        }
        if u128::from_be_bytes(source.array("the key's hash")?) != xxh3_128(key) {
            return Err("it belongs to another key".into());
        }
        Ok(source)
    }

    /// All actors that it knows, in order: the table that a record's encoding refers to.
    pub fn actors(&self) -> Vec<Actor> {
        let mut actors: Vec<Actor> = self.vector.keys().copied().collect();
        if !self.dots.is_empty() {
            actors.extend(self.dots.iter().map(|dot| dot.actor));
            actors.sort_unstable();
            actors.dedup();
        }
        actors
    }

    /// Each node's name once, then its actors, each with its dots:
    ///
    /// ```text
    /// nodes
    ///   name length, name, actors
    ///     incarnation u64 | counter of the vector, 0 if it has no entry | dots beyond it
    ///       the first - counter - 2, each further one - the one before - 1
    /// operations that are named, each with
    ///   16 bytes | index of its dot's actor | counter
    /// ```
    pub(crate) fn encode(&self, sink: &mut impl Sink) {
        let actors = self.actors();
        let by_node = || actors.chunk_by(|a, b| a.node == b.node);
        sink.put_number(by_node().count() as u64);
        for of_node in by_node() {
            let name = of_node[0].node.as_str();
            sink.put_number(name.len() as u64);
            sink.put(name.as_bytes());
            sink.put_number(of_node.len() as u64);
            for actor in of_node {
                let reached = self.reached(actor);
                sink.put(&actor.incarnation.to_be_bytes());
                sink.put_number(reached);
                if self.dots.is_empty() {
                    sink.put_number(0);
                    continue;
                }
                sink.put_number(self.dots_of(*actor).count() as u64);
                let mut lowest = reached.saturating_add(2);
                for dot in self.dots_of(*actor) {
                    sink.put_number(dot.counter - lowest);
                    lowest = dot.counter.saturating_add(1);
                }
            }
        }
        self.names.encode(sink, &actors);
    }

    /// What [`encode`](Self::encode) wrote; anything else is refused, so that equal contexts are equal bytes.
    pub(crate) fn decode(source: &mut Source) -> Result<Self, String> {
        let mut context = Self::new();
        let mut last: Option<Actor> = None;
        for _ in 0..source.number("the number of nodes")? {
            let len = source.number("a node's name's length")?;
            let name = source.bytes(len, "a node's name")?;
            let name = std::str::from_utf8(&name).map_err(|_| "a node's name is no text".to_owned())?;
            let node = NodeId::new(name).map_err(|error| error.to_string())?;
            if last.is_some_and(|last| last.node >= node) {
                return Err(format!("node {node} is out of order"));
            }
            let actors = source.number("the number of actors")?;
            if actors == 0 {
                return Err(format!("node {node} has no actor"));
            }
            for _ in 0..actors {
                let actor = Actor { node, incarnation: u64::from_be_bytes(source.array("an incarnation")?) };
                if last.is_some_and(|last| last >= actor) {
                    return Err(format!("actor {actor} is out of order"));
                }
                last = Some(actor);
                context.decode_actor(actor, source)?;
            }
        }
        let names = Names::decode(source, &context.actors())?;
        if let Some((op_id, dot)) = names.iter().find(|(_, dot)| dot.counter == 0 || !context.covers(dot)) {
            return Err(format!("dot {dot} of the named operation {op_id} is not covered"));
        }
        context.names = names;
        Ok(context)
    }

    fn decode_actor(&mut self, actor: Actor, source: &mut Source) -> Result<(), String> {
        let reached = source.number("a counter")?;
        let dots = source.number("the number of dots")?;
        if reached == 0 && dots == 0 {
            return Err(format!("actor {actor} has nothing"));
        }
        if reached > 0 {
            self.vector.insert(actor, reached);
        }
        let mut lowest = reached.checked_add(2);
        for _ in 0..dots {
            let gap = source.number("a dot")?;
            let counter = lowest.and_then(|lowest| lowest.checked_add(gap));
            let counter = counter.ok_or_else(|| format!("a dot of {actor} does not fit 64 bits"))?;
            self.dots.insert(Dot { actor, counter });
            lowest = counter.checked_add(1);
            if self.len() > ENTRIES_MAX {
                return Err(format!("it has more than {ENTRIES_MAX} entries"));
            }
        }
        if self.len() > ENTRIES_MAX {
            return Err(format!("it has more than {ENTRIES_MAX} entries"));
        }
        Ok(())
    }

    fn reached(&self, actor: &Actor) -> u64 {
        self.vector.get(actor).copied().unwrap_or(0)
    }

    fn dots_of(&self, actor: Actor) -> impl DoubleEndedIterator<Item = &Dot> {
        self.dots.range(Dot { actor, counter: 0 }..=Dot { actor, counter: u64::MAX })
    }

    /// Takes the dots into the vector that continue it.
    fn fold(&mut self, actor: Actor) {
        let before = self.reached(&actor);
        let mut reached = before;
        while let Some(counter) = reached.checked_add(1)
            && self.dots.remove(&Dot { actor, counter })
        {
            reached = counter;
        }
        if reached > before {
            self.vector.insert(actor, reached);
        }
    }
}

/// The version of sealed contexts. Version 1 named no operations.
const SEAL_VERSION: u8 = 2;
/// Version, cluster, key and checksum around a sealed context.
const SEAL_LEN: usize = 1 + 16 + 16 + 4;
/// The most entries that are decoded: bounds memory (about 20 MiB) when the bytes are garbage. A coordinator mints no context
/// above 64 KiB, which is 65,536 one-byte dots at the very worst, and a merge joins those of a few coordinators.
const ENTRIES_MAX: usize = 1 << 18;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use quorate_wire::ids::OpId;

    use super::*;

    pub(crate) fn actor(number: u64) -> Actor {
        let node = NodeId::new(&format!("n{}", number % 3)).expect("a legal name");
        Actor { node, incarnation: number / 3 }
    }

    pub(crate) fn dot(number: u64, counter: u64) -> Dot {
        Dot { actor: actor(number), counter }
    }

    pub(crate) fn contexts() -> impl Strategy<Value = Context> {
        let counter = prop_oneof![8 => 1..9u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 1)];
        vec((0..5u64, counter, any::<bool>(), prop_oneof![2 => Just(None), 1 => (0..4u64).prop_map(Some)]), 0..10)
            .prop_map(|steps| {
                let mut context = Context::new();
                for (number, counter, advance, named) in steps {
                    if advance {
                        context.advance(actor(number), counter);
                    } else {
                        context.insert(dot(number, counter));
                    }
                    if let Some(begun_ms) = named {
                        context.names.insert(OpId::new(begun_ms, 1), dot(number, counter));
                    }
                }
                context
            })
    }

    fn joined(a: &Context, b: &Context) -> Context {
        let mut joined = a.clone();
        let news = joined.join(b);
        assert_eq!(news, joined != *a, "join says whether it changed something");
        joined
    }

    const CLUSTER: ClusterId = ClusterId(7);
    const KEY: &[u8] = b"key";

    #[test]
    fn dots_fold_into_the_vector_in_any_order() {
        let mut context = Context::new();
        for counter in [5, 2, 3] {
            assert!(context.insert(dot(0, counter)));
        }
        assert_eq!((context.vector.len(), context.dots.len()), (0, 3));
        assert!(!context.covers(&dot(0, 1)) && !context.covers(&dot(0, 4)));
        assert!(context.insert(dot(0, 1)));
        assert_eq!((context.reached(&actor(0)), context.dots.len()), (3, 1));
        assert_eq!(context.highest(&actor(0)), 5);
        assert!(context.advance(actor(0), 4));
        assert_eq!((context.reached(&actor(0)), context.dots.len()), (5, 0));
        assert!(!context.insert(dot(0, 4)) && !context.advance(actor(0), 5));
        assert_eq!(context.highest(&actor(1)), 0);
    }

    #[test]
    fn a_context_is_empty_when_nothing_was_seen() {
        assert!(Context::new().is_empty());
        let (mut vector, mut dots) = (Context::new(), Context::new());
        vector.advance(actor(0), 1);
        dots.insert(dot(0, 3));
        assert_eq!((vector.dots.len(), dots.vector.len()), (0, 0));
        assert!(!vector.is_empty() && !dots.is_empty());
    }

    #[test]
    fn a_node_is_named_once_and_there_are_so_many_entries_and_no_more() {
        let decode = |bytes: Vec<u8>| Context::decode(&mut Source::new(bytes.into()));
        let node = |name: &str, incarnation: u64| {
            let mut bytes = vec![name.len() as u8];
            bytes.put(name.as_bytes());
            bytes.put_number(1);
            bytes.put(&incarnation.to_be_bytes());
            bytes
        };
        let once = |name, incarnation| [&node(name, incarnation)[..], &[1, 0]].concat();
        assert!(decode([&[2][..], &once("a", 1), &once("b", 1), &[0]].concat()).is_ok());
        let why = decode([&[2][..], &once("a", 1), &once("a", 2)].concat()).expect_err("refused");
        assert!(why.contains("node a is out of order"), "{why}");
        // One actor whose dots stand side by side.
        let many = |count: usize| {
            let mut bytes = [&[1][..], &node("a", 1), &[0]].concat();
            bytes.put_number(count as u64);
            // A zero more: no operation is named.
            bytes.resize(bytes.len() + count + 1, 0);
            decode(bytes)
        };
        assert_eq!(many(ENTRIES_MAX).expect("as many as there can be").len(), ENTRIES_MAX);
        assert!(many(ENTRIES_MAX + 1).expect_err("refused").contains("more than"));
    }

    #[test]
    fn news_of_a_node_is_what_its_actors_have_minted_since() {
        let (mut old, mut new) = (Context::new(), Context::new());
        let news = |new: &Context, old: &Context| {
            ["n0", "n1", "n2"].map(|node| new.has_news_of(NodeId::new(node).expect("legal"), old))
        };
        new.advance(actor(0), 3);
        old.advance(actor(0), 4);
        assert_eq!(news(&new, &old), [false, false, false]);
        // Actors 0 and 3 are of one node.
        new.insert(dot(3, 7));
        new.advance(actor(1), 1);
        assert_eq!(news(&new, &old), [true, true, false]);
        old.insert(dot(3, 7));
        assert_eq!(news(&new, &old), [false, true, false]);
    }

    #[test]
    fn a_dot_is_readable() {
        let actor = Actor { node: NodeId::new("n1").expect("legal"), incarnation: 0x3f2a_0000_0000_0001 };
        assert_eq!(Dot { actor, counter: 17 }.to_string(), "n1/3f2a..#17");
    }

    #[test]
    fn a_refused_context_says_what_is_wrong() {
        let mut context = Context::new();
        context.insert(dot(0, 3));
        let sealed = context.seal(CLUSTER, KEY);
        let why = |sealed: &Bytes, cluster, key| Context::open(sealed, cluster, key).expect_err("refused");
        assert!(why(&sealed, CLUSTER, b"other").contains("another key"));
        assert!(why(&sealed, ClusterId(8), KEY).contains("another cluster"));
        assert!(why(&Bytes::new(), CLUSTER, KEY).contains("empty"));
        assert!(why(&sealed.slice(..9), CLUSTER, KEY).contains("damaged"));
        let long = |len| why(&[&[SEAL_VERSION][..], &vec![0; len - 1]].concat().into(), CLUSTER, KEY);
        assert!(long(CONTEXT_LEN_MAX).contains("damaged"));
        assert!(long(CONTEXT_LEN_MAX + 1).contains("at most 65536 are allowed"));
        assert!(why(&sealed.slice(..sealed.len() - 1), CLUSTER, KEY).contains("damaged"));
        let mut newer = sealed.to_vec();
        newer[0] = 3;
        assert!(why(&newer.into(), CLUSTER, KEY).contains("version 3"));
        let long = vec![1; CONTEXT_LEN_MAX + 1];
        assert!(why(&long.into(), CLUSTER, KEY).contains("at most 65536"));
    }

    #[test]
    fn one_actor_takes_few_bytes() {
        let mut context = Context::new();
        context.advance(actor(0), 100);
        assert_eq!(context.sealed_len(), SEAL_LEN + 1 + 1 + 2 + 1 + 8 + 1 + 1 + 1);
    }

    #[test]
    fn sealed_garbage_with_a_right_checksum_is_refused() {
        let seal = |body: &[u8]| {
            let mut sealed = Context::new().seal(CLUSTER, KEY).to_vec();
            sealed.truncate(33);
            sealed.extend_from_slice(body);
            let checksum = crc32c::crc32c(&sealed);
            sealed.extend_from_slice(&checksum.to_be_bytes());
            Context::open(&sealed.into(), CLUSTER, KEY)
        };
        let actor = [0, 0, 0, 0, 0, 0, 0, 1];
        assert!(seal(&[&[1, 1, b'a', 1][..], &actor, &[5, 0, 0]].concat()).is_ok());
        let op = |random| OpId::new(5, random).0.to_be_bytes();
        for (body, why) in [
            (vec![], "cut off"),
            (vec![0, 0, 0], "follow"),
            (vec![0, 255, 255, 4], "above the limit"),
            ([&[1, 1, b'a', 1][..], &actor, &[5, 0, 1], &op(1), &[0, 6]].concat(), "not covered"),
            ([&[1, 1, b'a', 1][..], &actor, &[5, 0, 1], &op(1), &[0, 0]].concat(), "not covered"),
            ([&[1, 1, b'a', 1][..], &actor, &[5, 0, 1], &op(1), &[1, 1]].concat(), "actor 1 of 1"),
            ([&[1, 1, b'a', 1][..], &actor, &[5, 0, 1], &[0; 16], &[0, 1]].concat(), "does not tell when it began"),
            ([&[1, 1, b'a', 1][..], &actor, &[5, 0, 2], &op(1), &[0, 1], &op(1), &[0, 1]].concat(), "out of order"),
            (vec![255, 255, 255, 255, 15], "cut off"),
            (vec![1, 1, b'A', 1], "not valid"),
            (vec![1, 1, b'a', 0], "no actor"),
            ([&[1, 1, b'a', 1][..], &actor, &[0, 0]].concat(), "has nothing"),
            ([&[1, 1, b'a', 2][..], &actor, &[5, 0], &actor, &[5, 0]].concat(), "out of order"),
            ([&[2, 1, b'b', 1][..], &actor, &[5, 0], &[1, b'a', 1], &actor, &[5, 0]].concat(), "out of order"),
            ([&[1, 1, b'a', 1][..], &actor, &[255; 9], &[1, 1, 0]].concat(), "64 bits"),
        ] {
            let error = seal(&body).expect_err("refused");
            assert!(error.contains(why), "{error} should contain {why}");
        }
    }

    proptest! {
        #[test]
        fn join_is_commutative_associative_and_idempotent(a in contexts(), b in contexts(), c in contexts()) {
            prop_assert_eq!(joined(&a, &b), joined(&b, &a));
            prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
            prop_assert_eq!(&joined(&a, &a), &a);
            prop_assert_eq!(&joined(&joined(&a, &b), &b), &joined(&a, &b));
        }

        #[test]
        fn a_join_covers_what_either_side_covers(a in contexts(), b in contexts(), number in 0..5u64, counter in 1..12u64) {
            let dot = dot(number, counter);
            let both = joined(&a, &b);
            prop_assert_eq!(both.covers(&dot), a.covers(&dot) || b.covers(&dot));
            let highest = a.highest(&dot.actor).max(b.highest(&dot.actor));
            prop_assert_eq!(both.highest(&dot.actor), highest);
            let beyond = Dot { counter: highest.saturating_add(1), ..dot };
            prop_assert!(highest == u64::MAX || !both.covers(&beyond), "nothing lies beyond the highest");
        }

        #[test]
        fn contexts_are_normalised(a in contexts()) {
            for dot in &a.dots {
                prop_assert!(dot.counter > a.reached(&dot.actor) + 1);
            }
            prop_assert!(a.vector.values().all(|counter| *counter > 0));
        }

        #[test]
        fn a_sealed_context_comes_back(a in contexts()) {
            let sealed = a.seal(CLUSTER, KEY);
            prop_assert_eq!(sealed.len(), a.sealed_len());
            prop_assert_eq!(Context::open(&sealed, CLUSTER, KEY), Ok(a));
        }

        #[test]
        fn every_flipped_bit_is_refused(a in contexts()) {
            let sealed = a.seal(CLUSTER, KEY).to_vec();
            for bit in 0..sealed.len() * 8 {
                let mut flipped = sealed.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(Context::open(&flipped.into(), CLUSTER, KEY).is_err(), "bit {}", bit);
            }
        }

        #[test]
        fn any_bytes_decode_to_themselves_or_are_refused(bytes in vec(prop_oneof![0..4u8, any::<u8>()], 0..60)) {
            let mut source = Source::new(bytes.clone().into());
            if let Ok(context) = Context::decode(&mut source) && source.end().is_ok() {
                let mut again = Vec::new();
                context.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
