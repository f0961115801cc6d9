//! The space-time diagram of one key: a lifeline for each client and node, time downwards, messages between them, and what is
//! told of it in its place. It is drawn in [`windows`], one after the other.
//!
//! Every text has a slot of its own: left of a client's line, right of a node's, beside the bars of the faults, or, for what a
//! narrator says, all of the width. Within its slot the [`Axis`] gives it room. What a message is called is written on it last,
//! where nothing is in the way.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::axis::{Axis, LINE, Need};
use super::overview::{COLOURS, phases};
use super::svg::{Anchor, Bounds, Font, escape, line, rect, text, told};
use super::windows::{Window, windows};
use super::{is_blamed, outcome_class};
use crate::explain;
use crate::history::{OpNo, Operation};
use crate::story::Event;
use crate::tale::{Band, Hop, Tale};

/// The diagram of a key, window after window, and how many there are; `number` tells the keys of a page apart. Only one window is
/// shown at a time.
pub(super) fn diagram(tale: &Tale, key: &str, number: usize) -> (String, usize) {
    let pictures = Pictures::new(tale, key);
    let blamed = pictures.windows.iter().position(|window| pictures.is_blamed(window));
    let mut out = String::from("<div class=\"windows\">");
    for at in 0..pictures.windows.len() {
        let checked = if at == blamed.unwrap_or(0) { " checked" } else { "" };
        let _ = write!(out, "<input type=\"radio\" name=\"w{number}\" id=\"k{number}w{at}\"{checked}>");
    }
    if pictures.windows.len() > 1 {
        let _ = write!(out, "<nav class=\"steps\"><span>{} operations, in parts:</span>", pictures.operations.len());
        for (at, window) in pictures.windows.iter().enumerate() {
            let class = if pictures.is_blamed(window) { " class=\"bad\"" } else { "" };
            let _ = write!(out, "<label for=\"k{number}w{at}\"{class}>{}</label>", pictures.title(window));
        }
        out.push_str("</nav>");
    }
    let _ = write!(out, "<div class=\"zoom\" data-for=\"d{number}\"></div><div class=\"scroll\" id=\"d{number}\">");
    for (at, window) in pictures.windows.iter().enumerate() {
        let Picture { width, height, heads, shapes, .. } = pictures.draw(window);
        let _ = write!(
            out,
            "<div class=\"wide w{at}\"><svg class=\"heads\" viewBox=\"0 0 {width:.0} 40\" width=\"{width:.0}\" height=\"40\">\
             {heads}</svg><svg class=\"diagram\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
             role=\"img\" aria-label=\"what happened to {}: {}\">{shapes}</svg></div>",
            escape(key),
            pictures.title(window),
        );
    }
    out.push_str("</div></div>");
    (out, pictures.windows.len())
}

/// What the windows of a key are drawn from.
struct Pictures<'a> {
    tale: &'a Tale,
    key: &'a str,
    operations: Vec<&'a Operation>,
    hops: Vec<Hop>,
    events: Vec<&'a Event>,
    windows: Vec<Window>,
}

/// One window, drawn, and where its texts are.
struct Picture {
    width: f64,
    height: f64,
    heads: String,
    shapes: String,
    /// The texts of the heads, and those below: what the tests look at, as a reader looks at the picture.
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests look at it"))]
    names: Vec<(Bounds, String)>,
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests look at it"))]
    texts: Vec<(Bounds, String)>,
}

impl<'a> Pictures<'a> {
    fn new(tale: &'a Tale, key: &'a str) -> Self {
        let operations = tale.operations(key);
        let hops = tale.hops(key);
        let marks = |event: &&Event| !matches!(event.act.as_str(), "ask" | "asked" | "tell" | "told");
        let events = tale.events(key).filter(marks).collect();
        let times: Vec<_> = operations.iter().map(|operation| (operation.invoked_us, operation.returned_us)).collect();
        // What the last operation set going is over soon; healing goes on for ever.
        let of_operations = hops.iter().filter(|hop| tale.author_of(hop.request).is_some());
        let bands = tale.bands.iter().flat_map(|band| [band.from_us, band.to_us]);
        let said = tale.narration.iter().map(|(at_us, _)| *at_us);
        let moments = times.iter().flat_map(|(from, to)| [Some(*from), *to]).flatten();
        let moments = moments.chain(of_operations.filter_map(|hop| hop.told_us)).chain(bands).chain(said);
        let span = moments.fold(None, |span: Option<(u64, u64)>, us| {
            Some(span.map_or((us, us), |(from, to)| (from.min(us), to.max(us))))
        });
        let windows = windows(&times, span.unwrap_or_default());
        Self { tale, key, operations, hops, events, windows }
    }

