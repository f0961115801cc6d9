//! The space-time diagram of one key: a lifeline for each client and node, time downwards, messages between them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::axis::{Axis, LINE};
use super::overview::{COLOURS, phases};
use super::svg::{escape, line, rect, short, text, told};
use super::{is_blamed, outcome_class};
use crate::explain;
use crate::history::{Action, OpNo, Operation, Outcome};
use crate::story::Event;
use crate::tale::{Band, Hop, Tale};

/// The diagram of a key; `number` tells the keys of a page apart.
pub(super) fn diagram(tale: &Tale, key: &str, number: usize) -> String {
    let drawing = Drawing::new(tale, key);
    let mut shapes = String::new();
    drawing.bands(&mut shapes);
    drawing.lifelines(&mut shapes);
    drawing.times(&mut shapes);
    drawing.hops(&mut shapes);
    drawing.replicas(&mut shapes);
    drawing.operations(&mut shapes);
    drawing.end(&mut shapes);
    let (width, height) = (drawing.width(), drawing.axis.end() + 70.0);
    let mut heads = String::new();
    drawing.names(&mut heads);
    let mut out = String::new();
    if drawing.left_out > 0 {
        let _ = writeln!(
            out,
            "<p class=\"note\">Only {OPERATIONS_MAX} of the operations are drawn, {}; all {} are in the table and the text below.</p>",
            if drawing.blamed { "around those that broke a promise" } else { "the first ones" },
            drawing.operations.len() + drawing.left_out
        );
    }
    let _ = write!(
        out,
        "<div class=\"zoom\" data-for=\"d{number}\"></div><div class=\"scroll\"><div class=\"wide\" id=\"d{number}\">\
         <svg class=\"heads\" viewBox=\"0 0 {width:.0} 40\" width=\"{width:.0}\" height=\"40\">{heads}</svg>\
         <svg class=\"diagram\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" \
         aria-label=\"what happened to {}\">{MARKERS}{shapes}</svg></div></div>",
        escape(key)
    );
    out
}

struct Drawing<'a> {
    tale: &'a Tale,
    key: &'a str,
    operations: Vec<&'a Operation>,
    left_out: usize,
    /// Some operation broke a promise.
    blamed: bool,
    /// Between these moments, in microseconds.
    span: (u64, u64),
    hops: Vec<Hop>,
    events: Vec<&'a Event>,
    bands: Vec<(usize, &'a Band)>,
    columns: Vec<Column>,
    axis: Axis,
}

struct Column {
    name: String,
    below: String,
    is_node: bool,
    x: f64,
}

impl<'a> Drawing<'a> {
    fn new(tale: &'a Tale, key: &'a str) -> Self {
        let all = tale.operations(key);
        let (operations, blamed) = chosen(tale, &all);
        let numbers: BTreeSet<OpNo> = operations.iter().map(|operation| operation.no).collect();
        let ours = |request: Option<u64>| request.and_then(|request| tale.author_of(request));
        let hops = tale.hops(key).into_iter();
        let mut hops: Vec<Hop> =
            hops.filter(|hop| ours(Some(hop.request)).is_none_or(|(_, no)| numbers.contains(&no))).collect();
        let from = operations.iter().map(|operation| operation.invoked_us).min().unwrap_or(0);
        let to = operations.iter().filter_map(|operation| operation.returned_us).max().unwrap_or(from);
        // What the last operation set going is over soon; healing goes on for ever.
        let of_operations = hops.iter().filter(|hop| ours(Some(hop.request)).is_some());
        let to = of_operations.filter_map(|hop| hop.told_us).max().unwrap_or(to).max(to);
        let whole = operations.len() == all.len();
        let (from, to) = if whole { (from.min(first_band(tale)), to.max(last_band(tale, from))) } else { (from, to) };
        hops.retain(|hop| (from..=to).contains(&hop.asked_us));
        let events: Vec<&Event> = tale
            .events(key)
            .filter(|event| (from..=to).contains(&event.at_us))
            .filter(|event| !matches!(event.act.as_str(), "ask" | "asked" | "tell" | "told"))
            .collect();
        let bands: Vec<(usize, &Band)> =
            tale.bands.iter().enumerate().filter(|(_, band)| band.from_us <= to && band.to_us >= from).collect();
        let columns = columns(tale, &operations, &hops, &events);
        let mut drawing = Self {
            tale,
            key,
            left_out: all.len() - operations.len(),
            operations,
            blamed,
            span: (from, to),
            hops,
            events,
            bands,
            columns,
            axis: Axis::new(&BTreeMap::new(), TOP),
        };
        drawing.axis = Axis::new(&drawing.moments(), TOP);
        drawing
    }

