//! What the clients did and what they were told: the only evidence that the checkers have of the requests.
//!
//! Every write has a unique number, the number of its operation, and its value carries that number, so that a read tells
//! exactly whose writes it returns. A context is told by the operation that the client got it from: what it covers follows.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

/// The number of an operation; for a write, what its value carries.
pub type OpNo = u64;

/// One operation of one client on one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Unique in the history.
    pub no: OpNo,
    /// Which client.
    pub client: u32,
    /// Which session of it: a client that forgets what it has seen begins another one.
    pub session: u32,
    /// The key.
    pub key: String,
    /// What was asked for.
    pub action: Action,
    /// When it was asked for, in microseconds of simulated time.
    pub invoked_us: u64,
    /// When the answer came; nothing if it never did.
    pub returned_us: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the client asked that nobody stands in for a primary.
    pub strict: bool,
    /// How many replicas the client asked for.
    pub asked: u8,
    /// What the reply says of its quorum, if there was one.
    pub quorum: Option<Quorum>,
    /// The dot that the reply's evidence names, if it was asked for.
    pub dot: Option<String>,
    /// A client that did not know to whom the write had gone has sent it again.
    #[serde(default)]
    pub elsewhere: bool,
    /// It was sent with a context that no node has issued for this key.
    #[serde(default)]
    pub forged: bool,
    /// How long it might take, in microseconds; nothing if it had not all of its time to itself, or was refused for what it asked.
    #[serde(default)]
    pub time_us: Option<u64>,
}

/// What an operation does. `cause` is the operation whose reply gave the context that is sent along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// A write of a value that carries the operation's number.
    Put {
        /// Nothing for a blind write.
        cause: Option<OpNo>,
    },
    /// A delete.
    Delete {
        /// Nothing for a blind delete, which deletes nothing.
        cause: Option<OpNo>,
    },
    /// A read.
    Get {
        /// Once its values are returned, no later read may miss them.
        monotonic: bool,
    },
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A write was acknowledged.
    Written,
    /// A read returned these writes' values.
    Found(BTreeSet<OpNo>),
    /// Nothing happened, and nothing will.
    NotApplied(String),
    /// A write may or may not have happened, or may yet.
    Unknown(String),
}

/// What a reply says of its quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    /// Replicas of the key.
    pub n: u8,
    /// How many had to answer.
    pub need: u8,
    /// How many primaries did.
    pub primaries: u8,
    /// How many stand-ins did.
    pub fallbacks: u8,
    /// Not all of the quorum were primaries.
    pub degraded: bool,
    /// Fewer were asked for than the layout's floor.
    #[serde(default)]
    pub below_floor: bool,
    /// The layout that it was counted in.
    pub layout: u64,
}

impl Quorum {
    /// Of a monotonic read: how many primaries must hold what it returned, so that every later read of as many replicas as this
    /// one asked, and every one of a majority, meets one of them.
    pub fn write_back(&self) -> u8 {
        (self.n + 1).saturating_sub(self.need).max(self.n / 2 + 1)
    }
}

impl Operation {
    /// Whether it writes: puts and deletes.
    pub fn writes(&self) -> bool {
        !matches!(self.action, Action::Get { .. })
    }

    /// A write that was acknowledged.
    pub fn acknowledged(&self) -> bool {
        self.writes() && self.outcome == Outcome::Written
    }

    /// A write that has happened or may have.
    pub fn may_have_happened(&self) -> bool {
        self.writes() && !matches!(self.outcome, Outcome::NotApplied(_))
    }

    /// What a read returned, if it did.
    pub fn found(&self) -> Option<&BTreeSet<OpNo>> {
        match &self.outcome {
            Outcome::Found(values) => Some(values),
            Outcome::Written | Outcome::NotApplied(_) | Outcome::Unknown(_) => None,
        }
    }