    fn is_blamed(&self, window: &Window) -> bool {
        let (from, to) = window.operations;
        self.operations[from..to].iter().any(|operation| is_blamed(self.tale, operation))
    }

    fn title(&self, window: &Window) -> String {
        let (from, to) = window.operations;
        let seconds = |us: u64| format!("{}.{}", us / 1_000_000, us / 100_000 % 10);
        format!("{} to {to}, {} - {} s", from + 1, seconds(window.from_us), seconds(window.to_us))
    }

    fn draw(&self, window: &Window) -> Picture {
        Drawing::new(self, window).finish()
    }
}

struct Drawing<'a> {
    tale: &'a Tale,
    key: &'a str,
    window: Window,
    operations: Vec<&'a Operation>,
    hops: Vec<&'a Hop>,
    events: Vec<&'a Event>,
    bands: Vec<BandBar<'a>>,
    columns: Vec<Column>,
    labels: Vec<Label>,
    axis: Axis,
    /// The right ends of the columns, of the bars of faults, and of all.
    rights: [f64; 3],
    texts: Vec<(Bounds, String)>,
    shapes: String,
}

struct BandBar<'a> {
    band: &'a Band,
    number: usize,
    lane: usize,
}

struct Column {
    name: String,
    below: String,
    is_node: bool,
    /// Of its line.
    x: f64,
    /// Its own part of the page.
    left: f64,
    right: f64,
}

/// Text that has to be there.
struct Label {
    at_us: u64,
    /// A column, the one behind the last for faults, or the one behind that for what a narrator says.
    slot: usize,
    lines: Vec<(String, String)>,
    told: String,
    /// The colour of what it is about, where it stands beside others of its kind.
    swatch: Option<usize>,
    /// The middle of its first line; of what a narrator says, its top.
    y: f64,
}

impl<'a> Drawing<'a> {
    fn new(all: &'a Pictures<'a>, window: &Window) -> Self {
        let Pictures { tale, operations, hops, events, .. } = all;
        let tale: &Tale = tale;
        let operations: Vec<&Operation> = operations
            .iter()
            .copied()
            .filter(|operation| window.sees(operation.invoked_us, operation.returned_us))
            .collect();
        let hops: Vec<&Hop> = hops.iter().filter(|hop| window.has(hop.asked_us)).collect();
        let events: Vec<&Event> = events.iter().copied().filter(|event| window.has(event.at_us)).collect();
        let mut free: Vec<u64> = Vec::new();
        let mut bands = Vec::new();
        let seen = |(_, band): &(usize, &Band)| window.sees(band.from_us, Some(band.to_us));
        let mut seen: Vec<(usize, &Band)> = tale.bands.iter().enumerate().filter(seen).collect();
        seen.sort_by_key(|(number, band)| (band.from_us, *number));
        for (number, band) in seen {
            // The first lane in which nothing lasts any more.
            let lane = free.iter().position(|to_us| *to_us < band.from_us).unwrap_or(free.len());
            free.resize(free.len().max(lane + 1), 0);
            free[lane] = band.to_us;
            bands.push(BandBar { band, number, lane });
        }
        let columns = columns(tale, &operations, &hops, &events);
        let mut drawing = Self {
            tale,
            key: all.key,
            window: window.clone(),
            operations,
            hops,
            events,
            bands,
            columns,
            labels: Vec::new(),
            axis: Axis::new(&[], TOP).0,
            rights: [0.0; 3],
            texts: Vec::new(),
            shapes: String::new(),
        };
        drawing.write_labels();
        drawing.place_columns(free.len());
        drawing.place_labels();
        drawing
    }

    fn finish(mut self) -> Picture {
        self.draw_bands();
        self.draw_lifelines();
        self.draw_times();
        self.draw_hops();
        self.draw_marks();
        self.draw_operations();
        self.draw_labels();
        let height = self.draw_end() + 14.0;
        self.name_hops();
        let texts = std::mem::take(&mut self.texts);
        let heads = self.draw_heads();
        let [.., width] = self.rights;
        Picture { width, height, heads, names: self.texts, shapes: self.shapes, texts }
    }