    /// Every moment at which something is drawn, with the columns that get a text there.
    fn moments(&self) -> BTreeMap<u64, Vec<usize>> {
        let (from, to) = self.span;
        let mut moments: BTreeMap<u64, Vec<usize>> = BTreeMap::from([(from, Vec::new()), (to, Vec::new())]);
        let mut at = |us: u64, column: Option<usize>| {
            if (from..=to).contains(&us) {
                moments.entry(us).or_default().extend(column);
            }
        };
        for operation in &self.operations {
            let column = self.column(&self.tale.client(operation.client));
            for (from_us, to_us, _) in self.tale.tries(operation) {
                // Two lines: what was asked, how it ended.
                at(from_us, column);
                at(from_us, column);
                at(to_us.unwrap_or(from_us), None);
            }
        }
        for event in &self.events {
            let column = self.label(event).and_then(|_| self.column(event.node()));
            at(event.at_us, column);
        }
        for hop in &self.hops {
            let times = [Some(hop.asked_us), hop.arrived_us, hop.answered_us, hop.told_us];
            times.into_iter().flatten().for_each(|us| at(us, None));
        }
        for (us, node, _) in self.tale.lives() {
            if let Some(column) = self.column(node) {
                at(us, Some(column));
            }
        }
        let faults = self.columns.len();
        for (_, band) in &self.bands {
            at(band.from_us, Some(faults));
            at(band.to_us, None);
        }
        moments
    }

    fn names(&self, shapes: &mut String) {
        for column in &self.columns {
            let class = if column.is_node { "head node" } else { "head client" };
            shapes.push_str(&text(class, (column.x, 18.0), &column.name));
            shapes.push_str(&text("below", (column.x, 32.0), &column.below));
        }
        shapes.push_str(&text("below time", (TIME - 8.0, 32.0), "ms"));
    }

    /// Shaded columns, and beside the diagram what each is.
    fn bands(&self, shapes: &mut String) {
        let right = self.columns.last().map_or(TIME, |column| column.x) + NODE_WIDTH / 2.0 + 10.0;
        let mut free = 0.0;
        for (lane, (number, band)) in self.bands.iter().enumerate() {
            let (y, y_end) = (self.axis.y(band.from_us), self.axis.y(band.to_us));
            let height = (y_end - y).max(3.0);
            let colour = number % COLOURS;
            let mut drawn = String::new();
            for column in self.columns.iter().filter(|column| band.whom.is_empty() || band.whom.contains(&column.name))
            {
                let width = if column.is_node { NODE_WIDTH } else { CLIENT_WIDTH };
                drawn.push_str(&rect(
                    &format!("shade b{colour}"),
                    (column.x - width / 2.0 + 2.0, y),
                    width - 4.0,
                    height,
                ));
            }
            let x = right + (lane % LANES) as f64 * 7.0;
            drawn.push_str(&rect(&format!("band b{colour}"), (x, y), 5.0, height));
            let begun = if band.from_us < self.span.0 { " (began earlier)" } else { "" };
            let label = format!("{}{begun}", band.what);
            let below = f64::max(y + 10.0, free);
            free = below + LINE;
            drawn.push_str(&text("fault", (right + LANES as f64 * 7.0 + 4.0, below), &short(&label, 60)));
            let title = format!("{}: {} to {} ms", band.what, band.from_us / 1000, band.to_us / 1000);
            shapes.push_str(&told(&title, &drawn));
        }
    }