    /// Whose context it was sent with.
    pub fn cause(&self) -> Option<OpNo> {
        match self.action {
            Action::Put { cause } | Action::Delete { cause } => cause,
            Action::Get { .. } => None,
        }
    }

    /// Whether its answer came before another operation was asked for.
    pub fn before(&self, other: &Self) -> bool {
        self.returned_us.is_some_and(|returned| returned < other.invoked_us)
    }
}

/// Every operation of one life, and what was found at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// In the order of their numbers.
    pub operations: BTreeMap<OpNo, Operation>,
    /// What every replica held at the end.
    pub replicas: Vec<Replica>,
    /// What a reader of all replicas and all hints sees at the end: the merged records' values.
    pub merged: BTreeMap<String, BTreeSet<OpNo>>,
    /// Who held what clients were told of, when they were told.
    pub held: Vec<Held>,
    /// Every hint that was let go.
    pub let_go: Vec<LetGo>,
    /// Writes that were seen with dots of several nodes, or with several of one actor.
    pub minters: Vec<Minters>,
    /// Dots that were seen with the values of two writes.
    pub reused: Vec<Reused>,
    /// Each write that a record called replaced, when that was first seen at its place.
    pub replaced: Vec<Replaced>,
    /// Writes that a node holds again after it had seen them replaced.
    pub risen: Vec<Risen>,
    /// What clients have cost nodes, where it was too much.
    pub costs: Vec<Cost>,
    /// Who could reach whom, each time that it changed, in the order of time.
    pub reach: Vec<Reach>,
    /// What each disk held of layouts, each time that it changed, in the order of time; only of lives whose layout changes.
    pub layouts: Vec<KnownLayouts>,
}

/// The layouts that a node's disk holds durably, from a moment on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownLayouts {
    /// Since when, in microseconds of simulated time.
    pub from_us: u64,
    /// Whose disk.
    pub node: String,
    /// The version and the hash of each layout that is in force there, oldest first.
    pub layouts: Vec<(u64, String)>,
    /// The disk has lost something that was durable.
    pub spoilt: bool,
}

/// Who can reach whom, from a moment on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Since when, in microseconds of simulated time.
    pub from_us: u64,
    /// The nodes that run and serve, and have nothing wrong with themselves.
    pub sound: BTreeSet<String>,
    /// The nodes that do not run, or do not serve yet.
    pub away: BTreeSet<String>,
    /// The pairs of nodes of which at least one does not hear the other, the smaller name first.
    pub parted: BTreeSet<(String, String)>,
    /// The nodes that do not hear clients, or are not heard by them.
    pub unreached: BTreeSet<String>,
    /// Some node answers late, or only some of what it is asked.
    pub slow: bool,
    /// The layout, if all of its members know it and nothing is left to be done for it; `sound` and the others have its members only then.
    /// 0 for the only one of a life whose layout never changes.
    #[serde(default)]
    pub layout: Option<u64>,
}

/// A node had a write's value, then a record that had replaced it, and now the value again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Risen {
    /// Which write.
    pub no: OpNo,
    /// Of which key.
    pub key: String,
    /// Who.
    pub node: String,
}

/// A record does not hold a write's value any more, or never did, and its context says that it was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// Which write.
    pub no: OpNo,
    /// Of which key.
    pub key: String,
    /// Whose record says so: a node's own, or what it keeps for another one.
    pub place: String,
    /// The writes whose values the record holds.
    pub by: BTreeSet<OpNo>,
    /// When, in microseconds of simulated time.
    pub at_us: u64,
}

/// A dot that two writes have had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reused {
    /// The dot.
    pub dot: String,
    /// The key of the second one.
    pub key: String,
    /// Both, in the order in which they were seen.
    pub writes: [OpNo; 2],
}

/// Who has minted dots of one write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minters {
    /// Which write.
    pub no: OpNo,
    /// Of which key.
    pub key: String,
    /// The dots that carry its value: of several nodes, or several of one actor.
    pub dots: BTreeSet<String>,
}