    /// Writes a text, and remembers where.
    fn write(&mut self, class: &str, font: Font, place: (f64, f64), content: &str) -> String {
        self.texts.push((font.bounds(place, content), content.to_owned()));
        text(class, font, place, content)
    }

    /// Every text that has to be there, in one line each so far.
    fn write_labels(&mut self) {
        let mut labels = Vec::new();
        let mut label = |at_us: u64, slot: usize, lines: Vec<(String, String)>, told: String| {
            labels.push(Label { at_us, slot, lines, told, swatch: None, y: 0.0 });
        };
        for operation in &self.operations {
            let Some(slot) = self.column(&self.tale.client(operation.client)) else { continue };
            for (number, (from_us, to_us, outcome)) in self.tale.tries(operation).into_iter().enumerate() {
                if !self.window.sees(from_us, to_us) {
                    continue;
                }
                let tried = Operation { outcome, returned_us: to_us, ..(*operation).clone() };
                let earlier = if from_us < self.window.from_us { " (began earlier)" } else { "" };
                let again = if number > 0 { "again " } else { "" };
                let asked = format!("{}: {again}{}{earlier}", operation.no, self.tale.asks_in_short(&tried));
                let ended = self.tale.ends_in_short(&tried);
                let class = outcome_class(&tried);
                let lines = vec![("label".to_owned(), asked), (format!("label {class}"), ended)];
                label(from_us.max(self.window.from_us), slot, lines, self.told_of(&tried, from_us, to_us));
            }
        }
        for (at_us, node, what) in self.tale.lives().filter(|(at_us, ..)| self.window.has(*at_us)) {
            let Some(slot) = self.column(node) else { continue };
            let class = match what {
                "serves" => "serves",
                // It serves in the same moment, unless its disk is slow or damaged.
                "is started" => continue,
                _ => "killed",
            };
            let lines = vec![(class.to_owned(), explain::life(what))];
            label(at_us, slot, lines, format!("{node} {what} at {} ms", at_us / 1000));
        }
        for event in &self.events {
            let (Some(slot), Some(said)) = (self.column(event.node()), explain::in_short(self.tale, event)) else {
                continue;
            };
            label(event.at_us, slot, vec![("label".to_owned(), said)], explain::whole(self.tale, event));
        }
        for BandBar { band, number, .. } in &self.bands {
            let begun = if band.from_us < self.window.from_us { " (began earlier)" } else { "" };
            let lines = vec![("fault".to_owned(), format!("{}{begun}", band.what))];
            labels.push(Label {
                at_us: band.from_us.max(self.window.from_us),
                slot: self.columns.len(),
                lines,
                told: told_of_band(band),
                swatch: Some(*number),
                y: 0.0,
            });
        }
        for (at_us, said) in self.tale.narration.iter().filter(|(at_us, _)| self.window.has(*at_us)) {
            labels.push(Label {
                at_us: *at_us,
                slot: self.columns.len() + 1,
                lines: vec![("narration".to_owned(), said.clone())],
                told: String::new(),
                swatch: None,
                y: 0.0,
            });
        }
        self.labels = labels;
    }

    /// As wide as their texts want it, within bounds.
    fn place_columns(&mut self, lanes: usize) {
        let mut left = TIME;
        for at in 0..self.columns.len() {
            let texts = self.labels.iter().filter(|label| label.slot == at).flat_map(|label| &label.lines);
            let wanted = texts.map(|(_, content)| Font::LABEL.width(content)).fold(0.0, f64::max);
            let last = self.at_last(at).map_or(0.0, |values| Font::LABEL.bold().width(&values));
            let column = &mut self.columns[at];
            let head = Font::LABEL.sized(HEAD).bold().width(&column.name).max(BELOW.width(&column.below));
            let (least, most) = if column.is_node { NODE_TEXT } else { CLIENT_TEXT };
            let wide = wanted.max(last).max(head).clamp(least, most).ceil();
            if column.is_node {
                // Clients' requests are seen between their lines and those of the nodes.
                let gap = if at == 0 || self.columns[at - 1].is_node { 0.0 } else { 34.0 };
                let column = &mut self.columns[at];
                column.left = left + gap;
                column.x = column.left + NODE_LINE;
                column.right = column.x + TO_LABEL + wide + 5.0;
            } else {
                column.left = left;
                column.x = left + wide + TO_LABEL;
                column.right = column.x + CLIENT_LINE;
            }
            left = self.columns[at].right;
        }
        let bars = left + 6.0 + lanes as f64 * LANE;
        let faults = self.labels.iter().filter(|label| label.slot == self.columns.len());
        let wide = faults.flat_map(|label| &label.lines).map(|(_, what)| FAULT.width(what)).fold(0.0, f64::max);
        let all = if lanes == 0 { left + 10.0 } else { bars + FAULT_TEXT + wide.min(FAULT_MAX) + 10.0 };
        self.rights = [left, bars, all];
    }