    fn lifelines(&self, shapes: &mut String) {
        for column in &self.columns {
            shapes.push_str(&line("life", (column.x, TOP - 10.0), (column.x, self.axis.end())));
            if !column.is_node {
                continue;
            }
            for (from, to, up) in phases(self.tale, &column.name) {
                let (from, to) = (from.max(self.span.0), to.min(self.span.1));
                if !up && from < to {
                    let (y, y_end) = (self.axis.y(from), self.axis.y(to));
                    let bar = rect("down", (column.x - 5.0, y), 10.0, (y_end - y).max(2.0));
                    let title = format!("{} is down from {} to {} ms", column.name, from / 1000, to / 1000);
                    shapes.push_str(&told(&title, &bar));
                }
            }
        }
        for (us, node, what) in self.tale.lives() {
            let (Some(at), true) = (self.column(node), (self.span.0..=self.span.1).contains(&us)) else { continue };
            let (class, label) = match what {
                "serves" => ("serves", "▲ serves".to_owned()),
                "is killed" => ("killed", "✖ killed".to_owned()),
                // It serves in the same moment, unless its disk is slow or damaged.
                "is started" => continue,
                what => ("killed", short(what, 16)),
            };
            let label = text(class, (self.columns[at].x + 9.0, self.axis.y(us) + 4.0), &label);
            shapes.push_str(&told(&format!("{node} {what} at {} ms", us / 1000), &label));
        }
    }

    fn times(&self, shapes: &mut String) {
        let (mut free, mut before) = (f64::MIN, None);
        for (us, y) in self.axis.places() {
            let gap = before.map_or(0, |before| us - before);
            if gap >= GAP_US {
                let (middle, right) = (y - LINE * 1.6, self.columns.last().map_or(TIME, |column| column.x) + 40.0);
                shapes.push_str(&line("gap", (TIME - 60.0, middle), (right, middle)));
                let long = format!("{}.{} s", gap / 1_000_000, gap / 100_000 % 10);
                shapes.push_str(&text("gap", (TIME - 62.0, middle - 3.0), &long));
                free = free.max(middle + LINE);
            }
            if y >= free {
                shapes.push_str(&text("time", (TIME - 8.0, y + 4.0), &format!("{}.{}", us / 1000, us / 100 % 10)));
                free = y + LINE;
            }
            before = Some(us);
        }
    }

    fn hops(&self, shapes: &mut String) {
        for hop in &self.hops {
            let (Some(from), Some(to)) = (self.column(&hop.from), self.column(&hop.to)) else { continue };
            let (x, x_to) = (self.columns[from].x, self.columns[to].x);
            let class = match hop.what.as_str() {
                "replicate" | "keep a hint" => "replicate",
                "fetch" | "fetch hints" => "fetch",
                "forward" => "forward",
                "handoff" | "exchange" => "heal",
                "put" | "delete" | "get" => "request",
                _ => "other",
            };
            let y = self.axis.y(hop.asked_us);
            let mut drawn = String::new();
            match hop.arrived_us {
                Some(arrived) => drawn.push_str(&line(&format!("hop {class}"), (x, y), (x_to, self.axis.y(arrived)))),
                None => lost(&mut drawn, class, (x, y), x_to),
            }
            if let Some(answered) = hop.answered_us {
                let y = self.axis.y(answered);
                let class = if hop.refused { "answer refusal" } else { &format!("answer {class}") };
                match hop.told_us.filter(|_| hop.came) {
                    Some(us) => drawn.push_str(&line(&format!("hop {class}"), (x_to, y), (x, self.axis.y(us)))),
                    None => lost(&mut drawn, class, (x_to, y), x),
                }
            }
            if let Some(gave_up) = hop.told_us.filter(|_| !hop.came) {
                drawn.push_str(&text("gave-up", (x, self.axis.y(gave_up) + 4.0), "⊘"));
            }
            let whose =
                self.tale.author_of(hop.request).map_or_else(String::new, |(_, no)| format!(" for operation {no}"));
            let title = format!("{} -> {}: {}{whose}; {}", hop.from, hop.to, hop.what, hop.said);
            let group = told(&title, &drawn).replacen("<g>", &format!("<g data-r=\"{:x}\">", hop.request), 1);
            shapes.push_str(&group);
        }
    }

    /// What is written beside an event of a replica; nothing for what its mark says.
    fn label(&self, event: &Event) -> Option<String> {
        let value = |op_id: &str| match self.tale.operation_of(op_id) {
            Some(no) if self.tale.history.operations.get(&no).is_some_and(explain::deletes) => format!("delete {no}"),
            Some(no) => self.tale.value(no),
            None => "a write".to_owned(),
        };
        match event.act.as_str() {
            "lets a delivered hint go" => Some("hint delivered".to_owned()),
            "merges" | "mints" if event.field("kept_for").is_some() => {
                Some(format!("hint for {}", event.field("kept_for").unwrap_or_default()))
            }
            "mints" => Some(format!("mints {}", value(event.field("op_id")?))),
            "repeats" => Some(format!("has {}", value(event.field("op_id")?))),
            "merges" if event.field("changed") == Some("true") => Some(self.tale.holds(event.field("holds"))),
            "merges" | "reads" | "decides" | "coordinates a write" | "coordinates a read" => None,
            "finds stale replicas" => Some(format!("stale: {}", event.field("stale")?.trim_matches(['[', ']']))),
            act => Some(act.to_owned()),
        }
    }