/// On which disks the write was durable that a client was told of, when it was told: a put that was acknowledged, or each value
/// that a monotonic read returned. Its own value lies there, or a record that has seen it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which operation was answered.
    pub no: OpNo,
    /// The nodes whose own record holds it.
    pub replicas: BTreeSet<String>,
    /// The nodes that keep it for others.
    pub stand_ins: BTreeSet<String>,
    /// The nodes for whom others keep it.
    pub kept_for: BTreeSet<String>,
    /// The nodes whose disks have lost something, so that nothing can be asked of them.
    pub excused: BTreeSet<String>,
}

/// A hint that its keeper has let go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetGo {
    /// Who kept it.
    pub holder: String,
    /// For whom.
    pub target: String,
    /// The key.
    pub key: String,
    /// Whose values it held.
    pub values: BTreeSet<OpNo>,
    /// All that it held was durable at its target by then, or the target's disk has lost something.
    pub arrived: bool,
}

/// What clients have cost a node, where it was more than they may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Which node.
    pub node: String,
    /// What it was, for people.
    pub what: String,
}

/// What one node holds at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its name.
    pub node: String,
    /// Its records of the keys that it is a primary of.
    pub records: BTreeMap<String, Record>,
    /// What it keeps for others.
    pub hints: Vec<Hint>,
}

/// A record that one node keeps for another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// For whom.
    pub target: String,
    /// The key.
    pub key: String,
    /// Whose value each live dot carries.
    pub dots: BTreeMap<String, OpNo>,
}

/// A record, as far as checkers look at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose value each live dot carries.
    pub dots: BTreeMap<String, OpNo>,
    /// The whole record as it is on disk, hexadecimal: equal records are equal bytes.
    pub encoded: String,
    /// The same without the operations that it names as replaced (rule V7).
    pub unnamed: String,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
enum Line {
    Operation(Operation),
    Replica(Replica),
    Merged { key: String, values: BTreeSet<OpNo> },
    Held(Held),
    LetGo(LetGo),
    Minters(Minters),
    Reused(Reused),
    Replaced(Replaced),
    Risen(Risen),
    Cost(Cost),
    Reach(Reach),
    Layouts(KnownLayouts),
}

impl History {
    /// Adds an operation.
    ///
    /// # Panics
    /// When its number is taken: no verdict could be trusted then.
    pub fn push(&mut self, operation: Operation) {
        let no = operation.no;
        assert!(self.operations.insert(no, operation).is_none(), "operation {no} is there twice");
    }

    /// Its operations on each key, in the order of their numbers.
    pub fn by_key(&self) -> BTreeMap<&str, Vec<&Operation>> {
        let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
        for operation in self.operations.values() {
            by_key.entry(&operation.key).or_default().push(operation);
        }
        by_key
    }

    /// What is left of a key at the end.
    pub fn left(&self, key: &str) -> &BTreeSet<OpNo> {
        static NOTHING: BTreeSet<OpNo> = BTreeSet::new();
        self.merged.get(key).unwrap_or(&NOTHING)
    }