    /// Breaks the texts into lines, and gives each its place.
    fn place_labels(&mut self) {
        let (faults, narration) = (self.columns.len(), self.columns.len() + 1);
        let rooms: Vec<f64> = self.columns.iter().map(Column::room).collect();
        let [columns, ..] = self.rights;
        for label in &mut self.labels {
            let (font, room, most) = match label.slot {
                slot if slot == narration => (NARRATION, columns - TIME - 16.0, NARRATION_LINES),
                slot if slot == faults => (FAULT, FAULT_MAX, 2),
                slot => (Font::LABEL, rooms[slot], 2),
            };
            let lines = std::mem::take(&mut label.lines);
            label.lines = lines
                .into_iter()
                .flat_map(|(class, content)| {
                    let lines = font.wrap(&content, room, most).into_iter();
                    lines.map(move |line| (class.clone(), line)).collect::<Vec<_>>()
                })
                .collect();
        }
        let mut needs: Vec<(u64, Need)> = Vec::new();
        for label in &self.labels {
            let lines = label.lines.len();
            let need = match label.slot {
                slot if slot == narration => Need::Row { height: lines as f64 * NARRATION_LINE + 8.0 },
                slot => Need::Lines { slot, lines },
            };
            needs.push((label.at_us, need));
        }
        let mut place = |us: u64| {
            if self.window.has(us) {
                needs.push((us, Need::Place));
            }
        };
        // What follows in the next window is not seen here.
        [self.window.from_us, self.window.to_us - 1].into_iter().for_each(&mut place);
        for operation in &self.operations {
            let tries = self.tale.tries(operation);
            tries.iter().flat_map(|(from_us, to_us, _)| [Some(*from_us), *to_us]).flatten().for_each(&mut place);
        }
        for hop in &self.hops {
            let times = [Some(hop.asked_us), hop.arrived_us, hop.answered_us, hop.told_us];
            times.into_iter().flatten().for_each(&mut place);
        }
        self.events.iter().map(|event| event.at_us).for_each(&mut place);
        self.bands.iter().flat_map(|bar| [bar.band.from_us, bar.band.to_us]).for_each(&mut place);
        let (axis, placed) = Axis::new(&needs, TOP);
        for (label, y) in self.labels.iter_mut().zip(placed) {
            label.y = y;
        }
        self.axis = axis;
    }

    fn told_of(&self, tried: &Operation, from_us: u64, to_us: Option<u64>) -> String {
        let until = to_us.map_or_else(|| "never".to_owned(), |us| (us / 1000).to_string());
        let (asks, ends) = (self.tale.asks(tried), self.tale.ends(tried));
        format!("{}: {asks}\n{ends}\n{} to {until} ms", tried.no, from_us / 1000)
    }

    fn draw_heads(&mut self) -> String {
        let mut heads = String::new();
        for at in 0..self.columns.len() {
            let Column { name, below, is_node, x, .. } = &self.columns[at];
            let (class, x) = (if *is_node { "head node" } else { "head client" }, *x);
            let (name, below) = (name.clone(), below.clone());
            heads.push_str(&self.write(class, Font::LABEL.sized(HEAD).bold().middle(), (x, 18.0), &name));
            heads.push_str(&self.write("below", BELOW.middle(), (x, 32.0), &below));
        }
        heads.push_str(&self.write("below", BELOW.end(), (TIME - 8.0, 32.0), "ms"));
        heads
    }