    fn replicas(&self, shapes: &mut String) {
        // How many texts there are already, at one moment in one column.
        let mut stacked: BTreeMap<(u64, usize), u32> = BTreeMap::new();
        for event in &self.events {
            let Some(at) = self.column(event.node()) else { continue };
            let (x, y) = (self.columns[at].x, self.axis.y(event.at_us));
            let mark = match event.act.as_str() {
                "mints" => format!("<path class=\"mint\" d=\"M{x:.1} {:.1}l6 6l-6 6l-6 -6z\"/>", y - 6.0),
                "merges" if event.field("kept_for").is_some() => circle("note", (x, y)),
                "merges" if event.field("changed") == Some("true") => circle("merge", (x, y)),
                "merges" | "repeats" => circle("same", (x, y)),
                "reads" => rect("read", (x - 3.5, y - 3.5), 7.0, 7.0),
                "decides" | "coordinates a write" | "coordinates a read" => continue,
                _ => circle("note", (x, y)),
            };
            let mut drawn = mark;
            if let Some(label) = self.label(event) {
                let before = stacked.entry((event.at_us, at)).or_default();
                let place = (x + 9.0, y - 2.0 + LINE * f64::from(*before));
                *before += 1;
                drawn.push_str(&text("label", place, &short(&label, 19)));
            }
            let what = explain::told(self.tale, event)
                .map_or_else(|| event.act.clone(), |(who, what)| format!("{who} {what}"));
            shapes.push_str(&told(&what, &drawn));
        }
    }

    fn operations(&self, shapes: &mut String) {
        for operation in &self.operations {
            let Some(at) = self.column(&self.tale.client(operation.client)) else { continue };
            let x = self.columns[at].x;
            let is_blamed = is_blamed(self.tale, operation);
            for (number, (from_us, to_us, outcome)) in self.tale.tries(operation).into_iter().enumerate() {
                let tried = Operation { outcome, returned_us: to_us, ..(*operation).clone() };
                let y = self.axis.y(from_us);
                let end = to_us.map_or(self.axis.end(), |us| self.axis.y(us));
                let class = outcome_class(&tried);
                let blamed = if is_blamed { " blamed" } else { "" };
                let mut drawn = rect(&format!("op {class}{blamed}"), (x - 5.0, y), 10.0, (end - y).max(6.0));
                let (asked, ended) = self.captions(&tried, number > 0);
                drawn.push_str(&text("label asked", (x - 8.0, y + 8.0), &short(&asked, 17)));
                drawn.push_str(&text(&format!("label asked {class}"), (x - 8.0, y + 8.0 + LINE), &short(&ended, 17)));
                if is_blamed {
                    drawn.push_str(&text("blamed", (x + 8.0, y + 11.0), "✗"));
                }
                let until = to_us.map_or_else(|| "never".to_owned(), |us| (us / 1000).to_string());
                let (asks, ends) = (self.tale.asks(&tried), self.tale.ends(&tried));
                let title = format!("{}: {asks}\n{ends}\n{} to {until} ms", operation.no, from_us / 1000);
                shapes.push_str(&told(&title, &drawn));
            }
        }
    }

    /// What is written beside an operation: what was asked, how it ended.
    fn captions(&self, operation: &Operation, is_again: bool) -> (String, String) {
        let again = if is_again { "again " } else { "" };
        let what = match &operation.action {
            Action::Put { .. } => format!("put {}", self.tale.value(operation.no)),
            Action::Delete { .. } => "delete".to_owned(),
            Action::Get { .. } => "get".to_owned(),
        };
        let ended = match &operation.outcome {
            _ if operation.returned_us.is_none() => "never ends".to_owned(),
            Outcome::Written => "ok".to_owned(),
            Outcome::Found(values) => format!("= {}", self.tale.some_values(values)),
            Outcome::NotApplied(_) if operation.writes() => "not applied".to_owned(),
            Outcome::NotApplied(_) => "failed".to_owned(),
            Outcome::Unknown(_) => "unknown".to_owned(),
        };
        (format!("{}: {again}{what}", operation.no), ended)
    }