    /// Writes it as JSON, a line for each operation, replica, key, and sight of the disks.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write_lines(&self, mut to: impl Write) -> io::Result<()> {
        let operations = self.operations.values().cloned().map(Line::Operation);
        let replicas = self.replicas.iter().cloned().map(Line::Replica);
        let merged = self.merged.iter().map(|(key, values)| Line::Merged { key: key.clone(), values: values.clone() });
        let held = self.held.iter().cloned().map(Line::Held);
        let let_go = self.let_go.iter().cloned().map(Line::LetGo);
        let minters = self.minters.iter().cloned().map(Line::Minters);
        let reused = self.reused.iter().cloned().map(Line::Reused);
        let replaced = self.replaced.iter().cloned().map(Line::Replaced);
        let risen = self.risen.iter().cloned().map(Line::Risen);
        let costs = self.costs.iter().cloned().map(Line::Cost);
        let reach = self.reach.iter().cloned().map(Line::Reach);
        let layouts = self.layouts.iter().cloned().map(Line::Layouts);
        let seen = held.chain(let_go).chain(minters).chain(reused).chain(replaced).chain(risen).chain(costs);
        let seen = seen.chain(reach).chain(layouts);
        for line in operations.chain(replicas).chain(merged).chain(seen) {
            serde_json::to_writer(&mut to, &line)?;
            to.write_all(b"\n")?;
        }
        to.flush()
    }

    /// Reads what [`write_lines`](Self::write_lines) wrote.
    ///
    /// # Errors
    /// When reading fails, or a line is not of a history; the error names the line.
    pub fn read_lines(from: impl BufRead) -> io::Result<Self> {
        let mut history = Self::default();
        for (number, line) in from.lines().enumerate() {
            let damaged = |why: &dyn std::fmt::Display| io::Error::other(format!("line {}: {why}", number + 1));
            match serde_json::from_str(&line?).map_err(|error| damaged(&error))? {
                Line::Operation(operation) if history.operations.contains_key(&operation.no) => {
                    return Err(damaged(&format_args!("operation {} is there twice", operation.no)));
                }
                Line::Operation(operation) => history.push(operation),
                Line::Replica(replica) => history.replicas.push(replica),
                Line::Merged { key, values } => {
                    history.merged.insert(key, values);
                }
                Line::Held(held) => history.held.push(held),
                Line::LetGo(let_go) => history.let_go.push(let_go),
                Line::Minters(minters) => history.minters.push(minters),
                Line::Reused(reused) => history.reused.push(reused),
                Line::Replaced(replaced) => history.replaced.push(replaced),
                Line::Risen(risen) => history.risen.push(risen),
                Line::Cost(cost) => history.costs.push(cost),
                Line::Reach(reach) => history.reach.push(reach),
                Line::Layouts(known) => history.layouts.push(known),
            }
        }
        Ok(history)
    }
}

/// Which writes each operation's context covers: what causes what, as far as the clients can know.
///
/// A write covers whatever the reply showed that its context came from, and whatever that covered. This is all that its
/// context can hold: whatever else a replica's context covers, some other operation of the history has named.
#[derive(Debug)]
pub struct Causality {
    /// Every write's causal past, without itself; for reads, what the context of their reply covers.
    past: BTreeMap<OpNo, BTreeSet<OpNo>>,
}

impl Causality {
    /// Follows the causes of every operation.
    ///
    /// # Panics
    /// When an operation names a cause or returns a value from its own future or from nowhere: the harness made it up. (A
    /// value from nowhere that a *node* returned is told by [`crate::checker::genuine`], which is to be asked first.)
    pub fn of(history: &History) -> Self {
        let mut past: BTreeMap<OpNo, BTreeSet<OpNo>> = BTreeMap::new();
        let mut waiting: Vec<&Operation> = history.operations.values().collect();
        waiting.sort_by_key(|operation| (operation.invoked_us, operation.no));
        // Writes depend on replies that came before them, reads on writes that were invoked before they returned: a few
        // rounds in the order of time settle everything.
        while !waiting.is_empty() {
            let before = waiting.len();
            waiting.retain(|operation| match Self::direct(history, &past, operation) {
                Some(covered) => {
                    past.insert(operation.no, covered);
                    false
                }
                None => true,
            });
            assert!(waiting.len() < before, "operations cause each other in a circle: {waiting:?}");
        }
        Self { past }
    }