    /// Shaded columns, and beside the diagram a bar for each fault.
    fn draw_bands(&mut self) {
        let [columns, ..] = self.rights;
        for BandBar { band, number, lane } in &self.bands {
            let (y, y_end) = (self.axis.y(band.from_us), self.axis.until(band.to_us));
            let height = (y_end - y).max(3.0);
            let colour = number % COLOURS;
            let mut drawn = String::new();
            for column in self.columns.iter().filter(|column| band.whom.is_empty() || band.whom.contains(&column.name))
            {
                let (left, width) = (column.left + 2.0, column.right - column.left - 4.0);
                drawn.push_str(&rect(&format!("shade b{colour}"), (left, y), width, height));
            }
            let x = columns + 6.0 + *lane as f64 * LANE;
            drawn.push_str(&rect(&format!("band b{colour}"), (x, y), LANE - 2.0, height));
            self.shapes.push_str(&told(&told_of_band(band), &drawn));
        }
    }

    fn draw_lifelines(&mut self) {
        for column in &self.columns {
            self.shapes.push_str(&line("life", (column.x, TOP - 10.0), (column.x, self.axis.end())));
            if !column.is_node {
                continue;
            }
            for (from, to, up) in phases(self.tale, &column.name) {
                if !up && self.window.sees(from, Some(to)) && from < to {
                    let (y, y_end) = (self.axis.y(from), self.axis.until(to));
                    let bar = rect("down", (column.x - 5.0, y), 10.0, (y_end - y).max(2.0));
                    let title = format!("{} is down from {} to {} ms", column.name, from / 1000, to / 1000);
                    self.shapes.push_str(&told(&title, &bar));
                }
            }
        }
    }

    fn draw_times(&mut self) {
        let [columns, ..] = self.rights;
        let (mut free, mut before) = (f64::MIN, None);
        for (us, y) in self.axis.places().collect::<Vec<_>>() {
            let gap = before.map_or(0, |(before, _)| us - before);
            if let (GAP_US.., Some((_, above))) = (gap, before) {
                // In the middle of the silence, and above what is told at its end.
                let middle = f64::midpoint(f64::max(above, free - LINE), self.axis.until(us));
                self.shapes.push_str(&line("gap", (4.0, middle), (columns, middle)));
                let long = format!("{}.{} s", gap / 1_000_000, gap / 100_000 % 10);
                let place = (4.0, middle - 3.0);
                if place.1 - LINE >= free - LINE {
                    let drawn = self.write("gap", TIMES, place, &long);
                    self.shapes.push_str(&drawn);
                }
                free = free.max(middle + LINE);
            }
            if y >= free {
                let drawn =
                    self.write("time", TIMES.end(), (TIME - 8.0, y + 4.0), &format!("{}.{}", us / 1000, us / 100 % 10));
                self.shapes.push_str(&drawn);
                free = y + LINE;
            }
            before = Some((us, y));
        }
    }

