//! The story of one key as text: every operation on it, what coordinators decided and replicas did, what went wrong meanwhile,
//! what became of it. The words are those of the [page](crate::report), which takes them from here.
//!
//! ```text
//! the story of key:0, seed 42: 6 nodes, N=3
//! 1240 of 1893 lines; there are faults 2, nodes 8, writes 312, reads 206, decisions 410, mints 120, merges 180, messages 653, ..
//!
//!    time ms  who        what
//!     3021.0  client 2   17: put v17, having seen nothing
//!     3022.0  n4           coordinates operation 17, needs 2 of n4 n1 n2
//!     3022.0  n4           mints v17 as n4/5f2d..#1, replaces nothing; holds v17
//! ```
//!
//! A [`Filter`] says which of the lines are wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use clap::ValueEnum;

use crate::history::{OpNo, Operation};
use crate::story::Event;
use crate::tale::{Hop, Tale};

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Kind {
    /// What the narrator of a scenario says
    Narration,
    /// What went wrong on purpose
    Faults,
    /// Nodes that serve, are killed, end
    Nodes,
    /// Clients' puts and deletes: what was asked, how it ended
    Writes,
    /// Clients' gets: what was asked, how it ended
    Reads,
    /// Nodes that coordinate, pass on and decide
    Decisions,
    /// Nodes that make a new version of a write, or have one already
    Mints,
    /// Replicas that take versions of others
    Merges,
    /// Replicas that read from disk
    DiskReads,
    /// Stale replicas that are found, hints that are delivered, exchanges
    Healing,
    /// Questions that were refused, lost, or given up
    Failures,
    /// Whatever else is told
    Notes,
    /// Every question with its answer; left out unless it is asked for
    Messages,
}

/// Which lines of a story are wanted: those that everything here agrees to. Nothing said is all but [`Kind::Messages`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of these kinds.
    pub only: BTreeSet<Kind>,
    /// Of these nodes and clients, and the faults that concern them.
    pub who: BTreeSet<String>,
    /// Of these operations, whoever did something for them.
    pub operations: BTreeSet<OpNo>,
    /// From this microsecond on.
    pub from_us: Option<u64>,
    /// Up to this microsecond.
    pub to_us: Option<u64>,
}