    /// What each replica holds at last.
    fn end(&self, shapes: &mut String) {
        let y = self.axis.end() + 14.0;
        for replica in &self.tale.history.replicas {
            let (Some(at), Some(record)) = (self.column(&replica.node), replica.records.get(self.key)) else {
                continue;
            };
            let x = self.columns[at].x;
            shapes.push_str(&text("last", (x, y), "holds at last"));
            let values: BTreeSet<OpNo> = record.dots.values().copied().collect();
            let values =
                if values.is_empty() { "only what was deleted".to_owned() } else { self.tale.some_values(&values) };
            shapes.push_str(&told(&values, &text("last value", (x, y + LINE), &short(&values, 20))));
        }
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    fn width(&self) -> f64 {
        let right = self.columns.last().map_or(TIME, |column| column.x) + NODE_WIDTH / 2.0 + 20.0;
        if self.bands.is_empty() { right + 40.0 } else { right + LANES as f64 * 7.0 + 340.0 }
    }
}

/// The operations to be drawn: all, or as many as can be looked at, around those that broke a promise; and whether any did.
fn chosen<'a>(tale: &Tale, all: &[&'a Operation]) -> (Vec<&'a Operation>, bool) {
    let first = all.iter().position(|operation| is_blamed(tale, operation));
    if all.len() <= OPERATIONS_MAX {
        return (all.to_vec(), first.is_some());
    }
    let from = first.unwrap_or(0).saturating_sub(BEFORE_BLAMED).min(all.len() - OPERATIONS_MAX);
    (all[from..from + OPERATIONS_MAX].to_vec(), first.is_some())
}

/// Clients that do something, then nodes that have something to do with it; all nodes where there are few.
fn columns(tale: &Tale, operations: &[&Operation], hops: &[Hop], events: &[&Event]) -> Vec<Column> {
    let clients: BTreeSet<u32> = operations.iter().map(|operation| operation.client).collect();
    let mut touched: BTreeSet<&str> = hops.iter().flat_map(|hop| [hop.from.as_str(), hop.to.as_str()]).collect();
    touched.extend(events.iter().map(|event| event.node()));
    let mut columns = Vec::new();
    let mut x = TIME;
    for client in clients {
        let name = tale.client(client);
        columns.push(Column { name, below: "client".to_owned(), is_node: false, x: x + CLIENT_WIDTH - 22.0 });
        x += CLIENT_WIDTH;
    }
    for (node, zone) in &tale.nodes {
        if tale.nodes.len() <= FEW_NODES || touched.contains(node.as_str()) {
            let (name, below) = (node.clone(), format!("node in {zone}"));
            columns.push(Column { name, below, is_node: true, x: x + NODE_WIDTH / 2.0 - 12.0 });
            x += NODE_WIDTH;
        }
    }
    columns
}

/// A message that does not arrive.
fn lost(drawn: &mut String, class: &str, (x, y): (f64, f64), x_to: f64) {
    let end = (x + (x_to - x) * 0.55, y + 9.0);
    drawn.push_str(&line(&format!("hop lost {class}"), (x, y), end));
    drawn.push_str(&text("lost", (end.0, end.1 + 4.0), "×"));
}

fn circle(class: &str, (x, y): (f64, f64)) -> String {
    format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>")
}

fn first_band(tale: &Tale) -> u64 {
    tale.bands.iter().map(|band| band.from_us).min().unwrap_or(u64::MAX)
}

fn last_band(tale: &Tale, from_us: u64) -> u64 {
    tale.bands.iter().map(|band| band.to_us).filter(|to| *to > from_us).max().unwrap_or(0)
}

/// Room for the times, left of everything.
const TIME: f64 = 76.0;
const TOP: f64 = 20.0;
const CLIENT_WIDTH: f64 = 124.0;
const NODE_WIDTH: f64 = 140.0;
/// So many bars of faults stand beside each other.
const LANES: usize = 4;
/// Nodes that have nothing to do with the key are shown up to so many.
const FEW_NODES: usize = 5;
/// A longer silence is marked.
const GAP_US: u64 = 500_000;
/// More cannot be looked at.
const OPERATIONS_MAX: usize = 150;
const BEFORE_BLAMED: usize = 40;

const MARKERS: &str = "<defs>\
<marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
<path d=\"M0 0.8L8 4L0 7.2z\" fill=\"context-stroke\"/></marker></defs>";