    fn draw_hops(&mut self) {
        for hop in &self.hops {
            let (Some(from), Some(to)) = (self.column(&hop.from), self.column(&hop.to)) else { continue };
            let (x, x_to) = (self.columns[from].x, self.columns[to].x);
            let class = hop_class(hop);
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
                    Some(us) => {
                        let ends = (x, self.axis.until(us));
                        drawn.push_str(&line(&format!("hop {class}"), (x_to, y), ends));
                    }
                    None => lost(&mut drawn, class, (x_to, y), x),
                }
            }
            if let Some(gave_up) = hop.told_us.filter(|_| !hop.came) {
                let y = self.axis.until(gave_up);
                let _ = write!(
                    drawn,
                    "<path class=\"gave-up\" d=\"M{:.1} {y:.1}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0m1.2 2.8l5.6 -5.6\"/>",
                    x - 4.0
                );
            }
            let group = told(&format!("{} {}", hop.from, explain::message(self.tale, hop)), &drawn);
            self.shapes.push_str(&group.replacen("<g>", &format!("<g data-r=\"{:x}\">", hop.request), 1));
        }
    }

    /// What replicas did, without a word.
    fn draw_marks(&mut self) {
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
            self.shapes.push_str(&told(&explain::whole(self.tale, event), &mark));
        }
    }

    fn draw_operations(&mut self) {
        for operation in &self.operations {
            let Some(at) = self.column(&self.tale.client(operation.client)) else { continue };
            let x = self.columns[at].x;
            let is_blamed = is_blamed(self.tale, operation);
            for (from_us, to_us, outcome) in self.tale.tries(operation) {
                if !self.window.sees(from_us, to_us) {
                    continue;
                }
                let tried = Operation { outcome, returned_us: to_us, ..(*operation).clone() };
                let y = self.axis.y(from_us);
                let end = to_us.map_or(self.axis.end(), |us| self.axis.until(us));
                let class = outcome_class(&tried);
                let blamed = if is_blamed { " blamed" } else { "" };
                let mut drawn = rect(&format!("op {class}{blamed}"), (x - 5.0, y), 10.0, (end - y).max(6.0));
                if is_blamed {
                    let _ = write!(drawn, "<path class=\"cross\" d=\"M{:.1} {:.1}l7 7m0 -7l-7 7\"/>", x + 8.0, y + 2.0);
                }
                let title = self.told_of(&tried, from_us, to_us);
                self.shapes.push_str(&told(&title, &drawn));
            }
        }
    }

    fn draw_labels(&mut self) {
        let [columns, bars, _] = self.rights;
        let (faults, narration) = (self.columns.len(), self.columns.len() + 1);
        for label in std::mem::take(&mut self.labels) {
            let mut drawn = String::new();
            let (font, x, first, between) = match label.slot {
                slot if slot == narration => {
                    let height = label.lines.len() as f64 * NARRATION_LINE + 8.0;
                    drawn.push_str(&rect("narrator", (TIME, label.y), columns - TIME, height));
                    (NARRATION, TIME + 8.0, label.y + 15.0, NARRATION_LINE)
                }
                slot if slot == faults => (FAULT, bars + FAULT_TEXT, label.y + 4.0, LINE),
                slot if self.columns[slot].is_node => {
                    (Font::LABEL, self.columns[slot].x + TO_LABEL, label.y + 4.0, LINE)
                }
                slot => (Font::LABEL.end(), self.columns[slot].x - TO_LABEL, label.y + 4.0, LINE),
            };
            if let Some(number) = label.swatch {
                drawn.push_str(&rect(&format!("band b{}", number % COLOURS), (bars + 3.0, label.y - 3.0), 6.0, 6.0));
            }
            for (at, (class, content)) in label.lines.iter().enumerate() {
                drawn.push_str(&self.write(class, font, (x, first + between * at as f64), content));
            }
            let group = if label.told.is_empty() { drawn } else { told(&label.told, &drawn) };
            self.shapes.push_str(&group);
        }
    }

    /// What each replica holds at last; and where this ends.
    fn draw_end(&mut self) -> f64 {
        let mut y = self.axis.end() + 12.0;
        if self.window.operations.1 < self.tale.operations(self.key).len() {
            let drawn = self.write("last", Font::LABEL, (TIME, y), "goes on in the next part");
            self.shapes.push_str(&drawn);
            return y;
        }
        let first = y;
        for at in 0..self.columns.len() {
            let Some(values) = self.at_last(at) else { continue };
            let (x, room) = (self.columns[at].x + TO_LABEL, self.columns[at].room());
            let drawn = self.write("last", Font::LABEL, (x, first), "holds at last");
            self.shapes.push_str(&drawn);
            let font = Font::LABEL.bold();
            let mut lines = String::new();
            for (number, content) in font.wrap(&values, room, LAST_LINES).iter().enumerate() {
                let place = (x, first + LINE * (number + 1) as f64);
                lines.push_str(&self.write("value", font, place, content));
                y = y.max(place.1);
            }
            self.shapes.push_str(&told(&values, &lines));
        }
        y
    }

    /// What the replica of a column holds at the end.
    fn at_last(&self, column: usize) -> Option<String> {
        let name = &self.columns[column].name;
        let replica = self.tale.history.replicas.iter().find(|replica| replica.node == *name)?;
        let values: BTreeSet<OpNo> = replica.records.get(self.key)?.dots.values().copied().collect();
        Some(if values.is_empty() { "only what was deleted".to_owned() } else { self.tale.some_values(&values) })
    }

    /// Writes on messages what they are, where nothing else is written: their colours say it as well.
    fn name_hops(&mut self) {
        let mut taken = Taken::default();
        self.texts.iter().for_each(|(bounds, _)| taken.take(*bounds));
        for hop in std::mem::take(&mut self.hops) {
            let (Some(from), Some(to), Some(arrived)) = (self.column(&hop.from), self.column(&hop.to), hop.arrived_us)
            else {
                continue;
            };
            // What a client asks for stands beside its operation.
            if !self.columns[from].is_node {
                continue;
            }
            let (x, x_to) = (self.columns[from].x, self.columns[to].x);
            let (y, y_to) = (self.axis.y(hop.asked_us), self.axis.y(arrived));
            let content = explain::question(hop);
            let places = PLACES.iter().map(|part| (x + (x_to - x) * part, y + (y_to - y) * part - 2.0));
            let free =
                places.map(|place| (place, HOP.bounds(place, content))).find(|(_, bounds)| taken.is_free(bounds));
            if let Some((place, bounds)) = free {
                taken.take(bounds);
                let class = format!("name {}", hop_class(hop));
                let drawn = self.write(&class, HOP, place, content);
                self.shapes.push_str(&drawn);
            }
        }
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

impl Column {
    /// How wide its texts may be.
    fn room(&self) -> f64 {
        if self.is_node { self.right - self.x - TO_LABEL - 5.0 } else { self.x - TO_LABEL - self.left }
    }
}

/// Parts of the page on which something is written.
#[derive(Default)]
struct Taken(BTreeMap<i64, Vec<Bounds>>);

impl Taken {
    fn take(&mut self, bounds: Bounds) {
        for row in Self::rows(&bounds) {
            self.0.entry(row).or_default().push(bounds);
        }
    }

    fn is_free(&self, bounds: &Bounds) -> bool {
        let mut others = Self::rows(bounds).filter_map(|row| self.0.get(&row)).flatten();
        !others.any(|other| other.touch(bounds))
    }

    /// Things that touch have one of these in common.
    fn rows(bounds: &Bounds) -> std::ops::RangeInclusive<i64> {
        let row = |y: f64| (y / 64.0).floor() as i64;
        row(bounds.top)..=row(bounds.bottom)
    }
}

/// Clients that do something, then nodes that have something to do with it; all nodes where there are few.
fn columns(tale: &Tale, operations: &[&Operation], hops: &[&Hop], events: &[&Event]) -> Vec<Column> {
    let clients: BTreeSet<u32> = operations.iter().map(|operation| operation.client).collect();
    let mut touched: BTreeSet<&str> = hops.iter().flat_map(|hop| [hop.from.as_str(), hop.to.as_str()]).collect();
    touched.extend(events.iter().map(|event| event.node()));
    let column = |name, below, is_node| Column { name, below, is_node, x: 0.0, left: 0.0, right: 0.0 };
    let clients = clients.into_iter().map(|client| column(tale.client(client), "client".to_owned(), false));
    let nodes = tale.nodes.iter().filter(|(node, _)| tale.nodes.len() <= FEW_NODES || touched.contains(node.as_str()));
    clients.chain(nodes.map(|(node, zone)| column(node.clone(), format!("node in {zone}"), true))).collect()
}

fn hop_class(hop: &Hop) -> &'static str {
    match hop.what.as_str() {
        "replicate" | "keep a hint" => "replicate",
        "fetch" | "fetch hints" => "fetch",
        "forward" => "forward",
        "handoff" | "exchange" => "heal",
        "put" | "delete" | "get" => "request",
        _ => "other",
    }
}

