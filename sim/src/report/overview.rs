//! The whole life on one strip, time rightwards and linear: who was up, what went wrong, how operations ended.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::svg::{Font, escape, line, rect, text, told};
use super::{is_blamed, outcome_class};
use crate::tale::Tale;

pub(super) fn overview(tale: &Tale) -> String {
    let end_us = tale.end_us.max(1);
    let x = |us: u64| LEFT + WIDTH * us.min(end_us) as f64 / end_us as f64;
    let mut shapes = String::new();
    let mut y = 22.0;
    for second in (0..=end_us / 1_000_000).step_by(usize::try_from(end_us / 12_000_000).unwrap_or(1).max(1)) {
        let x = x(second * 1_000_000);
        shapes.push_str(&text("tick", Font::LABEL.sized(10.0).middle(), (x, 12.0), &format!("{second} s")));
    }
    for (node, zone) in &tale.nodes {
        shapes.push_str(&text("name", Font::LABEL.end(), (LEFT - 8.0, y + 10.0), node));
        for (from, to, up) in phases(tale, node) {
            let (class, word) = if up { ("up", "is there") } else { ("down", "is not there") };
            let bar = rect(class, (x(from), y), (x(to) - x(from)).max(1.0), 12.0);
            let title = format!("{node} in {zone} {word} from {} to {} ms", from / 1000, to / 1000);
            shapes.push_str(&told(&title, &bar));
        }
        y += 17.0;
    }
    y += 6.0;
    for (at, band) in tale.bands.iter().enumerate() {
        let (from, to) = (x(band.from_us), x(band.to_us));
        let bar = rect(&format!("band b{}", at % COLOURS), (from, y), (to - from).max(2.0), 12.0);
        let title = format!("{}: {} to {} ms", band.what, band.from_us / 1000, band.to_us / 1000);
        shapes.push_str(&told(&title, &bar));
        // Beside the bar, on the side with more room.
        let (before, after) = (from - 5.0 - LEFT, LEFT + WIDTH - to - 5.0);
        let (font, x, room) =
            if after >= before { (Font::LABEL, to + 5.0, after) } else { (Font::LABEL.end(), from - 5.0, before) };
        // What lasts for the whole life has its name below.
        let (x, room) = if room < NAME_MIN {
            y += 13.0;
            (if after >= before { LEFT } else { LEFT + WIDTH }, WIDTH)
        } else {
            (x, room)
        };
        shapes.push_str(&text("fault", font, (x, y + 10.0), &font.short(&band.what, room)));
        y += 15.0;
    }
    y += 8.0;
    let mut rows: BTreeMap<u32, f64> = BTreeMap::new();
    for operation in tale.history.operations.values() {
        let row = *rows.entry(operation.client).or_insert_with(|| {
            y += 15.0;
            y - 15.0
        });
        let class = outcome_class(operation);
        let from = x(operation.invoked_us);
        let to = operation.returned_us.map_or(LEFT + WIDTH, x);
        let bar = rect(&format!("op {class}"), (from, row), (to - from).max(1.2), 11.0);
        let title = format!("{} {}: {} - {}", operation.key, operation.no, tale.asks(operation), tale.ends(operation));
        shapes.push_str(&told(&title, &bar));
        if is_blamed(tale, operation) {
            shapes.push_str(&line("blame", (from, row - 2.0), (from, row + 13.0)));
        }
    }
    for (client, row) in &rows {
        shapes.push_str(&text(
            "name",
            Font::LABEL.end(),
            (LEFT - 8.0, row + 9.0),
            &Font::LABEL.short(&tale.client(*client), LEFT - 8.0),
        ));
    }
    let (width, height) = (LEFT + WIDTH + 20.0, y + 8.0);
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<div class=\"scroll\"><svg class=\"overview\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"{} at a glance\">{shapes}</svg></div>",
        escape(&tale.title)
    );
    svg
}

/// When a node served, and when it did not: from, to, which.
pub(super) fn phases(tale: &Tale, node: &str) -> Vec<(u64, u64, bool)> {
    let mut phases = Vec::new();
    let (mut since, mut up) = (0, false);
    for (at_us, _, what) in tale.lives().filter(|(_, who, _)| *who == node) {
        let now_up = match what {
            "serves" => true,
            what if what == "is killed" || what.starts_with("ends") => false,
            _ => continue,
        };
        if now_up != up {
            phases.push((since, at_us, up));
            (since, up) = (at_us, now_up);
        }
    }
    phases.push((since, tale.end_us, up));
    phases.retain(|(from, to, _)| to > from);
    phases
}

/// The style sheet has so many colours for faults.
pub(super) const COLOURS: usize = 6;

const LEFT: f64 = 80.0;
const WIDTH: f64 = 1180.0;
/// A fault with less room than this on either side has its name below.
const NAME_MIN: f64 = 260.0;