    fn direct(
        history: &History,
        past: &BTreeMap<OpNo, BTreeSet<OpNo>>,
        operation: &Operation,
    ) -> Option<BTreeSet<OpNo>> {
        let seen = match operation.found() {
            Some(values) => values.clone(),
            None => match operation.cause() {
                None => BTreeSet::new(),
                Some(cause) => {
                    let mut covered = past.get(&cause)?.clone();
                    let giver = history.operations.get(&cause).expect("a cause is an operation of the history");
                    if giver.writes() {
                        covered.insert(cause);
                    }
                    return Some(covered);
                }
            },
        };
        let mut covered = BTreeSet::new();
        for value in seen {
            covered.extend(past.get(&value)?);
            covered.insert(value);
        }
        Some(covered)
    }

    /// Whether `later` knew of `earlier`.
    pub fn covers(&self, later: OpNo, earlier: OpNo) -> bool {
        self.past.get(&later).is_some_and(|past| past.contains(&earlier))
    }

    /// Whether a write is one of `values`, or one of them knew of it.
    pub fn reflected(&self, write: OpNo, values: &BTreeSet<OpNo>) -> bool {
        values.contains(&write) || values.iter().any(|value| self.covers(*value, write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::Story;

    #[test]
    fn causes_are_followed_through_reads_and_writes() {
        let mut story = Story::new();
        let one = story.put(None);
        let two = story.put(Some(one));
        let blind = story.put(None);
        let read = story.get([two, blind]);
        let merged = story.put(Some(read));
        let delete = story.delete(Some(merged));
        let nothing = story.get([]);
        let fresh = story.put(Some(nothing));
        let causality = Causality::of(&story.history());
        assert!(causality.covers(two, one) && !causality.covers(one, two));
        assert!(!causality.covers(blind, one));
        for earlier in [one, two, blind] {
            assert!(causality.covers(merged, earlier));
        }
        assert!(causality.covers(delete, merged) && causality.covers(delete, one));
        assert!(!causality.covers(fresh, one), "an empty read shows nothing to know of");
        assert!(causality.reflected(one, &BTreeSet::from([merged])));
        assert!(!causality.reflected(merged, &BTreeSet::from([blind])));
    }

    #[test]
    fn a_read_may_return_a_write_that_was_invoked_after_it() {
        let mut story = Story::new();
        let read = story.get([2]);
        let write = story.put(None);
        assert_eq!((read, write), (1, 2));
        story.edit(read, |read| read.returned_us = Some(1000));
        let update = story.put(Some(read));
        assert!(Causality::of(&story.history()).covers(update, write));
    }

    #[test]
    fn histories_survive_a_file() {
        let mut story = Story::new();
        let one = story.put(None);
        story.get([one]);
        story.delete(Some(one));
        story.replica("n1", [("a#1", one)]);
        story.left([one]);
        story.held(one, ["n1"], ["n4"], ["n2"]);
        story.let_go("n4", "n1", one, true);
        story.minters(one, ["n1", "n2"]);
        story.reused("a#1", [one, 3]);
        story.replaced("n1", one, [7]);
        story.risen("n1", one);
        let mut history = story.history();
        history.costs.push(Cost { node: "n1".into(), what: "bytes".into() });
        history.reach.push(Reach {
            from_us: 7,
            sound: ["n1".into()].into(),
            away: ["n2".into()].into(),
            parted: [("n1".into(), "n3".into())].into(),
            unreached: ["n3".into()].into(),
            slow: true,
            layout: Some(2),
        });
        let layouts = vec![(1, "a".into()), (2, "b".into())];
        history.layouts.push(KnownLayouts { from_us: 8, node: "n1".into(), layouts, spoilt: true });
        let mut lines = Vec::new();
        history.write_lines(&mut lines).expect("memory takes everything");
        assert_eq!(History::read_lines(&lines[..]).expect("it is one"), history);
        let error =
            History::read_lines(&b"{\"Merged\":{\"key\":\"k\",\"values\":[]}}\nnonsense\n"[..]).expect_err("damaged");
        assert!(error.to_string().starts_with("line 2"), "{error}");
    }
}