fn told_of_band(band: &Band) -> String {
    format!("{}: {} to {} ms", band.what, band.from_us / 1000, band.to_us / 1000)
}

/// A message that does not arrive.
fn lost(drawn: &mut String, class: &str, (x, y): (f64, f64), x_to: f64) {
    let (x_end, y_end) = (x + (x_to - x) * 0.55, y + 9.0);
    drawn.push_str(&line(&format!("hop lost {class}"), (x, y), (x_end, y_end)));
    let _ = write!(drawn, "<path class=\"cross\" d=\"M{:.1} {:.1}l7 7m0 -7l-7 7\"/>", x_end - 3.5, y_end - 3.5);
}

fn circle(class: &str, (x, y): (f64, f64)) -> String {
    format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>")
}

/// Room for the times, left of everything.
const TIME: f64 = 86.0;
const TOP: f64 = 20.0;

/// How wide the texts of a column may be: at least, so that messages are seen between the lines, and at most.
const CLIENT_TEXT: (f64, f64) = (76.0, 116.0);
const NODE_TEXT: (f64, f64) = (96.0, 156.0);
/// From a line to the text beside it.
const TO_LABEL: f64 = 9.0;
/// Room on the other side of a line: left of a node's, right of a client's.
const NODE_LINE: f64 = 10.0;
const CLIENT_LINE: f64 = 20.0;

/// A bar of a fault with the space behind it.
const LANE: f64 = 7.0;
/// From the bars to what they are.
const FAULT_TEXT: f64 = 13.0;
const FAULT_MAX: f64 = 330.0;

