//! The story of one key as text: every operation on it, what coordinators decided and replicas did, what went wrong meanwhile,
//! what became of it.
//!
//! ```text
//!    time ms  who        what
//!     3021.0  client 2   17: put v17, having seen nothing
//!     3022.0  n4           coordinates operation 17, needs 2 of n4 n1 n2
//!     3022.0  n4           mints v17, which replaces nothing; holds v17
//! ```

use std::fmt::Write;

use crate::history::Operation;
use crate::story::Event;
use crate::tale::Tale;

/// The story of a key. The same text for every run of one plan.
pub fn explain(tale: &Tale, key: &str) -> String {
    let mut lines: Vec<Line> = Vec::new();
    for band in &tale.bands {
        let lasted = (band.to_us - band.from_us) / 1000;
        lines.push(Line::new(band.from_us, 0, "~~~", format!("FAULT {}, for {lasted} ms", band.what)));
        lines.push(Line::new(band.to_us, 1, "~~~", format!("over: {}", band.what)));
    }
    for (at_us, node, what) in tale.lives() {
        lines.push(Line::new(at_us, 2, node, format!("** {what}")));
    }
    let operations = tale.operations(key);
    for operation in &operations {
        let (no, who) = (operation.no, tale.client(operation.client));
        for (at, (from_us, to_us, outcome)) in tale.tries(operation).into_iter().enumerate() {
            let again = if at > 0 { "the same operation again: " } else { "" };
            lines.push(Line::new(from_us, 4, &who, format!("{no}: {again}{}", tale.asks(operation))));
            if let Some(to_us) = to_us {
                let tried = Operation { outcome, ..(*operation).clone() };
                // A client goes on at once when it has its answer: that comes first, unless it came in the same moment.
                let rank = if to_us > from_us { 3 } else { 6 };
                lines.push(Line::new(to_us, rank, &who, format!("{no}: {}", tale.ends(&tried))));
            }
        }
    }
    for event in tale.events(key) {
        if let Some((who, what)) = told(tale, event) {
            lines.push(Line::new(event.at_us, 5, &who, format!("  {what}")));
        }
    }
    lines.sort_by_key(|line| (line.at_us, line.rank));
    let mut text = format!("the story of {key}, {}\n", tale.title);
    if operations.is_empty() {
        let known: Vec<_> = tale.keys().into_iter().take(KEYS_SHOWN).collect();
        let _ = writeln!(text, "nobody asked for it; the keys that most happened to are {}", known.join(", "));
        return text;
    }
    let named = if tale.values.is_empty() { "; v7 is the value that operation 7 wrote" } else { "" };
    let _ = writeln!(text, "times are milliseconds since the start{named}\n\n   time ms  {:<10} what", "who");
    for Line { at_us, who, what, .. } in &lines {
        let _ = writeln!(text, "{:>8}.{}  {who:<10} {what}", at_us / 1000, at_us / 100 % 10);
    }
    text.push('\n');
    text.push_str(&left(tale, key, &operations));
    text
}

/// What became of the key.
fn left(tale: &Tale, key: &str, operations: &[&Operation]) -> String {
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

/// An event in words; nothing for what other lines say already.
pub(crate) fn told(tale: &Tale, event: &Event) -> Option<(String, String)> {
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
    let value = |op_id: &str| match tale.operation_of(op_id) {
        Some(no) if tale.history.operations.get(&no).is_some_and(deletes) => format!("the delete {no}"),
        Some(no) => tale.value(no),
        None => format!("write {op_id}"),
    };
    let what = match event.act.as_str() {
        "event" | "lives at" | "asked" => return None,
        "ask" if field("what") == "forward" => format!("passes {} on to {}", whose(), field("to")),
        "tell" if field("ok") == "false" => format!("does not do {}: {}", asked(), field("said")),
        "ask" if field("what") == "handoff" => format!("hands over to {} what it kept for it", field("to")),
        "ask" if field("what") == "exchange" => format!("exchanges it with {}", field("to")),
        "ask" | "tell" => return None,
        "told" if field("came") == "true" => return None,
        "told" => {
            format!("has no answer from {} to {}: {}", place(tale, field("from")), asked(), {
                let said = field("said");
                said.strip_prefix("no answer: ").unwrap_or(said)
            })
        }
        "coordinates a write" | "coordinates a read" => {
            format!("coordinates {}, needs {} of {}", whose(), field("need"), list("primaries"))
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
            format!("decides {}: {verdict}, {counted}{hedges}", whose())
        }
        "mints" => {
            let replaces = match field("replaced") {
                "0" => "replaces nothing".to_owned(),
                one => format!("replaces {one}"),
            };
            let holds = tale.holds(event.field("holds"));
            format!("mints {} as {}, {replaces}{}; holds {holds}", value(field("op_id")), field("dot"), kept_for())
        }
        "repeats" => {
            let holds = tale.holds(event.field("holds"));
            format!("has {} already, as {}; holds {holds}", value(field("op_id")), field("dot"))
        }
        "merges" => {
            let news = if field("changed") == "true" { "" } else { ", which changes nothing" };
            format!(
                "merges {}{news}{}; holds {}",
                tale.holds(event.field("got")),
                kept_for(),
                tale.holds(event.field("holds"))
            )
        }
        "reads" => match event.field("holds") {
            None => "reads: it has never heard of the key".to_owned(),
            held => format!("reads: it holds {}", tale.holds(held)),
        },
        "finds stale replicas" => {
            let mends = if field("repairs") == "true" { ", and mends them" } else { "" };
            format!("notices that {} lack something{mends}", list("stale"))
        }
        "lets a delivered hint go" => format!("lets its hint for {} go: it was delivered", field("kept_for")),
        // Whatever is told besides, with all that is told of it.
        act => {
            let known = ["key", "node", "request"];
            let fields = event.fields.iter().filter(|(name, _)| !known.contains(*name));
            let fields: Vec<_> = fields.map(|(name, value)| format!("{name} {value}")).collect();
            format!("{act}{}{}", if fields.is_empty() { "" } else { ": " }, fields.join(", "))
        }
    };
    let who = match (event.node(), event.by) {
        ("", Some((client, _))) => tale.client(client),
        (node, _) => node.to_owned(),
    };
    Some((who, what))
}

pub(crate) fn deletes(operation: &Operation) -> bool {
    matches!(operation.action, crate::history::Action::Delete { .. })
}

fn place<'a>(tale: &'a Tale, addr: &'a str) -> &'a str {
    tale.node_at(addr).unwrap_or(addr)
}

struct Line {
    at_us: u64,
    /// What comes first of what happens at one moment.
    rank: u8,
    who: String,
    what: String,
}

impl Line {
    fn new(at_us: u64, rank: u8, who: &str, what: String) -> Self {
        Self { at_us, rank, who: who.to_owned(), what }
    }
}

const KEYS_SHOWN: usize = 10;