impl Kind {
    /// What it is called, as in `--only`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Narration => "narration",
            Self::Faults => "faults",
            Self::Nodes => "nodes",
            Self::Writes => "writes",
            Self::Reads => "reads",
            Self::Decisions => "decisions",
            Self::Mints => "mints",
            Self::Merges => "merges",
            Self::DiskReads => "disk-reads",
            Self::Healing => "healing",
            Self::Failures => "failures",
            Self::Notes => "notes",
            Self::Messages => "messages",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Filter {
    /// What is asked for that the tale does not have, in words; nothing if all is there.
    pub fn problem(&self, tale: &Tale, key: &str) -> Option<String> {
        let nodes = tale.nodes.iter().map(|(node, _)| node.clone());
        let clients: BTreeSet<u32> = tale.history.operations.values().map(|operation| operation.client).collect();
        let known: Vec<String> = nodes.chain(clients.into_iter().map(|client| tale.client(client))).collect();
        if let Some(stranger) = self.who.iter().find(|who| !known.contains(who)) {
            return Some(format!("nobody is called {stranger:?}: there are {}", known.join(", ")));
        }
        let numbers: Vec<OpNo> = tale.operations(key).iter().map(|operation| operation.no).collect();
        if let Some(none) = self.operations.iter().find(|no| !numbers.contains(no)) {
            let range = match (numbers.iter().min(), numbers.iter().max()) {
                (Some(first), Some(last)) => {
                    format!("{} operations, with numbers from {first} to {last}", numbers.len())
                }
                _ => "no operations".to_owned(),
            };
            return Some(format!("operation {none} is none on {key}, which has {range}"));
        }
        match (self.from_us, self.to_us) {
            (Some(from), Some(to)) if from > to => Some("the story is wanted from a moment after its end".to_owned()),
            (Some(from), _) if from > tale.end_us => Some(format!(
                "the story is wanted from a moment when all was over: it ended after {}.{} s",
                tale.end_us / 1_000_000,
                tale.end_us / 100_000 % 10
            )),
            _ => None,
        }
    }

    fn wants(&self, line: &Line) -> bool {
        let kind = if self.only.is_empty() { line.kind != Kind::Messages } else { self.only.contains(&line.kind) };
        let who = self.who.is_empty() || line.whom.is_empty() || line.whom.iter().any(|whom| self.who.contains(whom));
        let operation = self.operations.is_empty() || line.operation.is_some_and(|no| self.operations.contains(&no));
        let from = self.from_us.is_none_or(|from| line.at_us >= from);
        kind && who && operation && from && self.to_us.is_none_or(|to| line.at_us <= to)
    }
}

/// The story of a key, without [`Kind::Messages`]. The same text for every run of one plan.
pub fn explain(tale: &Tale, key: &str) -> String {
    explain_some(tale, key, &Filter::default())
}

/// The story of a key, or as much of it as is wanted. The same text for every run of one plan.
pub fn explain_some(tale: &Tale, key: &str, filter: &Filter) -> String {
    let operations = tale.operations(key);
    let mut text = format!("the story of {key}, {}\n", tale.title);
    if operations.is_empty() {
        let known: Vec<_> = tale.keys().into_iter().take(KEYS_SHOWN).collect();
        let _ = writeln!(text, "nobody asked for it; the keys that most happened to are {}", known.join(", "));
        return text;
    }
    let lines = lines(tale, key);
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    lines.iter().for_each(|line| *counts.entry(line.kind).or_default() += 1);
    let counts: Vec<_> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    let shown: Vec<&Line> = lines.iter().filter(|line| filter.wants(line)).collect();
    let _ = writeln!(text, "{} of {} lines; there are {}", shown.len(), lines.len(), counts.join(", "));
    let _ = writeln!(text, "to choose: --only KIND,KIND --node NAME --operation NUMBER --from TIME --to TIME");
    let named = if tale.values.is_empty() { "; v7 is the value that operation 7 wrote" } else { "" };
    let _ = writeln!(text, "times are milliseconds since the start{named}\n\n   time ms  {:<10} what", "who");
    shown.iter().for_each(|line| _ = writeln!(text, "{line}"));
    text.push('\n');
    text.push_str(&left(tale, key));
    text
}

/// All that is to be said of a key, in the order of time.
pub(crate) fn lines(tale: &Tale, key: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (at_us, said) in &tale.narration {
        lines.push(Line::new(Kind::Narration, *at_us, 3, "#", said.clone()));
    }
    for band in &tale.bands {
        let lasted = (band.to_us - band.from_us) / 1000;
        let begins = Line::new(Kind::Faults, band.from_us, 4, "~~~", format!("fault: {}, for {lasted} ms", band.what));
        let ends = Line::new(Kind::Faults, band.to_us, 0, "~~~", format!("fault over: {}", band.what));
        lines.extend([begins, ends].map(|line| Line { whom: band.whom.clone(), ..line }));
    }
    for (at_us, node, what) in tale.lives() {
        lines.push(Line::new(Kind::Nodes, at_us, 4, node, life(what)).by(node));
    }
    for operation in &tale.operations(key) {
        let (no, who) = (operation.no, tale.client(operation.client));
        let kind = if operation.writes() { Kind::Writes } else { Kind::Reads };
        let mut line = |at_us, rank, what| {
            lines.push(Line { operation: Some(no), ..Line::new(kind, at_us, rank, &who, what).by(&who) });
        };
        for (at, (from_us, to_us, outcome)) in tale.tries(operation).into_iter().enumerate() {
            let again = if at > 0 { "the same operation again: " } else { "" };
            line(from_us, 5, format!("{no}: {again}{}", tale.asks(operation)));
            if let Some(to_us) = to_us {
                let tried = Operation { outcome, ..(*operation).clone() };
                // A client goes on at once when it has its answer: that comes first, unless it came in the same moment.
                let rank = if to_us > from_us { 2 } else { 7 };
                line(to_us, rank, format!("{no}: {}", tale.ends(&tried)));
            }
        }
    }
    for event in tale.events(key) {
        if let Some((kind, who, what)) = told(tale, event) {
            let operation = of_operation(tale, event);
            lines.push(Line { operation, ..Line::new(kind, event.at_us, 6, &who, format!("  {what}")).by(&who) });
        }
    }
    for hop in tale.hops(key) {
        let operation = tale.author_of(hop.request).map(|(_, no)| no);
        let line = Line::new(Kind::Messages, hop.asked_us, 6, &hop.from, format!("  {}", message(tale, &hop)));
        lines.push(Line { operation, ..line.by(&hop.from).by(&hop.to) });
    }
    lines.sort_by_key(|line| (line.at_us, line.rank));
    lines
}

/// What became of the key.
pub(crate) fn left(tale: &Tale, key: &str) -> String {
    let mut text = String::new();
    for replica in &tale.history.replicas {
        let Some(record) = replica.records.get(key) else { continue };
        let values: Vec<_> = record.dots.iter().map(|(dot, no)| format!("{} as {dot}", tale.value(*no))).collect();
        let values = if values.is_empty() { "only what was deleted".to_owned() } else { values.join(" | ") };
        let _ = writeln!(text, "at the end {} holds {values}", replica.node);
    }
    for replica in &tale.history.replicas {
        for hint in replica.hints.iter().filter(|hint| hint.key == key) {
            let values: Vec<_> = hint.dots.values().map(|no| tale.value(*no)).collect();
            let _ = writeln!(text, "at the end {} keeps {} for {}", replica.node, values.join(" | "), hint.target);
        }
    }
    let _ = writeln!(text, "all replicas together show {}", tale.some_values(tale.history.left(key)));
    let operations = tale.operations(key);
    let hung = operations.iter().filter(|operation| operation.returned_us.is_none());
    for operation in hung {
        let _ = writeln!(text, "operation {} never ended", operation.no);
    }
    let mut violations = tale.violations.iter().filter(|violation| violation.key == key).peekable();
    if violations.peek().is_none() {
        text.push_str("no promise was broken for this key\n");
    }
    for violation in violations {
        let _ = writeln!(text, "VIOLATION {violation}");
    }
    text
}

/// What a node does in its life, in words.
pub(crate) fn life(what: &str) -> String {
    match what {
        "serves" => "▲ serves".to_owned(),
        "is started" => "is started".to_owned(),
        what => format!("✖ {what}"),
    }
}

/// An event in as few words as there is room for beside its mark; nothing for what the mark says.
pub(crate) fn in_short(tale: &Tale, event: &Event) -> Option<String> {
    match event.act.as_str() {
        "lets a delivered hint go" => Some(format!("hint for {} delivered", event.field("kept_for")?)),
        "merges" | "mints" if event.field("kept_for").is_some() => {
            Some(format!("keeps a hint for {}", event.field("kept_for")?))
        }
        "mints" => Some(format!("mints {}", written(tale, event.field("op_id")?))),
        "repeats" => Some(format!("has {} already", written(tale, event.field("op_id")?))),
        "merges" if event.field("changed") == Some("true") => {
            Some(format!("holds {}", tale.holds(event.field("holds"))))
        }
        "merges" | "reads" | "decides" | "coordinates a write" | "coordinates a read" => None,
        "finds stale replicas" => Some(format!("finds {} stale", event.field("stale")?.trim_matches(['[', ']']))),
        act => Some(act.to_owned()),
    }
}

/// An event in words, and who did it.
pub(crate) fn whole(tale: &Tale, event: &Event) -> String {
    told(tale, event).map_or_else(|| event.act.clone(), |(_, who, what)| format!("{who} {what}"))
}

/// A question and what came of it, in words; who asked is left to say.
pub(crate) fn message(tale: &Tale, hop: &Hop) -> String {
    let whose = tale.author_of(hop.request).map_or_else(String::new, |(_, no)| format!(" for operation {no}"));
    let after = |us: u64| {
        let us = us.saturating_sub(hop.asked_us);
        format!("after {}.{} ms", us / 1000, us / 100 % 10)
    };
    let lost = match (hop.arrived_us, hop.answered_us) {
        (None, _) => "lost",
        (Some(_), None) => "not answered",
        (Some(_), Some(_)) => "the answer is lost",
    };
    let came = match hop.told_us {
        Some(us) if hop.came && hop.refused => format!("refusal {}: {}", after(us), hop.said),
        Some(us) if hop.came => format!("answer {}: {}", after(us), hop.said),
        Some(us) => format!("{lost}, gave up waiting {}: {}", after(us), hop.said),
        None => lost.to_owned(),
    };
    format!("asks {}: {}{whose}; {}", hop.to, question(hop), came.trim_end_matches(": "))
}

/// What a question is called.
pub(crate) fn question(hop: &Hop) -> &str {
    if hop.what == "handoff" { "hand over" } else { &hop.what }
}

/// What an operation wrote, by what its client named it.
fn written(tale: &Tale, op_id: &str) -> String {
    match tale.operation_of(op_id) {
        Some(no) if tale.history.operations.get(&no).is_some_and(deletes) => format!("the delete {no}"),
        Some(no) => tale.value(no),
        None => format!("write {op_id}"),
    }
}

/// The operation that an event serves.
fn of_operation(tale: &Tale, event: &Event) -> Option<OpNo> {
    let by_request = event.request().and_then(|request| tale.author_of(request)).map(|(_, no)| no);
    by_request.or_else(|| tale.operation_of(event.field("op_id")?))
}

/// An event in words, with what it is about and who did it; nothing for what other lines say already.
pub(crate) fn told(tale: &Tale, event: &Event) -> Option<(Kind, String, String)> {
    let field = |name| event.field(name).unwrap_or_default();
    let list = |name| field(name).trim_matches(['[', ']']).replace(',', "");
    let whose = || match event.request().and_then(|request| tale.author_of(request)) {
        Some((_, no)) => format!("operation {no}"),
        None => "a request".to_owned(),
    };
    // What heals serves no request.
    let asked = || match event.request().and_then(|request| tale.author_of(request)) {
        Some((_, no)) => format!("{} of operation {no}", field("what")),
        None => field("what").to_owned(),
    };
    let kept_for = || event.field("kept_for").map_or_else(String::new, |target| format!(" in a hint for {target}"));
    let (kind, what) = match event.act.as_str() {
        "event" | "lives at" | "asked" => return None,
        "ask" if field("what") == "forward" => (Kind::Decisions, format!("passes {} on to {}", whose(), field("to"))),
        "tell" if field("ok") == "false" => (Kind::Failures, format!("does not do {}: {}", asked(), field("said"))),
        "ask" if field("what") == "handoff" => {
            (Kind::Healing, format!("hands over to {} what it kept for it", field("to")))
        }
        "ask" if field("what") == "exchange" => (Kind::Healing, format!("exchanges it with {}", field("to"))),
        "ask" | "tell" => return None,
        "told" if field("came") == "true" => return None,
        "told" => {
            let said = field("said");
            let said = said.strip_prefix("no answer: ").unwrap_or(said);
            (Kind::Failures, format!("has no answer from {} to {}: {said}", place(tale, field("from")), asked()))
        }
        "coordinates a write" | "coordinates a read" => {
            let what = format!("coordinates {}, needs {} of {}", whose(), field("need"), list("primaries"));
            (Kind::Decisions, what)
        }
        "decides" => {
            let counted = match list("counted") {
                nobody if nobody.is_empty() => "nobody has answered".to_owned(),
                counted => format!("{counted} counted"),
            };
            let hedges = match field("hedges") {
                "" | "0" => String::new(),
                hedges => format!(", {hedges} asked because others were late"),
            };
            let verdict = if field("ok") == "true" { "done" } else { "NOT done" };
            (Kind::Decisions, format!("decides {}: {verdict}, {counted}{hedges}", whose()))
        }
        "mints" => {
            let replaces = match field("replaced") {
                "0" => "replaces nothing".to_owned(),
                one => format!("replaces {one}"),
            };
            let holds = tale.holds(event.field("holds"));
            let value = written(tale, field("op_id"));
            (Kind::Mints, format!("mints {value} as {}, {replaces}{}; holds {holds}", field("dot"), kept_for()))
        }
        "repeats" => {
            let holds = tale.holds(event.field("holds"));
            let value = written(tale, field("op_id"));
            (Kind::Mints, format!("has {value} already, as {}; holds {holds}", field("dot")))
        }
        "merges" => {
            let news = if field("changed") == "true" { "" } else { ", which changes nothing" };
            let does = if event.field("kept_for").is_some() { "keeps" } else { "merges" };
            let (got, holds) = (tale.holds(event.field("got")), tale.holds(event.field("holds")));
            (Kind::Merges, format!("{does} {got}{news}{}; holds {holds}", kept_for()))
        }
        "reads" => match event.field("holds") {
            None => (Kind::DiskReads, "reads from disk: has never heard of the key".to_owned()),
            held => (Kind::DiskReads, format!("reads from disk: holds {}", tale.holds(held))),
        },
        "finds stale replicas" => {
            let mends = if field("repairs") == "true" { ", and mends them" } else { "" };
            (Kind::Healing, format!("finds {} stale{mends}", list("stale")))
        }
        "lets a delivered hint go" => (Kind::Healing, format!("hint for {} delivered: lets it go", field("kept_for"))),
        // Whatever is told besides, with all that is told of it.
        act => {
            let known = ["key", "node", "request"];
            let fields = event.fields.iter().filter(|(name, _)| !known.contains(*name));
            let fields: Vec<_> = fields.map(|(name, value)| format!("{name} {value}")).collect();
            (Kind::Notes, format!("{act}{}{}", if fields.is_empty() { "" } else { ": " }, fields.join(", ")))
        }
    };
    let who = match (event.node(), event.by) {
        ("", Some((client, _))) => tale.client(client),
        (node, _) => node.to_owned(),
    };
    Some((kind, who, what))
}

pub(crate) fn deletes(operation: &Operation) -> bool {
    matches!(operation.action, crate::history::Action::Delete { .. })
}

fn place<'a>(tale: &'a Tale, addr: &'a str) -> &'a str {
    tale.node_at(addr).unwrap_or(addr)
}

/// A line of a story.
pub(crate) struct Line {
    pub(crate) kind: Kind,
    pub(crate) at_us: u64,
    /// What comes first of what happens at one moment.
    rank: u8,
    who: String,
    /// The nodes and clients that it is about; none if it is about all.
    whom: BTreeSet<String>,
    operation: Option<OpNo>,
    what: String,
}

impl Line {
    fn new(kind: Kind, at_us: u64, rank: u8, who: &str, what: String) -> Self {
        Self { kind, at_us, rank, who: who.to_owned(), whom: BTreeSet::new(), operation: None, what }
    }

    fn by(mut self, who: &str) -> Self {
        self.whom.insert(who.to_owned());
        self
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at_us, who, what, .. } = self;
        write!(f, "{:>8}.{}  {who:<10} {what}", at_us / 1000, at_us / 100 % 10)
    }
}

const KEYS_SHOWN: usize = 10;