const HEAD: f64 = 13.0;
const BELOW: Font = Font { size: 10.0, anchor: Anchor::Start, bold: false };
const TIMES: Font = BELOW;
const FAULT: Font = Font::LABEL;
const NARRATION: Font = Font { size: 12.0, anchor: Anchor::Start, bold: false };
const HOP: Font = Font { size: 9.0, anchor: Anchor::Middle, bold: false };

const NARRATION_LINE: f64 = 15.0;
/// A narrator who says more than this is cut short.
const NARRATION_LINES: usize = 12;
/// Siblings can be many.
const LAST_LINES: usize = 6;

/// Nodes that have nothing to do with the key are shown up to so many.
const FEW_NODES: usize = 5;
/// A longer silence is marked.
const GAP_US: u64 = 500_000;

/// Where on a message its name may be: parts of the way.
const PLACES: [f64; 7] = [0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life;
    use crate::plan::{FaultClass, Plan};
    use crate::scenarios;
    use crate::trace::Trace;

    fn of_seed(seed: u64) -> Tale {
        let (plan, story) = (Plan::draw(seed, &FaultClass::survivable()), crate::story::Story::new());
        let report = life::run_told(&plan, Trace::new(), Some(story.clone()));
        Tale::of_life(&report, &story)
    }

    /// The first two texts that cover each other.
    fn overlap(texts: &[(Bounds, String)]) -> Option<[&(Bounds, String); 2]> {
        let mut texts: Vec<_> = texts.iter().collect();
        texts.sort_by(|one, other| one.0.top.total_cmp(&other.0.top));
        texts.iter().enumerate().find_map(|(at, one)| {
            let below = texts[at + 1..].iter().take_while(|other| other.0.top < one.0.bottom);
            below.copied().find(|other| one.0.touch(&other.0)).map(|other| [*one, other])
        })
    }

    /// Checks the picture of every key; gives how many windows and texts there are.
    fn check(tale: &Tale) -> (usize, usize) {
        let (mut windows, mut texts) = (0, 0);
        for key in tale.keys() {
            let pictures = Pictures::new(tale, key);
            let mut operations = BTreeSet::new();
            for window in &pictures.windows {
                let what = format!("{}, {key}, {}", tale.title, pictures.title(window));
                let drawing = Drawing::new(&pictures, window);
                operations.extend(drawing.operations.iter().map(|operation| operation.no));
                let picture = drawing.finish();
                assert_eq!(overlap(&picture.texts), None, "two texts cover each other: {what}");
                for (bounds, text) in &picture.texts {
                    let inside = bounds.left >= 0.0 && bounds.top >= 0.0;
                    let inside = inside && bounds.right <= picture.width && bounds.bottom <= picture.height;
                    assert!(inside, "{text:?} is not in the picture, at {bounds:?}: {what}");
                }
                assert_eq!(overlap(&picture.names), None, "two names cover each other: {what}");
                (windows, texts) = (windows + 1, texts + picture.texts.len());
            }
            let all: BTreeSet<OpNo> = pictures.operations.iter().map(|operation| operation.no).collect();
            assert_eq!(operations, all, "every operation is drawn: {}, {key}", tale.title);
        }
        (windows, texts)
    }

    #[test]
    fn no_text_of_a_scenario_covers_another_one() {
        for story in scenarios::ALL {
            let tale = (story.play)().tale;
            assert!(tale.narration.len() >= 2, "{} has a narrator", story.name);
            let (_, texts) = check(&tale);
            assert!(texts > 20, "{} has {texts} texts", story.name);
            let drawn = tale.keys().into_iter().map(|key| diagram(&tale, key, 0).0).collect::<String>();
            for (_, said) in &tale.narration {
                let begins: String = said.split(' ').take(3).collect::<Vec<_>>().join(" ");
                assert!(drawn.contains(&*escape(&begins)), "{}: {said:?} is not in the picture", story.name);
            }
        }
    }

    #[test]
    fn no_text_of_a_life_covers_another_one() {
        let (mut windows, mut texts) = (0, 0);
        for seed in [2, 5, 7, 42] {
            let (more_windows, more_texts) = check(&of_seed(seed));
            (windows, texts) = (windows + more_windows, texts + more_texts);
        }
        assert!(windows > 12 && texts > 5_000, "{windows} windows with {texts} texts are too few to show anything");
    }
}
